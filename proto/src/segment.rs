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
    /// Time that scans have spent on the CPU pool since the node started, microseconds summed over its threads.
    pub scan_cpu_micros: u64,
    /// Drawn when the node started: what it holds may have changed since it had another one.
    pub instance: u64,
    /// How far it has come in reading its segments against their checksums; `None`: it does not.
    pub scrub: Option<ScrubProgress>,
}

/// How far a node has come in reading its segments against their checksums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubProgress {
    /// Rounds over all segments that were completed since the node started.
    pub rounds: u64,
    /// Bytes verified in the round under way; 0 between rounds.
    pub round_bytes: u64,
    /// Segments that it found damaged since the node started.
    pub damaged: u64,
}
