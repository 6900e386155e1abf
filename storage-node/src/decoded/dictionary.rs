//! Columns of few texts: kept as a dictionary, of which each row is a key of one or two bytes instead of a view of
//! sixteen. There is one dictionary for a segment, so that its keys can be compared.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, DictionaryArray, StringViewArray, UInt16Array};
use arrow::compute::cast;
use arrow::datatypes::{ArrowDictionaryKeyType, ArrowNativeType, DataType, Int32Type, Schema, UInt8Type, UInt16Type};
use aubade_proto::Result;
use datafusion::common::HashMap;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::basic::Encoding;

use super::DecodedColumn;
use super::decoder::GroupReader;
use crate::limits::DICTIONARY_TEXTS_MAX;

/// Texts of a column with their keys, from 0 on in the order in which they come.
#[derive(Debug, Default)]
pub(super) struct Dictionary {
    keys: HashMap<String, u16>,
    /// Of the texts in the file, once a row group was read.
    data_type: Option<DataType>,
}

impl Dictionary {
    /// The keys of a row group, which may bring new texts; `None` where it is not stored as a dictionary throughout, or
    /// there are too many texts.
    pub(super) fn read(&mut self, reader: &GroupReader<'_>) -> Result<Option<Vec<ArrayRef>>> {
        let Some(metadata) = as_dictionary(reader) else { return Ok(None) };
        self.data_type = Some(reader.footer.schema().field(reader.root).data_type().clone());
        let mut arrays: Option<Vec<ArrayRef>> = Some(Vec::new());
        reader.read(metadata, |column| {
            let keys = column.as_dictionary_opt::<Int32Type>().and_then(|column| self.keys_of(column));
            match (keys, &mut arrays) {
                (Some(keys), Some(arrays)) => arrays.push(Arc::new(keys)),
                _ => arrays = None,
            }
            Ok(arrays.is_some())
        })?;
        Ok(arrays)
    }

    /// `None` where there are too many texts.
    fn keys_of(&mut self, column: &DictionaryArray<Int32Type>) -> Option<UInt16Array> {
        let texts = column.values().as_string_opt::<i32>()?;
        let keys: Vec<u16> = texts.iter().map(|text| self.key_of(text?)).collect::<Option<_>>()?;
        // Where a row is null its key may be anything.
        let of_row = |key: &i32| keys.get(key.as_usize()).copied().unwrap_or(0);
        let of_rows = column.keys().values().iter().map(of_row).collect::<Vec<_>>();
        UInt16Array::try_new(of_rows.into(), column.keys().nulls().cloned()).ok()
    }

    fn key_of(&mut self, text: &str) -> Option<u16> {
        if let Some(key) = self.keys.get(text) {
            return Some(*key);
        }
        let key = self.keys.len();
        if key >= DICTIONARY_TEXTS_MAX {
            return None;
        }
        let key = u16::try_from(key).ok()?;
        self.keys.insert(text.to_owned(), key);
        Some(key)
    }

    /// The column whose row groups have these keys.
    pub(super) fn pack(self, groups: Vec<Vec<ArrayRef>>) -> Result<DecodedColumn> {
        let mut texts: Vec<(u16, String)> = self.keys.into_iter().map(|(text, key)| (key, text)).collect();
        texts.sort_unstable();
        let texts = StringViewArray::from_iter_values(texts.into_iter().map(|(_, text)| text)).gc();
        let texts = cast(&texts, self.data_type.as_ref().unwrap_or(&DataType::Utf8View))?;
        let mut bytes = texts.get_buffer_memory_size();
        let mut pack = |keys: &ArrayRef| {
            let packed = match texts.len() <= 1 << u8::BITS {
                true => packed::<UInt8Type>(keys, &texts)?,
                false => packed::<UInt16Type>(keys, &texts)?,
            };
            bytes = bytes.saturating_add(packed.as_any_dictionary().keys().get_buffer_memory_size());
            Ok(packed)
        };
        let packed = groups.iter().map(|arrays| arrays.iter().map(&mut pack).collect::<Result<Vec<_>>>());
        let groups = packed.collect::<Result<Vec<_>>>()?;
        Ok(DecodedColumn { groups, bytes })
    }
}

fn packed<K: ArrowDictionaryKeyType>(keys: &ArrayRef, texts: &ArrayRef) -> Result<ArrayRef> {
    let keys = cast(keys, &K::DATA_TYPE)?;
    Ok(Arc::new(DictionaryArray::<K>::try_new(keys.as_primitive::<K>().clone(), Arc::clone(texts))?))
}

/// How to read a row group of texts as a dictionary, where each page of it refers to one.
fn as_dictionary(reader: &GroupReader<'_>) -> Option<ArrowReaderMetadata> {
    let (metadata, schema) = (&reader.footer.metadata, reader.footer.schema());
    let field = schema.fields().get(reader.root)?;
    if !field.data_type().is_string() {
        return None;
    }
    let (mask, chunks) = (reader.mask(), metadata.row_groups().get(reader.group)?.columns());
    let (_, chunk) = chunks.iter().enumerate().find(|(leaf, _)| mask.leaf_included(*leaf))?;
    let encodings = chunk.page_encoding_stats_mask()?;
    if !encodings.is_only(Encoding::RLE_DICTIONARY) && !encodings.is_only(Encoding::PLAIN_DICTIONARY) {
        return None;
    }
    let mut fields: Vec<_> = schema.fields().iter().cloned().collect();
    let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    *fields.get_mut(reader.root)? = Arc::new(field.as_ref().clone().with_data_type(dictionary));
    let schema = Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()));
    ArrowReaderMetadata::try_new(Arc::clone(metadata), ArrowReaderOptions::new().with_schema(schema)).ok()
}
