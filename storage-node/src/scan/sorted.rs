//! The rows of a segment in the order that an aggregate takes them in: in runs, each of as many rows as may be held.
//!
//! Where a run ends depends on the values of the rows alone. What their arrays take in memory differs from one place to
//! another, and a retry has to get the same runs.

use std::collections::VecDeque;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::DataType;
use aubade_proto::Result;
use datafusion::physical_expr::LexOrdering;
use datafusion::physical_plan::sorts::sort::sort_batch;

use super::reduce::compact;

/// What comes next of sorted rows.
pub(super) enum Next {
    /// Rows of a run.
    Rows(RecordBatch),
    /// The run has ended: the rows after it are in an order of their own.
    End,
    /// More rows have to be added first.
    Hungry,
}

/// See the module's doc.
pub(super) struct SortedRuns {
    order: LexOrdering,
    bytes_max: usize,
    /// Of the batches that come out.
    batch_rows: usize,
    waiting: Vec<RecordBatch>,
    waiting_bytes: usize,
    run: VecDeque<RecordBatch>,
    in_run: bool,
}

impl SortedRuns {
    pub(super) fn new(order: LexOrdering, bytes_max: usize, batch_rows: usize) -> Self {
        let (waiting, run) = (Vec::new(), VecDeque::new());
        Self { order, bytes_max, batch_rows: batch_rows.max(1), waiting, waiting_bytes: 0, run, in_run: false }
    }

    /// Adds rows; only when [`SortedRuns::next`] is hungry. True if they have become a run before the last one.
    pub(super) fn push(&mut self, batch: RecordBatch) -> Result<bool> {
        if batch.num_rows() == 0 {
            return Ok(false);
        }
        self.waiting_bytes = self.waiting_bytes.saturating_add(bytes_of(&batch));
        // Pages that texts were read from are held as long as these are.
        self.waiting.push(compact(batch)?.0);
        let is_full = self.waiting_bytes > self.bytes_max;
        if is_full {
            self.sort()?;
        }
        Ok(is_full)
    }

    /// Makes a run of the rows that there are.
    pub(super) fn sort(&mut self) -> Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        self.waiting_bytes = 0;
        let Some(first) = waiting.first() else { return Ok(()) };
        let rows = match waiting.as_slice() {
            [rows] => rows.clone(),
            _ => concat_batches(&first.schema(), &waiting)?,
        };
        drop(waiting);
        let sorted = sort_batch(&rows, &self.order, None)?;
        let batch_rows = self.batch_rows;
        let parts = (0..sorted.num_rows()).step_by(batch_rows);
        self.run = parts.map(|first| sorted.slice(first, batch_rows.min(sorted.num_rows() - first))).collect();
        self.in_run = true;
        Ok(())
    }

    /// Whether rows are left, sorted or not.
    pub(super) fn has_rows(&self) -> bool {
        !self.run.is_empty() || !self.waiting.is_empty()
    }

    /// Whether there are rows of a run.
    pub(super) fn is_ready(&self) -> bool {
        !self.run.is_empty()
    }

    /// What comes next.
    pub(super) fn next(&mut self) -> Next {
        match self.run.pop_front() {
            Some(rows) => Next::Rows(rows),
            None if std::mem::take(&mut self.in_run) => Next::End,
            None => Next::Hungry,
        }
    }
}

/// Bytes of the values of a batch, wherever they lie.
fn bytes_of(batch: &RecordBatch) -> usize {
    batch.columns().iter().map(bytes_of_column).fold(0, usize::saturating_add)
}

fn bytes_of_column(column: &ArrayRef) -> usize {
    let views = |bytes: usize| bytes.saturating_add(column.len().saturating_mul(16));
    match column.data_type() {
        DataType::Utf8View => views(column.as_string_view().total_buffer_bytes_used()),
        DataType::BinaryView => views(column.as_binary_view().total_buffer_bytes_used()),
        data_type => match data_type.primitive_width() {
            Some(width) => column.len().saturating_mul(width),
            None => column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_buffer_memory_size()),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, StringViewArray};
    use arrow::compute::SortOptions;
    use arrow::datatypes::Int64Type;
    use datafusion::physical_expr::PhysicalSortExpr;
    use datafusion::physical_expr::expressions::col;

    use super::*;

    fn rows(numbers: Vec<i64>) -> RecordBatch {
        let texts =
            StringViewArray::from_iter_values(numbers.iter().map(|number| format!("the text of number {number}")));
        let columns = [("n", Arc::new(Int64Array::from(numbers)) as ArrayRef), ("text", Arc::new(texts))];
        RecordBatch::try_from_iter(columns).unwrap()
    }

    fn runs(bytes_max: usize) -> SortedRuns {
        let order = PhysicalSortExpr::new(col("n", &rows(Vec::new()).schema()).unwrap(), SortOptions::default());
        SortedRuns::new(LexOrdering::new([order]).unwrap(), bytes_max, 2)
    }

    /// The numbers of the runs that there are.
    fn taken(runs: &mut SortedRuns) -> Vec<Vec<i64>> {
        let mut taken = vec![Vec::new()];
        loop {
            match runs.next() {
                Next::Rows(batch) => {
                    assert!(batch.num_rows() <= 2);
                    let numbers = batch.column(0).as_primitive::<Int64Type>().values().to_vec();
                    let texts = rows(numbers.clone());
                    assert_eq!(batch.column(1), texts.column(1));
                    taken.last_mut().unwrap().extend(numbers);
                }
                Next::End => taken.push(Vec::new()),
                Next::Hungry => return taken.into_iter().filter(|run| !run.is_empty()).collect(),
            }
        }
    }

    #[test]
    fn rows_come_in_runs_of_so_many_bytes() {
        let each = bytes_of(&rows(vec![10]));
        let mut runs = runs(3 * each);
        assert!(!runs.push(rows(vec![12, 11])).unwrap());
        assert!(taken(&mut runs).is_empty() && runs.has_rows());
        assert!(runs.push(rows(vec![14, 10, 13])).unwrap());
        assert!(runs.is_ready());
        assert_eq!(taken(&mut runs), [[10, 11, 12, 13, 14]]);
        assert!(!runs.push(rows(vec![19, 15])).unwrap());
        runs.sort().unwrap();
        assert_eq!(taken(&mut runs), [[15, 19]]);
        runs.sort().unwrap();
        assert!(taken(&mut runs).is_empty() && !runs.has_rows());
    }

    #[test]
    fn the_bytes_of_rows_do_not_depend_on_where_they_lie() {
        let all = rows((100..200).collect());
        let part = all.slice(40, 3);
        assert_eq!(bytes_of(&part), bytes_of(&rows(vec![140, 141, 142])));
        assert_eq!(bytes_of(&part), bytes_of(&compact(part.clone()).unwrap().0));
    }
}
