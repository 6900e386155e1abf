//! `aubade demo`: a whole cluster in one process.

use std::path::{Path, PathBuf};

use aubade_catalog::{ClusterUrl, Manifest, Quorum};
use aubade_engine::Engine;
use aubade_environment::Environment;
use aubade_proto::{ClusterId, Error, ErrorCode, Result, ResultExt};
use aubade_storage_node::{StorageNode, StorageNodeOptions};
use aubade_tpch::Scale;
use clap::Args;
use tempfile::TempDir;

use crate::benchmark::{self, elapsed};
use crate::command::serve::RunningFlight;
use crate::command::storage_node::{RunningNode, entry};
use crate::command::tpch::{Selection, loaded_scale};
use crate::machine::MachineArguments;
use crate::output::{self, Format};
use crate::shell::Shell;
use crate::size::{ByteSize, count};
use crate::target::{LoadMode, Target};
use crate::{connect, interrupt};

/// Availability zones that the nodes are spread over.
const ZONES: u32 = 3;
/// More nodes than this make no sense in one process.
const NODES_MAX: u32 = 64;
/// Where a coordinator or node listens in a demo: free ports on loopback.
const ANY_PORT: &str = "127.0.0.1:0";

/// Show a whole cluster in one process.
///
/// Starts storage nodes in three zones and a coordinator, with gRPC on loopback between them;
/// generates TPC-H and writes it with a write quorum; runs the 22 queries through Flight SQL and
/// prints what they read and sent; says how to connect, and opens the SQL shell where standard
/// input is a terminal. Its data is removed at the end unless --keep or --data-dir says otherwise.
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// The TPC-H scale factor; 1 is about 1 GB as text
    #[arg(long, default_value = "0.1")]
    scale: Scale,

    /// Replicas of each segment, at most as many as nodes
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..))]
    copies: u32,

    /// Storage nodes
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=i64::from(NODES_MAX)))]
    nodes: u32,

    /// Keep the data in this folder; a later demo with the same folder finds it again
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Keep the temporary data and say where it is
    #[arg(long)]
    keep: bool,

    #[command(flatten)]
    selection: Selection,

    /// Where the coordinator listens for Flight SQL [default: a free port of 127.0.0.1]
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,

    #[command(flatten)]
    machine: MachineArguments,
}

impl Demo {
    pub(crate) async fn run(self, environment: Environment) -> Result<()> {
        if self.copies > self.nodes {
            let text = format!("{} copies need as many storage nodes, and there are {}", self.copies, self.nodes);
            return Err(Error::new(ErrorCode::InvalidArgument, text).hint("raise --nodes or lower --copies"));
        }
        if self.data_dir.is_none() && self.machine.pool_folder().is_some() {
            let text = "--buffer-pool-disk is of no use to a demo whose data are removed at its end";
            return Err(Error::new(ErrorCode::InvalidArgument, text).hint("keep the data with --data-dir DIR"));
        }
        let quorum = Quorum::for_copies(self.copies)?;
        let folder = Folder::open(&environment, self.data_dir.as_deref(), self.keep)?;
        let mut cluster = DemoCluster::default();
        let result = self.show(&environment, folder.path(), quorum, &mut cluster).await;
        cluster.stop().await;
        folder.close();
        result
    }

    async fn show(
        &self,
        environment: &Environment,
        dir: &Path,
        quorum: Quorum,
        cluster: &mut DemoCluster,
    ) -> Result<()> {
        let address = interrupt::until_shutdown(cluster.start(environment, self, dir, quorum)).await?;
        let target = Target::remote(environment, &format!("grpc://{address}"))?;
        interrupt::until_shutdown(self.benchmark(environment, &target, quorum)).await?;
        output::line(&how_to_connect(&address))?;
        if !output::stdin_is_terminal() {
            return Ok(());
        }
        let mut shell = Shell::new(environment, &target, Format::Table, true);
        tokio::select! {
            result = shell.interact() => result,
            signal = interrupt::terminated() => signal,
        }
    }

    async fn benchmark(&self, environment: &Environment, target: &Target, quorum: Quorum) -> Result<()> {
        output::line(&format!(
            "cluster: {} in {}, {} copies of every segment, {} to acknowledge a write",
            count(u64::from(self.nodes), "storage node"),
            count(u64::from(self.nodes.min(ZONES)), "zone"),
            quorum.copies(),
            quorum.write()
        ))?;
        match loaded_scale(target).await {
            Ok(scale) if scale == self.scale => output::line(&format!("TPC-H at scale {scale} is there already\n"))?,
            Ok(scale) => {
                let text = format!("the folder holds TPC-H at scale {scale}, not {}", self.scale);
                return Err(
                    Error::new(ErrorCode::AlreadyExists, text).hint("say its --scale, or use another --data-dir")
                );
            }
            Err(error) if error.code() == ErrorCode::TableNotFound => self.load(environment, target).await?,
            Err(error) => return Err(error),
        }
        let measured = benchmark::run(environment, target, &self.selection.queries()?, 1, None).await;
        output::line(&benchmark::render(&measured))?;
        benchmark::check(&measured)
    }

    async fn load(&self, environment: &Environment, target: &Target) -> Result<()> {
        output::line(&format!("loading TPC-H at scale {}", self.scale))?;
        let start = environment.clock.now();
        // A demo that was interrupted may have left some of the tables.
        let rows = benchmark::load(target, self.scale, LoadMode::Replace).await?;
        let took = environment.clock.now().saturating_sub(start);
        let status = target.status().await?;
        let bytes = status.tables.iter().map(|table| table.bytes).fold(0, u64::saturating_add);
        output::line(&format!(
            "loaded {} in {}: {}, {} a copy\n",
            count(rows, "row"),
            elapsed(took),
            count(status.segments as u64, "segment"),
            ByteSize(bytes)
        ))
    }
}

/// The folder of a demo, and whether it goes away at the end. When the process is interrupted
/// between, dropping it removes it too.
#[derive(Debug)]
enum Folder {
    Kept(PathBuf),
    Temporary(TempDir),
}

impl Folder {
    fn open(environment: &Environment, dir: Option<&Path>, keep: bool) -> Result<Self> {
        if let Some(dir) = dir {
            let message = || format!("the data folder {} cannot be made", dir.display());
            environment.files.create_dir_all(dir).context(ErrorCode::Io, message)?;
            return Ok(Self::Kept(dir.canonicalize().context(ErrorCode::Io, message)?));
        }
        let temporary = tempfile::Builder::new()
            .prefix("aubade-demo-")
            .tempdir()
            .context(ErrorCode::Io, || "a temporary folder cannot be made".to_owned())?;
        Ok(if keep { Self::Kept(temporary.keep()) } else { Self::Temporary(temporary) })
    }

    fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Temporary(folder) => folder.path(),
        }
    }

    fn close(self) {
        match self {
            Self::Kept(path) => output::note(&format!("the data is in {}", path.display())),
            Self::Temporary(folder) => {
                let path = folder.path().to_owned();
                if let Err(error) = folder.close() {
                    output::warning(&format!("the temporary folder {} cannot be removed: {error}", path.display()));
                }
            }
        }
    }
}

/// What runs of the demo's cluster so far.
#[derive(Debug, Default)]
struct DemoCluster {
    nodes: Vec<RunningNode>,
    coordinator: Option<RunningFlight>,
}

impl DemoCluster {
    /// Starts everything; returns where the coordinator listens. What was started stays in `self`
    /// when a later part fails.
    async fn start(&mut self, environment: &Environment, demo: &Demo, dir: &Path, quorum: Quorum) -> Result<String> {
        let url = manifest_url(dir)?;
        let manifest = open_or_create(environment, &url, quorum).await?;
        for index in 0..demo.nodes {
            let zone = format!("az{}", index % ZONES + 1);
            let options = StorageNodeOptions::new(dir.join(format!("node-{}", index + 1)), zone);
            let node = StorageNode::open(environment.clone(), manifest.snapshot().cluster_id, options).await?;
            let listener = connect::listen(environment, ANY_PORT).await?;
            let address = connect::local_address(listener.as_ref())?.to_string();
            let entry = entry(&node, address);
            self.nodes.push(RunningNode::start(node, listener));
            manifest.register(&entry).await?;
        }
        let listener = connect::listen(environment, demo.listen.as_deref().unwrap_or(ANY_PORT)).await?;
        let address = connect::local_address(listener.as_ref())?;
        let options = demo.machine.engine_options()?;
        let engine = Engine::open_cluster(environment.clone(), &url, options).await?;
        self.coordinator = Some(RunningFlight::start(engine, listener));
        Ok(address.to_string())
    }

    async fn stop(self) {
        if let Some(coordinator) = self.coordinator {
            coordinator.stop().await;
        }
        futures::future::join_all(self.nodes.into_iter().map(RunningNode::stop)).await;
    }
}

fn manifest_url(dir: &Path) -> Result<ClusterUrl> {
    let path = dir.join("manifest");
    let url = url::Url::from_directory_path(&path)
        .map_err(|()| Error::new(ErrorCode::InvalidArgument, format!("{} is no absolute path", path.display())))?;
    ClusterUrl::parse(url.as_str())
}

/// The cluster of an earlier demo in the same folder, or a new one.
async fn open_or_create(environment: &Environment, url: &ClusterUrl, quorum: Quorum) -> Result<Manifest> {
    let store = url.open(environment).await?;
    match Manifest::open(environment.clone(), store.clone()).await {
        Ok(manifest) if manifest.snapshot().quorum == quorum => Ok(manifest),
        Ok(manifest) => {
            let copies = manifest.snapshot().quorum.copies();
            Err(Error::new(ErrorCode::ClusterExists, format!("the folder holds a cluster with {copies} copies"))
                .hint("say its --copies, or use another --data-dir"))
        }
        Err(error) if error.code() == ErrorCode::ClusterNotFound => {
            let id = ClusterId(environment.new_uuid());
            Manifest::create(environment.clone(), store, id, quorum).await
        }
        Err(error) => Err(error),
    }
}

fn how_to_connect(address: &str) -> String {
    format!(
        "\nFlight SQL is at grpc://{address} while this runs. From another terminal:\n\n  aubade sql --url \
         grpc://{address}\n\nFrom Python, after pip install adbc-driver-flightsql pyarrow:\n\n  from \
         adbc_driver_flightsql import dbapi\n  with dbapi.connect(\"grpc://{address}\") as connection, \
         connection.cursor() as cursor:\n      cursor.execute(\"select count(*) from lineitem\"); \
         print(cursor.fetchone())\n"
    )
}
