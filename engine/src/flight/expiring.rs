//! A bounded map that forgets what was not used for a while, and what is idle longest when full.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aubade_environment::Clock;
use parking_lot::Mutex;

/// When an entry was used last; the number keeps entries of the same moment apart.
type Use = (Duration, u64);

/// See the module's doc. Values are cloned out, so they are handles of something shared.
pub(super) struct Expiring<K, V> {
    clock: Arc<dyn Clock>,
    capacity: usize,
    idle: Duration,
    inner: Mutex<Inner<K, V>>,
}

/// Invariant: `entries` and `by_use` hold the same keys.
struct Inner<K, V> {
    entries: BTreeMap<K, (V, Use)>,
    by_use: BTreeMap<Use, K>,
    uses: u64,
}

impl<K: Ord + Clone, V: Clone> Expiring<K, V> {
    /// An empty map for at most `capacity` entries (at least one), each for `idle` after its last use.
    pub(super) fn new(clock: Arc<dyn Clock>, capacity: usize, idle: Duration) -> Self {
        let inner = Inner { entries: BTreeMap::new(), by_use: BTreeMap::new(), uses: 0 };
        Self { clock, capacity: capacity.max(1), idle, inner: Mutex::new(inner) }
    }

    /// The value of `key`; counts as a use.
    pub(super) fn get(&self, key: &K) -> Option<V> {
        let mut forgotten = Vec::new();
        let mut inner = self.inner.lock();
        inner.forget_idle(self.clock.now(), self.idle, &mut forgotten);
        let found = inner.touch(key, self.clock.now());
        // What goes may be large; it is dropped outside the lock.
        drop(inner);
        found
    }

    /// The value of `key`, or `value`, which is then kept.
    pub(super) fn get_or_insert(&self, key: K, value: V) -> V {
        let now = self.clock.now();
        let mut forgotten = Vec::new();
        let mut inner = self.inner.lock();
        inner.forget_idle(now, self.idle, &mut forgotten);
        if let Some(found) = inner.touch(&key, now) {
            return found;
        }
        while inner.entries.len() >= self.capacity && inner.forget_oldest(&mut forgotten) {}
        inner.insert(key, value.clone(), now);
        drop(inner);
        value
    }

    /// Takes the value of `key` out.
    pub(super) fn remove(&self, key: &K) -> Option<V> {
        let mut inner = self.inner.lock();
        let (value, used) = inner.entries.remove(key)?;
        inner.by_use.remove(&used);
        Some(value)
    }

    /// How many entries there are, forgotten ones included until the next use.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.inner.lock().entries.len()
    }
}

impl<K: Ord + Clone, V: Clone> Inner<K, V> {
    fn next_use(&mut self, now: Duration) -> Use {
        self.uses = self.uses.wrapping_add(1);
        (now, self.uses)
    }

    fn touch(&mut self, key: &K, now: Duration) -> Option<V> {
        let used = self.next_use(now);
        let entry = self.entries.get_mut(key)?;
        self.by_use.remove(&entry.1);
        entry.1 = used;
        self.by_use.insert(used, key.clone());
        Some(entry.0.clone())
    }

    fn insert(&mut self, key: K, value: V, now: Duration) {
        let used = self.next_use(now);
        self.by_use.insert(used, key.clone());
        self.entries.insert(key, (value, used));
    }

    fn forget_idle(&mut self, now: Duration, idle: Duration, forgotten: &mut Vec<V>) {
        while let Some((used, _)) = self.by_use.first_key_value() {
            if now.saturating_sub(used.0) < idle {
                return;
            }
            self.forget_oldest(forgotten);
        }
    }

    fn forget_oldest(&mut self, forgotten: &mut Vec<V>) -> bool {
        let Some((_, key)) = self.by_use.pop_first() else { return false };
        forgotten.extend(self.entries.remove(&key).map(|(value, _)| value));
        true
    }
}

impl<K, V> fmt::Debug for Expiring<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Expiring").field("capacity", &self.capacity).field("idle", &self.idle).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manual_clock::ManualClock;

    fn map(capacity: usize) -> (Arc<ManualClock>, Expiring<u32, &'static str>) {
        let clock = Arc::new(ManualClock::default());
        (Arc::clone(&clock), Expiring::new(clock, capacity, Duration::from_secs(60)))
    }

    #[test]
    fn a_use_keeps_an_entry_alive_and_idleness_ends_it() {
        let (clock, map) = map(10);
        map.get_or_insert(1, "one");
        clock.advance(Duration::from_secs(40));
        assert_eq!(map.get(&1), Some("one"));
        clock.advance(Duration::from_secs(40));
        assert_eq!(map.get(&1), Some("one"));
        clock.advance(Duration::from_secs(60));
        assert_eq!(map.get(&1), None);
        assert_eq!(map.len(), 0);
    }

    #[test]
    fn the_entry_that_is_idle_longest_makes_room() {
        let (_, map) = map(2);
        map.get_or_insert(1, "one");
        map.get_or_insert(2, "two");
        map.get(&1);
        map.get_or_insert(3, "three");
        assert_eq!((map.get(&1), map.get(&2), map.get(&3)), (Some("one"), None, Some("three")));
    }

    #[test]
    fn the_first_of_two_inserts_stays() {
        let (_, map) = map(2);
        assert_eq!(map.get_or_insert(1, "first"), "first");
        assert_eq!(map.get_or_insert(1, "second"), "first");
        assert_eq!(map.remove(&1), Some("first"));
        assert_eq!(map.remove(&1), None);
    }
}
