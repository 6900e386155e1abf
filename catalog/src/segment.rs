//! What the catalog knows of one segment.

use aubade_proto::{Epoch, NodeId, SegmentDescription, SegmentId, TransactionId};

/// A committed segment. Its statistics are in the table's [`crate::SegmentStatistics`], at the same
/// index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentEntry {
    /// Which segment.
    pub id: SegmentId,
    /// The epoch of its writer.
    pub epoch: Epoch,
    /// The transaction that wrote it.
    pub transaction: TransactionId,
    /// Rows in it.
    pub rows: u64,
    /// Length of the file, bytes.
    pub bytes: u64,
    /// SHA-256 of the file.
    pub sha256: [u8; 32],
    /// The protection group: nodes that should hold it.
    pub intended: Vec<NodeId>,
    /// Those of it that have acknowledged it.
    pub holders: Vec<NodeId>,
}

impl SegmentEntry {
    /// As told to storage nodes.
    pub fn description(&self) -> SegmentDescription {
        SegmentDescription {
            segment_id: self.id,
            epoch: self.epoch,
            transaction_id: self.transaction,
            bytes: self.bytes,
            sha256: self.sha256,
        }
    }

    /// Nodes of the protection group that lack it.
    pub fn missing(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.intended.iter().copied().filter(|node| !self.holders.contains(node))
    }
}
