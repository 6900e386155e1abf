//! A file as the readers of Parquet and CSV want it, with the bytes that were read counted.

use std::io::{self, Read};
use std::sync::Arc;

use aubade_environment::ReadFile;
use bytes::Bytes;
use indicatif::ProgressBar;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};

/// Bytes that a sequential read takes from the file at a time.
const CHUNK_BYTES: u64 = 1 << 20;

/// A position in a file. Every clone has its own.
#[derive(Clone, Debug)]
pub(super) struct FileReader {
    file: Arc<dyn ReadFile>,
    progress: ProgressBar,
    position: u64,
    chunk: Bytes,
}

impl FileReader {
    /// At the start of the file.
    pub(super) fn new(file: Arc<dyn ReadFile>, progress: ProgressBar) -> Self {
        Self { file, progress, position: 0, chunk: Bytes::new() }
    }
}

impl Read for FileReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.chunk.is_empty() {
            let left = self.file.length_bytes().saturating_sub(self.position);
            // At most CHUNK_BYTES, which fits any usize.
            let length = left.min(CHUNK_BYTES) as usize;
            self.chunk = self.file.read_at(self.position, length)?;
            self.position += length as u64;
            self.progress.inc(length as u64);
        }
        let length = self.chunk.len().min(buffer.len());
        let taken = self.chunk.split_to(length);
        buffer[..length].copy_from_slice(&taken);
        Ok(length)
    }
}

impl Length for FileReader {
    fn len(&self) -> u64 {
        self.file.length_bytes()
    }
}

impl ChunkReader for FileReader {
    type T = Self;

    fn get_read(&self, start: u64) -> Result<Self, ParquetError> {
        Ok(Self { position: start, chunk: Bytes::new(), ..self.clone() })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let bytes = self.file.read_at(start, length)?;
        self.progress.inc(length as u64);
        Ok(bytes)
    }
}
