//! Which replica is asked for which segments, and with what.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use aubade_planner::prune::prune_segments;
use aubade_proto::{NodeId, ReductionKind, Result, ScanRequest, SegmentScan};
use aubade_storage_node::{FragmentKey, columns_read};
use futures::{StreamExt, TryStreamExt, stream};

use super::new_requests::{NewRequest, NewRequests, RequestKey};
use super::progress::{Asked, Latest, Progress, next_round};
use super::requests::{Request, RequestNumber};
use super::{FanOut, fetch};
use crate::buffer_pool::ColumnSet;
use crate::cluster::Member;
use crate::limits::{LIMITED_REQUESTS_MAX, REQUESTS_PER_PARTITION_MAX, SCAN_ROUND_PAUSE};

impl FanOut {
    /// Covers waiting segments by requests, once something has changed since that was last done.
    pub(super) async fn send_requests(&mut self) -> Result<()> {
        while std::mem::take(&mut self.has_changed) && !self.waiting.is_empty() {
            self.apply_runtime_filters()?;
            let (requests, exhausted) = self.share_out();
            for NewRequest { member, segments, .. } in requests.into_requests() {
                self.send(&member, segments, None);
            }
            if let Some(progress) = exhausted.and_then(|index| self.segments.get_mut(index)) {
                next_round(progress, &self.task)?;
                self.cluster.want_look();
                self.cluster.environment().clock.sleep(SCAN_ROUND_PAUSE).await;
                self.has_changed = true;
            }
        }
        Ok(())
    }

    /// Finds out which filters are known by now, and leaves out segments that were not asked for yet in which no row
    /// passes them.
    fn apply_runtime_filters(&mut self) -> Result<()> {
        let fragment = self.task.fragment.now()?;
        if !self.latest.as_ref().is_some_and(|latest| Arc::ptr_eq(&latest.asked.fragment, &fragment)) {
            let kept = match Arc::ptr_eq(&fragment, self.task.fragment.planned()) {
                true => self.task.segments.iter().copied().collect(),
                false => {
                    let statistics = &self.task.table.statistics;
                    prune_segments(statistics, fragment.scan_schema(), fragment.filter()).into_iter().collect()
                }
            };
            let number = self.latest.as_ref().map_or(0, |latest| latest.asked.number + 1);
            let columns = match &self.pooling {
                Some(_) => columns_read(&fragment)?.into(),
                None => ColumnSet::default(),
            };
            let keeps = self.pooling.is_some() && self.may_keep_results;
            let key = if keeps { FragmentKey::of(&fragment, self.batch_rows) } else { None };
            self.latest = Some(Latest { asked: Arc::new(Asked { number, fragment, columns, key }), kept });
        }
        let Some(latest) = &self.latest else { return Ok(()) };
        let (segments, metrics) = (&mut self.segments, &self.task.metrics);
        self.waiting.retain(|index| {
            let Some(progress) = segments.get_mut(*index).filter(|progress| progress.asked.is_none()) else {
                return true;
            };
            progress.done = !latest.kept.contains(&progress.segment_index);
            metrics.segments_pruned_runtime.add(usize::from(progress.done));
            !progress.done
        });
        Ok(())
    }

    /// Shares waiting segments out over requests: one for each node that has none of this partition, so that no node
    /// waits for another. A segment goes to its first replica; what is more than a request takes waits for it, or goes
    /// to a node that would have nothing to do. Returns a segment of which every replica has failed, too.
    fn share_out(&mut self) -> (NewRequests, Option<usize>) {
        let open_max = if self.rows_left.is_some() { LIMITED_REQUESTS_MAX } else { REQUESTS_PER_PARTITION_MAX };
        let mut requests = NewRequests::new(open_max.saturating_sub(self.requests.len()), self.requests.nodes());
        let latest = self.latest.as_ref().map(|latest| Arc::clone(&latest.asked));
        let mut left: Vec<(usize, Vec<Arc<Member>>)> = Vec::new();
        let mut exhausted = None;
        let put = |requests: &mut NewRequests, progress: &Progress, index: usize, member: &Arc<Member>| {
            let fragment = progress.asked.as_ref().or(latest.as_ref()).map_or(0, |asked| asked.number);
            let fetched = progress.fetched && !member.is_buffer_pool();
            let key = RequestKey { node: member.entry.id, fragment, fetched };
            requests.put(key, member, index, &progress.segment)
        };
        while let Some(index) = self.waiting.pop() {
            let Some(progress) = self.segments.get(index) else { continue };
            let asked = progress.asked.as_ref().or(latest.as_ref());
            if let Some((pooling, _)) =
                self.pooling.as_ref().zip(asked).filter(|(pooling, asked)| pooling.has(progress, asked))
            {
                // What has to wait for its turn waits: elsewhere it would cost more.
                if !put(&mut requests, progress, index, &pooling.member) {
                    left.push((index, Vec::new()));
                }
                continue;
            }
            let mut replicas = self.cluster.replicas(&progress.segment);
            replicas.retain(|member| !progress.has_failed_at(member.entry.id));
            let Some(first) = replicas.first() else {
                exhausted = Some(index);
                left.push((index, replicas));
                break;
            };
            if !put(&mut requests, progress, index, first) {
                left.push((index, replicas));
            }
        }
        let working = requests.nodes();
        left.retain(|(index, replicas)| {
            let idle = replicas.iter().find(|member| !working.contains(&member.entry.id));
            let progress = self.segments.get(*index);
            !idle.zip(progress).is_some_and(|(member, progress)| put(&mut requests, progress, *index, member))
        });
        self.waiting.extend(left.into_iter().rev().map(|(index, _)| index));
        (requests, exhausted)
    }

    /// Sends a request; a hedge is the rival of another one.
    fn send(&mut self, member: &Arc<Member>, segments: Vec<usize>, rival: Option<RequestNumber>) {
        let clock = self.cluster.environment().clock.as_ref();
        let remaining = self.deadline.remaining(clock).max(Duration::from_millis(1));
        let progress = segments.iter().filter_map(|index| self.segments.get(*index));
        if rival.is_none() && progress.clone().any(|progress| progress.rounds > 0 || !progress.failures.is_empty()) {
            self.task.metrics.retries.add(1);
        }
        let asked = progress.clone().find_map(|progress| progress.asked.clone());
        let asked = asked.or_else(|| self.latest.as_ref().map(|latest| Arc::clone(&latest.asked)));
        let fragment = asked.as_ref().map_or_else(|| self.task.fragment.planned(), |asked| &asked.fragment);
        // The bound that an order has by then is another one each time.
        let is_order = fragment.reduction().is_some_and(|reduction| reduction.kind() == ReductionKind::TopK);
        let is_asked_again = !is_order || Arc::ptr_eq(fragment, self.task.fragment.planned());
        let fragment = match self.rows_left {
            None => Arc::clone(fragment),
            limit => Arc::new(fragment.with_limit(limit)),
        };
        let request = ScanRequest {
            header: self.cluster.header(self.task.snapshot.version, remaining),
            segments: progress
                .clone()
                .map(|progress| SegmentScan { segment_id: progress.segment.id, skip_rows: progress.rows_handed_on })
                .collect(),
            fragment,
            batch_rows: self.batch_rows,
            may_push_back: self.cluster.runner().is_some(),
            may_keep_results: self.may_keep_results && is_asked_again,
            plain_columns: self.plain_columns,
        };
        let fetched = !member.is_buffer_pool() && progress.clone().any(|progress| progress.fetched);
        let entries: Vec<_> = progress.map(|progress| Arc::clone(&progress.segment)).collect();
        for index in &segments {
            if let Some(progress) = self.segments.get_mut(*index) {
                progress.asked = progress.asked.take().or_else(|| asked.clone());
            }
        }
        if !member.is_buffer_pool() {
            self.task.metrics.add_request(&member.entry);
        }
        let client = Arc::clone(&member.client);
        let events = match self.cluster.runner().filter(|_| fetched) {
            Some(runner) => {
                let metrics = self.task.metrics.clone();
                let until = (Arc::clone(&self.cluster.environment().clock), self.deadline);
                fetch::fetch(runner, Arc::clone(member), request, entries, metrics, until, &self.reservation)
            }
            None => stream::once(async move { client.scan(request).await }).try_flatten().boxed(),
        };
        self.requests.add(member, segments, events, rival, clock.now());
    }

    /// Sends what a slow request has not finished to another replica too, the slowest that some replica can take over.
    pub(super) fn hedge(&mut self, listening: Duration) {
        let now = self.cluster.environment().clock.now();
        let metrics = &self.task.metrics;
        // One in twenty is what a 95th percentile leaves; the first is free, and nodes that do not answer are another
        // matter.
        let in_budget = metrics.hedges.value() <= metrics.requests.value() / 20;
        let slow = self.requests.slow(listening, now, metrics.usual_wait(), in_budget);
        let mut candidates = slow.into_iter().filter_map(|(number, request)| {
            let segments = self.unfinished(request.outstanding());
            let other = self.other_replica(request, &segments)?;
            Some((number, Arc::clone(&request.member), other, segments))
        });
        let Some((number, slow, other, segments)) = candidates.next() else { return };
        drop(candidates);
        let (slow, other_id) = (&slow.entry, other.entry.id);
        tracing::debug!(node = %slow.id, address = %slow.address, other = %other_id, "a request is slow; asking another replica too");
        self.task.metrics.hedges.add(1);
        self.send(&other, segments, Some(number));
    }

    /// The first replica that is well and can take over all of a request.
    fn other_replica(&self, request: &Request, segments: &[usize]) -> Option<Arc<Member>> {
        let able = |member: &Arc<Member>| {
            member.entry.id != request.member.entry.id && member.is_alive() && !member.is_stalled()
        };
        let replicas_of = |index: &usize| {
            let progress = self.segments.get(*index)?;
            let replicas = self.cluster.replicas(&progress.segment).into_iter();
            let able = |member: &Arc<Member>| able(member) && !progress.has_failed_at(member.entry.id);
            Some(replicas.filter(able).collect::<Vec<_>>())
        };
        let (first, rest) = segments.split_first()?;
        let mut common = replicas_of(first)?;
        for index in rest {
            let ids: BTreeSet<NodeId> = replicas_of(index)?.iter().map(|member| member.entry.id).collect();
            common.retain(|member| ids.contains(&member.entry.id));
        }
        common.into_iter().next()
    }
}
