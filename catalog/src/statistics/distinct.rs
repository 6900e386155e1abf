//! Distinct values of a whole table from those of its segments.
//!
//! The sketches are not kept, so this is a model: a segment's rows are random draws from the values
//! of the table (then the draws say how many values there are), unless the ranges of the segments
//! lie side by side, as those of a sorted column do (then the counts add up).

use arrow::array::{Array, AsArray, Float64Array, UInt64Array};
use arrow::compute::{cast, max, min, sum};
use arrow::datatypes::{DataType, Float64Type};

use super::ColumnStatistics;

/// Halvings of the interval in which the number of values is searched: enough for 64 bits.
const STEPS: usize = 64;

/// An estimate, or `None` when a segment has none.
pub(super) fn estimate(column: &ColumnStatistics, row_counts: &UInt64Array) -> Option<u64> {
    if column.distinct.null_count() > 0 || column.null_count.null_count() > 0 {
        return None;
    }
    let largest = max(&column.distinct).unwrap_or(0);
    let total: f64 = column.distinct.values().iter().map(|count| *count as f64).sum();
    let segments = column.distinct.values().iter().filter(|count| **count > 0).count() as f64;
    if segments <= 1.0 {
        return Some(largest);
    }
    let values = |rows: &u64, nulls: &u64| rows.saturating_sub(*nulls) as f64;
    let drawn: f64 =
        row_counts.values().iter().zip(column.null_count.values()).map(|(rows, nulls)| values(rows, nulls)).sum();
    let (groups, width) = match Ranges::of(column) {
        Some(ranges) => ((segments / ranges.overlap(segments)).max(1.0), ranges.integers),
        None => (1.0, None),
    };
    let modelled = population(total / segments, drawn / segments) * groups;
    let most = total.min(width.unwrap_or(f64::INFINITY));
    Some(modelled.min(most).max(largest as f64).round() as u64)
}

/// How many values there are when `draws` random ones show `seen` different ones.
fn population(seen: f64, draws: f64) -> f64 {
    // Nearly every draw was new: there is no telling how many more there are.
    if seen >= 0.999 * draws {
        return f64::INFINITY;
    }
    let expected = |population: f64| population * -(-draws / population).exp_m1();
    let (mut low, mut high) = (seen, seen * 1e4);
    for _ in 0..STEPS {
        let middle = f64::midpoint(low, high);
        if expected(middle) < seen { low = middle } else { high = middle }
    }
    f64::midpoint(low, high)
}

/// The ranges of the segments of a column whose values are numbers of some kind.
struct Ranges {
    /// Of the whole table.
    width: f64,
    /// Summed over the segments.
    widths: f64,
    /// The number of integers within the range, for columns of integers and dates.
    integers: Option<f64>,
}

impl Ranges {
    fn of(column: &ColumnStatistics) -> Option<Self> {
        let (lows, highs) = (as_floats(&column.min)?, as_floats(&column.max)?);
        let width = max(&highs)? - min(&lows)?;
        let widths = sum(&highs)? - sum(&lows)?;
        let whole = column.min.data_type().is_integer() || column.min.data_type() == &DataType::Date32;
        Some(Self { width, widths, integers: whole.then_some(width + 1.0) })
    }

    /// How many segments cover a value on average: 1 when they lie side by side.
    fn overlap(&self, segments: f64) -> f64 {
        let overlap = self.widths / self.width;
        if overlap.is_finite() { overlap.clamp(1.0, segments) } else { segments }
    }
}

fn as_floats(bounds: &dyn Array) -> Option<Float64Array> {
    let number = match bounds.data_type() {
        DataType::Date32 | DataType::Time32(_) => cast(bounds, &DataType::Int32).ok()?,
        DataType::Date64 | DataType::Time64(_) | DataType::Timestamp(..) | DataType::Duration(_) => {
            cast(bounds, &DataType::Int64).ok()?
        }
        numeric if numeric.is_numeric() => arrow::array::make_array(bounds.to_data()),
        _ => return None,
    };
    Some(cast(&number, &DataType::Float64).ok()?.as_primitive::<Float64Type>().clone())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::Int64Array;

    use super::*;

    /// Ten segments of 1,000 rows with `distinct` values each.
    fn column(distinct: u64, range: impl Fn(i64) -> (i64, i64)) -> ColumnStatistics {
        let (lows, highs): (Vec<i64>, Vec<i64>) = (0..10).map(range).unzip();
        ColumnStatistics {
            min: Arc::new(Int64Array::from(lows)),
            max: Arc::new(Int64Array::from(highs)),
            null_count: vec![0; 10].into(),
            distinct: vec![distinct; 10].into(),
            memory_bytes: vec![0; 10].into(),
            file_bytes: vec![0; 10].into(),
            exact_bounds: true,
        }
    }

    #[track_caller]
    fn check(column: &ColumnStatistics, expected: std::ops::RangeInclusive<u64>) {
        let estimate = estimate(column, &vec![1_000; 10].into()).unwrap();
        assert!(expected.contains(&estimate), "{estimate} not in {expected:?}");
    }

    #[test]
    fn a_sorted_key_adds_up() {
        check(&column(250, |segment| (segment * 1_000, segment * 1_000 + 999)), 2_400..=2_600);
    }

    #[test]
    fn a_flag_stays_a_flag() {
        check(&column(3, |_| (0, 1_000_000)), 3..=4);
    }

    #[test]
    fn random_draws_tell_the_population() {
        // 1,000 draws from 2,000 values show 787 different ones.
        check(&column(787, |_| (0, 1_000_000)), 1_900..=2_100);
    }

    #[test]
    fn a_unique_key_is_bounded_by_the_sum_and_by_the_range() {
        check(&column(1_000, |_| (0, 1_000_000)), 10_000..=10_000);
        check(&column(1_000, |_| (0, 4_999)), 5_000..=5_000);
    }
}
