//! Whether a transaction was committed.

use aubade_proto::{Epoch, Result, TransactionId, Version};

use super::head::{Head, Mark, history_of};
use super::{HISTORY_MAX, Manifest, names};

/// Objects read to look back at most; each names 64 transactions.
const LOOK_BACK_MAX: usize = 1_000;

/// Of the versions that are collected, every one whose number is a multiple of this stays for a long
/// while, so that the transactions of all can be looked up: a version names those of the 64 up to it.
const MILESTONE_INTERVAL: u64 = 32;
const _: () = assert!(MILESTONE_INTERVAL as usize * 2 <= HISTORY_MAX, "a milestone names the one before it");

/// Whether a version is one of those that stay longer than others.
pub(super) fn is_milestone(version: Version) -> bool {
    version.0.is_multiple_of(MILESTONE_INTERVAL)
}

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
        // What this handle tried last cannot be an older version: that name was seen to be another's.
        let in_chain = self.is_in_chain(&head, transaction, tried.unwrap_or(Version(1))).await?;
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
        let mut history = head.history.clone();
        for _ in 0..LOOK_BACK_MAX {
            match history.front() {
                None => return Ok(Some(false)),
                Some(oldest) if oldest.version <= down_to => return Ok(Some(false)),
                Some(_) => {}
            }
            // The oldest one that was not collected. The last one is where the walk stands.
            let stays = |mark: &&Mark| mark.version > head.gc_floor || is_milestone(mark.version);
            let Some(next) = history.iter().take(history.len().saturating_sub(1)).find(stays).copied() else {
                return Ok(None);
            };
            let Some(object) = self.store.get(&names::version(next.version)).await? else { return Ok(None) };
            history = history_of(next.version, &object)?;
            if history.back() != Some(&next) {
                return Ok(None);
            }
            if history.iter().any(|mark| mark.transaction == transaction) {
                return Ok(Some(true));
            }
        }
        Ok(None)
    }
}
