//! Reading a segment so that every byte handed out was checked.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use aubade_environment::ReadFile;
use aubade_proto::{Error, ErrorCode, Result, SegmentId};
use bytes::Bytes;

use super::sidecar::Sidecar;
use crate::limits::BLOCK_BYTES;

/// An open segment file with the checksums of its blocks.
#[derive(Debug)]
pub(crate) struct VerifiedFile {
    segment_id: SegmentId,
    file: Arc<dyn ReadFile>,
    length_bytes: u64,
    block_crcs: Vec<u32>,
}

/// Whole blocks of a segment that were read and verified.
#[derive(Clone, Debug)]
pub struct Blocks {
    /// Offset of the first byte in the file.
    pub start: u64,
    /// One block after the other.
    pub bytes: Bytes,
}

impl Blocks {
    /// The bytes of `range`, if all of them are here.
    pub fn slice(&self, range: &Range<u64>) -> Option<Bytes> {
        let from = usize::try_from(range.start.checked_sub(self.start)?).ok()?;
        let to = usize::try_from(range.end.checked_sub(self.start)?).ok()?;
        (from <= to && to <= self.bytes.len()).then(|| self.bytes.slice(from..to))
    }
}

/// The bytes of a segment, wherever they are.
pub(crate) trait SegmentBytes: std::fmt::Debug + Send + Sync {
    /// Which segment.
    fn segment_id(&self) -> SegmentId;
    /// Bytes of the whole file.
    fn length_bytes(&self) -> u64;
    /// Verified bytes that cover `range`. Blocks.
    fn read_blocks(&self, range: &Range<u64>) -> Result<Blocks>;
}

impl SegmentBytes for VerifiedFile {
    fn segment_id(&self) -> SegmentId {
        self.segment_id
    }

    fn length_bytes(&self) -> u64 {
        self.length_bytes
    }

    fn read_blocks(&self, range: &Range<u64>) -> Result<Blocks> {
        Self::read_blocks(self, range)
    }
}

impl VerifiedFile {
    pub(crate) fn new(file: Arc<dyn ReadFile>, sidecar: Sidecar) -> Result<Self> {
        let Sidecar { description, block_crcs } = sidecar;
        let segment_id = description.segment_id;
        if file.length_bytes() != description.bytes {
            let text = format!(
                "segment {segment_id} is corrupt: it has {} bytes instead of {}",
                file.length_bytes(),
                description.bytes
            );
            return Err(Error::new(ErrorCode::SegmentCorrupt, text));
        }
        Ok(Self { segment_id, file, length_bytes: description.bytes, block_crcs })
    }

    pub(crate) fn segment_id(&self) -> SegmentId {
        self.segment_id
    }

    pub(crate) fn length_bytes(&self) -> u64 {
        self.length_bytes
    }

    /// The whole blocks that cover `range`, every one verified.
    pub(crate) fn read_blocks(&self, range: &Range<u64>) -> Result<Blocks> {
        let block = BLOCK_BYTES as u64;
        if range.start > range.end || range.end > self.length_bytes {
            let text = format!("segment {} has no bytes {}..{}", self.segment_id, range.start, range.end);
            return Err(Error::new(ErrorCode::FileUnreadable, text));
        }
        let first = range.start / block;
        let start = first * block;
        let end = range.end.next_multiple_of(block).min(self.length_bytes).max(start);
        let length = usize::try_from(end - start)
            .map_err(|_| Error::new(ErrorCode::LimitExceeded, format!("segment {} is too large", self.segment_id)))?;
        let bytes = self.file.read_at(start, length).map_err(|error| self.read_failed(error))?;
        let crcs = self.block_crcs.iter().skip(usize::try_from(first).unwrap_or(usize::MAX));
        for ((index, content), expected) in (first..).zip(bytes.chunks(BLOCK_BYTES)).zip(crcs) {
            if crc32fast::hash(content) != *expected {
                let text = format!("segment {} is corrupt: block {index} fails its checksum", self.segment_id);
                return Err(Error::new(ErrorCode::SegmentCorrupt, text));
            }
        }
        Ok(Blocks { start, bytes })
    }

    fn read_failed(&self, error: io::Error) -> Error {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            let text = format!("segment {} is corrupt: its file was cut", self.segment_id);
            return Error::new(ErrorCode::SegmentCorrupt, text);
        }
        Error::new(ErrorCode::Io, format!("segment {} cannot be read", self.segment_id)).source(error)
    }
}
