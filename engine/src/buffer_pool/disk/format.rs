//! A file of the tier: some blocks of one segment, written once.
//!
//! ```text
//! magic (8) | length of the header (u32, little-endian) | CRC-32 of the header (u32) | header (JSON) | blocks
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use aubade_environment::ReadFile;
use aubade_proto::SegmentId;
use bytes::{Buf, Bytes};
use serde::{Deserialize, Serialize};

const MAGIC: &[u8; 8] = b"AUBBLK\x00\x01";
const PREFIX_BYTES: usize = 8 + 4 + 4;

/// What a file holds, in the order of its blocks.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    segment: SegmentId,
    columns: Vec<Arc<str>>,
    blocks: Vec<HeaderBlock>,
}

#[derive(Debug, Serialize, Deserialize)]
struct HeaderBlock {
    number: u32,
    length: u32,
    crc: u32,
}

/// Where a block is in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    offset: u64,
    length: u32,
    crc: u32,
}

impl Place {
    /// The block, if it is as it was written.
    pub(super) fn read(&self, file: &dyn ReadFile) -> std::io::Result<Option<Bytes>> {
        let bytes = file.read_at(self.offset, usize::try_from(self.length).unwrap_or(usize::MAX))?;
        Ok((crc32fast::hash(&bytes) == self.crc).then_some(bytes))
    }
}

/// What is known of a file without its blocks.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) segment: SegmentId,
    /// The columns for which the blocks were read.
    pub(super) columns: Vec<Arc<str>>,
    pub(super) places: BTreeMap<u32, Place>,
    /// Of the whole file.
    pub(super) bytes: u64,
}

/// What a file with these blocks begins with, and what it will hold.
pub(super) fn encode(
    segment: SegmentId,
    columns: &[Arc<str>],
    blocks: &BTreeMap<u32, Bytes>,
) -> Option<(Vec<u8>, Contents)> {
    let block = |(number, bytes): (&u32, &Bytes)| {
        let length = u32::try_from(bytes.len()).ok()?;
        Some(HeaderBlock { number: *number, length, crc: crc32fast::hash(bytes) })
    };
    let blocks = blocks.iter().map(block).collect::<Option<Vec<_>>>()?;
    let header = Header { segment, columns: columns.to_vec(), blocks };
    let json = serde_json::to_vec(&header).ok()?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend(u32::try_from(json.len()).ok()?.to_le_bytes());
    bytes.extend(crc32fast::hash(&json).to_le_bytes());
    bytes.extend(json);
    let contents = contents(header, bytes.len() as u64)?;
    Some((bytes, contents))
}

/// What a file says that it holds; `None` where it is damaged.
pub(super) fn read_contents(file: &dyn ReadFile) -> std::io::Result<Option<Contents>> {
    let whole = file.length_bytes();
    if whole < PREFIX_BYTES as u64 {
        return Ok(None);
    }
    let mut prefix = file.read_at(0, PREFIX_BYTES)?;
    let magic = prefix.split_to(MAGIC.len());
    let (length, crc) = (prefix.get_u32_le(), prefix.get_u32_le());
    let start = PREFIX_BYTES as u64 + u64::from(length);
    if magic.as_ref() != MAGIC || start > whole {
        return Ok(None);
    }
    let json = file.read_at(PREFIX_BYTES as u64, usize::try_from(length).unwrap_or(usize::MAX))?;
    if crc32fast::hash(&json) != crc {
        return Ok(None);
    }
    let contents = serde_json::from_slice(&json).ok().and_then(|header| contents(header, start));
    // A crash of the machine may leave a name without all of its file.
    Ok(contents.filter(|contents| contents.bytes == whole))
}

fn contents(header: Header, start: u64) -> Option<Contents> {
    let mut offset = start;
    let mut places = BTreeMap::new();
    for block in header.blocks {
        places.insert(block.number, Place { offset, length: block.length, crc: block.crc });
        offset = offset.checked_add(u64::from(block.length))?;
    }
    Some(Contents { segment: header.segment, columns: header.columns, places, bytes: offset })
}
