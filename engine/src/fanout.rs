//! One partition of a scan: which replica is asked for which segments, and what happens when one
//! does not answer.
//!
//! Hot path: no blocking I/O, no locks held across a wait, no info logs.
//!
//! Every segment counts the output rows that were handed on. When a replica fails, its unfinished
//! segments are asked of others with that count as `skip_rows`: segments are immutable and the order
//! of rows within one is fixed, so no row is lost or doubled, at whatever moment the failure comes.
//! Nothing is spawned: dropping the stream drops the requests, which stops the nodes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use aubade_catalog::SegmentEntry;
use aubade_environment::Deadline;
use aubade_planner::ScanTask;
use aubade_proto::{Error, ErrorCode, NodeId, Result, Retry, ScanEvent, ScanRequest, SegmentScan};
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
    let schema = Arc::clone(task.fragment.output_schema());
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
    events: ScanStream,
    _active: ActiveRequest,
}

impl Stream for Request {
    type Item = Result<ScanEvent>;

    fn poll_next(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.poll_next_unpin(cx)
    }
}

struct FanOut {
    cluster: Arc<Cluster>,
    task: ScanTask,
    segments: Vec<Progress>,
    /// Segments that no request covers now.
    waiting: Vec<usize>,
    requests: FuturesUnordered<StreamFuture<Request>>,
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
            Ok(Progress { segment, rows_handed_on: 0, done: false, failures: Vec::new(), rounds: 0 })
        });
        let segments = progress.collect::<Result<Vec<_>>>()?;
        // Taken from the back: reversed, so that segments go out in their order.
        let waiting = (0..segments.len()).rev().collect();
        let rows_left = task.fragment.limit();
        let requests = FuturesUnordered::new();
        Ok(Self { cluster, task, segments, waiting, requests, rows_left, deadline, reservation, batch_rows })
    }

    /// The next batch; `None` at the end.
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
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
            if let Some(batch) = self.handle(event, request)? {
                return Ok(Some(batch));
            }
        }
    }

    /// Takes in one event of a request and goes on listening to it.
    fn handle(&mut self, event: Option<Result<ScanEvent>>, request: Request) -> Result<Option<RecordBatch>> {
        let index_in_request = match &event {
            Some(Ok(
                ScanEvent::Batch { segment_index, .. }
                | ScanEvent::SegmentDone { segment_index, .. }
                | ScanEvent::SegmentFailed { segment_index, .. },
            )) => Some(*segment_index),
            Some(Err(_)) | None => None,
        };
        let Some(index_in_request) = index_in_request else {
            self.end_request(&request, event.and_then(Result::err))?;
            return Ok(None);
        };
        let Some(index) = request.segments.get(index_in_request).copied() else {
            return Err(Error::internal(format!(
                "{} answered for a segment that it was not asked for",
                name(&request.member)
            )));
        };
        let mut handed_on = None;
        match event {
            Some(Ok(ScanEvent::Batch { batch, rows_through, wire_bytes, .. })) => {
                handed_on = self.take_batch(index, batch, rows_through, wire_bytes, &request.member)?;
            }
            Some(Ok(ScanEvent::SegmentDone { statistics, .. })) => {
                if let Some(progress) = self.segments.get_mut(index) {
                    progress.done = true;
                }
                self.task.metrics.add_storage(&statistics);
                self.task.metrics.add_replica(request.member.entry.id);
                self.task.metrics.segments_scanned.add(1);
            }
            Some(Ok(ScanEvent::SegmentFailed { error, .. })) => self.segment_failed(index, &request.member, error)?,
            Some(Err(_)) | None => {}
        }
        self.requests.push(request.into_future());
        Ok(handed_on)
    }

    fn take_batch(
        &mut self,
        index: usize,
        mut batch: RecordBatch,
        rows_through: u64,
        wire_bytes: u64,
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
        self.task.metrics.bytes_wire.add(usize::try_from(wire_bytes).unwrap_or(usize::MAX));
        if let Some(left) = &mut self.rows_left {
            let kept = rows.min(*left);
            *left -= kept;
            batch = batch.slice(0, usize::try_from(kept).unwrap_or(usize::MAX));
        }
        // What is in flight: the batch at hand, and about as much for every open request.
        let in_flight = get_record_batch_memory_size(&batch).saturating_mul(self.requests.len() + 1);
        self.reservation.try_resize(in_flight).map_err(Error::from_datafusion)?;
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

    /// Covers waiting segments by requests, as many as may be open.
    async fn send_requests(&mut self) -> Result<()> {
        while !self.waiting.is_empty() && self.requests.len() < REQUESTS_PER_PARTITION_MAX {
            let mut batches: BTreeMap<NodeId, (Arc<Member>, Vec<usize>)> = BTreeMap::new();
            let mut pause = false;
            let mut new_requests = 0;
            while let Some(index) = self.waiting.pop() {
                let Some(progress) = self.segments.get_mut(index) else { continue };
                let replicas = self.cluster.replicas(&progress.segment);
                let untried =
                    |member: &&Arc<Member>| !progress.failures.iter().any(|(node, _)| *node == member.entry.id);
                match replicas.iter().find(untried) {
                    Some(member) => {
                        let (_, segments) =
                            batches.entry(member.entry.id).or_insert_with(|| (Arc::clone(member), Vec::new()));
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
        let request = ScanRequest {
            header: self.cluster.header(self.task.snapshot.version, remaining),
            segments: progress
                .map(|progress| SegmentScan { segment_id: progress.segment.id, skip_rows: progress.rows_handed_on })
                .collect(),
            fragment: Arc::new(self.task.fragment.with_limit(self.rows_left)),
            batch_rows: self.batch_rows,
        };
        self.task.metrics.requests.add(1);
        let client = Arc::clone(&member.client);
        let events = stream::once(async move { client.scan(request).await }).try_flatten().boxed();
        let request = Request { member: Arc::clone(member), segments, events, _active: member.begin_request() };
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

fn name(member: &Member) -> String {
    format!("storage node {} at {}", member.entry.id, member.entry.address)
}
