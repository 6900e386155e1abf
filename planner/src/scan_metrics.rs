//! What is counted of a scan: for EXPLAIN ANALYZE, for a query's record, and for telling slow requests from others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aubade_catalog::NodeEntry;
use aubade_proto::{NodeId, ScanStatistics};
use datafusion::physical_plan::metrics::{
    Count, ExecutionPlanMetricsSet, MetricBuilder, MetricValue, MetricsSet, Time,
};
use parking_lot::Mutex;

/// Waits that are kept of one scan; further ones take the places of the oldest.
const WAITS_MAX: usize = 256;
/// Waits below which there is no telling what is usual.
const WAITS_MIN: usize = 3;
/// What came sooner was there already, and says nothing about how long nodes take.
const WAIT_MIN: Duration = Duration::from_millis(1);

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
    /// Of these, those whose result a node or the coordinator had kept from an earlier time.
    pub segments_kept: Count,
    /// Of those scanned, those whose columns were in the buffer pool of the coordinator.
    pub segments_pooled: Count,
    /// Requests sent to storage nodes.
    pub requests: Count,
    /// Of these, those that repeat what another replica did not finish.
    pub retries: Count,
    /// Of the requests, those that a node handed back because it was short of CPU.
    pub pushbacks: Count,
    /// Segments whose columns were read from a node and scanned on the coordinator instead.
    pub segments_fetched: Count,
    /// Of the requests, those that were sent to another replica because the first one took long.
    pub hedges: Count,
    /// Of the hedges, those that answered before the first replica did.
    pub hedges_won: Count,
    /// Row groups in the segments that were read.
    pub row_groups: Count,
    /// Of these, skipped by their statistics.
    pub row_groups_pruned_statistics: Count,
    /// Of these, skipped by a Bloom filter.
    pub row_groups_pruned_bloom: Count,
    /// Rows skipped by the page index.
    pub rows_pruned_pages: Count,
    /// Pages of the columns read that were skipped for that.
    pub pages_pruned: Count,
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
    /// Time in which the scan's partitions had nothing to do but wait for storage nodes.
    pub storage_wait: Time,
    /// Time spent in the stream on the coordinator.
    pub elapsed_compute: Time,
    nodes: Arc<Mutex<BTreeMap<NodeId, NodeCounters>>>,
    waits: Arc<Mutex<Waits>>,
    set: ExecutionPlanMetricsSet,
}

/// What one node did for a scan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeCounters {
    /// Where it listens.
    pub address: String,
    /// Requests sent to it.
    pub requests: u64,
    /// Segments that it read to their end (or to the limit).
    pub segments: u64,
    /// Rows that its filter saw.
    pub rows_in: u64,
    /// Rows that it counted as output.
    pub rows_out: u64,
    /// Bytes of segments that it read.
    pub bytes_read: u64,
    /// Encoded bytes that arrived of it; 0 in process.
    pub bytes_wire: u64,
    /// Time on its CPU pool.
    pub cpu: Duration,
    /// Time in which its requests were waited for, summed over them.
    pub wait: Duration,
}

/// How long a scan waited for its requests, each time that it did.
#[derive(Debug, Default)]
struct Waits {
    taken: Vec<Duration>,
    oldest: usize,
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
        let time = |name: &'static str| {
            let time = Time::new();
            MetricBuilder::new(&set).build(MetricValue::Time { name: name.into(), time: time.clone() });
            time
        };
        let output_rows = Count::new();
        MetricBuilder::new(&set).build(MetricValue::OutputRows(output_rows.clone()));
        let elapsed_compute = Time::new();
        MetricBuilder::new(&set).build(MetricValue::ElapsedCompute(elapsed_compute.clone()));
        Self {
            segments_total: counter("segments_total"),
            segments_pruned: counter("segments_pruned"),
            segments_pruned_runtime: counter("segments_pruned_runtime"),
            segments_scanned: counter("segments_scanned"),
            segments_kept: counter("segments_kept"),
            segments_pooled: counter("segments_pooled"),
            requests: counter("requests"),
            retries: counter("retries"),
            pushbacks: counter("pushbacks"),
            segments_fetched: counter("segments_fetched"),
            hedges: counter("hedges"),
            hedges_won: counter("hedges_won"),
            row_groups: counter("row_groups"),
            row_groups_pruned_statistics: counter("row_groups_pruned_statistics"),
            row_groups_pruned_bloom: counter("row_groups_pruned_bloom"),
            rows_pruned_pages: counter("rows_pruned_pages"),
            pages_pruned: counter("pages_pruned"),
            rows_in: counter("rows_in"),
            output_rows,
            bytes_read: counter("bytes_read"),
            bytes_wire: counter("bytes_wire"),
            storage_cpu: time("storage_cpu"),
            storage_wait: time("storage_wait"),
            elapsed_compute,
            nodes: Arc::default(),
            waits: Arc::default(),
            set,
        }
    }

    /// Counts a request to a node.
    pub fn add_request(&self, node: &NodeEntry) {
        self.requests.add(1);
        let mut nodes = self.nodes.lock();
        let counters = nodes.entry(node.id).or_default();
        counters.address.clone_from(&node.address);
        counters.requests += 1;
    }

    /// Counts bytes that arrived of a node.
    pub fn add_wire(&self, node: NodeId, bytes: u64) {
        add(&self.bytes_wire, bytes);
        if bytes > 0 {
            self.nodes.lock().entry(node).or_default().bytes_wire += bytes;
        }
    }

    /// Adds what a storage node says of one segment. Its `rows_out` are not added to the output rows of the scan, which
    /// are counted where they come out.
    pub fn add_segment(&self, node: NodeId, statistics: &ScanStatistics) {
        self.add_scanned(statistics);
        let cpu = Duration::from_micros(statistics.cpu_micros);
        // DataFusion counts a nanosecond even for nothing.
        if !cpu.is_zero() {
            self.storage_cpu.add_duration(cpu);
        }
        let mut nodes = self.nodes.lock();
        let counters = nodes.entry(node).or_default();
        counters.segments += 1;
        counters.rows_in = counters.rows_in.saturating_add(statistics.rows_in);
        counters.rows_out = counters.rows_out.saturating_add(statistics.rows_out);
        counters.bytes_read = counters.bytes_read.saturating_add(statistics.bytes_read);
        counters.cpu = counters.cpu.saturating_add(cpu);
    }

    /// Adds what a scan over the buffer pool says of one segment.
    pub fn add_pooled_segment(&self, statistics: &ScanStatistics) {
        self.add_scanned(statistics);
        self.segments_pooled.add(1);
    }

    fn add_scanned(&self, statistics: &ScanStatistics) {
        self.segments_scanned.add(1);
        add(&self.segments_kept, statistics.kept_results);
        add(&self.row_groups, statistics.row_groups);
        add(&self.row_groups_pruned_statistics, statistics.row_groups_pruned_statistics);
        add(&self.row_groups_pruned_bloom, statistics.row_groups_pruned_bloom);
        add(&self.rows_pruned_pages, statistics.rows_pruned_pages);
        add(&self.pages_pruned, statistics.pages_pruned);
        add(&self.rows_in, statistics.rows_in);
        add(&self.bytes_read, statistics.bytes_read);
    }

    /// Notes that a request to a node was waited for so long.
    pub fn add_wait(&self, node: NodeId, wait: Duration) {
        if wait < WAIT_MIN {
            return;
        }
        self.waits.lock().add(wait);
        let mut nodes = self.nodes.lock();
        let counters = nodes.entry(node).or_default();
        counters.wait = counters.wait.saturating_add(wait);
    }

    /// The 95th percentile of the waits so far, if there were enough of them.
    pub fn usual_wait(&self) -> Option<Duration> {
        self.waits.lock().percentile_95()
    }

    /// The nodes that answered.
    pub fn replicas(&self) -> Vec<NodeId> {
        let nodes = self.nodes.lock();
        nodes.iter().filter(|(_, counters)| counters.segments > 0).map(|(id, _)| *id).collect()
    }

    /// What each node did, in the order of their ids.
    pub fn nodes(&self) -> Vec<NodeCounters> {
        self.nodes.lock().values().cloned().collect()
    }

    /// For DataFusion.
    pub fn metrics_set(&self) -> MetricsSet {
        self.set.clone_inner()
    }
}

fn add(count: &Count, value: u64) {
    count.add(usize::try_from(value).unwrap_or(usize::MAX));
}

impl Waits {
    fn add(&mut self, wait: Duration) {
        if self.taken.len() < WAITS_MAX {
            self.taken.push(wait);
        } else if let Some(place) = self.taken.get_mut(self.oldest) {
            *place = wait;
            self.oldest = (self.oldest + 1) % WAITS_MAX;
        }
    }

    fn percentile_95(&self) -> Option<Duration> {
        if self.taken.len() < WAITS_MIN {
            return None;
        }
        let mut sorted = self.taken.clone();
        sorted.sort_unstable();
        sorted.get((sorted.len() * 95).div_ceil(100).saturating_sub(1)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_wait_is_the_95th_percentile_of_the_newest() {
        let metrics = ScanMetrics::new();
        let node = NodeId(uuid::Uuid::nil());
        let wait = |millis| metrics.add_wait(node, Duration::from_millis(millis));
        wait(7);
        wait(9);
        assert_eq!(metrics.usual_wait(), None);
        (1..=100).for_each(wait);
        assert_eq!(metrics.usual_wait(), Some(Duration::from_millis(95)));
        (0..WAITS_MAX).for_each(|_| wait(3));
        assert_eq!(metrics.usual_wait(), Some(Duration::from_millis(3)));
    }

    #[test]
    fn what_was_there_already_is_no_wait() {
        let metrics = ScanMetrics::new();
        (0..10).for_each(|_| metrics.add_wait(NodeId(uuid::Uuid::nil()), Duration::from_micros(999)));
        assert_eq!(metrics.usual_wait(), None);
        assert!(metrics.nodes().is_empty());
    }
}
