//! One suite for every store: small named checks, each on fresh names, that panic with what is
//! wrong. Public, so that stores of other crates can run it.

use bytes::Bytes;

use super::{ManifestStore, PutOutcome};

/// Runs every check on an empty store.
///
/// # Panics
/// When the store breaks a rule.
pub async fn check_all(store: &dyn ManifestStore) {
    created_objects_are_read_back(store).await;
    a_taken_name_is_never_overwritten(store).await;
    absent_names_are_none(store).await;
    lists_are_sorted_and_keep_to_their_folder(store).await;
    deleting_is_idempotent(store).await;
    many_are_deleted_and_others_stay(store).await;
    of_many_creators_one_wins(store).await;
}

async fn created(store: &dyn ManifestStore, name: &str, bytes: &'static [u8]) {
    let outcome = store.create(name, Bytes::from_static(bytes)).await;
    assert!(matches!(outcome, PutOutcome::Created), "{name}: {outcome:?}");
}

async fn read(store: &dyn ManifestStore, name: &str) -> Option<Bytes> {
    match store.get(name).await {
        Ok(found) => found,
        Err(error) => panic!("{name}: {error:?}"),
    }
}

async fn listed(store: &dyn ManifestStore, folder: &str) -> Vec<String> {
    match store.list(folder).await {
        Ok(names) => names,
        Err(error) => panic!("{folder}: {error:?}"),
    }
}

async fn delete(store: &dyn ManifestStore, name: &str) {
    if let Err(error) = store.delete(name).await {
        panic!("{name}: {error:?}");
    }
}

/// Also an empty one, and one larger than a page.
pub async fn created_objects_are_read_back(store: &dyn ManifestStore) {
    static LARGE: [u8; 100_000] = [7; 100_000];
    created(store, "read/small", b"small").await;
    created(store, "read/empty", b"").await;
    created(store, "read/large", &LARGE).await;
    assert_eq!(read(store, "read/small").await.as_deref(), Some(&b"small"[..]));
    assert_eq!(read(store, "read/empty").await.as_deref(), Some(&b""[..]));
    assert_eq!(read(store, "read/large").await.as_deref(), Some(&LARGE[..]));
}

/// Not even with the same bytes.
pub async fn a_taken_name_is_never_overwritten(store: &dyn ManifestStore) {
    created(store, "taken/one", b"first").await;
    for bytes in [&b"second"[..], b"first"] {
        let outcome = store.create("taken/one", Bytes::from_static(bytes)).await;
        assert!(matches!(outcome, PutOutcome::AlreadyExists), "{outcome:?}");
    }
    assert_eq!(read(store, "taken/one").await.as_deref(), Some(&b"first"[..]));
}

/// In folders that exist and in those that do not.
pub async fn absent_names_are_none(store: &dyn ManifestStore) {
    created(store, "absent/there", b"x").await;
    assert_eq!(read(store, "absent/not-there").await, None);
    assert_eq!(read(store, "never-made/not-there").await, None);
    assert!(listed(store, "never-made").await.is_empty());
}

/// A folder whose name begins like another one's is not mixed up with it.
pub async fn lists_are_sorted_and_keep_to_their_folder(store: &dyn ManifestStore) {
    for name in ["list/c", "list/a", "listed/x", "list/b"] {
        created(store, name, b"x").await;
    }
    assert_eq!(listed(store, "list").await, ["list/a", "list/b", "list/c"]);
}

/// A deleted name can be made again (the manifest never does).
pub async fn deleting_is_idempotent(store: &dyn ManifestStore) {
    created(store, "delete/one", b"x").await;
    delete(store, "delete/one").await;
    delete(store, "delete/one").await;
    assert_eq!(read(store, "delete/one").await, None);
    created(store, "delete/one", b"y").await;
}

/// More than one page of them, and some that are not there.
pub async fn many_are_deleted_and_others_stay(store: &dyn ManifestStore) {
    let names: Vec<String> = (0..1_100).map(|number| format!("many/{number:04}")).collect();
    for name in names.iter().filter(|name| !name.ends_with('7')) {
        created(store, name, b"x").await;
    }
    created(store, "many/kept", b"x").await;
    for _ in 0..2 {
        if let Err(error) = store.delete_all(&names).await {
            panic!("{error:?}");
        }
        assert_eq!(listed(store, "many").await, ["many/kept"]);
    }
}

/// At the same time, with different bytes.
pub async fn of_many_creators_one_wins(store: &dyn ManifestStore) {
    let attempts = (0..16_u8).map(|writer| async move {
        let outcome = store.create("race/one", Bytes::copy_from_slice(&[writer; 64])).await;
        assert!(matches!(outcome, PutOutcome::Created | PutOutcome::AlreadyExists), "{outcome:?}");
        matches!(outcome, PutOutcome::Created).then_some(writer)
    });
    let winners: Vec<u8> = futures::future::join_all(attempts).await.into_iter().flatten().collect();
    assert_eq!(winners.len(), 1, "{winners:?}");
    let expected = winners.first().map(|winner| vec![*winner; 64]);
    assert_eq!(read(store, "race/one").await.as_deref(), expected.as_deref());
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use aubade_environment::{Environment, FaultyFiles, MemoryFiles};
    use object_store::memory::InMemory;

    use super::*;
    use crate::store::{LocalStore, MemoryStore, ObjectManifestStore, ScriptedStore};

    #[tokio::test]
    async fn the_memory_store_conforms() {
        check_all(&MemoryStore::default()).await;
    }

    #[tokio::test]
    async fn the_scripted_store_conforms_without_a_script() {
        check_all(&ScriptedStore::new(Arc::new(MemoryStore::default()))).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_local_store_conforms_on_the_machines_files() {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalStore::open(&Environment::system(), &folder.path().join("deep/cluster")).await.unwrap();
        check_all(&store).await;
    }

    #[tokio::test]
    async fn the_local_store_conforms_on_files_in_memory() {
        let environment = Environment::system().with_files(Arc::new(MemoryFiles::default()));
        check_all(&LocalStore::open(&environment, Path::new("/cluster")).await.unwrap()).await;
    }

    #[tokio::test]
    async fn the_object_store_conforms() {
        check_all(&ObjectManifestStore::new("mem", Arc::new(InMemory::new()), "a/prefix".into())).await;
    }

    #[tokio::test]
    async fn a_full_disk_refuses_and_a_failed_sync_stops_the_local_store() {
        use aubade_environment::files::FileFault;
        let files = FaultyFiles::new(Arc::new(MemoryFiles::default()));
        let environment = Environment::system().with_files(Arc::new(files.clone()));
        let store = LocalStore::open(&environment, Path::new("/cluster")).await.unwrap();
        files.set(FileFault::DiskFull);
        let PutOutcome::Refused(error) = store.create("m/1", Bytes::from_static(b"x")).await else {
            panic!("not refused")
        };
        assert_eq!(error.code(), aubade_proto::ErrorCode::DiskFull);
        files.set(FileFault::None);
        created(&store, "m/1", b"x").await;
        files.set(FileFault::SyncFails);
        assert!(store.get("m/1").await.is_err());
        files.set(FileFault::None);
        let error = store.get("m/1").await.unwrap_err();
        assert!(error.message().contains("failed to sync"), "{error}");
    }
}
