//! What storage nodes are asked for when the pool is filled, and when.

use std::collections::BTreeSet;
use std::ops::Range;

use async_trait::async_trait;
use aubade_catalog::NodeEntry;
use aubade_catalog::snapshot::Table;
use aubade_environment::{Environment, Random, SeededRandom, TaskGroup};
use aubade_proto::{
    CallHeader, Epoch, NodeInfo, PutReceipt, ScanRequest, SegmentDescription, SegmentId, SegmentId as Id,
};
use aubade_storage_node::FragmentRunner;
use bytes::Bytes;
use futures::future::{join_all, select};
use futures::poll;
use parking_lot::Mutex;

use super::*;
use crate::buffer_pool::BufferPoolPolicy;
use crate::cluster::Member;
use crate::manual_clock::ManualClock;
use crate::memory_pool::Lender;
use crate::query::QueryRun;
use crate::statement::tests::Database;
use crate::storage_client::{ScanStream, StorageClient, StorageClients};

type Reads = Arc<Mutex<Vec<(SegmentId, Vec<Range<u64>>)>>>;

/// The nodes of an engine; takes note of what is read there.
#[derive(Debug)]
struct Noting {
    members: Vec<Arc<Member>>,
    reads: Reads,
}

impl StorageClients for Noting {
    fn client(&self, node: &NodeEntry) -> Result<Arc<dyn StorageClient>> {
        let member = self.members.iter().find(|member| member.entry.id == node.id).unwrap();
        Ok(Arc::new(NotingClient { member: Arc::clone(member), reads: Arc::clone(&self.reads) }))
    }
}

#[derive(Debug)]
struct NotingClient {
    member: Arc<Member>,
    reads: Reads,
}

fn refused() -> Error {
    Error::internal("only ranges are read in these tests")
}

#[async_trait]
impl StorageClient for NotingClient {
    async fn read_ranges(&self, header: &CallHeader, id: Id, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.reads.lock().push((id, ranges.to_vec()));
        // So that others find the load under way.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        self.member.client.read_ranges(header, id, ranges).await
    }

    async fn scan(&self, _: ScanRequest) -> Result<ScanStream> {
        Err(refused())
    }

    async fn info(&self, _: &CallHeader) -> Result<NodeInfo> {
        Err(refused())
    }

    async fn put_segment(&self, _: &CallHeader, _: &SegmentDescription, _: Bytes) -> Result<PutReceipt> {
        Err(refused())
    }

    async fn replicate_segment(&self, _: &CallHeader, _: &SegmentDescription, _: &[String]) -> Result<PutReceipt> {
        Err(refused())
    }

    async fn list_segments(&self, _: &CallHeader, _: Option<Id>, _: usize) -> Result<(Vec<SegmentDescription>, bool)> {
        Err(refused())
    }

    async fn delete_segments(&self, _: &CallHeader, _: &[Id]) -> Result<u64> {
        Err(refused())
    }

    async fn seal(&self, _: &CallHeader) -> Result<Epoch> {
        Err(refused())
    }
}

/// A pool beside an engine, whose nodes it reads from.
struct Filled {
    cluster: Arc<Cluster>,
    pool: Arc<BufferPool>,
    table: Arc<Table>,
    reads: Reads,
    wanted: Option<mpsc::Receiver<Wanted>>,
}

impl Filled {
    async fn new(db: &Database) -> Self {
        Self::in_environment(db, db.engine.environment().clone()).await
    }

    async fn in_environment(db: &Database, environment: Environment) -> Self {
        Self::of(db, environment, 16 << 20, BufferPoolPolicy::default()).await
    }

    async fn of(db: &Database, environment: Environment, bytes: usize, policy: BufferPoolPolicy) -> Self {
        let (snapshot, reads) = (db.engine.snapshot().await.unwrap(), Reads::default());
        let clients = Noting { members: db.engine.cluster().members(), reads: Arc::clone(&reads) };
        let runner = FragmentRunner::new(Arc::clone(&environment.clock), 2, TaskGroup::new(), 0).unwrap();
        let (pool, wanted) = BufferPool::new(bytes, policy, None, Arc::new(runner));
        let (clients, epoch) = (Arc::new(clients), db.engine.epoch());
        let cluster = Cluster::new(environment, clients, &snapshot, epoch, None, Some(Arc::clone(&pool)));
        let table = Arc::clone(snapshot.tables().next().unwrap());
        Self { cluster: Arc::new(cluster), pool, table, reads, wanted: Some(wanted) }
    }

    /// As CACHE TABLE does it.
    async fn cache(&self, columns: &[&str]) {
        let columns: Vec<Arc<str>> = columns.iter().map(|name| Arc::from(*name)).collect();
        let table = TableOfPool::from(self.table.as_ref());
        let pinned = self.pool.pin(&table, &columns, self.table.row_count()).unwrap();
        load_table(&self.cluster, &self.pool, &Arc::new(table), &self.table.segments, &columns).await.unwrap();
        pinned.keep();
    }

    /// Loads what queries have missed.
    async fn load_wanted(&self, wanted: &mut mpsc::Receiver<Wanted>) {
        while let Ok(next) = wanted.try_recv() {
            load(&self.cluster, &self.pool, &next, Source::Any).await.unwrap();
            self.pool.loaded(&next);
        }
    }

    /// What was read of which segment, in order.
    fn reads(&self) -> Vec<(SegmentId, Vec<Range<u64>>)> {
        let mut reads = std::mem::take(&mut *self.reads.lock());
        reads.sort_by_key(|(id, ranges)| (*id, ranges.first().map(|range| range.start)));
        reads
    }
}

async fn database() -> Database {
    let db = Database::open().await;
    let rows = "SELECT value AS a, value % 10 AS b, 'row ' || value AS c FROM generate_series(1, 1000)";
    db.run(&[&format!("CREATE TABLE t AS {rows}"), &format!("INSERT INTO t {rows}"), &format!("INSERT INTO t {rows}")])
        .await;
    db
}

#[tokio::test(flavor = "multi_thread")]
async fn what_many_cache_at_once_is_fetched_once() {
    let db = database().await;
    let one = Filled::new(&db).await;
    one.cache(&["a", "b"]).await;
    let once = one.reads();
    assert!(once.len() >= 3, "{once:?}");
    let many = Filled::new(&db).await;
    join_all((0..10).map(|_| many.cache(&["a", "b"]))).await;
    assert_eq!(many.reads(), once);
    // Those that want less ask for nothing either.
    let mixed = Filled::new(&db).await;
    join_all([mixed.cache(&["a", "b"]), mixed.cache(&["b"]), mixed.cache(&["a", "b"]), mixed.cache(&["a"])]).await;
    assert_eq!(mixed.reads(), once);
    db.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_is_given_up_is_taken_over() {
    let db = database().await;
    let filled = Filled::new(&db).await;
    let others = join_all((0..3).map(|_| filled.cache(&["a"])));
    {
        // Dropped once its first read is under way.
        let begun = async {
            while filled.reads.lock().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        select(filled.cache(&["a"]).boxed(), begun.boxed()).await;
    }
    others.await;
    let held = filled.table.segments.iter().filter(|segment| filled.pool.holds(segment.id, &[Arc::from("a")]));
    assert_eq!(held.count(), 3);
    let names = [(filled.table.id, filled.table.name.clone())].into();
    let lines = serde_json::to_value(filled.pool.lines(&names)).unwrap();
    assert_eq!((&lines[0]["column_name"], &lines[0]["pinned"]), (&"a".into(), &true.into()), "{lines}");
    db.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pinned_is_listed_when_it_has_given_way() {
    let db = database().await;
    let filled = Filled::new(&db).await;
    filled.cache(&["a"]).await;
    assert!(filled.pool.lend(16 << 20));
    let names = [(filled.table.id, filled.table.name.clone())].into();
    let lines = serde_json::to_value(filled.pool.lines(&names)).unwrap();
    let line = (&lines[0]["column_name"], &lines[0]["segments"], &lines[0]["pinned"]);
    assert_eq!(line, (&"a".into(), &0.into(), &true.into()), "{lines}");
    db.engine.shutdown().await;
}

fn set(columns: &[&str]) -> ColumnSet {
    columns.iter().map(|name| Arc::from(*name)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_told_twice_stays_alike_whatever_happens() {
    let db = database().await;
    for (seed, policy) in [(1, BufferPoolPolicy::Weighted), (2, BufferPoolPolicy::LeastFrequentlyUsed)] {
        // Room for about half of the columns.
        let mut filled = Filled::of(&db, db.engine.environment().clone(), 48 << 10, policy).await;
        let (pool, mut wanted) = (Arc::clone(&filled.pool), filled.wanted.take().unwrap());
        let table = Arc::new(TableOfPool::from(filled.table.as_ref()));
        let segments = filled.table.segments.clone();
        let sets = [&["a"][..], &["b"], &["c"], &["a", "b"], &["b", "c"], &["a", "b", "c"]];
        let (mut lent, mut pinned, mut evicted) = (0, Vec::new(), false);
        let random = SeededRandom::new(seed);
        let below = |bound| random.below(bound) as usize;
        for _ in 0..1_500 {
            let (columns, segment) = (set(sets[below(6)]), &segments[below(3)]);
            pool.tick();
            match below(40) {
                0 => pool.forget_dropped(&BTreeSet::from([table.id])),
                1 => pool.retain_segments(&BTreeSet::from([segment.id]), &BTreeSet::from([table.id])).await,
                2 => pool.clear().await,
                3 if lent == 0 && pool.lend(20 << 10) => lent = 20 << 10,
                4 => pool.repay(std::mem::take(&mut lent)),
                5 => pinned.extend(pool.pin(&table, &columns, 10).ok()),
                6 => pinned.clear(),
                7 => pinned.drain(..).for_each(crate::buffer_pool::Pinning::keep),
                8 => pool.unpin(table.id),
                9..15 => {
                    let _ = load_table(&filled.cluster, &pool, &table, &segments, &columns).await;
                }
                _ if pool.get(segment.id, &columns).is_some() => {}
                _ => pool.missed(&table, segment, &columns, below(2_000) as f64),
            }
            filled.load_wanted(&mut wanted).await;
            let state = pool.state.lock();
            state.check();
            assert!(state.bytes <= pool.bytes_max().saturating_sub(state.lent) && state.loading.is_empty());
            evicted |= segments.iter().any(|segment| !state.segments.contains_key(&segment.id));
        }
        assert!(evicted);
    }
    db.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_are_read_together_stay_together() {
    let db = database().await;
    let columns_bytes = {
        let filled = Filled::new(&db).await;
        filled.cache(&["a", "b"]).await;
        filled.pool.bytes()
    };
    // Room for both of all segments, or for other columns in their place.
    let bytes = columns_bytes + columns_bytes / 8;
    for (policy, keeps_both) in [(BufferPoolPolicy::Weighted, true), (BufferPoolPolicy::LeastFrequentlyUsed, false)] {
        let mut filled = Filled::of(&db, db.engine.environment().clone(), bytes, policy).await;
        let (pool, mut wanted) = (Arc::clone(&filled.pool), filled.wanted.take().unwrap());
        let table = Arc::new(TableOfPool::from(filled.table.as_ref()));
        let segments = &filled.table.segments;
        // c is wanted twice as often as b, which is of use only with a, and saves more so.
        for _ in 0..20 {
            for (columns, cost) in [(set(&["a", "b"]), 9_000.0), (set(&["a", "c"]), 2_000.0), (set(&["c"]), 100.0)] {
                pool.tick();
                for segment in segments {
                    if pool.get(segment.id, &columns).is_none() {
                        pool.missed(&table, segment, &columns, cost);
                    }
                }
                filled.load_wanted(&mut wanted).await;
            }
        }
        let holds_both = |segment: &&Arc<SegmentEntry>| pool.holds(segment.id, &set(&["a", "b"]));
        let both = segments.iter().filter(holds_both).count();
        assert_eq!(both == segments.len(), keeps_both, "{both} {pool:?}");
        assert!(!keeps_both || !segments.iter().any(|segment| pool.holds(segment.id, &set(&["c"]))), "{pool:?}");
    }
    db.engine.shutdown().await;
}

/// A loader beside a query that has missed all segments of a column, on a clock that stands still.
struct Loading {
    clock: Arc<ManualClock>,
    filled: Filled,
    query: QueryRun,
    run: BoxFuture<'static, ()>,
}

impl Loading {
    async fn new(db: &Database) -> Self {
        let clock = Arc::new(ManualClock::default());
        let environment = Environment { clock: Arc::clone(&clock) as _, ..db.engine.environment().clone() };
        let mut filled = Filled::in_environment(db, environment.clone()).await;
        let queries = QueryLog::default();
        let query = QueryRun::begin(&environment, &queries, environment.new_uuid(), "SELECT a FROM t", None);
        let (cluster, pool) = (Arc::clone(&filled.cluster), Arc::clone(&filled.pool));
        let loader = Loader { cluster, pool, queries, wanted: filled.wanted.take().unwrap() };
        let run = loader.run(db.engine.snapshot().await.unwrap()).boxed();
        let table = Arc::new(TableOfPool::from(filled.table.as_ref()));
        for segment in &filled.table.segments {
            filled.pool.missed(&table, segment, &set(&["a"]), 1_000.0);
        }
        Self { clock, filled, query, run }
    }

    /// How many segments are in the pool once the loader has done what it does without more time.
    async fn loaded(&mut self) -> usize {
        let held = |pool: &BufferPool, segment: &SegmentEntry| pool.holds(segment.id, &[Arc::from("a")]);
        loop {
            assert!(poll!(&mut self.run).is_pending());
            let begun: BTreeSet<SegmentId> = self.filled.reads.lock().iter().map(|(id, _)| *id).collect();
            let held = self.filled.table.segments.iter().filter(|segment| held(&self.filled.pool, segment)).count();
            if begun.len() == held {
                return held;
            }
            tokio::task::yield_now().await;
        }
    }

    /// The same some time later, at which the loader has looked more than once.
    async fn loaded_after(&mut self, time: Duration) -> usize {
        for _ in 0..10 {
            self.clock.advance(time / 10);
            self.loaded().await;
        }
        self.loaded().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn loads_begin_when_the_query_that_caused_them_is_over() {
    let db = database().await;
    let mut loading = Loading::new(&db).await;
    assert_eq!(loading.loaded().await, 0);
    assert_eq!(loading.loaded_after(BUFFER_POOL_PAUSE_MIN / 2).await, 0);
    loading.query.finish();
    assert_eq!(loading.loaded_after(BUFFER_POOL_IDLE_LOOK).await, 3);
    db.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn loads_go_on_one_at_a_time_beside_queries_that_never_end() {
    let db = database().await;
    let mut loading = Loading::new(&db).await;
    assert_eq!(loading.loaded().await, 0);
    for done in 1..=3 {
        assert_eq!(loading.loaded_after(BUFFER_POOL_PAUSE_MIN / 2).await, done - 1);
        assert_eq!(loading.loaded_after(BUFFER_POOL_PAUSE_MIN / 2).await, done);
    }
    db.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_of_what_is_here_already_does_not_make_the_next_one_come_sooner() {
    let db = database().await;
    let mut loading = Loading::new(&db).await;
    assert_eq!(loading.loaded().await, 0);
    // The first load takes as long as a pause.
    loading.clock.advance(BUFFER_POOL_PAUSE_MIN);
    assert!(poll!(&mut loading.run).is_pending());
    assert_eq!(loading.filled.reads.lock().len(), 1);
    loading.clock.advance(BUFFER_POOL_PAUSE_MIN);
    assert_eq!(loading.loaded().await, 1);
    // Somebody else loads the second segment before its turn comes.
    let second = loading.filled.table.segments.get(1..2).unwrap();
    let table = Arc::new(TableOfPool::from(loading.filled.table.as_ref()));
    load_table(&loading.filled.cluster, &loading.filled.pool, &table, second, &[Arc::from("a")]).await.unwrap();
    let pause = BUFFER_POOL_PAUSE_MIN * BUFFER_POOL_PAUSE_FACTOR;
    assert_eq!(loading.loaded_after(pause).await, 2);
    assert_eq!(loading.loaded_after(pause / 2).await, 2);
    assert_eq!(loading.loaded_after(pause / 2).await, 3);
    db.engine.shutdown().await;
}
