//! Physical plans that run many times: kept without the state of a run, and made into a tree of its own for each.
//!
//! Operators hold what a run finds out: counters, the build side of a join, bounds that become known. So a plan is kept
//! as it was before [`crate::pipeline::last_rules`], which link operators with one another, and never runs itself. For a
//! run every operator is made anew, and these rules are applied to the copy.

use std::sync::{Arc, OnceLock};

use aubade_catalog::Snapshot;
use aubade_catalog::snapshot::{Relation, Table};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::joins::{CrossJoinExec, HashJoinExec, NestedLoopJoinExec, SortMergeJoinExec};
use datafusion::physical_plan::limit::{GlobalLimitExec, LocalLimitExec};
use datafusion::physical_plan::placeholder_row::PlaceholderRowExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::scalar_subquery::ScalarSubqueryExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::union::{InterleaveExec, UnionExec};
use datafusion::physical_plan::windows::{BoundedWindowAggExec, WindowAggExec};

use crate::access::TableAccess;
use crate::pipeline::{apply_rules, linking_rules};
use crate::rewrite::unordered_grouping_sets::UnorderedExec;
use crate::scan_exec::StorageScanExec;

/// See the module's doc. It keeps no snapshot and nobody who runs scans alive.
#[derive(Debug)]
pub struct PlanTemplate {
    plan: Arc<dyn ExecutionPlan>,
    /// The tables whose segments and statistics it was planned for.
    tables: Vec<Arc<Table>>,
    is_exclusive: bool,
    /// Those of [`linking_rules`] that changed the first copy, and how many nodes there were: joins are sent to nodes by
    /// their number. With as many nodes the others change none, since all copies are over the same segments, and with the
    /// same settings.
    rules: OnceLock<(usize, Vec<Arc<dyn PhysicalOptimizerRule + Send + Sync>>)>,
}

impl PlanTemplate {
    /// The template of a plan that [`crate::pipeline::first_rules`] have made of a query over `tables`; `None` where an
    /// operator is not known to start anew. The plan may scan none of these tables, and hold what their statistics say.
    ///
    /// # Errors
    /// When an operator cannot be made again.
    pub fn try_new(plan: &Arc<dyn ExecutionPlan>, tables: Vec<Arc<Table>>) -> Result<Option<Self>> {
        let (mut known, mut is_exclusive) = (true, false);
        plan.apply(|node| {
            known &= starts_anew(node.as_ref());
            // The results of its subqueries are in a place that the expressions of all copies share.
            is_exclusive |= node.is::<ScalarSubqueryExec>();
            Ok(if known { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
        })?;
        if !known {
            return Ok(None);
        }
        let detached = Arc::clone(plan).transform_up(|node| {
            // The plan that it is made of will run: nothing of it may be held here, such as the build side of a join.
            match node.downcast_ref::<StorageScanExec>() {
                Some(scan) => Ok(Transformed::yes(Arc::new(scan.detached()) as Arc<dyn ExecutionPlan>)),
                None => make_anew(node).map(Transformed::yes),
            }
        })?;
        Ok(Some(Self { plan: detached.data, tables, is_exclusive, rules: OnceLock::new() }))
    }

    /// Whether only one copy may run at a time, and the next one only after that has ended as it should.
    pub fn is_exclusive(&self) -> bool {
        self.is_exclusive
    }

    /// Whether the tables have the same segments in `snapshot` as those that it was planned for.
    pub fn fits(&self, snapshot: &Snapshot) -> bool {
        self.tables.iter().all(|table| match snapshot.relations.get(&table.name) {
            Some(Relation::Table(current)) => Arc::ptr_eq(current, table),
            _ => false,
        })
    }

    /// A plan of its own for one run over `snapshot`, which it has to fit.
    ///
    /// # Errors
    /// When an operator cannot be made again.
    pub fn instantiate(
        &self,
        snapshot: &Arc<Snapshot>,
        access: &Arc<dyn TableAccess>,
        config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let fresh = Arc::clone(&self.plan).transform_up(|node| {
            if let Some(scan) = node.downcast_ref::<StorageScanExec>() {
                let scan: Arc<dyn ExecutionPlan> = Arc::new(scan.attached(snapshot, access));
                return Ok(Transformed::yes(scan));
            }
            make_anew(node).map(Transformed::yes)
        })?;
        let nodes = snapshot.nodes.len();
        match self.rules.get() {
            Some((with, rules)) if *with == nodes => return apply_rules(rules, fresh.data, config),
            Some(_) => return apply_rules(linking_rules(), fresh.data, config),
            None => {}
        }
        let (mut plan, mut rules) = (fresh.data, Vec::new());
        for rule in linking_rules() {
            let before = Arc::clone(&plan);
            plan = rule.optimize(plan, config)?;
            if !Arc::ptr_eq(&before, &plan) {
                rules.push(Arc::clone(rule));
            }
        }
        // Of two copies that are made at the same time both find the same.
        let _ = self.rules.set((nodes, rules));
        Ok(plan)
    }
}

/// Whether [`make_anew`] gives an operator that shares no state with the one that it is made of.
fn starts_anew(node: &dyn ExecutionPlan) -> bool {
    node.is::<StorageScanExec>()
        || node.is::<AggregateExec>()
        || node.is::<BoundedWindowAggExec>()
        || node.is::<CoalescePartitionsExec>()
        || node.is::<CooperativeExec>()
        || node.is::<CrossJoinExec>()
        || node.is::<EmptyExec>()
        || node.is::<FilterExec>()
        || node.is::<GlobalLimitExec>()
        || node.is::<HashJoinExec>()
        || node.is::<InterleaveExec>()
        || node.is::<LocalLimitExec>()
        || node.is::<NestedLoopJoinExec>()
        || node.is::<PlaceholderRowExec>()
        || node.is::<ProjectionExec>()
        || node.is::<RepartitionExec>()
        || node.is::<ScalarSubqueryExec>()
        || node.is::<SortExec>()
        || node.is::<SortMergeJoinExec>()
        || node.is::<SortPreservingMergeExec>()
        || node.is::<UnionExec>()
        || node.is::<UnorderedExec>()
        || node.is::<WindowAggExec>()
}

fn make_anew(node: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    if let Some(sort) = node.downcast_ref::<SortExec>()
        && sort.fetch().is_none()
    {
        // Resetting gives it a bound, as if it kept only its first rows.
        let fresh = node.clone().reset_state()?;
        let unbounded = fresh.downcast_ref::<SortExec>().map(|sort| sort.with_fetch(None));
        return Ok(unbounded.map_or(fresh, |sort| Arc::new(sort)));
    }
    let Some(aggregate) = node.downcast_ref::<AggregateExec>() else { return node.reset_state() };
    if aggregate.dynamic_expressions_produced().is_empty() {
        return node.reset_state();
    }
    // A copy would share the bound of its minimum or maximum, which rules out the very row that another run needs.
    let fresh = AggregateExec::try_new(
        *aggregate.mode(),
        Arc::new(aggregate.group_expr().clone()),
        aggregate.aggr_expr().to_vec(),
        aggregate.filter_expr().to_vec(),
        Arc::clone(aggregate.input()),
        aggregate.input_schema(),
    )?;
    Ok(Arc::new(fresh.with_new_limit_options(aggregate.limit_options())))
}
