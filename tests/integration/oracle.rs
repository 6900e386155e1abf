//! Random queries over random tables, each on plain DataFusion, on an embedded engine and on a cluster.
//!
//! A seed decides tables, rows and queries. `AUBADE_ORACLE_SEED` names the first seed and `AUBADE_ORACLE_CASES` how many
//! queries are tried from there on; every [`CASES_PER_WORLD`] of them share tables, and the next seed makes new ones. A
//! failure prints the seed: with it, `AUBADE_ORACLE_CASES=40` runs the same queries again. What was found once and
//! mended stands in [`cases`].
//!
//! Plain DataFusion runs twice, with another order of rows, other partitions and other settings: where the two do not
//! agree, the data do not decide the result (a sum of floats that cancel out, say), and there is nothing to compare.

mod aggregates;
mod cases;
mod data;
mod draw;
mod expressions;
mod joins;
mod queries;
mod subqueries;
mod values;

use std::collections::BTreeMap;
use std::time::Duration;

use arrow::compute::{concat_batches, take_record_batch};
use arrow::record_batch::RecordBatch;
use aubade_engine::{ClusterStatus, Engine, EngineOptions};
use aubade_environment::Environment;
use aubade_tpch::{RowOrder, compare_rows_in};
use datafusion::error::DataFusionError;

use self::data::{Table, World};
pub use self::draw::Draw;
use self::queries::{Query, generate};
use crate::harness::TestCluster;
use crate::plain::{Plain, load, run_in};

const CASES: u64 = 400;
const SEED: u64 = 1;
const CASES_PER_WORLD: u64 = 40;
/// Failures after which no more are looked for.
const FAILURES_MAX: usize = 20;

/// Statements that a session starts with; one entry is drawn for each query. Those that begin with `SET aubade.` mean
/// nothing to plain DataFusion and are left out there.
const SETTINGS: &[&[&str]] = &[
    &[],
    &["SET datafusion.execution.batch_size = 61"],
    &["SET datafusion.execution.target_partitions = 7"],
    &["SET datafusion.execution.target_partitions = 1"],
    &["SET datafusion.optimizer.prefer_hash_join = false"],
    &["SET datafusion.optimizer.enable_dynamic_filter_pushdown = false"],
    &["SET aubade.pushdown = on"],
    &["SET aubade.pushdown = on", "SET datafusion.execution.batch_size = 61"],
    &["SET aubade.pushdown = off"],
];

/// Aubade, in both ways of running it.
struct Targets {
    embedded: Engine,
    cluster: TestCluster,
}

impl Targets {
    async fn start() -> Self {
        // One target keeps results on the coordinator; the other one is asked for them again, and has the buffer pool.
        let options =
            EngineOptions { buffer_pool_bytes: 64 << 20, fragment_cache_bytes: Some(0), ..EngineOptions::default() };
        let embedded = Engine::open_in_memory(Environment::system(), options).await.unwrap();
        let mut cluster = TestCluster::start_keeping_results(4, 3).await;
        // One node hands back all that it is asked for, so that pushed and fetched rows come together.
        cluster.pushback_wait = Duration::ZERO;
        cluster.restart_node(0).await;
        let all_alive = |status: &ClusterStatus| status.nodes.iter().all(|node| node.alive == Some(true));
        cluster.wait_for("the return of a node", all_alive).await;
        Self { embedded, cluster }
    }

    fn engines(&self) -> [(&'static str, &Engine); 2] {
        [("embedded", &self.embedded), ("on a cluster", &self.cluster.engine)]
    }

    async fn stop(&self) {
        self.embedded.shutdown().await;
        self.cluster.engine.shutdown().await;
    }
}

/// What plain DataFusion says.
enum Expected {
    Rows(Vec<RecordBatch>),
    /// It fails while it runs.
    Failure(String),
    /// It cannot plan the query, so that nothing is learned.
    Refused(String),
    /// Its two runs differ.
    Undecided,
}

/// Why two results of a query differ, if they do.
fn difference(ordered: bool, expected: &[RecordBatch], actual: &[RecordBatch]) -> Option<String> {
    let columns: Vec<usize> = (0..expected[0].num_columns()).collect();
    let order = if ordered { RowOrder { columns: &columns, total: true, limit: None } } else { RowOrder::NONE };
    compare_rows_in(order, expected, actual).err().map(|difference| difference.to_string())
}

/// The tables of a world in plain DataFusion, as they are and upside down.
struct Oracle<'a> {
    tables: &'a [Table],
    first: Plain,
    reversed: Vec<(&'static str, RecordBatch)>,
}

impl<'a> Oracle<'a> {
    fn new(tables: &'a [Table]) -> Self {
        let first = Plain::new(3);
        for table in tables {
            let partitions = table.segments.iter().map(|segment| vec![segment.clone()]).collect::<Vec<_>>();
            let partitions = if partitions.is_empty() { vec![Vec::new()] } else { partitions };
            first.register(table.name, &table.schema, partitions);
        }
        let reversed = tables.iter().map(|table| (table.name, upside_down(table))).collect();
        Self { tables, first, reversed }
    }

    async fn second(&self, settings: &[&str]) -> Plain {
        let plain = Plain::new(2);
        for (table, (name, rows)) in self.tables.iter().zip(&self.reversed) {
            plain.register(name, &table.schema, vec![vec![rows.clone()]]);
        }
        for setting in settings.iter().filter(|setting| !setting.starts_with("SET aubade.")) {
            plain.run(setting).await.unwrap();
        }
        plain
    }

    async fn run(&self, query: &Query, settings: &[&str]) -> Expected {
        let first = match self.first.context.sql(&query.sql).await {
            Ok(_) => self.first.run(&query.sql).await,
            Err(error) => return Expected::Refused(error.strip_backtrace()),
        };
        let second = self.second(settings).await.run(&query.sql).await;
        match (first, second) {
            (Ok(first), Ok(second)) if difference(query.ordered, &first, &second).is_none() => Expected::Rows(first),
            (Err(error), Err(_)) if is_plan_error(&error) => Expected::Refused(error.strip_backtrace()),
            (Err(error), Err(_)) => Expected::Failure(error.strip_backtrace()),
            _ => Expected::Undecided,
        }
    }
}

fn is_plan_error(error: &DataFusionError) -> bool {
    match error.find_root() {
        DataFusionError::Plan(_) | DataFusionError::NotImplemented(_) | DataFusionError::Internal(_) => true,
        // Types that the planner should have made the same.
        DataFusionError::ArrowError(error, _) => error.to_string().contains("Invalid comparison operation"),
        _ => false,
    }
}

fn upside_down(table: &Table) -> RecordBatch {
    let all = concat_batches(&table.schema, &table.segments).unwrap();
    let rows = all.num_rows() as u32;
    take_record_batch(&all, &arrow::array::UInt32Array::from_iter_values((0..rows).rev())).unwrap()
}

/// Runs the query twice on both targets, the second time with what was kept of the first; gives what they do wrong.
async fn failures(targets: &Targets, expected: &Expected, query: &Query, settings: &[&str]) -> Vec<String> {
    let mut failures = Vec::new();
    if matches!(expected, Expected::Refused(_) | Expected::Undecided) {
        return failures;
    }
    for (name, engine) in targets.engines() {
        let session = engine.session();
        for setting in settings {
            run_in(&session, setting).await.unwrap();
        }
        for time in ["at first", "once more"] {
            let failure = match (expected, run_in(&session, &query.sql).await) {
                (Expected::Rows(expected), Ok(actual)) => difference(query.ordered, expected, &actual),
                (Expected::Failure(_), Err(_)) => None,
                (Expected::Rows(_), Err(error)) => Some(format!("fails, and plain DataFusion does not: {error:?}")),
                (Expected::Failure(error), Ok(_)) => Some(format!("does not fail as plain DataFusion does: {error}")),
                (Expected::Refused(_) | Expected::Undecided, _) => None,
            };
            failures.extend(failure.map(|failure| format!("{name}, {time}: {failure}")));
        }
    }
    failures
}

/// How often what came out.
#[derive(Debug, Default)]
struct Tally {
    compared: usize,
    with_rows: usize,
    failed_alike: usize,
    undecided: usize,
    refused: usize,
    shapes: BTreeMap<&'static str, usize>,
}

impl Tally {
    fn count(&mut self, query: &Query, expected: &Expected) {
        *self.shapes.entry(query.shape).or_default() += 1;
        match expected {
            Expected::Rows(batches) => {
                self.compared += 1;
                self.with_rows += usize::from(batches.iter().any(|batch| batch.num_rows() > 0));
            }
            Expected::Failure(_) => self.failed_alike += 1,
            Expected::Undecided => self.undecided += 1,
            Expected::Refused(_) => self.refused += 1,
        }
    }

    /// Queries that compare nothing would make a test that finds nothing.
    fn check(&self) {
        let all = self.compared + self.failed_alike + self.undecided + self.refused;
        assert!(self.compared * 10 >= all * 8 && self.with_rows * 10 >= all * 6, "too little is compared: {self:#?}");
    }
}

/// The number in an environment variable.
pub fn number_from_environment(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")),
        Err(_) => default,
    }
}

/// The queries of one seed; false when there were too many failures to go on.
async fn try_world(targets: &Targets, seed: u64, cases: u64, tally: &mut Tally, failed: &mut Vec<String>) -> bool {
    let world = World::generate(seed);
    for table in &world.tables {
        for (_, engine) in targets.engines() {
            load(engine, table.name, &table.schema, &table.segments).await;
        }
        // The others come into the pool when queries want them, here and there.
        if seed.is_multiple_of(2) {
            run_in(&targets.embedded.session(), &format!("CACHE TABLE {}", table.name)).await.unwrap();
        }
    }
    let oracle = Oracle::new(&world.tables);
    // Queries have a sequence of their own, so that changes to how rows are drawn leave them alone.
    let mut draw = Draw::new(seed ^ 0x5EED);
    for case in 0..cases {
        let query = generate(&mut draw, &world);
        let settings = *draw.pick(SETTINGS);
        let expected = oracle.run(&query, settings).await;
        tally.count(&query, &expected);
        if let Expected::Refused(reason) = &expected {
            println!("seed {seed}, case {case}, {}: plain DataFusion refuses {}\n  {reason}", query.shape, query.sql);
        }
        for failure in failures(targets, &expected, &query, settings).await {
            println!("seed {seed}, case {case}, {settings:?}, {}:\n{}\n{failure}\n", query.shape, query.sql);
            failed.push(format!("seed {seed}, case {case}, {failure}"));
        }
        if failed.len() >= FAILURES_MAX {
            return false;
        }
    }
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn random_queries_agree_with_datafusion() {
    let (cases, first) =
        (number_from_environment("AUBADE_ORACLE_CASES", CASES), number_from_environment("AUBADE_ORACLE_SEED", SEED));
    println!("{cases} cases from seed {first} on");
    let targets = Targets::start().await;
    let (mut tally, mut failed) = (Tally::default(), Vec::new());
    for world in 0..cases.div_ceil(CASES_PER_WORLD) {
        let cases = CASES_PER_WORLD.min(cases - world * CASES_PER_WORLD);
        if !try_world(&targets, first.wrapping_add(world), cases, &mut tally, &mut failed).await {
            break;
        }
    }
    targets.stop().await;
    println!("{tally:#?}");
    assert!(failed.is_empty(), "{} failures: {failed:#?}", failed.len());
    tally.check();
}

#[test]
fn a_seed_makes_the_same_tables_and_queries_again() {
    let queries = |seed| {
        let world = World::generate(seed);
        let mut draw = Draw::new(seed);
        let queries: Vec<String> = (0..200).map(|_| generate(&mut draw, &world).sql).collect();
        let rows: Vec<RecordBatch> = world.tables.into_iter().flat_map(|table| table.segments).collect();
        (rows, queries)
    };
    assert_eq!(queries(5), queries(5));
    assert_ne!(queries(5).1, queries(6).1);
}
