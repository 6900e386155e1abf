//! Comparing what the nodes hold with what the manifest says that they hold.
//!
//! The version is taken before a node is asked, and a node lists a segment before it acknowledges it: what the version
//! names and the list lacks is lost. Where a node was wrongly taken for one that lost a replica, it only has to say that
//! it has it, since a segment never changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aubade_catalog::{Action, SegmentEntry, Snapshot, placement};
use aubade_proto::{NodeId, Result, SegmentDescription, SegmentId};
use futures::{FutureExt, StreamExt};

use super::Probe;
use crate::cluster::Member;
use crate::engine::Engine;
use crate::limits::{AUDITS_AT_A_TIME, CONTROL_TIMEOUT, LIST_PAGE};

/// What a node holds, seen against one version.
#[derive(Debug)]
pub(super) struct Holding {
    pub(super) member: Arc<Member>,
    /// Replicas that the version names and the node lacks.
    pub(super) missing: Vec<SegmentId>,
    /// Replicas that the node has, the version does not name, and the segment is short of.
    pub(super) found: Vec<SegmentId>,
    /// Segments that the version does not name at all.
    pub(super) unnamed: Vec<SegmentDescription>,
    /// Segments that the node put aside.
    pub(super) quarantined: Vec<SegmentId>,
}

/// Asks the nodes for their lists. A node that stops answering on the way is left out.
pub(super) async fn holdings(engine: &Engine, snapshot: &Snapshot, probes: &[&Probe]) -> Vec<Holding> {
    if probes.is_empty() {
        return Vec::new();
    }
    let named: BTreeMap<SegmentId, &SegmentEntry> =
        snapshot.segments().map(|segment| (segment.id, segment.as_ref())).collect();
    let named = &named;
    let mut asked = Vec::with_capacity(probes.len());
    for probe in probes {
        asked.push(ask(engine, snapshot, named, probe).boxed());
    }
    futures::stream::iter(asked).buffer_unordered(AUDITS_AT_A_TIME).filter_map(std::future::ready).collect().await
}

async fn ask(
    engine: &Engine,
    snapshot: &Snapshot,
    named: &BTreeMap<SegmentId, &SegmentEntry>,
    probe: &Probe,
) -> Option<Holding> {
    match list(engine, snapshot, named, probe).boxed().await {
        Ok(holding) => Some(holding),
        Err(error) => {
            let node = probe.member.entry.id;
            tracing::warn!(%node, error = %error.chain(), "a storage node did not say what it holds");
            None
        }
    }
}

async fn list(
    engine: &Engine,
    snapshot: &Snapshot,
    named: &BTreeMap<SegmentId, &SegmentEntry>,
    probe: &Probe,
) -> Result<Holding> {
    let member = &probe.member;
    let (mut seen, mut holding) = (BTreeSet::new(), Holding::new(probe));
    let mut after = None;
    loop {
        let header = engine.cluster().header(snapshot.version, CONTROL_TIMEOUT);
        let page = member.client.list_segments(&header, after, LIST_PAGE);
        let (segments, more) = engine.cluster().call(member, CONTROL_TIMEOUT, page).await?;
        after = segments.last().map(|segment| segment.segment_id);
        for segment in segments {
            holding.take(snapshot, named, &mut seen, segment);
        }
        if !more || after.is_none() {
            break;
        }
    }
    let node = member.entry.id;
    let held = named.values().filter(|segment| segment.holders.contains(&node));
    holding.missing = held.map(|segment| segment.id).filter(|id| !seen.contains(id)).collect();
    Ok(holding)
}

impl Holding {
    fn new(probe: &Probe) -> Self {
        Self {
            member: Arc::clone(&probe.member),
            missing: Vec::new(),
            found: Vec::new(),
            unnamed: Vec::new(),
            quarantined: probe.info.quarantined.clone(),
        }
    }

    /// Takes in one segment of the node's list.
    fn take(
        &mut self,
        snapshot: &Snapshot,
        named: &BTreeMap<SegmentId, &SegmentEntry>,
        seen: &mut BTreeSet<SegmentId>,
        listed: SegmentDescription,
    ) {
        let Some(segment) = named.get(&listed.segment_id) else { return self.unnamed.push(listed) };
        if segment.sha256 != listed.sha256 || segment.bytes != listed.bytes {
            return;
        }
        seen.insert(listed.segment_id);
        let is_holder = segment.holders.contains(&self.member.entry.id);
        if !is_holder && snapshot.replica_count(segment) < snapshot.quorum.copies() {
            self.found.push(listed.segment_id);
        }
    }
}

/// For segments, some nodes.
type NodesOf = BTreeMap<SegmentId, BTreeSet<NodeId>>;

/// Where the nodes and a version do not agree.
#[derive(Debug, Default)]
pub(super) struct Differences {
    /// Replicas that the version names and that are not there.
    missing: NodesOf,
    /// Replicas that are there, damaged.
    quarantined: NodesOf,
    /// Replicas that are there, and that the version does not name.
    found: NodesOf,
}

impl Differences {
    fn is_missing(&self, segment: SegmentId, node: NodeId) -> bool {
        self.missing.get(&segment).is_some_and(|nodes| nodes.contains(&node))
    }

    fn is_quarantined(&self, segment: SegmentId, node: NodeId) -> bool {
        self.quarantined.get(&segment).is_some_and(|nodes| nodes.contains(&node))
    }
}

/// What all nodes say they have put aside, and what the lists of those that were asked say.
pub(super) fn differences(probes: &[Probe], holdings: &[Holding]) -> Differences {
    fn add(to: &mut NodesOf, segments: &[SegmentId], node: NodeId) {
        for segment in segments {
            to.entry(*segment).or_default().insert(node);
        }
    }
    let mut differences = Differences::default();
    for probe in probes {
        add(&mut differences.quarantined, &probe.info.quarantined, probe.member.entry.id);
    }
    for holding in holdings {
        add(&mut differences.missing, &holding.missing, holding.member.entry.id);
        add(&mut differences.found, &holding.found, holding.member.entry.id);
    }
    differences
}

/// How the manifest is to be corrected.
#[derive(Debug, Default)]
pub(super) struct Corrections {
    pub(super) actions: Vec<Action>,
    /// Segments of which no replica is known to be good.
    without_replica: BTreeSet<SegmentId>,
}

/// Takes lost replicas out and found ones in, segment by segment over all nodes at once: however many replicas are
/// lost at one look, one of them stays named.
pub(super) fn corrections(snapshot: &Snapshot, differences: &Differences) -> Corrections {
    let Differences { missing, quarantined, found } = differences;
    let mut corrections = Corrections::default();
    for segment in snapshot.segments() {
        if [missing, quarantined, found].iter().any(|nodes| nodes.contains_key(&segment.id)) {
            corrections.correct(snapshot, segment, differences);
        }
    }
    corrections
}

impl Corrections {
    fn correct(&mut self, snapshot: &Snapshot, segment: &SegmentEntry, differences: &Differences) {
        let id = segment.id;
        let found = differences.found.get(&id);
        self.actions.extend(found.into_iter().flatten().map(|node| Action::AddReplica { segment: id, node: *node }));
        let is_quarantined = |node: &NodeId| differences.is_quarantined(id, *node);
        let is_lost = |node: &NodeId| {
            is_quarantined(node) || differences.is_missing(id, *node) || !snapshot.nodes.contains_key(node)
        };
        let gone: Vec<NodeId> = segment.holders.iter().copied().filter(is_lost).collect();
        let kept = if gone.len() == segment.holders.len() && found.is_none() {
            self.without_replica.insert(id);
            // The one that most likely has something left to look at.
            let order = placement::rendezvous_order(id, &gone);
            order.into_iter().min_by_key(|node| (!is_quarantined(node), !snapshot.nodes.contains_key(node)))
        } else {
            None
        };
        let removed = gone.into_iter().filter(|node| Some(*node) != kept);
        self.actions.extend(removed.map(|node| Action::RemoveReplica { segment: id, node }));
    }

    /// Tells people: every replica that is lost, and each segment once that has lost all of them. `reported` names
    /// those that were told before; `complete` says that every node was asked, so that others are well again.
    pub(super) fn report(&self, differences: &Differences, reported: &mut BTreeSet<SegmentId>, complete: bool) {
        for action in &self.actions {
            match action {
                Action::RemoveReplica { segment, node } if differences.is_quarantined(*segment, *node) => {
                    tracing::error!(%node, %segment, "a replica is corrupt; it is replaced from another one");
                }
                Action::RemoveReplica { segment, node } => {
                    tracing::error!(%node, %segment, "a replica is missing; it is replaced from another one");
                }
                Action::AddReplica { segment, node } => {
                    tracing::info!(%node, %segment, "a replica was found that the manifest did not name");
                }
                _ => {}
            }
        }
        for segment in self.without_replica.difference(reported) {
            tracing::error!(%segment, "no replica of a segment is left that can be read; restore one of its files, or drop its table");
        }
        if complete {
            reported.clear();
        }
        reported.extend(&self.without_replica);
    }
}

#[cfg(test)]
mod tests;
