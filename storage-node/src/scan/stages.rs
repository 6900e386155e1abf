//! The filter of a fragment in stages: groups of conjuncts over the same columns, those first that
//! leave out most rows for the least decoding.
//!
//! A conjunct that can fail on some value is never asked about a row that another conjunct leaves
//! out: such conjuncts come last, in the order in which they were written.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray};
use arrow::compute::{and, prep_null_mask_filter};
use arrow::datatypes::{DataType, SchemaRef};
use aubade_proto::{Error, ErrorCode, Membership, Result};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::expressions::{
    BinaryExpr, CaseExpr, Column, InListExpr, IsNotNullExpr, IsNullExpr, LikeExpr, Literal, NotExpr,
};
use datafusion::physical_expr::utils::{collect_columns, conjunction, reassign_expr_columns};
use datafusion::physical_expr::{PhysicalExpr, split_conjunction};

use super::packed::{batch_of, over_packed};
use super::selection::{filtered, narrowed};

/// Stages of conjuncts that cannot fail, at most: each costs a pass over what the ones before left.
const STAGES_MAX: usize = 4;
/// Share of rows thought to pass below which columns are worth a stage of their own, as late
/// materialisation skips pages only where few rows are left.
const SELECTIVE: f64 = 0.2;
/// Bytes per row of columns that are always worth a stage of their own.
const WIDE_BYTES: f64 = 16.0;
/// Bytes per row that strings and nested values are taken for.
const TEXT_BYTES: f64 = 24.0;
/// Share of rows that passed so far below which a conjunct is asked only about these: copying them
/// costs less than asking about all.
const FEW: f64 = 0.2;

/// A part of the filter with the scan columns that it needs.
#[derive(Debug)]
pub(crate) struct FilterStage {
    /// Over `schema`.
    expression: Arc<dyn PhysicalExpr>,
    schema: SchemaRef,
    /// Indices into the scan schema, ascending.
    pub(crate) columns: Vec<usize>,
    /// Whether rows that it would leave out may be sent all the same.
    pub(crate) best_effort: bool,
    /// Whether it may only be asked about rows that all stages before it have passed.
    can_fail: bool,
}

impl FilterStage {
    pub(crate) fn new(expression: Arc<dyn PhysicalExpr>, scan_schema: &SchemaRef) -> Result<Self> {
        if expression.data_type(scan_schema)? != DataType::Boolean {
            return Err(Error::new(ErrorCode::InvalidMessage, format!("filter {expression} is not boolean")));
        }
        let columns = columns_of(std::slice::from_ref(&expression), scan_schema)?;
        let schema = Arc::new(scan_schema.project(&columns)?);
        let best_effort = split_conjunction(&expression).iter().all(|conjunct| conjunct.is::<Membership>());
        let can_fail = can_fail(&expression)?;
        let expression = over_packed(reassign_expr_columns(expression, &schema)?, &schema)?;
        Ok(Self { expression, schema, columns, best_effort, can_fail })
    }

    /// Which of `rows` rows pass; `columns` are those of the stage, in their order; they may be
    /// packed. Never null.
    pub(crate) fn evaluate(&self, columns: Vec<ArrayRef>, rows: usize) -> Result<BooleanArray> {
        let batch = batch_of(&self.schema, columns, rows)?;
        let mask = self.expression.evaluate(&batch)?.into_array(rows)?;
        let mask = mask.as_boolean_opt().ok_or_else(|| Error::internal("a filter did not yield booleans"))?;
        // A row for which the filter is null is left out.
        Ok(if mask.null_count() > 0 { prep_null_mask_filter(mask) } else { mask.clone() })
    }

    /// Which rows of `before` pass this stage as well.
    pub(crate) fn evaluate_after(&self, columns: Vec<ArrayRef>, before: &BooleanArray) -> Result<BooleanArray> {
        let kept = before.true_count();
        if kept == 0 {
            return Ok(before.clone());
        }
        if !self.can_fail && kept as f64 >= FEW * before.len() as f64 {
            return Ok(and(before, &self.evaluate(columns, before.len())?)?);
        }
        let passed = self.evaluate(filtered(columns, before)?, kept)?;
        Ok(BooleanArray::new(narrowed(before.values(), passed.values()), None))
    }
}

/// The scan columns that `expressions` use, ascending.
pub(crate) fn columns_of(expressions: &[Arc<dyn PhysicalExpr>], schema: &SchemaRef) -> Result<Vec<usize>> {
    let mut indices = BTreeSet::new();
    for column in expressions.iter().flat_map(collect_columns) {
        let field = schema.fields().get(column.index());
        if field.is_none_or(|field| field.name() != column.name()) {
            let text = format!("expression column {} is not at index {} of scan_schema", column.name(), column.index());
            return Err(Error::new(ErrorCode::InvalidMessage, text));
        }
        indices.insert(column.index());
    }
    Ok(indices.into_iter().collect())
}

/// Conjuncts over the same columns.
struct Group {
    conjuncts: Vec<Arc<dyn PhysicalExpr>>,
    columns: BTreeSet<usize>,
    best_effort: bool,
    /// Share of rows thought to pass.
    passing: f64,
    /// What asking costs beside decoding, in bytes per row.
    asking: f64,
}

impl Group {
    fn take(&mut self, other: Self) {
        self.conjuncts.extend(other.conjuncts);
        self.columns.extend(other.columns);
        self.best_effort &= other.best_effort;
        self.passing *= other.passing;
        self.asking += other.asking;
    }

    fn decoding(&self, decoded: &BTreeSet<usize>, schema: &SchemaRef) -> f64 {
        self.columns.difference(decoded).map(|column| width(schema.field(*column).data_type())).sum()
    }

    /// Rows left out per byte.
    fn worth(&self, decoded: &BTreeSet<usize>, schema: &SchemaRef) -> f64 {
        (1.0 - self.passing) / (self.decoding(decoded, schema) + self.asking)
    }
}

/// The stages of `filter`.
pub(crate) fn stages_of(filter: &Arc<dyn PhysicalExpr>, schema: &SchemaRef) -> Result<Vec<FilterStage>> {
    let mut groups: Vec<Group> = Vec::new();
    let mut last = Vec::new();
    for conjunct in split_conjunction(filter) {
        if can_fail(conjunct)? {
            last.push(Arc::clone(conjunct));
            continue;
        }
        let group = Group {
            conjuncts: vec![Arc::clone(conjunct)],
            columns: columns_of(std::slice::from_ref(conjunct), schema)?.into_iter().collect(),
            best_effort: conjunct.is::<Membership>(),
            passing: passing(conjunct),
            asking: asking(conjunct),
        };
        let same = |other: &&mut Group| other.columns == group.columns && other.best_effort == group.best_effort;
        match groups.iter_mut().find(same) {
            Some(other) => other.take(group),
            None => groups.push(group),
        }
    }
    // One without columns cannot stand alone: a reader of no columns yields no rows.
    let (constant, groups): (Vec<_>, Vec<_>) = groups.into_iter().partition(|group| group.columns.is_empty());
    let mut stages = order(groups, schema);
    for group in constant {
        match stages.first_mut() {
            Some(first) => first.take(group),
            None => stages.push(group),
        }
    }
    let stages = stages.into_iter().map(|group| conjunction(group.conjuncts));
    let last = (!last.is_empty()).then(|| conjunction(last));
    stages.chain(last).map(|expression| FilterStage::new(expression, schema)).collect()
}

fn order(mut groups: Vec<Group>, schema: &SchemaRef) -> Vec<Group> {
    let mut stages: Vec<Group> = Vec::new();
    let (mut decoded, mut passing) = (BTreeSet::new(), 1.0);
    while !groups.is_empty() {
        let worth = |index: &usize| groups.get(*index).map_or(0.0, |group| group.worth(&decoded, schema));
        // Ties go to the one that was written first.
        let best = (0..groups.len()).rev().max_by(|a, b| worth(a).total_cmp(&worth(b))).unwrap_or(0);
        let group = groups.remove(best);
        let decoding = group.decoding(&decoded, schema);
        let apart = decoding > 0.0 && (passing <= SELECTIVE || decoding >= WIDE_BYTES);
        decoded.extend(&group.columns);
        passing *= group.passing;
        let full = stages.len() >= STAGES_MAX;
        match stages.last_mut() {
            // One that may be given up is not mixed with one that may not.
            Some(stage) if full || (!apart && stage.best_effort == group.best_effort) => stage.take(group),
            _ => stages.push(group),
        }
    }
    stages
}

fn width(data_type: &DataType) -> f64 {
    match data_type {
        DataType::Boolean => 1.0,
        other => other.primitive_width().map_or(TEXT_BYTES, |bytes| bytes as f64),
    }
}

/// A guess at the share of rows that pass a conjunct, by its kind.
fn passing(conjunct: &Arc<dyn PhysicalExpr>) -> f64 {
    if conjunct.is::<Membership>() || conjunct.is::<IsNullExpr>() {
        return 0.1;
    }
    if let Some(list) = conjunct.downcast_ref::<InListExpr>() {
        return if list.negated() { 0.9 } else { 0.15 };
    }
    if let Some(like) = conjunct.downcast_ref::<LikeExpr>() {
        return if like.negated() { 0.9 } else { 0.3 };
    }
    if let Some(not) = conjunct.downcast_ref::<NotExpr>() {
        return 1.0 - passing(not.arg());
    }
    if conjunct.is::<IsNotNullExpr>() {
        return 0.9;
    }
    let Some(binary) = conjunct.downcast_ref::<BinaryExpr>() else { return 0.5 };
    match binary.op() {
        Operator::Eq | Operator::IsNotDistinctFrom => 0.1,
        Operator::Lt | Operator::LtEq | Operator::Gt | Operator::GtEq => 0.4,
        Operator::NotEq | Operator::IsDistinctFrom => 0.9,
        Operator::And => passing(binary.left()) * passing(binary.right()),
        Operator::Or => 1.0 - (1.0 - passing(binary.left())) * (1.0 - passing(binary.right())),
        _ => 0.5,
    }
}

/// What asking a conjunct costs, in bytes decoded.
fn asking(conjunct: &Arc<dyn PhysicalExpr>) -> f64 {
    let own = if conjunct.is::<LikeExpr>() {
        TEXT_BYTES
    } else if conjunct.is::<InListExpr>() || conjunct.is::<Membership>() {
        2.0
    } else {
        1.0
    };
    own + conjunct
        .children()
        .into_iter()
        .map(|child| if child.is::<Column>() { 0.0 } else { asking(child) })
        .sum::<f64>()
}

/// Whether an expression may fail on some value. What is not known may.
pub(crate) fn can_fail(expression: &Arc<dyn PhysicalExpr>) -> Result<bool> {
    let mut found = false;
    expression.apply(|node| {
        found |= !cannot_fail_itself(node);
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(found)
}

/// Whether an expression fails on no value of its parts.
pub(crate) fn cannot_fail_itself(node: &Arc<dyn PhysicalExpr>) -> bool {
    if let Some(binary) = node.downcast_ref::<BinaryExpr>() {
        use Operator::{And, Eq, Gt, GtEq, IsDistinctFrom, IsNotDistinctFrom, Lt, LtEq, NotEq, Or};
        return matches!(
            binary.op(),
            And | Or | Eq | NotEq | Lt | LtEq | Gt | GtEq | IsDistinctFrom | IsNotDistinctFrom
        );
    }
    node.is::<Column>()
        || node.is::<Literal>()
        || node.is::<Membership>()
        || node.is::<InListExpr>()
        || node.is::<LikeExpr>()
        || node.is::<NotExpr>()
        || node.is::<IsNullExpr>()
        || node.is::<IsNotNullExpr>()
        || node.is::<CaseExpr>()
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array};
    use aubade_proto::KeySet;
    use datafusion::physical_expr::expressions::{binary, col, like, lit};
    use datafusion::scalar::ScalarValue;

    use super::*;
    use crate::testing::rows;

    fn compare(column: &str, operator: Operator, value: impl Into<ScalarValue>) -> Arc<dyn PhysicalExpr> {
        let schema = rows(0, 0).schema();
        binary(col(column, &schema).unwrap(), operator, lit(value.into()), &schema).unwrap()
    }

    fn like_seven() -> Arc<dyn PhysicalExpr> {
        let schema = rows(0, 0).schema();
        let pattern = lit(ScalarValue::Utf8View(Some("%7%".to_owned())));
        like(false, false, col("comment", &schema).unwrap(), pattern, &schema).unwrap()
    }

    fn member(column: &str) -> Arc<dyn PhysicalExpr> {
        let keys: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
        let set = KeySet::build(&[keys]).unwrap().unwrap();
        Arc::new(Membership::new(col(column, &rows(0, 0).schema()).unwrap(), set))
    }

    fn divided() -> Arc<dyn PhysicalExpr> {
        let schema = rows(0, 0).schema();
        let quotient = binary(lit(1_i64), Operator::Divide, col("id", &schema).unwrap(), &schema).unwrap();
        binary(quotient, Operator::Lt, lit(1_i64), &schema).unwrap()
    }

    /// The columns of each stage, in order.
    #[track_caller]
    fn check(conjuncts: Vec<Arc<dyn PhysicalExpr>>, expected: &[&[usize]]) -> Vec<FilterStage> {
        let stages = stages_of(&conjunction(conjuncts), &rows(0, 0).schema()).unwrap();
        let found: Vec<&[usize]> = stages.iter().map(|stage| stage.columns.as_slice()).collect();
        assert_eq!(found, expected);
        stages
    }

    #[test]
    fn cheap_and_selective_conjuncts_come_first() {
        check(vec![like_seven(), compare("id", Operator::Gt, 5_i64)], &[&[0], &[4]]);
        check(vec![compare("price", Operator::Gt, 5.0), compare("key", Operator::Eq, 5_i64)], &[&[1], &[2]]);
        check(
            vec![compare("price", Operator::Gt, 5.0), compare("price", Operator::Lt, 6.0), like_seven()],
            &[&[2], &[4]],
        );
    }

    #[test]
    fn columns_of_which_most_rows_are_needed_share_a_stage() {
        check(vec![compare("price", Operator::Gt, 5.0), compare("key", Operator::NotEq, 5_i64)], &[&[1, 2]]);
    }

    #[test]
    fn sets_of_keys_stand_apart_so_that_they_can_be_given_up() {
        let stages = check(vec![compare("key", Operator::Gt, 5_i64), member("key")], &[&[1], &[1]]);
        assert_eq!(stages.iter().map(|stage| stage.best_effort).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn what_can_fail_comes_last_and_constants_stand_with_others() {
        let stages =
            check(vec![divided(), like_seven(), lit(true), compare("id", Operator::Gt, 5_i64)], &[&[0], &[4], &[0]]);
        assert_eq!(stages.iter().map(|stage| stage.can_fail).collect::<Vec<_>>(), [false, false, true]);
        check(vec![lit(false)], &[&[]]);
    }

    #[test]
    fn there_are_few_stages() {
        let mut conjuncts: Vec<_> = ["id", "key", "price"].map(member).into();
        conjuncts.extend([like_seven(), compare("kind", Operator::Eq, ScalarValue::Utf8View(Some("mid".to_owned())))]);
        let stages = stages_of(&conjunction(conjuncts), &rows(0, 0).schema()).unwrap();
        assert!(stages.len() <= STAGES_MAX, "{stages:?}");
    }
}
