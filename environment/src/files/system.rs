//! The operating system's files.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::{FileLock, FileSystem, ReadFile, WriteFile, network_mount, parent_of};

/// The files of this machine.
#[derive(Debug)]
pub struct SystemFiles;

#[derive(Debug)]
struct SystemReadFile {
    file: File,
    length_bytes: u64,
}

impl ReadFile for SystemReadFile {
    fn length_bytes(&self) -> u64 {
        self.length_bytes
    }

    fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        if offset.checked_add(length as u64).is_none_or(|end| end > self.length_bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // Not zeroed first: whole columns are read at a time.
        let mut buffer = Vec::with_capacity(length);
        while buffer.len() < length {
            let position = offset + buffer.len() as u64;
            match rustix::io::pread(&self.file, rustix::buffer::spare_capacity(&mut buffer), position) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        buffer.truncate(length);
        Ok(Bytes::from(buffer))
    }
}

#[derive(Debug)]
struct SystemWriteFile(File);

impl WriteFile for SystemWriteFile {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_all()
    }
}

#[derive(Debug)]
struct SystemLock {
    _file: File,
}

impl FileLock for SystemLock {}

fn names_in(folder: &Path, wanted: impl Fn(&std::fs::FileType) -> bool) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if wanted(&entry.file_type()?)
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

impl FileSystem for SystemFiles {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut missing: Vec<PathBuf> = Vec::new();
        let mut next = path.to_path_buf();
        while !next.exists() {
            let parent = parent_of(&next)?;
            missing.push(next);
            next = parent;
        }
        for folder in missing.iter().rev() {
            match std::fs::create_dir(folder) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => self.sync_dir(&parent_of(folder)?)?,
            }
        }
        if path.is_dir() { Ok(()) } else { Err(io::ErrorKind::NotADirectory.into()) }
    }

    fn create_new(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        Ok(Box::new(SystemWriteFile(OpenOptions::new().write(true).create_new(true).open(path)?)))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn ReadFile>> {
        let file = File::open(path)?;
        let length_bytes = file.metadata()?.len();
        Ok(Arc::new(SystemReadFile { file, length_bytes }))
    }

    fn hard_link(&self, original: &Path, link: &Path) -> io::Result<()> {
        std::fs::hard_link(original, link)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir_all(path)
    }

    fn list_files(&self, path: &Path) -> io::Result<Vec<String>> {
        names_in(path, std::fs::FileType::is_file)
    }

    fn list_folders(&self, path: &Path) -> io::Result<Vec<String>> {
        names_in(path, std::fs::FileType::is_dir)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn FileLock>> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        file.try_lock().map_err(io::Error::from)?;
        Ok(Box::new(SystemLock { _file: file }))
    }

    fn free_bytes(&self, path: &Path) -> Option<u64> {
        let space = rustix::fs::statvfs(path).ok()?;
        space.f_bavail.checked_mul(space.f_frsize)
    }

    fn network_kind(&self, path: &Path) -> Option<String> {
        network_mount::network_kind(path)
    }
}
