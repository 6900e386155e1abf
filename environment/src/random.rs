//! Random bits, from the operating system or from a seed.

use std::fmt::Debug;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng, TryRng};
use uuid::Uuid;

use crate::clock::Clock;

/// A source of random bits.
pub trait Random: Debug + Send + Sync {
    /// 64 random bits.
    fn next_u64(&self) -> u64;

    /// A number below `bound`; 0 where `bound` is 0. The bias for small bounds is below 2^-32.
    fn below(&self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next_u64() % bound }
    }

    /// 128 random bits.
    fn next_u128(&self) -> u128 {
        (u128::from(self.next_u64()) << 64) | u128::from(self.next_u64())
    }
}

/// The operating system's generator.
#[derive(Debug)]
pub struct SystemRandom;

impl Random for SystemRandom {
    #[expect(clippy::expect_used, reason = "a machine without entropy cannot make unique ids: stop")]
    fn next_u64(&self) -> u64 {
        rand::rngs::SysRng.try_next_u64().expect("the operating system gives random bytes")
    }
}

/// A generator that repeats for the same seed.
#[derive(Debug)]
pub struct SeededRandom(Mutex<StdRng>);

impl SeededRandom {
    /// The generator for `seed`.
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(seed)))
    }
}

impl Random for SeededRandom {
    fn next_u64(&self) -> u64 {
        self.0.lock().next_u64()
    }
}

/// A time-ordered id: 48 bits of wall-clock milliseconds, then random bits (RFC 9562, version 7).
pub fn uuid_v7(clock: &dyn Clock, random: &dyn Random) -> Uuid {
    let random_bytes = random.next_u128().to_be_bytes();
    let mut tail = [0_u8; 10];
    tail.copy_from_slice(&random_bytes[..10]);
    uuid::Builder::from_unix_timestamp_millis(clock.unix_millis(), &tail).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    #[test]
    fn the_same_seed_gives_the_same_bits() {
        let (left, right) = (SeededRandom::new(7), SeededRandom::new(7));
        assert_eq!(left.next_u128(), right.next_u128());
    }

    #[test]
    fn ids_are_version_seven_and_differ() {
        let clock = SystemClock::default();
        let id = uuid_v7(&clock, &SystemRandom);
        assert_eq!(id.get_version_num(), 7);
        assert_ne!(id, uuid_v7(&clock, &SystemRandom));
    }
}
