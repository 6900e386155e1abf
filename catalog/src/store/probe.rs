//! The start-up probe: a store that cannot create an object only if it is absent, or does not show
//! what was created, is refused before anything is trusted to it.
//!
//! A store that fails now and then is no unsafe one: every step is tried again until its answer says
//! something, or the patience is over.

use std::time::Duration;

use aubade_environment::clock::timeout;
use aubade_environment::{Deadline, Environment};
use aubade_proto::{Error, ErrorCode, Result};
use bytes::Bytes;

use super::{ManifestStore, PutOutcome, REQUEST_TIMEOUT, UNSAFE_HINT};
use crate::backoff::{Backoff, ride_out};

/// The folder of probe objects; each probe removes its own.
const FOLDER: &str = "p";
/// Time after which a store that does not answer is given up.
const PATIENCE: Duration = Duration::from_secs(20);
const FIRST: Bytes = Bytes::from_static(b"first");
const SECOND: Bytes = Bytes::from_static(b"second");

/// Creates an object, creates it again (which must fail), reads it and lists it.
///
/// # Errors
/// `StoreUnsafe` with the rule that the store breaks; the store's own error when it refuses, or does
/// not answer for some 20 seconds.
pub async fn probe(environment: &Environment, store: &dyn ManifestStore) -> Result<()> {
    let name = format!("{FOLDER}/{:032x}", environment.random.next_u128());
    let deadline = Deadline::after(environment.clock.as_ref(), PATIENCE);
    let mut probe = Probe { environment, store, name, deadline, may_exist: false };
    let result = probe.run().await;
    if probe.may_exist
        && let Err(error) = probe.answered(store.delete(&probe.name)).await
    {
        tracing::warn!(error = %error.chain(), name = probe.name, "a probe object stays behind");
    }
    result
}

struct Probe<'a> {
    environment: &'a Environment,
    store: &'a dyn ManifestStore,
    name: String,
    deadline: Deadline,
    /// Whether the object was made, or may have been, and has to be cleaned up.
    may_exist: bool,
}

impl Probe<'_> {
    async fn run(&mut self) -> Result<()> {
        if self.read().await?.is_some() {
            return Err(self.unsafe_store("it returns objects that nobody made"));
        }
        self.create_new().await?;
        self.create_taken().await?;
        if self.read().await? != Some(FIRST) {
            return Err(self.unsafe_store("it does not return what was created"));
        }
        let listed = ride_out(self.environment, &self.deadline, || self.answered(self.store.list(FOLDER))).await?;
        if !listed.contains(&self.name) {
            return Err(self.unsafe_store("it does not list what was created"));
        }
        Ok(())
    }

    /// Makes the object. Whatever the answer was: once it is there with these bytes, this made it.
    async fn create_new(&mut self) -> Result<()> {
        let mut backoff = Backoff::new(self.environment);
        loop {
            let outcome = self.create(FIRST).await;
            self.may_exist |= !matches!(outcome, PutOutcome::Refused(_));
            let problem = match outcome {
                PutOutcome::Created => return Ok(()),
                PutOutcome::Refused(error) => return Err(error),
                PutOutcome::Unknown(error) => error,
                PutOutcome::AlreadyExists => self.unsafe_store("it says that a new name exists"),
            };
            match self.read().await? {
                Some(found) if found == FIRST => return Ok(()),
                Some(_) => return Err(self.unsafe_store("it does not return what was created")),
                None if self.is_over() => return Err(problem),
                None => backoff.pause().await,
            }
        }
    }

    /// Tries to make it again with other bytes, until the store says that it exists.
    async fn create_taken(&self) -> Result<()> {
        let mut backoff = Backoff::new(self.environment);
        loop {
            let problem = match self.create(SECOND).await {
                PutOutcome::AlreadyExists => return Ok(()),
                PutOutcome::Created => return Err(self.unsafe_store("it creates an object over another one")),
                PutOutcome::Refused(error) => return Err(error),
                PutOutcome::Unknown(error) => error,
            };
            match self.read().await? {
                Some(found) if found == SECOND => {
                    return Err(self.unsafe_store("it creates an object over another one"));
                }
                _ if self.is_over() => return Err(problem),
                _ => backoff.pause().await,
            }
        }
    }

    async fn create(&self, bytes: Bytes) -> PutOutcome {
        let creating = async { Ok(self.store.create(&self.name, bytes).await) };
        self.answered(creating).await.unwrap_or_else(PutOutcome::Unknown)
    }

    async fn read(&self) -> Result<Option<Bytes>> {
        ride_out(self.environment, &self.deadline, || self.answered(self.store.get(&self.name))).await
    }

    async fn answered<T>(&self, request: impl Future<Output = Result<T>>) -> Result<T> {
        let answer = timeout(self.environment.clock.as_ref(), REQUEST_TIMEOUT, request).await;
        answer.unwrap_or_else(|| {
            let message = format!("{} did not answer within {REQUEST_TIMEOUT:?}", self.store.location());
            Err(Error::new(ErrorCode::StoreUnavailable, message).hint("check that it can be reached from here"))
        })
    }

    fn is_over(&self) -> bool {
        self.deadline.is_past(self.environment.clock.as_ref())
    }

    fn unsafe_store(&self, broken: &str) -> Error {
        let message = format!("{} cannot keep a manifest safely: {broken}", self.store.location());
        Error::new(ErrorCode::StoreUnsafe, message).hint(UNSAFE_HINT)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_trait::async_trait;

    use super::*;
    use crate::fast_clock;
    use crate::store::{MemoryStore, PutScript, ScriptedStore};

    /// A store without create-if-absent, whose answers can be lost.
    #[derive(Debug, Default)]
    struct Overwriting {
        objects: MemoryStore,
        silent: bool,
    }

    #[async_trait]
    impl ManifestStore for Overwriting {
        fn location(&self) -> String {
            "old-store".to_owned()
        }

        async fn create(&self, name: &str, bytes: Bytes) -> PutOutcome {
            self.objects.overwrite(name, bytes);
            if self.silent {
                PutOutcome::Unknown(Error::new(ErrorCode::StoreUnavailable, "the answer was lost"))
            } else {
                PutOutcome::Created
            }
        }

        async fn get(&self, name: &str) -> Result<Option<Bytes>> {
            self.objects.get(name).await
        }

        async fn list(&self, folder: &str) -> Result<Vec<String>> {
            self.objects.list(folder).await
        }

        async fn delete(&self, name: &str) -> Result<()> {
            self.objects.delete(name).await
        }
    }

    fn scripted() -> (MemoryStore, ScriptedStore) {
        let memory = MemoryStore::default();
        (memory.clone(), ScriptedStore::new(Arc::new(memory)))
    }

    #[tokio::test]
    async fn a_store_that_overwrites_is_refused_by_name() {
        for silent in [false, true] {
            let store = Overwriting { silent, ..Overwriting::default() };
            let error = probe(&fast_clock::environment(), &store).await.unwrap_err();
            assert_eq!(error.code(), ErrorCode::StoreUnsafe);
            assert!(error.message().contains("old-store") && error.message().contains("over another one"), "{error}");
            assert!(store.objects.list(FOLDER).await.unwrap().is_empty());
        }
    }

    #[tokio::test]
    async fn a_good_store_passes_and_keeps_nothing_of_it() {
        let store = MemoryStore::default();
        probe(&Environment::system(), &store).await.unwrap();
        assert!(store.list(FOLDER).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_store_that_fails_now_and_then_passes_and_keeps_nothing_of_it() {
        use PutScript::{ConflictWithoutObject, Honest, Late, LostReply, Never, Twice, Unavailable};
        for script in [
            vec![Unavailable],
            vec![Unavailable, Unavailable, Unavailable],
            vec![LostReply],
            vec![Twice],
            vec![Never],
            vec![Late(2)],
            vec![ConflictWithoutObject],
            vec![Honest, Unavailable],
            vec![Honest, LostReply],
            vec![LostReply, Never, LostReply],
        ] {
            for failing_reads in [0, 1, 4] {
                let (memory, store) = scripted();
                store.script(script.clone());
                store.fail_reads(failing_reads);
                let probed = probe(&fast_clock::environment(), &store).await;
                assert!(probed.is_ok(), "{script:?} {failing_reads}: {probed:?}");
                assert!(memory.list(FOLDER).await.unwrap().is_empty(), "{script:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_store_that_never_answers_is_given_up_and_what_was_not_made_is_not_removed() {
        let (_, store) = scripted();
        store.fail_reads(usize::MAX);
        let error = probe(&fast_clock::environment(), &store).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::StoreUnavailable);
        assert!(store.creates().is_empty() && store.deletes().is_empty());

        let (_, store) = scripted();
        store.always(Some(PutScript::Forbidden));
        let error = probe(&fast_clock::environment(), &store).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::PermissionDenied);
        assert!(store.deletes().is_empty());
    }

    #[tokio::test]
    async fn writes_that_never_succeed_end_and_are_cleaned_up() {
        for (script, code) in [
            (PutScript::Unavailable, ErrorCode::StoreUnavailable),
            (PutScript::Never, ErrorCode::StoreUnavailable),
            (PutScript::ConflictWithoutObject, ErrorCode::StoreUnsafe),
        ] {
            let (_, store) = scripted();
            store.always(Some(script));
            let error = probe(&fast_clock::environment(), &store).await.unwrap_err();
            assert_eq!(error.code(), code, "{script:?}: {error}");
            assert_eq!(store.deletes().len(), 1, "what may yet appear is removed");
        }
    }
}
