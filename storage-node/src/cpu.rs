//! The threads that decode and filter, apart from those that serve the network.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aubade_environment::Clock;
use aubade_proto::{Error, ErrorCode, Result, ResultExt, panic_text};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::oneshot;

/// A pool of CPU threads. Work is short (one batch or row group), so that scans take turns.
#[derive(Debug)]
pub(crate) struct CpuPool {
    pool: rayon::ThreadPool,
    clock: Arc<dyn Clock>,
    load: Arc<Load>,
}

/// What the pool has done, and has before it.
#[derive(Debug, Default)]
struct Load {
    busy_micros: AtomicU64,
    /// Pieces of work that wait for a thread.
    waiting: AtomicU64,
    /// How long a piece of work takes, a moving average.
    usual_micros: AtomicU64,
}

impl Load {
    fn worked(&self, micros: u64) {
        // Ordering: counters that guard nothing, here and below.
        self.busy_micros.fetch_add(micros, Ordering::Relaxed);
        let usual = self.usual_micros.load(Ordering::Relaxed);
        self.usual_micros.store(usual - usual / 8 + micros / 8, Ordering::Relaxed);
    }
}

impl CpuPool {
    pub(crate) fn new(threads: usize, clock: Arc<dyn Clock>) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            // Expressions are evaluated recursively, and a sent one can have many levels.
            .stack_size(8 << 20)
            .num_threads(threads.max(1))
            .thread_name(|index| format!("aubade-scan-{index}"))
            .build()
            .context(ErrorCode::Internal, || "the threads for scans could not be started".to_owned())?;
        Ok(Self { pool, clock, load: Arc::default() })
    }

    /// Time that its threads have worked, summed over them, microseconds.
    pub(crate) fn busy_micros(&self) -> u64 {
        self.load.busy_micros.load(Ordering::Relaxed)
    }

    /// How long a piece of work that comes now waits for a thread, about.
    pub(crate) fn expected_wait(&self) -> Duration {
        let waiting = self.load.waiting.load(Ordering::Relaxed);
        let micros = waiting.saturating_mul(self.load.usual_micros.load(Ordering::Relaxed));
        Duration::from_micros(micros / self.pool.current_num_threads().max(1) as u64)
    }

    /// Runs `work` on the pool. A panic in it becomes an internal error. On a single-threaded
    /// runtime (a simulation) the work runs in place, as in `run_blocking`.
    pub(crate) async fn run<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (clock, load) = (Arc::clone(&self.clock), Arc::clone(&self.load));
        let guarded = move || {
            let started = clock.now();
            let result = catch_unwind(AssertUnwindSafe(work)).map_err(|panic| panicked(panic.as_ref()));
            let micros = clock.now().saturating_sub(started).as_micros();
            load.worked(u64::try_from(micros).unwrap_or(u64::MAX));
            result
        };
        if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
            return guarded();
        }
        let (tx, rx) = oneshot::channel();
        let load = Arc::clone(&self.load);
        load.waiting.fetch_add(1, Ordering::Relaxed);
        self.pool.spawn(move || {
            load.waiting.fetch_sub(1, Ordering::Relaxed);
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
    use aubade_environment::SystemClock;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_panic_becomes_an_error() {
        let pool = CpuPool::new(1, Arc::new(SystemClock::default())).unwrap();
        let error = pool.run(|| panic!("broken")).await.map(|(): ()| ()).unwrap_err();
        assert!(error.message().contains("broken"));
        assert_eq!(pool.run(|| 7).await.unwrap(), 7);
    }
}
