//! Ctrl-C and the signals that ask a process to end.

use std::future::Future;

use aubade_proto::{Error, ErrorCode, Result, ResultExt};
use tokio::signal::unix::{Signal, SignalKind, signal};

fn listen(kind: SignalKind) -> Result<Signal> {
    signal(kind).context(ErrorCode::Internal, || "signals cannot be received".to_owned())
}

/// Completes at the first Ctrl-C from now on.
pub(crate) async fn ctrl_c() -> Result<()> {
    listen(SignalKind::interrupt())?.recv().await;
    Ok(())
}

/// Completes when the process is asked to end, by Ctrl-C, SIGTERM or the closing of its terminal.
pub(crate) async fn shutdown_requested() -> Result<()> {
    let mut interrupt = listen(SignalKind::interrupt())?;
    tokio::select! {
        _ = interrupt.recv() => Ok(()),
        result = terminated() => result,
    }
}

/// Completes at SIGTERM or the closing of the terminal, not at Ctrl-C.
pub(crate) async fn terminated() -> Result<()> {
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hang_up = listen(SignalKind::hangup())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
    Ok(())
}

/// Runs `work` to its end, or drops it when the process is asked to end.
///
/// # Errors
/// Those of `work`; `Cancelled` when it was dropped.
pub(crate) async fn until_shutdown<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        result = work => result,
        signal = shutdown_requested() => {
            signal?;
            Err(Error::new(ErrorCode::Cancelled, "interrupted"))
        }
    }
}
