//! What storage nodes and the coordinator keep of one query for the next.

use std::collections::BTreeSet;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use aubade_engine::Session;
use futures::TryStreamExt;

use crate::harness::{TestCluster, load_numbers, number, run, run_with_record};

const SQL: &str = "SELECT n % 5 AS m, count(*), sum(n), min(text) FROM numbers WHERE n % 3 = 0 GROUP BY m ORDER BY m";

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_aggregate_reads_only_what_was_added() {
    let cluster = TestCluster::start(3, 3).await;
    load_numbers(&cluster.engine, 30_000, 3).await;
    let (first, record) = run_with_record(&cluster.engine, SQL).await.unwrap();
    assert_eq!((record.rows_in, record.segments_scanned, record.segments_kept), (30_000, 3, 0), "{record:?}");
    let (again, record) = run_with_record(&cluster.engine, SQL).await.unwrap();
    assert_eq!(again, first);
    assert_eq!((record.rows_in, record.bytes_read, record.segments_scanned, record.segments_kept), (0, 0, 3, 3));
    run(&cluster.engine, "INSERT INTO numbers SELECT value, 'new' FROM generate_series(30000, 30099)").await.unwrap();
    let (_, record) = run_with_record(&cluster.engine, SQL).await.unwrap();
    assert_eq!((record.rows_in, record.segments_scanned, record.segments_kept), (100, 4, 3), "{record:?}");
    let total = "SELECT sum(c) FROM (SELECT count(*) AS c FROM numbers WHERE n % 3 = 0 GROUP BY n % 5)";
    assert_eq!(number(&cluster.engine, total).await, 10_034);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_rows_of_segments_are_kept_where_others_had_no_say_in_them() {
    let cluster = TestCluster::start(3, 3).await;
    load_numbers(&cluster.engine, 30_000, 3).await;
    let sql = "SELECT n FROM numbers WHERE n % 3 = 0 ORDER BY n % 1000 DESC, n LIMIT 3";
    let (first, record) = run_with_record(&cluster.engine, sql).await.unwrap();
    assert_eq!((record.segments_scanned, record.segments_kept), (3, 0), "{record:?}");
    let (again, record) = run_with_record(&cluster.engine, sql).await.unwrap();
    assert_eq!(again, first);
    assert!(record.segments_kept > 0 && record.rows_in < 30_000, "{record:?}");
    run(&cluster.engine, "INSERT INTO numbers VALUES (-999, 'new'), (30999, 'new')").await.unwrap();
    let least = "SELECT min(n) FROM (SELECT n FROM numbers WHERE n % 3 = 0 ORDER BY n % 1000 DESC, n LIMIT 30)";
    assert_eq!(number(&cluster.engine, least).await, 999);
    let newest = "SELECT max(n) FROM (SELECT n FROM numbers WHERE n % 3 = 0 ORDER BY n % 1000 DESC, n DESC LIMIT 3)";
    assert_eq!(number(&cluster.engine, newest).await, 30_999);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_another_value_each_time_is_never_taken_from_before() {
    let cluster = TestCluster::start(3, 3).await;
    load_numbers(&cluster.engine, 3_000, 3).await;
    for sql in [
        "SELECT count(*) FROM numbers WHERE random() < 2",
        "SELECT count(*) FROM numbers WHERE n % 3 = 0 AND random() < 2",
        "SELECT random() < 2 AS r, count(*) FROM numbers WHERE n % 3 = 0 GROUP BY r",
        "SELECT sum(n + CAST(random() * 0 AS BIGINT)) FROM numbers WHERE n % 3 = 0",
        "SELECT count(DISTINCT uuid()) FROM numbers WHERE n % 3 = 0",
        "SELECT n FROM numbers WHERE n % 3 = 0 ORDER BY random(), n LIMIT 5",
        "SELECT count(*), max(text) FROM numbers WHERE n % 3 = 0 AND to_timestamp_nanos(n) < now()",
        "SELECT max(now() - to_timestamp_nanos(n)) FROM numbers WHERE n % 3 = 0",
    ] {
        for time in 0..3 {
            let (_, record) = run_with_record(&cluster.engine, sql).await.unwrap();
            assert_eq!((record.segments_scanned, record.segments_kept), (3, 0), "{sql}, {time}: {record:?}");
            assert_eq!(record.rows_in, 3_000, "{sql}, {time}: {record:?}");
        }
    }
    let random = "SELECT count(*) FROM (SELECT random() < 0.5 AS r FROM numbers) WHERE r";
    let mut counts = BTreeSet::new();
    for _ in 0..8 {
        counts.insert(number(&cluster.engine, random).await);
    }
    assert!(counts.len() > 1, "{counts:?}");
    // The same without them is.
    let plain = "SELECT count(*), max(text) FROM numbers WHERE n % 3 = 0";
    for kept in [0, 3] {
        let (_, record) = run_with_record(&cluster.engine, plain).await.unwrap();
        assert_eq!((record.segments_scanned, record.segments_kept), (3, kept), "{record:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_filter_and_a_session_that_wants_none_read_everything() {
    let cluster = TestCluster::start(3, 3).await;
    load_numbers(&cluster.engine, 30_000, 3).await;
    run(&cluster.engine, SQL).await.unwrap();
    let other = SQL.replace("n % 3 = 0", "n % 3 = 1");
    assert_eq!(run_with_record(&cluster.engine, &other).await.unwrap().1.segments_kept, 0);
    let session = cluster.engine.session();
    execute(&session, "SET aubade.fragment_cache = false").await;
    let output = session.execute(SQL).await.unwrap();
    let id = output.query_id;
    output.stream.try_collect::<Vec<_>>().await.unwrap();
    let record = cluster.engine.queries().get(id).unwrap();
    assert_eq!((record.rows_in, record.segments_kept), (30_000, 0), "{record:?}");
}

async fn execute(session: &Session, sql: &str) {
    session.execute(sql).await.unwrap().stream.try_collect::<Vec<_>>().await.unwrap();
}

/// A cluster whose coordinator keeps results, with facts in three segments and names in one.
async fn star() -> TestCluster {
    let cluster = TestCluster::start_keeping_results(3, 3).await;
    load_numbers(&cluster.engine, 30_000, 3).await;
    run(&cluster.engine, "CREATE TABLE names (id BIGINT, name VARCHAR)").await.unwrap();
    run(&cluster.engine, "INSERT INTO names SELECT value, 'name ' || value FROM generate_series(0, 9)").await.unwrap();
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_keeps_results_asks_for_new_segments_only() {
    let cluster = star().await;
    let (first, record) = run_with_record(&cluster.engine, SQL).await.unwrap();
    assert!(record.requests > 0 && record.segments_kept == 0, "{record:?}");
    let (again, record) = run_with_record(&cluster.engine, SQL).await.unwrap();
    assert_eq!(again, first);
    assert_eq!((record.requests, record.segments_scanned, record.segments_kept), (0, 3, 3), "{record:?}");
    for rows in [100_u64, 200] {
        let insert = format!("INSERT INTO numbers SELECT value, 'new' FROM generate_series(30000, {})", 29_999 + rows);
        run(&cluster.engine, &insert).await.unwrap();
        let (_, record) = run_with_record(&cluster.engine, SQL).await.unwrap();
        assert_eq!((record.requests, record.rows_in), (1, rows), "{record:?}");
        assert_eq!(record.segments_kept + 1, record.segments_scanned, "{record:?}");
    }
    let total = "SELECT sum(c) FROM (SELECT count(*) AS c FROM numbers WHERE n % 3 = 0 GROUP BY n % 5)";
    assert_eq!(number(&cluster.engine, total).await, 10_000 + 34 + 67);
}

#[tokio::test(flavor = "multi_thread")]
async fn results_of_joins_at_storage_are_kept_for_the_same_build_side_only() {
    let cluster = star().await;
    let engine = &cluster.engine;
    let session = engine.session();
    execute(&session, "SET aubade.pushdown = on").await;
    let sql = "SELECT count(*) AS c, sum(n) FROM numbers JOIN names ON n % 1000 = id WHERE name LIKE 'name%'";
    let record = async || {
        let output = session.execute(sql).await.unwrap();
        let id = output.query_id;
        let batches: Vec<_> = output.stream.try_collect().await.unwrap();
        let count = batches[0].column(0).as_primitive::<Int64Type>().value(0);
        (count, engine.queries().get(id).unwrap())
    };
    let (count, asked) = record().await;
    assert!(count == 300 && asked.requests > 1 && asked.segments_kept == 0, "{asked:?}");
    let (count, asked) = record().await;
    assert_eq!((count, asked.requests, asked.segments_kept), (300, 0, 3), "{asked:?}");
    // New facts: those are read, with the build side.
    run(engine, "INSERT INTO numbers VALUES (1000003, 'new')").await.unwrap();
    let (count, asked) = record().await;
    assert_eq!((count, asked.requests, asked.segments_kept), (301, 2, 3), "{asked:?}");
    // Another build side: nothing that was kept is of use.
    run(engine, "INSERT INTO names VALUES (10, 'name 10')").await.unwrap();
    let (count, asked) = record().await;
    assert_eq!((count, asked.segments_kept), (331, 0), "{asked:?}");
    run(engine, "DROP TABLE names").await.unwrap();
    run(engine, "CREATE TABLE names (id BIGINT, name VARCHAR)").await.unwrap();
    run(engine, "INSERT INTO names VALUES (7, 'name 7'), (7, 'name 7 again')").await.unwrap();
    assert_eq!(record().await.0, 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn grand_totals_of_no_rows_come_with_results_that_are_kept() {
    let cluster = star().await;
    let session = cluster.engine.session();
    execute(&session, "SET aubade.pushdown = on").await;
    execute(&session, "INSERT INTO names VALUES (1000000, 'far away')").await;
    let sql = "SELECT name, count(*) FROM numbers JOIN names ON n = id WHERE id > 50000 GROUP BY ROLLUP(name)";
    for _ in 0..3 {
        let batches: Vec<_> = session.execute(sql).await.unwrap().stream.try_collect().await.unwrap();
        assert_eq!(batches.iter().map(|batch| batch.num_rows()).sum::<usize>(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keys_of_a_join_above_leave_out_is_not_missing_from_a_result_that_is_kept() {
    let cluster = star().await;
    let count = |names: u64| {
        format!(
            "SELECT count(*) FROM (SELECT n % 100 AS id, count(*) AS c FROM numbers GROUP BY n % 100) AS counts \
             JOIN names USING (id) WHERE names.id < {names}"
        )
    };
    for names in [2, 9, 5] {
        assert_eq!(number(&cluster.engine, &count(names)).await, names as i64);
        assert_eq!(number(&cluster.engine, &count(names)).await, names as i64);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn results_are_forgotten_by_a_word_and_not_kept_by_a_session_that_wants_none() {
    let cluster = star().await;
    let kept = async || run_with_record(&cluster.engine, SQL).await.unwrap().1.requests == 0;
    assert!(!kept().await && kept().await);
    // The buffer pool is off.
    for discard in ["DISCARD ALL", "DISCARD BUFFERS"] {
        run(&cluster.engine, discard).await.unwrap();
        assert!(!kept().await && kept().await, "{discard}");
    }
    let session = cluster.engine.session();
    execute(&session, "SET aubade.fragment_cache = off").await;
    for _ in 0..2 {
        let output = session.execute(SQL).await.unwrap();
        let id = output.query_id;
        output.stream.try_collect::<Vec<_>>().await.unwrap();
        let record = cluster.engine.queries().get(id).unwrap();
        assert!(record.requests > 0 && record.segments_kept == 0, "{record:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_of_one_plan_find_the_results_for_their_own_values() {
    let cluster = star().await;
    let session = cluster.engine.session();
    let count = async |sql: &str| {
        let output = session.execute(sql).await.unwrap();
        let id = output.query_id;
        let batches: Vec<_> = output.stream.try_collect().await.unwrap();
        let asked = cluster.engine.queries().get(id).unwrap().requests > 0;
        (batches[0].column(0).as_primitive::<Int64Type>().value(0), asked)
    };
    for (value, asks) in [(70, true), (80, true), (70, false), (90, true), (80, false), (90, false)] {
        let sql = format!("SELECT count(*) FROM numbers WHERE n % 100 < {value}");
        assert_eq!(count(&sql).await, (value * 300, asks), "{value}");
    }
    // The text is the same, and the value of its subquery is not.
    let sql = "SELECT count(*) FROM numbers WHERE n % 100 < (SELECT max(id) FROM names)";
    for last in [9, 10, 20] {
        execute(&session, &format!("INSERT INTO names VALUES ({last}, 'last')")).await;
        for _ in 0..2 {
            assert_eq!(count(sql).await.0, last * 300);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_was_cut_short_keeps_nothing() {
    let cluster = star().await;
    // Dropped after its first rows: the next run has all of them.
    let session = cluster.engine.session();
    let sql = "SELECT n % 2000 AS m, count(*) FROM numbers GROUP BY m";
    let mut output = session.execute(sql).await.unwrap();
    assert!(output.stream.try_next().await.unwrap().is_some());
    drop(output);
    assert_eq!(number(&cluster.engine, &format!("SELECT count(*) FROM ({sql})")).await, 2000);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_rows_of_an_order_are_kept_and_new_ones_come_among_them() {
    let cluster = star().await;
    let sql = "SELECT n FROM numbers WHERE n % 3 = 0 ORDER BY n % 1000 DESC, n LIMIT 3";
    let (first, record) = run_with_record(&cluster.engine, sql).await.unwrap();
    assert!(record.requests > 0, "{record:?}");
    let (again, record) = run_with_record(&cluster.engine, sql).await.unwrap();
    assert_eq!((again, record.requests, record.segments_kept), (first, 0, 3), "{record:?}");
    run(&cluster.engine, "INSERT INTO numbers VALUES (30999, 'new'), (-999, 'new')").await.unwrap();
    let (_, record) = run_with_record(&cluster.engine, sql).await.unwrap();
    assert_eq!((record.requests, record.segments_kept), (1, 3), "{record:?}");
    assert_eq!(number(&cluster.engine, &format!("SELECT min(n) FROM ({sql})")).await, 999);
    let last = "SELECT n FROM numbers WHERE n % 3 = 0 ORDER BY n % 1000 DESC, n DESC LIMIT 3";
    assert_eq!(number(&cluster.engine, &format!("SELECT max(n) FROM ({last})")).await, 30_999);
    // So are the first groups, of which an append may make others the first ones.
    let groups = "SELECT n / 1000 AS k, count(*) AS c FROM numbers GROUP BY k ORDER BY k LIMIT 2";
    assert!(run_with_record(&cluster.engine, groups).await.unwrap().1.requests > 0);
    assert_eq!(run_with_record(&cluster.engine, groups).await.unwrap().1.requests, 0);
    run(&cluster.engine, "INSERT INTO numbers VALUES (-5000, 'new'), (1, 'again')").await.unwrap();
    assert_eq!(number(&cluster.engine, &format!("SELECT min(k) FROM ({groups})")).await, -5);
    assert_eq!(number(&cluster.engine, &format!("SELECT max(c) FROM ({groups})")).await, 1002);
    // A condition on groups may take away the first ones, so that others are wanted that were left out before.
    let having = groups.replace("ORDER BY", "HAVING count(*) <> 1000 ORDER BY");
    let having = format!("SELECT max(k) FROM ({having})");
    assert_eq!([number(&cluster.engine, &having).await, number(&cluster.engine, &having).await], [0, 0]);
    let more = "INSERT INTO numbers SELECT value - 5999, 'new' FROM generate_series(1, 999)";
    run(&cluster.engine, more).await.unwrap();
    assert_eq!(number(&cluster.engine, &having).await, 30);
    // In a union the rows of one side rule out those of the other, which another union needs.
    let union = |other: &str| {
        format!(
            "SELECT sum(n) FROM (SELECT n FROM numbers UNION ALL SELECT {other} FROM names ORDER BY n DESC LIMIT 2)"
        )
    };
    for other in ["id + 1000000", "id", "id + 1000000"] {
        let expected = if other == "id" { 30_999 + 29_999 } else { 2_000_017 };
        assert_eq!(number(&cluster.engine, &union(other)).await, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn states_of_joins_on_the_coordinator_are_kept_for_the_same_segments() {
    let cluster = star().await;
    let engine = &cluster.engine;
    run(engine, "CREATE TABLE others AS SELECT n AS id, n * 2 AS twice FROM numbers").await.unwrap();
    let sql = "SELECT count(*) AS c, sum(twice) FROM numbers JOIN others ON n = id WHERE twice % 5 = 0";
    let (first, record) = run_with_record(engine, sql).await.unwrap();
    assert!(record.requests > 0, "{record:?}");
    let (again, record) = run_with_record(engine, sql).await.unwrap();
    assert_eq!((again, record.requests), (first, 0), "{record:?}");
    assert_eq!(record.segments_kept, record.segments_scanned);
    run(engine, "INSERT INTO others VALUES (5, 10), (7, 11)").await.unwrap();
    assert_eq!(number(engine, &format!("SELECT c FROM ({sql})")).await, 6_001);
    run(engine, "INSERT INTO numbers VALUES (5, 'again')").await.unwrap();
    assert_eq!(number(engine, &format!("SELECT c FROM ({sql})")).await, 6_003);
}
