//! Deleting what no version names.

use std::collections::BTreeSet;

use aubade_proto::{Epoch, Result, SegmentId};

use super::audit::Holding;
use crate::engine::Engine;
use crate::limits::{CONTROL_TIMEOUT, ORPHANS_PER_CALL};

/// Deletes segments that no live version names and no statement is writing, damaged ones that were put aside among
/// them. A node that does not answer keeps its own until the next time.
///
/// Safe without clocks: a segment of an older epoch can no longer be committed, since this process has committed a
/// newer one; a segment of this epoch is written by this process, which knows what is under way; a segment of a newer
/// epoch is left alone. What was put aside has no epoch that can be trusted, and needs none: nodes said so before this
/// process found itself to be the newest writer, and a newer one commits its epoch before it writes. The order matters:
/// nodes were asked first, then comes what is under way, then the newest version, so that a statement which commits
/// meanwhile is seen in one of the two.
pub(super) async fn collect(engine: &Engine, holdings: Vec<Holding>) -> Result<u64> {
    let mut wanted: BTreeSet<SegmentId> = engine.in_flight().lock().clone();
    let snapshot = engine.manifest().refresh().await?;
    engine.adopt(&snapshot);
    engine.check_writable()?;
    for live in engine.live_snapshots() {
        wanted.extend(live.segments().map(|segment| segment.id));
    }
    let mut deleted = 0;
    for holding in &holdings {
        let member = &holding.member;
        for ids in orphans(holding, &wanted, engine.epoch()).chunks(ORPHANS_PER_CALL) {
            let header = engine.cluster().header(snapshot.version, CONTROL_TIMEOUT);
            let call = member.client.delete_segments(&header, ids);
            match engine.cluster().call(member, CONTROL_TIMEOUT, call).await {
                Ok(count) => deleted += count,
                Err(error) => {
                    let node = member.entry.id;
                    tracing::warn!(%node, error = %error.chain(), "segments that no version names stay for now");
                    break;
                }
            }
        }
    }
    Ok(deleted)
}

/// What a node holds of which nobody knows.
fn orphans(holding: &Holding, wanted: &BTreeSet<SegmentId>, epoch: Epoch) -> Vec<SegmentId> {
    let held = holding.unnamed.iter().filter(|segment| segment.epoch <= epoch).map(|segment| segment.segment_id);
    let all = held.chain(holding.quarantined.iter().copied());
    all.filter(|id| !wanted.contains(id)).collect()
}
