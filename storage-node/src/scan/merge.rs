//! Merging the reduced rows of several segments of a request, so that one set of rows is sent for
//! all of them.
//!
//! A segment comes in whole or not at all: it has been read to its end, and nothing of it was sent.
//! What has come in goes out together with the list of the segments that it stands for, when it has
//! grown large or the request has no more segments. The work is done on the CPU pool, one piece at
//! a time; the task of the scan waits for it, and so do the segments that come next.

use std::sync::Arc;

use arrow::array::RecordBatch;
use aubade_proto::{Error, Result, ScanEvent, ScanStatistics};
use tokio::sync::mpsc;

use super::operator::{Operator, Polled};
use super::request::ScanContext;
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

    /// Takes in the rows of a segment.
    pub(crate) async fn add(&mut self, reduced: Reduced) -> Result<()> {
        self.segments.push((reduced.segment_index, reduced.statistics));
        if self.segments.len() == 1 {
            self.first = reduced.batches;
        } else {
            let mut batches = std::mem::take(&mut self.first);
            batches.extend(reduced.batches);
            self.fold(batches).await?;
        }
        if self.held_bytes() > self.bytes_max { self.send().await } else { Ok(()) }
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

    async fn fold(&mut self, batches: Vec<RecordBatch>) -> Result<()> {
        if batches.is_empty() {
            return Ok(());
        }
        let (context, operator) = (Arc::clone(&self.context), self.operator.take());
        let work = move || {
            let reductions = context.reductions.as_ref();
            let reductions = reductions.ok_or_else(|| Error::internal("rows are merged that were not reduced"))?;
            let mut operator = match operator {
                Some(operator) => operator,
                None => reductions.merge_operator()?,
            };
            let mut early = Vec::new();
            for batch in batches {
                operator.push(batch)?;
                while let Polled::Batch(batch) = operator.poll()? {
                    early.push(batch);
                }
            }
            if reductions.shares_bound() {
                context.set_shared_bound(operator.bound());
            }
            Ok::<_, Error>((operator, early))
        };
        let (operator, early) = self.context.cpu.run(&self.context.cpu_use, work).await??;
        self.operator = Some(operator);
        for batch in early {
            self.send_event(ScanEvent::Merged { batch, wire_bytes: 0 }).await;
        }
        Ok(())
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
