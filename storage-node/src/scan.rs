//! Scans: many segments at a time on the CPU pool, one bounded stream of events out.
//!
//! ```text
//! segment 0: step on the CPU pool -> event -+
//! segment 1: step on the CPU pool -> event -+-> task of the scan -> queue -> reader
//! ...        (a bounded number at a time)  -+
//! ```
//! A fragment may reduce its rows to those of a partial aggregate or to the first of an order. A
//! segment of which little is left then sends nothing itself: its rows are merged with those of
//! other segments of the request, and one event tells of which.
//!
//! A step ends after one batch, and the next one starts only when its event was taken: a slow
//! reader holds some memory, never a thread. The task ends, and with it the work, when the reader
//! is dropped, the deadline passes, or the node stops.

mod bound;
mod columns;
mod files;
mod footer;
mod group;
mod merge;
mod operator;
mod output;
mod plan;
mod prune;
mod reader;
mod reduce;
mod request;
mod results;
mod segment;
mod stages;
mod step;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::sync::Arc;

use aubade_environment::{Clock, Deadline, TaskGroup};
use aubade_proto::{Error, ErrorCode, Result, ScanEvent, ScanStatistics, SegmentScan};
pub(crate) use footer::{Footer, FooterCache};
use futures::stream::{self, BoxStream, StreamExt};
use merge::{Merger, Reduced};
use parking_lot::Mutex;
pub(crate) use plan::FragmentPlan;
pub(crate) use reader::SegmentReader;
pub(crate) use request::{OpenSegment, ScanContext, ScanResources, SegmentSource};
pub use results::FragmentKey;
use results::FragmentResults;
pub(crate) use results::ResultCache;
use segment::SegmentScanner;
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
    let scans = stream::iter(segments.into_iter().enumerate())
        .map(move |(index, scan)| SegmentDriver::new(Arc::clone(&context), index, scan).events());
    let mut events = scans.flatten_unordered(at_a_time.max(1));
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
    Reduced(Reduced),
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

/// Runs the steps of one segment.
struct SegmentDriver {
    context: Arc<ScanContext>,
    segment_index: usize,
    scan: SegmentScan,
    scanner: SegmentScanner,
    memory: Option<OwnedSemaphorePermit>,
}

impl SegmentDriver {
    fn new(context: Arc<ScanContext>, segment_index: usize, scan: SegmentScan) -> Self {
        let scanner = SegmentScanner::new(Arc::clone(&context), scan);
        Self { context, segment_index, scan, scanner, memory: None }
    }

    fn events(self) -> BoxStream<'static, Result<Driven>> {
        if let Some(kept) = self.kept() {
            return stream::once(std::future::ready(Ok(Driven::Reduced(kept)))).boxed();
        }
        stream::unfold(Some(self), |driver| async move {
            match driver {
                Some(driver) => Some(driver.next().await),
                None => None,
            }
        })
        .boxed()
    }

    /// The results of the fragment, unless the caller has rows of it already.
    fn results(&self) -> Option<&FragmentResults> {
        self.context.results.as_ref().filter(|_| self.scan.skip_rows == 0)
    }

    /// What the fragment made of the segment at an earlier time.
    fn kept(&self) -> Option<Reduced> {
        let batches = self.results()?.get(self.scan.segment_id)?;
        let rows_out = batches.iter().map(|batch| batch.num_rows() as u64).sum();
        let statistics = ScanStatistics { rows_out, kept_results: 1, ..ScanStatistics::default() };
        Some(Reduced { segment_index: self.segment_index, batches, statistics })
    }

    /// What comes next, and the driver if there is more to come.
    async fn next(mut self) -> (Result<Driven>, Option<Self>) {
        let segment_index = self.segment_index;
        loop {
            let mut scanner = self.scanner;
            let step = self.context.cpu.run(&self.context.cpu_use, move || {
                let step = scanner.step();
                (scanner, step)
            });
            let step = match step.await {
                Ok((scanner, step)) => {
                    self.scanner = scanner;
                    step
                }
                Err(error) => return (Err(error), None),
            };
            let (event, more) = match step {
                Ok(Step::Continue) => continue,
                Ok(Step::Opened { memory_bytes }) => {
                    // A segment that is opened again gives back what it had first.
                    self.memory = None;
                    self.memory = self.context.reserve(memory_bytes).await;
                    continue;
                }
                Ok(Step::Reduced { batches, statistics }) => {
                    if let Some(results) = self.results() {
                        results.add(self.scan.segment_id, &batches);
                    }
                    return (Ok(Driven::Reduced(Reduced { segment_index, batches, statistics })), None);
                }
                Ok(Step::Batch { batch, rows_through }) => {
                    (ScanEvent::Batch { segment_index, batch, rows_through, wire_bytes: 0 }, true)
                }
                Ok(Step::Done(statistics)) => (ScanEvent::SegmentDone { segment_index, statistics }, false),
                Err(StepError::Segment(error)) => (ScanEvent::SegmentFailed { segment_index, error }, false),
                Err(StepError::Fragment(error)) => return (Err(error), None),
            };
            return (Ok(Driven::Event(event)), more.then_some(self));
        }
    }
}
