//! Background work of the writer: looking at nodes, sealing them, repairing replicas, collecting
//! orphans.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aubade_catalog::manifest::CollectionLimits;
use aubade_catalog::{Action, Commit, SegmentEntry, Snapshot};
use aubade_proto::{NodeId, NodeInfo, Result, SegmentDescription, SegmentId, TransactionId};
use futures::future::join_all;
use futures::{FutureExt, StreamExt};

use crate::cluster::Member;
use crate::engine::Engine;
use crate::limits::{
    CONTROL_TIMEOUT, LIST_PAGE, PROBE_INTERVAL, PROBES_PER_COLLECTION, PUT_TIMEOUT, REPAIRS_PER_PROBE_MAX,
};

/// Segment copies that are made at the same time.
const CONCURRENT_REPAIRS: usize = 4;

/// Runs until the engine stops.
pub(crate) async fn run(engine: Engine) {
    let clock = Arc::clone(&engine.environment().clock);
    let mut probes: u64 = 0;
    loop {
        if let Err(error) = probe(&engine, probes).boxed().await {
            tracing::warn!(%error, "looking after the cluster failed; trying again");
        }
        probes = probes.wrapping_add(1);
        clock.sleep(PROBE_INTERVAL).await;
    }
}

async fn probe(engine: &Engine, probes: u64) -> Result<()> {
    let snapshot = engine.manifest().refresh().await?;
    engine.adopt(&snapshot);
    let infos = probe_nodes(engine, &snapshot).boxed().await;
    if engine.check_writable().is_err() {
        // Another writer has taken over: it looks after the cluster now.
        return Ok(());
    }
    forget_quarantined(engine, &snapshot, &infos).await?;
    repair(engine).boxed().await?;
    if probes.is_multiple_of(PROBES_PER_COLLECTION) {
        collect_versions(engine).boxed().await;
        let deleted = collect_orphans(engine).boxed().await?;
        if deleted > 0 {
            tracing::info!(deleted, "collected segments that no version names");
        }
    }
    Ok(())
}

/// A store that fails at this keeps more than it has to, and everything else goes on.
async fn collect_versions(engine: &Engine) {
    match engine.collect_versions(&CollectionLimits::default()).await {
        Ok(versions) if versions.deleted == 0 => {}
        Ok(versions) => {
            tracing::info!(deleted = versions.deleted, floor = %versions.floor, "collected old versions of the manifest");
        }
        Err(error) => tracing::warn!(%error, "old versions of the manifest could not be collected; trying again later"),
    }
}

/// Asks every node how it does, and seals those that have an older epoch.
async fn probe_nodes(engine: &Engine, snapshot: &Snapshot) -> Vec<(Arc<Member>, NodeInfo)> {
    let header = engine.cluster().header(snapshot.version, CONTROL_TIMEOUT);
    let header = &header;
    let probes = engine.cluster().members().into_iter().map(|member| async move {
        let info = engine.cluster().call(&member, CONTROL_TIMEOUT, member.client.info(header)).await.ok()?;
        if info.node_id != member.entry.id {
            tracing::warn!(expected = %member.entry.id, found = %info.node_id, "another storage node answers at this address");
            return None;
        }
        if info.epoch < engine.epoch()
            && engine.check_writable().is_ok()
            && let Err(error) = engine.cluster().call(&member, CONTROL_TIMEOUT, member.client.seal(header)).await
        {
            tracing::warn!(node = %member.entry.id, %error, "a storage node could not be sealed");
        }
        Some((member, info))
    });
    join_all(probes).await.into_iter().flatten().collect()
}

/// Takes corrupt replicas out of the manifest, so that nobody reads them and repair replaces them.
async fn forget_quarantined(engine: &Engine, snapshot: &Snapshot, infos: &[(Arc<Member>, NodeInfo)]) -> Result<()> {
    let mut actions = Vec::new();
    for (member, info) in infos {
        let quarantined: BTreeSet<&SegmentId> = info.quarantined.iter().collect();
        if quarantined.is_empty() {
            continue;
        }
        for segment in snapshot.segments() {
            let node = member.entry.id;
            // The last replica stays named: an error that names it is better than a table without it.
            if quarantined.contains(&segment.id) && segment.holders.contains(&node) && segment.holders.len() > 1 {
                tracing::error!(%node, segment = %segment.id, "a replica is corrupt; it is replaced from another one");
                actions.push(Action::RemoveReplica { segment: segment.id, node });
            }
        }
    }
    commit(engine, actions).boxed().await
}

/// Copies segments to nodes of their protection group that lack them.
async fn repair(engine: &Engine) -> Result<()> {
    let snapshot = engine.manifest().snapshot();
    let copies = snapshot.quorum.copies();
    let lacking = snapshot.segments().filter(|segment| segment.holders.len() < copies);
    let mut jobs = Vec::new();
    for segment in lacking {
        for node in segment.missing() {
            if let Some(member) = engine.cluster().member(node).filter(|member| member.is_alive()) {
                jobs.push((Arc::clone(segment), member));
            }
        }
        if jobs.len() >= REPAIRS_PER_PROBE_MAX {
            break;
        }
    }
    let snapshot = &snapshot;
    let repaired: Vec<Option<Action>> = futures::stream::iter(jobs)
        .map(|(segment, member)| async move { copy(engine, snapshot, &segment, &member).boxed().await })
        .buffer_unordered(CONCURRENT_REPAIRS)
        .collect()
        .await;
    commit(engine, repaired.into_iter().flatten().collect()).await
}

async fn copy(engine: &Engine, snapshot: &Snapshot, segment: &SegmentEntry, member: &Member) -> Option<Action> {
    let sources: Vec<String> =
        engine.cluster().replicas(segment).iter().map(|source| source.entry.address.clone()).collect();
    let header = engine.cluster().header(snapshot.version, PUT_TIMEOUT);
    let description = segment.description();
    let call = member.client.replicate_segment(&header, &description, &sources);
    match engine.cluster().call(member, PUT_TIMEOUT, call).await {
        Ok(_) => Some(Action::AddReplica { segment: segment.id, node: member.entry.id }),
        Err(error) => {
            tracing::warn!(segment = %segment.id, node = %member.entry.id, %error, "a replica could not be repaired");
            None
        }
    }
}

async fn commit(engine: &Engine, actions: Vec<Action>) -> Result<()> {
    if actions.is_empty() {
        return Ok(());
    }
    let transaction = TransactionId(engine.environment().new_uuid());
    if let Commit::Committed(snapshot) = engine.manifest().commit(transaction, actions).await? {
        engine.adopt(&snapshot);
    }
    Ok(())
}

/// Deletes segments that no live version names and no statement is writing.
///
/// Safe without clocks: a segment of an older epoch can no longer be committed, since this process
/// has committed a newer one; a segment of this epoch is written by this process, which knows what
/// is under way; a segment of a newer epoch is left alone. The order matters: nodes are listed
/// first, then what is under way, then the newest version, so that a statement which commits
/// meanwhile is seen in one of the two.
pub(crate) async fn collect_orphans(engine: &Engine) -> Result<u64> {
    let mut held: BTreeMap<NodeId, Vec<SegmentDescription>> = BTreeMap::new();
    let members = engine.cluster().members();
    for member in members.iter().filter(|member| member.is_alive()) {
        held.insert(member.entry.id, list(engine, member).await?);
    }
    let mut wanted: BTreeSet<SegmentId> = engine.in_flight().lock().clone();
    let snapshot = engine.manifest().refresh().await?;
    engine.adopt(&snapshot);
    engine.check_writable()?;
    for live in engine.live_snapshots() {
        wanted.extend(live.segments().map(|segment| segment.id));
    }
    let epoch = engine.epoch();
    let mut deleted = 0;
    for member in members {
        let Some(segments) = held.remove(&member.entry.id) else { continue };
        let orphans = segments.iter().filter(|segment| segment.epoch <= epoch && !wanted.contains(&segment.segment_id));
        let orphans: Vec<SegmentId> = orphans.map(|segment| segment.segment_id).collect();
        if !orphans.is_empty() {
            let header = engine.cluster().header(snapshot.version, CONTROL_TIMEOUT);
            deleted += engine
                .cluster()
                .call(&member, CONTROL_TIMEOUT, member.client.delete_segments(&header, &orphans))
                .await?;
        }
    }
    Ok(deleted)
}

async fn list(engine: &Engine, member: &Member) -> Result<Vec<SegmentDescription>> {
    let mut all: Vec<SegmentDescription> = Vec::new();
    loop {
        let header = engine.cluster().header(engine.manifest().snapshot().version, CONTROL_TIMEOUT);
        let after = all.last().map(|segment| segment.segment_id);
        let page = member.client.list_segments(&header, after, LIST_PAGE);
        let (segments, more) = engine.cluster().call(member, CONTROL_TIMEOUT, page).await?;
        let empty = segments.is_empty();
        all.extend(segments);
        if !more || empty {
            return Ok(all);
        }
    }
}
