//! Texts that hold a needle. Those that lie one after the other in memory, as they do where they were decoded, are searched
//! as one text: beginning a search costs more than what a short text takes. Compare the search for constants in
//! ClickHouse, which goes over whole columns.

use std::ops::Range;

use arrow::array::{Array, BooleanBufferBuilder, ByteView, StringViewArray};
use arrow::buffer::BooleanBuffer;
use memchr::memmem::Finder;

use crate::limits::INLINE_BYTES;

/// Bytes that may be between two texts that are searched as one: lengths, or a text that is not asked about.
const GAP_BYTES_MAX: u64 = 64;
/// Rows of such a text, on average, below which the search is not worth it.
const RUN_ROWS_MIN: usize = 8;

/// Rows whose texts lie in one buffer, in their order.
struct Run {
    rows: Range<usize>,
    buffer: u32,
    bytes: Range<usize>,
}

/// Where the text of a row lies; `None` for one that its view holds, and for null.
fn place_of(texts: &StringViewArray, row: usize) -> Option<(u32, Range<usize>)> {
    let view = ByteView::from(*texts.views().get(row)?);
    if view.length <= INLINE_BYTES || texts.is_null(row) {
        return None;
    }
    let start = view.offset as usize;
    Some((view.buffer_index, start..start + view.length as usize))
}

/// Which texts hold the needle; null holds none. `None` where they do not lie one after the other.
pub(super) fn holding(needle: &Finder<'_>, texts: &StringViewArray) -> Option<BooleanBuffer> {
    let mut runs: Vec<Run> = Vec::new();
    let runs_max = (texts.len() / RUN_ROWS_MIN).max(1);
    let mut has_short = false;
    for row in 0..texts.len() {
        let Some((buffer, bytes)) = place_of(texts, row) else {
            has_short = true;
            continue;
        };
        if let Some(run) = runs.last_mut().filter(|run| run.buffer == buffer && goes_on(&run.bytes, &bytes)) {
            run.rows.end = row + 1;
            run.bytes.end = bytes.end;
            continue;
        }
        if runs.len() == runs_max {
            return None;
        }
        runs.push(Run { rows: row..row + 1, buffer, bytes });
    }
    let mut held = BooleanBufferBuilder::new(texts.len());
    held.append_n(texts.len(), false);
    if has_short && needle.needle().len() <= INLINE_BYTES as usize {
        let is_short = |row: &usize| texts.is_valid(*row) && place_of(texts, *row).is_none();
        for row in (0..texts.len()).filter(is_short) {
            held.set_bit(row, needle.find(texts.value(row).as_bytes()).is_some());
        }
    }
    for run in runs {
        let buffer = texts.data_buffers().get(run.buffer as usize)?;
        search(needle, texts, buffer.get(..run.bytes.end)?, run, |row| held.set_bit(row, true));
    }
    Some(held.finish())
}

fn goes_on(before: &Range<usize>, bytes: &Range<usize>) -> bool {
    bytes.start.checked_sub(before.end).is_some_and(|gap| gap as u64 <= GAP_BYTES_MAX)
}

fn search(needle: &Finder<'_>, texts: &StringViewArray, bytes: &[u8], run: Run, mut found: impl FnMut(usize)) {
    let mut rows = run.rows;
    let mut at = run.bytes.start;
    while let Some(place) = bytes.get(at..).and_then(|rest| needle.find(rest)).map(|place| at + place) {
        // The first text that ends after the place.
        let text = rows.find_map(|row| {
            let (_, text) = place_of(texts, row)?;
            (text.end > place).then_some((row, text))
        });
        let Some((row, text)) = text else { return };
        if place < text.start {
            // Between two texts; this one may hold the next place.
            at = text.start;
            rows.start = row;
            continue;
        }
        // Not one that goes on in the next text.
        if place + needle.needle().len() <= text.end {
            found(row);
        }
        at = text.end;
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, BooleanArray, UInt32Array};
    use arrow::compute::{filter, take};

    use super::*;

    /// Texts of which each third is short and some are null, and which end and begin with parts of a needle.
    fn texts() -> StringViewArray {
        let text = |row: usize| match row % 12 {
            0 | 3 => Some("short".to_owned()),
            6 => None,
            1 => Some(format!("ends with the beginning of a nee{}", "d".repeat(row % 2))),
            2 => Some(format!("dle is what this one goes on with, {row}")),
            4 => Some(format!("a needle is in text number {row}, and another needle")),
            9 => Some("needle".to_owned()),
            _ => Some(format!("there is none in text number {row}")),
        };
        StringViewArray::from_iter((0..400).map(text))
    }

    #[track_caller]
    fn check(texts: &StringViewArray, together: bool) {
        for needle in
            ["needle", "need", "e", "number 3", "short", "a text that is longer than most are, and than views"]
        {
            let held = holding(&Finder::new(needle), texts);
            assert_eq!(held.is_some(), together);
            let expected = texts.iter().map(|text| text.is_some_and(|text| text.contains(needle)));
            assert!(held.is_none_or(|held| held == BooleanBuffer::from_iter(expected)), "{needle}");
        }
    }

    #[test]
    fn texts_one_after_the_other_are_searched_together() {
        let texts = texts();
        check(&texts, true);
        check(&texts.slice(17, 211), true);
        check(&texts.slice(3, 0), true);
        // What is left out between them holds needles as well.
        let kept = BooleanArray::from_iter((0..texts.len()).map(|row| Some(row % 12 != 4 && row % 12 != 1)));
        check(filter(&texts, &kept).unwrap().as_string_view(), true);
        // Nulls over whatever there was.
        let nulls = BooleanBuffer::collect_bool(texts.len(), |row| row % 5 > 0).into();
        check(&StringViewArray::new(texts.views().clone(), texts.data_buffers().to_vec(), Some(nulls)), true);
    }

    #[test]
    fn scattered_texts_are_not() {
        let texts = texts();
        let backwards = UInt32Array::from_iter_values((0..400).rev());
        check(take(&texts, &backwards, None).unwrap().as_string_view(), false);
        let again = UInt32Array::from_iter_values((0..400).map(|row| row / 40 * 12 + 4));
        check(take(&texts, &again, None).unwrap().as_string_view(), false);
    }
}
