//! Replicas that are lost, found damaged or left over, and nodes that come and go for good.

use aubade_catalog::{Action, Commit, Removal, placement};
use aubade_engine::ClusterStatus;
use aubade_proto::{ErrorCode, NodeId, TransactionId};

use crate::harness::{TestCluster, load_numbers, number, run};

const ROWS: usize = 50_000;
const SUM: i64 = 49_999 * 50_000 / 2;

/// A cluster of nodes with a copy each, and one table of one segment.
async fn loaded(nodes: usize) -> TestCluster {
    let cluster = TestCluster::start(nodes, u32::try_from(nodes).unwrap()).await;
    load_numbers(&cluster.engine, ROWS, 1).await;
    cluster
}

fn flip(path: &std::path::Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// The nodes that the manifest says hold the one segment.
async fn holders(cluster: &TestCluster) -> Vec<NodeId> {
    cluster.engine.snapshot().await.unwrap().segments().next().unwrap().holders.clone()
}

fn all_well(status: &ClusterStatus) -> bool {
    status.under_replicated == 0
}

/// Takes a node out as `aubade cluster remove-node` does.
async fn remove(cluster: &TestCluster, node: NodeId, answering: &[NodeId]) -> aubade_proto::Result<Commit> {
    let removal = Removal { node, answering: answering.iter().copied().collect() };
    let transaction = TransactionId(cluster.environment.new_uuid());
    let manifest = cluster.manifest().await;
    manifest.commit_if(transaction, vec![Action::RemoveNode(node)], |state| removal.check(state)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_vanished_while_its_node_was_down_is_replaced() {
    let mut cluster = loaded(3).await;
    let path = cluster.nodes[0].segment_files().remove(0);
    let good = std::fs::read(&path).unwrap();
    cluster.nodes[0].kill().await;
    cluster.nodes[0].node.shutdown(std::time::Duration::ZERO).await;
    std::fs::remove_file(&path).unwrap();
    cluster.restart_node(0).await;
    cluster.wait_for_file(0, &good).await;
    cluster.wait_for("the manifest names it again", all_well).await;
    for index in [1, 2] {
        cluster.nodes[index].kill().await;
    }
    assert_eq!(number(&cluster.engine, "SELECT sum(n) FROM numbers").await, SUM);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_its_node_lacks_is_missed_without_a_restart_too() {
    let cluster = loaded(3).await;
    let good = std::fs::read(cluster.nodes[0].segment_files().remove(0)).unwrap();
    let snapshot = cluster.engine.snapshot().await.unwrap();
    let entry = snapshot.segments().next().unwrap();
    let segment = entry.id;
    let header = cluster.header(&snapshot);
    // Those that a scan asks first, so that it is told that the segment is not there.
    let lacking: Vec<usize> = placement::rendezvous_order(segment, &entry.holders)[..2]
        .iter()
        .map(|id| cluster.nodes.iter().position(|node| node.node.id() == *id).unwrap())
        .collect();
    for index in lacking.iter().copied() {
        assert_eq!(cluster.nodes[index].node.delete_segments(&header, &[segment]).await.unwrap(), 1);
    }
    let asked = async {
        loop {
            assert_eq!(number(&cluster.engine, "SELECT sum(n) FROM numbers").await, SUM);
            cluster.environment.clock.sleep(std::time::Duration::from_millis(200)).await;
        }
    };
    tokio::select! {
        () = asked => {}
        () = async { for index in lacking { cluster.wait_for_file(index, &good).await } } => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_replica_one_stays_named_and_a_file_that_is_restored_heals_all() {
    let mut cluster = loaded(3).await;
    let paths: Vec<_> = cluster.nodes.iter().map(|node| node.segment_files().remove(0)).collect();
    let (good, sum) = (std::fs::read(&paths[0]).unwrap(), std::fs::read(paths[0].with_extension("sum")).unwrap());
    for path in &paths {
        std::fs::remove_file(path).unwrap();
    }
    let error = run(&cluster.engine, "SELECT sum(n + length(text)) FROM numbers").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::SegmentUnavailable, "{error:?}");
    cluster.wait_for("all but one are taken out", |status| status.under_replicated == 1).await;
    let named = holders(&cluster).await;
    assert_eq!(named.len(), 1);
    let error = run(&cluster.engine, "SELECT sum(n + length(text)) FROM numbers").await.unwrap_err();
    assert!(error.message().contains(&format!("node {}", named[0])), "{error:?}");
    // A file of one that is not named any more comes back, from wherever.
    let index = cluster.nodes.iter().position(|node| node.node.id() != named[0]).unwrap();
    cluster.nodes[index].kill().await;
    cluster.nodes[index].node.shutdown(std::time::Duration::ZERO).await;
    std::fs::write(&paths[index], &good).unwrap();
    std::fs::write(paths[index].with_extension("sum"), sum).unwrap();
    cluster.restart_node(index).await;
    cluster.wait_for("all replicas are back", all_well).await;
    for index in 0..3 {
        cluster.wait_for_file(index, &good).await;
    }
    assert_eq!(number(&cluster.engine, "SELECT sum(n) FROM numbers").await, SUM);
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_that_nobody_reads_is_found_by_scrubbing_and_repaired() {
    let mut cluster = loaded(3).await;
    let path = cluster.nodes[1].segment_files().remove(0);
    let good = std::fs::read(&path).unwrap();
    cluster.nodes[1].kill().await;
    flip(&path);
    cluster.scrub_bytes_per_second = 1 << 30;
    cluster.restart_node(1).await;
    cluster.wait_for_file(1, &good).await;
    let found = |status: &ClusterStatus| {
        let mut nodes = status.nodes.iter().filter_map(|node| node.scrub.as_ref().map(|scrub| (node, scrub)));
        nodes.any(|(node, scrub)| scrub.damaged == 1 && node.quarantined == Some(0))
    };
    cluster.wait_for("the status says so", |status| found(status) && all_well(status)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_put_aside_of_a_dropped_table_is_deleted() {
    let cluster = loaded(2).await;
    let path = cluster.nodes[0].segment_files().remove(0);
    let quarantine = cluster.nodes[0].dir.join("quarantine");
    // With the other replica away, nothing replaces the damaged one.
    cluster.nodes[1].kill().await;
    flip(&path);
    run(&cluster.engine, "SELECT sum(n + length(text)) FROM numbers").await.unwrap_err();
    assert_eq!(std::fs::read_dir(&quarantine).unwrap().count(), 2);
    cluster.engine.collect_orphans().await.unwrap();
    assert_eq!(std::fs::read_dir(&quarantine).unwrap().count(), 2, "its table still names it");
    run(&cluster.engine, "DROP TABLE numbers").await.unwrap();
    cluster.engine.collect_orphans().await.unwrap();
    assert_eq!(std::fs::read_dir(&quarantine).unwrap().count(), 0);
    assert_eq!(cluster.nodes[0].node.info().quarantined, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_replicas_of_a_node_that_is_removed_go_to_another_one() {
    let mut cluster = TestCluster::start(4, 3).await;
    load_numbers(&cluster.engine, ROWS, 4).await;
    let snapshot = cluster.engine.snapshot().await.unwrap();
    let gone = snapshot.segments().next().unwrap().holders[0];
    let index = cluster.nodes.iter().position(|node| node.node.id() == gone).unwrap();
    let others: Vec<NodeId> = cluster.nodes.iter().map(|node| node.node.id()).filter(|id| *id != gone).collect();
    cluster.nodes[index].kill().await;
    remove(&cluster, gone, &others).await.unwrap();
    cluster.wait_for("the others have all", |status| status.nodes.len() == 3 && all_well(status)).await;
    let snapshot = cluster.engine.snapshot().await.unwrap();
    for segment in snapshot.segments() {
        assert_eq!((segment.holders.len(), segment.intended.contains(&gone)), (3, false), "{segment:?}");
    }
    // The coordinator is still the writer, and the node is one again when it comes back.
    run(&cluster.engine, "INSERT INTO numbers VALUES (0, 'after')").await.unwrap();
    cluster.restart_node(index).await;
    cluster.wait_for("it is back", |status| status.nodes.len() == 4).await;
    assert_eq!(number(&cluster.engine, "SELECT sum(n) FROM numbers").await, SUM);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_was_replaced_is_filled_again_once_its_old_node_is_removed() {
    let mut cluster = loaded(3).await;
    let good = std::fs::read(cluster.nodes[0].segment_files().remove(0)).unwrap();
    let ids: Vec<NodeId> = cluster.nodes.iter().map(|node| node.node.id()).collect();
    cluster.nodes[0].kill().await;
    cluster.nodes[0].node.shutdown(std::time::Duration::ZERO).await;
    std::fs::remove_dir_all(&cluster.nodes[0].dir).unwrap();
    let error = remove(&cluster, ids[0], &ids[1..2]).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::TooFewReplicas, "{error:?}");
    remove(&cluster, ids[0], &ids[1..]).await.unwrap();
    cluster.restart_node(0).await;
    assert_ne!(cluster.nodes[0].node.id(), ids[0]);
    cluster.wait_for_file(0, &good).await;
    cluster.wait_for("three copies", |status| status.nodes.len() == 3 && all_well(status)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_to_too_few_nodes_is_copied_to_those_that_join() {
    let mut cluster = TestCluster::start(2, 3).await;
    load_numbers(&cluster.engine, ROWS, 1).await;
    assert_eq!(cluster.engine.status().await.unwrap().under_replicated, 1);
    cluster.add_node().await;
    cluster.wait_for("a third copy", all_well).await;
    assert_eq!(cluster.nodes[2].segment_files().len(), 1);
}
