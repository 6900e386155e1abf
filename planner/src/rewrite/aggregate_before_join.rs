//! The logical rule that aggregates the rows of a table before an outer join brings them to their groups.

use std::collections::BTreeSet;
use std::sync::Arc;

use datafusion::common::tree_node::Transformed;
use datafusion::common::{Column, NullEquality};
use datafusion::datasource::source_as_provider;
use datafusion::error::Result;
use datafusion::functions_aggregate::count::count_udaf;
use datafusion::functions_aggregate::min_max::{max_udaf, min_udaf};
use datafusion::functions_aggregate::sum::sum_udaf;
use datafusion::logical_expr::expr::{AggregateFunction, AggregateFunctionParams};
use datafusion::logical_expr::{
    Aggregate, AggregateUDF, Expr, ExprSchemable, Join, JoinType, LogicalPlan, LogicalPlanBuilder, TableScan, cast,
    when,
};
use datafusion::optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule};
use datafusion::prelude::lit;

use crate::options::{Pushdown, pushdown};
use crate::table::AubadeTable;

/// Rows for each different key from which on aggregating first pays: storage nodes do it, and send so much less.
const ROWS_PER_KEY_MIN: usize = 4;

/// Aggregates the inner side of an outer join by the keys of the join, and then what comes of that:
/// ```text
/// Aggregate by c.id: count(o.total)        Projection c.id, sum(n), or 0 where that is null
///   Left join c.id = o.buyer                 Aggregate by c.id: sum(n)
///     c                                        Left join c.id = o.buyer
///     o                                          c
///                                                Aggregate by o.buyer: count(o.total) as n
///                                                  o
/// ```
/// All rows of the inner side with one key go to the same rows of the outer side, whatever else they hold (Yan and
/// Larson, "Eager Aggregation and Lazy Aggregation", VLDB 1995). The inner side has to be a table of the cluster whose
/// statistics say that keys are repeated: its storage nodes then send states instead of rows.
#[derive(Debug)]
pub struct AggregateBeforeJoin;

/// The two sides of an outer join.
struct Sides<'a> {
    /// The one all of whose rows are kept.
    outer: &'a LogicalPlan,
    inner: &'a LogicalPlan,
    /// Columns of the inner side that equal something of the outer side.
    keys: Vec<Column>,
}

impl<'a> Sides<'a> {
    fn of(join: &'a Join) -> Option<Self> {
        if join.filter.is_some() || join.null_equality != NullEquality::NullEqualsNothing || join.on.is_empty() {
            return None;
        }
        let (outer, inner) = match join.join_type {
            JoinType::Left => (&join.left, &join.right),
            JoinType::Right => (&join.right, &join.left),
            _ => return None,
        };
        let keys = join.on.iter().map(|(left, right)| {
            let key = if join.join_type == JoinType::Left { right } else { left };
            key.try_as_col().cloned()
        });
        Some(Self { outer, inner, keys: keys.collect::<Option<Vec<_>>>()? })
    }

    /// Whether there are much fewer different keys than rows, by the statistics of the table.
    fn repeats_keys(&self) -> Result<bool> {
        let Some(scan) = table_under(self.inner) else { return Ok(false) };
        let provider = source_as_provider(&scan.source)?;
        let Some(table) = provider.downcast_ref::<AubadeTable>().map(AubadeTable::table) else { return Ok(false) };
        let statistics = table.statistics.to_datafusion();
        let distinct = |key: &Column| {
            let column = statistics.column_statistics.get(table.schema.index_of(&key.name).ok()?)?;
            column.distinct_count.get_value().copied()
        };
        let keys = self.keys.iter().map(distinct).try_fold(1_usize, |keys, distinct| keys.checked_mul(distinct?));
        let rows = statistics.num_rows.get_value();
        Ok(keys.zip(rows).is_some_and(|(keys, rows)| keys.saturating_mul(ROWS_PER_KEY_MIN) <= *rows))
    }
}

/// The table that a plan reads, with nothing above it but filters and a choice of columns.
fn table_under(plan: &LogicalPlan) -> Option<&TableScan> {
    match plan {
        LogicalPlan::TableScan(scan) => scan.fetch.is_none().then_some(scan),
        LogicalPlan::Filter(filter) => table_under(&filter.input),
        LogicalPlan::SubqueryAlias(alias) => table_under(&alias.input),
        LogicalPlan::Projection(projection) if only_columns(&projection.expr) => table_under(&projection.input),
        _ => None,
    }
}

fn only_columns(expressions: &[Expr]) -> bool {
    expressions.iter().all(|expression| matches!(expression, Expr::Column(_)))
}

/// The join below an aggregation, with nothing in between but a choice of columns.
fn join_under(plan: &LogicalPlan) -> Option<&Join> {
    match plan {
        LogicalPlan::Join(join) => Some(join),
        LogicalPlan::Projection(projection) if only_columns(&projection.expr) => join_under(&projection.input),
        _ => None,
    }
}

/// What puts the values of an aggregate over parts of its rows together, if it is one of a column of `inner`; null, as
/// the column is in rows without a partner, must add nothing to it.
fn putting_together(expression: &Expr, inner: &LogicalPlan) -> Option<Arc<AggregateUDF>> {
    let Expr::AggregateFunction(AggregateFunction { func, params }) = expression else { return None };
    let AggregateFunctionParams { args, distinct, filter, order_by, null_treatment } = params;
    let plain = !*distinct && filter.is_none() && order_by.is_empty() && null_treatment.is_none();
    let [Expr::Column(column)] = args.as_slice() else { return None };
    if !plain || !inner.schema().has_column(column) {
        return None;
    }
    let is = |known: &Arc<AggregateUDF>| func.as_ref() == known.as_ref();
    if is(&count_udaf()) {
        return Some(sum_udaf());
    }
    [sum_udaf(), min_udaf(), max_udaf()].into_iter().find(is)
}

impl AggregateBeforeJoin {
    fn split(aggregate: &Aggregate) -> Result<Option<LogicalPlan>> {
        let Some(join) = join_under(&aggregate.input) else { return Ok(None) };
        let Some(sides) = Sides::of(join) else { return Ok(None) };
        let grouped: BTreeSet<&Column> = aggregate.group_expr.iter().flat_map(Expr::column_refs).collect();
        let by_outer = grouped.into_iter().all(|column| sides.outer.schema().has_column(column));
        // Of sets each has its own groups, and what is volatile has a value for each row of the join.
        let plain = |key: &Expr| !matches!(key, Expr::GroupingSet(_)) && !key.is_volatile();
        let plain_keys = aggregate.group_expr.iter().all(plain);
        let functions = aggregate.aggr_expr.iter().map(|expression| putting_together(expression, sides.inner));
        let Some(functions) = functions.collect::<Option<Vec<_>>>() else { return Ok(None) };
        if !by_outer || !plain_keys || functions.is_empty() || !sides.repeats_keys()? {
            return Ok(None);
        }

        let keys: Vec<Expr> = sides.keys.iter().cloned().map(Expr::Column).collect();
        let first =
            LogicalPlanBuilder::from(sides.inner.clone()).aggregate(keys, aggregate.aggr_expr.clone())?.build()?;
        // Under names of their own: the other side can have columns that are called like an aggregate.
        let values: Vec<Column> =
            (0..functions.len()).map(|index| Column::from_name(format!("__early_{index}"))).collect();
        let key_count = first.schema().fields().len().saturating_sub(functions.len());
        let outputs = first.schema().columns().into_iter().enumerate().map(|(index, column)| {
            match index.checked_sub(key_count).and_then(|index| values.get(index)) {
                Some(value) => Expr::Column(column).alias(value.name()),
                None => Expr::Column(column),
            }
        });
        let outputs = outputs.collect::<Vec<_>>();
        let first = LogicalPlanBuilder::from(first).project(outputs)?.build()?;
        let (left, right) = match join.join_type {
            JoinType::Left => (Arc::clone(&join.left), Arc::new(first)),
            _ => (Arc::new(first), Arc::clone(&join.right)),
        };
        let joined = Join::try_new(
            left,
            right,
            join.on.clone(),
            None,
            join.join_type,
            join.join_constraint,
            join.null_equality,
            join.null_aware,
        )?;
        let totals = functions.iter().zip(values).map(|(function, value)| function.call(vec![Expr::Column(value)]));
        let then = LogicalPlanBuilder::from(LogicalPlan::Join(joined))
            .aggregate(aggregate.group_expr.clone(), totals.collect::<Vec<_>>())?
            .build()?;

        let wanted = aggregate.schema.iter().zip(then.schema().columns()).enumerate();
        let outputs = wanted.map(|(index, ((qualifier, field), column))| {
            let counts = index >= aggregate.group_expr.len() && !field.is_nullable();
            let mut value = Expr::Column(column);
            if value.get_type(then.schema())? != *field.data_type() {
                value = cast(value, field.data_type().clone());
            }
            // Of the aggregates only a count is never null.
            let value = if counts { when(value.clone().is_not_null(), value).otherwise(lit(0_i64))? } else { value };
            Ok(match qualifier {
                _ if value == Expr::Column(Column::new(qualifier.cloned(), field.name())) => value,
                qualifier => value.alias_qualified(qualifier.cloned(), field.name()),
            })
        });
        let outputs = outputs.collect::<Result<Vec<_>>>()?;
        LogicalPlanBuilder::from(then).project(outputs)?.build().map(Some)
    }
}

impl OptimizerRule for AggregateBeforeJoin {
    fn name(&self) -> &str {
        "aggregate_before_join"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::BottomUp)
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        if pushdown(&config.options()) == Pushdown::Off {
            return Ok(Transformed::no(plan));
        }
        let LogicalPlan::Aggregate(aggregate) = &plan else { return Ok(Transformed::no(plan)) };
        Ok(match Self::split(aggregate)? {
            Some(split) => Transformed::yes(split),
            None => Transformed::no(plan),
        })
    }
}
