//! The values of uncorrelated scalar subqueries in fragments.
//!
//! DataFusion runs these subqueries before the plan around them (`ScalarSubqueryExec`), in whose expressions stands where
//! each value will be found. So do expressions of fragments, as long as they are planned. When a scan begins, the values
//! are known and put in, so that whoever runs it has nothing but literals before him.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use aubade_proto::{Fragment, ProjectionColumn, Reduction};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{ScalarValue, exec_err};
use datafusion::error::Result;
use datafusion::logical_expr::{ColumnarValue, Operator};
use datafusion::physical_expr::expressions::{BinaryExpr, Literal};
use datafusion::physical_expr::scalar_subquery::ScalarSubqueryExpr;
use datafusion::physical_expr::simplifier::PhysicalExprSimplifier;
use datafusion::physical_expr::{PhysicalExpr, conjunction_opt, split_conjunction};
use datafusion::physical_plan::aggregates::AggregateExec;

use crate::rewrite::opaque_casts::casts_rows_lossily;

/// Whether an expression is nothing but the value of a subquery.
pub(crate) fn is_subquery(expression: &Arc<dyn PhysicalExpr>) -> bool {
    expression.is::<ScalarSubqueryExpr>()
}

/// Whether an expression needs the value of a subquery, and so cannot be evaluated while it is planned.
pub(crate) fn needs_subquery(expression: &Arc<dyn PhysicalExpr>) -> bool {
    // The closure never fails, so neither does the walk.
    expression.exists(|part| Ok(part.is::<ScalarSubqueryExpr>())).unwrap_or(true)
}

/// Whether an expression of a fragment needs the value of a subquery.
pub(crate) fn fragment_needs_subquery(fragment: &Fragment) -> bool {
    expressions(fragment).iter().any(needs_subquery)
}

/// The expressions of a fragment that may need values of subqueries. The keys of an order need none.
pub(crate) fn expressions(fragment: &Fragment) -> Vec<Arc<dyn PhysicalExpr>> {
    let (reduction, projection) = (fragment.reduction(), fragment.projection());
    let mut all: Vec<_> = fragment.filter().into_iter().chain(reduction.and_then(Reduction::having)).cloned().collect();
    all.extend(projection.iter().map(|column| Arc::clone(&column.expression)));
    if let Some(aggregate) = reduction.and_then(|reduction| reduction.plan().downcast_ref::<AggregateExec>()) {
        all.extend(aggregate.group_expr().expr().iter().map(|(key, _)| Arc::clone(key)));
        all.extend(aggregate.aggr_expr().iter().flat_map(|function| function.expressions()));
        all.extend(aggregate.filter_expr().iter().flatten().cloned());
    }
    all
}

/// Whether two fragments that are the same but for subqueries are also the same in which of these they name: of two
/// subqueries of two plans the wire form says the same.
pub(crate) fn name_same_subqueries(one: &Fragment, other: &Fragment) -> bool {
    (!fragment_needs_subquery(one) && !fragment_needs_subquery(other)) || expressions(one) == expressions(other)
}

/// An expression that can be looked at, and sent, as one with the values of its subqueries would be.
///
/// # Errors
/// When a subquery has a type that has no such value.
pub(crate) fn with_stand_ins(expression: &Arc<dyn PhysicalExpr>) -> Result<Arc<dyn PhysicalExpr>> {
    with_literals(expression, stand_in)
}

/// The same of a fragment.
///
/// # Errors
/// When a subquery has a type that has no such value.
pub(crate) fn fragment_with_stand_ins(fragment: &Fragment) -> Result<Cow<'_, Fragment>> {
    if !fragment_needs_subquery(fragment) {
        return Ok(Cow::Borrowed(fragment));
    }
    map_fragment(fragment, |expression, _| with_stand_ins(expression)).map(Cow::Owned)
}

/// An expression with the values of its subqueries.
///
/// # Errors
/// When a subquery has not run yet.
pub(crate) fn with_values(expression: &Arc<dyn PhysicalExpr>) -> Result<Arc<dyn PhysicalExpr>> {
    with_literals(expression, value)
}

/// A fragment with the values of its subqueries.
#[derive(Debug)]
pub(crate) enum Resolved {
    Fragment(Fragment),
    /// No row passes its filter.
    Nothing,
}

/// `fragment` with the values of its subqueries; `None` where it has none.
///
/// # Errors
/// When a subquery has not run yet.
pub(crate) fn resolve(fragment: &Fragment) -> Result<Option<Resolved>> {
    if !fragment_needs_subquery(fragment) {
        return Ok(None);
    }
    let resolved = map_fragment(fragment, |expression, schema| {
        if needs_subquery(expression) {
            Ok(simplified(with_values(expression)?, schema))
        } else {
            Ok(expression.clone())
        }
    })?;
    let conjuncts = resolved.filter().map(split_conjunction).unwrap_or_default();
    if conjuncts.into_iter().any(is_never_true) {
        return Ok(Some(Resolved::Nothing));
    }
    Ok(Some(Resolved::Fragment(resolved)))
}

/// A value next to constants makes one of all of them, which says more to statistics and is computed once.
fn simplified(expression: Arc<dyn PhysicalExpr>, schema: &SchemaRef) -> Arc<dyn PhysicalExpr> {
    // What is compared with such a cast would be compared with what is cast ([`crate::rewrite::SoundSimplification`]).
    if expression.exists(|part| Ok(casts_rows_lossily(part, schema))).unwrap_or(true) {
        return expression;
    }
    PhysicalExprSimplifier::new(schema).simplify(Arc::clone(&expression)).unwrap_or(expression)
}

/// Whether a conjunct is true for no row, as where something is compared with the null of an empty subquery.
fn is_never_true(conjunct: &Arc<dyn PhysicalExpr>) -> bool {
    let literal =
        |expression: &Arc<dyn PhysicalExpr>| expression.downcast_ref::<Literal>().map(Literal::value).cloned();
    if let Some(value) = literal(conjunct) {
        return value != ScalarValue::Boolean(Some(true));
    }
    use Operator::{Eq, Gt, GtEq, Lt, LtEq, NotEq};
    let Some(binary) = conjunct.downcast_ref::<BinaryExpr>() else { return false };
    let is_null = |side: &Arc<dyn PhysicalExpr>| literal(side).is_some_and(|value| value.is_null());
    matches!(binary.op(), Eq | NotEq | Lt | LtEq | Gt | GtEq) && (is_null(binary.left()) || is_null(binary.right()))
}

fn is_true(conjunct: &Arc<dyn PhysicalExpr>) -> bool {
    conjunct.downcast_ref::<Literal>().is_some_and(|literal| *literal.value() == ScalarValue::Boolean(Some(true)))
}

/// The fragment with what `map` makes of its expressions over a schema; each conjunct of its filter is one, and goes
/// where it becomes true for all rows.
pub(crate) fn map_fragment(
    fragment: &Fragment,
    map: impl Fn(&Arc<dyn PhysicalExpr>, &SchemaRef) -> Result<Arc<dyn PhysicalExpr>>,
) -> Result<Fragment> {
    let schema = fragment.scan_schema();
    let conjuncts = fragment.filter().map(split_conjunction).unwrap_or_default();
    let conjuncts = conjuncts.into_iter().map(|conjunct| map(conjunct, schema)).collect::<Result<Vec<_>>>()?;
    let projection = fragment
        .projection()
        .iter()
        .map(|column| Ok(ProjectionColumn { expression: map(&column.expression, schema)?, name: column.name.clone() }));
    let projection = projection.collect::<Result<Vec<_>>>()?;
    let filter = conjunction_opt(conjuncts.into_iter().filter(|conjunct| !is_true(conjunct)));
    let mapped = Fragment::try_new(Arc::clone(schema), filter, projection, fragment.limit())?;
    let Some(reduction) = fragment.reduction() else { return Ok(mapped) };
    let (rows, states) = (reduction.input_schema(), reduction.schema());
    // One with joins below it keeps its own: they are over other rows than the fragment's.
    let mut reduction = match reduction.build_schemas().is_empty() {
        true => reduction.with_expressions(|expression| Ok(map(expression, &rows)?))?,
        false => reduction.clone(),
    };
    if let Some(having) = reduction.having() {
        reduction = reduction.with_having(map(having, &states)?)?;
    }
    Ok(mapped.with_reduction(reduction)?)
}

fn with_literals(
    expression: &Arc<dyn PhysicalExpr>,
    by: fn(&ScalarSubqueryExpr) -> Result<ScalarValue>,
) -> Result<Arc<dyn PhysicalExpr>> {
    map_subqueries(expression, &|subquery| Ok(Some(Arc::new(Literal::new(by(subquery)?)))))
}

/// What comes in the place of a subquery, if anything does.
type Replacement = Result<Option<Arc<dyn PhysicalExpr>>>;

/// An expression with others in the place of its subqueries, where `map` gives one.
pub(crate) fn map_subqueries(
    expression: &Arc<dyn PhysicalExpr>,
    map: &dyn Fn(&ScalarSubqueryExpr) -> Replacement,
) -> Result<Arc<dyn PhysicalExpr>> {
    if !needs_subquery(expression) {
        return Ok(Arc::clone(expression));
    }
    let mapped = Arc::clone(expression).transform_up(|part| {
        let mapped = part.downcast_ref::<ScalarSubqueryExpr>().map(map).transpose()?.flatten();
        Ok(mapped.map_or_else(|| Transformed::no(part), Transformed::yes))
    });
    mapped.map(|mapped| mapped.data)
}

/// The type of what a subquery gives, and whether that may be null.
pub(crate) fn type_of(subquery: &ScalarSubqueryExpr) -> Result<(DataType, bool)> {
    let field = subquery.return_field(&Schema::empty())?;
    Ok((field.data_type().clone(), field.is_nullable()))
}

/// A value of the type that a subquery has.
fn stand_in(subquery: &ScalarSubqueryExpr) -> Result<ScalarValue> {
    let (data_type, _) = type_of(subquery)?;
    if data_type.is_nested() || matches!(data_type, DataType::Dictionary(..) | DataType::RunEndEncoded(..)) {
        return exec_err!("a subquery of type {data_type} has no value that is sent");
    }
    ScalarValue::new_default(&data_type)
}

fn value(subquery: &ScalarSubqueryExpr) -> Result<ScalarValue> {
    let (data_type, _) = type_of(subquery)?;
    match subquery.evaluate(&RecordBatch::new_empty(Arc::new(Schema::empty())))? {
        ColumnarValue::Scalar(value) if value.data_type() == data_type => Ok(value),
        ColumnarValue::Scalar(value) => value.cast_to(&data_type),
        ColumnarValue::Array(_) => exec_err!("a scalar subquery has more than one value"),
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::Field;
    use datafusion::logical_expr::physical_planning_context::{ScalarSubqueryResults, SubqueryIndex};
    use datafusion::physical_expr::expressions::{Column, binary, lit};

    use super::*;

    fn schema() -> SchemaRef {
        Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, true)]))
    }

    fn column() -> Arc<dyn PhysicalExpr> {
        Arc::new(Column::new("a", 0))
    }

    fn subquery(results: &ScalarSubqueryResults) -> Arc<dyn PhysicalExpr> {
        Arc::new(ScalarSubqueryExpr::new(DataType::Int64, true, SubqueryIndex::new(0), results.clone()))
    }

    /// With a filter `a > 2 + (subquery)`, next to one on the same column.
    fn fragment(results: &ScalarSubqueryResults) -> Fragment {
        let sum = binary(lit(2_i64), Operator::Plus, subquery(results), &schema()).unwrap();
        let above = binary(column(), Operator::Gt, sum, &schema()).unwrap();
        let below = binary(column(), Operator::Lt, lit(9_i64), &schema()).unwrap();
        let output = ProjectionColumn { expression: column(), name: "a".to_owned() };
        Fragment::try_new(schema(), conjunction_opt([above, below]), vec![output], Some(4)).unwrap()
    }

    fn results(value: impl Into<Option<i64>>) -> ScalarSubqueryResults {
        let results = ScalarSubqueryResults::new(1);
        results.set(SubqueryIndex::new(0), ScalarValue::Int64(value.into())).unwrap();
        results
    }

    #[test]
    fn values_are_put_in_and_computed_with() {
        let Some(Resolved::Fragment(resolved)) = resolve(&fragment(&results(3))).unwrap() else {
            panic!("rows may pass")
        };
        assert_eq!(resolved.filter().unwrap().to_string(), "a@0 > 5 AND a@0 < 9");
        assert_eq!(resolved.limit(), Some(4));
        assert!(resolve(&resolved).unwrap().is_none());
    }

    #[test]
    fn nothing_is_above_null() {
        assert!(matches!(resolve(&fragment(&results(None))).unwrap(), Some(Resolved::Nothing)));
    }

    #[test]
    fn a_subquery_that_has_not_run_has_no_value() {
        let waiting = fragment(&ScalarSubqueryResults::new(1));
        assert!(resolve(&waiting).unwrap_err().to_string().contains("before the subquery was executed"));
        let looked_at = fragment_with_stand_ins(&waiting).unwrap();
        assert_eq!(looked_at.filter().unwrap().to_string(), "a@0 > 2 + 0 AND a@0 < 9");
    }

    #[test]
    fn subqueries_of_two_places_are_two() {
        let (one, other) = (ScalarSubqueryResults::new(1), ScalarSubqueryResults::new(1));
        assert!(name_same_subqueries(&fragment(&one), &fragment(&one)));
        assert!(!name_same_subqueries(&fragment(&one), &fragment(&other)));
    }
}
