//! IN lists with placeholders, kept from rules that compare lists by what they say: these intersect `a IN ($1, $2)` and
//! `a IN ($2, $3)`, as if no two placeholders could have one value.
//!
//! A short list of a column is written out, as the optimizer does it in the end: `a = $1 OR a = $2`. Any other is hidden
//! behind a placeholder of its own while the optimizer runs: `a = $::0` for `a IN (...)`, and `a <> $::0` for
//! `a NOT IN (...)`. To no rule is such a placeholder more than a value that it does not know: what it does with a
//! comparison, it may do with the list.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, internal_datafusion_err};
use datafusion::error::Result;
use datafusion::logical_expr::expr::{BinaryExpr, InList, Placeholder};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan, Operator};
use datafusion::optimizer::simplify_expressions::THRESHOLD_INLINE_INLIST;

use crate::binding::without_casts;
use crate::kept_plan::{has_placeholder, is_constant};

/// No parameter and no constant is called so.
const PREFIX: &str = "$::";

/// The lists that are hidden in a plan, by the numbers of their placeholders.
#[derive(Debug, Default)]
pub(crate) struct HiddenLists(Vec<Vec<Expr>>);

impl HiddenLists {
    /// Hides the lists with placeholders of a plan, whose types are coerced; `None` where one has something else than
    /// constants.
    pub(crate) fn hide(plan: LogicalPlan) -> Result<Option<(LogicalPlan, Self)>> {
        let (mut lists, mut are_constant) = (Self::default(), true);
        let plan = map_expressions(plan, &mut |part| match part {
            Expr::InList(list) if any(&list.list, has_placeholder)? => {
                if any(&list.list, |value| Ok(!is_constant(value)?))? {
                    are_constant = false;
                    return Ok(Transformed::no(Expr::InList(list)));
                }
                lists.without_list(list).map(Transformed::yes)
            }
            part => Ok(Transformed::no(part)),
        })?;
        Ok(are_constant.then_some((plan, lists)))
    }

    fn without_list(&mut self, list: InList) -> Result<Expr> {
        let InList { expr, list, negated } = list;
        let is_column = matches!(without_casts(&expr), Expr::Column(_));
        let is_written_out = list.len() == 1 || list.len() <= THRESHOLD_INLINE_INLIST && is_column;
        let (operator, combine): (_, fn(Expr, Expr) -> Expr) =
            if negated { (Operator::NotEq, Expr::and) } else { (Operator::Eq, Expr::or) };
        let values = if is_written_out { list } else { vec![self.placeholder_of(list)?] };
        let compared =
            values.into_iter().map(|value| Expr::BinaryExpr(BinaryExpr::new(expr.clone(), operator, Box::new(value))));
        compared.reduce(combine).ok_or_else(|| internal_datafusion_err!("a list with placeholders is not empty"))
    }

    fn placeholder_of(&mut self, list: Vec<Expr>) -> Result<Expr> {
        let schema = DFSchema::empty();
        let data_type = list.first().map_or(Ok(DataType::Null), |value| value.get_type(&schema))?;
        let field = Field::new("", data_type, any(&list, |value| value.nullable(&schema))?);
        let id = format!("{PREFIX}{}", self.0.len());
        self.0.push(list);
        Ok(Expr::Placeholder(Placeholder::new_with_field(id, Some(Arc::new(field)))))
    }

    /// Puts the lists back; `None` where something became of one that cannot be said of it.
    pub(crate) fn show(&self, plan: LogicalPlan) -> Result<Option<LogicalPlan>> {
        if self.0.is_empty() {
            return Ok(Some(plan));
        }
        let mut are_shown = true;
        let plan = map_expressions(plan, &mut |part| match part {
            Expr::BinaryExpr(BinaryExpr { left, op: op @ (Operator::Eq | Operator::NotEq), right }) => {
                let (expr, list) = match (self.list(&left), self.list(&right)) {
                    (None, Some(list)) => (left, list),
                    (Some(list), None) => (right, list),
                    _ => return Ok(Transformed::no(Expr::BinaryExpr(BinaryExpr { left, op, right }))),
                };
                let list = InList { expr, list: list.clone(), negated: op == Operator::NotEq };
                Ok(Transformed::yes(Expr::InList(list)))
            }
            part => Ok(Transformed::no(part)),
        })?;
        let plan = map_expressions(plan, &mut |part| {
            are_shown &= self.list(&part).is_none();
            Ok(Transformed::no(part))
        })?;
        Ok(are_shown.then_some(plan))
    }

    fn list(&self, expression: &Expr) -> Option<&Vec<Expr>> {
        let Expr::Placeholder(placeholder) = expression else { return None };
        self.0.get(placeholder.id.strip_prefix(PREFIX)?.parse::<usize>().ok()?)
    }
}

fn any(expressions: &[Expr], mut is: impl FnMut(&Expr) -> Result<bool>) -> Result<bool> {
    for expression in expressions {
        if is(expression)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Changes the expressions of a plan, whose columns keep their names.
fn map_expressions(
    plan: LogicalPlan,
    change: &mut dyn FnMut(Expr) -> Result<Transformed<Expr>>,
) -> Result<LogicalPlan> {
    let changed = plan.transform_up_with_subqueries(|node| {
        let names = NamePreserver::new(&node);
        node.map_expressions(|expression| {
            let name = names.save(&expression);
            let changed = expression.transform_up(&mut *change)?;
            Ok(if changed.transformed { changed.update_data(|expression| name.restore(expression)) } else { changed })
        })
    })?;
    Ok(changed.data)
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::Schema;
    use datafusion::logical_expr::{col, lit, placeholder, table_scan};

    use super::*;

    fn filter(condition: Expr) -> LogicalPlan {
        let schema = Schema::new(["a", "b"].map(|name| Field::new(name, DataType::Int64, true)).to_vec());
        table_scan(Some("t"), &schema, None).unwrap().filter(condition).unwrap().build().unwrap()
    }

    fn values(count: usize) -> Vec<Expr> {
        (1..=count).map(|number| placeholder(format!("${number}"))).collect()
    }

    #[test]
    fn lists_are_written_out_or_hidden() {
        let sum = || col("a") + col("b");
        for (condition, expected) in [
            (col("a").in_list(values(2), false), "t.a = $1 OR t.a = $2"),
            (col("a").in_list(values(3), true), "t.a != $1 AND t.a != $2 AND t.a != $3"),
            (sum().in_list(values(1), false), "t.a + t.b = $1"),
            (sum().in_list(values(2), false), "t.a + t.b = $::0"),
            (col("a").in_list(values(4), true).and(col("a").in_list(values(4), false)), "t.a != $::0 AND t.a = $::1"),
            (col("a").in_list(vec![lit(1_i64), lit(2_i64)], false), "t.a IN ([Int64(1), Int64(2)])"),
        ] {
            let (hidden, lists) = HiddenLists::hide(filter(condition.clone())).unwrap().unwrap();
            assert!(hidden.to_string().contains(&format!("Filter: {expected}\n")), "{condition}: {hidden}");
            let shown = lists.show(hidden.clone()).unwrap().unwrap();
            let expected = if lists.0.is_empty() { hidden } else { filter(condition) };
            assert_eq!(shown, expected);
        }
    }

    #[test]
    fn what_cannot_be_said_of_a_list_is_refused() {
        let with_column = col("a").in_list(vec![placeholder("$1"), col("b")], false);
        assert!(HiddenLists::hide(filter(with_column)).unwrap().is_none());
        let (_, lists) = HiddenLists::hide(filter(col("a").in_list(values(4), false))).unwrap().unwrap();
        let hidden = || placeholder("$::0");
        assert_eq!(
            lists.show(filter(hidden().not_eq(col("b")))).unwrap(),
            Some(filter(col("b").in_list(values(4), true)))
        );
        for other in [col("a").lt(hidden()), (col("a") + hidden()).eq(lit(1_i64)), hidden().eq(hidden())] {
            assert_eq!(lists.show(filter(other)).unwrap(), None);
        }
    }
}
