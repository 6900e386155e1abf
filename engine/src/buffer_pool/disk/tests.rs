use std::ops::Range;

use aubade_environment::files::read_file;
use aubade_environment::{FaultyFiles, FileFault, FileSystem, MemoryFiles};
use uuid::Uuid;

use super::folder::IDENTITY;
use super::*;

const DIR: &str = "/pool";

fn environment(files: &FaultyFiles) -> Environment {
    Environment::system().with_files(Arc::new(files.clone()))
}

fn files() -> FaultyFiles {
    FaultyFiles::new(Arc::new(MemoryFiles::default()))
}

fn open(files: &FaultyFiles, bytes_max: u64) -> Result<Arc<DiskTier>> {
    let disk = BufferPoolDisk { dir: PathBuf::from(DIR), bytes_max };
    DiskTier::open(&environment(files), &disk, cluster(1)).map(Arc::new)
}

fn cluster(number: u128) -> ClusterId {
    ClusterId(Uuid::from_u128(number))
}

fn segment(number: u128) -> SegmentId {
    SegmentId(Uuid::from_u128(number))
}

fn blocks(numbers: Range<u32>) -> BTreeMap<u32, Bytes> {
    numbers.map(|number| (number, Bytes::from(vec![u8::try_from(number).unwrap(); 1000]))).collect()
}

fn names() -> Vec<Arc<str>> {
    vec![Arc::from("a"), Arc::from("b")]
}

/// The files of the tier, with their paths.
fn written(files: &FaultyFiles) -> Vec<PathBuf> {
    let names = files.list_files(Path::new(DIR)).unwrap().into_iter();
    names.filter(|name| name.contains(".blocks")).map(|name| Path::new(DIR).join(name)).collect()
}

/// Changes a file behind the back of the tier.
fn rewrite(files: &FaultyFiles, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = read_file(files, path).unwrap().to_vec();
    change(&mut bytes);
    files.remove_file(path).unwrap();
    files.create_new(path).unwrap().write_all(&bytes).unwrap();
}

#[tokio::test]
async fn blocks_live_through_a_restart() {
    let files = files();
    let tier = open(&files, 1 << 20).unwrap();
    tier.write(segment(1), names(), blocks(3..6)).await;
    tier.write(segment(2), Vec::new(), blocks(0..1)).await;
    assert!(tier.read(segment(3), (0..5).collect(), false).await.is_empty());
    let before = tier.figures();
    drop(tier);
    let tier = open(&files, 1 << 20).unwrap();
    assert_eq!(tier.figures(), DiskFigures { bytes: before.bytes, ..DiskFigures::default() });
    assert_eq!(tier.recent(), [(segment(2), Vec::new()), (segment(1), names())]);
    assert_eq!(tier.read(segment(1), (0..5).collect(), false).await, blocks(3..5));
    assert_eq!((tier.figures().hits, tier.figures().misses), (2, 3));
    tier.retain(&BTreeSet::from([segment(2)])).await;
    assert!(tier.read(segment(1), (0..5).collect(), false).await.is_empty());
    tier.clear().await;
    assert_eq!((tier.figures().bytes, written(&files)), (0, Vec::new()));
}

#[tokio::test]
async fn what_was_not_used_for_longest_makes_room() {
    let files = files();
    let tier = open(&files, 4_000).unwrap();
    tier.write(segment(1), names(), blocks(0..1)).await;
    tier.write(segment(2), names(), blocks(0..1)).await;
    assert_eq!(tier.read(segment(1), BTreeSet::from([0]), false).await.len(), 1);
    tier.write(segment(3), names(), blocks(0..2)).await;
    for (number, left) in [(1, 1), (2, 0), (3, 2)] {
        assert_eq!(tier.read(segment(number), BTreeSet::from([0, 1]), false).await.len(), left, "{number}");
    }
    // What is larger than all changes nothing.
    tier.write(segment(4), names(), blocks(0..4)).await;
    assert_eq!((tier.read(segment(1), BTreeSet::from([0]), false).await.len(), written(&files).len()), (1, 2));
    assert!(tier.figures().bytes <= 4_000);
    assert_eq!((tier.figures().too_large, tier.figures().failed_writes), (1, 0));
    drop(tier);
    let tier = open(&files, 2_500).unwrap();
    assert!(tier.figures().bytes <= 2_500 && tier.figures().bytes > 0, "{:?}", tier.figures());
}

#[tokio::test]
async fn what_is_damaged_is_not_there() {
    let files = files();
    let tier = open(&files, 1 << 20).unwrap();
    for number in 0..3 {
        tier.write(segment(number), names(), blocks(0..2)).await;
    }
    let paths = written(&files);
    rewrite(&files, &paths[0], |bytes| *bytes.last_mut().unwrap() ^= 1);
    assert!(tier.read(segment(0), BTreeSet::from([0, 1]), false).await.is_empty());
    assert_eq!((tier.figures().damaged, written(&files).len()), (1, 2));
    assert_eq!(tier.read(segment(1), BTreeSet::from([0, 1]), false).await, blocks(0..2));
    files.set(FileFault::ReadFails);
    assert!(tier.read(segment(1), BTreeSet::from([0, 1]), false).await.is_empty());
    files.set(FileFault::None);
    assert_eq!(tier.read(segment(1), BTreeSet::from([0, 1]), false).await, blocks(0..2));
    tier.forget(segment(1)).await;
    tier.write(segment(1), names(), blocks(0..2)).await;
    files.remove_file(&written(&files)[1]).unwrap();
    assert!(tier.read(segment(1), BTreeSet::from([0, 1]), false).await.is_empty());
    tier.write(segment(1), names(), blocks(0..2)).await;
    // What is there already is not written again.
    tier.write(segment(1), names(), blocks(1..2)).await;
    drop(tier);
    // Cut off, as by a crash of the machine; with a header that lies; and one that was never ended.
    let paths = written(&files);
    rewrite(&files, &paths[0], |bytes| bytes.truncate(bytes.len() - 1));
    rewrite(&files, &paths[1], |bytes| bytes[20] ^= 1);
    files.create_new(&Path::new(DIR).join("00000000000000ff.blocks.tmp")).unwrap().write_all(b"AUB").unwrap();
    for name in ["mine.txt", "1.blocks", "notes.blocks.tmp", "ffffffffffffffff.blocks"] {
        files.create_new(&Path::new(DIR).join(name)).unwrap().write_all(b"x").unwrap();
    }
    let tier = open(&files, 1 << 20).unwrap();
    assert_eq!((tier.figures().damaged, tier.figures().bytes), (2, 0));
    let left = files.list_files(Path::new(DIR)).unwrap();
    assert_eq!(left, ["1.blocks", IDENTITY, "ffffffffffffffff.blocks", "mine.txt", "notes.blocks.tmp"]);
    tier.write(segment(1), names(), blocks(0..2)).await;
    assert_eq!(tier.read(segment(1), BTreeSet::from([0, 1]), false).await, blocks(0..2));
    tier.close().await;
    assert!(tier.read(segment(1), BTreeSet::from([0, 1]), false).await.is_empty());
}

#[tokio::test]
async fn a_full_disk_stops_writing_and_nothing_else() {
    let files = files();
    let tier = open(&files, 1 << 20).unwrap();
    tier.write(segment(1), names(), blocks(0..2)).await;
    files.set(FileFault::DiskFull);
    tier.write(segment(2), names(), blocks(0..2)).await;
    files.set(FileFault::None);
    tier.write(segment(2), names(), blocks(0..2)).await;
    let figures = tier.figures();
    assert_eq!((figures.failed_writes, written(&files).len()), (1, 1));
    assert_eq!(tier.read(segment(1), BTreeSet::from([0, 1]), false).await, blocks(0..2));
    assert!(tier.read(segment(2), BTreeSet::from([0, 1]), false).await.is_empty());
}

#[tokio::test]
async fn a_folder_is_of_one_cluster_one_coordinator_and_one_format() {
    let files = files();
    let tier = open(&files, 1 << 20).unwrap();
    tier.write(segment(1), names(), blocks(0..2)).await;
    assert_eq!(open(&files, 1 << 20).unwrap_err().code(), ErrorCode::InUse);
    drop(tier);
    let disk = BufferPoolDisk { dir: PathBuf::from(DIR), bytes_max: 1 << 20 };
    let error = DiskTier::open(&environment(&files), &disk, cluster(2)).unwrap_err();
    assert_eq!(error.code(), ErrorCode::WrongCluster);
    assert!(error.message().contains(DIR), "{error:?}");
    // Nothing was changed by it.
    assert_eq!(open(&files, 1 << 20).unwrap().read(segment(1), BTreeSet::from([0, 1]), false).await, blocks(0..2));
    rewrite(&files, &Path::new(DIR).join(IDENTITY), |bytes| {
        *bytes = String::from_utf8(bytes.clone()).unwrap().replace("\"format\": 1", "\"format\": 9").into_bytes();
    });
    let tier = open(&files, 1 << 20).unwrap();
    assert_eq!((tier.recent(), tier.figures().damaged, written(&files)), (Vec::new(), 0, Vec::new()));
    files.set(FileFault::DiskFull);
    drop(tier);
    files.remove_file(&Path::new(DIR).join(IDENTITY)).unwrap();
    assert_eq!(open(&files, 1 << 20).unwrap_err().code(), ErrorCode::DiskFull);
}

#[tokio::test]
async fn a_folder_with_files_of_others_is_refused() {
    for (folder, file) in [(None, Some("thesis.txt")), (None, Some("node.json")), (Some("segments"), None)] {
        let files = files();
        files.create_dir_all(&folder.map_or(PathBuf::from(DIR), |folder| Path::new(DIR).join(folder))).unwrap();
        if let Some(file) = file {
            files.create_new(&Path::new(DIR).join(file)).unwrap();
        }
        let before = files.list_files(Path::new(DIR)).unwrap();
        let error = open(&files, 1 << 20).unwrap_err();
        let other = folder.or(file).unwrap();
        assert_eq!(error.code(), ErrorCode::InvalidArgument);
        assert!(error.message().contains(other), "{error:?}");
        assert_eq!(files.list_files(Path::new(DIR)).unwrap(), before);
    }
    // What a pool leaves before it has signed, and a file system where it is mounted.
    let files = files();
    files.create_dir_all(&Path::new(DIR).join("lost+found")).unwrap();
    for name in ["LOCK", "buffer-pool.000000000000000c.tmp", "1.blocks", "2.blocks.tmp"] {
        files.create_new(&Path::new(DIR).join(name)).unwrap();
    }
    open(&files, 1 << 20).unwrap();
}

#[tokio::test]
async fn a_folder_that_may_not_be_written_is_refused() {
    let files = files();
    files.create_dir_all(Path::new(DIR)).unwrap();
    // Whether it is new, or has files of this cluster.
    for is_new in [true, false] {
        files.set(FileFault::ReadOnly);
        let error = open(&files, 1 << 20).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Io, "{error:?}");
        assert!(error.message().contains(DIR) && error.message().contains("cannot be written"), "{error:?}");
        assert!(error.hint_text().unwrap().contains("may write to"), "{error:?}");
        files.set(FileFault::None);
        let left = files.list_files(Path::new(DIR)).unwrap();
        assert_eq!(left.len(), if is_new { 0 } else { 2 }, "{left:?}");
        let tier = open(&files, 1 << 20).unwrap();
        tier.write(segment(1), names(), blocks(0..2)).await;
    }
    files.remove_dir_all(Path::new(DIR)).unwrap();
    files.set(FileFault::ReadOnly);
    let error = open(&files, 1 << 20).unwrap_err();
    assert!(error.code() == ErrorCode::Io && error.message().contains("cannot be made"), "{error:?}");
}

#[tokio::test]
async fn a_folder_that_becomes_read_only_is_still_read() {
    let files = files();
    let tier = open(&files, 4_000).unwrap();
    tier.write(segment(1), names(), blocks(0..2)).await;
    files.set(FileFault::ReadOnly);
    tier.write(segment(2), names(), blocks(0..1)).await;
    assert_eq!(tier.read(segment(1), BTreeSet::from([0, 1]), false).await, blocks(0..2));
    assert!(tier.read(segment(2), BTreeSet::from([0]), false).await.is_empty());
    assert_eq!((tier.figures().failed_writes, tier.figures().damaged), (1, 0));
    // What it may not remove is not used any more, and found when it is opened again.
    tier.clear().await;
    assert_eq!((tier.figures().bytes, written(&files).len()), (0, 1));
    files.set(FileFault::None);
    drop(tier);
    assert_eq!(open(&files, 4_000).unwrap().read(segment(1), BTreeSet::from([0, 1]), false).await, blocks(0..2));
}

#[tokio::test]
async fn a_folder_that_was_removed_is_made_again() {
    let files = files();
    let tier = open(&files, 1 << 20).unwrap();
    tier.write(segment(1), names(), blocks(0..2)).await;
    tier.write(segment(2), names(), blocks(0..2)).await;
    files.remove_dir_all(Path::new(DIR)).unwrap();
    assert!(tier.read(segment(1), BTreeSet::from([0, 1]), false).await.is_empty());
    tier.write(segment(3), names(), blocks(0..1)).await;
    assert_eq!(tier.read(segment(3), BTreeSet::from([0]), false).await, blocks(0..1));
    // Nothing counts that is gone.
    assert!(tier.read(segment(2), BTreeSet::from([0, 1]), false).await.is_empty());
    assert_eq!((tier.figures().failed_writes, tier.figures().damaged, tier.recent().len()), (0, 0, 1));
    tier.write(segment(1), names(), blocks(0..2)).await;
    assert_eq!(written(&files).len(), 2);
    // It is held as before, and has all that it needs to be opened again.
    assert_eq!(open(&files, 1 << 20).unwrap_err().code(), ErrorCode::InUse);
    let bytes = tier.figures().bytes;
    drop(tier);
    let tier = open(&files, 1 << 20).unwrap();
    assert_eq!((tier.figures().bytes, tier.figures().damaged), (bytes, 0));
    assert_eq!(tier.read(segment(1), BTreeSet::from([0, 1]), false).await, blocks(0..2));
}

#[tokio::test]
async fn a_folder_that_another_coordinator_has_made_again_is_left_to_it() {
    let files = files();
    let tier = open(&files, 1 << 20).unwrap();
    tier.write(segment(1), names(), blocks(0..2)).await;
    files.remove_dir_all(Path::new(DIR)).unwrap();
    // It cannot be made again now, and so is nobody's.
    files.set(FileFault::ReadOnly);
    tier.write(segment(2), names(), blocks(0..1)).await;
    files.set(FileFault::None);
    let other = open(&files, 1 << 20).unwrap();
    other.write(segment(3), names(), blocks(0..1)).await;
    let write_again = async || {
        // As after the pause.
        tier.state.lock().writes_from = Duration::ZERO;
        tier.write(segment(2), names(), blocks(0..1)).await;
        assert!(tier.read(segment(2), BTreeSet::from([0]), false).await.is_empty());
        written(&files).len()
    };
    assert_eq!(write_again().await, 1);
    drop(other);
    assert_eq!(write_again().await, 1);
    assert_eq!(tier.figures().failed_writes, 3);
    drop(tier);
    assert_eq!(open(&files, 1 << 20).unwrap().read(segment(3), BTreeSet::from([0]), false).await, blocks(0..1));
}
