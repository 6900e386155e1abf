//! The one binary of Aubade: every role of the cluster, the SQL shell and the tools.

mod allocator;
mod benchmark;
mod command;
mod connect;
mod data_file;
mod interrupt;
mod machine;
mod output;
#[cfg(all(target_arch = "x86_64", target_feature = "avx2"))]
mod processor;
mod shell;
mod size;
mod statements;
mod target;

use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::Duration;

use aubade_environment::Environment;
use aubade_proto::{ErrorCode, Result, ResultExt};
use clap::Parser;
use tracing_subscriber::EnvFilter;

use command::Command;

/// Time for blocking work (a read of a file, a terminal that waits for a line) to end at exit.
const EXIT_GRACE: Duration = Duration::from_secs(1);

/// Aubade: a parallel SQL engine whose storage nodes filter for it.
///
/// Start with `aubade demo`. Logs go to standard error, with colours only on a terminal and unless NO_COLOR is set;
/// RUST_LOG sets their level (default: warn).
#[derive(Debug, Parser)]
#[command(name = "aubade", version, max_term_width = 100, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    #[cfg(all(target_arch = "x86_64", target_feature = "avx2"))]
    if let Err(error) = processor::check() {
        output::error(&error);
        return ExitCode::FAILURE;
    }
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(output::stderr_takes_colour())
        .with_writer(std::io::stderr)
        .init();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error);
            ExitCode::FAILURE
        }
    }
}

/// Threads that serve the network. Queries and scans have threads of their own, as many as there are CPUs; for messages,
/// which are small, fewer are faster: there are fewer to wake (docs/PERFORMANCE.md has the figures).
fn network_threads() -> usize {
    let cpus = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    cpus.div_ceil(2)
}

fn run(command: Command) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(network_threads())
        .enable_all()
        .thread_name("aubade")
        .build()
        .context(ErrorCode::Internal, || "the threads of the process cannot be started".to_owned())?;
    let result = runtime.block_on(command.run(Environment::system()));
    runtime.shutdown_timeout(EXIT_GRACE);
    result
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_options_of_all_commands_fit_together() {
        Cli::command().debug_assert();
    }
}
