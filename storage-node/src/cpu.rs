//! The threads that decode and filter, apart from those that serve the network.

mod turns;

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use aubade_environment::Clock;
use aubade_proto::{Error, ErrorCode, Result, ResultExt, panic_text};
use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::oneshot;
pub(crate) use turns::CpuUse;
use turns::Turns;

/// A piece of work that waits for a thread.
type Work = Box<dyn FnOnce() + Send>;

/// A pool of CPU threads. Work is short (some batches or a row group), so that scans take turns: see [`turns`].
///
/// Threads without work sleep at once. Those of a work-stealing pool look around and yield for a while first, at the cost
/// of others where work comes a piece at a time and there are many pools on few CPUs.
pub(crate) struct CpuPool {
    threads: usize,
    queue: Arc<Queue>,
    clock: Arc<dyn Clock>,
    load: Arc<Load>,
}

/// What its threads work off.
#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    /// Something has come, or nothing will any more.
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    turns: Turns<Work>,
    is_closed: bool,
}

impl Queue {
    /// Runs what there is, and then what comes, until the queue is closed.
    fn work_off(&self) {
        let mut waiting = self.waiting.lock();
        loop {
            if let Some(work) = waiting.turns.take() {
                MutexGuard::unlocked(&mut waiting, || {
                    // What the work itself does is caught there; this is what it leaves.
                    if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
                        let _ = panicked(panic.as_ref());
                    }
                });
            } else if waiting.is_closed {
                return;
            } else {
                self.changed.wait(&mut waiting);
            }
        }
    }
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
        // Made first: dropping it ends the threads that have been started, if another one cannot be.
        let pool = Self { threads: threads.max(1), queue: Arc::default(), clock, load: Arc::default() };
        for index in 0..pool.threads {
            let queue = Arc::clone(&pool.queue);
            thread::Builder::new()
                // Expressions are evaluated recursively, and a sent one can have many levels.
                .stack_size(8 << 20)
                .name(format!("aubade-scan-{index}"))
                .spawn(move || queue.work_off())
                .context(ErrorCode::Internal, || "the threads for scans could not be started".to_owned())?;
        }
        Ok(pool)
    }

    /// Time that its threads have worked, summed over them, microseconds.
    pub(crate) fn busy_micros(&self) -> u64 {
        self.load.busy_micros.load(Ordering::Relaxed)
    }

    /// How long the pieces of work of a request that comes now wait for a thread, about: a short one overtakes those of
    /// requests that have used CPU already.
    pub(crate) fn expected_wait(&self, is_short: bool) -> Duration {
        let waiting = match is_short {
            true => self.queue.waiting.lock().turns.before_a_new_one(),
            false => self.load.waiting.load(Ordering::Relaxed),
        };
        let micros = waiting.saturating_mul(self.load.usual_micros.load(Ordering::Relaxed));
        Duration::from_micros(micros / self.threads as u64)
    }

    /// Runs `work` of a request on the pool, and adds the time that it takes to `used`. A panic in it becomes an internal
    /// error. On a single-threaded runtime (a simulation) the work runs in place, as in `run_blocking`.
    pub(crate) async fn run<T, F>(&self, used: &Arc<CpuUse>, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (clock, load) = (Arc::clone(&self.clock), Arc::clone(&self.load));
        let uses = Arc::clone(used);
        let guarded = move || {
            let started = clock.now();
            let result = catch_unwind(AssertUnwindSafe(work)).map_err(|panic| panicked(panic.as_ref()));
            let micros = clock.now().saturating_sub(started).as_micros();
            let micros = u64::try_from(micros).unwrap_or(u64::MAX);
            load.worked(micros);
            uses.add(micros);
            result
        };
        if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
            // Operators inside must not be told by the runtime to give way: nobody would wake them.
            return tokio::task::unconstrained(async { guarded() }).await;
        }
        let (tx, rx) = oneshot::channel();
        let load = Arc::clone(&self.load);
        load.waiting.fetch_add(1, Ordering::Relaxed);
        let work = Box::new(move || {
            load.waiting.fetch_sub(1, Ordering::Relaxed);
            // Nobody waits any more when the scan was dropped.
            if !tx.is_closed() {
                let _ = tx.send(guarded());
            }
        });
        self.queue.waiting.lock().turns.push(used, work);
        self.queue.changed.notify_one();
        rx.await.unwrap_or_else(|_| Err(Error::internal("a scan step was lost")))
    }
}

impl Drop for CpuPool {
    fn drop(&mut self) {
        // The threads end once all that waits is done.
        self.queue.waiting.lock().is_closed = true;
        self.queue.changed.notify_all();
    }
}

impl fmt::Debug for CpuPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CpuPool").field("threads", &self.threads).field("load", &self.load).finish_non_exhaustive()
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
        let used = Arc::default();
        let error = pool.run(&used, || panic!("broken")).await.map(|(): ()| ()).unwrap_err();
        assert!(error.message().contains("broken"));
        assert_eq!(pool.run(&used, || 7).await.unwrap(), 7);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_short_request_overtakes_a_long_one() {
        let pool = Arc::new(CpuPool::new(1, Arc::new(SystemClock::default())).unwrap());
        let (long, short) = (Arc::new(CpuUse::default()), Arc::new(CpuUse::default()));
        long.add(1_000_000);
        let (release, released) = std::sync::mpsc::channel::<()>();
        let (started, has_started) = oneshot::channel();
        let order: Arc<Mutex<Vec<&str>>> = Arc::default();
        // The only thread is held until all the others wait for it.
        let held = pool.run(&long, move || {
            let _ = started.send(());
            released.recv()
        });
        let noted = |name: &'static str| {
            let order = Arc::clone(&order);
            move || order.lock().push(name)
        };
        let others = async {
            has_started.await.unwrap();
            let waiting = futures::future::join3(
                pool.run(&long, noted("long")),
                pool.run(&long, noted("long")),
                pool.run(&short, noted("short")),
            );
            let freed = async {
                while pool.load.waiting.load(Ordering::Relaxed) < 3 {
                    tokio::task::yield_now().await;
                }
                release.send(()).unwrap();
            };
            let ((first, second, third), ()) = futures::future::join(waiting, freed).await;
            first.and(second).and(third).unwrap();
        };
        let (held, ()) = futures::future::join(held, others).await;
        held.unwrap().unwrap();
        assert_eq!(*order.lock(), ["short", "long", "long"]);
    }
}
