//! Collecting old versions.
//!
//! The collection floor is part of every version: names at or below it are never versions again. What
//! keeps a deleted name from coming back as a version is the order of the steps, not the time between
//! them:
//!
//! 1. There are two checkpoints, and the older of them, which can be read, is at or above the new floor.
//!    The newest one is never removed, so one that is above every collected name can always be listed.
//! 2. A version with the new floor is committed, by the owner of the epoch.
//! 3. Only then are objects deleted, by anybody, in any order, a bounded number per round.
//!
//! A writer that slept through all this, and creates a name that was deleted, lists the checkpoints
//! after its create (see [`super::commit`]): it finds one above its version, and then that the chain
//! names another transaction. What it made is a stray, which the next round deletes. A reader that
//! follows a stray, or finds nothing where its next version was, finds the same in the same way (see
//! [`super::discover`]).
//!
//! Every 32nd version stays for longer, so that a transaction of long ago can still be looked up.

use std::sync::atomic::Ordering;

use aubade_environment::tasks::run_blocking;
use aubade_proto::{Epoch, Error, ErrorCode, Result, Version};

use super::commit::Change;
use super::find::is_milestone;
use super::head::Head;
use super::{CHECKPOINTS_KEPT, Commit, Manifest, names};
use crate::snapshot::Snapshot;

const _: () = assert!(CHECKPOINTS_KEPT >= 2, "the newest checkpoint has to be above the floor");

/// How much of the past is kept, and how fast the rest goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CollectionLimits {
    /// Versions that are kept besides the newest: comfort for those who come late, not what makes
    /// collection safe.
    pub versions_kept: u64,
    /// The floor moves by so many versions at least, since moving it makes a version too.
    pub floor_step: u64,
    /// So many versions below the floor every 32nd one is kept.
    pub milestones_below: u64,
    /// Objects that one round deletes, so that it leaves room for other work.
    pub deletes_max: usize,
}

impl Default for CollectionLimits {
    fn default() -> Self {
        Self { versions_kept: 1_000, floor_step: 100, milestones_below: 30_000, deletes_max: 5_000 }
    }
}

impl CollectionLimits {
    fn deletes(&self, version: Version, floor: Version) -> bool {
        let is_kept = is_milestone(version) && version.0.saturating_add(self.milestones_below) > floor.0;
        version <= floor && !is_kept
    }
}

/// What one round did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// The floor as it is now.
    pub floor: Version,
    /// Objects deleted.
    pub deleted: usize,
}

impl Manifest {
    /// One round of collection: moves the floor if that is worth a version, and deletes what lies at or
    /// below it. `oldest_needed` is the oldest version that somebody still reads; it stays.
    ///
    /// # Errors
    /// `StaleEpoch` when this handle is not the writer; `ManifestCorrupt` when the checkpoint that the
    /// past would rest on cannot be read (nothing was deleted then); the store's.
    pub async fn collect(&self, limits: &CollectionLimits, oldest_needed: Version) -> Result<Collected> {
        let own_epoch = self.own_epoch().ok_or_else(|| {
            Error::new(
                ErrorCode::StaleEpoch,
                "this process has not taken over the cluster and may not collect versions",
            )
        })?;
        if let Some(floor) = self.next_floor(limits, oldest_needed).await? {
            self.move_floor(floor, own_epoch).await?;
        }
        self.delete_collected(limits).await
    }

    /// The highest floor that all rules allow, if moving there is worth a version.
    async fn next_floor(&self, limits: &CollectionLimits, oldest_needed: Version) -> Result<Option<Version>> {
        let head = self.head();
        let worth = head.gc_floor.0.saturating_add(limits.floor_step.max(1));
        let kept = head.version().0.saturating_sub(limits.versions_kept);
        let allowed = kept.min(oldest_needed.0.saturating_sub(1));
        if allowed < worth {
            return Ok(None);
        }
        let checkpoints = self.store.list(names::CHECKPOINTS).await?;
        // Newer names sort first. The newest alone is no base: it may turn out to be unreadable.
        let base = checkpoints.iter().filter_map(|name| names::parse(name)).nth(CHECKPOINTS_KEPT - 1);
        let floor = allowed.min(base.unwrap_or_default().0);
        Ok((floor >= worth).then_some(Version(floor)))
    }

    async fn move_floor(&self, floor: Version, own_epoch: Epoch) -> Result<()> {
        self.check_base(floor).await?;
        let transaction = self.new_transaction();
        let make = |_: &Snapshot| Ok(Change { actions: Vec::new(), gc_floor: floor });
        match self.commit_with(transaction, Some(own_epoch), &make).await? {
            Commit::Committed(_) => Ok(()),
            // Nothing is deleted before it is known.
            Commit::Unknown(cause) => Err(self.in_doubt("moving the collection floor", transaction, cause)),
        }
    }

    /// Reads the oldest checkpoint at or above `floor`: once older versions are gone, it may be all
    /// that is left to start from.
    async fn check_base(&self, floor: Version) -> Result<()> {
        let checkpoints = self.store.list(names::CHECKPOINTS).await?;
        let above = checkpoints.iter().filter_map(|name| names::parse(name)).filter(|version| *version >= floor);
        let corrupt = |what: String| {
            Error::new(ErrorCode::ManifestCorrupt, format!("old versions cannot be collected: {what}"))
                .hint("they stay until the next checkpoints are written; look at the store")
        };
        let base = above.min().ok_or_else(|| corrupt(format!("no checkpoint is at or above version {floor}")))?;
        let gone = |name: &str| corrupt(format!("object {name} of the manifest is missing"));
        let name = names::checkpoint(base);
        let checkpoint = self.store.get(&name).await?.ok_or_else(|| gone(&name))?;
        // It holds the statistics of every segment: too much work for a thread of the network.
        let head = run_blocking(move || Head::from_checkpoint(base, &checkpoint)).await;
        let head = head.ok_or_else(|| Error::internal("reading a checkpoint panicked or was stopped"))??;
        let version_name = names::version(base);
        let version = self.store.get(&version_name).await?.ok_or_else(|| gone(&version_name))?;
        if head.is_of(&version) {
            Ok(())
        } else {
            Err(corrupt(format!("checkpoint {name} is of another version {base}")))
        }
    }

    /// Deletes objects at or below the floor that is committed, oldest first.
    async fn delete_collected(&self, limits: &CollectionLimits) -> Result<Collected> {
        let floor = self.head().gc_floor;
        if self.swept.load(Ordering::Relaxed) >= floor.0 {
            return Ok(Collected { floor, deleted: 0 });
        }
        let listed = self.store.list(names::VERSIONS).await?;
        let is_old = |name: &&String| names::parse(name).is_some_and(|version| limits.deletes(version, floor));
        // Newer names sort first.
        let old: Vec<String> = listed.iter().rev().filter(is_old).take(limits.deletes_max).cloned().collect();
        if !old.is_empty() {
            self.store.delete_all(&old).await?;
        }
        if old.len() < limits.deletes_max {
            self.swept.fetch_max(floor.0, Ordering::Relaxed);
        }
        Ok(Collected { floor, deleted: old.len() })
    }
}
