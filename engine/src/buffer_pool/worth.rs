//! What it is worth to have a column.

use arrow::datatypes::{DataType, Schema};

/// Scans after which a use counts half: a query has several, and what comes once in many queries is to stay.
const HALF_LIFE_SCANS: f64 = 1_024.0;
/// About what a storage node decodes in a microsecond.
const DECODED_BYTES_PER_MICRO: f64 = 1_000.0;
/// Bytes that a value of a type without a fixed width is thought to take beside its view.
const TEXT_BYTES: usize = 16;

/// How a pool chooses what it keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BufferPoolPolicy {
    /// How often a column is wanted, times what it costs not to have it, per byte; uses fade.
    #[default]
    Weighted,
    /// How often a column was wanted, whatever it costs and takes: what others are measured against.
    LeastFrequentlyUsed,
}

/// How often a column was wanted, weighted with what it costs not to have it; see [`super::BufferPool`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Worth {
    policy: BufferPoolPolicy,
    /// At `at`.
    score: f64,
    at: u64,
    /// What a scan costs without the column, microseconds.
    pub(super) cost_micros: f64,
    /// What it takes, once that is known.
    pub(super) bytes: Option<usize>,
}

impl Worth {
    /// Of a column of about so many bytes that no scan has missed: as if nodes decoded a gigabyte in a second.
    pub(super) fn unknown(bytes: usize, policy: BufferPoolPolicy) -> Self {
        Self { cost_micros: bytes as f64 / DECODED_BYTES_PER_MICRO, ..Self::new(policy) }
    }

    /// Of a column that nobody has wanted.
    pub(super) fn new(policy: BufferPoolPolicy) -> Self {
        Self { policy, ..Self::default() }
    }

    /// What it is worth at a time.
    fn at(&self, now: u64) -> f64 {
        match self.policy {
            BufferPoolPolicy::Weighted => self.score * (-(now.wrapping_sub(self.at) as f64) / HALF_LIFE_SCANS).exp2(),
            BufferPoolPolicy::LeastFrequentlyUsed => self.score,
        }
    }

    /// It was wanted.
    pub(super) fn used(&mut self, now: u64) {
        let use_counts = match self.policy {
            BufferPoolPolicy::Weighted => self.cost_micros,
            BufferPoolPolicy::LeastFrequentlyUsed => 1.0,
        };
        self.score = self.at(now) + use_counts;
        self.at = now;
    }

    /// The same of a column of which it is known what it takes.
    pub(super) fn taking(self, bytes: usize) -> Self {
        Self { bytes: Some(bytes), ..self }
    }

    /// What two columns are worth that are of use together.
    pub(super) fn together(self, other: Self) -> Self {
        if self.policy == BufferPoolPolicy::LeastFrequentlyUsed {
            // A count is no sum of worth.
            return if self.score <= other.score { self } else { other };
        }
        let (early, late) = if self.at <= other.at { (self, other) } else { (other, self) };
        Self { score: late.score + early.at(late.at), ..late }
    }

    /// Its place among others of so many bytes.
    pub(super) fn rank(&self, bytes: usize) -> Rank {
        let rank = match self.policy {
            // All fade alike, so that this order is the same at any time.
            BufferPoolPolicy::Weighted => (self.score / bytes.max(1) as f64).log2() + self.at as f64 / HALF_LIFE_SCANS,
            BufferPoolPolicy::LeastFrequentlyUsed => self.score,
        };
        Rank(if rank.is_nan() { f64::NEG_INFINITY } else { rank })
    }
}

/// Worth per byte, ordered.
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
pub(super) fn estimated_bytes(schema: &Schema, column: &str, rows: u64) -> usize {
    let width = match schema.field_with_name(column).map(|field| field.data_type()) {
        Ok(DataType::Boolean) => 1,
        Ok(data_type) => data_type.primitive_width().unwrap_or(16 + TEXT_BYTES),
        Err(_) => 0,
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
    fn worth_grows_with_use_and_fades_with_time() {
        let later = 10 + HALF_LIFE_SCANS as u64;
        assert_eq!(used(8.0, &[10]).at(later), 4.0);
        assert_eq!(used(8.0, &[10, later]).at(later), 12.0);
    }

    #[test]
    fn ranks_are_by_worth_per_byte_at_any_time() {
        let (often, late, large) = (used(8.0, &[1, 2, 3, 4]), used(8.0, &[1_600]), used(8.0, &[1, 2, 3, 4]));
        assert!(often.rank(1000) > late.rank(1000) && often.rank(1000) > large.rank(10_000));
        for now in [1_600, 16_000] {
            assert!(often.at(now) > late.at(now));
        }
        assert!(used(8.0, &[16_000]).rank(1000) > often.rank(1000));
        assert!(used(0.0, &[5]).rank(1000) < large.rank(usize::MAX) && large.rank(0) < Rank::MAX);
    }
}
