//! Operators on dates and intervals that mean what they mean in PostgreSQL.

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::error::Result;
use datafusion::logical_expr::expr::BinaryExpr;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use datafusion::logical_expr::{Cast, Expr, ExprSchemable, Operator, cast, lit};
use datafusion::sql::sqlparser::ast::BinaryOperator;

const NANOS_PER_DAY: i128 = 86_400_000_000_000;
/// Of a month that is compared with days, as PostgreSQL counts.
const DAYS_PER_MONTH: i128 = 30;
const NANOS: DataType = DataType::Timestamp(TimeUnit::Nanosecond, None);

/// DataFusion 55 compares intervals by their months, then by their days, and then by what is left, so that no duration, of
/// which all is left, is longer than a day; it drops the hours of an interval that is added to a date; and the difference of
/// two dates compares with nothing.
#[derive(Debug)]
pub(crate) struct TemporalOperators;

impl ExprPlanner for TemporalOperators {
    fn plan_binary_op(&self, expr: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        let RawBinaryExpr { op, left, right } = &expr;
        let data_type = |side: &Expr| side.get_type(schema).unwrap_or(DataType::Null);
        let is_date = |side: &Expr| data_type(side) == DataType::Date32;
        // The left side may be a long chain, whose type takes a while: it is asked for last.
        let planned = match op {
            BinaryOperator::Minus if is_date(right) && is_date(left) => Some(minus(days_of(left), days_of(right))),
            BinaryOperator::Plus | BinaryOperator::Minus if has_time(right) && is_date(left) => {
                let operator = if *op == BinaryOperator::Plus { Operator::Plus } else { Operator::Minus };
                Some(binary(cast(left.clone(), NANOS), operator, right.clone()))
            }
            BinaryOperator::Plus if has_time(left) && is_date(right) => {
                Some(binary(cast(right.clone(), NANOS), Operator::Plus, left.clone()))
            }
            op => comparison(op).and_then(|operator| {
                let compare = |interval: i128, other: &Expr, operator: Operator| {
                    compared(other, &data_type(other), operator, interval)
                };
                match (nanos_of(left), nanos_of(right)) {
                    (Some(left), Some(right)) => {
                        let number = |nanos: i128| lit(ScalarValue::Decimal128(Some(nanos), 38, 0));
                        Some(binary(number(left), operator, number(right)))
                    }
                    (None, Some(interval)) => compare(interval, left, operator),
                    (Some(interval), None) => compare(interval, right, operator.swap()?),
                    (None, None) => None,
                }
            }),
        };
        Ok(planned.map_or_else(|| PlannerResult::Original(expr), PlannerResult::Planned))
    }
}

fn binary(left: Expr, operator: Operator, right: Expr) -> Expr {
    Expr::BinaryExpr(BinaryExpr::new(Box::new(left), operator, Box::new(right)))
}

fn minus(left: Expr, right: Expr) -> Expr {
    binary(left, Operator::Minus, right)
}

/// The number of a date's day.
fn days_of(date: &Expr) -> Expr {
    cast(cast(date.clone(), DataType::Int32), DataType::Int64)
}

/// Whether an expression is a difference of dates, in days.
fn is_days(expression: &Expr) -> bool {
    let is_day = |side: &Expr| {
        matches!(side, Expr::Cast(Cast { expr, field }) if *field.data_type() == DataType::Int64
            && matches!(expr.as_ref(), Expr::Cast(Cast { field, .. }) if *field.data_type() == DataType::Int32))
    };
    matches!(expression, Expr::BinaryExpr(BinaryExpr { left, op: Operator::Minus, right }) if is_day(left) && is_day(right))
}

fn comparison(operator: &BinaryOperator) -> Option<Operator> {
    Some(match operator {
        BinaryOperator::Eq => Operator::Eq,
        BinaryOperator::NotEq => Operator::NotEq,
        BinaryOperator::Lt => Operator::Lt,
        BinaryOperator::LtEq => Operator::LtEq,
        BinaryOperator::Gt => Operator::Gt,
        BinaryOperator::GtEq => Operator::GtEq,
        _ => return None,
    })
}

/// How long an interval is that is written out.
fn nanos_of(expression: &Expr) -> Option<i128> {
    let Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(interval)), _) = expression else { return None };
    let days = i128::from(interval.months) * DAYS_PER_MONTH + i128::from(interval.days);
    Some(days * NANOS_PER_DAY + i128::from(interval.nanoseconds))
}

/// Whether an interval that is written out has more than whole days in it.
fn has_time(expression: &Expr) -> bool {
    matches!(expression, Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(interval)), _) if interval.nanoseconds != 0)
}

/// A duration or a number of days, compared with so many nanoseconds; `None` for what is neither.
fn compared(value: &Expr, data_type: &DataType, operator: Operator, nanos: i128) -> Option<Expr> {
    if is_days(value) {
        let days = if nanos % NANOS_PER_DAY == 0 {
            lit(i64::try_from(nanos / NANOS_PER_DAY).ok()?)
        } else {
            lit(nanos as f64 / NANOS_PER_DAY as f64)
        };
        return Some(binary(value.clone(), operator, days));
    }
    let DataType::Duration(_) = data_type else { return None };
    let nanos = ScalarValue::DurationNanosecond(Some(i64::try_from(nanos).ok()?));
    let value = match data_type {
        DataType::Duration(TimeUnit::Nanosecond) => value.clone(),
        _ => cast(value.clone(), DataType::Duration(TimeUnit::Nanosecond)),
    };
    Some(binary(value, operator, lit(nanos)))
}
