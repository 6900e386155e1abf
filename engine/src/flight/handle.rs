//! Tickets and prepared statements: what clients hold between two calls.
//!
//! ```text
//! GetFlightInfo(SQL)                 -> ticket (a query has started) -> DoGet reads it
//! CreatePreparedStatement(SQL)       -> prepared statement -> bind -> GetFlightInfo -> ticket -> DoGet
//! ```
//! A prepared statement keeps its text: the columns that GetFlightInfo tells are those of the catalog at that time.
//! A ticket of a query may be read again, which runs the query again. A ticket of a statement that
//! changes something runs it at DoGet, and once: a client that retries must not change it twice.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use aubade_environment::Environment;
use aubade_proto::{Error, ErrorCode, Result};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::FlightOptions;
use super::early::EarlyRun;
use super::expiring::Expiring;
use crate::session::{Prepared, Session};

/// A statement with its parameters, ready to run.
#[derive(Clone, Debug)]
pub(super) struct Runnable {
    /// Where it runs.
    pub(super) session: Session,
    /// What runs.
    pub(super) prepared: Arc<Prepared>,
    /// Its bound parameters, one row per run.
    pub(super) parameters: Option<RecordBatch>,
    /// Ends its runs from another call.
    pub(super) cancel: CancellationToken,
}

impl Runnable {
    /// The columns of its result, where they are certain: bound parameters of other types than the
    /// statement would choose by itself can change them, and clients compare what they are told with
    /// what they get.
    pub(super) fn certain_schema(&self) -> Option<&SchemaRef> {
        if !self.prepared.is_query {
            // Where the schema is told, ADBC's driver returns from `execute` before it calls DoGet,
            // and the next statement would not see the table that this one makes.
            return None;
        }
        let wanted = self.prepared.parameters.fields();
        let certain = self.parameters.as_ref().is_none_or(|bound| {
            let bound = bound.schema();
            wanted.iter().zip(bound.fields()).all(|(wanted, bound)| wanted.data_type() == bound.data_type())
        });
        certain.then_some(&self.prepared.schema)
    }
}

/// What a ticket stands for.
#[derive(Debug)]
pub(super) struct IssuedTicket {
    runnable: Runnable,
    /// For whoever comes first.
    early: Mutex<Option<EarlyRun>>,
}

impl IssuedTicket {
    /// The run that has started with the ticket, if nobody has it yet.
    pub(super) fn take_early(&self) -> Option<EarlyRun> {
        self.early.lock().take()
    }
}

/// A prepared statement with the parameters that were bound last.
#[derive(Debug)]
pub(super) struct PreparedHandle {
    session: Session,
    state: Mutex<PreparedState>,
}

/// What changes of a prepared statement. Runs have what it was when they began.
#[derive(Debug)]
struct PreparedState {
    /// For the catalog of when it was last asked for.
    prepared: Arc<Prepared>,
    parameters: Option<RecordBatch>,
    /// Ends the runs that have begun since the last time.
    cancel: CancellationToken,
}

impl PreparedHandle {
    /// Binds parameters; they stay until others are bound.
    pub(super) fn bind(&self, parameters: Option<RecordBatch>) {
        self.state.lock().parameters = parameters;
    }

    /// The statement as it is bound now.
    pub(super) fn runnable(&self) -> Runnable {
        let state = self.state.lock();
        Runnable {
            session: self.session.clone(),
            prepared: Arc::clone(&state.prepared),
            parameters: state.parameters.clone(),
            cancel: state.cancel.child_token(),
        }
    }

    /// The statement as it is bound now, with the columns that it has now: since it was prepared, tables may have
    /// changed.
    ///
    /// # Errors
    /// Those of [`Session::prepare`], where it cannot be planned any more.
    pub(super) async fn current(&self) -> Result<Runnable> {
        let mut runnable = self.runnable();
        // Of others no columns are told.
        if runnable.prepared.is_query && !self.session.is_current(&runnable.prepared).await? {
            runnable.prepared = Arc::new(self.session.prepare(&runnable.prepared.sql).await?);
            self.state.lock().prepared = Arc::clone(&runnable.prepared);
        }
        Ok(runnable)
    }
}

/// Every ticket and prepared statement.
#[derive(Debug)]
pub(super) struct Handles {
    environment: Environment,
    tickets: Expiring<Uuid, Arc<IssuedTicket>>,
    prepared: Expiring<Uuid, Arc<PreparedHandle>>,
    early_wait: Duration,
}

impl Handles {
    pub(super) fn new(environment: Environment, options: &FlightOptions) -> Self {
        let clock = &environment.clock;
        Self {
            tickets: Expiring::new(Arc::clone(clock), options.handles_max, options.idle),
            prepared: Expiring::new(Arc::clone(clock), options.handles_max, options.idle),
            early_wait: options.early_wait,
            environment,
        }
    }

    /// Issues a ticket. The query starts at once where it has a place among those that run.
    pub(super) fn issue(&self, runnable: Runnable, place: Option<OwnedSemaphorePermit>) -> Bytes {
        let id = self.environment.new_uuid();
        let ticket = Arc::new(IssuedTicket { runnable, early: Mutex::default() });
        if let Some(place) = place {
            // Under the lock: what takes the run back must find it.
            let mut early = ticket.early.lock();
            *early = Some(EarlyRun::begin(&ticket.runnable, Arc::downgrade(&ticket), place, self.early_wait));
        }
        self.tickets.get_or_insert(id, ticket);
        Bytes::copy_from_slice(id.as_bytes())
    }

    /// What to run for a ticket, and the run that has started already; a ticket that changes something is used up by
    /// this.
    ///
    /// # Errors
    /// `HandleNotFound`.
    pub(super) fn redeem(&self, handle: &[u8]) -> Result<(Runnable, Option<EarlyRun>)> {
        let unknown = || {
            Error::new(ErrorCode::HandleNotFound, "the ticket is unknown, has expired or was used")
                .hint("ask for the statement again: a ticket that changes something works once")
        };
        let id = parse(handle).ok_or_else(unknown)?;
        let mut ticket = self.tickets.get(&id).ok_or_else(unknown)?;
        if !ticket.runnable.prepared.is_query {
            // Of two callers at the same time, one gets it.
            ticket = self.tickets.remove(&id).ok_or_else(unknown)?;
        }
        let cancel = ticket.runnable.cancel.child_token();
        Ok((Runnable { cancel, ..ticket.runnable.clone() }, ticket.take_early()))
    }

    /// Keeps a prepared statement.
    pub(super) fn keep(&self, session: Session, prepared: Prepared) -> Bytes {
        let prepared = Arc::new(prepared);
        let state = Mutex::new(PreparedState { prepared, parameters: None, cancel: CancellationToken::new() });
        let id = self.environment.new_uuid();
        self.prepared.get_or_insert(id, Arc::new(PreparedHandle { session, state }));
        Bytes::copy_from_slice(id.as_bytes())
    }

    /// A kept prepared statement.
    ///
    /// # Errors
    /// `HandleNotFound`.
    pub(super) fn prepared(&self, handle: &[u8]) -> Result<Arc<PreparedHandle>> {
        parse(handle).and_then(|id| self.prepared.get(&id)).ok_or_else(|| {
            Error::new(ErrorCode::HandleNotFound, "the prepared statement is unknown, was closed or has expired")
                .hint("prepare it again")
        })
    }

    /// Forgets a prepared statement; no error if it is gone already.
    pub(super) fn close(&self, handle: &[u8]) {
        if let Some(id) = parse(handle) {
            self.prepared.remove(&id);
        }
    }

    /// Ends the runs of a ticket and uses it up; whether it was there.
    pub(super) fn cancel_ticket(&self, handle: &[u8]) -> bool {
        let ticket = parse(handle).and_then(|id| self.tickets.remove(&id));
        if let Some(ticket) = &ticket {
            ticket.runnable.cancel.cancel();
        }
        ticket.is_some()
    }

    /// Ends the runs of a prepared statement, which itself stays; whether it was there.
    pub(super) fn cancel_prepared(&self, handle: &[u8]) -> bool {
        let Some(prepared) = parse(handle).and_then(|id| self.prepared.get(&id)) else { return false };
        let running = std::mem::take(&mut prepared.state.lock().cancel);
        running.cancel();
        true
    }
}

fn parse(handle: &[u8]) -> Option<Uuid> {
    Uuid::from_slice(handle).ok()
}
