//! Columns on their way into memory.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, GenericByteViewArray};
use arrow::buffer::Buffer;
use arrow::datatypes::{BinaryViewType, ByteViewType, DataType, StringViewType};
use aubade_proto::Result;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder};

use super::DecodedColumn;
use super::dictionary::Dictionary;
use crate::limits::DECODED_ROWS;
use crate::scan::{Footer, SegmentReader, unpacked};

/// Decodes one column of a file whose bytes are at hand, a row group at a time.
#[derive(Debug)]
pub(crate) struct ColumnDecoder {
    /// Keys of the dictionary, while there is one.
    groups: Vec<Vec<ArrayRef>>,
    /// Of what is not in the dictionary.
    bytes: usize,
    /// Until there is a row group that it cannot hold.
    dictionary: Option<Dictionary>,
}

impl ColumnDecoder {
    pub(crate) fn new() -> Self {
        Self { groups: Vec::new(), bytes: 0, dictionary: Some(Dictionary::default()) }
    }

    /// Decodes the next row group, and blocks for as long as that takes; `false` at the end, and where the file has no
    /// such column.
    pub(crate) fn next(&mut self, footer: &Footer, name: &str) -> Result<bool> {
        let group = self.groups.len();
        let Ok(root) = footer.schema().index_of(name) else { return Ok(false) };
        if group >= footer.metadata.num_row_groups() {
            return Ok(false);
        }
        let reader = GroupReader { footer, root, group };
        if let Some(mut dictionary) = self.dictionary.take() {
            if let Some(keys) = dictionary.read(&reader)? {
                self.groups.push(keys);
                self.dictionary = Some(dictionary);
                return Ok(true);
            }
            self.without(dictionary)?;
        }
        let (mut copies, mut arrays) = (HashMap::new(), Vec::new());
        reader.read(footer.arrow.clone(), |column| {
            arrays.push(detached(column, &mut copies)?);
            Ok(true)
        })?;
        self.add(arrays, &mut HashSet::new());
        Ok(true)
    }

    /// Adds a row group; `seen` has the buffers of texts that were counted.
    fn add(&mut self, arrays: Vec<ArrayRef>, seen: &mut HashSet<usize>) {
        let bytes = arrays.iter().map(|array| bytes_of(array, seen)).fold(0, usize::saturating_add);
        self.bytes = self.bytes.saturating_add(bytes);
        self.groups.push(arrays);
    }

    /// The texts of the row groups so far in the stead of their keys.
    fn without(&mut self, dictionary: Dictionary) -> Result<()> {
        if self.groups.is_empty() {
            return Ok(());
        }
        let mut seen = HashSet::new();
        for arrays in dictionary.pack(std::mem::take(&mut self.groups))?.groups {
            let texts = arrays.iter().map(unpacked).collect::<Result<_>>()?;
            self.add(texts, &mut seen);
        }
        Ok(())
    }

    /// What was decoded.
    pub(crate) fn finish(self) -> Result<DecodedColumn> {
        match self.dictionary {
            Some(dictionary) if !self.groups.is_empty() => dictionary.pack(self.groups),
            _ => Ok(DecodedColumn { groups: self.groups, bytes: self.bytes }),
        }
    }
}

/// Reads one column of one row group.
pub(super) struct GroupReader<'a> {
    pub(super) footer: &'a Footer,
    /// The place of the column in the file.
    pub(super) root: usize,
    pub(super) group: usize,
}

impl GroupReader<'_> {
    pub(super) fn mask(&self) -> ProjectionMask {
        ProjectionMask::roots(self.footer.metadata.file_metadata().schema_descr(), [self.root])
    }

    /// Hands on arrays of [`DECODED_ROWS`] rows, of the type that `metadata` says, for as long as `take` wants more.
    pub(super) fn read(
        &self,
        metadata: ArrowReaderMetadata,
        mut take: impl FnMut(&ArrayRef) -> Result<bool>,
    ) -> Result<()> {
        let reader = SegmentReader::new(Arc::clone(&self.footer.file));
        let batches = ParquetRecordBatchReaderBuilder::new_with_metadata(reader.clone(), metadata)
            .with_row_groups(vec![self.group])
            .with_projection(self.mask())
            .with_batch_size(DECODED_ROWS)
            .build()
            .map_err(|error| reader.explain(error))?;
        for batch in batches {
            let batch = batch.map_err(|error| reader.explain(error))?;
            if let Some(column) = batch.columns().first()
                && !take(column)?
            {
                break;
            }
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use arrow::array::{StringViewArray, StringViewBuilder};

    use super::*;

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
