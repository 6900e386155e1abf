//! Queries of which each segment is answered in one of three ways: from the buffer pool, by a storage node, or from
//! columns that were read from a node which hands its work back.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::util::pretty::pretty_format_batches;
use aubade_engine::{ClusterStatus, EngineOptions, Session};
use aubade_tpch::{RowOrder, compare_rows_in};
use futures::TryStreamExt;

use crate::harness::TestCluster;
use crate::plain::{Plain, append, load, run_in};

const ROWS: i64 = 8_000;
/// Segments that are in the pool.
const POOLED: usize = 4;
/// All segments. Each has one replica on one of three nodes, so that some of those that are not in the pool are on the
/// node that hands work back, and some are not.
const SEGMENTS: usize = 44;
/// Two columns of numbers of the pooled segments and their footers, and not those of one more.
const POOL_BYTES: u64 = (POOLED as u64 * 2 + 1) * 8 * ROWS as u64 * 16 / 15;

/// Every segment has values of the whole range, so that none is pruned.
fn segment(number: usize) -> RecordBatch {
    let values = move || (0..ROWS).map(move |row| row * SEGMENTS as i64 + number as i64);
    let columns: [(&str, ArrayRef); 3] = [
        ("n", Arc::new(Int64Array::from_iter_values(values()))),
        ("g", Arc::new(Int64Array::from_iter(values().map(|n| (n % 13 > 0).then_some(n % 7))))),
        ("text", Arc::new(StringArray::from_iter_values(values().map(|n| format!("text {n}"))))),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap()
}

/// A cluster with such a table `t`.
async fn cluster(segments: &[RecordBatch]) -> TestCluster {
    let mut cluster = TestCluster::start(3, 1).await;
    cluster.pushback_wait = Duration::ZERO;
    cluster.restart_node(0).await;
    cluster.options = EngineOptions { buffer_pool_bytes: POOL_BYTES, ..cluster.options.clone() };
    cluster.engine.shutdown().await;
    cluster.restart_engine().await;
    let all_alive = |status: &ClusterStatus| status.nodes.iter().all(|node| node.alive == Some(true));
    cluster.wait_for("the return of a node", all_alive).await;
    let schema = segments[0].schema();
    load(&cluster.engine, "t", &schema, &segments[..POOLED]).await;
    run_in(&cluster.engine.session(), "CACHE TABLE t (n, g)").await.unwrap();
    append(&cluster.engine, "t", &schema, &segments[POOLED..]).await;
    cluster
}

/// How many segments were pooled, pushed down and fetched.
#[derive(Debug)]
struct Mix {
    pooled: u64,
    pushed: u64,
    fetched: u64,
    pushbacks: u64,
}

impl Mix {
    /// Of what `counter` says.
    fn of(counter: impl Fn(&str) -> u64) -> Self {
        let (pooled, fetched) = (counter("segments_pooled"), counter("segments_fetched"));
        let pushed = counter("segments_scanned") - pooled - fetched;
        Self { pooled, pushed, fetched, pushbacks: counter("pushbacks") }
    }

    /// Of the sum over the scans in what EXPLAIN ANALYZE says.
    fn explained(text: &str) -> Self {
        let values = |name: &str| {
            let parts: Vec<&str> = text.split(&format!("{name}=")).skip(1).collect();
            assert!(!parts.is_empty(), "no {name} in {text}");
            let number =
                |part: &&str| part.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse::<u64>().unwrap();
            parts.iter().map(number).sum()
        };
        Self::of(values)
    }
}

async fn mix_of(cluster: &TestCluster, session: &Session, sql: &str) -> (Vec<RecordBatch>, Mix) {
    let output = session.execute(sql).await.unwrap();
    let id = output.query_id;
    let rows = output.stream.try_collect().await.unwrap();
    let record = cluster.engine.queries().get(id).unwrap();
    let mix = Mix::of(|name| match name {
        "segments_pooled" => record.segments_pooled,
        "segments_fetched" => record.segments_fetched,
        "segments_scanned" => record.segments_scanned,
        _ => record.pushbacks,
    });
    (rows, mix)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_over_pooled_pushed_and_fetched_segments_agrees_with_datafusion() {
    let segments: Vec<RecordBatch> = (0..SEGMENTS).map(segment).collect();
    let cluster = cluster(&segments).await;
    let plain = Plain::new(3);
    plain.register("t", &segments[0].schema(), segments.iter().map(|segment| vec![segment.clone()]).collect());
    let session = cluster.engine.session();
    // What was kept of the first run is not scanned by the second.
    run_in(&session, "SET aubade.fragment_cache = off").await.unwrap();
    let (all, scans_pool) = (SEGMENTS as u64, POOLED as u64);
    for (sql, scans) in [
        ("SELECT count(*), sum(n), min(g), max(n), avg(n) FROM t WHERE n % 5 = 2", 1),
        ("SELECT g, count(*), sum(n), count(DISTINCT n % 100) FROM t WHERE n % 3 > 0 GROUP BY g", 1),
        ("SELECT n, g FROM t WHERE n % 1013 = 17", 1),
        ("SELECT n % 1000 AS k, count(*) FROM t WHERE g IS NULL OR g > 2 GROUP BY k HAVING count(*) > 200", 1),
        ("SELECT count(*), sum(a.n) FROM t a JOIN t b ON a.n = b.n + 1 WHERE a.n % 3 = 1 AND b.g = 4", 2),
    ] {
        let expected = plain.run(sql).await.unwrap();
        let (rows, mix) = mix_of(&cluster, &session, sql).await;
        compare_rows_in(RowOrder::NONE, &expected, &rows).unwrap_or_else(|error| panic!("{sql}: {error}"));
        let explain = run_in(&session, &format!("EXPLAIN ANALYZE {sql}")).await.unwrap();
        let text = pretty_format_batches(&explain).unwrap().to_string();
        for mix in [mix, Mix::explained(&text)] {
            assert_eq!(mix.pooled, scans * scans_pool, "{sql}: {mix:?}\n{text}");
            assert_eq!(mix.pooled + mix.pushed + mix.fetched, scans * all, "{sql}: {mix:?}\n{text}");
            assert!(mix.pushed > 0 && mix.fetched > 0 && mix.pushbacks > 0, "{sql}: {mix:?}\n{text}");
        }
    }
    // Columns that the pool does not have come from nodes only; and the first rows of an order, from wherever they are.
    for (sql, pooled) in [
        ("SELECT count(*), max(text), min(text) FROM t WHERE n % 5 = 3", false),
        ("SELECT n, g FROM t WHERE n % 7 = 3 ORDER BY n % 1000 DESC, n LIMIT 50", true),
    ] {
        let expected = plain.run(sql).await.unwrap();
        let (rows, mix) = mix_of(&cluster, &session, sql).await;
        compare_rows_in(RowOrder::NONE, &expected, &rows).unwrap_or_else(|error| panic!("{sql}: {error}"));
        assert_eq!(mix.pooled > 0, pooled, "{sql}: {mix:?}");
        assert!(mix.pushed > 0 && mix.fetched > 0, "{sql}: {mix:?}");
    }
    cluster.engine.shutdown().await;
}
