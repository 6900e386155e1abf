//! What the planner hears of a whole table.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, UInt64Array};
use arrow::compute::sum;
use arrow::datatypes::DataType;
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics as PlannerColumn, ScalarValue, Statistics};

use super::bounds::{largest, smallest};
use super::{ColumnStatistics, SegmentStatistics, distinct};

impl SegmentStatistics {
    /// Over all segments, for the planner: exact row count, null counts and bounds (cut strings are
    /// inexact), inexact sizes and distinct counts. Computed once.
    pub fn to_datafusion(&self) -> Statistics {
        self.summary.get_or_init(|| self.summarise()).clone()
    }

    /// Different values of a column over all segments, about; `None` where it is not known.
    pub fn distinct_count(&self, column: usize) -> Option<usize> {
        let summary = self.summary.get_or_init(|| self.summarise());
        summary.column_statistics.get(column)?.distinct_count.get_value().copied()
    }

    fn summarise(&self) -> Statistics {
        let columns = self.columns.iter().zip(self.schema.fields());
        let column_statistics: Vec<PlannerColumn> =
            columns.map(|(column, field)| summarise_column(column, field.data_type(), &self.row_counts)).collect();
        let sizes = column_statistics.iter().map(|column| column.byte_size.get_value().copied());
        let total_byte_size = sizes.sum::<Option<usize>>().map_or(Precision::Absent, Precision::Inexact);
        Statistics { num_rows: total(&self.row_counts), total_byte_size, column_statistics }
    }
}

/// The sum, exact when every segment knows its part.
fn total(counts: &UInt64Array) -> Precision<usize> {
    if counts.null_count() > 0 {
        return Precision::Absent;
    }
    match usize::try_from(sum(counts).unwrap_or(0)) {
        Ok(total) => Precision::Exact(total),
        Err(_) => Precision::Absent,
    }
}

fn summarise_column(column: &ColumnStatistics, data_type: &DataType, row_counts: &UInt64Array) -> PlannerColumn {
    let known = bounds_are_known(column, row_counts);
    let bound = |bounds: &ArrayRef, find: fn(&ArrayRef) -> datafusion::error::Result<ScalarValue>| {
        if !known {
            return Precision::Absent;
        }
        match find(bounds) {
            Ok(value) if !value.is_null() => {
                let value = as_column_type(value, data_type);
                if column.exact_bounds { Precision::Exact(value) } else { Precision::Inexact(value) }
            }
            _ => Precision::Absent,
        }
    };
    let distinct = distinct::estimate(column, row_counts).and_then(|count| usize::try_from(count).ok());
    PlannerColumn {
        null_count: total(&column.null_count),
        max_value: bound(&column.max, largest),
        min_value: bound(&column.min, smallest),
        sum_value: Precision::Absent,
        distinct_count: distinct.map_or(Precision::Absent, Precision::Inexact),
        byte_size: total(&column.memory_bytes).to_inexact(),
    }
}

/// Whether every segment with values has bounds: a single one without makes the whole unknown.
fn bounds_are_known(column: &ColumnStatistics, row_counts: &UInt64Array) -> bool {
    if column.min.data_type() == &DataType::Null {
        return false;
    }
    if column.min.null_count() == 0 && column.max.null_count() == 0 {
        return true;
    }
    let nulls = column.null_count.iter().zip(row_counts.iter());
    nulls.enumerate().all(|(segment, (nulls, rows))| {
        let has_bounds = column.min.is_valid(segment) && column.max.is_valid(segment);
        has_bounds || (nulls.is_some() && nulls == rows)
    })
}

/// Bounds of dictionary columns are kept in the type of the values.
fn as_column_type(value: ScalarValue, data_type: &DataType) -> ScalarValue {
    match data_type {
        DataType::Dictionary(keys, values) => {
            ScalarValue::Dictionary(keys.clone(), Box::new(as_column_type(value, values)))
        }
        _ => value,
    }
}

/// Bounds as the pruning predicate wants them; `None` where the type has no order.
pub(super) fn known_bounds(bounds: &ArrayRef) -> Option<ArrayRef> {
    if bounds.data_type() == &DataType::Null { None } else { Some(Arc::clone(bounds)) }
}
