//! Sums the counters of scans: of one plan, and of all queries.

use std::collections::BTreeSet;
use std::sync::Arc;

use aubade_planner::{ScanMetrics, storage_scans};
use aubade_proto::NodeId;
use datafusion::physical_plan::ExecutionPlan;

use super::QueryRecord;
use super::totals::Metric;

macro_rules! scan_totals {
    ($($counter:ident),* $(,)?) => {
        /// The counters of several scans, each by its name in [`ScanMetrics`].
        #[derive(Clone, Debug, Default)]
        pub(super) struct ScanTotals {
            $($counter: u64,)*
            replicas: BTreeSet<NodeId>,
        }

        impl ScanTotals {
            fn add(&mut self, metrics: &ScanMetrics) {
                $(self.$counter += metrics.$counter.value() as u64;)*
                self.replicas.extend(metrics.replicas());
            }

            /// Adds the sums of another plan, but for the nodes that answered.
            pub(super) fn add_all(&mut self, other: &Self) {
                $(self.$counter += other.$counter;)*
            }
        }
    };
}

scan_totals! {
    segments_total,
    segments_pruned,
    segments_pruned_runtime,
    segments_scanned,
    segments_kept,
    segments_pooled,
    row_groups,
    row_groups_pruned_statistics,
    row_groups_pruned_bloom,
    rows_pruned_pages,
    pages_pruned,
    rows_in,
    output_rows,
    bytes_read,
    bytes_wire,
    requests,
    retries,
    pushbacks,
    segments_fetched,
    hedges,
    hedges_won,
    storage_cpu,
    storage_wait,
}

impl ScanTotals {
    /// The sums over `plan`.
    pub(super) fn of(plan: &Arc<dyn ExecutionPlan>) -> Self {
        let mut totals = Self::default();
        storage_scans(plan).iter().for_each(|scan| totals.add(scan.scan_metrics()));
        totals
    }

    fn row_groups_pruned(&self) -> u64 {
        self.row_groups_pruned_statistics + self.row_groups_pruned_bloom
    }

    /// Puts the sums into a record.
    pub(super) fn fill(&self, record: &mut QueryRecord) {
        record.segments_total = self.segments_total;
        record.segments_pruned = self.segments_pruned + self.segments_pruned_runtime;
        record.segments_scanned = self.segments_scanned;
        record.segments_kept = self.segments_kept;
        record.segments_pooled = self.segments_pooled;
        record.row_groups = self.row_groups;
        record.row_groups_pruned = self.row_groups_pruned();
        record.rows_pruned_pages = self.rows_pruned_pages;
        record.pages_pruned = self.pages_pruned;
        record.rows_in = self.rows_in;
        record.rows_out = self.output_rows;
        record.bytes_read = self.bytes_read;
        record.bytes_wire = self.bytes_wire;
        record.requests = self.requests;
        record.retries = self.retries;
        record.pushbacks = self.pushbacks;
        record.segments_fetched = self.segments_fetched;
        record.hedges = self.hedges;
        record.storage_cpu_micros = self.storage_cpu / 1_000;
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
            Metric::new("scan_segments_pooled", self.segments_pooled, "of these, scanned over the buffer pool instead"),
            Metric::new("scan_row_groups", self.row_groups, "row groups of the segments read"),
            Metric::new(
                "scan_row_groups_pruned",
                self.row_groups_pruned(),
                "of these, ruled out by statistics or a Bloom filter",
            ),
            Metric::new("scan_rows_pruned_pages", self.rows_pruned_pages, "rows ruled out by pages' statistics"),
            Metric::new("scan_pages_pruned", self.pages_pruned, "pages skipped for that"),
            Metric::new("scan_rows_in", self.rows_in, "rows that filters saw at storage nodes"),
            Metric::new("scan_rows_out", self.output_rows, "rows that came back from storage nodes"),
            Metric::new("scan_bytes_read", self.bytes_read, "bytes of segments read at storage nodes"),
            Metric::new("scan_bytes_wire", self.bytes_wire, "bytes over the wire from storage nodes"),
            Metric::new("scan_requests", self.requests, "requests to storage nodes"),
            Metric::new("scan_retries", self.retries, "of these, repeated after a failure"),
            Metric::new("scan_pushbacks", self.pushbacks, "of these, handed back by nodes short of CPU"),
            Metric::new("scan_segments_fetched", self.segments_fetched, "segments scanned on the coordinator instead"),
            Metric::new("scan_hedges", self.hedges, "of these, sent because another replica was slow"),
            Metric::new("scan_hedges_won", self.hedges_won, "of the hedges, those that answered first"),
            Metric::new("scan_storage_cpu_micros", self.storage_cpu / 1_000, "time on the CPU pools of nodes"),
            Metric::new(
                "scan_storage_wait_micros",
                self.storage_wait / 1_000,
                "time in which scans had nothing to do but wait for nodes",
            ),
        ]
    }
}
