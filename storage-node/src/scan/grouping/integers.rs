//! Numbers for groups by one integer, however many these are.

use arrow::array::{Array, ArrayRef};
use arrow::buffer::NullBuffer;
use datafusion::common::HashMap;

use super::{of_integers, wide};

/// Numbers for integers, from 0 on in the order in which they come.
#[derive(Default)]
pub(super) struct Integers {
    pub(super) count: usize,
    /// The last one, for as long as none was null or smaller than one before it: then nothing has to be looked up.
    last: Option<i64>,
    /// What has a number, since one was.
    seen: Option<HashMap<i64, usize>>,
    null: Option<usize>,
}

impl Integers {
    /// Bytes that look-ups need.
    pub(super) fn memory_bytes(&self) -> usize {
        self.seen.as_ref().map_or(0, |seen| seen.capacity().saturating_mul(size_of::<(i64, usize)>() + 1))
    }

    /// Sets the number of each row. `before` has what has a number already, in that order. False where these are no
    /// integers.
    pub(super) fn number(&mut self, numbers: &mut [usize], array: &ArrayRef, before: &[ArrayRef]) -> bool {
        of_integers!(array, |values| self.number_values(numbers, values, array.nulls(), before))
    }

    fn number_values<T: Copy + PartialOrd + Into<i64>>(
        &mut self,
        numbers: &mut [usize],
        values: &[T],
        nulls: Option<&NullBuffer>,
        before: &[ArrayRef],
    ) -> bool {
        let nulls = nulls.filter(|nulls| nulls.null_count() > 0);
        if self.seen.is_none() {
            if nulls.is_none() && self.goes_on(values) {
                self.number_runs(numbers, values);
                return true;
            }
            let Some(seen) = look_up(before) else { return false };
            self.seen = Some(seen);
        }
        let Some(seen) = &mut self.seen else { return false };
        let next = |count: &mut usize| {
            *count += 1;
            *count - 1
        };
        for (row, (number, value)) in numbers.iter_mut().zip(values).enumerate() {
            *number = match nulls {
                Some(nulls) if nulls.is_null(row) => *self.null.get_or_insert_with(|| next(&mut self.count)),
                _ => *seen.entry(wide(*value)).or_insert_with(|| next(&mut self.count)),
            };
        }
        true
    }

    /// Whether the last integer and these ascend.
    fn goes_on<T: Copy + PartialOrd + Into<i64>>(&self, values: &[T]) -> bool {
        let follows = |first: &T| self.last.is_none_or(|last| last <= wide(*first));
        let pairs = values.iter().zip(values.get(1..).unwrap_or_default());
        // Without a way out of the loop, so that several are compared at a time.
        values.first().is_none_or(follows) && pairs.fold(true, |ascend, (left, right)| ascend & (left <= right))
    }

    fn number_runs<T: Copy + Into<i64>>(&mut self, numbers: &mut [usize], values: &[T]) {
        for (number, value) in numbers.iter_mut().zip(values) {
            let value = Some(wide(*value));
            self.count += usize::from(self.last != value);
            self.last = value;
            *number = self.count - 1;
        }
    }
}

/// Integers with their places; `None` where these are none.
fn look_up(arrays: &[ArrayRef]) -> Option<HashMap<i64, usize>> {
    let mut seen = HashMap::new();
    for array in arrays {
        let first = seen.len();
        let added = of_integers!(array, |values| {
            seen.extend(values.iter().map(|value| wide(*value)).zip(first..));
            true
        });
        if !added {
            return None;
        }
    }
    Some(seen)
}
