//! One partition of a scan: which replica is asked for which segments, and what happens when one
//! does not answer.
//!
//! Hot path: no blocking I/O, no locks held across a wait, no info logs.
//!
//! Every segment counts the output rows that were handed on. When a replica fails, its unfinished
//! segments are asked of others with that count as `skip_rows`: segments are immutable and the order
//! of rows within one is fixed, so no row is lost or doubled, at whatever moment the failure comes.
//! Nothing is spawned: dropping the stream drops the requests, which stops the nodes.

mod fetch;
mod new_requests;
mod requests;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use aubade_catalog::SegmentEntry;
use aubade_environment::{Deadline, clock};
use aubade_planner::prune::prune_segments;
use aubade_planner::{ScanTask, buffer_pool_enabled, fragment_cache_enabled, wire_encoding_enabled};
use aubade_proto::{
    Error, ErrorCode, Fragment, NodeId, ReductionKind, Result, Retry, ScanEvent, ScanRequest, ScanStatistics,
    SegmentScan,
};
use aubade_storage_node::{FragmentKey, columns_read};
use datafusion::common::utils::memory::get_record_batch_memory_size;
use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::prelude::SessionConfig;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use new_requests::{NewRequest, NewRequests, RequestKey};
use requests::{Request, RequestNumber, Requests};

use crate::buffer_pool::{BufferPool, TableOfPool};
use crate::cluster::{Cluster, Member};
use crate::limits::{
    HEDGE_LOOK_PAUSE, LIMIT_STATISTICS_WAIT, LIMITED_REQUESTS_MAX, REQUESTS_PER_PARTITION_MAX, SCAN_ROUND_PAUSE,
    SCAN_ROUNDS_MAX, SCAN_TIMEOUT, WIRE_BYTES_PER_MICRO,
};
use crate::query::QueryDeadline;

/// Starts a partition of a scan.
pub(crate) fn scan(cluster: Arc<Cluster>, task: ScanTask, context: &TaskContext) -> Result<SendableRecordBatchStream> {
    let schema = Arc::clone(task.fragment.planned().output_schema());
    let reservation = MemoryConsumer::new(format!("scan of {}", task.table.name)).register(context.memory_pool());
    let config = context.session_config();
    // What is left of the query's deadline is passed on to the nodes.
    let deadline = match config.get_extension::<QueryDeadline>() {
        Some(deadline) => deadline.0,
        None => Deadline::after(cluster.environment().clock.as_ref(), SCAN_TIMEOUT),
    };
    let fan_out = FanOut::new(cluster, task, reservation, deadline, config)?;
    let batches = stream::try_unfold(fan_out, |mut fan_out| async move {
        let batch = fan_out.next().boxed().await.map_err(DataFusionError::from)?;
        Ok(batch.map(|batch| (batch, fan_out)))
    });
    Ok(Box::pin(RecordBatchStreamAdapter::new(schema, batches)))
}

/// How far one segment has come.
#[derive(Debug)]
struct Progress {
    segment: Arc<SegmentEntry>,
    /// Index into the table's segments.
    segment_index: usize,
    /// What it was asked with first. A retry asks with the same: filters that became known since would let fewer rows
    /// pass, and the rows that were handed on could not be counted off.
    asked: Option<Arc<Asked>>,
    rows_handed_on: u64,
    done: bool,
    /// A node has handed it back: its columns are read, and it is scanned here.
    fetched: bool,
    /// Bytes over the wire for it alone.
    wire_bytes: u64,
    /// Replicas that failed in this round, with what they said.
    failures: Vec<(NodeId, Error)>,
    rounds: usize,
}

/// A fragment that segments are asked with.
#[derive(Debug)]
struct Asked {
    /// Counts the fragments of this scan.
    number: usize,
    fragment: Arc<Fragment>,
    /// The columns that it reads, and its name among results that are kept; where there is a buffer pool.
    columns: Vec<Arc<str>>,
    key: Option<FragmentKey>,
}

/// The fragment with the filters that were known last.
struct Latest {
    asked: Arc<Asked>,
    /// The segments of the table that its filters leave.
    kept: BTreeSet<usize>,
}

/// The buffer pool, as far as a scan uses it.
struct Pooling {
    pool: Arc<BufferPool>,
    member: Arc<Member>,
    table: Arc<TableOfPool>,
}

impl Pooling {
    fn new(cluster: &Cluster, task: &ScanTask) -> Option<Self> {
        let (pool, member) = (Arc::clone(cluster.buffer_pool()?), Arc::clone(cluster.buffer_pool_member()?));
        if task.partition == 0 {
            pool.tick();
        }
        let table = Arc::new(TableOfPool::from(task.table.as_ref()));
        Some(Self { pool, member, table })
    }

    /// Whether a segment of which no rows were handed on is best scanned here.
    fn has(&self, progress: &Progress, asked: &Asked) -> bool {
        let id = progress.segment.id;
        let failed_here = || progress.failures.iter().any(|(node, _)| *node == BufferPool::NODE);
        // What a node has kept costs less than a scan, as long as the node is there.
        let kept = || progress.failures.is_empty() && asked.key.is_some_and(|key| self.pool.is_kept_at_node(id, key));
        progress.rows_handed_on == 0 && self.pool.holds(id, &asked.columns) && !failed_here() && !kept()
    }
}

struct FanOut {
    cluster: Arc<Cluster>,
    task: ScanTask,
    segments: Vec<Progress>,
    /// Segments that no request covers now.
    waiting: Vec<usize>,
    /// Segments began to wait, or requests ended, since segments were last shared out.
    has_changed: bool,
    requests: Requests,
    /// Batches to hand on.
    ready: VecDeque<RecordBatch>,
    latest: Option<Latest>,
    /// Of all requests.
    merged_bytes: usize,
    rows_left: Option<u64>,
    deadline: Deadline,
    reservation: MemoryReservation,
    batch_rows: usize,
    may_keep_results: bool,
    plain_columns: bool,
    /// `None` where there is no buffer pool, or it is not to be used.
    pooling: Option<Pooling>,
}

impl FanOut {
    fn new(
        cluster: Arc<Cluster>,
        task: ScanTask,
        reservation: MemoryReservation,
        deadline: Deadline,
        config: &SessionConfig,
    ) -> Result<Self> {
        let progress = task.segments.iter().map(|index| {
            let segment = task.table.segments.get(*index);
            let segment =
                segment.ok_or_else(|| Error::internal(format!("{} has no segment {index}", task.table.name)))?;
            let segment = Arc::clone(segment);
            Ok(Progress {
                segment,
                segment_index: *index,
                asked: None,
                rows_handed_on: 0,
                done: false,
                fetched: false,
                wire_bytes: 0,
                failures: Vec::new(),
                rounds: 0,
            })
        });
        let segments = progress.collect::<Result<Vec<_>>>()?;
        // Taken from the back: reversed, so that segments go out in their order.
        let waiting = (0..segments.len()).rev().collect();
        let rows_left = task.fragment.planned().limit();
        let pooling = match buffer_pool_enabled(config.options()) {
            true => Pooling::new(&cluster, &task),
            false => None,
        };
        Ok(Self {
            cluster,
            task,
            segments,
            waiting,
            has_changed: true,
            requests: Requests::default(),
            ready: VecDeque::new(),
            latest: None,
            merged_bytes: 0,
            rows_left,
            deadline,
            reservation,
            batch_rows: config.batch_size(),
            may_keep_results: fragment_cache_enabled(config.options()),
            plain_columns: !wire_encoding_enabled(config.options()),
            pooling,
        })
    }

    /// The next batch; `None` at the end.
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                if self.rows_left == Some(0) && self.ready.is_empty() {
                    self.end_requests().await;
                }
                return Ok(Some(batch));
            }
            if self.rows_left == Some(0) {
                return Ok(None);
            }
            self.send_requests().await?;
            let Some((request, event)) = self.next_event().await else {
                if !self.waiting.is_empty() {
                    continue;
                }
                // Whatever went wrong, a result with segments missing must not look complete.
                return match self.segments.iter().find(|progress| !progress.done) {
                    Some(progress) => Err(Error::internal(format!(
                        "the scan ended without segment {} of table {}",
                        progress.segment.id, self.task.table.name
                    ))),
                    None => Ok(None),
                };
            };
            self.handle(event, request)?;
        }
    }

    /// No more rows are wanted. A node tells what a segment took together with the last rows of a limit: that is still
    /// taken in, for a moment.
    async fn end_requests(&mut self) {
        let clock = Arc::clone(&self.cluster.environment().clock);
        let until = Deadline::after(clock.as_ref(), LIMIT_STATISTICS_WAIT);
        while self.segments.iter().any(|progress| progress.rows_handed_on > 0 && !progress.done) {
            let left = until.remaining(clock.as_ref());
            let Some(Some((request, event))) = clock::timeout(clock.as_ref(), left, self.requests.next()).await else {
                break;
            };
            match event {
                Some(Ok(ScanEvent::SegmentDone { segment_index, statistics })) => {
                    if let Ok(index) = asked(&request, segment_index) {
                        self.segment_done(index, &statistics, &request.member, false);
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => continue,
            }
            self.requests.put_back(request);
        }
        self.requests.clear();
    }

    /// The next event of any request. Requests that are silent for too long are sent to other replicas meanwhile.
    async fn next_event(&mut self) -> Option<(Request, Option<Result<ScanEvent>>)> {
        let clock = Arc::clone(&self.cluster.environment().clock);
        // What was not listened to has not been silent.
        let listening = clock.now();
        let mut look = self.requests.next_look(listening);
        let (mut request, event) = loop {
            let Some(at) = look else { break self.requests.next().await? };
            let time_left = at.saturating_sub(clock.now());
            if let Some(heard) = clock::timeout(clock.as_ref(), time_left, self.requests.next()).await {
                break heard?;
            }
            self.hedge(listening);
            look =
                self.requests.next_look(listening).map(|look| look.max(clock.now().saturating_add(HEDGE_LOOK_PAUSE)));
        };
        let now = clock.now();
        let metrics = &self.task.metrics;
        metrics.storage_wait.add_duration(now.saturating_sub(listening));
        if !request.member.is_buffer_pool() {
            metrics.add_wait(request.member.entry.id, request.silence(listening, now));
        }
        self.requests.listened(listening, now);
        request.heard(now);
        Some((request, event))
    }

    /// Sends what a slow request has not finished to another replica too, the slowest that some replica can take over.
    fn hedge(&mut self, listening: Duration) {
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
            let failed = |id: NodeId| progress.failures.iter().any(|(node, _)| *node == id);
            let replicas = self.cluster.replicas(&progress.segment).into_iter();
            Some(replicas.filter(|member| able(member) && !failed(member.entry.id)).collect::<Vec<_>>())
        };
        let (first, rest) = segments.split_first()?;
        let mut common = replicas_of(first)?;
        for index in rest {
            let ids: BTreeSet<NodeId> = replicas_of(index)?.iter().map(|member| member.entry.id).collect();
            common.retain(|member| ids.contains(&member.entry.id));
        }
        common.into_iter().next()
    }

    /// Of some segments those that are not complete.
    fn unfinished(&self, segments: impl Iterator<Item = usize>) -> Vec<usize> {
        segments.filter(|index| self.segments.get(*index).is_some_and(|progress| !progress.done)).collect()
    }

    /// One of two rivals was heard: the other one is dropped.
    fn settle(&mut self, heard: &mut Request) {
        let Some(lost) = self.requests.take_rival(heard) else { return };
        self.has_changed = true;
        self.merged_bytes = self.merged_bytes.saturating_sub(lost.merged_bytes);
        if heard.is_hedge {
            self.task.metrics.hedges_won.add(1);
            lost.member.was_slow(self.cluster.environment().clock.as_ref());
        }
        // What the one that was heard does not answer for.
        let left = self.unfinished(lost.outstanding().filter(|index| !heard.answers_for(*index)));
        self.waiting.extend(left);
    }

    /// Takes in one event of a request and goes on listening to it.
    fn handle(&mut self, event: Option<Result<ScanEvent>>, mut request: Request) -> Result<()> {
        if matches!(&event, Some(Ok(event)) if !matches!(event, ScanEvent::SegmentFailed { .. })) {
            self.settle(&mut request);
        }
        match event {
            Some(Ok(ScanEvent::Batch { segment_index, batch, rows_through, wire_bytes })) => {
                let index = asked(&request, segment_index)?;
                self.task.metrics.add_wire(request.member.entry.id, wire_bytes);
                if let Some(progress) = self.segments.get_mut(index) {
                    progress.wire_bytes = progress.wire_bytes.saturating_add(wire_bytes);
                }
                let batch = self.take_batch(index, batch, rows_through, &request.member)?;
                self.ready.extend(batch);
            }
            Some(Ok(ScanEvent::Merged { batch, wire_bytes })) => {
                self.task.metrics.add_wire(request.member.entry.id, wire_bytes);
                let bytes = get_record_batch_memory_size(&batch);
                request.merged.push(batch);
                request.merged_bytes = request.merged_bytes.saturating_add(bytes);
                self.merged_bytes = self.merged_bytes.saturating_add(bytes);
                self.reserve(bytes)?;
            }
            Some(Ok(ScanEvent::MergedDone { segments })) => {
                for (segment_index, statistics) in segments {
                    let index = asked(&request, segment_index)?;
                    self.merged(index, &request.member)?;
                    self.segment_done(index, &statistics, &request.member, true);
                }
                let merged = std::mem::take(&mut request.merged);
                self.merged_bytes = self.merged_bytes.saturating_sub(std::mem::take(&mut request.merged_bytes));
                self.ready.extend(merged.into_iter().filter(|batch| batch.num_rows() > 0));
            }
            Some(Ok(ScanEvent::SegmentDone { segment_index, statistics })) => {
                let index = asked(&request, segment_index)?;
                self.segment_done(index, &statistics, &request.member, false);
            }
            Some(Ok(ScanEvent::SegmentFailed { segment_index, error })) => {
                let index = asked(&request, segment_index)?;
                request.give_up(index);
                let covered = self.requests.rival_of(&request).is_some_and(|rival| rival.answers_for(index));
                self.segment_failed(index, &request.member, error, covered)?;
            }
            Some(Err(error)) => return self.end_request(request, Some(error)),
            None => return self.end_request(request, None),
        }
        self.requests.put_back(request);
        Ok(())
    }

    /// A segment is complete; `merged`: nothing was sent for it alone.
    fn segment_done(&mut self, index: usize, statistics: &ScanStatistics, member: &Member, merged: bool) {
        let Some(progress) = self.segments.get_mut(index) else { return };
        progress.done = true;
        if member.is_buffer_pool() {
            self.task.metrics.add_pooled_segment(statistics);
            return;
        }
        self.task.metrics.add_segment(member.entry.id, statistics);
        let Some((pooling, asked)) = self.pooling.as_ref().zip(progress.asked.as_ref()) else { return };
        let was_kept = statistics.kept_results > 0;
        if let Some(key) = asked.key.filter(|_| merged) {
            pooling.pool.answered_by_node(progress.segment.id, key, was_kept);
        }
        // What was kept says nothing of what a scan costs.
        if !was_kept {
            let cost = statistics.cpu_micros as f64 + progress.wire_bytes as f64 / WIRE_BYTES_PER_MICRO;
            pooling.pool.missed(&pooling.table, &progress.segment, &asked.columns, cost);
        }
    }

    /// Makes sure that merged rows can stand for all rows of a segment.
    fn merged(&self, index: usize, member: &Member) -> Result<()> {
        let untouched = |progress: &Progress| !progress.done && progress.rows_handed_on == 0;
        match self.segments.get(index) {
            Some(progress) if !untouched(progress) => Err(Error::internal(format!(
                "{} merged rows of segment {}, of which rows were handed on before",
                name(member),
                progress.segment.id
            ))),
            _ => Ok(()),
        }
    }

    /// Counts what is held: merged rows, the batch at hand of so many bytes, and about as much for every
    /// open request.
    fn reserve(&mut self, batch_bytes: usize) -> Result<()> {
        let in_flight = batch_bytes.saturating_mul(self.requests.len() + 1);
        self.reservation.try_resize(in_flight.saturating_add(self.merged_bytes)).map_err(Error::from_datafusion)
    }

    fn take_batch(
        &mut self,
        index: usize,
        mut batch: RecordBatch,
        rows_through: u64,
        member: &Member,
    ) -> Result<Option<RecordBatch>> {
        let Some(progress) = self.segments.get_mut(index) else { return Ok(None) };
        let rows = batch.num_rows() as u64;
        if progress.rows_handed_on.checked_add(rows) != Some(rows_through) {
            let text = format!(
                "{} sent {rows} rows up to row {rows_through} of segment {} after row {}",
                name(member),
                progress.segment.id,
                progress.rows_handed_on
            );
            return Err(Error::internal(text));
        }
        progress.rows_handed_on = rows_through;
        if let Some(left) = &mut self.rows_left {
            let kept = rows.min(*left);
            *left -= kept;
            batch = batch.slice(0, usize::try_from(kept).unwrap_or(usize::MAX));
        }
        self.reserve(get_record_batch_memory_size(&batch))?;
        Ok((batch.num_rows() > 0).then_some(batch))
    }

    /// A replica failed. Where another request answers for the segment too (`covered`), that one decides.
    fn segment_failed(&mut self, index: usize, member: &Member, error: Error, covered: bool) -> Result<()> {
        if error.retry() == Retry::Never && !covered {
            return Err(error);
        }
        let node = member.entry.id;
        if member.is_buffer_pool() {
            // Where a node would go on after the rows that were handed on is not known.
            if self.segments.get(index).is_some_and(|progress| progress.rows_handed_on > 0) {
                return Err(error);
            }
            tracing::debug!(error = %error.chain(), "a segment has left the buffer pool; asking a replica");
        } else {
            tracing::warn!(%node, error = %error.chain(), "a replica could not be read; asking another one");
        }
        if error.code() == ErrorCode::SegmentNotFound {
            member.suspect();
        }
        if let Some(progress) = self.segments.get_mut(index) {
            progress.failures.push((node, error));
            if !covered {
                self.waiting.push(index);
            }
            self.has_changed = true;
        }
        Ok(())
    }

    /// A request ended: normally, with an error, or too early.
    fn end_request(&mut self, mut request: Request, error: Option<Error>) -> Result<()> {
        // Of what it has merged and not named the segments, nothing counts.
        self.merged_bytes = self.merged_bytes.saturating_sub(request.merged_bytes);
        self.has_changed = true;
        let rival = self.requests.leave_to_rival(&mut request);
        let (covered, left): (Vec<usize>, Vec<usize>) =
            self.unfinished(request.outstanding()).into_iter().partition(|index| rival.contains(index));
        let error = match error {
            None if covered.is_empty() && left.is_empty() => {
                request.member.answered();
                return Ok(());
            }
            None => Error::new(
                ErrorCode::NodeUnavailable,
                format!("{} ended a scan before it was complete", name(&request.member)),
            ),
            // The deadline is ours: another replica has no more time than this one.
            Some(error) if self.deadline.is_past(self.cluster.environment().clock.as_ref()) => return Err(error),
            Some(error) => error,
        };
        if error.code() == ErrorCode::PushedBack && self.can_fetch(&left) {
            self.task.metrics.pushbacks.add(1);
            self.fetch_instead(&left);
            return Ok(());
        }
        request.member.failed(&error);
        for (segments, covered) in [(covered, true), (left, false)] {
            for index in segments {
                self.segment_failed(index, &request.member, error.clone(), covered)?;
            }
        }
        Ok(())
    }

    /// Whether segments can be scanned here, and are not scanned here already.
    fn can_fetch(&self, segments: &[usize]) -> bool {
        let fetched = |index: &usize| self.segments.get(*index).is_some_and(|progress| progress.fetched);
        self.cluster.runner().is_some() && !segments.iter().any(fetched)
    }

    /// Has segments scanned here that a node has handed back.
    fn fetch_instead(&mut self, segments: &[usize]) {
        for index in segments {
            if let Some(progress) = self.segments.get_mut(*index) {
                progress.fetched = true;
                self.waiting.push(*index);
            }
        }
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
                Some(_) => columns_read(&fragment)?,
                None => Vec::new(),
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

    /// Covers waiting segments by requests, once something has changed since that was last done.
    async fn send_requests(&mut self) -> Result<()> {
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
            replicas.retain(|member| !progress.failures.iter().any(|(node, _)| *node == member.entry.id));
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
}

/// Every replica has failed: try them all again, a few times, before giving up.
fn next_round(progress: &mut Progress, task: &ScanTask) -> Result<()> {
    progress.rounds += 1;
    // A replica that is gone or corrupt stays so; only others are worth another round.
    let hopeless = |error: &Error| matches!(error.code(), ErrorCode::SegmentNotFound | ErrorCode::SegmentCorrupt);
    let all_hopeless = progress.failures.iter().all(|(_, error)| hopeless(error));
    if progress.rounds < SCAN_ROUNDS_MAX && !all_hopeless {
        progress.failures.retain(|(_, error)| hopeless(error));
        return Ok(());
    }
    let mut text =
        format!("segment {} of table {} cannot be read from any of its replicas", progress.segment.id, task.table.name);
    for (node, error) in &progress.failures {
        text.push_str(&format!("; node {node}: {error}"));
    }
    for node in &progress.segment.holders {
        if !progress.failures.iter().any(|(failed, _)| failed == node) {
            text.push_str(&format!("; node {node}: it was removed from the cluster"));
        }
    }
    let error = Error::new(ErrorCode::SegmentUnavailable, text)
        .hint("bring back one of the storage nodes that hold it (`aubade cluster status` shows which do not answer)");
    Err(match progress.failures.pop() {
        Some((_, cause)) => error.source(cause),
        None => error,
    })
}

/// The segment that an event of a request is about.
fn asked(request: &Request, index: usize) -> Result<usize> {
    request.segments.get(index).copied().ok_or_else(|| {
        Error::internal(format!("{} answered for a segment that it was not asked for", name(&request.member)))
    })
}

fn name(member: &Member) -> String {
    format!("storage node {} at {}", member.entry.id, member.entry.address)
}
