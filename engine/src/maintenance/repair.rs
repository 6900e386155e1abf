//! Copying segments that have too few replicas.
//!
//! [`plan`] decides in plain data, [`run`] acts. A copy that fails is tried again after pauses that grow, so that what
//! cannot be repaired now stands in nobody's way and fills no log: a failure of the node holds up all copies to that
//! node, any other failure the copy of that segment to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use aubade_catalog::{Action, NodeEntry, SegmentEntry, Snapshot, placement};
use aubade_proto::{Error, ErrorCode, NodeId, Result, SegmentId};
use futures::{FutureExt, StreamExt};

use super::commit;
use crate::cluster::Member;
use crate::engine::Engine;
use crate::limits::{
    NODE_REPAIR_PAUSE_MAX, PUT_TIMEOUT, REPAIR_PAUSE_MIN, REPAIR_WAITS_MAX, REPAIRS_AT_A_TIME, REPAIRS_PER_PROBE_MAX,
    SEGMENT_REPAIR_PAUSE_MAX,
};

/// One copy to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Job {
    segment: Arc<SegmentEntry>,
    node: NodeId,
}

/// When something that failed is tried again.
#[derive(Clone, Copy, Debug)]
struct Wait {
    until: Duration,
    pause: Duration,
}

impl Wait {
    /// After one more failure.
    fn longer(before: Option<&Self>, now: Duration, pause_max: Duration) -> Self {
        let pause = before.map_or(REPAIR_PAUSE_MIN, |before| (before.pause * 2).min(pause_max));
        Self { until: now.saturating_add(pause), pause }
    }
}

/// Failures that are not forgotten yet.
#[derive(Debug, Default)]
pub(super) struct Waits {
    nodes: BTreeMap<NodeId, Wait>,
    segments: BTreeMap<(SegmentId, NodeId), Wait>,
}

impl Waits {
    /// Lets everything be tried again at once.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    fn is_held_up(&self, segment: SegmentId, node: NodeId, now: Duration) -> bool {
        let waits = |wait: Option<&Wait>| wait.is_some_and(|wait| wait.until > now);
        waits(self.nodes.get(&node)) || waits(self.segments.get(&(segment, node)))
    }

    fn succeeded(&mut self, job: &Job) {
        self.nodes.remove(&job.node);
        self.segments.remove(&(job.segment.id, job.node));
    }

    fn failed(&mut self, job: &Job, error: &Error, now: Duration) {
        if is_of_the_node(error) {
            let wait = Wait::longer(self.nodes.get(&job.node), now, NODE_REPAIR_PAUSE_MAX);
            // Copies that failed together are one failure.
            self.nodes
                .entry(job.node)
                .and_modify(|known| *known = if known.until > now { *known } else { wait })
                .or_insert(wait);
            return;
        }
        let key = (job.segment.id, job.node);
        let wait = Wait::longer(self.segments.get(&key), now, SEGMENT_REPAIR_PAUSE_MAX);
        if self.segments.len() >= REPAIR_WAITS_MAX {
            self.segments.pop_first();
        }
        self.segments.insert(key, wait);
    }
}

/// Whether a failure says something about the node that was to take the copy, and not about the segment.
fn is_of_the_node(error: &Error) -> bool {
    matches!(
        error.code(),
        ErrorCode::DiskFull
            | ErrorCode::NodeUnavailable
            | ErrorCode::ShuttingDown
            | ErrorCode::DeadlineExceeded
            | ErrorCode::Busy
            | ErrorCode::StaleEpoch
    )
}

/// The next copies to be made: to members of a protection group that lack the segment, and, where a group has too few
/// members (nodes were removed, or there were too few when it was written), to nodes that join it.
pub(super) fn plan(snapshot: &Snapshot, alive: &BTreeSet<NodeId>, waits: &Waits, now: Duration) -> Vec<Job> {
    let copies = snapshot.quorum.copies();
    let mut jobs = Vec::new();
    let mut probed = BTreeSet::new();
    for segment in snapshot.segments() {
        let wanted = copies.saturating_sub(snapshot.replica_count(segment));
        // Without a replica on a node that answers there is nothing to copy.
        if wanted == 0 || !segment.holders.iter().any(|holder| alive.contains(holder)) {
            continue;
        }
        for node in
            targets(snapshot, segment, |node| alive.contains(&node) && !waits.is_held_up(segment.id, node, now), wanted)
        {
            // A node that failed before gets one copy to show that it works again.
            if !waits.nodes.contains_key(&node) || probed.insert(node) {
                jobs.push(Job { segment: Arc::clone(segment), node });
            }
        }
        if jobs.len() >= REPAIRS_PER_PROBE_MAX {
            break;
        }
    }
    jobs
}

/// Up to `wanted` nodes that are to get a segment, of those that `can_take` it.
fn targets(
    snapshot: &Snapshot,
    segment: &SegmentEntry,
    can_take: impl Fn(NodeId) -> bool,
    wanted: usize,
) -> Vec<NodeId> {
    let members: Vec<NodeEntry> =
        segment.intended.iter().filter_map(|node| snapshot.nodes.get(node)).cloned().collect();
    let lacking = segment.missing().filter(|node| snapshot.nodes.contains_key(node));
    let mut targets: Vec<NodeId> = lacking.filter(|node| can_take(*node)).take(wanted).collect();
    // A member that is away keeps its place: it may come back with its replica.
    let places = snapshot.quorum.copies().saturating_sub(members.len()).min(wanted - targets.len());
    if places > 0 {
        let others: Vec<NodeEntry> = snapshot.nodes.values().filter(|node| can_take(node.id)).cloned().collect();
        targets.extend(placement::fill(segment.id, &members, &others, places));
    }
    targets
}

/// Makes the next copies and commits those that were made.
pub(super) async fn run(engine: &Engine, waits: &mut Waits) -> Result<()> {
    let clock = Arc::clone(&engine.environment().clock);
    let snapshot = engine.manifest().snapshot();
    let alive =
        engine.cluster().members().iter().filter(|member| member.is_alive()).map(|member| member.entry.id).collect();
    let jobs = plan(&snapshot, &alive, waits, clock.now());
    let snapshot = &snapshot;
    let jobs = jobs.into_iter().filter_map(|job| engine.cluster().member(job.node).map(|member| (job, member)));
    let copies = jobs.map(|(job, member)| async move {
        let copied = copy(engine, snapshot, &job.segment, &member).boxed().await;
        (job, copied)
    });
    let copied: Vec<(Job, Result<()>)> =
        futures::stream::iter(copies).buffer_unordered(REPAIRS_AT_A_TIME).collect().await;
    let mut actions = Vec::new();
    for (job, result) in copied {
        let (segment, node) = (job.segment.id, job.node);
        match result {
            Ok(()) => {
                waits.succeeded(&job);
                actions.push(Action::AddReplica { segment, node });
            }
            Err(error) => {
                waits.failed(&job, &error, clock.now());
                tracing::warn!(%segment, %node, error = %error.chain(), "a replica could not be repaired; it is tried again");
            }
        }
    }
    commit(engine, actions).await
}

async fn copy(engine: &Engine, snapshot: &Snapshot, segment: &SegmentEntry, member: &Member) -> Result<()> {
    let sources: Vec<String> =
        engine.cluster().replicas(segment).iter().map(|source| source.entry.address.clone()).collect();
    let header = engine.cluster().header(snapshot.version, PUT_TIMEOUT);
    let description = segment.description();
    let call = member.client.replicate_segment(&header, &description, &sources);
    engine.cluster().call(member, PUT_TIMEOUT, call).await.map(drop)
}

#[cfg(test)]
mod tests;
