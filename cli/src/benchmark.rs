//! Loading and running TPC-H against a [`Target`], for `aubade tpch` and `aubade demo`.

use std::time::Duration;

use arrow::record_batch::RecordBatch;
use aubade_engine::QueryRecord;
use aubade_environment::Environment;
use aubade_proto::{Error, ErrorCode, Result};
use aubade_tpch::{Oracle, Query, Scale, TpchTable, compare};
use futures::{StreamExt, TryStreamExt, stream};
use indicatif::MultiProgress;
use serde::Serialize;

use crate::output::{self, Align, Grid, ProgressUnit};
use crate::size::{ByteSize, grouped};
use crate::target::{LoadMode, LoadTarget, Target};

/// Tables that are loaded at a time: while one waits for its last segments and its commit, the other goes on.
const TABLES_AT_A_TIME: usize = 2;

/// Generates the eight tables and loads each as one commit, the largest first; returns their rows.
pub(crate) async fn load(target: &Target, scale: Scale, mode: LoadMode) -> Result<u64> {
    let bars = MultiProgress::new();
    let tables = stream::iter(TpchTable::ALL.into_iter().rev());
    let loads = tables.map(|table| load_table(target, table, scale, mode, &bars));
    loads.buffer_unordered(TABLES_AT_A_TIME).try_fold(0_u64, async |sum, rows| Ok(sum.saturating_add(rows))).await
}

async fn load_table(
    target: &Target,
    table: TpchTable,
    scale: Scale,
    mode: LoadMode,
    bars: &MultiProgress,
) -> Result<u64> {
    let parallelism = std::thread::available_parallelism().map_or(1, usize::from);
    let bar = output::progress_among(bars, table.name(), table.expected_rows(scale), ProgressUnit::Rows);
    let counter = bar.clone();
    let stream = table
        .stream(scale, parallelism)
        .inspect_ok(move |batch| counter.inc(batch.num_rows() as u64))
        .map_err(Error::from_datafusion)
        .boxed();
    let destination = LoadTarget { schema: None, table: table.name().to_owned(), mode };
    let loaded = target.load(&destination, table.schema(), stream).await.map_err(|error| match error.code() {
        ErrorCode::AlreadyExists => error.hint("say --replace to load it anew"),
        _ => error,
    });
    match &loaded {
        Ok(rows) => {
            bar.set_length(*rows);
            bar.finish();
        }
        Err(_) => bar.abandon(),
    }
    loaded
}

/// How one query did.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Measured {
    /// 1 to 22.
    query: u32,
    /// Rows of its result.
    rows: u64,
    /// Time of each run, from sending the text to holding the last row.
    seconds: Vec<f64>,
    /// The median of `seconds`.
    median_seconds: f64,
    /// Segments read in the last run.
    segments_scanned: u64,
    /// Segments that statistics ruled out in the last run.
    segments_pruned: u64,
    /// Bytes of segments read at storage nodes in the last run.
    bytes_read: u64,
    /// Bytes from storage nodes to the coordinator in the last run.
    bytes_wire: u64,
    /// Requests that were repeated at another replica in the last run.
    retries: u64,
    /// Whether the result equals DataFusion's; absent when it was not compared.
    verified: Option<bool>,
    /// Why it failed, or what differs.
    error: Option<String>,
}

impl Measured {
    fn new(query: &Query) -> Self {
        Self {
            query: query.number,
            rows: 0,
            seconds: Vec::new(),
            median_seconds: 0.0,
            segments_scanned: 0,
            segments_pruned: 0,
            bytes_read: 0,
            bytes_wire: 0,
            retries: 0,
            verified: None,
            error: None,
        }
    }

    fn add_record(&mut self, record: &QueryRecord) {
        self.segments_scanned = record.segments_scanned;
        self.segments_pruned = record.segments_pruned;
        self.bytes_read = record.bytes_read;
        self.bytes_wire = record.bytes_wire;
        self.retries = record.retries;
    }
}

/// Runs each query `runs` times, one after the other, and compares the last result if there is an
/// oracle. A query that fails is noted, and the others still run.
pub(crate) async fn run(
    environment: &Environment,
    target: &Target,
    queries: &[&Query],
    runs: u32,
    oracle: Option<&Oracle>,
) -> Vec<Measured> {
    let bar = output::progress("queries", queries.len() as u64, ProgressUnit::Queries);
    let mut all = Vec::with_capacity(queries.len());
    for query in queries {
        let mut measured = Measured::new(query);
        if let Err(error) = run_one(environment, target, query, runs, oracle, &mut measured).await {
            measured.error = Some(error.report());
        }
        all.push(measured);
        bar.inc(1);
    }
    bar.finish_and_clear();
    all
}

async fn run_one(
    environment: &Environment,
    target: &Target,
    query: &Query,
    runs: u32,
    oracle: Option<&Oracle>,
    measured: &mut Measured,
) -> Result<()> {
    let mut result: Vec<RecordBatch> = Vec::new();
    for _ in 0..runs.max(1) {
        let start = environment.clock.now();
        let (id, batches) = target.collect(query.sql).await?;
        measured.seconds.push(environment.clock.now().saturating_sub(start).as_secs_f64());
        measured.rows = batches.iter().map(|batch| batch.num_rows() as u64).sum();
        result = batches;
        if let Some(id) = id
            && let Some(record) = target.record(environment, id).await
        {
            measured.add_record(&record);
        }
    }
    measured.median_seconds = median(&measured.seconds);
    if let Some(oracle) = oracle {
        let expected = oracle.run(query.sql).await.map_err(Error::from_datafusion)?;
        let outcome = compare(query, &expected, &result);
        measured.verified = Some(outcome.is_ok());
        if let Err(difference) = outcome {
            return Err(Error::internal(format!("the result differs from DataFusion's: {difference}")));
        }
    }
    Ok(())
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.get(middle), sorted.len().is_multiple_of(2).then(|| sorted.get(middle.wrapping_sub(1))).flatten()) {
        (Some(upper), Some(lower)) => f64::midpoint(*lower, *upper),
        (Some(middle), None) => *middle,
        (None, _) => 0.0,
    }
}

/// The table for people.
pub(crate) fn render(all: &[Measured]) -> String {
    let verified = all.iter().any(|measured| measured.verified.is_some());
    let mut columns = vec![
        ("query", Align::Left),
        ("rows", Align::Right),
        ("seconds", Align::Right),
        ("segments scanned", Align::Right),
        ("pruned", Align::Right),
        ("read at storage", Align::Right),
        ("over the wire", Align::Right),
    ];
    if verified {
        columns.push(("verified", Align::Left));
    }
    let mut grid = Grid::new(&columns);
    for measured in all {
        grid.row(cells(measured));
    }
    let sum = |part: fn(&Measured) -> u64| all.iter().map(part).fold(0, u64::saturating_add);
    grid.row([
        "all".to_owned(),
        grouped(sum(|measured| measured.rows)),
        seconds(total_seconds(all)),
        grouped(sum(|measured| measured.segments_scanned)),
        grouped(sum(|measured| measured.segments_pruned)),
        ByteSize(sum(|measured| measured.bytes_read)).to_string(),
        ByteSize(sum(|measured| measured.bytes_wire)).to_string(),
        String::new(),
    ]);
    grid.render()
}

fn cells(measured: &Measured) -> Vec<String> {
    let failed = measured.error.is_some() && measured.verified.is_none();
    let verified = match measured.verified {
        Some(true) => "yes",
        Some(false) => "NO",
        None => "",
    };
    vec![
        format!("q{}", measured.query),
        grouped(measured.rows),
        if failed { "failed".to_owned() } else { seconds(measured.median_seconds) },
        grouped(measured.segments_scanned),
        grouped(measured.segments_pruned),
        ByteSize(measured.bytes_read).to_string(),
        ByteSize(measured.bytes_wire).to_string(),
        verified.to_owned(),
    ]
}

fn seconds(value: f64) -> String {
    format!("{value:.3}")
}

/// The sum of the medians.
pub(crate) fn total_seconds(all: &[Measured]) -> f64 {
    all.iter().map(|measured| measured.median_seconds).sum()
}

/// One error for all queries that failed or differ, if there are any.
///
/// # Errors
/// That one.
pub(crate) fn check(all: &[Measured]) -> Result<()> {
    let failed: Vec<String> = all
        .iter()
        .filter_map(|measured| measured.error.as_ref().map(|error| format!("q{}: {error}", measured.query)))
        .collect();
    if failed.is_empty() {
        return Ok(());
    }
    let message = format!("{} of {} queries failed:\n  {}", failed.len(), all.len(), failed.join("\n  "));
    Err(Error::new(ErrorCode::SqlExecution, message))
}

/// How long something took, for people.
pub(crate) fn elapsed(duration: Duration) -> String {
    format!("{:.3} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_between() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0]), 3.0);
        assert_eq!(median(&[4.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn failed_queries_are_named() {
        let mut good = Measured::new(&aubade_tpch::QUERIES[0]);
        good.verified = Some(true);
        let mut bad = Measured::new(&aubade_tpch::QUERIES[5]);
        bad.error = Some("no replica".to_owned());
        assert!(check(std::slice::from_ref(&good)).is_ok());
        let both = [good, bad];
        assert!(check(&both).unwrap_err().message().contains("q6: no replica"));
        let table = render(&both);
        assert!(table.contains("failed") && table.contains("verified"), "{table}");
    }
}
