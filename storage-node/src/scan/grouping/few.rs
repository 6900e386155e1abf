//! Numbers for few groups: a table that stays in the first cache, where keys are compared as numbers.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{BinaryViewType, ByteViewType, DataType, StringViewType};

use super::{of_integers, wide};
use crate::limits::FEW_GROUPS_MAX;

/// Places in a table at first.
const SLOTS: usize = 64;
/// The word of a key that is null: no view is that long, and other keys have at most 64 bits.
const NULL: u128 = u128::MAX;
/// Bytes of a text that a view holds itself.
const INLINE_BYTES: u32 = 12;

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
}

impl Table {
    pub(super) fn new() -> Self {
        Self { slots: vec![EMPTY; SLOTS], count: 0 }
    }

    /// Replaces the numbers by the keys before with those by this one too; false where there are too many, or where the
    /// key has no words.
    pub(super) fn number(&mut self, numbers: &mut [usize], array: &ArrayRef) -> bool {
        match array.data_type() {
            DataType::Utf8View => self.number_views::<StringViewType>(numbers, array),
            DataType::BinaryView => self.number_views::<BinaryViewType>(numbers, array),
            DataType::Boolean => {
                let values = array.as_boolean().values();
                self.number_words(numbers, array.nulls(), values.iter().map(u128::from))
            }
            _ => of_integers!(array, |values| {
                self.number_words(numbers, array.nulls(), values.iter().map(|value| u128::from(wide(*value) as u64)))
            }),
        }
    }

    fn number_views<T: ByteViewType>(&mut self, numbers: &mut [usize], array: &ArrayRef) -> bool {
        let Some(array) = array.as_byte_view_opt::<T>() else { return false };
        // The length is in the lowest bits.
        let longest = array.views().iter().fold(0, |longest, view| (*view as u32).max(longest));
        longest <= INLINE_BYTES && self.number_words(numbers, array.nulls(), array.views().iter().copied())
    }

    fn number_words(
        &mut self,
        numbers: &mut [usize],
        nulls: Option<&NullBuffer>,
        words: impl Iterator<Item = u128>,
    ) -> bool {
        let mut number = |number: &mut usize, word| match self.find(*number as u32, word) {
            Some(found) => {
                *number = found as usize;
                true
            }
            None => false,
        };
        match nulls.filter(|nulls| nulls.null_count() > 0) {
            None => numbers.iter_mut().zip(words).all(|(before, word)| number(before, word)),
            Some(nulls) => {
                let words = words.zip(nulls.iter()).map(|(word, valid)| if valid { word } else { NULL });
                numbers.iter_mut().zip(words).all(|(before, word)| number(before, word))
            }
        }
    }

    /// The number of a word after those that have the number `before`; `None` where there are too many.
    fn find(&mut self, before: u32, word: u128) -> Option<u32> {
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
        let mixed = (word as u64 ^ (word >> 64) as u64) ^ (u64::from(before) << 20);
        let last = slots.len() - 1;
        let mut place = (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize & last;
        while slots.get(place).is_some_and(|slot| slot.number != FREE && (slot.word != word || slot.before != before)) {
            place = (place + 1) & last;
        }
        slots.get_mut(place)
    }
}
