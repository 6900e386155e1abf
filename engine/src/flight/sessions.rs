//! Which engine session a call belongs to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aubade_proto::{Error, ErrorCode, Result};

use super::FlightOptions;
use super::expiring::Expiring;
use crate::engine::Engine;
use crate::session::Session;

/// How a call names its session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SessionKey {
    /// By the cookie that the server set: the session must exist.
    Cookie(String),
    /// By a name that the client picked: made at its first use.
    Named(String),
    /// Not at all: the session of the connection, made at its first use.
    Connection(u64),
}

/// A session and how it is reached.
#[derive(Debug)]
pub(super) struct OpenSession {
    /// The session.
    pub(super) session: Session,
    /// Whether somebody named it: then it outlives its connection.
    named: AtomicBool,
}

/// Every open session.
#[derive(Debug)]
pub(super) struct Sessions {
    engine: Engine,
    by_connection: Expiring<u64, Arc<OpenSession>>,
    by_name: Expiring<String, Arc<OpenSession>>,
}

impl Sessions {
    pub(super) fn new(engine: Engine, options: &FlightOptions) -> Self {
        let clock = Arc::clone(&engine.environment().clock);
        Self {
            by_connection: Expiring::new(Arc::clone(&clock), options.sessions_max, options.idle),
            by_name: Expiring::new(clock, options.sessions_max, options.idle),
            engine,
        }
    }

    /// The session that `key` names, and whether it is new.
    ///
    /// # Errors
    /// `HandleNotFound` for a cookie whose session has ended.
    pub(super) fn resolve(&self, key: &SessionKey) -> Result<(Arc<OpenSession>, bool)> {
        let existing = match key {
            SessionKey::Cookie(name) | SessionKey::Named(name) => self.by_name.get(name),
            SessionKey::Connection(connection) => self.by_connection.get(connection),
        };
        if let Some(open) = existing {
            if !matches!(key, SessionKey::Connection(_)) {
                // Ordering: a flag by itself.
                open.named.store(true, Ordering::Relaxed);
            }
            return Ok((open, false));
        }
        let (made, open) = match key {
            SessionKey::Cookie(name) => {
                let message = format!("session '{name}' does not exist or has expired");
                return Err(
                    Error::new(ErrorCode::HandleNotFound, message).hint("connect again, and make its settings again")
                );
            }
            SessionKey::Named(name) => {
                let made = self.open(true);
                (Arc::clone(&made), self.by_name.get_or_insert(name.clone(), made))
            }
            SessionKey::Connection(connection) => {
                let made = self.open(false);
                let open = self.by_connection.get_or_insert(*connection, Arc::clone(&made));
                self.by_name.get_or_insert(open.session.id().to_string(), Arc::clone(&open));
                (made, open)
            }
        };
        let new = Arc::ptr_eq(&open, &made);
        Ok((open, new))
    }

    fn open(&self, named: bool) -> Arc<OpenSession> {
        Arc::new(OpenSession { session: self.engine.session(), named: AtomicBool::new(named) })
    }

    /// Ends the session that `key` names; whether there was one.
    pub(super) fn close(&self, key: &SessionKey) -> bool {
        let open = match key {
            SessionKey::Cookie(name) | SessionKey::Named(name) => self.by_name.remove(name),
            SessionKey::Connection(connection) => self.by_connection.remove(connection),
        };
        if let Some(open) = &open {
            self.by_name.remove(&open.session.id().to_string());
        }
        open.is_some()
    }

    /// A connection has ended: its session goes unless somebody named it.
    pub(super) fn disconnected(&self, connection: u64) {
        if let Some(open) = self.by_connection.remove(&connection)
            && !open.named.load(Ordering::Relaxed)
        {
            self.by_name.remove(&open.session.id().to_string());
        }
    }
}
