//! A segment that is arriving: written, hashed and counted piece by piece.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aubade_environment::{FileSystem, WriteFile};
use aubade_proto::{Error, ErrorCode, Result, ResultExt, SegmentDescription};
use ring::digest::{Context, SHA256};

use super::sidecar::Sidecar;
use crate::limits::BLOCK_BYTES;

/// Files under temporary names; dropping it removes what was not moved away.
pub(crate) struct Incoming {
    files: Arc<dyn FileSystem>,
    description: SegmentDescription,
    data_path: PathBuf,
    sidecar_path: PathBuf,
    file: Box<dyn WriteFile>,
    sha256: Context,
    bytes: u64,
    block: crc32fast::Hasher,
    block_filled: usize,
    block_crcs: Vec<u32>,
}

impl Incoming {
    pub(crate) fn create(
        files: Arc<dyn FileSystem>,
        folder: &Path,
        description: SegmentDescription,
        unique: u64,
    ) -> Result<Self> {
        let name = format!("{}-{unique:016x}", description.segment_id);
        let data_path = folder.join(format!("{name}.tmp"));
        let sidecar_path = folder.join(format!("{name}.sum.tmp"));
        let file = files
            .create_new(&data_path)
            .context(ErrorCode::Io, || format!("segment {} cannot be written", description.segment_id))?;
        Ok(Self {
            files,
            description,
            data_path,
            sidecar_path,
            file,
            sha256: Context::new(&SHA256),
            bytes: 0,
            block: crc32fast::Hasher::new(),
            block_filled: 0,
            block_crcs: Vec::new(),
        })
    }

    /// Writes the next bytes.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        if self.bytes > self.description.bytes {
            return Err(self.mismatch(format!("more than the announced {} bytes arrived", self.description.bytes)));
        }
        self.sha256.update(bytes);
        let mut rest = bytes;
        while !rest.is_empty() {
            let (part, after) = rest.split_at(rest.len().min(BLOCK_BYTES - self.block_filled));
            self.block.update(part);
            self.block_filled += part.len();
            if self.block_filled == BLOCK_BYTES {
                self.close_block();
            }
            rest = after;
        }
        let segment_id = self.description.segment_id;
        self.file.write_all(bytes).context(ErrorCode::Io, || format!("segment {segment_id} cannot be written"))
    }

    fn close_block(&mut self) {
        let block = std::mem::take(&mut self.block);
        self.block_crcs.push(block.finalize());
        self.block_filled = 0;
    }

    fn mismatch(&self, what: String) -> Error {
        let text = format!("segment {} did not arrive as described: {what}", self.description.segment_id);
        Error::new(ErrorCode::SegmentCorrupt, text).hint("send it again")
    }

    /// Checks what arrived and puts it and its checksums on stable storage, under temporary names.
    pub(crate) fn seal(&mut self) -> Result<Sidecar> {
        if self.bytes != self.description.bytes {
            return Err(self.mismatch(format!("{} of {} bytes arrived", self.bytes, self.description.bytes)));
        }
        let digest = self.sha256.clone().finish();
        if digest.as_ref() != self.description.sha256 {
            return Err(self.mismatch("its SHA-256 is another one".to_owned()));
        }
        if self.block_filled > 0 {
            self.close_block();
        }
        let sidecar =
            Sidecar { description: self.description.clone(), block_crcs: std::mem::take(&mut self.block_crcs) };
        let segment_id = self.description.segment_id;
        let mut write = || -> std::io::Result<()> {
            self.file.sync()?;
            let mut file = self.files.create_new(&self.sidecar_path)?;
            file.write_all(&sidecar.encode())?;
            file.sync()
        };
        write().context(ErrorCode::Io, || format!("segment {segment_id} cannot be written"))?;
        Ok(sidecar)
    }

    /// Gives both files their final names; the caller syncs the folder.
    pub(crate) fn rename(&self, data: &Path, sidecar: &Path) -> std::io::Result<()> {
        self.files.rename(&self.sidecar_path, sidecar)?;
        self.files.rename(&self.data_path, data)
    }

    pub(crate) fn description(&self) -> &SegmentDescription {
        &self.description
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // Not found after a rename; anything else is removed at the next start.
        let _ = self.files.remove_file(&self.data_path);
        let _ = self.files.remove_file(&self.sidecar_path);
    }
}
