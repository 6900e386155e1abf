//! Columns of segments, decoded and in memory: what a buffer pool keeps, and what fragments run over in its stead.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque, vec_deque};
use std::fmt::Debug;
use std::iter::Map;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, GenericByteViewArray, RecordBatch, RecordBatchOptions};
use arrow::buffer::{BooleanBuffer, Buffer};
use arrow::datatypes::{BinaryViewType, ByteViewType, DataType, SchemaRef, StringViewType};
use arrow::error::ArrowError;
use aubade_proto::{Error, ErrorCode, Result, SegmentId};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReaderBuilder, RowSelection};

use crate::limits::DECODED_ROWS;
use crate::scan::{Footer, SegmentReader, SelectedRows, mask_of};

/// One column of a segment: for each row group arrays of [`DECODED_ROWS`] rows, so that what is handed on of it weighs
/// no more than a batch does elsewhere.
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

    /// Decodes a column of a file whose bytes are at hand, a row group at a time. Each step blocks for as long as that
    /// takes; `false` at the end, and where the file has no such column.
    pub(crate) fn decode_next(&mut self, footer: &Footer, name: &str) -> Result<bool> {
        let group = self.groups.len();
        let Ok(root) = footer.schema().index_of(name) else { return Ok(false) };
        if group >= footer.metadata.num_row_groups() {
            return Ok(false);
        }
        let reader = SegmentReader::new(Arc::clone(&footer.file));
        let mask = ProjectionMask::roots(footer.metadata.file_metadata().schema_descr(), [root]);
        let batches = ParquetRecordBatchReaderBuilder::new_with_metadata(reader.clone(), footer.arrow.clone())
            .with_row_groups(vec![group])
            .with_projection(mask)
            .with_batch_size(DECODED_ROWS)
            .build()
            .map_err(|error| reader.explain(error))?;
        let (mut copies, mut arrays) = (HashMap::new(), Vec::new());
        for batch in batches {
            let batch = batch.map_err(|error| reader.explain(error))?;
            let column = batch.columns().first().map(|column| detached(column, &mut copies)).transpose()?;
            let Some(column) = column else { continue };
            arrays.push(column);
        }
        let mut seen = HashSet::new();
        let bytes = arrays.iter().map(|array| bytes_of(array, &mut seen)).fold(0, usize::saturating_add);
        self.bytes = self.bytes.saturating_add(bytes);
        self.groups.push(arrays);
        Ok(true)
    }
}

/// Bytes that an array holds, less those of texts that an array before it refers to as well.
fn bytes_of(array: &ArrayRef, seen: &mut HashSet<usize>) -> usize {
    let texts = match array.data_type() {
        DataType::Utf8View => array.as_byte_view::<StringViewType>().data_buffers(),
        DataType::BinaryView => array.as_byte_view::<BinaryViewType>().data_buffers(),
        _ => &[],
    };
    let again = texts.iter().filter(|buffer| !seen.insert(buffer.as_ptr() as usize)).map(Buffer::capacity);
    array.get_buffer_memory_size().saturating_sub(again.fold(0, usize::saturating_add))
}

/// Buffers that were copied, by where they were.
type Copies = HashMap<(usize, usize), Buffer>;

/// The same values with none of the memory that they were decoded from: texts refer to pages, which can be parts of all
/// that was fetched.
fn detached(array: &ArrayRef, copies: &mut Copies) -> Result<ArrayRef> {
    Ok(match array.data_type() {
        DataType::Utf8View => Arc::new(detached_views(array.as_byte_view::<StringViewType>(), copies)?),
        DataType::BinaryView => Arc::new(detached_views(array.as_byte_view::<BinaryViewType>(), copies)?),
        _ => Arc::clone(array),
    })
}

fn detached_views<T: ByteViewType>(
    array: &GenericByteViewArray<T>,
    copies: &mut Copies,
) -> Result<GenericByteViewArray<T>> {
    let held: usize = array.data_buffers().iter().map(Buffer::len).sum();
    // A dictionary, whose values are used many times over.
    if array.total_buffer_bytes_used() < held.saturating_mul(2) {
        return Ok(array.gc());
    }
    let copy = |buffer: &Buffer| {
        let key = (buffer.as_ptr() as usize, buffer.len());
        copies.entry(key).or_insert_with(|| Buffer::from(buffer.as_slice().to_vec())).clone()
    };
    let buffers: Vec<Buffer> = array.data_buffers().iter().map(copy).collect();
    Ok(GenericByteViewArray::try_new(array.views().clone(), buffers, array.nulls().cloned())?)
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
            let options = RecordBatchOptions::new().with_row_count(Some(DECODED_ROWS.min(rows - first)));
            parts.push_back(RecordBatch::try_new_with_options(Arc::clone(&schema), arrays, &options)?);
        }
        let selected = selection.map(|selection| mask_of(selection, rows).into_owned());
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
    use arrow::array::{Int64Array, StringViewArray, StringViewBuilder};
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

    #[test]
    fn texts_leave_their_pages() {
        let long = "a text that is too long for its view";
        let plain = StringViewArray::from_iter_values((0..100).map(|row| format!("{long} {row}")));
        let part: ArrayRef = Arc::new(plain.slice(10, 5));
        let mut copies = Copies::new();
        let alone = detached(&part, &mut copies).unwrap();
        assert_eq!(&alone, &part);
        assert!(alone.get_buffer_memory_size() < part.get_buffer_memory_size() / 4);
        let mut dictionary = StringViewBuilder::new().with_deduplicate_strings();
        (0..100).for_each(|_| dictionary.append_value(long));
        let dictionary: ArrayRef = Arc::new(dictionary.finish());
        for _ in 0..2 {
            assert_eq!(&detached(&dictionary, &mut copies).unwrap(), &dictionary);
        }
        assert_eq!(copies.len(), 1);
        let (first, second) =
            (detached(&dictionary, &mut copies).unwrap(), detached(&dictionary, &mut copies).unwrap());
        let mut seen = HashSet::new();
        assert!(bytes_of(&second, &mut seen) > bytes_of(&first, &mut seen));
    }
}
