//! The scan of one segment, a step at a time: each step runs on the CPU pool and ends after a few
//! batches or a row group, so that scans take turns and nothing runs on for a caller that is gone.
//!
//! ```text
//! New --open--> Reading --(row group by row group)--> Finished
//!  ^---------------/ once at most, when a borrowed bound turns out not to be allowed
//! ```

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use aubade_proto::{ErrorCode, ScanStatistics, SegmentScan};
use datafusion::physical_expr::PhysicalExpr;
use tokio::sync::OwnedSemaphorePermit;

use super::bound::Bound;
use super::files::SegmentFiles;
use super::group::{Course, GroupReading};
use super::output::{Output, Progress};
use super::prune::GroupAccess;
use super::reduce::ReducedOutput;
use super::request::ScanContext;
use super::step::{Step, StepError, StepResult, fragment};
use crate::limits::STATE_BYTES;

/// Time after which a step ends, so that others have their turn.
pub(super) const STEP_TIME: Duration = Duration::from_millis(1);
/// Batches that a step decodes before it looks at the time, when none of them yields output.
const STEP_BATCHES_MAX: usize = 16;

/// See the module's doc.
pub(crate) struct SegmentScanner {
    context: Arc<ScanContext>,
    scan: SegmentScan,
    statistics: ScanStatistics,
    output: Output,
    /// What becomes of the output before it is sent, once the segment is open.
    reduced: Option<ReducedOutput>,
    progress: Progress,
    /// Whether the bound that other segments have found may be used.
    borrows_bound: bool,
    /// Whether it was.
    has_borrowed: bool,
    /// Its part of the memory of the scan, where that was there at once.
    memory: Option<OwnedSemaphorePermit>,
    state: State,
}

enum State {
    New,
    Reading(Box<Reading>),
    Finished,
}

struct Reading {
    files: SegmentFiles,
    groups: VecDeque<GroupAccess>,
    current: Option<GroupReading>,
    course: Course,
}

impl SegmentScanner {
    pub(crate) fn new(context: Arc<ScanContext>, scan: SegmentScan) -> Self {
        let output = Output::new(Arc::clone(&context.plan), context.output_batch_rows(scan.skip_rows));
        let progress = Progress::new(scan.skip_rows);
        let borrows_bound = context.shares_bound() && scan.skip_rows == 0;
        let statistics = ScanStatistics::default();
        let (reduced, memory, state) = (None, None, State::New);
        let has_borrowed = false;
        Self { context, scan, statistics, output, reduced, progress, borrows_bound, has_borrowed, memory, state }
    }

    /// Does the next piece of work.
    pub(crate) fn step(&mut self) -> StepResult<Step> {
        let clock = Arc::clone(&self.context.clock);
        let started = clock.now();
        // Small segments would spend more time on changing threads than on their work.
        let mut result = loop {
            match self.advance() {
                Ok(Step::Opened { memory_bytes }) => {
                    // One that is opened again gives back what it had first.
                    self.memory = None;
                    self.memory = self.context.try_reserve(memory_bytes);
                    if self.memory.is_none() {
                        break Ok(Step::Opened { memory_bytes });
                    }
                }
                Ok(Step::Continue) => {}
                other => break other,
            }
            if clock.now().saturating_sub(started) >= STEP_TIME {
                break Ok(Step::Continue);
            }
        };
        let micros = clock.now().saturating_sub(started).as_micros();
        self.statistics.cpu_micros += u64::try_from(micros).unwrap_or(u64::MAX);
        match &mut result {
            Ok(Step::Done(statistics) | Step::Reduced { statistics, .. }) => *statistics = self.statistics,
            Ok(_) => {}
            Err(error) => {
                self.state = State::Finished;
                self.put_aside_if_corrupt(error);
            }
        }
        result
    }

    fn put_aside_if_corrupt(&self, error: &StepError) {
        if let StepError::Segment(error) = error
            && error.code() == ErrorCode::SegmentCorrupt
        {
            self.context.segments.quarantine(self.scan.segment_id, error);
        }
    }

    fn advance(&mut self) -> StepResult<Step> {
        if self.context.limit.is_reached() {
            return Ok(self.finish());
        }
        match self.state {
            State::New => self.open(),
            State::Reading(_) => self.read(),
            State::Finished => Ok(Step::Done(self.statistics)),
        }
    }

    fn open(&mut self) -> StepResult<Step> {
        let files = SegmentFiles::open(&self.context, self.scan)?;
        let (metadata, schema) = (files.metadata.metadata(), &files.columns.reader_schema);
        let groups = files.columns.pruner.prune(&files.reader, metadata, schema, &mut self.statistics);
        let mut memory_bytes = files.memory_bytes(&groups);
        if let Some(reductions) = &self.context.reductions {
            self.reduced = Some(fragment(ReducedOutput::new(reductions, self.scan.skip_rows))?);
            let rows = u64::try_from(files.metadata.metadata().file_metadata().num_rows()).unwrap_or(u64::MAX);
            let states = rows.saturating_mul(STATE_BYTES).min(reductions.bytes_max() as u64);
            memory_bytes = memory_bytes.saturating_add(states);
        }
        let course = Course::new(&files.plan);
        self.state = State::Reading(Box::new(Reading { files, groups: groups.into(), current: None, course }));
        Ok(Step::Opened { memory_bytes })
    }

    fn read(&mut self) -> StepResult<Step> {
        for _ in 0..STEP_BATCHES_MAX {
            if let Some(batch) = self.hand_out(false)? {
                return Ok(Step::Batch { batch, rows_through: self.progress.rows_through() });
            }
            if self.context.limit.is_reached() {
                // By another segment, while this one was being read.
                return Ok(self.finish());
            }
            if self.is_spoiled() {
                return Ok(self.start_over());
            }
            let State::Reading(reading) = &mut self.state else { break };
            if let Some(group) = &mut reading.current {
                match group.next(&reading.files, &mut reading.course, &mut self.statistics)? {
                    Some((batch, mask)) => fragment(self.output.push(batch, mask.as_ref()))?,
                    None => {
                        reading.current = None;
                        return Ok(Step::Continue);
                    }
                }
            } else if let Some(access) = reading.groups.pop_front() {
                self.start_group(access)?;
            } else {
                return self.drain();
            }
        }
        Ok(Step::Continue)
    }

    fn start_group(&mut self, access: GroupAccess) -> StepResult<()> {
        let bounds = self.bounds();
        let State::Reading(reading) = &mut self.state else { return Ok(()) };
        let bound = Bound::new(&reading.files, bounds);
        if bound.as_ref().is_some_and(|bound| !bound.admits(&reading.files, access.0)) {
            self.statistics.row_groups_pruned_statistics += 1;
            return Ok(());
        }
        let stage = bound.as_ref().map(|bound| &bound.stage);
        reading.current = reading.files.open_group(access, &mut reading.course, stage, &mut self.statistics)?;
        Ok(())
    }

    /// The next batch to send, as far as it can be made of what was read.
    fn hand_out(&mut self, at_end: bool) -> StepResult<Option<RecordBatch>> {
        let limit = &self.context.limit;
        let Some(reduced) = &mut self.reduced else {
            return fragment(self.output.pop(&mut self.progress, limit, at_end));
        };
        loop {
            if let Some(batch) = fragment(reduced.pop(&mut self.progress, limit))? {
                return Ok(Some(batch));
            }
            if reduced.is_spoiled() {
                return Ok(None);
            }
            match fragment(self.output.pop_for_reduction(at_end, reduced.takes_packed()))? {
                Some(batch) => fragment(reduced.push(batch))?,
                None => return Ok(None),
            }
        }
    }

    /// Hands out what is left once all row groups were read.
    fn drain(&mut self) -> StepResult<Step> {
        fragment(self.output.flush())?;
        let mut batch = self.hand_out(true)?;
        if batch.is_none()
            && let Some(reduced) = &mut self.reduced
        {
            reduced.close();
            batch = self.hand_out(true)?;
        }
        Ok(match batch {
            Some(batch) => Step::Batch { batch, rows_through: self.progress.rows_through() },
            None if self.is_spoiled() => self.start_over(),
            None => self.finish(),
        })
    }

    fn finish(&mut self) -> Step {
        if let State::Reading(reading) = &self.state {
            self.statistics.bytes_read += reading.files.bytes_read();
        }
        self.state = State::Finished;
        self.statistics.rows_out = self.progress.rows_through();
        match self.reduced.as_mut().and_then(ReducedOutput::take_mergeable) {
            Some(batches) => {
                self.statistics.rows_out = batches.iter().map(|batch| batch.num_rows() as u64).sum();
                Step::Reduced { batches, statistics: self.statistics, alone: !self.has_borrowed }
            }
            None => Step::Done(self.statistics),
        }
    }

    /// The bounds that the rows of this segment, and of others, have set.
    fn bounds(&mut self) -> Vec<Arc<dyn PhysicalExpr>> {
        let Some(reduced) = &mut self.reduced else { return Vec::new() };
        let borrowed = if self.borrows_bound { self.context.shared_bound() } else { None };
        // At another node, or the next time, the others would leave out other rows.
        let borrowed = borrowed.filter(|_| reduced.must_merge());
        self.has_borrowed |= borrowed.is_some();
        reduced.bound().into_iter().chain(borrowed).collect()
    }

    fn is_spoiled(&self) -> bool {
        self.reduced.as_ref().is_some_and(ReducedOutput::is_spoiled)
    }

    /// Reads the segment again from its start, without the bound of others.
    fn start_over(&mut self) -> Step {
        let statistics = self.statistics;
        let bytes_read = match &self.state {
            State::Reading(reading) => reading.files.bytes_read(),
            State::New | State::Finished => 0,
        };
        *self = Self { borrows_bound: false, ..Self::new(Arc::clone(&self.context), self.scan) };
        self.statistics.cpu_micros = statistics.cpu_micros;
        self.statistics.bytes_read = statistics.bytes_read + bytes_read;
        Step::Continue
    }
}
