//! Background work of the coordinator: following the manifest, and, while it is the writer, looking after the nodes.
//!
//! Two tasks, so that a slow repair never keeps queries from learning where a node is now: [`watch`] reads the
//! manifest; [`tend`] asks every node how it does, seals it, compares what it holds with what the manifest says, has
//! lost replicas copied from others, and collects orphans. All state of [`tend`] is its own and may be lost: a new
//! coordinator finds out again.
//!
//! ```text
//!  info of every node ─▶ quarantined ────────────────┐
//!     │                                              ├─▶ replicas lost and found ─▶ commit ─▶ repair ─▶ commit
//!     └─ back, suspected, or due? ─▶ its list ───────┤
//!                                                    └─▶ orphans, every minute ─▶ delete
//! ```

mod audit;
mod orphans;
mod repair;
#[cfg(test)]
mod testing;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aubade_catalog::manifest::CollectionLimits;
use aubade_catalog::{Action, Commit, Snapshot};
use aubade_environment::clock;
use aubade_proto::{NodeId, NodeInfo, Result, SegmentId, TransactionId};
use futures::FutureExt;
use futures::future::{join_all, select};

use crate::cluster::Member;
use crate::engine::Engine;
use crate::limits::{CONTROL_TIMEOUT, LOOK_PAUSE_MIN, PROBE_INTERVAL, PROBES_PER_COLLECTION, PROBES_PER_SUSPICION};

/// Reads new versions of the manifest until the engine stops: every second, and at once when a scan finds no replica
/// that answers.
pub(crate) async fn watch(engine: Engine) {
    let clock = Arc::clone(&engine.environment().clock);
    loop {
        match engine.manifest().refresh().boxed().await {
            Ok(snapshot) => engine.adopt(&snapshot),
            Err(error) => tracing::warn!(error = %error.chain(), "the manifest cannot be read; trying again"),
        }
        clock.sleep(LOOK_PAUSE_MIN).await;
        select(clock.sleep(PROBE_INTERVAL.saturating_sub(LOOK_PAUSE_MIN)), engine.cluster().look_wanted().boxed())
            .await;
    }
}

/// Looks after the nodes until the engine stops.
pub(crate) async fn tend(engine: Engine) {
    let clock = Arc::clone(&engine.environment().clock);
    let mut tending = Tending::default();
    loop {
        if let Err(error) = tending.look(&engine).boxed().await {
            tracing::warn!(error = %error.chain(), "looking after the cluster failed; trying again");
        }
        tending.looks = tending.looks.wrapping_add(1);
        clock.sleep(PROBE_INTERVAL).await;
    }
}

/// A node that answered.
#[derive(Debug)]
struct Probe {
    member: Arc<Member>,
    info: NodeInfo,
}

/// What [`tend`] remembers from look to look.
#[derive(Debug, Default)]
struct Tending {
    looks: u64,
    /// The nodes that answered at the last look, each with the number that its process drew.
    answered: BTreeMap<NodeId, u64>,
    /// At which look each node was last asked for its list.
    audited: BTreeMap<NodeId, u64>,
    waits: repair::Waits,
    /// Segments that were reported to have lost every replica.
    reported: BTreeSet<SegmentId>,
}

impl Tending {
    async fn look(&mut self, engine: &Engine) -> Result<()> {
        // Before anything is asked: what a node lacks of this version it has lost since.
        let snapshot = engine.manifest().snapshot();
        let probes = probe_nodes(engine, &snapshot).boxed().await;
        let collect = self.looks.is_multiple_of(PROBES_PER_COLLECTION);
        if collect {
            forget_unnamed(engine).boxed().await;
        }
        if engine.check_writable().is_err() {
            // Another writer has taken over: it looks after the cluster now.
            return Ok(());
        }
        if probes.iter().any(|probe| self.is_back(probe)) {
            // Whatever could not be repaired without it may work now.
            self.waits.clear();
        }
        let due: Vec<&Probe> = probes.iter().filter(|probe| self.is_due(probe, collect)).collect();
        self.answered = probes.iter().map(|probe| (probe.member.entry.id, probe.info.instance)).collect();
        let holdings = audit::holdings(engine, &snapshot, &due).boxed().await;
        // One that was asked and did not answer is asked again at the next look.
        for probe in &due {
            self.audited.remove(&probe.member.entry.id);
        }
        self.audited.extend(holdings.iter().map(|holding| (holding.member.entry.id, self.looks)));
        let differences = audit::differences(&probes, &holdings);
        let corrections = audit::corrections(&snapshot, &differences);
        corrections.report(&differences, &mut self.reported, collect);
        commit(engine, corrections.actions).boxed().await?;
        repair::run(engine, &mut self.waits).boxed().await?;
        if collect {
            collect_versions(engine).boxed().await;
            let deleted = orphans::collect(engine, holdings).boxed().await?;
            if deleted > 0 {
                tracing::info!(deleted, "collected segments that no version names");
            }
        }
        Ok(())
    }

    /// Whether a node was away at the last look, or is another process than it was then: what it holds may have changed.
    fn is_back(&self, probe: &Probe) -> bool {
        self.answered.get(&probe.member.entry.id) != Some(&probe.info.instance)
    }

    /// Whether a node is to be asked for its list. One that a scan found lacking is not asked at every look: its list
    /// may be long, and the scans may go on.
    fn is_due(&self, probe: &Probe, collect: bool) -> bool {
        let id = probe.member.entry.id;
        let Some(audited) = self.audited.get(&id) else { return true };
        collect
            || self.is_back(probe)
            || (self.looks.saturating_sub(*audited) >= PROBES_PER_SUSPICION && probe.member.take_suspicion())
    }
}

/// Forgets what is kept on the coordinator of segments that no version names any more.
pub(crate) async fn forget_unnamed(engine: &Engine) {
    let live = engine.live_snapshots();
    let segments = live.iter().flat_map(|live| live.segments()).map(|segment| segment.id).collect();
    if let Some(results) = engine.results() {
        results.retain_segments(&segments);
    }
    let Some(pool) = engine.cluster().buffer_pool() else { return };
    let tables = live.iter().flat_map(|live| live.relations.values()).map(|relation| relation.id()).collect();
    // A disk that hangs must not keep the cluster from being looked after.
    let clock = engine.environment().clock.as_ref();
    let _ = clock::timeout(clock, CONTROL_TIMEOUT, pool.retain_segments(&segments, &tables)).boxed().await;
}

/// A store that fails at this keeps more than it has to, and everything else goes on.
async fn collect_versions(engine: &Engine) {
    match engine.collect_versions(&CollectionLimits::default()).await {
        Ok(versions) if versions.deleted == 0 => {}
        Ok(versions) => {
            tracing::info!(deleted = versions.deleted, floor = %versions.floor, "collected old versions of the manifest");
        }
        Err(error) => {
            tracing::warn!(error = %error.chain(), "old versions of the manifest could not be collected; trying again later");
        }
    }
}

/// Asks every node how it does, and seals those that have an older epoch.
async fn probe_nodes(engine: &Engine, snapshot: &Snapshot) -> Vec<Probe> {
    let header = engine.cluster().header(snapshot.version, CONTROL_TIMEOUT);
    let header = &header;
    let probes = engine.cluster().members().into_iter().map(|member| async move {
        let info = engine.cluster().probe(&member, header).await.ok()?;
        if info.node_id != member.entry.id {
            tracing::warn!(expected = %member.entry.id, found = %info.node_id, "another storage node answers at this address");
            return None;
        }
        if info.epoch < engine.epoch()
            && engine.check_writable().is_ok()
            && let Err(error) = engine.cluster().call(&member, CONTROL_TIMEOUT, member.client.seal(header)).await
        {
            tracing::warn!(node = %member.entry.id, error = %error.chain(), "a storage node could not be sealed");
        }
        member.introduced(&info);
        Some(Probe { member, info })
    });
    join_all(probes).await.into_iter().flatten().collect()
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

/// Deletes what no version and no running statement needs, at every node that answers. Returns how many replicas.
pub(crate) async fn collect_orphans(engine: &Engine) -> Result<u64> {
    let snapshot = engine.manifest().snapshot();
    let probes = probe_nodes(engine, &snapshot).boxed().await;
    let all: Vec<&Probe> = probes.iter().collect();
    let holdings = audit::holdings(engine, &snapshot, &all).boxed().await;
    orphans::collect(engine, holdings).boxed().await
}
