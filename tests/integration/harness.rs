//! A cluster in this process with real gRPC over loopback, whose parts a test can break.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use aubade_catalog::store::MemoryStore;
use aubade_catalog::{Action, Manifest, ManifestStore, NodeEntry, Quorum, Snapshot};
use aubade_engine::{ClusterStatus, Engine, EngineOptions, QueryRecord};
use aubade_environment::{Connection, Environment, FaultyFiles, Listener, SystemFiles, TaskGroup};
use aubade_proto::{CallHeader, ClusterId, Error, RequestId, TransactionId};
use aubade_storage_node::{StorageNode, StorageNodeOptions, serve};
use futures::TryStreamExt;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

/// One storage node and what a test needs to break it.
pub struct TestNode {
    pub node: StorageNode,
    pub dir: PathBuf,
    pub files: FaultyFiles,
    tasks: TaskGroup,
    /// Cuts every connection.
    cut: CancellationToken,
    stall: Arc<Stall>,
}

impl TestNode {
    /// Makes it say nothing and hear nothing, with its connections open, as SIGSTOP would.
    pub fn stall(&self) {
        self.stall.0.lock().get_or_insert_default();
    }

    /// Ends [`TestNode::stall`].
    pub fn resume(&self) {
        self.stall.0.lock().take().into_iter().flatten().for_each(Waker::wake);
    }

    /// Stops it at once, connections and all, as SIGKILL would for its callers.
    pub async fn kill(&self) {
        self.cut.cancel();
        self.tasks.shutdown().await;
    }

    /// The files of its segments.
    pub fn segment_files(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.dir.join("segments")).unwrap();
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "parquet"));
        files.sort();
        files
    }
}

/// Long enough for the tests that are not about it.
const PUSHBACK_WAIT: Duration = Duration::from_secs(60);

/// A cluster with its coordinator.
pub struct TestCluster {
    pub environment: Environment,
    pub store: Arc<dyn ManifestStore>,
    pub engine: Engine,
    pub nodes: Vec<TestNode>,
    /// What nodes that are started from now on may read per second to verify their segments. At first 0, so that
    /// damage is found by those who the test says find it.
    pub scrub_bytes_per_second: u64,
    /// The wait from which on nodes that are started from now on hand scans back.
    pub pushback_wait: Duration,
    /// Of coordinators that are started from now on.
    pub options: EngineOptions,
    cluster_id: ClusterId,
    dir: TempDir,
}

/// Of a coordinator that asks storage nodes each time: what these do is looked at, also where a query comes again.
fn asking_nodes() -> EngineOptions {
    EngineOptions { fragment_cache_bytes: Some(0), ..EngineOptions::default() }
}

impl TestCluster {
    /// What a call to a node says of its caller, who works on `snapshot`.
    pub fn header(&self, snapshot: &Snapshot) -> CallHeader {
        CallHeader {
            request_id: RequestId(self.environment.new_uuid()),
            cluster_id: snapshot.cluster_id,
            epoch: snapshot.epoch,
            snapshot_version: snapshot.version,
            timeout: Duration::from_secs(10),
        }
    }

    /// `nodes` nodes over three zones and the usual quorum for `copies`.
    pub async fn start(nodes: usize, copies: u32) -> Self {
        let store: Arc<dyn ManifestStore> = Arc::new(MemoryStore::default());
        Self::start_with_store(nodes, copies, Arc::clone(&store), store).await
    }

    /// The same with a coordinator that keeps results of fragments.
    pub async fn start_keeping_results(nodes: usize, copies: u32) -> Self {
        let store: Arc<dyn ManifestStore> = Arc::new(MemoryStore::default());
        Self::start_with_options(nodes, copies, Arc::clone(&store), store, EngineOptions::default()).await
    }

    /// The cluster is made in `store`; its coordinator sees it as `coordinator_store`.
    pub async fn start_with_store(
        nodes: usize,
        copies: u32,
        store: Arc<dyn ManifestStore>,
        coordinator_store: Arc<dyn ManifestStore>,
    ) -> Self {
        Self::start_with_options(nodes, copies, store, coordinator_store, asking_nodes()).await
    }

    async fn start_with_options(
        nodes: usize,
        copies: u32,
        store: Arc<dyn ManifestStore>,
        coordinator_store: Arc<dyn ManifestStore>,
        options: EngineOptions,
    ) -> Self {
        let environment = Environment::system();
        let dir = tempfile::tempdir().unwrap();
        let cluster_id = ClusterId(environment.new_uuid());
        let quorum = Quorum::for_copies(copies).unwrap();
        let manifest = Manifest::create(environment.clone(), Arc::clone(&store), cluster_id, quorum).await.unwrap();
        let mut started = Vec::new();
        for index in 0..nodes {
            let path = dir.path().join(format!("node{index}"));
            started.push(start_node(&environment, &manifest, cluster_id, &path, index, 0, PUSHBACK_WAIT).await);
        }
        let engine = Engine::open_with_store(environment.clone(), coordinator_store, options.clone()).await.unwrap();
        Self {
            environment,
            store,
            engine,
            nodes: started,
            scrub_bytes_per_second: 0,
            pushback_wait: PUSHBACK_WAIT,
            options,
            cluster_id,
            dir,
        }
    }

    /// Brings a killed node back, at another address.
    pub async fn restart_node(&mut self, index: usize) {
        self.nodes.remove(index).node.shutdown(Duration::ZERO).await;
        let node = self.start_node(index).await;
        self.nodes.insert(index, node);
    }

    /// Adds a node with an empty folder.
    pub async fn add_node(&mut self) {
        let node = self.start_node(self.nodes.len()).await;
        self.nodes.push(node);
    }

    async fn start_node(&self, index: usize) -> TestNode {
        let manifest = self.manifest().await;
        let path = self.dir.path().join(format!("node{index}"));
        let (rate, wait) = (self.scrub_bytes_per_second, self.pushback_wait);
        start_node(&self.environment, &manifest, self.cluster_id, &path, index, rate, wait).await
    }

    /// The manifest, as another process sees it.
    pub async fn manifest(&self) -> Manifest {
        Manifest::open(self.environment.clone(), Arc::clone(&self.store)).await.unwrap()
    }

    /// The one replica of a node, once it has one; fails the test after 30 s.
    pub async fn wait_for_file(&self, index: usize, content: &[u8]) {
        let clock = Arc::clone(&self.environment.clock);
        let poll = async {
            while self.nodes[index].segment_files().first().is_none_or(|path| std::fs::read(path).unwrap() != content) {
                clock.sleep(Duration::from_millis(50)).await;
            }
        };
        let done = aubade_environment::clock::timeout(clock.as_ref(), Duration::from_secs(30), poll).await;
        assert!(done.is_some(), "node {index} did not get the right bytes: {:?}", self.nodes[index].node.info());
    }

    /// Replaces the coordinator, as after a crash of the old one.
    pub async fn restart_engine(&mut self) {
        let options = self.options.clone();
        self.engine =
            Engine::open_with_store(self.environment.clone(), Arc::clone(&self.store), options).await.unwrap();
    }

    /// Waits until `condition` holds of the cluster's status; fails the test after 30 s.
    pub async fn wait_for(&self, what: &str, condition: impl Fn(&ClusterStatus) -> bool) {
        let clock = Arc::clone(&self.environment.clock);
        let poll = async {
            while !condition(&self.engine.status().await.unwrap()) {
                clock.sleep(Duration::from_millis(50)).await;
            }
        };
        let done = aubade_environment::clock::timeout(clock.as_ref(), Duration::from_secs(30), poll).await;
        assert!(done.is_some(), "{what} did not happen: {:#?}", self.engine.status().await.unwrap());
    }
}

async fn start_node(
    environment: &Environment,
    manifest: &Manifest,
    cluster_id: ClusterId,
    dir: &Path,
    index: usize,
    scrub_bytes_per_second: u64,
    pushback_wait: Duration,
) -> TestNode {
    let files = FaultyFiles::new(Arc::new(SystemFiles));
    let node_environment = environment.clone().with_files(Arc::new(files.clone()));
    let zone = format!("az{}", index % 3 + 1);
    let options = StorageNodeOptions {
        scrub_bytes_per_second,
        pushback_wait,
        ..StorageNodeOptions::new(dir.to_path_buf(), zone.clone())
    };
    let node = StorageNode::open(node_environment, cluster_id, options).await.unwrap();
    let listener = environment.network.listen("127.0.0.1:0").await.unwrap();
    let address = listener.local_address().unwrap().to_string();
    let cut = CancellationToken::new();
    let stall: Arc<Stall> = Arc::default();
    let listener = Box::new(CutListener { inner: listener, cut: cut.clone(), stall: Arc::clone(&stall) });
    let tasks = TaskGroup::new();
    let (served, group) = (node.clone(), tasks.clone());
    tasks.spawn(async move { serve(served, listener, &group).await.unwrap() });
    let action = Action::RegisterNode(NodeEntry { id: node.id(), zone, address });
    manifest.commit(TransactionId(environment.new_uuid()), vec![action]).await.unwrap();
    TestNode { node, dir: dir.to_path_buf(), files, tasks, cut, stall }
}

/// Who waits for the end of a stall; `None`: there is none.
#[derive(Debug, Default)]
struct Stall(Mutex<Option<Vec<Waker>>>);

/// A listener whose connections a test can cut or stall.
#[derive(Debug)]
struct CutListener {
    inner: Box<dyn Listener>,
    cut: CancellationToken,
    stall: Arc<Stall>,
}

#[async_trait]
impl Listener for CutListener {
    fn local_address(&self) -> io::Result<SocketAddr> {
        self.inner.local_address()
    }

    async fn accept(&self) -> io::Result<Connection> {
        let inner = self.inner.accept().await?;
        let address = inner.connect_info().address;
        let (cut, stall) = (Box::pin(self.cut.clone().cancelled_owned()), Arc::clone(&self.stall));
        Ok(Connection::new(CutStream { inner, cut, stall }, address))
    }
}

struct CutStream {
    inner: Connection,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    stall: Arc<Stall>,
}

impl CutStream {
    /// Ready when bytes may flow.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        match self.stall.0.lock().as_mut() {
            Some(waiting) => {
                waiting.push(cx.waker().clone());
                Poll::Pending
            }
            None => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncRead for CutStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_open(cx))?;
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl AsyncWrite for CutStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_open(cx))?;
        Pin::new(&mut self.inner).poll_write(cx, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_open(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// Runs one statement to its end.
pub async fn run(engine: &Engine, sql: &str) -> Result<Vec<RecordBatch>, Error> {
    run_with_record(engine, sql).await.map(|(batches, _)| batches)
}

/// Runs one statement to its end; gives its record too.
pub async fn run_with_record(engine: &Engine, sql: &str) -> Result<(Vec<RecordBatch>, QueryRecord), Error> {
    let output = engine.session().execute(sql).await?;
    let id = output.query_id;
    let batches = output.stream.try_collect().await.map_err(Error::from_datafusion)?;
    Ok((batches, engine.queries().get(id).expect("every query leaves a record")))
}

/// The one number that a statement yields.
pub async fn number(engine: &Engine, sql: &str) -> i64 {
    let batches = run(engine, sql).await.unwrap();
    let batch = batches.iter().find(|batch| batch.num_rows() > 0).expect("one row");
    let column = arrow::compute::cast(batch.column(0), &arrow::datatypes::DataType::Int64).unwrap();
    column.as_primitive::<Int64Type>().value(0)
}

/// A table `numbers (n BIGINT, text VARCHAR)` with rows 0..rows in several segments.
pub async fn load_numbers(engine: &Engine, rows: usize, statements: usize) {
    run(engine, "CREATE TABLE numbers (n BIGINT, text VARCHAR)").await.unwrap();
    let per_statement = rows / statements;
    for statement in 0..statements {
        let from = statement * per_statement;
        let to = from + per_statement - 1;
        let sql = format!(
            "INSERT INTO numbers SELECT value, 'row number ' || CAST(value AS VARCHAR) FROM generate_series({from}, {to})"
        );
        run(engine, &sql).await.unwrap();
    }
}
