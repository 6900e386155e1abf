//! The read and write path over six real nodes.

use aubade_proto::ErrorCode;

use crate::harness::{TestCluster, load_numbers, number, run, run_with_record};

#[tokio::test(flavor = "multi_thread")]
async fn rows_come_back_from_six_copies_with_filters_pushed() {
    let cluster = TestCluster::start(6, 6).await;
    load_numbers(&cluster.engine, 30_000, 3).await;
    let status = cluster.engine.status().await.unwrap();
    assert_eq!((status.copies, status.segments, status.under_replicated), (6, 3, 0));
    assert!(status.nodes.iter().all(|node| node.replicas == 3), "{status:#?}");
    assert_eq!(number(&cluster.engine, "SELECT sum(n) FROM numbers").await, 29_999 * 30_000 / 2);

    let (batches, record) = run_with_record(&cluster.engine, "SELECT text FROM numbers WHERE n = 12345").await.unwrap();
    let text = arrow::util::pretty::pretty_format_batches(&batches).unwrap().to_string();
    assert!(text.contains("row number 12345"), "{text}");
    assert_eq!((record.rows, record.segments_pruned, record.segments_scanned), (1, 2, 1), "{record:?}");
    assert!(record.bytes_wire > 0 && record.bytes_wire < record.bytes_read, "{record:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_stops_the_scan_early() {
    let cluster = TestCluster::start(1, 1).await;
    load_numbers(&cluster.engine, 200_000, 1).await;
    let (batches, record) = run_with_record(&cluster.engine, "SELECT n FROM numbers LIMIT 7").await.unwrap();
    assert_eq!(batches.iter().map(|batch| batch.num_rows()).sum::<usize>(), 7);
    assert!(record.rows_in < 200_000, "{record:?}");
    // What was read is told with the last rows, and waited for but a moment.
    for _ in 0..50 {
        let (_, record) = run_with_record(&cluster.engine, "SELECT n FROM numbers LIMIT 7").await.unwrap();
        // The other segment may have been asked for before these rows came, but for no more rows.
        assert!(record.rows_in <= 14, "{record:?}");
        if record.rows_in > 0 && record.segments_scanned == 1 {
            return;
        }
    }
    panic!("a limit was never told to have taken one segment");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_coordinators_cannot_both_write() {
    let mut cluster = TestCluster::start(3, 3).await;
    load_numbers(&cluster.engine, 1000, 1).await;
    let old = cluster.engine.clone();
    cluster.restart_engine().await;
    let error = run(&old, "INSERT INTO numbers VALUES (-1, 'zombie')").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::StaleEpoch, "{error:?}");
    assert_eq!(number(&cluster.engine, "SELECT count(*) FROM numbers WHERE n < 0").await, 0);
    run(&cluster.engine, "INSERT INTO numbers VALUES (-2, 'owner')").await.unwrap();
    assert_eq!(number(&cluster.engine, "SELECT count(*) FROM numbers WHERE n < 0").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_table_frees_its_segments() {
    let cluster = TestCluster::start(3, 3).await;
    load_numbers(&cluster.engine, 1000, 2).await;
    assert_eq!(cluster.nodes[0].segment_files().len(), 2);
    run(&cluster.engine, "DROP TABLE numbers").await.unwrap();
    assert_eq!(cluster.engine.collect_orphans().await.unwrap(), 6);
    assert!(cluster.nodes.iter().all(|node| node.segment_files().is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_found_again_by_the_next_coordinator() {
    let mut cluster = TestCluster::start(3, 3).await;
    load_numbers(&cluster.engine, 5000, 1).await;
    run(&cluster.engine, "CREATE VIEW small AS SELECT n FROM numbers WHERE n < 10").await.unwrap();
    cluster.engine.shutdown().await;
    cluster.restart_engine().await;
    assert_eq!(number(&cluster.engine, "SELECT count(n) FROM small").await, 10);
}
