//! The 99 TPC-DS queries, embedded and on a cluster, against plain DataFusion over the same data.
//!
//! `AUBADE_TPCDS_SCALE` is the scale of the data, and `AUBADE_TPCDS_QUERIES=3,14` tries only some of the queries.

use std::time::Duration;

use arrow::record_batch::RecordBatch;
use aubade_engine::{Engine, EngineOptions};
use aubade_environment::{Clock, Environment, SystemClock};
use aubade_proto::ErrorCode;
use aubade_tpcds::{QUERIES, Query, TpcdsTable, generate};
use aubade_tpch::{RowOrder, compare_rows_in};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::{Expr, LogicalPlan};

use crate::harness::TestCluster;
use crate::plain::{Plain, load, run_in};

const SCALE: f64 = 0.01;

/// Queries that divide by a sum, which is zero where the data are few: an error in plain DataFusion, and so in Aubade.
const MAY_DIVIDE_BY_ZERO: [u32; 2] = [12, 90];

/// The order and the limit that a plan gives its rows, as far as the columns of the result show it.
#[derive(Debug, Default)]
struct PlanOrder {
    columns: Vec<usize>,
    limit: Option<usize>,
}

impl PlanOrder {
    fn of(plan: &LogicalPlan) -> Self {
        let fields: Vec<String> = plan.schema().fields().iter().map(|field| field.name().clone()).collect();
        let mut order = Self::default();
        let mut node = plan;
        loop {
            node = match node {
                LogicalPlan::Limit(limit) => {
                    order.limit = limit.fetch.as_deref().and_then(literal);
                    limit.input.as_ref()
                }
                LogicalPlan::Sort(sort) => {
                    let columns = sort.expr.iter().map(|key| match &key.expr {
                        Expr::Column(column) => the_one(&fields, column.name()),
                        _ => None,
                    });
                    // Behind a key that is no column of the result, the order cannot be seen.
                    order.columns = columns.map_while(|column| column).collect();
                    return order;
                }
                // Takes away columns that were needed for the order alone.
                LogicalPlan::Projection(projection) if projection.expr.iter().all(|e| matches!(e, Expr::Column(_))) => {
                    projection.input.as_ref()
                }
                _ => return order,
            };
        }
    }

    fn as_row_order(&self) -> RowOrder<'_> {
        RowOrder { columns: &self.columns, total: false, limit: self.limit }
    }
}

/// Where the name stands, if nothing else has it too.
fn the_one(fields: &[String], name: &str) -> Option<usize> {
    let mut found = fields.iter().enumerate().filter(|(_, field)| *field == name);
    match (found.next(), found.next()) {
        (Some((index, _)), None) => Some(index),
        _ => None,
    }
}

fn literal(expression: &Expr) -> Option<usize> {
    match expression {
        Expr::Literal(ScalarValue::Int64(Some(number)), _) => usize::try_from(*number).ok(),
        _ => None,
    }
}

/// The queries to try.
fn chosen() -> Vec<&'static Query> {
    let Ok(text) = std::env::var("AUBADE_TPCDS_QUERIES") else { return QUERIES.iter().collect() };
    let numbers: Vec<u32> = text.split(',').map(|number| number.trim().parse().unwrap()).collect();
    QUERIES.iter().filter(|query| numbers.contains(&query.number)).collect()
}

async fn plain(tables: &[TpcdsTable]) -> Plain {
    let plain = Plain::new(2);
    for table in tables {
        plain.register(table.name, &table.schema, vec![table.batches.clone()]);
    }
    plain
}

async fn load_all(engine: &Engine, tables: &[TpcdsTable]) {
    for table in tables {
        // Large tables come in two segments, so that there is something to put together again.
        let half = table.batches.len().div_ceil(2).max(1);
        let segments: Vec<RecordBatch> = table
            .batches
            .chunks(half)
            .map(|batches| arrow::compute::concat_batches(&table.schema, batches).unwrap())
            .collect();
        load(engine, table.name, &table.schema, &segments).await;
    }
}

/// What an engine does wrong with a query, and how long it took.
async fn try_query(engine: &Engine, query: &Query, plain: &Plain) -> (Option<String>, Duration) {
    let clock = SystemClock::default();
    let plan = plain.context.state().create_logical_plan(query.sql).await;
    let expected = plain.run(query.sql).await;
    let start = clock.now();
    let actual = run_in(&engine.session(), query.sql).await;
    let elapsed = clock.now().saturating_sub(start);
    let may_fail = MAY_DIVIDE_BY_ZERO.contains(&query.number);
    let failure = match (expected, actual, plan) {
        (Ok(expected), Ok(actual), Ok(plan)) => {
            let order = PlanOrder::of(&plan);
            compare_rows_in(order.as_row_order(), &expected, &actual).err().map(|difference| difference.to_string())
        }
        (Err(expected), Err(actual), _) if may_fail && expected.to_string().contains("Divide by zero") => {
            (actual.code() != ErrorCode::DivisionByZero).then(|| format!("{actual:?}"))
        }
        (Err(error), ..) => Some(format!("plain DataFusion fails: {}", error.strip_backtrace())),
        (_, Err(error), _) => Some(format!("{error:?}")),
        (_, _, Err(error)) => Some(format!("has no plan: {}", error.strip_backtrace())),
    };
    (failure, elapsed)
}

/// Each time after the first with what was kept.
async fn every_query_agrees(engine: &Engine, times: usize) {
    let scale = std::env::var("AUBADE_TPCDS_SCALE").map_or(SCALE, |scale| scale.parse().unwrap());
    let tables = generate(scale).unwrap();
    load_all(engine, &tables).await;
    let plain = plain(&tables).await;
    let mut failures = Vec::new();
    for query in chosen().into_iter().flat_map(|query| std::iter::repeat_n(query, times)) {
        let (failure, elapsed) = try_query(engine, query, &plain).await;
        println!("{}: {} ms", query.name(), elapsed.as_millis());
        failures.extend(failure.map(|failure| format!("{}: {failure}", query.name())));
    }
    engine.shutdown().await;
    assert!(failures.is_empty(), "{failures:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_query_agrees_with_datafusion_embedded() {
    let options = EngineOptions { buffer_pool_bytes: 256 << 20, ..EngineOptions::default() };
    let engine = Engine::open_in_memory(Environment::system(), options).await.unwrap();
    every_query_agrees(&engine, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_query_agrees_with_datafusion_on_a_cluster() {
    let cluster = TestCluster::start_keeping_results(4, 3).await;
    every_query_agrees(&cluster.engine, 2).await;
}
