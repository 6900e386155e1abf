//! Goal: whatever is collected, no version is lost, none comes back, and nobody takes a stray for a
//! version. Method: small limits, and writers and readers that sleep through the collection.

use super::*;

/// Everything that is not needed goes at once.
const TIGHT: CollectionLimits =
    CollectionLimits { versions_kept: 10, floor_step: 5, milestones_below: 0, deletes_max: 1_000 };
/// As above, with transactions that can be looked up for long.
const WITH_MILESTONES: CollectionLimits = CollectionLimits { milestones_below: 10_000, ..TIGHT };

const NOBODY_READS: Version = Version(u64::MAX);

async fn commit_many(manifest: &Manifest, numbers: std::ops::RangeInclusive<u128>) {
    for number in numbers {
        committed(manifest, number).await;
    }
}

async fn versions(memory: &MemoryStore) -> Vec<u64> {
    let mut found: Vec<u64> =
        memory.list("m").await.unwrap().iter().filter_map(|name| names::parse(name)).map(|version| version.0).collect();
    found.sort_unstable();
    found
}

async fn collect(manifest: &Manifest, limits: &CollectionLimits) -> Collected {
    manifest.collect(limits, NOBODY_READS).await.unwrap()
}

#[tokio::test]
async fn the_floor_moves_by_a_commit_before_anything_is_deleted() {
    let Fixture { memory, store, manifest } = fixture().await;
    commit_many(&manifest, 1..=100).await;
    assert_eq!(manifest.snapshot().version, Version(102));
    // Checkpoints are at 96 and 64: the older one is the base.
    let done = collect(&manifest, &TIGHT).await;
    assert_eq!((done.floor, done.deleted), (Version(64), 64));
    assert_eq!(versions(&memory).await, (65..=103).collect::<Vec<_>>(), "103 is the version that moved the floor");
    assert!(!store.deletes().contains(&names::version(Version(65))));

    let reopened = open(&memory).await;
    assert_eq!(format!("{:?}", reopened.snapshot()), format!("{:?}", manifest.snapshot()));
    assert_eq!(reopened.head().gc_floor, Version(64), "the floor is part of the chain");
    // And of the checkpoints.
    commit_many(&manifest, 101..=140).await;
    assert_eq!(open(&memory).await.head().gc_floor, Version(64));
    assert_eq!(reopened.take_over().await.unwrap(), Epoch(2));
}

#[tokio::test]
async fn nothing_is_deleted_while_it_is_not_known_that_the_floor_moved() {
    for (put, moved) in [(PutScript::Unavailable, false), (PutScript::Forbidden, false), (PutScript::LostReply, true)] {
        let Fixture { memory, store, manifest } = fixture().await;
        commit_many(&manifest, 1..=100).await;
        store.always(Some(put));
        store.fail_reads(0);
        let result = manifest.collect(&TIGHT, NOBODY_READS).await;
        assert_eq!(result.is_ok(), moved, "{put:?}: {result:?}");
        let all = versions(&memory).await;
        assert_eq!(all.first() == Some(&1), !moved, "{put:?}: {all:?}");
        store.always(None);
        assert_eq!(collect(&manifest, &TIGHT).await.floor, Version(64));
        assert_eq!(versions(&memory).await.first(), Some(&65));
        assert_eq!(open(&memory).await.snapshot().schemas, manifest.snapshot().schemas);
    }
}

#[tokio::test]
async fn what_is_kept_is_what_somebody_reads_what_comes_first_and_what_the_checkpoints_need() {
    let floor_of = |commits: u128, limits: CollectionLimits, oldest_needed: u64| async move {
        let Fixture { memory, manifest, .. } = fixture().await;
        commit_many(&manifest, 1..=commits).await;
        let done = manifest.collect(&limits, Version(oldest_needed)).await.unwrap();
        let first = versions(&memory).await[0];
        assert_eq!(first, done.floor.0 + 1);
        done.floor.0
    };
    assert_eq!(floor_of(100, TIGHT, u64::MAX).await, 64, "the older checkpoint");
    assert_eq!(floor_of(100, CollectionLimits { versions_kept: 60, ..TIGHT }, u64::MAX).await, 42, "102 - 60");
    assert_eq!(floor_of(100, TIGHT, 31).await, 30, "a snapshot at 31 is alive");
    assert_eq!(floor_of(100, TIGHT, 5).await, 0, "less than a step");
    assert_eq!(floor_of(40, TIGHT, u64::MAX).await, 0, "only one checkpoint");
    assert_eq!(floor_of(100, CollectionLimits::default(), u64::MAX).await, 0, "a thousand are kept by default");
    assert!(CollectionLimits::default().versions_kept >= 1_000);
}

#[tokio::test]
async fn a_round_deletes_a_bounded_number_oldest_first_and_the_next_one_goes_on() {
    let Fixture { memory, manifest, .. } = fixture().await;
    commit_many(&manifest, 1..=100).await;
    let limits = CollectionLimits { deletes_max: 25, ..TIGHT };
    for (deleted, first) in [(25, 26), (25, 51), (14, 65), (0, 65)] {
        assert_eq!(collect(&manifest, &limits).await.deleted, deleted);
        assert_eq!(versions(&memory).await[0], first);
    }
    assert_eq!(manifest.snapshot().version, Version(103), "an idle cluster makes no more versions");
}

#[tokio::test]
async fn opening_works_in_every_state_between_two_deletes() {
    let Fixture { memory, manifest, .. } = fixture().await;
    commit_many(&manifest, 1..=100).await;
    let limits = CollectionLimits { deletes_max: 1, ..TIGHT };
    for _ in 1..=64 {
        assert_eq!(collect(&manifest, &limits).await.deleted, 1);
        assert_eq!(open(&memory).await.snapshot().version, Version(103));
    }
}

#[tokio::test]
async fn only_the_writer_collects() {
    let Fixture { memory, manifest, .. } = fixture().await;
    commit_many(&manifest, 1..=100).await;
    let reader = open(&memory).await;
    assert_eq!(reader.collect(&TIGHT, NOBODY_READS).await.unwrap_err().code(), ErrorCode::StaleEpoch);
    reader.take_over().await.unwrap();
    assert_eq!(manifest.collect(&TIGHT, NOBODY_READS).await.unwrap_err().code(), ErrorCode::StaleEpoch);
    assert_eq!(versions(&memory).await[0], 1);
    assert_eq!(collect(&reader, &TIGHT).await.floor, Version(64));
}

#[tokio::test]
async fn a_base_that_cannot_be_read_keeps_everything() {
    let Fixture { memory, manifest, .. } = fixture().await;
    commit_many(&manifest, 1..=100).await;
    let name = names::checkpoint(Version(64));
    let sound = memory.get(&name).await.unwrap().unwrap();
    let other = memory.get(&names::checkpoint(Version(96))).await.unwrap().unwrap();
    for damaged in ["damaged".into(), other] {
        memory.overwrite(&name, damaged);
        let error = manifest.collect(&TIGHT, NOBODY_READS).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::ManifestCorrupt);
        assert!(error.message().contains(&name), "{error}");
        assert_eq!(versions(&memory).await, (1..=102).collect::<Vec<_>>());
    }
    memory.overwrite(&name, sound);
    assert_eq!(collect(&manifest, &TIGHT).await.deleted, 64);
    // With the newest one damaged, the base still opens.
    memory.overwrite(&names::checkpoint(Version(96)), "damaged".into());
    assert_eq!(open(&memory).await.snapshot().version, Version(103));
}

/// A process that knows version 2, while others went on and collected it; with the newest writer.
async fn sleeper(limits: &CollectionLimits, commits: u128) -> (MemoryStore, Manifest, Manifest) {
    let Fixture { memory, manifest: sleeper, .. } = fixture().await;
    let writer = open(&memory).await;
    writer.take_over().await.unwrap();
    commit_many(&writer, 1..=commits).await;
    let done = collect(&writer, limits).await;
    assert!(done.floor > Version(3) && memory.get(&names::version(Version(3))).await.unwrap().is_none());
    (memory, sleeper, writer)
}

/// A process without an epoch that knows the same version.
fn reader_at(memory: &MemoryStore, other: &Manifest) -> Manifest {
    Manifest::new(environment(), Arc::new(memory.clone()), other.head().as_ref().clone(), 0)
}

#[tokio::test]
async fn a_stalled_writer_that_creates_a_collected_name_has_lost() {
    // Within the history of the newest version, and by way of the milestones.
    for (limits, commits) in [(TIGHT, 62), (WITH_MILESTONES, 400)] {
        let (memory, zombie, writer) = sleeper(&limits, commits).await;
        let newest = writer.snapshot().version;
        let error = commit(&zombie, 1_000).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::StaleEpoch, "{commits}");
        let stray = names::version(Version(3));
        assert!(memory.get(&stray).await.unwrap().is_some(), "the stray is there");
        let known = (limits == WITH_MILESTONES).then_some(false);
        assert_eq!(zombie.find_of_epoch(transaction(1_000), Epoch(1)).await.unwrap(), known, "{commits}");
        assert_eq!(open(&memory).await.snapshot().version, newest);
        assert!(!open(&memory).await.snapshot().schemas.contains("s1000"));

        // The next coordinator deletes it.
        let next = open(&memory).await;
        next.take_over().await.unwrap();
        collect(&next, &limits).await;
        assert!(memory.get(&stray).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn a_stalled_writer_whose_lineage_is_gone_does_not_claim_anything() {
    let (memory, zombie, _) = sleeper(&TIGHT, 400).await;
    let error = unknown(&zombie, 1_000).await;
    assert!(error.message().contains("no longer shows"), "{error}");
    assert_eq!(zombie.find(transaction(1_000)).await.unwrap(), None);
    assert_eq!(times_in_chain(&memory, 1_000).await, 0);
    assert_eq!(commit(&zombie, 1_001).await.unwrap_err().code(), ErrorCode::StaleEpoch);
}

#[tokio::test]
async fn a_stalled_node_that_creates_a_collected_name_registers_again_on_top() {
    let (memory, sleeper, writer) = sleeper(&WITH_MILESTONES, 400).await;
    let node_process = reader_at(&memory, &sleeper);
    let done = node_process.commit(transaction(1_000), node(9)).await.unwrap();
    let Commit::Committed(snapshot) = done else { panic!("{done:?}") };
    assert_eq!(snapshot.version, writer.snapshot().version.next());
    assert_eq!(open(&memory).await.snapshot().nodes.len(), 1);
}

/// The first try landed and was collected; the answer was lost, and the process slept.
#[tokio::test]
async fn a_commit_that_was_collected_before_its_writer_looked_is_not_done_twice() {
    let Fixture { memory, store, manifest } = fixture().await;
    store.script([PutScript::LostReply]);
    store.fail_reads(usize::MAX);
    unknown(&manifest, 1).await;
    store.fail_reads(0);
    commit_many(&manifest, 2..=400).await;
    collect(&manifest, &WITH_MILESTONES).await;
    assert!(memory.get(&names::version(Version(3))).await.unwrap().is_none());
    assert_eq!(committed(&manifest, 1).await.version, manifest.snapshot().version);
    assert_eq!(manifest.snapshot().version, Version(2 + 400 + 1));
}

#[tokio::test]
async fn a_reader_below_the_floor_finds_the_newest_version() {
    let (_, reader, writer) = sleeper(&TIGHT, 100).await;
    // Its next name is gone, which looks as if nothing had happened: it lists after a while.
    reader.environment.clock.sleep(RELIST_INTERVAL).await;
    assert_eq!(reader.refresh().await.unwrap().version, writer.snapshot().version);
}

#[tokio::test]
async fn a_reader_below_the_floor_is_not_deceived_by_a_stray() {
    let (memory, zombie, writer) = sleeper(&WITH_MILESTONES, 100).await;
    let reader = reader_at(&memory, &zombie);
    assert_eq!(commit(&zombie, 1_000).await.unwrap_err().code(), ErrorCode::StaleEpoch);
    let seen = reader.refresh().await.unwrap();
    assert_eq!(seen.version, writer.snapshot().version);
    assert!(!seen.schemas.contains("s1000"));
}

#[tokio::test]
async fn a_reader_between_names_that_go_one_by_one_finds_the_newest_version() {
    let Fixture { memory, manifest: reader, .. } = fixture().await;
    let writer = open(&memory).await;
    writer.take_over().await.unwrap();
    commit_many(&writer, 1..=100).await;
    // Versions 3 to 9 are still there, 10 is gone.
    memory.delete(&names::version(Version(10))).await.unwrap();
    assert_eq!(reader.refresh().await.unwrap().version, writer.snapshot().version);
}

#[tokio::test]
async fn transactions_stay_known_by_the_milestones() {
    let Fixture { memory, manifest, .. } = fixture().await;
    commit_many(&manifest, 1..=400).await;
    let limits = CollectionLimits { milestones_below: 200, ..TIGHT };
    let done = collect(&manifest, &limits).await;
    assert_eq!(done.floor, Version(352));
    let kept: Vec<u64> = versions(&memory).await.into_iter().filter(|version| *version <= 352).collect();
    assert_eq!(kept, [160, 192, 224, 256, 288, 320, 352]);
    let reader = open(&memory).await;
    // Number n is version n + 2. The oldest milestone names those of the 64 versions up to it.
    for number in [400, 300, 200, 158, 96] {
        assert_eq!(reader.find(transaction(number)).await.unwrap(), Some(true), "{number}");
    }
    assert_eq!(reader.find(transaction(94)).await.unwrap(), None, "nobody knows any more");
    assert_eq!(reader.find(transaction(9_999)).await.unwrap(), None);
}

/// A reader that lists, and whose objects go before it reads them.
#[tokio::test]
async fn a_reader_that_is_overtaken_while_it_opens_begins_again() {
    use crate::store::PutOutcome;

    /// Runs a collection before the first read of a checkpoint.
    #[derive(Debug)]
    struct Overtaken {
        memory: MemoryStore,
        writer: tokio::sync::Mutex<Option<Manifest>>,
    }

    #[async_trait::async_trait]
    impl ManifestStore for Overtaken {
        fn location(&self) -> String {
            self.memory.location()
        }

        async fn create(&self, name: &str, bytes: bytes::Bytes) -> PutOutcome {
            self.memory.create(name, bytes).await
        }

        async fn get(&self, name: &str) -> Result<Option<bytes::Bytes>> {
            if name.starts_with("c/")
                && let Some(writer) = self.writer.lock().await.take()
            {
                commit_many(&writer, 101..=300).await;
                collect(&writer, &TIGHT).await;
            }
            self.memory.get(name).await
        }

        async fn list(&self, folder: &str) -> Result<Vec<String>> {
            self.memory.list(folder).await
        }

        async fn delete(&self, name: &str) -> Result<()> {
            self.memory.delete(name).await
        }
    }

    let Fixture { memory, manifest, .. } = fixture().await;
    commit_many(&manifest, 1..=100).await;
    let store = Overtaken { memory: memory.clone(), writer: tokio::sync::Mutex::new(Some(manifest)) };
    let reader = Manifest::open(environment(), Arc::new(store)).await.unwrap();
    assert_eq!(reader.snapshot().version, open(&memory).await.snapshot().version);
}
