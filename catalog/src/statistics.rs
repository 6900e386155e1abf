//! Statistics of a table's segments, one row per segment, kept as Arrow arrays so that pruning and
//! sums are vectorised over all segments at once.

mod bounds;
mod builder;
mod distinct;
mod hyperloglog;
mod ipc;
mod pruning;
mod summary;
#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};

use arrow::array::{Array, ArrayRef, AsArray, UInt64Array, new_empty_array};
use arrow::compute::{TakeOptions, concat, take};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use aubade_proto::{Error, ErrorCode, Result, ResultExt};

pub use builder::StatisticsBuilder;

/// Data buffers that a string or binary view array of bounds may refer to before it is compacted:
/// every appended segment would add one for good.
const VIEW_BUFFERS_MAX: usize = 16;

/// Statistics of one column over all segments of a table; every array has one row per segment.
#[derive(Clone, Debug)]
pub struct ColumnStatistics {
    /// Smallest value, in the column's own type (that of the values for dictionaries; a
    /// `NullArray` for types without an order, such as lists); null when unknown or when all values
    /// are null. Strings and binaries longer than 64 bytes are cut (a lower bound). Floats are
    /// unknown as soon as there is a NaN.
    pub min: ArrayRef,
    /// Largest value; cut strings are rounded up (an upper bound).
    pub max: ArrayRef,
    /// Nulls; null when unknown.
    pub null_count: UInt64Array,
    /// Estimated distinct values (HyperLogLog); null when unknown.
    pub distinct: UInt64Array,
    /// Size in memory of the decoded Arrow column, bytes; null when unknown.
    pub memory_bytes: UInt64Array,
    /// Compressed size in the segment file, bytes; null when unknown.
    pub file_bytes: UInt64Array,
    /// Whether min and max are values that occur (not cut), in every segment.
    pub exact_bounds: bool,
}

/// Statistics of a table's segments.
#[derive(Clone, Debug)]
pub struct SegmentStatistics {
    schema: SchemaRef,
    row_counts: UInt64Array,
    columns: Vec<ColumnStatistics>,
    /// Made when first asked for: planning asks for it with every query.
    summary: OnceLock<datafusion::common::Statistics>,
}

impl ColumnStatistics {
    fn empty(data_type: &DataType) -> Self {
        let none = UInt64Array::from(Vec::<u64>::new());
        let bounds = new_empty_array(&bounds::bound_type(data_type));
        Self {
            min: Arc::clone(&bounds),
            max: bounds,
            null_count: none.clone(),
            distinct: none.clone(),
            memory_bytes: none.clone(),
            file_bytes: none,
            exact_bounds: true,
        }
    }

    fn take(&self, segments: &UInt64Array) -> Result<Self> {
        Ok(Self {
            min: take_rows(&self.min, segments)?,
            max: take_rows(&self.max, segments)?,
            null_count: take_counts(&self.null_count, segments)?,
            distinct: take_counts(&self.distinct, segments)?,
            memory_bytes: take_counts(&self.memory_bytes, segments)?,
            file_bytes: take_counts(&self.file_bytes, segments)?,
            exact_bounds: self.exact_bounds,
        })
    }

    fn concat(&self, other: &Self) -> Result<Self> {
        Ok(Self {
            min: concat_bounds(&self.min, &other.min)?,
            max: concat_bounds(&self.max, &other.max)?,
            null_count: concat_counts(&self.null_count, &other.null_count)?,
            distinct: concat_counts(&self.distinct, &other.distinct)?,
            memory_bytes: concat_counts(&self.memory_bytes, &other.memory_bytes)?,
            file_bytes: concat_counts(&self.file_bytes, &other.file_bytes)?,
            exact_bounds: self.exact_bounds && other.exact_bounds,
        })
    }
}

impl SegmentStatistics {
    fn new(schema: SchemaRef, row_counts: UInt64Array, columns: Vec<ColumnStatistics>) -> Self {
        Self { schema, row_counts, columns, summary: OnceLock::new() }
    }

    /// The table's schema: the columns are in its order.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Rows per segment.
    pub fn row_counts(&self) -> &UInt64Array {
        &self.row_counts
    }

    /// Statistics per column, in the order of the schema.
    pub fn columns(&self) -> &[ColumnStatistics] {
        &self.columns
    }

    /// Of no segments.
    pub fn empty(schema: SchemaRef) -> Self {
        let columns = schema.fields().iter().map(|field| ColumnStatistics::empty(field.data_type())).collect();
        Self::new(schema, UInt64Array::from(Vec::<u64>::new()), columns)
    }

    /// Those of some segments.
    ///
    /// # Errors
    /// When there is no such segment.
    pub fn of_segments(&self, segments: &[usize]) -> Result<Self> {
        let indices = UInt64Array::from_iter_values(segments.iter().map(|segment| *segment as u64));
        let columns = self.columns.iter().map(|column| column.take(&indices)).collect::<Result<_>>()?;
        Ok(Self::new(Arc::clone(&self.schema), take_counts(&self.row_counts, &indices)?, columns))
    }

    /// Those of `self` followed by those of `other`.
    ///
    /// # Errors
    /// When the schemas differ.
    pub fn concat(&self, other: &Self) -> Result<Self> {
        check_same_columns(&self.schema, &other.schema, "statistics of segments")?;
        let row_counts = concat_counts(&self.row_counts, &other.row_counts)?;
        let columns =
            self.columns.iter().zip(&other.columns).map(|(left, right)| left.concat(right)).collect::<Result<_>>()?;
        Ok(Self::new(Arc::clone(&self.schema), row_counts, columns))
    }
}

fn take_rows(rows: &dyn Array, segments: &UInt64Array) -> Result<ArrayRef> {
    // Asked for by a number that is not checked, a segment would be a panic.
    let options = Some(TakeOptions { check_bounds: true });
    take(rows, segments, options).context(ErrorCode::Internal, || "cannot take statistics of segments".to_owned())
}

fn take_counts(counts: &UInt64Array, segments: &UInt64Array) -> Result<UInt64Array> {
    Ok(take_rows(counts, segments)?.as_primitive().clone())
}

fn concat_counts(left: &UInt64Array, right: &UInt64Array) -> Result<UInt64Array> {
    let both =
        concat(&[left, right]).context(ErrorCode::Internal, || "cannot concatenate counts of segments".to_owned())?;
    Ok(both.as_primitive().clone())
}

fn concat_bounds(left: &ArrayRef, right: &ArrayRef) -> Result<ArrayRef> {
    let both = concat(&[left.as_ref(), right.as_ref()])
        .context(ErrorCode::Internal, || "cannot concatenate bounds of segments".to_owned())?;
    Ok(match both.data_type() {
        DataType::Utf8View if both.as_string_view().data_buffers().len() > VIEW_BUFFERS_MAX => {
            Arc::new(both.as_string_view().gc())
        }
        DataType::BinaryView if both.as_binary_view().data_buffers().len() > VIEW_BUFFERS_MAX => {
            Arc::new(both.as_binary_view().gc())
        }
        _ => both,
    })
}

/// Names and types have to be the same; metadata and nullability do not matter to statistics.
fn check_same_columns(expected: &Schema, found: &Schema, what: &str) -> Result<()> {
    let same = |(left, right): (&Arc<Field>, &Arc<Field>)| {
        left.name() == right.name() && left.data_type() == right.data_type()
    };
    if expected.fields().len() == found.fields().len() && expected.fields().iter().zip(found.fields()).all(same) {
        return Ok(());
    }
    let columns = |schema: &Schema| {
        let columns: Vec<String> =
            schema.fields().iter().map(|field| format!("{} {}", field.name(), field.data_type())).collect();
        columns.join(", ")
    };
    let message = format!("{what} have the columns ({}) instead of ({})", columns(found), columns(expected));
    Err(Error::new(ErrorCode::InvalidArgument, message))
}
