//! Work on the runtime of queries: panics become errors, and a caller that goes away stops it.

use std::any::Any;
use std::panic::AssertUnwindSafe;

use aubade_proto::{Error, ErrorCode, Result, panic_text};
use futures::FutureExt;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// A task that ends when its handle is dropped.
#[derive(Debug)]
pub(crate) struct AbortOnDrop<T>(pub(super) JoinHandle<T>);

impl<T: Send + 'static> AbortOnDrop<T> {
    pub(crate) fn spawn(runtime: &Handle, work: impl Future<Output = T> + Send + 'static) -> Self {
        Self(runtime.spawn(work))
    }
}

impl<T> AbortOnDrop<Result<T>> {
    /// What became of it.
    pub(crate) async fn join(mut self) -> Result<T> {
        (&mut self.0).await.unwrap_or_else(|_| Err(stopped()))
    }
}

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs `work` on another runtime. Dropping the returned future stops it.
pub(crate) async fn run_on<T, F>(runtime: &Handle, work: F) -> Result<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    AbortOnDrop::spawn(runtime, without_panic(work)).join().await
}

/// The output of `work`, or an error where it panics: a defect in planning must cost one statement,
/// not the server.
pub(super) async fn without_panic<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    match AssertUnwindSafe(work).catch_unwind().await {
        Ok(result) => result,
        Err(panic) => Err(panic_error(panic.as_ref())),
    }
}

fn panic_error(panic: &(dyn Any + Send)) -> Error {
    let text = panic_text(panic);
    tracing::error!(%text, "a statement panicked");
    Error::internal(format!("the statement hit a defect: {text}")).hint("report the statement and this message")
}

/// The error of work whose runtime went away.
pub(super) fn stopped() -> Error {
    Error::new(ErrorCode::ShuttingDown, "the engine is shutting down").hint("connect again once it is back")
}
