//! For tests: tables in memory, and an access that runs fragments over them one segment at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{ArrayRef, AsArray, Date32Array, Decimal128Array, Int64Array, RecordBatchOptions, StringViewArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use aubade_catalog::quorum::Quorum;
use aubade_catalog::snapshot::{DEFAULT_SCHEMA, Relation, RelationName, Snapshot, Table};
use aubade_catalog::{SegmentEntry, SegmentStatistics, StatisticsBuilder};
use aubade_proto::convert::{decode_fragment, encode_fragment};
use aubade_proto::{ClusterId, Epoch, Fragment, RelationId, Result, SegmentId, TransactionId, Version};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::datasource::sink::DataSink;
use datafusion::error::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::metrics::MetricsSet;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType};
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;
use parking_lot::Mutex;
use uuid::Uuid;

use crate::access::{ScanTask, TableAccess};

/// A table of one batch per segment.
#[derive(Clone, Debug)]
pub(crate) struct MemoryTable {
    pub(crate) name: RelationName,
    pub(crate) schema: SchemaRef,
    pub(crate) segments: Vec<RecordBatch>,
}

fn uuid(number: usize) -> Uuid {
    Uuid::from_u128(number as u128 + 1)
}

impl MemoryTable {
    pub(crate) fn new(name: &str, segments: Vec<RecordBatch>) -> Self {
        let (schema, name) = name.split_once('.').unwrap_or((DEFAULT_SCHEMA, name));
        let name = RelationName { schema: schema.to_owned(), name: name.to_owned() };
        Self { name, schema: segments[0].schema(), segments }
    }

    fn statistics(&self) -> SegmentStatistics {
        let mut all = SegmentStatistics::empty(Arc::clone(&self.schema));
        for batch in self.segments.iter().filter(|batch| batch.num_rows() > 0) {
            let mut builder = StatisticsBuilder::new(Arc::clone(&self.schema));
            builder.update(batch).unwrap();
            all = all.concat(&builder.finish(&vec![100; batch.num_columns()]).unwrap()).unwrap();
        }
        all
    }

    fn table(&self, number: usize) -> Table {
        let segments = self.segments.iter().filter(|batch| batch.num_rows() > 0).enumerate();
        let entries = segments.map(|(index, batch)| {
            Arc::new(SegmentEntry {
                id: SegmentId(uuid(number * 1000 + index)),
                epoch: Epoch(1),
                transaction: TransactionId(uuid(0)),
                rows: batch.num_rows() as u64,
                bytes: 1000,
                sha256: [0; 32],
                intended: Vec::new(),
                holders: Vec::new(),
            })
        });
        Table {
            id: RelationId(uuid(number)),
            name: self.name.clone(),
            schema: Arc::clone(&self.schema),
            segments: entries.collect(),
            statistics: Arc::new(self.statistics()),
        }
    }
}

/// A snapshot of `tables` and `views` (schema.name or name, and query).
pub(crate) fn snapshot(tables: &[MemoryTable], views: &[(&str, &str)]) -> Arc<Snapshot> {
    let mut snapshot = Snapshot::empty(ClusterId(uuid(0)), Quorum::for_copies(1).unwrap());
    snapshot.version = Version(7);
    for (number, table) in tables.iter().enumerate() {
        snapshot.schemas.insert(table.name.schema.clone());
        snapshot.relations.insert(table.name.clone(), Relation::Table(Arc::new(table.table(number))));
    }
    for (number, (name, sql)) in views.iter().enumerate() {
        let (schema, name) = name.split_once('.').unwrap_or((DEFAULT_SCHEMA, name));
        snapshot.schemas.insert(schema.to_owned());
        let name = RelationName { schema: schema.to_owned(), name: name.to_owned() };
        snapshot.relations.insert(name, Relation::View { id: RelationId(uuid(500 + number)), sql: (*sql).to_owned() });
    }
    Arc::new(snapshot)
}

/// Runs fragments as a storage node does: after a trip over the wire, filter, projection and limit segment by segment.
#[derive(Debug)]
pub(crate) struct MemoryAccess {
    tables: Vec<MemoryTable>,
    pub(crate) tasks: Mutex<Vec<ScanTask>>,
    pub(crate) rows_written: Arc<AtomicUsize>,
}

impl MemoryAccess {
    pub(crate) fn new(tables: &[MemoryTable]) -> Arc<Self> {
        Arc::new(Self { tables: tables.to_vec(), tasks: Mutex::default(), rows_written: Arc::default() })
    }
}

fn run(fragment: &Fragment, segment: &RecordBatch) -> Result<RecordBatch> {
    let indices = fragment.scan_schema().fields().iter().map(|field| segment.schema().index_of(field.name()).unwrap());
    let mut batch = segment.project(&indices.collect::<Vec<_>>())?;
    if let Some(filter) = fragment.filter() {
        let mask = filter.evaluate(&batch)?.into_array(batch.num_rows())?;
        batch = filter_record_batch(&batch, mask.as_boolean())?;
    }
    let rows = batch.num_rows();
    let columns =
        fragment.projection().iter().map(|column| Ok(column.expression.evaluate(&batch)?.into_array(rows)?));
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    let columns = columns.collect::<Result<Vec<ArrayRef>>>()?;
    let schema =
        fragment.reduction().map_or_else(|| Arc::clone(fragment.output_schema()), |reduction| reduction.input_schema());
    let output = RecordBatch::try_new_with_options(schema, columns, &options)?;
    let limit = fragment.limit().map_or(rows, |limit| rows.min(limit as usize));
    Ok(output.slice(0, limit))
}

impl TableAccess for MemoryAccess {
    fn scan(&self, task: ScanTask, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let table = self.tables.iter().find(|table| table.name == task.table.name).unwrap();
        let functions = SessionContext::new().task_ctx();
        let planned = task.fragment.now()?;
        let fragment = decode_fragment(&encode_fragment(&planned)?, &functions)?;
        assert_eq!(fragment.output_schema().fields().len(), planned.output_schema().fields().len());
        let segments: Vec<_> = table.segments.iter().filter(|batch| batch.num_rows() > 0).collect();
        let batches: Vec<Result<RecordBatch, DataFusionError>> =
            task.segments.iter().map(|index| Ok(run(&fragment, segments[*index])?)).collect();
        let schema = Arc::clone(fragment.output_schema());
        self.tasks.lock().push(task);
        if let Some(reduction) = fragment.reduction() {
            let reduced = batches.into_iter().map(|batch| {
                let rows = MemorySourceConfig::try_new_exec(&[vec![batch?]], reduction.input_schema(), None)?;
                let reduced = reduction.over(rows)?;
                Ok(match reduction.having() {
                    Some(having) => Arc::new(FilterExec::try_new(Arc::clone(having), reduced)?),
                    None => reduced,
                })
            });
            let all = UnionExec::try_new(reduced.collect::<Result<Vec<_>, DataFusionError>>()?)?;
            return Ok(CoalescePartitionsExec::new(all).execute(0, context)?);
        }
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, futures::stream::iter(batches))))
    }

    fn sink(&self, table: Arc<Table>) -> Result<Arc<dyn DataSink>> {
        Ok(Arc::new(CountingSink { schema: Arc::clone(&table.schema), rows: Arc::clone(&self.rows_written) }))
    }
}

#[derive(Debug)]
struct CountingSink {
    schema: SchemaRef,
    rows: Arc<AtomicUsize>,
}

impl DisplayAs for CountingSink {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CountingSink")
    }
}

#[async_trait]
impl DataSink for CountingSink {
    fn metrics(&self) -> Option<MetricsSet> {
        None
    }

    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    async fn write_all(
        &self,
        data: SendableRecordBatchStream,
        _context: &Arc<TaskContext>,
    ) -> datafusion::error::Result<u64> {
        let batches: Vec<RecordBatch> = data.try_collect().await?;
        let rows = batches.iter().map(RecordBatch::num_rows).sum::<usize>();
        self.rows.fetch_add(rows, Ordering::Relaxed);
        Ok(rows as u64)
    }
}

/// `orders`: 4 segments of 25 rows; ids and dates ascend over the segments, so that they can be pruned.
pub(crate) fn orders() -> MemoryTable {
    let schema = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("buyer", DataType::Int64, true),
        Field::new("status", DataType::Utf8View, true),
        Field::new("total", DataType::Decimal128(15, 2), false),
        Field::new("day", DataType::Date32, false),
        Field::new("comment", DataType::Utf8View, true),
    ]));
    let segments = (0..4_i64).map(|segment| {
        let ids: Vec<i64> = (0..25).map(|row| segment * 25 + row).collect();
        let text = |id: &i64| format!("order number {id} with a comment that is rather long, as comments are");
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from(ids.clone())),
            Arc::new(ids.iter().map(|id| (id % 7 != 0).then_some(id % 10)).collect::<Int64Array>()),
            Arc::new(
                ids.iter()
                    .map(|id| (id % 5 != 0).then_some(if id % 2 == 0 { "open" } else { "Closed" }))
                    .collect::<StringViewArray>(),
            ),
            Arc::new(
                Decimal128Array::from_iter_values(ids.iter().map(|id| i128::from(*id) * 150))
                    .with_precision_and_scale(15, 2)
                    .unwrap(),
            ),
            Arc::new(ids.iter().map(|id| Some(9000 + *id as i32)).collect::<Date32Array>()),
            Arc::new(ids.iter().map(|id| (id % 3 != 0).then(|| text(id))).collect::<StringViewArray>()),
        ];
        RecordBatch::try_new(Arc::clone(&schema), columns).unwrap()
    });
    MemoryTable::new("orders", segments.collect())
}

/// `customer`: 2 segments of 5 rows.
pub(crate) fn customers() -> MemoryTable {
    let schema = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("name", DataType::Utf8View, false),
        Field::new("Region", DataType::Utf8View, true),
    ]));
    let segments = (0..2_i64).map(|segment| {
        let ids: Vec<i64> = (0..5).map(|row| segment * 5 + row).collect();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from(ids.clone())),
            Arc::new(ids.iter().map(|id| Some(format!("customer {id}"))).collect::<StringViewArray>()),
            Arc::new(
                ids.iter()
                    .map(|id| (id % 4 != 0).then_some(if id % 2 == 0 { "north" } else { "south" }))
                    .collect::<StringViewArray>(),
            ),
        ];
        RecordBatch::try_new(Arc::clone(&schema), columns).unwrap()
    });
    MemoryTable::new("customer", segments.collect())
}

/// `sales.nothing`: a table without rows.
pub(crate) fn nothing() -> MemoryTable {
    let schema =
        Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, true), Field::new("b", DataType::Utf8View, true)]));
    MemoryTable::new("sales.nothing", vec![RecordBatch::new_empty(schema)])
}
