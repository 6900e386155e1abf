//! Bad days: dead nodes, corrupt bytes, full disks, lost coordinators, lost replies.

use std::sync::Arc;

use aubade_catalog::ManifestStore;
use aubade_catalog::store::{MemoryStore, PutScript, ScriptedStore};
use aubade_environment::FileFault;
use aubade_proto::{Error, ErrorCode};
use futures::{StreamExt, TryStreamExt};

use crate::harness::{TestCluster, load_numbers, number, run, run_with_record};

const ROWS: i64 = 300_000;
const SUM: i64 = (ROWS - 1) * ROWS / 2;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_in_the_middle_of_a_scan_costs_no_row_and_doubles_none() {
    let cluster = TestCluster::start(6, 6).await;
    load_numbers(&cluster.engine, ROWS as usize, 3).await;
    // Every node but one dies after some batches have been handed on, whichever the scan uses.
    let output = cluster.engine.session().execute("SELECT n FROM numbers WHERE n >= 0").await.unwrap();
    let id = output.query_id;
    let mut stream = output.stream;
    let mut batches = vec![stream.next().await.unwrap().unwrap()];
    for node in &cluster.nodes[..5] {
        node.kill().await;
    }
    batches.extend(stream.try_collect::<Vec<_>>().await.unwrap());
    let mut seen: Vec<i64> = Vec::new();
    for batch in &batches {
        use arrow::array::AsArray;
        seen.extend(batch.column(0).as_primitive::<arrow::datatypes::Int64Type>().values());
    }
    seen.sort_unstable();
    assert!(seen.iter().copied().eq(0..ROWS), "{} rows of {ROWS}", seen.len());
    let record = cluster.engine.queries().get(id).unwrap();
    assert!(record.retries > 0, "{record:?}");
    assert_eq!(number(&cluster.engine, "SELECT sum(n) FROM numbers").await, SUM);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_is_found_answered_from_another_replica_and_repaired() {
    let cluster = TestCluster::start(3, 3).await;
    load_numbers(&cluster.engine, 50_000, 1).await;
    // Two of the three replicas: whichever is asked first, a corrupt one is met or the third answers.
    for node in &cluster.nodes[..2] {
        let path = node.segment_files().remove(0);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x40;
        std::fs::write(&path, bytes).unwrap();
    }
    // Scans go to the replica that is first for the segment; kill nothing, just ask until both
    // corrupt ones were met or healed.
    for _ in 0..3 {
        let sum = number(&cluster.engine, "SELECT sum(n + length(text)) - sum(length(text)) FROM numbers").await;
        assert_eq!(sum, 49_999 * 50_000 / 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_replica_is_reported_and_replaced() {
    let cluster = TestCluster::start(3, 3).await;
    load_numbers(&cluster.engine, 50_000, 1).await;
    for (index, node) in cluster.nodes.iter().enumerate() {
        let path = node.segment_files().remove(0);
        let good = std::fs::read(&path).unwrap();
        let mut bytes = good.clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        // Only the other two can answer now; when this node is asked it must notice.
        let snapshot = cluster.engine.snapshot().await.unwrap();
        let segment = snapshot.segments().next().unwrap().id;
        let header = cluster.header(&snapshot);
        let read = match node.node.get_segment(&header, segment).await {
            Ok((_, stream)) => stream.try_collect::<Vec<_>>().await.map(drop),
            Err(error) => Err(error),
        };
        assert_eq!(read.unwrap_err().code(), ErrorCode::SegmentCorrupt);
        cluster.wait_for("the repair of a corrupt replica", |status| status.under_replicated == 0).await;
        cluster.wait_for_file(index, &good).await;
    }
    assert_eq!(number(&cluster.engine, "SELECT sum(n) FROM numbers").await, 49_999 * 50_000 / 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_every_replica_gone_the_query_fails_and_names_the_segment() {
    let cluster = TestCluster::start(3, 3).await;
    load_numbers(&cluster.engine, 1000, 1).await;
    let segment = cluster.engine.snapshot().await.unwrap().segments().next().unwrap().id;
    for node in &cluster.nodes {
        node.kill().await;
    }
    let error = run(&cluster.engine, "SELECT sum(n) FROM numbers").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::SegmentUnavailable, "{error:?}");
    assert!(error.message().contains(&segment.to_string()), "{error:?}");
    assert!(error.hint_text().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn too_few_live_nodes_refuse_a_write_and_nothing_is_visible() {
    let cluster = TestCluster::start(6, 6).await;
    load_numbers(&cluster.engine, 1000, 1).await;
    for node in &cluster.nodes[..3] {
        node.kill().await;
    }
    let error = run(&cluster.engine, "INSERT INTO numbers VALUES (1, 'lost')").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::QuorumUnavailable, "{error:?}");
    assert!(error.message().contains("4 must"), "{error:?}");
    assert_eq!(number(&cluster.engine, "SELECT count(n) FROM numbers").await, 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_completes_with_two_dead_nodes_and_repair_fills_in_when_they_return() {
    let mut cluster = TestCluster::start(6, 6).await;
    for index in [1, 4] {
        cluster.nodes[index].kill().await;
    }
    load_numbers(&cluster.engine, 10_000, 2).await;
    assert_eq!(cluster.engine.status().await.unwrap().under_replicated, 2);
    for index in [1, 4] {
        cluster.restart_node(index).await;
    }
    cluster.wait_for("repair", |status| status.under_replicated == 0).await;
    // The nodes that were there all along go: what was repaired must answer.
    for index in [0, 2, 3, 5] {
        cluster.nodes[index].kill().await;
    }
    assert_eq!(number(&cluster.engine, "SELECT sum(n) FROM numbers").await, 9999 * 10_000 / 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_the_statement_and_leaves_nothing() {
    let cluster = TestCluster::start(3, 3).await;
    load_numbers(&cluster.engine, 1000, 1).await;
    for node in &cluster.nodes[..2] {
        node.files.set(FileFault::DiskFull);
    }
    let error = run(&cluster.engine, "INSERT INTO numbers SELECT n + 1000, text FROM numbers").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::DiskFull, "{error:?}");
    assert_eq!(number(&cluster.engine, "SELECT count(n) FROM numbers").await, 1000);
    for node in &cluster.nodes {
        node.files.set(FileFault::None);
        assert_eq!(node.segment_files().len(), 1);
    }
    run(&cluster.engine, "INSERT INTO numbers SELECT n + 1000, text FROM numbers").await.unwrap();
    assert_eq!(number(&cluster.engine, "SELECT count(n) FROM numbers").await, 2000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_lost_before_the_commit_leaves_nothing_visible_and_its_orphans_are_collected() {
    let store: Arc<dyn ManifestStore> = Arc::new(MemoryStore::default());
    let scripted = ScriptedStore::new(Arc::clone(&store));
    let coordinator: Arc<dyn ManifestStore> = Arc::new(scripted.clone());
    let mut cluster = TestCluster::start_with_store(3, 3, store, coordinator).await;
    load_numbers(&cluster.engine, 1000, 1).await;
    // Segments are written; the commit never gets an answer; then the coordinator goes away.
    scripted.always(Some(PutScript::Never));
    let engine = cluster.engine.clone();
    let nodes: Vec<_> = cluster.nodes.iter().map(|node| node.node.clone()).collect();
    let clock = Arc::clone(&cluster.environment.clock);
    tokio::select! {
        result = run(&engine, "INSERT INTO numbers SELECT n + 1000, text FROM numbers") => panic!("{result:?}"),
        () = async {
            while nodes.iter().any(|node| node.info().segment_count < 2) {
                clock.sleep(std::time::Duration::from_millis(20)).await;
            }
        } => {}
    }
    cluster.restart_engine().await;
    assert_eq!(number(&cluster.engine, "SELECT count(n) FROM numbers").await, 1000);
    cluster.engine.collect_orphans().await.unwrap();
    assert!(cluster.nodes.iter().all(|node| node.segment_files().len() == 1));
    assert_eq!(number(&cluster.engine, "SELECT sum(n) FROM numbers").await, 999 * 1000 / 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_reply_to_a_commit_is_still_a_commit_and_happens_once() {
    let store: Arc<dyn ManifestStore> = Arc::new(MemoryStore::default());
    let scripted = ScriptedStore::new(Arc::clone(&store));
    let coordinator: Arc<dyn ManifestStore> = Arc::new(scripted.clone());
    let cluster = TestCluster::start_with_store(3, 3, store, coordinator).await;
    run(&cluster.engine, "CREATE TABLE t (a BIGINT)").await.unwrap();
    for script in [PutScript::LostReply, PutScript::Twice, PutScript::Unavailable, PutScript::ConflictWithoutObject] {
        scripted.script([script]);
        run(&cluster.engine, "INSERT INTO t VALUES (1)").await.unwrap();
    }
    assert_eq!(number(&cluster.engine, "SELECT sum(a) FROM t").await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_does_not_keep_others_from_reading() {
    let cluster = TestCluster::start(1, 1).await;
    load_numbers(&cluster.engine, 400_000, 8).await;
    let mut slow = Vec::new();
    for _ in 0..8 {
        let mut stream = cluster.engine.session().execute("SELECT * FROM numbers").await.unwrap().stream;
        stream.next().await.unwrap().unwrap();
        slow.push(stream);
    }
    assert_eq!(number(&cluster.engine, "SELECT count(n) FROM numbers WHERE n >= 0").await, 400_000);
    drop(slow);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_statement_keeps_its_typed_error_over_the_wire() {
    let cluster = TestCluster::start(3, 3).await;
    load_numbers(&cluster.engine, 1000, 1).await;
    let error: Error = run(&cluster.engine, "SELECT n FROM numbers WHERE 10 / (n - 500) = 1").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::DivisionByZero, "{error:?}");
    // A deterministic error says nothing about the health of the nodes.
    let (_, record) = run_with_record(&cluster.engine, "SELECT n FROM numbers WHERE n = 3").await.unwrap();
    assert_eq!(record.retries, 0, "{record:?}");
    assert!(cluster.engine.status().await.unwrap().nodes.iter().all(|node| node.alive == Some(true)));
}
