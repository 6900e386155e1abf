//! EXISTS and IN over a correlated subquery that has one row whatever it finds: an aggregate without GROUP BY.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::Result;
use datafusion::logical_expr::expr::{Exists, InSubquery};
use datafusion::logical_expr::{
    Distinct, Expr, FetchType, LogicalPlan, LogicalPlanBuilder, Projection, SkipType, Subquery, lit, scalar_subquery,
};
use datafusion::optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule};

/// Asks for the value of the row instead: DataFusion 55 makes a join of EXISTS and IN, in which there is no row where
/// nothing was aggregated (<https://github.com/apache/datafusion/issues/24960>), and is right about values.
/// ```text
/// EXISTS (SELECT count(*) FROM u WHERE u.k = t.k)                       true
/// EXISTS (SELECT 1 FROM u WHERE u.k = t.k HAVING count(*) < 3)          (SELECT count(*) < 3 FROM u WHERE u.k = t.k) IS TRUE
/// x IN (SELECT count(*) FROM u WHERE u.k = t.k)                         x = (SELECT count(*) FROM u WHERE u.k = t.k)
/// ```
#[derive(Debug)]
pub struct OneRowSubqueries;

impl OptimizerRule for OneRowSubqueries {
    fn name(&self) -> &str {
        "one_row_subqueries"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::TopDown)
    }

    fn rewrite(&self, plan: LogicalPlan, _config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        plan.map_expressions(|expression| expression.transform_up(as_value))
    }
}

fn as_value(expression: Expr) -> Result<Transformed<Expr>> {
    let (row, negated) = match &expression {
        Expr::Exists(Exists { subquery, negated }) | Expr::InSubquery(InSubquery { subquery, negated, .. }) => {
            (Row::of(subquery)?, *negated)
        }
        _ => return Ok(Transformed::no(expression)),
    };
    let Some(Row { plan, condition }) = row else { return Ok(Transformed::no(expression)) };
    let is_there = condition.map(|condition| scalar_subquery(Arc::new(condition)).is_true());
    let holds = match expression {
        Expr::InSubquery(InSubquery { expr, .. }) => {
            let equals = (*expr).eq(scalar_subquery(Arc::new(plan)));
            is_there.map_or(equals.clone(), |is_there| is_there.and(equals))
        }
        _ => is_there.unwrap_or(lit(true)),
    };
    Ok(Transformed::yes(if negated { !holds } else { holds }))
}

/// What a subquery has one row of.
struct Row {
    /// Without HAVING.
    plan: LogicalPlan,
    /// A plan of one row that says whether HAVING lets it pass.
    condition: Option<LogicalPlan>,
}

impl Row {
    /// `None` where it is not correlated, or may have no row, or several.
    fn of(subquery: &Subquery) -> Result<Option<Self>> {
        if subquery.outer_ref_columns.is_empty() { Ok(None) } else { Self::of_plan(&subquery.subquery) }
    }

    #[recursive::recursive]
    fn of_plan(plan: &LogicalPlan) -> Result<Option<Self>> {
        match plan {
            LogicalPlan::Aggregate(aggregate) if aggregate.group_expr.is_empty() => {
                Ok(Some(Self { plan: plan.clone(), condition: None }))
            }
            LogicalPlan::Projection(projection) => {
                let Some(row) = Self::of_plan(&projection.input)? else { return Ok(None) };
                let plan = Projection::try_new(projection.expr.clone(), Arc::new(row.plan))?;
                Ok(Some(Self { plan: LogicalPlan::Projection(plan), ..row }))
            }
            LogicalPlan::SubqueryAlias(alias) => {
                let Some(row) = Self::of_plan(&alias.input)? else { return Ok(None) };
                let plan = LogicalPlanBuilder::from(row.plan).alias(alias.alias.clone())?.build()?;
                Ok(Some(Self { plan, ..row }))
            }
            // Of two conditions the upper one may fail where the lower one lets nothing pass.
            LogicalPlan::Filter(filter) => {
                let row = Self::of_plan(&filter.input)?.filter(|row| row.condition.is_none());
                let Some(row) = row else { return Ok(None) };
                let condition =
                    LogicalPlanBuilder::from(row.plan.clone()).project([filter.predicate.clone()])?.build()?;
                Ok(Some(Self { plan: row.plan, condition: Some(condition) }))
            }
            LogicalPlan::Sort(sort) if sort.fetch.is_none_or(|rows| rows > 0) => Self::of_plan(&sort.input),
            LogicalPlan::Distinct(Distinct::All(input)) => Self::of_plan(input),
            LogicalPlan::Limit(limit) => match (limit.get_skip_type()?, limit.get_fetch_type()?) {
                (SkipType::Literal(0), FetchType::Literal(rows)) if rows != Some(0) => Self::of_plan(&limit.input),
                _ => Ok(None),
            },
            _ => Ok(None),
        }
    }
}
