//! Pruning: which segments can hold rows that pass a predicate. Nothing is copied or computed here,
//! so that the predicate runs over the bounds of all segments at once.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray};
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::{Column, ScalarValue};

use super::summary::known_bounds;
use super::{ColumnStatistics, SegmentStatistics};

impl SegmentStatistics {
    fn column(&self, column: &Column) -> Option<&ColumnStatistics> {
        self.columns.get(self.schema.index_of(&column.name).ok()?)
    }
}

impl PruningStatistics for SegmentStatistics {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        known_bounds(&self.column(column)?.min)
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        known_bounds(&self.column(column)?.max)
    }

    fn num_containers(&self) -> usize {
        self.row_counts.len()
    }

    fn null_counts(&self, column: &Column) -> Option<ArrayRef> {
        Some(Arc::new(self.column(column)?.null_count.clone()))
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        Some(Arc::new(self.row_counts.clone()))
    }

    fn contained(&self, _column: &Column, _values: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}
