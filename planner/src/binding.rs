//! What the values of a plan are to it: nothing but literals, or something that decides more.

use std::collections::{BTreeMap, BTreeSet};
use std::iter;

use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, LogicalPlan, Operator};

use crate::kept_plan::is_constant;

/// Values by the names of their placeholders.
pub type Values = BTreeMap<String, ScalarValue>;

/// The values that a plan was made for.
#[derive(Clone, Debug)]
pub struct Binding {
    /// Those that occur in it.
    pub values: Values,
    /// How often each of those occurs in the plan that are nothing but literals which something is compared with. From
    /// any other, something else may have followed.
    pub literals: BTreeMap<String, usize>,
}

/// What is known of the placeholders of a plan, of which every node is compared with what values made of it.
#[derive(Debug, Default)]
pub(crate) struct Occurrences {
    literals: BTreeMap<String, usize>,
    decisive: BTreeSet<String>,
}

impl Occurrences {
    /// Compares the expressions of a node with placeholders with those that it has with values. Where they differ in more
    /// than literals, all of its values decide.
    pub(crate) fn compare(&mut self, before: &LogicalPlan, after: &LogicalPlan) -> Result<()> {
        let (before, after) = (before.expressions(), after.expressions());
        let mut are_alike = before.len() == after.len();
        for (before, after) in before.iter().zip(&after) {
            are_alike = are_alike && self.are_alike(before, after)?;
        }
        if are_alike { Ok(()) } else { before.iter().try_for_each(|expression| self.decides(expression)) }
    }

    /// What the plan was made for.
    pub(crate) fn binding(self, values: &Values) -> Binding {
        let Self { mut literals, decisive } = self;
        let values = values.iter().filter(|(name, _)| literals.contains_key(*name) || decisive.contains(*name));
        let values = values.map(|(name, value)| (name.clone(), value.clone())).collect();
        literals.retain(|name, _| !decisive.contains(name));
        Binding { values, literals }
    }

    /// Whether two conditions are the same but for literals.
    fn are_alike(&mut self, before: &Expr, after: &Expr) -> Result<bool> {
        match (before, after) {
            (Expr::Alias(before), Expr::Alias(after)) => self.are_alike(&before.expr, &after.expr),
            (Expr::Not(before), Expr::Not(after)) => self.are_alike(before, after),
            (Expr::BinaryExpr(one), Expr::BinaryExpr(other)) if one.op == other.op => match one.op {
                Operator::And | Operator::Or => {
                    Ok(self.are_alike(&one.left, &other.left)? && self.are_alike(&one.right, &other.right)?)
                }
                Operator::Eq | Operator::NotEq | Operator::Lt | Operator::LtEq | Operator::Gt | Operator::GtEq => {
                    self.have_like_operands(&[(&one.left, &other.left), (&one.right, &other.right)])
                }
                _ => Ok(before == after),
            },
            (Expr::Between(one), Expr::Between(other)) if one.negated == other.negated => {
                self.have_like_operands(&[(&one.expr, &other.expr), (&one.low, &other.low), (&one.high, &other.high)])
            }
            (Expr::Like(one), Expr::Like(other))
                if (one.negated, one.escape_char, one.case_insensitive)
                    == (other.negated, other.escape_char, other.case_insensitive) =>
            {
                self.have_like_operands(&[(&one.expr, &other.expr), (&one.pattern, &other.pattern)])
            }
            (Expr::InList(one), Expr::InList(other))
                if one.negated == other.negated && one.list.len() == other.list.len() =>
            {
                let of_lists = one.list.iter().zip(&other.list);
                let operands: Vec<(&Expr, &Expr)> =
                    iter::once((one.expr.as_ref(), other.expr.as_ref())).chain(of_lists).collect();
                self.have_like_operands(&operands)
            }
            (before, after) => Ok(before == after),
        }
    }

    fn have_like_operands(&mut self, operands: &[(&Expr, &Expr)]) -> Result<bool> {
        for (before, after) in operands {
            match (without_casts(before), without_casts(after)) {
                (Expr::Placeholder(placeholder), Expr::Literal(..)) => {
                    *self.literals.entry(placeholder.id.clone()).or_default() += 1;
                }
                // What is computed of values follows from them.
                (before, Expr::Literal(..)) if is_constant(before)? => self.decides(before)?,
                (before, after) if before == after => {}
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    fn decides(&mut self, expression: &Expr) -> Result<()> {
        expression.apply(|part| {
            if let Expr::Placeholder(placeholder) = part {
                self.decisive.insert(placeholder.id.clone());
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(())
    }
}

/// What is cast. Which type two sides are compared in depends on their types only.
pub(crate) fn without_casts(expression: &Expr) -> &Expr {
    match expression {
        Expr::Cast(cast) => without_casts(&cast.expr),
        Expr::TryCast(cast) => without_casts(&cast.expr),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::{DataType, Field, Schema};
    use datafusion::logical_expr::{cast, col, lit, placeholder, table_scan};

    use super::*;

    fn literals(before: Expr, after: Expr) -> Vec<(String, usize)> {
        let schema = Schema::new(["a", "b"].map(|name| Arc::new(Field::new(name, DataType::Int64, true))).to_vec());
        let filter =
            |condition| table_scan(Some("t"), &schema, None).unwrap().filter(condition).unwrap().build().unwrap();
        let mut occurrences = Occurrences::default();
        occurrences.compare(&filter(before), &filter(after)).unwrap();
        let values = ["$1", "$2", "$3", "$4"].map(|name| (name.to_owned(), ScalarValue::Int64(Some(1))));
        let Binding { values, literals } = occurrences.binding(&Values::from(values));
        assert!(values.contains_key("$1") && !values.contains_key("$4"));
        literals.into_iter().collect()
    }

    #[test]
    fn values_that_are_compared_are_literals() {
        let (one, two) = (|| placeholder("$1"), || placeholder("$2"));
        let before = col("a").gt(one()).and(cast(col("b"), DataType::Float64).eq(two())).or(col("b").lt(one()));
        let after = col("a").gt(lit(5_i64)).and(col("b").eq(lit(7_i64))).or(col("b").lt(lit(5_i64)));
        assert_eq!(literals(before, after), [("$1".to_owned(), 2), ("$2".to_owned(), 1)]);
        let list = |values| col("a").in_list(values, true);
        let (before, after) = (list(vec![one(), two(), lit(3_i64)]), list(vec![lit(5_i64), lit(7_i64), lit(3_i64)]));
        assert_eq!(literals(before.clone(), after), [("$1".to_owned(), 1), ("$2".to_owned(), 1)]);
        assert_eq!(literals(before, list(vec![lit(5_i64), lit(3_i64)])), []);
    }

    #[test]
    fn values_that_decide_more_are_none() {
        let (one, two) = (|| placeholder("$1"), || placeholder("$2"));
        for (before, after) in [
            // A condition is decided, dropped, or another one.
            (col("a").eq(one()).or(one().eq(lit(0_i64))), col("a").eq(lit(5_i64))),
            (col("a").eq(one()).and(col("a").not_eq(two())), col("a").eq(lit(5_i64))),
            (col("a").like(one()), col("a").eq(lit("x"))),
            (col("a").gt(one()), col("b").gt(lit(5_i64))),
            // One is dropped, so that others are compared with what they are not.
            (
                col("a").gt(one()).and(col("a").gt(two())).and(col("b").gt(placeholder("$3"))),
                col("a").gt(lit(5_i64)).and(col("b").gt(lit(5_i64))),
            ),
            // Another value follows from it.
            (col("a").gt(one() + lit(1_i64)), col("a").gt(lit(6_i64))),
            (
                col("a").gt(one()).and(col("b").gt(one() + lit(1_i64))),
                col("a").gt(lit(5_i64)).and(col("b").gt(lit(6_i64))),
            ),
            ((col("a") + one()).gt(lit(5_i64)), (col("a") + lit(1_i64)).gt(lit(5_i64))),
        ] {
            assert_eq!(literals(before.clone(), after), [], "{before}");
        }
    }
}
