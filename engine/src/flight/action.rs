//! Actions that arrow-flight leaves to the server: cancelling, session options, and our own.

use arrow_flight::sql::{Any, Command, CommandPreparedStatementQuery, TicketStatementQuery};
use arrow_flight::{Action, ActionType, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, FlightInfo};
use aubade_proto::{Error, ErrorCode, Result, ResultExt};
use bytes::Bytes;
use prost::Message;
use uuid::Uuid;

use super::caller::Caller;
use super::handle::Handles;
use super::session_option::{CloseSessionResult, CloseStatus, SetSessionOptionsRequest, get_options, set_options};
use super::{QUERY_RECORD_ACTION, STATUS_ACTION};
use crate::engine::Engine;

const CANCEL_FLIGHT_INFO: &str = "CancelFlightInfo";
const SET_SESSION_OPTIONS: &str = "SetSessionOptions";
const GET_SESSION_OPTIONS: &str = "GetSessionOptions";
const CLOSE_SESSION: &str = "CloseSession";

/// The actions of this module, for ListActions.
pub(super) fn action_types() -> Vec<ActionType> {
    let described = [
        (CANCEL_FLIGHT_INFO, "Ends a query.\nRequest: CancelFlightInfoRequest\nResponse: CancelFlightInfoResult"),
        (
            SET_SESSION_OPTIONS,
            "Sets options of the session.\nRequest: SetSessionOptionsRequest\nResponse: SetSessionOptionsResult",
        ),
        (GET_SESSION_OPTIONS, "Lists the options of the session.\nRequest: empty\nResponse: GetSessionOptionsResult"),
        (CLOSE_SESSION, "Ends the session.\nRequest: empty\nResponse: CloseSessionResult"),
        (QUERY_RECORD_ACTION, "What a query took.\nRequest: the id of the query as text\nResponse: JSON"),
        (STATUS_ACTION, "Nodes, tables and segments of the cluster.\nRequest: empty\nResponse: JSON"),
    ];
    described
        .into_iter()
        .map(|(name, description)| ActionType { r#type: name.to_owned(), description: description.to_owned() })
        .collect()
}

/// Runs an action of this module. Returns the body of its result.
///
/// # Errors
/// `NotSupported` for an action that nobody knows.
pub(super) async fn run(engine: &Engine, handles: &Handles, caller: &Caller, action: &Action) -> Result<Bytes> {
    match action.r#type.as_str() {
        CANCEL_FLIGHT_INFO => {
            let request = decode::<CancelFlightInfoRequest>(action)?;
            let cancelled = request.info.is_some_and(|info| cancel(handles, &info));
            Ok(CancelFlightInfoResult::new(cancel_status(cancelled)?).encode_to_vec().into())
        }
        SET_SESSION_OPTIONS => {
            let request = decode::<SetSessionOptionsRequest>(action)?;
            Ok(set_options(&caller.session()?, request).await?.encode_to_vec().into())
        }
        GET_SESSION_OPTIONS => Ok(get_options(&caller.session()?).await?.encode_to_vec().into()),
        CLOSE_SESSION => {
            // A session that nobody opened is as closed as one that was.
            caller.close_session();
            Ok(CloseSessionResult { status: CloseStatus::Closed.into() }.encode_to_vec().into())
        }
        QUERY_RECORD_ACTION => query_record(engine, &action.body),
        STATUS_ACTION => json(&engine.status().await?),
        other => Err(Error::new(ErrorCode::NotSupported, format!("action '{other}' is not known"))
            .hint("ListActions names the actions of this server")),
    }
}

/// Ends the runs that a FlightInfo describes; whether any of its tickets is known.
pub(super) fn cancel(handles: &Handles, info: &FlightInfo) -> bool {
    let tickets = info.endpoint.iter().filter_map(|endpoint| endpoint.ticket.as_ref());
    let known: Vec<bool> = tickets
        .map(|ticket| match Any::decode(ticket.ticket.as_ref()).ok().and_then(|any| Command::try_from(any).ok()) {
            Some(Command::TicketStatementQuery(TicketStatementQuery { statement_handle })) => {
                handles.cancel_ticket(&statement_handle)
            }
            Some(Command::CommandPreparedStatementQuery(CommandPreparedStatementQuery {
                prepared_statement_handle,
            })) => handles.cancel_prepared(&prepared_statement_handle),
            _ => false,
        })
        .collect();
    known.contains(&true)
}

fn cancel_status(known: bool) -> Result<CancelStatus> {
    if known {
        return Ok(CancelStatus::Cancelled);
    }
    Err(Error::new(ErrorCode::HandleNotFound, "the query to cancel is unknown, or has changed something already"))
}

fn decode<M: Message + Default>(action: &Action) -> Result<M> {
    // Flight's own actions are not wrapped in Any, yet some clients wrap them.
    let wrapped = Any::decode(action.body.as_ref())
        .ok()
        .filter(|any| any.type_url.ends_with(&format!(".{}Request", action.r#type)));
    let body = wrapped.map_or_else(|| action.body.clone(), |any| any.value);
    M::decode(body)
        .context(ErrorCode::InvalidMessage, || format!("the body of action '{}' cannot be read", action.r#type))
}

fn query_record(engine: &Engine, body: &Bytes) -> Result<Bytes> {
    let text = String::from_utf8_lossy(body);
    let id = Uuid::parse_str(text.trim())
        .context(ErrorCode::InvalidArgument, || format!("'{text}' is not the id of a query"))?;
    let record = engine.queries().get(id).ok_or_else(|| {
        Error::new(ErrorCode::HandleNotFound, format!("query {id} is unknown"))
            .hint("only the last queries are remembered")
    })?;
    json(&record)
}

fn json(value: &impl serde::Serialize) -> Result<Bytes> {
    serde_json::to_vec(value)
        .map(Bytes::from)
        .context(ErrorCode::Internal, || "a result cannot be written as JSON".to_owned())
}
