//! Goal: whatever the store says or fails to say, a commit that is part of the chain is never
//! reported as lost, and one that is not is never reported as committed. Method: a store with a
//! script, and a clock that runs as fast as somebody waits.

use aubade_proto::{NodeId, RelationId, Version};

use super::*;
use crate::action::{RelationDefinition, RelationKind};
use crate::fast_clock::environment;
use crate::snapshot::{NodeEntry, RelationName};
use crate::store::{MemoryStore, PutScript, ScriptedStore};

mod collection;
mod patience;

struct Fixture {
    memory: MemoryStore,
    store: ScriptedStore,
    manifest: Manifest,
}

/// A cluster whose writer has epoch 1 at version 2, and whose store then begins its script.
async fn fixture() -> Fixture {
    let memory = MemoryStore::default();
    let store = ScriptedStore::new(Arc::new(memory.clone()));
    let id = ClusterId(Uuid::from_u128(5));
    let manifest =
        Manifest::create(environment(), Arc::new(store.clone()), id, Quorum::for_copies(6).unwrap()).await.unwrap();
    assert_eq!(manifest.take_over().await.unwrap(), Epoch(1));
    Fixture { memory, store, manifest }
}

/// Another process on the same objects.
async fn open(memory: &MemoryStore) -> Manifest {
    Manifest::open(environment(), Arc::new(memory.clone())).await.unwrap()
}

fn transaction(number: u128) -> TransactionId {
    TransactionId(Uuid::from_u128(number))
}

fn schema(number: u128) -> Vec<Action> {
    vec![Action::CreateSchema(format!("s{number}"))]
}

fn node(number: u128) -> Vec<Action> {
    let address = format!("host{number}:7101");
    vec![Action::RegisterNode(NodeEntry { id: NodeId(Uuid::from_u128(number)), zone: "az1".to_owned(), address })]
}

async fn commit(manifest: &Manifest, number: u128) -> Result<Commit> {
    manifest.commit(transaction(number), schema(number)).await
}

async fn committed(manifest: &Manifest, number: u128) -> Arc<Snapshot> {
    match commit(manifest, number).await.unwrap() {
        Commit::Committed(snapshot) => snapshot,
        Commit::Unknown(error) => panic!("unknown: {error}"),
    }
}

async fn unknown(manifest: &Manifest, number: u128) -> Error {
    match commit(manifest, number).await.unwrap() {
        Commit::Committed(snapshot) => panic!("committed as {}", snapshot.version),
        Commit::Unknown(error) => error,
    }
}

/// How often a transaction is in the chain, as a process that has seen nothing finds it.
async fn times_in_chain(memory: &MemoryStore, number: u128) -> usize {
    let newest = open(memory).await;
    let times = newest.head().history.iter().filter(|mark| mark.transaction == transaction(number)).count();
    assert_eq!(times == 1, newest.snapshot().schemas.contains(&format!("s{number}")));
    times
}

#[tokio::test]
async fn a_cluster_is_made_taken_over_and_changed() {
    let Fixture { memory, manifest, .. } = fixture().await;
    let snapshot = committed(&manifest, 1).await;
    assert_eq!((snapshot.version, snapshot.epoch), (Version(3), Epoch(1)));
    assert_eq!(manifest.snapshot().version, Version(3));
    let reader = open(&memory).await;
    assert_eq!(format!("{:?}", reader.snapshot()), format!("{snapshot:?}"));
    committed(&manifest, 2).await;
    assert_eq!(reader.refresh().await.unwrap().version, Version(4));
}

#[tokio::test]
async fn a_second_cluster_is_not_made_over_the_first_and_none_is_said_to_be_missing() {
    let Fixture { memory, .. } = fixture().await;
    let id = ClusterId(Uuid::from_u128(6));
    let error =
        Manifest::create(environment(), Arc::new(memory), id, Quorum::for_copies(1).unwrap()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::ClusterExists);
    let error = Manifest::open(environment(), Arc::new(MemoryStore::default())).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::ClusterNotFound);
}

#[tokio::test]
async fn of_two_processes_that_make_a_cluster_one_is_told_that_it_exists() {
    let memory = MemoryStore::default();
    let make = |id: u128| {
        let store = Arc::new(memory.clone());
        Manifest::create(environment(), store, ClusterId(Uuid::from_u128(id)), Quorum::for_copies(1).unwrap())
    };
    let (left, right) = tokio::join!(make(1), make(2));
    let (winner, loser) = if left.is_ok() { (left, right) } else { (right, left) };
    assert_eq!(loser.unwrap_err().code(), ErrorCode::ClusterExists);
    assert_eq!(open(&memory).await.snapshot().cluster_id, winner.unwrap().snapshot().cluster_id);
}

/// Every answer that says too little, alone and twice in a row: the commit happens exactly once.
#[tokio::test]
async fn a_commit_survives_every_ambiguous_answer() {
    let ambiguous = [
        PutScript::LostReply,
        PutScript::Twice,
        PutScript::ConflictWithoutObject,
        PutScript::PreconditionFailed,
        PutScript::Unavailable,
        PutScript::Late(2),
        PutScript::Late(3),
        PutScript::Never,
    ];
    for first in ambiguous {
        for second in ambiguous {
            let Fixture { memory, store, manifest } = fixture().await;
            store.script([first, second]);
            let snapshot = committed(&manifest, 1).await;
            assert_eq!(snapshot.version, Version(3), "{first:?} {second:?}");
            assert_eq!(times_in_chain(&memory, 1).await, 1, "{first:?} {second:?}");
            committed(&manifest, 2).await;
            assert_eq!(times_in_chain(&memory, 1).await, 1, "{first:?} {second:?}");
        }
    }
}

#[tokio::test]
async fn own_retry_reported_as_existing_is_committed_at_the_first_try() {
    let Fixture { store, manifest, .. } = fixture().await;
    let before = store.creates().len();
    store.script([PutScript::Twice]);
    committed(&manifest, 1).await;
    assert_eq!(store.creates().len() - before, 1);
}

#[tokio::test]
async fn reads_that_fail_after_an_ambiguous_put_are_tried_again() {
    let Fixture { store, manifest, .. } = fixture().await;
    store.script([PutScript::LostReply]);
    store.fail_reads(3);
    assert_eq!(committed(&manifest, 1).await.version, Version(3));
}

#[tokio::test]
async fn a_store_that_never_says_leaves_the_commit_unknown_and_nothing_deleted() {
    for silent in [PutScript::Unavailable, PutScript::Never, PutScript::ConflictWithoutObject] {
        let Fixture { memory, store, manifest } = fixture().await;
        let deletes = store.deletes().len();
        store.always(Some(silent));
        unknown(&manifest, 1).await;
        assert_eq!(manifest.find(transaction(1)).await.unwrap(), None, "it may still land");
        assert_eq!(store.deletes().len(), deletes);
        store.always(None);
        // Another transaction takes the name: now the first is decided.
        committed(&manifest, 2).await;
        assert_eq!(manifest.find(transaction(1)).await.unwrap(), Some(false));
        assert_eq!(times_in_chain(&memory, 1).await, 0);
    }
}

#[tokio::test]
async fn an_unknown_commit_that_lands_later_is_found_and_not_done_twice() {
    let Fixture { memory, store, manifest } = fixture().await;
    store.script([PutScript::Late(5_000)]);
    store.always(Some(PutScript::Unavailable));
    unknown(&manifest, 1).await;
    store.always(None);
    for _ in 0..5_000 {
        let _ = store.list("nothing").await;
    }
    assert_eq!(manifest.find(transaction(1)).await.unwrap(), Some(true));
    assert_eq!(committed(&manifest, 1).await.version, Version(3));
    assert_eq!(times_in_chain(&memory, 1).await, 1);
}

/// Longer ago than the history of one version reaches.
#[tokio::test]
async fn an_unknown_commit_that_landed_is_not_done_twice_much_later() {
    let Fixture { memory, store, manifest } = fixture().await;
    store.script([PutScript::LostReply]);
    store.fail_reads(usize::MAX);
    unknown(&manifest, 1).await;
    store.fail_reads(0);
    for number in 2..=100 {
        committed(&manifest, number).await;
    }
    // Applied twice it would be an error: the schema exists.
    let again = committed(&manifest, 1).await;
    assert_eq!(again.version, manifest.snapshot().version);
    assert_eq!(open(&memory).await.snapshot().version, Version(2 + 100));
}

#[tokio::test]
async fn an_unknown_commit_is_committed_when_it_is_tried_again() {
    let Fixture { memory, store, manifest } = fixture().await;
    store.always(Some(PutScript::Unavailable));
    unknown(&manifest, 1).await;
    store.always(None);
    assert_eq!(committed(&manifest, 1).await.version, Version(3));
    assert_eq!(times_in_chain(&memory, 1).await, 1);
}

#[tokio::test]
async fn an_unknown_commit_whose_next_try_is_refused_stays_unknown() {
    let Fixture { store, manifest, .. } = fixture().await;
    store.script([PutScript::Late(1_000)]);
    store.always(Some(PutScript::Forbidden));
    assert_eq!(unknown(&manifest, 1).await.code(), ErrorCode::PermissionDenied);
}

#[tokio::test]
async fn a_refusal_without_doubt_is_an_error_at_once() {
    let Fixture { memory, store, manifest } = fixture().await;
    store.script([PutScript::Forbidden]);
    assert_eq!(commit(&manifest, 1).await.unwrap_err().code(), ErrorCode::PermissionDenied);
    committed(&manifest, 2).await;
    assert_eq!(times_in_chain(&memory, 1).await, 0);
}

#[tokio::test]
async fn a_dropped_commit_is_found_later() {
    let Fixture { store, manifest, .. } = fixture().await;
    store.script([PutScript::LostReply]);
    store.fail_reads(1);
    let mut dropped = Box::pin(commit(&manifest, 1));
    assert!(futures::poll!(&mut dropped).is_pending());
    drop(dropped);
    assert_eq!(manifest.find(transaction(1)).await.unwrap(), Some(true));
    assert_eq!(committed(&manifest, 2).await.version, Version(4));
}

#[tokio::test]
async fn two_processes_race_and_every_commit_happens_once() {
    let Fixture { memory, manifest, .. } = fixture().await;
    let other = open(&memory).await;
    let ours = async {
        for number in 1..=12 {
            committed(&manifest, number).await;
        }
    };
    let theirs = async {
        for number in 1..=12 {
            let done = other.commit(transaction(100 + number), node(number)).await.unwrap();
            assert!(matches!(done, Commit::Committed(_)), "{done:?}");
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(ours, theirs);
    let newest = open(&memory).await.snapshot();
    assert_eq!(newest.version, Version(2 + 24));
    assert_eq!((newest.nodes.len(), newest.schemas.len()), (12, 13));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_of_one_process_queue_up() {
    let folder = tempfile::tempdir().unwrap();
    let environment = Environment::system();
    let store = Arc::new(crate::store::LocalStore::open(&environment, folder.path()).await.unwrap());
    let quorum = Quorum::for_copies(1).unwrap();
    let manifest =
        Manifest::create(environment.clone(), store.clone(), ClusterId(Uuid::from_u128(5)), quorum).await.unwrap();
    manifest.take_over().await.unwrap();
    let done = futures::future::join_all((1..=8).map(|number| committed(&manifest, number))).await;
    assert_eq!(done.len(), 8);
    let again = Manifest::open(environment, store).await.unwrap();
    assert_eq!((again.snapshot().version, again.snapshot().schemas.len()), (Version(10), 9));
}

#[tokio::test]
async fn a_take_over_fences_the_old_writer() {
    let Fixture { memory, manifest, .. } = fixture().await;
    let successor = open(&memory).await;
    assert_eq!(successor.take_over().await.unwrap(), Epoch(2));
    let error = commit(&manifest, 1).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::StaleEpoch);
    assert!(error.message().contains("epoch 2"), "{error}");
    assert_eq!(manifest.find_of_epoch(transaction(1), Epoch(1)).await.unwrap(), Some(false));
    assert_eq!(committed(&successor, 2).await.epoch, Epoch(2));
    assert_eq!((manifest.own_epoch(), successor.own_epoch()), (Some(Epoch(1)), Some(Epoch(2))));
}

#[tokio::test]
async fn of_two_take_overs_both_get_an_epoch_of_their_own() {
    let Fixture { memory, .. } = fixture().await;
    let (left, right) = (open(&memory).await, open(&memory).await);
    let (one, two) = tokio::join!(left.take_over(), right.take_over());
    let mut epochs = [one.unwrap(), two.unwrap()];
    epochs.sort_unstable();
    assert_eq!(epochs, [Epoch(2), Epoch(3)]);
}

#[tokio::test]
async fn a_reader_may_only_register_nodes() {
    let Fixture { memory, .. } = fixture().await;
    let reader = open(&memory).await;
    assert_eq!(commit(&reader, 1).await.unwrap_err().code(), ErrorCode::StaleEpoch);
    let done = reader.commit(transaction(2), node(1)).await.unwrap();
    assert!(matches!(done, Commit::Committed(snapshot) if snapshot.nodes.len() == 1 && snapshot.epoch == Epoch(1)));
    let taken = reader.commit(transaction(3), vec![Action::TakeOver(Epoch(9))]).await.unwrap_err();
    assert_eq!(taken.code(), ErrorCode::InvalidArgument);
}

#[tokio::test]
async fn actions_that_do_not_fit_commit_nothing() {
    let Fixture { manifest, .. } = fixture().await;
    committed(&manifest, 1).await;
    let error = manifest.commit(transaction(2), schema(1)).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::AlreadyExists);
    assert_eq!(manifest.refresh().await.unwrap().version, Version(3));
}

#[tokio::test]
async fn a_checkpoint_is_written_used_and_replaced() {
    let Fixture { memory, manifest, .. } = fixture().await;
    for number in 1..=100 {
        committed(&manifest, number).await;
    }
    let checkpoints: Vec<Version> =
        memory.list("c").await.unwrap().iter().filter_map(|name| names::parse(name)).collect();
    assert_eq!(checkpoints, [Version(96), Version(64)]);
    // Only objects above the checkpoint are read: the others may be gone.
    for version in 1..96 {
        memory.delete(&names::version(Version(version))).await.unwrap();
    }
    let reopened = open(&memory).await;
    assert_eq!(reopened.snapshot().version, Version(102));
    assert_eq!(reopened.snapshot().schemas, manifest.snapshot().schemas);
    assert_eq!(reopened.snapshot().epoch, Epoch(1));
    assert_eq!(reopened.head().history, manifest.head().history);
    assert_eq!(reopened.take_over().await.unwrap(), Epoch(2));
}

#[tokio::test]
async fn a_damaged_checkpoint_is_passed_over() {
    let Fixture { memory, manifest, .. } = fixture().await;
    for number in 1..=70 {
        committed(&manifest, number).await;
    }
    for version in [64, 32] {
        memory.overwrite(&names::checkpoint(Version(version)), "damaged".into());
        assert_eq!(open(&memory).await.snapshot().schemas, manifest.snapshot().schemas, "without {version}");
    }
}

#[tokio::test]
async fn a_damaged_version_is_named() {
    let Fixture { memory, manifest, .. } = fixture().await;
    committed(&manifest, 1).await;
    let name = names::version(Version(2));
    let mut object = memory.get(&name).await.unwrap().unwrap().to_vec();
    let last = object.len() - 1;
    object[last] ^= 1;
    memory.overwrite(&name, object.into());
    let error = Manifest::open(environment(), Arc::new(memory.clone())).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::ManifestCorrupt);
    assert!(error.message().contains(&name) && error.message().contains("checksum"), "{error}");
    memory.delete(&name).await.unwrap();
    let error = Manifest::open(environment(), Arc::new(memory)).await.unwrap_err();
    assert!(error.message().contains(&name) && error.message().contains("missing"), "{error}");
}

#[tokio::test]
async fn garbage_under_the_next_name_leaves_a_commit_unknown() {
    let Fixture { memory, manifest, .. } = fixture().await;
    memory.overwrite(&names::version(Version(3)), "garbage".into());
    assert_eq!(unknown(&manifest, 1).await.code(), ErrorCode::ManifestCorrupt);
    assert_eq!(manifest.refresh().await.unwrap_err().code(), ErrorCode::ManifestCorrupt);
}

/// A writer sleeps before its put, while the chain moves on and the old names are collected: its
/// object is made, and is a stray.
#[tokio::test]
async fn a_stray_under_a_collected_name_is_lost_and_not_committed() {
    let Fixture { memory, manifest: zombie, .. } = fixture().await;
    let reader = open(&memory).await;
    let writer = open(&memory).await;
    writer.take_over().await.unwrap();
    for number in 1..=40 {
        committed(&writer, number).await;
    }
    for version in 1..=20 {
        memory.delete(&names::version(Version(version))).await.unwrap();
    }
    assert_eq!(commit(&zombie, 99).await.unwrap_err().code(), ErrorCode::StaleEpoch);
    assert!(memory.get(&names::version(Version(3))).await.unwrap().is_some(), "the stray is there");
    let seen = reader.refresh().await.unwrap();
    assert_eq!(seen.version, writer.snapshot().version);
    assert!(!seen.schemas.contains("s99"));
}

#[tokio::test]
async fn a_transaction_is_found_beyond_the_history_of_one_version() {
    let Fixture { memory, manifest, .. } = fixture().await;
    for number in 1..=150 {
        committed(&manifest, number).await;
    }
    let reader = open(&memory).await;
    assert_eq!(reader.find(transaction(1)).await.unwrap(), Some(true));
    assert_eq!(reader.find(transaction(77)).await.unwrap(), Some(true));
    assert_eq!(reader.find(transaction(999)).await.unwrap(), None);
    assert_eq!(reader.find_of_epoch(transaction(999), Epoch(0)).await.unwrap(), Some(false));
}

#[tokio::test]
async fn tables_and_their_statistics_survive_the_store() {
    use arrow::array::{ArrayRef, Int64Array, RecordBatch};
    let Fixture { memory, manifest, .. } = fixture().await;
    let values: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
    let batch = RecordBatch::try_from_iter([("k", values)]).unwrap();
    let mut builder = crate::StatisticsBuilder::new(batch.schema());
    builder.update(&batch).unwrap();
    let table = RelationId(Uuid::from_u128(1));
    let name = RelationName { schema: "public".to_owned(), name: "t".to_owned() };
    let segment = crate::SegmentEntry {
        id: aubade_proto::SegmentId(Uuid::from_u128(2)),
        epoch: Epoch(1),
        transaction: transaction(1),
        rows: 3,
        bytes: 10,
        sha256: [1; 32],
        intended: vec![NodeId(Uuid::from_u128(3)), NodeId(Uuid::from_u128(4))],
        holders: vec![NodeId(Uuid::from_u128(3))],
    };
    let added = crate::AddSegments { table, segments: vec![segment], statistics: builder.finish(&[5]).unwrap() };
    let kind = RelationKind::Table(batch.schema());
    let actions =
        vec![Action::CreateRelation(RelationDefinition { id: table, name, kind }), Action::AddSegments(added)];
    let done = manifest.commit(transaction(1), actions).await.unwrap();
    let Commit::Committed(snapshot) = done else { panic!("{done:?}") };
    // The planner's summary is made on demand and is no part of the state.
    assert_eq!(format!("{:?}", open(&memory).await.snapshot()), format!("{snapshot:?}"));
}

#[tokio::test]
async fn a_node_is_taken_out_without_taking_over_and_only_if_the_check_holds() {
    let Fixture { memory, manifest, .. } = fixture().await;
    manifest.commit(transaction(1), node(7)).await.unwrap();
    let other = open(&memory).await;
    let action = || vec![Action::RemoveNode(NodeId(Uuid::from_u128(7)))];
    let refuse = |_: &Snapshot| Err(Error::new(ErrorCode::TooFewReplicas, "not now"));
    let error = other.commit_if(transaction(2), action(), refuse).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::TooFewReplicas);
    // The check sees what others committed since this process last looked.
    committed(&manifest, 3).await;
    let check = |state: &Snapshot| {
        assert!(state.schemas.contains("s3") || state.version < manifest.snapshot().version);
        Ok(())
    };
    let done = other.commit_if(transaction(4), action(), check).await.unwrap();
    assert!(matches!(done, Commit::Committed(snapshot) if snapshot.nodes.is_empty()));
    assert!(manifest.refresh().await.unwrap().nodes.is_empty());
    // The coordinator goes on as the writer that it was.
    committed(&manifest, 5).await;
}
