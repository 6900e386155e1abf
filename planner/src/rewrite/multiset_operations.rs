//! INTERSECT ALL and EXCEPT ALL.

use std::sync::Arc;

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{Column, JoinType, NullEquality};
use datafusion::error::Result;
use datafusion::functions_window::expr_fn::row_number;
use datafusion::logical_expr::{Distinct, Expr, ExprFunctionExt, Join, LogicalPlan, LogicalPlanBuilder, col};
use datafusion::optimizer::AnalyzerRule;

/// The column that numbers copies.
const COPY: &str = "__copy";

/// Gives the copies of each row numbers, by which they find the copies on the other side.
///
/// DataFusion 55 makes a semi join of INTERSECT ALL, which keeps all copies of a row that the other side has once, and an
/// anti join of EXCEPT ALL, which keeps none (<https://github.com/apache/datafusion/issues/12955>,
/// <https://github.com/apache/datafusion/issues/12956>). SQL keeps the smaller number of copies, and the difference.
#[derive(Debug)]
pub struct MultisetOperations;

impl AnalyzerRule for MultisetOperations {
    fn name(&self) -> &str {
        "multiset_operations"
    }

    fn analyze(&self, plan: LogicalPlan, _config: &ConfigOptions) -> Result<LogicalPlan> {
        plan.transform_up_with_subqueries(|plan| match plan {
            LogicalPlan::Join(join) if is_of_copies(&join) => with_numbers(join).map(Transformed::yes),
            plan => Ok(Transformed::no(plan)),
        })
        .map(|plan| plan.data)
    }
}

/// Whether a join is one of these two: nothing else in SQL compares whole rows so.
fn is_of_copies(join: &Join) -> bool {
    matches!(join.join_type, JoinType::LeftSemi | JoinType::LeftAnti)
        && join.null_equality == NullEquality::NullEqualsNull
        && join.filter.is_none()
        && join.on.len() == join.left.schema().fields().len()
        && !matches!(join.left.as_ref(), LogicalPlan::Distinct(Distinct::All(_)))
        && !join.on.iter().any(|(left, _)| matches!(left, Expr::Column(column) if column.name == COPY))
}

fn with_numbers(join: Join) -> Result<LogicalPlan> {
    let columns: Vec<Expr> = columns_of(&join.left);
    let (left, right) = (numbered(Arc::unwrap_or_clone(join.left))?, numbered(Arc::unwrap_or_clone(join.right))?);
    let copy = || Expr::Column(Column::new_unqualified(COPY));
    let (mut left_keys, mut right_keys): (Vec<Expr>, Vec<Expr>) = join.on.into_iter().unzip();
    left_keys.push(copy());
    right_keys.push(copy());
    let builder =
        LogicalPlanBuilder::from(left).join_with_expr_keys(right, join.join_type, (left_keys, right_keys), None)?;
    let joined = match builder.build()? {
        LogicalPlan::Join(mut joined) => {
            joined.null_equality = NullEquality::NullEqualsNull;
            LogicalPlan::Join(joined)
        }
        other => other,
    };
    LogicalPlanBuilder::from(joined).project(columns)?.build()
}

fn columns_of(plan: &LogicalPlan) -> Vec<Expr> {
    plan.schema().iter().map(|(qualifier, field)| Expr::Column(Column::new(qualifier.cloned(), field.name()))).collect()
}

/// The rows of a plan with the number of each copy.
fn numbered(plan: LogicalPlan) -> Result<LogicalPlan> {
    let columns = columns_of(&plan);
    let number = row_number().partition_by(columns.clone()).build()?;
    let name = number.schema_name().to_string();
    let numbers = LogicalPlanBuilder::from(plan).window([number])?;
    numbers.project(columns.into_iter().chain([col(Column::new_unqualified(name)).alias(COPY)]))?.build()
}
