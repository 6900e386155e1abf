//! `aubade storage-node`: one storage node as a process of its own.

use std::path::PathBuf;
use std::time::Duration;

use aubade_catalog::{ClusterUrl, Manifest, NodeEntry};
use aubade_environment::{Environment, Listener, TaskGroup};
use aubade_proto::{Error, ErrorCode, Result};
use aubade_storage_node::{StorageNode, StorageNodeOptions};
use clap::Args;

use crate::machine::check_fragment_cache;
use crate::size::ByteSize;
use crate::{connect, interrupt, output};

/// Time for running scans to end when the node is asked to stop.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

/// Run a storage node until Ctrl-C or SIGTERM.
///
/// The node joins its cluster by itself, keeps its id in its data folder, and comes back with it.
/// Once it is ready it prints the line `listening on grpc://HOST:PORT`.
#[derive(Debug, Args)]
pub(crate) struct StorageNodeCommand {
    /// Where the cluster's manifest is kept: file:///dir, a path, or s3://bucket/prefix
    #[arg(long, value_name = "URL")]
    cluster: String,

    /// The folder for segments; made if absent, and used by one node at a time
    #[arg(long, value_name = "DIR")]
    data: PathBuf,

    /// The availability zone: replicas of a segment are spread over zones
    #[arg(long)]
    zone: String,

    /// Where to listen; port 0 picks a free one
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7101")]
    listen: String,

    /// The address under which others reach this node [default: where it listens]
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,

    /// Threads for scans, apart from those for the network [default: one per core]
    #[arg(long, value_name = "THREADS")]
    cpu_threads: Option<usize>,

    /// Decoded data that one scan holds at a time [default: 256MiB]
    #[arg(long, value_name = "SIZE")]
    scan_memory: Option<ByteSize>,

    /// Scans that run at a time; further ones are refused as busy [default: 64]
    #[arg(long, value_name = "SCANS")]
    concurrent_scans: Option<usize>,

    /// Wait for a CPU thread from which on scans are handed back to the coordinator, milliseconds; 0: all are
    /// [default: 500]
    #[arg(long, value_name = "MILLIS")]
    pushback_after: Option<u64>,

    /// Results of aggregates over single segments that are kept for the next time; 0: none [default: 64MiB]
    #[arg(long, value_name = "SIZE")]
    fragment_cache: Option<ByteSize>,

    /// Data per second that is read to verify stored segments in the background; 0: none [default: 16MiB]
    #[arg(long, value_name = "SIZE")]
    scrub_rate: Option<ByteSize>,
}

impl StorageNodeCommand {
    pub(crate) async fn run(self, environment: Environment) -> Result<()> {
        check_fragment_cache(self.fragment_cache)?;
        let store = ClusterUrl::parse(&self.cluster)?.open(&environment).await?;
        let manifest = Manifest::open(environment.clone(), store).await?;
        let listener = connect::listen(&environment, &self.listen).await?;
        let local = connect::local_address(listener.as_ref())?;
        let address = match self.advertise.clone() {
            Some(address) => address,
            None if local.ip().is_unspecified() => {
                return Err(Error::new(
                    ErrorCode::InvalidArgument,
                    format!("{local} is no address that others can call"),
                )
                .hint("say with --advertise HOST:PORT how others reach this node"));
            }
            None => local.to_string(),
        };
        let node = StorageNode::open(environment.clone(), manifest.snapshot().cluster_id, self.options()).await?;
        // Before it serves: one that is refused, since another node has its address, must not take what is meant for
        // that one. Callers that are faster wait in the listener's backlog.
        if let Err(error) = interrupt::until_shutdown(manifest.register(&entry(&node, address))).await {
            node.shutdown(SHUTDOWN_GRACE).await;
            return Err(error);
        }
        let running = RunningNode::start(node, listener);
        let result = match output::line(&format!("listening on grpc://{local}")) {
            Ok(()) => interrupt::shutdown_requested().await,
            Err(error) => Err(error),
        };
        running.stop().await;
        result
    }

    fn options(&self) -> StorageNodeOptions {
        let mut options = StorageNodeOptions::new(self.data.clone(), self.zone.clone());
        options.cpu_threads = self.cpu_threads.unwrap_or(options.cpu_threads);
        if let Some(size) = self.scan_memory {
            options.scan_memory_bytes = usize::try_from(size.0).unwrap_or(usize::MAX);
        }
        if let Some(size) = self.scrub_rate {
            options.scrub_bytes_per_second = size.0;
        }
        if let Some(size) = self.fragment_cache {
            options.fragment_cache_bytes = size.0;
        }
        if let Some(millis) = self.pushback_after {
            options.pushback_wait = Duration::from_millis(millis);
        }
        options.max_concurrent_scans = self.concurrent_scans.unwrap_or(options.max_concurrent_scans);
        options
    }
}

/// A node as the manifest knows it.
pub(crate) fn entry(node: &StorageNode, address: String) -> NodeEntry {
    NodeEntry { id: node.id(), zone: node.zone().to_owned(), address }
}

/// A storage node that serves.
#[derive(Debug)]
pub(crate) struct RunningNode {
    node: StorageNode,
    tasks: TaskGroup,
}

impl RunningNode {
    /// Serves `node` at `listener` in the background.
    pub(crate) fn start(node: StorageNode, listener: Box<dyn Listener>) -> Self {
        let tasks = TaskGroup::new();
        let (served, group) = (node.clone(), tasks.clone());
        tasks.spawn_graceful(async move {
            if let Err(error) = aubade_storage_node::serve(served, listener, &group).await {
                tracing::error!(error = %error.chain(), "the storage node's service ended");
            }
        });
        Self { node, tasks }
    }

    /// Refuses new work, lets running scans end, and stops.
    pub(crate) async fn stop(self) {
        self.node.shutdown(SHUTDOWN_GRACE).await;
        self.tasks.shutdown().await;
    }
}
