//! The pool of memory that queries share.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use aubade_planner::OPTIONAL_CONSUMERS;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::{
    FairSpillPool, MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation, human_readable_size,
};
use parking_lot::Mutex;

/// The consumer with which DataFusion's sort keeps rows; it spills.
const SORTER: &str = "ExternalSorter[";
/// The one with which the same sort merges what it spilled. It takes all that it is given, and merges fewer runs at a
/// time when it is given less.
const SORT_MERGE: &str = "ExternalSorterMerge[";
/// The consumer of an exchange between partitions: it can spill, and holds next to nothing as long as rows are read.
const EXCHANGE: &str = "RepartitionExec[";
/// Consumers that go on another way when they are refused, and say of themselves that they cannot spill: joins that
/// spill, rows that need not be shared, sent or kept.
const CONTENT_WITH_LESS: [&str; 5] =
    ["NestedLoopJoinLoad[", "SMJStream[", OPTIONAL_CONSUMERS[0], OPTIONAL_CONSUMERS[1], OPTIONAL_CONSUMERS[2]];

/// Bytes below which it is no use to spill what a consumer holds: about what an aggregate has to have for a batch of wide
/// groups, and cannot give away.
const SPILLED_BYTES_MIN: usize = 4 << 20;

/// Whoever can do with less memory, for as long as queries would fail without it.
pub(crate) trait Lender: fmt::Debug + Send + Sync {
    /// Gives up so many bytes; `false`, and nothing is given up, where it has not got them.
    fn lend(&self, bytes: usize) -> bool;

    /// So many of the bytes that it gave up are its own again.
    fn repay(&self, bytes: usize);
}

/// A fair pool in which consumers that can do with less leave a third to those that can only fail, and in which a sort
/// has its share for rows and merging together.
///
/// In DataFusion's fair pool, the merges of two sorts take all: the operator that reads from both gets nothing, or one of
/// the merges does.
#[derive(Debug)]
pub(crate) struct HeadroomPool {
    inner: FairSpillPool,
    /// Bytes that consumers which can do with less may hold together.
    elastic_bytes_max: usize,
    /// Bytes that they have together even where all has been borrowed for others.
    elastic_floor_bytes: usize,
    elastic: Mutex<Elastic>,
    bytes_max: usize,
    lender: Option<Arc<dyn Lender>>,
    /// What `lender` has lent.
    lent: Mutex<usize>,
}

/// What consumers that can do with less hold.
#[derive(Debug, Default)]
struct Elastic {
    bytes: usize,
    /// Consumers other than sorts that can spill and may hold much.
    others: usize,
    /// Sorts by the partition that their names end with.
    sorts: BTreeMap<String, Sorts>,
}

/// Sorts of the same partition: more than one where a plan, or several, have more than one.
#[derive(Debug, Default)]
struct Sorts {
    sorters: usize,
    /// A merge goes on when its sorter is gone.
    merges: usize,
    bytes: usize,
}

impl Sorts {
    fn count(&self) -> usize {
        self.sorters.max(self.merges)
    }
}

/// The partition that a consumer of a sort ends its name with.
fn sort_partition(consumer: &MemoryConsumer) -> Option<&str> {
    let name = consumer.name();
    name.strip_prefix(SORTER).or_else(|| name.strip_prefix(SORT_MERGE))
}

fn is_elastic(consumer: &MemoryConsumer) -> bool {
    consumer.can_spill() || sort_partition(consumer).is_some()
}

impl Elastic {
    /// The count that a consumer belongs to, if it has a share.
    fn count_of(&mut self, consumer: &MemoryConsumer) -> Option<&mut usize> {
        let is_merge = consumer.name().starts_with(SORT_MERGE);
        if sort_partition(consumer).is_some() {
            return self.sorts_of(consumer).map(|sorts| if is_merge { &mut sorts.merges } else { &mut sorts.sorters });
        }
        let shares = consumer.can_spill() && !consumer.name().starts_with(EXCHANGE);
        shares.then_some(&mut self.others)
    }

    fn sorts_of(&mut self, consumer: &MemoryConsumer) -> Option<&mut Sorts> {
        sort_partition(consumer).map(|partition| self.sorts.entry(partition.to_owned()).or_default())
    }

    fn grow(&mut self, consumer: &MemoryConsumer, additional: usize) {
        self.bytes = self.bytes.saturating_add(additional);
        if let Some(sorts) = self.sorts_of(consumer) {
            sorts.bytes = sorts.bytes.saturating_add(additional);
        }
    }

    fn shrink(&mut self, consumer: &MemoryConsumer, shrink: usize) {
        self.bytes = self.bytes.saturating_sub(shrink);
        if let Some(sorts) = self.sorts_of(consumer) {
            sorts.bytes = sorts.bytes.saturating_sub(shrink);
        }
    }

    /// Bytes that a consumer may still be given.
    fn available(&mut self, consumer: &MemoryConsumer, bytes_max: usize) -> usize {
        let left = bytes_max.saturating_sub(self.bytes);
        let shares = self.others + self.sorts.values().map(Sorts::count).sum::<usize>();
        match self.sorts_of(consumer) {
            Some(sorts) => left.min((bytes_max / shares.max(1) * sorts.count()).saturating_sub(sorts.bytes)),
            None => left,
        }
    }
}

impl HeadroomPool {
    /// A pool of that many bytes. Consumers that can only fail borrow from `lender` before they do.
    pub(crate) fn new(bytes_max: usize, lender: Option<Arc<dyn Lender>>) -> Self {
        Self {
            inner: FairSpillPool::new(bytes_max),
            elastic_bytes_max: bytes_max - bytes_max / 3,
            elastic_floor_bytes: bytes_max / 3,
            elastic: Mutex::default(),
            bytes_max,
            lender,
            lent: Mutex::default(),
        }
    }

    /// Grows by what is there, or else by what can be borrowed.
    fn grow_or_borrow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        self.inner.try_grow(reservation, additional).or_else(|refused| {
            // Held until the bytes are counted: whoever frees some now must not give these back.
            let mut lent = self.lent.lock();
            let limit = self.bytes_max.saturating_add(*lent);
            let short = self.reserved().saturating_add(additional).saturating_sub(limit);
            if short > 0 && !self.lender.as_ref().is_some_and(|lender| lender.lend(short)) {
                return Err(refused);
            }
            *lent = lent.saturating_add(short);
            self.inner.grow(reservation, additional);
            Ok(())
        })
    }

    /// Gives back what is not needed any more.
    fn repay(&self) {
        let Some(lender) = &self.lender else { return };
        let mut lent = self.lent.lock();
        if *lent == 0 {
            return;
        }
        let needed = self.reserved().saturating_sub(self.bytes_max);
        if needed < *lent {
            lender.repay(*lent - needed);
            *lent = needed;
        }
    }
}

impl fmt::Display for HeadroomPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl MemoryPool for HeadroomPool {
    fn name(&self) -> &str {
        "headroom"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        self.inner.register(consumer);
        if let Some(count) = self.elastic.lock().count_of(consumer) {
            *count += 1;
        }
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.inner.unregister(consumer);
        let mut elastic = self.elastic.lock();
        if let Some(count) = elastic.count_of(consumer) {
            *count = count.saturating_sub(1);
        }
        elastic.sorts.retain(|_, sorts| sorts.count() > 0);
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.inner.grow(reservation, additional);
        if is_elastic(reservation.consumer()) {
            self.elastic.lock().grow(reservation.consumer(), additional);
        }
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.inner.shrink(reservation, shrink);
        if is_elastic(reservation.consumer()) {
            self.elastic.lock().shrink(reservation.consumer(), shrink);
        }
        self.repay();
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        let consumer = reservation.consumer();
        if !is_elastic(consumer) {
            return match CONTENT_WITH_LESS.iter().any(|name| consumer.name().starts_with(name)) {
                true => self.inner.try_grow(reservation, additional),
                false => self.grow_or_borrow(reservation, additional),
            };
        }
        let mut elastic = self.elastic.lock();
        let available = elastic.available(consumer, self.elastic_bytes_max);
        // One that holds little has next to nothing to spill: refused more, it can only fail. A sort has its share.
        let can_only_fail = reservation.size() < SPILLED_BYTES_MIN && sort_partition(consumer).is_none();
        if additional > available && !can_only_fail {
            return Err(DataFusionError::ResourcesExhausted(format!(
                "Failed to allocate additional {} for {} with {} already allocated for this reservation - {} of the \
                 share of consumers that can spill remain available in {self}",
                human_readable_size(additional),
                consumer.name(),
                human_readable_size(reservation.size()),
                human_readable_size(available),
            )));
        }
        // What has borrowed leaves nothing of its own accord: with less than this, a consumer that can spill fails.
        match can_only_fail || elastic.bytes.saturating_add(additional) <= self.elastic_floor_bytes {
            true => self.grow_or_borrow(reservation, additional)?,
            false => self.inner.try_grow(reservation, additional)?,
        }
        elastic.grow(consumer, additional);
        Ok(())
    }

    fn reserved(&self) -> usize {
        self.inner.reserved()
    }

    fn memory_limit(&self) -> MemoryLimit {
        self.inner.memory_limit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sort(pool: &Arc<dyn MemoryPool>, partition: usize) -> (MemoryReservation, MemoryReservation) {
        let sorter = MemoryConsumer::new(format!("ExternalSorter[{partition}]")).with_can_spill(true).register(pool);
        (sorter, MemoryConsumer::new(format!("ExternalSorterMerge[{partition}]")).register(pool))
    }

    #[test]
    fn sorts_have_equal_shares_and_leave_a_third() {
        let pool: Arc<dyn MemoryPool> = Arc::new(HeadroomPool::new(1200, None));
        let ((sorter, merge), (other_sorter, other_merge)) = (sort(&pool, 0), sort(&pool, 1));
        let fixed = MemoryConsumer::new("SortPreservingMergeExec[0]").register(&pool);
        let _exchange = MemoryConsumer::new("RepartitionExec[0]").with_can_spill(true).register(&pool);
        sorter.try_grow(100).unwrap();
        merge.try_grow(300).unwrap();
        let error = merge.try_grow(1).unwrap_err().to_string();
        assert!(error.contains("ExternalSorterMerge[0]"), "{error}");
        sorter.try_grow(1).unwrap_err();
        sorter.shrink(100);
        merge.try_grow(101).unwrap_err();
        merge.try_grow(100).unwrap();
        other_merge.try_grow(400).unwrap();
        other_sorter.try_grow(1).unwrap_err();
        fixed.try_grow(400).unwrap();
        fixed.try_grow(1).unwrap_err();
        assert_eq!(pool.reserved(), 1200);
        drop(sorter);
        other_sorter.try_grow(1).unwrap_err();
        drop(merge);
        other_sorter.try_grow(200).unwrap();
        drop((other_sorter, other_merge, fixed));
        assert_eq!(pool.reserved(), 0);
        let all = MemoryConsumer::new("HashJoinInput").register(&pool);
        all.try_grow(1200).unwrap();
    }

    /// Has so many bytes to lend.
    #[derive(Debug)]
    struct Purse(Mutex<usize>);

    impl Lender for Purse {
        fn lend(&self, bytes: usize) -> bool {
            let mut left = self.0.lock();
            let has = left.checked_sub(bytes);
            *left = has.unwrap_or(*left);
            has.is_some()
        }

        fn repay(&self, bytes: usize) {
            *self.0.lock() += bytes;
        }
    }

    #[test]
    fn what_can_only_fail_borrows_first_and_pays_back() {
        let purse = Arc::new(Purse(Mutex::new(300)));
        let pool: Arc<dyn MemoryPool> = Arc::new(HeadroomPool::new(1200, Some(Arc::clone(&purse) as _)));
        let (sorter, _merge) = sort(&pool, 0);
        let (fixed, other) = (MemoryConsumer::new("a").register(&pool), MemoryConsumer::new("b").register(&pool));
        fixed.try_grow(1000).unwrap();
        assert_eq!(*purse.0.lock(), 300);
        let spills = MemoryConsumer::new("NestedLoopJoinLoad[0]").register(&pool);
        spills.try_grow(201).unwrap_err();
        sorter.try_grow(500).unwrap_err();
        assert_eq!(*purse.0.lock(), 300);
        sorter.try_grow(250).unwrap();
        assert_eq!(*purse.0.lock(), 250);
        sorter.free();
        assert_eq!(*purse.0.lock(), 300);
        fixed.try_grow(300).unwrap();
        assert_eq!(*purse.0.lock(), 200);
        other.try_grow(201).unwrap_err();
        other.try_grow(200).unwrap();
        assert_eq!((*purse.0.lock(), pool.reserved()), (0, 1500));
        fixed.shrink(50);
        assert_eq!(*purse.0.lock(), 50);
        drop(other);
        assert_eq!(*purse.0.lock(), 250);
        fixed.shrink(100);
        assert_eq!(*purse.0.lock(), 300);
        drop((fixed, sorter));
        assert_eq!((*purse.0.lock(), pool.reserved()), (300, 0));
    }

    #[test]
    fn what_has_little_to_spill_borrows_too() {
        const MIB: usize = 1 << 20;
        let purse = Arc::new(Purse(Mutex::new(10 * MIB)));
        let pool: Arc<dyn MemoryPool> = Arc::new(HeadroomPool::new(24 * MIB, Some(Arc::clone(&purse) as _)));
        let aggregate = |name: &str| MemoryConsumer::new(name).with_can_spill(true).register(&pool);
        let (first, second, third) = (aggregate("Aggregate[0]"), aggregate("Aggregate[1]"), aggregate("Aggregate[2]"));
        let fixed = MemoryConsumer::new("a").register(&pool);
        first.try_grow(7 * MIB).unwrap();
        second.try_grow(7 * MIB).unwrap();
        // Two thirds are nearly used up, and it has nothing to spill.
        third.try_grow(3 * MIB).unwrap();
        first.try_grow(MIB).unwrap_err();
        third.try_grow(2 * MIB).unwrap();
        third.try_grow(MIB).unwrap_err();
        assert_eq!(*purse.0.lock(), 10 * MIB);
        fixed.try_grow(8 * MIB).unwrap();
        assert_eq!(*purse.0.lock(), 7 * MIB);
        let fourth = aggregate("Aggregate[3]");
        fourth.try_grow(30 * MIB).unwrap_err();
        fourth.try_grow(6 * MIB).unwrap();
        assert_eq!(*purse.0.lock(), MIB);
        drop((first, second, third, fourth, fixed));
        assert_eq!((*purse.0.lock(), pool.reserved()), (10 * MIB, 0));
    }

    #[test]
    fn one_sort_has_all_but_a_third_and_none_is_remembered() {
        let pool = Arc::new(HeadroomPool::new(1200, None));
        let shared: Arc<dyn MemoryPool> = Arc::clone(&pool) as _;
        let (sorter, merge) = sort(&shared, 3);
        sorter.try_grow(800).unwrap();
        merge.try_grow(1).unwrap_err();
        drop((sorter, merge));
        assert!(pool.elastic.lock().sorts.is_empty());
    }
}
