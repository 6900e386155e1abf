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
use aubade_environment::Environment;
use aubade_proto::{CallHeader, Epoch, Error, ErrorCode, NodeId, RequestId, Result, Version};
use parking_lot::RwLock;

use crate::storage_client::{StorageClient, StorageClients};

/// One node, with what is known of it.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) entry: NodeEntry,
    pub(crate) client: Arc<dyn StorageClient>,
    alive: AtomicBool,
    active_requests: AtomicUsize,
}

impl Member {
    /// Whether it answered when it was last asked. New nodes count as alive.
    pub(crate) fn is_alive(&self) -> bool {
        // Ordering: a hint for the order of replicas; a stale value costs a retry.
        self.alive.load(Ordering::Relaxed)
    }

    /// Takes note of an answer.
    pub(crate) fn answered(&self) {
        self.alive.store(true, Ordering::Relaxed);
    }

    /// Takes note of an error. Only errors of the transport mark a node: a deterministic error says
    /// nothing about its health.
    pub(crate) fn failed(&self, error: &Error) {
        if matches!(error.code(), ErrorCode::NodeUnavailable | ErrorCode::ShuttingDown | ErrorCode::DeadlineExceeded) {
            self.alive.store(false, Ordering::Relaxed);
        }
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

/// All nodes.
#[derive(Debug)]
pub(crate) struct Cluster {
    environment: Environment,
    clients: Arc<dyn StorageClients>,
    members: RwLock<BTreeMap<NodeId, Arc<Member>>>,
    epoch: AtomicU64,
    cluster_id: aubade_proto::ClusterId,
}

impl Cluster {
    pub(crate) fn new(
        environment: Environment,
        clients: Arc<dyn StorageClients>,
        snapshot: &Snapshot,
        epoch: Epoch,
    ) -> Self {
        let cluster = Self {
            environment,
            clients,
            members: RwLock::default(),
            epoch: AtomicU64::new(epoch.0),
            cluster_id: snapshot.cluster_id,
        };
        cluster.update(snapshot);
        cluster
    }

    pub(crate) fn environment(&self) -> &Environment {
        &self.environment
    }

    /// Takes over the nodes of a newer snapshot.
    pub(crate) fn update(&self, snapshot: &Snapshot) {
        let unchanged = {
            let members = self.members.read();
            members.len() == snapshot.nodes.len()
                && snapshot.nodes.values().all(|node| members.get(&node.id).is_some_and(|member| member.entry == *node))
        };
        if unchanged {
            return;
        }
        let mut members = self.members.write();
        members.retain(|id, _| snapshot.nodes.contains_key(id));
        for node in snapshot.nodes.values() {
            if members.get(&node.id).is_some_and(|member| member.entry == *node) {
                continue;
            }
            match self.clients.client(node) {
                Ok(client) => {
                    let member = Member {
                        entry: node.clone(),
                        client,
                        alive: AtomicBool::new(true),
                        active_requests: AtomicUsize::new(0),
                    };
                    members.insert(node.id, Arc::new(member));
                }
                Err(error) => tracing::warn!(node = %node.id, %error, "a registered storage node cannot be called"),
            }
        }
    }

    pub(crate) fn members(&self) -> Vec<Arc<Member>> {
        self.members.read().values().cloned().collect()
    }

    pub(crate) fn member(&self, id: NodeId) -> Option<Arc<Member>> {
        self.members.read().get(&id).cloned()
    }

    /// Holders of a segment in the order in which to ask them: those that answer first, then by
    /// load and rendezvous order together, so that ties keep a segment on the same node and its
    /// caches, and a busy node is passed over.
    pub(crate) fn replicas(&self, segment: &SegmentEntry) -> Vec<Arc<Member>> {
        let order = placement::rendezvous_order(segment.id, &segment.holders);
        let members = self.members.read();
        let mut found: Vec<(bool, usize, Arc<Member>)> = Vec::with_capacity(order.len());
        for (position, id) in order.iter().enumerate() {
            if let Some(member) = members.get(id) {
                let load = member.active_requests.load(Ordering::Relaxed);
                found.push((!member.is_alive(), load.saturating_mul(2).saturating_add(position), Arc::clone(member)));
            }
        }
        found.sort_by_key(|(dead, score, _)| (*dead, *score));
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

    /// Runs a small call on a node under its deadline and takes note of whether it answered.
    pub(crate) async fn call<T, F>(&self, member: &Member, timeout: Duration, call: F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let result = aubade_environment::clock::timeout(self.environment.clock.as_ref(), timeout, call).await;
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
