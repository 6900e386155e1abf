//! What every call goes through before its command is looked at: session, deadline, cookie. It also
//! answers the calls of Flight that Flight SQL has no command for.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use arrow_flight::flight_service_server::FlightService;
use arrow_flight::sql::{Any, Command};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest, HandshakeResponse,
    PollInfo, PutResult, SchemaResult, Ticket,
};
use aubade_environment::Clock;
use aubade_proto::{Error, ErrorCode, ResultExt};
use futures::stream::{self, BoxStream, StreamExt};
use prost::Message;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::FlightOptions;
use super::caller::Caller;
use super::service::Service;
use super::sessions::Sessions;

/// The gRPC service. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Front {
    service: Arc<Service>,
    sessions: Arc<Sessions>,
    clock: Arc<dyn Clock>,
    closing: CancellationToken,
    options: FlightOptions,
}

impl Front {
    /// `closing` ends every call at once.
    pub(super) fn new(
        service: Arc<Service>,
        sessions: Arc<Sessions>,
        clock: Arc<dyn Clock>,
        closing: CancellationToken,
        options: FlightOptions,
    ) -> Self {
        Self { service, sessions, clock, closing, options }
    }

    /// Reads who calls and lets the handlers know.
    fn enter<T>(&self, request: &mut Request<T>) -> Result<Arc<Caller>, Status> {
        let caller = Arc::new(Caller::new(
            request.metadata(),
            request.extensions(),
            Arc::clone(&self.sessions),
            Arc::clone(&self.clock),
            self.closing.clone(),
            &self.options,
        )?);
        request.extensions_mut().insert(Arc::clone(&caller));
        Ok(caller)
    }

    /// Runs a handler within the call's limits, and tells the client its session.
    async fn answer<T>(
        &self,
        caller: &Caller,
        limit: Option<Duration>,
        handler: impl Future<Output = Result<Response<T>, Status>> + Send,
    ) -> Result<Response<T>, Status> {
        let mut result = caller.run(limit, handler).await;
        let metadata = match &mut result {
            Ok(response) => response.metadata_mut(),
            Err(status) => status.metadata_mut(),
        };
        add_cookie(metadata, caller);
        result
    }

    fn unary(&self) -> Option<Duration> {
        Some(self.options.unary_timeout)
    }

    async fn schema(&self, request: Request<FlightDescriptor>, caller: &Caller) -> Result<SchemaResult, Status> {
        let any = Any::decode(request.get_ref().cmd.as_ref())
            .context(ErrorCode::InvalidMessage, || "the command cannot be read".to_owned())?;
        // Whoever asks for the columns alone does not want the query to start.
        let schema = match Command::try_from(any) {
            Ok(Command::CommandStatementQuery(command)) => self.service.statement_schema(&command, caller).await?,
            Ok(Command::CommandPreparedStatementQuery(command)) => self.service.prepared_schema(&command).await?,
            _ => self.service.get_flight_info(request).await?.into_inner().schema,
        };
        Ok(SchemaResult { schema })
    }
}

fn add_cookie(metadata: &mut MetadataMap, caller: &Caller) {
    if let Some(cookie) = caller.cookie().and_then(|cookie| cookie.parse().ok()) {
        metadata.insert("set-cookie", cookie);
    }
}

#[tonic::async_trait]
impl FlightService for Front {
    type HandshakeStream = BoxStream<'static, Result<HandshakeResponse, Status>>;
    type ListFlightsStream = BoxStream<'static, Result<FlightInfo, Status>>;
    type DoGetStream = BoxStream<'static, Result<FlightData, Status>>;
    type DoPutStream = BoxStream<'static, Result<PutResult, Status>>;
    type DoActionStream = BoxStream<'static, Result<arrow_flight::Result, Status>>;
    type ListActionsStream = BoxStream<'static, Result<ActionType, Status>>;
    type DoExchangeStream = BoxStream<'static, Result<FlightData, Status>>;

    async fn handshake(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        self.service.handshake(request).await
    }

    async fn list_flights(&self, _request: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        // Flights come into being by asking for them; there is none to list.
        Ok(Response::new(stream::empty().boxed()))
    }

    async fn get_flight_info(&self, mut request: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        let caller = self.enter(&mut request)?;
        self.answer(&caller, self.unary(), self.service.get_flight_info(request)).await
    }

    async fn poll_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        // The ticket is all that there is to wait for, so the first poll is the last.
        let response = self.get_flight_info(request).await?;
        Ok(response.map(|info| PollInfo { info: Some(info), progress: Some(1.0), ..PollInfo::default() }))
    }

    async fn get_schema(&self, mut request: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        let caller = self.enter(&mut request)?;
        let work = async { self.schema(request, &caller).await.map(Response::new) };
        self.answer(&caller, self.unary(), work).await
    }

    async fn do_get(&self, mut request: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        let caller = self.enter(&mut request)?;
        self.answer(&caller, None, self.service.do_get(request)).await
    }

    async fn do_put(&self, mut request: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        let caller = self.enter(&mut request)?;
        self.answer(&caller, None, self.service.do_put(request)).await
    }

    async fn do_action(&self, mut request: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        let caller = self.enter(&mut request)?;
        self.answer(&caller, self.unary(), self.service.do_action(request)).await
    }

    async fn list_actions(&self, request: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        self.service.list_actions(request).await
    }

    async fn do_exchange(
        &self,
        _request: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoExchangeStream>, Status> {
        Err(Error::new(ErrorCode::NotSupported, "DoExchange is not supported").hint("use DoGet and DoPut").into())
    }
}
