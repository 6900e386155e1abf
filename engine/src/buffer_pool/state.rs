//! What the pool holds, and what goes when there is no room.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use aubade_proto::{RelationId, SegmentId};
use aubade_storage_node::{DecodedColumn, DecodedSegment};
use moka::sync::Cache;

use super::pins::Pins;
use super::worth::{BufferPoolPolicy, ColumnSet, MeanCost, Rank, Wants, unknown_cost_micros};
use super::{TableOfPool, Wanted};
use crate::limits::{BUFFER_POOL_PAST_MAX, BUFFER_POOL_SETS_MAX};

pub(super) type ColumnOfSegment = (SegmentId, Arc<str>);
type TotalsOfColumns = BTreeMap<(RelationId, Arc<str>), Totals>;

#[derive(Debug)]
pub(super) struct State {
    policy: BufferPoolPolicy,
    pub(super) segments: HashMap<SegmentId, Held>,
    /// The columns that may go, those worth least per byte first.
    ranked: BTreeSet<(Rank, SegmentId, Arc<str>)>,
    /// Segments whose columns have to be ranked again before something goes: they were wanted since they were ranked.
    stale: HashSet<SegmentId>,
    /// What was wanted of segments of which nothing is here.
    past: Cache<SegmentId, Wants>,
    /// What scans of some columns of a table cost.
    costs: Cache<(RelationId, ColumnSet), MeanCost>,
    pub(super) bytes: usize,
    /// What it may not use for now, since queries would fail without it.
    pub(super) lent: usize,
    /// Counts scans.
    pub(super) now: u64,
    /// Columns on their way in. Those that are queued more than once are fetched once: by then they are here.
    pub(super) loading: HashSet<ColumnOfSegment>,
    pub(super) pinned: Pins,
    pub(super) totals: TotalsOfColumns,
}

/// A segment with the columns that are here.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) table: Arc<TableOfPool>,
    pub(super) segment: DecodedSegment,
    /// Of each column that is here.
    ranks: BTreeMap<Arc<str>, Rank>,
    wants: Wants,
}

/// Of one column of a table, also over what is no longer here.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub(super) hits: u64,
    pub(super) misses: u64,
    pub(super) saved_micros: f64,
    /// What it takes, once it was here.
    bytes_per_row: Option<f64>,
}

impl Held {
    pub(super) fn has_all(&self, columns: &[Arc<str>]) -> bool {
        !columns.is_empty() && columns.iter().all(|column| self.ranks.contains_key(column))
    }
}

impl State {
    pub(super) fn new(policy: BufferPoolPolicy) -> Self {
        Self {
            policy,
            segments: HashMap::new(),
            ranked: BTreeSet::new(),
            stale: HashSet::new(),
            past: Cache::builder().max_capacity(BUFFER_POOL_PAST_MAX).build(),
            costs: Cache::builder().max_capacity(BUFFER_POOL_SETS_MAX).build(),
            bytes: 0,
            lent: 0,
            now: 0,
            loading: HashSet::new(),
            pinned: Pins::default(),
            totals: BTreeMap::new(),
        }
    }

    pub(super) fn columns(&self) -> impl Iterator<Item = (RelationId, &Arc<str>, &Arc<DecodedColumn>)> {
        self.segments
            .values()
            .flat_map(|held| held.segment.columns().iter().map(|(name, column)| (held.table.id, name, column)))
    }

    pub(super) fn lacks(&self, id: SegmentId, column: &Arc<str>) -> bool {
        !self.segments.get(&id).is_some_and(|held| held.ranks.contains_key(column))
    }

    pub(super) fn is_pinned(&self, table: RelationId, column: &Arc<str>) -> bool {
        self.pinned.contains(table, column)
    }

    /// Columns that come together displace only what ranks below this: none of them is of use without the one that is
    /// worth least.
    fn claim_of(&self, wanted: &Wanted) -> Rank {
        let (id, table) = (wanted.segment.id, &wanted.table);
        let past;
        let wants = match self.segments.get(&id) {
            Some(held) => &held.wants,
            None => {
                past = self.past.get(&id).unwrap_or_else(|| Wants::new(self.policy));
                &past
            }
        };
        let ranks = wants.ranks(|column| self.bytes_to_rank(table, id, wanted.segment.rows, column));
        let claims = wanted.columns.iter().map(|column| match self.is_pinned(table.id, column) {
            true => Rank::MAX,
            false => ranks.get(column).map_or(Rank::MIN, |rank| wants.claim(*rank)),
        });
        claims.min().unwrap_or(Rank::MAX)
    }

    /// What a column of a segment takes, or would take, of the room that is shared out by ranks.
    fn bytes_to_rank(&self, table: &TableOfPool, id: SegmentId, rows: u64, column: &Arc<str>) -> usize {
        // It is here in any case.
        if self.is_pinned(table.id, column) {
            return 0;
        }
        let here = self.segments.get(&id).and_then(|held| held.segment.columns().get(column));
        here.map_or_else(|| bytes_of(&self.totals, table, column, rows), |column| column.bytes())
    }

    /// Whether what is wanted would find room, by itself or in the place of what is worth less.
    pub(super) fn admits(&mut self, bytes_max: usize, wanted: &Wanted) -> bool {
        let of = |column| bytes_of(&self.totals, &wanted.table, column, wanted.segment.rows);
        let bytes = wanted.columns.iter().map(of).fold(0, usize::saturating_add);
        self.goes_for(bytes_max, bytes, wanted).is_some()
    }

    /// What has to go for so many bytes of what is wanted; `None` where that is not enough, or worth more.
    fn goes_for(&mut self, bytes_max: usize, bytes: usize, wanted: &Wanted) -> Option<Vec<ColumnOfSegment>> {
        let mut free = bytes_max.saturating_sub(self.bytes);
        if free >= bytes {
            return Some(Vec::new());
        }
        self.rank_stale();
        let (claim, mut goes) = (self.claim_of(wanted), Vec::new());
        let ranks_sets = self.policy.ranks_sets();
        // Where sets are not ranked, a column must not take the place of those that it is of use with.
        let may_go = |(_, id, _): &&(Rank, SegmentId, Arc<str>)| ranks_sets || *id != wanted.segment.id;
        let mut less = self.ranked.iter().take_while(|(rank, _, _)| *rank < claim).filter(may_go).peekable();
        while free < bytes {
            let (rank, id, name) = less.next()?;
            let mut go = |name| {
                let column = self.segments.get(id).and_then(|held| held.segment.columns().get(name));
                free = free.saturating_add(column.map_or(0, |column| column.bytes()));
                goes.push((*id, Arc::clone(name)));
            };
            go(name);
            // What is of use together goes together.
            let is_with_it = |(other, of, _): &&(Rank, SegmentId, Arc<str>)| (other, of) == (rank, id);
            while let Some((_, _, name)) = less.next_if(|next| ranks_sets && *rank > Rank::MIN && is_with_it(next)) {
                go(name);
            }
        }
        Some(goes)
    }

    /// Gives the columns their places that were wanted since they had them.
    fn rank_stale(&mut self) {
        std::mem::take(&mut self.stale).into_iter().for_each(|id| self.rank_segment(id));
    }

    /// Makes room for so many bytes of what is wanted; false, and nothing goes, where that is not enough.
    pub(super) fn make_room(&mut self, bytes_max: usize, bytes: usize, wanted: &Wanted) -> bool {
        let Some(goes) = self.goes_for(bytes_max, bytes, wanted) else { return false };
        for (id, name) in goes {
            self.remove(id, &name);
        }
        true
    }

    /// Takes away what is worth least, and at last what is pinned, until no more than so many bytes are here.
    pub(super) fn shrink_to(&mut self, bytes_max: usize) {
        if self.bytes <= bytes_max {
            return;
        }
        self.rank_stale();
        while self.bytes > bytes_max {
            let ranked = self.ranked.first().map(|(_, id, name)| (*id, Arc::clone(name)));
            let of = |(id, held): (&SegmentId, &Held)| Some((*id, Arc::clone(held.ranks.keys().next()?)));
            let Some((id, name)) = ranked.or_else(|| self.segments.iter().find_map(of)) else { break };
            if !self.remove(id, &name) {
                break;
            }
        }
    }

    /// A segment of which all of `columns` are here, which were wanted.
    pub(super) fn hit(&mut self, id: SegmentId, columns: &ColumnSet) -> Option<DecodedSegment> {
        let held = self.segments.get_mut(&id).filter(|held| held.has_all(columns))?;
        let (table, rows) = (held.table.id, held.segment.rows_total());
        let here = held.segment.columns();
        let bytes_of = |column: &Arc<str>| here.get(column).map_or(1, |column| column.bytes().max(1));
        let all_bytes = columns.iter().map(bytes_of).fold(0, usize::saturating_add);
        let cost = self.costs.get(&(table, Arc::clone(columns))).and_then(|cost| cost.of(rows));
        let cost = cost.or_else(|| held.wants.cost_micros(columns));
        let cost_micros = cost.unwrap_or_else(|| unknown_cost_micros(all_bytes));
        for column in columns.iter() {
            let totals = self.totals.entry((table, Arc::clone(column))).or_default();
            totals.hits += 1;
            totals.saved_micros += cost_micros * bytes_of(column) as f64 / all_bytes as f64;
        }
        held.wants.used(columns, cost_micros, self.now);
        self.stale.insert(id);
        Some(held.segment.clone())
    }

    /// Columns of a segment were wanted, of which some are not here; the scan has cost so much.
    pub(super) fn missed(&mut self, table: &TableOfPool, id: SegmentId, rows: u64, columns: &ColumnSet, micros: f64) {
        for column in columns.iter() {
            self.totals.entry((table.id, Arc::clone(column))).or_default().misses += 1;
        }
        // A single scan may have been a slow one.
        let of_table = (table.id, Arc::clone(columns));
        let mut cost = self.costs.get(&of_table).unwrap_or_default();
        cost.add(micros, rows);
        self.costs.insert(of_table, cost);
        let micros = cost.of(rows).unwrap_or(micros);
        if let Some(held) = self.segments.get_mut(&id) {
            held.wants.used(columns, micros, self.now);
            self.stale.insert(id);
            return;
        }
        let mut wants = self.past.get(&id).unwrap_or_else(|| Wants::new(self.policy));
        wants.used(columns, micros, self.now);
        self.past.insert(id, wants);
    }

    /// Takes in columns of a segment.
    pub(super) fn add(
        &mut self,
        table: &Arc<TableOfPool>,
        loaded: &DecodedSegment,
        columns: &[(&Arc<str>, &Arc<DecodedColumn>)],
    ) {
        let (id, rows) = (loaded.id(), loaded.rows_total().max(1));
        let (bytes, past, policy) = (&mut self.bytes, &self.past, self.policy);
        let held = self.segments.entry(id).or_insert_with(|| {
            *bytes = bytes.saturating_add(loaded.footer_bytes());
            Held {
                table: Arc::clone(table),
                segment: loaded.without_columns(),
                ranks: BTreeMap::new(),
                wants: past.remove(&id).unwrap_or_else(|| Wants::new(policy)),
            }
        });
        for (name, column) in columns {
            *bytes = bytes.saturating_add(column.bytes());
            held.segment.add(Arc::clone(name), Arc::clone(column));
            held.ranks.insert(Arc::clone(name), Rank::MIN);
            let totals = self.totals.entry((table.id, Arc::clone(name))).or_default();
            totals.bytes_per_row = Some(column.bytes() as f64 / rows as f64);
            if !self.pinned.contains(table.id, name) {
                self.ranked.insert((Rank::MIN, id, Arc::clone(name)));
            }
        }
        self.rank_segment(id);
    }

    /// Gives the columns of a segment their places.
    fn rank_segment(&mut self, id: SegmentId) {
        let Some(held) = self.segments.get(&id) else { return };
        let rows = held.segment.rows_total();
        let ranks = held.wants.ranks(|column| self.bytes_to_rank(&held.table, id, rows, column));
        let Some(held) = self.segments.get_mut(&id) else { return };
        for (name, rank) in &mut held.ranks {
            let before = std::mem::replace(rank, ranks.get(name).copied().unwrap_or(Rank::MIN));
            if let Some((_, id, name)) = self.ranked.take(&(before, id, Arc::clone(name))) {
                self.ranked.insert((*rank, id, name));
            }
        }
    }

    /// Takes a column away; false where it is not here.
    fn remove(&mut self, id: SegmentId, name: &Arc<str>) -> bool {
        let Some(held) = self.segments.get_mut(&id) else { return false };
        let Some((rank, column)) = held.ranks.remove(name).zip(held.segment.remove(name)) else { return false };
        self.ranked.remove(&(rank, id, Arc::clone(name)));
        self.bytes = self.bytes.saturating_sub(column.bytes());
        if held.ranks.is_empty() {
            self.bytes = self.bytes.saturating_sub(held.segment.footer_bytes());
            self.stale.remove(&id);
            if let Some(held) = self.segments.remove(&id) {
                self.past.insert(id, held.wants);
            }
        }
        true
    }

    /// What was wanted of segments that are not here, and what scans have cost, is not known any more.
    pub(super) fn forget_past(&mut self) {
        self.past.invalidate_all();
        self.costs.invalidate_all();
    }

    pub(super) fn retain_segments(&mut self, named: &BTreeSet<SegmentId>, tables: &BTreeSet<RelationId>) {
        self.retain(|held| named.contains(&held.segment.id()));
        self.pinned.retain(|table| tables.contains(&table));
        self.totals.retain(|(table, _), _| tables.contains(table));
    }

    /// Takes away what is here of tables.
    pub(super) fn forget_tables(&mut self, tables: &BTreeSet<RelationId>) {
        self.pinned.retain(|table| !tables.contains(&table));
        self.retain(|held| !tables.contains(&held.table.id));
    }

    /// Takes away the segments that are not to be kept.
    pub(super) fn retain(&mut self, keep: impl Fn(&Held) -> bool) {
        let gone = self.segments.iter().filter(|(_, held)| !keep(held));
        let gone = gone.flat_map(|(id, held)| held.ranks.keys().map(|name| (*id, Arc::clone(name))));
        for (id, name) in gone.collect::<Vec<_>>() {
            self.remove(id, &name);
            // Nobody asks for it any more.
            self.past.invalidate(&id);
        }
    }

    /// Which columns of a table are pinned has changed.
    pub(super) fn rank_again(&mut self, table: RelationId) {
        let of_table = self.segments.iter().filter(|(_, held)| held.table.id == table);
        let places =
            of_table.flat_map(|(id, held)| held.ranks.iter().map(|(name, rank)| (*rank, *id, Arc::clone(name))));
        for place in places.collect::<Vec<_>>() {
            self.stale.insert(place.1);
            match self.is_pinned(table, &place.2) {
                true => self.ranked.remove(&place),
                false => self.ranked.insert(place),
            };
        }
    }
}

/// About what a column of a segment with so many rows takes: as much as other segments, once one was here.
fn bytes_of(totals: &TotalsOfColumns, table: &TableOfPool, column: &Arc<str>, rows: u64) -> usize {
    let totals = totals.get(&(table.id, Arc::clone(column)));
    match totals.and_then(|totals| totals.bytes_per_row) {
        Some(bytes) => (bytes * rows as f64) as usize,
        None => table.estimated_bytes(column, rows),
    }
}

#[cfg(test)]
impl State {
    /// Asserts that what is told twice is told alike.
    pub(super) fn check(&self) {
        let held = || self.segments.iter().flat_map(|(id, held)| held.ranks.iter().map(move |rank| (id, held, rank)));
        let ranked = held().filter(|(_, held, (name, _))| !self.is_pinned(held.table.id, name));
        let ranked: BTreeSet<_> = ranked.map(|(id, _, (name, rank))| (*rank, *id, Arc::clone(name))).collect();
        assert_eq!(ranked, self.ranked);
        let bytes = |held: &Held| {
            assert!(held.segment.columns().keys().eq(held.ranks.keys()) && !held.ranks.is_empty());
            held.segment.columns().values().map(|column| column.bytes()).sum::<usize>() + held.segment.footer_bytes()
        };
        assert_eq!(self.bytes, self.segments.values().map(bytes).sum::<usize>());
        assert!(self.stale.iter().all(|id| self.segments.contains_key(id)));
        assert!(self.segments.keys().all(|id| !self.past.contains_key(id)));
    }
}
