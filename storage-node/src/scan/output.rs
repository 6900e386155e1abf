//! The output of one segment: small batches joined, projected, and cut by what the caller has
//! already and by the limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{BooleanArray, RecordBatch, RecordBatchOptions};
use arrow::compute::BatchCoalescer;
use aubade_proto::Result;

use super::plan::FragmentPlan;

/// Rows still wanted over all segments of a request.
#[derive(Debug)]
pub(crate) struct RowLimit(Option<AtomicU64>);

impl RowLimit {
    pub(crate) fn new(limit: Option<u64>) -> Self {
        Self(limit.map(AtomicU64::new))
    }

    /// What is still wanted; `None` where there is no limit.
    pub(crate) fn remaining(&self) -> Option<u64> {
        // Ordering: the counter guards no other memory.
        self.0.as_ref().map(|rows| rows.load(Ordering::Relaxed))
    }

    pub(crate) fn is_reached(&self) -> bool {
        self.remaining() == Some(0)
    }

    /// Takes up to `rows` of what is still wanted; returns how many.
    fn take(&self, rows: u64) -> u64 {
        let Some(remaining) = &self.0 else { return rows };
        let mut taken = 0;
        // Ordering: as above.
        let _ = remaining.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            taken = left.min(rows);
            Some(left - taken)
        });
        taken
    }
}

/// Collects rows that passed the filter and hands out batches.
pub(crate) struct Output {
    plan: Arc<FragmentPlan>,
    /// `None` where the projection needs no column: then rows are only counted.
    coalescer: Option<BatchCoalescer>,
    counted_rows: usize,
    batch_rows: usize,
    /// Output rows that the caller still has to get past.
    skip_rows: u64,
    /// Output rows so far, those skipped included.
    rows_through: u64,
}

impl Output {
    pub(crate) fn new(plan: Arc<FragmentPlan>, batch_rows: usize, skip_rows: u64) -> Self {
        let coalescer = (!plan.output_columns.is_empty()).then(|| {
            // Batches of at least half the size go on as they are: a copy would cost more.
            BatchCoalescer::new(Arc::clone(&plan.input_schema), batch_rows)
                .with_biggest_coalesce_batch_size(Some(batch_rows / 2))
        });
        Self { plan, coalescer, counted_rows: 0, batch_rows, skip_rows, rows_through: 0 }
    }

    /// Adds rows; `mask`, without nulls, says which of them passed.
    pub(crate) fn push(&mut self, batch: RecordBatch, mask: Option<&BooleanArray>) -> Result<()> {
        let passed = mask.map_or(batch.num_rows(), BooleanArray::true_count);
        if passed == 0 {
            return Ok(());
        }
        let Some(coalescer) = &mut self.coalescer else {
            self.counted_rows += passed;
            return Ok(());
        };
        match mask {
            Some(mask) if passed < mask.len() => coalescer.push_batch_with_filter(batch, mask)?,
            _ => coalescer.push_batch(batch)?,
        }
        Ok(())
    }

    /// Makes the rows that wait for more available to [`Output::pop`].
    pub(crate) fn flush(&mut self) -> Result<()> {
        if let Some(coalescer) = &mut self.coalescer {
            coalescer.finish_buffered_batch()?;
        }
        Ok(())
    }

    /// The next batch to send and the output rows up to its end. `at_end` also hands out counted
    /// rows that do not fill a batch.
    pub(crate) fn pop(&mut self, limit: &RowLimit, at_end: bool) -> Result<Option<(RecordBatch, u64)>> {
        loop {
            let Some(batch) = self.pop_input(at_end)? else { return Ok(None) };
            let rows = batch.num_rows() as u64;
            let skipped = self.skip_rows.min(rows);
            self.skip_rows -= skipped;
            self.rows_through += skipped;
            let wanted = limit.take(rows - skipped);
            if wanted == 0 {
                if limit.is_reached() {
                    return Ok(None);
                }
                continue;
            }
            // Within `rows`, which came from a usize.
            let slice = batch.slice(to_usize(skipped), to_usize(wanted));
            self.rows_through += wanted;
            return Ok(Some((self.project(&slice)?, self.rows_through)));
        }
    }

    pub(crate) fn rows_through(&self) -> u64 {
        self.rows_through
    }

    fn pop_input(&mut self, at_end: bool) -> Result<Option<RecordBatch>> {
        if let Some(coalescer) = &mut self.coalescer {
            return Ok(coalescer.next_completed_batch());
        }
        if self.counted_rows == 0 || (!at_end && self.counted_rows < self.batch_rows) {
            return Ok(None);
        }
        let rows = self.counted_rows.min(self.batch_rows);
        self.counted_rows -= rows;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(Some(RecordBatch::try_new_with_options(Arc::clone(&self.plan.input_schema), vec![], &options)?))
    }

    fn project(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let rows = batch.num_rows();
        let columns = self.plan.projection.iter().map(|expression| expression.evaluate(batch)?.into_array(rows));
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.plan.output_schema), columns, &options)?)
    }
}

fn to_usize(rows: u64) -> usize {
    usize::try_from(rows).unwrap_or(usize::MAX)
}
