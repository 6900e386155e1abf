//! Results of fragments that the coordinator keeps: what aggregates at storage nodes leave of the segments of a scan, so
//! that a query which comes again asks for new segments only.

use std::sync::Arc;

use aubade_planner::{KeptResult, ResultKey, ResultStore};
use moka::sync::Cache;

use crate::limits::FRAGMENT_RESULT_BYTES_MIN;

/// See the module's doc. Bounded by the bytes of what is kept; what was used least goes first.
#[derive(Debug)]
pub(crate) struct FragmentResults {
    cache: Cache<ResultKey, Arc<KeptResult>>,
}

impl FragmentResults {
    /// With room for so many bytes.
    pub(crate) fn new(bytes_max: u64) -> Self {
        let weigh = |_: &ResultKey, result: &Arc<KeptResult>| {
            u32::try_from(result.bytes().saturating_add(FRAGMENT_RESULT_BYTES_MIN)).unwrap_or(u32::MAX)
        };
        Self { cache: Cache::builder().max_capacity(bytes_max).weigher(weigh).build() }
    }

    /// What is kept takes so many bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.cache.run_pending_tasks();
        self.cache.weighted_size()
    }

    /// How many results there are.
    pub(crate) fn count(&self) -> u64 {
        self.cache.run_pending_tasks();
        self.cache.entry_count()
    }

    /// Forgets all of them.
    pub(crate) fn clear(&self) {
        self.cache.invalidate_all();
    }
}

impl ResultStore for FragmentResults {
    fn get(&self, key: &ResultKey) -> Option<Arc<KeptResult>> {
        self.cache.get(key)
    }

    fn add(&self, key: ResultKey, result: KeptResult) {
        self.cache.insert(key, Arc::new(result));
    }

    fn remove(&self, key: &ResultKey) {
        self.cache.invalidate(key);
    }
}
