//! The rule that moves filters, projections and limits into the scans below them.

use std::collections::BTreeSet;
use std::sync::Arc;

use aubade_proto::ProjectionColumn;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::Result;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{PhysicalExpr, conjunction, split_conjunction};
use datafusion::physical_expr_common::physical_expr::fmt_sql;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::filter::{FilterExec, FilterExecBuilder};
use datafusion::physical_plan::limit::{GlobalLimitExec, LocalLimitExec};
use datafusion::physical_plan::projection::{ProjectionExec, ProjectionExpr};
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};

use super::compose::{Widths, columns_used, reindex, substitute, substitute_outputs};
use super::pushable::Pushable;
use crate::estimate::scan_statistics;
use crate::options::{Pushdown, pushdown};
use crate::refusal::{NotPushed, Reason, Refusal};
use crate::scan_exec::StorageScanExec;

/// Replaces filters, projections and limits over a [`StorageScanExec`] by a scan that does their work, as far as it can
/// be done at a storage node and pays; the scan keeps why the rest is not.
///
/// From the leaves up, so that each operator meets a scan which has taken in all below it:
/// ```text
/// ProjectionExec [a + 1]          ProjectionExec [a + 1]      StorageScanExec
///   FilterExec b > 5                StorageScanExec             columns=[a, b], filter=b > 5
///     StorageScanExec [a, b]          filter=b > 5              projection=[a + 1]
/// ```
/// A filter is split into its conjuncts: those that cannot be pushed stay in a filter above. A limit goes into the scan
/// as well and stays above where there are several partitions, or rows to be skipped.
#[derive(Debug)]
pub struct PushFragment {
    pushable: Arc<Pushable>,
}

impl PushFragment {
    /// The rule with the functions that storage nodes know.
    pub fn new(pushable: Arc<Pushable>) -> Self {
        Self { pushable }
    }

    fn absorb_filter(
        &self,
        scan: &StorageScanExec,
        filter: &FilterExec,
        config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Split { mut scan, kept } = self.split_filter(scan, filter, scan.fragment().projection(), config)?;
        if !kept.is_empty() {
            return filter_above(filter, &kept, scan);
        }
        if let Some(columns) = filter.projection() {
            scan = scan.with_columns(columns)?;
        }
        if let Some(fetch) = filter.fetch() {
            scan = scan.with_limit(fetch)?;
        }
        Ok(Arc::new(scan))
    }

    /// A filter above a projection that stayed above its scan: its conjuncts go into the scan, and what they needed of
    /// the projection is no longer computed.
    fn absorb_filter_above_projection(
        &self,
        scan: &StorageScanExec,
        projection: &ProjectionExec,
        filter: &FilterExec,
        config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let outputs = substitute_outputs(projection, scan.fragment().projection())?;
        let Split { scan, kept } = self.split_filter(scan, filter, &outputs, config)?;
        if !kept.is_empty() {
            let below = Arc::new(scan) as Arc<dyn ExecutionPlan>;
            let below = replace_children_if_necessary(Arc::new(projection.clone()), vec![below])?;
            let filter = FilterExecBuilder::from(filter).with_predicate(conjunction(kept)).with_input(below);
            return Ok(Arc::new(filter.build()?));
        }
        let scan = scan.without_notes(Reason::Wider);
        let scan = match filter.fetch() {
            Some(fetch) => scan.with_limit(fetch)?,
            None => scan,
        };
        let wanted: Vec<_> = match filter.projection() {
            Some(columns) => columns.iter().filter_map(|column| projection.expr().get(*column).cloned()).collect(),
            None => projection.expr().to_vec(),
        };
        let input: Arc<dyn ExecutionPlan> = Arc::new(scan.clone());
        let projection = ProjectionExec::try_new_with_schema_metadata(wanted, input, &filter.schema())?;
        self.absorb_projection(&scan, &projection, config)
    }

    /// Puts the conjuncts of a filter over `outputs` of a scan into it, as far as they can be pushed.
    fn split_filter(
        &self,
        scan: &StorageScanExec,
        filter: &FilterExec,
        outputs: &[ProjectionColumn],
        config: &ConfigOptions,
    ) -> Result<Split> {
        if scan.fragment().limit().is_some() {
            let note = NotPushed::new("filter", Refusal::new(Reason::AfterLimit, "comes after a limit"));
            return Ok(Split { scan: scan.with_note(note), kept: vec![Arc::clone(filter.predicate())] });
        }
        let (mut pushed, mut kept, mut notes) = (Vec::new(), Vec::new(), Vec::new());
        for conjunct in split_conjunction(filter.predicate()) {
            let over_scan = substitute(conjunct, outputs)?;
            match self.pushable.check_filter(&over_scan, scan.fragment().scan_schema(), config) {
                Ok(()) => pushed.push(over_scan),
                Err(refusal) => {
                    notes.push(NotPushed::new(format!("filter {}", fmt_sql(conjunct.as_ref())), refusal));
                    kept.push(Arc::clone(conjunct));
                }
            }
        }
        let mut scan =
            if pushed.is_empty() { scan.clone() } else { scan.with_filters(pushed, filter.default_selectivity())? };
        for note in notes {
            scan = scan.with_note(note);
        }
        Ok(Split { scan, kept })
    }

    /// A projection above a limit above a scan: the limit does not mind, so that only the limit stays between.
    fn absorb_projection_below_limit(
        &self,
        scan: &StorageScanExec,
        limit: &Arc<dyn ExecutionPlan>,
        projection: &ProjectionExec,
        config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let below = self.absorb_projection(scan, projection, config)?;
        let limited = |scan: Arc<dyn ExecutionPlan>| replace_children_if_necessary(Arc::clone(limit), vec![scan]);
        let scan_left = below.children().into_iter().next().cloned();
        match scan_left {
            // All of the projection went into the scan.
            None => limited(below),
            Some(scan) => replace_children_if_necessary(below, vec![limited(scan)?]),
        }
    }

    /// A projection above one that stayed above its scan, if both of them can go into it: columns that only the filter
    /// in between needed may be all that was too wide.
    fn absorb_both_projections(
        &self,
        scan: &StorageScanExec,
        inner: &ProjectionExec,
        outer: &ProjectionExec,
        config: &ConfigOptions,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let absorbed = self.absorb_projection(&scan.without_notes(Reason::Wider), &merged(inner, outer)?, config)?;
        Ok(absorbed.is::<StorageScanExec>().then_some(absorbed))
    }

    fn absorb_projection(
        &self,
        scan: &StorageScanExec,
        projection: &ProjectionExec,
        config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let outputs = substitute_outputs(projection, scan.fragment().projection())?;
        let used: BTreeSet<usize> = projection.expr().iter().flat_map(|output| columns_used(&output.expr)).collect();
        let used: Vec<usize> = used.into_iter().collect();

        let checked = self.pushable.check_projection(&outputs, scan.fragment().scan_schema(), config);
        let refusal = match checked {
            Err(refusal) => refusal,
            Ok(()) if pushdown(config) == Pushdown::Auto && !pays(scan, &outputs, &used) => {
                Refusal::new(Reason::Wider, "it would send more bytes than its columns have")
            }
            Ok(()) => {
                let pushed = scan.with_projection(&outputs)?;
                if pushed.schema() == projection.schema() {
                    return Ok(Arc::new(pushed));
                }
                Refusal::new(Reason::Metadata, "it changes the metadata of its columns")
            }
        };
        let computed = projection.expr().iter().find(|output| !output.expr.is::<Column>());
        let what = computed.map_or_else(String::new, |output| format!(" {}", fmt_sql(output.expr.as_ref())));
        projection_above(projection, &used, scan.with_note(NotPushed::new(format!("projection{what}"), refusal)))
    }
}

/// Two projections as one.
fn merged(inner: &ProjectionExec, outer: &ProjectionExec) -> Result<ProjectionExec> {
    let of_inner = inner
        .expr()
        .iter()
        .map(|output| ProjectionColumn { expression: Arc::clone(&output.expr), name: output.alias.clone() });
    let outputs = substitute_outputs(outer, &of_inner.collect::<Vec<_>>())?;
    let outputs = outputs.into_iter().map(|output| ProjectionExpr { expr: output.expression, alias: output.name });
    let outputs = outputs.collect::<Vec<_>>();
    ProjectionExec::try_new_with_schema_metadata(outputs, Arc::clone(inner.input()), &outer.schema())
}

/// A scan that has taken in some conjuncts of a filter.
struct Split {
    scan: StorageScanExec,
    /// The others.
    kept: Vec<Arc<dyn PhysicalExpr>>,
}

/// Whether the rows of `outputs` are no wider than those of the columns that the projection uses.
fn pays(scan: &StorageScanExec, outputs: &[ProjectionColumn], used: &[usize]) -> bool {
    // Names and order cost nothing.
    let mut columns = BTreeSet::new();
    if outputs
        .iter()
        .all(|output| output.expression.downcast_ref::<Column>().is_some_and(|column| columns.insert(column.index())))
    {
        return true;
    }
    let schema = scan.fragment().scan_schema();
    let statistics = scan_statistics(scan.target(), schema);
    let widths = Widths::new(schema, &statistics);
    let before: f64 = used
        .iter()
        .filter_map(|index| scan.fragment().projection().get(*index))
        .map(|column| widths.expression(&column.expression))
        .sum();
    let after: f64 = outputs.iter().map(|output| widths.expression(&output.expression)).sum();
    after <= before
}

/// The conjuncts that were not pushed, over a scan that sends only the columns that they and the filter's output need.
fn filter_above(
    filter: &FilterExec,
    kept: &[Arc<dyn PhysicalExpr>],
    scan: StorageScanExec,
) -> Result<Arc<dyn ExecutionPlan>> {
    let schema = scan.schema();
    let wanted: Vec<usize> = match filter.projection() {
        Some(columns) => columns.to_vec(),
        None => (0..schema.fields().len()).collect(),
    };
    let sent: BTreeSet<usize> = kept.iter().flat_map(columns_used).chain(wanted.iter().copied()).collect();
    let sent: Vec<usize> = sent.into_iter().collect();
    let predicate = reindex(&conjunction(kept.iter().cloned()), &schema, &sent)?;
    let positions: Vec<usize> =
        wanted.iter().filter_map(|column| sent.iter().position(|sent| sent == column)).collect();
    let scan = if sent.len() < schema.fields().len() { scan.with_columns(&sent)? } else { scan };
    let projection = filter.projection().is_some().then_some(positions);
    let filter = FilterExecBuilder::new(predicate, Arc::new(scan))
        .apply_projection(projection)?
        .with_default_selectivity(filter.default_selectivity())
        .with_batch_size(filter.batch_size())
        .with_fetch(filter.fetch());
    Ok(Arc::new(filter.build()?))
}

/// The projection over a scan that sends only the columns that it uses.
fn projection_above(
    projection: &ProjectionExec,
    used: &[usize],
    scan: StorageScanExec,
) -> Result<Arc<dyn ExecutionPlan>> {
    let schema = scan.schema();
    let scan = if used.len() < schema.fields().len() { scan.with_columns(used)? } else { scan };
    let outputs = projection
        .expr()
        .iter()
        .map(|output| Ok(ProjectionExpr { expr: reindex(&output.expr, &schema, used)?, alias: output.alias.clone() }));
    let outputs = outputs.collect::<Result<Vec<_>>>()?;
    let above = ProjectionExec::try_new_with_schema_metadata(outputs, Arc::new(scan), &projection.schema())?;
    Ok(Arc::new(above))
}

/// Gives the scan below a limit the same limit, for each of its partitions; the limit itself stays where that is not
/// enough.
fn absorb_limit(node: Arc<dyn ExecutionPlan>, scan: &StorageScanExec) -> Result<Transformed<Arc<dyn ExecutionPlan>>> {
    if let Some(limit) = node.downcast_ref::<LocalLimitExec>() {
        let limited: Arc<dyn ExecutionPlan> = Arc::new(scan.with_limit(limit.fetch())?);
        return Ok(Transformed::yes(limited));
    }
    let Some((skip, Some(fetch))) = node.downcast_ref::<GlobalLimitExec>().map(|limit| (limit.skip(), limit.fetch()))
    else {
        return Ok(Transformed::no(node));
    };
    let limited: Arc<dyn ExecutionPlan> = Arc::new(scan.with_limit(fetch.saturating_add(skip))?);
    if skip == 0 && limited.output_partitioning().partition_count() == 1 {
        return Ok(Transformed::yes(limited));
    }
    replace_children_if_necessary(node, vec![limited]).map(Transformed::yes)
}

/// Whether an operator only cuts off rows, and does not mind their order.
fn is_limit(node: &Arc<dyn ExecutionPlan>) -> bool {
    let global = node.downcast_ref::<GlobalLimitExec>();
    node.is::<LocalLimitExec>() || global.is_some_and(|limit| limit.required_ordering().is_none())
}

fn scan_below(node: &Arc<dyn ExecutionPlan>) -> Option<&StorageScanExec> {
    node.children().into_iter().next().and_then(|child| child.downcast_ref::<StorageScanExec>())
}

/// Whether statistics may tell all that an aggregate asks.
fn asks_statistics(aggregate: &AggregateExec) -> bool {
    let told = |function: &Arc<AggregateFunctionExpr>| {
        matches!(function.fun().name(), "count" | "min" | "max") && !function.is_distinct()
    };
    aggregate.group_expr().is_empty()
        && aggregate.filter_expr().iter().all(Option::is_none)
        && aggregate.aggr_expr().iter().all(told)
}

/// What an operator directly above a scan is called when it stays on the coordinator. Aggregates and the first rows of
/// an order are looked at by another rule.
fn operator(node: &Arc<dyn ExecutionPlan>) -> Option<(&'static str, Reason)> {
    if let Some(sort) = node.downcast_ref::<SortExec>() {
        return sort.fetch().is_none().then_some(("sort", Reason::Sort));
    }
    match node.name() {
        name if name.contains("Join") => Some(("join", Reason::Join)),
        name if name.contains("Window") => Some(("window", Reason::Window)),
        _ => None,
    }
}

/// Writes into the scans directly below `node` that `node` stays above.
fn note_operator(node: Arc<dyn ExecutionPlan>) -> Result<Transformed<Arc<dyn ExecutionPlan>>> {
    let Some((part, reason)) = operator(&node) else { return Ok(Transformed::no(node)) };
    if !node.children().iter().any(|child| child.is::<StorageScanExec>()) {
        return Ok(Transformed::no(node));
    }
    let note = NotPushed::new(part, Refusal::new(reason, "runs on the coordinator"));
    let children = node.children().into_iter().map(|child| match child.downcast_ref::<StorageScanExec>() {
        Some(scan) => Arc::new(scan.with_note(note.clone())) as Arc<dyn ExecutionPlan>,
        None => Arc::clone(child),
    });
    let children = children.collect();
    replace_children_if_necessary(node, children).map(Transformed::yes)
}

impl PhysicalOptimizerRule for PushFragment {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        if pushdown(config) == Pushdown::Off {
            return Ok(plan);
        }
        let plan = plan.transform_up(|node| {
            let scan = scan_below(&node).cloned();
            if let Some(projection) = node.downcast_ref::<ProjectionExec>() {
                if let Some(scan) = &scan {
                    return self.absorb_projection(scan, projection, config).map(Transformed::yes);
                }
                let below = projection.input();
                let Some(scan) = scan_below(below) else { return Ok(Transformed::no(node)) };
                if is_limit(below) {
                    return self.absorb_projection_below_limit(scan, below, projection, config).map(Transformed::yes);
                }
                let absorbed = match below.downcast_ref::<ProjectionExec>() {
                    Some(inner) => self.absorb_both_projections(scan, inner, projection, config)?,
                    None => None,
                };
                return Ok(absorbed.map_or_else(|| Transformed::no(node), Transformed::yes));
            }
            if let Some(filter) = node.downcast_ref::<FilterExec>()
                && let Some(projection) = filter.input().downcast_ref::<ProjectionExec>()
                && let Some(scan) = scan_below(filter.input())
            {
                let below = self.absorb_filter_above_projection(scan, projection, filter, config)?;
                return Ok(Transformed::yes(below));
            }
            let Some(scan) = scan else { return note_operator(node) };
            if node.downcast_ref::<AggregateExec>().is_some_and(asks_statistics) {
                let Some(exact) = scan.with_exact_statistics()? else { return Ok(Transformed::no(node)) };
                return replace_children_if_necessary(node, vec![Arc::new(exact)]).map(Transformed::yes);
            }
            match node.downcast_ref::<FilterExec>() {
                Some(filter) => self.absorb_filter(&scan, filter, config).map(Transformed::yes),
                None if is_limit(&node) => absorb_limit(node, &scan),
                None => note_operator(node),
            }
        });
        plan.map(|plan| plan.data)
    }

    fn name(&self) -> &str {
        "PushFragment"
    }

    fn schema_check(&self) -> bool {
        true
    }
}
