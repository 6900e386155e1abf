//! The threads that decode and filter, apart from those that serve the network.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use aubade_proto::{Error, ErrorCode, Result, ResultExt, panic_text};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::oneshot;

/// A pool of CPU threads. Work is short (one batch or row group), so that scans take turns.
#[derive(Debug)]
pub(crate) struct CpuPool {
    pool: rayon::ThreadPool,
}

impl CpuPool {
    pub(crate) fn new(threads: usize) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            // Expressions are evaluated recursively, and a sent one can have many levels.
            .stack_size(8 << 20)
            .num_threads(threads.max(1))
            .thread_name(|index| format!("aubade-scan-{index}"))
            .build()
            .context(ErrorCode::Internal, || "the threads for scans could not be started".to_owned())?;
        Ok(Self { pool })
    }

    /// Runs `work` on the pool. A panic in it becomes an internal error. On a single-threaded
    /// runtime (a simulation) the work runs in place, as in `run_blocking`.
    pub(crate) async fn run<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let guarded = || catch_unwind(AssertUnwindSafe(work)).map_err(|panic| panicked(panic.as_ref()));
        if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
            return guarded();
        }
        let (tx, rx) = oneshot::channel();
        self.pool.spawn(move || {
            // Nobody waits any more when the scan was dropped.
            if !tx.is_closed() {
                let _ = tx.send(guarded());
            }
        });
        rx.await.unwrap_or_else(|_| Err(Error::internal("a scan step was lost")))
    }
}

fn panicked(panic: &(dyn Any + Send)) -> Error {
    let text = panic_text(panic);
    tracing::error!(%text, "a scan step panicked");
    Error::internal(format!("a scan step panicked: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_panic_becomes_an_error() {
        let pool = CpuPool::new(1).unwrap();
        let error = pool.run(|| panic!("broken")).await.map(|(): ()| ()).unwrap_err();
        assert!(error.message().contains("broken"));
        assert_eq!(pool.run(|| 7).await.unwrap(), 7);
    }
}
