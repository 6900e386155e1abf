//! Results of fragments that the coordinator keeps: what aggregates at storage nodes leave of the segments of a scan, so
//! that a query which comes again asks for new segments only.

use std::collections::BTreeSet;
use std::sync::Arc;

use aubade_planner::{KeptResult, ResultKey, ResultStore};
use aubade_proto::SegmentId;
use moka::sync::Cache;

use crate::limits::FRAGMENT_RESULT_BYTES_MIN;

/// See the module's doc. Bounded by the bytes of what is kept: a new result gets in once it was asked for more often than
/// the one that was not used for longest.
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

    /// Forgets what is left of segments that no version names any more: no scan asks for that again.
    pub(crate) fn retain_segments(&self, named: &BTreeSet<SegmentId>) {
        for (key, result) in &self.cache {
            if !result.segments.is_subset(named) {
                // One that has just come in its place is lost as well, and made again.
                self.cache.invalidate(key.as_ref());
            }
        }
        self.cache.run_pending_tasks();
    }

    /// Forgets all of them.
    pub(crate) fn clear(&self) {
        self.cache.invalidate_all();
        // Until then it only does not find them.
        self.cache.run_pending_tasks();
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

#[cfg(test)]
mod tests {
    use crate::maintenance::forget_unnamed;
    use crate::statement::tests::Database;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_left_of_segments_that_are_gone_is_forgotten() {
        let db = Database::open().await;
        let rows = "AS SELECT value AS a, value % 10 AS b FROM generate_series(1, 1000)";
        db.run(&[&format!("CREATE TABLE t {rows}"), &format!("CREATE TABLE u {rows}")]).await;
        let queries = [
            "SELECT sum(a) FROM t WHERE b < 5",
            "SELECT sum(a) FROM u WHERE b < 5",
            "SELECT b, sum(a) FROM u WHERE b < 5 GROUP BY b",
            "SELECT count(*), sum(t.a) FROM t JOIN u ON t.a = u.a + 1 WHERE u.b < 5",
        ];
        db.run(&queries).await;
        let results = db.engine.results().unwrap();
        assert_eq!(results.count(), 4);
        forget_unnamed(&db.engine).await;
        assert_eq!(results.count(), 4);
        db.run(&["INSERT INTO t VALUES (2000, 1)"]).await;
        forget_unnamed(&db.engine).await;
        assert_eq!(results.count(), 4, "segments are named that were there before");
        db.run(&["DROP TABLE t"]).await;
        assert_eq!(results.count(), 2, "at once");
        db.run(&[&format!("CREATE OR REPLACE TABLE u {rows}")]).await;
        assert_eq!(results.count(), 0);
        db.run(&queries[1..3]).await;
        assert_eq!(results.count(), 2);
        db.run(&["DROP TABLE u"]).await;
        assert_eq!((results.count(), results.bytes()), (0, 0));
        db.engine.shutdown().await;
    }
}
