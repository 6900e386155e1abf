//! Scan requests and what comes back, as the two sides see them.

use std::sync::Arc;
use std::time::Duration;

use arrow::record_batch::RecordBatch;

use crate::error::Error;
use crate::fragment::Fragment;
use crate::id::{ClusterId, Epoch, RequestId, SegmentId, Version};

/// What every call to a storage node says of its caller.
#[derive(Clone, Debug)]
pub struct CallHeader {
    /// For logs, on both sides.
    pub request_id: RequestId,
    /// The cluster that the caller means.
    pub cluster_id: ClusterId,
    /// The caller's epoch.
    pub epoch: Epoch,
    /// The manifest version that the caller works on.
    pub snapshot_version: Version,
    /// What is left of the caller's deadline.
    pub timeout: Duration,
}

/// One segment of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentScan {
    /// Which segment.
    pub segment_id: SegmentId,
    /// Output rows of this segment that the caller has already: computed again, not sent again.
    pub skip_rows: u64,
}

/// A fragment to run over a batch of segments.
#[derive(Clone, Debug)]
pub struct ScanRequest {
    /// The caller.
    pub header: CallHeader,
    /// The segments, in the order of preference.
    pub segments: Vec<SegmentScan>,
    /// What to run.
    pub fragment: Arc<Fragment>,
    /// Rows per batch that the caller would like.
    pub batch_rows: usize,
    /// Whether the caller can run the fragment itself, so that a node that is short of CPU may answer
    /// [`ErrorCode::PushedBack`](crate::ErrorCode::PushedBack).
    pub may_push_back: bool,
    /// Whether the node may keep what the fragment makes of a segment, and answer with what it kept.
    pub may_keep_results: bool,
    /// Whether columns are sent in their own types even where fewer bytes would do.
    pub plain_columns: bool,
}

/// What a scan yields. Between segments the order is open; within one it is that of the file.
#[derive(Clone, Debug)]
pub enum ScanEvent {
    /// Some rows of one segment.
    Batch {
        /// Index into [`ScanRequest::segments`].
        segment_index: usize,
        /// The rows, in the fragment's output schema.
        batch: RecordBatch,
        /// Output rows of this segment up to and including this batch, skipped ones included.
        rows_through: u64,
        /// Encoded size on the wire, bytes; 0 in process.
        wire_bytes: u64,
    },
    /// Reduced rows of several segments together. They count only once a [`ScanEvent::MergedDone`]
    /// has said of which: until then the reader keeps them.
    Merged {
        /// The rows, in the fragment's output schema.
        batch: RecordBatch,
        /// Encoded size on the wire, bytes; 0 in process.
        wire_bytes: u64,
    },
    /// The merged rows since the start, or since the last of these events, stand for all rows of
    /// these segments, of which nothing was sent before.
    MergedDone {
        /// Indices into [`ScanRequest::segments`], with what each took.
        segments: Vec<(usize, ScanStatistics)>,
    },
    /// A segment is complete, or the limit is reached.
    SegmentDone {
        /// Index into [`ScanRequest::segments`].
        segment_index: usize,
        /// What it took.
        statistics: ScanStatistics,
    },
    /// A segment cannot be read at this node; the others go on.
    SegmentFailed {
        /// Index into [`ScanRequest::segments`].
        segment_index: usize,
        /// Why.
        error: Error,
    },
}

/// What a scan of segments took at the node. Counts add up over segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScanStatistics {
    /// Row groups in the segments.
    pub row_groups: u64,
    /// Of these, skipped by their statistics.
    pub row_groups_pruned_statistics: u64,
    /// Of these, skipped by a Bloom filter.
    pub row_groups_pruned_bloom: u64,
    /// Rows skipped by the page index in row groups that were read.
    pub rows_pruned_pages: u64,
    /// Pages of the columns read that were skipped for that.
    pub pages_pruned: u64,
    /// Rows that the filter saw.
    pub rows_in: u64,
    /// Rows of the output.
    pub rows_out: u64,
    /// Bytes of the segments that were read.
    pub bytes_read: u64,
    /// Time on the CPU pool, microseconds.
    pub cpu_micros: u64,
    /// Segments whose result was kept from an earlier request, so that nothing was read.
    pub kept_results: u64,
}

impl ScanStatistics {
    /// Adds the counts of `other`.
    pub fn add(&mut self, other: &Self) {
        self.row_groups += other.row_groups;
        self.row_groups_pruned_statistics += other.row_groups_pruned_statistics;
        self.row_groups_pruned_bloom += other.row_groups_pruned_bloom;
        self.rows_pruned_pages += other.rows_pruned_pages;
        self.pages_pruned += other.pages_pruned;
        self.rows_in += other.rows_in;
        self.rows_out += other.rows_out;
        self.bytes_read += other.bytes_read;
        self.cpu_micros += other.cpu_micros;
        self.kept_results += other.kept_results;
    }
}
