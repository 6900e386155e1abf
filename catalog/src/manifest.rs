//! Versions of the cluster, made one after the other by create-if-absent.
//!
//! Version `v` is the object `m/<u64::MAX - v>`: a name depends on nothing but the number, so the
//! first process to create it decides what the version is, for good. Each object names its parent by
//! checksum and carries the id of its transaction, so that a writer whose answer was lost finds out
//! by reading whose object it is. Three outcomes are kept apart: committed, lost (and tried again on
//! top of the winner), unknown. What is unknown is never treated as failed.
//!
//! ```text
//!            create m/v+1 ──Created──────────────────────────┐
//!  head v ──▶     │                                          ▼
//!                 ├─anything else─▶ GET m/v+1 ─my bytes──▶ still on the newest chain? ─▶ Committed
//!                 │                    │    └─others'────▶ advance the head, apply again
//!                 │                    └─absent─▶ pause, same bytes, same name again
//!                 └─refused, and no earlier try is in doubt─▶ error, nothing committed
//!                   deadline passes while in doubt ─▶ Unknown
//! ```
//!
//! Old versions are collected, by the rules in `collect.rs`. A name that was collected is never a
//! version again: whoever makes an object under it finds out by the checkpoints, one of which is always
//! above everything that was collected.
//!
//! Locking: `turn` serialises commits of one process and is held over I/O; `head`, `own_epoch` and
//! `attempts` are short critical sections, never held over an await and never nested. A commit that
//! is dropped half-way leaves an entry in `attempts`, and the head as it was: the next refresh sees
//! what became of it.

mod attempts;
mod checkpoint;
mod codec;
mod collect;
mod commit;
mod discover;
mod find;
mod frame;
mod head;
mod names;
mod register;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use aubade_environment::{Deadline, Environment};
use aubade_proto::{ClusterId, Epoch, Error, ErrorCode, Result, TransactionId};
use parking_lot::Mutex;
use uuid::Uuid;

use crate::action::Action;
use crate::backoff::ride_out;
use crate::quorum::Quorum;
use crate::snapshot::Snapshot;
use crate::store::{ManifestStore, probe};
use attempts::Attempts;
use commit::Change;
use head::Head;

pub use collect::{Collected, CollectionLimits};

/// Time after which a commit that is in doubt is reported as unknown.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(30);
/// Time after which opening, and what has to be read before a commit, gives a silent store up.
const OPEN_PATIENCE: Duration = Duration::from_secs(10);
/// Transactions that every version names, so that "was it committed?" can be answered later.
const HISTORY_MAX: usize = 64;
/// Versions between two checkpoints: bounds what opening has to replay.
const CHECKPOINT_INTERVAL: u64 = 32;
/// Checkpoints that are kept: the newest, and one more in case it cannot be read.
const CHECKPOINTS_KEPT: usize = 2;
/// Objects read at a time while versions are replayed.
const READ_AHEAD: usize = 16;
/// Time after which a refresh that finds nothing new looks at the checkpoints too, in case the
/// names that it asks for were collected long ago: so long may a process that slept through a
/// thousand versions believe that nothing happened. A list per minute costs next to nothing.
const RELIST_INTERVAL: Duration = Duration::from_mins(1);

/// How a commit ended. Errors of other kinds mean that nothing was committed.
#[derive(Clone, Debug)]
pub enum Commit {
    /// The actions are part of this snapshot, for good.
    Committed(Arc<Snapshot>),
    /// The store did not say, until the deadline, whether they are. Nothing that they name may be
    /// deleted; [`Manifest::find`] tells later, and so does committing the same transaction again.
    Unknown(Error),
}

/// A handle on a cluster's manifest. Shared by everything in a process; commits queue up in it.
#[derive(Debug)]
pub struct Manifest {
    environment: Environment,
    store: Arc<dyn ManifestStore>,
    /// Names this handle in the objects that it makes.
    writer: Uuid,
    head: Mutex<Arc<Head>>,
    own_epoch: Mutex<Option<Epoch>>,
    /// Commits of this handle that are not decided yet.
    attempts: Mutex<Attempts>,
    turn: tokio::sync::Mutex<()>,
    /// The newest checkpoint that this handle knows of.
    checkpoint_version: AtomicU64,
    /// When the checkpoints were last listed.
    listed: Mutex<Duration>,
    /// The collection floor below which this handle has left nothing to delete.
    swept: AtomicU64,
}

impl Manifest {
    fn new(environment: Environment, store: Arc<dyn ManifestStore>, head: Head, checkpoint_version: u64) -> Self {
        let listed = environment.clock.now();
        Self {
            writer: environment.new_uuid(),
            environment,
            store,
            head: Mutex::new(Arc::new(head)),
            own_epoch: Mutex::default(),
            attempts: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            checkpoint_version: AtomicU64::new(checkpoint_version),
            listed: Mutex::new(listed),
            swept: AtomicU64::new(0),
        }
    }

    /// Makes a new cluster with version 1 (after the start-up probe of the store).
    ///
    /// # Errors
    /// `ClusterExists`, `StoreUnsafe`, `StoreUnavailable`, `CommitUnknown`.
    pub async fn create(
        environment: Environment,
        store: Arc<dyn ManifestStore>,
        id: ClusterId,
        quorum: Quorum,
    ) -> Result<Self> {
        let exists = {
            let location = store.location();
            move || {
                Error::new(ErrorCode::ClusterExists, format!("there is a cluster at {location} already"))
                    .hint("choose another place, or use the cluster that is there")
            }
        };
        probe(&environment, store.as_ref()).await?;
        let deadline = Deadline::after(environment.clock.as_ref(), OPEN_PATIENCE);
        for folder in [names::VERSIONS, names::CHECKPOINTS] {
            if !ride_out(&environment, &deadline, || store.list(folder)).await?.is_empty() {
                return Err(exists());
            }
        }
        let manifest = Self::new(environment, store, Head::before_everything(id, quorum), 0);
        let transaction = manifest.new_transaction();
        let make = |state: &Snapshot| {
            if state.version.0 > 0 {
                Err(exists())
            } else {
                Ok(Change::from(vec![Action::CreateCluster { id, quorum }]))
            }
        };
        match manifest.commit_with(transaction, None, &make).await? {
            Commit::Committed(_) => Ok(manifest),
            Commit::Unknown(cause) => Err(manifest.in_doubt("making the cluster", transaction, cause)),
        }
    }

    /// Opens the newest version, as a reader. A store that does not answer is asked again for some
    /// ten seconds.
    ///
    /// # Errors
    /// `ClusterNotFound`, `ManifestCorrupt`, `StoreUnavailable`.
    pub async fn open(environment: Environment, store: Arc<dyn ManifestStore>) -> Result<Self> {
        let deadline = Deadline::after(environment.clock.as_ref(), OPEN_PATIENCE);
        let found = ride_out(&environment, &deadline, || discover::discover(store.as_ref())).await?;
        Ok(Self::new(environment, store, found.head, found.checkpoint_version))
    }

    /// The newest version that this process knows of.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.head().snapshot)
    }

    /// Becomes the writer (after the start-up probe of the store): commits an epoch one higher than
    /// any before, and remembers it. Every later [`Manifest::commit`] of this handle is refused once
    /// somebody else has taken over.
    ///
    /// # Errors
    /// As [`Manifest::commit`].
    pub async fn take_over(&self) -> Result<Epoch> {
        probe(&self.environment, self.store.as_ref()).await?;
        self.refresh_patiently().await?;
        let transaction = self.new_transaction();
        let make = |state: &Snapshot| Ok(Change::from(vec![Action::TakeOver(state.epoch.next())]));
        match self.commit_with(transaction, None, &make).await? {
            Commit::Committed(_) => {}
            Commit::Unknown(cause) => return Err(self.in_doubt("taking over the cluster", transaction, cause)),
        }
        let mark = self.head().mark(transaction);
        let mark = mark.ok_or_else(|| Error::internal(format!("transaction {transaction} is not in the history")))?;
        *self.own_epoch.lock() = Some(mark.epoch);
        self.write_checkpoint_if_due().await;
        Ok(mark.epoch)
    }

    /// The epoch that this handle has taken, if any.
    pub fn own_epoch(&self) -> Option<Epoch> {
        *self.own_epoch.lock()
    }

    /// Commits `actions` as one version: applied to the newest state, and applied again to a newer
    /// one whenever somebody else was first. Committing a transaction again that is committed
    /// already changes nothing.
    ///
    /// A handle without an epoch of its own may commit only `RegisterNode` and `RemoveNode`: nodes come and go without
    /// the coordinator, and without taking its epoch from it.
    ///
    /// # Errors
    /// The error of [`Snapshot::apply`] when the actions do not fit the newest state; `StaleEpoch`
    /// when another writer has taken over; the store's own when it refuses. In all cases nothing was
    /// committed.
    pub async fn commit(&self, transaction: TransactionId, actions: Vec<Action>) -> Result<Commit> {
        self.commit_if(transaction, actions, |_| Ok(())).await
    }

    /// As [`Manifest::commit`], if `check` holds for the very state that the actions are applied to, however many
    /// others commit meanwhile.
    ///
    /// # Errors
    /// As [`Manifest::commit`], and those of `check`: nothing was committed.
    pub async fn commit_if(
        &self,
        transaction: TransactionId,
        actions: Vec<Action>,
        check: impl Fn(&Snapshot) -> Result<()> + Send + Sync,
    ) -> Result<Commit> {
        let own_epoch = self.own_epoch();
        check_allowed(own_epoch, &actions)?;
        let make = |state: &Snapshot| check(state).map(|()| Change::from(actions.clone()));
        let commit = self.commit_with(transaction, own_epoch, &make).await?;
        if matches!(commit, Commit::Committed(_)) {
            self.write_checkpoint_if_due().await;
        }
        Ok(commit)
    }

    /// As [`Manifest::refresh`], for those who cannot go on without it.
    async fn refresh_patiently(&self) -> Result<Arc<Snapshot>> {
        let deadline = Deadline::after(self.environment.clock.as_ref(), OPEN_PATIENCE);
        ride_out(&self.environment, &deadline, || self.refresh()).await
    }

    fn head(&self) -> Arc<Head> {
        Arc::clone(&self.head.lock())
    }

    /// Makes `head` the newest, unless a newer one is known by now.
    fn install(&self, head: Head) {
        let mut current = self.head.lock();
        if head.version() > current.version() {
            *current = Arc::new(head);
        }
    }

    fn new_transaction(&self) -> TransactionId {
        TransactionId(uuid::Builder::from_random_bytes(self.environment.random.next_u128().to_be_bytes()).into_uuid())
    }

    fn in_doubt(&self, what: &str, transaction: TransactionId, cause: Error) -> Error {
        let message =
            format!("{} did not say whether {what} (transaction {transaction}) worked", self.store.location());
        Error::new(ErrorCode::CommitUnknown, message).hint("look at the store, then try again").source(cause)
    }
}

fn check_allowed(own_epoch: Option<Epoch>, actions: &[Action]) -> Result<()> {
    for action in actions {
        match action {
            Action::RegisterNode(_) | Action::RemoveNode(_) => {}
            Action::CreateCluster { .. } | Action::TakeOver(_) => {
                let message = "clusters are made and taken over by operations of their own";
                return Err(Error::new(ErrorCode::InvalidArgument, message));
            }
            Action::CreateSchema(_)
            | Action::DropSchema(_)
            | Action::CreateRelation(_)
            | Action::DropRelation(_)
            | Action::AddSegments(_)
            | Action::AddReplica { .. }
            | Action::RemoveReplica { .. } => {
                if own_epoch.is_none() {
                    let message = "this process has not taken over the cluster and may not change it";
                    return Err(Error::new(ErrorCode::StaleEpoch, message).hint("changes go through the coordinator"));
                }
            }
        }
    }
    Ok(())
}
