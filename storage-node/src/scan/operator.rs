//! One of DataFusion's operators run by hand, a batch at a time on the CPU pool.
//!
//! ```text
//! push -> queue -> FeedExec -> operator -> poll
//! ```
//! The operator's stream is polled with a waker that wakes nobody: it waits for nothing but the
//! queue, and who fills the queue polls again. The operators used here start no tasks.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;
use aubade_proto::{Error, Result};
use datafusion::common::internal_datafusion_err;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::Result as DataFusionResult;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{MemoryPool, UnboundedMemoryPool};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::expressions::DynamicFilterPhysicalExpr;
use datafusion::physical_expr::{EquivalenceProperties, LexOrdering, PhysicalExpr};
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::execution_plan::{
    Boundedness, ChildrenPropertiesMode, EmissionType, ReplaceChildrenOptions,
};
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};
use datafusion::prelude::SessionConfig;
use futures::Stream;
use parking_lot::Mutex;

use crate::limits::{SKIP_AGGREGATION_RATIO, SKIP_AGGREGATION_ROWS};

#[derive(Debug, Default)]
struct Queue {
    batches: VecDeque<RecordBatch>,
    closed: bool,
}

/// A leaf that yields what is pushed into a queue.
#[derive(Debug)]
struct FeedExec {
    queue: Arc<Mutex<Queue>>,
    properties: Arc<PlanProperties>,
}

impl FeedExec {
    fn new(input: &InputProperties, queue: Arc<Mutex<Queue>>) -> Self {
        Self { queue, properties: Arc::clone(&input.0) }
    }
}

impl DisplayAs for FeedExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FeedExec")
    }
}

impl ExecutionPlan for FeedExec {
    fn name(&self) -> &'static str {
        "FeedExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        if children.is_empty() { Ok(self) } else { Err(internal_datafusion_err!("a feed has no children")) }
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> DataFusionResult<TreeNodeRecursion>,
    ) -> DataFusionResult<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn execute(&self, _partition: usize, _context: Arc<TaskContext>) -> DataFusionResult<SendableRecordBatchStream> {
        Ok(Box::pin(FeedStream { schema: self.schema(), queue: Arc::clone(&self.queue) }))
    }
}

struct FeedStream {
    schema: SchemaRef,
    queue: Arc<Mutex<Queue>>,
}

impl Stream for FeedStream {
    type Item = DataFusionResult<RecordBatch>;

    fn poll_next(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut queue = self.queue.lock();
        match queue.batches.pop_front() {
            Some(batch) => Poll::Ready(Some(Ok(batch))),
            None if queue.closed => Poll::Ready(None),
            // Who pushes polls again.
            None => Poll::Pending,
        }
    }
}

impl RecordBatchStream for FeedStream {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}

/// What operators are told of the rows that they are given.
#[derive(Clone, Debug)]
pub(crate) struct InputProperties(Arc<PlanProperties>);

impl InputProperties {
    /// Rows of a schema.
    pub(crate) fn new(schema: SchemaRef) -> Self {
        Self::of(EquivalenceProperties::new(schema))
    }

    /// Rows of a schema that are in an order.
    pub(crate) fn ordered(schema: SchemaRef, order: LexOrdering) -> Self {
        Self::of(EquivalenceProperties::new_with_orderings(schema, [order]))
    }

    fn of(known: EquivalenceProperties) -> Self {
        Self(Arc::new(PlanProperties::new(
            known,
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        )))
    }

    /// What an operator knows of its input already, so that what follows from it need not be found out for each segment.
    /// `None` for operators that then would share more than that: the bound of an aggregate, for one.
    pub(crate) fn below(operator: &Arc<dyn ExecutionPlan>) -> Option<Self> {
        let input = operator.children().into_iter().next()?;
        let is_alone = operator.is::<AggregateExec>() && input.children().is_empty();
        (is_alone && operator.dynamic_expressions_produced().is_empty()).then(|| Self(Arc::clone(input.properties())))
    }

    fn schema(&self) -> &SchemaRef {
        self.0.equivalence_properties().schema()
    }
}

/// What the operators of one request have in common.
pub(crate) struct OperatorSettings {
    session: SessionConfig,
    runtime: RuntimeEnv,
}

impl OperatorSettings {
    /// For operators that yield batches of `batch_rows` rows. Those that are `thorough` group all of their rows, even
    /// where hardly two of them are of one group.
    pub(crate) fn new(batch_rows: usize, thorough: bool) -> Result<Self> {
        let mut session = SessionConfig::new().with_batch_size(batch_rows);
        let options = session.options_mut();
        options.execution.skip_partial_aggregation_probe_rows_threshold = SKIP_AGGREGATION_ROWS;
        options.execution.skip_partial_aggregation_probe_ratio_threshold =
            if thorough { f64::INFINITY } else { SKIP_AGGREGATION_RATIO };
        // Nobody below a feed could use such a filter.
        options.optimizer.enable_aggregate_dynamic_filter_pushdown = false;
        let no_disk = DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled);
        let runtime = RuntimeEnvBuilder::new().with_disk_manager_builder(no_disk).build()?;
        Ok(Self { session, runtime })
    }

    /// No functions: an operator holds those that it calls.
    fn context(&self, runtime: RuntimeEnv) -> TaskContext {
        let (session, runtime) = (self.session.clone(), Arc::new(runtime));
        let (scalar, higher, aggregate, window) = Default::default();
        TaskContext::new(None, String::new(), session, scalar, higher, aggregate, window, runtime)
    }
}

/// What an operator has to say.
pub(crate) enum Polled {
    /// It yields rows; there may be more.
    Batch(RecordBatch),
    /// It waits for input.
    Hungry,
    /// It has yielded everything.
    Ended,
}

/// See the module's doc.
pub(crate) struct Operator {
    input_schema: SchemaRef,
    queue: Arc<Mutex<Queue>>,
    memory: Arc<dyn MemoryPool>,
    bound: Option<Arc<dyn PhysicalExpr>>,
    stream: SendableRecordBatchStream,
}

impl Operator {
    /// The operator that `make` puts over a leaf that yields `input`.
    pub(crate) fn new(
        settings: &OperatorSettings,
        input: &InputProperties,
        make: impl FnOnce(Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>>,
    ) -> Result<Self> {
        let queue: Arc<Mutex<Queue>> = Arc::default();
        let plan = make(Arc::new(FeedExec::new(input, Arc::clone(&queue))))?;
        // Its memory is counted, and bounded by whoever pushes: see `Operator::memory_bytes`.
        let memory: Arc<dyn MemoryPool> = Arc::new(UnboundedMemoryPool::default());
        let runtime = RuntimeEnv { memory_pool: Arc::clone(&memory), ..settings.runtime.clone() };
        let context = settings.context(runtime);
        let bound = plan.dynamic_expressions_produced().into_iter().next();
        let stream = plan.execute(0, Arc::new(context))?;
        Ok(Self { input_schema: Arc::clone(input.schema()), queue, memory, bound, stream })
    }

    /// Gives it rows. Column names may differ from those of its input schema.
    pub(crate) fn push(&self, batch: RecordBatch) -> Result<()> {
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let (_, columns, _) = batch.into_parts();
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.input_schema), columns, &options)?;
        self.queue.lock().batches.push_back(batch);
        Ok(())
    }

    /// Says that there is no more input.
    pub(crate) fn close(&self) {
        self.queue.lock().closed = true;
    }

    /// Works until there is something to say.
    pub(crate) fn poll(&mut self) -> Result<Polled> {
        let mut context = Context::from_waker(Waker::noop());
        loop {
            match self.stream.as_mut().poll_next(&mut context) {
                Poll::Ready(Some(Ok(batch))) if batch.num_rows() == 0 => {}
                Poll::Ready(Some(Ok(batch))) => return Ok(Polled::Batch(batch)),
                Poll::Ready(Some(Err(error))) => return Err(Error::from(error)),
                Poll::Ready(None) => return Ok(Polled::Ended),
                Poll::Pending => {
                    let queue = self.queue.lock();
                    if queue.closed && queue.batches.is_empty() {
                        return Err(Error::internal("an operator of a reduction waits for something else than rows"));
                    }
                    if queue.batches.is_empty() {
                        return Ok(Polled::Hungry);
                    }
                }
            }
        }
    }

    /// Bytes that it says to hold.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.memory.reserved()
    }

    /// For the first rows of an order: what a row has to pass to be among them, as far as is known;
    /// over the input schema.
    pub(crate) fn bound(&self) -> Option<Arc<dyn PhysicalExpr>> {
        self.bound.as_ref()?.downcast_ref::<DynamicFilterPhysicalExpr>()?.current().ok()
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, AsArray, Int64Array};
    use arrow::compute::SortOptions;
    use arrow::datatypes::Int64Type;
    use datafusion::functions_aggregate::min_max::min_udaf;
    use datafusion::functions_aggregate::sum::sum_udaf;
    use datafusion::physical_expr::PhysicalSortExpr;
    use datafusion::physical_expr::aggregate::AggregateExprBuilder;
    use datafusion::physical_expr::expressions::col;
    use datafusion::physical_plan::aggregates::{AggregateMode, PhysicalGroupBy};
    use datafusion::physical_plan::empty::EmptyExec;
    use datafusion::physical_plan::sorts::sort::SortExec;

    use super::*;

    fn numbers(values: Vec<i64>) -> RecordBatch {
        RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from(values)) as ArrayRef)]).unwrap()
    }

    fn smallest(count: usize) -> Operator {
        let schema = numbers(Vec::new()).schema();
        let order = PhysicalSortExpr::new(col("n", &schema).unwrap(), SortOptions::default());
        let make = |input| {
            let sort = SortExec::new(LexOrdering::new([order]).unwrap(), input).with_fetch(Some(count));
            Ok(Arc::new(sort) as Arc<dyn ExecutionPlan>)
        };
        Operator::new(&OperatorSettings::new(10, false).unwrap(), &InputProperties::new(schema), make).unwrap()
    }

    #[test]
    fn operators_of_all_segments_share_what_they_know_of_their_input_but_no_bound() {
        let schema = numbers(Vec::new()).schema();
        let over = |function| {
            let function = AggregateExprBuilder::new(function, vec![col("n", &schema).unwrap()]);
            let function = Arc::new(function.schema(Arc::clone(&schema)).alias("result").build().unwrap());
            let input = Arc::new(EmptyExec::new(Arc::clone(&schema)));
            let (groups, schema) = (PhysicalGroupBy::new_single(Vec::new()), Arc::clone(&schema));
            let plan =
                AggregateExec::try_new(AggregateMode::Partial, groups, vec![function], vec![None], input, schema);
            Arc::new(plan.unwrap()) as Arc<dyn ExecutionPlan>
        };
        let sum = over(sum_udaf());
        let shared = InputProperties::below(&sum).unwrap();
        assert!(Arc::ptr_eq(&shared.0, sum.children()[0].properties()));
        assert!(InputProperties::below(&over(min_udaf())).is_none());
    }

    #[test]
    fn an_operator_takes_rows_until_it_is_told_that_there_are_no_more() {
        let mut operator = smallest(2);
        assert!(matches!(operator.poll().unwrap(), Polled::Hungry));
        for values in [vec![7, 3, 9], vec![5, 1]] {
            operator.push(numbers(values)).unwrap();
            assert!(matches!(operator.poll().unwrap(), Polled::Hungry));
        }
        assert!(operator.memory_bytes() > 0);
        assert_eq!(operator.bound().unwrap().to_string(), "n@0 IS NULL OR n@0 < 3");
        operator.close();
        let Polled::Batch(batch) = operator.poll().unwrap() else { panic!("no rows") };
        assert_eq!(batch.column(0).as_primitive::<Int64Type>().values(), &[1, 3]);
        assert!(matches!(operator.poll().unwrap(), Polled::Ended));
    }
}
