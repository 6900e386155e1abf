//! What the plan cache saves: planning of each query of TPC-H, and of a point query, without it, with a copy of the same
//! query's plan, and with the plan that queries share which differ in constants, once two such were planned.
//!
//! It prints a table instead of using criterion: what is measured is one part of a statement, which the engine's record
//! of it tells, and a statement has to run to its end before the next copy of its plan can be made.

#![expect(clippy::print_stdout, reason = "the table is what this is for")]

use anyhow::{Context, Result, ensure};
use aubade_engine::{Engine, EngineOptions, IngestMode, IngestTarget, Session};
use aubade_environment::Environment;
use aubade_tpch::{QUERIES, Scale, TpchTable};
use futures::TryStreamExt;

const SCALE: f64 = 0.01;
const RUNS: usize = 15;
/// A number that no query has: which constants of a query are equal is a part of what is shared.
const OTHER: usize = 123_456;
const POINT: &str = "SELECT o_totalprice FROM orders WHERE o_orderkey = 4";

/// Runs a statement to its end; the microseconds that its planning took, and whether its plan was in the cache.
async fn planning(engine: &Engine, session: &Session, sql: &str) -> Result<(u64, bool)> {
    let output = session.execute(sql).await?;
    let id = output.query_id;
    output.stream.try_collect::<Vec<_>>().await?;
    let record = engine.queries().get(id).context("the query left no record")?;
    Ok((record.planning_micros, record.plan_cache_hit))
}

/// The query with one more condition: a column differs from a number that no row has. Of the point query, that for
/// another row.
fn other(sql: &str, number: usize) -> Result<String> {
    if sql == POINT {
        return Ok(POINT.replace("= 4", &format!("= {}", number - OTHER + 5)));
    }
    let end_of = |word: &str| sql.find(word).map(|at| at + word.len());
    let joined = end_of(" on").filter(|_| end_of("where").is_none());
    let at = end_of("where").or_else(|| end_of("WHERE")).or(joined).context("no condition")?;
    let (head, tail) = sql.split_at(at);
    let (_, tables) = head.rsplit_once("from ").or_else(|| head.rsplit_once("FROM ")).context("no table")?;
    // Of an outer join the inner side: a condition on the other one changes how it is planned.
    let mut names = tables.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let table = if joined.is_some() { names.nth_back(1) } else { names.next() };
    let column = match table.context("no table")? {
        "customer" => "c_nationkey",
        "lineitem" => "l_suppkey",
        "orders" => "o_custkey",
        "part" => "p_partkey",
        "partsupp" => "ps_suppkey",
        "supplier" => "s_nationkey",
        other => anyhow::bail!("no column of {other}"),
    };
    Ok(format!("{head} {column} <> {number} and {tail}"))
}

/// Medians of planning without the cache, with it, and with that of other constants, microseconds.
async fn compare(engine: &Engine, session: &Session, sql: &str) -> Result<(u64, u64, u64)> {
    let (mut without, mut with, mut shared) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..RUNS {
        planning(engine, session, "DISCARD PLANS").await?;
        let (micros, hit) = planning(engine, session, sql).await?;
        ensure!(!hit, "a discarded plan was found: {sql}");
        without.push(micros);
        let (micros, hit) = planning(engine, session, sql).await?;
        ensure!(hit, "the plan was not kept: {sql}");
        with.push(micros);
        // What is the same for other constants is learnt from two statements.
        for number in [OTHER, OTHER + 1] {
            planning(engine, session, &other(sql, number)?).await?;
        }
        let (micros, hit) = planning(engine, session, &other(sql, OTHER + 2 + run)?).await?;
        ensure!(hit, "no plan was shared: {sql}");
        shared.push(micros);
    }
    Ok((median(without), median(with), median(shared)))
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

async fn run() -> Result<()> {
    let engine = Engine::open_in_memory(Environment::system(), EngineOptions::default()).await?;
    let session = engine.session();
    for table in TpchTable::ALL {
        let target = IngestTarget { schema: None, table: table.name().to_owned(), mode: IngestMode::Create };
        session.ingest(target, table.stream(Scale::try_new(SCALE)?, 1)).await?;
    }
    println!("TPC-H scale {SCALE}, medians of {RUNS}, microseconds from a statement's text to its physical plan");
    println!("{:>8} {:>10} {:>10} {:>8} {:>10} {:>8}", "query", "planned", "kept", "share", "shared", "share");
    let statements = QUERIES.iter().map(|query| (query.name(), query.sql));
    for (name, sql) in statements.chain([("point".to_owned(), POINT)]) {
        let (without, with, shared) = compare(&engine, &session, sql).await?;
        let share = |micros: u64| 100.0 * micros as f64 / without.max(1) as f64;
        let (of_kept, of_shared) = (share(with), share(shared));
        println!("{name:>8} {without:>10} {with:>10} {of_kept:>6.1} % {shared:>10} {of_shared:>6.1} %");
    }
    engine.shutdown().await;
    Ok(())
}

fn main() -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(run())
}
