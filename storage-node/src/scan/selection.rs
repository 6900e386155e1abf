//! Which rows of a row group are left, as bits: what stages of a filter leave is scattered, and runs of it are short.

use std::borrow::Cow;
use std::ops::Range;

use arrow::array::{ArrayRef, BooleanArray, BooleanBufferBuilder, RecordBatch};
use arrow::buffer::{BooleanBuffer, Buffer};
use arrow::compute::{BatchCoalescer, FilterBuilder};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use aubade_proto::Result;
use parquet::arrow::arrow_reader::RowSelection;

/// Mean length, in rows, of the runs of rows that are left and of those that are not, below which it costs less to
/// decode all rows and to take the right ones than to skip. It is what the Parquet reader decides by.
const SHORT_RUN_ROWS: usize = 32;
/// Rows in a row of which none is left from which on they are skipped all the same.
const GAP_ROWS: usize = 1_024;

/// What of a row group is decoded, and what is taken of that.
pub(super) struct Access {
    /// The rows to decode.
    pub(super) decoded: RowSelection,
    /// One bit for each of them, where not all are wanted.
    pub(super) wanted: Option<BooleanBuffer>,
}

impl Access {
    /// The cheapest way to the rows that a selection of a row group of `rows` leaves.
    pub(super) fn to(selection: &RowSelection, rows: usize) -> Self {
        let Some(mask) = selection.as_mask().filter(|mask| mask.len() == rows) else {
            return Self { decoded: selection.clone(), wanted: None };
        };
        let (runs, edges) = runs(mask);
        if rows / (edges + 1) >= SHORT_RUN_ROWS {
            let decoded = mask.set_slices().map(|(start, end)| start..end);
            return Self { decoded: RowSelection::from_consecutive_ranges(decoded, rows), wanted: None };
        }
        let wanted = match runs.as_slice() {
            [run] => mask.slice(run.start, run.len()),
            runs => {
                let mut wanted = BooleanBufferBuilder::new(rows);
                runs.iter().for_each(|run| wanted.append_buffer(&mask.slice(run.start, run.len())));
                wanted.finish()
            }
        };
        Self { decoded: RowSelection::from_consecutive_ranges(runs.into_iter(), rows), wanted: Some(wanted) }
    }
}

/// Where ones are, but for gaps of less than [`GAP_ROWS`], and how often ones and zeros take turns.
fn runs(mask: &BooleanBuffer) -> (Vec<Range<usize>>, usize) {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let (mut edges, mut before) = (0, 0);
    for (first, word) in (0..).step_by(64).zip(mask.bit_chunks().iter_padded()) {
        edges += (word ^ (word << 1 | before)).count_ones() as usize;
        before = word >> 63;
        if word == 0 {
            continue;
        }
        let (start, end) = (first + word.trailing_zeros() as usize, first + 64 - word.leading_zeros() as usize);
        match runs.last_mut() {
            Some(run) if start - run.end < GAP_ROWS => run.end = end,
            _ => runs.push(start..end),
        }
    }
    (runs, edges)
}

/// Those of the rows of `parts` that are wanted, in batches of a size.
pub(crate) struct SelectedRows<I> {
    parts: I,
    /// One bit for each row that is left in `parts`; all where there are none.
    wanted: Option<BooleanBuffer>,
    coalescer: BatchCoalescer,
}

impl<I> SelectedRows<I> {
    pub(crate) fn new(schema: SchemaRef, parts: I, wanted: Option<BooleanBuffer>, batch_rows: usize) -> Self {
        Self { parts, wanted, coalescer: BatchCoalescer::new(schema, batch_rows.max(1)) }
    }

    fn push(&mut self, part: RecordBatch) -> Result<(), ArrowError> {
        let Some(wanted) = &mut self.wanted else { return self.coalescer.push_batch(part) };
        let rows = part.num_rows();
        if wanted.len() < rows {
            return Err(ArrowError::ComputeError("more rows were decoded than were asked for".to_owned()));
        }
        let mask = wanted.slice(0, rows);
        *wanted = wanted.slice(rows, wanted.len() - rows);
        match mask.count_set_bits() {
            0 => Ok(()),
            count if count == rows => self.coalescer.push_batch(part),
            _ => self.coalescer.push_batch_with_filter(part, &BooleanArray::new(mask, None)),
        }
    }
}

impl<I: Iterator<Item = Result<RecordBatch, ArrowError>>> SelectedRows<I> {
    fn next_batch(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        loop {
            if let Some(batch) = self.coalescer.next_completed_batch() {
                return Ok(Some(batch));
            }
            let Some(part) = self.parts.next() else {
                if self.wanted.as_ref().is_some_and(|wanted| !wanted.is_empty()) {
                    return Err(ArrowError::ComputeError("fewer rows were decoded than were asked for".to_owned()));
                }
                self.coalescer.finish_buffered_batch()?;
                return Ok(self.coalescer.next_completed_batch());
            };
            self.push(part?)?;
        }
    }
}

impl<I: Iterator<Item = Result<RecordBatch, ArrowError>>> Iterator for SelectedRows<I> {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_batch().transpose()
    }
}

/// One bit for each of so many rows.
pub(crate) fn mask_of(selection: &RowSelection, rows: usize) -> Cow<'_, BooleanBuffer> {
    if let Some(mask) = selection.as_mask().filter(|mask| mask.len() == rows) {
        return Cow::Borrowed(mask);
    }
    let mut mask = BooleanBufferBuilder::new(rows);
    for selector in selection.iter() {
        mask.append_n(selector.row_count.min(rows.saturating_sub(mask.len())), !selector.skip);
    }
    mask.append_n(rows.saturating_sub(mask.len()), false);
    Cow::Owned(mask.finish())
}

/// The rows of `before` that have `passed`, which has one bit for each row that `before` has.
pub(super) fn narrowed(before: &BooleanBuffer, passed: &BooleanBuffer) -> BooleanBuffer {
    let mut more = passed.bit_chunks().iter_padded();
    // The next bits of `passed`, the lowest first.
    let (mut bits, mut count) = (0_u128, 0);
    let words = before.bit_chunks().iter_padded().map(|word| {
        let wanted = word.count_ones();
        if count < wanted {
            bits |= u128::from(more.next().unwrap_or(0)) << count;
            count += u64::BITS;
        }
        let left = deposit(bits as u64, word);
        bits >>= wanted;
        count -= wanted;
        left
    });
    let words: Vec<u64> = words.collect();
    BooleanBuffer::new(Buffer::from(words), 0, before.len())
}

/// Puts the lowest of `bits` where `word` has ones, in their order: PDEP of x86.
fn deposit(mut bits: u64, word: u64) -> u64 {
    if word == u64::MAX {
        return bits;
    }
    let (mut left, mut ones) = (0, word);
    while ones != 0 {
        let lowest = ones & ones.wrapping_neg();
        left |= lowest & (bits & 1).wrapping_neg();
        bits >>= 1;
        ones ^= lowest;
    }
    left
}

/// The rows of columns that `mask`, without nulls, has.
pub(super) fn filtered(columns: Vec<ArrayRef>, mask: &BooleanArray) -> Result<Vec<ArrayRef>> {
    let mut builder = FilterBuilder::new(mask);
    if columns.len() > 1 {
        builder = builder.optimize();
    }
    let filter = builder.build();
    Ok(columns.iter().map(|column| filter.filter(column)).collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Array, AsArray, Int64Array};
    use arrow::datatypes::Int64Type;
    use parquet::arrow::arrow_reader::RowSelector;

    use super::*;

    /// Bits that follow no pattern.
    fn bits(count: usize, seed: u64, share: u64) -> BooleanBuffer {
        let mut state = seed;
        BooleanBuffer::collect_bool(count, |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % 100 < share
        })
    }

    #[test]
    fn stages_narrow_the_rows_that_are_left() {
        for (count, share) in [(0, 50), (1, 100), (63, 50), (64, 100), (65, 90), (1_000, 3), (8_192, 50), (8_200, 100)]
        {
            for offset in [0, 3] {
                let before = bits(count + offset, 7, share).slice(offset, count);
                for of_passed in [0, 20, 100] {
                    let passed = bits(before.count_set_bits() + offset, 11, of_passed);
                    let passed = passed.slice(offset, before.count_set_bits());
                    let mut expected = vec![false; count];
                    before.set_indices().zip(passed.iter()).for_each(|(row, passed)| expected[row] = passed);
                    assert_eq!(narrowed(&before, &passed), BooleanBuffer::from(expected), "{count} {share} {offset}");
                }
            }
        }
    }

    #[test]
    fn scattered_rows_are_taken_from_what_is_decoded() {
        let rows = 20_000;
        let scattered = |share| bits(rows, 5, share);
        let gap = {
            let mut mask = BooleanBufferBuilder::new(rows);
            mask.append_buffer(&scattered(50).slice(0, 5_001));
            mask.append_n(9_000, false);
            mask.append_buffer(&scattered(90).slice(0, rows - 14_001));
            mask.finish()
        };
        let masks = [(scattered(50), true), (scattered(10), true), (gap, true), (scattered(1), false)];
        let long_runs = BooleanBuffer::collect_bool(rows, |row| row % 1_000 < 300);
        for (mask, is_scattered) in masks.into_iter().chain([(long_runs, false), (bits(rows, 1, 0), false)]) {
            let selection = RowSelection::from_boolean_buffer(mask.clone());
            let Access { decoded, wanted } = Access::to(&selection, rows);
            assert_eq!(wanted.is_some(), is_scattered);
            let decoded = mask_of(&decoded, rows).into_owned();
            let read: Vec<usize> = decoded.set_indices().collect();
            let taken: Vec<usize> = match &wanted {
                Some(wanted) => {
                    assert_eq!(wanted.len(), read.len());
                    wanted.set_indices().map(|index| read[index]).collect()
                }
                None => read.clone(),
            };
            assert_eq!(taken, mask.set_indices().collect::<Vec<_>>());
        }
        let runs: RowSelection = vec![RowSelector::skip(2), RowSelector::select(3)].into();
        assert!(Access::to(&runs, 6).wanted.is_none());
    }

    #[test]
    fn as_many_rows_have_to_be_decoded_as_were_asked_for() {
        let part = |rows| {
            let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows));
            RecordBatch::try_from_iter([("n", numbers)]).unwrap()
        };
        for (rows, fails) in [(vec![60, 40], false), (vec![60, 39], true), (vec![60, 41], true), (vec![], true)] {
            let parts = rows.into_iter().map(|rows| Ok(part(rows)));
            let selected = SelectedRows::new(part(0).schema(), parts, Some(bits(100, 3, 50)), 10);
            assert_eq!(selected.collect::<Result<Vec<_>, _>>().is_err(), fails);
        }
    }

    #[test]
    fn long_gaps_between_scattered_rows_are_skipped() {
        let mask = BooleanBuffer::collect_bool(10_000, |row| !(3_000..7_000).contains(&row) && row % 2 == 1);
        assert_eq!(runs(&mask).0, [1..3_000, 7_001..10_000]);
        let Access { decoded, wanted } = Access::to(&RowSelection::from_boolean_buffer(mask), 10_000);
        assert_eq!((decoded.row_count(), wanted.unwrap().len()), (5_998, 5_998));
    }

    #[test]
    fn runs_are_bits_too() {
        let runs: RowSelection = vec![RowSelector::skip(2), RowSelector::select(3)].into();
        let expected = BooleanBuffer::from(vec![false, false, true, true, true, false]);
        assert_eq!(*mask_of(&runs, 6), expected);
        let longer = RowSelection::from_boolean_buffer(expected);
        assert_eq!(mask_of(&longer, 4).iter().collect::<Vec<_>>(), [false, false, true, true]);
    }

    #[test]
    fn columns_are_filtered_alike() {
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..100));
        let mask = BooleanArray::new(bits(100, 3, 30), None);
        for count in [1, 3] {
            for column in filtered(vec![Arc::clone(&numbers); count], &mask).unwrap() {
                let expected: Vec<i64> = mask.values().set_indices().map(|row| row as i64).collect();
                assert_eq!(column.as_primitive::<Int64Type>().values(), expected.as_slice());
                assert_eq!(column.null_count(), 0);
            }
        }
    }
}
