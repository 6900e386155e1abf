//! Numbers for groups by one integer or by two.

use arrow::array::ArrayRef;

use super::IntegerGroups;

/// Numbers for one or two integers each, from 0 on in the order in which they come. Where there are two, each has a number
/// of its own, and the pair of these is looked up: that is one hash of 64 bits instead of one of each key, and a
/// comparison with each. A third key would take two more look-ups for each row.
#[derive(Debug)]
pub struct KeyGroups {
    first: IntegerGroups,
    pairs: Option<Pairs>,
}

#[derive(Debug)]
struct Pairs {
    second: IntegerGroups,
    /// The number of the first key, above 32 bits for that of the second one.
    pairs: IntegerGroups,
    /// Of the rows of a batch.
    of_second: Vec<usize>,
    of_pairs: Vec<i64>,
}

impl KeyGroups {
    /// The most keys.
    pub const KEYS_MAX: usize = 2;

    /// No groups yet, by so many keys. `places_max` is that of [`IntegerGroups::new`], for each key.
    pub fn new(keys: usize, places_max: usize) -> Self {
        if keys < 2 {
            return Self { first: IntegerGroups::new(places_max), pairs: None };
        }
        let looked_up = || IntegerGroups::looked_up(places_max);
        let (of_second, of_pairs) = (Vec::new(), Vec::new());
        let pairs = Pairs { second: looked_up(), pairs: looked_up(), of_second, of_pairs };
        Self { first: looked_up(), pairs: Some(pairs) }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.pairs.as_ref().map_or(&self.first, |pairs| &pairs.pairs).count()
    }

    /// Bytes that look-ups need.
    pub fn memory_bytes(&self) -> usize {
        let of_pairs = self.pairs.as_ref().map_or(0, |pairs| {
            let rows = size_of_val(pairs.of_second.as_slice()).saturating_add(size_of_val(pairs.of_pairs.as_slice()));
            pairs.second.memory_bytes().saturating_add(pairs.pairs.memory_bytes()).saturating_add(rows)
        });
        self.first.memory_bytes().saturating_add(of_pairs)
    }

    /// Sets the number of each row of `keys`, of which there are as many as `numbers`. `before` has the first key of what
    /// has a number already, in that order. False where these are no integers, or more than can be numbered.
    pub fn number(&mut self, numbers: &mut [usize], keys: &[ArrayRef], before: &[ArrayRef]) -> bool {
        match (keys, &mut self.pairs) {
            ([key], None) => self.first.number(numbers, key, before),
            ([first, second], Some(pairs)) => self.first.number(numbers, first, &[]) && pairs.number(numbers, second),
            _ => false,
        }
    }
}

impl Pairs {
    /// Replaces the numbers of the first key by those of the pairs.
    fn number(&mut self, numbers: &mut [usize], second: &ArrayRef) -> bool {
        self.of_second.resize(numbers.len(), 0);
        if !self.second.number(&mut self.of_second, second, &[]) {
            return false;
        }
        let pair = |(first, second): (&usize, &usize)| {
            let (first, second) = (u32::try_from(*first).ok()?, u32::try_from(*second).ok()?);
            Some(i64::from(first) << 32 | i64::from(second))
        };
        self.of_pairs.clear();
        self.of_pairs.extend(numbers.iter().zip(&self.of_second).filter_map(pair));
        self.of_pairs.len() == numbers.len() && self.pairs.number_values(numbers, &self.of_pairs, None, &[])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use arrow::array::{Array, AsArray, Date32Array, Int8Array, Int64Array, StringViewArray};
    use arrow::compute::cast;
    use arrow::datatypes::{DataType, Int64Type};

    use super::*;

    type Values = Vec<Option<i64>>;

    fn keys(first: i64, rows: i64, distinct: i64) -> Vec<ArrayRef> {
        let of = |factor: i64, nulls: i64| -> Values {
            let value = |row: i64| (row % nulls != 0).then_some(row * factor % distinct - 9);
            (first..first + rows).map(value).collect()
        };
        vec![
            Arc::new(Int64Array::from_iter(of(7, 13).into_iter().map(|value| Some(value? << 40)))),
            Arc::new(Date32Array::from_iter(of(11, rows + 1).into_iter().map(|value| i32::try_from(value?).ok()))),
            Arc::new(Int8Array::from_iter(of(3, 5).into_iter().map(|value| i8::try_from(value? % 100).ok()))),
        ]
    }

    #[test]
    fn keys_have_the_numbers_that_a_map_gives() {
        for count in 1..=KeyGroups::KEYS_MAX {
            let (mut groups, mut expected) = (KeyGroups::new(count, 1 << 12), HashMap::<Values, usize>::new());
            let mut before: Vec<ArrayRef> = Vec::new();
            for (first, rows, distinct) in [(1, 900, 20), (5, 0, 1), (0, 2_000, 70), (900, 5_000, 6_000), (3, 100, 9)] {
                let all = keys(first, rows, distinct);
                // The third one is narrow, and has nulls.
                let keys = &all[3 - count..];
                let mut numbers = vec![0; rows as usize];
                let known = groups.count();
                assert!(groups.number(&mut numbers, keys, &before));
                before.push(arrow::compute::take(&keys[0], &super::super::first_rows(&numbers, known), None).unwrap());
                let wide: Vec<ArrayRef> = keys
                    .iter()
                    .map(|key| match key.data_type() {
                        DataType::Date32 => cast(&cast(key, &DataType::Int32).unwrap(), &DataType::Int64).unwrap(),
                        _ => cast(key, &DataType::Int64).unwrap(),
                    })
                    .collect();
                for (row, number) in numbers.into_iter().enumerate() {
                    let value = |key: &ArrayRef| key.is_valid(row).then(|| key.as_primitive::<Int64Type>().value(row));
                    let next = expected.len();
                    assert_eq!(
                        number,
                        *expected.entry(wide.iter().map(value).collect()).or_insert(next),
                        "{count} {row}"
                    );
                }
            }
            assert_eq!(groups.count(), expected.len());
            assert!(groups.memory_bytes() > 0);
        }
    }

    #[test]
    fn what_are_no_integers_has_no_numbers() {
        let texts: ArrayRef = Arc::new(StringViewArray::from_iter_values(["a", "b"]));
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
        for keys in
            [vec![], vec![Arc::clone(&numbers)], vec![Arc::clone(&numbers), texts.clone()], vec![texts, numbers]]
        {
            assert!(!KeyGroups::new(2, 100).number(&mut [0, 0], &keys, &[]));
        }
    }
}
