//! Keys of a dictionary: what was found for one is at a place for each pair of what came before and the key.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef};

use crate::limits::PACKED_PLACES_MAX;

const FREE: u32 = u32::MAX;

/// The numbers that a table has given for keys of one dictionary, as far as there are places for them.
pub(super) struct KeyPlaces {
    /// Of the dictionary.
    texts: ArrayRef,
    /// The key that stands for null, after those of the texts.
    null: usize,
    /// For each number by the keys before those by each key, and last for null; [`FREE`] where there is none.
    numbers: Vec<u32>,
}

impl KeyPlaces {
    pub(super) fn of(texts: &ArrayRef) -> Self {
        Self { texts: Arc::clone(texts), null: texts.len(), numbers: Vec::new() }
    }

    /// Whether keys are those of a dictionary.
    pub(super) fn are_of(&self, texts: &ArrayRef) -> bool {
        Arc::ptr_eq(texts, &self.texts) || texts.to_data().ptr_eq(&self.texts.to_data())
    }

    /// Bytes that it holds.
    pub(super) fn memory_bytes(&self) -> usize {
        self.numbers.capacity() * size_of::<u32>()
    }

    /// The key that stands for null.
    pub(super) fn null(&self) -> usize {
        self.null
    }

    #[inline]
    fn place(&self, before: usize, key: usize) -> usize {
        before.saturating_mul(self.null + 1).saturating_add(key)
    }

    #[inline]
    pub(super) fn get(&self, before: usize, key: usize) -> Option<u32> {
        self.numbers.get(self.place(before, key)).copied().filter(|number| *number != FREE)
    }

    pub(super) fn set(&mut self, before: usize, key: usize, number: u32) {
        let place = self.place(before, key);
        if place >= PACKED_PLACES_MAX {
            return;
        }
        if place >= self.numbers.len() {
            self.numbers.resize((place + 1).next_power_of_two(), FREE);
        }
        if let Some(known) = self.numbers.get_mut(place) {
            *known = number;
        }
    }
}
