//! The columns of a batch as they travel: dense, narrow, or as positions in the different texts of the batch.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::narrow::{narrow, narrowed_type, widen};
use super::repeated::{positions_type, repeated, spread};
use crate::code::ErrorCode;
use crate::error::{Error, Result};
use crate::wire::storage::{NarrowColumn, RepeatedColumn};

const CAST: CastOptions<'static> =
    CastOptions { safe: false, format_options: arrow::util::display::FormatOptions::new() };

/// Which columns of a batch do not travel in the types of the wire's schema.
#[derive(Debug, Default)]
pub(super) struct Encodings {
    pub(super) narrowed: Vec<NarrowColumn>,
    pub(super) repeated: Vec<RepeatedColumn>,
}

impl Encodings {
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn len(&self) -> usize {
        self.narrowed.len() + self.repeated.len()
    }
}

fn cast(column: &ArrayRef, data_type: &DataType) -> Result<ArrayRef> {
    if column.data_type() == data_type {
        return Ok(Arc::clone(column));
    }
    Ok(cast_with_options(column, data_type, &CAST)?)
}

fn batch(schema: SchemaRef, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(schema, columns, &options)?)
}

fn with_type(field: &Field, data_type: &DataType) -> Field {
    // A column without buffers is one of nulls.
    let nullable = field.is_nullable() || *data_type == DataType::Null;
    Field::new(field.name(), data_type.clone(), nullable)
}

/// `batch`, whose columns travel in the types of `wire` where there is nothing better, or all of them if `plain`.
pub(super) fn encode_columns(sent: &RecordBatch, wire: &SchemaRef, plain: bool) -> Result<(RecordBatch, Encodings)> {
    let mut encodings = Encodings::default();
    let columns = sent.columns().iter().zip(wire.fields()).enumerate().map(|(index, (column, field))| {
        if plain {
            return cast(column, field.data_type());
        }
        if let Some((description, positions)) = repeated(index, column) {
            encodings.repeated.push(description);
            return Ok(positions);
        }
        let column = cast(column, field.data_type())?;
        Ok(match narrow(index, &column) {
            Some((description, distances)) => {
                encodings.narrowed.push(description);
                distances
            }
            None => column,
        })
    });
    let columns = columns.collect::<Result<Vec<_>>>()?;
    let schema = match encodings.is_empty() {
        true => Arc::clone(wire),
        false => {
            let fields = wire.fields().iter().zip(&columns);
            Arc::new(Schema::new(
                fields.map(|(field, column)| with_type(field, column.data_type())).collect::<Vec<_>>(),
            ))
        }
    };
    Ok((batch(schema, columns, sent.num_rows())?, encodings))
}

/// The types in which a batch arrives that will have the columns of `expected`.
///
/// # Errors
/// `InvalidMessage` for encodings of columns that are not there, or that such columns do not have.
pub(super) fn arriving_schema(wire: &SchemaRef, expected: &SchemaRef, encodings: &Encodings) -> Result<SchemaRef> {
    let narrowed = encodings.narrowed.iter().map(|column| {
        let types = wire.fields();
        (column.index, place(types, column.index).and_then(|field| narrowed_type(column, field.data_type())))
    });
    let repeated = encodings.repeated.iter().map(|column| {
        let types = expected.fields();
        (column.index, place(types, column.index).and_then(|field| positions_type(column, field.data_type())))
    });
    let mut fields: Vec<Arc<Field>> = wire.fields().iter().cloned().collect();
    for (index, data_type) in narrowed.chain(repeated) {
        let data_type = data_type?;
        if let Some(field) = usize::try_from(index).ok().and_then(|index| fields.get_mut(index)) {
            *field = Arc::new(with_type(field, &data_type));
        }
    }
    Ok(Arc::new(Schema::new(fields)))
}

fn place(fields: &[Arc<Field>], index: u32) -> Result<&Arc<Field>> {
    let field = usize::try_from(index).ok().and_then(|index| fields.get(index));
    field.ok_or_else(|| {
        let text = format!("a scan reply encodes column {index}, and there are {}", fields.len());
        Error::new(ErrorCode::InvalidMessage, text)
    })
}

/// The columns of `expected` out of those that arrived.
///
/// # Errors
/// `InvalidMessage` when they are not as `encodings` says.
pub(super) fn decode_columns(
    arrived: RecordBatch,
    wire: &SchemaRef,
    expected: &SchemaRef,
    encodings: &Encodings,
) -> Result<RecordBatch> {
    let (_, columns, rows) = arrived.into_parts();
    let fields = wire.fields().iter().zip(expected.fields());
    let columns = columns.iter().zip(fields).enumerate().map(|(index, (column, (wire, field)))| {
        let is_here = |encoded: u32| usize::try_from(encoded).is_ok_and(|encoded| encoded == index);
        if let Some(repeated) = encodings.repeated.iter().find(|repeated| is_here(repeated.index)) {
            return spread(repeated, column, field.data_type());
        }
        match encodings.narrowed.iter().find(|narrowed| is_here(narrowed.index)) {
            Some(narrowed) => cast(&widen(narrowed, column, wire.data_type())?, field.data_type()),
            None => cast(column, field.data_type()),
        }
    });
    batch(Arc::clone(expected), columns.collect::<Result<Vec<_>>>()?, rows)
}
