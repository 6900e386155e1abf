//! Physical plans that run many times: kept without the state of a run, and made into a tree of its own for each.
//!
//! Operators hold what a run finds out: counters, the build side of a join, bounds that become known. So a plan is kept
//! as it was before [`crate::pipeline::last_rules`], which link operators with one another, and never runs itself. For a
//! run every operator is made anew, and these rules are applied to the copy.

use std::sync::{Arc, OnceLock};

use aubade_catalog::Snapshot;
use aubade_catalog::snapshot::{Relation, Table};
use datafusion::common::config::ConfigOptions;
use datafusion::common::internal_datafusion_err;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, ReplaceChildrenOptions};
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::joins::utils::JoinFilter;
use datafusion::physical_plan::joins::{CrossJoinExec, HashJoinExec, NestedLoopJoinExec, SortMergeJoinExec};
use datafusion::physical_plan::limit::{GlobalLimitExec, LocalLimitExec};
use datafusion::physical_plan::placeholder_row::PlaceholderRowExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::scalar_subquery::{ScalarSubqueryExec, ScalarSubqueryLink};
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::union::{InterleaveExec, UnionExec};
use datafusion::physical_plan::windows::{BoundedWindowAggExec, WindowAggExec};

use crate::access::TableAccess;
use crate::pipeline::{Rule, apply_rules, is_check, last_rules, linking_rules};
use crate::rewrite::unordered_grouping_sets::UnorderedExec;
use crate::scan_exec::StorageScanExec;
use crate::subquery_results::{self, Places};

/// See the module's doc. It keeps no snapshot and nobody who runs scans alive.
#[derive(Debug)]
pub struct PlanTemplate {
    plan: Arc<dyn ExecutionPlan>,
    /// The tables whose segments and statistics it was planned for.
    tables: Vec<Arc<Table>>,
    is_exclusive: bool,
    /// Those of [`linking_rules`] that changed the plan, and how many nodes there were: joins are sent to nodes by their
    /// number. With as many nodes the others change no copy, since all are over the same segments, and with the same
    /// settings.
    rules: OnceLock<(usize, Vec<Rule>)>,
}

impl PlanTemplate {
    /// The template of a plan that [`crate::pipeline::first_rules`] have made of a query over `tables`; `None` where an
    /// operator is not known to start anew. The plan may scan none of these tables, and hold what their statistics say.
    ///
    /// # Errors
    /// When an operator cannot be made again.
    pub fn try_new(plan: &Arc<dyn ExecutionPlan>, tables: Vec<Arc<Table>>) -> Result<Option<Self>> {
        let mut known = true;
        plan.apply(|node| {
            known &= starts_anew(node.as_ref());
            Ok(if known { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
        })?;
        if !known {
            return Ok(None);
        }
        let is_exclusive = subquery_results::are_shared(plan)?;
        // The plan that it is made of will run: nothing of it may be held here, such as the build side of a join.
        let plan = Copying::new(&mut |scan| Ok(scan.detached()), &mut as_it_is, is_exclusive).copy(plan)?;
        Ok(Some(Self { plan, tables, is_exclusive, rules: OnceLock::new() }))
    }

    /// Makes the plan that it was made of ready to run over `snapshot`, as [`crate::pipeline::finish_plan`] does, and takes
    /// note of what that takes.
    ///
    /// # Errors
    /// When a rule fails.
    pub fn finish(
        &self,
        mut plan: Arc<dyn ExecutionPlan>,
        snapshot: &Snapshot,
        config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let mut needed = Vec::new();
        for rule in last_rules() {
            let before = Arc::clone(&plan);
            plan = rule.optimize(plan, config)?;
            if !is_check(rule) && !Arc::ptr_eq(&before, &plan) {
                needed.push(Arc::clone(rule));
            }
        }
        // It is made ready once.
        let _ = self.rules.set((snapshot.nodes.len(), needed));
        Ok(plan)
    }

    /// Whether only one copy may run at a time, and the next one only after that has ended as it should: its copies share
    /// the results of its subqueries.
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
        self.link(self.copy(&mut |scan| Ok(scan.attached(snapshot, access)), &mut as_it_is)?, snapshot, config)
    }

    /// A copy that is not linked yet, with what `scan` makes of its scans, and `filter` of the filters of hash joins: from
    /// left to right, and those of a join before those below it.
    ///
    /// # Errors
    /// When an operator cannot be made again.
    pub(crate) fn copy(&self, scan: OfScan<'_>, filter: OfFilter<'_>) -> Result<Arc<dyn ExecutionPlan>> {
        Copying::new(scan, filter, self.is_exclusive).copy(&self.plan)
    }

    /// Makes a copy ready to run over `snapshot`.
    ///
    /// # Errors
    /// When a rule fails.
    pub(crate) fn link(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        snapshot: &Snapshot,
        config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let rules = self.rules.get().filter(|(nodes, _)| *nodes == snapshot.nodes.len());
        apply_rules(rules.map_or(linking_rules(), |(_, rules)| rules), plan, config)
    }

    /// Whether another plan is over the same segments of the same tables.
    pub(crate) fn is_over_same(&self, other: &Self) -> bool {
        self.tables.len() == other.tables.len()
            && self.tables.iter().zip(&other.tables).all(|(one, other)| Arc::ptr_eq(one, other))
    }

    /// The plan, whose scans have no snapshot.
    pub(crate) fn plan(&self) -> &Arc<dyn ExecutionPlan> {
        &self.plan
    }
}

/// Makes the scan of a copy.
pub(crate) type OfScan<'a> = &'a mut dyn FnMut(&StorageScanExec) -> Result<StorageScanExec>;
/// Makes the filter of a join of a copy.
pub(crate) type OfFilter<'a> = &'a mut dyn FnMut(&JoinFilter) -> Result<JoinFilter>;

fn as_it_is(filter: &JoinFilter) -> Result<JoinFilter> {
    Ok(filter.clone())
}

/// Makes a plan of which every operator is made anew.
struct Copying<'a> {
    scan: OfScan<'a>,
    filter: OfFilter<'a>,
    shares_results: bool,
    places: Places,
}

impl<'a> Copying<'a> {
    fn new(scan: OfScan<'a>, filter: OfFilter<'a>, shares_results: bool) -> Self {
        Self { scan, filter, shares_results, places: Places::default() }
    }

    #[recursive::recursive]
    fn copy(&mut self, plan: &Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
        if let Some(leaf) = plan.downcast_ref() {
            return Ok(Arc::new(self.places.moved_scan((self.scan)(leaf)?)?));
        }
        if let Some(subqueries) = plan.downcast_ref::<ScalarSubqueryExec>()
            && !self.shares_results
        {
            return self.copy_subqueries(subqueries);
        }
        if let Some(join) = plan.downcast_ref::<HashJoinExec>()
            && let Some(filter) = join.filter()
        {
            let filter = (self.filter)(filter)?;
            let builder = join.builder().with_new_children(self.copies_below(plan)?)?;
            return builder.with_filter(Some(filter)).reset_state().build_exec();
        }
        let children = self.copies_below(plan)?;
        match self.places.moved_operator(plan, &children)? {
            Some(moved) => Ok(moved),
            None => make_anew(plan, children),
        }
    }

    fn copies_below(&mut self, plan: &Arc<dyn ExecutionPlan>) -> Result<Vec<Arc<dyn ExecutionPlan>>> {
        plan.children().into_iter().map(|child| self.copy(child)).collect()
    }

    /// With a place of its own for the results.
    fn copy_subqueries(&mut self, node: &ScalarSubqueryExec) -> Result<Arc<dyn ExecutionPlan>> {
        let results = self.places.enter(node);
        let input = self.copy(node.input());
        self.places.leave();
        let plans = node.subqueries().iter();
        let plans =
            plans.map(|subquery| Ok(ScalarSubqueryLink { plan: self.copy(&subquery.plan)?, ..subquery.clone() }));
        Ok(Arc::new(ScalarSubqueryExec::new(input?, plans.collect::<Result<_>>()?, results)))
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

/// An operator without the state of a run over copies of its children, which have the properties of these.
pub(crate) fn make_anew(
    node: &Arc<dyn ExecutionPlan>,
    children: Vec<Arc<dyn ExecutionPlan>>,
) -> Result<Arc<dyn ExecutionPlan>> {
    if let Some(join) = node.downcast_ref::<HashJoinExec>() {
        return join.builder().with_new_children(children)?.reset_state().build_exec();
    }
    if let Some(aggregate) = node.downcast_ref::<AggregateExec>()
        && !aggregate.dynamic_expressions_produced().is_empty()
    {
        // A copy would share the bound of its minimum or maximum, which rules out the very row that another run needs.
        let input =
            children.into_iter().next().ok_or_else(|| internal_datafusion_err!("an aggregate has one child"))?;
        let fresh = AggregateExec::try_new(
            *aggregate.mode(),
            Arc::new(aggregate.group_expr().clone()),
            aggregate.aggr_expr().to_vec(),
            aggregate.filter_expr().to_vec(),
            input,
            aggregate.input_schema(),
        )?;
        return Ok(Arc::new(fresh.with_new_limit_options(aggregate.limit_options())));
    }
    let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Keep);
    let fresh = Arc::clone(node).replace_children(children, options)?;
    if fresh.is::<ScalarSubqueryExec>() {
        return fresh.reset_state();
    }
    let Some(sort) = fresh.downcast_ref::<SortExec>() else { return Ok(fresh) };
    let is_bounded = sort.fetch().is_some();
    let fresh = fresh.reset_state()?;
    if is_bounded {
        return Ok(fresh);
    }
    // Resetting gives it a bound, as if it kept only its first rows.
    let unbounded = fresh.downcast_ref::<SortExec>().map(|sort| sort.with_fetch(None));
    Ok(unbounded.map_or(fresh, |sort| Arc::new(sort)))
}
