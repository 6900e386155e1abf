//! One partition of a scan: which replica is asked for which segments, and what happens when one
//! does not answer.
//!
//! Hot path: no blocking I/O, no locks held across a wait, no info logs.
//!
//! Every segment counts the output rows that were handed on. When a replica fails, its unfinished
//! segments are asked of others with that count as `skip_rows`: segments are immutable and the order
//! of rows within one is fixed, so no row is lost or doubled, at whatever moment the failure comes.
//! Nothing is spawned: dropping the stream drops the requests, which stops the nodes.

mod answers;
mod asking;
mod fetch;
mod new_requests;
mod progress;
mod requests;

use std::collections::VecDeque;
use std::sync::Arc;

use answers::asked;
use arrow::record_batch::RecordBatch;
use aubade_environment::{Deadline, clock};
use aubade_planner::{ScanTask, buffer_pool_enabled, fragment_cache_enabled, wire_encoding_enabled};
use aubade_proto::{Error, Result, ScanEvent};
use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::prelude::SessionConfig;
use futures::{FutureExt, stream};
use progress::{Asked, Latest, Progress};
use requests::{Request, Requests};

use crate::buffer_pool::{BufferPool, TableOfPool};
use crate::cluster::{Cluster, Member};
use crate::limits::{HEDGE_LOOK_PAUSE, LIMIT_STATISTICS_WAIT, SCAN_TIMEOUT};
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
        // What a node has kept costs less than a scan, as long as the node is there.
        let kept = || progress.failures.is_empty() && asked.key.is_some_and(|key| self.pool.is_kept_at_node(id, key));
        progress.rows_handed_on == 0
            && self.pool.holds(id, &asked.columns)
            && !progress.has_failed_at(BufferPool::NODE)
            && !kept()
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
            Ok(Progress::new(Arc::clone(segment), *index))
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

    /// Of some segments those that are not complete.
    fn unfinished(&self, segments: impl Iterator<Item = usize>) -> Vec<usize> {
        segments.filter(|index| self.segments.get(*index).is_some_and(|progress| !progress.done)).collect()
    }
}
