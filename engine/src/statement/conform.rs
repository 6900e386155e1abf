//! Fits batches to the schema of the table that they are written to.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::compute::{CastOptions, can_cast_types, cast_with_options};
use arrow::datatypes::{DataType, Field, IntervalUnit, Schema, SchemaRef};
use aubade_proto::{Error, ErrorCode, Result, ResultExt};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;
use parquet::arrow::ArrowSchemaConverter;

/// How the columns of a stream become those of a table.
#[derive(Debug)]
pub(crate) struct Conform {
    target: SchemaRef,
    /// For every column of the target, the index of its source; `None` is null.
    sources: Vec<Option<usize>>,
}

impl Conform {
    /// The columns are the table's, in its order.
    ///
    /// # Errors
    /// `Internal` when their number differs.
    pub(crate) fn by_position(source: &Schema, target: &SchemaRef) -> Result<Self> {
        if source.fields().len() != target.fields().len() {
            let (have, want) = (source.fields().len(), target.fields().len());
            return Err(Error::internal(format!("a query of {have} columns is written to a table of {want}")));
        }
        Ok(Self { target: Arc::clone(target), sources: (0..target.fields().len()).map(Some).collect() })
    }

    /// The columns go by name; nullable ones may be missing.
    ///
    /// # Errors
    /// `ColumnNotFound` for a column that the table lacks; `InvalidArgument` for a missing, doubled
    /// or unfitting one.
    pub(crate) fn by_name(source: &Schema, target: &SchemaRef) -> Result<Self> {
        let mut sources = vec![None; target.fields().len()];
        for (index, field) in source.fields().iter().enumerate() {
            let place = find(target, field.name()).ok_or_else(|| unknown_column(field.name(), target))?;
            let (Some(slot), Some(wanted)) = (sources.get_mut(place), target.fields().get(place)) else { continue };
            if slot.replace(index).is_some() {
                return Err(Error::new(
                    ErrorCode::InvalidArgument,
                    format!("column '{}' is there twice", field.name()),
                ));
            }
            check_castable(field, wanted)?;
        }
        for (field, source) in target.fields().iter().zip(&sources) {
            if source.is_none() && !field.is_nullable() {
                let text = format!("column '{}' is NOT NULL and the rows have no such column", field.name());
                return Err(Error::new(ErrorCode::InvalidArgument, text).hint("give a value for the column"));
            }
        }
        Ok(Self { target: Arc::clone(target), sources })
    }

    fn apply(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.sources.len());
        for (field, source) in self.target.fields().iter().zip(&self.sources) {
            let column = match source.and_then(|index| batch.columns().get(index)) {
                None => new_null_array(field.data_type(), batch.num_rows()),
                Some(column) if column.data_type() == field.data_type() => Arc::clone(column),
                Some(column) => cast(column, field)?,
            };
            if !field.is_nullable() && column.is_nullable() && column.logical_null_count() > 0 {
                let text = format!("column '{}' is NOT NULL and a row has no value for it", field.name());
                return Err(Error::new(ErrorCode::SqlExecution, text).hint("give a value for the column"));
            }
            columns.push(column);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(Arc::clone(&self.target), columns, &options)
            .context(ErrorCode::SqlExecution, || "rows do not fit the table".to_owned())
    }
}

fn find(schema: &Schema, name: &str) -> Option<usize> {
    let exact = schema.fields().iter().position(|field| field.name() == name);
    exact.or_else(|| {
        // Files often differ in case only; take it where it is clear which column is meant.
        let mut alike = schema.fields().iter().enumerate().filter(|(_, field)| field.name().eq_ignore_ascii_case(name));
        let first = alike.next().map(|(index, _)| index);
        first.filter(|_| alike.next().is_none())
    })
}

fn unknown_column(name: &str, table: &Schema) -> Error {
    let error = Error::new(ErrorCode::ColumnNotFound, format!("the table has no column '{name}'"));
    let names = table.fields().iter().map(|field| field.name());
    match names.map(|known| (strsim::damerau_levenshtein(known, name), known)).min() {
        Some((distance, known)) if distance <= 2 => error.hint(format!("did you mean '{known}'?")),
        _ => error.hint("columns go by name: leave the column out, or rename it to one of the table's"),
    }
}

fn check_castable(source: &Field, target: &Field) -> Result<()> {
    if source.data_type() == target.data_type() || can_cast_types(source.data_type(), target.data_type()) {
        return Ok(());
    }
    let text = format!(
        "column '{}' is {} and values of type {} do not fit it",
        target.name(),
        target.data_type(),
        source.data_type()
    );
    Err(Error::new(ErrorCode::InvalidArgument, text).hint("convert the column before loading it"))
}

fn cast(column: &ArrayRef, field: &Field) -> Result<ArrayRef> {
    // A value that does not fit is an error, not a null.
    let options = CastOptions { safe: false, ..CastOptions::default() };
    cast_with_options(column, field.data_type(), &options).context(ErrorCode::SqlExecution, || {
        format!("a value of column '{}' does not fit its type {}", field.name(), field.data_type())
    })
}

/// The stream with every batch fitted to the table.
pub(crate) fn conform_stream(conform: Conform, stream: SendableRecordBatchStream) -> SendableRecordBatchStream {
    let target = Arc::clone(&conform.target);
    let batches = stream.map(move |batch| batch.and_then(|batch| conform.apply(&batch).map_err(Into::into)));
    Box::pin(RecordBatchStreamAdapter::new(target, batches))
}

/// Refuses tables that could not be written later: no columns, a name twice, or a type that Parquet
/// has no form for.
///
/// # Errors
/// `InvalidArgument`, `NotSupported`.
pub(crate) fn check_storable(schema: &Schema) -> Result<()> {
    if schema.fields().is_empty() {
        return Err(Error::new(ErrorCode::InvalidArgument, "a table needs at least one column"));
    }
    let mut names = std::collections::BTreeSet::new();
    for field in schema.fields() {
        if !names.insert(field.name()) {
            return Err(Error::new(ErrorCode::InvalidArgument, format!("column '{}' is there twice", field.name()))
                .hint("give each column a name of its own with AS"));
        }
        let alone = Schema::new(vec![Arc::clone(field)]);
        let refused = match field.data_type() {
            DataType::Interval(IntervalUnit::MonthDayNano) | DataType::Null => Some(None),
            _ => ArrowSchemaConverter::new().convert(&alone).err().map(Some),
        };
        if let Some(cause) = refused {
            let text =
                format!("column '{}' has type {}, which tables cannot hold yet", field.name(), field.data_type());
            let error = Error::new(ErrorCode::NotSupported, text).hint("convert it with CAST to a type that they can");
            return Err(match cause {
                Some(cause) => error.source(cause),
                None => error,
            });
        }
    }
    Ok(())
}
