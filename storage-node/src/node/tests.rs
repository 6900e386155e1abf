//! Life cycle, admission and the wire of a node.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aubade_environment::{Environment, Network, TaskGroup, TcpNetwork};
use aubade_proto::convert::{ScanDecoder, encode_header, encode_scan_request};
use aubade_proto::wire::storage as wire;
use aubade_proto::wire::storage::storage_node_client::StorageNodeClient;
use aubade_proto::{ClusterId, ErrorCode, ScanEvent, ScanRequest};
use bytes::Bytes;
use futures::stream::{StreamExt, TryStreamExt};
use uuid::Uuid;

use super::StorageNode;
use crate::options::StorageNodeOptions;
use crate::testing::{
    CLUSTER, describe, fragment, header, memory_environment, node, parquet, pieces, put, rows, scan, scan_request,
    segment_id,
};

fn request(segments: &[(u128, u64)]) -> ScanRequest {
    scan_request(fragment(&rows(0, 0).schema(), None, &["id", "comment"], None), segments)
}

/// Flips one byte of a stored segment.
fn damage(env: &Environment, number: u128, at: usize) {
    let path = Path::new("/data/segments").join(format!("{}.parquet", segment_id(number)));
    let mut bytes = aubade_environment::files::read_file(env.files.as_ref(), &path).unwrap().to_vec();
    bytes[at] ^= 0x40;
    env.files.remove_file(&path).unwrap();
    env.files.create_new(&path).unwrap().write_all(&bytes).unwrap();
}

#[tokio::test]
async fn a_restart_keeps_the_id_and_the_segments() {
    let env = memory_environment();
    let first = node(&env).await;
    put(&first, 1, &parquet(&rows(0, 100))).await;
    first.shutdown(Duration::from_secs(1)).await;
    let second = node(&env).await;
    assert_eq!((second.id(), second.info().segment_count), (first.id(), 1));
    assert_eq!(scan(&second, request(&[(1, 0)])).await.unwrap().row_count(), 100);
}

#[tokio::test]
async fn a_folder_in_use_or_of_another_cluster_is_refused() {
    let env = memory_environment();
    let first = node(&env).await;
    let options = || StorageNodeOptions::new("/data", "az1");
    let open = StorageNode::open(env.clone(), CLUSTER, options()).await;
    assert_eq!(open.unwrap_err().code(), ErrorCode::InUse);
    first.shutdown(Duration::ZERO).await;
    let other = ClusterId(Uuid::from_u128(99));
    let open = StorageNode::open(env.clone(), other, options()).await;
    assert_eq!(open.unwrap_err().code(), ErrorCode::WrongCluster);
}

#[tokio::test]
async fn a_folder_on_disk_works_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let open = || {
        let options = StorageNodeOptions::new(folder.path().join("node"), "az2");
        StorageNode::open(Environment::system(), CLUSTER, options)
    };
    let first = open().await.unwrap();
    put(&first, 1, &parquet(&rows(0, 20_000))).await;
    assert_eq!(open().await.unwrap_err().code(), ErrorCode::InUse);
    first.shutdown(Duration::from_secs(1)).await;
    let second = open().await.unwrap();
    assert_eq!(second.id(), first.id());
    assert_eq!(scan(&second, request(&[(1, 0)])).await.unwrap().row_count(), 20_000);
}

#[tokio::test]
async fn callers_of_another_cluster_or_without_time_are_refused() {
    let node = node(&memory_environment()).await;
    let mut wrong = header(1);
    wrong.cluster_id = ClusterId(Uuid::from_u128(99));
    assert_eq!(node.seal(&wrong).await.unwrap_err().code(), ErrorCode::WrongCluster);
    let mut late = request(&[]);
    late.header.timeout = Duration::ZERO;
    assert_eq!(node.scan(late).await.err().unwrap().code(), ErrorCode::DeadlineExceeded);
}

#[tokio::test]
async fn a_flipped_byte_is_reported_and_put_aside_and_the_others_go_on() {
    let env = memory_environment();
    let node = node(&env).await;
    for number in [1, 2] {
        put(&node, number, &parquet(&rows(0, 20_000))).await;
    }
    damage(&env, 1, 1_000);
    let scanned = scan(&node, request(&[(1, 0), (2, 0)])).await.unwrap();
    assert_eq!((scanned.failed[0].0, scanned.failed[0].1.code()), (0, ErrorCode::SegmentCorrupt));
    assert_eq!((scanned.row_count(), node.info().quarantined), (20_000, vec![segment_id(1)]));
    let again = scan(&node, request(&[(1, 0)])).await.unwrap();
    assert_eq!(again.failed[0].1.code(), ErrorCode::SegmentNotFound);
    put(&node, 1, &parquet(&rows(0, 20_000))).await;
    assert_eq!(scan(&node, request(&[(1, 0)])).await.unwrap().row_count(), 20_000);
    assert!(node.info().quarantined.is_empty());
}

#[tokio::test]
async fn a_segment_reads_out_as_it_was_put_and_damage_is_found() {
    let env = memory_environment();
    let node = node(&env).await;
    let content: Bytes = (0..2_500_000_u32).map(|at| (at % 253) as u8).collect::<Vec<_>>().into();
    put(&node, 1, &content).await;
    let (description, chunks) = node.get_segment(&header(1), segment_id(1), &[]).await.unwrap();
    assert_eq!(description, describe(1, &content));
    let chunks: Vec<Bytes> = chunks.try_collect().await.unwrap();
    assert_eq!((chunks.len(), Bytes::from(chunks.concat())), (3, content));
    damage(&env, 1, 1_500_000);
    let (_, chunks) = node.get_segment(&header(1), segment_id(1), &[]).await.unwrap();
    let error = chunks.try_collect::<Vec<Bytes>>().await.unwrap_err();
    assert_eq!((error.code(), node.info().quarantined.len()), (ErrorCode::SegmentCorrupt, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_scans_are_told_to_wait() {
    let options = StorageNodeOptions { max_concurrent_scans: 1, ..StorageNodeOptions::new("/data", "az1") };
    let node = StorageNode::open(memory_environment(), CLUSTER, options).await.unwrap();
    put(&node, 1, &parquet(&rows(0, 20_000))).await;
    let many: Vec<_> = (0..100).map(|_| (1, 0)).collect();
    let held = node.scan(request(&many)).await.unwrap();
    let error = node.scan(request(&[(1, 0)])).await.err().unwrap();
    assert_eq!(error.code(), ErrorCode::Busy);
    assert!(error.to_detail().retry_after_millis > 0);
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_deadline_ends_a_scan_with_an_error() {
    let node = node(&memory_environment()).await;
    put(&node, 1, &parquet(&rows(0, 20_000))).await;
    let many: Vec<_> = (0..5_000).map(|_| (1, 0)).collect();
    let mut slow = request(&many);
    slow.header.timeout = Duration::from_millis(30);
    assert_eq!(scan(&node, slow).await.unwrap_err().code(), ErrorCode::DeadlineExceeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_finishes_running_scans_and_refuses_new_ones() {
    let node = node(&memory_environment()).await;
    put(&node, 1, &parquet(&rows(0, 20_000))).await;
    let events = node.scan(request(&[(1, 0), (1, 0), (1, 0)])).await.unwrap();
    let (stopping, reading) = (node.clone(), events.try_collect::<Vec<_>>());
    let (events, ()) = tokio::join!(reading, stopping.shutdown(Duration::from_secs(60)));
    let done = events.unwrap().into_iter().filter(|event| matches!(event, ScanEvent::SegmentDone { .. })).count();
    assert_eq!(done, 3);
    assert_eq!(node.scan(request(&[])).await.err().unwrap().code(), ErrorCode::ShuttingDown);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_ends_scans_that_nobody_reads() {
    let node = node(&memory_environment()).await;
    put(&node, 1, &parquet(&rows(0, 20_000))).await;
    let many: Vec<_> = (0..100).map(|_| (1, 0)).collect();
    let events = node.scan(request(&many)).await.unwrap();
    node.shutdown(Duration::from_millis(10)).await;
    let error = events.try_collect::<Vec<_>>().await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::ShuttingDown);
}

async fn served(node: &StorageNode, tasks: &TaskGroup) -> String {
    let listener = TcpNetwork.listen("127.0.0.1:0").await.unwrap();
    let address = listener.local_address().unwrap().to_string();
    let (node, group) = (node.clone(), tasks.clone());
    tasks.spawn_graceful(async move { crate::serve(node, listener, &group).await.unwrap() });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_puts_lists_scans_and_stops() {
    let (node, tasks) = (node(&memory_environment()).await, TaskGroup::new());
    let address = served(&node, &tasks).await;
    let mut client = StorageNodeClient::connect(format!("http://{address}")).await.unwrap();
    let content = parquet(&rows(0, 20_000));
    let description = aubade_proto::convert::encode_description(&describe(1, &content));
    let first = wire::PutSegmentRequest {
        header: Some(encode_header(&header(1))),
        description: Some(description),
        data: Bytes::new(),
    };
    let rest =
        pieces(&content).map(|data| wire::PutSegmentRequest { header: None, description: None, data: data.unwrap() });
    let receipt = client.put_segment(futures::stream::iter([first]).chain(rest)).await.unwrap().into_inner();
    assert_eq!(receipt.bytes, content.len() as u64);
    let request = request(&[(1, 5)]);
    let mut decoder = ScanDecoder::new(Arc::clone(request.fragment.output_schema())).unwrap();
    let mut replies = client.scan(encode_scan_request(&request).unwrap()).await.unwrap().into_inner();
    let mut rows = 0;
    while let Some(reply) = replies.message().await.unwrap() {
        if let Some(ScanEvent::Batch { batch, wire_bytes, .. }) = decoder.decode(reply).unwrap() {
            assert!(wire_bytes > 0);
            rows += batch.num_rows();
        }
    }
    assert_eq!(rows, 19_995);
    drop(client);
    tasks.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_keep_their_code_over_the_wire() {
    let (node, tasks) = (node(&memory_environment()).await, TaskGroup::new());
    let address = served(&node, &tasks).await;
    let mut client = StorageNodeClient::connect(format!("http://{address}")).await.unwrap();
    let code = |status: tonic::Status| aubade_proto::Error::from_status(&status, "node").code();
    let info = client.info(wire::InfoRequest { header: None }).await;
    assert_eq!(code(info.unwrap_err()), ErrorCode::InvalidMessage);
    let newer = wire::CallHeader { protocol: aubade_proto::STORAGE_PROTOCOL + 1, ..encode_header(&header(1)) };
    let info = client.info(wire::InfoRequest { header: Some(newer) }).await;
    assert_eq!(code(info.unwrap_err()), ErrorCode::UnsupportedVersion);
    let get = wire::GetSegmentRequest {
        header: Some(encode_header(&header(1))),
        segment_id: segment_id(1).to_wire(),
        ranges: Vec::new(),
    };
    assert_eq!(code(client.get_segment(get).await.unwrap_err()), ErrorCode::SegmentNotFound);
    drop(client);
    tasks.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_is_copied_from_the_first_source_that_has_it() {
    let (full, empty, target) =
        (node(&memory_environment()).await, node(&memory_environment()).await, node(&memory_environment()).await);
    let tasks = TaskGroup::new();
    let content = parquet(&rows(0, 20_000));
    put(&full, 1, &content).await;
    let sources = ["127.0.0.1:1".to_owned(), served(&empty, &tasks).await, served(&full, &tasks).await];
    let description = describe(1, &content);
    let receipt = target.replicate_segment(&header(1), &description, &sources).await.unwrap();
    assert_eq!(receipt.sha256, description.sha256);
    assert_eq!(scan(&target, request(&[(1, 0)])).await.unwrap().row_count(), 20_000);
    let error = target.replicate_segment(&header(1), &describe(2, b"x"), &sources).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::SegmentNotFound);
    tasks.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_away_is_no_failure_of_the_node_that_asked_it() {
    let target = node(&memory_environment()).await;
    let content = parquet(&rows(0, 100));
    let away = ["127.0.0.1:1".to_owned()];
    let error = target.replicate_segment(&header(1), &describe(1, &content), &away).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::SegmentUnavailable);
    assert!(error.report().contains("127.0.0.1:1"), "{error:?}");
    // What is here already needs no source.
    put(&target, 1, &content).await;
    target.replicate_segment(&header(1), &describe(1, &content), &away).await.unwrap();
}

#[tokio::test]
async fn a_node_short_of_cpu_hands_scans_back_to_those_who_can_run_them() {
    let options = StorageNodeOptions { pushback_wait: Duration::ZERO, ..StorageNodeOptions::new("/data", "az1") };
    let node = StorageNode::open(memory_environment(), CLUSTER, options).await.unwrap();
    put(&node, 1, &parquet(&rows(0, 20_000))).await;
    let able = ScanRequest { may_push_back: true, ..request(&[(1, 0)]) };
    let error = node.scan(able).await.map(drop).unwrap_err();
    assert_eq!(error.code(), ErrorCode::PushedBack);
    assert_eq!(scan(&node, request(&[(1, 0)])).await.unwrap().row_count(), 20_000);
}

#[tokio::test]
async fn ranges_of_a_segment_are_sent_in_their_order() {
    let node = node(&memory_environment()).await;
    let content: Bytes = (0..2_500_000_u32).map(|at| (at % 253) as u8).collect::<Vec<_>>().into();
    put(&node, 1, &content).await;
    let ranges = [0..7, 7..7, 100..1_300_000, 2_000_000..2_000_010];
    let (_, chunks) = node.get_segment(&header(1), segment_id(1), &ranges).await.unwrap();
    let expected: Vec<u8> =
        ranges.iter().flat_map(|range| content[range.start as usize..range.end as usize].to_vec()).collect();
    assert_eq!(chunks.try_collect::<Vec<Bytes>>().await.unwrap().concat(), expected);
    let one = |start, end| vec![Range { start, end }];
    for wrong in [one(10, 5), one(0, 2_500_001), one(u64::MAX, u64::MAX), vec![5..9, 8..10], vec![5..9, 0..1]] {
        let error = node.get_segment(&header(1), segment_id(1), &wrong).await.map(drop).unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidMessage);
    }
}
