//! The last stage of an aggregate by one integer or two. DataFusion's operator hashes and compares keys; where they lie
//! near to one another, each can have a place of its own.

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::compute::{concat, take};
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use aubade_proto::integer_groups::{KeyGroups, first_rows, is_integer};
use datafusion::common::Statistics;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::Result;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, ReplaceChildrenOptions};
use datafusion::physical_plan::metrics::{
    BaselineMetrics, Count, ExecutionPlanMetricsSet, Metric, MetricBuilder, MetricValue, MetricsSet, RecordOutput,
};
use datafusion::physical_plan::statistics::{ChildStats, StatisticsArgs};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, InputOrderMode, PlanProperties};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;

use crate::pass_through::{has_child, only_child};

/// Integers between the smallest and the largest key up to which each can have 4 bytes of its own, which count as memory of
/// the query.
const PLACES_MAX: usize = 1 << 22;

/// Parts in which states are handed on.
const PARTS: usize = 16;

/// See the module's doc. Where memory does not suffice, what is merged so far goes on as states to DataFusion's operator,
/// which spills.
#[derive(Debug)]
pub(crate) struct MergeStatesExec {
    aggregate: AggregateExec,
    input: Arc<dyn ExecutionPlan>,
    metrics: ExecutionPlanMetricsSet,
    /// The operators that went on where memory did not suffice.
    spilling: Arc<Mutex<Vec<Arc<dyn ExecutionPlan>>>>,
}

impl MergeStatesExec {
    /// In place of an aggregate; `None` where that is no last stage, or has other keys than one integer or two, or
    /// functions that do not merge the states of many groups at once.
    pub(crate) fn in_place_of(aggregate: &AggregateExec) -> Option<Self> {
        let is_last = matches!(aggregate.mode(), AggregateMode::Final | AggregateMode::FinalPartitioned);
        let is_plain = aggregate.limit_options().is_none()
            && matches!(aggregate.input_order_mode(), InputOrderMode::Linear)
            && aggregate.group_expr().is_single();
        let (keys, input) = (aggregate.group_expr().expr(), aggregate.input().schema());
        let mut types = keys.iter().map(|(key, _)| key.data_type(&input));
        let few = (1..=KeyGroups::KEYS_MAX).contains(&keys.len());
        let by_integers = few && types.all(|key| key.is_ok_and(|data_type| is_integer(&data_type)));
        let mut functions = aggregate.aggr_expr().iter();
        let merge =
            functions.all(|function| function.groups_accumulator_supported() && function.order_bys().is_empty());
        (is_last && is_plain && by_integers && merge).then(|| Self::new(aggregate.clone()))
    }

    fn new(aggregate: AggregateExec) -> Self {
        let input = Arc::clone(aggregate.input());
        Self { aggregate, input, metrics: ExecutionPlanMetricsSet::new(), spilling: Arc::default() }
    }
}

impl DisplayAs for MergeStatesExec {
    fn fmt_as(&self, format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if matches!(format, DisplayFormatType::TreeRender) {
            return self.aggregate.fmt_as(format, f);
        }
        let keys = self.aggregate.group_expr().expr().iter().map(|(_, name)| name.as_str());
        let functions = self.aggregate.aggr_expr().iter().map(|function| function.name());
        let (keys, functions) = (keys.collect::<Vec<_>>().join(", "), functions.collect::<Vec<_>>().join(", "));
        write!(f, "MergeStatesExec: mode={:?}, gby=[{keys}], aggr=[{functions}]", self.aggregate.mode())
    }
}

impl ExecutionPlan for MergeStatesExec {
    fn name(&self) -> &str {
        "MergeStatesExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.aggregate.properties()
    }

    has_child!(input);

    fn statistics_from_inputs(&self, inputs: &[Arc<Statistics>], args: &StatisticsArgs) -> Result<Arc<Statistics>> {
        self.aggregate.statistics_from_inputs(inputs, args)
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        self.aggregate.apply_expressions(f)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input = only_child(self.name(), children)?;
        let aggregate = Arc::new(self.aggregate.clone()).replace_children(vec![input], options)?;
        Ok(match aggregate.downcast_ref::<AggregateExec>() {
            Some(aggregate) => Arc::new(Self::new(aggregate.clone())),
            None => aggregate,
        })
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, Arc::clone(&context))?;
        let consumer = MemoryConsumer::new(format!("MergeStatesExec[{partition}]")).with_can_spill(true);
        let reservation = consumer.register(context.memory_pool());
        let baseline = BaselineMetrics::new(&self.metrics, partition);
        let merging = Merging {
            merged: Merged::new(&self.aggregate)?,
            aggregate: self.aggregate.clone(),
            input,
            reservation,
            handed_on: MetricBuilder::new(&self.metrics).counter("handed_on_groups", partition),
            baseline,
            spilling: Arc::clone(&self.spilling),
            context,
        };
        let result = stream::once(merging.run()).try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), result)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        let mut metrics = self.metrics.clone_inner();
        for operator in self.spilling.lock().iter() {
            let more = operator.metrics();
            // What it yields is what this one does.
            let is_output = |metric: &Metric| {
                use MetricValue::{OutputBatches, OutputBytes, OutputRows};
                matches!(metric.value(), OutputRows(_) | OutputBytes(_) | OutputBatches(_))
            };
            let others = more.iter().flat_map(MetricsSet::iter).filter(|metric| !is_output(metric));
            others.for_each(|metric| metrics.push(Arc::clone(metric)));
        }
        Some(metrics)
    }
}

/// One partition that runs.
struct Merging {
    aggregate: AggregateExec,
    merged: Merged,
    input: SendableRecordBatchStream,
    reservation: MemoryReservation,
    baseline: BaselineMetrics,
    handed_on: Count,
    spilling: Arc<Mutex<Vec<Arc<dyn ExecutionPlan>>>>,
    context: Arc<TaskContext>,
}

impl Merging {
    async fn run(mut self) -> Result<SendableRecordBatchStream> {
        while let Some(batch) = self.input.next().await.transpose()? {
            let timer = self.baseline.elapsed_compute().timer();
            let is_in = self.merged.push(&batch)?;
            timer.done();
            if !is_in {
                return self.give_up(Some(batch));
            }
            if self.reservation.try_resize(self.merged.memory_bytes()).is_err() {
                return self.give_up(None);
            }
        }
        let timer = self.baseline.elapsed_compute().timer();
        let groups = self.merged.count;
        let schema = self.aggregate.schema();
        let result = self.merged.take(groups, &schema, |function, groups| Ok(vec![function.evaluate(groups)?]))?;
        timer.done();
        let rows = self.context.session_config().batch_size();
        let (baseline, reservation) = (self.baseline, self.reservation);
        let batches = slices(result, rows).map(move |batch| {
            // The pieces are parts of one whole.
            let _held = &reservation;
            Ok(batch.record_output(&baseline))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, stream::iter(batches))))
    }

    /// Leaves the rest, and what is merged so far, to DataFusion's operator.
    fn give_up(self, pending: Option<RecordBatch>) -> Result<SendableRecordBatchStream> {
        self.handed_on.add(self.merged.count);
        let schema = self.input.schema();
        let rows = self.context.session_config().batch_size();
        let states = handed_on(self.merged, Arc::clone(&schema), self.reservation);
        let states = states.flat_map(move |part| match part {
            Ok(part) => stream::iter(slices(Some(part), rows).map(Ok).collect::<Vec<_>>()),
            Err(error) => stream::iter(vec![Err(error)]),
        });
        let all = states.chain(stream::iter(pending).map(Ok)).chain(self.input);
        let all = RecordBatchStreamAdapter::new(Arc::clone(&schema), all);
        let states = States { schema: Arc::clone(&schema), stream: Mutex::new(Some(Box::pin(all))) };
        let input = StreamingTableExec::try_new(schema, vec![Arc::new(states)], None, [], false, None)?;
        let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
        let aggregate = Arc::new(self.aggregate).replace_children(vec![Arc::new(input)], options)?;
        self.spilling.lock().push(Arc::clone(&aggregate));
        let baseline = self.baseline;
        let rows = aggregate.execute(0, self.context)?.map(move |batch| batch.record_output(&baseline));
        Ok(Box::pin(RecordBatchStreamAdapter::new(aggregate.schema(), rows)))
    }
}

/// Pieces of a batch of at most so many rows.
fn slices(batch: Option<RecordBatch>, rows: usize) -> impl Iterator<Item = RecordBatch> + Send {
    let rows = rows.max(1);
    let all = batch.as_ref().map_or(0, RecordBatch::num_rows);
    let piece = move |first| Some(batch.as_ref()?.slice(first, rows.min(all - first)));
    (0..all).step_by(rows).filter_map(piece)
}

/// The states of all groups in some parts, each of which gives back its memory.
fn handed_on(
    mut merged: Merged,
    schema: SchemaRef,
    reservation: MemoryReservation,
) -> impl Stream<Item = Result<RecordBatch>> + Send {
    // Nothing is looked up any more.
    merged.groups = KeyGroups::new(0, 0);
    let groups = merged.count.div_ceil(PARTS);
    let parts = std::iter::from_fn(move || {
        let part = merged.take(groups, &schema, |function, groups| function.state(groups)).transpose();
        reservation.shrink(reservation.size().saturating_sub(merged.memory_bytes()));
        part
    });
    stream::iter(parts)
}

/// Groups with their states.
struct Merged {
    keys: Vec<Arc<dyn PhysicalExpr>>,
    groups: KeyGroups,
    /// Of each key its values for all groups, in their order.
    values: Vec<Vec<ArrayRef>>,
    values_bytes: usize,
    functions: Vec<Function>,
    /// The group of each row of a batch.
    numbers: Vec<usize>,
    count: usize,
}

struct Function {
    accumulator: Box<dyn GroupsAccumulator>,
    /// Columns of its states.
    states: usize,
}

impl Merged {
    fn new(aggregate: &AggregateExec) -> Result<Self> {
        let functions = aggregate.aggr_expr().iter().map(|function| {
            let (accumulator, states) = (function.create_groups_accumulator()?, function.state_fields()?.len());
            Ok(Function { accumulator, states })
        });
        let keys: Vec<_> = aggregate.group_expr().expr().iter().map(|(key, _)| Arc::clone(key)).collect();
        Ok(Self {
            groups: KeyGroups::new(keys.len(), PLACES_MAX),
            values: vec![Vec::new(); keys.len()],
            keys,
            values_bytes: 0,
            functions: functions.collect::<Result<_>>()?,
            numbers: Vec::new(),
            count: 0,
        })
    }

    /// Adds states; false where it does not.
    fn push(&mut self, batch: &RecordBatch) -> Result<bool> {
        self.numbers.clear();
        self.numbers.resize(batch.num_rows(), 0);
        let keys = self.keys.iter().map(|key| key.evaluate(batch)?.into_array(batch.num_rows()));
        let keys = keys.collect::<Result<Vec<_>>>()?;
        let before = self.values.first().map(Vec::as_slice).unwrap_or_default();
        if !self.groups.number(&mut self.numbers, &keys, before) {
            return Ok(false);
        }
        let before = std::mem::replace(&mut self.count, self.groups.count());
        if self.count > before {
            let first = first_rows(&self.numbers, before);
            for (values, key) in self.values.iter_mut().zip(&keys) {
                let fresh = take(key, &first, None)?;
                self.values_bytes = self.values_bytes.saturating_add(fresh.get_array_memory_size());
                values.push(fresh);
            }
        }
        // The keys come first, and then the states of each function.
        let mut columns = batch.columns().get(keys.len()..).unwrap_or_default();
        for function in &mut self.functions {
            let Some((states, others)) = columns.split_at_checked(function.states) else {
                return datafusion::common::internal_err!("the states of an aggregate are incomplete");
            };
            function.accumulator.merge_batch(states, &self.numbers, self.count)?;
            columns = others;
        }
        Ok(true)
    }

    /// Bytes that it holds.
    fn memory_bytes(&self) -> usize {
        let states = self.functions.iter().map(|function| function.accumulator.size());
        states.fold(self.values_bytes.saturating_add(self.groups.memory_bytes()), usize::saturating_add)
    }

    /// Takes away the first groups, as many as are wanted: a row for each, with what `columns_of` makes of its states. `None`
    /// where there are no groups any more.
    fn take(
        &mut self,
        groups: usize,
        schema: &SchemaRef,
        columns_of: impl Fn(&mut dyn GroupsAccumulator, EmitTo) -> Result<Vec<ArrayRef>>,
    ) -> Result<Option<RecordBatch>> {
        if self.count == 0 {
            return Ok(None);
        }
        let (taken, emit) = match groups < self.count {
            true => (groups, EmitTo::First(groups)),
            false => (self.count, EmitTo::All),
        };
        let mut columns = Vec::with_capacity(schema.fields().len());
        for values in &mut self.values {
            let all = concat(&values.iter().map(AsRef::as_ref).collect::<Vec<&dyn Array>>())?;
            columns.push(all.slice(0, taken));
            *values = vec![all.slice(taken, self.count - taken)];
        }
        for function in &mut self.functions {
            columns.extend(columns_of(function.accumulator.as_mut(), emit)?);
        }
        self.count -= taken;
        Ok(Some(RecordBatch::try_new(Arc::clone(schema), columns)?))
    }
}

/// What a stream has, once.
struct States {
    schema: SchemaRef,
    stream: Mutex<Option<SendableRecordBatchStream>>,
}

impl fmt::Debug for States {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("States").finish_non_exhaustive()
    }
}

impl PartitionStream for States {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let stream = self.stream.lock().take();
        stream.unwrap_or_else(|| {
            let again = stream::iter([datafusion::common::internal_err!("states are read a second time")]);
            Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), again))
        })
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        Date32Array, Decimal64Array, Float64Array, Int32Array, Int64Array, StringViewArray, TimestampMicrosecondArray,
        UInt64Array,
    };
    use arrow::compute::{concat_batches, lexsort_to_indices, take_record_batch};
    use datafusion::common::config::ConfigOptions;
    use datafusion::datasource::MemTable;
    use datafusion::execution::memory_pool::FairSpillPool;
    use datafusion::execution::runtime_env::RuntimeEnvBuilder;
    use datafusion::physical_optimizer::PhysicalOptimizerRule;
    use datafusion::physical_plan::execution_plan::reset_plan_states;
    use datafusion::physical_plan::{collect, displayable};
    use datafusion::prelude::{SessionConfig, SessionContext};

    use super::*;
    use crate::rewrite::MergeByIntegers;

    fn at(keys: &mut dyn Iterator<Item = Option<i64>>) -> TimestampMicrosecondArray {
        TimestampMicrosecondArray::from_iter(keys).with_timezone("+01:00")
    }

    fn cents(keys: &mut dyn Iterator<Item = Option<i64>>) -> Decimal64Array {
        Decimal64Array::from_iter(keys).with_precision_and_scale(12, 2).unwrap()
    }

    fn rows(first: i64, count: i64, distinct: i64) -> RecordBatch {
        let key = |row: i64| (row % 11 != 3).then_some(row * 7_919 % distinct - 20);
        let of = |key: i64| i32::try_from(key).ok();
        let range = || first..first + count;
        RecordBatch::try_from_iter_with_nullable([
            ("key", Arc::new(Int64Array::from_iter(range().map(key))) as ArrayRef, true),
            ("small", Arc::new(Int32Array::from_iter(range().map(|row| key(row).and_then(of)))), true),
            ("far", Arc::new(Int64Array::from_iter(range().map(|row| key(row).map(|key| key << 40)))), true),
            ("day", Arc::new(Date32Array::from_iter(range().map(|row| key(row).and_then(of)))), true),
            (
                "big",
                Arc::new(UInt64Array::from_iter(range().map(|row| key(row).map(|key| u64::MAX - 50 + key as u64)))),
                true,
            ),
            ("at", Arc::new(at(&mut range().map(key))), true),
            ("cents", Arc::new(cents(&mut range().map(key))), true),
            ("value", Arc::new(Int64Array::from_iter(range().map(|row| (row % 5 != 0).then_some(row)))), true),
            ("real", Arc::new(Float64Array::from_iter(range().map(|row| Some((row % 64) as f64 / 8.0)))), true),
            (
                "text",
                Arc::new(StringViewArray::from_iter_values(range().map(|row| format!("text {}", row % 9)))),
                false,
            ),
        ])
        .unwrap()
    }

    async fn context(memory_bytes: usize) -> SessionContext {
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(Arc::new(FairSpillPool::new(memory_bytes)));
        let config = SessionConfig::new().with_target_partitions(2).with_batch_size(1_000);
        let context = SessionContext::new_with_config_rt(config, runtime.build_arc().unwrap());
        let parts: Vec<_> =
            (0..2).map(|part| vec![rows(part * 40_000, 20_000, 9_000), rows(part * 999, 500, 70)]).collect();
        let table = MemTable::try_new(parts[0][0].schema(), parts).unwrap();
        context.register_table("t", Arc::new(table)).unwrap();
        context
    }

    /// All rows, in an order.
    async fn sorted(plan: Arc<dyn ExecutionPlan>, context: &SessionContext) -> RecordBatch {
        let rows = concat_batches(&plan.schema(), &collect(plan, context.task_ctx()).await.unwrap()).unwrap();
        let columns = rows
            .columns()
            .iter()
            .map(|column| arrow::compute::SortColumn { values: Arc::clone(column), options: None });
        take_record_batch(&rows, &lexsort_to_indices(&columns.collect::<Vec<_>>(), None).unwrap()).unwrap()
    }

    fn merging(plan: &Arc<dyn ExecutionPlan>) -> Vec<&MergeStatesExec> {
        let below = plan.children().into_iter().flat_map(merging);
        plan.downcast_ref::<MergeStatesExec>().into_iter().chain(below).collect()
    }

    #[tokio::test]
    async fn groups_are_those_of_plain_datafusion_with_memory_and_without() {
        for (sql, merges) in [
            ("SELECT key, sum(value), count(value), avg(real), min(text), max(value) FROM t GROUP BY key", 1),
            ("SELECT small, count(*), sum(value) FILTER (WHERE real > 3.0), avg(real) FROM t GROUP BY small", 1),
            ("SELECT far, bool_or(real > 1.0), count(value) FROM t GROUP BY far", 1),
            ("SELECT day, sum(value), min(at) FROM t GROUP BY day", 1),
            ("SELECT big, count(*) FROM t GROUP BY big", 1),
            ("SELECT at, max(cents), sum(cents) FROM t GROUP BY at", 1),
            ("SELECT cents, avg(value) FROM t GROUP BY cents", 1),
            ("SELECT DISTINCT value FROM t", 1),
            ("SELECT count(DISTINCT key), count(DISTINCT small) FROM t", 0),
            ("SELECT count(*) FROM (SELECT key, count(DISTINCT small) AS c FROM t GROUP BY key) GROUP BY c", 3),
            ("SELECT key, count(*) FROM t WHERE value < 0 GROUP BY key", 1),
            ("SELECT key, first_value(text ORDER BY value, real) FROM t GROUP BY key", 0),
            ("SELECT text, sum(value) FROM t GROUP BY text", 0),
            ("SELECT key, small, sum(value) FROM t GROUP BY key, small", 1),
            ("SELECT far, day, count(*) FROM t GROUP BY far, day", 1),
            ("SELECT far, day, cents, count(*) FROM t GROUP BY far, day, cents", 0),
            ("SELECT key, text, sum(value) FROM t GROUP BY key, text", 0),
            // The last stage has the number of the grouping set as a key.
            ("SELECT key, sum(value) FROM t GROUP BY ROLLUP (key)", 1),
            ("SELECT key, day, count(*) FROM t GROUP BY CUBE (key, day)", 0),
            ("SELECT key, count(*) FROM t GROUP BY GROUPING SETS ((key), (key), ())", 1),
            ("SELECT key, count(*) FROM t WHERE value < 0 GROUP BY ROLLUP (key)", 1),
            ("SELECT sum(value) FROM t", 0),
        ] {
            for (memory_bytes, gives_up) in [(1 << 30, false), (600_000, true)] {
                if gives_up && merges == 0 {
                    continue;
                }
                let context = context(memory_bytes).await;
                let plan = context.sql(sql).await.unwrap().create_physical_plan().await.unwrap();
                let merged = MergeByIntegers.optimize(Arc::clone(&plan), &ConfigOptions::default()).unwrap();
                let shown = displayable(merged.as_ref()).indent(false).to_string();
                assert_eq!(merging(&merged).len(), merges, "{shown}");
                assert_eq!(
                    sorted(Arc::clone(&merged), &context).await,
                    sorted(reset_plan_states(plan).unwrap(), &context).await,
                    "{shown}"
                );
                for merging in merging(&merged) {
                    let metrics = merging.metrics().unwrap();
                    let handed_on = metrics.sum_by_name("handed_on_groups").unwrap().as_usize();
                    let rows = metrics.output_rows().unwrap();
                    // Few groups always have room.
                    assert_eq!(handed_on > 0, gives_up && rows > 5_000, "{shown} {memory_bytes}");
                    assert_eq!(metrics.spill_count().is_some(), handed_on > 0, "{shown} {memory_bytes}");
                    for output in ["output_rows", "output_bytes", "output_batches"] {
                        let told = metrics.iter().filter(|metric| metric.value().name() == output).count();
                        assert_eq!(told, 2, "{output}, once for each partition: {shown} {memory_bytes}");
                    }
                }
                assert_eq!(context.runtime_env().memory_pool.reserved(), 0);
            }
        }
    }

    #[tokio::test]
    async fn a_copy_merges_rows_of_its_own() {
        let context = context(1 << 30).await;
        let sql = "SELECT key, count(*) FROM t GROUP BY key";
        let plan = context.sql(sql).await.unwrap().create_physical_plan().await.unwrap();
        let plan = MergeByIntegers.optimize(plan, &ConfigOptions::default()).unwrap();
        let copy = reset_plan_states(Arc::clone(&plan)).unwrap();
        assert_eq!(sorted(Arc::clone(&plan), &context).await, sorted(Arc::clone(&copy), &context).await);
        assert!(merging(&copy)[0].metrics().unwrap().output_rows().unwrap() > 0);
        let shown = displayable(plan.as_ref()).indent(false).to_string();
        assert!(shown.contains("MergeStatesExec: mode=FinalPartitioned, gby=[key], aggr=[count(Int64(1))]"), "{shown}");
    }
}
