//! The columns of a fragment in a segment's file: found by name, read in the type that the fragment
//! asks for where Parquet can do that, cast or filled with nulls where not.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, new_null_array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use aubade_proto::Result;
use datafusion::physical_expr::PhysicalExpr;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::file::metadata::ParquetMetaData;

use super::packed::unpacked;
use super::prune::Pruner;

const CAST: CastOptions<'static> =
    CastOptions { safe: false, format_options: arrow::util::display::FormatOptions::new() };

/// How segments with one schema serve a fragment.
#[derive(Debug)]
pub(crate) struct FileColumns {
    scan_schema: SchemaRef,
    /// The file's columns with the types that are asked of the reader.
    pub(crate) reader_schema: SchemaRef,
    /// For each scan column its place in the file, if it is there.
    roots: Vec<Option<usize>>,
    pub(crate) pruner: Pruner,
}

impl FileColumns {
    pub(crate) fn new(
        scan_schema: &SchemaRef,
        filter: Option<&Arc<dyn PhysicalExpr>>,
        file_schema: &SchemaRef,
        metadata: &Arc<ParquetMetaData>,
    ) -> Self {
        let fields = file_schema.fields().iter().map(|field| match scan_schema.field_with_name(field.name()) {
            Ok(wanted) if reads_as(field.data_type(), wanted.data_type()) => {
                Arc::new(Field::clone(field).with_data_type(wanted.data_type().clone()))
            }
            _ => Arc::clone(field),
        });
        let fields: Vec<_> = fields.collect();
        let adapted: SchemaRef = Arc::new(Schema::new_with_metadata(fields, file_schema.metadata().clone()));
        let options = ArrowReaderOptions::new().with_schema(Arc::clone(&adapted));
        let reader_schema = match ArrowReaderMetadata::try_new(Arc::clone(metadata), options) {
            Ok(_) => adapted,
            Err(_) => Arc::clone(file_schema),
        };
        let roots = scan_schema.fields().iter().map(|field| file_schema.index_of(field.name()).ok()).collect();
        let pruner = Pruner::new(filter, scan_schema, &reader_schema);
        Self { scan_schema: Arc::clone(scan_schema), reader_schema, roots, pruner }
    }

    /// The mask of `columns` (indices into the scan schema), for the reader.
    pub(crate) fn mask(&self, metadata: &ParquetMetaData, columns: &[usize]) -> ProjectionMask {
        ProjectionMask::roots(metadata.file_metadata().schema_descr(), self.roots(columns))
    }

    /// The places of `columns` in the file, in its order.
    pub(crate) fn roots(&self, columns: &[usize]) -> Vec<usize> {
        let mut roots: Vec<usize> = columns.iter().filter_map(|column| *self.roots.get(*column)?).collect();
        roots.sort_unstable();
        roots.dedup();
        roots
    }

    /// The columns of a batch that was read with [`FileColumns::mask`], in the order and types asked, but
    /// that texts may be packed.
    pub(crate) fn extract(&self, batch: &RecordBatch, columns: &[usize]) -> Result<Vec<ArrayRef>> {
        // The reader yields columns in the order of the file.
        let read = self.roots(columns);
        let extracted = columns.iter().map(|column| {
            let field = self.scan_schema.field(*column);
            let position = self.roots.get(*column).copied().flatten().and_then(|root| read.binary_search(&root).ok());
            match position.and_then(|position| batch.columns().get(position)) {
                None => Ok(new_null_array(field.data_type(), batch.num_rows())),
                Some(array) if array.data_type() == field.data_type() => Ok(Arc::clone(array)),
                Some(array) if field.data_type().is_string() => texts(array, field.data_type()),
                Some(array) => Ok(cast_with_options(array, field.data_type(), &CAST)?),
            }
        });
        extracted.collect()
    }
}

/// Texts of a type, packed if they were of that type.
fn texts(array: &ArrayRef, wanted: &DataType) -> Result<ArrayRef> {
    match array.as_any_dictionary_opt() {
        Some(packed) if packed.values().data_type() == wanted => Ok(Arc::clone(array)),
        // Another dictionary for each batch would be put together again and again.
        _ => Ok(cast_with_options(&unpacked(array)?, wanted, &CAST)?),
    }
}

/// Whether Parquet can decode a column stored as `stored` straight into `wanted`.
fn reads_as(stored: &DataType, wanted: &DataType) -> bool {
    use DataType::{Binary, BinaryView, Dictionary, LargeBinary, LargeUtf8, Utf8, Utf8View};
    match (stored, wanted) {
        (Utf8 | LargeUtf8 | Utf8View, Utf8 | LargeUtf8 | Utf8View) => true,
        (Binary | LargeBinary | BinaryView, Binary | LargeBinary | BinaryView) => true,
        (Dictionary(_, values), Utf8 | LargeUtf8 | Utf8View) => matches!(values.as_ref(), Utf8 | LargeUtf8 | Utf8View),
        _ => false,
    }
}
