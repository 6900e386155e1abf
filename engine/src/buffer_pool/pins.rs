//! Columns that CACHE TABLE has named: they are kept whatever else is wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aubade_proto::RelationId;

/// By table and column.
#[derive(Debug, Default)]
pub(super) struct Pins {
    tables: BTreeMap<RelationId, BTreeMap<Arc<str>, Pin>>,
    next: u64,
}

/// A statement that loads columns, and keeps them at least until it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PinningId(u64);

#[derive(Debug, Default)]
struct Pin {
    /// About what the column takes.
    bytes: usize,
    /// The statements that are loading it: one that fails must not take it from the others.
    loads: BTreeSet<PinningId>,
    /// One of them has come to its end.
    stays: bool,
}

impl Pins {
    pub(super) fn contains(&self, table: RelationId, column: &Arc<str>) -> bool {
        self.tables.get(&table).is_some_and(|columns| columns.contains_key(column))
    }

    pub(super) fn columns(&self) -> impl Iterator<Item = (RelationId, &Arc<str>)> {
        self.tables.iter().flat_map(|(table, columns)| columns.keys().map(|column| (*table, column)))
    }

    /// About what all of them take.
    pub(super) fn bytes(&self) -> usize {
        self.tables.values().flat_map(BTreeMap::values).map(|pin| pin.bytes).fold(0, usize::saturating_add)
    }

    /// A statement begins to load columns, of which it is known about what they take.
    pub(super) fn begin(&mut self, table: RelationId, columns: &BTreeMap<Arc<str>, usize>) -> PinningId {
        let id = PinningId(self.next);
        self.next = self.next.wrapping_add(1);
        let pins = self.tables.entry(table).or_default();
        for (column, bytes) in columns {
            let pin = pins.entry(Arc::clone(column)).or_default();
            pin.bytes = *bytes;
            pin.loads.insert(id);
        }
        id
    }

    /// A statement has ended; where it has not loaded all, only what others want is kept.
    pub(super) fn end(&mut self, table: RelationId, id: PinningId, has_loaded: bool) {
        // It may have been forgotten since.
        let Some(pins) = self.tables.get_mut(&table) else { return };
        for pin in pins.values_mut() {
            pin.stays |= pin.loads.remove(&id) && has_loaded;
        }
        pins.retain(|_, pin| pin.stays || !pin.loads.is_empty());
        if pins.is_empty() {
            self.tables.remove(&table);
        }
    }

    /// Keeps columns of those tables only; what is being loaded of others does not stay either.
    pub(super) fn retain(&mut self, is_kept: impl Fn(RelationId) -> bool) {
        self.tables.retain(|table, _| is_kept(*table));
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const TABLE: RelationId = RelationId(Uuid::nil());

    fn columns(names: &[&str]) -> BTreeMap<Arc<str>, usize> {
        names.iter().map(|name| (Arc::from(*name), 10)).collect()
    }

    fn pinned(pins: &Pins) -> String {
        pins.columns().map(|(_, column)| column.as_ref()).collect()
    }

    #[test]
    fn a_statement_that_fails_takes_nothing_from_others() {
        let mut pins = Pins::default();
        let first = pins.begin(TABLE, &columns(&["a", "b"]));
        let second = pins.begin(TABLE, &columns(&["b", "c"]));
        assert_eq!((pinned(&pins).as_str(), pins.bytes()), ("abc", 30));
        pins.end(TABLE, first, false);
        assert_eq!(pinned(&pins), "bc");
        pins.end(TABLE, second, true);
        let third = pins.begin(TABLE, &columns(&["a", "b"]));
        pins.end(TABLE, third, false);
        assert_eq!(pinned(&pins), "bc");
    }

    #[test]
    fn what_was_forgotten_meanwhile_does_not_come_back() {
        let mut pins = Pins::default();
        let first = pins.begin(TABLE, &columns(&["a"]));
        pins.retain(|table| table != TABLE);
        let second = pins.begin(TABLE, &columns(&["a"]));
        pins.end(TABLE, first, false);
        assert_eq!(pinned(&pins), "a");
        pins.end(TABLE, second, false);
        assert_eq!((pinned(&pins).as_str(), pins.bytes()), ("", 0));
        let third = pins.begin(TABLE, &columns(&["a"]));
        pins.retain(|_| false);
        pins.end(TABLE, third, true);
        assert_eq!(pinned(&pins), "");
    }
}
