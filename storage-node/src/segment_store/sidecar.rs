//! The file beside a segment: what it is, and the checksum of every block of it.
//!
//! Little-endian: magic, segment id, epoch, transaction id, length, SHA-256, bytes per block, number
//! of blocks, one CRC-32 for each, and a CRC-32 of all of that.

use aubade_proto::{Epoch, Error, ErrorCode, Result, SegmentDescription, SegmentId, TransactionId};
use bytes::{Buf, BufMut};
use uuid::Uuid;

use crate::limits::BLOCK_BYTES;

const MAGIC: &[u8; 8] = b"AUBSUM\x00\x01";
const FIXED_BYTES: usize = 8 + 16 + 8 + 16 + 8 + 32 + 4 + 4;

/// The content of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sidecar {
    pub(crate) description: SegmentDescription,
    pub(crate) block_crcs: Vec<u32>,
}

impl Sidecar {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FIXED_BYTES + 4 * self.block_crcs.len() + 4);
        bytes.put_slice(MAGIC);
        bytes.put_slice(self.description.segment_id.0.as_bytes());
        bytes.put_u64_le(self.description.epoch.0);
        bytes.put_slice(self.description.transaction_id.0.as_bytes());
        bytes.put_u64_le(self.description.bytes);
        bytes.put_slice(&self.description.sha256);
        bytes.put_u32_le(u32::try_from(BLOCK_BYTES).unwrap_or(u32::MAX));
        bytes.put_u32_le(u32::try_from(self.block_crcs.len()).unwrap_or(u32::MAX));
        for crc in &self.block_crcs {
            bytes.put_u32_le(*crc);
        }
        let checksum = crc32fast::hash(&bytes);
        bytes.put_u32_le(checksum);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let Some((content, mut checksum)) = bytes.split_at_checked(bytes.len().saturating_sub(4)) else {
            return Err(damaged("is too short"));
        };
        if content.len() < FIXED_BYTES || checksum.len() != 4 {
            return Err(damaged("is too short"));
        }
        if checksum.get_u32_le() != crc32fast::hash(content) {
            return Err(damaged("does not match its own checksum"));
        }
        let mut rest = content;
        let mut magic = [0_u8; 8];
        rest.copy_to_slice(&mut magic);
        if &magic != MAGIC {
            return Err(damaged("has another format"));
        }
        let take_uuid = |rest: &mut &[u8]| {
            let mut id = [0_u8; 16];
            rest.copy_to_slice(&mut id);
            Uuid::from_bytes(id)
        };
        let segment_id = SegmentId(take_uuid(&mut rest));
        let epoch = Epoch(rest.get_u64_le());
        let transaction_id = TransactionId(take_uuid(&mut rest));
        let length = rest.get_u64_le();
        let mut sha256 = [0_u8; 32];
        rest.copy_to_slice(&mut sha256);
        let (block_bytes, block_count) = (rest.get_u32_le(), rest.get_u32_le());
        if block_bytes as usize != BLOCK_BYTES
            || u64::from(block_count) != length.div_ceil(BLOCK_BYTES as u64)
            || rest.len() as u64 != u64::from(block_count) * 4
        {
            return Err(damaged("has another number of blocks than its segment"));
        }
        let block_crcs = (0..block_count).map(|_| rest.get_u32_le()).collect();
        let description = SegmentDescription { segment_id, epoch, transaction_id, bytes: length, sha256 };
        Ok(Self { description, block_crcs })
    }
}

fn damaged(what: &str) -> Error {
    Error::new(ErrorCode::SegmentCorrupt, format!("the checksum file {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sidecar() -> Sidecar {
        let description = SegmentDescription {
            segment_id: SegmentId(Uuid::from_u128(1)),
            epoch: Epoch(2),
            transaction_id: TransactionId(Uuid::from_u128(3)),
            bytes: 2 * BLOCK_BYTES as u64 + 1,
            sha256: [4; 32],
        };
        Sidecar { description, block_crcs: vec![5, 6, 7] }
    }

    #[test]
    fn a_sidecar_comes_back() {
        assert_eq!(Sidecar::decode(&sidecar().encode()).unwrap(), sidecar());
    }

    #[test]
    fn every_flipped_byte_and_every_cut_is_found() {
        let bytes = sidecar().encode();
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            assert!(Sidecar::decode(&flipped).is_err(), "byte {at}");
            assert!(Sidecar::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
    }
}
