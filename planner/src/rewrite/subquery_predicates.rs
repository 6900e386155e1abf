//! NOT IN and EXISTS in places for which DataFusion has no join, or one that takes NULL for a value.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, ExprSchema, JoinType, ScalarValue, not_impl_err};
use datafusion::error::Result;
use datafusion::functions_aggregate::count::count;
use datafusion::logical_expr::expr::{Exists, InSubquery};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{
    BinaryExpr, Expr, ExprSchemable, Filter, LogicalPlan, LogicalPlanBuilder, Operator, Subquery, exists, lit,
    scalar_subquery, when,
};
use datafusion::optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule};

/// Says by EXISTS, and by counting, what `x IN (SELECT y ...)` means where something can be NULL.
///
/// DataFusion 55 has a join that knows of NULL for one place: NOT IN over an uncorrelated subquery, as a condition of its own.
/// Everywhere else it takes `x NOT IN` for "no `y` is `x`" (below OR), or for "there is neither `x` nor NULL in the whole
/// table" (correlated; <https://github.com/apache/datafusion/issues/25347>), and has no plan at all for IN and EXISTS outside
/// of conditions. `x NOT IN (SELECT y FROM s)` is true where
/// ```text
/// NOT EXISTS (SELECT FROM s WHERE y = x) AND NOT EXISTS (SELECT FROM s WHERE y IS NULL)
///     AND (x IS NOT NULL OR NOT EXISTS (SELECT FROM s))
/// ```
/// In a condition that is all there is to be known; elsewhere it makes a difference whether it is false or NULL.
#[derive(Debug)]
pub struct SubqueryPredicates;

impl OptimizerRule for SubqueryPredicates {
    fn name(&self) -> &str {
        "subquery_predicates"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::TopDown)
    }

    fn rewrite(&self, plan: LogicalPlan, _config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        plan.apply_expressions(|expression| {
            expression.apply(|part| match part {
                Expr::ScalarSubquery(subquery)
                | Expr::Exists(Exists { subquery, .. })
                | Expr::InSubquery(InSubquery { subquery, .. }) => refuse_below_outer_join(subquery),
                _ => Ok(TreeNodeRecursion::Continue),
            })
        })?;
        match plan {
            LogicalPlan::Filter(filter) => {
                let schema = Arc::clone(filter.input.schema());
                let place = Place { schema: &schema, by_counting: false };
                let predicate = place.when_it_is(true, filter.predicate.clone(), true)?;
                if predicate == filter.predicate {
                    return Ok(Transformed::no(LogicalPlan::Filter(filter)));
                }
                Filter::try_new(predicate, filter.input).map(|filter| Transformed::yes(LogicalPlan::Filter(filter)))
            }
            LogicalPlan::Projection(_) => {
                let schema = merge_schema(&plan.inputs());
                let place = Place { schema: &schema, by_counting: true };
                let names = NamePreserver::new(&plan);
                plan.map_expressions(|expression| {
                    let name = names.save(&expression);
                    let exact = place.exact(expression)?;
                    Ok(if exact.transformed { exact.update_data(|expression| name.restore(expression)) } else { exact })
                })
            }
            plan => Ok(Transformed::no(plan)),
        }
    }
}

/// Where a predicate stands.
#[derive(Clone, Copy)]
struct Place<'a> {
    /// Of the rows that it is asked of.
    schema: &'a DFSchema,
    /// Whether EXISTS has no plan there.
    by_counting: bool,
}

impl Place<'_> {
    /// What is true where `expression` is `wanted`, and false or NULL elsewhere. `is_alone`: it is a condition of its own.
    #[recursive::recursive]
    fn when_it_is(self, wanted: bool, expression: Expr, is_alone: bool) -> Result<Expr> {
        let or_not = |holds: Expr| if wanted { holds } else { !holds };
        if !has_in(&expression)? {
            return Ok(or_not(expression));
        }
        match expression {
            Expr::BinaryExpr(BinaryExpr { left, op: op @ (Operator::And | Operator::Or), right }) => {
                // NOT (a OR b) is NOT a AND NOT b.
                let are_both = (op == Operator::And) == wanted;
                let side = |side: Expr| self.when_it_is(wanted, side, is_alone && are_both);
                let (left, right) = (side(*left)?, side(*right)?);
                Ok(if are_both { left.and(right) } else { left.or(right) })
            }
            Expr::Not(negated) => self.when_it_is(!wanted, *negated, is_alone),
            Expr::InSubquery(InSubquery { expr, subquery, negated }) if negated != wanted => {
                Ok(Expr::InSubquery(InSubquery { expr, subquery, negated: false }))
            }
            Expr::InSubquery(InSubquery { expr, subquery, .. }) => self.when_not_in(*expr, subquery, is_alone),
            other => self.exact(other).map(|exact| or_not(exact.data)),
        }
    }

    fn when_not_in(self, value: Expr, subquery: Subquery, is_alone: bool) -> Result<Expr> {
        let has_join = is_alone && subquery.outer_ref_columns.is_empty() && value.any_column_refs();
        let membership = if has_join { None } else { Membership::of(self, &value, &subquery)? };
        let Some(membership) = membership.filter(Membership::may_be_null) else {
            return Ok(Expr::InSubquery(InSubquery { expr: Box::new(value), subquery, negated: true }));
        };
        let mut holds = !membership.has_equal()?;
        if let Some(has_null) = membership.has_null()? {
            holds = holds.and(!has_null);
        }
        Ok(match membership.is_of_null()? {
            Some((is_null, has_any)) => holds.and((!is_null).or(!has_any)),
            None => holds,
        })
    }

    /// The same value, by predicates that have a plan in this place.
    fn exact(self, expression: Expr) -> Result<Transformed<Expr>> {
        expression.transform_up(|part| match part {
            Expr::InSubquery(InSubquery { expr, subquery, negated }) => {
                let membership = Membership::of(self, &expr, &subquery)?;
                let Some(membership) = membership.filter(|it| self.by_counting || it.may_be_null()) else {
                    return Ok(Transformed::no(Expr::InSubquery(InSubquery { expr, subquery, negated })));
                };
                let is_in = membership.is_in()?;
                Ok(Transformed::yes(if negated { !is_in } else { is_in }))
            }
            Expr::Exists(Exists { subquery, negated }) if self.by_counting => {
                let has_any = self.has_rows(subquery.subquery.as_ref().clone())?;
                Ok(Transformed::yes(if negated { !has_any } else { has_any }))
            }
            part => Ok(Transformed::no(part)),
        })
    }

    /// Whether a subquery has rows.
    fn has_rows(self, plan: LogicalPlan) -> Result<Expr> {
        let is_correlated = !plan.all_out_ref_exprs().is_empty();
        if !self.by_counting && is_correlated {
            return Ok(exists(Arc::new(plan)));
        }
        // An uncorrelated one runs once, before the plan around it.
        let mut rows = LogicalPlanBuilder::from(plan);
        if !is_correlated {
            rows = rows.limit(0, Some(1))?;
        }
        let counted = rows.aggregate(Vec::<Expr>::new(), [count(lit(1_i64))])?.build()?;
        Ok(scalar_subquery(Arc::new(counted)).gt(lit(0_i64)))
    }
}

/// DataFusion 55 takes a condition on the query around a subquery out of an outer join in it, which then yields other rows
/// (<https://github.com/apache/datafusion/issues/25507>).
fn refuse_below_outer_join(subquery: &Subquery) -> Result<TreeNodeRecursion> {
    if subquery.outer_ref_columns.is_empty() {
        return Ok(TreeNodeRecursion::Continue);
    }
    subquery.subquery.apply(|plan| {
        let LogicalPlan::Join(join) = plan else { return Ok(TreeNodeRecursion::Continue) };
        let may_be_absent = match join.join_type {
            JoinType::Left => [Some(&join.right), None],
            JoinType::Right => [Some(&join.left), None],
            JoinType::Full => [Some(&join.left), Some(&join.right)],
            _ => [None, None],
        };
        // What LATERAL refers to is the other side of the join.
        let is_lateral = |side: &LogicalPlan| side.exists(|plan| Ok(matches!(plan, LogicalPlan::Subquery(_))));
        for side in may_be_absent.into_iter().flatten() {
            if let Some(Expr::OuterReferenceColumn(_, outer)) = side.all_out_ref_exprs().first()
                && !is_lateral(side)?
            {
                return not_impl_err!(
                    "a subquery that compares {outer} below an outer join, on the side of which there may be no rows, is \
                     not supported: compare it in WHERE, or in the condition of the join"
                );
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })
}

fn has_in(expression: &Expr) -> Result<bool> {
    expression.exists(|part| Ok(matches!(part, Expr::InSubquery(_))))
}

/// `value IN (subquery)`.
struct Membership<'a> {
    place: Place<'a>,
    value: &'a Expr,
    /// The value as the subquery names it.
    outer_value: Expr,
    value_may_be_null: bool,
    plan: &'a LogicalPlan,
    /// The only column of the subquery.
    column: Expr,
    column_may_be_null: bool,
}

impl<'a> Membership<'a> {
    /// `None` where the value cannot stand inside of the subquery.
    fn of(place: Place<'a>, value: &'a Expr, subquery: &'a Subquery) -> Result<Option<Self>> {
        let is_apart = |part: &Expr| {
            Ok(matches!(part, Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_))
                || matches!(part, Expr::OuterReferenceColumn(..)))
        };
        let plan = subquery.subquery.as_ref();
        if plan.schema().fields().len() != 1 || value.is_volatile() || value.exists(is_apart)? {
            return Ok(None);
        }
        let outer = value.clone().transform_up(|part| match part {
            Expr::Column(column) => {
                let field = Arc::clone(place.schema.field_from_column(&column)?);
                Ok(Transformed::yes(Expr::OuterReferenceColumn(field, column)))
            }
            part => Ok(Transformed::no(part)),
        })?;
        let (qualifier, field) = plan.schema().qualified_field(0);
        Ok(Some(Self {
            place,
            value,
            outer_value: outer.data,
            value_may_be_null: value.nullable(place.schema)?,
            plan,
            column: Expr::Column(Column::new(qualifier.cloned(), field.name())),
            column_may_be_null: field.is_nullable(),
        }))
    }

    fn may_be_null(&self) -> bool {
        self.value_may_be_null || self.column_may_be_null
    }

    fn has_rows_where(&self, condition: Expr) -> Result<Expr> {
        self.place.has_rows(LogicalPlanBuilder::from(self.plan.clone()).filter(condition)?.build()?)
    }

    fn has_equal(&self) -> Result<Expr> {
        self.has_rows_where(self.column.clone().eq(self.outer_value.clone()))
    }

    /// Whether there is NULL in the subquery; `None` where there never is.
    fn has_null(&self) -> Result<Option<Expr>> {
        let has_null = self.column_may_be_null.then(|| self.has_rows_where(self.column.clone().is_null()));
        has_null.transpose()
    }

    /// Whether the value is NULL, and whether the subquery has rows; `None` where the value never is.
    fn is_of_null(&self) -> Result<Option<(Expr, Expr)>> {
        if !self.value_may_be_null {
            return Ok(None);
        }
        Ok(Some((self.value.clone().is_null(), self.place.has_rows(self.plan.clone())?)))
    }

    /// True, false or NULL.
    fn is_in(&self) -> Result<Expr> {
        let is_of_null = self.is_of_null()?.map(|(is_null, has_any)| is_null.and(has_any));
        let unknown = self.has_null()?.into_iter().chain(is_of_null).reduce(Expr::or);
        let mut cases = when(self.has_equal()?, lit(true));
        if let Some(unknown) = unknown {
            cases = cases.when(unknown, lit(ScalarValue::Boolean(None)));
        }
        cases.otherwise(lit(false))
    }
}
