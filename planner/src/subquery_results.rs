//! Copies of plans with scalar subqueries, each with results of its own.
//!
//! `ScalarSubqueryExec` puts the results of its subqueries into a place from which the expressions of its input read
//! them. A copy that may run beside others needs a place of its own, and expressions that read from there. They can be
//! given another place where they are in scans, filters and projections, which is where they nearly always are.

use std::sync::Arc;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::logical_expr::physical_planning_context::{ScalarSubqueryResults, SubqueryIndex};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::scalar_subquery::ScalarSubqueryExpr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::filter::{FilterExec, FilterExecBuilder};
use datafusion::physical_plan::projection::{ProjectionExec, ProjectionExpr};
use datafusion::physical_plan::scalar_subquery::ScalarSubqueryExec;
use datafusion::physical_plan::windows::{BoundedWindowAggExec, WindowAggExec};

use crate::scan_exec::StorageScanExec;
use crate::subquery_values::{expressions, map_subqueries, needs_subquery, type_of};

/// Whether copies of a plan share results of its subqueries.
///
/// # Errors
/// When the plan cannot be walked.
pub(crate) fn are_shared(plan: &Arc<dyn ExecutionPlan>) -> Result<bool> {
    let (mut has_subqueries, mut has_others) = (false, false);
    plan.apply(|node| {
        has_subqueries |= node.is::<ScalarSubqueryExec>();
        // Windows do not tell of the filters of their functions.
        has_others |= node.is::<WindowAggExec>() || node.is::<BoundedWindowAggExec>();
        if !node.is::<StorageScanExec>() && !node.is::<FilterExec>() && !node.is::<ProjectionExec>() {
            node.apply_expressions(&mut |expression| {
                has_others |= needs_subquery(expression);
                Ok(TreeNodeRecursion::Continue)
            })?;
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(has_subqueries && has_others)
}

/// Places for results, and those of a copy in their stead, while the plans are copied whose expressions read them.
#[derive(Default)]
pub(crate) struct Places(Vec<(ScalarSubqueryResults, ScalarSubqueryResults)>);

impl Places {
    /// A place for the results of a copy of `node`, from which the expressions of its input read until [`Places::leave`].
    pub(crate) fn enter(&mut self, node: &ScalarSubqueryExec) -> ScalarSubqueryResults {
        let own = ScalarSubqueryResults::new(node.subqueries().len());
        self.0.push((node.results().clone(), own.clone()));
        own
    }

    /// What is copied next is no more within the input that was entered last.
    pub(crate) fn leave(&mut self) {
        self.0.pop();
    }

    fn moved(&self, expression: &Arc<dyn PhysicalExpr>) -> Result<Arc<dyn PhysicalExpr>> {
        map_subqueries(expression, &|subquery| {
            let own = self.0.iter().find(|(place, _)| place == subquery.results()).map(|(_, own)| own.clone());
            own.map(|own| with_results(subquery, own)).transpose()
        })
    }

    /// A scan whose expressions read from the places of the copy.
    pub(crate) fn moved_scan(&self, scan: StorageScanExec) -> Result<StorageScanExec> {
        if self.0.is_empty() { Ok(scan) } else { scan.with_other_subqueries(|expression| self.moved(expression)) }
    }

    /// An operator over `children` whose expressions read from the places of the copy; `None` where it has none that
    /// read any.
    pub(crate) fn moved_operator(
        &self,
        node: &Arc<dyn ExecutionPlan>,
        children: &[Arc<dyn ExecutionPlan>],
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let [input] = children else { return Ok(None) };
        if self.0.is_empty() {
            return Ok(None);
        }
        if let Some(filter) = node.downcast_ref::<FilterExec>().filter(|filter| needs_subquery(filter.predicate())) {
            let predicate = self.moved(filter.predicate())?;
            let moved = FilterExecBuilder::from(filter).with_predicate(predicate).with_input(Arc::clone(input));
            return Ok(Some(Arc::new(moved.build()?)));
        }
        let Some(projection) = node.downcast_ref::<ProjectionExec>() else { return Ok(None) };
        if !projection.expr().iter().any(|output| needs_subquery(&output.expr)) {
            return Ok(None);
        }
        let outputs = projection
            .expr()
            .iter()
            .map(|output| Ok(ProjectionExpr { expr: self.moved(&output.expr)?, alias: output.alias.clone() }));
        let outputs = outputs.collect::<Result<Vec<_>>>()?;
        let moved = ProjectionExec::try_new_with_schema_metadata(outputs, Arc::clone(input), &projection.schema())?;
        Ok(Some(Arc::new(moved)))
    }
}

#[expect(deprecated, reason = "there is no other way to learn which of the results it reads")]
fn index(subquery: &ScalarSubqueryExpr) -> SubqueryIndex {
    subquery.index()
}

fn with_results(subquery: &ScalarSubqueryExpr, results: ScalarSubqueryResults) -> Result<Arc<dyn PhysicalExpr>> {
    let (data_type, nullable) = type_of(subquery)?;
    Ok(Arc::new(ScalarSubqueryExpr::new(data_type, nullable, index(subquery), results)))
}

/// The places of a plan, by which expressions of copies of it can be compared.
pub(crate) struct Results(Vec<ScalarSubqueryResults>);

impl Results {
    /// Of a plan, from the top and from left to right.
    pub(crate) fn of(plan: &Arc<dyn ExecutionPlan>) -> Result<Self> {
        let mut places = Vec::new();
        plan.apply(|node| {
            places.extend(node.downcast_ref::<ScalarSubqueryExec>().map(|node| node.results().clone()));
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(Self(places))
    }

    /// An expression that names results by the number of their place: only to be compared with others.
    pub(crate) fn comparable(&self, expression: &Arc<dyn PhysicalExpr>) -> Result<Arc<dyn PhysicalExpr>> {
        map_subqueries(expression, &|subquery| {
            let place = self.0.iter().position(|place| place == subquery.results());
            let name = format!("result {} of {place:?}", index(subquery).as_usize());
            Ok(Some(Arc::new(Column::new(&name, usize::MAX)) as Arc<dyn PhysicalExpr>))
        })
    }

    /// All expressions of a plan that need results, with the operators that they are in.
    pub(crate) fn named_in(&self, plan: &Arc<dyn ExecutionPlan>) -> Result<Vec<(usize, Arc<dyn PhysicalExpr>)>> {
        let (mut position, mut all) = (0, Vec::new());
        plan.apply(|node| {
            position += 1;
            let mut note = |expression: &Arc<dyn PhysicalExpr>| {
                if needs_subquery(expression) {
                    all.push((position, self.comparable(expression)?));
                }
                Ok(TreeNodeRecursion::Continue)
            };
            match node.downcast_ref::<StorageScanExec>() {
                Some(scan) => {
                    expressions(scan.fragment()).iter().try_for_each(|expression| note(expression).map(|_| ()))?
                }
                None => {
                    node.apply_expressions(&mut note)?;
                }
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(all)
    }
}
