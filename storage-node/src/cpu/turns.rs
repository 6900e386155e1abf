//! In which order the pieces of work of many requests get a thread: those first whose request has used least CPU, so
//! that a short query does not wait for a long one (a multilevel feedback queue: Corbató et al., "An Experimental
//! Time-Sharing System", 1962).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

/// Requests on a level have used about four times as much CPU as those on the one before.
const LEVELS: usize = 8;
/// Every so many turns it is that of whoever has waited longest, so that long queries go on beside many short ones.
const OLDEST_EVERY: u64 = 4;

/// The CPU time that one request has used.
#[derive(Debug, Default)]
pub(crate) struct CpuUse {
    micros: AtomicU64,
}

impl CpuUse {
    /// Adds what a piece of its work took.
    pub(crate) fn add(&self, micros: u64) {
        // Ordering: a counter that guards nothing.
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// 0 up to a millisecond, 1 up to four, and so on.
    fn level(&self) -> usize {
        let millis = self.micros.load(Ordering::Relaxed) / 1_000;
        let bits = u64::BITS - millis.leading_zeros();
        usize::try_from(bits.div_ceil(2)).unwrap_or(LEVELS).min(LEVELS - 1)
    }
}

/// What waits for a thread.
#[derive(Debug)]
pub(crate) struct Turns<T> {
    /// With a number that tells in which order they came.
    levels: [VecDeque<(u64, T)>; LEVELS],
    came: u64,
    taken: u64,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { levels: std::array::from_fn(|_| VecDeque::new()), came: 0, taken: 0 }
    }
}

impl<T> Turns<T> {
    /// Adds a piece of work of a request that has used so much.
    pub(crate) fn push(&mut self, used: &CpuUse, work: T) {
        self.came += 1;
        if let Some(level) = self.levels.get_mut(used.level()) {
            level.push_back((self.came, work));
        }
    }

    /// How many pieces of work have their turn before one of a request that begins now.
    pub(crate) fn before_a_new_one(&self) -> u64 {
        let waiting = |level: &VecDeque<_>| u64::try_from(level.len()).unwrap_or(u64::MAX);
        let first = self.levels.first().map_or(0, waiting);
        let others: u64 = self.levels.iter().skip(1).map(waiting).fold(0, u64::saturating_add);
        first.saturating_add(others.min(first / (OLDEST_EVERY - 1)))
    }

    /// Whose turn it is.
    pub(crate) fn take(&mut self) -> Option<T> {
        self.taken += 1;
        let waiting = self.levels.iter_mut().filter(|level| !level.is_empty());
        let level = match self.taken.is_multiple_of(OLDEST_EVERY) {
            true => waiting.min_by_key(|level| level.front().map(|(came, _)| *came)),
            false => waiting.into_iter().next(),
        };
        level?.pop_front().map(|(_, work)| work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(millis: u64) -> CpuUse {
        let used = CpuUse::default();
        used.add(millis * 1_000);
        used
    }

    #[test]
    fn levels_grow_by_factors_of_four() {
        let levels =
            [0, 1, 3, 4, 15, 16, 63, 64, 1_023, 1_024, 1 << 20, u64::MAX / 1_000].map(|millis| used(millis).level());
        assert_eq!(levels, [0, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 7]);
    }

    #[test]
    fn short_requests_go_first_and_long_ones_go_on() {
        let mut turns = Turns::default();
        for name in ["long 1", "long 2", "long 3"] {
            turns.push(&used(500), name);
        }
        for name in ["short 1", "short 2", "short 3", "short 4", "short 5"] {
            turns.push(&used(0), name);
        }
        turns.push(&used(2), "middling");
        assert_eq!(turns.before_a_new_one(), 6, "five short ones, and in the meantime one of the others");
        let order: Vec<_> = std::iter::from_fn(|| turns.take()).collect();
        assert_eq!(
            order,
            ["short 1", "short 2", "short 3", "long 1", "short 4", "short 5", "middling", "long 2", "long 3"]
        );
        assert_eq!(turns.take(), None);
    }
}
