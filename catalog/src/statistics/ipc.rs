//! The stored form: an Arrow IPC stream of one batch, with one row per segment. Its columns are
//! `rows`, then for every column `i` of the table `min.i`, `max.i`, `nulls.i`, `distinct.i`,
//! `memory.i` and `file.i`; the metadata entry `cut.i` says that bounds are cut.

use std::collections::HashMap;
use std::io::Cursor;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt64Type};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use arrow::record_batch::RecordBatch;
use aubade_proto::{Error, ErrorCode, Result, ResultExt};
use bytes::Bytes;

use super::bounds::bound_type;
use super::{ColumnStatistics, SegmentStatistics};

impl SegmentStatistics {
    /// The wire form: an Arrow IPC stream of one batch.
    ///
    /// # Errors
    /// When a type has no IPC form.
    pub fn encode(&self) -> Result<Bytes> {
        let failed = || "cannot encode the statistics of segments".to_owned();
        let batch = self.to_batch().context(ErrorCode::Internal, failed)?;
        let write = || {
            let mut writer = StreamWriter::try_new(Vec::new(), batch.schema_ref())?;
            writer.write(&batch)?;
            writer.into_inner()
        };
        Ok(write().context(ErrorCode::Internal, failed)?.into())
    }

    fn to_batch(&self) -> Result<RecordBatch, arrow::error::ArrowError> {
        let mut fields = vec![Field::new("rows", DataType::UInt64, false)];
        let mut arrays: Vec<ArrayRef> = vec![Arc::new(self.row_counts.clone())];
        let mut metadata = HashMap::new();
        for (index, column) in self.columns.iter().enumerate() {
            for (name, array) in [("min", &column.min), ("max", &column.max)] {
                fields.push(Field::new(format!("{name}.{index}"), array.data_type().clone(), true));
                arrays.push(Arc::clone(array));
            }
            for (name, counts) in [
                ("nulls", &column.null_count),
                ("distinct", &column.distinct),
                ("memory", &column.memory_bytes),
                ("file", &column.file_bytes),
            ] {
                fields.push(Field::new(format!("{name}.{index}"), DataType::UInt64, true));
                arrays.push(Arc::new(counts.clone()));
            }
            if !column.exact_bounds {
                metadata.insert(format!("cut.{index}"), "true".to_owned());
            }
        }
        RecordBatch::try_new(Arc::new(Schema::new_with_metadata(fields, metadata)), arrays)
    }

    /// Reads the wire form for a table of `schema`.
    ///
    /// # Errors
    /// `ManifestCorrupt` when the bytes are no such stream or the columns do not fit.
    pub fn decode(schema: SchemaRef, bytes: &Bytes) -> Result<Self> {
        let failed = || "the statistics of segments cannot be read".to_owned();
        let mut reader = StreamReader::try_new(Cursor::new(bytes), None).context(ErrorCode::ManifestCorrupt, failed)?;
        let batch = reader.next().ok_or_else(|| corrupt("there is no batch"))?;
        let batch = batch.context(ErrorCode::ManifestCorrupt, failed)?;
        let row_counts = counts(&batch, "rows")?;
        if row_counts.null_count() > 0 {
            return Err(corrupt("a segment has no row count"));
        }
        let fields = schema.fields().iter().enumerate();
        let columns = fields.map(|(index, field)| read_column(&batch, index, field)).collect::<Result<_>>()?;
        Ok(Self::new(schema, row_counts, columns))
    }
}

fn read_column(batch: &RecordBatch, index: usize, field: &Field) -> Result<ColumnStatistics> {
    let expected = bound_type(field.data_type());
    let bounds = |name: &str| {
        let name = format!("{name}.{index}");
        let array = batch.column_by_name(&name).ok_or_else(|| corrupt(&format!("{name} is missing")))?;
        if array.data_type() == &expected {
            return Ok(Arc::clone(array));
        }
        let column = field.name();
        Err(corrupt(&format!("{name} of column {column} has type {} instead of {expected}", array.data_type())))
    };
    Ok(ColumnStatistics {
        min: bounds("min")?,
        max: bounds("max")?,
        null_count: counts(batch, &format!("nulls.{index}"))?,
        distinct: counts(batch, &format!("distinct.{index}"))?,
        memory_bytes: counts(batch, &format!("memory.{index}"))?,
        file_bytes: counts(batch, &format!("file.{index}"))?,
        exact_bounds: !batch.schema_ref().metadata().contains_key(&format!("cut.{index}")),
    })
}

fn counts(batch: &RecordBatch, name: &str) -> Result<UInt64Array> {
    let array = batch.column_by_name(name).ok_or_else(|| corrupt(&format!("{name} is missing")))?;
    let array = array.as_primitive_opt::<UInt64Type>().ok_or_else(|| corrupt(&format!("{name} holds no counts")))?;
    Ok(array.clone())
}

fn corrupt(what: &str) -> Error {
    Error::new(ErrorCode::ManifestCorrupt, format!("the statistics of segments cannot be read: {what}"))
}
