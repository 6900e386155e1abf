//! The rule that lets joins with small build sides run at the storage nodes.

use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use aubade_proto::{Reduction, join_is_local, takes_ordered_rows_only};
use datafusion::common::Statistics;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion, TreeNodeRewriter};
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
use crate::refusal::{NotPushed, Reason, Refusal};
use crate::scan_exec::StorageScanExec;

/// Bytes that have to be saved, by the statistics, for joins to be moved.
const SAVED_BYTES_MIN: f64 = 256.0 * 1024.0;
/// What a value takes, about, once it is encoded: keys and numbers.
const VALUE_BYTES: f64 = 6.0;

/// Puts a [`BroadcastExec`] above each partial aggregate whose rows come from one scan by joins with what else there
/// is, where it is thought to save bytes: what is joined must be small, and the states fewer than the rows.
///
/// It comes after [`super::CollectJoinKeys`]: the keys of the joins cut the scan down wherever these run.
///
/// The scans of joins that stay say why.
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

    /// What takes the place of a partial aggregate over joins, or why these stay on the coordinator.
    fn broadcast(
        &self,
        aggregate: &AggregateExec,
        config: &ConfigOptions,
    ) -> Result<Result<Arc<dyn ExecutionPlan>, Refusal>> {
        let refused = |reason, text: &str| Ok(Err(Refusal::new(reason, text)));
        if *aggregate.mode() != AggregateMode::Partial {
            return Ok(Err(one_stage()));
        }
        let linear = matches!(aggregate.input_order_mode(), InputOrderMode::Linear);
        if !linear || aggregate.aggr_expr().iter().any(|function| takes_ordered_rows_only(function)) {
            return refused(Reason::OrderedAggregate, "the aggregate above it takes its rows in an order");
        }
        if aggregate.limit_options().is_some() {
            return refused(Reason::JoinInput, "the aggregate above it ends at a limit");
        }
        let spine = match spine(aggregate.input())? {
            Ok(spine) if spine.builds.is_empty() => return refused(Reason::Join, "the aggregate above it has no join"),
            Ok(spine) => spine,
            Err(refusal) => return Ok(Err(refusal)),
        };
        if partition_count(&spine.scan) > partition_count(aggregate) {
            return refused(Reason::JoinInput, "the aggregate above it has fewer partitions than the scan below it");
        }
        let refusal = match refuse_aggregate(&self.pushable, aggregate, false, config) {
            None => self.refuse_expressions(&spine.remote, config)?,
            refusal => refusal,
        };
        let refusal = match refusal {
            None if pushdown(config) == Pushdown::Auto => saves_little(aggregate, &spine, broadcast_bytes(config))?,
            refusal => refusal,
        };
        if let Some(refusal) = refusal {
            return Ok(Err(refusal));
        }
        let remote = AggregateExec::try_new(
            AggregateMode::Partial,
            aggregate.group_expr().clone(),
            aggregate.aggr_expr().to_vec(),
            aggregate.filter_expr().to_vec(),
            spine.remote,
            aggregate.input_schema(),
        )?;
        let reduction = match self.sent(remote, &spine.scan) {
            Ok(reduction) => reduction,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let aggregate: Arc<dyn ExecutionPlan> = Arc::new(aggregate.clone());
        let local = replace_children_if_necessary(aggregate, vec![spine.local])?;
        Ok(Ok(Arc::new(BroadcastExec::new(local, reduction, broadcast_bytes(config)))))
    }

    /// The reduction that storage nodes are sent, without its build sides, or why it cannot be sent.
    fn sent(&self, remote: AggregateExec, scan: &StorageScanExec) -> Result<Reduction, Refusal> {
        let no_wire_form = |error: aubade_proto::Error| Refusal::new(Reason::NoWireForm, error.message());
        let reduction = Reduction::try_from_plan(Arc::new(remote)).map_err(no_wire_form)?;
        let empty = reduction.build_schemas().into_iter().map(RecordBatch::new_empty).collect();
        let sent = reduction.with_builds(empty).and_then(|reduction| scan.fragment().with_reduction(reduction));
        self.pushable.check_reduction(&sent.map_err(no_wire_form)?)?;
        Ok(reduction)
    }

    fn refuse_expressions(&self, plan: &Arc<dyn ExecutionPlan>, config: &ConfigOptions) -> Result<Option<Refusal>> {
        let mut refused = None;
        plan.apply(|node| {
            node.apply_expressions(&mut |expression| {
                refused = refused.take().or_else(|| self.pushable.check_kinds(expression, config).err());
                Ok(if refused.is_none() { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
            })?;
            Ok(if refused.is_none() { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
        })?;
        Ok(refused)
    }
}

fn partition_count(plan: &dyn ExecutionPlan) -> usize {
    plan.properties().output_partitioning().partition_count()
}

/// Whether an operator above the states of an aggregate puts them into partitions of its own making, so that what is above
/// does not rely on how they came.
pub(super) fn spreads_states(node: &Arc<dyn ExecutionPlan>) -> bool {
    let by_hash = node
        .downcast_ref::<RepartitionExec>()
        .is_some_and(|spread| !spread.preserve_order() && matches!(spread.partitioning(), Partitioning::Hash(..)));
    by_hash || node.is::<CoalescePartitionsExec>()
}

/// What is between `node` and the scan whose rows come up to it, or why that is more than storage nodes run.
fn spine(node: &Arc<dyn ExecutionPlan>) -> Result<Result<Spine, Refusal>> {
    if let Some(scan) = node.downcast_ref::<StorageScanExec>() {
        let text = match scan.fragment().limit().is_some() {
            _ if scan.fragment().reduction().is_some() => "the scan below it yields states already",
            true => "the scan below it ends at a limit",
            false if scan.readers() > 1 => "the scan below it is read by several places",
            false => {
                let scan = scan.without_notes(Reason::Join);
                let remote = Arc::new(EmptyExec::new(scan.schema()));
                return Ok(Ok(Spine { local: Arc::new(scan.clone()), remote, scan, builds: Vec::new() }));
            }
        };
        return Ok(Err(Refusal::new(Reason::JoinInput, text)));
    }
    if let Some(join) = node.downcast_ref::<HashJoinExec>() {
        let remote = join.builder().reset_state().with_partition_mode(PartitionMode::CollectLeft);
        let below = match spine(join.right())? {
            Ok(below) => below,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let placeholder = Arc::new(EmptyExec::new(join.left().schema()));
        let remote = remote.with_new_children(vec![placeholder, below.remote])?.recompute_properties().build()?;
        if !join_is_local(&remote) {
            let text = format!("storage nodes cannot tell for a segment what a {} join yields", join.join_type());
            return Ok(Err(Refusal::new(Reason::JoinKind, text)));
        }
        let mut builds = below.builds;
        builds.push(Arc::clone(join.left()));
        let children = vec![Arc::new(GatherExec::new(Arc::clone(join.left()))) as Arc<dyn ExecutionPlan>, below.local];
        let local = replace_children_if_necessary(Arc::clone(node), children)?;
        return Ok(Ok(Spine { local, remote: Arc::new(remote), scan: below.scan, builds }));
    }
    let spreads = node.downcast_ref::<RepartitionExec>().is_some_and(|spread| !spread.preserve_order())
        || (node.is::<CoalescePartitionsExec>() && node.fetch().is_none())
        || node.is::<CooperativeExec>()
        || node.is::<UnorderedExec>();
    let maps = node.is::<ProjectionExec>() || (node.is::<FilterExec>() && node.fetch().is_none());
    let Some(input) = node.children().into_iter().next().filter(|_| spreads || maps) else {
        let reason = if is_join(node) { Reason::JoinKind } else { Reason::JoinInput };
        let text = format!("its rows go through {}, which storage nodes do not run", node.name());
        return Ok(Err(Refusal::new(reason, text)));
    };
    let below = match spine(input)? {
        Ok(below) => below,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let remote = match maps {
        true => replace_children_if_necessary(Arc::clone(node), vec![below.remote])?,
        false => below.remote,
    };
    let local = replace_children_if_necessary(Arc::clone(node), vec![below.local])?;
    Ok(Ok(Spine { local, remote, ..below }))
}

/// Why fewer bytes would not go over the wire, by the statistics: build sides to every node and states back, instead of
/// the rows that have a partner.
fn saves_little(aggregate: &AggregateExec, spine: &Spine, bytes_max: usize) -> Result<Option<Refusal>> {
    let statistics =
        |plan: &Arc<dyn ExecutionPlan>| StatisticsContext::new().compute(plan.as_ref(), &StatisticsArgs::new());
    let rows_of = |statistics: &Statistics| statistics.num_rows.get_value().map(|rows| *rows as f64);
    let width = |plan: &Arc<dyn ExecutionPlan>| plan.schema().fields().len() as f64 * VALUE_BYTES;
    let unknown = || {
        let text = "it is not known how many rows it has";
        Ok(Some(Refusal::new(Reason::JoinSavesLittle, text)))
    };
    let segments = spine.scan.kept_segments().len() as f64;
    let nodes = (spine.scan.snapshot().nodes.len() as f64).min(segments).max(1.0);
    let mut build_bytes = 0.0;
    for build in &spine.builds {
        let Some(rows) = rows_of(statistics(build)?.as_ref()) else { return unknown() };
        build_bytes += rows * width(build);
    }
    let joined = statistics(aggregate.input())?;
    let Some(joined_rows) = rows_of(&joined) else { return unknown() };
    let scan: Arc<dyn ExecutionPlan> = Arc::new(spine.scan.clone());
    let Some(scan_rows) = rows_of(statistics(&scan)?.as_ref()) else { return unknown() };
    let groups = match aggregate.group_expr().is_empty() {
        true => 1.0,
        false => group_count(aggregate.group_expr(), &joined).unwrap_or(joined_rows),
    };
    // Each segment has its own groups, as many as it has rows at most.
    let states = groups.min(joined_rows / segments.max(1.0)) * segments;
    let sent_instead = build_bytes * nodes + states * aggregate.schema().fields().len() as f64 * VALUE_BYTES;
    let bytes_of_rows = joined_rows.min(scan_rows) * width(&scan);
    let saved = bytes_of_rows - sent_instead;
    if saved > SAVED_BYTES_MIN && saved > sent_instead {
        return Ok(None);
    }
    Ok(Some(match build_bytes > bytes_max as f64 {
        true => {
            let text = format!(
                "what it hashes is thought to have {}, and aubade.broadcast_bytes is {}",
                size(build_bytes),
                size(bytes_max as f64)
            );
            Refusal::new(Reason::JoinBuildSide, text)
        }
        false => {
            let text = format!(
                "it would save too little: about {} of rows for {} of build sides and states",
                size(bytes_of_rows),
                size(sent_instead)
            );
            Refusal::new(Reason::JoinSavesLittle, text)
        }
    }))
}

/// Bytes for people.
fn size(bytes: f64) -> String {
    const KIB: f64 = 1024.0;
    match bytes {
        bytes if bytes < KIB => format!("{bytes:.0} bytes"),
        bytes if bytes < KIB * KIB => format!("{:.0} KiB", bytes / KIB),
        bytes => format!("{:.1} MiB", bytes / KIB / KIB),
    }
}

/// What is known of the joins below a node.
#[derive(Clone)]
enum Fate {
    /// They stay on the coordinator, and why.
    Stay(Refusal),
    /// The node is directly below the place where a build side is gathered, to be sent to storage nodes.
    Gathered,
}

/// Replaces aggregates over joins, and writes into the scans of joins that stay why they do.
struct Rewriter<'a> {
    rule: &'a BroadcastJoins,
    config: &'a ConfigOptions,
    /// Why no join can run at storage nodes.
    never: Option<Refusal>,
    /// Of the nodes from the root on, each with whether the aggregate below it was looked at.
    fates: Vec<(Fate, bool)>,
}

impl Rewriter<'_> {
    fn no_aggregate(&self) -> Fate {
        let no_aggregate = || Refusal::new(Reason::JoinWithoutAggregate, "no aggregate makes less of its rows");
        Fate::Stay(self.never.clone().unwrap_or_else(no_aggregate))
    }

    /// The scan with the reason for which the join that it says to be below stays.
    fn noted(&self, scan: &StorageScanExec) -> Option<StorageScanExec> {
        if !scan.not_pushed().iter().any(|note| note.refusal.reason == Reason::Join) {
            return None;
        }
        let scan = scan.without_notes(Reason::Join);
        match &self.fates.last()?.0 {
            Fate::Stay(refusal) => {
                Some(scan.with_note(NotPushed::new("join", refusal.within("runs on the coordinator: "))))
            }
            Fate::Gathered => Some(scan),
        }
    }
}

impl TreeNodeRewriter for Rewriter<'_> {
    type Node = Arc<dyn ExecutionPlan>;

    fn f_down(&mut self, node: Self::Node) -> Result<Transformed<Self::Node>> {
        let (fate, looked_at) = self.fates.last().cloned().unwrap_or_else(|| (self.no_aggregate(), false));
        if let Some(scan) = node.downcast_ref::<StorageScanExec>() {
            let noted = self.noted(scan);
            self.fates.push((fate, false));
            return Ok(noted.map_or_else(|| Transformed::no(node), |scan| Transformed::yes(Arc::new(scan) as _)));
        }
        let below = node.children().into_iter().next().filter(|_| spreads_states(&node) && self.never.is_none());
        if let Some(aggregate) = below.and_then(|below| below.downcast_ref::<AggregateExec>()) {
            return match self.rule.broadcast(aggregate, self.config)? {
                Ok(broadcast) => {
                    self.fates.push((self.no_aggregate(), true));
                    replace_children_if_necessary(node, vec![broadcast]).map(Transformed::yes)
                }
                Err(refusal) => {
                    self.fates.push((Fate::Stay(refusal), true));
                    Ok(Transformed::no(node))
                }
            };
        }
        let fate = match fate {
            _ if node.is::<GatherExec>() => Fate::Gathered,
            Fate::Gathered if is_join(&node) => self.no_aggregate(),
            fate if looked_at => fate,
            fate => match node.downcast_ref::<AggregateExec>().map(AggregateExec::mode) {
                None => fate,
                _ if self.never.is_some() => fate,
                Some(AggregateMode::Final | AggregateMode::FinalPartitioned) => self.no_aggregate(),
                Some(AggregateMode::Partial | AggregateMode::PartialReduce) => {
                    let text = "what is above its aggregate relies on how the rows come";
                    Fate::Stay(Refusal::new(Reason::JoinInput, text))
                }
                Some(AggregateMode::Single | AggregateMode::SinglePartitioned) => Fate::Stay(one_stage()),
            },
        };
        self.fates.push((fate, false));
        Ok(Transformed::no(node))
    }

    fn f_up(&mut self, node: Self::Node) -> Result<Transformed<Self::Node>> {
        self.fates.pop();
        Ok(Transformed::no(node))
    }
}

fn one_stage() -> Refusal {
    Refusal::new(Reason::JoinInput, "the aggregate above it has one stage")
}

/// Whether a node is a join of any kind.
fn is_join(node: &Arc<dyn ExecutionPlan>) -> bool {
    node.name().ends_with("JoinExec")
}

impl PhysicalOptimizerRule for BroadcastJoins {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let (mut runs_again, mut has_joins) = (false, false);
        plan.apply(|node| {
            runs_again |= node.is::<RecursiveQueryExec>();
            has_joins |= is_join(node);
            Ok(TreeNodeRecursion::Continue)
        })?;
        if pushdown(config) == Pushdown::Off || !has_joins {
            return Ok(plan);
        }
        let never = match runs_again {
            true => Some("a recursive query runs its joins several times"),
            false => (broadcast_bytes(config) == 0).then_some("aubade.broadcast_bytes is 0"),
        };
        let never = never.map(|text| Refusal::new(Reason::Join, text));
        let plan = plan.rewrite(&mut Rewriter { rule: self, config, never, fates: Vec::new() });
        plan.map(|plan| plan.data)
    }

    fn name(&self) -> &str {
        "BroadcastJoins"
    }

    fn schema_check(&self) -> bool {
        true
    }
}
