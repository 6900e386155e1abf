//! Sums the counters of scans: of one plan, and of all queries.

use std::collections::BTreeSet;
use std::sync::Arc;

use aubade_planner::{StorageScanExec, storage_scans};
use aubade_proto::NodeId;
use datafusion::physical_plan::ExecutionPlan;

use super::QueryRecord;
use super::totals::Metric;

/// The counters of several scans.
#[derive(Clone, Debug, Default)]
pub(super) struct ScanTotals {
    segments_total: u64,
    segments_pruned: u64,
    segments_pruned_runtime: u64,
    segments_scanned: u64,
    segments_kept: u64,
    row_groups: u64,
    row_groups_pruned: u64,
    rows_pruned_pages: u64,
    rows_in: u64,
    rows_out: u64,
    bytes_read: u64,
    bytes_wire: u64,
    requests: u64,
    retries: u64,
    pushbacks: u64,
    segments_fetched: u64,
    hedges: u64,
    hedges_won: u64,
    storage_cpu_nanos: u64,
    storage_wait_nanos: u64,
    replicas: BTreeSet<NodeId>,
}

impl ScanTotals {
    /// The sums over `plan`.
    pub(super) fn of(plan: &Arc<dyn ExecutionPlan>) -> Self {
        let mut totals = Self::default();
        storage_scans(plan).iter().for_each(|scan| totals.add(scan));
        totals
    }

    fn add(&mut self, scan: &StorageScanExec) {
        let metrics = scan.scan_metrics();
        self.segments_total += metrics.segments_total.value() as u64;
        self.segments_pruned += metrics.segments_pruned.value() as u64;
        self.segments_pruned_runtime += metrics.segments_pruned_runtime.value() as u64;
        self.segments_scanned += metrics.segments_scanned.value() as u64;
        self.segments_kept += metrics.segments_kept.value() as u64;
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
        self.pushbacks += metrics.pushbacks.value() as u64;
        self.segments_fetched += metrics.segments_fetched.value() as u64;
        self.hedges += metrics.hedges.value() as u64;
        self.hedges_won += metrics.hedges_won.value() as u64;
        self.storage_cpu_nanos += metrics.storage_cpu.value() as u64;
        self.storage_wait_nanos += metrics.storage_wait.value() as u64;
        self.replicas.extend(metrics.replicas());
    }

    /// Adds the sums of another plan, but for the nodes that answered.
    pub(super) fn add_all(&mut self, other: &Self) {
        self.segments_total += other.segments_total;
        self.segments_pruned += other.segments_pruned;
        self.segments_pruned_runtime += other.segments_pruned_runtime;
        self.segments_scanned += other.segments_scanned;
        self.segments_kept += other.segments_kept;
        self.row_groups += other.row_groups;
        self.row_groups_pruned += other.row_groups_pruned;
        self.rows_pruned_pages += other.rows_pruned_pages;
        self.rows_in += other.rows_in;
        self.rows_out += other.rows_out;
        self.bytes_read += other.bytes_read;
        self.bytes_wire += other.bytes_wire;
        self.requests += other.requests;
        self.retries += other.retries;
        self.pushbacks += other.pushbacks;
        self.segments_fetched += other.segments_fetched;
        self.hedges += other.hedges;
        self.hedges_won += other.hedges_won;
        self.storage_cpu_nanos += other.storage_cpu_nanos;
        self.storage_wait_nanos += other.storage_wait_nanos;
    }

    /// Puts the sums into a record.
    pub(super) fn fill(&self, record: &mut QueryRecord) {
        record.segments_total = self.segments_total;
        record.segments_pruned = self.segments_pruned + self.segments_pruned_runtime;
        record.segments_scanned = self.segments_scanned;
        record.segments_kept = self.segments_kept;
        record.row_groups = self.row_groups;
        record.row_groups_pruned = self.row_groups_pruned;
        record.rows_pruned_pages = self.rows_pruned_pages;
        record.rows_in = self.rows_in;
        record.rows_out = self.rows_out;
        record.bytes_read = self.bytes_read;
        record.bytes_wire = self.bytes_wire;
        record.requests = self.requests;
        record.retries = self.retries;
        record.pushbacks = self.pushbacks;
        record.segments_fetched = self.segments_fetched;
        record.hedges = self.hedges;
        record.storage_cpu_micros = self.storage_cpu_nanos / 1_000;
        record.replicas = self.replicas.iter().copied().collect();
    }

    /// For `system.metrics`.
    pub(super) fn metrics(&self) -> Vec<Metric> {
        vec![
            Metric::new("scan_segments", self.segments_total, "segments of scanned tables, once per scan"),
            Metric::new("scan_segments_pruned", self.segments_pruned, "of these, ruled out by statistics"),
            Metric::new(
                "scan_segments_pruned_runtime",
                self.segments_pruned_runtime,
                "of these, ruled out by filters that became known while a query ran",
            ),
            Metric::new("scan_segments_scanned", self.segments_scanned, "segments read at storage nodes"),
            Metric::new("scan_segments_kept", self.segments_kept, "of these, answered by results that were kept"),
            Metric::new("scan_row_groups", self.row_groups, "row groups of the segments read"),
            Metric::new(
                "scan_row_groups_pruned",
                self.row_groups_pruned,
                "of these, ruled out by statistics or a Bloom filter",
            ),
            Metric::new("scan_rows_pruned_pages", self.rows_pruned_pages, "rows ruled out by pages' statistics"),
            Metric::new("scan_rows_in", self.rows_in, "rows that filters saw at storage nodes"),
            Metric::new("scan_rows_out", self.rows_out, "rows that came back from storage nodes"),
            Metric::new("scan_bytes_read", self.bytes_read, "bytes of segments read at storage nodes"),
            Metric::new("scan_bytes_wire", self.bytes_wire, "bytes over the wire from storage nodes"),
            Metric::new("scan_requests", self.requests, "requests to storage nodes"),
            Metric::new("scan_retries", self.retries, "of these, repeated after a failure"),
            Metric::new("scan_pushbacks", self.pushbacks, "of these, handed back by nodes short of CPU"),
            Metric::new("scan_segments_fetched", self.segments_fetched, "segments scanned on the coordinator instead"),
            Metric::new("scan_hedges", self.hedges, "of these, sent because another replica was slow"),
            Metric::new("scan_hedges_won", self.hedges_won, "of the hedges, those that answered first"),
            Metric::new("scan_storage_cpu_micros", self.storage_cpu_nanos / 1_000, "time on the CPU pools of nodes"),
            Metric::new(
                "scan_storage_wait_micros",
                self.storage_wait_nanos / 1_000,
                "time in which scans had nothing to do but wait for nodes",
            ),
        ]
    }
}
