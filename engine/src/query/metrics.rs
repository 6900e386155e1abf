//! Sums the counters of a plan's scans.

use std::collections::BTreeSet;
use std::sync::Arc;

use aubade_planner::StorageScanExec;
use aubade_proto::NodeId;
use datafusion::physical_plan::ExecutionPlan;

use super::QueryRecord;

/// The counters of all scans of a plan.
#[derive(Debug, Default)]
pub(super) struct ScanTotals {
    segments_total: u64,
    segments_pruned: u64,
    segments_scanned: u64,
    row_groups: u64,
    row_groups_pruned: u64,
    rows_pruned_pages: u64,
    rows_in: u64,
    rows_out: u64,
    bytes_read: u64,
    bytes_wire: u64,
    requests: u64,
    retries: u64,
    storage_cpu_nanos: u64,
    replicas: BTreeSet<NodeId>,
}

impl ScanTotals {
    /// The sums over `plan`.
    pub(super) fn of(plan: &Arc<dyn ExecutionPlan>) -> Self {
        let mut totals = Self::default();
        // A stack of our own: the depth of a plan comes from the SQL text.
        let mut left = vec![Arc::clone(plan)];
        while let Some(node) = left.pop() {
            if let Some(scan) = node.downcast_ref::<StorageScanExec>() {
                totals.add(scan);
            }
            left.extend(node.children().into_iter().cloned());
        }
        totals
    }

    fn add(&mut self, scan: &StorageScanExec) {
        let metrics = scan.scan_metrics();
        self.segments_total += metrics.segments_total.value() as u64;
        self.segments_pruned += (metrics.segments_pruned.value() + metrics.segments_pruned_runtime.value()) as u64;
        self.segments_scanned += metrics.segments_scanned.value() as u64;
        self.row_groups += metrics.row_groups.value() as u64;
        self.row_groups_pruned +=
            (metrics.row_groups_pruned_statistics.value() + metrics.row_groups_pruned_bloom.value()) as u64;
        self.rows_pruned_pages += metrics.rows_pruned_pages.value() as u64;
        self.rows_in += metrics.rows_in.value() as u64;
        self.rows_out += metrics.output_rows.value() as u64;
        self.bytes_read += metrics.bytes_read.value() as u64;
        self.bytes_wire += metrics.bytes_wire.value() as u64;
        self.requests += metrics.requests.value() as u64;
        self.retries += metrics.retries.value() as u64;
        self.storage_cpu_nanos += metrics.storage_cpu.value() as u64;
        self.replicas.extend(metrics.replicas());
    }

    /// Puts the sums into a record.
    pub(super) fn fill(self, record: &mut QueryRecord) {
        record.segments_total = self.segments_total;
        record.segments_pruned = self.segments_pruned;
        record.segments_scanned = self.segments_scanned;
        record.row_groups = self.row_groups;
        record.row_groups_pruned = self.row_groups_pruned;
        record.rows_pruned_pages = self.rows_pruned_pages;
        record.rows_in = self.rows_in;
        record.rows_out = self.rows_out;
        record.bytes_read = self.bytes_read;
        record.bytes_wire = self.bytes_wire;
        record.requests = self.requests;
        record.retries = self.retries;
        record.storage_cpu_micros = self.storage_cpu_nanos / 1_000;
        record.replicas = self.replicas.into_iter().collect();
    }
}
