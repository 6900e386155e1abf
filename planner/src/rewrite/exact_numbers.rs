//! Comparisons of decimals with floating-point numbers, and of zeros.

use arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::expr::{BinaryExpr, InList};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{Cast, Expr, ExprSchemable, LogicalPlan, TryCast, cast};

use super::sound_simplification::{input_schema, is_lossy_cast};

/// Says what a comparison means where DataFusion 55 compares something else.
///
/// A number with a point is a binary fraction to it, and what a decimal is compared with becomes a decimal with 15 digits
/// after the point: of 66.71 that is 66.709999999999994, so that `price = 66.71` finds nothing. The decimal is the shortest
/// one that stands for the number, as it was written. Where there is none with so few digits, and where decimals are
/// compared with a column of floating-point numbers, both are compared as floating-point numbers, as other systems do.
///
/// And 0.0 equals -0.0, but a list of values has one of them: it gets the other one as well.
pub(super) fn compare_exactly(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    let mut is_doubtful = false;
    plan.apply_expressions(|expression| {
        is_doubtful |= expression.exists(|part| Ok(has_zero(part) || decimal_of(part).is_some()))?;
        Ok(TreeNodeRecursion::Continue)
    })?;
    if !is_doubtful {
        return Ok(Transformed::no(plan));
    }
    let schema = input_schema(&plan)?;
    let names = NamePreserver::new(&plan);
    plan.map_expressions(|expression| {
        let name = names.save(&expression);
        let compared = compared_exactly(expression, &schema)?;
        Ok(if compared.transformed { compared.update_data(|expression| name.restore(expression)) } else { compared })
    })
}

fn compared_exactly(expression: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let compared = expression.transform_down(|part| match part {
        Expr::BinaryExpr(binary) if binary.op.supports_propagation() => as_floats(binary, schema),
        part => Ok(Transformed::no(part)),
    })?;
    compared.transform_data(|expression| {
        expression.transform_up(|part| {
            if let Some(exact) = decimal_of(&part).and_then(|(from, to)| exact_decimal(from, to)) {
                return Ok(Transformed::yes(Expr::Literal(exact, None)));
            }
            if has_zero(&part) { Ok(with_both_zeros(part)) } else { Ok(Transformed::no(part)) }
        })
    })
}

/// What is cast to a decimal of 128 bits, and to which, unless it is a decimal or a whole number that is written out.
fn decimal_of(expression: &Expr) -> Option<(&Expr, &DataType)> {
    let (Expr::Cast(Cast { expr, field }) | Expr::TryCast(TryCast { expr, field })) = expression else { return None };
    let is_float = |value: &ScalarValue| matches!(value, ScalarValue::Float32(_) | ScalarValue::Float64(_));
    let may_be_float = match expr.as_ref() {
        Expr::Literal(value, _) => is_float(value),
        _ => true,
    };
    (may_be_float && matches!(field.data_type(), DataType::Decimal128(..))).then_some((expr, field.data_type()))
}

/// The shortest decimal that stands for a floating-point number, if that has no more digits than its type.
fn exact_decimal(from: &Expr, to: &DataType) -> Option<ScalarValue> {
    let (Expr::Literal(value, _), DataType::Decimal128(precision, scale)) = (from, to) else { return None };
    // All digits, and no more than are needed to tell it from its neighbours.
    let digits = match value {
        ScalarValue::Float64(Some(value)) if value.is_finite() => value.to_string(),
        ScalarValue::Float32(Some(value)) if value.is_finite() => value.to_string(),
        _ => return None,
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((&digits, ""));
    let zeros = usize::try_from(*scale).ok()?.checked_sub(fraction.len())?;
    let all = format!("{whole}{fraction}{}", "0".repeat(zeros));
    let number: i128 = all.parse().ok()?;
    let above = 10_u128.checked_pow(u32::from(*precision))?;
    (number.unsigned_abs() < above).then_some(ScalarValue::Decimal128(Some(number), *precision, *scale))
}

/// Digits after the point of the decimals that DataFusion makes of floating-point numbers, to compare them.
const COERCED_SCALE: [(DataType, i8); 2] = [(DataType::Float64, 15), (DataType::Float32, 7)];

/// A comparison in which both sides were cast to a decimal because one of them is a floating-point number that is none.
fn as_floats(binary: BinaryExpr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let scale = match (decimal_of(&binary.left), decimal_of(&binary.right)) {
        (Some((_, to @ DataType::Decimal128(_, scale))), Some((_, other))) if to == other => *scale,
        _ => return Ok(Transformed::no(Expr::BinaryExpr(binary))),
    };
    // A cast to fewer digits is somebody's who wants the number to be rounded.
    let is_coerced = |from: &DataType| COERCED_SCALE.iter().any(|(float, least)| from == float && scale >= *least);
    let float = |side: &Expr| {
        let (from, to) = decimal_of(side)?;
        // What is a placeholder now will be written out.
        let is_known = matches!(from, Expr::Literal(..)) || from.any_column_refs() || from.contains_outer();
        let is_float = is_known && from.get_type(schema).is_ok_and(|from| is_coerced(&from));
        (is_float && exact_decimal(from, to).is_none()).then(|| from.clone())
    };
    let exact = |side: Expr| match decimal_of(&side) {
        Some((from, to)) if from.get_type(schema).is_ok_and(|from| !is_lossy_cast(&from, to, false)) => from.clone(),
        _ => side,
    };
    let BinaryExpr { left, op, right } = binary;
    let (new_left, new_right) = match (float(&left), float(&right)) {
        (Some(float), None) => (float, cast(exact(*right), DataType::Float64)),
        (None, Some(float)) => (cast(exact(*left), DataType::Float64), float),
        _ => return Ok(Transformed::no(Expr::BinaryExpr(BinaryExpr { left, op, right }))),
    };
    let wide = |side: Expr| match side.get_type(schema)? {
        DataType::Float64 => Ok(side),
        _ => Ok::<_, DataFusionError>(cast(side, DataType::Float64)),
    };
    let (left, right) = (Box::new(wide(new_left)?), Box::new(wide(new_right)?));
    Ok(Transformed::yes(Expr::BinaryExpr(BinaryExpr { left, op, right })))
}

fn zero_of(expression: &Expr) -> Option<ScalarValue> {
    match expression {
        Expr::Literal(ScalarValue::Float64(Some(value)), _) if *value == 0.0 => {
            Some(ScalarValue::Float64(Some(-value)))
        }
        Expr::Literal(ScalarValue::Float32(Some(value)), _) if *value == 0.0 => {
            Some(ScalarValue::Float32(Some(-value)))
        }
        _ => None,
    }
}

/// The zero that a list lacks.
fn missing_zero(list: &InList) -> Option<ScalarValue> {
    let other = list.list.iter().find_map(zero_of)?;
    let has_both = list.list.iter().any(|value| matches!(value, Expr::Literal(value, _) if *value == other));
    (!has_both).then_some(other)
}

fn has_zero(expression: &Expr) -> bool {
    matches!(expression, Expr::InList(list) if missing_zero(list).is_some())
}

fn with_both_zeros(expression: Expr) -> Transformed<Expr> {
    match expression {
        Expr::InList(mut list) => {
            list.list.extend(missing_zero(&list).map(|zero| Expr::Literal(zero, None)));
            Transformed::yes(Expr::InList(list))
        }
        other => Transformed::no(other),
    }
}
