//! CSV files: a file has no types, so they are those that all its values fit.

use std::sync::Arc;

use arrow::csv::ReaderBuilder;
use arrow::csv::reader::Format;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;
use aubade_environment::ReadFile;
use indicatif::ProgressBar;

use super::reader::FileReader;
use super::{BATCH_ROWS, Batches, CsvOptions};

/// The columns: names from the header or `column_1` on, types from all values. The whole file is
/// read, since a type that fits only the first lines would fail in the middle of a load. A column
/// of empty values only has the type Null.
pub(super) fn schema(file: &Arc<dyn ReadFile>, options: CsvOptions) -> Result<SchemaRef, ArrowError> {
    let format = Format::default().with_header(options.header).with_delimiter(options.delimiter);
    let reader = FileReader::new(Arc::clone(file), ProgressBar::hidden());
    let (schema, _) = format.infer_schema(reader, None)?;
    let fields = schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
    Ok(Arc::new(Schema::new(fields.collect::<Vec<_>>())))
}

/// All rows, with the types of the table where the reader knows them, else as text to be cast.
pub(super) fn batches(
    file: Arc<dyn ReadFile>,
    own: &SchemaRef,
    table: &SchemaRef,
    options: CsvOptions,
    progress: ProgressBar,
) -> Result<Batches, ArrowError> {
    let fields = own.fields().iter().enumerate().map(|(index, field)| {
        let target = if options.header {
            table.fields().iter().find(|target| target.name().eq_ignore_ascii_case(field.name()))
        } else {
            table.fields().get(index)
        };
        let wanted = target.map_or(field.data_type(), |target| target.data_type());
        let data_type = if is_readable(wanted) { wanted.clone() } else { DataType::Utf8 };
        Field::new(field.name(), data_type, true)
    });
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let reader = ReaderBuilder::new(schema)
        .with_header(options.header)
        .with_delimiter(options.delimiter)
        .with_batch_size(BATCH_ROWS)
        .build(FileReader::new(file, progress))?;
    Ok(Box::new(reader))
}

/// Whether Arrow's CSV reader makes arrays of this type.
fn is_readable(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Boolean
            | DataType::Int8
            | DataType::Int16
            | DataType::Int32
            | DataType::Int64
            | DataType::UInt8
            | DataType::UInt16
            | DataType::UInt32
            | DataType::UInt64
            | DataType::Float32
            | DataType::Float64
            | DataType::Decimal128(..)
            | DataType::Decimal256(..)
            | DataType::Date32
            | DataType::Date64
            | DataType::Timestamp(..)
            | DataType::Utf8
            | DataType::Utf8View
    )
}

/// The type that holds the values of both, where two files give different ones.
pub(super) fn common_type(a: &DataType, b: &DataType) -> Option<DataType> {
    use DataType::{Date32, Float64, Int64, LargeUtf8, Null, Timestamp, Utf8, Utf8View};
    match (a, b) {
        _ if a == b => Some(a.clone()),
        (Null, other) | (other, Null) => Some(other.clone()),
        (Int64, Float64) | (Float64, Int64) => Some(Float64),
        (Date32, Timestamp(unit, None)) | (Timestamp(unit, None), Date32) => Some(Timestamp(*unit, None)),
        (Timestamp(a, None), Timestamp(b, None)) => Some(Timestamp(finer(*a, *b), None)),
        (Utf8 | LargeUtf8 | Utf8View, Utf8 | LargeUtf8 | Utf8View) => Some(Utf8View),
        (Utf8, _) | (_, Utf8) => Some(Utf8),
        _ => None,
    }
}

fn finer(a: TimeUnit, b: TimeUnit) -> TimeUnit {
    let rank = |unit: TimeUnit| match unit {
        TimeUnit::Second => 0,
        TimeUnit::Millisecond => 1,
        TimeUnit::Microsecond => 2,
        TimeUnit::Nanosecond => 3,
    };
    if rank(a) >= rank(b) { a } else { b }
}
