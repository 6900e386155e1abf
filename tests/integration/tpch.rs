//! The 22 TPC-H queries on six nodes, against plain DataFusion over the same data.

use aubade_engine::{Engine, EngineOptions, IngestMode, IngestTarget};
use aubade_environment::Environment;
use aubade_tpch::{Oracle, QUERIES, Scale, TpchTable, compare};

use crate::harness::{TestCluster, run};

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
async fn every_query_agrees_with_datafusion_embedded() {
    let scale = Scale::try_new(0.01).unwrap();
    let engine = Engine::open_in_memory(Environment::system(), EngineOptions::default()).await.unwrap();
    load(&engine, scale).await;
    verify(&engine, scale).await;
    engine.shutdown().await;
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
