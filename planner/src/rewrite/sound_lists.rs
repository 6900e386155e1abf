//! DataFusion's `SimplifyExpressions`, kept from lists that it takes for sets.

use std::collections::{BTreeMap, HashSet};

use datafusion::common::metadata::FieldMetadata;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::logical_expr::expr::{Alias, BinaryExpr, InList};
use datafusion::logical_expr::{Expr, LogicalPlan, Operator};
use datafusion::optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule};

use crate::pipeline::LogicalRule;

/// Runs the rule on expressions in which no two IN lists of the same values can be combined.
///
/// DataFusion 55 intersects `a IN (b, c) AND a IN (c, d)` to `a IN (c)`, though `b` and `d` can be equal; it takes NULL in a
/// list for a value, and for `false` what nothing is left of, though it is NULL where `a` is: below a NOT that brings rows.
/// A value that is looked for in two such lists gets a different name of its own in each while the rule runs.
#[derive(Debug)]
pub struct SoundLists {
    rule: LogicalRule,
}

impl SoundLists {
    /// Around `rule`, whose name it has.
    pub fn new(rule: LogicalRule) -> Self {
        Self { rule }
    }
}

impl OptimizerRule for SoundLists {
    fn name(&self) -> &str {
        self.rule.name()
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        self.rule.apply_order()
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let mut combined = HashSet::new();
        plan.apply_expressions(|expression| {
            combined.extend(Tests::of(expression)?.combined.into_iter().cloned());
            Ok(TreeNodeRecursion::Continue)
        })?;
        if combined.is_empty() {
            return self.rule.rewrite(plan, config);
        }
        self.rule.rewrite(tell_apart(plan, &combined)?, config)?.transform_data(restore)
    }
}

/// What is looked for in the lists of an expression.
#[derive(Default)]
struct Tests<'a> {
    /// Columns that are compared with something.
    equals: HashSet<&'a Expr>,
    lists: HashSet<&'a Expr>,
    /// Those of [`Self::lists`] that are, or become, NOT IN.
    negated: HashSet<&'a Expr>,
    /// Those of which the rule would make one list of two, with fewer values.
    combined: HashSet<&'a Expr>,
}

impl<'a> Tests<'a> {
    #[recursive::recursive]
    fn of(expression: &'a Expr) -> Result<Self> {
        match expression {
            Expr::BinaryExpr(BinaryExpr { left, op: op @ (Operator::And | Operator::Or), right }) => {
                let (mut tests, others) = (Self::of(left)?, Self::of(right)?);
                if *op == Operator::And {
                    tests.combined.extend(tests.lists.intersection(&others.lists).copied());
                } else {
                    tests.combined.extend(tests.negated.intersection(&others.negated).copied());
                    // What both sides compare, and one of them compares with a constant, is made into a list.
                    let (ours, theirs) = (&tests.equals | &tests.lists, &others.equals | &others.lists);
                    tests.lists.extend(ours.intersection(&theirs).copied());
                }
                tests.extend(others);
                Ok(tests)
            }
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => {
                let mut tests = Self::of_parts(expression)?;
                tests.equals.extend([left, right].into_iter().map(AsRef::as_ref).filter(|side| is_column(side)));
                Ok(tests)
            }
            Expr::InList(list) => {
                let mut tests = Self::of_parts(expression)?;
                tests.lists.insert(&list.expr);
                if list.negated {
                    tests.negated.insert(&list.expr);
                }
                Ok(tests)
            }
            Expr::Not(_) => {
                let mut tests = Self::of_parts(expression)?;
                tests.negated.clone_from(&tests.lists);
                Ok(tests)
            }
            _ => Self::of_parts(expression),
        }
    }

    fn of_parts(expression: &'a Expr) -> Result<Self> {
        let mut tests = Self::default();
        expression.apply_children(|part| {
            tests.extend(Self::of(part)?);
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(tests)
    }

    fn extend(&mut self, others: Self) {
        self.equals.extend(others.equals);
        self.lists.extend(others.lists);
        self.negated.extend(others.negated);
        self.combined.extend(others.combined);
    }
}

fn is_column(expression: &Expr) -> bool {
    matches!(expression, Expr::Column(_))
}

/// The key in the metadata of names that are put into lists; no client can give one.
const NUMBER: &str = "aubade.list";

/// Gives each of `combined` another name wherever it is looked for in a list.
fn tell_apart(plan: LogicalPlan, combined: &HashSet<Expr>) -> Result<LogicalPlan> {
    let mut names = 0_usize;
    let mut name = |expression: Expr| {
        names = names.saturating_add(1);
        let number = FieldMetadata::new(BTreeMap::from([(NUMBER.to_owned(), names.to_string())]));
        // The name is the one it has, so that the column of the whole expression keeps its own.
        let text = expression.schema_name().to_string();
        expression.alias_with_metadata(text, Some(number))
    };
    let named = plan.map_expressions(|expression| {
        expression.transform_up(|part| match part {
            Expr::InList(InList { expr, list, negated }) if combined.contains(&expr) => {
                Ok(Transformed::yes(Expr::InList(InList::new(Box::new(name(*expr)), list, negated))))
            }
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => {
                let [left, right] =
                    [left, right].map(|side| if combined.contains(&side) { Box::new(name(*side)) } else { side });
                Ok(Transformed::yes(Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right })))
            }
            part => Ok(Transformed::no(part)),
        })
    })?;
    Ok(named.data)
}

fn restore(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    plan.map_expressions(|expression| {
        expression.transform_up(|part| match part {
            Expr::Alias(Alias { expr, metadata: Some(metadata), .. }) if metadata.inner().contains_key(NUMBER) => {
                Ok(Transformed::yes(*expr))
            }
            part => Ok(Transformed::no(part)),
        })
    })
}
