//! Which segments cannot hold a row that a filter wants, and how the others are shared out.

use std::cmp::Reverse;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, UInt64Array};
use arrow::compute::{SortColumn, SortOptions, TakeOptions, lexsort_to_indices, take};
use arrow::datatypes::{DataType, SchemaRef};
use aubade_catalog::SegmentStatistics;
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::expressions::{BinaryExpr, Column, IsNotNullExpr, IsNullExpr, Literal};
use datafusion::physical_expr::{PhysicalExpr, conjunction_opt, split_conjunction};
use datafusion::physical_optimizer::pruning::PruningPredicateBuilder;

use crate::subquery_values::needs_subquery;

/// Longer lists in `IN (...)` prune nothing: each value takes a pass over the statistics of all segments.
const IN_LIST_MAX: usize = 128;

/// Indices of the segments that may hold a row for which `filter` (over `schema`) is true. When statistics cannot tell,
/// a segment is kept: pruning never decides an answer. What needs a subquery that has yet to run rules out none.
pub fn prune_segments(
    statistics: &SegmentStatistics,
    schema: &SchemaRef,
    filter: Option<&Arc<dyn PhysicalExpr>>,
) -> Vec<usize> {
    let all = || (0..statistics.row_counts().len()).collect::<Vec<_>>();
    let known = |filter| split_conjunction(filter).into_iter().filter(|conjunct| !needs_subquery(conjunct)).cloned();
    let Some(filter) = filter.and_then(|filter| conjunction_opt(known(filter))) else { return all() };
    let predicate = PruningPredicateBuilder::new()
        .with_file_schema(Arc::clone(schema))
        .with_max_in_list_size(IN_LIST_MAX)
        .try_build(Arc::clone(&filter));
    let keep = predicate.and_then(|predicate| predicate.prune(statistics));
    match keep {
        Ok(keep) => keep.into_iter().enumerate().filter_map(|(index, keep)| keep.then_some(index)).collect(),
        Err(error) => {
            tracing::debug!(%error, %filter, "segments cannot be pruned by this filter");
            all()
        }
    }
}

/// Whether every row of some segments passes `filter` (over `schema`), as far as statistics can tell: a conjunction of
/// comparisons of a column with a value, and of questions after nulls.
pub fn passes_whole(
    statistics: &SegmentStatistics,
    schema: &SchemaRef,
    filter: &Arc<dyn PhysicalExpr>,
    segments: &[usize],
) -> bool {
    let nulls = |column: &Column| {
        let field = schema.fields().get(column.index())?;
        let index = statistics.schema().index_of(field.name()).ok()?;
        let counts = &statistics.columns().get(index)?.null_count;
        let of_segment = |segment: &usize| {
            let rows = statistics.row_counts();
            let is_known = *segment < counts.len() && counts.is_valid(*segment) && rows.is_valid(*segment);
            is_known.then(|| (counts.value(*segment), rows.value(*segment)))
        };
        segments.iter().map(of_segment).collect::<Option<Vec<_>>>()
    };
    let has_no_nulls =
        |column: &Column| nulls(column).is_some_and(|counts| counts.iter().all(|(nulls, _)| *nulls == 0));
    let passes = |conjunct: &Arc<dyn PhysicalExpr>| {
        if let Some(column) = conjunct.downcast_ref::<IsNotNullExpr>().and_then(|asked| asked.arg().downcast_ref()) {
            return has_no_nulls(column);
        }
        if let Some(column) = conjunct.downcast_ref::<IsNullExpr>().and_then(|asked| asked.arg().downcast_ref()) {
            return nulls(column).is_some_and(|counts| counts.iter().all(|(nulls, rows)| nulls == rows));
        }
        let Some((column, opposite)) = opposite(conjunct) else { return false };
        // A NaN is outside of the bounds of its column.
        let is_ordered = schema.fields().get(column.index()).is_some_and(|field| match field.data_type() {
            DataType::Dictionary(_, values) => !values.is_floating(),
            data_type => !data_type.is_floating(),
        });
        let may_fail = || prune_segments(statistics, schema, Some(&opposite));
        is_ordered && has_no_nulls(&column) && !may_fail().iter().any(|segment| segments.contains(segment))
    };
    split_conjunction(filter).into_iter().all(passes)
}

/// A comparison of a column with a value, and what is true where it is false.
fn opposite(comparison: &Arc<dyn PhysicalExpr>) -> Option<(Column, Arc<dyn PhysicalExpr>)> {
    let binary = comparison.downcast_ref::<BinaryExpr>()?;
    let (left, right) = (binary.left(), binary.right());
    let column = left.downcast_ref::<Column>().or_else(|| right.downcast_ref::<Column>())?;
    let value = left.downcast_ref::<Literal>().or_else(|| right.downcast_ref::<Literal>())?;
    use Operator::{Eq, Gt, GtEq, Lt, LtEq, NotEq};
    let compares = matches!(binary.op(), Eq | NotEq | Lt | LtEq | Gt | GtEq) && !value.value().is_null();
    let operator = binary.op().negate().filter(|_| compares)?;
    Some((column.clone(), Arc::new(BinaryExpr::new(Arc::clone(left), operator, Arc::clone(right)))))
}

/// `segments` in the order in which they may have the first rows by a column: what they have rules out rows of those
/// that come later.
pub fn in_order_of(
    statistics: &SegmentStatistics,
    column: usize,
    order: SortOptions,
    segments: Vec<usize>,
) -> Vec<usize> {
    let Some(column) = statistics.columns().get(column) else { return segments };
    let bounds = if order.descending { &column.max } else { &column.min };
    let may_have_nulls = |segment: &usize| {
        let counts = &column.null_count;
        *segment >= counts.len() || counts.is_null(*segment) || counts.value(*segment) > 0
    };
    let indices = UInt64Array::from_iter_values(segments.iter().map(|segment| *segment as u64));
    let Ok(bounds) = take(bounds, &indices, Some(TakeOptions { check_bounds: true })) else { return segments };
    let nulls_first = segments.iter().map(|segment| order.nulls_first && may_have_nulls(segment));
    let nulls_first: ArrayRef = Arc::new(nulls_first.map(Some).collect::<BooleanArray>());
    let keys = [
        SortColumn { values: nulls_first, options: Some(SortOptions { descending: true, nulls_first: false }) },
        SortColumn { values: bounds, options: Some(order) },
    ];
    // Bounds of some types have no order.
    let Ok(sorted) = lexsort_to_indices(&keys, None) else { return segments };
    sorted.values().iter().filter_map(|position| segments.get(*position as usize).copied()).collect()
}

/// Shares `segments` out over at most `partitions_max` partitions (at least one, none of them empty unless there are no
/// segments), so that each gets about the same number of rows. Deterministic; each share is in ascending order.
pub fn share_segments(segments: &[usize], rows: impl Fn(usize) -> u64, partitions_max: usize) -> Vec<Vec<usize>> {
    let partition_count = partitions_max.min(segments.len()).max(1);
    let mut by_size = segments.to_vec();
    by_size.sort_by_key(|segment| (Reverse(rows(*segment)), *segment));
    let mut shares = vec![(0_u64, Vec::new()); partition_count];
    for segment in by_size {
        let lightest = shares.iter_mut().min_by_key(|(rows, share)| (*rows, share.len()));
        let Some((sum, share)) = lightest else { continue };
        *sum = sum.saturating_add(rows(segment));
        share.push(segment);
    }
    let sorted = shares.into_iter().map(|(_, mut share)| {
        share.sort_unstable();
        share
    });
    sorted.collect()
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, RecordBatch};
    use arrow::datatypes::{Field, Schema};
    use aubade_catalog::StatisticsBuilder;

    use super::*;

    #[test]
    fn shares_have_about_the_same_number_of_rows() {
        let rows = [10, 1, 9, 1, 1];
        let shares = share_segments(&[0, 1, 2, 3, 4], |segment| rows[segment], 2);
        assert_eq!(shares, [vec![0, 3], vec![1, 2, 4]]);
    }

    #[test]
    fn segments_with_the_first_rows_come_first() {
        let schema: SchemaRef = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]));
        let of = |values: Vec<Option<i64>>| {
            let mut builder = StatisticsBuilder::new(Arc::clone(&schema));
            let column: ArrayRef = Arc::new(Int64Array::from(values));
            builder.update(&RecordBatch::try_new(Arc::clone(&schema), vec![column]).unwrap()).unwrap();
            builder.finish(&[8]).unwrap()
        };
        let parts = [vec![Some(5), Some(9)], vec![Some(1), Some(3)], vec![None, Some(4)], vec![None, None]].map(of);
        let all = parts.iter().skip(1).fold(parts[0].clone(), |all, part| all.concat(part).unwrap());
        let order =
            |descending, nulls_first| in_order_of(&all, 0, SortOptions { descending, nulls_first }, vec![0, 1, 2, 3]);
        assert_eq!(order(false, false), [1, 2, 0, 3]);
        assert_eq!(order(true, false), [0, 2, 1, 3]);
        assert_eq!(order(true, true), [3, 2, 0, 1]);
        assert_eq!(in_order_of(&all, 7, SortOptions::default(), vec![2, 0]), [2, 0]);
    }

    #[test]
    fn there_is_one_share_even_without_segments() {
        assert_eq!(share_segments(&[], |_| 0, 8), [Vec::<usize>::new()]);
        assert_eq!(share_segments(&[3, 5], |_| 0, 8), [vec![3], vec![5]]);
    }
}
