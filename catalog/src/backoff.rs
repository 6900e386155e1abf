//! Pauses between tries, and work that rides out a store which fails now and then.

use std::time::Duration;

use aubade_environment::{Deadline, Environment};
use aubade_proto::{ErrorCode, Result};

/// First and longest pause between two tries of one request.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Pauses that grow, with jitter.
#[derive(Debug)]
pub(crate) struct Backoff<'a> {
    environment: &'a Environment,
    next: Duration,
}

impl<'a> Backoff<'a> {
    pub(crate) fn new(environment: &'a Environment) -> Self {
        Self { environment, next: PAUSE_MIN }
    }

    pub(crate) async fn pause(&mut self) {
        let micros = u64::try_from(self.next.as_micros()).unwrap_or(u64::MAX);
        let jitter = Duration::from_micros(self.environment.random.below(micros.max(1)));
        self.environment.clock.sleep(self.next / 2 + jitter / 2).await;
        self.next = (self.next * 2).min(PAUSE_MAX);
    }
}

/// Tries again while the store does not answer, until `deadline`: a try that begins before it is
/// waited for. Every other error is returned at once.
///
/// # Errors
/// That of the last try.
pub(crate) async fn ride_out<T, F>(
    environment: &Environment,
    deadline: &Deadline,
    mut attempt: impl FnMut() -> F,
) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let mut backoff = Backoff::new(environment);
    loop {
        match attempt().await {
            Err(error)
                if error.code() == ErrorCode::StoreUnavailable && !deadline.is_past(environment.clock.as_ref()) =>
            {
                tracing::debug!(error = %error.chain(), "the store of the manifest did not answer; asking again");
                backoff.pause().await;
            }
            result => return result,
        }
    }
}
