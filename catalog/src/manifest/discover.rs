//! Finding the newest version: from nothing, or forward from one that is known.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use aubade_proto::{ClusterId, Error, ErrorCode, Result, Version};
use futures::{StreamExt, TryStreamExt, stream};
use uuid::Uuid;

use super::head::Head;
use super::{Manifest, READ_AHEAD, RELIST_INTERVAL, names};
use crate::quorum::Quorum;
use crate::snapshot::Snapshot;
use crate::store::ManifestStore;

/// The newest version, and the checkpoint that it was reached from.
pub(super) struct Discovered {
    pub(super) head: Head,
    pub(super) checkpoint_version: u64,
}

/// Times that the store is listed anew, where objects go away while they are read: others write
/// checkpoints and collect what lies below them.
const DISCOVERIES_MAX: usize = 5;

/// Lists the store and replays the versions since the newest checkpoint that can be read; one that
/// cannot is passed over for an older one, and in the end for version 1.
///
/// # Errors
/// `ClusterNotFound`, `ManifestCorrupt`, `StoreUnavailable`.
pub(super) async fn discover(store: &dyn ManifestStore) -> Result<Discovered> {
    let mut tries = 0;
    loop {
        tries += 1;
        let mut checkpoints = Vec::new();
        match discover_once(store, &mut checkpoints).await {
            Err(error) if error.code() == ErrorCode::ManifestCorrupt && tries < DISCOVERIES_MAX => {
                // Not corrupt, only overtaken?
                if store.list(names::CHECKPOINTS).await? == checkpoints {
                    return Err(error);
                }
            }
            result => return result,
        }
    }
}

/// Leaves the names of the checkpoints that it chose from in `checkpoints`.
async fn discover_once(store: &dyn ManifestStore, checkpoints: &mut Vec<String>) -> Result<Discovered> {
    let newest = newest_version(store, names::VERSIONS).await?;
    *checkpoints = store.list(names::CHECKPOINTS).await?;
    let Some(newest) = newest else {
        if !checkpoints.is_empty() {
            let message = format!("{} has checkpoints of a manifest and no versions", store.location());
            return Err(Error::new(ErrorCode::ManifestCorrupt, message).hint("restore the folder m/ from a backup"));
        }
        return Err(Error::new(ErrorCode::ClusterNotFound, format!("there is no cluster at {}", store.location()))
            .hint("make one with `aubade cluster init`, or check the place"));
    };
    let mut first_error = None;
    // Newer names sort first.
    for version in checkpoints.iter().filter_map(|name| names::parse(name)) {
        match from_checkpoint(store, version, newest).await {
            Ok(head) => return Ok(Discovered { head, checkpoint_version: version.0 }),
            Err(error) if error.code() == ErrorCode::ManifestCorrupt => {
                tracing::warn!(error = %error.chain(), checkpoint = version.0, "a checkpoint is passed over");
                first_error.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    let nothing = Head::before_everything(ClusterId(Uuid::nil()), Quorum::for_copies(1)?);
    match replay(store, nothing, newest).await {
        Ok(head) => Ok(Discovered { head, checkpoint_version: 0 }),
        Err(error) if error.code() == ErrorCode::ManifestCorrupt => Err(first_error.unwrap_or(error)),
        Err(error) => Err(error),
    }
}

/// The newest version that a folder holds an object of.
///
/// # Errors
/// The store's.
pub(super) async fn newest_version(store: &dyn ManifestStore, folder: &str) -> Result<Option<Version>> {
    Ok(store.list(folder).await?.iter().filter_map(|name| names::parse(name)).max())
}

async fn from_checkpoint(store: &dyn ManifestStore, version: Version, newest: Version) -> Result<Head> {
    let name = names::checkpoint(version);
    let object = store.get(&name).await?.ok_or_else(|| missing(store, &name))?;
    let head = Head::from_checkpoint(version, &object)?;
    // The next version proves by its parent that the checkpoint is of this chain; where there is
    // none yet, the version itself does.
    if version >= newest
        && let Some(object) = store.get(&names::version(version)).await?
        && !head.is_of(&object)
    {
        let message = format!("checkpoint {name} is not of version {version} as it stands");
        return Err(Error::new(ErrorCode::ManifestCorrupt, message));
    }
    replay(store, head, newest).await
}

/// Replays up to the version `newest`, which must exist with all between, and on to the end.
async fn replay(store: &dyn ManifestStore, base: Head, newest: Version) -> Result<Head> {
    let read = |version: u64| async move {
        let name = names::version(Version(version));
        store.get(&name).await?.ok_or_else(|| missing(store, &name))
    };
    let listed = base.version().0.saturating_add(1)..=newest.0;
    let head = stream::iter(listed)
        .map(read)
        .buffered(READ_AHEAD)
        .try_fold(base, |head, object| async move { head.advance(&object) })
        .await?;
    probe_forward(store, head).await
}

fn missing(store: &dyn ManifestStore, name: &str) -> Error {
    Error::new(ErrorCode::ManifestCorrupt, format!("object {name} of the manifest is missing at {}", store.location()))
        .hint("restore it from a backup or an older version of the bucket")
}

/// Follows the chain to its end.
///
/// # Errors
/// `ManifestCorrupt`, `StoreUnavailable`.
pub(super) async fn probe_forward(store: &dyn ManifestStore, mut head: Head) -> Result<Head> {
    while let Some(object) = store.get(&names::version(head.version().next())).await? {
        head = head.advance(&object)?;
    }
    Ok(head)
}

impl Manifest {
    /// Looks for newer versions and returns the newest.
    ///
    /// # Errors
    /// `ManifestCorrupt`, `StoreUnavailable`.
    pub async fn refresh(&self) -> Result<Arc<Snapshot>> {
        let known = self.head();
        let store = self.store.as_ref();
        let found = match probe_forward(store, known.as_ref().clone()).await {
            Ok(found) if found.version() == known.version() && !self.relist_is_due() => return Ok(self.snapshot()),
            Ok(found) => found,
            // An object that does not follow may be a stray under a name that was collected: the
            // list tells. One that cannot be read at all stays an error, unless it was passed by.
            Err(error) if error.code() == ErrorCode::ManifestCorrupt => return self.rediscover(error).await,
            Err(error) => return Err(error),
        };
        // A stray may also follow well, while the chain has moved on: then there is a checkpoint
        // above it, since versions are collected only below one.
        let newest_checkpoint = self.newest_checkpoint().await?;
        if newest_checkpoint > found.version() {
            let message = format!("version {newest_checkpoint} has a checkpoint and cannot be reached");
            return self.rediscover(Error::new(ErrorCode::ManifestCorrupt, message)).await;
        }
        self.install(found);
        Ok(self.snapshot())
    }

    /// Starts from the list again; `cause` is the error when that finds nothing newer.
    pub(super) async fn rediscover(&self, cause: Error) -> Result<Arc<Snapshot>> {
        let found = discover(self.store.as_ref()).await?;
        let known = self.head();
        if known.version() > Version(0) && found.head.snapshot.cluster_id != known.snapshot.cluster_id {
            let message = format!("another cluster stands at {} by now", self.store.location());
            return Err(Error::new(ErrorCode::WrongCluster, message));
        }
        if found.head.version() <= known.version() {
            return Err(cause);
        }
        self.install(found.head);
        Ok(self.snapshot())
    }

    fn relist_is_due(&self) -> bool {
        self.environment.clock.now().saturating_sub(*self.listed.lock()) >= RELIST_INTERVAL
    }

    /// The version of the newest checkpoint; 0 when there is none.
    pub(super) async fn newest_checkpoint(&self) -> Result<Version> {
        let newest = newest_version(self.store.as_ref(), names::CHECKPOINTS).await?.unwrap_or_default();
        *self.listed.lock() = self.environment.clock.now();
        self.checkpoint_version.fetch_max(newest.0, Ordering::Relaxed);
        Ok(newest)
    }
}
