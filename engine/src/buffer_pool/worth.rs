//! What it is worth to have columns.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::DataType;

/// Scans after which a use counts half: a query has several, and what comes once in many queries is to stay.
const HALF_LIFE_SCANS: f64 = 1_024.0;
/// How many times more than what is there columns have to be worth to come in its place: loading them costs as well, and
/// those that are worth about the same would take turns.
const LEAD: f64 = 2.0;
/// Sets of columns of which it is known how often they were wanted of a segment.
const SETS_MAX: usize = 16;
/// Segments that the mean of what a scan of one costs goes back over: a query scans dozens, of which all take longer where
/// one does.
const COSTS: f64 = 512.0;
/// About what a storage node decodes in a microsecond.
const DECODED_BYTES_PER_MICRO: f64 = 1_000.0;
/// Bytes that a value of a type without a fixed width is thought to take beside its view.
const TEXT_BYTES: usize = 8;
/// Bytes of a key of a dictionary of texts, at most.
const KEY_BYTES: usize = 2;

/// How a pool chooses what it keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BufferPoolPolicy {
    /// How often columns are wanted together, times what it costs not to have them, per byte; uses fade.
    #[default]
    Weighted,
    /// How often a column was wanted, whatever it costs and takes: what others are measured against.
    LeastFrequentlyUsed,
}

impl BufferPoolPolicy {
    /// Whether columns of equal rank in a segment are of use together only.
    pub(super) fn ranks_sets(self) -> bool {
        self == Self::Weighted
    }
}

/// What scans of some columns have cost of late, in microseconds for each row of a segment. A single one says little: how long
/// it takes depends on what else goes on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct MeanCost {
    scans: f64,
    micros_per_row: f64,
}

impl MeanCost {
    /// A scan of a segment has cost so much.
    pub(super) fn add(&mut self, micros: f64, rows: u64) {
        self.scans = (self.scans + 1.0).min(COSTS);
        self.micros_per_row += (micros / rows.max(1) as f64 - self.micros_per_row) / self.scans;
    }

    /// What it costs for a segment of so many rows, once there was a scan.
    pub(super) fn of(&self, rows: u64) -> Option<f64> {
        (self.scans > 0.0).then_some(self.micros_per_row * rows.max(1) as f64)
    }
}

/// Columns that a scan reads of each segment.
pub(crate) type ColumnSet = Arc<[Arc<str>]>;

/// About what it costs to scan columns of so many bytes at a storage node, of which no scan has told it.
pub(super) fn unknown_cost_micros(bytes: usize) -> f64 {
    bytes as f64 / DECODED_BYTES_PER_MICRO
}

/// Columns of a segment that scans have read together.
#[derive(Clone, Debug)]
pub(super) struct Want {
    columns: ColumnSet,
    /// How often, as it counted at `at`.
    uses: f64,
    at: u64,
    /// What a scan costs without them, microseconds.
    cost_micros: f64,
}

impl Want {
    fn uses_at(&self, now: u64) -> f64 {
        self.uses * (-(now.wrapping_sub(self.at) as f64) / HALF_LIFE_SCANS).exp2()
    }
}

/// Which columns of a segment scans have wanted, how often, and what it costs not to have them; see [`super::BufferPool`].
#[derive(Clone, Debug)]
pub(super) enum Wants {
    /// Those that were read together, [`SETS_MAX`] of these at most.
    Weighted(Vec<Want>),
    /// How often each was.
    Counted(BTreeMap<Arc<str>, f64>),
}

impl Wants {
    /// Nobody has wanted anything.
    pub(super) fn new(policy: BufferPoolPolicy) -> Self {
        match policy {
            BufferPoolPolicy::Weighted => Self::Weighted(Vec::new()),
            BufferPoolPolicy::LeastFrequentlyUsed => Self::Counted(BTreeMap::new()),
        }
    }

    /// What a scan costs without columns, where it is known.
    pub(super) fn cost_micros(&self, columns: &ColumnSet) -> Option<f64> {
        match self {
            Self::Weighted(wants) => wants.iter().find(|want| want.columns == *columns).map(|want| want.cost_micros),
            Self::Counted(_) => None,
        }
    }

    /// Columns were wanted, without which a scan costs so much.
    pub(super) fn used(&mut self, columns: &ColumnSet, cost_micros: f64, now: u64) {
        match self {
            Self::Weighted(wants) => {
                if let Some(want) = wants.iter_mut().find(|want| want.columns == *columns) {
                    (want.uses, want.at, want.cost_micros) = (want.uses_at(now) + 1.0, now, cost_micros);
                    return;
                }
                if wants.len() >= SETS_MAX {
                    let worth = |want: &Want| want.uses_at(now) * want.cost_micros;
                    let least = wants.iter().enumerate().min_by(|(_, a), (_, b)| worth(a).total_cmp(&worth(b)));
                    if let Some((least, _)) = least {
                        wants.swap_remove(least);
                    }
                }
                wants.push(Want { columns: Arc::clone(columns), uses: 1.0, at: now, cost_micros });
            }
            Self::Counted(uses) => {
                columns.iter().for_each(|column| *uses.entry(Arc::clone(column)).or_default() += 1.0);
            }
        }
    }

    /// The places of the columns among those of all segments, by what they take; one that nobody has wanted has none.
    pub(super) fn ranks(&self, bytes_of: impl Fn(&Arc<str>) -> usize) -> BTreeMap<Arc<str>, Rank> {
        match self {
            Self::Weighted(wants) => ranks_of_sets(wants, bytes_of),
            Self::Counted(uses) => uses.iter().map(|(column, uses)| (Arc::clone(column), Rank(*uses))).collect(),
        }
    }

    /// What comes displaces only what ranks below this.
    pub(super) fn claim(&self, rank: Rank) -> Rank {
        match self {
            Self::Weighted(_) => Rank(rank.0 - LEAD.log2()),
            Self::Counted(_) => rank,
        }
    }
}

/// Columns that come one after the other: what they save together with those before them, and what they take.
#[derive(Debug)]
struct Step {
    columns: u128,
    worth: f64,
    bytes: f64,
}

impl Step {
    fn density(&self) -> f64 {
        self.worth / self.bytes
    }
}

/// Of each column what the step is worth per byte in which it comes, where those that save most per byte come first.
///
/// A set saves what it costs not to have it, once all of its columns are here, so that the next step is the set that, with
/// all others that are complete with it, saves most for what it takes beside what is here. Where a step turns out to be
/// worth more per byte than the one before it, to which it owes that, they are one. The columns above any rank are then
/// about those that save most in the room that they take.
fn ranks_of_sets(wants: &[Want], bytes_of: impl Fn(&Arc<str>) -> usize) -> BTreeMap<Arc<str>, Rank> {
    let mut columns: Vec<&Arc<str>> = wants.iter().flat_map(|want| want.columns.iter()).collect();
    columns.sort_unstable();
    columns.dedup();
    // Beyond 128 of them, some are taken for one another.
    let bit = |column: &Arc<str>| 1_u128 << (columns.binary_search(&column).unwrap_or_default() % 128);
    let bytes: Vec<(u128, f64)> = columns.iter().map(|column| (bit(column), bytes_of(column).max(1) as f64)).collect();
    let bytes_of_all = |set: u128| bytes.iter().filter(|(bit, _)| set & bit != 0).map(|(_, bytes)| bytes).sum();
    // All uses fade alike, so that the order of columns is the same at any time.
    let now = wants.iter().map(|want| want.at).max().unwrap_or_default();
    let mut left: Vec<(u128, f64)> = wants
        .iter()
        .map(|want| (want.columns.iter().map(bit).fold(0, |set, bit| set | bit), want.uses_at(now) * want.cost_micros))
        .collect();
    let (mut here, mut steps) = (0_u128, Vec::<Step>::new());
    while !left.is_empty() {
        let step_to = |set: u128| {
            let complete = left.iter().filter(|(other, _)| other & !(here | set) == 0);
            Step {
                columns: set & !here,
                worth: complete.map(|(_, worth)| worth).sum(),
                bytes: bytes_of_all(set & !here),
            }
        };
        let next = left.iter().map(|(set, _)| step_to(*set)).max_by(|a, b| a.density().total_cmp(&b.density()));
        let Some(mut step) = next else { break };
        here |= step.columns;
        left.retain(|(set, _)| set & !here != 0);
        while let Some(before) = steps.pop_if(|before| before.density() < step.density()) {
            step.columns |= before.columns;
            step.worth += before.worth;
            step.bytes += before.bytes;
        }
        steps.push(step);
    }
    let rank = |column: &Arc<str>| {
        let step = steps.iter().find(|step| step.columns & bit(column) != 0)?;
        let rank = step.density().log2() + now as f64 / HALF_LIFE_SCANS;
        Some((Arc::clone(column), if rank.is_nan() { Rank::MIN } else { Rank(rank) }))
    };
    columns.iter().filter_map(|column| rank(column)).collect()
}

/// An order of columns by what they are worth, within one policy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rank(f64);

impl Rank {
    /// Above all others.
    pub(super) const MAX: Self = Self(f64::INFINITY);
    /// Below all others.
    pub(super) const MIN: Self = Self(f64::NEG_INFINITY);
}

impl PartialEq for Rank {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Rank {}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Rank {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// About what a column of so many rows takes once it is decoded.
pub(super) fn estimated_bytes(data_type: &DataType, few_values: bool, rows: u64) -> usize {
    let width = match data_type {
        DataType::Boolean => 1,
        data_type if data_type.is_string() && few_values => KEY_BYTES,
        data_type => data_type.primitive_width().unwrap_or(16 + TEXT_BYTES),
    };
    usize::try_from(rows).unwrap_or(usize::MAX).saturating_mul(width)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(columns: &str) -> ColumnSet {
        columns.split(' ').map(Arc::from).collect()
    }

    /// Sets with what a scan costs without them, and when they were wanted.
    fn wanted(sets: &[(&str, f64, &[u64])]) -> Wants {
        let mut wants = Wants::new(BufferPoolPolicy::Weighted);
        for (columns, cost_micros, times) in sets {
            times.iter().for_each(|time| wants.used(&set(columns), *cost_micros, *time));
        }
        wants
    }

    fn ranks(wants: &Wants) -> BTreeMap<String, f64> {
        // As many thousand bytes as its name has letters.
        let ranks = wants.ranks(|column| 1_000 * column.len());
        ranks.into_iter().map(|(column, rank)| (column.to_string(), rank.0)).collect()
    }

    #[test]
    fn uses_add_up_and_fade_with_time() {
        let later = 10 + HALF_LIFE_SCANS as u64;
        let uses = |times: &[u64]| match wanted(&[("a", 8.0, times)]) {
            Wants::Weighted(wants) => wants[0].uses_at(later),
            counted => panic!("{counted:?}"),
        };
        assert_eq!(uses(&[10]), 0.5);
        assert_eq!(uses(&[10, later]), 1.5);
    }

    #[test]
    fn ranks_are_by_worth_per_byte_at_any_time() {
        let rank = |cost: f64, column: &str, times: &[u64]| ranks(&wanted(&[(column, cost, times)]))[column];
        assert!(rank(8.0, "a", &[1, 2, 3, 4]) > rank(8.0, "a", &[1_600]));
        assert!(rank(8.0, "a", &[16_000]) > rank(8.0, "a", &[1, 2, 3, 4]));
        assert!(rank(8.0, "a", &[1]) > rank(8.0, "aa", &[1]));
        assert_eq!(rank(8.0, "a", &[1]), rank(16.0, "aa", &[1]));
        assert_eq!(rank(0.0, "a", &[5]), Rank::MIN.0);
        assert_eq!(rank(f64::NAN, "a", &[5]), Rank::MIN.0);
    }

    #[test]
    fn columns_that_are_of_no_use_alone_rank_together() {
        // By itself, b is wanted as often as both; a and c are of use only with it.
        let ranks = ranks(&wanted(&[("a b", 6.0, &[1]), ("b c", 6.0, &[1])]));
        assert_eq!(ranks["a"], ranks["b"]);
        assert_eq!(ranks["b"], ranks["c"]);
        assert_eq!(ranks["a"], (12.0_f64 / 3_000.0).log2() + 1.0 / HALF_LIFE_SCANS);
    }

    #[test]
    fn what_is_wanted_more_comes_first_and_then_what_it_lacks() {
        let ranks = ranks(&wanted(&[("a b", 30.0, &[1]), ("a b c", 4.0, &[1]), ("ddd e", 1.0, &[1])]));
        let at = |worth: f64, bytes: f64| (worth / bytes).log2() + 1.0 / HALF_LIFE_SCANS;
        assert_eq!((ranks["a"], ranks["b"]), (at(30.0, 2_000.0), at(30.0, 2_000.0)));
        assert_eq!(ranks["c"], at(4.0, 1_000.0));
        assert_eq!((ranks["ddd"], ranks["e"]), (at(1.0, 4_000.0), at(1.0, 4_000.0)));
    }

    #[test]
    fn the_columns_above_a_rank_save_most_in_the_room_that_they_take() {
        let sets = [("a b", 7.0), ("b cc", 5.0), ("a cc dd", 9.0), ("dd e", 2.0), ("e", 0.5), ("a b e fff", 6.0)];
        let wants = wanted(&sets.map(|(columns, cost)| (columns, cost, &[3_u64][..])));
        let ranks = ranks(&wants);
        let names: Vec<&String> = ranks.keys().collect();
        let bytes = |chosen: &[&String]| chosen.iter().map(|column| column.len()).sum::<usize>();
        let saves = |chosen: &[&String]| {
            let has_all = |set: &str| set.split(' ').all(|column| chosen.iter().any(|name| *name == column));
            sets.iter().filter(|(set, _)| has_all(set)).map(|(_, cost)| cost).sum::<f64>()
        };
        for least in ranks.values() {
            let kept: Vec<&String> = names.iter().filter(|name| ranks[**name] >= *least).copied().collect();
            for choice in 0..1_u32 << names.len() {
                let chosen: Vec<&String> = names
                    .iter()
                    .enumerate()
                    .filter(|(place, _)| choice >> place & 1 == 1)
                    .map(|(_, name)| *name)
                    .collect();
                assert!(bytes(&chosen) > bytes(&kept) || saves(&chosen) <= saves(&kept), "{chosen:?} {kept:?}");
            }
        }
    }

    #[test]
    fn many_columns_and_many_sets_have_ranks() {
        let columns: Vec<Arc<str>> = (0..300).map(|column| Arc::from(format!("c{column}"))).collect();
        let mut wants = Wants::new(BufferPoolPolicy::Weighted);
        wants.used(&columns.clone().into(), 290.0, 1);
        // One that is worth more takes the place of the one that is worth least.
        for (column, cost_micros) in columns.iter().zip(1..) {
            wants.used(&Arc::from([Arc::clone(column)]), f64::from(cost_micros), 1);
        }
        let ranks = wants.ranks(|_| 0);
        assert_eq!(ranks.len(), columns.len());
        assert!(ranks.values().all(|rank| *rank > Rank::MIN), "{ranks:?}");
        assert!(ranks.values().min() < ranks.values().max(), "{ranks:?}");
    }

    #[test]
    fn what_is_there_has_a_lead() {
        let rank = |cost| wanted(&[("a", cost, &[10])]).ranks(|_| 1_000)["a"];
        let (there, more, much_more) = (rank(8.0), rank(15.0), rank(17.0));
        let claim = |rank| wanted(&[]).claim(rank);
        assert!(more > there && claim(more) < there);
        assert!(claim(much_more) > there);
        let mut counted = Wants::new(BufferPoolPolicy::LeastFrequentlyUsed);
        counted.used(&set("a b"), 9.0, 10);
        counted.used(&set("b"), 1.0, 9_999);
        let ranks = counted.ranks(|_| 1_000);
        assert_eq!(ranks.values().copied().collect::<Vec<_>>(), [Rank(1.0), Rank(2.0)]);
        assert_eq!(counted.claim(Rank(2.0)), Rank(2.0));
    }

    #[test]
    fn a_single_slow_scan_says_little() {
        let mut mean = MeanCost::default();
        assert_eq!(mean.of(1_000), None);
        mean.add(10.0, 100);
        assert_eq!(mean.of(1_000), Some(100.0));
        (0..99).for_each(|_| mean.add(10.0, 100));
        mean.add(1_000.0, 100);
        assert!(mean.of(100).unwrap() < 50.0, "{mean:?}");
    }
}
