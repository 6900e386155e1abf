//! What the two sides say about stored segments and about nodes.

use crate::id::{ClusterId, Epoch, NodeId, SegmentId, TransactionId};

/// A segment as its writer describes it. The checksum is over the stored bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentDescription {
    /// Which segment.
    pub segment_id: SegmentId,
    /// The epoch of its writer.
    pub epoch: Epoch,
    /// The transaction of its writer; with the epoch it tells an orphan from live data.
    pub transaction_id: TransactionId,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// SHA-256 of the file.
    pub sha256: [u8; 32],
}

/// A node's word that it has a segment on stable storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutReceipt {
    /// SHA-256 of what was stored, computed by the receiver.
    pub sha256: [u8; 32],
    /// Its length in bytes.
    pub bytes: u64,
    /// The highest epoch sealed at the node.
    pub epoch: Epoch,
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// The node.
    pub node_id: NodeId,
    /// Its cluster.
    pub cluster_id: ClusterId,
    /// Its availability zone.
    pub zone: String,
    /// The highest epoch sealed there.
    pub epoch: Epoch,
    /// Segments that it holds.
    pub segment_count: u64,
    /// Their bytes.
    pub segment_bytes: u64,
    /// Segments that were found corrupt there and put aside.
    pub quarantined: Vec<SegmentId>,
    /// Scans under way.
    pub active_scan_count: u64,
}
