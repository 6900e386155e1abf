//! Queries that start when their ticket is issued.
//!
//! Clients ask for a result as soon as they have its ticket. What lies between the two calls, at both ends and on the
//! way, is as long as a short query takes; one that has started by then is read at once.
//!
//! What has started waits for its reader for a short time only, and with no more than the few batches that any result
//! stream holds. Whoever comes later, or again, starts the query anew.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use aubade_proto::Result;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::handle::{IssuedTicket, Runnable};
use super::run::{self, Running};
use crate::query::AbortOnDrop;
use crate::session::ExecuteOptions;

/// A query that has started before anybody reads it. Dropping it ends the query.
pub(super) struct EarlyRun {
    running: AbortOnDrop<Result<Running>>,
    /// Ends the run from another call.
    cancel: CancellationToken,
    /// Its place among the running streams.
    permit: OwnedSemaphorePermit,
    _until: AbortOnDrop<()>,
}

impl fmt::Debug for EarlyRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EarlyRun").finish_non_exhaustive()
    }
}

impl EarlyRun {
    /// Starts the query of a ticket, which takes it back where nobody has come for it in `wait`.
    pub(super) fn begin(
        runnable: &Runnable,
        ticket: Weak<IssuedTicket>,
        permit: OwnedSemaphorePermit,
        wait: Duration,
    ) -> Self {
        let runnable = Runnable { cancel: runnable.cancel.child_token(), ..runnable.clone() };
        let cancel = runnable.cancel.clone();
        let engine = runnable.session.engine().clone();
        let clock = Arc::clone(&engine.environment().clock);
        let runtime = engine.cpu_handle();
        let work = async move { run::start(&runnable, ExecuteOptions::default()).await };
        let until = async move {
            clock.sleep(wait).await;
            if let Some(ticket) = ticket.upgrade() {
                drop(ticket.take_early());
            }
        };
        Self {
            running: AbortOnDrop::spawn(&runtime, work),
            cancel,
            permit,
            _until: AbortOnDrop::spawn(&runtime, until),
        }
    }

    /// The run once its stream is there, with what ends it and its place.
    ///
    /// # Errors
    /// Those of the statement before its first row.
    pub(super) async fn running(self) -> Result<(Running, CancellationToken, OwnedSemaphorePermit)> {
        Ok((self.running.join().await?, self.cancel, self.permit))
    }
}
