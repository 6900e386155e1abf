//! SQL at a coordinator, over Flight SQL.

use std::sync::Arc;

use arrow::datatypes::{DataType, Schema, SchemaRef};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::sql::{
    CommandStatementIngest, DoPutUpdateResult, ProstMessageExt, TableDefinitionOptions, TableExistsOption,
    TableNotExistOption,
};
use arrow_flight::{Action, FlightData, FlightDescriptor, FlightInfo};
use aubade_engine::flight::{
    MESSAGE_LIMIT_HEADER, QUERY_ID_HEADER, QUERY_RECORD_ACTION, SESSION_HEADER, STATUS_ACTION,
};
use aubade_engine::{ClusterStatus, QueryRecord};
use aubade_environment::Environment;
use aubade_proto::{Error, ErrorCode, Result, ResultExt};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use prost::Message;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use tonic::transport::Channel;
use uuid::Uuid;

use super::{LoadMode, LoadTarget, RunningQuery};
use crate::connect;

/// Largest message that is accepted: batches are about 1 MiB, but one row can be larger.
const MESSAGE_BYTES_MAX: usize = 256 << 20;
/// Arrow bytes of a message of a bulk load, about: well below the 4 MiB that gRPC servers accept by
/// default.
const LOAD_MESSAGE_BYTES: usize = 1 << 20;

/// One session at a coordinator.
#[derive(Clone, Debug)]
pub(crate) struct Remote {
    client: FlightSqlServiceClient<Channel>,
    peer: Arc<str>,
}

impl Remote {
    /// Connects when it is first used.
    pub(crate) fn open(environment: &Environment, url: &str) -> Result<Self> {
        let address = connect::flight_address(url)?;
        let channel = connect::channel(environment, &address)?;
        let inner = FlightServiceClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let mut client = FlightSqlServiceClient::new_from_inner(inner);
        // A name of its own keeps the session when the connection breaks and is made again.
        client.set_header(SESSION_HEADER, environment.new_uuid().to_string());
        client.set_header(MESSAGE_LIMIT_HEADER, MESSAGE_BYTES_MAX.to_string());
        Ok(Self { client, peer: format!("grpc://{address}").into() })
    }

    pub(crate) async fn run(&self, sql: &str) -> Result<RunningQuery> {
        let mut client = self.client.clone();
        let info = client.execute(sql.to_owned(), None).await.map_err(|error| self.error(error))?;
        let ticket = first_ticket(&info).ok_or_else(|| self.broken("a flight without a ticket"))?;
        let mut reply = client.do_get(ticket).await.map_err(|error| self.error(error))?;
        let id = reply.headers().get(QUERY_ID_HEADER).and_then(|id| id.to_str().ok()).and_then(|id| id.parse().ok());
        if !info.schema.is_empty() {
            let schema: Schema =
                info.try_decode_schema().map_err(|error| self.broken("an unreadable schema").source(error))?;
            return Ok(RunningQuery { id, schema: Arc::new(schema), stream: self.batches(reply) });
        }
        // A statement with effects has run by now; its schema comes with its result.
        let first = reply.try_next().await.map_err(|error| flight_error(error, &self.peer))?;
        let schema = reply.schema().cloned().ok_or_else(|| self.broken("a result without a schema"))?;
        let stream = stream::iter(first.map(Ok)).chain(self.batches(reply)).boxed();
        Ok(RunningQuery { id, schema, stream })
    }

    fn batches(&self, reply: FlightRecordBatchStream) -> BoxStream<'static, Result<RecordBatch>> {
        let peer = Arc::clone(&self.peer);
        reply.map_err(move |error| flight_error(error, &peer)).boxed()
    }

    /// `None` as well when the server keeps no records: the result does not depend on it.
    pub(crate) async fn record(&self, id: Uuid) -> Option<QueryRecord> {
        match self.action(QUERY_RECORD_ACTION, id.to_string()).await {
            Ok(record) => Some(record),
            Err(error) => {
                tracing::debug!(%id, error = %error.chain(), "no query record");
                None
            }
        }
    }

    pub(crate) async fn status(&self) -> Result<ClusterStatus> {
        self.action(STATUS_ACTION, String::new()).await
    }

    async fn action<T: DeserializeOwned>(&self, name: &str, body: String) -> Result<T> {
        let action = Action { r#type: name.to_owned(), body: body.into() };
        let mut client = self.client.clone();
        let mut replies = client.do_action(action).await.map_err(|error| self.error(error))?;
        let reply = replies.message().await.map_err(|status| Error::from_status(&status, &self.peer))?;
        let reply = reply.ok_or_else(|| self.broken("no reply to an action"))?;
        serde_json::from_slice(&reply.body)
            .context(ErrorCode::InvalidMessage, || format!("{}: {name}: unreadable", self.peer))
    }

    pub(crate) async fn load(
        &self,
        target: &LoadTarget,
        schema: SchemaRef,
        stream: BoxStream<'static, Result<RecordBatch>>,
    ) -> Result<u64> {
        let (failed, failure) = oneshot::channel();
        let messages = upload(target, schema, stream, failed);
        let mut client = self.client.clone();
        let call = async {
            let mut replies = client.do_put(messages).await.map_err(|error| self.error(error))?;
            let reply = replies.message().await.map_err(|status| Error::from_status(&status, &self.peer))?;
            let reply = reply.ok_or_else(|| self.broken("no reply to a bulk load"))?;
            let result = DoPutUpdateResult::decode(reply.app_metadata)
                .context(ErrorCode::InvalidMessage, || format!("{}: an unreadable reply to a bulk load", self.peer))?;
            Ok(u64::try_from(result.record_count).unwrap_or(0))
        };
        // Dropping the call resets its stream, so that the server sees a load that broke off and
        // commits nothing. Ending the stream instead would look like a load that is complete.
        tokio::select! {
            biased;
            Ok(error) = failure => Err(error),
            result = call => result,
        }
    }

    fn error(&self, error: FlightError) -> Error {
        flight_error(error, &self.peer)
    }

    fn broken(&self, what: &str) -> Error {
        Error::new(ErrorCode::InvalidMessage, format!("{} sent {what}", self.peer))
            .hint("check that an aubade coordinator of this version listens there")
    }
}

/// The messages of a bulk load. When the source fails, its error goes to `failed` and the stream
/// stays open without an end.
fn upload(
    target: &LoadTarget,
    schema: SchemaRef,
    source: BoxStream<'static, Result<RecordBatch>>,
    failed: oneshot::Sender<Error>,
) -> impl futures::Stream<Item = FlightData> + Send + 'static {
    let descriptor = FlightDescriptor::new_cmd(ingest_command(target).as_any().encode_to_vec());
    let batches = source
        .map(|batch| Ok::<_, Error>(stream::iter(split_batch(batch?)?.into_iter().map(Ok))))
        .try_flatten()
        .map_err(|error: Error| FlightError::ExternalError(Box::new(error)));
    let messages = FlightDataEncoderBuilder::new()
        .with_flight_descriptor(Some(descriptor))
        .with_schema(schema)
        // Batches are cut before they get here.
        .with_max_flight_data_size(MESSAGE_BYTES_MAX)
        .build(batches);
    let mut failed = Some(failed);
    messages
        .then(move |message| {
            let sender = if message.is_err() { failed.take() } else { None };
            async move {
                match message {
                    Ok(message) => message,
                    Err(error) => {
                        if let Some(sender) = sender {
                            // The receiver is gone only when the call has ended by itself.
                            let _ = sender.send(flight_error(error, "this process"));
                        }
                        std::future::pending().await
                    }
                }
            }
        })
        .boxed()
}

fn ingest_command(target: &LoadTarget) -> CommandStatementIngest {
    let (if_not_exist, if_exists) = match target.mode {
        LoadMode::Create => (TableNotExistOption::Create, TableExistsOption::Fail),
        LoadMode::CreateOrAppend => (TableNotExistOption::Create, TableExistsOption::Append),
        LoadMode::Replace => (TableNotExistOption::Create, TableExistsOption::Replace),
    };
    CommandStatementIngest {
        table_definition_options: Some(TableDefinitionOptions {
            if_not_exist: if_not_exist.into(),
            if_exists: if_exists.into(),
        }),
        table: target.table.clone(),
        schema: target.schema.clone(),
        catalog: None,
        temporary: false,
        transaction_id: None,
        options: std::collections::HashMap::new(),
    }
}

/// Cuts a batch into pieces of about [`LOAD_MESSAGE_BYTES`]. String views are copied where they are
/// cut: a slice of them would carry the whole data of the batch in every message.
fn split_batch(batch: RecordBatch) -> Result<Vec<RecordBatch>> {
    let pieces = batch.get_array_memory_size().div_ceil(LOAD_MESSAGE_BYTES);
    if pieces <= 1 || batch.num_rows() <= 1 {
        return Ok(vec![batch]);
    }
    let rows = batch.num_rows().div_ceil(pieces).max(1);
    (0..batch.num_rows())
        .step_by(rows)
        .map(|start| {
            let piece = batch.slice(start, rows.min(batch.num_rows() - start));
            if batch.schema().fields().iter().any(|field| has_views(field.data_type())) {
                compact(&piece)
            } else {
                Ok(piece)
            }
        })
        .collect()
}

fn has_views(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8View | DataType::BinaryView => true,
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::FixedSizeList(field, _)
        | DataType::Map(field, _) => has_views(field.data_type()),
        DataType::Struct(fields) => fields.iter().any(|field| has_views(field.data_type())),
        _ => false,
    }
}

fn compact(batch: &RecordBatch) -> Result<RecordBatch> {
    let columns = batch.columns().iter().map(|column| {
        let column = Arc::clone(column);
        if let Some(strings) = column.as_any().downcast_ref::<arrow::array::StringViewArray>() {
            return Arc::new(strings.gc()) as arrow::array::ArrayRef;
        }
        if let Some(bytes) = column.as_any().downcast_ref::<arrow::array::BinaryViewArray>() {
            return Arc::new(bytes.gc()) as arrow::array::ArrayRef;
        }
        column
    });
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(batch.schema(), columns.collect(), &options)?)
}

fn first_ticket(info: &FlightInfo) -> Option<arrow_flight::Ticket> {
    info.endpoint.first()?.ticket.clone()
}

/// Our error in a Flight error.
fn flight_error(error: FlightError, peer: &str) -> Error {
    match error {
        FlightError::Tonic(status) => Error::from_status(&status, peer),
        FlightError::Arrow(error) => Error::from(error),
        FlightError::ExternalError(error) => match error.downcast::<Error>() {
            Ok(error) => *error,
            Err(error) => match error.downcast::<tonic::Status>() {
                Ok(status) => Error::from_status(&status, peer),
                Err(error) => Error::internal(format!("{peer}: a flight failed")).source(error),
            },
        },
        other => Error::new(ErrorCode::InvalidMessage, format!("{peer}: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array, StringViewArray};
    use arrow::compute::concat_batches;

    use super::*;

    fn batch(rows: usize) -> RecordBatch {
        let ids: Int64Array = (0..rows as i64).collect();
        let names: StringViewArray = (0..rows).map(|row| Some(format!("a name that is not inlined {row}"))).collect();
        RecordBatch::try_from_iter([("id", Arc::new(ids) as ArrayRef), ("name", Arc::new(names) as ArrayRef)]).unwrap()
    }

    #[test]
    fn large_batches_are_cut_and_their_strings_with_them() {
        let whole = batch(100_000);
        let pieces = split_batch(whole.clone()).unwrap();
        assert!(pieces.len() > 1);
        for piece in &pieces {
            assert!(piece.get_array_memory_size() < 2 * LOAD_MESSAGE_BYTES, "{}", piece.get_array_memory_size());
        }
        assert_eq!(concat_batches(&whole.schema(), &pieces).unwrap(), whole);
    }

    #[tokio::test]
    async fn a_failed_source_never_ends_the_upload() {
        let target = LoadTarget { schema: None, table: "t".to_owned(), mode: LoadMode::Create };
        let first = batch(3);
        let source = stream::iter([Ok(first.clone()), Err(Error::new(ErrorCode::FileUnreadable, "f.csv is torn"))]);
        let (failed, failure) = oneshot::channel();
        let mut messages = Box::pin(upload(&target, first.schema(), source.boxed(), failed));
        tokio::select! {
            biased;
            () = async { while messages.next().await.is_some() {} } => panic!("the upload ended"),
            error = failure => assert_eq!(error.unwrap().message(), "f.csv is torn"),
        }
    }
}
