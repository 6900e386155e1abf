//! One bit for each of many values.

use arrow::buffer::{BooleanBuffer, Buffer};

/// A bit for each value, set where `check` says so. [`BooleanBuffer::collect_bool`] asks by index, so that each value
/// takes a check of bounds; here, a loop over 64 values has none, and the compiler can compare several at once.
pub fn bits_of<T: Copy>(values: &[T], check: impl Fn(T) -> bool) -> BooleanBuffer {
    let word = |values: &[T]| {
        values.iter().enumerate().fold(0_u64, |word, (place, value)| word | (u64::from(check(*value)) << place))
    };
    let (chunks, rest) = values.as_chunks::<64>();
    let mut words = Vec::with_capacity(values.len().div_ceil(64));
    words.extend(chunks.iter().map(|chunk| word(chunk)));
    if !rest.is_empty() {
        words.push(word(rest));
    }
    BooleanBuffer::new(Buffer::from_vec(words), 0, values.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_those_of_the_values() {
        for count in [0_usize, 1, 63, 64, 65, 128, 1_000] {
            let values: Vec<i64> = (0..count as i64).map(|value| value * 7_919 % 101).collect();
            let bits = bits_of(&values, |value| value > 50);
            assert_eq!(bits.iter().collect::<Vec<_>>(), values.iter().map(|value| *value > 50).collect::<Vec<_>>());
        }
    }
}
