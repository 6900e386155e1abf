//! The storage nodes as the coordinator sees them now: a client for each, whether it answers, and
//! how much it has to do.
//!
//! The manifest says which nodes exist; this says which of them to ask first. Nothing here is
//! needed for correctness: a node that is wrongly thought dead is asked last, not never.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use aubade_catalog::{NodeEntry, SegmentEntry, Snapshot, placement};
use aubade_environment::{Clock, Environment, clock};
use aubade_proto::{CallHeader, Epoch, Error, ErrorCode, NodeId, NodeInfo, RequestId, Result, Version};
use aubade_storage_node::FragmentRunner;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use crate::buffer_pool::{BufferPool, BufferPoolClient};
use crate::limits::{BUSY_REQUESTS, CONTROL_TIMEOUT, SLOW_NODE_PENALTY, STALLED_AFTER};
use crate::storage_client::{StorageClient, StorageClients};

/// One node, with what is known of it.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) entry: NodeEntry,
    pub(crate) client: Arc<dyn StorageClient>,
    alive: AtomicBool,
    /// It has not said for a while how it does.
    stalled: AtomicBool,
    /// Milliseconds of the clock until which it is asked after other replicas, since one of them was faster.
    slow_until_millis: AtomicU64,
    active_requests: AtomicUsize,
    /// What it last said of itself.
    info: Mutex<Option<NodeInfo>>,
    /// A scan was told that a segment is not there, though the manifest names it.
    suspected: AtomicBool,
}

impl Member {
    pub(crate) fn new(entry: NodeEntry, client: Arc<dyn StorageClient>) -> Self {
        Self {
            entry,
            client,
            alive: AtomicBool::new(true),
            stalled: AtomicBool::new(false),
            slow_until_millis: AtomicU64::new(0),
            active_requests: AtomicUsize::new(0),
            info: Mutex::default(),
            suspected: AtomicBool::new(false),
        }
    }

    /// What it last said of itself.
    pub(crate) fn info(&self) -> Option<NodeInfo> {
        self.info.lock().clone()
    }

    /// Takes note of what it says of itself.
    pub(crate) fn introduced(&self, info: &NodeInfo) {
        *self.info.lock() = Some(info.clone());
    }

    /// Takes note that it lacks a segment which it should hold.
    pub(crate) fn suspect(&self) {
        self.suspected.store(true, Ordering::Relaxed);
    }

    /// Whether it was found to lack something since this was last asked.
    pub(crate) fn take_suspicion(&self) -> bool {
        self.suspected.swap(false, Ordering::Relaxed)
    }

    /// Whether it answered when it was last asked. New nodes count as alive.
    pub(crate) fn is_alive(&self) -> bool {
        // Ordering: a hint for the order of replicas; a stale value costs a retry.
        self.alive.load(Ordering::Relaxed)
    }

    /// Takes note of an answer.
    pub(crate) fn answered(&self) {
        self.alive.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked how it does, and the answer is late.
    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::Relaxed)
    }

    /// Takes note that another replica answered before it did.
    pub(crate) fn was_slow(&self, clock: &dyn Clock) {
        self.slow_until_millis.store(millis(clock.now().saturating_add(SLOW_NODE_PENALTY)), Ordering::Relaxed);
    }

    /// How late to ask it: replicas that are well come first, then slow ones, then those that do not answer.
    fn rank(&self, now_millis: u64) -> u8 {
        if !self.is_alive() {
            return 3;
        }
        if self.is_stalled() {
            return 2;
        }
        u8::from(self.slow_until_millis.load(Ordering::Relaxed) > now_millis)
    }

    /// Takes note of an error. Only errors of the transport mark a node: a deterministic error says
    /// nothing about its health.
    pub(crate) fn failed(&self, error: &Error) {
        if matches!(error.code(), ErrorCode::NodeUnavailable | ErrorCode::ShuttingDown | ErrorCode::DeadlineExceeded) {
            self.alive.store(false, Ordering::Relaxed);
        }
    }

    /// Requests that it is busy with.
    pub(crate) fn active_requests(&self) -> usize {
        self.active_requests.load(Ordering::Relaxed)
    }

    /// Whether it is the buffer pool, and no node.
    pub(crate) fn is_buffer_pool(&self) -> bool {
        self.entry.id == BufferPool::NODE
    }

    /// Counts a request for as long as the guard lives.
    pub(crate) fn begin_request(self: &Arc<Self>) -> ActiveRequest {
        self.active_requests.fetch_add(1, Ordering::Relaxed);
        ActiveRequest(Arc::clone(self))
    }
}

/// A request that a node is busy with.
#[derive(Debug)]
pub(crate) struct ActiveRequest(Arc<Member>);

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.active_requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The nodes of one version.
#[derive(Debug, Default)]
struct Members {
    version: Version,
    by_id: BTreeMap<NodeId, Arc<Member>>,
}

/// All nodes.
#[derive(Debug)]
pub(crate) struct Cluster {
    environment: Environment,
    clients: Arc<dyn StorageClients>,
    members: RwLock<Members>,
    /// Somebody waits for a newer version of the manifest.
    look_wanted: Notify,
    epoch: AtomicU64,
    cluster_id: aubade_proto::ClusterId,
    /// Runs what nodes hand back; `None` where the nodes have the same CPUs as the coordinator.
    runner: Option<Arc<FragmentRunner>>,
    buffer_pool: Option<Pooled>,
}

/// The buffer pool, and as what scans ask it.
#[derive(Debug)]
struct Pooled {
    pool: Arc<BufferPool>,
    member: Arc<Member>,
}

impl Cluster {
    pub(crate) fn new(
        environment: Environment,
        clients: Arc<dyn StorageClients>,
        snapshot: &Snapshot,
        epoch: Epoch,
        runner: Option<Arc<FragmentRunner>>,
        buffer_pool: Option<Arc<BufferPool>>,
    ) -> Self {
        let cluster = Self {
            environment,
            clients,
            members: RwLock::default(),
            look_wanted: Notify::new(),
            epoch: AtomicU64::new(epoch.0),
            cluster_id: snapshot.cluster_id,
            runner,
            buffer_pool: buffer_pool.map(|pool| {
                let client = Arc::new(BufferPoolClient(Arc::clone(&pool)));
                Pooled { pool, member: Arc::new(Member::new(BufferPool::entry(), client)) }
            }),
        };
        cluster.update(snapshot);
        cluster
    }

    /// Who runs what nodes hand back, if anyone does.
    pub(crate) fn runner(&self) -> Option<Arc<FragmentRunner>> {
        self.runner.clone()
    }

    /// The buffer pool, if there is one.
    pub(crate) fn buffer_pool(&self) -> Option<&Arc<BufferPool>> {
        self.buffer_pool.as_ref().map(|pooled| &pooled.pool)
    }

    /// The buffer pool as a replica of what it holds.
    pub(crate) fn buffer_pool_member(&self) -> Option<&Arc<Member>> {
        self.buffer_pool.as_ref().map(|pooled| &pooled.member)
    }

    pub(crate) fn environment(&self) -> &Environment {
        &self.environment
    }

    /// Takes over the nodes of a newer snapshot. An older one, of somebody who was slow to tell, changes nothing.
    pub(crate) fn update(&self, snapshot: &Snapshot) {
        if self.members.read().version >= snapshot.version {
            return;
        }
        let mut members = self.members.write();
        if members.version >= snapshot.version {
            return;
        }
        members.version = snapshot.version;
        let by_id = &mut members.by_id;
        by_id.retain(|id, _| snapshot.nodes.contains_key(id));
        for node in snapshot.nodes.values() {
            if by_id.get(&node.id).is_some_and(|member| member.entry == *node) {
                continue;
            }
            match self.clients.client(node) {
                Ok(client) => drop(by_id.insert(node.id, Arc::new(Member::new(node.clone(), client)))),
                Err(error) => {
                    // What is known of its old address is wrong.
                    by_id.remove(&node.id);
                    tracing::warn!(node = %node.id, error = %error.chain(), "a registered storage node cannot be called");
                }
            }
        }
    }

    /// Asks for a look at the manifest: a node that does not answer may have come back at another address.
    pub(crate) fn want_look(&self) {
        self.look_wanted.notify_one();
    }

    /// Completes when a look is asked for.
    pub(crate) async fn look_wanted(&self) {
        self.look_wanted.notified().await;
    }

    pub(crate) fn members(&self) -> Vec<Arc<Member>> {
        self.members.read().by_id.values().cloned().collect()
    }

    pub(crate) fn member(&self, id: NodeId) -> Option<Arc<Member>> {
        self.members.read().by_id.get(&id).cloned()
    }

    /// Holders of a segment in the order in which to ask them: those that are well first, then by
    /// load and rendezvous order together, so that ties keep a segment on the same node and its
    /// caches, and a busy node is passed over.
    pub(crate) fn replicas(&self, segment: &SegmentEntry) -> Vec<Arc<Member>> {
        let order = placement::rendezvous_order(segment.id, &segment.holders);
        let members = self.members.read();
        let now_millis = millis(self.environment.clock.now());
        let mut found: Vec<(u8, usize, Arc<Member>)> = Vec::with_capacity(order.len());
        for (position, id) in order.iter().enumerate() {
            if let Some(member) = members.by_id.get(id) {
                let load = member.active_requests() / BUSY_REQUESTS;
                let score = load.saturating_mul(2).saturating_add(position);
                found.push((member.rank(now_millis), score, Arc::clone(member)));
            }
        }
        found.sort_by_key(|(rank, score, _)| (*rank, *score));
        found.into_iter().map(|(_, _, member)| member).collect()
    }

    /// The header of a call.
    pub(crate) fn header(&self, snapshot_version: Version, timeout: Duration) -> CallHeader {
        CallHeader {
            request_id: RequestId(self.environment.new_uuid()),
            cluster_id: self.cluster_id,
            epoch: Epoch(self.epoch.load(Ordering::Relaxed)),
            snapshot_version,
            timeout,
        }
    }

    /// Asks a node how it does. While the answer is late the node counts as stalled, so that its scans are sent to
    /// others.
    pub(crate) async fn probe(&self, member: &Member, header: &CallHeader) -> Result<NodeInfo> {
        let mut call = std::pin::pin!(self.call(member, CONTROL_TIMEOUT, member.client.info(header)));
        let result = match clock::timeout(self.environment.clock.as_ref(), STALLED_AFTER, &mut call).await {
            Some(result) => result,
            None => {
                member.stalled.store(true, Ordering::Relaxed);
                call.await
            }
        };
        if result.is_ok() {
            member.stalled.store(false, Ordering::Relaxed);
        }
        result
    }

    /// Runs a small call on a node under its deadline and takes note of whether it answered.
    pub(crate) async fn call<T, F>(&self, member: &Member, timeout: Duration, call: F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let result = clock::timeout(self.environment.clock.as_ref(), timeout, call).await;
        let result = result.unwrap_or_else(|| {
            let text = format!(
                "storage node {} at {} did not answer within {} ms",
                member.entry.id,
                member.entry.address,
                timeout.as_millis()
            );
            Err(Error::new(ErrorCode::NodeUnavailable, text).hint("check that the node runs and can be reached"))
        });
        match &result {
            Ok(_) => member.answered(),
            Err(error) => member.failed(error),
        }
        result
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
