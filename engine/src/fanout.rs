//! One partition of a scan: which replica is asked for which segments, and what happens when one
//! does not answer.
//!
//! Hot path: no blocking I/O, no locks held across a wait, no info logs.
//!
//! Every segment counts the output rows that were handed on. When a replica fails, its unfinished
//! segments are asked of others with that count as `skip_rows`: segments are immutable and the order
//! of rows within one is fixed, so no row is lost or doubled, at whatever moment the failure comes.
//! Nothing is spawned: dropping the stream drops the requests, which stops the nodes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use aubade_catalog::SegmentEntry;
use aubade_environment::Deadline;
use aubade_planner::ScanTask;
use aubade_planner::prune::prune_segments;
use aubade_proto::{
    Error, ErrorCode, Fragment, NodeId, Result, Retry, ScanEvent, ScanRequest, ScanStatistics, SegmentScan,
};
use datafusion::common::utils::memory::get_record_batch_memory_size;
use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::stream::{FuturesUnordered, StreamFuture};
use futures::{FutureExt, Stream, StreamExt, TryStreamExt, stream};

use crate::cluster::{ActiveRequest, Cluster, Member};
use crate::limits::{
    REQUESTS_PER_PARTITION_MAX, SCAN_ROUND_PAUSE, SCAN_ROUNDS_MAX, SCAN_TIMEOUT, SEGMENTS_PER_REQUEST_MAX,
};
use crate::query::QueryDeadline;
use crate::storage_client::ScanStream;

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
    let fan_out = FanOut::new(cluster, task, reservation, deadline, config.batch_size())?;
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
    /// What it was asked with first, and its number. A retry asks with the same: filters that became
    /// known since would let fewer rows pass, and the rows that were handed on could not be counted off.
    fragment: Option<(usize, Arc<Fragment>)>,
    rows_handed_on: u64,
    done: bool,
    /// Replicas that failed in this round, with what they said.
    failures: Vec<(NodeId, Error)>,
    rounds: usize,
}

/// A request that is under way; yields its events.
struct Request {
    member: Arc<Member>,
    /// Indices into [`FanOut::segments`], in the order of the request.
    segments: Vec<usize>,
    /// Merged rows, kept until the node says which segments they stand for.
    merged: Vec<RecordBatch>,
    merged_bytes: usize,
    events: ScanStream,
    _active: ActiveRequest,
}

impl Stream for Request {
    type Item = Result<ScanEvent>;

    fn poll_next(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.poll_next_unpin(cx)
    }
}

/// The fragment with the filters that were known last.
struct Latest {
    /// Counts the fragments of this scan.
    number: usize,
    fragment: Arc<Fragment>,
    /// The segments of the table that its filters leave.
    kept: BTreeSet<usize>,
}

struct FanOut {
    cluster: Arc<Cluster>,
    task: ScanTask,
    segments: Vec<Progress>,
    /// Segments that no request covers now.
    waiting: Vec<usize>,
    requests: FuturesUnordered<StreamFuture<Request>>,
    /// Batches to hand on.
    ready: VecDeque<RecordBatch>,
    latest: Option<Latest>,
    /// Of all requests.
    merged_bytes: usize,
    rows_left: Option<u64>,
    deadline: Deadline,
    reservation: MemoryReservation,
    batch_rows: usize,
}

impl FanOut {
    fn new(
        cluster: Arc<Cluster>,
        task: ScanTask,
        reservation: MemoryReservation,
        deadline: Deadline,
        batch_rows: usize,
    ) -> Result<Self> {
        let progress = task.segments.iter().map(|index| {
            let segment = task.table.segments.get(*index);
            let segment =
                segment.ok_or_else(|| Error::internal(format!("{} has no segment {index}", task.table.name)))?;
            let segment = Arc::clone(segment);
            Ok(Progress {
                segment,
                segment_index: *index,
                fragment: None,
                rows_handed_on: 0,
                done: false,
                failures: Vec::new(),
                rounds: 0,
            })
        });
        let segments = progress.collect::<Result<Vec<_>>>()?;
        // Taken from the back: reversed, so that segments go out in their order.
        let waiting = (0..segments.len()).rev().collect();
        let rows_left = task.fragment.planned().limit();
        let requests = FuturesUnordered::new();
        Ok(Self {
            cluster,
            task,
            segments,
            waiting,
            requests,
            ready: VecDeque::new(),
            latest: None,
            merged_bytes: 0,
            rows_left,
            deadline,
            reservation,
            batch_rows,
        })
    }

    /// The next batch; `None` at the end.
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Ok(Some(batch));
            }
            if self.rows_left == Some(0) {
                self.requests.clear();
                return Ok(None);
            }
            self.send_requests().await?;
            let Some((event, request)) = self.requests.next().await else {
                if self.waiting.is_empty() {
                    return Ok(None);
                }
                continue;
            };
            self.handle(event, request)?;
        }
    }

    /// Takes in one event of a request and goes on listening to it.
    fn handle(&mut self, event: Option<Result<ScanEvent>>, mut request: Request) -> Result<()> {
        match event {
            Some(Ok(ScanEvent::Batch { segment_index, batch, rows_through, wire_bytes })) => {
                let index = asked(&request, segment_index)?;
                self.count_wire(wire_bytes);
                let batch = self.take_batch(index, batch, rows_through, &request.member)?;
                self.ready.extend(batch);
            }
            Some(Ok(ScanEvent::Merged { batch, wire_bytes })) => {
                self.count_wire(wire_bytes);
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
                    self.segment_done(index, &statistics, &request.member);
                }
                let merged = std::mem::take(&mut request.merged);
                self.merged_bytes = self.merged_bytes.saturating_sub(std::mem::take(&mut request.merged_bytes));
                self.ready.extend(merged.into_iter().filter(|batch| batch.num_rows() > 0));
            }
            Some(Ok(ScanEvent::SegmentDone { segment_index, statistics })) => {
                let index = asked(&request, segment_index)?;
                self.segment_done(index, &statistics, &request.member);
            }
            Some(Ok(ScanEvent::SegmentFailed { segment_index, error })) => {
                let index = asked(&request, segment_index)?;
                self.segment_failed(index, &request.member, error)?;
            }
            Some(Err(error)) => return self.end_request(&request, Some(error)),
            None => return self.end_request(&request, None),
        }
        self.requests.push(request.into_future());
        Ok(())
    }

    fn count_wire(&self, bytes: u64) {
        self.task.metrics.bytes_wire.add(usize::try_from(bytes).unwrap_or(usize::MAX));
    }

    fn segment_done(&mut self, index: usize, statistics: &ScanStatistics, member: &Member) {
        if let Some(progress) = self.segments.get_mut(index) {
            progress.done = true;
        }
        self.task.metrics.add_storage(statistics);
        self.task.metrics.add_replica(member.entry.id);
        self.task.metrics.segments_scanned.add(1);
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

    fn segment_failed(&mut self, index: usize, member: &Member, error: Error) -> Result<()> {
        match error.retry() {
            Retry::Never => Err(error),
            Retry::OtherReplica | Retry::Later => {
                let node = member.entry.id;
                tracing::warn!(%node, error = %error.chain(), "a replica could not be read; asking another one");
                if error.code() == ErrorCode::SegmentNotFound {
                    member.suspect();
                }
                if let Some(progress) = self.segments.get_mut(index) {
                    progress.failures.push((member.entry.id, error));
                    self.waiting.push(index);
                }
                Ok(())
            }
        }
    }

    /// A request ended: normally, with an error, or too early.
    fn end_request(&mut self, request: &Request, error: Option<Error>) -> Result<()> {
        // Of what it has merged and not named the segments, nothing counts.
        self.merged_bytes = self.merged_bytes.saturating_sub(request.merged_bytes);
        let unfinished: Vec<usize> = request
            .segments
            .iter()
            .copied()
            .filter(|index| {
                let failed_here =
                    |progress: &Progress| progress.failures.iter().any(|(node, _)| *node == request.member.entry.id);
                self.segments.get(*index).is_some_and(|progress| !progress.done && !failed_here(progress))
            })
            .collect();
        let error = match error {
            None if unfinished.is_empty() => {
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
        request.member.failed(&error);
        for index in unfinished {
            self.segment_failed(index, &request.member, error.clone())?;
        }
        Ok(())
    }

    /// Gives segments that were not asked for yet the filters that are known by now, and leaves out
    /// those in which no row passes them.
    fn apply_runtime_filters(&mut self) -> Result<()> {
        let fragment = self.task.fragment.now()?;
        if !self.latest.as_ref().is_some_and(|latest| Arc::ptr_eq(&latest.fragment, &fragment)) {
            let kept = match Arc::ptr_eq(&fragment, self.task.fragment.planned()) {
                true => self.task.segments.iter().copied().collect(),
                false => {
                    let statistics = &self.task.table.statistics;
                    prune_segments(statistics, fragment.scan_schema(), fragment.filter()).into_iter().collect()
                }
            };
            let number = self.latest.as_ref().map_or(0, |latest| latest.number + 1);
            self.latest = Some(Latest { number, fragment, kept });
        }
        let Some(latest) = &self.latest else { return Ok(()) };
        let (segments, metrics) = (&mut self.segments, &self.task.metrics);
        self.waiting.retain(|index| {
            let Some(progress) = segments.get_mut(*index).filter(|progress| progress.fragment.is_none()) else {
                return true;
            };
            progress.done = !latest.kept.contains(&progress.segment_index);
            if progress.done {
                metrics.segments_pruned_runtime.add(1);
            } else {
                progress.fragment = Some((latest.number, Arc::clone(&latest.fragment)));
            }
            !progress.done
        });
        Ok(())
    }

    /// Covers waiting segments by requests, as many as may be open.
    async fn send_requests(&mut self) -> Result<()> {
        if !self.waiting.is_empty() && self.requests.len() < REQUESTS_PER_PARTITION_MAX {
            self.apply_runtime_filters()?;
        }
        while !self.waiting.is_empty() && self.requests.len() < REQUESTS_PER_PARTITION_MAX {
            // By node and fragment: a request has one of each.
            let mut batches: BTreeMap<(NodeId, usize), (Arc<Member>, Vec<usize>)> = BTreeMap::new();
            let mut pause = false;
            let mut new_requests = 0;
            while let Some(index) = self.waiting.pop() {
                let Some(progress) = self.segments.get_mut(index) else { continue };
                let replicas = self.cluster.replicas(&progress.segment);
                let untried =
                    |member: &&Arc<Member>| !progress.failures.iter().any(|(node, _)| *node == member.entry.id);
                match replicas.iter().find(untried) {
                    Some(member) => {
                        let fragment = progress.fragment.as_ref().map_or(0, |(number, _)| *number);
                        let (_, segments) = batches
                            .entry((member.entry.id, fragment))
                            .or_insert_with(|| (Arc::clone(member), Vec::new()));
                        if segments.len().is_multiple_of(SEGMENTS_PER_REQUEST_MAX) {
                            if self.requests.len() + new_requests >= REQUESTS_PER_PARTITION_MAX {
                                self.waiting.push(index);
                                break;
                            }
                            new_requests += 1;
                        }
                        segments.push(index);
                    }
                    None => {
                        next_round(progress, &self.task)?;
                        self.cluster.want_look();
                        self.waiting.push(index);
                        pause = true;
                        break;
                    }
                }
            }
            for (member, segments) in batches.into_values() {
                for segments in segments.chunks(SEGMENTS_PER_REQUEST_MAX) {
                    self.send(&member, segments.to_vec());
                }
            }
            if pause {
                self.cluster.environment().clock.sleep(SCAN_ROUND_PAUSE).await;
            }
        }
        Ok(())
    }

    fn send(&mut self, member: &Arc<Member>, segments: Vec<usize>) {
        let clock = self.cluster.environment().clock.as_ref();
        let remaining = self.deadline.remaining(clock).max(Duration::from_millis(1));
        let progress = segments.iter().filter_map(|index| self.segments.get(*index));
        if progress.clone().any(|progress| progress.rounds > 0 || !progress.failures.is_empty()) {
            self.task.metrics.retries.add(1);
        }
        let fragment = progress.clone().find_map(|progress| progress.fragment.as_ref());
        let fragment = fragment.map_or_else(|| self.task.fragment.planned(), |(_, fragment)| fragment);
        let fragment = match self.rows_left {
            None => Arc::clone(fragment),
            limit => Arc::new(fragment.with_limit(limit)),
        };
        let request = ScanRequest {
            header: self.cluster.header(self.task.snapshot.version, remaining),
            segments: progress
                .map(|progress| SegmentScan { segment_id: progress.segment.id, skip_rows: progress.rows_handed_on })
                .collect(),
            fragment,
            batch_rows: self.batch_rows,
        };
        self.task.metrics.requests.add(1);
        let client = Arc::clone(&member.client);
        let events = stream::once(async move { client.scan(request).await }).try_flatten().boxed();
        let _active = member.begin_request();
        let member = Arc::clone(member);
        let request = Request { member, segments, merged: Vec::new(), merged_bytes: 0, events, _active };
        self.requests.push(request.into_future());
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
