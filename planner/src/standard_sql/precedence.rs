//! Operators that the parser binds otherwise than SQL does: it takes all that follows for the right side of IS DISTINCT
//! FROM, and has `||` bind like `*`, where PostgreSQL has it bind less than `+`. Operators of lists and JSON stay as the
//! parser has them.

use datafusion::sql::sqlparser::ast::{BinaryOperator, Expr, UnaryOperator, Value};

/// Binds the operator of an expression whose parts are bound right. What is in parentheses stays as it is.
pub(super) fn rebind(expression: &mut Expr) {
    let taken = std::mem::replace(expression, Expr::value(Value::Null));
    *expression = match taken {
        Expr::IsDistinctFrom(left, right) if is_any(&right, is_logical) => {
            at_first(*right, is_logical, |first| Expr::IsDistinctFrom(left, Box::new(first)))
        }
        Expr::IsNotDistinctFrom(left, right) if is_any(&right, is_logical) => {
            at_first(*right, is_logical, |first| Expr::IsNotDistinctFrom(left, Box::new(first)))
        }
        // What the two above have come out of.
        Expr::UnaryOp { op: UnaryOperator::Not, expr } if is_any(&expr, is_logical) => {
            at_first(*expr, is_logical, |first| Expr::UnaryOp { op: UnaryOperator::Not, expr: Box::new(first) })
        }
        Expr::BinaryOp { left, op: BinaryOperator::And, right } if is_any(&right, is_or) => {
            at_first(*right, is_or, |first| binary(*left, BinaryOperator::And, first))
        }
        Expr::BinaryOp { left, op, right } if is_arithmetic(&op) => {
            let (before, last) = match *left {
                Expr::BinaryOp { left, op, right } if is_concatenation(&op) => (Some(*left), *right),
                left => (None, left),
            };
            let joined = at_first(*right, is_concatenation, |first| binary(last, op, first));
            match before {
                Some(before) => {
                    at_first(joined, is_concatenation, |first| binary(before, BinaryOperator::StringConcat, first))
                }
                None => joined,
            }
        }
        other => other,
    };
}

fn binary(left: Expr, op: BinaryOperator, right: Expr) -> Expr {
    Expr::BinaryOp { left: Box::new(left), op, right: Box::new(right) }
}

fn is_any(expression: &Expr, is_operator: fn(&BinaryOperator) -> bool) -> bool {
    matches!(expression, Expr::BinaryOp { op, .. } if is_operator(op))
}

/// A chain of operators with `replace` of its first part, which is all of it where it is no such chain.
fn at_first(expression: Expr, is_operator: fn(&BinaryOperator) -> bool, replace: impl FnOnce(Expr) -> Expr) -> Expr {
    // From the outermost operator to the innermost.
    let (mut first, mut others) = (expression, Vec::new());
    loop {
        match first {
            Expr::BinaryOp { left, op, right } if is_operator(&op) => {
                others.push((op, right));
                first = *left;
            }
            single => {
                let replaced = replace(single);
                let add = |left, (op, right)| Expr::BinaryOp { left: Box::new(left), op, right };
                return others.into_iter().rev().fold(replaced, add);
            }
        }
    }
}

fn is_or(op: &BinaryOperator) -> bool {
    matches!(op, BinaryOperator::Or)
}

fn is_logical(op: &BinaryOperator) -> bool {
    matches!(op, BinaryOperator::And | BinaryOperator::Or)
}

fn is_concatenation(op: &BinaryOperator) -> bool {
    matches!(op, BinaryOperator::StringConcat)
}

fn is_arithmetic(op: &BinaryOperator) -> bool {
    use BinaryOperator::{Divide, Minus, Modulo, Multiply, Plus};
    matches!(op, Plus | Minus | Multiply | Divide | Modulo)
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use datafusion::sql::sqlparser::ast::{VisitMut, VisitorMut};
    use datafusion::sql::sqlparser::dialect::GenericDialect;
    use datafusion::sql::sqlparser::parser::Parser;

    use super::*;

    struct Rebind;

    impl VisitorMut for Rebind {
        type Break = ();

        fn post_visit_expr(&mut self, expression: &mut Expr) -> ControlFlow<()> {
            rebind(expression);
            ControlFlow::Continue(())
        }
    }

    /// With each operator in parentheses; those of the text are `[]`.
    fn shown(expression: &Expr) -> String {
        match expression {
            Expr::BinaryOp { left, op, right } => format!("({} {op} {})", shown(left), shown(right)),
            Expr::IsDistinctFrom(left, right) => format!("({} <=> {})", shown(left), shown(right)),
            Expr::IsNotDistinctFrom(left, right) => format!("({} == {})", shown(left), shown(right)),
            Expr::UnaryOp { op, expr } => format!("({op} {})", shown(expr)),
            Expr::Nested(expr) => format!("[{}]", shown(expr)),
            other => other.to_string(),
        }
    }

    #[test]
    fn operators_bind_as_in_postgresql() {
        for (text, expected) in [
            ("a IS DISTINCT FROM b AND c", "((a <=> b) AND c)"),
            ("a IS NOT DISTINCT FROM b OR c AND d", "((a == b) OR (c AND d))"),
            ("p AND a IS DISTINCT FROM b OR c", "((p AND (a <=> b)) OR c)"),
            ("p AND a IS DISTINCT FROM b AND c OR d AND e", "((p AND ((a <=> b) AND c)) OR (d AND e))"),
            ("p OR a IS DISTINCT FROM b AND c OR d", "(p OR (((a <=> b) AND c) OR d))"),
            ("NOT a IS DISTINCT FROM b AND c", "((NOT (a <=> b)) AND c)"),
            ("p AND NOT a IS DISTINCT FROM b OR c", "((p AND (NOT (a <=> b))) OR c)"),
            ("a IS DISTINCT FROM b AND c IS DISTINCT FROM d OR e", "(((a <=> b) AND (c <=> d)) OR e)"),
            ("a IS DISTINCT FROM b + 1 AND c = 2", "((a <=> (b + 1)) AND (c = 2))"),
            ("a IS DISTINCT FROM (b AND c)", "(a <=> [(b AND c)])"),
            ("NOT (a AND b)", "(NOT [(a AND b)])"),
            ("a AND (b OR c)", "(a AND [(b OR c)])"),
            ("'a' || b + 1", "('a' || (b + 1))"),
            ("'a' || b % 7 || 'c'", "(('a' || (b % 7)) || 'c')"),
            ("a + b || c", "((a + b) || c)"),
            ("a + b || c || d", "(((a + b) || c) || d)"),
            ("a || b - c || d", "((a || (b - c)) || d)"),
            ("a || b * c * d + e - f", "(a || ((((b * c) * d) + e) - f))"),
            ("p + a || q * r", "((p + a) || (q * r))"),
            ("p || a + q || r * s || t", "(((p || (a + q)) || (r * s)) || t)"),
            ("a * b || c", "((a * b) || c)"),
            ("(a || b) * c", "([(a || b)] * c)"),
            ("a || b || c = d || e", "(((a || b) || c) = (d || e))"),
            ("a - b - c * d", "((a - b) - (c * d))"),
        ] {
            let mut parsed = Parser::new(&GenericDialect {}).try_with_sql(text).unwrap().parse_expr().unwrap();
            let _ = parsed.visit(&mut Rebind);
            assert_eq!(shown(&parsed), expected, "{text}");
        }
    }
}
