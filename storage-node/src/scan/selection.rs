//! Which rows of a row group are left, as bits: what stages of a filter leave is scattered, and runs of it are short.

use std::borrow::Cow;

use arrow::array::{ArrayRef, BooleanArray, BooleanBufferBuilder};
use arrow::buffer::{BooleanBuffer, Buffer};
use arrow::compute::FilterBuilder;
use aubade_proto::Result;
use parquet::arrow::arrow_reader::RowSelection;

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
