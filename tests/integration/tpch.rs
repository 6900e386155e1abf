//! The 22 TPC-H queries on six nodes, against plain DataFusion over the same data.
//!
//! `AUBADE_TPCH_SEED` seeds the parameters of queries and the moments at which nodes die.

mod parameters;

use aubade_engine::{Engine, EngineOptions, IngestMode, IngestTarget};
use aubade_environment::Environment;
use aubade_tpch::{Oracle, QUERIES, Scale, TpchTable, compare};

use self::parameters::with_random_parameters;
use crate::harness::{TestCluster, run, run_with_record};
use crate::oracle::{Draw, number_from_environment};
use crate::plain::run_in;

async fn load(engine: &Engine, scale: Scale) {
    for table in TpchTable::ALL {
        let target = IngestTarget { schema: None, table: table.name().to_owned(), mode: IngestMode::Create };
        engine.session().ingest(target, table.stream(scale, 1)).await.unwrap();
    }
}

async fn verify(engine: &Engine, scale: Scale) {
    let oracle = Oracle::open(scale).await.unwrap();
    for query in &QUERIES {
        let expected = oracle.run(query.sql).await.unwrap();
        let actual = run(engine, query.sql).await.unwrap_or_else(|error| panic!("{}: {error:?}", query.name()));
        compare(query, &expected, &actual).unwrap_or_else(|difference| panic!("{}: {difference}", query.name()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_query_agrees_with_datafusion_over_six_nodes() {
    let scale = Scale::try_new(0.01).unwrap();
    let cluster = TestCluster::start(6, 6).await;
    load(&cluster.engine, scale).await;
    verify(&cluster.engine, scale).await;
    // Again with half of the nodes gone: every segment still has a replica.
    for node in &cluster.nodes[..3] {
        node.kill().await;
    }
    verify(&cluster.engine, scale).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_query_agrees_with_datafusion_by_results_that_are_kept() {
    let scale = Scale::try_new(0.01).unwrap();
    let cluster = TestCluster::start_keeping_results(4, 3).await;
    load(&cluster.engine, scale).await;
    verify(&cluster.engine, scale).await;
    verify(&cluster.engine, scale).await;
    for number in [1, 6, 14, 15] {
        let query = QUERIES.iter().find(|query| query.number == number).unwrap();
        let (_, record) = run_with_record(&cluster.engine, query.sql).await.unwrap();
        assert!(record.segments_kept > 0 && record.rows_in <= 100, "{}: {record:?}", query.name());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_query_agrees_with_datafusion_embedded() {
    let scale = Scale::try_new(0.01).unwrap();
    // The columns in the pool are to be read, and not what was kept of other runs.
    let options =
        EngineOptions { buffer_pool_bytes: 256 << 20, fragment_cache_bytes: Some(0), ..EngineOptions::default() };
    let engine = Engine::open_in_memory(Environment::system(), options).await.unwrap();
    load(&engine, scale).await;
    verify(&engine, scale).await;
    // Again over columns in the buffer pool, and then with what was kept of that.
    for table in TpchTable::ALL {
        run(&engine, &format!("CACHE TABLE {}", table.name())).await.unwrap();
    }
    verify(&engine, scale).await;
    verify(&engine, scale).await;
    engine.shutdown().await;
}

fn seeded(what: &str) -> Draw {
    let seed = number_from_environment("AUBADE_TPCH_SEED", 1);
    println!("{what} of seed {seed}");
    Draw::new(seed)
}

#[tokio::test(flavor = "multi_thread")]
async fn random_parameters_agree_whatever_is_pushed() {
    let scale = Scale::try_new(0.01).unwrap();
    let cluster = TestCluster::start(6, 6).await;
    load(&cluster.engine, scale).await;
    let oracle = Oracle::open(scale).await.unwrap();
    let mut draw = seeded("parameters");
    for query in &QUERIES {
        let sql = with_random_parameters(query, &mut draw);
        let expected = oracle.run(&sql).await.unwrap();
        for pushdown in ["auto", "on", "off"] {
            let session = cluster.engine.session();
            run_in(&session, &format!("SET aubade.pushdown = {pushdown}")).await.unwrap();
            let actual = run_in(&session, &sql).await.unwrap_or_else(|error| panic!("{pushdown}, {sql}: {error:?}"));
            compare(query, &expected, &actual).unwrap_or_else(|difference| panic!("{pushdown}, {sql}: {difference}"));
        }
    }
    cluster.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_at_any_moment_changes_no_answer() {
    let scale = Scale::try_new(0.01).unwrap();
    let mut cluster = TestCluster::start(6, 6).await;
    load(&cluster.engine, scale).await;
    let oracle = Oracle::open(scale).await.unwrap();
    let mut draw = seeded("moments");
    for query in &QUERIES {
        let expected = oracle.run(query.sql).await.unwrap();
        let (index, turns) = (draw.below(cluster.nodes.len()), draw.skewed(20_000));
        let node = &cluster.nodes[index];
        let death = async {
            for _ in 0..turns {
                tokio::task::yield_now().await;
            }
            node.kill().await;
        };
        let (actual, ()) = tokio::join!(run(&cluster.engine, query.sql), death);
        let actual = actual.unwrap_or_else(|error| panic!("{}, node {index}, {turns}: {error:?}", query.name()));
        compare(query, &expected, &actual)
            .unwrap_or_else(|difference| panic!("{}, node {index}, {turns}: {difference}", query.name()));
        cluster.restart_node(index).await;
    }
    cluster.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_and_projections_of_every_query_are_pushed() {
    let scale = Scale::try_new(0.001).unwrap();
    let engine = Engine::open_in_memory(Environment::system(), EngineOptions::default()).await.unwrap();
    load(&engine, scale).await;
    let mut scans = String::new();
    for query in &QUERIES {
        let batches = run(&engine, &format!("EXPLAIN FORMAT INDENT {}", query.sql)).await.unwrap();
        let text = arrow::util::pretty::pretty_format_batches(&batches).unwrap().to_string();
        let lines = text.lines().filter(|line| line.contains("StorageScanExec") || line.contains(" FilterExec"));
        for line in lines {
            let line = line.trim_matches(['|', ' ']);
            scans.push_str(&format!("{}: {}\n", query.name(), line.trim_start_matches("physical_plan |").trim()));
        }
    }
    engine.shutdown().await;
    insta::assert_snapshot!(scans);
}

/// What was learnt of two statements is copied for others, with results of its own for the subquery, and with values in
/// the filter of a join.
#[tokio::test(flavor = "multi_thread")]
async fn queries_share_a_plan_for_other_constants() {
    let scale = Scale::try_new(0.01).unwrap();
    let engine = Engine::open_in_memory(Environment::system(), EngineOptions::default()).await.unwrap();
    load(&engine, scale).await;
    let oracle = Oracle::open(scale).await.unwrap();
    for (name, column) in [("q11", "ps_suppkey"), ("q15", "l_suppkey"), ("q19", "l_orderkey"), ("q22", "c_nationkey")] {
        let query = QUERIES.iter().find(|query| query.name() == name).unwrap();
        let expected = oracle.run(query.sql).await.unwrap();
        // No row has the number.
        let with = |number: usize| query.sql.replacen("where", &format!("where {column} <> {number} and"), 1);
        for number in 123_456..123_461 {
            let actual = run(&engine, &with(number)).await.unwrap();
            compare(query, &expected, &actual).unwrap_or_else(|difference| panic!("{name}: {difference}"));
        }
        let copies = format!(
            "SELECT sum(template_hits) AS copies FROM system.plan_cache WHERE lifted > 0 AND sql LIKE '%{column} <> 123456%'"
        );
        let copies = run(&engine, &copies).await.unwrap();
        let text = arrow::util::pretty::pretty_format_batches(&copies).unwrap().to_string();
        assert!(text.contains("| 3 "), "{name}\n{text}");
    }
    engine.shutdown().await;
}
