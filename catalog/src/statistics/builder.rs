//! Collecting the statistics of one segment while it is written.

use arrow::array::{Array, ArrayRef, AsArray, UInt64Array};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::record_batch::RecordBatch;
use aubade_proto::{ErrorCode, Result, ResultExt};
use datafusion::common::hash_utils::{HLL_RANDOM_STATE, create_hashes};

use super::bounds::{Bounds, bound_type};
use super::hyperloglog::HyperLogLog;
use super::{ColumnStatistics, SegmentStatistics, check_same_columns};

/// Values up to this length are inside the view itself, by Arrow's format.
const VIEW_INLINE_BYTES_MAX: u32 = 12;

/// Collects the statistics of one segment while it is written.
#[derive(Debug)]
pub struct StatisticsBuilder {
    schema: SchemaRef,
    row_count: u64,
    columns: Vec<ColumnBuilder>,
    /// Kept between batches to save its allocation.
    hashes: Vec<u64>,
}

#[derive(Debug)]
struct ColumnBuilder {
    bounds: Bounds,
    null_count: u64,
    memory_bytes: u64,
    /// `None` for types without an order: nobody asks how many different lists there are.
    distinct: Option<HyperLogLog>,
}

impl StatisticsBuilder {
    /// For a segment of a table of `schema`.
    pub fn new(schema: SchemaRef) -> Self {
        let columns = schema.fields().iter().map(|field| ColumnBuilder::new(field.data_type())).collect();
        Self { schema, row_count: 0, columns, hashes: Vec::new() }
    }

    /// Adds the rows of one batch of the table's schema.
    ///
    /// # Errors
    /// When the batch has another schema.
    pub fn update(&mut self, batch: &RecordBatch) -> Result<()> {
        check_same_columns(&self.schema, batch.schema_ref(), "rows for a segment")?;
        for ((array, builder), field) in batch.columns().iter().zip(&mut self.columns).zip(self.schema.fields()) {
            let updated = builder.update(array, &mut self.hashes);
            updated
                .context(ErrorCode::Internal, || format!("cannot take the statistics of column {}", field.name()))?;
        }
        self.row_count = self.row_count.saturating_add(batch.num_rows() as u64);
        Ok(())
    }

    /// One row of statistics. `file_bytes` gives the compressed size of each column; columns beyond
    /// its end are of unknown size.
    ///
    /// # Errors
    /// When the bounds of a column cannot be put in an array of its type.
    pub fn finish(self, file_bytes: &[u64]) -> Result<SegmentStatistics> {
        let sizes = file_bytes.iter().copied().map(Some).chain(std::iter::repeat(None));
        let row_count = self.row_count;
        let columns = self.columns.into_iter().zip(sizes).map(|(column, size)| column.finish(row_count, size));
        let columns = columns.collect::<Result<Vec<_>>>()?;
        Ok(SegmentStatistics::new(self.schema, UInt64Array::from(vec![row_count]), columns))
    }
}

impl ColumnBuilder {
    fn new(data_type: &DataType) -> Self {
        let ordered = bound_type(data_type) != DataType::Null;
        Self {
            bounds: Bounds::new(data_type),
            null_count: 0,
            memory_bytes: 0,
            distinct: ordered.then(HyperLogLog::new),
        }
    }

    fn update(&mut self, array: &ArrayRef, hashes: &mut Vec<u64>) -> Result<()> {
        self.null_count = self.null_count.saturating_add(array.logical_null_count() as u64);
        self.memory_bytes = self.memory_bytes.saturating_add(memory_bytes(array));
        self.bounds.update(array)?;
        let Some(sketch) = &mut self.distinct else { return Ok(()) };
        hashes.clear();
        hashes.resize(array.len(), 0);
        // Fixed seed: the same data gives the same estimate in every process.
        create_hashes([array], &HLL_RANDOM_STATE, hashes)?;
        match array.logical_nulls().filter(|nulls| nulls.null_count() > 0) {
            None => hashes.iter().for_each(|hash| sketch.add(*hash)),
            Some(nulls) => {
                hashes.iter().zip(&nulls).filter(|(_, valid)| *valid).for_each(|(hash, _)| sketch.add(*hash))
            }
        }
        Ok(())
    }

    fn finish(self, row_count: u64, file_bytes: Option<u64>) -> Result<ColumnStatistics> {
        let bounds = self.bounds.finish()?;
        let values = row_count.saturating_sub(self.null_count);
        let distinct = self.distinct.map(|sketch| sketch.estimate().min(values));
        Ok(ColumnStatistics {
            min: bounds.min,
            max: bounds.max,
            null_count: UInt64Array::from(vec![self.null_count]),
            distinct: UInt64Array::from(vec![distinct]),
            memory_bytes: UInt64Array::from(vec![self.memory_bytes]),
            file_bytes: UInt64Array::from(vec![file_bytes]),
            exact_bounds: bounds.exact,
        })
    }
}

/// Bytes of the rows themselves: batches are often slices of larger ones, or share buffers.
fn memory_bytes(array: &ArrayRef) -> u64 {
    if array.is_empty() {
        return 0;
    }
    let own = array.to_data().get_slice_memory_size().unwrap_or_else(|_| array.get_array_memory_size());
    let views = match array.data_type() {
        DataType::Utf8View => view_bytes(array.as_string_view().lengths()),
        DataType::BinaryView => view_bytes(array.as_binary_view().lengths()),
        _ => 0,
    };
    (own as u64).saturating_add(views)
}

/// Bytes beside the views: values of more than [`VIEW_INLINE_BYTES_MAX`] live in a data buffer.
fn view_bytes(lengths: impl Iterator<Item = u32>) -> u64 {
    lengths.filter(|length| *length > VIEW_INLINE_BYTES_MAX).map(u64::from).sum()
}
