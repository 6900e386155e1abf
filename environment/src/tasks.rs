//! Supervised tasks: every spawned future belongs to a group that can stop it and wait for it.

use std::future::Future;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A set of tasks that are stopped and awaited together.
///
/// Dropping the last handle does not stop the tasks; [`TaskGroup::shutdown`] does.
#[derive(Clone, Debug, Default)]
pub struct TaskGroup {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl TaskGroup {
    /// An empty group.
    pub fn new() -> Self {
        Self::default()
    }

    /// The token that is cancelled when the group stops. Long loops select on it to end cleanly.
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Runs `future` until it ends or the group stops, whichever comes first.
    #[expect(clippy::disallowed_methods, reason = "this is the seam that the ban points to")]
    pub fn spawn<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = self.stop.clone();
        tokio::spawn(self.tracker.track_future(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = future => {}
            }
        }));
    }

    /// Runs `future` to its end even when the group stops: for work that watches
    /// [`TaskGroup::stopping`] itself and must finish what it began.
    #[expect(clippy::disallowed_methods, reason = "this is the seam that the ban points to")]
    pub fn spawn_graceful<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        tokio::spawn(self.tracker.track_future(future));
    }

    /// Asks every task to stop and waits until all have ended.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// Runs blocking work (file I/O, encoding) off the threads that serve the network.
///
/// Returns `None` when the work panicked or the runtime is stopping. On a single-threaded runtime
/// (a simulation) the work runs in place, since other threads would make its order random.
#[expect(clippy::disallowed_methods, reason = "this is the seam that the ban points to")]
pub async fn run_blocking<T, F>(work: F) -> Option<T>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    match tokio::runtime::Handle::current().runtime_flavor() {
        tokio::runtime::RuntimeFlavor::CurrentThread => Some(work()),
        _ => tokio::task::spawn_blocking(work).await.ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn shutdown_stops_endless_tasks() {
        let group = TaskGroup::new();
        group.spawn(std::future::pending());
        group.shutdown().await;
        assert!(group.stopping().is_cancelled());
    }
}
