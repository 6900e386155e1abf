//! A clock that tests set.

use std::time::Duration;

use aubade_environment::{Clock, SystemClock};
use futures::future::BoxFuture;
use parking_lot::Mutex;

/// Its time passes only when it is told so; sleeps take as long as they take.
#[derive(Debug, Default)]
pub(crate) struct ManualClock {
    now: Mutex<Duration>,
    system: SystemClock,
}

impl ManualClock {
    pub(crate) fn advance(&self, by: Duration) {
        *self.now.lock() += by;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Duration {
        *self.now.lock()
    }

    fn unix_millis(&self) -> u64 {
        self.system.unix_millis()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.system.sleep(duration)
    }
}
