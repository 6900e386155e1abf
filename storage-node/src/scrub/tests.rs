//! Goal: every damaged segment is found and put aside, whole ones are left alone, the rate is kept, and a restart goes
//! on where the last process left off. Method: a clock that runs as fast as somebody sleeps.

use aubade_environment::{FaultyFiles, FileFault, FileSystem, MemoryFiles};
use aubade_proto::Epoch;
use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::*;
use crate::node::StorageNode;
use crate::options::StorageNodeOptions;
use crate::scan::FooterCache;
use crate::segment_store::SegmentStore;
use crate::testing::{CLUSTER, describe, options, pieces, put, segment_id};

/// Sleeping takes no time and moves the time; one fault of the disk ends with the first sleep.
#[derive(Debug, Default)]
struct FastClock {
    now: Mutex<Duration>,
    mended_by_sleep: Option<FaultyFiles>,
}

impl Clock for FastClock {
    fn now(&self) -> Duration {
        *self.now.lock()
    }

    fn unix_millis(&self) -> u64 {
        1_700_000_000_000
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        *self.now.lock() += duration;
        if let Some(files) = &self.mended_by_sleep {
            files.set(FileFault::None);
        }
        Box::pin(std::future::ready(()))
    }
}

const SEGMENT_BYTES: u64 = 300_000;
const RATE: NonZeroU64 = NonZeroU64::new(1 << 20).unwrap();

struct Fixture {
    env: Environment,
    files: FaultyFiles,
    segments: Arc<Segments>,
    progress: Arc<Progress>,
}

/// A store with segments 1 to `count`.
async fn fixture(count: u128, mended_by_sleep: bool) -> Fixture {
    let files = FaultyFiles::new(Arc::new(MemoryFiles::default()));
    let clock = FastClock { now: Mutex::default(), mended_by_sleep: mended_by_sleep.then(|| files.clone()) };
    let env = Environment { clock: Arc::new(clock), ..Environment::system() }.with_files(Arc::new(files.clone()));
    env.files.create_dir_all(Path::new("/data")).unwrap();
    let store = Arc::new(SegmentStore::open(env.clone(), PathBuf::from("/data")).unwrap());
    for number in 1..=count {
        let content = content();
        store.put(Epoch(1), describe(number, &content), pieces(&content)).await.unwrap();
    }
    let segments = Segments::new(store, FooterCache::new(1 << 20));
    Fixture { env, files, segments: Arc::new(segments), progress: Arc::default() }
}

fn content() -> Bytes {
    (0..SEGMENT_BYTES).map(|at| (at % 251) as u8).collect::<Vec<_>>().into()
}

fn path(number: u128) -> PathBuf {
    Path::new("/data/segments").join(format!("{}.parquet", segment_id(number)))
}

/// Flips one bit of a stored segment.
fn damage(files: &dyn FileSystem, number: u128, at: usize) {
    let mut bytes = read_file(files, &path(number)).unwrap().to_vec();
    bytes[at] ^= 1;
    files.remove_file(&path(number)).unwrap();
    files.create_new(&path(number)).unwrap().write_all(&bytes).unwrap();
}

impl Fixture {
    fn scrub(&self) -> Scrub {
        let (segments, progress) = (Arc::clone(&self.segments), Arc::clone(&self.progress));
        Scrub::new(self.env.clone(), segments, progress, Path::new("/data"), RATE)
    }

    fn quarantined(&self) -> Vec<SegmentId> {
        self.segments.store.summary().quarantined
    }
}

#[tokio::test]
async fn a_round_verifies_every_byte_at_the_rate_and_keeps_whole_segments() {
    let fixture = fixture(10, false).await;
    fixture.scrub().round(None).await;
    assert_eq!(fixture.progress.read().round_bytes, 10 * SEGMENT_BYTES);
    assert!(fixture.quarantined().is_empty());
    // The last step is not waited for.
    let took = fixture.env.clock.now().as_secs_f64();
    let due = (10 * SEGMENT_BYTES) as f64 / RATE.get() as f64;
    assert!(took <= due && took > due - 0.2, "{took} s, and {due} s are due");
}

#[tokio::test]
async fn damage_in_any_block_is_found_and_put_aside() {
    let fixture = fixture(4, false).await;
    for (number, at) in [(1, 0), (2, 150_000), (4, SEGMENT_BYTES as usize - 1)] {
        damage(&fixture.files, number, at);
    }
    fixture.scrub().round(None).await;
    assert_eq!(fixture.quarantined(), [segment_id(1), segment_id(2), segment_id(4)]);
    assert_eq!(fixture.progress.read().damaged, 3);
    assert!(fixture.files.open(&path(1)).is_err() && fixture.files.open(&path(3)).is_ok());
}

#[tokio::test]
async fn a_file_that_vanished_is_found() {
    let fixture = fixture(2, false).await;
    fixture.files.remove_file(&path(1)).unwrap();
    fixture.scrub().round(None).await;
    assert_eq!(fixture.quarantined(), [segment_id(1)]);
}

#[tokio::test]
async fn a_device_that_fails_to_read_twice_costs_the_segment_and_once_does_not() {
    for (passes, damaged) in [(true, 0), (false, 1)] {
        let fixture = fixture(1, passes).await;
        fixture.files.set(FileFault::ReadFails);
        fixture.scrub().round(None).await;
        assert_eq!(fixture.progress.read().damaged, damaged);
    }
}

#[tokio::test]
async fn a_segment_that_is_deleted_meanwhile_is_no_damage() {
    let fixture = fixture(1, false).await;
    fixture.segments.store.delete(Epoch(1), &[segment_id(1)]).unwrap();
    fixture.scrub().scrub(segment_id(1)).await;
    fixture.segments.quarantine(segment_id(1), &Error::internal("its reader found the file gone"));
    assert!(fixture.quarantined().is_empty());
    assert_eq!(fixture.progress.read().damaged, 0);
}

#[tokio::test]
async fn the_next_process_goes_on_where_the_last_one_left_off() {
    let fixture = fixture(3, false).await;
    fixture.scrub().save_cursor(Some(segment_id(2))).await;
    for number in [1, 3] {
        damage(&fixture.files, number, 7);
    }
    let mut scrub = fixture.scrub();
    let cursor = scrub.load_cursor().await;
    scrub.round(cursor).await;
    assert_eq!(fixture.quarantined(), [segment_id(3)]);
    assert_eq!(fixture.progress.read().round_bytes, 2 * SEGMENT_BYTES);
    scrub.round(None).await;
    assert_eq!(fixture.quarantined(), [segment_id(1), segment_id(3)]);
}

#[tokio::test]
async fn a_damaged_cursor_or_one_of_another_format_begins_at_the_start() {
    for text in ["no json", "{\"format\":2,\"after\":null}"] {
        let fixture = fixture(1, false).await;
        fixture.files.create_new(Path::new("/data/scrub.json")).unwrap().write_all(text.as_bytes()).unwrap();
        assert_eq!(fixture.scrub().load_cursor().await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_scrubs_when_it_starts_and_says_so_unless_it_is_switched_off() {
    let env = Environment::system().with_files(Arc::new(MemoryFiles::default()));
    let first = StorageNode::open(env.clone(), CLUSTER, options()).await.unwrap();
    assert_eq!(first.info().scrub, None);
    for number in [1, 2] {
        put(&first, number, &content()).await;
    }
    first.shutdown(Duration::from_secs(1)).await;
    damage(env.files.as_ref(), 2, 100_000);
    let second = StorageNode::open(env.clone(), CLUSTER, StorageNodeOptions::new("/data", "az1")).await.unwrap();
    assert_ne!(second.info().instance, first.info().instance);
    let scrubbed = async {
        while second.info().scrub.is_none_or(|scrub| scrub.rounds == 0) {
            env.clock.sleep(Duration::from_millis(5)).await;
        }
    };
    let done = aubade_environment::clock::timeout(env.clock.as_ref(), Duration::from_secs(30), scrubbed).await;
    assert!(done.is_some(), "{:?}", second.info());
    assert_eq!((second.info().quarantined, second.info().scrub.unwrap().damaged), (vec![segment_id(2)], 1));
    second.shutdown(Duration::from_secs(1)).await;
}
