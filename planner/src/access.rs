//! The seam between plans and whoever runs their scans and writes.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use aubade_catalog::Snapshot;
use aubade_catalog::snapshot::Table;
use aubade_proto::{NodeId, Result, ScanStatistics};
use datafusion::datasource::sink::DataSink;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::metrics::{
    Count, ExecutionPlanMetricsSet, MetricBuilder, MetricValue, MetricsSet, Time,
};
use parking_lot::Mutex;

use crate::runtime_filter::RuntimeFragment;

/// What the planner needs from whoever runs its plans. The planner itself never opens a socket.
pub trait TableAccess: Debug + Send + Sync {
    /// Runs one partition of a scan: a stream of the fragment's output schema.
    ///
    /// # Errors
    /// Whatever keeps the scan from starting; later errors come in the stream.
    fn scan(&self, task: ScanTask, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream>;

    /// Where the rows of `INSERT INTO table` go: one transaction, which commits at the end of `write_all`.
    ///
    /// # Errors
    /// When this access cannot write.
    fn sink(&self, table: Arc<Table>) -> Result<Arc<dyn DataSink>>;
}

/// One partition of a scan.
#[derive(Clone, Debug)]
pub struct ScanTask {
    /// What the query reads.
    pub snapshot: Arc<Snapshot>,
    /// The table.
    pub table: Arc<Table>,
    /// Indices into `table.segments`: this partition's share of those that survived pruning.
    pub segments: Vec<usize>,
    /// What to run over them, and the filters that become known while the query runs. A limit holds for this
    /// partition.
    pub fragment: RuntimeFragment,
    /// To be counted up. The node that owns the task counts segments in total, pruned segments and output rows; the
    /// access counts the rest.
    pub metrics: ScanMetrics,
    /// Which partition.
    pub partition: usize,
}

/// Counters of one scan, shared by its partitions. A clone counts into the same counters.
#[derive(Clone, Debug)]
pub struct ScanMetrics {
    /// Segments of the table.
    pub segments_total: Count,
    /// Of these, those that statistics ruled out.
    pub segments_pruned: Count,
    /// Segments that filters known only at run time ruled out.
    pub segments_pruned_runtime: Count,
    /// Segments that were read to their end (or to the limit).
    pub segments_scanned: Count,
    /// Requests sent to storage nodes.
    pub requests: Count,
    /// Of these, those that repeat what another replica did not finish.
    pub retries: Count,
    /// Row groups in the segments that were read.
    pub row_groups: Count,
    /// Of these, skipped by their statistics.
    pub row_groups_pruned_statistics: Count,
    /// Of these, skipped by a Bloom filter.
    pub row_groups_pruned_bloom: Count,
    /// Rows skipped by the page index.
    pub rows_pruned_pages: Count,
    /// Rows that the filter saw at storage.
    pub rows_in: Count,
    /// Rows that came out of the scan.
    pub output_rows: Count,
    /// Bytes of segments read at storage.
    pub bytes_read: Count,
    /// Encoded bytes that arrived over the wire; 0 in process.
    pub bytes_wire: Count,
    /// Time on the CPU pools of storage nodes.
    pub storage_cpu: Time,
    /// Time spent in the stream on the coordinator.
    pub elapsed_compute: Time,
    replicas: Arc<Mutex<BTreeSet<NodeId>>>,
    set: ExecutionPlanMetricsSet,
}

impl Default for ScanMetrics {
    fn default() -> Self {
        Self::new()
    }
}

impl ScanMetrics {
    /// Counters at zero.
    pub fn new() -> Self {
        let set = ExecutionPlanMetricsSet::new();
        let counter = |name: &'static str| MetricBuilder::new(&set).global_counter(name);
        let output_rows = Count::new();
        MetricBuilder::new(&set).build(MetricValue::OutputRows(output_rows.clone()));
        let elapsed_compute = Time::new();
        MetricBuilder::new(&set).build(MetricValue::ElapsedCompute(elapsed_compute.clone()));
        let storage_cpu = Time::new();
        MetricBuilder::new(&set).build(MetricValue::Time { name: "storage_cpu".into(), time: storage_cpu.clone() });
        Self {
            segments_total: counter("segments_total"),
            segments_pruned: counter("segments_pruned"),
            segments_pruned_runtime: counter("segments_pruned_runtime"),
            segments_scanned: counter("segments_scanned"),
            requests: counter("requests"),
            retries: counter("retries"),
            row_groups: counter("row_groups"),
            row_groups_pruned_statistics: counter("row_groups_pruned_statistics"),
            row_groups_pruned_bloom: counter("row_groups_pruned_bloom"),
            rows_pruned_pages: counter("rows_pruned_pages"),
            rows_in: counter("rows_in"),
            output_rows,
            bytes_read: counter("bytes_read"),
            bytes_wire: counter("bytes_wire"),
            storage_cpu,
            elapsed_compute,
            replicas: Arc::default(),
            set,
        }
    }

    /// Adds what a storage node says of one segment. Its `rows_out` are not added: output rows are counted where they
    /// come out.
    pub fn add_storage(&self, statistics: &ScanStatistics) {
        let add = |count: &Count, value: u64| count.add(usize::try_from(value).unwrap_or(usize::MAX));
        add(&self.row_groups, statistics.row_groups);
        add(&self.row_groups_pruned_statistics, statistics.row_groups_pruned_statistics);
        add(&self.row_groups_pruned_bloom, statistics.row_groups_pruned_bloom);
        add(&self.rows_pruned_pages, statistics.rows_pruned_pages);
        add(&self.rows_in, statistics.rows_in);
        add(&self.bytes_read, statistics.bytes_read);
        if statistics.cpu_micros > 0 {
            self.storage_cpu.add_duration(Duration::from_micros(statistics.cpu_micros));
        }
    }

    /// Notes that a node answered.
    pub fn add_replica(&self, node: NodeId) {
        self.replicas.lock().insert(node);
    }

    /// The nodes that answered.
    pub fn replicas(&self) -> Vec<NodeId> {
        self.replicas.lock().iter().copied().collect()
    }

    /// For DataFusion.
    pub fn metrics_set(&self) -> MetricsSet {
        self.set.clone_inner()
    }
}
