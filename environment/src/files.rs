//! The file system, as the segment store and the local manifest need it.
//!
//! All calls block; callers run them through [`crate::tasks::run_blocking`] or on their own CPU
//! pool. Durability is explicit: a written file is on stable storage after [`WriteFile::sync`], its
//! name after [`FileSystem::sync_dir`] on the folder.

mod faulty;
mod memory;
mod network_mount;
mod system;

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
pub use faulty::{FaultyFiles, FileFault};
pub use memory::MemoryFiles;
pub use system::SystemFiles;

/// A file open for reading. Reads at different offsets may run at the same time.
pub trait ReadFile: Debug + Send + Sync {
    /// Length in bytes when it was opened.
    fn length_bytes(&self) -> u64;

    /// Exactly `length` bytes from `offset`; `UnexpectedEof` when the file is shorter.
    fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes>;
}

/// A new file, open for writing.
pub trait WriteFile: Debug + Send {
    /// Appends all of `bytes`.
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Puts what was written on stable storage.
    fn sync(&mut self) -> io::Result<()>;
}

/// Held while a folder is in use; dropping it lets go.
pub trait FileLock: Debug + Send + Sync {}

/// A file system.
pub trait FileSystem: Debug + Send + Sync {
    /// Makes `path` and its missing parents, each durably.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;

    /// A new, empty file; `AlreadyExists` if the name is taken.
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn WriteFile>>;

    /// Opens a file for reading.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn ReadFile>>;

    /// Names an existing file a second time; `AlreadyExists` if `link` is taken. Atomic.
    fn hard_link(&self, original: &Path, link: &Path) -> io::Result<()>;

    /// Renames a file, replacing `to`. Atomic.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Removes a folder with all that it holds.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;

    /// The names of the files (not folders) in `path`, sorted.
    fn list_files(&self, path: &Path) -> io::Result<Vec<String>>;

    /// The names of the folders in `path`, sorted.
    fn list_folders(&self, path: &Path) -> io::Result<Vec<String>>;

    /// Puts the names in the folder on stable storage.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Takes the lock file at `path`; `WouldBlock` when another process (or handle) holds it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn FileLock>>;

    /// Bytes free for new files on the device of `path`; `None` where it cannot be told.
    fn free_bytes(&self, path: &Path) -> Option<u64>;

    /// The kind of the network file system that `path`, or the nearest folder above it that exists,
    /// is on, like `nfs`; `None` on local ones and where it cannot be told.
    fn network_kind(&self, path: &Path) -> Option<String>;
}

/// The whole of a file.
pub fn read_file(files: &dyn FileSystem, path: &Path) -> io::Result<Bytes> {
    let file = files.open(path)?;
    let length = usize::try_from(file.length_bytes()).map_err(io::Error::other)?;
    file.read_at(0, length)
}

/// Writes `bytes` under a name that must be free, durably: a temporary file is written and synced,
/// linked to its final name, and the folder synced. A crash leaves all of it or nothing.
///
/// `AlreadyExists` when the name is taken; the folder is synced in that case too, so that the
/// caller may act on what it found there.
pub fn create_durable(files: &dyn FileSystem, path: &Path, bytes: &[u8], unique: u64) -> io::Result<()> {
    let folder = parent_of(path)?;
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("file");
    let temporary = folder.join(format!(".{name}.{unique:016x}.tmp"));
    let written = (|| {
        let mut file = files.create_new(&temporary)?;
        file.write_all(bytes)?;
        file.sync()?;
        files.hard_link(&temporary, path)
    })();
    // The temporary name is only litter by now; what counts is the result of the link.
    let _ = files.remove_file(&temporary);
    match written {
        Ok(()) => files.sync_dir(&folder),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            files.sync_dir(&folder)?;
            Err(error)
        }
        Err(error) => Err(error),
    }
}

/// Replaces a small file, or makes it, durably; a crash leaves the old content or the new one.
pub fn replace_durable(files: &dyn FileSystem, path: &Path, bytes: &[u8], unique: u64) -> io::Result<()> {
    let temporary = path.with_extension(format!("{unique:016x}.tmp"));
    let written = (|| {
        let mut file = files.create_new(&temporary)?;
        file.write_all(bytes)?;
        file.sync()?;
        files.rename(&temporary, path)?;
        files.sync_dir(&parent_of(path)?)
    })();
    if written.is_err() {
        let _ = files.remove_file(&temporary);
    }
    written
}

/// The folder of `path`.
pub fn parent_of(path: &Path) -> io::Result<PathBuf> {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Ok(PathBuf::from(".")),
        Some(parent) => Ok(parent.to_path_buf()),
        None => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} has no folder", path.display()))),
    }
}

#[cfg(test)]
mod tests;
