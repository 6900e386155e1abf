//! How far the segments of a scan have come.

use std::collections::BTreeSet;
use std::sync::Arc;

use aubade_catalog::SegmentEntry;
use aubade_planner::ScanTask;
use aubade_proto::{Error, ErrorCode, Fragment, NodeId, Result};
use aubade_storage_node::FragmentKey;

use crate::buffer_pool::ColumnSet;
use crate::limits::SCAN_ROUNDS_MAX;

/// How far one segment has come.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) segment: Arc<SegmentEntry>,
    /// Index into the table's segments.
    pub(super) segment_index: usize,
    /// What it was asked with first. A retry asks with the same: filters that became known since would let fewer rows
    /// pass, and the rows that were handed on could not be counted off.
    pub(super) asked: Option<Arc<Asked>>,
    pub(super) rows_handed_on: u64,
    pub(super) done: bool,
    /// A node has handed it back: its columns are read, and it is scanned here.
    pub(super) fetched: bool,
    /// Bytes over the wire for it alone.
    pub(super) wire_bytes: u64,
    /// Replicas that failed in this round, with what they said.
    pub(super) failures: Vec<(NodeId, Error)>,
    pub(super) rounds: usize,
}

impl Progress {
    pub(super) fn new(segment: Arc<SegmentEntry>, segment_index: usize) -> Self {
        Self {
            segment,
            segment_index,
            asked: None,
            rows_handed_on: 0,
            done: false,
            fetched: false,
            wire_bytes: 0,
            failures: Vec::new(),
            rounds: 0,
        }
    }

    pub(super) fn has_failed_at(&self, node: NodeId) -> bool {
        self.failures.iter().any(|(failed, _)| *failed == node)
    }
}

/// A fragment that segments are asked with.
#[derive(Debug)]
pub(super) struct Asked {
    /// Counts the fragments of this scan.
    pub(super) number: usize,
    pub(super) fragment: Arc<Fragment>,
    /// The columns that it reads, and its name among results that are kept; where there is a buffer pool.
    pub(super) columns: ColumnSet,
    pub(super) key: Option<FragmentKey>,
}

/// The fragment with the filters that were known last.
pub(super) struct Latest {
    pub(super) asked: Arc<Asked>,
    /// The segments of the table that its filters leave.
    pub(super) kept: BTreeSet<usize>,
}

/// Every replica has failed: try them all again, a few times, before giving up.
pub(super) fn next_round(progress: &mut Progress, task: &ScanTask) -> Result<()> {
    progress.rounds += 1;
    // A replica that is gone or corrupt stays so; only others are worth another round.
    let hopeless = |error: &Error| matches!(error.code(), ErrorCode::SegmentNotFound | ErrorCode::SegmentCorrupt);
    let all_hopeless = progress.failures.iter().all(|(_, error)| hopeless(error));
    if progress.rounds < SCAN_ROUNDS_MAX && !all_hopeless {
        progress.failures.retain(|(_, error)| hopeless(error));
        return Ok(());
    }
    let mut text =
        format!("segment {} of table {} cannot be read from any of its replicas", progress.segment.id, task.table.name);
    for (node, error) in &progress.failures {
        text.push_str(&format!("; node {node}: {error}"));
    }
    for node in &progress.segment.holders {
        if !progress.has_failed_at(*node) {
            text.push_str(&format!("; node {node}: it was removed from the cluster"));
        }
    }
    let error = Error::new(ErrorCode::SegmentUnavailable, text)
        .hint("bring back one of the storage nodes that hold it (`aubade cluster status` shows which do not answer)");
    Err(match progress.failures.pop() {
        Some((_, cause)) => error.source(cause),
        None => error,
    })
}
