//! Builders for the tests of this crate.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringViewArray};
use arrow::datatypes::SchemaRef;
use arrow::util::pretty::pretty_format_batches;
use async_trait::async_trait;
use aubade_environment::{Environment, MemoryFiles, TaskGroup};
use aubade_proto::{
    CallHeader, ClusterId, Epoch, Fragment, ProjectionColumn, Reduction, ReductionKind, RequestId, Result, ScanEvent,
    ScanRequest, ScanStatistics, SegmentDescription, SegmentId, SegmentScan, TransactionId, Version,
};
use bytes::Bytes;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::datasource::MemTable;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::{ExecutionPlan, collect};
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::stream::{self, BoxStream, StreamExt};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use uuid::Uuid;

use crate::decoded::{DecodedSegment, DecodedSegments};
use crate::fetched::{FetchedSegment, FragmentRunner, RangeReader};
use crate::node::StorageNode;
use crate::options::StorageNodeOptions;

pub(crate) const CLUSTER: ClusterId = ClusterId(Uuid::from_u128(1));

pub(crate) fn memory_environment() -> Environment {
    Environment::system().with_files(Arc::new(MemoryFiles::default()))
}

pub(crate) fn header(epoch: u64) -> CallHeader {
    CallHeader {
        request_id: RequestId(Uuid::from_u128(7)),
        cluster_id: CLUSTER,
        epoch: Epoch(epoch),
        snapshot_version: Version(1),
        timeout: Duration::from_secs(60),
    }
}

/// Without scrubbing, which would find damage before the test does.
pub(crate) fn options() -> StorageNodeOptions {
    StorageNodeOptions { cpu_threads: 2, scrub_bytes_per_second: 0, ..StorageNodeOptions::new("/data", "az1") }
}

pub(crate) async fn node(env: &Environment) -> StorageNode {
    StorageNode::open(env.clone(), CLUSTER, options()).await.unwrap()
}

pub(crate) fn segment_id(number: u128) -> SegmentId {
    SegmentId(Uuid::from_u128(number))
}

pub(crate) fn describe(number: u128, content: &[u8]) -> SegmentDescription {
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, content).as_ref());
    SegmentDescription {
        segment_id: segment_id(number),
        epoch: Epoch(1),
        transaction_id: TransactionId(Uuid::from_u128(9)),
        bytes: content.len() as u64,
        sha256,
    }
}

/// `content` in uneven pieces.
pub(crate) fn pieces(content: &Bytes) -> BoxStream<'static, Result<Bytes>> {
    let pieces: Vec<_> = content.chunks(100_003).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    stream::iter(pieces).boxed()
}

pub(crate) async fn put(node: &StorageNode, number: u128, content: &Bytes) {
    node.put_segment(&header(1), &describe(number, content), pieces(content)).await.unwrap();
}

/// Columns `id` (ascending from `first`), `key` (id modulo 1000), `price` and two texts.
pub(crate) fn rows(first: i64, count: i64) -> RecordBatch {
    let ids = first..first + count;
    let text = |id: i64| format!("a comment of some length about row {id}");
    RecordBatch::try_from_iter_with_nullable([
        ("id", Arc::new(Int64Array::from_iter_values(ids.clone())) as ArrayRef, false),
        ("key", Arc::new(Int64Array::from_iter(ids.clone().map(|id| (id % 7 != 3).then_some(id % 1000)))), true),
        ("price", Arc::new(Float64Array::from_iter_values(ids.clone().map(|id| id as f64 / 4.0))), true),
        (
            "kind",
            Arc::new(StringViewArray::from_iter_values(ids.clone().map(|id| ["low", "mid", "high"][id as usize % 3]))),
            true,
        ),
        ("comment", Arc::new(StringViewArray::from_iter_values(ids.map(text))), true),
    ])
    .unwrap()
}

/// Row groups of 10,000 rows with pages of 1,000, and a Bloom filter on `id`.
pub(crate) fn parquet(batch: &RecordBatch) -> Bytes {
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_max_row_group_row_count(Some(10_000))
        .set_data_page_row_count_limit(1_000)
        .set_write_batch_size(500)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_column_bloom_filter_enabled(ColumnPath::from("id"), true)
        .build();
    let mut file = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut file, batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    file.into()
}

/// A fragment over all columns of `schema` that yields the columns named.
pub(crate) fn fragment(
    schema: &SchemaRef,
    filter: Option<Arc<dyn PhysicalExpr>>,
    output: &[&str],
    limit: Option<u64>,
) -> Arc<Fragment> {
    let column = |name: &&str| ProjectionColumn {
        expression: datafusion::physical_expr::expressions::col(name, schema).unwrap(),
        name: (*name).to_owned(),
    };
    let projection = output.iter().map(column).collect();
    Arc::new(Fragment::try_new(Arc::clone(schema), filter, projection, limit).unwrap())
}

pub(crate) fn scan_request(fragment: Arc<Fragment>, segments: &[(u128, u64)]) -> ScanRequest {
    let scan =
        |(number, skip_rows): &(u128, u64)| SegmentScan { segment_id: segment_id(*number), skip_rows: *skip_rows };
    ScanRequest {
        header: header(1),
        segments: segments.iter().map(scan).collect(),
        fragment,
        batch_rows: 0,
        may_push_back: false,
        may_keep_results: false,
        plain_columns: false,
    }
}

/// Segments that were merged, and their rows together.
pub(crate) type Merged = (Vec<(usize, ScanStatistics)>, Vec<RecordBatch>);

/// Everything that a scan yielded.
#[derive(Debug, Default)]
pub(crate) struct Scanned {
    pub(crate) batches: Vec<(usize, RecordBatch, u64)>,
    pub(crate) failed: Vec<(usize, aubade_proto::Error)>,
    pub(crate) done: Vec<usize>,
    /// Segments that were merged, with what each took, and their rows.
    pub(crate) merged: Vec<Merged>,
    pub(crate) statistics: ScanStatistics,
}

impl Scanned {
    /// The rows of one segment.
    pub(crate) fn rows_of(&self, segment_index: usize) -> Vec<RecordBatch> {
        let of_segment = self.batches.iter().filter(|(index, _, _)| *index == segment_index);
        of_segment.map(|(_, batch, _)| batch.clone()).collect()
    }

    pub(crate) fn row_count(&self) -> usize {
        self.batches.iter().map(|(_, batch, _)| batch.num_rows()).sum()
    }

    /// All rows, merged ones included.
    pub(crate) fn rows(&self) -> Vec<RecordBatch> {
        let merged = self.merged.iter().flat_map(|(_, batches)| batches);
        merged.chain(self.batches.iter().map(|(_, batch, _)| batch)).cloned().collect()
    }

    /// The segments that were merged, ascending.
    pub(crate) fn merged_segments(&self) -> Vec<usize> {
        let segments = self.merged.iter().flat_map(|(segments, _)| segments);
        let mut segments: Vec<usize> = segments.map(|(index, _)| *index).collect();
        segments.sort_unstable();
        segments
    }
}

pub(crate) async fn scan(node: &StorageNode, request: ScanRequest) -> Result<Scanned> {
    collected(node.scan(request).await?).await
}

/// The same over segments in memory.
pub(crate) async fn scan_decoded(segments: Vec<DecodedSegment>, request: ScanRequest) -> Result<Scanned> {
    collected(fragment_runner().scan_decoded(request, Arc::new(InMemory(segments)))?).await
}

/// All columns of `batch`, as [`parquet`] has them, in memory.
pub(crate) async fn decoded(number: u128, batch: &RecordBatch) -> DecodedSegment {
    let content = parquet(batch);
    let columns: Vec<Arc<str>> = batch.schema().fields().iter().map(|field| Arc::from(field.name().as_str())).collect();
    let (id, length, reader) = (segment_id(number), content.len() as u64, Content(content));
    let fetched = FetchedSegment::fetch(id, length, &columns, &reader, |_| Ok(())).await.unwrap();
    fragment_runner().decode(fetched, &columns).await.unwrap()
}

fn fragment_runner() -> FragmentRunner {
    FragmentRunner::new(memory_environment().clock, 2, TaskGroup::new(), 0).unwrap()
}

#[derive(Debug)]
struct Content(Bytes);

#[async_trait]
impl RangeReader for Content {
    async fn read(&self, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        Ok(ranges.iter().map(|range| self.0.slice(range.start as usize..range.end as usize)).collect())
    }
}

#[derive(Debug)]
struct InMemory(Vec<DecodedSegment>);

impl DecodedSegments for InMemory {
    fn find(&self, id: SegmentId) -> Option<DecodedSegment> {
        self.0.iter().find(|segment| segment.id() == id).cloned()
    }
}

async fn collected(mut events: BoxStream<'static, Result<ScanEvent>>) -> Result<Scanned> {
    let mut scanned = Scanned::default();
    let mut merging = Vec::new();
    while let Some(event) = events.next().await {
        match event? {
            ScanEvent::Batch { segment_index, batch, rows_through, .. } => {
                scanned.batches.push((segment_index, batch, rows_through));
            }
            ScanEvent::Merged { batch, .. } => merging.push(batch),
            ScanEvent::MergedDone { segments } => {
                segments.iter().for_each(|(_, statistics)| scanned.statistics.add(statistics));
                scanned.merged.push((segments, std::mem::take(&mut merging)));
            }
            ScanEvent::SegmentDone { segment_index, statistics } => {
                scanned.done.push(segment_index);
                scanned.statistics.add(&statistics);
            }
            ScanEvent::SegmentFailed { segment_index, error } => scanned.failed.push((segment_index, error)),
        }
    }
    assert!(merging.is_empty(), "merged rows that stand for no segment");
    Ok(scanned)
}

/// An SQL query over the columns of [`rows`] as table `t`, planned by DataFusion, with the part of
/// its plan that a storage node can reduce as a fragment.
pub(crate) struct Query {
    pub(crate) plan: Arc<dyn ExecutionPlan>,
    pub(crate) fragment: Arc<Fragment>,
}

impl Query {
    /// Plans `sql`; the fragment filters by `filter`, over all columns, which `sql` must say as well.
    pub(crate) async fn new(sql: &str, filter: Option<Arc<dyn PhysicalExpr>>) -> Self {
        Self::over(&rows(0, 10), sql, filter).await
    }

    /// The same over the columns of `batch`.
    pub(crate) async fn over(batch: &RecordBatch, sql: &str, filter: Option<Arc<dyn PhysicalExpr>>) -> Self {
        let plan = plan(sql, batch).await;
        let mut reduction = None;
        plan.apply(|node| {
            // The lowest one, whose input is a table or a filter over it.
            reduction = reduction_of(node).or(reduction.take());
            Ok(TreeNodeRecursion::Continue)
        })
        .unwrap();
        let reduction = reduction.expect("a part of the plan reduces its rows");
        let columns: Vec<String> = reduction.input_schema().fields().iter().map(|field| field.name().clone()).collect();
        let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
        let fragment = fragment(&batch.schema(), filter, &columns, None);
        Self { plan, fragment: Arc::new(fragment.with_reduction(reduction).unwrap()) }
    }

    /// The result of the query, as text, from what storage nodes sent.
    pub(crate) async fn finish(&self, reduced: Vec<RecordBatch>) -> String {
        let reduction = self.fragment.reduction().unwrap();
        let source = MemorySourceConfig::try_new_exec(&[reduced], reduction.schema(), None).unwrap();
        let is_lowest = |node: &Arc<dyn ExecutionPlan>| {
            reduction_of(node).is_some_and(|found| found.describe() == reduction.describe())
        };
        let mut replaced = false;
        let plan = Arc::clone(&self.plan).transform_up(|node| {
            if replaced || !is_lowest(&node) {
                return Ok(Transformed::no(node));
            }
            replaced = true;
            let input: Arc<dyn ExecutionPlan> = Arc::clone(&source) as _;
            Ok(Transformed::yes(match reduction.kind() {
                ReductionKind::Aggregate => input,
                ReductionKind::TopK => reduction.over(input)?,
            }))
        });
        result(plan.unwrap().data).await
    }
}

/// The result of a query over `batch`, without any of this crate.
pub(crate) async fn plain_result(sql: &str, batch: &RecordBatch) -> String {
    result(plan(sql, batch).await).await
}

fn reduction_of(node: &Arc<dyn ExecutionPlan>) -> Option<Reduction> {
    if let Some(aggregate) = node.downcast_ref::<AggregateExec>() {
        return Reduction::aggregate(aggregate).ok();
    }
    Reduction::top_k(node.downcast_ref::<SortExec>()?).ok()
}

async fn plan(sql: &str, batch: &RecordBatch) -> Arc<dyn ExecutionPlan> {
    let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(2));
    let half = batch.num_rows() / 2;
    // In two partitions, or an aggregate would have one stage.
    let parts = [batch.slice(0, half), batch.slice(half, batch.num_rows() - half)];
    let table = MemTable::try_new(batch.schema(), parts.into_iter().map(|part| vec![part]).collect()).unwrap();
    context.register_table("t", Arc::new(table)).unwrap();
    context.sql(sql).await.unwrap().create_physical_plan().await.unwrap()
}

/// Rows in the order of their texts.
async fn result(plan: Arc<dyn ExecutionPlan>) -> String {
    let batches = collect(plan, SessionContext::new().task_ctx()).await.unwrap();
    let text = pretty_format_batches(&batches).unwrap().to_string();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}
