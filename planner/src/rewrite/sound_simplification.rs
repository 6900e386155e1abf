//! DataFusion's `SimplifyExpressions`, kept from what it takes for the same though it is not.

use std::collections::{BTreeMap, HashSet};

use arrow::datatypes::DataType;
use datafusion::common::metadata::FieldMetadata;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, DFSchemaRef};
use datafusion::error::Result;
use datafusion::logical_expr::expr::{Alias, BinaryExpr, InList};
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{Cast, Expr, ExprSchemable, LogicalPlan, Operator, TryCast};
use datafusion::optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule};

use super::exact_numbers::compare_exactly;
use crate::pipeline::LogicalRule;

/// Runs the rule on expressions in which it finds nothing that it would get wrong.
///
/// DataFusion 55 intersects `a IN (b, c) AND a IN (c, d)` to `a IN (c)`, though `b` and `d` can be equal; it takes NULL in a
/// list for a value, and for `false` what nothing is left of, though it is NULL where `a` is: below a NOT that brings rows.
/// And it compares with `d` itself what is compared with `CAST(d AS INT)`, though 1.2 becomes 1 by the cast.
///
/// So what is looked for in two such lists, and each such cast, has a name of its own while the rule runs: to no part of the
/// rule is a name anything but a value that it does not know.
#[derive(Debug)]
pub struct SoundSimplification {
    rule: LogicalRule,
}

impl SoundSimplification {
    /// Around `rule`, whose name it has.
    pub fn new(rule: LogicalRule) -> Self {
        Self { rule }
    }
}

impl OptimizerRule for SoundSimplification {
    fn name(&self) -> &str {
        self.rule.name()
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        self.rule.apply_order()
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        compare_exactly(plan)?.transform_data(|plan| self.simplify(plan, config))
    }
}

impl SoundSimplification {
    fn simplify(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let (mut combined, mut has_casts) = (HashSet::new(), false);
        plan.apply_expressions(|expression| {
            combined.extend(Tests::of(expression)?.combined.into_iter().cloned());
            has_casts |= expression.exists(|part| Ok(cast_of_column(part).is_some()))?;
            Ok(TreeNodeRecursion::Continue)
        })?;
        let schema = if has_casts { Some(input_schema(&plan)?) } else { None };
        let is_lossy = |part: &Expr| {
            schema.as_ref().zip(cast_of_column(part)).is_some_and(|(schema, (from, to, may_fail))| {
                from.get_type(schema).is_ok_and(|from| is_lossy_cast(&from, to, may_fail))
            })
        };
        let (named, has_names) = with_names(plan, &combined, is_lossy)?;
        let simplified = self.rule.rewrite(named, config)?;
        if has_names { simplified.transform_data(restore) } else { Ok(simplified) }
    }
}

/// What the expressions of a node are about.
pub(super) fn input_schema(plan: &LogicalPlan) -> Result<DFSchemaRef> {
    if let LogicalPlan::TableScan(scan) = plan {
        return DFSchema::try_from_qualified_schema(scan.table_name.clone(), &scan.source.schema()).map(Into::into);
    }
    Ok(merge_schema(&plan.inputs()).into())
}

/// What is cast to which type, if that is an exact number and there are rows to be asked for the value; whether one that
/// does not fit is null instead of an error.
fn cast_of_column(expression: &Expr) -> Option<(&Expr, &DataType, bool)> {
    let (from, to, may_fail) = match expression {
        Expr::Cast(Cast { expr, field }) => (expr, field.data_type(), false),
        Expr::TryCast(TryCast { expr, field }) => (expr, field.data_type(), true),
        _ => return None,
    };
    let is_of_rows = || from.any_column_refs() || from.contains_outer();
    (Digits::of(to).is_some() && is_of_rows()).then_some((from.as_ref(), to, may_fail))
}

/// The numbers that a type has.
#[derive(Clone, Copy)]
struct Digits {
    smallest: i128,
    /// The largest whole number.
    largest: i128,
    /// Digits after the point.
    scale: i8,
}

impl Digits {
    /// `None` for types that are no exact numbers.
    fn of(data_type: &DataType) -> Option<Self> {
        let whole = |smallest: i128, largest: i128| Some(Self { smallest, largest, scale: 0 });
        match data_type {
            DataType::Int8 => whole(i8::MIN.into(), i8::MAX.into()),
            DataType::Int16 => whole(i16::MIN.into(), i16::MAX.into()),
            DataType::Int32 => whole(i32::MIN.into(), i32::MAX.into()),
            DataType::Int64 => whole(i64::MIN.into(), i64::MAX.into()),
            DataType::UInt8 => whole(0, u8::MAX.into()),
            DataType::UInt16 => whole(0, u16::MAX.into()),
            DataType::UInt32 => whole(0, u32::MAX.into()),
            DataType::UInt64 => whole(0, u64::MAX.into()),
            DataType::Decimal32(precision, scale)
            | DataType::Decimal64(precision, scale)
            | DataType::Decimal128(precision, scale)
            | DataType::Decimal256(precision, scale) => {
                let digits = i16::from(*precision).saturating_sub(i16::from(*scale));
                let digits = u32::try_from(digits).unwrap_or(0);
                let largest = 10_i128.checked_pow(digits).map_or(i128::MAX, |above| above - 1);
                Some(Self { smallest: -largest, largest, scale: *scale })
            }
            _ => None,
        }
    }
}

/// Whether a cast between exact numbers gives several values one result, or, where it gives NULL for what does not fit, does
/// not fit all.
pub(crate) fn is_lossy_cast(from: &DataType, to: &DataType, may_fail: bool) -> bool {
    Digits::of(from).zip(Digits::of(to)).is_some_and(|(from, to)| {
        from.scale > to.scale || may_fail && (from.smallest < to.smallest || from.largest > to.largest)
    })
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

/// The key in the metadata of the names; no client can give one.
const NUMBER: &str = "aubade.name";

/// Names each of `combined` wherever it is looked for in a list, and what `is_lossy`; whether there is anything of these.
fn with_names(
    plan: LogicalPlan,
    combined: &HashSet<Expr>,
    is_lossy: impl Fn(&Expr) -> bool,
) -> Result<(LogicalPlan, bool)> {
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
            part if is_lossy(&part) => Ok(Transformed::yes(name(part))),
            Expr::InList(InList { expr, list, negated }) if combined.contains(&expr) => {
                Ok(Transformed::yes(Expr::InList(InList::new(Box::new(name(*expr)), list, negated))))
            }
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right })
                if combined.contains(&left) || combined.contains(&right) =>
            {
                let [left, right] =
                    [left, right].map(|side| if combined.contains(&side) { Box::new(name(*side)) } else { side });
                Ok(Transformed::yes(Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right })))
            }
            part => Ok(Transformed::no(part)),
        })
    })?;
    Ok((named.data, names > 0))
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
