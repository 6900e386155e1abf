//! The rule that moves partial aggregates and the first rows of an order into the scans below them.

use std::sync::Arc;

use arrow::array::{Array, UInt64Array};
use aubade_proto::{Fragment, ProjectionColumn, Reduction};
use datafusion::common::Statistics;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::expressions::{Column, Literal};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode, PhysicalGroupBy};
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::statistics::{StatisticsArgs, StatisticsContext};
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::{ExecutionPlan, Partitioning};
use datafusion::scalar::ScalarValue;

use super::compose::{columns_used, substitute, substitute_outputs};
use super::pushable::Pushable;
use super::unordered_grouping_sets::UnorderedExec;
use crate::options::{Pushdown, pushdown};
use crate::refusal::{NotPushed, Reason, Refusal};
use crate::scan_exec::StorageScanExec;

/// Rows that `ORDER BY ... LIMIT` may want at most: each segment may have to send as many.
const TOP_ROWS_MAX: usize = 10_000;
/// Rows up to which a partial aggregate of those that pass a filter is pushed whatever comes of it.
const FEW_ROWS: usize = 8_192;
/// Groups per row above which a partial aggregate would send about as much as it reads.
const GROUPS_PER_ROW_MAX: f64 = 0.8;

/// Replaces the partial stage of an aggregation over a [`StorageScanExec`] by a scan that yields its
/// states, and gives a scan below `ORDER BY ... LIMIT` the same order and limit:
/// ```text
/// AggregateExec final             AggregateExec final
///   RepartitionExec hash            RepartitionExec hash
///     AggregateExec partial           StorageScanExec aggregate=...
///       StorageScanExec
/// ```
/// It comes after the stages have been put on their partitions, and before a partial and a final
/// stage on the same partition become one.
///
/// A sort below the partial stage, for functions that take rows in an order only, goes along: nodes sort the rows of
/// each segment, and the states that they make of them hold the order to be merged by.
#[derive(Debug)]
pub struct PushReduction {
    pushable: Arc<Pushable>,
}

impl PushReduction {
    /// The rule with the functions that storage nodes know.
    pub fn new(pushable: Arc<Pushable>) -> Self {
        Self { pushable }
    }

    fn aggregate(&self, aggregate: &AggregateExec, config: &ConfigOptions) -> Result<Option<Below>> {
        let Some(found) = scan_under(aggregate.input(), true) else { return Ok(None) };
        let takes_orders = aggregate.aggr_expr().iter().any(|function| !function.order_bys().is_empty());
        let noted = |refusal| noted(aggregate.input(), &found, "aggregate", refusal).map(Below::Input).map(Some);
        let scan = match self.fused(&found, config)? {
            Ok(scan) => scan,
            Err(refusal) => return noted(refusal),
        };
        let refused = match refuse_aggregate(&self.pushable, aggregate, true, config) {
            // Nobody says which rows the order is for.
            None if found.sorted && !takes_orders => {
                Some(Refusal::new(Reason::OrderedAggregate, "its rows come in an order"))
            }
            None if pushdown(config) == Pushdown::Auto => costs_more(aggregate, &scan)?,
            refused => refused,
        };
        match self.reduced(&scan, refused, || Reduction::aggregate(aggregate)) {
            Ok(fragment) => in_order_of(aggregate, scan.with_fragment(fragment)?).map(Below::States).map(Some),
            Err(refusal) => noted(refusal),
        }
    }

    /// A partial aggregate over a union as a union of partial aggregates, if some of them go into scans.
    fn aggregate_of_union(
        &self,
        aggregate: &AggregateExec,
        config: &ConfigOptions,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let mut input = aggregate.input();
        while let Some(spread) = spreading(input) {
            input = spread.input();
        }
        let Some(union) = input.downcast_ref::<UnionExec>() else { return Ok(None) };
        let (mut parts, mut reduced) = (Vec::new(), false);
        for part in union.inputs() {
            let over_part = AggregateExec::try_new(
                AggregateMode::Partial,
                aggregate.group_expr().clone(),
                aggregate.aggr_expr().to_vec(),
                aggregate.filter_expr().to_vec(),
                Arc::clone(part),
                part.schema(),
            )?;
            let below = self.aggregate(&over_part, config)?;
            reduced |= matches!(below, Some(Below::States(_)));
            parts.push(match below {
                Some(Below::States(states)) => states,
                Some(Below::Input(noted)) => replace_children_if_necessary(Arc::new(over_part), vec![noted])?,
                None => Arc::new(over_part),
            });
        }
        let parts = UnionExec::try_new(parts)?;
        Ok((reduced && parts.schema() == aggregate.schema()).then_some(parts))
    }

    /// The scan's fragment with a reduction, or why it cannot have it.
    fn reduced(
        &self,
        scan: &StorageScanExec,
        refused: Option<Refusal>,
        reduction: impl FnOnce() -> aubade_proto::Result<Reduction>,
    ) -> Result<Fragment, Refusal> {
        if let Some(refusal) = refused {
            return Err(refusal);
        }
        let fragment = reduction().and_then(|reduction| scan.fragment().with_reduction(reduction));
        let fragment = fragment.map_err(|error| Refusal::new(Reason::NoWireForm, error.message()))?;
        self.pushable.check_reduction(&fragment)?;
        Ok(fragment)
    }

    /// The scan with the projections between it and the aggregate in it, or why that cannot be.
    fn fused(&self, found: &Found, config: &ConfigOptions) -> Result<Result<StorageScanExec, Refusal>> {
        if found.scan.fragment().limit().is_some() {
            return Ok(Err(after_limit()));
        }
        let mut scan = match found.projections.is_empty() {
            true => found.scan.clone(),
            false => found.scan.without_notes(Reason::Wider),
        };
        // The innermost first.
        for projection in found.projections.iter().rev() {
            let outputs = substitute_outputs(projection, scan.fragment().projection())?;
            if let Err(refusal) = self.pushable.check_projection(&outputs, scan.fragment().scan_schema(), config) {
                return Ok(Err(refusal));
            }
            scan = scan.with_projection(&outputs)?;
        }
        Ok(Ok(scan))
    }

    fn top(&self, sort: &SortExec, config: &ConfigOptions) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let Some(fetch) = sort.fetch() else { return Ok(None) };
        let Some(found) = scan_under(sort.input(), false) else { return Ok(None) };
        // However wide their rows: few are sent.
        let scan = match self.fused(&found, config)? {
            Ok(scan) => scan,
            Err(refusal) => return noted(sort.input(), &found, "first rows", refusal).map(Some),
        };
        let refused = if fetch > TOP_ROWS_MAX {
            Some(Refusal::new(Reason::ManyRows, format!("it keeps more than {TOP_ROWS_MAX} rows")))
        } else if scan.schema() != sort.input().schema() {
            Some(Refusal::new(Reason::Metadata, "a projection below it changes the metadata of its columns"))
        } else {
            sort.expr().iter().find_map(|key| self.pushable.check_kinds(&key.expr, config).err())
        };
        match self.reduced(&scan, refused, || Reduction::top_k(sort)) {
            Ok(fragment) => {
                let scan: Arc<dyn ExecutionPlan> = Arc::new(scan.with_fragment(fragment)?);
                replace_fused(sort.input(), &scan).map(Some)
            }
            Err(refusal) => noted(sort.input(), &found, "first rows", refusal).map(Some),
        }
    }
}

/// What becomes of what is below a partial aggregate.
enum Below {
    /// The states of the aggregate, which takes its place.
    States(Arc<dyn ExecutionPlan>),
    /// Its input, where the scan says why the aggregate stays.
    Input(Arc<dyn ExecutionPlan>),
}

/// The states of an aggregate, in the order that it had them in: operators above may rely on it.
fn in_order_of(aggregate: &AggregateExec, states: StorageScanExec) -> Result<Arc<dyn ExecutionPlan>> {
    let states: Arc<dyn ExecutionPlan> = Arc::new(states);
    let order = match aggregate.properties().output_ordering() {
        Some(order) if !states.properties().equivalence_properties().ordering_satisfy(order.clone())? => order.clone(),
        _ => return Ok(states),
    };
    Ok(Arc::new(SortExec::new(order, states).with_preserve_partitioning(true)))
}

/// A scan, and the projections between it and an operator above.
struct Found {
    scan: StorageScanExec,
    /// The outermost first.
    projections: Vec<ProjectionExec>,
    /// Whether there is a sort of all rows as well.
    sorted: bool,
}

/// The scan that an operator reads from, with nothing in between but projections and a spreading
/// over partitions, which a partial stage does not need, and, where these may be left out, sorts of all rows.
fn scan_under(input: &Arc<dyn ExecutionPlan>, through_sorts: bool) -> Option<Found> {
    let (mut projections, mut sorted) = (Vec::new(), false);
    let mut node = input;
    loop {
        if let Some(scan) = node.downcast_ref::<StorageScanExec>() {
            let reduced = scan.fragment().reduction().is_some();
            return (!reduced).then(|| Found { scan: scan.clone(), projections, sorted });
        }
        if let Some(projection) = node.downcast_ref::<ProjectionExec>() {
            projections.push(projection.clone());
            node = projection.input();
        } else if let Some(spread) = spreading(node) {
            node = spread.input();
        } else if let Some(unordered) = node.downcast_ref::<UnorderedExec>() {
            node = unordered.input();
        } else if let Some(sort) =
            node.downcast_ref::<SortExec>().filter(|sort| through_sorts && sort.fetch().is_none())
        {
            sorted = true;
            node = sort.input();
        } else {
            return None;
        }
    }
}

fn spreading(node: &Arc<dyn ExecutionPlan>) -> Option<&RepartitionExec> {
    let repartition = node.downcast_ref::<RepartitionExec>()?;
    matches!(repartition.partitioning(), Partitioning::RoundRobinBatch(_)).then_some(repartition)
}

/// `input` with the scan at its bottom replaced.
pub(super) fn replace_scan(
    input: &Arc<dyn ExecutionPlan>,
    scan: &Arc<dyn ExecutionPlan>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let replaced = Arc::clone(input).transform_up(|node| {
        Ok(if node.is::<StorageScanExec>() { Transformed::yes(Arc::clone(scan)) } else { Transformed::no(node) })
    });
    replaced.map(|replaced| replaced.data)
}

/// `input` with a scan that does the work of the projections in it as well.
fn replace_fused(input: &Arc<dyn ExecutionPlan>, scan: &Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let replaced = Arc::clone(input).transform_down(|node| {
        Ok(match node.is::<ProjectionExec>() || node.is::<StorageScanExec>() {
            true => Transformed::new(Arc::clone(scan), true, TreeNodeRecursion::Jump),
            false => Transformed::no(node),
        })
    });
    replaced.map(|replaced| replaced.data)
}

/// `input`, whose scan says why the operator above it stays there.
fn noted(
    input: &Arc<dyn ExecutionPlan>,
    found: &Found,
    part: &str,
    refusal: Refusal,
) -> Result<Arc<dyn ExecutionPlan>> {
    let scan = found.scan.with_note(NotPushed::new(part, refusal));
    replace_scan(input, &(Arc::new(scan) as Arc<dyn ExecutionPlan>))
}

fn after_limit() -> Refusal {
    Refusal::new(Reason::AfterLimit, "comes after a limit")
}

/// Why a partial aggregate stays on the coordinator, if so; `subqueries`: its values may be put in before it is sent.
pub(super) fn refuse_aggregate(
    pushable: &Pushable,
    aggregate: &AggregateExec,
    subqueries: bool,
    config: &ConfigOptions,
) -> Option<Refusal> {
    let group = aggregate.group_expr();
    let expressions = group.expr().iter().chain(group.null_expr()).map(|(expression, _)| expression);
    let expressions = expressions.chain(aggregate.filter_expr().iter().flatten());
    if let Some(refusal) = expressions.into_iter().find_map(|part| pushable.refuse_part(part, subqueries, config)) {
        return Some(refusal);
    }
    aggregate.aggr_expr().iter().find_map(|function| pushable.refuse_aggregate(function, subqueries, config))
}

/// Why the aggregate would save nothing, if the statistics say so.
fn costs_more(aggregate: &AggregateExec, scan: &StorageScanExec) -> Result<Option<Refusal>> {
    if let Some(function) = aggregate.aggr_expr().iter().find(|function| keeps_values(function)) {
        let text = format!("{} keeps all its values, and what they are ordered by", function.fun().name());
        return Ok(Some(Refusal::new(Reason::KeepsValues, text)));
    }
    let statistics = StatisticsContext::new().compute(aggregate.input().as_ref(), &StatisticsArgs::new())?;
    let Some(rows) = statistics.num_rows.get_value().copied() else { return Ok(None) };
    // Guesses of how few rows pass a filter are the least certain ones, and there is little to lose by them.
    let is_guess = scan.fragment().filter().is_some() && rows <= FEW_ROWS;
    let values = aggregate.aggr_expr().iter().map(|function| values_kept(function)).fold(1.0, f64::max);
    let keeps_few = values <= 1.0 || rows <= FEW_ROWS;
    if (aggregate.group_expr().is_empty() && keeps_few) || is_guess {
        return Ok(None);
    }
    let groups = match aggregate.group_expr().is_empty() {
        true => Some(1.0),
        false => group_count(aggregate.group_expr(), &statistics),
    };
    let Some(groups) = groups else { return Ok(None) };
    let states = states_of_segments(aggregate.group_expr(), scan, rows as f64, groups);
    if states > GROUPS_PER_ROW_MAX * rows as f64 {
        return Ok(Some(Refusal::new(Reason::ManyGroups, "it has about as many groups as rows")));
    }
    if !keeps_few && states * values > GROUPS_PER_ROW_MAX * rows as f64 {
        let text = "the values that it keeps for its groups are about as many as the rows";
        return Ok(Some(Refusal::new(Reason::KeepsValues, text)));
    }
    Ok(None)
}

/// Whether a function keeps all its values, each with what it is ordered by, which are more bytes than rows have.
fn keeps_values(function: &AggregateFunctionExpr) -> bool {
    matches!(function.fun().name(), "array_agg" | "string_agg")
        && !function.order_bys().is_empty()
        && !function.is_distinct()
}

/// How many values a function keeps for a group at most, where that is more than one and known.
fn values_kept(function: &AggregateFunctionExpr) -> f64 {
    let arguments = function.expressions();
    let place = match (function.fun().name(), arguments.get(1)) {
        ("nth_value", Some(place)) => place.downcast_ref::<Literal>(),
        _ => None,
    };
    match place.map(Literal::value) {
        Some(ScalarValue::Int64(Some(place))) => place.unsigned_abs() as f64,
        _ => 1.0,
    }
}

/// About how many states the segments of a scan have together, of so many rows and groups in all: each has its own, as
/// many as it has rows at most, and as many as it has different values of the grouping columns.
fn states_of_segments(group: &PhysicalGroupBy, scan: &StorageScanExec, rows: f64, groups: f64) -> f64 {
    let statistics = &scan.table().statistics;
    let columns = group.expr().iter().map(|(key, _)| statistics.columns().get(scan.table_column(key)?));
    let columns = columns.collect::<Option<Vec<_>>>();
    let count = |counts: &UInt64Array, segment: usize| {
        (segment < counts.len() && counts.is_valid(segment)).then(|| counts.value(segment) as f64)
    };
    let in_segment = |segment: usize| count(statistics.row_counts(), segment).unwrap_or(0.0);
    let all: f64 = scan.kept_segments().iter().map(|segment| in_segment(*segment)).sum();
    let states = scan.kept_segments().iter().map(|segment| {
        let different = columns.as_ref().and_then(|columns| {
            columns.iter().try_fold(1.0, |product, column| Some(product * count(&column.distinct, *segment)?))
        });
        groups.min(different.unwrap_or(groups)).min(rows * in_segment(*segment) / all.max(1.0))
    });
    states.sum()
}

/// About how many groups there are, where the statistics know each grouping column.
pub(super) fn group_count(group: &PhysicalGroupBy, input: &Statistics) -> Option<f64> {
    let counts = group.expr().iter().map(|(expression, _)| {
        let column = expression.downcast_ref::<Column>()?;
        let statistics = input.column_statistics.get(column.index())?;
        statistics.distinct_count.get_value().map(|count| *count as f64)
    });
    counts.collect::<Option<Vec<_>>>().map(|counts| counts.into_iter().product())
}

impl PhysicalOptimizerRule for PushReduction {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        if pushdown(config) == Pushdown::Off {
            return Ok(plan);
        }
        let plan = plan.transform_up(|node| {
            if let Some(aggregate) = node.downcast_ref::<AggregateExec>() {
                if *aggregate.mode() != AggregateMode::Partial {
                    return Ok(Transformed::no(node));
                }
                let Some(below) = self.aggregate(aggregate, config)? else {
                    let union = self.aggregate_of_union(aggregate, config)?;
                    return Ok(union.map_or_else(|| Transformed::no(node), Transformed::yes));
                };
                return match below {
                    Below::States(states) => Ok(Transformed::yes(states)),
                    Below::Input(input) => replace_children_if_necessary(node, vec![input]).map(Transformed::yes),
                };
            }
            let Some(sort) = node.downcast_ref::<SortExec>() else { return Ok(Transformed::no(node)) };
            match self.top(sort, config)? {
                Some(below) => replace_children_if_necessary(node, vec![below]).map(Transformed::yes),
                None => Ok(Transformed::no(node)),
            }
        });
        plan.map(|plan| plan.data)
    }

    fn name(&self) -> &str {
        "PushReduction"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// The column of a reduced scan as an expression over the projected rows, where it stands for one.
pub(crate) fn before_reduction(
    fragment: &Fragment,
    filter: &Arc<dyn PhysicalExpr>,
) -> Result<Option<Arc<dyn PhysicalExpr>>> {
    let Some(reduction) = fragment.reduction() else { return Ok(Some(Arc::clone(filter))) };
    if !reduction.build_schemas().is_empty() {
        return Ok(None);
    }
    let Some(aggregate) = reduction.plan().downcast_ref::<AggregateExec>() else {
        // The first rows of an order have the columns of all rows. Only the sort that they are for
        // stands above the scan, and what its bound rules out is not among its first rows.
        return Ok(Some(Arc::clone(filter)));
    };
    if !aggregate.group_expr().is_single() {
        return Ok(None);
    }
    let groups: Vec<ProjectionColumn> = aggregate
        .group_expr()
        .expr()
        .iter()
        .map(|(expression, name)| ProjectionColumn { expression: Arc::clone(expression), name: name.clone() })
        .collect();
    let known = columns_used(filter).into_iter().all(|index| index < groups.len());
    if known { substitute(filter, &groups).map(Some) } else { Ok(None) }
}
