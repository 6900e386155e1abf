//! The Flight SQL service: sessions of the engine, offered over gRPC to clients that nobody here wrote.
//!
//! ```text
//!  connection -> serve (limits) -> Front (session, deadline, cookie) -> Service (the commands)
//!                                                                        |-> Handles: tickets, prepared statements
//!                                                                        |-> Sessions: engine sessions by connection or name
//!                                                                        '-> stream: batches to FlightData
//! ```
//!
//! Nothing is kept outside `Sessions` and `Handles`; both are bounded and forget what is idle. A
//! client that goes away drops its stream, and with it the query. Planning never has side effects:
//! a statement that changes something runs when its stream is asked for, and its ticket works once.

mod action;
mod caller;
mod early;
mod expiring;
mod front;
mod handle;
mod ingest;
mod metadata;
mod run;
mod serve;
mod service;
mod session_option;
mod sessions;
mod stream;
#[cfg(test)]
mod tests;
mod type_info;

use std::time::Duration;

pub use serve::serve_flight;

/// Response header of DoGet with the id of the query.
pub const QUERY_ID_HEADER: &str = "x-aubade-query-id";
/// Request header with a name for the session that the client picks; used where connections are
/// shared or change.
pub const SESSION_HEADER: &str = "x-aubade-session";
/// Request header with the largest message that the client takes, bytes.
pub const MESSAGE_LIMIT_HEADER: &str = "x-aubade-max-message-bytes";
/// The action that returns the record of a query (body: its id) as JSON.
pub const QUERY_RECORD_ACTION: &str = "aubade.query_record";
/// The action that returns the status of the cluster as JSON.
pub const STATUS_ACTION: &str = "aubade.status";

/// The limits of the Flight SQL service.
#[derive(Clone, Debug)]
pub struct FlightOptions {
    /// Open connections; further ones wait to be accepted.
    pub connections_max: usize,
    /// Calls per connection at a time.
    pub streams_per_connection_max: u32,
    /// Sessions that are kept; past it the one that was idle longest goes.
    pub sessions_max: usize,
    /// Tickets and, apart from them, prepared statements that are kept.
    pub handles_max: usize,
    /// Time after which an unused session or handle goes.
    pub idle: Duration,
    /// Result streams that run at a time; further ones are refused as busy.
    pub running_max: usize,
    /// Time that a query which has started with its ticket waits for its reader.
    pub early_wait: Duration,
    /// Size of one message of a client, bytes: bounds the batches of an upload.
    pub request_bytes_max: usize,
    /// Size of one message to a client that does not say what it takes, bytes. Batches are split far
    /// below; only a single wide row reaches it. The default is that of the ADBC driver.
    pub message_bytes_max: usize,
    /// Bytes of all the parameters bound to one statement.
    pub parameter_bytes_max: usize,
    /// Time for calls that stream nothing: planning, metadata, actions.
    pub unary_timeout: Duration,
    /// Time that running streams and uploads have to end when the service stops.
    pub shutdown_grace: Duration,
}

impl Default for FlightOptions {
    fn default() -> Self {
        Self {
            connections_max: 512,
            streams_per_connection_max: 128,
            sessions_max: 1000,
            handles_max: 10_000,
            idle: Duration::from_secs(3600),
            running_max: 256,
            early_wait: Duration::from_secs(1),
            request_bytes_max: 64 << 20,
            message_bytes_max: 16 << 20,
            parameter_bytes_max: 256 << 20,
            unary_timeout: Duration::from_secs(120),
            shutdown_grace: Duration::from_secs(10),
        }
    }
}
