//! The engine: a cluster's manifest, its nodes, the memory of queries and the background work.
//!
//! ```
//! use aubade_engine::{Engine, EngineOptions};
//! use aubade_environment::Environment;
//! use futures::TryStreamExt;
//!
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! let folder = tempfile::tempdir().unwrap();
//! let engine = Engine::open_embedded(Environment::system(), folder.path(), EngineOptions::default()).await?;
//! let session = engine.session();
//! for statement in ["CREATE TABLE t (a BIGINT)", "INSERT INTO t VALUES (1), (2), (3)"] {
//!     let output = session.execute(statement).await?;
//!     output.stream.try_collect::<Vec<_>>().await?;
//! }
//! let output = session.execute("SELECT sum(a) AS total FROM t WHERE a > 1").await?;
//! let batches: Vec<_> = output.stream.try_collect().await?;
//! let text = arrow::util::pretty::pretty_format_batches(&batches)?.to_string();
//! assert!(text.contains("| 5     |"), "{text}");
//! engine.shutdown().await;
//! # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use aubade_catalog::manifest::{Collected, CollectionLimits};
use aubade_catalog::store::{LocalStore, MemoryStore};
use aubade_catalog::{Action, ClusterUrl, Commit, Manifest, ManifestStore, NodeEntry, Quorum, Snapshot};
use aubade_environment::tasks::run_blocking;
use aubade_environment::{Environment, FileLock, MemoryFiles, TaskGroup};
use aubade_planner::{ResultStore, ScanTask, TableAccess};
use aubade_proto::{
    ClusterId, Epoch, Error, ErrorCode, RelationId, Result, ResultExt, SegmentId, TransactionId, Version,
};
use aubade_storage_node::{FragmentRunner, StorageNode, StorageNodeOptions};
use datafusion::catalog::TableProvider;
use datafusion::datasource::sink::DataSink;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::TrackConsumersPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use futures::FutureExt;
use parking_lot::Mutex;
use rayon::ThreadPool;

use crate::buffer_pool::{BufferPool, BufferPoolDisk, BufferPoolPolicy, DiskTier, Loader};
use crate::cluster::Cluster;
use crate::file_policy::{FileAccess, PolicyObjectStores};
use crate::fragment_results::FragmentResults;
use crate::limits::{BUFFER_POOL_RESULTS_PART, CONTROL_TIMEOUT, FRAGMENT_CACHE_BYTES};
use crate::memory_pool::{HeadroomPool, Lender};
use crate::plan_cache::PlanCache;
use crate::query::QueryLog;
use crate::session::{Session, Template};
use crate::status::ClusterStatus;
use crate::storage_client::{GrpcClients, LoopbackClients, StorageClients};
use crate::write::{SegmentSink, unknown_commit};
use crate::{fanout, maintenance, system};

/// Zone of the one node of an embedded database.
const EMBEDDED_ZONE: &str = "local";
/// Consumers that an out-of-memory error names.
const NAMED_CONSUMERS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4);
/// Stack of a thread that runs queries: expressions of the depth that statements may have are
/// evaluated recursively.
const QUERY_STACK_BYTES: usize = 8 << 20;
/// Time for running scans to end when an embedded engine shuts down.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// What an engine is told when it is opened.
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    /// Memory for sorts, joins, aggregates and scans of all queries together, bytes; past it they
    /// spill or fail with `OUT_OF_MEMORY`. `None`: 4 GiB.
    pub memory_limit_bytes: Option<u64>,
    /// Where to spill; `None`: the system's folder for temporary files.
    pub spill_dir: Option<PathBuf>,
    /// Partitions that a query is cut into; `None`: one per core.
    pub target_partitions: Option<usize>,
    /// Which local files SQL may read and write.
    pub file_access: FileAccess,
    /// Memory for decoded columns of hot segments, bytes, beside the memory limit; 0: none are kept. A sixteenth of it
    /// is for results of fragments over these columns.
    pub buffer_pool_bytes: u64,
    /// How the buffer pool chooses what it keeps.
    pub buffer_pool_policy: BufferPoolPolicy,
    /// A second tier of the buffer pool, which lives through a restart; `None`: there is none.
    pub buffer_pool_disk: Option<BufferPoolDisk>,
    /// Memory for results of fragments, bytes, beside the memory limit; 0: none are kept. `None`: 64 MiB.
    pub fragment_cache_bytes: Option<u64>,
    /// Plans that are kept for the next time, at most 16,384; 0: none are. `None`: 512. A statement takes one, and one
    /// more that it shares with those that differ in constants only.
    pub plan_cache_entries: Option<u64>,
    /// Time after which a plan that nobody asked for is forgotten, not zero and at most a year. `None`: an hour.
    pub plan_cache_age: Option<Duration>,
}

impl EngineOptions {
    /// The memory limit, or its default.
    pub fn memory_limit_bytes(&self) -> usize {
        const DEFAULT_MEMORY_BYTES: u64 = 4 << 30;
        usize::try_from(self.memory_limit_bytes.unwrap_or(DEFAULT_MEMORY_BYTES)).unwrap_or(usize::MAX)
    }
}

/// A coordinator. Cheap to clone: all clones are the same engine, which lives until
/// [`Engine::shutdown`].
#[derive(Clone, Debug)]
pub struct Engine(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    environment: Environment,
    options: EngineOptions,
    manifest: Manifest,
    epoch: Epoch,
    cluster: Arc<Cluster>,
    runtime: Arc<RuntimeEnv>,
    cpu: CpuRuntime,
    encode_pool: Arc<ThreadPool>,
    queries: QueryLog,
    plans: PlanCache,
    results: Option<Arc<FragmentResults>>,
    /// What sessions start with.
    template: OnceLock<Arc<Template>>,
    tasks: TaskGroup,
    in_flight: Mutex<BTreeSet<SegmentId>>,
    /// Snapshots that a query may still read, so that their segments are not collected.
    pinned: Mutex<BTreeMap<Version, Weak<Snapshot>>>,
    newest_epoch: AtomicU64,
    embedded_node: Option<StorageNode>,
    _lock: Option<Box<dyn FileLock>>,
}

impl Engine {
    /// Opens (or makes) a database in a folder: a cluster of one node, in this process.
    ///
    /// # Errors
    /// `InUse` when another process has it open; `ManifestCorrupt`, `Io`; `InvalidArgument` for options that will not do.
    pub async fn open_embedded(environment: Environment, dir: &Path, options: EngineOptions) -> Result<Self> {
        environment
            .files
            .create_dir_all(dir)
            .context(ErrorCode::Io, || format!("the data folder {} cannot be made", dir.display()))?;
        let lock = environment.files.lock(&dir.join("LOCK")).map_err(|error| {
            Error::new(ErrorCode::InUse, format!("the data folder {} cannot be locked", dir.display()))
                .hint("another aubade process has it open: end that one, or use another --data-dir")
                .source(error)
        })?;
        let store: Arc<dyn ManifestStore> = Arc::new(LocalStore::open(&environment, &dir.join("manifest")).await?);
        Self::open_single_node(environment, dir, store, options, Some(lock)).boxed().await
    }

    /// Opens a new database that lives in memory and is gone afterwards.
    ///
    /// # Errors
    /// `Internal` when the machine has no threads left; `InvalidArgument` for options that will not do.
    pub async fn open_in_memory(environment: Environment, options: EngineOptions) -> Result<Self> {
        if let Some(disk) = &options.buffer_pool_disk {
            let text = format!("a database in memory has no folder such as {}", disk.dir.display());
            return Err(Error::new(ErrorCode::InvalidArgument, text).hint("give its buffer pool memory only"));
        }
        let environment = environment.with_files(Arc::new(MemoryFiles::default()));
        let store: Arc<dyn ManifestStore> = Arc::new(MemoryStore::default());
        Self::open_single_node(environment, Path::new("/memory"), store, options, None).boxed().await
    }

    async fn open_single_node(
        environment: Environment,
        dir: &Path,
        store: Arc<dyn ManifestStore>,
        options: EngineOptions,
        lock: Option<Box<dyn FileLock>>,
    ) -> Result<Self> {
        let manifest = match Manifest::open(environment.clone(), Arc::clone(&store)).await {
            Err(error) if error.code() == ErrorCode::ClusterNotFound => {
                let id = ClusterId(environment.new_uuid());
                Manifest::create(environment.clone(), store, id, Quorum::for_copies(1)?).await?
            }
            opened => opened?,
        };
        let cluster_id = manifest.snapshot().cluster_id;
        let mut node_options = StorageNodeOptions::new(dir.join("node"), EMBEDDED_ZONE);
        // There is no other replica: putting a segment aside would only take away what can still be read of it.
        node_options.scrub_bytes_per_second = 0;
        let node = StorageNode::open(environment.clone(), cluster_id, node_options).boxed().await?;
        let entry = NodeEntry { id: node.id(), zone: EMBEDDED_ZONE.to_owned(), address: "in-process".to_owned() };
        manifest.register(&entry).await?;
        let clients = Arc::new(LoopbackClients(BTreeMap::from([(node.id(), node.clone())])));
        Self::start(environment, manifest, clients, options, Some(node), lock).boxed().await
    }

    /// Becomes the coordinator of a cluster, taking over from any other.
    ///
    /// # Errors
    /// `ClusterNotFound`, `StoreUnavailable`, `StoreUnsafe`, `ManifestCorrupt`; `InvalidArgument` for options that will
    /// not do.
    pub async fn open_cluster(environment: Environment, url: &ClusterUrl, options: EngineOptions) -> Result<Self> {
        let store = url.open(&environment).await?;
        Self::open_with_store(environment, store, options).await
    }

    /// As [`Engine::open_cluster`], with the manifest in a store that the caller brings.
    ///
    /// # Errors
    /// As [`Engine::open_cluster`].
    pub async fn open_with_store(
        environment: Environment,
        store: Arc<dyn ManifestStore>,
        options: EngineOptions,
    ) -> Result<Self> {
        let manifest = Manifest::open(environment.clone(), store).await?;
        let clients = Arc::new(GrpcClients::new(&environment));
        Self::start(environment, manifest, clients, options, None, None).boxed().await
    }

    async fn start(
        environment: Environment,
        manifest: Manifest,
        clients: Arc<dyn StorageClients>,
        options: EngineOptions,
        embedded_node: Option<StorageNode>,
        lock: Option<Box<dyn FileLock>>,
    ) -> Result<Self> {
        // Before others are told that they have to go.
        let plans = PlanCache::new(&options, &environment.clock)?;
        let disk = open_disk(&environment, &options, manifest.snapshot().cluster_id).await?;
        let epoch = manifest.take_over().boxed().await?;
        let snapshot = manifest.snapshot();
        let (tasks, threads) = (TaskGroup::new(), std::thread::available_parallelism().map_or(2, NonZeroUsize::get));
        // An embedded node has the CPUs of this process: nothing is gained by handing back.
        let pool_bytes = usize::try_from(options.buffer_pool_bytes).unwrap_or(usize::MAX);
        let result_bytes = pool_bytes / BUFFER_POOL_RESULTS_PART;
        let runner = || {
            FragmentRunner::new(Arc::clone(&environment.clock), threads, tasks.clone(), result_bytes as u64)
                .map(Arc::new)
        };
        let runner = (embedded_node.is_none() || pool_bytes > 0).then(runner).transpose()?;
        let of_pool = runner.as_ref().filter(|_| pool_bytes > 0);
        let pool = of_pool.map(|runner| {
            BufferPool::new(pool_bytes - result_bytes, options.buffer_pool_policy, disk, Arc::clone(runner))
        });
        let (pool, wanted) = pool.unzip();
        let runner = runner.filter(|_| embedded_node.is_none());
        let cluster = Arc::new(Cluster::new(environment.clone(), clients, &snapshot, epoch, runner, pool.clone()));
        let encode_pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("encode-{index}"))
            .build()
            .context(ErrorCode::Internal, || "the threads for encoding could not be started".to_owned())?;
        let result_bytes_max = options.fragment_cache_bytes.unwrap_or(FRAGMENT_CACHE_BYTES);
        let inner = Inner {
            runtime: runtime_env(&options, pool.clone())?,
            cpu: CpuRuntime::start(threads)?,
            environment,
            options,
            manifest,
            epoch,
            cluster,
            encode_pool: Arc::new(encode_pool),
            queries: QueryLog::default(),
            results: (result_bytes_max > 0).then(|| Arc::new(FragmentResults::new(result_bytes_max))),
            plans,
            template: OnceLock::new(),
            tasks,
            in_flight: Mutex::default(),
            pinned: Mutex::default(),
            newest_epoch: AtomicU64::new(epoch.0),
            embedded_node,
            _lock: lock,
        };
        let engine = Self(Arc::new(inner));
        engine.seal_nodes(&snapshot).boxed().await;
        engine.0.tasks.spawn(maintenance::watch(engine.clone()));
        engine.0.tasks.spawn(maintenance::tend(engine.clone()));
        if let Some((pool, wanted)) = pool.zip(wanted) {
            let (cluster, queries) = (Arc::clone(engine.cluster()), engine.queries().clone());
            engine.0.tasks.spawn(Loader { cluster, pool, queries, wanted }.run(snapshot));
        }
        Ok(engine)
    }

    /// Tells every node of the new epoch. One that does not answer learns of it from maintenance, or
    /// from the first write.
    async fn seal_nodes(&self, snapshot: &Snapshot) {
        let header = self.cluster().header(snapshot.version, CONTROL_TIMEOUT);
        let members = self.cluster().members();
        let seals =
            members.iter().map(|member| self.cluster().call(member, CONTROL_TIMEOUT, member.client.seal(&header)));
        for (result, member) in futures::future::join_all(seals).await.into_iter().zip(&members) {
            if let Err(error) = result {
                let (node, address) = (member.entry.id, &member.entry.address);
                tracing::warn!(%node, address, error = %error.chain(), "a storage node does not answer");
            }
        }
    }

    /// A new session.
    pub fn session(&self) -> Session {
        Session::new(self.clone())
    }

    /// The version that a query should read. Maintenance looks for newer ones every second, so a
    /// version of another coordinator that has just taken over may be seen that much later.
    ///
    /// # Errors
    /// None today; a store that must be asked may fail.
    pub async fn snapshot(&self) -> Result<Arc<Snapshot>> {
        let snapshot = self.0.manifest.snapshot();
        let mut pinned = self.0.pinned.lock();
        pinned.retain(|_, live| live.strong_count() > 0);
        pinned.insert(snapshot.version, Arc::downgrade(&snapshot));
        Ok(snapshot)
    }

    /// The cluster at its newest version, with the health of its nodes.
    ///
    /// # Errors
    /// `StoreUnavailable`, `ManifestCorrupt`.
    pub async fn status(&self) -> Result<ClusterStatus> {
        let snapshot = self.0.manifest.refresh().boxed().await?;
        self.adopt(&snapshot);
        let mut status = ClusterStatus::from_snapshot(&snapshot);
        for member in self.cluster().members() {
            let id = member.entry.id.to_string();
            if let Some(node) = status.nodes.iter_mut().find(|node| node.id == id) {
                // What it said before it went away is no news.
                node.told(member.info().filter(|_| member.is_alive()).as_ref());
                node.alive = Some(member.is_alive());
            }
        }
        Ok(status)
    }

    /// The results of fragments that are kept, if any are to be.
    pub(crate) fn results(&self) -> Option<&Arc<FragmentResults>> {
        self.0.results.as_ref()
    }

    /// The records of recent queries.
    pub fn queries(&self) -> &QueryLog {
        &self.0.queries
    }

    /// Deletes segments at the nodes that no version and no running statement needs: those of dropped
    /// tables, damaged ones among them, and what a lost coordinator left. Maintenance does it every minute. Returns how
    /// many replicas were deleted; nodes that do not answer are left for the next time.
    ///
    /// # Errors
    /// `StaleEpoch` once another coordinator has taken over; those of the manifest's store.
    pub async fn collect_orphans(&self) -> Result<u64> {
        maintenance::collect_orphans(self).boxed().await
    }

    /// Deletes old versions of the manifest that no checkpoint and no running query needs. Maintenance
    /// does it every minute.
    ///
    /// # Errors
    /// `StaleEpoch` when another coordinator has taken over, `ManifestCorrupt` when a checkpoint cannot
    /// be read, `StoreUnavailable`. What was deleted by then stays deleted.
    pub async fn collect_versions(&self, limits: &CollectionLimits) -> Result<Collected> {
        self.check_writable()?;
        let oldest_live = self.live_snapshots().iter().map(|snapshot| snapshot.version).min().unwrap_or_default();
        self.0.manifest.collect(limits, oldest_live).boxed().await
    }

    /// Stops the background work and, in an embedded engine, the node. Running queries fail.
    pub async fn shutdown(&self) {
        self.0.tasks.shutdown().await;
        if let Some(disk) = self.cluster().buffer_pool().and_then(|pool| pool.disk()) {
            disk.close().await;
        }
        if let Some(node) = &self.0.embedded_node {
            node.shutdown(SHUTDOWN_GRACE).await;
        }
    }

    /// Whether its only node is in this process.
    pub(crate) fn is_embedded(&self) -> bool {
        self.0.embedded_node.is_some()
    }

    /// Bytes that decoded columns take in the buffer pool now.
    pub fn buffer_pool_bytes(&self) -> usize {
        self.cluster().buffer_pool().map_or(0, |pool| pool.bytes())
    }

    /// What the engine was opened with.
    pub fn options(&self) -> &EngineOptions {
        &self.0.options
    }

    pub(crate) fn plans(&self) -> &PlanCache {
        &self.0.plans
    }

    /// What sessions start with, until they change a setting.
    pub(crate) fn template(&self) -> Arc<Template> {
        Arc::clone(self.0.template.get_or_init(|| Arc::new(Template::of(self))))
    }

    pub(crate) fn environment(&self) -> &Environment {
        &self.0.environment
    }

    pub(crate) fn manifest(&self) -> &Manifest {
        &self.0.manifest
    }

    pub(crate) fn cluster(&self) -> &Arc<Cluster> {
        &self.0.cluster
    }

    pub(crate) fn runtime(&self) -> &Arc<RuntimeEnv> {
        &self.0.runtime
    }

    pub(crate) fn encode_pool(&self) -> &Arc<ThreadPool> {
        &self.0.encode_pool
    }

    pub(crate) fn in_flight(&self) -> &Mutex<BTreeSet<SegmentId>> {
        &self.0.in_flight
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.0.epoch
    }

    /// Where queries run: threads of their own, so that those of the network stay free.
    pub(crate) fn cpu_handle(&self) -> tokio::runtime::Handle {
        self.0.cpu.handle.clone()
    }

    /// What plans scan and write through.
    pub(crate) fn access(&self) -> Arc<dyn TableAccess> {
        Arc::new(self.clone())
    }

    /// Takes note of a newer version.
    pub(crate) fn adopt(&self, snapshot: &Arc<Snapshot>) {
        // Ordering: a writer that reads an older value is refused by the manifest and the nodes.
        self.0.newest_epoch.fetch_max(snapshot.epoch.0, Ordering::Relaxed);
        self.0.cluster.update(snapshot);
    }

    /// Takes note of a version that was committed here, and of the relations that it has dropped.
    pub(crate) fn committed(&self, snapshot: &Arc<Snapshot>, dropped: &BTreeSet<RelationId>) {
        self.adopt(snapshot);
        if dropped.is_empty() {
            return;
        }
        if let Some(pool) = self.cluster().buffer_pool() {
            pool.forget_dropped(dropped);
        }
        if let Some(results) = self.results() {
            // A full cache takes in only what was asked for more often than what it has.
            results.retain_segments(&snapshot.segments().map(|segment| segment.id).collect());
        }
    }

    /// # Errors
    /// `StaleEpoch` once another coordinator has taken over.
    pub(crate) fn check_writable(&self) -> Result<()> {
        let newest = self.0.newest_epoch.load(Ordering::Relaxed);
        if newest > self.0.epoch.0 {
            let text = format!(
                "this coordinator has epoch {} and another one has taken over with epoch {newest}",
                self.0.epoch
            );
            return Err(Error::new(ErrorCode::StaleEpoch, text)
                .hint("send writes to the newer coordinator, or restart this one"));
        }
        Ok(())
    }

    /// Snapshots that somebody may still read, the newest among them.
    pub(crate) fn live_snapshots(&self) -> Vec<Arc<Snapshot>> {
        let mut live: Vec<Arc<Snapshot>> = self.0.pinned.lock().values().filter_map(Weak::upgrade).collect();
        live.push(self.0.manifest.snapshot());
        live
    }

    /// Commits changes that write no segments.
    ///
    /// # Errors
    /// Those of [`Manifest::commit`], and `CommitUnknown`.
    pub(crate) async fn commit(&self, actions: Vec<Action>) -> Result<Arc<Snapshot>> {
        self.check_writable()?;
        let transaction = TransactionId(self.0.environment.new_uuid());
        let dropped = dropped_by(&actions);
        match self.0.manifest.commit(transaction, actions).boxed().await? {
            Commit::Committed(snapshot) => {
                self.committed(&snapshot, &dropped);
                Ok(snapshot)
            }
            Commit::Unknown(cause) => Err(unknown_commit(transaction, cause)),
        }
    }
}

impl TableAccess for Engine {
    fn scan(&self, task: ScanTask, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        fanout::scan(Arc::clone(&self.0.cluster), task, &context)
    }

    fn kept_results(&self) -> Option<Arc<dyn ResultStore>> {
        self.0.results.clone().map(|results| results as Arc<dyn ResultStore>)
    }

    fn system_tables(&self) -> &'static [&'static str] {
        system::TABLES
    }

    fn system_table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        system::table(self, name)
    }

    fn sink(&self, table: Arc<aubade_catalog::snapshot::Table>) -> Result<Arc<dyn DataSink>> {
        Ok(Arc::new(SegmentSink::new(self.clone(), table)))
    }
}

/// The relations that actions drop.
pub(crate) fn dropped_by(actions: &[Action]) -> BTreeSet<RelationId> {
    let dropped = actions.iter().filter_map(|action| match action {
        Action::DropRelation(id) => Some(*id),
        _ => None,
    });
    dropped.collect()
}

/// The second tier of the buffer pool, if there is to be one.
async fn open_disk(environment: &Environment, options: &EngineOptions, cluster: ClusterId) -> Result<Option<DiskTier>> {
    let Some(disk) = options.buffer_pool_disk.clone() else { return Ok(None) };
    if options.buffer_pool_bytes == 0 {
        let text = format!("the buffer pool has no memory, and no use for the folder {}", disk.dir.display());
        return Err(Error::new(ErrorCode::InvalidArgument, text)
            .hint("give --buffer-pool a size, beside that of --memory-limit, or leave the folder away"));
    }
    let environment = environment.clone();
    let opened = run_blocking(move || DiskTier::open(&environment, &disk, cluster)).await;
    opened.unwrap_or_else(|| Err(Error::internal("opening the folder of the buffer pool was lost"))).map(Some)
}

fn runtime_env(options: &EngineOptions, buffer_pool: Option<Arc<BufferPool>>) -> Result<Arc<RuntimeEnv>> {
    let lender = buffer_pool.map(|pool| pool as Arc<dyn Lender>);
    let pool = TrackConsumersPool::new(HeadroomPool::new(options.memory_limit_bytes(), lender), NAMED_CONSUMERS);
    let spill = match &options.spill_dir {
        Some(dir) => DiskManagerMode::Directories(vec![dir.clone()]),
        None => DiskManagerMode::OsTmpDirectory,
    };
    let builder = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(pool))
        .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(spill))
        // A folder that was listed once would hide the files that come later.
        .with_object_list_cache_limit(0)
        .with_object_store_registry(Arc::new(PolicyObjectStores::new(options.file_access.clone())));
    builder.build_arc().map_err(Error::from_datafusion)
}

/// The threads of queries. Dropping it lets them end by themselves.
#[derive(Debug)]
struct CpuRuntime {
    handle: tokio::runtime::Handle,
    own: Option<tokio::runtime::Runtime>,
}

impl CpuRuntime {
    /// On a single-threaded runtime (a simulation) queries share it.
    fn start(threads: usize) -> Result<Self> {
        let current = tokio::runtime::Handle::current();
        if current.runtime_flavor() == tokio::runtime::RuntimeFlavor::CurrentThread {
            return Ok(Self { handle: current, own: None });
        }
        let own = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("query")
            .thread_stack_size(QUERY_STACK_BYTES)
            .enable_all()
            .build()
            .context(ErrorCode::Internal, || "the threads for queries could not be started".to_owned())?;
        Ok(Self { handle: own.handle().clone(), own: Some(own) })
    }
}

impl Drop for CpuRuntime {
    fn drop(&mut self) {
        if let Some(own) = self.own.take() {
            own.shutdown_background();
        }
    }
}
