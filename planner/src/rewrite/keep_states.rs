//! The rule that lets the coordinator keep what partial aggregates make of joins, and the first rows of orders.

use std::sync::Arc;

use aubade_proto::ReductionKind;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::recursive_query::RecursiveQueryExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::{ExecutionPlan, InputOrderMode};

use super::broadcast_joins::spreads_states;
use crate::kept_states::KeptStatesExec;
use crate::options::{Pushdown, pushdown};
use crate::scan_exec::StorageScanExec;

/// Puts a [`KeptStatesExec`] above each partial aggregate of the coordinator that no other one is above, and tells scans
/// that a bound cuts down whether what they leave can be kept.
///
/// It comes after the rules that move aggregates and joins to the storage nodes, whose results are kept by themselves, and
/// after [`super::CodeGroupKeys`]: codes mean something in one run only, and what has any has no name.
#[derive(Debug)]
pub struct KeepStates;

impl PhysicalOptimizerRule for KeepStates {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        if pushdown(config) == Pushdown::Off {
            return Ok(plan);
        }
        let (mut runs_again, mut keeps) = (false, false);
        plan.apply(|node| {
            runs_again |= node.is::<RecursiveQueryExec>();
            let scan = node.downcast_ref::<StorageScanExec>();
            keeps |= scan.is_some_and(|scan| scan.result_store(config).is_some());
            Ok(TreeNodeRecursion::Continue)
        })?;
        if runs_again || !keeps {
            return Ok(plan);
        }
        let plan = plan.transform_down(|node| {
            let below = node.children().into_iter().next().filter(|_| spreads_states(&node));
            let Some(partial) = below.filter(|below| is_kept(below)) else { return Ok(Transformed::no(node)) };
            let kept: Arc<dyn ExecutionPlan> = Arc::new(KeptStatesExec::new(Arc::clone(partial)));
            let node = replace_children_if_necessary(Arc::clone(&node), vec![kept])?;
            // What is below is known wherever this is.
            Ok(Transformed::new(node, true, TreeNodeRecursion::Jump))
        });
        let plan = plan?.data.transform_up(|node| match scan_with_own_bound(&node) {
            Some(scan) => with_scan(node, &scan).map(Transformed::yes),
            None => Ok(Transformed::no(node)),
        });
        plan.map(|plan| plan.data)
    }

    fn name(&self) -> &str {
        "KeepStates"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// The scan below a sort of first rows, where the bound that the sort tells it is of rows of this scan alone: of rows that
/// another scan had a say in, another run might want others.
fn scan_with_own_bound(node: &Arc<dyn ExecutionPlan>) -> Option<StorageScanExec> {
    let sort = node.downcast_ref::<SortExec>().filter(|sort| sort.fetch().is_some())?;
    let ids: Vec<u64> = sort.dynamic_expressions_produced().iter().filter_map(|bound| bound.expression_id()).collect();
    let (mut input, mut only_moves) = (sort.input(), true);
    while let [below] = input.children().as_slice() {
        only_moves &= moves_rows(input);
        input = below;
    }
    let scan = input.downcast_ref::<StorageScanExec>()?;
    let is_own = scan.runtime_filters().iter().all(|filter| filter.comes_from(&[], &ids));
    if !is_own || scan.runtime_filters().is_empty() {
        return None;
    }
    match scan.fragment().reduction()?.kind() {
        // The final stage of the aggregate has all states before the sort sees a row: the bound comes too late.
        ReductionKind::Aggregate => Some(scan.without_runtime_filters()),
        ReductionKind::TopK => only_moves.then(|| scan.with_own_bound()),
    }
}

/// Whether all rows of the input of an operator come out of it, and no others.
fn moves_rows(node: &Arc<dyn ExecutionPlan>) -> bool {
    let moves = node.is::<ProjectionExec>()
        || node.is::<RepartitionExec>()
        || node.is::<CoalescePartitionsExec>()
        || node.is::<CooperativeExec>();
    moves && node.fetch().is_none()
}

/// Operators with one input each down to a scan, with another scan.
fn with_scan(node: Arc<dyn ExecutionPlan>, scan: &StorageScanExec) -> Result<Arc<dyn ExecutionPlan>> {
    let Some(input) = node.children().into_iter().next().cloned() else { return Ok(Arc::new(scan.clone())) };
    replace_children_if_necessary(node, vec![with_scan(input, scan)?])
}

fn is_kept(node: &Arc<dyn ExecutionPlan>) -> bool {
    node.downcast_ref::<AggregateExec>().is_some_and(|aggregate| {
        *aggregate.mode() == AggregateMode::Partial
            && aggregate.limit_options().is_none()
            && matches!(aggregate.input_order_mode(), InputOrderMode::Linear)
    })
}
