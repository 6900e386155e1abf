//! Whether a transaction was committed.

use aubade_proto::{Epoch, Result, TransactionId, Version};

use super::head::{Head, history_of};
use super::{Manifest, names};

/// Objects read to look back at most; each names 64 transactions.
const LOOK_BACK_MAX: usize = 1_000;

impl Manifest {
    /// Whether a transaction was committed: `Some(true)` yes; `Some(false)` no and it never will be
    /// (it was tried by this handle, and its version is another's); `None` not known.
    ///
    /// # Errors
    /// As [`Manifest::refresh`].
    pub async fn find(&self, transaction: TransactionId) -> Result<Option<bool>> {
        self.look_up(transaction, None).await
    }

    /// As [`Manifest::find`], for a transaction of a writer of `epoch`: once a higher epoch stands,
    /// everything that is not in the chain never will be.
    ///
    /// # Errors
    /// As [`Manifest::refresh`].
    pub async fn find_of_epoch(&self, transaction: TransactionId, epoch: Epoch) -> Result<Option<bool>> {
        self.look_up(transaction, Some(epoch)).await
    }

    async fn look_up(&self, transaction: TransactionId, epoch: Option<Epoch>) -> Result<Option<bool>> {
        let tried = self.attempts.lock().version_of(transaction);
        self.refresh().await?;
        let head = self.head();
        let in_chain = self.is_in_chain(&head, transaction, Version(1)).await?;
        if in_chain != Some(false) {
            return Ok(in_chain);
        }
        let fenced = epoch.is_some_and(|epoch| epoch < head.snapshot.epoch);
        let decided = tried.is_some_and(|version| version <= head.version());
        Ok(if fenced || decided { Some(false) } else { None })
    }

    /// Walks back over the histories as far as version `down_to`; `None` when an object on the way
    /// is gone. An object is believed only if the history above it names its transaction: a stray
    /// may stand under a name that was collected.
    pub(super) async fn is_in_chain(
        &self,
        head: &Head,
        transaction: TransactionId,
        down_to: Version,
    ) -> Result<Option<bool>> {
        if head.mark(transaction).is_some() {
            return Ok(Some(true));
        }
        let Some(mut oldest) = head.oldest_mark() else { return Ok(Some(false)) };
        for _ in 0..LOOK_BACK_MAX {
            if oldest.version <= down_to {
                return Ok(Some(false));
            }
            let Some(object) = self.store.get(&names::version(oldest.version)).await? else { return Ok(None) };
            let history = history_of(oldest.version, &object)?;
            if history.back() != Some(&oldest) {
                return Ok(None);
            }
            if history.iter().any(|mark| mark.transaction == transaction) {
                return Ok(Some(true));
            }
            match history.front() {
                Some(mark) if mark.version < oldest.version => oldest = *mark,
                _ => return Ok(None),
            }
        }
        Ok(None)
    }
}
