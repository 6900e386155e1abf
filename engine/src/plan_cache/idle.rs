//! A bounded cache that forgets what nobody asked for in a while, by the clock of the environment, and what is of an
//! older schema.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aubade_environment::Clock;
use aubade_proto::Version;
use moka::sync::Cache;

use super::PlanKey;

/// See the module's doc. Which entries a full cache keeps is decided by how often they were asked for.
#[derive(Debug)]
pub(super) struct IdleCache<V: Send + Sync + 'static> {
    entries: Cache<PlanKey, Arc<Aging<V>>>,
    clock: Arc<dyn Clock>,
    age_nanos: u64,
    /// When those that are too old were looked for last, by the clock.
    swept_nanos: AtomicU64,
}

#[derive(Debug)]
struct Aging<V> {
    value: V,
    /// When it was asked for last, by the clock.
    used_nanos: AtomicU64,
}

impl<V: Clone + Send + Sync + 'static> IdleCache<V> {
    /// An empty cache of at most `entries`, of which long ones count as several ([`PlanKey::weight`]). Each goes once nobody
    /// has asked for it for `age`.
    pub(super) fn new(entries: u64, age: Duration, clock: Arc<dyn Clock>) -> Self {
        let swept_nanos = AtomicU64::new(nanos(clock.now()));
        let entries = Cache::builder().max_capacity(entries).weigher(|key: &PlanKey, _| key.weight()).build();
        Self { entries, clock, age_nanos: nanos(age), swept_nanos }
    }

    /// The value of `key`, which stays for as long again.
    pub(super) fn get(&self, key: &PlanKey) -> Option<V> {
        let now = self.now();
        let entry = self.entries.get(key)?;
        if self.is_old(&entry, now) {
            self.entries.invalidate(key);
            return None;
        }
        // Ordering: a time by itself.
        entry.used_nanos.fetch_max(now, Ordering::Relaxed);
        Some(entry.value.clone())
    }

    /// Keeps `value`.
    pub(super) fn insert(&self, key: PlanKey, value: V) {
        let used_nanos = AtomicU64::new(self.now());
        self.entries.insert(key, Arc::new(Aging { value, used_nanos }));
    }

    /// Forgets the value of `key`.
    pub(super) fn remove(&self, key: &PlanKey) {
        self.entries.invalidate(key);
    }

    /// Forgets all values.
    pub(super) fn clear(&self) {
        self.entries.invalidate_all();
        // Until then it only does not find them.
        self.entries.run_pending_tasks();
    }

    /// Forgets what is of an older schema. Nobody can ask for it any more, and it would keep newer values out as long as
    /// these were not asked for more often.
    pub(super) fn forget_before(&self, schema_version: Version) {
        let old = self.entries.iter().filter(|(key, _)| key.schema_version < schema_version);
        old.for_each(|(key, _)| self.entries.invalidate(key.as_ref()));
        self.entries.run_pending_tasks();
    }

    /// All keys and values; that they are looked at keeps none of them.
    pub(super) fn all(&self) -> Vec<(Arc<PlanKey>, V)> {
        let now = self.now();
        // What is over the limit goes when there is time for it.
        self.entries.run_pending_tasks();
        let entries = self.entries.iter().filter(|(_, entry)| !self.is_old(entry, now));
        entries.map(|(key, entry)| (key, entry.value.clone())).collect()
    }

    fn is_old(&self, entry: &Aging<V>, now: u64) -> bool {
        now.saturating_sub(entry.used_nanos.load(Ordering::Relaxed)) >= self.age_nanos
    }

    /// The time. Once per age it lets go what is too old: nobody asks for that any more.
    fn now(&self) -> u64 {
        let now = nanos(self.clock.now());
        // Ordering: a time by itself; who moves it on does the work.
        let swept = self.swept_nanos.load(Ordering::Relaxed);
        if now.saturating_sub(swept) >= self.age_nanos
            && self.swept_nanos.compare_exchange(swept, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            let old = self.entries.iter().filter(|(_, entry)| self.is_old(entry, now));
            old.for_each(|(key, _)| self.entries.invalidate(key.as_ref()));
        }
        now
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manual_clock::ManualClock;
    use crate::plan_cache::Lookup;
    use crate::session::Parameters;
    use crate::statement::tests::Database;

    const AGE: Duration = Duration::from_secs(3_600);
    const NANO: Duration = Duration::from_nanos(1);

    async fn keys() -> [PlanKey; 2] {
        let template = Database::open().await.session.template();
        let key = |sql| Lookup::new(sql, &Parameters::default(), &template, Version(1)).unwrap().exact().clone();
        ["SELECT 1", "SELECT 2"].map(key)
    }

    #[tokio::test]
    async fn a_value_stays_until_nobody_asked_for_it_for_its_age() {
        let ([one, two], clock) = (keys().await, Arc::new(ManualClock::default()));
        let cache = IdleCache::new(10, AGE, Arc::clone(&clock) as Arc<dyn Clock>);
        cache.insert(one.clone(), 1);
        cache.insert(two.clone(), 2);
        for _ in 0..3 {
            clock.advance(AGE - NANO);
            assert_eq!(cache.get(&one), Some(1));
        }
        assert_eq!(cache.get(&two), None);
        clock.advance(AGE);
        assert_eq!(cache.get(&one), None);
        cache.insert(one.clone(), 3);
        assert_eq!(cache.get(&one), Some(3));
    }

    #[tokio::test]
    async fn what_nobody_asks_for_is_let_go() {
        let ([one, two], clock) = (keys().await, Arc::new(ManualClock::default()));
        let cache = IdleCache::new(10, AGE, Arc::clone(&clock) as Arc<dyn Clock>);
        let value = Arc::new(());
        cache.insert(one, Arc::clone(&value));
        clock.advance(AGE - NANO);
        assert_eq!(cache.all().len(), 1, "looking at it keeps it no longer");
        clock.advance(NANO);
        assert_eq!(cache.all().len(), 0);
        assert!(cache.get(&two).is_none());
        cache.entries.run_pending_tasks();
        assert_eq!(Arc::strong_count(&value), 1);
    }
}
