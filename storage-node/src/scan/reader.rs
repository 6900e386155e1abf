//! What the Parquet reader reads from: blocks of a segment, verified and counted.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use aubade_proto::{Error, ErrorCode, Result};
use bytes::{Buf, Bytes};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};

use crate::limits::BLOCK_BYTES;
use crate::segment_store::{Blocks, SegmentBytes};

/// Shared by the readers of one segment scan.
#[derive(Debug, Default)]
struct Progress {
    bytes_read: AtomicU64,
    /// The first failure to read; Parquet passes on only its text.
    failure: OnceLock<Error>,
}

/// A segment, with some byte ranges of it loaded ahead. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct SegmentReader {
    file: Arc<dyn SegmentBytes>,
    loaded: Arc<[Blocks]>,
    progress: Arc<Progress>,
}

impl SegmentReader {
    pub(crate) fn new(file: Arc<dyn SegmentBytes>) -> Self {
        Self { file, loaded: Arc::from([]), progress: Arc::default() }
    }

    /// The same segment with `ranges` in memory, so that each of their blocks is read and verified
    /// once, however many pages share it.
    pub(crate) fn load(&self, mut ranges: Vec<Range<u64>>) -> Result<Self> {
        ranges.sort_unstable_by_key(|range| range.start);
        let mut merged: Vec<Range<u64>> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(last) if range.start / BLOCK_BYTES as u64 <= last.end / BLOCK_BYTES as u64 => {
                    last.end = last.end.max(range.end);
                }
                _ => merged.push(range),
            }
        }
        let loaded = merged.iter().map(|range| self.read_blocks(range)).collect::<Result<Vec<_>>>()?;
        Ok(Self { loaded: loaded.into(), ..self.clone() })
    }

    /// Bytes of the file that were read so far.
    pub(crate) fn bytes_read(&self) -> u64 {
        // Ordering: a counter.
        self.progress.bytes_read.load(Ordering::Relaxed)
    }

    /// The error to report for `error` of the Parquet reader: the failure to read behind it, or one
    /// that says that the file cannot be decoded.
    pub(crate) fn explain(&self, error: impl std::error::Error + Send + Sync + 'static) -> Error {
        if let Some(failure) = self.progress.failure.get() {
            return failure.clone();
        }
        let text = format!("segment {} cannot be decoded", self.file.segment_id());
        Error::new(ErrorCode::FileUnreadable, text).source(error)
    }

    fn read_blocks(&self, range: &Range<u64>) -> Result<Blocks> {
        let blocks = self.file.read_blocks(range).inspect_err(|error| {
            let _ = self.progress.failure.set(error.clone());
        })?;
        // Ordering: a counter.
        self.progress.bytes_read.fetch_add(blocks.bytes.len() as u64, Ordering::Relaxed);
        Ok(blocks)
    }

    fn read(&self, range: &Range<u64>) -> Result<Bytes> {
        if let Some(bytes) = self.loaded.iter().find_map(|blocks| blocks.slice(range)) {
            return Ok(bytes);
        }
        let blocks = self.read_blocks(range)?;
        blocks.slice(range).ok_or_else(|| Error::internal("verified blocks do not cover what was asked"))
    }

    /// The bytes from `position` on that are at hand, or those of one block.
    fn read_some(&self, position: u64) -> Result<Bytes> {
        let end = self.loaded.iter().map(|blocks| blocks.start..blocks.start + blocks.bytes.len() as u64);
        let end = end.into_iter().find(|range| range.contains(&position)).map(|range| range.end);
        let block_end = (position / BLOCK_BYTES as u64 + 1) * BLOCK_BYTES as u64;
        self.read(&(position..end.unwrap_or(block_end).min(self.file.length_bytes())))
    }
}

impl Length for SegmentReader {
    fn len(&self) -> u64 {
        self.file.length_bytes()
    }
}

impl ChunkReader for SegmentReader {
    type T = SegmentRead;

    fn get_read(&self, start: u64) -> Result<SegmentRead, ParquetError> {
        Ok(SegmentRead { reader: self.clone(), position: start, buffer: Bytes::new() })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let end = start.checked_add(length as u64).ok_or_else(|| ParquetError::EOF("range overflows".to_owned()))?;
        self.read(&(start..end)).map_err(|error| ParquetError::External(Box::new(error)))
    }
}

/// Reads on from a position.
#[derive(Debug)]
pub(crate) struct SegmentRead {
    reader: SegmentReader,
    position: u64,
    buffer: Bytes,
}

impl Read for SegmentRead {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.buffer.is_empty() && self.position < self.reader.len() {
            self.buffer = self.reader.read_some(self.position).map_err(io::Error::other)?;
            self.position = self.position.saturating_add(self.buffer.len() as u64);
        }
        let count = out.len().min(self.buffer.len());
        if let Some(out) = out.get_mut(..count) {
            self.buffer.copy_to_slice(out);
        }
        Ok(count)
    }
}
