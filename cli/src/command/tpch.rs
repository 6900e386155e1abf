//! `aubade tpch`: load and run TPC-H.

use std::path::{Path, PathBuf};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use aubade_environment::Environment;
use aubade_proto::{Error, ErrorCode, Result, ResultExt};
use aubade_tpch::{Oracle, QUERIES, Query, Scale, query};
use clap::{Args, Subcommand};
use serde::Serialize;

use crate::benchmark::{self, Measured, elapsed};
use crate::size::count;
use crate::target::{LoadMode, Target, TargetArgs};
use crate::{interrupt, output};

#[derive(Debug, Subcommand)]
pub(crate) enum Tpch {
    /// Generate the eight tables and load them
    Load(Load),
    /// Run the 22 queries and print a table of times and figures
    Run(Run),
    /// Print the text of a query
    Query(PrintQuery),
}

impl Tpch {
    pub(crate) async fn run(self, environment: Environment) -> Result<()> {
        match self {
            Self::Load(load) => load.run(environment).await,
            Self::Run(run) => run.run(environment).await,
            Self::Query(print) => output::line(selected(print.number)?.sql.trim_end()),
        }
    }
}

/// Print the text of a query.
#[derive(Debug, Args)]
pub(crate) struct PrintQuery {
    /// 1 to 22
    number: u32,
}

/// Generate the eight tables and load them, each as one commit.
#[derive(Debug, Args)]
pub(crate) struct Load {
    /// The scale factor; 1 is about 1 GB as text
    #[arg(long, default_value = "0.1")]
    scale: Scale,

    /// Drop tables that exist and load them anew
    #[arg(long)]
    replace: bool,

    #[command(flatten)]
    target: TargetArgs,
}

impl Load {
    async fn run(self, environment: Environment) -> Result<()> {
        let target = interrupt::until_shutdown(self.target.open_durable(&environment)).await?;
        let mode = if self.replace { LoadMode::Replace } else { LoadMode::Create };
        let start = environment.clock.now();
        let loaded = interrupt::until_shutdown(benchmark::load(&target, self.scale, mode)).await;
        target.close().await;
        let took = environment.clock.now().saturating_sub(start);
        output::line(&format!("loaded {} at scale {} in {}", count(loaded?, "row"), self.scale, elapsed(took)))
    }
}

/// Run queries, one after the other, and print a table of times and figures.
#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    target: TargetArgs,

    #[command(flatten)]
    selection: Selection,

    /// Runs of each query; the table shows the median time, and the other figures of the last run
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,

    /// Write all figures to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Compare every result, row by row, with DataFusion run in this process over the same generated data
    #[arg(long)]
    verify: bool,

    /// The scale that was loaded, for --verify [default: found from the rows of orders]
    #[arg(long)]
    scale: Option<Scale>,
}

/// Which queries to run.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Selection {
    /// Only these queries, like 1,6
    #[arg(long, value_delimiter = ',', value_name = "NUMBERS")]
    queries: Vec<u32>,
}

impl Selection {
    /// The queries, in the order in which they were named.
    pub(crate) fn queries(&self) -> Result<Vec<&'static Query>> {
        if self.queries.is_empty() {
            return Ok(QUERIES.iter().collect());
        }
        self.queries.iter().map(|number| selected(*number)).collect()
    }
}

fn selected(number: u32) -> Result<&'static Query> {
    query(number).ok_or_else(|| {
        Error::new(ErrorCode::InvalidArgument, format!("there is no query {number}")).hint("they are 1 to 22")
    })
}

/// What `--json` writes.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// The sum of the medians.
    total_seconds: f64,
    /// Runs of each query.
    runs: u32,
    /// The queries, in the order in which they ran.
    queries: &'a [Measured],
}

impl Run {
    async fn run(self, environment: Environment) -> Result<()> {
        let queries = self.selection.queries()?;
        let target = interrupt::until_shutdown(self.target.open_durable(&environment)).await?;
        let measured = interrupt::until_shutdown(self.measure(&environment, &target, &queries)).await;
        target.close().await;
        let measured = measured?;
        output::line(&benchmark::render(&measured))?;
        if let Some(path) = &self.json {
            let report =
                Report { total_seconds: benchmark::total_seconds(&measured), runs: self.runs, queries: &measured };
            write_json(&environment, path, &report)?;
        }
        benchmark::check(&measured)
    }

    async fn measure(&self, environment: &Environment, target: &Target, queries: &[&Query]) -> Result<Vec<Measured>> {
        let oracle = if self.verify {
            let scale = match self.scale {
                Some(scale) => scale,
                None => loaded_scale(target).await?,
            };
            output::note(&format!("generating scale {scale} for DataFusion, in memory"));
            Some(Oracle::open(scale).await.map_err(Error::from_datafusion)?)
        } else {
            None
        };
        Ok(benchmark::run(environment, target, queries, self.runs, oracle.as_ref()).await)
    }
}

/// The scale of the data that is there.
///
/// # Errors
/// `TableNotFound` when nothing was loaded; `InvalidArgument` when it is no TPC-H data.
pub(crate) async fn loaded_scale(target: &Target) -> Result<Scale> {
    let (_, batches) = target.collect("select count(*) from orders").await?;
    let rows = batches
        .iter()
        .find(|batch| batch.num_rows() == 1)
        .and_then(|batch| batch.column(0).as_primitive_opt::<Int64Type>().map(|column| column.value(0)))
        .and_then(|rows| u64::try_from(rows).ok())
        .unwrap_or(0);
    Scale::from_orders(rows).map_err(|error| {
        Error::new(ErrorCode::InvalidArgument, format!("the table orders has {rows} rows, which fits no scale"))
            .source(error)
            .hint("load with `aubade tpch load`, or say --scale")
    })
}

fn write_json(environment: &Environment, path: &Path, report: &Report<'_>) -> Result<()> {
    let message = || format!("the file {} cannot be written", path.display());
    let json = serde_json::to_vec_pretty(report).context(ErrorCode::Internal, message)?;
    // A report replaces the one of an earlier run.
    match environment.files.remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).context(ErrorCode::Io, message);
        }
        _ => {}
    }
    let mut file = environment.files.create_new(path).context(ErrorCode::Io, message)?;
    file.write_all(&json).and_then(|()| file.sync()).context(ErrorCode::Io, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_selected_in_the_order_given() {
        let selection = Selection { queries: vec![6, 1] };
        let numbers: Vec<u32> = selection.queries().unwrap().iter().map(|query| query.number).collect();
        assert_eq!(numbers, [6, 1]);
        assert_eq!(Selection::default().queries().unwrap().len(), 22);
        let error = Selection { queries: vec![23] }.queries().unwrap_err();
        assert!(error.to_string().contains("1 to 22"));
    }
}
