//! The commands of Flight SQL over the engine. Every method is thin: it finds what the command means
//! and leaves the work to the modules beside this one.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::ipc::writer::IpcWriteOptions;
use arrow_flight::flight_service_server::FlightService;
use arrow_flight::sql::metadata::{SqlInfoData, XdbcTypeInfoData};
use arrow_flight::sql::server::{DoPutError, FlightSqlService, PeekableFlightDataStream};
use arrow_flight::sql::{
    ActionBeginSavepointRequest, ActionBeginSavepointResult, ActionBeginTransactionRequest,
    ActionBeginTransactionResult, ActionCancelQueryRequest, ActionCancelQueryResult,
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult,
    ActionCreatePreparedSubstraitPlanRequest, ActionEndSavepointRequest, ActionEndTransactionRequest, Any, Command,
    CommandGetCatalogs, CommandGetCrossReference, CommandGetDbSchemas, CommandGetExportedKeys, CommandGetImportedKeys,
    CommandGetPrimaryKeys, CommandGetSqlInfo, CommandGetTableTypes, CommandGetTables, CommandGetXdbcTypeInfo,
    CommandPreparedStatementQuery, CommandPreparedStatementUpdate, CommandStatementIngest, CommandStatementQuery,
    CommandStatementSubstraitPlan, CommandStatementUpdate, DoPutPreparedStatementResult, ProstMessageExt, SqlInfo,
    TicketStatementQuery,
};
use arrow_flight::{
    Action, ActionType, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest, HandshakeResponse,
    IpcMessage, SchemaAsIpc, Ticket,
};
use aubade_proto::{Error, ErrorCode, Result, ResultExt};
use bytes::Bytes;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::{self, BoxStream, StreamExt};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::{Extensions, Request, Response, Status, Streaming};

use super::caller::Caller;
use super::handle::{Handles, Runnable};
use super::run::{self, Running};
use super::stream::{Guard, encode};
use super::{FlightOptions, QUERY_ID_HEADER, action, ingest, metadata, type_info};
use crate::engine::Engine;
use crate::session::Prepared;

/// A stream of messages to the client.
type Messages = BoxStream<'static, Result<FlightData, Status>>;

/// Values of `ActionCancelQueryResult.CancelResult`, an enum that arrow-flight keeps to itself.
const CANCEL_RESULT_CANCELLED: i32 = 1;
const CANCEL_RESULT_NOT_CANCELLABLE: i32 = 3;

/// The service. One per listener; calls share it.
#[derive(Debug)]
pub(super) struct Service {
    engine: Engine,
    handles: Handles,
    options: FlightOptions,
    running: Arc<Semaphore>,
    sql_info: SqlInfoHolder,
}

/// The answers that never change.
struct SqlInfoHolder {
    sql: SqlInfoData,
    types: XdbcTypeInfoData,
}

impl std::fmt::Debug for SqlInfoHolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqlInfoHolder").finish_non_exhaustive()
    }
}

impl Service {
    pub(super) fn new(engine: Engine, options: FlightOptions) -> Result<Self> {
        Ok(Self {
            handles: Handles::new(engine.environment().clone(), &options),
            running: Arc::new(Semaphore::new(options.running_max)),
            sql_info: SqlInfoHolder { sql: type_info::sql_info()?, types: type_info::xdbc_type_info()? },
            engine,
            options,
        })
    }

    /// The columns of a statement's result, with nothing kept.
    pub(super) async fn statement_schema(&self, command: &CommandStatementQuery, caller: &Caller) -> Result<Bytes> {
        refuse_transaction(command.transaction_id.as_ref())?;
        let prepared = caller.session()?.prepare(&command.query).await?;
        schema_bytes(&prepared.schema)
    }

    /// The columns of a prepared statement's result; none where they are not certain.
    pub(super) async fn prepared_schema(&self, command: &CommandPreparedStatementQuery) -> Result<Bytes> {
        certain_schema_bytes(&self.handles.prepared(&command.prepared_statement_handle)?.current().await?)
    }

    /// The answer to GetFlightInfo for a statement that is bound: one endpoint, here.
    fn statement_info(&self, runnable: Runnable, descriptor: FlightDescriptor) -> Result<Response<FlightInfo>, Status> {
        let schema = certain_schema_bytes(&runnable)?;
        let place = self.early_place(&runnable);
        let command = TicketStatementQuery { statement_handle: self.handles.issue(runnable, place) };
        Ok(flight_info(schema, &command, descriptor))
    }

    async fn prepare(&self, sql: &str, caller: &Caller) -> Result<Runnable> {
        let session = caller.session()?;
        let prepared = Arc::new(session.prepare(sql).await?);
        Ok(Runnable { session, prepared, parameters: None, cancel: CancellationToken::new() })
    }

    /// Runs a statement and streams its result.
    async fn stream(&self, runnable: Runnable, caller: &Caller) -> Result<Response<Messages>, Status> {
        let permit = self.admit()?;
        let running = run::start(&runnable, run::options(caller)).await?;
        Ok(result(running, runnable.cancel, permit, caller))
    }

    /// A place for a query that is to start with its ticket: not where that would leave too few to those that are read.
    fn early_place(&self, runnable: &Runnable) -> Option<OwnedSemaphorePermit> {
        let runs_once = runnable.parameters.as_ref().is_none_or(|rows| rows.num_rows() == 1);
        let room = self.running.available_permits() > self.options.running_max / 2;
        (runnable.prepared.is_query && runs_once && room).then(|| self.admit().ok()).flatten()
    }

    fn admit(&self) -> Result<OwnedSemaphorePermit> {
        Arc::clone(&self.running).try_acquire_owned().map_err(|_| {
            let message = format!("{} results are being read at the moment, the limit", self.options.running_max);
            Error::new(ErrorCode::Busy, message)
                .hint("read or close some of them, then try again")
                .retry_after_millis(1000)
        })
    }

    /// Streams a batch of metadata.
    fn batch(&self, batch: RecordBatch, extensions: &Extensions) -> Result<Response<Messages>, Status> {
        let caller = Caller::of(extensions)?;
        let schema = batch.schema();
        let stream = RecordBatchStreamAdapter::new(Arc::clone(&schema), stream::iter([Ok(batch)]));
        let guard = Guard { ended: caller.ended(), permit: None };
        Ok(Response::new(encode(schema, Box::pin(stream), caller.message_bytes_max, guard)))
    }

    async fn parameters(&self, messages: PeekableFlightDataStream) -> Result<Option<RecordBatch>> {
        ingest::parameters(messages, self.options.parameter_bytes_max, self.options.request_bytes_max).await
    }
}

/// The answer to DoGet for a run that has begun.
fn result(
    running: Running,
    cancel: CancellationToken,
    permit: OwnedSemaphorePermit,
    caller: &Caller,
) -> Response<Messages> {
    let guard = Guard { ended: ended(caller, cancel), permit: Some(permit) };
    let mut response = Response::new(encode(running.schema, running.stream, caller.message_bytes_max, guard));
    if let Ok(id) = running.query_id.to_string().parse() {
        response.metadata_mut().insert(QUERY_ID_HEADER, id);
    }
    response
}

/// Completes when the call has to end or another one cancels the run.
fn ended(caller: &Caller, cancel: CancellationToken) -> BoxFuture<'static, Error> {
    let caller = caller.ended();
    async move {
        tokio::select! {
            error = caller => error,
            () = cancel.cancelled() => run::cancelled(),
        }
    }
    .boxed()
}

fn schema_bytes(schema: &Schema) -> Result<Bytes> {
    let options = IpcWriteOptions::default();
    let message: IpcMessage = SchemaAsIpc::new(schema, &options)
        .try_into()
        .context(ErrorCode::Internal, || "a schema cannot be written".to_owned())?;
    Ok(message.0)
}

fn certain_schema_bytes(runnable: &Runnable) -> Result<Bytes> {
    Ok(runnable.certain_schema().map(|schema| schema_bytes(schema)).transpose()?.unwrap_or_default())
}

fn info(
    schema: &Schema,
    command: &impl ProstMessageExt,
    descriptor: FlightDescriptor,
) -> Result<Response<FlightInfo>, Status> {
    Ok(flight_info(schema_bytes(schema)?, command, descriptor))
}

/// An info with one endpoint, here. An empty schema is one that is not known before the result.
fn flight_info(schema: Bytes, command: &impl ProstMessageExt, descriptor: FlightDescriptor) -> Response<FlightInfo> {
    let ticket = Ticket::new(command.as_any().encode_to_vec());
    let mut info = FlightInfo::new()
        .with_endpoint(FlightEndpoint::new().with_ticket(ticket))
        .with_descriptor(descriptor)
        .with_ordered(true);
    info.schema = schema;
    Response::new(info)
}

/// The rows that a client is told were changed; -1 means unknown.
fn row_count(affected: Option<u64>) -> i64 {
    affected.map_or(-1, |rows| i64::try_from(rows).unwrap_or(i64::MAX))
}

fn refuse_transaction(transaction: Option<&Bytes>) -> Result<()> {
    match transaction {
        Some(id) if !id.is_empty() => Err(no_transactions()),
        _ => Ok(()),
    }
}

fn no_transactions() -> Error {
    Error::new(ErrorCode::NotSupported, "transactions are not supported yet")
        .hint("every statement commits by itself: use autocommit")
}

fn no_substrait() -> Error {
    Error::new(ErrorCode::NotSupported, "Substrait plans are not supported yet").hint("send SQL")
}

fn unknown_command(type_url: &str) -> Error {
    Error::new(ErrorCode::NotSupported, format!("command '{type_url}' is not known"))
        .hint("this is an Arrow Flight SQL service: send a command of FlightSql.proto")
}

#[tonic::async_trait]
impl FlightSqlService for Service {
    type FlightService = Self;

    async fn do_handshake(
        &self,
        _request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<BoxStream<'static, Result<HandshakeResponse, Status>>>, Status> {
        // Nobody has to log in yet; clients that do so all the same get a token that means nothing.
        let token = self.engine.environment().new_uuid().to_string();
        let payload = Bytes::from(token.clone());
        let answer = HandshakeResponse { protocol_version: 0, payload };
        let mut response = Response::new(stream::iter([Ok(answer)]).boxed());
        if let Ok(value) = format!("Bearer {token}").parse() {
            response.metadata_mut().insert("authorization", value);
        }
        Ok(response)
    }

    async fn get_flight_info_statement(
        &self,
        query: CommandStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        refuse_transaction(query.transaction_id.as_ref())?;
        let caller = Caller::of(request.extensions())?;
        let runnable = self.prepare(&query.query, &caller).await?;
        self.statement_info(runnable, request.into_inner())
    }

    async fn get_flight_info_substrait_plan(
        &self,
        _query: CommandStatementSubstraitPlan,
        _request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        Err(no_substrait().into())
    }

    async fn get_flight_info_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        // The ticket keeps the parameters as they are now, whatever is bound before it is used.
        let runnable = self.handles.prepared(&query.prepared_statement_handle)?.current().await?;
        self.statement_info(runnable, request.into_inner())
    }

    async fn get_flight_info_catalogs(
        &self,
        query: CommandGetCatalogs,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        info(&query.into_builder().schema(), &query, request.into_inner())
    }

    async fn get_flight_info_schemas(
        &self,
        query: CommandGetDbSchemas,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        info(&query.clone().into_builder().schema(), &query, request.into_inner())
    }

    async fn get_flight_info_tables(
        &self,
        query: CommandGetTables,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        info(&query.clone().into_builder().schema(), &query, request.into_inner())
    }

    async fn get_flight_info_table_types(
        &self,
        query: CommandGetTableTypes,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        info(&query.into_builder().schema(), &query, request.into_inner())
    }

    async fn get_flight_info_sql_info(
        &self,
        query: CommandGetSqlInfo,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        info(&self.sql_info.sql.schema(), &query, request.into_inner())
    }

    async fn get_flight_info_primary_keys(
        &self,
        query: CommandGetPrimaryKeys,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        info(&metadata::primary_keys_schema(), &query, request.into_inner())
    }

    async fn get_flight_info_exported_keys(
        &self,
        query: CommandGetExportedKeys,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        info(&metadata::foreign_keys_schema(), &query, request.into_inner())
    }

    async fn get_flight_info_imported_keys(
        &self,
        query: CommandGetImportedKeys,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        info(&metadata::foreign_keys_schema(), &query, request.into_inner())
    }

    async fn get_flight_info_cross_reference(
        &self,
        query: CommandGetCrossReference,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        info(&metadata::foreign_keys_schema(), &query, request.into_inner())
    }

    async fn get_flight_info_xdbc_type_info(
        &self,
        query: CommandGetXdbcTypeInfo,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        info(&self.sql_info.types.schema(), &query, request.into_inner())
    }

    async fn get_flight_info_fallback(
        &self,
        command: Command,
        _request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        Err(unknown_command(command.type_url()).into())
    }

    async fn do_get_statement(
        &self,
        ticket: TicketStatementQuery,
        request: Request<Ticket>,
    ) -> Result<Response<<Self as FlightService>::DoGetStream>, Status> {
        let caller = Caller::of(request.extensions())?;
        let (runnable, early) = self.handles.redeem(&ticket.statement_handle)?;
        let Some(early) = early else { return self.stream(runnable, &caller).await };
        let (running, cancel, permit) = early.running().await?;
        Ok(result(running, cancel, permit, &caller))
    }

    async fn do_get_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<Ticket>,
    ) -> Result<Response<<Self as FlightService>::DoGetStream>, Status> {
        let caller = Caller::of(request.extensions())?;
        let runnable = self.handles.prepared(&query.prepared_statement_handle)?.runnable();
        self.stream(runnable, &caller).await
    }

    async fn do_get_catalogs(
        &self,
        query: CommandGetCatalogs,
        request: Request<Ticket>,
    ) -> Result<Response<<Self as FlightService>::DoGetStream>, Status> {
        self.batch(metadata::catalogs(query)?, request.extensions())
    }

    async fn do_get_schemas(
        &self,
        query: CommandGetDbSchemas,
        request: Request<Ticket>,
    ) -> Result<Response<<Self as FlightService>::DoGetStream>, Status> {
        let snapshot = self.engine.snapshot().await?;
        self.batch(metadata::schemas(query, &snapshot)?, request.extensions())
    }

    async fn do_get_tables(
        &self,
        query: CommandGetTables,
        request: Request<Ticket>,
    ) -> Result<Response<<Self as FlightService>::DoGetStream>, Status> {
        let session = Caller::of(request.extensions())?.session()?;
        let snapshot = self.engine.snapshot().await?;
        self.batch(metadata::tables(query, &snapshot, &session).await?, request.extensions())
    }

    async fn do_get_table_types(
        &self,
        query: CommandGetTableTypes,
        request: Request<Ticket>,
    ) -> Result<Response<<Self as FlightService>::DoGetStream>, Status> {
        self.batch(metadata::table_types(query)?, request.extensions())
    }

    async fn do_get_sql_info(
        &self,
        query: CommandGetSqlInfo,
        request: Request<Ticket>,
    ) -> Result<Response<<Self as FlightService>::DoGetStream>, Status> {
        let batch = query.into_builder(&self.sql_info.sql).build().map_err(metadata::failed)?;
        self.batch(batch, request.extensions())
    }

    async fn do_get_primary_keys(
        &self,
        _query: CommandGetPrimaryKeys,
        request: Request<Ticket>,
    ) -> Result<Response<<Self as FlightService>::DoGetStream>, Status> {
        self.batch(empty(metadata::primary_keys_schema()), request.extensions())
    }

    async fn do_get_exported_keys(
        &self,
        _query: CommandGetExportedKeys,
        request: Request<Ticket>,
    ) -> Result<Response<<Self as FlightService>::DoGetStream>, Status> {
        self.batch(empty(metadata::foreign_keys_schema()), request.extensions())
    }

    async fn do_get_imported_keys(
        &self,
        _query: CommandGetImportedKeys,
        request: Request<Ticket>,
    ) -> Result<Response<<Self as FlightService>::DoGetStream>, Status> {
        self.batch(empty(metadata::foreign_keys_schema()), request.extensions())
    }

    async fn do_get_cross_reference(
        &self,
        _query: CommandGetCrossReference,
        request: Request<Ticket>,
    ) -> Result<Response<<Self as FlightService>::DoGetStream>, Status> {
        self.batch(empty(metadata::foreign_keys_schema()), request.extensions())
    }

    async fn do_get_xdbc_type_info(
        &self,
        query: CommandGetXdbcTypeInfo,
        request: Request<Ticket>,
    ) -> Result<Response<<Self as FlightService>::DoGetStream>, Status> {
        let batch = query.into_builder(&self.sql_info.types).build().map_err(metadata::failed)?;
        self.batch(batch, request.extensions())
    }

    async fn do_get_fallback(
        &self,
        _request: Request<Ticket>,
        message: Any,
    ) -> Result<Response<<Self as FlightService>::DoGetStream>, Status> {
        Err(unknown_command(&message.type_url).into())
    }

    async fn do_put_fallback(
        &self,
        _request: Request<PeekableFlightDataStream>,
        message: Any,
    ) -> Result<Response<<Self as FlightService>::DoPutStream>, Status> {
        Err(unknown_command(&message.type_url).into())
    }

    async fn do_put_error_callback(
        &self,
        _request: Request<PeekableFlightDataStream>,
        error: DoPutError,
    ) -> Result<Response<<Self as FlightService>::DoPutStream>, Status> {
        let message = format!("the upload cannot be read: {}", error.to_string().trim_end_matches('.').to_lowercase());
        Err(Error::new(ErrorCode::InvalidMessage, message).hint("put the command into the first message").into())
    }

    async fn do_put_statement_update(
        &self,
        command: CommandStatementUpdate,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        refuse_transaction(command.transaction_id.as_ref())?;
        let caller = Caller::of(request.extensions())?;
        let runnable = self.prepare(&command.query, &caller).await?;
        Ok(row_count(run::update(&runnable, &caller).await?))
    }

    async fn do_put_statement_ingest(
        &self,
        command: CommandStatementIngest,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        refuse_transaction(command.transaction_id.as_ref())?;
        let session = Caller::of(request.extensions())?.session()?;
        let snapshot = self.engine.snapshot().await?;
        let default_schema = session.default_schema();
        let target = ingest::target(&command, &default_schema, &snapshot)?;
        let rows = ingest::rows(request.into_inner(), self.options.request_bytes_max).await?;
        Ok(row_count(Some(session.ingest(target, rows).await?)))
    }

    async fn do_put_prepared_statement_query(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<DoPutPreparedStatementResult, Status> {
        let prepared = self.handles.prepared(&query.prepared_statement_handle)?;
        prepared.bind(self.parameters(request.into_inner()).await?);
        Ok(DoPutPreparedStatementResult { prepared_statement_handle: Some(query.prepared_statement_handle) })
    }

    async fn do_put_prepared_statement_update(
        &self,
        query: CommandPreparedStatementUpdate,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        let caller = Caller::of(request.extensions())?;
        let prepared = self.handles.prepared(&query.prepared_statement_handle)?;
        let mut runnable = prepared.runnable();
        // Parameters that come along hold for this run; else those that were bound before do.
        if let Some(parameters) = self.parameters(request.into_inner()).await? {
            runnable.parameters = Some(parameters);
        }
        Ok(row_count(run::update(&runnable, &caller).await?))
    }

    async fn do_put_substrait_plan(
        &self,
        _plan: CommandStatementSubstraitPlan,
        _request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        Err(no_substrait().into())
    }

    async fn do_action_fallback(
        &self,
        request: Request<Action>,
    ) -> Result<Response<<Self as FlightService>::DoActionStream>, Status> {
        let caller = Caller::of(request.extensions())?;
        let body = action::run(&self.engine, &self.handles, &caller, request.get_ref()).await?;
        Ok(Response::new(stream::iter([Ok(arrow_flight::Result { body })]).boxed()))
    }

    async fn list_custom_actions(&self) -> Option<Vec<Result<ActionType, Status>>> {
        Some(action::action_types().into_iter().map(Ok).collect())
    }

    async fn do_action_create_prepared_statement(
        &self,
        query: ActionCreatePreparedStatementRequest,
        request: Request<Action>,
    ) -> Result<ActionCreatePreparedStatementResult, Status> {
        refuse_transaction(query.transaction_id.as_ref())?;
        let session = Caller::of(request.extensions())?.session()?;
        let prepared: Prepared = session.prepare(&query.query).await?;
        let (dataset_schema, parameter_schema) = (schema_bytes(&prepared.schema)?, schema_bytes(&prepared.parameters)?);
        let prepared_statement_handle = self.handles.keep(session, prepared);
        Ok(ActionCreatePreparedStatementResult { prepared_statement_handle, dataset_schema, parameter_schema })
    }

    async fn do_action_close_prepared_statement(
        &self,
        query: ActionClosePreparedStatementRequest,
        _request: Request<Action>,
    ) -> Result<(), Status> {
        self.handles.close(&query.prepared_statement_handle);
        Ok(())
    }

    async fn do_action_create_prepared_substrait_plan(
        &self,
        _query: ActionCreatePreparedSubstraitPlanRequest,
        _request: Request<Action>,
    ) -> Result<ActionCreatePreparedStatementResult, Status> {
        Err(no_substrait().into())
    }

    async fn do_action_begin_transaction(
        &self,
        _query: ActionBeginTransactionRequest,
        _request: Request<Action>,
    ) -> Result<ActionBeginTransactionResult, Status> {
        Err(no_transactions().into())
    }

    async fn do_action_end_transaction(
        &self,
        _query: ActionEndTransactionRequest,
        _request: Request<Action>,
    ) -> Result<(), Status> {
        Err(no_transactions().into())
    }

    async fn do_action_begin_savepoint(
        &self,
        _query: ActionBeginSavepointRequest,
        _request: Request<Action>,
    ) -> Result<ActionBeginSavepointResult, Status> {
        Err(no_transactions().into())
    }

    async fn do_action_end_savepoint(
        &self,
        _query: ActionEndSavepointRequest,
        _request: Request<Action>,
    ) -> Result<(), Status> {
        Err(no_transactions().into())
    }

    async fn do_action_cancel_query(
        &self,
        query: ActionCancelQueryRequest,
        _request: Request<Action>,
    ) -> Result<ActionCancelQueryResult, Status> {
        let info = FlightInfo::decode(query.info)
            .context(ErrorCode::InvalidMessage, || "the query to cancel cannot be read".to_owned())?;
        let cancelled = action::cancel(&self.handles, &info);
        Ok(ActionCancelQueryResult {
            result: if cancelled { CANCEL_RESULT_CANCELLED } else { CANCEL_RESULT_NOT_CANCELLABLE },
        })
    }

    async fn do_exchange_fallback(
        &self,
        _request: Request<Streaming<FlightData>>,
    ) -> Result<Response<<Self as FlightService>::DoExchangeStream>, Status> {
        Err(Error::new(ErrorCode::NotSupported, "DoExchange is not supported").hint("use DoGet and DoPut").into())
    }

    async fn register_sql_info(&self, _id: i32, _result: &SqlInfo) {}
}

fn empty(schema: SchemaRef) -> RecordBatch {
    RecordBatch::new_empty(schema)
}
