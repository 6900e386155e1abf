//! One commit, until it is decided or the deadline passes. The picture is in [`super`].

use std::sync::Arc;

use aubade_environment::Deadline;
use aubade_environment::clock::timeout;
use aubade_proto::{Epoch, Error, ErrorCode, Result, TransactionId, Version};
use bytes::Bytes;

use super::head::{Head, Prepared};
use super::{COMMIT_TIMEOUT, Commit, Manifest};
use crate::action::Action;
use crate::backoff::Backoff;
use crate::snapshot::Snapshot;
use crate::store::{PutOutcome, REQUEST_TIMEOUT};

/// What a version changes against its parent.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) actions: Vec<Action>,
    /// The collection floor, where that is higher than the parent's.
    pub(super) gc_floor: Version,
}

impl From<Vec<Action>> for Change {
    fn from(actions: Vec<Action>) -> Self {
        Self { actions, gc_floor: Version(0) }
    }
}

/// Makes the change of a commit for the state that it is applied to.
type Make<'a> = &'a (dyn Fn(&Snapshot) -> Result<Change> + Send + Sync);

/// Whose object stands under the name of a version.
enum Put {
    Mine,
    Others,
    /// The store refused, and no earlier try of the same name is in doubt.
    Refused(Error),
    Unknown(Error),
}

/// Whether an object that was made is part of the newest chain.
enum Survival {
    Stands,
    /// It is a stray: the chain has passed its name long ago.
    Stray,
    Unknown(Error),
}

impl Manifest {
    /// Commits what `make` gives; refuses when a higher epoch than `own_epoch` stands.
    pub(super) async fn commit_with(
        &self,
        transaction: TransactionId,
        own_epoch: Option<Epoch>,
        make: Make<'_>,
    ) -> Result<Commit> {
        let _turn = self.turn.lock().await;
        let deadline = Deadline::after(self.environment.clock.as_ref(), COMMIT_TIMEOUT);
        // The caller tries a transaction again whose first try may yet have landed, long ago even.
        let tried = self.attempts.lock().version_of(transaction);
        if let Some(version) = tried {
            match self.became_version(transaction, version).await {
                Ok(false) => {}
                Ok(true) => return Ok(self.found(transaction)),
                Err(error) => return Ok(Commit::Unknown(error)),
            }
        }
        loop {
            let head = self.head();
            if head.mark(transaction).is_some() {
                return Ok(self.found(transaction));
            }
            // Invariant: at most one name is ever in doubt, that of the version after the head.
            let in_doubt = tried.is_some_and(|version| version > head.version());
            let prepared = match self.prepare(&head, transaction, own_epoch, make) {
                Ok(prepared) => prepared,
                Err(error) if in_doubt => return Ok(Commit::Unknown(error)),
                Err(error) => return Err(self.lost(transaction, error)),
            };
            self.attempts.lock().note(transaction, prepared.head.version());
            match self.put(&prepared, &deadline, in_doubt).await {
                Put::Mine => match self.survives(&prepared, transaction, &deadline).await {
                    Survival::Stands => {
                        self.attempts.lock().forget(transaction);
                        let snapshot = Arc::clone(&prepared.head.snapshot);
                        self.install(prepared.head);
                        return Ok(Commit::Committed(snapshot));
                    }
                    Survival::Stray => {}
                    Survival::Unknown(error) => return Ok(Commit::Unknown(error)),
                },
                Put::Others => match self.catch_up(&deadline).await {
                    // Whoever is there now may have made a stray where a try of ours had landed.
                    Ok(()) => match self.is_named(transaction, prepared.head.version()).await {
                        Ok(false) => {}
                        Ok(true) => return Ok(self.found(transaction)),
                        Err(error) => return Ok(Commit::Unknown(error)),
                    },
                    // An object that nobody can read may even be ours, damaged.
                    Err(error) if in_doubt || error.code() == ErrorCode::ManifestCorrupt => {
                        return Ok(Commit::Unknown(error));
                    }
                    Err(error) => return Err(self.lost(transaction, error)),
                },
                Put::Refused(error) => return Err(self.lost(transaction, error)),
                Put::Unknown(error) => return Ok(Commit::Unknown(error)),
            }
            if self.head().mark(transaction).is_none() && deadline.is_past(self.environment.clock.as_ref()) {
                let message = format!("transaction {transaction} lost to other writers until its deadline");
                return Err(self.lost(transaction, Error::new(ErrorCode::Conflict, message)));
            }
        }
    }

    /// Whether a transaction that was last tried at `version` is in the newest chain.
    async fn became_version(&self, transaction: TransactionId, version: Version) -> Result<bool> {
        self.refresh().await?;
        self.is_named(transaction, version).await
    }

    /// Whether the chain as it is known names the transaction, which is not older than `version`. Costs
    /// no request where the newest version's history reaches back so far.
    async fn is_named(&self, transaction: TransactionId, version: Version) -> Result<bool> {
        let head = self.head();
        let in_chain = self.is_in_chain(&head, transaction, version).await?;
        in_chain.ok_or_else(|| no_longer_shown(transaction, version))
    }

    /// The transaction is in the chain.
    fn found(&self, transaction: TransactionId) -> Commit {
        self.attempts.lock().forget(transaction);
        Commit::Committed(self.snapshot())
    }

    /// Notes that nothing of the transaction was committed or will be.
    fn lost(&self, transaction: TransactionId, error: Error) -> Error {
        self.attempts.lock().forget(transaction);
        error
    }

    fn prepare(
        &self,
        head: &Head,
        transaction: TransactionId,
        own_epoch: Option<Epoch>,
        make: Make<'_>,
    ) -> Result<Prepared> {
        let newest = head.snapshot.epoch;
        if let Some(own) = own_epoch
            && newest > own
        {
            let message = format!("another coordinator has taken over with epoch {newest}; this one has epoch {own}");
            return Err(Error::new(ErrorCode::StaleEpoch, message).hint("stop this coordinator and use the other one"));
        }
        head.prepare(transaction, self.writer, &make(&head.snapshot)?)
    }

    /// Creates the object, however often the store fails to say what happened.
    async fn put(&self, prepared: &Prepared, deadline: &Deadline, mut in_doubt: bool) -> Put {
        let mut backoff = Backoff::new(&self.environment);
        loop {
            let mut problem = match self.create_object(&prepared.name, &prepared.object).await {
                PutOutcome::Created => return Put::Mine,
                PutOutcome::AlreadyExists => {
                    let message = format!("{} was said to exist, and does not", prepared.name);
                    Error::new(ErrorCode::StoreUnavailable, message)
                }
                PutOutcome::Refused(error) if !in_doubt => return Put::Refused(error),
                PutOutcome::Refused(error) => error,
                PutOutcome::Unknown(error) => {
                    in_doubt = true;
                    error
                }
            };
            match self.get_object(&prepared.name).await {
                Ok(Some(object)) if object == prepared.object => return Put::Mine,
                Ok(Some(_)) => return Put::Others,
                // It may still land: the same bytes under the same name can only help it.
                Ok(None) => {}
                // Told that it exists, and cannot look: it may be ours, by a retry further down.
                Err(error) => {
                    in_doubt = true;
                    problem = error;
                }
            }
            if deadline.is_past(self.environment.clock.as_ref()) {
                // Even "exists" without an object can hide a try of ours that is still on its way.
                return Put::Unknown(problem);
            }
            tracing::debug!(name = prepared.name, error = %problem.chain(), "the store did not say whether a version was made; asking again");
            backoff.pause().await;
        }
    }

    async fn create_object(&self, name: &str, object: &Bytes) -> PutOutcome {
        let creating = self.store.create(name, object.clone());
        match timeout(self.environment.clock.as_ref(), REQUEST_TIMEOUT, creating).await {
            Some(outcome) => outcome,
            None => PutOutcome::Unknown(self.no_answer(name)),
        }
    }

    async fn get_object(&self, name: &str) -> Result<Option<Bytes>> {
        let reading = self.store.get(name);
        match timeout(self.environment.clock.as_ref(), REQUEST_TIMEOUT, reading).await {
            Some(found) => found,
            None => Err(self.no_answer(name)),
        }
    }

    fn no_answer(&self, name: &str) -> Error {
        let message = format!("{} did not answer for {name} within {REQUEST_TIMEOUT:?}", self.store.location());
        Error::new(ErrorCode::StoreUnavailable, message)
    }

    /// Goes to the newest version, which is at least the one that was in the way.
    async fn catch_up(&self, deadline: &Deadline) -> Result<()> {
        let mut backoff = Backoff::new(&self.environment);
        loop {
            match self.refresh().await {
                Ok(_) => return Ok(()),
                Err(error) if error.code() == ErrorCode::ManifestCorrupt => return Err(error),
                Err(error) if deadline.is_past(self.environment.clock.as_ref()) => return Err(error),
                Err(_) => backoff.pause().await,
            }
        }
    }

    /// Looks whether the chain went past the name while this writer slept: then the name had been
    /// collected, and what was made under it is a stray. Versions are collected only below a
    /// checkpoint that stays, so the short list of checkpoints is proof. Where the chain did go past,
    /// the transactions that it names tell; if they no longer reach back so far, nobody knows.
    async fn survives(&self, prepared: &Prepared, transaction: TransactionId, deadline: &Deadline) -> Survival {
        let mut backoff = Backoff::new(&self.environment);
        loop {
            match self.check_survival(prepared, transaction).await {
                Ok(Some(true)) => return Survival::Stands,
                Ok(Some(false)) => return Survival::Stray,
                Ok(None) => return Survival::Unknown(no_longer_shown(transaction, prepared.head.version())),
                Err(error) if deadline.is_past(self.environment.clock.as_ref()) => return Survival::Unknown(error),
                Err(_) => backoff.pause().await,
            }
        }
    }

    async fn check_survival(&self, prepared: &Prepared, transaction: TransactionId) -> Result<Option<bool>> {
        let newest_checkpoint = self.newest_checkpoint().await?;
        if newest_checkpoint <= prepared.head.version() {
            return Ok(Some(true));
        }
        let found = super::discover::discover(self.store.as_ref()).await?.head;
        let stands = self.is_in_chain(&found, transaction, prepared.head.version()).await?;
        self.install(found);
        Ok(stands)
    }
}

fn no_longer_shown(transaction: TransactionId, version: Version) -> Error {
    let message = format!("the manifest no longer shows whether version {version} was transaction {transaction}");
    Error::new(ErrorCode::StoreUnavailable, message)
}
