//! The start-up probe: a store that cannot create an object only if it is absent, or does not show
//! what was created, is refused before anything is trusted to it.

use aubade_environment::Environment;
use aubade_proto::{Error, ErrorCode, Result};
use bytes::Bytes;

use super::{ManifestStore, PutOutcome};

/// The folder of probe objects; each probe removes its own.
const FOLDER: &str = "p";

/// Creates an object, creates it again (which must fail), reads it and lists it.
///
/// # Errors
/// `StoreUnsafe` with the rule that the store breaks; the store's own error when it does not answer.
pub async fn probe(environment: &Environment, store: &dyn ManifestStore) -> Result<()> {
    let name = format!("{FOLDER}/{:032x}", environment.random.next_u128());
    let result = run(store, &name).await;
    if let Err(error) = store.delete(&name).await {
        tracing::warn!(error = %error.chain(), name, "a probe object stays behind");
    }
    result
}

async fn run(store: &dyn ManifestStore, name: &str) -> Result<()> {
    let (first, second) = (Bytes::from_static(b"first"), Bytes::from_static(b"second"));
    if store.get(name).await?.is_some() {
        return Err(unsafe_store(store, "it returns objects that nobody made"));
    }
    match store.create(name, first.clone()).await {
        PutOutcome::Created => {}
        PutOutcome::AlreadyExists => return Err(unsafe_store(store, "it says that a new name exists")),
        PutOutcome::Refused(error) | PutOutcome::Unknown(error) => return Err(error),
    }
    match store.create(name, second).await {
        PutOutcome::AlreadyExists => {}
        PutOutcome::Created => return Err(unsafe_store(store, "it creates an object over another one")),
        PutOutcome::Refused(error) | PutOutcome::Unknown(error) => return Err(error),
    }
    if store.get(name).await? != Some(first) {
        return Err(unsafe_store(store, "it does not return what was created"));
    }
    if !store.list(FOLDER).await?.iter().any(|found| found == name) {
        return Err(unsafe_store(store, "it does not list what was created"));
    }
    Ok(())
}

fn unsafe_store(store: &dyn ManifestStore, broken: &str) -> Error {
    Error::new(ErrorCode::StoreUnsafe, format!("{} cannot keep a manifest safely: {broken}", store.location()))
        .hint("use a local folder, or an object store with conditional writes (If-None-Match)")
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::store::MemoryStore;

    /// A store without create-if-absent.
    #[derive(Debug, Default)]
    struct Overwriting(MemoryStore);

    #[async_trait]
    impl ManifestStore for Overwriting {
        fn location(&self) -> String {
            "old-store".to_owned()
        }

        async fn create(&self, name: &str, bytes: Bytes) -> PutOutcome {
            self.0.overwrite(name, bytes);
            PutOutcome::Created
        }

        async fn get(&self, name: &str) -> Result<Option<Bytes>> {
            self.0.get(name).await
        }

        async fn list(&self, folder: &str) -> Result<Vec<String>> {
            self.0.list(folder).await
        }

        async fn delete(&self, name: &str) -> Result<()> {
            self.0.delete(name).await
        }
    }

    #[tokio::test]
    async fn a_store_that_overwrites_is_refused_by_name() {
        let error = probe(&Environment::system(), &Overwriting::default()).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::StoreUnsafe);
        assert!(error.message().contains("old-store") && error.message().contains("over another one"), "{error}");
    }

    #[tokio::test]
    async fn a_good_store_passes_and_keeps_nothing_of_it() {
        let store = MemoryStore::default();
        probe(&Environment::system(), &store).await.unwrap();
        assert!(store.list(FOLDER).await.unwrap().is_empty());
    }
}
