//! Time: a monotonic reading, the wall clock, sleeping and deadlines.

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use futures::future::{BoxFuture, Either, FutureExt, select};

/// A source of time.
pub trait Clock: Debug + Send + Sync {
    /// Monotonic time since an arbitrary origin. Use it for durations and deadlines.
    fn now(&self) -> Duration;

    /// Wall-clock milliseconds since 1970. Use it for ids and for showing, never for a decision.
    fn unix_millis(&self) -> u64;

    /// Completes after `duration`.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

/// The machine's clock.
#[derive(Debug)]
pub struct SystemClock {
    origin: std::time::Instant,
}

impl Default for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the seam that the ban points to")]
    fn default() -> Self {
        Self { origin: std::time::Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    #[expect(clippy::disallowed_methods, reason = "this is the seam that the ban points to")]
    fn unix_millis(&self) -> u64 {
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
    }

    #[expect(clippy::disallowed_methods, reason = "this is the seam that the ban points to")]
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        tokio::time::sleep(duration).boxed()
    }
}

/// A point in monotonic time after which work is no longer wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Duration);

impl Deadline {
    /// `timeout` from now; saturates instead of overflowing.
    pub fn after(clock: &dyn Clock, timeout: Duration) -> Self {
        Self(clock.now().saturating_add(timeout))
    }

    /// What is left, zero once the deadline has passed.
    pub fn remaining(&self, clock: &dyn Clock) -> Duration {
        self.0.saturating_sub(clock.now())
    }

    /// Whether the deadline has passed.
    pub fn is_past(&self, clock: &dyn Clock) -> bool {
        self.remaining(clock).is_zero()
    }
}

/// Runs `future` for at most `limit`; `None` when time ran out, in which case it is dropped.
pub async fn timeout<F: Future>(clock: &dyn Clock, limit: Duration, future: F) -> Option<F::Output> {
    let sleep = clock.sleep(limit);
    match select(std::pin::pin!(future), sleep).await {
        Either::Left((output, _)) => Some(output),
        Either::Right(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn timeout_gives_the_output_or_none() {
        let clock = SystemClock::default();
        assert_eq!(timeout(&clock, Duration::from_secs(60), async { 7 }).await, Some(7));
        assert_eq!(timeout(&clock, Duration::from_millis(1), std::future::pending::<()>()).await, None);
    }

    #[test]
    fn a_far_deadline_does_not_overflow() {
        let clock = SystemClock::default();
        let deadline = Deadline::after(&clock, Duration::MAX);
        assert!(!deadline.is_past(&clock));
    }
}
