//! The output of one segment: small batches joined, projected, and cut by what the caller has
//! already and by the limit. What a reduction makes of it is in [`super::reduce`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{BooleanArray, RecordBatch, RecordBatchOptions};
use arrow::compute::BatchCoalescer;
use aubade_proto::Result;

use super::packed::{batch_of, plain};
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

/// How far the output of a segment has gone.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Output rows that the caller has already.
    skip_rows: u64,
    /// Output rows so far, those skipped included.
    rows_through: u64,
}

impl Progress {
    pub(crate) fn new(skip_rows: u64) -> Self {
        Self { skip_rows, rows_through: 0 }
    }

    pub(crate) fn rows_through(&self) -> u64 {
        self.rows_through
    }

    /// The rows of `batch` to send: those that the caller does not have, as many as are wanted.
    pub(crate) fn cut(&mut self, batch: &RecordBatch, limit: &RowLimit) -> RecordBatch {
        let rows = batch.num_rows() as u64;
        let skipped = self.skip_rows.min(rows);
        let wanted = limit.take(rows - skipped);
        self.skip_rows -= skipped;
        self.rows_through += skipped + wanted;
        // Within `rows`, which came from a usize.
        batch.slice(to_usize(skipped), to_usize(wanted))
    }
}

/// Collects rows that passed the filter and hands out batches.
pub(crate) struct Output {
    plan: Arc<FragmentPlan>,
    /// Made for the first rows: of a segment, columns are packed in all batches or in none. There is none where the
    /// projection needs no column: then rows are only counted.
    coalescer: Option<BatchCoalescer>,
    counted_rows: usize,
    batch_rows: usize,
}

impl Output {
    pub(crate) fn new(plan: Arc<FragmentPlan>, batch_rows: usize) -> Self {
        Self { plan, coalescer: None, counted_rows: 0, batch_rows }
    }

    /// Adds rows; `mask`, without nulls, says which of them passed.
    pub(crate) fn push(&mut self, batch: RecordBatch, mask: Option<&BooleanArray>) -> Result<()> {
        let passed = mask.map_or(batch.num_rows(), BooleanArray::true_count);
        if passed == 0 {
            return Ok(());
        }
        if self.plan.output_columns.is_empty() {
            self.counted_rows += passed;
            return Ok(());
        }
        let coalescer = self.coalescer.get_or_insert_with(|| {
            // Batches of at least half the size go on as they are: a copy would cost more.
            BatchCoalescer::new(batch.schema(), self.batch_rows)
                .with_biggest_coalesce_batch_size(Some(self.batch_rows / 2))
        });
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

    /// The next batch to send. `at_end` also hands out counted rows that do not fill a batch.
    pub(crate) fn pop(
        &mut self,
        progress: &mut Progress,
        limit: &RowLimit,
        at_end: bool,
    ) -> Result<Option<RecordBatch>> {
        while let Some(batch) = self.pop_input(at_end)? {
            // Cut before the projection: what is not sent need not be computed.
            let batch = progress.cut(&batch, limit);
            if batch.num_rows() > 0 {
                return Ok(Some(self.project(&batch, &[])?));
            }
            if limit.is_reached() {
                break;
            }
        }
        Ok(None)
    }

    /// The next projected batch, for a reduction that takes some columns packed: what the caller has already counts only
    /// after it.
    pub(crate) fn pop_for_reduction(&mut self, at_end: bool, packed: &[bool]) -> Result<Option<RecordBatch>> {
        let batch = self.pop_input(at_end)?;
        batch.map(|batch| self.project(&batch, packed)).transpose()
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

    /// `packed` says which of the projected columns may be packed; none beyond its end.
    fn project(&self, batch: &RecordBatch, packed: &[bool]) -> Result<RecordBatch> {
        let (rows, schema) = (batch.num_rows(), &self.plan.projected_schema);
        let may_be_packed = packed.iter().copied().chain(std::iter::repeat(false));
        let projected = self.plan.projection.iter().zip(schema.fields()).zip(may_be_packed);
        let columns = projected.map(|((expression, field), packed)| {
            let column = expression.evaluate(batch)?.into_array(rows)?;
            if packed { Ok(column) } else { plain(column, field.data_type()) }
        });
        batch_of(schema, columns.collect::<Result<_>>()?, rows)
    }
}

fn to_usize(rows: u64) -> usize {
    usize::try_from(rows).unwrap_or(usize::MAX)
}
