//! What storage nodes keep of one query for the next.

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
