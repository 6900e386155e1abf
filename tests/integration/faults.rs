//! Bad days: dead nodes, corrupt bytes, full disks, lost coordinators, lost replies.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::Int64Type;
use aubade_catalog::ManifestStore;
use aubade_catalog::store::{MemoryStore, PutScript, ScriptedStore};
use aubade_engine::query::QueryState;
use aubade_environment::FileFault;
use aubade_proto::{Error, ErrorCode};
use futures::{StreamExt, TryStreamExt};

use crate::harness::{TestCluster, TestNode, load_numbers, number, run, run_with_record};
use crate::plain::run_in;

const ROWS: i64 = 300_000;
const SUM: i64 = (ROWS - 1) * ROWS / 2;

/// The values of the one column of `batches`, in order.
fn sorted_numbers(batches: &[RecordBatch]) -> Vec<i64> {
    let mut seen: Vec<i64> =
        batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values()).copied().collect();
    seen.sort_unstable();
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_in_the_middle_of_a_scan_costs_no_row_and_doubles_none() {
    let cluster = TestCluster::start(6, 6).await;
    // So many segments that no node is the first choice for all of them.
    load_numbers(&cluster.engine, ROWS as usize, 12).await;
    // Every node but one dies after some batches have been handed on, whichever the scan uses. Texts in their own type
    // are more than what can be on its way to a reader that does not read on, so that no scan has ended by then.
    let session = cluster.engine.session();
    run_in(&session, "SET aubade.wire_encoding = off").await.unwrap();
    let output = session
        .execute("SELECT n, text, concat(text, ' of very many') AS longer FROM numbers WHERE n >= 0")
        .await
        .unwrap();
    let id = output.query_id;
    let mut stream = output.stream;
    let mut batches = vec![stream.next().await.unwrap().unwrap()];
    for node in &cluster.nodes[..5] {
        node.kill().await;
    }
    batches.extend(stream.try_collect::<Vec<_>>().await.unwrap());
    assert!(sorted_numbers(&batches).into_iter().eq(0..ROWS));
    let record = cluster.engine.queries().get(id).unwrap();
    assert!(record.retries > 0, "{record:?}");
    assert_eq!(number(&cluster.engine, "SELECT sum(n) FROM numbers").await, SUM);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stalls_is_left_for_another_replica() {
    let cluster = TestCluster::start(6, 6).await;
    load_numbers(&cluster.engine, ROWS as usize, 1).await;
    let sql = "SELECT sum(n + length(text)) - sum(length(text)) AS total FROM numbers";
    let (_, usual) = run_with_record(&cluster.engine, sql).await.unwrap();
    assert_eq!((usual.hedges, usual.retries), (0, 0), "{usual:?}");
    let asked = |node: &&TestNode| usual.replicas.contains(&node.node.id());
    let stalled = cluster.nodes.iter().find(asked).unwrap();
    stalled.stall();
    let (batches, record) = run_with_record(&cluster.engine, sql).await.unwrap();
    assert_eq!(batches[0].column(0).as_primitive::<Int64Type>().value(0), SUM);
    // The connection is open, so that nothing failed: another replica was asked too, and was faster.
    assert!(record.hedges > 0, "{record:?}");
    assert_eq!(record.retries, 0, "{record:?}");
    assert!(!record.replicas.contains(&stalled.node.id()), "{record:?}");
    // From now on it is asked last.
    let (_, next) = run_with_record(&cluster.engine, sql).await.unwrap();
    assert_eq!((next.hedges, next.retries), (0, 0), "{next:?}");
    stalled.resume();
    cluster
        .wait_for("the return of a stalled node", |status| status.nodes.iter().all(|node| node.alive == Some(true)))
        .await;
    assert_eq!(number(&cluster.engine, sql).await, SUM);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stalls_in_the_middle_of_a_scan_costs_no_row_and_doubles_none() {
    let cluster = TestCluster::start(6, 6).await;
    load_numbers(&cluster.engine, ROWS as usize, 12).await;
    let session = cluster.engine.session();
    // So wide that much of it is not on its way yet when the nodes stall.
    session.execute("SET aubade.pushdown = 'on'").await.unwrap().stream.try_collect::<Vec<_>>().await.unwrap();
    let output = session.execute("SELECT n, repeat(text, 20) AS wide FROM numbers").await.unwrap();
    let id = output.query_id;
    let mut stream = output.stream;
    let mut batches = vec![stream.next().await.unwrap().unwrap()];
    for node in &cluster.nodes[..5] {
        node.stall();
    }
    batches.extend(stream.try_collect::<Vec<_>>().await.unwrap());
    let record = cluster.engine.queries().get(id).unwrap();
    assert!(record.hedges > 0, "{record:?}");
    assert!(sorted_numbers(&batches).into_iter().eq(0..ROWS));
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
        let read = match node.node.get_segment(&header, segment, &[]).await {
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
                clock.sleep(Duration::from_millis(20)).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_query_frees_the_cpu_of_storage_nodes() {
    let cluster = TestCluster::start(3, 3).await;
    load_numbers(&cluster.engine, 900_000, 3).await;
    let sql = "SELECT sum(length(encode(sha512(repeat(text, 40)), 'hex'))) FROM numbers";
    let busy = || cluster.nodes.iter().map(|node| node.node.info().scan_cpu_micros).sum::<u64>();
    let scans = || cluster.nodes.iter().map(|node| node.node.info().active_scan_count).sum::<u64>();
    let idle = busy();
    let output = cluster.engine.session().execute(sql).await.unwrap();
    let id = output.query_id;
    cluster.wait_for("the start of a scan", |_| busy() > idle).await;
    drop(output);
    let cancelled = busy();
    cluster.wait_for("the end of the scans", |_| scans() == 0).await;
    let after = busy() - cancelled;
    // Steps that were under way; on a machine with nothing else to do they take less than 100 ms.
    assert!(after < 500_000, "{after} us of work after the query was cancelled");
    assert_eq!(cluster.engine.queries().get(id).unwrap().state, QueryState::Cancelled);
    // All of it takes longer.
    let before = busy();
    assert_eq!(number(&cluster.engine, sql).await, 128 * 900_000);
    assert!(busy() - before > 2 * (cancelled - idle + after), "the query had ended when it was cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_busy_nodes_hand_back_runs_on_the_coordinator() {
    let mut cluster = TestCluster::start(3, 3).await;
    load_numbers(&cluster.engine, 300_000, 3).await;
    let queries = [
        "SELECT sum(n), min(text), max(text), count(*) FROM numbers WHERE n % 7 = 3",
        "SELECT n % 5 AS m, count(DISTINCT length(text)), sum(n) FROM numbers GROUP BY m ORDER BY m",
        "SELECT n, text FROM numbers WHERE text LIKE '%99' ORDER BY n DESC LIMIT 5",
        "SELECT upper(text) AS t FROM numbers WHERE n IN (5, 150000, 299999) ORDER BY n",
        "SELECT count(*) FROM numbers a JOIN numbers b ON a.n = b.n * 1000 WHERE b.n < 50",
    ];
    let mut expected = Vec::new();
    for sql in queries {
        let (rows, record) = run_with_record(&cluster.engine, sql).await.unwrap();
        assert_eq!((record.pushbacks, record.segments_fetched), (0, 0), "{sql}");
        expected.push(rows);
    }
    cluster.pushback_wait = Duration::ZERO;
    for index in 0..3 {
        cluster.restart_node(index).await;
    }
    for (sql, expected) in queries.into_iter().zip(expected) {
        let (rows, record) = run_with_record(&cluster.engine, sql).await.unwrap();
        let one = |batches: &[RecordBatch]| concat_batches(&batches[0].schema(), batches).unwrap();
        assert_eq!(one(&rows), one(&expected), "{sql}");
        assert!(record.pushbacks > 0 && record.segments_fetched == record.segments_scanned, "{sql}: {record:?}");
        // Only the columns of the query were read.
        assert!(record.bytes_wire > 0, "{record:?}");
    }
    let snapshot = cluster.engine.snapshot().await.unwrap();
    let stored: u64 = snapshot.segments().map(|segment| segment.bytes).sum();
    let (_, record) = run_with_record(&cluster.engine, "SELECT sum(n) FROM numbers WHERE n > 10").await.unwrap();
    assert!(record.bytes_wire < stored, "{} of {stored} bytes were read", record.bytes_wire);
}
