//! Uploads: the batches of a DoPut, as parameters or as rows for a table.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::{Schema, SchemaRef};
use arrow_flight::FlightData;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::sql::server::PeekableFlightDataStream;
use arrow_flight::sql::{CommandStatementIngest, TableExistsOption, TableNotExistOption};
use aubade_catalog::Snapshot;
use aubade_proto::{Error, ErrorCode, Result};
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{Stream, StreamExt, TryStreamExt, future, stream};
use tonic::Code;

use super::metadata::CATALOG;
use crate::session::{IngestMode, IngestTarget};

/// Where an upload goes.
///
/// # Errors
/// `NotSupported` for temporary tables and transactions, `InvalidArgument` for options that do not
/// fit, `TableNotFound` for a table that must exist and does not.
pub(super) fn target(
    command: &CommandStatementIngest,
    default_schema: &str,
    snapshot: &Snapshot,
) -> Result<IngestTarget> {
    if command.temporary {
        return Err(Error::new(ErrorCode::NotSupported, "temporary tables are not supported yet")
            .hint("load into a table with a name of its own and drop it afterwards"));
    }
    if command.catalog.as_deref().is_some_and(|catalog| !catalog.is_empty() && catalog != CATALOG) {
        let message = format!("catalog '{}' does not exist", command.catalog());
        return Err(Error::new(ErrorCode::SchemaNotFound, message).hint(format!("the only catalog is '{CATALOG}'")));
    }
    let schema = command.schema.clone().filter(|schema| !schema.is_empty());
    let definition = command.table_definition_options.unwrap_or_default();
    let exists = {
        let schema = schema.as_deref().unwrap_or(default_schema);
        snapshot.relation(schema, &command.table).is_some()
    };
    let mode = match (definition.if_not_exist(), definition.if_exists()) {
        (TableNotExistOption::Create, TableExistsOption::Fail) => IngestMode::Create,
        (TableNotExistOption::Create, TableExistsOption::Append) => IngestMode::CreateAppend,
        (TableNotExistOption::Create, TableExistsOption::Replace) => IngestMode::Replace,
        (TableNotExistOption::Fail, TableExistsOption::Append) => IngestMode::Append,
        (TableNotExistOption::Fail, TableExistsOption::Replace) if exists => IngestMode::Replace,
        (TableNotExistOption::Fail, TableExistsOption::Replace) => {
            let message = format!("table '{}' does not exist", command.table);
            return Err(Error::new(ErrorCode::TableNotFound, message).hint("ask for it to be created"));
        }
        _ => {
            let message = "an upload must say what to do if its table exists, and if it does not";
            return Err(Error::new(ErrorCode::InvalidArgument, message)
                .hint("use the mode create, append, create_append or replace"));
        }
    };
    Ok(IngestTarget { schema, table: command.table.clone(), mode })
}

/// The rows of an upload, with the schema that its first message gives.
///
/// # Errors
/// `InvalidMessage` when there is none.
pub(super) async fn rows(
    messages: PeekableFlightDataStream,
    request_bytes_max: usize,
) -> Result<SendableRecordBatchStream> {
    let mut batches = decoded(messages);
    let to_error = move |error| error_of_upload(error, request_bytes_max);
    let first = batches.try_next().await.map_err(to_error)?;
    let schema: SchemaRef = match (batches.schema(), &first) {
        (Some(schema), _) => Arc::clone(schema),
        (None, Some(batch)) => batch.schema(),
        (None, None) => {
            return Err(
                Error::new(ErrorCode::InvalidMessage, "the upload has no schema").hint("send a schema message first")
            );
        }
    };
    let rest = batches.map_err(move |error| DataFusionError::from(to_error(error)));
    let all = stream::iter(first.map(Ok)).chain(rest);
    Ok(Box::pin(RecordBatchStreamAdapter::new(schema, all)))
}

/// The parameters of an upload in one batch; `None` when it has none.
///
/// # Errors
/// `LimitExceeded` past `bytes_max`.
pub(super) async fn parameters(
    messages: PeekableFlightDataStream,
    bytes_max: usize,
    request_bytes_max: usize,
) -> Result<Option<RecordBatch>> {
    let mut batches = decoded(messages);
    let (mut all, mut bytes) = (Vec::new(), 0_usize);
    while let Some(batch) = batches.try_next().await.map_err(|error| error_of_upload(error, request_bytes_max))? {
        bytes = bytes.saturating_add(batch.get_array_memory_size());
        if bytes > bytes_max {
            let message = format!("the parameters have more than {bytes_max} bytes");
            return Err(
                Error::new(ErrorCode::LimitExceeded, message).hint("load many rows by bulk ingestion (adbc_ingest)")
            );
        }
        all.push(batch);
    }
    // A client without parameters still sends a schema without columns.
    let Some(schema) = all.first().map(RecordBatch::schema).filter(has_columns) else {
        return Ok(None);
    };
    Ok(Some(concat_batches(&schema, &all)?))
}

fn has_columns(schema: &Arc<Schema>) -> bool {
    !schema.fields().is_empty()
}

/// Messages without a header carry the descriptor only.
fn decoded(messages: PeekableFlightDataStream) -> FlightRecordBatchStream {
    FlightRecordBatchStream::new_from_flight_data(with_header(messages))
}

fn with_header(
    messages: impl Stream<Item = Result<FlightData, tonic::Status>> + Send + 'static,
) -> impl Stream<Item = Result<FlightData, FlightError>> + Send + 'static {
    messages.map_err(FlightError::from).try_filter(|message| future::ready(!message.data_header.is_empty()))
}

fn error_of_upload(error: FlightError, request_bytes_max: usize) -> Error {
    match error {
        FlightError::Tonic(status) if matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted) => {
            let message = format!("a batch of the upload is larger than the limit of {request_bytes_max} bytes");
            Error::new(ErrorCode::LimitExceeded, message).hint("send smaller batches").source(*status)
        }
        FlightError::Tonic(status) if status.code() == Code::Cancelled => {
            Error::new(ErrorCode::Cancelled, "the client ended the upload").source(*status)
        }
        FlightError::Tonic(status) => Error::from_status(&status, "the client"),
        other => Error::new(ErrorCode::InvalidMessage, "the upload cannot be read").source(other),
    }
}
