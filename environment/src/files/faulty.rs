//! A decorator that makes chosen file operations fail, for tests of bad days.

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{FileLock, FileSystem, ReadFile, WriteFile, parent_of};

/// EIO, the same number on every Unix.
const DEVICE_ERROR: i32 = 5;

/// What goes wrong from now on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FileFault {
    /// Nothing.
    #[default]
    None,
    /// Writes fail as on a full disk.
    DiskFull,
    /// Syncing a file or folder fails.
    SyncFails,
    /// Reads fail as on a device with bad sectors.
    ReadFails,
    /// Nothing can be made, renamed or removed, as in a folder that may not be written. Locks are taken as before.
    ReadOnly,
}

/// Another file system with a fault that can be switched while it runs.
#[derive(Clone, Debug)]
pub struct FaultyFiles {
    inner: Arc<dyn FileSystem>,
    fault: Arc<Mutex<FileFault>>,
    network_kind: Option<String>,
}

impl FaultyFiles {
    /// No fault yet.
    pub fn new(inner: Arc<dyn FileSystem>) -> Self {
        Self { inner, fault: Arc::default(), network_kind: None }
    }

    /// The same files, said to be on a network file system.
    #[must_use]
    pub fn on_network(self, kind: &str) -> Self {
        Self { network_kind: Some(kind.to_owned()), ..self }
    }

    /// Switches the fault, for files already open too.
    pub fn set(&self, fault: FileFault) {
        *self.fault.lock() = fault;
    }

    /// Whether names may change in the folder of `path`. One that is not there is no matter of rights.
    fn check_folder_of(&self, path: &Path) -> io::Result<()> {
        let checked = Self::check(&self.fault, FileFault::ReadOnly);
        if checked.is_err() && self.inner.list_files(&parent_of(path)?).is_err() {
            return Ok(());
        }
        checked
    }

    fn check(fault: &Mutex<FileFault>, at: FileFault) -> io::Result<()> {
        if *fault.lock() != at {
            return Ok(());
        }
        match at {
            FileFault::None => Ok(()),
            FileFault::DiskFull => Err(io::ErrorKind::StorageFull.into()),
            FileFault::SyncFails => Err(io::Error::other("the device failed to sync (injected)")),
            FileFault::ReadFails => Err(io::Error::from_raw_os_error(DEVICE_ERROR)),
            FileFault::ReadOnly => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }
}

#[derive(Debug)]
struct FaultyWriteFile {
    inner: Box<dyn WriteFile>,
    fault: Arc<Mutex<FileFault>>,
}

impl WriteFile for FaultyWriteFile {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        FaultyFiles::check(&self.fault, FileFault::DiskFull)?;
        self.inner.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        FaultyFiles::check(&self.fault, FileFault::SyncFails)?;
        self.inner.sync()
    }
}

#[derive(Debug)]
struct FaultyReadFile {
    inner: Arc<dyn ReadFile>,
    fault: Arc<Mutex<FileFault>>,
}

impl ReadFile for FaultyReadFile {
    fn length_bytes(&self) -> u64 {
        self.inner.length_bytes()
    }

    fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        FaultyFiles::check(&self.fault, FileFault::ReadFails)?;
        self.inner.read_at(offset, length)
    }
}

#[deny(clippy::missing_trait_methods)]
impl FileSystem for FaultyFiles {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        // One that exists need not be made.
        let checked = Self::check(&self.fault, FileFault::ReadOnly);
        if checked.is_err() && self.inner.list_files(path).is_err() {
            return checked;
        }
        self.inner.create_dir_all(path)
    }

    fn create_new(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        self.check_folder_of(path)?;
        let inner = self.inner.create_new(path)?;
        Ok(Box::new(FaultyWriteFile { inner, fault: Arc::clone(&self.fault) }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn ReadFile>> {
        let inner = self.inner.open(path)?;
        Ok(Arc::new(FaultyReadFile { inner, fault: Arc::clone(&self.fault) }))
    }

    fn hard_link(&self, original: &Path, link: &Path) -> io::Result<()> {
        self.check_folder_of(link)?;
        self.inner.hard_link(original, link)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check_folder_of(to)?;
        self.inner.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.check_folder_of(path)?;
        self.inner.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        Self::check(&self.fault, FileFault::ReadOnly)?;
        self.inner.remove_dir_all(path)
    }

    fn list_files(&self, path: &Path) -> io::Result<Vec<String>> {
        self.inner.list_files(path)
    }

    fn list_folders(&self, path: &Path) -> io::Result<Vec<String>> {
        self.inner.list_folders(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        Self::check(&self.fault, FileFault::SyncFails)?;
        self.inner.sync_dir(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn FileLock>> {
        self.inner.lock(path)
    }

    fn free_bytes(&self, path: &Path) -> Option<u64> {
        self.inner.free_bytes(path)
    }

    fn network_kind(&self, path: &Path) -> Option<String> {
        self.network_kind.clone().or_else(|| self.inner.network_kind(path))
    }
}
