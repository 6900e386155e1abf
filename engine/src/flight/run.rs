//! Runs of a statement: once, or once per row of its bound parameters.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
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
        return begin(runnable, runnable.parameters.clone(), options).await.map(|output| Running {
            query_id: output.query_id,
            schema: told_schema(runnable, output.schema),
            stream: output.stream,
        });
    };
    let first = begin(runnable, Some(parameters.slice(0, 1)), options).await?;
    let schema = told_schema(runnable, first.schema);
    let runnable = runnable.clone();
    let rest = stream::iter(1..parameters.num_rows()).then(move |row| {
        let (runnable, parameters) = (runnable.clone(), parameters.slice(row, 1));
        async move {
            let output = begin(&runnable, Some(parameters), options).await.map_err(DataFusionError::from)?;
            Ok::<_, DataFusionError>(output.stream)
        }
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
    drain(begin(runnable, runnable.parameters.clone(), options(caller)).await?).await
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

async fn begin(runnable: &Runnable, parameters: Option<RecordBatch>, options: ExecuteOptions) -> Result<QueryOutput> {
    tokio::select! {
        biased;
        () = runnable.cancel.cancelled() => Err(cancelled()),
        output = runnable.session.execute_with(&runnable.prepared.sql, parameters, options) => output,
    }
}

/// The schema that the client was told, if the result has its types: the physical plan may judge
/// otherwise what can be null, and clients compare what they were told with what they get.
fn told_schema(runnable: &Runnable, actual: SchemaRef) -> SchemaRef {
    let told = &runnable.prepared.schema;
    let types = |schema: &SchemaRef| schema.fields().iter().map(|field| field.data_type().clone()).collect::<Vec<_>>();
    if types(told) == types(&actual) { SchemaRef::clone(told) } else { actual }
}

/// What a call says of its run.
pub(super) fn options(caller: &Caller) -> ExecuteOptions {
    ExecuteOptions { timeout: caller.remaining() }
}

/// The error of a run that another call ended.
pub(super) fn cancelled() -> Error {
    Error::new(ErrorCode::Cancelled, "the query was cancelled")
}
