//! The rule that lets joins with small build sides run at the storage nodes.

use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use aubade_proto::{Reduction, join_is_local, takes_ordered_rows_only};
use datafusion::common::Statistics;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::joins::{HashJoinExec, PartitionMode};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::recursive_query::RecursiveQueryExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::statistics::{StatisticsArgs, StatisticsContext};
use datafusion::physical_plan::{ExecutionPlan, InputOrderMode, Partitioning};

use super::push_reduction::{group_count, refuse_aggregate};
use super::pushable::Pushable;
use super::unordered_grouping_sets::UnorderedExec;
use crate::broadcast::{BroadcastExec, GatherExec};
use crate::options::{Pushdown, broadcast_bytes, pushdown};
use crate::refusal::Reason;
use crate::scan_exec::StorageScanExec;

/// Bytes that have to be saved, by the statistics, for joins to be moved.
const SAVED_BYTES_MIN: f64 = 256.0 * 1024.0;
/// What a value takes, about, once it is encoded: keys and numbers.
const VALUE_BYTES: f64 = 6.0;

/// Puts a [`BroadcastExec`] above each partial aggregate whose rows come from one scan by joins with what else there
/// is, where it is thought to save bytes: what is joined must be small, and the states fewer than the rows.
///
/// It comes after [`super::CollectJoinKeys`]: the keys of the joins cut the scan down wherever these run.
#[derive(Debug)]
pub struct BroadcastJoins {
    pushable: Arc<Pushable>,
}

/// What is between a partial aggregate and a scan.
struct Spine {
    /// As it runs on the coordinator, with build sides that can be gathered.
    local: Arc<dyn ExecutionPlan>,
    /// As it runs at storage nodes, over placeholders.
    remote: Arc<dyn ExecutionPlan>,
    scan: StorageScanExec,
    builds: Vec<Arc<dyn ExecutionPlan>>,
}

impl BroadcastJoins {
    /// The rule with the functions that storage nodes know.
    pub fn new(pushable: Arc<Pushable>) -> Self {
        Self { pushable }
    }

    fn broadcast(&self, aggregate: &AggregateExec, config: &ConfigOptions) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let linear = matches!(aggregate.input_order_mode(), InputOrderMode::Linear);
        if *aggregate.mode() != AggregateMode::Partial || !linear || aggregate.limit_options().is_some() {
            return Ok(None);
        }
        if aggregate.aggr_expr().iter().any(|function| takes_ordered_rows_only(function)) {
            return Ok(None);
        }
        let Some(spine) = spine(aggregate.input())? else { return Ok(None) };
        if spine.builds.is_empty()
            || partition_count(&spine.scan) > partition_count(aggregate)
            || refuse_aggregate(&self.pushable, aggregate, false, config).is_some()
            || !self.is_pushable(&spine.remote, config)?
        {
            return Ok(None);
        }
        if pushdown(config) == Pushdown::Auto && !saves(aggregate, &spine)? {
            return Ok(None);
        }
        let remote = AggregateExec::try_new(
            AggregateMode::Partial,
            aggregate.group_expr().clone(),
            aggregate.aggr_expr().to_vec(),
            aggregate.filter_expr().to_vec(),
            spine.remote,
            aggregate.input_schema(),
        )?;
        let Ok(reduction) = Reduction::try_from_plan(Arc::new(remote)) else { return Ok(None) };
        let empty = reduction.build_schemas().into_iter().map(RecordBatch::new_empty).collect();
        let sent = reduction.with_builds(empty).and_then(|reduction| spine.scan.fragment().with_reduction(reduction));
        if !sent.is_ok_and(|sent| self.pushable.check_reduction(&sent).is_ok()) {
            return Ok(None);
        }
        let aggregate: Arc<dyn ExecutionPlan> = Arc::new(aggregate.clone());
        let local = replace_children_if_necessary(aggregate, vec![spine.local])?;
        Ok(Some(Arc::new(BroadcastExec::new(local, reduction, broadcast_bytes(config)))))
    }

    fn is_pushable(&self, plan: &Arc<dyn ExecutionPlan>, config: &ConfigOptions) -> Result<bool> {
        let mut pushable = true;
        plan.apply(|node| {
            node.apply_expressions(&mut |expression| {
                pushable &= self.pushable.check_kinds(expression, config).is_ok();
                Ok(if pushable { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
            })?;
            Ok(if pushable { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
        })?;
        Ok(pushable)
    }
}

fn partition_count(plan: &dyn ExecutionPlan) -> usize {
    plan.properties().output_partitioning().partition_count()
}

/// What is between `node` and the scan whose rows come up to it; `None` where that is more than joins, filters and
/// projections.
fn spine(node: &Arc<dyn ExecutionPlan>) -> Result<Option<Spine>> {
    if let Some(scan) = node.downcast_ref::<StorageScanExec>() {
        if scan.fragment().reduction().is_some() || scan.fragment().limit().is_some() || scan.readers() > 1 {
            return Ok(None);
        }
        let scan = scan.without_notes(Reason::Join);
        let remote = Arc::new(EmptyExec::new(scan.schema()));
        return Ok(Some(Spine { local: Arc::new(scan.clone()), remote, scan, builds: Vec::new() }));
    }
    if let Some(join) = node.downcast_ref::<HashJoinExec>() {
        let remote = join.builder().reset_state().with_partition_mode(PartitionMode::CollectLeft);
        let Some(below) = spine(join.right())? else { return Ok(None) };
        let placeholder = Arc::new(EmptyExec::new(join.left().schema()));
        let remote = remote.with_new_children(vec![placeholder, below.remote])?.recompute_properties().build()?;
        if !join_is_local(&remote) {
            return Ok(None);
        }
        let mut builds = below.builds;
        builds.push(Arc::clone(join.left()));
        let children = vec![Arc::new(GatherExec::new(Arc::clone(join.left()))) as Arc<dyn ExecutionPlan>, below.local];
        let local = replace_children_if_necessary(Arc::clone(node), children)?;
        return Ok(Some(Spine { local, remote: Arc::new(remote), scan: below.scan, builds }));
    }
    let spreads = node.downcast_ref::<RepartitionExec>().is_some_and(|spread| !spread.preserve_order())
        || (node.is::<CoalescePartitionsExec>() && node.fetch().is_none())
        || node.is::<CooperativeExec>()
        || node.is::<UnorderedExec>();
    let maps = node.is::<ProjectionExec>() || (node.is::<FilterExec>() && node.fetch().is_none());
    let Some(input) = node.children().into_iter().next().filter(|_| spreads || maps) else { return Ok(None) };
    let Some(below) = spine(input)? else { return Ok(None) };
    let remote = match maps {
        true => replace_children_if_necessary(Arc::clone(node), vec![below.remote])?,
        false => below.remote,
    };
    let local = replace_children_if_necessary(Arc::clone(node), vec![below.local])?;
    Ok(Some(Spine { local, remote, ..below }))
}

/// Whether fewer bytes would go over the wire, by the statistics: build sides to every node and states back, instead of
/// the rows that have a partner.
fn saves(aggregate: &AggregateExec, spine: &Spine) -> Result<bool> {
    let statistics =
        |plan: &Arc<dyn ExecutionPlan>| StatisticsContext::new().compute(plan.as_ref(), &StatisticsArgs::new());
    let rows_of = |statistics: &Statistics| statistics.num_rows.get_value().map(|rows| *rows as f64);
    let width = |plan: &Arc<dyn ExecutionPlan>| plan.schema().fields().len() as f64 * VALUE_BYTES;
    let segments = spine.scan.kept_segments().len() as f64;
    let nodes = (spine.scan.snapshot().nodes.len() as f64).min(segments).max(1.0);
    let mut build_bytes = 0.0;
    for build in &spine.builds {
        let Some(rows) = rows_of(statistics(build)?.as_ref()) else { return Ok(false) };
        build_bytes += rows * width(build);
    }
    let joined = statistics(aggregate.input())?;
    let Some(joined_rows) = rows_of(&joined) else { return Ok(false) };
    let scan: Arc<dyn ExecutionPlan> = Arc::new(spine.scan.clone());
    let Some(scan_rows) = rows_of(statistics(&scan)?.as_ref()) else { return Ok(false) };
    let groups = match aggregate.group_expr().is_empty() {
        true => 1.0,
        false => group_count(aggregate.group_expr(), &joined).unwrap_or(joined_rows),
    };
    // Each segment has its own groups, as many as it has rows at most.
    let states = groups.min(joined_rows / segments.max(1.0)) * segments;
    let sent_instead = build_bytes * nodes + states * aggregate.schema().fields().len() as f64 * VALUE_BYTES;
    let saved = joined_rows.min(scan_rows) * width(&scan) - sent_instead;
    Ok(saved > SAVED_BYTES_MIN && saved > sent_instead)
}

impl PhysicalOptimizerRule for BroadcastJoins {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let mut runs_again = false;
        plan.apply(|node| {
            runs_again |= node.is::<RecursiveQueryExec>();
            Ok(TreeNodeRecursion::Continue)
        })?;
        if pushdown(config) == Pushdown::Off || broadcast_bytes(config) == 0 || runs_again {
            return Ok(plan);
        }
        let plan = plan.transform_down(|node| {
            // What is above must not rely on how the rows are partitioned.
            let spreads = node.downcast_ref::<RepartitionExec>().is_some_and(|spread| {
                !spread.preserve_order() && matches!(spread.partitioning(), Partitioning::Hash(..))
            });
            if !spreads && !node.is::<CoalescePartitionsExec>() {
                return Ok(Transformed::no(node));
            }
            let aggregate = node.children().into_iter().next().and_then(|child| child.downcast_ref::<AggregateExec>());
            match aggregate.map(|aggregate| self.broadcast(aggregate, config)).transpose()?.flatten() {
                Some(broadcast) => replace_children_if_necessary(node, vec![broadcast]).map(Transformed::yes),
                None => Ok(Transformed::no(node)),
            }
        });
        plan.map(|plan| plan.data)
    }

    fn name(&self) -> &str {
        "BroadcastJoins"
    }

    fn schema_check(&self) -> bool {
        true
    }
}
