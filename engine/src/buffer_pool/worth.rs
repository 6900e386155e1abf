//! What it is worth to have a column.

use arrow::datatypes::DataType;

/// Scans after which a use counts half: a query has several, and what comes once in many queries is to stay.
const HALF_LIFE_SCANS: f64 = 1_024.0;
/// How many times more than what is there a column has to be worth to come in its place: loading it costs as well, and
/// those that are worth about the same would take turns.
const LEAD: f64 = 2.0;
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
    /// How often a column is wanted, times what it costs not to have it, per byte; uses fade.
    #[default]
    Weighted,
    /// How often a column was wanted, whatever it costs and takes: what others are measured against.
    LeastFrequentlyUsed,
}

/// What scans of a column have cost of late, in microseconds for each row of a segment. A single one says little: how long
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

/// How often a column was wanted, and what it costs not to have it; see [`super::BufferPool`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Worth {
    policy: BufferPoolPolicy,
    /// At `at`.
    uses: f64,
    at: u64,
    /// Its part of what scans cost without it, microseconds.
    pub(super) cost_micros: f64,
    /// What it takes, an estimate until it was decoded.
    bytes: usize,
}

impl Worth {
    /// Of a column of about so many bytes that no scan has missed: as if nodes decoded a gigabyte in a second.
    pub(super) fn unknown(bytes: usize, policy: BufferPoolPolicy) -> Self {
        Self { cost_micros: bytes as f64 / DECODED_BYTES_PER_MICRO, ..Self::new(bytes, policy) }
    }

    /// Of a column of about so many bytes that nobody has wanted.
    pub(super) fn new(bytes: usize, policy: BufferPoolPolicy) -> Self {
        Self { policy, bytes, ..Self::default() }
    }

    /// Bytes that the column takes, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How often it was wanted, as it counts at a time.
    fn uses_at(&self, now: u64) -> f64 {
        match self.policy {
            BufferPoolPolicy::Weighted => self.uses * (-(now.wrapping_sub(self.at) as f64) / HALF_LIFE_SCANS).exp2(),
            BufferPoolPolicy::LeastFrequentlyUsed => self.uses,
        }
    }

    /// It was wanted.
    pub(super) fn used(&mut self, now: u64) {
        self.uses = self.uses_at(now) + 1.0;
        self.at = now;
    }

    /// The same of a column of which it is known what it takes.
    pub(super) fn taking(self, bytes: usize) -> Self {
        Self { bytes, ..self }
    }

    /// Its place among others.
    pub(super) fn rank(&self) -> Rank {
        let rank = match self.policy {
            // All fade alike, so that this order is the same at any time.
            BufferPoolPolicy::Weighted => {
                (self.uses * self.cost_micros / self.bytes.max(1) as f64).log2() + self.at as f64 / HALF_LIFE_SCANS
            }
            BufferPoolPolicy::LeastFrequentlyUsed => self.uses,
        };
        Rank(if rank.is_nan() { f64::NEG_INFINITY } else { rank })
    }

    /// When it comes, it displaces only what ranks below this.
    pub(super) fn claim(&self) -> Rank {
        match self.policy {
            BufferPoolPolicy::Weighted => Rank(self.rank().0 - LEAD.log2()),
            BufferPoolPolicy::LeastFrequentlyUsed => self.rank(),
        }
    }
}

/// An order of columns by what they are worth, within one policy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rank(f64);

impl Rank {
    /// Above all others.
    pub(super) const MAX: Self = Self(f64::INFINITY);
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

    fn used(cost_micros: f64, times: &[u64]) -> Worth {
        let mut worth = Worth { cost_micros, ..Worth::default() };
        times.iter().for_each(|time| worth.used(*time));
        worth
    }

    #[test]
    fn uses_add_up_and_fade_with_time() {
        let later = 10 + HALF_LIFE_SCANS as u64;
        assert_eq!(used(8.0, &[10]).uses_at(later), 0.5);
        assert_eq!(used(8.0, &[10, later]).uses_at(later), 1.5);
    }

    #[test]
    fn ranks_are_by_worth_per_byte_at_any_time() {
        let rank = |worth: Worth, bytes: usize| worth.taking(bytes).rank();
        let (often, late) = (used(8.0, &[1, 2, 3, 4]), used(8.0, &[1_600]));
        assert!(rank(often, 1000) > rank(late, 1000) && rank(often, 1000) > rank(often, 10_000));
        for now in [1_600, 16_000] {
            assert!(often.uses_at(now) > late.uses_at(now));
        }
        assert!(rank(used(8.0, &[16_000]), 1000) > rank(often, 1000));
        assert!(rank(used(0.0, &[5]), 1000) < rank(often, usize::MAX) && rank(often, 0) < Rank::MAX);
    }

    #[test]
    fn what_is_there_has_a_lead() {
        let worth = |cost| used(cost, &[10]).taking(1000);
        let (there, more, much_more) = (worth(8.0), worth(15.0), worth(17.0));
        assert!(more.rank() > there.rank() && more.claim() < there.rank());
        assert!(much_more.claim() > there.rank());
        let mut counted = Worth::new(1000, BufferPoolPolicy::LeastFrequentlyUsed);
        counted.used(10);
        assert_eq!(counted.claim(), counted.rank());
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
