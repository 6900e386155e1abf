//! Scans: many segments at a time on the CPU pool, one bounded stream of events out.
//!
//! ```text
//! worker 0: segments, step by step on the CPU pool -> events -+
//! worker 1: segments, step by step on the CPU pool -> events -+-> task of the scan -> queue -> reader
//! ...       (a bounded number)                               -+
//! ```
//! A fragment may reduce its rows to those of a partial aggregate or to the first of an order. A
//! segment of which little is left then sends nothing itself: its rows are merged with those of
//! other segments of the request, and one event tells of which.
//!
//! A step ends after one batch or a millisecond, and the next one starts only when its events were taken: a slow
//! reader holds some memory, never a thread. The task ends, and with it the work, when the reader
//! is dropped, the deadline passes, or the node stops.

mod among;
mod bound;
mod columns;
mod decimal;
mod faster;
mod files;
mod footer;
mod group;
mod grouping;
mod like;
mod merge;
mod operator;
mod output;
mod packed;
mod plan;
mod prune;
mod range;
mod reader;
mod reduce;
mod replaced;
mod request;
mod results;
mod segment;
mod selection;
mod sorted;
mod stages;
mod step;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;

use aubade_environment::{Clock, Deadline, TaskGroup};
use aubade_proto::{Error, ErrorCode, Result, ScanEvent, ScanStatistics, SegmentScan};
pub(crate) use footer::{Footer, FooterCache};
use futures::stream::{self, BoxStream, StreamExt};
use merge::{Merger, Reduced};
pub(crate) use packed::{batch_of, unpacked};
use parking_lot::Mutex;
pub(crate) use reader::SegmentReader;
pub(crate) use request::{OpenSegment, ScanContext, ScanResources, SegmentSource};
pub use results::FragmentKey;
use results::FragmentResults;
pub(crate) use results::ResultCache;
use segment::{STEP_TIME, SegmentScanner};
pub(crate) use selection::{SelectedRows, mask_of};
pub(crate) use stages::columns_of;
use step::{Step, StepError};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;

use crate::limits::SCAN_QUEUE_EVENTS;

/// How the task of a scan ended; `None` until it has.
type End = Arc<Mutex<Option<Result<()>>>>;

/// What bounds a scan in time.
pub(crate) struct ScanBounds {
    pub(crate) deadline: Deadline,
    /// Cancelled when the node ends running scans.
    pub(crate) stopping: CancellationToken,
    /// Segments worked on at a time.
    pub(crate) segments_at_a_time: usize,
}

/// Starts a scan. `guard` is dropped when its work has ended.
pub(crate) fn start(
    context: Arc<ScanContext>,
    segments: Vec<SegmentScan>,
    bounds: ScanBounds,
    tasks: &TaskGroup,
    guard: impl Send + 'static,
) -> BoxStream<'static, Result<ScanEvent>> {
    let (tx, rx) = mpsc::channel(SCAN_QUEUE_EVENTS);
    let end: End = Arc::default();
    let clock = Arc::clone(&context.clock);
    let work = run(context, segments, bounds.segments_at_a_time, tx.clone());
    let task_end = Arc::clone(&end);
    tasks.spawn_graceful(async move {
        let result = bounded(work, &bounds, clock.as_ref(), &tx).await;
        *task_end.lock() = Some(result);
        // The end is known before the queue closes and before the guard is gone.
        drop((tx, guard));
    });
    events(rx, end)
}

/// Runs `work` until it ends or something ends it.
async fn bounded(
    work: impl Future<Output = Result<()>>,
    bounds: &ScanBounds,
    clock: &dyn Clock,
    tx: &mpsc::Sender<ScanEvent>,
) -> Result<()> {
    let time_left = bounds.deadline.remaining(clock);
    tokio::select! {
        biased;
        () = tx.closed() => Err(Error::new(ErrorCode::Cancelled, "the reader of the scan is gone")),
        () = bounds.stopping.cancelled() => {
            Err(Error::new(ErrorCode::ShuttingDown, "the storage node stopped before the scan was complete"))
        }
        () = clock.sleep(time_left) => {
            let text = "the deadline passed before the scan was complete";
            Err(Error::new(ErrorCode::DeadlineExceeded, text).hint("allow more time, or ask for less"))
        }
        result = work => result,
    }
}

async fn run(
    context: Arc<ScanContext>,
    segments: Vec<SegmentScan>,
    at_a_time: usize,
    tx: mpsc::Sender<ScanEvent>,
) -> Result<()> {
    let mut merger = Merger::new(Arc::clone(&context), tx.clone());
    let waiting: Waiting = Arc::new(Mutex::new(segments.into_iter().enumerate().collect()));
    let workers = (0..at_a_time.min(waiting.lock().len()))
        .map(|_| Worker::new(Arc::clone(&context), Arc::clone(&waiting)).events());
    let mut events = stream::select_all(workers);
    while let Some(event) = events.next().await {
        match event? {
            Driven::Reduced(reduced) => merger.add(reduced).await?,
            Driven::Event(event) => {
                // A closed queue is noticed by `bounded`.
                let _ = tx.send(event).await;
            }
        }
    }
    merger.send().await
}

/// What comes of the steps of a segment.
enum Driven {
    Event(ScanEvent),
    /// Of segments that came one directly after the other.
    Reduced(Vec<Reduced>),
}

/// The reader's side: the queue, then how it ended. A scan never looks complete when it is not.
fn events(rx: mpsc::Receiver<ScanEvent>, end: End) -> BoxStream<'static, Result<ScanEvent>> {
    let state = Some((rx, end));
    stream::unfold(state, |state| async move {
        let (mut rx, end) = state?;
        if let Some(event) = rx.recv().await {
            return Some((Ok(event), Some((rx, end))));
        }
        let end = end.lock().take();
        match end {
            Some(Ok(())) => None,
            Some(Err(error)) => Some((Err(error), None)),
            None => Some((Err(Error::new(ErrorCode::ShuttingDown, "the scan was dropped by the storage node")), None)),
        }
    })
    .boxed()
}

/// Segments that nobody works on yet, with their places in the request.
type Waiting = Arc<Mutex<VecDeque<(usize, SegmentScan)>>>;

/// Runs the steps of one segment after the other. Many small segments are one piece of work for the CPU pool: changing
/// threads would cost more than they do.
struct Worker {
    context: Arc<ScanContext>,
    waiting: Waiting,
    current: Option<Current>,
    /// What has come of the last piece of work and was not taken yet.
    ready: VecDeque<Driven>,
    /// Bytes that the current segment waits for.
    wanted_bytes: Option<u64>,
}

/// The segment that a worker is at.
struct Current {
    segment_index: usize,
    scan: SegmentScan,
    scanner: SegmentScanner,
    memory: Option<OwnedSemaphorePermit>,
}

impl Worker {
    fn new(context: Arc<ScanContext>, waiting: Waiting) -> Self {
        Self { context, waiting, current: None, ready: VecDeque::new(), wanted_bytes: None }
    }

    fn events(self) -> BoxStream<'static, Result<Driven>> {
        stream::unfold(Some(self), |worker| async move { worker?.next().await }).boxed()
    }

    /// What comes next, and the worker if there may be more to come.
    async fn next(mut self) -> Option<(Result<Driven>, Option<Self>)> {
        loop {
            if let Some(driven) = self.ready.pop_front() {
                return Some((Ok(driven), Some(self)));
            }
            if let Some(bytes) = self.wanted_bytes.take()
                && let Some(current) = &mut self.current
            {
                // A segment that is opened again gives back what it had first.
                current.memory = None;
                current.memory = self.context.reserve(bytes).await;
            }
            if self.current.is_none() {
                self.current = self.begin();
                if self.current.is_none() && self.ready.is_empty() {
                    return None;
                }
                if !self.ready.is_empty() {
                    continue;
                }
            }
            let (cpu, cpu_use) = (Arc::clone(&self.context.cpu), Arc::clone(&self.context.cpu_use));
            let work = cpu.run(&cpu_use, move || {
                let done = self.work();
                (self, done)
            });
            let done;
            (self, done) = match work.await {
                Ok(worked) => worked,
                Err(error) => return Some((Err(error), None)),
            };
            if let Err(error) = done {
                return Some((Err(error), None));
            }
        }
    }

    /// Works for about the time of a step, until there is something to send, or memory to be waited for.
    fn work(&mut self) -> Result<()> {
        let started = self.context.clock.now();
        loop {
            let Some(mut current) = self.current.take().or_else(|| self.begin()) else { return Ok(()) };
            let segment_index = current.segment_index;
            match current.scanner.step() {
                Ok(Step::Continue) => {
                    self.current = Some(current);
                    return Ok(());
                }
                Ok(Step::Opened { memory_bytes }) => {
                    self.current = Some(current);
                    self.wanted_bytes = Some(memory_bytes);
                    return Ok(());
                }
                Ok(Step::Batch { batch, rows_through }) => {
                    self.current = Some(current);
                    let batch = ScanEvent::Batch { segment_index, batch, rows_through, wire_bytes: 0 };
                    self.ready.push_back(Driven::Event(batch));
                    // The last rows that are wanted go out together with what they cost: nobody reads on after them.
                    if self.context.limit.is_reached() {
                        continue;
                    }
                    return Ok(());
                }
                Ok(Step::Reduced { batches, statistics, alone }) => {
                    if let Some(results) = self.results(current.scan).filter(|_| alone) {
                        results.add(current.scan.segment_id, &batches);
                    }
                    self.reduced(Reduced { segment_index, batches, statistics });
                }
                Ok(Step::Done(statistics)) => {
                    self.ready.push_back(Driven::Event(ScanEvent::SegmentDone { segment_index, statistics }));
                }
                Err(StepError::Segment(error)) => {
                    self.ready.push_back(Driven::Event(ScanEvent::SegmentFailed { segment_index, error }));
                }
                Err(StepError::Fragment(error)) => return Err(error),
            }
            // The next segment of an order is to know which rows this one rules out, once it is merged.
            let is_enough = self.context.shares_bound() || self.context.limit.is_reached();
            if is_enough || self.context.clock.now().saturating_sub(started) >= STEP_TIME {
                return Ok(());
            }
        }
    }

    /// The next segment that has to be read; what is kept of those before it is ready.
    fn begin(&mut self) -> Option<Current> {
        loop {
            let (segment_index, scan) = self.waiting.lock().pop_front()?;
            match self.kept(segment_index, scan) {
                Some(kept) => self.reduced(kept),
                None => {
                    let scanner = SegmentScanner::new(Arc::clone(&self.context), scan);
                    return Some(Current { segment_index, scan, scanner, memory: None });
                }
            }
        }
    }

    fn reduced(&mut self, reduced: Reduced) {
        match self.ready.back_mut() {
            Some(Driven::Reduced(before)) => before.push(reduced),
            _ => self.ready.push_back(Driven::Reduced(vec![reduced])),
        }
    }

    /// The results of the fragment, unless the caller has rows of the segment already.
    fn results(&self, scan: SegmentScan) -> Option<&FragmentResults> {
        self.context.results.as_ref().filter(|_| scan.skip_rows == 0)
    }

    /// What the fragment made of the segment at an earlier time.
    fn kept(&self, segment_index: usize, scan: SegmentScan) -> Option<Reduced> {
        let batches = self.results(scan)?.get(scan.segment_id)?;
        let rows_out = batches.iter().map(|batch| batch.num_rows() as u64).sum();
        let statistics = ScanStatistics { rows_out, kept_results: 1, ..ScanStatistics::default() };
        Some(Reduced { segment_index, batches, statistics })
    }
}
