//! Runs of a statement: once, or once per row of its bound parameters.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use aubade_proto::{Error, ErrorCode, Result};
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{StreamExt, TryStreamExt, stream};
use uuid::Uuid;

use super::caller::Caller;
use super::handle::Runnable;
use crate::session::{ExecuteOptions, QueryOutput};

/// A run that has begun, with the schema that its stream will have.
pub(super) struct Running {
    /// The query's id; of the first run, where there are several.
    pub(super) query_id: Uuid,
    /// The columns.
    pub(super) schema: SchemaRef,
    /// The rows.
    pub(super) stream: SendableRecordBatchStream,
}

/// Starts a statement. A query with several rows of parameters runs once for each, one after the
/// other, and the results follow each other in one stream.
///
/// # Errors
/// Those of the statement before its first row; `Cancelled` when another call ended it.
pub(super) async fn start(runnable: &Runnable, options: ExecuteOptions) -> Result<Running> {
    let several = runnable.parameters.as_ref().filter(|batch| runnable.prepared.is_query && batch.num_rows() > 1);
    let Some(parameters) = several.cloned() else {
        return begin(runnable, runnable.parameters.clone(), options).await.map(|(output, columns)| Running {
            query_id: output.query_id,
            schema: stream_schema(&runnable.prepared.schema, &columns, output.schema),
            stream: output.stream,
        });
    };
    let (first, columns) = begin(runnable, Some(parameters.slice(0, 1)), options).await?;
    // Where only its plan tells the columns, it says nothing of what can be null for the values of other rows.
    let actual = if same_columns(&columns, &first.schema) { first.schema } else { all_nullable(&first.schema) };
    let schema = stream_schema(&runnable.prepared.schema, &columns, actual);
    let (runnable, expected) = (runnable.clone(), SchemaRef::clone(&schema));
    let rest = stream::iter(1..parameters.num_rows()).then(move |row| {
        let (runnable, parameters, expected) =
            (runnable.clone(), parameters.slice(row, 1), SchemaRef::clone(&expected));
        async move { next(&runnable, parameters, options, &expected).await.map_err(DataFusionError::from) }
    });
    let all = first.stream.chain(rest.try_flatten());
    Ok(Running {
        query_id: first.query_id,
        schema: SchemaRef::clone(&schema),
        stream: Box::pin(RecordBatchStreamAdapter::new(schema, all)),
    })
}

/// Runs a statement that changes something, to its end. Returns the rows that it changed.
///
/// # Errors
/// Those of the statement; `Cancelled` when another call ended it.
pub(super) async fn update(runnable: &Runnable, caller: &Caller) -> Result<Option<u64>> {
    if runnable.parameters.as_ref().is_some_and(|batch| batch.num_rows() == 0) {
        return Ok(Some(0));
    }
    drain(begin(runnable, runnable.parameters.clone(), options(caller)).await?.0).await
}

/// Reads an output to its end.
///
/// # Errors
/// Those of the stream.
pub(super) async fn drain(output: QueryOutput) -> Result<Option<u64>> {
    let mut stream = output.stream;
    while stream.try_next().await?.is_some() {}
    Ok(output.affected_rows)
}

/// A run, and the columns of the statement in the catalog that it runs on.
async fn begin(
    runnable: &Runnable,
    parameters: Option<RecordBatch>,
    options: ExecuteOptions,
) -> Result<(QueryOutput, SchemaRef)> {
    tokio::select! {
        biased;
        () = runnable.cancel.cancelled() => Err(cancelled()),
        begun = runnable.session.execute_told(&runnable.prepared, parameters, options) => begun,
    }
}

/// A run whose rows follow those of another one, in a stream that has its columns already.
async fn next(
    runnable: &Runnable,
    parameters: RecordBatch,
    options: ExecuteOptions,
    expected: &SchemaRef,
) -> Result<SendableRecordBatchStream> {
    let (output, columns) = begin(runnable, Some(parameters), options).await?;
    if stream_schema(expected, &columns, output.schema) != *expected {
        let message = "the columns of the statement have changed between two rows of its parameters";
        return Err(Error::new(ErrorCode::Conflict, message).hint("run the statement again"));
    }
    Ok(output.stream)
}

/// The schema of a stream. Clients compare what they were told with what they get, so it is the one that they were
/// `told` as far as that is right: in a catalog that has changed no column may get the name of another one, and none
/// be called never null that may be. `columns` are those of the statement in the catalog that it ran on. They tell what
/// can be null better than the `actual` schema: the physical plan forgets that `coalesce(a, 0)` cannot be.
fn stream_schema(told: &SchemaRef, columns: &SchemaRef, actual: SchemaRef) -> SchemaRef {
    // The types of parameters may decide the columns.
    let right = if same_columns(columns, &actual) { SchemaRef::clone(columns) } else { actual };
    if !same_columns(told, &right) {
        return right;
    }
    let mut pairs = told.fields().iter().zip(right.fields());
    if pairs.all(|(told, right)| told.is_nullable() || !right.is_nullable()) {
        return SchemaRef::clone(told);
    }
    let widened = told.fields().iter().zip(right.fields()).map(|(told, right)| {
        let nullable = told.is_nullable() || right.is_nullable();
        told.as_ref().clone().with_nullable(nullable)
    });
    Arc::new(Schema::new_with_metadata(widened.collect::<Vec<_>>(), told.metadata().clone()))
}

/// Whether both have the same names and types in the same order.
fn same_columns(one: &Schema, other: &Schema) -> bool {
    let (one, other) = (one.fields(), other.fields());
    let mut pairs = one.iter().zip(other);
    one.len() == other.len()
        && pairs.all(|(one, other)| (one.name(), one.data_type()) == (other.name(), other.data_type()))
}

fn all_nullable(schema: &Schema) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
    Arc::new(Schema::new_with_metadata(fields.collect::<Vec<_>>(), schema.metadata().clone()))
}

/// What a call says of its run.
pub(super) fn options(caller: &Caller) -> ExecuteOptions {
    ExecuteOptions { timeout: caller.remaining() }
}

/// The error of a run that another call ended.
pub(super) fn cancelled() -> Error {
    Error::new(ErrorCode::Cancelled, "the query was cancelled")
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field};

    use super::*;

    /// One column per letter, of type Int64 or, in capitals, Utf8; `?` after those that may be null.
    fn schema(letters: &str) -> SchemaRef {
        let mut fields: Vec<Field> = Vec::new();
        for letter in letters.chars() {
            if letter == '?' {
                let last = fields.pop().unwrap();
                fields.push(last.with_nullable(true));
                continue;
            }
            let data_type = if letter.is_uppercase() { DataType::Utf8 } else { DataType::Int64 };
            fields.push(Field::new(letter.to_lowercase().to_string(), data_type, false));
        }
        Arc::new(Schema::new(fields))
    }

    #[test]
    fn a_stream_has_the_schema_that_was_told_where_that_is_right() {
        for (told, columns, actual, expected) in [
            ("ab", "ab", "a?b", "ab"),
            ("a?b", "ab", "ab", "a?b"),
            ("ab", "ab?", "ab", "ab?"),
            ("ab", "ba", "ba", "ba"),
            ("ab", "aB", "aB", "aB"),
            ("ab", "abc", "abc?", "abc"),
            ("a", "a", "A", "A"),
            ("a", "A", "a?", "a?"),
        ] {
            let got = stream_schema(&schema(told), &schema(columns), schema(actual));
            assert_eq!(got, schema(expected), "{told} {columns} {actual}");
        }
    }
}
