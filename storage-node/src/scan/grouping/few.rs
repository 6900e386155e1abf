//! Numbers for few groups: a small table, where keys are compared as numbers.

use arrow::array::{AnyDictionaryArray, Array, ArrayRef, AsArray, PrimitiveArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{
    ArrowDictionaryKeyType, ArrowNativeType, BinaryViewType, ByteViewType, DataType, StringViewType, UInt8Type,
    UInt16Type,
};

use aubade_proto::of_integers;

use super::packed::KeyPlaces;
use crate::limits::{FEW_GROUPS_MAX, INLINE_BYTES};

/// Places in a table at first.
const SLOTS: usize = 64;
/// The word of a key that is null: no view is that long, and other keys have at most 64 bits.
const NULL: u128 = u128::MAX;

#[derive(Clone, Copy)]
struct Slot {
    word: u128,
    /// The number by the keys before.
    before: u32,
    /// [`FREE`] where there is nothing.
    number: u32,
}

const FREE: u32 = u32::MAX;
const EMPTY: Slot = Slot { word: 0, before: 0, number: FREE };

/// Numbers for what keys up to one are, from 0 on in the order in which they come.
pub(super) struct Table {
    /// A power of two of them, of which at most a quarter is taken.
    slots: Vec<Slot>,
    pub(super) count: usize,
    /// Where the first keys are of a dictionary, and so all are.
    places: Option<KeyPlaces>,
}

impl Table {
    pub(super) fn new() -> Self {
        Self { slots: vec![EMPTY; SLOTS], count: 0, places: None }
    }

    /// Bytes that it holds.
    pub(super) fn memory_bytes(&self) -> usize {
        self.slots.len() * size_of::<Slot>() + self.places.as_ref().map_or(0, KeyPlaces::memory_bytes)
    }

    /// Replaces the numbers by the keys before with those by this one too; false where there are too many, or where the
    /// key has no words.
    pub(super) fn number(&mut self, numbers: &mut [usize], array: &ArrayRef) -> bool {
        if let Some(packed) = array.as_any_dictionary_opt() {
            return self.number_packed(numbers, packed);
        }
        if self.places.is_some() {
            return false;
        }
        match array.data_type() {
            DataType::Utf8View => self.number_views::<StringViewType>(numbers, array),
            DataType::BinaryView => self.number_views::<BinaryViewType>(numbers, array),
            DataType::Boolean => {
                let values = array.as_boolean().values();
                self.number_words(numbers, array.nulls(), values.iter().map(u128::from))
            }
            _ => of_integers!(array, |values| {
                self.number_words(numbers, array.nulls(), values.iter().map(|value| word(*value)))
            }),
        }
    }

    /// False also where the keys before were of another dictionary, or of none.
    fn number_packed(&mut self, numbers: &mut [usize], packed: &dyn AnyDictionaryArray) -> bool {
        let (texts, taken) = (packed.values(), self.places.take());
        let mut places = match taken {
            Some(places) if places.are_of(texts) => places,
            None if self.count == 0 => KeyPlaces::of(texts),
            _ => return false,
        };
        let keys = packed.keys();
        let numbered = match keys.data_type() {
            DataType::UInt8 => self.number_keys::<UInt8Type>(numbers, keys.as_primitive(), &mut places),
            DataType::UInt16 => self.number_keys::<UInt16Type>(numbers, keys.as_primitive(), &mut places),
            _ => false,
        };
        self.places = Some(places);
        numbered
    }

    fn number_keys<K: ArrowDictionaryKeyType>(
        &mut self,
        numbers: &mut [usize],
        keys: &PrimitiveArray<K>,
        places: &mut KeyPlaces,
    ) -> bool {
        let null = places.null();
        let mut replace = |number: &mut usize, key: usize| {
            let found = places.get(*number, key).or_else(|| self.find_packed(places, *number, key));
            found.inspect(|found| *number = *found as usize).is_some()
        };
        match keys.nulls().filter(|nulls| nulls.null_count() > 0) {
            None => numbers.iter_mut().zip(keys.values()).all(|(number, key)| replace(number, key.as_usize())),
            Some(nulls) => {
                let keys =
                    keys.values().iter().zip(nulls).map(|(key, valid)| if valid { key.as_usize() } else { null });
                numbers.iter_mut().zip(keys).all(|(number, key)| replace(number, key))
            }
        }
    }

    #[inline(never)]
    fn find_packed(&mut self, places: &mut KeyPlaces, before: usize, key: usize) -> Option<u32> {
        let number = self.find_or_add(before as u32, key as u128)?;
        places.set(before, key, number);
        Some(number)
    }

    fn number_views<T: ByteViewType>(&mut self, numbers: &mut [usize], array: &ArrayRef) -> bool {
        let Some(array) = array.as_byte_view_opt::<T>() else { return false };
        // The length is in the lowest bits. Where a row is null the view may be anything.
        let length = |view: &u128| *view as u32;
        let longest = match array.nulls() {
            None => array.views().iter().map(length).fold(0, u32::max),
            Some(nulls) => nulls.valid_indices().filter_map(|row| array.views().get(row).map(length)).fold(0, u32::max),
        };
        longest <= INLINE_BYTES && self.number_words(numbers, array.nulls(), array.views().iter().copied())
    }

    fn number_words(
        &mut self,
        numbers: &mut [usize],
        nulls: Option<&NullBuffer>,
        words: impl Iterator<Item = u128>,
    ) -> bool {
        let mut replace = |number: &mut usize, word| match self.find(*number as u32, word) {
            Some(found) => {
                *number = found as usize;
                true
            }
            None => false,
        };
        match nulls.filter(|nulls| nulls.null_count() > 0) {
            None => numbers.iter_mut().zip(words).all(|(number, word)| replace(number, word)),
            Some(nulls) => {
                let words = words.zip(nulls.iter()).map(|(word, valid)| if valid { word } else { NULL });
                numbers.iter_mut().zip(words).all(|(number, word)| replace(number, word))
            }
        }
    }

    /// The number of a word after those that have the number `before`; `None` where there are too many.
    #[inline]
    fn find(&mut self, before: u32, word: u128) -> Option<u32> {
        let place = place(before, word) & (self.slots.len() - 1);
        match self.slots.get(place) {
            Some(slot) if slot.word == word && slot.before == before && slot.number != FREE => Some(slot.number),
            _ => self.find_or_add(before, word),
        }
    }

    #[inline(never)]
    fn find_or_add(&mut self, before: u32, word: u128) -> Option<u32> {
        let slot = Self::slot(&mut self.slots, before, word)?;
        if slot.number != FREE {
            return Some(slot.number);
        }
        if self.count == FEW_GROUPS_MAX {
            return None;
        }
        let number = self.count as u32;
        *slot = Slot { word, before, number };
        self.count += 1;
        if self.count * 4 > self.slots.len() {
            let mut slots = vec![EMPTY; self.slots.len() * 4];
            for taken in self.slots.iter().filter(|slot| slot.number != FREE) {
                *Self::slot(&mut slots, taken.before, taken.word)? = *taken;
            }
            self.slots = slots;
        }
        Some(number)
    }

    /// Where it is, or where it would be.
    fn slot(slots: &mut [Slot], before: u32, word: u128) -> Option<&mut Slot> {
        let last = slots.len() - 1;
        let mut place = place(before, word) & last;
        while slots.get(place).is_some_and(|slot| slot.number != FREE && (slot.word != word || slot.before != before)) {
            place = (place + 1) & last;
        }
        slots.get_mut(place)
    }
}

/// The bits of an integer.
fn word(value: impl Into<i64>) -> u128 {
    u128::from(value.into() as u64)
}

/// Where to look for a word first, before it is cut to the number of places.
fn place(before: u32, word: u128) -> usize {
    // Both halves of a product, as in wyhash (Wang Yi), and the upper bits of another one, which depend on all of these.
    let (low, high) = (word as u64 ^ 0xa076_1d64_78bd_642f, (word >> 64) as u64 ^ 0xe703_7ed1_a0b4_28db);
    let product = u128::from(low) * u128::from(high ^ (u64::from(before) << 32));
    let folded = product as u64 ^ (product >> 64) as u64;
    (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, StringViewArray};

    use super::*;

    /// How far the numbers of keys are from where they are looked for first, on average.
    fn mean_distance(keys: ArrayRef) -> f64 {
        let mut table = Table::new();
        let mut numbers = vec![0; keys.len()];
        assert!(table.number(&mut numbers, &keys));
        assert_eq!(numbers, (0..keys.len()).collect::<Vec<_>>());
        let last = table.slots.len() - 1;
        let taken = table.slots.iter().enumerate().filter(|(_, slot)| slot.number != FREE);
        let distances = taken.map(|(at, slot)| at.wrapping_sub(place(slot.before, slot.word) & last) & last);
        distances.sum::<usize>() as f64 / keys.len() as f64
    }

    #[test]
    fn keys_that_differ_in_any_byte_are_spread() {
        let texts = |texts: Vec<String>| Arc::new(StringViewArray::from_iter_values(texts)) as ArrayRef;
        let integers = |step: i64| Arc::new(Int64Array::from_iter_values((0..1_000).map(|n| n * step))) as ArrayRef;
        let mut keys = vec![
            texts((0..1_000).map(|number| format!("A{number:03}")).collect()),
            texts((0..24).flat_map(|hour| (0..40).map(move |minute| format!("{hour:02}{minute:02}"))).collect()),
            texts((1970..2050).flat_map(|year| (1..=12).map(move |month| format!("{year}{month:02}"))).collect()),
            integers(1),
            integers(-1),
            integers(1 << 20),
            integers(1 << 52),
        ];
        for byte in 0..12 {
            let differing = ('A'..='Z').chain('a'..='z').map(|letter| {
                let mut text = vec!['x'; 12];
                text[byte] = letter;
                text.into_iter().collect()
            });
            keys.push(texts(differing.collect()));
        }
        for keys in keys {
            let mean = mean_distance(Arc::clone(&keys));
            assert!(mean < 1.0, "{mean} for {keys:?}");
        }
    }

    #[test]
    fn long_texts_below_nulls_are_no_keys() {
        let long = StringViewArray::from_iter_values(["a text that is too long for its view", "short"]);
        let nulls = NullBuffer::from(vec![false, true]);
        let array: ArrayRef =
            Arc::new(StringViewArray::new(long.views().clone(), long.data_buffers().to_vec(), Some(nulls)));
        let mut numbers = [0, 0];
        assert!(Table::new().number(&mut numbers, &array));
        assert_eq!(numbers, [0, 1]);
    }
}
