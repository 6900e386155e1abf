//! What the pool holds, and what goes when there is no room.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use aubade_proto::{RelationId, SegmentId};
use aubade_storage_node::{DecodedColumn, DecodedSegment};

use super::pins::Pins;
use super::worth::{MeanCost, Rank, Worth};
use super::{TableOfPool, Wanted};

pub(super) type ColumnOfSegment = (SegmentId, Arc<str>);

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) segments: HashMap<SegmentId, Held>,
    /// The columns that may go, those worth least per byte first.
    ranked: BTreeSet<(Rank, SegmentId, Arc<str>)>,
    pub(super) bytes: usize,
    /// What it may not use for now, since queries would fail without it.
    pub(super) lent: usize,
    /// Counts scans.
    pub(super) now: u64,
    /// Columns on their way in. Those that are queued more than once are fetched once: by then they are here.
    pub(super) loading: HashSet<ColumnOfSegment>,
    pub(super) pinned: Pins,
    pub(super) totals: BTreeMap<(RelationId, Arc<str>), Totals>,
}

/// A segment with the columns that are here.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) table: Arc<TableOfPool>,
    pub(super) segment: DecodedSegment,
    worth: BTreeMap<Arc<str>, Worth>,
}

/// Of one column of a table, also over what is no longer here.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub(super) hits: u64,
    pub(super) misses: u64,
    pub(super) saved_micros: f64,
    pub(super) cost_of_misses: MeanCost,
}

impl Held {
    pub(super) fn has_all(&self, columns: &[Arc<str>]) -> bool {
        !columns.is_empty() && columns.iter().all(|column| self.worth.contains_key(column))
    }
}

impl State {
    pub(super) fn columns(&self) -> impl Iterator<Item = (RelationId, &Arc<str>, &Arc<DecodedColumn>)> {
        self.segments
            .values()
            .flat_map(|held| held.segment.columns().iter().map(|(name, column)| (held.table.id, name, column)))
    }

    pub(super) fn lacks(&self, id: SegmentId, column: &Arc<str>) -> bool {
        !self.segments.get(&id).is_some_and(|held| held.worth.contains_key(column))
    }

    pub(super) fn is_pinned(&self, table: RelationId, column: &Arc<str>) -> bool {
        self.pinned.contains(table, column)
    }

    /// Columns that come together displace only what ranks below this: none of them is of use without the one that is
    /// worth least.
    pub(super) fn claim_of<'a>(
        &self,
        table: RelationId,
        columns: impl Iterator<Item = (&'a Arc<str>, &'a Worth)>,
    ) -> Rank {
        let ranks = columns.map(|(name, worth)| match self.is_pinned(table, name) {
            true => Rank::MAX,
            false => worth.claim(),
        });
        ranks.min().unwrap_or(Rank::MAX)
    }

    /// Whether what is wanted would find room, by itself or in the place of what is worth less.
    pub(super) fn admits(&self, bytes_max: usize, wanted: &Wanted) -> bool {
        let bytes = wanted.bytes();
        let rank = self.claim_of(wanted.table.id, wanted.columns.iter().map(|(name, worth)| (name, worth)));
        self.goes_for(bytes_max, bytes, rank, wanted.segment.id).is_some()
    }

    /// What has to go for so many bytes of a segment that rank so; `None` where that is not enough, or worth more.
    fn goes_for(&self, bytes_max: usize, bytes: usize, rank: Rank, of: SegmentId) -> Option<Vec<ColumnOfSegment>> {
        let mut free = bytes_max.saturating_sub(self.bytes);
        let mut goes = Vec::new();
        let mut less = self.ranked.iter().take_while(|(other, _, _)| *other < rank).filter(|(_, id, _)| *id != of);
        while free < bytes {
            let (_, id, name) = less.next()?;
            let column = self.segments.get(id).and_then(|held| held.segment.columns().get(name));
            free = free.saturating_add(column.map_or(0, |column| column.bytes()));
            goes.push((*id, Arc::clone(name)));
        }
        Some(goes)
    }

    /// Makes room for so many bytes of a segment. Gives what has gone; `None`, and nothing goes, where that is not
    /// enough.
    pub(super) fn make_room(
        &mut self,
        bytes_max: usize,
        bytes: usize,
        rank: Rank,
        of: SegmentId,
    ) -> Option<Vec<(ColumnOfSegment, Worth)>> {
        let goes = self.goes_for(bytes_max, bytes, rank, of)?;
        let gone = goes.into_iter().filter_map(|(id, name)| Some(((id, Arc::clone(&name)), self.remove(id, &name)?)));
        Some(gone.collect())
    }

    /// Takes away what is worth least, and at last what is pinned, until no more than so many bytes are here.
    pub(super) fn shrink_to(&mut self, bytes_max: usize) -> Vec<(ColumnOfSegment, Worth)> {
        let mut gone = Vec::new();
        while self.bytes > bytes_max {
            let ranked = self.ranked.first().map(|(_, id, name)| (*id, Arc::clone(name)));
            let of = |(id, held): (&SegmentId, &Held)| Some((*id, Arc::clone(held.worth.keys().next()?)));
            let Some((id, name)) = ranked.or_else(|| self.segments.iter().find_map(of)) else { break };
            let Some(worth) = self.remove(id, &name) else { break };
            gone.push(((id, name), worth));
        }
        gone
    }

    /// A column that is here was wanted; gives what it is worth.
    pub(super) fn used(&mut self, id: SegmentId, name: &Arc<str>) -> Option<Worth> {
        let held = self.segments.get_mut(&id)?;
        let worth = held.worth.get_mut(name)?;
        let place = (worth.rank(), id, Arc::clone(name));
        // The first scan that missed it may have been a slow one.
        let totals = self.totals.get(&(held.table.id, Arc::clone(name)));
        if let Some(cost_micros) = totals.and_then(|totals| totals.cost_of_misses.of(held.segment.rows_total())) {
            worth.cost_micros = cost_micros;
        }
        worth.used(self.now);
        if let Some((_, id, name)) = self.ranked.take(&place) {
            self.ranked.insert((worth.rank(), id, name));
        }
        Some(*worth)
    }

    pub(super) fn add(
        &mut self,
        table: &Arc<TableOfPool>,
        loaded: &DecodedSegment,
        name: &Arc<str>,
        column: &Arc<DecodedColumn>,
        worth: Worth,
    ) {
        let id = loaded.id();
        if !self.is_pinned(table.id, name) {
            self.ranked.insert((worth.rank(), id, Arc::clone(name)));
        }
        let bytes = &mut self.bytes;
        let held = self.segments.entry(id).or_insert_with(|| {
            *bytes = bytes.saturating_add(loaded.footer_bytes());
            Held { table: Arc::clone(table), segment: loaded.without_columns(), worth: BTreeMap::new() }
        });
        *bytes = bytes.saturating_add(column.bytes());
        held.segment.add(Arc::clone(name), Arc::clone(column));
        held.worth.insert(Arc::clone(name), worth);
    }

    /// Takes a column away; gives what it was worth.
    fn remove(&mut self, id: SegmentId, name: &Arc<str>) -> Option<Worth> {
        let held = self.segments.get_mut(&id)?;
        let (worth, column) = (held.worth.remove(name)?, held.segment.remove(name)?);
        self.bytes = self.bytes.saturating_sub(column.bytes());
        self.ranked.remove(&(worth.rank(), id, Arc::clone(name)));
        if held.worth.is_empty() {
            self.bytes = self.bytes.saturating_sub(held.segment.footer_bytes());
            self.segments.remove(&id);
        }
        Some(worth)
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
        let gone = gone.flat_map(|(id, held)| held.worth.keys().map(|name| (*id, Arc::clone(name))));
        for (id, name) in gone.collect::<Vec<_>>() {
            self.remove(id, &name);
        }
    }

    /// Which columns of a table are pinned has changed.
    pub(super) fn rank_again(&mut self, table: RelationId) {
        let of_table = self.segments.iter().filter(|(_, held)| held.table.id == table);
        let places = of_table
            .flat_map(|(id, held)| held.worth.iter().map(|(name, worth)| (worth.rank(), *id, Arc::clone(name))));
        for place in places.collect::<Vec<_>>() {
            match self.is_pinned(table, &place.2) {
                true => self.ranked.remove(&place),
                false => self.ranked.insert(place),
            };
        }
    }
}
