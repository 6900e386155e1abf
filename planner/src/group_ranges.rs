//! Which groups of an aggregation may have rows in several segments, by the statistics of its keys.
//!
//! Tables are loaded in some order, so that segments often hold ranges of a key that do not overlap but at their ends.
//! Whoever groups by such a key finds most groups complete in one segment, and may decide about them there.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use aubade_catalog::SegmentStatistics;
use datafusion::common::ScalarValue;
use datafusion::error::Result;
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{BinaryExpr, IsNullExpr, lit};

/// Ranges that are told apart at most: each is asked about for every group.
const SHARED_RANGES_MAX: usize = 64;
/// Share of rows in segments whose groups may all be elsewhere as well, from which on nothing is gained.
const SHARED_ROWS_MAX: f64 = 0.5;

/// The values of a key that may occur in several of some segments.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SharedKeys {
    /// Both ends belong to a range.
    ranges: Vec<(ScalarValue, ScalarValue)>,
    /// Whether the key can be null.
    nulls: bool,
}

/// What one segment holds of a key, nulls aside.
struct Span {
    first: ScalarValue,
    last: ScalarValue,
    rows: u64,
}

impl SharedKeys {
    /// Those of a column in `segments`; `None` where the statistics do not say, or most groups may be in several.
    pub(crate) fn of(statistics: &SegmentStatistics, column: usize, segments: &[usize]) -> Result<Option<Self>> {
        let Some(bounds) = statistics.columns().get(column) else { return Ok(None) };
        if bounds.min.data_type().is_floating() || bounds.min.data_type().is_null() {
            // A NaN has no place in an order of ranges.
            return Ok(None);
        }
        let (mut spans, mut nulls) = (Vec::new(), false);
        for segment in segments.iter().copied() {
            let counts = [statistics.row_counts(), &bounds.null_count];
            if counts.iter().any(|count| segment >= count.len() || count.is_null(segment)) {
                return Ok(None);
            }
            let (rows, null_count) = (statistics.row_counts().value(segment), bounds.null_count.value(segment));
            nulls |= null_count > 0;
            if null_count >= rows {
                continue;
            }
            let (Some(first), Some(last)) = (value(&bounds.min, segment)?, value(&bounds.max, segment)?) else {
                return Ok(None);
            };
            spans.push(Span { first, last, rows });
        }
        Ok(Self::of_spans(spans, nulls))
    }

    fn of_spans(mut spans: Vec<Span>, nulls: bool) -> Option<Self> {
        let mut comparable = true;
        spans.sort_by(|left, right| {
            let order = left.first.partial_cmp(&right.first);
            comparable &= order.is_some();
            order.unwrap_or(Ordering::Equal)
        });
        let mut ranges: Vec<(ScalarValue, ScalarValue)> = Vec::new();
        let mut reached: Option<ScalarValue> = None;
        for span in &spans {
            if let Some(reached) = &reached
                && span.first.partial_cmp(reached)?.is_le()
            {
                let end = if span.last.partial_cmp(reached)?.is_lt() { &span.last } else { reached };
                let is_full = ranges.len() == SHARED_RANGES_MAX;
                match ranges.last_mut().filter(|(_, last)| span.first <= *last) {
                    Some((_, last)) if end.partial_cmp(last)?.is_gt() => *last = end.clone(),
                    Some(_) => {}
                    None if is_full => return None,
                    None => ranges.push((span.first.clone(), end.clone())),
                }
            }
            if reached.as_ref().is_none_or(|reached| span.last > *reached) {
                reached = Some(span.last.clone());
            }
        }
        let all: u64 = spans.iter().map(|span| span.rows).sum();
        let within = |span: &&Span| ranges.iter().any(|(first, last)| *first <= span.first && span.last <= *last);
        let shared: u64 = spans.iter().filter(within).map(|span| span.rows).sum();
        (comparable && shared as f64 <= SHARED_ROWS_MAX * all as f64).then_some(Self { ranges, nulls })
    }

    /// A predicate that is true for these values of `key`; `None` where there are none.
    pub(crate) fn predicate(&self, key: &Arc<dyn PhysicalExpr>) -> Option<Arc<dyn PhysicalExpr>> {
        let compare = |operator, value: &ScalarValue| -> Arc<dyn PhysicalExpr> {
            Arc::new(BinaryExpr::new(Arc::clone(key), operator, lit(value.clone())))
        };
        let ranges = self.ranges.iter().map(|(first, last)| -> Arc<dyn PhysicalExpr> {
            if first == last {
                return compare(Operator::Eq, first);
            }
            let (from, to) = (compare(Operator::GtEq, first), compare(Operator::LtEq, last));
            Arc::new(BinaryExpr::new(from, Operator::And, to))
        });
        let nulls = self.nulls.then(|| Arc::new(IsNullExpr::new(Arc::clone(key))) as Arc<dyn PhysicalExpr>);
        any_of(ranges.chain(nulls).collect())
    }
}

/// The disjunction of some predicates, no deeper than it has to be: how deep an expression is that is sent is limited.
pub(crate) fn any_of(mut parts: Vec<Arc<dyn PhysicalExpr>>) -> Option<Arc<dyn PhysicalExpr>> {
    while parts.len() > 1 {
        let mut pairs = parts.into_iter();
        parts = std::iter::from_fn(|| {
            let left = pairs.next()?;
            Some(match pairs.next() {
                Some(right) => Arc::new(BinaryExpr::new(left, Operator::Or, right)) as Arc<dyn PhysicalExpr>,
                None => left,
            })
        })
        .collect();
    }
    parts.pop()
}

/// A bound; `None` where it is not known.
fn value(bounds: &ArrayRef, segment: usize) -> Result<Option<ScalarValue>> {
    if segment >= bounds.len() || bounds.is_null(segment) {
        return Ok(None);
    }
    ScalarValue::try_from_array(bounds, segment).map(Some)
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field, Schema};
    use datafusion::physical_expr::expressions::col;

    use super::*;

    fn shared(spans: &[(i64, i64, u64)]) -> Option<Vec<(i64, i64)>> {
        let spans = spans.iter().map(|(first, last, rows)| Span {
            first: ScalarValue::from(*first),
            last: ScalarValue::from(*last),
            rows: *rows,
        });
        let shared = SharedKeys::of_spans(spans.collect(), false)?;
        let number = |value: &ScalarValue| match value {
            ScalarValue::Int64(Some(value)) => *value,
            other => panic!("{other:?}"),
        };
        Some(shared.ranges.iter().map(|(first, last)| (number(first), number(last))).collect())
    }

    #[test]
    fn only_what_segments_have_in_common_is_shared() {
        assert_eq!(shared(&[]), Some(vec![]));
        assert_eq!(shared(&[(5, 9, 10)]), Some(vec![]));
        assert_eq!(shared(&[(10, 19, 10), (0, 9, 10), (20, 29, 10)]), Some(vec![]), "apart, in any order");
        assert_eq!(shared(&[(0, 9, 10), (9, 19, 10), (19, 29, 10)]), Some(vec![(9, 9), (19, 19)]), "ends in common");
        assert_eq!(shared(&[(0, 99, 100), (30, 40, 5), (35, 50, 5), (70, 70, 1)]), Some(vec![(30, 50), (70, 70)]));
        assert_eq!(shared(&[(0, 60, 100), (50, 99, 100), (55, 58, 1)]), Some(vec![(50, 60)]));
        assert_eq!(shared(&[(0, 99, 100), (0, 99, 100)]), None, "every group may be in both");
        assert_eq!(shared(&[(0, 9, 10), (7, 7, 100)]), None, "most rows are where groups are shared");
    }

    #[test]
    fn a_few_ranges_are_worth_asking_about_and_many_are_not() {
        let touching = |count: i64| (0..count).map(|start| (start * 10, start * 10 + 10, 5)).collect::<Vec<_>>();
        assert_eq!(shared(&touching(65)).unwrap().len(), 64);
        assert_eq!(shared(&touching(66)), None);
    }

    #[test]
    fn the_predicate_names_ranges_points_and_nulls() {
        let schema = Schema::new(vec![Field::new("k", DataType::Int64, true)]);
        let key = col("k", &schema).unwrap();
        let range = |first: i64, last: i64| (ScalarValue::from(first), ScalarValue::from(last));
        let shared = SharedKeys { ranges: vec![range(3, 3), range(5, 8)], nulls: true };
        assert_eq!(shared.predicate(&key).unwrap().to_string(), "k@0 = 3 OR k@0 >= 5 AND k@0 <= 8 OR k@0 IS NULL");
        assert!(SharedKeys { ranges: Vec::new(), nulls: false }.predicate(&key).is_none());
    }
}
