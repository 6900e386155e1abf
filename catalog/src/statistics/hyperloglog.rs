//! An estimate of how many different values a column has, in 2 KiB.
//!
//! Sources: Flajolet et al., "HyperLogLog: the analysis of a near-optimal cardinality estimation
//! algorithm" (2007); the estimator without bias corrections is from Ertl, "New cardinality
//! estimation algorithms for HyperLogLog sketches" (2017), algorithm 6.

/// Bits of the hash that choose the register. 2^11 registers give a standard error of 2.3 %.
const INDEX_BITS: u32 = 11;
const REGISTERS: usize = 1 << INDEX_BITS;
/// Bits of the hash that are left for the rank.
const RANK_BITS: usize = 64 - INDEX_BITS as usize;

/// A sketch of a set of hashes.
#[derive(Clone, Debug)]
pub(super) struct HyperLogLog {
    registers: Box<[u8]>,
}

impl HyperLogLog {
    pub(super) fn new() -> Self {
        Self { registers: vec![0; REGISTERS].into_boxed_slice() }
    }

    /// Adds a value by its hash.
    pub(super) fn add(&mut self, hash: u64) {
        let index = (hash >> RANK_BITS) as usize;
        // The bit that ends the run of zeros is set beyond the hash, so that a rank always exists.
        let rank = ((hash | (1 << RANK_BITS)).trailing_zeros() + 1) as u8;
        if let Some(register) = self.registers.get_mut(index) {
            *register = (*register).max(rank);
        }
    }

    /// The estimated number of different hashes.
    pub(super) fn estimate(&self) -> u64 {
        let mut histogram = [0_u32; RANK_BITS + 2];
        for register in &self.registers {
            if let Some(count) = histogram.get_mut(usize::from(*register)) {
                *count += 1;
            }
        }
        let registers = REGISTERS as f64;
        let [zeros, middle @ .., full] = &histogram;
        let mut denominator = registers * tau(1.0 - f64::from(*full) / registers);
        for count in middle.iter().rev() {
            denominator = 0.5 * (denominator + f64::from(*count));
        }
        denominator += registers * sigma(f64::from(*zeros) / registers);
        let estimate = registers * registers / (2.0 * std::f64::consts::LN_2 * denominator);
        estimate.round() as u64
    }
}

/// The part of the registers that no value has reached.
fn sigma(share: f64) -> f64 {
    if share >= 1.0 {
        return f64::INFINITY;
    }
    let (mut power, mut weight, mut sum) = (share, 1.0, share);
    loop {
        power *= power;
        let next = sum + power * weight;
        weight += weight;
        if next == sum {
            return sum;
        }
        sum = next;
    }
}

/// The part of the registers that are full.
fn tau(share: f64) -> f64 {
    if share <= 0.0 || share >= 1.0 {
        return 0.0;
    }
    let (mut root, mut weight, mut sum) = (share, 1.0, 1.0 - share);
    loop {
        root = root.sqrt();
        weight *= 0.5;
        let next = sum - (1.0 - root) * (1.0 - root) * weight;
        if next == sum {
            return sum / 3.0;
        }
        sum = next;
    }
}

#[cfg(test)]
mod tests {
    use aubade_environment::{Random, SeededRandom};

    use super::*;

    #[test]
    fn estimates_are_within_eight_percent() {
        for count in [0_u64, 1, 10, 1_000, 20_000, 1_000_000] {
            let random = SeededRandom::new(count);
            let mut sketch = HyperLogLog::new();
            for _ in 0..count {
                sketch.add(random.next_u64());
            }
            let error = sketch.estimate().abs_diff(count) as f64;
            assert!(error <= 0.08 * count as f64 + 0.5, "{count}: {}", sketch.estimate());
        }
    }

    #[test]
    fn a_value_counts_once() {
        let mut sketch = HyperLogLog::new();
        (0..1_000).for_each(|_| sketch.add(0x1234_5678_9abc_def0));
        assert_eq!(sketch.estimate(), 1);
        sketch.add(0);
        assert_eq!(sketch.estimate(), 2);
    }
}
