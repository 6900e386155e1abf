//! Writing checkpoints: they only make opening faster, so nothing depends on their success.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use aubade_environment::tasks::run_blocking;
use aubade_proto::{Error, Result};

use super::head::Head;
use super::{CHECKPOINT_INTERVAL, CHECKPOINTS_KEPT, Manifest, names};
use crate::store::PutOutcome;

impl Manifest {
    /// Writes a checkpoint when the last one is long ago, and removes those that are too many. The
    /// newest is never removed: that it is above every collected version is what tells a stray.
    pub(super) async fn write_checkpoint_if_due(&self) {
        let head = self.head();
        let version = head.version().0;
        let last = self.checkpoint_version.load(Ordering::Relaxed);
        if version < last.saturating_add(CHECKPOINT_INTERVAL) {
            return;
        }
        // Not tried again before the next interval, however this ends; and by one commit only.
        if self.checkpoint_version.fetch_max(version, Ordering::Relaxed) >= version {
            return;
        }
        match self.write_checkpoint(&head).await {
            Ok(()) => tracing::debug!(version, "wrote a checkpoint of the manifest"),
            Err(error) => {
                tracing::warn!(version, error = %error.chain(), "no checkpoint of the manifest could be written")
            }
        }
    }

    async fn write_checkpoint(&self, head: &Arc<Head>) -> Result<()> {
        let whole = Arc::clone(head);
        // It holds the statistics of every segment: too much work for a thread of the network.
        let object = run_blocking(move || whole.to_checkpoint()).await;
        let object = object.ok_or_else(|| Error::internal("encoding a checkpoint panicked or was stopped"))??;
        match self.store.create(&names::checkpoint(head.version()), object).await {
            PutOutcome::Created | PutOutcome::AlreadyExists => {}
            PutOutcome::Refused(error) | PutOutcome::Unknown(error) => return Err(error),
        }
        // Newer names sort first.
        for name in self.store.list(names::CHECKPOINTS).await?.iter().skip(CHECKPOINTS_KEPT) {
            self.store.delete(name).await?;
        }
        Ok(())
    }
}
