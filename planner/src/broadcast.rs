//! Joins with small build sides that run at the storage nodes, with the partial aggregate above them.
//!
//! Whether a build side is small is known for certain only once it has been read. So the plan for the coordinator stays
//! as it is, with a place between each join and its build side where that is gathered:
//! ```text
//! BroadcastExec                      gathers the build sides; if they are small, asks the scan for states
//!   AggregateExec partial              otherwise runs this, with what was gathered so far
//!     HashJoinExec
//!       GatherExec
//!         build side
//!       StorageScanExec
//! ```

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use arrow::compute::concat_batches;
use arrow::record_batch::RecordBatch;
use aubade_proto::Reduction;
use datafusion::common::hash_utils::{RandomState, create_hashes};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::utils::memory::get_record_batch_memory_size;
use datafusion::common::{HashMap, JoinType, Statistics, internal_datafusion_err};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::ReplaceChildrenOptions;
use datafusion::physical_plan::joins::HashJoinExec;
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, MetricBuilder, MetricsSet};
use datafusion::physical_plan::statistics::{ChildStats, StatisticsArgs};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, EmptyRecordBatchStream, ExecutionPlan, ExecutionPlanProperties, Partitioning,
    PlanProperties,
};
use futures::future::{BoxFuture, Shared, poll_fn};
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;

use crate::kept_results::{Keeping, KeptResult};
use crate::pass_through::{has_no_expressions, has_properties_of, only_child, passes_through};
use crate::result_key::ResultKey;
use crate::scan_exec::StorageScanExec;

/// Holds the rows that are sent to nodes.
pub(crate) const CONSUMER: &str = "broadcast joins";
/// Rows that joins may make of a row of the scan at most: a storage node makes all those of a batch in one go.
const ROWS_MADE_MAX: usize = 64;

/// One partition of a build side.
struct Partition {
    /// What was read of it.
    batches: Vec<RecordBatch>,
    /// What is left; `None` at its end.
    rest: Option<SendableRecordBatchStream>,
}

impl Partition {
    /// Reads what there is, and adds its bytes to `bytes`. Ready at the end, and once there are too many.
    fn poll(&mut self, context: &mut Context<'_>, bytes: &mut usize, bytes_max: usize) -> Poll<Result<()>> {
        while let Some(rest) = &mut self.rest {
            match rest.poll_next_unpin(context) {
                Poll::Ready(Some(Ok(batch))) => {
                    *bytes = bytes.saturating_add(get_record_batch_memory_size(&batch));
                    self.batches.push(batch);
                    if *bytes > bytes_max {
                        break;
                    }
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None) => self.rest = None,
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// All of it, from its start.
    fn stream(self, plan: &GatherExec) -> SendableRecordBatchStream {
        let schema = plan.schema();
        let rest = self.rest.unwrap_or_else(|| Box::pin(EmptyRecordBatchStream::new(Arc::clone(&schema))));
        Box::pin(RecordBatchStreamAdapter::new(schema, stream::iter(self.batches.into_iter().map(Ok)).chain(rest)))
    }
}

/// What was read of a build side; each partition is taken once.
#[derive(Default)]
pub(crate) struct Gathered {
    partitions: Mutex<Vec<Option<Partition>>>,
}

impl fmt::Debug for Gathered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gathered").field("partitions", &self.partitions.lock().len()).finish()
    }
}

/// Yields what its input yields, of which some may have been read before.
#[derive(Debug)]
pub(crate) struct GatherExec {
    input: Arc<dyn ExecutionPlan>,
    gathered: Arc<Gathered>,
}

impl GatherExec {
    pub(crate) fn new(input: Arc<dyn ExecutionPlan>) -> Self {
        Self { input, gathered: Arc::default() }
    }

    /// Reads the input to its end, if all of it has `bytes_max` bytes at most; nothing otherwise.
    async fn gather(&self, context: &Arc<TaskContext>, bytes_max: usize) -> Result<Option<RecordBatch>> {
        let partition =
            |index| Ok(Partition { batches: Vec::new(), rest: Some(self.input.execute(index, Arc::clone(context))?) });
        let count = self.input.output_partitioning().partition_count();
        let mut partitions = (0..count).map(partition).collect::<Result<Vec<_>>>()?;
        let mut bytes = 0;
        poll_fn(|context| {
            let mut all_ended = true;
            for partition in &mut partitions {
                match partition.poll(context, &mut bytes, bytes_max) {
                    Poll::Ready(Ok(())) if bytes > bytes_max => return Poll::Ready(Ok(())),
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => all_ended = false,
                }
            }
            if all_ended { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await?;
        let all = match bytes <= bytes_max {
            true => Some(concat_batches(&self.schema(), partitions.iter().flat_map(|partition| &partition.batches))?),
            false => None,
        };
        *self.gathered.partitions.lock() = partitions.into_iter().map(Some).collect();
        Ok(all)
    }
}

impl DisplayAs for GatherExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GatherExec")
    }
}

impl ExecutionPlan for GatherExec {
    fn name(&self) -> &str {
        "GatherExec"
    }

    has_properties_of!(input);

    passes_through!(input);

    has_no_expressions!();

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input = only_child(self.name(), children)?;
        Ok(Arc::new(Self { input, gathered: Arc::clone(&self.gathered) }))
    }

    fn reset_state(self: Arc<Self>) -> Result<Arc<dyn ExecutionPlan>> {
        // Nobody gathers for the next run.
        Ok(Arc::clone(&self.input))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let gathered = self.gathered.partitions.lock().get_mut(partition).and_then(Option::take);
        match gathered {
            Some(gathered) => Ok(gathered.stream(self)),
            None => self.input.execute(partition, context),
        }
    }
}

/// Where the joins run.
#[derive(Clone)]
enum Place {
    /// At the storage nodes: the scan yields the states.
    Storage(
        Arc<StorageScanExec>,
        #[expect(dead_code, reason = "held as long as the build sides are")] Arc<MemoryReservation>,
    ),
    /// Nowhere: what the joins leave of each segment is kept.
    Kept(Arc<KeptResult>),
    Coordinator,
}

type Decision = Shared<BoxFuture<'static, Result<Place, Arc<DataFusionError>>>>;

/// See the module's doc.
pub(crate) struct BroadcastExec {
    /// The partial aggregate, as it runs on the coordinator.
    local: Arc<dyn ExecutionPlan>,
    /// The same for storage nodes, without its build sides.
    reduction: Reduction,
    /// Of all build sides together.
    bytes_max: usize,
    /// Made by the first partition that runs.
    decision: Arc<Mutex<Option<Decision>>>,
    metrics: ExecutionPlanMetricsSet,
    properties: Arc<PlanProperties>,
}

impl fmt::Debug for BroadcastExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BroadcastExec").field("local", &self.local).finish_non_exhaustive()
    }
}

/// What the rows of the scan below `plan` go through, from the top: probe sides of joins.
fn spine(plan: &Arc<dyn ExecutionPlan>) -> impl Iterator<Item = &Arc<dyn ExecutionPlan>> {
    std::iter::successors(Some(plan), |node| match node.downcast_ref::<HashJoinExec>() {
        Some(join) => Some(join.right()),
        None => node.children().into_iter().next(),
    })
}

impl BroadcastExec {
    /// For `local`, a partial aggregate over joins over a scan, whose build sides are [`GatherExec`]s, and `reduction`,
    /// which does the same at storage nodes.
    pub(crate) fn new(local: Arc<dyn ExecutionPlan>, reduction: Reduction, bytes_max: usize) -> Self {
        let (below, schema) = (local.properties(), local.schema());
        let partitioning = Partitioning::UnknownPartitioning(local.output_partitioning().partition_count());
        let equivalence = EquivalenceProperties::new(schema);
        let properties = PlanProperties::new(equivalence, partitioning, below.emission_type, below.boundedness);
        let metrics = ExecutionPlanMetricsSet::new();
        Self { local, reduction, bytes_max, decision: Arc::default(), metrics, properties: Arc::new(properties) }
    }

    fn decision(&self, context: &Arc<TaskContext>) -> Decision {
        let mut decision = self.decision.lock();
        let made = decision.get_or_insert_with(|| {
            let (local, reduction) = (Arc::clone(&self.local), self.reduction.clone());
            let (bytes_max, metrics, context) = (self.bytes_max, self.metrics.clone(), Arc::clone(context));
            let decide = async move { decide(&local, reduction, bytes_max, &metrics, &context).await };
            decide.map(|place| place.map_err(Arc::new)).boxed().shared()
        });
        made.clone()
    }
}

async fn decide(
    local: &Arc<dyn ExecutionPlan>,
    reduction: Reduction,
    bytes_max: usize,
    metrics: &ExecutionPlanMetricsSet,
    context: &Arc<TaskContext>,
) -> Result<Place> {
    let reservation = MemoryConsumer::new(CONSUMER).register(context.memory_pool());
    let count = |name: &'static str, value: usize| MetricBuilder::new(metrics).global_counter(name).add(value);
    let gathers = spine(local).filter_map(|node| node.downcast_ref::<HashJoinExec>());
    let gathers: Vec<_> = gathers.filter_map(|join| Some((join, join.left().downcast_ref::<GatherExec>()?))).collect();
    let mut builds = Vec::new();
    if gathers.len() != reduction.build_schemas().len() {
        return Err(internal_datafusion_err!("a broadcast join lacks a place where its build side is gathered"));
    }
    let scan = spine(local).find_map(|node| node.downcast_ref::<StorageScanExec>());
    let scan = scan.ok_or_else(|| internal_datafusion_err!("a broadcast join has no scan below it"))?;
    let keeping = keeping(local, scan, &reduction, &gathers, context)?;
    if let Some(kept) = keeping.as_ref().and_then(|keeping| scan.kept_result(keeping, &reduction)) {
        return Ok(Place::Kept(kept));
    }
    let mut rows_made = 1_usize;
    // From the highest on, as when the joins run here: its keys cut down what is below.
    for (join, gather) in &gathers {
        let gathered = gather.gather(context, bytes_max.saturating_sub(reservation.size())).await?;
        if let Some(build) = &gathered {
            rows_made = rows_made.saturating_mul(partners_max(join, build)?);
        }
        let fits = |build: &RecordBatch| {
            rows_made <= ROWS_MADE_MAX && reservation.try_grow(get_record_batch_memory_size(build)).is_ok()
        };
        match gathered.filter(fits) {
            Some(build) => builds.push(build),
            None => {
                count("not_broadcast", 1);
                return Ok(Place::Coordinator);
            }
        }
    }
    builds.reverse();
    for (_, gather) in gathers {
        // They are held in one piece now.
        gather.gathered.partitions.lock().clear();
    }
    count("broadcast_rows", builds.iter().map(RecordBatch::num_rows).sum());
    count("broadcast_bytes", reservation.size());
    let scan = scan.with_joins(reduction.with_builds(builds)?, keeping)?;
    Ok(Place::Storage(Arc::new(scan), Arc::new(reservation)))
}

/// How what the joins leave of segments is kept in this run; `None` where it is not named by the plans of the build sides.
fn keeping(
    local: &Arc<dyn ExecutionPlan>,
    scan: &StorageScanExec,
    reduction: &Reduction,
    gathers: &[(&HashJoinExec, &GatherExec)],
    context: &TaskContext,
) -> Result<Option<Keeping>> {
    let config = context.session_config().options();
    let Some(store) = scan.result_store(config) else { return Ok(None) };
    let builds = reduction.build_schemas().into_iter().map(RecordBatch::new_empty).collect();
    let fragment = scan.fragment().with_reduction(reduction.with_builds(builds)?)?;
    let builds: Vec<_> = gathers.iter().map(|(_, gather)| &gather.input).collect();
    let key = ResultKey::of_joins(scan.table().id, &fragment, &builds, local, config);
    Ok(key.map(|key| scan.keeping_by(store, key, reduction, context)))
}

/// How many rows a join makes of a row of its probe side at most, but for rare collisions of hashes.
fn partners_max(join: &HashJoinExec, build: &RecordBatch) -> Result<usize> {
    if !matches!(join.join_type(), JoinType::Inner | JoinType::Right) {
        return Ok(1);
    }
    let keys = join.on().iter().map(|(key, _)| key.evaluate(build)?.into_array(build.num_rows()));
    let keys = keys.collect::<Result<Vec<_>>>()?;
    let mut hashes = vec![0; build.num_rows()];
    create_hashes(&keys, &RandomState::default(), &mut hashes)?;
    let mut counts: HashMap<u64, usize> = HashMap::new();
    hashes.into_iter().for_each(|hash| *counts.entry(hash).or_default() += 1);
    Ok(counts.into_values().max().unwrap_or(0).max(1))
}

impl DisplayAs for BroadcastExec {
    fn fmt_as(&self, format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joins = self.reduction.build_schemas().len();
        match format {
            DisplayFormatType::Default | DisplayFormatType::Verbose => {
                write!(f, "BroadcastExec: joins={joins}, build sides up to {} bytes", self.bytes_max)
            }
            DisplayFormatType::TreeRender => writeln!(f, "joins={joins}"),
        }
    }
}

impl ExecutionPlan for BroadcastExec {
    fn name(&self) -> &str {
        "BroadcastExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    passes_through!(local);

    has_no_expressions!();

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let local = only_child(self.name(), children)?;
        Ok(Arc::new(Self::new(local, self.reduction.clone(), self.bytes_max)))
    }

    fn reset_state(self: Arc<Self>) -> Result<Arc<dyn ExecutionPlan>> {
        // Nobody gathers for the next run: see `GatherExec`.
        Arc::clone(&self.local).reset_state()
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let decision = self.decision(&context);
        let (local, schema) = (Arc::clone(&self.local), self.schema());
        let empty = Arc::clone(&schema);
        let batches = async move {
            match decision.await.map_err(DataFusionError::Shared)? {
                Place::Storage(scan, _) if partition < scan.properties().output_partitioning().partition_count() => {
                    scan.execute(partition, context)
                }
                Place::Kept(kept) if partition == 0 => {
                    let kept = stream::iter(kept.batches.clone().into_iter().map(Ok));
                    Ok(Box::pin(RecordBatchStreamAdapter::new(empty, kept)) as SendableRecordBatchStream)
                }
                Place::Storage(..) | Place::Kept(_) => {
                    Ok(Box::pin(EmptyRecordBatchStream::new(empty)) as SendableRecordBatchStream)
                }
                Place::Coordinator => local.execute(partition, context),
            }
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, stream::once(batches).try_flatten())))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}
