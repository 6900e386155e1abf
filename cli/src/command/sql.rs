//! `aubade sql`: statements from the command line, a file, a pipe or the shell.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aubade_environment::Environment;
use aubade_environment::tasks::run_blocking;
use aubade_proto::{Error, ErrorCode, Result, ResultExt};
use clap::Args;

use crate::interrupt;
use crate::output::{self, Format};
use crate::shell::Shell;
use crate::target::{Target, TargetArgs};

/// Largest file of statements.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// Run SQL, from the command line, a file, a pipe or the shell.
///
/// With --url it runs at a coordinator, with --data-dir in an embedded one-node cluster that is kept
/// in a folder, and with neither in an embedded one in memory, which can read local files:
/// `aubade sql -c "select count(*) from 'file.parquet'"`. Without -c and -f, statements come from
/// standard input; where that is a terminal, the shell opens. At the first statement that fails the
/// rest is not run and the exit code is 1; the shell goes on.
#[derive(Debug, Args)]
pub(crate) struct Sql {
    #[command(flatten)]
    target: TargetArgs,

    /// Run these statements (several are separated by ;), then end; may be given several times
    #[arg(short, long = "command", value_name = "SQL")]
    command: Vec<String>,

    /// Run the statements in this file after those of -c, then end
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,

    /// How results are written
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Sql {
    pub(crate) async fn run(self, environment: Environment) -> Result<()> {
        let target = interrupt::until_shutdown(self.target.open(&environment)).await?;
        let result = self.run_on(&environment, &target).await;
        target.close().await;
        result
    }

    async fn run_on(&self, environment: &Environment, target: &Target) -> Result<()> {
        let terminal = output::stdin_is_terminal();
        let mut shell = Shell::new(environment, target, self.format, terminal);
        if self.command.is_empty() && self.file.is_none() {
            if terminal {
                return tokio::select! {
                    result = shell.interact() => result,
                    signal = interrupt::terminated() => signal,
                };
            }
            return interrupt::until_shutdown(shell.pipe()).await;
        }
        interrupt::until_shutdown(async {
            for text in &self.command {
                shell.text(text).await?;
            }
            if let Some(path) = &self.file {
                shell.text(&read_file(environment, path).await?).await?;
            }
            Ok(())
        })
        .await
    }
}

async fn read_file(environment: &Environment, path: &Path) -> Result<String> {
    let (files, owned) = (Arc::clone(&environment.files), path.to_owned());
    let message = format!("the file {} cannot be read", path.display());
    let read = run_blocking(move || -> std::io::Result<_> {
        let file = files.open(&owned)?;
        if file.length_bytes() > FILE_BYTES_MAX {
            return Err(std::io::Error::other("it is larger than 256 MiB"));
        }
        // Below the limit, so that it fits any usize.
        file.read_at(0, file.length_bytes() as usize)
    });
    let stopped = || Error::new(ErrorCode::Cancelled, "the reading of a file was stopped");
    let bytes = read.await.ok_or_else(stopped)?.context(ErrorCode::Io, || message.clone())?;
    String::from_utf8(bytes.into()).context(ErrorCode::Io, || format!("{message}: it is not UTF-8"))
}
