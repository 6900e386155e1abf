//! The rule that lets storage nodes leave out groups that a filter above the aggregation would leave out.

use std::sync::Arc;

use aubade_proto::{ProjectionColumn, Reduction};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::Result;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{PhysicalExpr, conjunction_opt, split_conjunction};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::repartition::RepartitionExec;

use super::compose::{columns_used, substitute, substitute_outputs};
use super::push_reduction::replace_scan;
use super::pushable::Pushable;
use super::share_scans::will_be_shared;
use crate::embedded::storage_scans;
use crate::group_ranges::{SharedKeys, any_of};
use crate::options::{Pushdown, pushdown};
use crate::refusal::{NotPushed, Reason, Refusal};
use crate::scan_exec::StorageScanExec;
use crate::subquery_values::needs_subquery;

/// Functions whose result is their only state, so that a filter on one is a filter on the other.
const STATE_IS_RESULT: &[&str] = &["sum", "count", "min", "max", "bool_and", "bool_or", "bit_and", "bit_or", "bit_xor"];

/// Gives a scan that yields the states of groups the filter on their results as well:
/// ```text
/// FilterExec sum(x) > 300         FilterExec sum(x) > 300
///   AggregateExec final             AggregateExec final
///     RepartitionExec hash            RepartitionExec hash
///       StorageScanExec                 StorageScanExec
///         aggregate=sum(x) by k           aggregate=sum(x) by k, having=sum(x)[sum] > 300 OR k = 77
/// ```
/// What a segment knows of a group is all of it where the values of a key lie in other ranges in other segments. Groups
/// of which that is not certain are sent as they are; the filter stays above for these.
///
/// It comes directly after [`super::PushReduction`].
#[derive(Debug)]
pub struct PushHaving {
    pushable: Arc<Pushable>,
}

impl PushHaving {
    /// The rule with the functions that storage nodes know.
    pub fn new(pushable: Arc<Pushable>) -> Self {
        Self { pushable }
    }

    /// What is below the filter, with its scan told what it may leave out, or why it may not; `None` where the filter is
    /// not one on the groups of a scan. `scans` are all of the plan.
    fn push(
        &self,
        filter: &FilterExec,
        scans: &[StorageScanExec],
        config: &ConfigOptions,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let mut conjuncts: Vec<_> = split_conjunction(filter.predicate()).into_iter().map(Arc::clone).collect();
        let mut node = filter.input();
        while let Some(projection) = node.downcast_ref::<ProjectionExec>() {
            let outputs = outputs_of(projection)?;
            conjuncts = conjuncts.iter().map(|conjunct| substitute(conjunct, &outputs)).collect::<Result<_>>()?;
            node = projection.input();
        }
        let Some(aggregate) = node.downcast_ref::<AggregateExec>().filter(|aggregate| is_final(aggregate)) else {
            return Ok(None);
        };
        let Some(scan) = reduced_scan(aggregate.input()) else { return Ok(None) };
        let Some(reduction) = scan.fragment().reduction() else { return Ok(None) };
        let partial = reduction.plan().downcast_ref::<AggregateExec>();
        // A grouping set that leaves a key out has groups all over the table; the final stage no longer knows of it.
        let Some(partial) = partial.filter(|partial| partial.group_expr().is_single()) else { return Ok(None) };
        let states = states(aggregate, reduction);
        // A filter on keys alone has gone below the aggregation, as far as it can.
        let on_results = |conjunct: &&Arc<dyn PhysicalExpr>| {
            columns_used(conjunct).into_iter().any(|index| index >= partial.group_expr().expr().len())
        };
        let on_results: Vec<_> = conjuncts.iter().filter(on_results).collect();
        if on_results.is_empty() {
            return Ok(None);
        }
        let noted = |refusal| {
            let scan = scan.with_note(NotPushed::new("filter of groups", refusal));
            replace_scan(filter.input(), &(Arc::new(scan) as Arc<dyn ExecutionPlan>)).map(Some)
        };
        let Some(exempt) = exempt_groups(scan, partial)? else {
            let text = "groups may have rows in several segments";
            return noted(Refusal::new(Reason::SpreadGroups, text));
        };
        // As where groups are compared with the largest of them: they are read once for both.
        if on_results.iter().all(|conjunct| needs_subquery(conjunct)) && will_be_shared(scan, scans) {
            let text = "it needs the result of a subquery, for which these groups are read as well";
            return noted(Refusal::new(Reason::Subquery, text));
        }
        let (mut pushed, mut refused) = (Vec::new(), None);
        for conjunct in on_results {
            match self.over_states(conjunct, &states, reduction, config)? {
                Ok(over_states) => pushed.push(over_states),
                Err(refusal) => refused = Some(refusal),
            }
        }
        let having = conjunction_opt(pushed);
        let Some(having) = having else { return refused.map_or(Ok(None), noted) };
        let having = any_of([having].into_iter().chain(exempt).collect());
        let fragment = having
            .map_or_else(|| Ok(reduction.clone()), |having| reduction.with_having(having))
            .and_then(|reduction| scan.fragment().with_reduction(reduction));
        let fragment = fragment.map_err(|error| Refusal::new(Reason::NoWireForm, error.message()));
        match fragment.and_then(|fragment| self.pushable.check_reduction(&fragment).map(|()| fragment)) {
            Ok(fragment) => {
                let scan: Arc<dyn ExecutionPlan> = Arc::new(scan.with_fragment(fragment)?);
                replace_scan(filter.input(), &scan).map(Some)
            }
            Err(refusal) => noted(refusal),
        }
    }

    /// A conjunct over the results of an aggregation as one over its states, or why there is none.
    fn over_states(
        &self,
        conjunct: &Arc<dyn PhysicalExpr>,
        states: &[Option<ProjectionColumn>],
        reduction: &Reduction,
        config: &ConfigOptions,
    ) -> Result<Result<Arc<dyn PhysicalExpr>, Refusal>> {
        let known = states.iter().map(|state| state.clone().unwrap_or_else(unknown)).collect::<Vec<_>>();
        if columns_used(conjunct).into_iter().any(|index| states.get(index).is_none_or(Option::is_none)) {
            let text = "the result of an aggregate function is not its state";
            return Ok(Err(Refusal::new(Reason::ResultIsNotState, text)));
        }
        let over_states = substitute(conjunct, &known)?;
        Ok(self.pushable.check_filter(&over_states, &reduction.schema(), config).map(|()| over_states))
    }
}

/// A place holder for a column that an expression does not use.
fn unknown() -> ProjectionColumn {
    ProjectionColumn { expression: Arc::new(Column::new("", usize::MAX)), name: String::new() }
}

fn outputs_of(projection: &ProjectionExec) -> Result<Vec<ProjectionColumn>> {
    let schema = projection.input().schema();
    let identity = schema.fields().iter().enumerate().map(|(index, field)| ProjectionColumn {
        expression: Arc::new(Column::new(field.name(), index)),
        name: field.name().clone(),
    });
    substitute_outputs(projection, &identity.collect::<Vec<_>>())
}

fn is_final(aggregate: &AggregateExec) -> bool {
    matches!(aggregate.mode(), AggregateMode::Final | AggregateMode::FinalPartitioned)
        && !aggregate.group_expr().is_empty()
}

/// The scan whose states an aggregation merges.
fn reduced_scan(input: &Arc<dyn ExecutionPlan>) -> Option<&StorageScanExec> {
    let mut node = input;
    loop {
        if let Some(scan) = node.downcast_ref::<StorageScanExec>() {
            return Some(scan);
        }
        let child = node.children().into_iter().next()?;
        if !node.is::<RepartitionExec>() && !node.is::<CoalescePartitionsExec>() {
            return None;
        }
        node = child;
    }
}

/// The column of the states that each output column of an aggregation is, if it is one.
fn states(aggregate: &AggregateExec, reduction: &Reduction) -> Vec<Option<ProjectionColumn>> {
    let schema = reduction.schema();
    let column = |index: usize| {
        let name = schema.fields().get(index)?.name();
        Some(ProjectionColumn { expression: Arc::new(Column::new(name, index)), name: name.clone() })
    };
    let groups = aggregate.group_expr().expr().len();
    let mut outputs: Vec<_> = (0..groups).map(column).collect();
    let mut next = groups;
    for function in aggregate.aggr_expr() {
        let Ok(fields) = function.state_fields() else { return Vec::new() };
        let is_result = fields.len() == 1
            && !function.is_distinct()
            && STATE_IS_RESULT.contains(&function.fun().name())
            && fields.iter().all(|field| field.data_type() == function.field().data_type());
        outputs.push(if is_result { column(next) } else { None });
        next += fields.len();
    }
    if next == schema.fields().len() { outputs } else { Vec::new() }
}

/// Which groups must be sent in any case, as a predicate over the states, if there are such; nothing where no key keeps
/// groups together.
fn exempt_groups(scan: &StorageScanExec, partial: &AggregateExec) -> Result<Option<Option<Arc<dyn PhysicalExpr>>>> {
    for (index, (key, name)) in partial.group_expr().expr().iter().enumerate() {
        let Some(column) = scan.table_column(key) else { continue };
        let Some(shared) = SharedKeys::of(&scan.table().statistics, column, scan.kept_segments())? else { continue };
        let key: Arc<dyn PhysicalExpr> = Arc::new(Column::new(name, index));
        return Ok(Some(shared.predicate(&key)));
    }
    Ok(None)
}

impl PhysicalOptimizerRule for PushHaving {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        if pushdown(config) == Pushdown::Off {
            return Ok(plan);
        }
        let scans = storage_scans(&plan);
        let plan = plan.transform_up(|node| {
            let Some(filter) = node.downcast_ref::<FilterExec>() else { return Ok(Transformed::no(node)) };
            match self.push(filter, &scans, config)? {
                Some(below) => replace_children_if_necessary(node, vec![below]).map(Transformed::yes),
                None => Ok(Transformed::no(node)),
            }
        });
        plan.map(|plan| plan.data)
    }

    fn name(&self) -> &str {
        "PushHaving"
    }

    fn schema_check(&self) -> bool {
        true
    }
}
