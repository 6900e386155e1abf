//! A store that does not answer for a while stops nobody who can wait.

use super::*;

/// Reads of the scripted store that fail for longer than a few tries, and shorter than the patience.
const A_WHILE: usize = 10;

fn entry(number: u128) -> NodeEntry {
    NodeEntry { id: NodeId(Uuid::from_u128(number)), zone: "az1".to_owned(), address: format!("host{number}:7101") }
}

#[tokio::test]
async fn a_cluster_is_made_opened_and_taken_over_on_a_store_that_fails_now_and_then() {
    use PutScript::{LostReply, Unavailable};
    for puts in [[Unavailable; 6], [LostReply; 6]] {
        let store = ScriptedStore::new(Arc::new(MemoryStore::default()));
        store.script(puts);
        store.fail_reads(A_WHILE);
        let id = ClusterId(Uuid::from_u128(5));
        let quorum = Quorum::for_copies(1).unwrap();
        Manifest::create(environment(), Arc::new(store.clone()), id, quorum).await.unwrap();
        store.fail_reads(A_WHILE);
        let manifest = Manifest::open(environment(), Arc::new(store.clone())).await.unwrap();
        store.script(puts);
        store.fail_reads(A_WHILE);
        assert_eq!(manifest.take_over().await.unwrap(), Epoch(1));
        assert!(store.list("p").await.unwrap().is_empty(), "probes clean up");
    }
}

#[tokio::test]
async fn a_store_that_stays_silent_is_given_up_by_whoever_opens() {
    let Fixture { store, .. } = fixture().await;
    store.fail_reads(usize::MAX);
    let environment = environment();
    let error = Manifest::open(environment.clone(), Arc::new(store)).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::StoreUnavailable);
    assert!(environment.clock.now() < OPEN_PATIENCE * 2);
}

#[tokio::test]
async fn a_node_rides_out_failed_reads_and_commits_that_say_nothing() {
    let Fixture { memory, store, .. } = fixture().await;
    for (number, put) in [(1, PutScript::Honest), (2, PutScript::LostReply), (3, PutScript::Unavailable)] {
        let reader = Manifest::open(environment(), Arc::new(store.clone())).await.unwrap();
        store.script([put]);
        store.fail_reads(A_WHILE);
        reader.register(&entry(number)).await.unwrap();
        reader.register(&entry(number)).await.unwrap();
    }
    let newest = open(&memory).await.snapshot();
    assert_eq!((newest.nodes.len(), newest.version), (3, Version(5)), "each is entered once");
}

#[tokio::test]
async fn a_node_gives_up_with_the_cause_and_at_once_where_waiting_cannot_help() {
    let Fixture { store, manifest, .. } = fixture().await;
    manifest.register(&entry(1)).await.unwrap();
    let twin = NodeEntry { address: entry(1).address, ..entry(2) };
    let before = manifest.environment.clock.now();
    assert_eq!(manifest.register(&twin).await.unwrap_err().code(), ErrorCode::InUse);
    assert_eq!(manifest.environment.clock.now(), before);
    store.fail_reads(usize::MAX);
    let error = manifest.register(&entry(2)).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::StoreUnavailable);
    assert!(error.causes().iter().any(|cause| cause.contains("scripted")), "{error:?}");
}
