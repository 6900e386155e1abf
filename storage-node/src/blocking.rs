//! File work off the threads that serve the network.

use aubade_environment::tasks::run_blocking;
use aubade_proto::{Error, Result};

/// Runs `work` where it may block. A panic in it becomes an internal error.
pub(crate) async fn blocking<T, F>(work: F) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T> + Send + 'static,
{
    run_blocking(work).await.unwrap_or_else(|| Err(Error::internal("file work of the storage node was lost")))
}
