//! `aubade serve`: the coordinator as a process of its own.

use std::path::PathBuf;
use std::sync::Arc;

use aubade_catalog::ClusterUrl;
use aubade_engine::{Engine, EngineOptions, FileAccess, FlightOptions, serve_flight};
use aubade_environment::{Environment, Listener, TaskGroup};
use aubade_proto::{Error, ErrorCode, Result};
use clap::Args;
use tokio::sync::oneshot;

use crate::machine::MachineArguments;
use crate::{allocator, connect, interrupt, output};

/// Run a coordinator until Ctrl-C or SIGTERM.
///
/// It takes over the cluster: a coordinator that ran before it can no longer change anything. Once
/// it is ready it prints the line `listening on grpc://HOST:PORT`.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Where the cluster's manifest is kept: file:///dir, a path, or s3://bucket/prefix
    #[arg(long, value_name = "URL")]
    cluster: String,

    /// Where to listen for Flight SQL; port 0 picks a free one
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7000")]
    listen: String,

    #[command(flatten)]
    machine: MachineArguments,

    /// Where to spill [default: the system's folder for temporary files]
    #[arg(long, value_name = "DIR")]
    spill_dir: Option<PathBuf>,

    /// Let SQL read and write files of this machine below this folder; without it, none
    #[arg(long, value_name = "DIR")]
    allow_local_files: Option<PathBuf>,
}

impl Serve {
    pub(crate) async fn run(self, environment: Environment) -> Result<()> {
        let url = ClusterUrl::parse(&self.cluster)?;
        let file_access = match self.allow_local_files {
            Some(folder) => FileAccess::Folder(existing_folder(folder)?),
            None => FileAccess::Deny,
        };
        let options = EngineOptions { spill_dir: self.spill_dir, file_access, ..self.machine.engine_options()? };
        self.machine.report_no_pool(&options);
        // The port first: a second coordinator on this machine must not take over before it fails.
        let listener = connect::listen(&environment, &self.listen).await?;
        let clock = Arc::clone(&environment.clock);
        let local = connect::local_address(listener.as_ref())?;
        let engine = interrupt::until_shutdown(Engine::open_cluster(environment, &url, options)).await?;
        let mut running = RunningFlight::start(engine.clone(), listener);
        let result = match output::line(&format!("listening on grpc://{local}")) {
            Ok(()) => tokio::select! {
                signal = interrupt::shutdown_requested() => signal,
                error = running.failed() => Err(error),
                never = allocator::keep_freed_memory(&engine, clock.as_ref()) => match never {},
            },
            Err(error) => Err(error),
        };
        running.stop().await;
        result
    }
}

fn existing_folder(folder: PathBuf) -> Result<PathBuf> {
    folder.canonicalize().map_err(|error| {
        Error::new(ErrorCode::InvalidArgument, format!("--allow-local-files {}: no such folder", folder.display()))
            .source(error)
            .hint("make the folder first")
    })
}

/// A coordinator that serves.
#[derive(Debug)]
pub(crate) struct RunningFlight {
    engine: Engine,
    tasks: TaskGroup,
    failed: oneshot::Receiver<Error>,
}

impl RunningFlight {
    /// Serves `engine` at `listener` in the background.
    pub(crate) fn start(engine: Engine, listener: Box<dyn Listener>) -> Self {
        let tasks = TaskGroup::new();
        let (sender, failed) = oneshot::channel();
        let (served, group) = (engine.clone(), tasks.clone());
        tasks.spawn_graceful(async move {
            if let Err(error) = serve_flight(served, listener, &group, FlightOptions::default()).await {
                // Nobody waits for it once the process stops.
                let _ = sender.send(error);
            }
        });
        Self { engine, tasks, failed }
    }

    /// Completes when the service ends by itself.
    pub(crate) async fn failed(&mut self) -> Error {
        let ended = || Error::internal("the Flight SQL service ended");
        (&mut self.failed).await.unwrap_or_else(|_| ended())
    }

    /// Lets running queries end, and stops.
    pub(crate) async fn stop(self) {
        self.tasks.shutdown().await;
        self.engine.shutdown().await;
    }
}
