//! One segment to its protection group: durable once the write quorum has acknowledged it.

use std::collections::BTreeSet;
use std::sync::Arc;

use aubade_catalog::{NodeEntry, SegmentEntry, SegmentStatistics, place};
use aubade_environment::tasks::run_blocking;
use aubade_proto::{Error, ErrorCode, NodeId, Result, SegmentDescription, SegmentId, TransactionId};
use futures::StreamExt;
use futures::future::{Either, select};
use futures::stream::FuturesUnordered;

use super::BuiltSegment;
use crate::cluster::Member;
use crate::engine::Engine;
use crate::limits::{PUT_TIMEOUT, STRAGGLER_GRACE};

/// Writes a segment to its protection group.
///
/// Returns when all have answered, or a grace after the write quorum stands; who has not
/// acknowledged by then is left to repair.
///
/// # Errors
/// `QuorumUnavailable` with what each node said; `StaleEpoch` as soon as one node says so, since
/// then another writer has taken over.
pub(super) async fn write(
    engine: &Engine,
    id: SegmentId,
    transaction: TransactionId,
    segment: BuiltSegment,
) -> Result<(SegmentEntry, SegmentStatistics)> {
    let BuiltSegment { data, rows, statistics } = segment;
    let hashed = data.clone();
    let sha256 = run_blocking(move || ring::digest::digest(&ring::digest::SHA256, &hashed)).await;
    let sha256: [u8; 32] = sha256
        .and_then(|digest| digest.as_ref().try_into().ok())
        .ok_or_else(|| Error::internal("hashing a segment failed"))?;
    let snapshot = engine.manifest().snapshot();
    let quorum = snapshot.quorum;
    let group = protection_group(engine, id, quorum.copies());
    let epoch = engine.epoch();
    let description =
        SegmentDescription { segment_id: id, epoch, transaction_id: transaction, bytes: data.len() as u64, sha256 };
    let alive = group.iter().filter(|member| member.is_alive()).count();
    if alive < quorum.write() {
        return Err(too_few(quorum.write(), &group, alive, Vec::new()));
    }
    let header = engine.cluster().header(snapshot.version, PUT_TIMEOUT);
    let mut puts: FuturesUnordered<_> = group
        .iter()
        .map(|member| {
            let (header, description, data) = (&header, &description, data.clone());
            async move {
                let _active = member.begin_request();
                let call = member.client.put_segment(header, description, data);
                (member, engine.cluster().call(member, PUT_TIMEOUT, call).await)
            }
        })
        .collect();
    let clock = &engine.environment().clock;
    let started = clock.now();
    let mut holders: BTreeSet<NodeId> = BTreeSet::new();
    let mut failures = Vec::new();
    let mut grace = None;
    loop {
        let next = match grace.take() {
            None => puts.next().await,
            Some(timer) => match select(puts.next(), timer).await {
                Either::Left((next, timer)) => {
                    grace = Some(timer);
                    next
                }
                Either::Right(_) => None,
            },
        };
        let Some((member, result)) = next else { break };
        match result {
            Ok(receipt) if receipt.sha256 == sha256 => drop(holders.insert(member.entry.id)),
            Ok(_) => failures.push((Arc::clone(member), Error::new(ErrorCode::SegmentCorrupt, "stored other bytes"))),
            Err(error) if error.code() == ErrorCode::StaleEpoch => return Err(error),
            Err(error) => failures.push((Arc::clone(member), error)),
        }
        if grace.is_none() && holders.len() >= quorum.write() {
            grace = Some(clock.sleep(STRAGGLER_GRACE.max(clock.now().saturating_sub(started))));
        }
    }
    if holders.len() < quorum.write() {
        return Err(too_few(quorum.write(), &group, holders.len(), failures));
    }
    let entry = SegmentEntry {
        id,
        epoch,
        transaction,
        rows,
        bytes: data.len() as u64,
        sha256,
        intended: group.iter().map(|member| member.entry.id).collect(),
        holders: holders.into_iter().collect(),
    };
    Ok((entry, statistics))
}

/// The nodes that should hold a segment: among those that answer, as long as there are enough.
fn protection_group(engine: &Engine, id: SegmentId, copies: usize) -> Vec<Arc<Member>> {
    let members = engine.cluster().members();
    let entries = |alive_only: bool| -> Vec<NodeEntry> {
        let chosen = members.iter().filter(|member| !alive_only || member.is_alive());
        chosen.map(|member| member.entry.clone()).collect()
    };
    let alive = entries(true);
    let group = if alive.len() >= copies { place(id, &alive, copies) } else { place(id, &entries(false), copies) };
    group.iter().filter_map(|id| engine.cluster().member(*id)).collect()
}

fn too_few(needed: usize, group: &[Arc<Member>], got: usize, failures: Vec<(Arc<Member>, Error)>) -> Error {
    let mut text =
        format!("{got} of {} storage nodes of the protection group can take the write and {needed} must", group.len());
    for (member, error) in &failures {
        text.push_str(&format!(
            "; node {} in zone {} at {}: {error}",
            member.entry.id, member.entry.zone, member.entry.address
        ));
    }
    let full = failures.iter().find(|(_, error)| error.code() == ErrorCode::DiskFull);
    let code = if full.is_some() { ErrorCode::DiskFull } else { ErrorCode::QuorumUnavailable };
    let hint = match full {
        Some(_) => "free room on the storage nodes; nothing was written",
        None => {
            "start more storage nodes, or mend those that do not answer (`aubade cluster status`); nothing was written"
        }
    };
    let error = Error::new(code, text).hint(hint);
    match failures.into_iter().next() {
        Some((_, cause)) => error.source(cause),
        None => error,
    }
}
