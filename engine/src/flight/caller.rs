//! What a call says of itself in its headers: session, deadline, message limit.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use aubade_environment::{Clock, Deadline, PeerInfo};
use aubade_proto::{Error, ErrorCode, Result};
use futures::future::{BoxFuture, FutureExt};
use tokio_util::sync::CancellationToken;
use tonic::Extensions;
use tonic::metadata::MetadataMap;

use super::sessions::{SessionKey, Sessions};
use super::{FlightOptions, MESSAGE_LIMIT_HEADER, SESSION_HEADER};
use crate::session::Session;

/// The cookie that names a session; clients that keep cookies send it back.
pub(super) const SESSION_COOKIE: &str = "arrow_flight_session_id";
/// Longest name of a session.
const SESSION_NAME_BYTES_MAX: usize = 128;
/// Messages below this size would be all header.
const MESSAGE_BYTES_MIN: usize = 64 << 10;
/// Our own deadline comes this much before the caller's, so that our error is the one it gets.
const DEADLINE_MARGIN: Duration = Duration::from_millis(20);

/// One call's context. `Front` makes it and puts it into the request's extensions.
#[derive(Debug)]
pub(super) struct Caller {
    key: SessionKey,
    sessions: Arc<Sessions>,
    clock: Arc<dyn Clock>,
    deadline: Option<Deadline>,
    closing: CancellationToken,
    /// The largest message that the client takes, bytes.
    pub(super) message_bytes_max: usize,
    /// Name of the session that this call made, for the cookie.
    new_session: OnceLock<String>,
}

impl Caller {
    /// Reads the headers.
    ///
    /// # Errors
    /// `InvalidArgument` for a header that cannot be used.
    pub(super) fn new(
        metadata: &MetadataMap,
        extensions: &Extensions,
        sessions: Arc<Sessions>,
        clock: Arc<dyn Clock>,
        closing: CancellationToken,
        options: &FlightOptions,
    ) -> Result<Self> {
        let timeout = header(metadata, "grpc-timeout").and_then(parse_timeout);
        let deadline = timeout.map(|timeout| {
            let margin = DEADLINE_MARGIN.min(timeout / 10);
            Deadline::after(clock.as_ref(), timeout.saturating_sub(margin))
        });
        Ok(Self {
            key: session_key(metadata, extensions)?,
            message_bytes_max: message_limit(metadata, options)?,
            sessions,
            clock,
            deadline,
            closing,
            new_session: OnceLock::new(),
        })
    }

    /// The context of a request that went through `Front`.
    pub(super) fn of(extensions: &Extensions) -> Result<Arc<Self>> {
        extensions.get::<Arc<Self>>().cloned().ok_or_else(|| Error::internal("a request without a caller"))
    }

    /// The engine session of this call.
    pub(super) fn session(&self) -> Result<Session> {
        let (open, new) = self.sessions.resolve(&self.key)?;
        if new && matches!(self.key, SessionKey::Connection(_)) {
            // The first of several concurrent uses sets it; all mean the same session.
            let _ = self.new_session.set(open.session.id().to_string());
        }
        Ok(open.session.clone())
    }

    /// Ends the session of this call; whether there was one.
    pub(super) fn close_session(&self) -> bool {
        self.sessions.close(&self.key)
    }

    /// The cookie to send back, if this call made a session.
    pub(super) fn cookie(&self) -> Option<String> {
        self.new_session.get().map(|name| format!("{SESSION_COOKIE}={name}; Path=/; HttpOnly"))
    }

    /// What is left of the caller's deadline.
    pub(super) fn remaining(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.remaining(self.clock.as_ref()))
    }

    /// Completes with the error when the call has to end: its deadline passes, or the service closes.
    pub(super) fn ended(&self) -> BoxFuture<'static, Error> {
        let closing = self.closing.clone();
        let closed = async move {
            closing.cancelled().await;
            Error::new(ErrorCode::ShuttingDown, "the coordinator is shutting down").hint("try again when it is back")
        };
        let Some(deadline) = self.deadline else { return closed.boxed() };
        let sleep = self.clock.sleep(deadline.remaining(self.clock.as_ref()));
        async move {
            tokio::select! {
                error = closed => error,
                () = sleep => deadline_exceeded(),
            }
        }
        .boxed()
    }

    /// Runs `work` until it is done or the call has to end, at most for `limit`.
    pub(super) async fn run<T, E: From<Error>>(
        &self,
        limit: Option<Duration>,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let limited = match limit {
            Some(limit) => self.clock.sleep(limit),
            None => std::future::pending().boxed(),
        };
        tokio::select! {
            biased;
            result = work => result,
            error = self.ended() => Err(error.into()),
            () = limited => Err(deadline_exceeded().into()),
        }
    }
}

fn deadline_exceeded() -> Error {
    Error::new(ErrorCode::DeadlineExceeded, "the call took longer than its deadline allows")
        .hint("give it a later deadline, or ask for less")
}

fn header<'a>(metadata: &'a MetadataMap, name: &str) -> Option<&'a str> {
    metadata.get(name).and_then(|value| value.to_str().ok())
}

fn session_key(metadata: &MetadataMap, extensions: &Extensions) -> Result<SessionKey> {
    if let Some(name) = header(metadata, SESSION_HEADER) {
        if name.is_empty() || name.len() > SESSION_NAME_BYTES_MAX {
            let message = format!("the header {SESSION_HEADER} has {} bytes", name.len());
            return Err(Error::new(ErrorCode::InvalidArgument, message)
                .hint(format!("use a name of 1 to {SESSION_NAME_BYTES_MAX} bytes")));
        }
        return Ok(SessionKey::Named(name.to_owned()));
    }
    let cookies = metadata.get_all("cookie").iter().filter_map(|value| value.to_str().ok());
    if let Some(name) = cookies.flat_map(|cookie| cookie.split(';')).find_map(session_cookie) {
        return Ok(SessionKey::Cookie(name));
    }
    // Without connection info (another transport), everything shares one session.
    Ok(SessionKey::Connection(extensions.get::<PeerInfo>().map_or(0, |peer| peer.connection)))
}

fn session_cookie(pair: &str) -> Option<String> {
    let (name, value) = pair.trim().split_once('=')?;
    let value = value.trim_matches('"');
    (name == SESSION_COOKIE && !value.is_empty() && value.len() <= SESSION_NAME_BYTES_MAX).then(|| value.to_owned())
}

fn message_limit(metadata: &MetadataMap, options: &FlightOptions) -> Result<usize> {
    let Some(text) = header(metadata, MESSAGE_LIMIT_HEADER) else { return Ok(options.message_bytes_max) };
    match text.parse::<usize>() {
        Ok(bytes) if bytes >= MESSAGE_BYTES_MIN => Ok(bytes.min(options.request_bytes_max)),
        _ => Err(Error::new(ErrorCode::InvalidArgument, format!("the header {MESSAGE_LIMIT_HEADER} is '{text}'"))
            .hint(format!("give a number of bytes, {MESSAGE_BYTES_MIN} at least"))),
    }
}

/// Reads gRPC's form of a timeout: at most 8 digits and a unit. A malformed one is no timeout.
fn parse_timeout(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let digits = text.strip_suffix(unit)?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        'H' => Some(Duration::from_secs(number.saturating_mul(3600))),
        'M' => Some(Duration::from_secs(number.saturating_mul(60))),
        'S' => Some(Duration::from_secs(number)),
        'm' => Some(Duration::from_millis(number)),
        'u' => Some(Duration::from_micros(number)),
        'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_of_grpc_are_read_and_malformed_ones_ignored() {
        assert_eq!(parse_timeout("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(parse_timeout("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for malformed in ["", "S", "5", "5x", "123456789S", "-1S", "5µ"] {
            assert_eq!(parse_timeout(malformed), None, "{malformed}");
        }
    }

    #[test]
    fn the_session_comes_from_header_then_cookie_then_connection() {
        let (mut metadata, mut extensions) = (MetadataMap::new(), Extensions::default());
        extensions.insert(PeerInfo { address: ([127, 0, 0, 1], 1).into(), connection: 7 });
        assert_eq!(session_key(&metadata, &extensions).unwrap(), SessionKey::Connection(7));
        metadata.insert("cookie", "a=b; arrow_flight_session_id=xyz".parse().unwrap());
        assert_eq!(session_key(&metadata, &extensions).unwrap(), SessionKey::Cookie("xyz".into()));
        metadata.insert(SESSION_HEADER, "mine".parse().unwrap());
        assert_eq!(session_key(&metadata, &extensions).unwrap(), SessionKey::Named("mine".into()));
        metadata.insert(SESSION_HEADER, "x".repeat(200).parse().unwrap());
        assert_eq!(session_key(&metadata, &extensions).unwrap_err().code(), ErrorCode::InvalidArgument);
    }

    #[test]
    fn the_message_limit_of_a_client_is_bounded() {
        let options = FlightOptions::default();
        let mut metadata = MetadataMap::new();
        assert_eq!(message_limit(&metadata, &options).unwrap(), options.message_bytes_max);
        metadata.insert(MESSAGE_LIMIT_HEADER, "99999999999".parse().unwrap());
        assert_eq!(message_limit(&metadata, &options).unwrap(), options.request_bytes_max);
        metadata.insert(MESSAGE_LIMIT_HEADER, "12".parse().unwrap());
        assert_eq!(message_limit(&metadata, &options).unwrap_err().code(), ErrorCode::InvalidArgument);
    }
}
