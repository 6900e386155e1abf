//! The buffer pool: decoded columns of segments in the memory of the coordinator.
//!
//! Segments never change, so a column that was decoded once is right for as long as the segment exists. To a scan the
//! pool is one more replica, asked first for segments of which it has all columns that the fragment reads:
//! [`BufferPoolClient`]. It runs the code of the storage nodes over its columns, with the same pruning.
//!
//! ```text
//!            FanOut ──▶ pool has all columns ──▶ BufferPoolClient ──▶ FragmentRunner over decoded columns
//!               │
//!               └────▶ it has not ──▶ storage node ──▶ missed(): what it cost ──▶ worth it? ──▶ queue ──▶ loader
//! ```
//! The loader reads from the second tier, a local disk ([`disk`]), before it asks a node.
//!
//! What is kept follows the weighted policy of FlexPushdownDB (Yang et al., VLDB 2021), over the columns that scans read
//! together: how often they were wanted, times what it costs not to have them (time at storage, and bytes over the wire),
//! per byte that they take. What was wanted long ago counts less and less, so that a single scan of a large table displaces
//! nothing that is in use.

mod client;
mod disk;
mod flights;
mod load;
mod pins;
mod state;
mod tiered_reader;
mod worth;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use aubade_catalog::snapshot::Table;
use aubade_catalog::{NodeEntry, RelationName, SegmentEntry};
use aubade_proto::{Error, ErrorCode, NodeId, RelationId, Result, SegmentId};
use aubade_storage_node::{DICTIONARY_TEXTS_MAX, DecodedSegment, FragmentKey, FragmentRunner};
use moka::sync::Cache;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::mpsc;

pub(crate) use client::BufferPoolClient;
pub use disk::BufferPoolDisk;
pub(crate) use disk::{DiskFigures, DiskTier};
use flights::Flights;
pub(crate) use load::{Loader, load_table};
use pins::PinningId;
use state::{ColumnOfSegment, State};
pub use worth::BufferPoolPolicy;
pub(crate) use worth::ColumnSet;
use worth::estimated_bytes;

use crate::limits::{BUFFER_POOL_KEPT_MAX, BUFFER_POOL_QUEUE};
use crate::memory_pool::Lender;

/// See the module's doc.
#[derive(Debug)]
pub(crate) struct BufferPool {
    bytes_max: usize,
    runner: Arc<FragmentRunner>,
    /// The second tier.
    disk: Option<Arc<DiskTier>>,
    state: Mutex<State>,
    /// Loads that are under way.
    flights: Flights,
    /// Whether a node is thought to have the result of a fragment over a segment.
    kept_at_nodes: Cache<(SegmentId, FragmentKey), bool>,
    wanted: mpsc::Sender<Wanted>,
}

/// A segment of which columns should be loaded.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    table: Arc<TableOfPool>,
    segment: Arc<SegmentEntry>,
    columns: ColumnSet,
}

impl Wanted {
    fn keys(&self) -> Vec<ColumnOfSegment> {
        self.columns.iter().map(|name| (self.segment.id, Arc::clone(name))).collect()
    }
}

/// The table of a segment.
#[derive(Debug)]
pub(crate) struct TableOfPool {
    pub(crate) id: RelationId,
    pub(crate) name: RelationName,
    schema: SchemaRef,
    /// Which columns have so few different values, by the statistics, that texts are kept as a dictionary.
    few_values: Vec<bool>,
}

impl From<&Table> for TableOfPool {
    fn from(table: &Table) -> Self {
        let is_few = |index| table.statistics.distinct_count(index).is_some_and(|count| count <= DICTIONARY_TEXTS_MAX);
        let few_values = (0..table.schema.fields().len()).map(is_few).collect();
        Self { id: table.id, name: table.name.clone(), schema: Arc::clone(&table.schema), few_values }
    }
}

impl TableOfPool {
    /// About what a column of so many rows takes once it is decoded.
    fn estimated_bytes(&self, column: &str, rows: u64) -> usize {
        let Ok(index) = self.schema.index_of(column) else { return 0 };
        let few_values = self.few_values.get(index).copied().unwrap_or(false);
        estimated_bytes(self.schema.field(index).data_type(), few_values, rows)
    }
}

/// One line of `system.buffer_pool`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct BufferPoolLine {
    schema_name: String,
    table_name: String,
    column_name: String,
    /// Segments of which the column is here.
    segments: u64,
    /// Those of which it is here as a dictionary.
    dictionaries: u64,
    bytes: u64,
    pinned: bool,
    /// Segments that were scanned here, and at storage nodes though they might have been here.
    hits: u64,
    misses: u64,
    /// What the hits would have cost at storage nodes and on the wire, about.
    saved_micros: u64,
}

impl BufferPool {
    /// A pool of that many bytes, and what has to run for it to be filled.
    pub(crate) fn new(
        bytes_max: usize,
        policy: BufferPoolPolicy,
        disk: Option<DiskTier>,
        runner: Arc<FragmentRunner>,
    ) -> (Arc<Self>, mpsc::Receiver<Wanted>) {
        let (wanted, receiver) = mpsc::channel(BUFFER_POOL_QUEUE);
        let pool = Self {
            bytes_max,
            runner,
            disk: disk.map(Arc::new),
            state: Mutex::new(State::new(policy)),
            flights: Flights::default(),
            kept_at_nodes: Cache::builder().max_capacity(BUFFER_POOL_KEPT_MAX).build(),
            wanted,
        };
        (Arc::new(pool), receiver)
    }

    /// As what a scan sees it.
    pub(crate) fn entry() -> NodeEntry {
        NodeEntry { id: Self::NODE, zone: String::new(), address: "buffer pool".to_owned() }
    }

    /// Stands for the pool among nodes.
    pub(crate) const NODE: NodeId = NodeId(uuid::Uuid::nil());

    pub(crate) fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// Bytes that it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.state.lock().bytes
    }

    pub(crate) fn runner(&self) -> &Arc<FragmentRunner> {
        &self.runner
    }

    /// The second tier, if there is one.
    pub(crate) fn disk(&self) -> Option<&Arc<DiskTier>> {
        self.disk.as_ref()
    }

    /// A scan begins: worth fades by their number.
    pub(crate) fn tick(&self) {
        let mut state = self.state.lock();
        state.now = state.now.wrapping_add(1);
    }

    /// Whether all of `columns` of a segment are here.
    pub(crate) fn holds(&self, id: SegmentId, columns: &[Arc<str>]) -> bool {
        let state = self.state.lock();
        state.segments.get(&id).is_some_and(|held| held.has_all(columns))
    }

    /// A segment of which all of `columns` are here. Counts as a use.
    pub(crate) fn get(&self, id: SegmentId, columns: &ColumnSet) -> Option<DecodedSegment> {
        self.state.lock().hit(id, columns)
    }

    /// Takes note that a segment was scanned at a storage node, and of what that cost; has the columns loaded if they are
    /// worth it.
    pub(crate) fn missed(
        &self,
        table: &Arc<TableOfPool>,
        segment: &Arc<SegmentEntry>,
        columns: &ColumnSet,
        cost_micros: f64,
    ) {
        // Rows are counted without any.
        if columns.is_empty() {
            return;
        }
        let mut state = self.state.lock();
        state.missed(table, segment.id, segment.rows, columns, cost_micros);
        let missing = columns.iter().filter(|column| state.lacks(segment.id, column)).cloned();
        let missing: Vec<Arc<str>> = missing.collect();
        if missing.iter().all(|column| state.loading.contains(&(segment.id, Arc::clone(column)))) {
            return;
        }
        // Pinned ones come whatever the others are worth.
        let (pinned, others): (Vec<_>, Vec<_>) = missing.into_iter().partition(|name| state.is_pinned(table.id, name));
        for columns in [pinned, others] {
            let wanted = Wanted { table: Arc::clone(table), segment: Arc::clone(segment), columns: columns.into() };
            if wanted.columns.is_empty() {
                continue;
            }
            let room = self.room(&state);
            if !state.admits(room, &wanted) {
                continue;
            }
            let keys = wanted.keys();
            // A full queue forgets: what is wanted again comes again.
            if self.wanted.try_send(wanted).is_ok() {
                state.loading.extend(keys);
            }
        }
    }

    /// Whether what is wanted would still find room.
    fn admits(&self, wanted: &Wanted) -> bool {
        let mut state = self.state.lock();
        let room = self.room(&state);
        state.admits(room, wanted)
    }

    /// The bytes that it may hold now.
    fn room(&self, state: &State) -> usize {
        self.bytes_max.saturating_sub(state.lent)
    }

    /// Bytes that queries have borrowed.
    pub(crate) fn lent_bytes(&self) -> usize {
        self.state.lock().lent
    }

    /// Whether a node is thought to have the result of a fragment over a segment: asking it costs less than a scan here.
    pub(crate) fn is_kept_at_node(&self, id: SegmentId, key: FragmentKey) -> bool {
        self.kept_at_nodes.get(&(id, key)).unwrap_or(false)
    }

    /// Takes note that a node has answered with a result that it may keep, and whether it had kept it.
    pub(crate) fn answered_by_node(&self, id: SegmentId, key: FragmentKey, was_kept: bool) {
        let before = self.kept_at_nodes.get(&(id, key));
        // One that it should have had, and has not, is not kept there.
        self.kept_at_nodes.insert((id, key), was_kept || before.is_none());
    }

    /// Takes in what was loaded, all or nothing; `false` where it is worth less than what would have to go for it.
    fn insert(&self, wanted: &Wanted, loaded: &DecodedSegment) -> bool {
        let mut state = self.state.lock();
        let id = loaded.id();
        let of = |name| Some((name, loaded.columns().get(name)?));
        let columns: Vec<_> = wanted.columns.iter().filter(|name| state.lacks(id, name)).filter_map(of).collect();
        let footer = if state.segments.contains_key(&id) { 0 } else { loaded.footer_bytes() };
        let bytes = columns.iter().map(|(_, column)| column.bytes()).fold(footer, usize::saturating_add);
        let room = self.room(&state);
        let has_room = state.make_room(room, bytes, wanted);
        if has_room {
            state.add(&wanted.table, loaded, &columns);
        }
        has_room
    }

    /// A load has ended.
    fn loaded(&self, wanted: &Wanted) {
        let mut state = self.state.lock();
        for key in wanted.keys() {
            state.loading.remove(&key);
        }
    }

    /// Which of `columns` of a segment are not here.
    fn missing(&self, id: SegmentId, columns: &[Arc<str>]) -> Vec<Arc<str>> {
        let state = self.state.lock();
        columns.iter().filter(|column| state.lacks(id, column)).cloned().collect()
    }

    /// Keeps columns of a table, whatever else is wanted; until the guard is dropped, unless it is told to keep them.
    ///
    /// # Errors
    /// `LimitExceeded` where they do not fit beside what else is kept so, by an estimate.
    pub(crate) fn pin(self: &Arc<Self>, table: &TableOfPool, columns: &[Arc<str>], rows: u64) -> Result<Pinning> {
        let of = |column: &Arc<str>| (Arc::clone(column), table.estimated_bytes(column, rows));
        let columns: BTreeMap<Arc<str>, usize> = columns.iter().map(of).collect();
        let mut state = self.state.lock();
        let more = columns.iter().filter(|(column, _)| !state.is_pinned(table.id, column));
        let more = more.map(|(_, bytes)| *bytes).fold(0, usize::saturating_add);
        let others = state.pinned.bytes();
        if others.saturating_add(more) > self.bytes_max {
            let text = format!(
                "{} takes about {more} bytes in the buffer pool, which has {} for columns, and {others} are taken by \
                 tables that are cached",
                table.name, self.bytes_max
            );
            return Err(Error::new(ErrorCode::LimitExceeded, text).hint(
                "name fewer columns, UNCACHE TABLE another table, or give the coordinator a larger --buffer-pool",
            ));
        }
        let id = state.pinned.begin(table.id, &columns);
        state.rank_again(table.id);
        Ok(Pinning { pool: Arc::clone(self), table: table.id, id, has_loaded: false })
    }

    /// Whether all of `columns` are kept whatever else is wanted.
    fn are_pinned(&self, table: RelationId, columns: &[Arc<str>]) -> bool {
        let state = self.state.lock();
        columns.iter().all(|column| state.is_pinned(table, column))
    }

    /// Forgets what is here of a table.
    pub(crate) fn unpin(&self, table: RelationId) {
        self.state.lock().forget_tables(&BTreeSet::from([table]));
    }

    /// Forgets tables that are gone, so that others have their room at once.
    pub(crate) fn forget_dropped(&self, tables: &BTreeSet<RelationId>) {
        let mut state = self.state.lock();
        state.forget_tables(tables);
        state.totals.retain(|(table, _), _| !tables.contains(table));
    }

    /// Forgets all columns and results of fragments. What CACHE TABLE has named is loaded again when it is wanted.
    pub(crate) async fn clear(&self) {
        {
            let mut state = self.state.lock();
            state.retain(|_| false);
            state.forget_past();
        }
        self.kept_at_nodes.invalidate_all();
        self.runner.discard_results();
        if let Some(disk) = &self.disk {
            disk.clear().await;
        }
    }

    /// Forgets segments that no version names any more.
    pub(crate) async fn retain_segments(&self, named: &BTreeSet<SegmentId>, tables: &BTreeSet<RelationId>) {
        self.state.lock().retain_segments(named, tables);
        if let Some(disk) = &self.disk {
            disk.retain(named).await;
        }
    }

    /// What it holds and did, by table and column.
    pub(crate) fn lines(&self, names: &BTreeMap<RelationId, RelationName>) -> Vec<BufferPoolLine> {
        let state = self.state.lock();
        let mut held: BTreeMap<(RelationId, Arc<str>), (u64, u64, u64)> = BTreeMap::new();
        for (table, name, column) in state.columns() {
            let (segments, dictionaries, bytes) = held.entry((table, Arc::clone(name))).or_default();
            *segments += 1;
            *dictionaries += u64::from(column.is_dictionary());
            *bytes += column.bytes() as u64;
        }
        // What is pinned may have given way to queries.
        let pinned: Vec<_> = state.pinned.columns().map(|(table, name)| (table, Arc::clone(name))).collect();
        let keys: BTreeSet<&(RelationId, Arc<str>)> = held.keys().chain(state.totals.keys()).chain(&pinned).collect();
        let lines = keys.into_iter().filter_map(|key| {
            let table = names.get(&key.0)?;
            let (segments, dictionaries, bytes) = held.get(key).copied().unwrap_or_default();
            let totals = state.totals.get(key).copied().unwrap_or_default();
            Some(BufferPoolLine {
                schema_name: table.schema.clone(),
                table_name: table.name.clone(),
                column_name: key.1.to_string(),
                segments,
                dictionaries,
                bytes,
                pinned: state.is_pinned(key.0, &key.1),
                hits: totals.hits,
                misses: totals.misses,
                saved_micros: totals.saved_micros as u64,
            })
        });
        let mut lines: Vec<_> = lines.collect();
        let order =
            |line: &BufferPoolLine| (line.schema_name.clone(), line.table_name.clone(), line.column_name.clone());
        lines.sort_by_cached_key(order);
        lines
    }
}

impl Lender for BufferPool {
    fn lend(&self, bytes: usize) -> bool {
        let mut state = self.state.lock();
        if self.room(&state) < bytes {
            return false;
        }
        state.lent = state.lent.saturating_add(bytes);
        let room = self.room(&state);
        state.shrink_to(room);
        true
    }

    fn repay(&self, bytes: usize) {
        let mut state = self.state.lock();
        state.lent = state.lent.saturating_sub(bytes);
    }
}

/// Columns that are pinned while they are loaded.
#[derive(Debug)]
pub(crate) struct Pinning {
    pool: Arc<BufferPool>,
    table: RelationId,
    id: PinningId,
    has_loaded: bool,
}

impl Pinning {
    /// All are here: they stay pinned.
    pub(crate) fn keep(mut self) {
        self.has_loaded = true;
    }
}

impl Drop for Pinning {
    fn drop(&mut self) {
        // Where not all is here, the load has failed, or whoever asked for it has gone.
        let mut state = self.pool.state.lock();
        state.pinned.end(self.table, self.id, self.has_loaded);
        state.rank_again(self.table);
    }
}
