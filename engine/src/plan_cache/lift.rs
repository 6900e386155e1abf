//! Which constants of a statement may change without another plan: those of its conditions that columns are compared
//! with. Constants elsewhere name columns of the result, are matched with GROUP BY, count rows, or decide types.
//!
//! Parameters name nothing but themselves, and their types are known: they may be computed with in the outermost SELECT
//! list as well, and say how many rows are returned.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    BinaryOperator, CastKind, DataType, Expr, GroupByExpr, JoinConstraint, JoinOperator, LimitClause, Query, Select,
    SelectItem, SetExpr, Statement, UnaryOperator, Value, ValueWithSpan, VisitMut, VisitorMut, visit_expressions_mut,
};
use datafusion::sql::sqlparser::tokenizer::Location;

/// What a constant of a statement is to its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lift {
    /// A part of it.
    Fixed,
    /// A value that it is run with; `negated` with a minus before it.
    Lifted { negated: bool },
}

/// Values of a list that may change: longer ones are a part of the plan.
const LIST_VALUES_MAX: usize = 64;

/// The constants of a statement in the order of its text.
pub(super) type Lifts = Vec<Lift>;

/// Puts placeholders in the place of the constants that may change. `literals` are the places where constants begin.
/// `None` where nothing is lifted, or a parameter of the statement stands where no constant would be lifted.
pub(super) fn lift(statement: &mut Statement, literals: &[Location], parameters: usize) -> Option<Lifts> {
    let mut lifter = Lifter {
        ordinals: literals.iter().enumerate().map(|(ordinal, location)| (*location, ordinal)).collect(),
        lifts: vec![Lift::Fixed; literals.len()],
        parameters: parameters_of_result(statement),
    };
    let _ = statement.visit(&mut lifter);
    let lifts_some = parameters > 0 || lifter.lifts.iter().any(|lift| *lift != Lift::Fixed);
    (lifts_some && lifter.parameters == parameters).then_some(lifter.lifts)
}

fn is_text(expression: &Expr) -> bool {
    matches!(expression, Expr::Value(ValueWithSpan { value: Value::SingleQuotedString(_), .. }))
}

/// Whether an expression is made of constants and parameters.
fn is_constant(expression: &Expr) -> bool {
    match expression {
        Expr::Value(_) | Expr::TypedString(_) => true,
        Expr::Nested(inner)
        | Expr::UnaryOp { op: UnaryOperator::Minus, expr: inner }
        | Expr::Cast { kind: CastKind::Cast | CastKind::DoubleColon, expr: inner, .. } => is_constant(inner),
        Expr::BinaryOp { left, right, .. } => is_constant(left) && is_constant(right),
        _ => false,
    }
}

/// How many parameters of a query are a part of its result, but not of its plan.
fn parameters_of_result(statement: &Statement) -> usize {
    let Statement::Query(query) = statement else { return 0 };
    let selected = match query.body.as_ref() {
        SetExpr::Select(select) => parameters_of_columns(select),
        _ => 0,
    };
    selected + parameters_of_limit(query)
}

fn parameters_of_limit(query: &Query) -> usize {
    let (limit, offset) = match &query.limit_clause {
        Some(LimitClause::LimitOffset { limit, offset, limit_by }) if limit_by.is_empty() => {
            (limit.as_ref(), offset.as_ref().map(|offset| &offset.value))
        }
        Some(LimitClause::OffsetCommaLimit { offset, limit }) => (Some(limit), Some(offset)),
        _ => (None, None),
    };
    limit.into_iter().chain(offset).filter(|rows| is_parameter(rows)).count()
}

/// Those that columns are computed with. None where rows are grouped by anything but columns of tables: an expression or
/// a number there may mean one of these.
fn parameters_of_columns(select: &Select) -> usize {
    let GroupByExpr::Expressions(groups, modifiers) = &select.group_by else { return 0 };
    let (mut parameters, mut names) = (0, Vec::new());
    for item in &select.projection {
        let (expression, alias) = match item {
            SelectItem::UnnamedExpr(expression) => (expression, None),
            SelectItem::ExprWithAlias { expr, alias } => (expr, Some(alias)),
            _ => continue,
        };
        let of_column = parameters_of(expression);
        parameters += of_column;
        names.extend(alias.filter(|_| of_column > 0).map(|alias| &alias.value));
    }
    let is_of_table = |group: &Expr| match group {
        Expr::Identifier(name) => !names.iter().any(|alias| alias.eq_ignore_ascii_case(&name.value)),
        Expr::CompoundIdentifier(_) => true,
        _ => false,
    };
    if modifiers.is_empty() && groups.iter().all(is_of_table) { parameters } else { 0 }
}

/// Not those of functions, whose types may depend on values.
fn parameters_of(expression: &Expr) -> usize {
    match expression {
        Expr::Nested(inner) => parameters_of(inner),
        Expr::BinaryOp {
            left,
            op: BinaryOperator::Plus | BinaryOperator::Minus | BinaryOperator::Multiply | BinaryOperator::Divide,
            right,
        } => parameters_of(left) + parameters_of(right),
        expression => usize::from(is_parameter(expression)),
    }
}

fn is_parameter(expression: &Expr) -> bool {
    matches!(expression, Expr::Value(ValueWithSpan { value: Value::Placeholder(_), .. }))
}

/// The placeholder of a constant. No parameter of a statement can be named so.
pub(super) fn placeholder(ordinal: usize) -> String {
    format!("$:{ordinal}")
}

/// Renames placeholders.
pub(super) fn rename(statement: &mut Statement, names: &BTreeMap<String, String>) {
    let _ = visit_expressions_mut(statement, |expression| {
        if let Expr::Value(ValueWithSpan { value: Value::Placeholder(name), .. }) = expression
            && let Some(new) = names.get(name)
        {
            name.clone_from(new);
        }
        ControlFlow::<()>::Continue(())
    });
}

struct Lifter {
    ordinals: HashMap<Location, usize>,
    lifts: Lifts,
    /// Parameters of the statement that stand where a constant would be lifted.
    parameters: usize,
}

impl VisitorMut for Lifter {
    type Break = ();

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        for join in select.from.iter_mut().flat_map(|table| &mut table.joins) {
            if let JoinOperator::Join(JoinConstraint::On(condition))
            | JoinOperator::Inner(JoinConstraint::On(condition))
            | JoinOperator::Left(JoinConstraint::On(condition))
            | JoinOperator::LeftOuter(JoinConstraint::On(condition))
            | JoinOperator::Right(JoinConstraint::On(condition))
            | JoinOperator::RightOuter(JoinConstraint::On(condition))
            | JoinOperator::FullOuter(JoinConstraint::On(condition)) = &mut join.join_operator
            {
                self.condition(condition);
            }
        }
        select.selection.iter_mut().chain(&mut select.having).for_each(|condition| self.condition(condition));
        ControlFlow::Continue(())
    }
}

impl Lifter {
    fn condition(&mut self, condition: &mut Expr) {
        match condition {
            Expr::Nested(inner) | Expr::UnaryOp { op: UnaryOperator::Not, expr: inner } => self.condition(inner),
            Expr::BinaryOp { left, op: BinaryOperator::And | BinaryOperator::Or, right } => {
                self.condition(left);
                self.condition(right);
            }
            Expr::BinaryOp {
                left,
                op:
                    BinaryOperator::Eq
                    | BinaryOperator::NotEq
                    | BinaryOperator::Lt
                    | BinaryOperator::LtEq
                    | BinaryOperator::Gt
                    | BinaryOperator::GtEq,
                right,
            } => {
                self.operand(left);
                self.operand(right);
            }
            Expr::Between { expr, low, high, .. } => {
                self.operand(expr);
                self.operand(low);
                self.operand(high);
            }
            Expr::InList { list, .. } if list.len() <= LIST_VALUES_MAX && list.iter().all(is_constant) => {
                list.iter_mut().for_each(|value| self.operand(value));
            }
            Expr::Like { pattern, .. } | Expr::ILike { pattern, .. } => self.operand(pattern),
            _ => {}
        }
    }

    fn operand(&mut self, operand: &mut Expr) {
        match operand {
            Expr::Nested(inner) => self.operand(inner),
            // What a number is as a time is decided by its type before placeholders have one.
            Expr::Cast {
                kind: CastKind::Cast | CastKind::DoubleColon,
                expr: inner,
                data_type,
                array: false,
                format: None,
            } if is_text(inner) || *data_type == DataType::Date => self.operand(inner),
            Expr::BinaryOp {
                left,
                op: BinaryOperator::Plus | BinaryOperator::Minus | BinaryOperator::Multiply,
                right,
            } => {
                self.operand(left);
                self.operand(right);
            }
            Expr::UnaryOp { op: UnaryOperator::Minus, expr } => {
                // A number with its sign is one constant.
                if let Expr::Value(value @ ValueWithSpan { value: Value::Number(..), .. }) = expr.as_mut()
                    && self.constant(value, true)
                {
                    let value = Expr::Value(value.clone());
                    *operand = value;
                }
            }
            Expr::Value(ValueWithSpan { value: Value::Placeholder(_), .. }) => self.parameters += 1,
            Expr::Value(value) => {
                self.constant(value, false);
            }
            Expr::TypedString(text) => {
                let (mut value, data_type) = (text.value.clone(), text.data_type.clone());
                if self.constant(&mut value, false) {
                    let (kind, expr) = (CastKind::Cast, Box::new(Expr::Value(value)));
                    *operand = Expr::Cast { kind, expr, data_type, array: false, format: None };
                }
            }
            _ => {}
        }
    }

    /// Lifts a constant if it is one of those that may be.
    fn constant(&mut self, value: &mut ValueWithSpan, negated: bool) -> bool {
        let Some(ordinal) = self.ordinals.get(&value.span.start).copied() else { return false };
        let Some(lift) = self.lifts.get_mut(ordinal) else { return false };
        *lift = Lift::Lifted { negated };
        value.value = Value::Placeholder(placeholder(ordinal));
        true
    }
}
