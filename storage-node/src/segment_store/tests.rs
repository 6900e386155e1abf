//! Bad days of the segment store.

use std::path::Path;
use std::sync::Arc;

use aubade_environment::files::FileFault;
use aubade_environment::files::read_file;
use aubade_environment::{Environment, FaultyFiles, MemoryFiles};
use aubade_proto::ErrorCode;
use bytes::Bytes;
use futures::stream::StreamExt;

use super::*;
use crate::testing::{describe, memory_environment, pieces, segment_id};

fn open(env: &Environment) -> Arc<SegmentStore> {
    env.files.create_dir_all(Path::new("/data")).unwrap();
    Arc::new(SegmentStore::open(env.clone(), PathBuf::from("/data")).unwrap())
}

fn content(seed: u8) -> Bytes {
    (0..300_000_u32).map(|at| (at % 251) as u8 ^ seed).collect::<Vec<_>>().into()
}

fn names(env: &Environment, folder: &str) -> Vec<String> {
    env.files.list_files(&Path::new("/data").join(folder)).unwrap()
}

/// Puts other bytes into a file.
fn overwrite(env: &Environment, path: &Path, bytes: &[u8]) {
    env.files.remove_file(path).unwrap();
    env.files.create_new(path).unwrap().write_all(bytes).unwrap();
}

#[tokio::test]
async fn what_was_put_is_read_back_after_a_restart() {
    let env = memory_environment();
    let content = content(0);
    let receipt = open(&env).put(Epoch(1), describe(1, &content), pieces(&content)).await.unwrap();
    assert_eq!((receipt.bytes, receipt.sha256), (300_000, describe(1, &content).sha256));
    let store = open(&env);
    assert_eq!(store.summary().segment_bytes, 300_000);
    let file = store.open_segment(segment_id(1)).unwrap();
    let range = 65_000..200_000;
    assert_eq!(file.read_blocks(&range).unwrap().slice(&range).unwrap(), content.slice(65_000..200_000));
}

#[tokio::test]
async fn a_second_put_with_the_same_content_is_acknowledged_and_another_content_refused() {
    let env = memory_environment();
    let store = open(&env);
    for _ in 0..2 {
        store.put(Epoch(1), describe(1, &content(0)), pieces(&content(0))).await.unwrap();
    }
    let error = store.put(Epoch(1), describe(1, &content(1)), pieces(&content(1))).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::AlreadyExists);
    assert_eq!(names(&env, "segments").len(), 2);
}

#[tokio::test]
async fn bytes_that_differ_from_the_description_leave_nothing() {
    let env = memory_environment();
    let store = open(&env);
    for sent in [content(1), content(0).slice(..299_999), Bytes::from([content(0), Bytes::from_static(b"x")].concat())]
    {
        let error = store.put(Epoch(1), describe(1, &content(0)), pieces(&sent)).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::SegmentCorrupt);
        assert!(names(&env, "segments").is_empty() && names(&env, "incoming").is_empty());
    }
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing() {
    let env = memory_environment();
    let store = open(&env);
    let broken = futures::stream::iter([Ok(content(0).slice(..1000)), Err(Error::new(ErrorCode::Cancelled, "gone"))]);
    let error = store.put(Epoch(1), describe(1, &content(0)), broken.boxed()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Cancelled);
    assert!(names(&env, "segments").is_empty() && names(&env, "incoming").is_empty());
}

#[tokio::test]
async fn a_full_disk_and_a_failing_sync_leave_nothing() {
    let files = FaultyFiles::new(Arc::new(MemoryFiles::default()));
    let env = Environment::system().with_files(Arc::new(files.clone()));
    let store = open(&env);
    for (fault, code) in [(FileFault::DiskFull, ErrorCode::DiskFull), (FileFault::SyncFails, ErrorCode::Io)] {
        files.set(fault);
        let error = store.put(Epoch(1), describe(1, &content(0)), pieces(&content(0))).await.unwrap_err();
        assert_eq!(error.code(), code);
        assert!(names(&env, "segments").is_empty() && names(&env, "incoming").is_empty());
        assert_eq!(store.summary().segment_count, 0);
    }
}

#[tokio::test]
async fn a_flipped_byte_is_found_in_its_block_only() {
    let env = memory_environment();
    let store = open(&env);
    store.put(Epoch(1), describe(1, &content(0)), pieces(&content(0))).await.unwrap();
    let path = data_path(&store.segments(), segment_id(1));
    let mut bytes = read_file(env.files.as_ref(), &path).unwrap().to_vec();
    bytes[70_000] ^= 1;
    overwrite(&env, &path, &bytes);
    let file = store.open_segment(segment_id(1)).unwrap();
    assert!(file.read_blocks(&(0..1000)).is_ok());
    assert_eq!(file.read_blocks(&(66_000..66_001)).unwrap_err().code(), ErrorCode::SegmentCorrupt);
}

#[tokio::test]
async fn a_cut_file_is_corrupt() {
    let env = memory_environment();
    let store = open(&env);
    store.put(Epoch(1), describe(1, &content(0)), pieces(&content(0))).await.unwrap();
    overwrite(&env, &data_path(&store.segments(), segment_id(1)), &content(0)[..1000]);
    assert_eq!(store.open_segment(segment_id(1)).unwrap_err().code(), ErrorCode::SegmentCorrupt);
}

#[tokio::test]
async fn damaged_checksums_go_into_quarantine_at_start_and_a_new_put_repairs() {
    let env = memory_environment();
    let store = open(&env);
    store.put(Epoch(1), describe(1, &content(0)), pieces(&content(0))).await.unwrap();
    overwrite(&env, &sidecar_path(&store.segments(), segment_id(1)), b"damage");
    let store = open(&env);
    assert_eq!(store.summary().quarantined, [segment_id(1)]);
    assert_eq!(store.description(segment_id(1)).unwrap_err().code(), ErrorCode::SegmentNotFound);
    store.put(Epoch(1), describe(1, &content(0)), pieces(&content(0))).await.unwrap();
    assert!(store.summary().quarantined.is_empty() && names(&env, "quarantine").is_empty());
    assert!(store.open_segment(segment_id(1)).is_ok());
}

#[tokio::test]
async fn a_vanished_file_is_reported_until_a_restart_and_then_not_listed() {
    let env = memory_environment();
    let store = open(&env);
    for number in [1, 2] {
        store.put(Epoch(1), describe(number, &content(0)), pieces(&content(0))).await.unwrap();
    }
    env.files.remove_file(&data_path(&store.segments(), segment_id(1))).unwrap();
    let error = store.open_segment(segment_id(1)).unwrap_err();
    store.quarantine(segment_id(1), &error);
    assert_eq!(store.summary().quarantined, [segment_id(1)]);
    let store = open(&env);
    assert!(store.summary().quarantined.is_empty());
    let (listed, _) = store.page(None, 10);
    assert_eq!(listed.iter().map(|held| held.segment_id).collect::<Vec<_>>(), [segment_id(2)]);
    // Its checksums were put aside without it, and are no use.
    assert!(names(&env, "quarantine").is_empty());
}

#[tokio::test]
async fn a_segment_that_is_held_is_acknowledged_without_its_bytes_and_a_lost_one_is_not() {
    let env = memory_environment();
    let store = open(&env);
    let description = describe(1, &content(0));
    assert!(store.acknowledge_held(Epoch(1), &description).unwrap().is_none());
    store.put(Epoch(1), description.clone(), pieces(&content(0))).await.unwrap();
    let receipt = store.acknowledge_held(Epoch(1), &description).unwrap().unwrap();
    assert_eq!(receipt.sha256, description.sha256);
    let other = store.acknowledge_held(Epoch(1), &describe(1, &content(1))).unwrap_err();
    assert_eq!(other.code(), ErrorCode::AlreadyExists);
    store.seal(Epoch(2)).unwrap();
    assert_eq!(store.acknowledge_held(Epoch(1), &description).unwrap_err().code(), ErrorCode::StaleEpoch);
    env.files.remove_file(&data_path(&store.segments(), segment_id(1))).unwrap();
    assert!(store.acknowledge_held(Epoch(2), &description).unwrap().is_none());
    assert_eq!(store.summary().quarantined, [segment_id(1)]);
}

#[tokio::test]
async fn leftovers_of_a_crash_are_removed_at_start() {
    let env = memory_environment();
    let store = open(&env);
    for path in [store.incoming().join("half.tmp"), sidecar_path(&store.segments(), segment_id(5))] {
        env.files.create_new(&path).unwrap().write_all(b"x").unwrap();
    }
    drop(store);
    open(&env);
    assert!(names(&env, "segments").is_empty() && names(&env, "incoming").is_empty());
}

#[tokio::test]
async fn writers_older_than_the_sealed_epoch_are_refused_after_a_restart_too() {
    let env = memory_environment();
    assert_eq!(open(&env).seal(Epoch(5)).unwrap(), Epoch(5));
    let store = open(&env);
    let put = store.put(Epoch(4), describe(1, &content(0)), pieces(&content(0))).await;
    assert_eq!(put.unwrap_err().code(), ErrorCode::StaleEpoch);
    assert_eq!(store.delete(Epoch(4), &[segment_id(1)]).unwrap_err().code(), ErrorCode::StaleEpoch);
    assert_eq!(store.seal(Epoch(4)).unwrap_err().code(), ErrorCode::StaleEpoch);
    assert_eq!(store.seal(Epoch(5)).unwrap(), Epoch(5));
}

#[tokio::test]
async fn an_upload_that_began_before_a_seal_is_refused_after_it() {
    let env = memory_environment();
    let store = open(&env);
    let sealing = Arc::clone(&store);
    let data = pieces(&content(0)).inspect(move |_| drop(sealing.seal(Epoch(2))));
    let error = store.put(Epoch(1), describe(1, &content(0)), data.boxed()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::StaleEpoch);
    assert!(names(&env, "segments").is_empty());
}

#[tokio::test]
async fn lists_are_paged_and_deletes_remove_files() {
    let env = memory_environment();
    let store = open(&env);
    for number in 1..=3 {
        store.put(Epoch(1), describe(number, &content(0)), pieces(&content(0))).await.unwrap();
    }
    let (page, more) = store.page(None, 2);
    assert_eq!((page.len(), page[1].segment_id, more), (2, segment_id(2), true));
    let (page, more) = store.page(Some(segment_id(2)), 2);
    assert_eq!((page.len(), more), (1, false));
    assert_eq!(store.delete(Epoch(1), &[segment_id(2), segment_id(77)]).unwrap(), 1);
    assert_eq!(names(&env, "segments").len(), 4);
    assert_eq!(open(&env).summary().segment_count, 2);
}
