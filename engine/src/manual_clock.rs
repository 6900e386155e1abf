//! A clock that tests set.

use std::time::Duration;

use aubade_environment::{Clock, SystemClock};
use futures::future::BoxFuture;
use tokio::sync::watch;

/// Its time passes, for sleeps too, only when it is told so.
#[derive(Debug, Default)]
pub(crate) struct ManualClock {
    now: watch::Sender<Duration>,
    system: SystemClock,
}

impl ManualClock {
    pub(crate) fn advance(&self, by: Duration) {
        self.now.send_modify(|now| *now += by);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Duration {
        *self.now.borrow()
    }

    fn unix_millis(&self) -> u64 {
        self.system.unix_millis()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let (mut time, end) = (self.now.subscribe(), self.now() + duration);
        Box::pin(async move {
            // Fails once the clock is gone: then nobody tells any more.
            let _ = time.wait_for(|now| *now >= end).await;
        })
    }
}
