//! The Bloom filter of a set of keys, with a way to ask about whole numbers that takes no branches and no detours.

use std::sync::OnceLock;

use arrow::buffer::BooleanBuffer;
use parquet::bloom_filter::Sbbf;
use parquet::data_type::AsBytes;

use crate::code::ErrorCode;
use crate::error::{Error, Result, ResultExt};

/// False positives.
const FALSE_POSITIVES: f64 = 0.01;
/// Bytes of a block.
const BLOCK_BYTES: usize = 32;
/// What spreads a hash over the words of a block, from the specification of Parquet.
const SALT: [u32; 8] =
    [0x47b6_137b, 0x4497_4d91, 0x8824_ad5b, 0xa2b7_289d, 0x7054_95c7, 0x2df1_424b, 0x9efc_4947, 0x5c6b_fb31];

/// A split-block Bloom filter (Putze, Sanders, Singler: Cache-, Hash- and Space-Efficient Bloom Filters, 2007), as Parquet
/// has it.
#[derive(Debug)]
pub struct BloomKeys {
    filter: Sbbf,
    /// Its blocks once more, made when it is first asked about a whole number.
    blocks: OnceLock<Vec<[u32; 8]>>,
    /// A bitmap of the keys and its first number, which is too large for what it says to be sent, but not to be asked where
    /// the filter was made: it is exact, and needs no hash.
    pub(crate) bitmap: Option<(i64, BooleanBuffer)>,
}

impl BloomKeys {
    /// For so many keys, which `insert` adds.
    pub(crate) fn build(
        count: usize,
        bitmap: Option<(i64, BooleanBuffer)>,
        insert: impl FnOnce(&mut Sbbf) -> Result<()>,
    ) -> Result<Self> {
        let mut filter = Sbbf::new_with_ndv_fpp(count.max(1) as u64, FALSE_POSITIVES)
            .map_err(|error| Error::internal("a Bloom filter could not be made").source(error))?;
        insert(&mut filter)?;
        Ok(Self { filter, blocks: OnceLock::new(), bitmap })
    }

    /// The filter of a message.
    pub(crate) fn from_bitset(bitset: &[u8]) -> Result<Self> {
        if bitset.is_empty() || !bitset.len().is_multiple_of(BLOCK_BYTES) {
            return Err(Error::new(ErrorCode::InvalidMessage, "a Bloom filter of keys is no whole number of blocks"));
        }
        Ok(Self { filter: Sbbf::new(bitset), blocks: OnceLock::new(), bitmap: None })
    }

    /// The filter in a message.
    pub(crate) fn bitset(&self) -> Result<Vec<u8>> {
        let mut bitset = Vec::new();
        let written = self.filter.write_bitset(&mut bitset);
        written.context(ErrorCode::Internal, || "a Bloom filter could not be encoded".to_owned())?;
        Ok(bitset)
    }

    /// Whether a key may be in the set.
    pub(crate) fn check<T: AsBytes + ?Sized>(&self, key: &T) -> bool {
        self.filter.check(key)
    }

    /// The same for whole numbers, one after the other.
    pub(crate) fn numbers(&self) -> Result<Numbers<'_>> {
        if let Some(blocks) = self.blocks.get() {
            return Ok(Numbers { blocks });
        }
        let blocks = blocks_of(&self.bitset()?);
        Ok(Numbers { blocks: self.blocks.get_or_init(|| blocks) })
    }
}

/// See [`BloomKeys::numbers`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Numbers<'a> {
    blocks: &'a [[u32; 8]],
}

impl Numbers<'_> {
    /// Whether a number may be in the set.
    #[inline]
    pub(crate) fn check(self, key: i64) -> bool {
        let hash = hash(key);
        let block = ((hash >> 32).wrapping_mul(self.blocks.len() as u64)) >> 32;
        let Some(block) = self.blocks.get(block as usize) else { return true };
        let missing = block.iter().zip(SALT).fold(0, |missing, (word, salt)| {
            let bit = 1_u32 << ((hash as u32).wrapping_mul(salt) >> 27);
            missing | (!word & bit)
        });
        missing == 0
    }
}

fn blocks_of(bitset: &[u8]) -> Vec<[u32; 8]> {
    let block = |bytes: &[u8]| {
        let mut words = [0_u32; 8];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        words
    };
    bitset.chunks_exact(BLOCK_BYTES).map(block).collect()
}

/// XXH64 of a number's eight bytes, with seed 0 (Collet, the specification of xxHash).
#[inline]
fn hash(key: i64) -> u64 {
    const PRIMES: [u64; 5] = [
        0x9e37_79b1_85eb_ca87,
        0xc2b2_ae3d_27d4_eb4f,
        0x1656_67b1_9e37_79f9,
        0x85eb_ca77_c2b2_ae63,
        0x27d4_eb2f_1656_67c5,
    ];
    let [first, second, third, fourth, fifth] = PRIMES;
    let lane = (key as u64).wrapping_mul(second).rotate_left(31).wrapping_mul(first);
    let mixed = (fifth.wrapping_add(8) ^ lane).rotate_left(27).wrapping_mul(first).wrapping_add(fourth);
    let mixed = (mixed ^ (mixed >> 33)).wrapping_mul(second);
    let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(third);
    mixed ^ (mixed >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_asked_as_parquet_asks() {
        let numbers = |step: i64| (0..5_000_i64).map(move |number| number.wrapping_mul(step));
        for (count, step) in [(1, 7), (100, -3), (5_000, 0x1234_5678_9abc), (4_000, 1)] {
            let keys = BloomKeys::build(count, None, |filter| {
                numbers(step).take(count).for_each(|key| filter.insert(&key));
                Ok(())
            });
            let keys = keys.unwrap();
            assert!(numbers(step).take(count).all(|key| keys.numbers().unwrap().check(key)));
            let sent = BloomKeys::from_bitset(&keys.bitset().unwrap()).unwrap();
            for key in numbers(step).chain(numbers(11)).chain([i64::MIN, i64::MAX, -1]) {
                assert_eq!(keys.numbers().unwrap().check(key), keys.check(&key), "{key}");
                assert_eq!(sent.numbers().unwrap().check(key), keys.check(&key), "{key}");
            }
        }
        assert_eq!(BloomKeys::from_bitset(&[0; 33]).unwrap_err().code(), ErrorCode::InvalidMessage);
    }
}
