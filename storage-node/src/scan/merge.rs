//! Merging the reduced rows of several segments of a request, so that one set of rows is sent for
//! all of them.
//!
//! A segment comes in whole or not at all: it has been read to its end, and nothing of it was sent.
//! What has come in goes out together with the list of the segments that it stands for, when it has
//! grown large or the request has no more segments. The work is done on the CPU pool, one piece at
//! a time; the task of the scan waits for it, and so do the segments that come next.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow::array::RecordBatch;
use aubade_proto::{Error, Result, ScanEvent, ScanStatistics};
use tokio::sync::mpsc;

use super::operator::{Operator, Polled};
use super::request::ScanContext;
use super::segment::STEP_TIME;
use crate::limits::MERGED_BYTES_MAX;

/// All reduced rows of a segment.
pub(crate) struct Reduced {
    pub(crate) segment_index: usize,
    pub(crate) batches: Vec<RecordBatch>,
    pub(crate) statistics: ScanStatistics,
}

/// See the module's doc.
pub(crate) struct Merger {
    context: Arc<ScanContext>,
    tx: mpsc::Sender<ScanEvent>,
    bytes_max: usize,
    /// What went in so far, and of which nothing was sent.
    segments: Vec<(usize, ScanStatistics)>,
    /// The rows of the first segment: alone they need no merging.
    first: Vec<RecordBatch>,
    operator: Option<Operator>,
}

impl Merger {
    pub(crate) fn new(context: Arc<ScanContext>, tx: mpsc::Sender<ScanEvent>) -> Self {
        Self { context, tx, bytes_max: MERGED_BYTES_MAX, segments: Vec::new(), first: Vec::new(), operator: None }
    }

    /// Takes in the rows of some segments.
    pub(crate) async fn add(&mut self, reduced: Vec<Reduced>) -> Result<()> {
        let mut waiting = VecDeque::from(reduced);
        loop {
            if self.segments.is_empty()
                && let Some(reduced) = waiting.pop_front()
            {
                self.segments.push((reduced.segment_index, reduced.statistics));
                self.first = reduced.batches;
            }
            if !waiting.is_empty() {
                waiting = self.fold(waiting).await?;
            }
            if self.held_bytes() > self.bytes_max {
                self.send().await?;
            }
            if waiting.is_empty() {
                return Ok(());
            }
        }
    }

    /// Sends what is held, and starts again.
    pub(crate) async fn send(&mut self) -> Result<()> {
        for batch in std::mem::take(&mut self.first) {
            self.send_event(ScanEvent::Merged { batch, wire_bytes: 0 }).await;
        }
        if let Some(operator) = self.operator.take() {
            operator.close();
            self.drain(operator).await?;
        }
        let segments = std::mem::take(&mut self.segments);
        if !segments.is_empty() {
            self.send_event(ScanEvent::MergedDone { segments }).await;
        }
        Ok(())
    }

    fn held_bytes(&self) -> usize {
        let first: usize = self.first.iter().map(RecordBatch::get_array_memory_size).sum();
        first.saturating_add(self.operator.as_ref().map_or(0, Operator::memory_bytes))
    }

    /// Merges the rows of segments for about the time of a step, or until they have become many: for small segments changing
    /// threads would cost more than merging does. Gives back the segments that are left.
    async fn fold(&mut self, mut waiting: VecDeque<Reduced>) -> Result<VecDeque<Reduced>> {
        let (context, bytes_max) = (Arc::clone(&self.context), self.bytes_max);
        let (mut operator, mut first) = (self.operator.take(), std::mem::take(&mut self.first));
        let work = move || {
            let reductions = context.reductions.as_ref();
            let reductions = reductions.ok_or_else(|| Error::internal("rows are merged that were not reduced"))?;
            let (mut early, mut segments) = (Vec::new(), Vec::new());
            let started = context.clock.now();
            while operator.as_ref().map_or(0, Operator::memory_bytes) <= bytes_max
                && (segments.is_empty() || context.clock.now().saturating_sub(started) < STEP_TIME)
                && let Some(reduced) = waiting.pop_front()
            {
                segments.push((reduced.segment_index, reduced.statistics));
                for batch in first.drain(..).chain(reduced.batches) {
                    let merging = match &mut operator {
                        Some(operator) => operator,
                        None => operator.insert(reductions.merge_operator()?),
                    };
                    merging.push(batch)?;
                    while let Polled::Batch(batch) = merging.poll()? {
                        early.push(batch);
                    }
                }
                if let Some(merging) = operator.as_ref().filter(|_| reductions.shares_bound()) {
                    context.set_shared_bound(merging.bound());
                }
            }
            Ok::<_, Error>((operator, segments, early, waiting))
        };
        let (operator, segments, early, waiting) = self.context.cpu.run(&self.context.cpu_use, work).await??;
        self.operator = operator;
        self.segments.extend(segments);
        for batch in early {
            self.send_event(ScanEvent::Merged { batch, wire_bytes: 0 }).await;
        }
        Ok(waiting)
    }

    async fn drain(&mut self, mut operator: Operator) -> Result<()> {
        loop {
            let work = move || {
                let polled = operator.poll();
                (operator, polled)
            };
            let polled;
            (operator, polled) = self.context.cpu.run(&self.context.cpu_use, work).await?;
            match polled? {
                Polled::Batch(batch) => self.send_event(ScanEvent::Merged { batch, wire_bytes: 0 }).await,
                Polled::Hungry | Polled::Ended => return Ok(()),
            }
        }
    }

    // By `&mut`: what an operator holds may change threads, but not be shared between them.
    async fn send_event(&mut self, event: ScanEvent) {
        // A closed queue is noticed by whoever runs the scan.
        let _ = self.tx.send(event).await;
    }
}
