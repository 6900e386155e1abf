//! What replicas answer: rows that are handed on, segments that are complete, and what is to be asked of others since a
//! replica failed.

use arrow::record_batch::RecordBatch;
use aubade_proto::{Error, ErrorCode, Result, Retry, ScanEvent, ScanStatistics};
use datafusion::common::utils::memory::get_record_batch_memory_size;

use super::FanOut;
use super::progress::Progress;
use super::requests::Request;
use crate::cluster::Member;
use crate::limits::WIRE_BYTES_PER_MICRO;

impl FanOut {
    /// Takes in one event of a request and goes on listening to it.
    pub(super) fn handle(&mut self, event: Option<Result<ScanEvent>>, mut request: Request) -> Result<()> {
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

    /// A segment is complete; `merged`: nothing was sent for it alone.
    pub(super) fn segment_done(&mut self, index: usize, statistics: &ScanStatistics, member: &Member, merged: bool) {
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

    /// Counts what is held: merged rows, the batch at hand of so many bytes, and about as much for every
    /// open request.
    fn reserve(&mut self, batch_bytes: usize) -> Result<()> {
        let in_flight = batch_bytes.saturating_mul(self.requests.len() + 1);
        self.reservation.try_resize(in_flight.saturating_add(self.merged_bytes)).map_err(Error::from_datafusion)
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
}

/// The segment that an event of a request is about.
pub(super) fn asked(request: &Request, index: usize) -> Result<usize> {
    request.segments.get(index).copied().ok_or_else(|| {
        Error::internal(format!("{} answered for a segment that it was not asked for", name(&request.member)))
    })
}

fn name(member: &Member) -> String {
    format!("storage node {} at {}", member.entry.id, member.entry.address)
}
