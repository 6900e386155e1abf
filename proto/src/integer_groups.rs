//! Numbers for groups by integers, however many groups there are: for partial aggregates at storage nodes, and for the
//! merging of their states.

mod keys;

use arrow::array::{Array, ArrayRef, UInt32Array};
use arrow::buffer::NullBuffer;
use arrow::datatypes::DataType;
use datafusion::common::HashMap;
pub use keys::KeyGroups;

/// Places of 4 bytes each for each group and row of a batch, at most: what is scarce takes less room in a hash map. Not an
/// option: what a node sends depends on it.
const PLACES_PER_ROW_MAX: usize = 32;

/// `$body` with the values of an array of integers, or of what is stored in as many bytes; false where it is neither.
#[macro_export]
macro_rules! of_integers {
    ($array:expr, |$values:ident| $body:expr) => {{
        let data = arrow::array::Array::to_data($array);
        let (buffer, rows) = (data.buffers().first(), data.offset()..data.offset() + data.len());
        match (buffer, data.data_type().primitive_width()) {
            (Some(buffer), Some(1)) => $crate::of_integers!(buffer, rows, i8, |$values| $body),
            (Some(buffer), Some(2)) => $crate::of_integers!(buffer, rows, i16, |$values| $body),
            (Some(buffer), Some(4)) => $crate::of_integers!(buffer, rows, i32, |$values| $body),
            (Some(buffer), Some(8)) => $crate::of_integers!(buffer, rows, i64, |$values| $body),
            _ => false,
        }
    }};
    ($buffer:ident, $rows:ident, $native:ty, |$values:ident| $body:expr) => {
        match $buffer.typed_data::<$native>().get($rows) {
            Some($values) => $body,
            None => false,
        }
    };
}

/// Whether values of a type are integers in memory.
pub fn is_integer(data_type: &DataType) -> bool {
    use DataType::{
        Date32, Date64, Decimal32, Decimal64, Duration, Int8, Int16, Int32, Int64, Time32, Time64, Timestamp, UInt8,
        UInt16, UInt32, UInt64,
    };
    let is_integer = matches!(data_type, Int8 | Int16 | Int32 | Int64 | UInt8 | UInt16 | UInt32 | UInt64);
    let is_time = matches!(data_type, Date32 | Date64 | Time32(_) | Time64(_) | Timestamp(_, _) | Duration(_));
    is_integer || is_time || matches!(data_type, Decimal32(_, _) | Decimal64(_, _))
}

fn wide(value: impl Into<i64>) -> i64 {
    value.into()
}

/// The first row of each group from `before` on, in which numbers are given in the order of the rows.
pub fn first_rows(numbers: &[usize], before: usize) -> UInt32Array {
    let mut next = before;
    let first = numbers.iter().zip(0_u32..).filter_map(|(number, row)| {
        let is_first = *number == next;
        next += usize::from(is_first);
        is_first.then_some(row)
    });
    UInt32Array::from_iter_values(first)
}

/// Numbers for integers, from 0 on in the order in which they come.
#[derive(Debug)]
pub struct IntegerGroups {
    count: usize,
    /// The last one, for as long as none was null or smaller than one before it: then nothing has to be looked up.
    last: Option<i64>,
    /// What has a number, since one was.
    seen: Option<Seen>,
    null: Option<usize>,
    /// The most groups and rows of a batch so far.
    rows: usize,
    places_max: usize,
}

impl IntegerGroups {
    /// No integers yet. Where no more than `places_max` lie between the smallest and the largest one, each of these can have
    /// 4 bytes of its own.
    pub fn new(places_max: usize) -> Self {
        Self { count: 0, last: None, seen: None, null: None, rows: 0, places_max }
    }

    /// No integers yet, nor any that are told by their order, so that nothing has to be known of those before.
    fn looked_up(places_max: usize) -> Self {
        Self { seen: Some(Seen::Near(Places::default())), ..Self::new(places_max) }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes that look-ups need.
    pub fn memory_bytes(&self) -> usize {
        self.seen.as_ref().map_or(0, Seen::memory_bytes)
    }

    /// Sets the number of each row of `array`, of which there are as many as `numbers`. `before` has what has a number
    /// already, in that order. False where these are no integers, or more than can be numbered.
    pub fn number(&mut self, numbers: &mut [usize], array: &ArrayRef, before: &[ArrayRef]) -> bool {
        crate::of_integers!(array, |values| self.number_values(numbers, values, array.nulls(), before))
    }

    fn number_values<T: Copy + Ord + Into<i64>>(
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
            self.seen = Seen::of(before, self.places_max);
        }
        let Some(seen) = &mut self.seen else { return false };
        self.rows = self.rows.max(self.count.saturating_add(values.len()));
        if let Some(range) = range_of(values, nulls) {
            seen.make_room(range, self.rows, self.places_max);
        }
        let (count, null) = (&mut self.count, &mut self.null);
        match (seen, nulls) {
            (Seen::Near(places), None) => places.number_all(numbers, values, count),
            (Seen::Near(places), Some(nulls)) => {
                with_nulls(numbers, values, nulls, count, null, |value, count| places.number(value, count))
            }
            (Seen::Far { numbers: seen, .. }, nulls) => {
                let mut number = |value, count: &mut usize| Some(*seen.entry(value).or_insert_with(|| next(count)));
                let Some(nulls) = nulls else {
                    let mut rows = numbers.iter_mut().zip(values);
                    return rows.all(|(place, value)| set(place, number(wide(*value), count)));
                };
                with_nulls(numbers, values, nulls, count, null, number)
            }
        }
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

fn next(count: &mut usize) -> usize {
    *count += 1;
    *count - 1
}

fn set(place: &mut usize, number: Option<usize>) -> bool {
    number.inspect(|number| *place = *number).is_some()
}

/// Sets the number of each row by `find`, which counts those that it gives; false where it has none.
fn with_nulls<T: Copy + Into<i64>>(
    numbers: &mut [usize],
    values: &[T],
    nulls: &NullBuffer,
    count: &mut usize,
    null: &mut Option<usize>,
    mut find: impl FnMut(i64, &mut usize) -> Option<usize>,
) -> bool {
    numbers.iter_mut().zip(values).zip(nulls).all(|((place, value), is_valid)| match is_valid {
        true => set(place, find(wide(*value), count)),
        false => set(place, Some(*null.get_or_insert_with(|| next(count)))),
    })
}

/// The smallest and the largest of some integers; `None` where there are none.
fn range_of<T: Copy + Ord + Into<i64>>(values: &[T], nulls: Option<&NullBuffer>) -> Option<Range> {
    let (least, most) = match nulls {
        None => (values.iter().min(), values.iter().max()),
        Some(nulls) => {
            let valid = || nulls.valid_indices().filter_map(|row| values.get(row));
            (valid().min(), valid().max())
        }
    };
    Some((wide(*least?), wide(*most?)))
}

/// The smallest and the largest of some integers.
type Range = (i64, i64);

/// How many integers there are from the one to the other.
fn span((least, most): Range) -> Option<usize> {
    usize::try_from(most.checked_sub(least)?).ok()?.checked_add(1)
}

/// Where the number of an integer is found.
#[derive(Debug)]
enum Seen {
    Near(Places),
    Far { numbers: HashMap<i64, usize>, range: Range },
}

impl Seen {
    /// Integers with their places; `None` where these are none.
    fn of(arrays: &[ArrayRef], places_max: usize) -> Option<Self> {
        let (mut seen, mut count) = (Self::Near(Places::default()), 0);
        for array in arrays {
            let added = crate::of_integers!(array, |values| {
                if let Some(range) = range_of(values, None) {
                    seen.make_room(range, count + values.len(), places_max);
                }
                let mut values = values.iter().map(|value| wide(*value));
                match &mut seen {
                    Self::Near(places) => values.all(|value| places.number(value, &mut count).is_some()),
                    Self::Far { numbers, .. } => {
                        numbers.extend(values.map(|value| (value, next(&mut count))));
                        true
                    }
                }
            });
            if !added {
                return None;
            }
        }
        Some(seen)
    }

    fn memory_bytes(&self) -> usize {
        match self {
            Self::Near(places) => places.numbers.capacity().saturating_mul(size_of::<u32>()),
            Self::Far { numbers, .. } => numbers.capacity().saturating_mul(size_of::<(i64, usize)>() + 1),
        }
    }

    /// Sees to it that integers of a range can be numbered, after so many rows.
    fn make_room(&mut self, more: Range, rows: usize, places_max: usize) {
        let places_max = rows.saturating_mul(PLACES_PER_ROW_MAX).min(places_max);
        match self {
            Self::Near(places) => {
                let all = places.range().map_or(more, |range| both(range, more));
                if !places.reach(all, places_max) {
                    *self = Self::Far { numbers: places.numbered().collect(), range: all };
                }
            }
            Self::Far { numbers, range } => {
                *range = both(*range, more);
                let mut places = Places::default();
                // Half of them, so that nothing goes to and fro.
                if places.reach(*range, places_max / 2) && places.take(numbers) {
                    *self = Self::Near(places);
                }
            }
        }
    }
}

/// From the smaller of the smallest ones to the larger of the largest.
fn both(one: Range, other: Range) -> Range {
    (one.0.min(other.0), one.1.max(other.1))
}

/// A place for each integer of a range: compare the perfect hash aggregate of DuckDB, which knows the range from
/// statistics.
#[derive(Debug, Default)]
struct Places {
    /// The integer of the first place.
    first: i64,
    /// One more than the number of an integer; 0 where it has none.
    numbers: Vec<u32>,
}

impl Places {
    /// The number of an integer, a new one where it has none; `None` where there is no place for it.
    fn number(&mut self, value: i64, count: &mut usize) -> Option<usize> {
        let place = self.numbers.get_mut(value.wrapping_sub(self.first) as usize)?;
        if *place == 0 {
            *count += 1;
            *place = u32::try_from(*count).ok()?;
        }
        Some(*place as usize - 1)
    }

    /// Sets the numbers of integers, of which none is null; false where there is no place for one.
    fn number_all<T: Copy + Into<i64>>(&mut self, numbers: &mut [usize], values: &[T], count: &mut usize) -> bool {
        // Out of the loop, in which the compiler takes them for what numbers might be written to.
        let (first, places, mut given) = (self.first, self.numbers.as_mut_slice(), *count);
        for (number, value) in numbers.iter_mut().zip(values) {
            let Some(place) = places.get_mut(wide(*value).wrapping_sub(first) as usize) else { return false };
            if *place == 0 {
                given += 1;
                let Ok(next) = u32::try_from(given) else { return false };
                *place = next;
            }
            *number = *place as usize - 1;
        }
        *count = given;
        true
    }

    /// The integers of the first and of the last place; `None` where there are none.
    fn range(&self) -> Option<Range> {
        let last = self.numbers.len().checked_sub(1)?;
        Some((self.first, self.first.checked_add(i64::try_from(last).ok()?)?))
    }

    /// Has places for all of a range that is no smaller than its own; false where these were more than `places_max`.
    fn reach(&mut self, (least, most): Range, places_max: usize) -> bool {
        let Some(all) = span((least, most)).filter(|all| *all <= places_max) else { return false };
        if self.numbers.is_empty() {
            (self.first, self.numbers) = (least, vec![0; all]);
            return true;
        }
        if least < self.first {
            // As many again, so that integers that descend do not have all places moved each time.
            let spare = self.numbers.len().min(places_max - all);
            let first = least.saturating_sub_unsigned(spare as u64);
            let more = usize::try_from(self.first.abs_diff(first)).unwrap_or_default();
            self.numbers.splice(0..0, std::iter::repeat_n(0, more));
            self.first = first;
        }
        if let Some(all) = span((self.first, most)).filter(|all| *all > self.numbers.len()) {
            self.numbers.resize(all, 0);
        }
        true
    }

    /// Takes over the numbers of integers; false where there is no place for one.
    fn take(&mut self, numbers: &HashMap<i64, usize>) -> bool {
        numbers.iter().all(|(value, number)| {
            let place = self.numbers.get_mut(value.wrapping_sub(self.first) as usize);
            let number = u32::try_from(*number + 1).ok();
            place.zip(number).map(|(place, number)| *place = number).is_some()
        })
    }

    /// The integers with their numbers.
    fn numbered(&self) -> impl Iterator<Item = (i64, usize)> {
        let numbered = self.numbers.iter().enumerate().filter(|(_, number)| **number > 0);
        numbered.map(|(place, number)| (self.first.wrapping_add(place as i64), *number as usize - 1))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int8Array, Int64Array, UInt64Array};

    use super::*;

    const PLACES: usize = 1 << 20;

    /// Numbers batches, whose last values are null where `with_nulls`, as a map does.
    fn check(batches: &[Vec<i64>], with_nulls: bool, near: bool) {
        let (mut integers, mut expected) = (IntegerGroups::new(PLACES), HashMap::new());
        let mut before: Vec<ArrayRef> = Vec::new();
        for batch in batches {
            let is_valid = |row: usize| !with_nulls || row + 1 < batch.len();
            let array = Int64Array::from_iter(batch.iter().enumerate().map(|(row, v)| is_valid(row).then_some(*v)));
            let mut numbers = vec![0; batch.len()];
            let distinct = expected.len();
            let of_row = |value: Option<i64>| {
                let next = expected.len();
                *expected.entry(value).or_insert(next)
            };
            let rows: Vec<usize> = array.iter().map(of_row).collect();
            let array: ArrayRef = Arc::new(array);
            assert!(integers.number(&mut numbers, &array, &before));
            assert_eq!(numbers, rows);
            assert_eq!(integers.count, expected.len());
            let mut fresh: Vec<_> = expected.iter().filter(|(_, number)| **number >= distinct).collect();
            fresh.sort_unstable_by_key(|(_, number)| **number);
            before.push(Arc::new(Int64Array::from_iter(fresh.into_iter().map(|(value, _)| *value))));
        }
        assert_eq!(matches!(integers.seen, Some(Seen::Near(_))), near, "{batches:?}");
    }

    /// Numbers arrays one after the other.
    fn numbers_of(arrays: &[ArrayRef]) -> Vec<Vec<usize>> {
        let mut integers = IntegerGroups::new(PLACES);
        let mut before: Vec<ArrayRef> = Vec::new();
        let number = |array: &ArrayRef| {
            let mut numbers = vec![0; array.len()];
            let count = integers.count;
            assert!(integers.number(&mut numbers, array, &before));
            before.push(arrow::compute::take(array, &first_rows(&numbers, count), None).unwrap());
            numbers
        };
        arrays.iter().map(number).collect()
    }

    #[test]
    fn nulls_and_integers_of_all_widths_are_told_apart() {
        let signed: ArrayRef = Arc::new(Int8Array::from(vec![None, Some(-128), Some(127), None, Some(-1), Some(127)]));
        assert_eq!(numbers_of(&[Arc::clone(&signed), signed.slice(2, 4)]), [vec![0, 1, 2, 0, 3, 2], vec![2, 0, 3, 2]]);
        let large: ArrayRef = Arc::new(UInt64Array::from(vec![u64::MAX, 0, u64::MAX - 1, i64::MAX as u64 + 1, 0]));
        assert_eq!(numbers_of(&[large]), [[0, 1, 2, 3, 1]]);
        // What is below a null may be anything.
        let garbage =
            Int64Array::new(vec![5, i64::MIN, 6, i64::MAX].into(), Some(vec![true, false, true, false].into()));
        let nothing: ArrayRef = Arc::new(Int64Array::new_null(3));
        assert_eq!(numbers_of(&[nothing, Arc::new(garbage)]), [vec![0, 0, 0], vec![1, 0, 2, 0]]);
        let empty: ArrayRef = Arc::new(Int64Array::new_null(0));
        assert_eq!(numbers_of(&[empty, Arc::new(Int64Array::from(vec![7, 7]))]), [vec![], vec![0, 0]]);
    }

    #[test]
    fn integers_have_the_same_numbers_near_and_far() {
        let up = |from: i64| (from..from + 500).collect::<Vec<_>>();
        let down = |from: i64| (from - 500..from).rev().collect::<Vec<_>>();
        let mixed = |from: i64| (0..500).map(|row| from + row * 7_919 % 3_000).collect::<Vec<_>>();
        let last = PLACES as i64;
        for (batches, near) in [
            (vec![down(0), down(-500), down(-300), up(-2_000), down(-9_000)], true),
            (vec![up(0), up(500), up(700), up(2_000), down(1)], true),
            (vec![mixed(0), mixed(-2_000), mixed(10_000), up(1 << 15)], true),
            (vec![mixed(0), mixed(3), vec![1 << 40], mixed(1 << 40), mixed(0)], false),
            (vec![mixed(0), vec![i64::MIN, i64::MAX], mixed(5)], false),
            (vec![up(i64::MIN), down(i64::MIN + 800), down(i64::MIN + 600)], true),
            (vec![down(i64::MAX), up(i64::MAX - 700), vec![i64::MAX, i64::MAX - 900]], true),
            (vec![up(0), (0..last / 32).rev().collect(), vec![last - 1, 7, last - 2]], true),
            (vec![up(0), (0..last / 32).rev().collect(), vec![last, 7, last - 2]], false),
            (vec![vec![5, 10_000, 4]], false),
            // Near, once there are more of them, and for good.
            (vec![vec![5, 8_000, 4], mixed(0), vec![6, 7, 5]], true),
            (vec![vec![5, 8_000, 4], mixed(0), vec![1 << 40, 6], mixed(3)], false),
        ] {
            check(&batches, false, near);
            check(&batches, true, near);
        }
        check(&[up(0), up(700)], false, false);
        check(&[vec![3], vec![9], vec![3]], true, true);
    }
}
