//! Columns of segments, decoded and in memory: what a buffer pool keeps, and what fragments run over in its stead.

mod decoder;
mod dictionary;

use std::collections::{BTreeMap, VecDeque, vec_deque};
use std::fmt::Debug;
use std::iter::Map;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::buffer::BooleanBuffer;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::error::ArrowError;
use aubade_proto::{Error, ErrorCode, Result, SegmentId};
pub(crate) use decoder::ColumnDecoder;
use parquet::arrow::arrow_reader::RowSelection;

use crate::limits::DECODED_ROWS;
use crate::scan::{Footer, SelectedRows, batch_of, mask_of};

/// One column of a segment: for each row group arrays of [`DECODED_ROWS`] rows, so that what is handed on of it weighs
/// no more than a batch does elsewhere. Few texts are packed: arrays of one dictionary, whatever the file says.
#[derive(Debug, Default)]
pub struct DecodedColumn {
    groups: Vec<Vec<ArrayRef>>,
    bytes: usize,
}

impl DecodedColumn {
    /// Bytes of memory that it holds.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether each row is a key of a dictionary.
    pub fn is_dictionary(&self) -> bool {
        let first = self.groups.iter().flatten().next();
        first.is_some_and(|array| matches!(array.data_type(), DataType::Dictionary(_, _)))
    }
}

/// Some columns of a segment. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DecodedSegment {
    id: SegmentId,
    pub(crate) footer: Arc<Footer>,
    columns: BTreeMap<Arc<str>, Arc<DecodedColumn>>,
}

impl DecodedSegment {
    pub(crate) fn new(id: SegmentId, footer: Arc<Footer>) -> Self {
        Self { id, footer, columns: BTreeMap::new() }
    }

    /// Which segment.
    pub fn id(&self) -> SegmentId {
        self.id
    }

    /// The segment without any column.
    pub fn without_columns(&self) -> Self {
        Self::new(self.id, Arc::clone(&self.footer))
    }

    /// The columns; those that the file lacks are empty.
    pub fn columns(&self) -> &BTreeMap<Arc<str>, Arc<DecodedColumn>> {
        &self.columns
    }

    /// Adds a column of this segment.
    pub fn add(&mut self, name: Arc<str>, column: Arc<DecodedColumn>) {
        self.columns.insert(name, column);
    }

    /// Takes a column away.
    pub fn remove(&mut self, name: &str) -> Option<Arc<DecodedColumn>> {
        self.columns.remove(name)
    }

    /// Rows of the whole segment.
    pub fn rows_total(&self) -> u64 {
        u64::try_from(self.footer.metadata.file_metadata().num_rows()).unwrap_or(0)
    }

    /// Bytes of memory that its footer holds.
    pub fn footer_bytes(&self) -> usize {
        self.footer.metadata.memory_size()
    }

    /// The rows of a row group that a selection leaves, of some columns by their index in the file.
    ///
    /// # Errors
    /// `SegmentNotFound` where not all of these are here.
    pub(crate) fn rows(
        &self,
        group: usize,
        roots: &[usize],
        selection: Option<&RowSelection>,
        batch_rows: usize,
    ) -> Result<DecodedRows> {
        let file_schema = self.footer.schema();
        let group_rows = self.footer.metadata.row_groups().get(group).map(|group| group.num_rows());
        let rows = group_rows.and_then(|rows| usize::try_from(rows).ok()).ok_or_else(|| missing(self.id))?;
        let columns = roots.iter().map(|root| {
            let column = self.columns.get(file_schema.fields().get(*root)?.name().as_str())?;
            column.groups.get(group)
        });
        let columns = columns.collect::<Option<Vec<_>>>().ok_or_else(|| missing(self.id))?;
        let schema: SchemaRef = Arc::new(file_schema.project(roots)?);
        let mut parts = VecDeque::with_capacity(rows.div_ceil(DECODED_ROWS));
        for (index, first) in (0..rows).step_by(DECODED_ROWS).enumerate() {
            let arrays = columns.iter().map(|arrays| arrays.get(index).map(Arc::clone)).collect::<Option<Vec<_>>>();
            let arrays = arrays.ok_or_else(|| missing(self.id))?;
            parts.push_back(batch_of(&schema, arrays, DECODED_ROWS.min(rows - first))?);
        }
        let selected = selection.map(|selection| mask_of(selection, rows).into_owned());
        let schema = parts.front().map_or(schema, RecordBatch::schema);
        Ok(DecodedRows::new(&schema, parts, selected, batch_rows.max(1)))
    }
}

/// Rows of a row group, a batch at a time: of as many rows as the Parquet reader makes them of, since where a reduction
/// begins to send depends on it.
pub(crate) enum DecodedRows {
    /// Parts of parts, from parts of [`DECODED_ROWS`] rows each, but for the last.
    Whole {
        parts: VecDeque<RecordBatch>,
        batch_rows: usize,
    },
    Selected(SelectedRows<Parts>),
}

type Parts = Map<vec_deque::IntoIter<RecordBatch>, fn(RecordBatch) -> Result<RecordBatch, ArrowError>>;

impl DecodedRows {
    fn new(
        schema: &SchemaRef,
        parts: VecDeque<RecordBatch>,
        selected: Option<BooleanBuffer>,
        batch_rows: usize,
    ) -> Self {
        let all = selected.as_ref().is_none_or(|selected| selected.count_set_bits() == selected.len());
        let selected = selected.filter(|_| !all);
        if selected.is_none() && DECODED_ROWS.is_multiple_of(batch_rows) {
            return Self::Whole { parts, batch_rows };
        }
        let parts: Parts = parts.into_iter().map(Ok);
        Self::Selected(SelectedRows::new(Arc::clone(schema), parts, selected, batch_rows))
    }
}

impl Iterator for DecodedRows {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (parts, batch_rows) = match self {
            Self::Selected(rows) => return rows.next(),
            Self::Whole { parts, batch_rows } => (parts, *batch_rows),
        };
        let part = parts.front_mut()?;
        if part.num_rows() <= batch_rows {
            return parts.pop_front().map(Ok);
        }
        let batch = part.slice(0, batch_rows);
        *part = part.slice(batch_rows, part.num_rows() - batch_rows);
        Some(Ok(batch))
    }
}

/// Where decoded segments are found.
pub trait DecodedSegments: Debug + Send + Sync {
    /// A segment with the columns that a scan reads; `None` where they are not there, or no longer.
    fn find(&self, id: SegmentId) -> Option<DecodedSegment>;
}

/// The error for a segment that is not in memory.
pub(crate) fn missing(id: SegmentId) -> Error {
    Error::new(ErrorCode::SegmentNotFound, format!("segment {id} is not in memory"))
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, Int64Array};
    use arrow::datatypes::{Field, Schema};
    use parquet::arrow::arrow_reader::RowSelector;

    use super::*;

    fn rows(count: usize, selection: Option<&RowSelection>, batch_rows: usize) -> Vec<Vec<i64>> {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
        let numbers = Int64Array::from_iter_values(0..count as i64);
        let parts = (0..count).step_by(DECODED_ROWS).map(|first| {
            let part = numbers.slice(first, DECODED_ROWS.min(count - first));
            RecordBatch::try_new(Arc::clone(&schema) as SchemaRef, vec![Arc::new(part)]).unwrap()
        });
        let selected = selection.map(|selection| mask_of(selection, count).into_owned());
        DecodedRows::new(&(Arc::clone(&schema) as SchemaRef), parts.collect(), selected, batch_rows)
            .map(|batch| batch.unwrap().column(0).as_primitive::<arrow::datatypes::Int64Type>().values().to_vec())
            .collect()
    }

    #[test]
    fn batches_are_as_large_as_those_of_the_parquet_reader() {
        let count = DECODED_ROWS * 2 + 100;
        for batch_rows in [61, DECODED_ROWS / 2, DECODED_ROWS, DECODED_ROWS * 2, count * 2] {
            let batches = rows(count, None, batch_rows);
            let all: Vec<i64> = batches.iter().flatten().copied().collect();
            assert_eq!(all, (0..count as i64).collect::<Vec<_>>());
            let (last, rest) = batches.split_last().unwrap();
            assert!(rest.iter().all(|batch| batch.len() == batch_rows) && last.len() <= batch_rows, "{batch_rows}");
        }
        let selection: RowSelection =
            vec![RowSelector::skip(5), RowSelector::select(10_000), RowSelector::skip(10), RowSelector::select(3)]
                .into();
        for batch_rows in [61, DECODED_ROWS] {
            let batches = rows(count, Some(&selection), batch_rows);
            let all: Vec<i64> = batches.iter().flatten().copied().collect();
            assert_eq!(all, (5..10_005).chain(10_015..10_018).collect::<Vec<_>>());
            assert!(batches.split_last().unwrap().1.iter().all(|batch| batch.len() == batch_rows), "{batch_rows}");
        }
        assert!(rows(count, Some(&vec![RowSelector::skip(count)].into()), 61).is_empty());
    }
}
