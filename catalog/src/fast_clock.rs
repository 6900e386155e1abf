//! For tests: a clock that runs as fast as somebody waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aubade_environment::{Clock, Environment};
use futures::future::BoxFuture;

/// Sleeping takes no time, and moves the time.
#[derive(Clone, Debug, Default)]
pub(crate) struct FastClock(Arc<AtomicU64>);

impl Clock for FastClock {
    fn now(&self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::SeqCst))
    }

    fn unix_millis(&self) -> u64 {
        1_700_000_000_000
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let now = Arc::clone(&self.0);
        Box::pin(async move {
            // Whoever races with this sleep gets its turn first.
            tokio::task::yield_now().await;
            now.fetch_add(u64::try_from(duration.as_micros()).unwrap(), Ordering::SeqCst);
        })
    }
}

/// The machine with such a clock.
pub(crate) fn environment() -> Environment {
    Environment { clock: Arc::new(FastClock::default()), ..Environment::system() }
}
