//! Files in memory: for databases that nobody keeps, and for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{FileLock, FileSystem, ReadFile, WriteFile, parent_of};

type Content = Arc<Mutex<Bytes>>;

#[derive(Debug, Default)]
struct Tree {
    files: BTreeMap<PathBuf, Content>,
    folders: BTreeSet<PathBuf>,
    locks: BTreeSet<PathBuf>,
}

/// A file system that lives as long as its last handle.
#[derive(Clone, Debug, Default)]
pub struct MemoryFiles {
    tree: Arc<Mutex<Tree>>,
}

#[derive(Debug)]
struct MemoryReadFile(Bytes);

impl ReadFile for MemoryReadFile {
    fn length_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        match start.checked_add(length) {
            Some(end) if end <= self.0.len() => Ok(self.0.slice(start..end)),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// Collects what is written and shows it at the next sync, so that readers share one copy.
#[derive(Debug)]
struct MemoryWriteFile {
    written: Vec<u8>,
    content: Content,
}

impl WriteFile for MemoryWriteFile {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written.extend_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut content = self.content.lock();
        if content.is_empty() {
            *content = std::mem::take(&mut self.written).into();
        } else {
            *content = [content.as_ref(), &std::mem::take(&mut self.written)].concat().into();
        }
        Ok(())
    }
}

impl Drop for MemoryWriteFile {
    fn drop(&mut self) {
        // As on a real file system, what was written is readable without a sync too.
        let _ = self.sync();
    }
}

#[derive(Debug)]
struct MemoryLock {
    tree: Arc<Mutex<Tree>>,
    path: PathBuf,
}

impl FileLock for MemoryLock {}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        self.tree.lock().locks.remove(&self.path);
    }
}

fn names_in<'a>(tree: &Tree, folder: &Path, paths: impl Iterator<Item = &'a PathBuf>) -> io::Result<Vec<String>> {
    if !tree.folders.contains(folder) {
        return Err(io::ErrorKind::NotFound.into());
    }
    let children = paths.filter(|path| path.parent() == Some(folder));
    Ok(children.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
}

impl FileSystem for MemoryFiles {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut tree = self.tree.lock();
        for folder in path.ancestors() {
            tree.folders.insert(folder.to_path_buf());
        }
        Ok(())
    }

    fn create_new(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        let mut tree = self.tree.lock();
        if !tree.folders.contains(&parent_of(path)?) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if tree.files.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let content = Content::default();
        tree.files.insert(path.to_path_buf(), Arc::clone(&content));
        Ok(Box::new(MemoryWriteFile { written: Vec::new(), content }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn ReadFile>> {
        let tree = self.tree.lock();
        let content = tree.files.get(path).ok_or(io::ErrorKind::NotFound)?;
        let bytes = content.lock().clone();
        Ok(Arc::new(MemoryReadFile(bytes)))
    }

    fn hard_link(&self, original: &Path, link: &Path) -> io::Result<()> {
        let mut tree = self.tree.lock();
        let content = Arc::clone(tree.files.get(original).ok_or(io::ErrorKind::NotFound)?);
        if tree.files.contains_key(link) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        tree.files.insert(link.to_path_buf(), content);
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut tree = self.tree.lock();
        let content = tree.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        tree.files.insert(to.to_path_buf(), content);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.tree.lock().files.remove(path).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut tree = self.tree.lock();
        tree.files.retain(|name, _| !name.starts_with(path));
        tree.folders.retain(|name| !name.starts_with(path));
        Ok(())
    }

    fn list_files(&self, path: &Path) -> io::Result<Vec<String>> {
        let tree = self.tree.lock();
        names_in(&tree, path, tree.files.keys())
    }

    fn list_folders(&self, path: &Path) -> io::Result<Vec<String>> {
        let tree = self.tree.lock();
        names_in(&tree, path, tree.folders.iter())
    }

    fn sync_dir(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn FileLock>> {
        if self.tree.lock().locks.insert(path.to_path_buf()) {
            Ok(Box::new(MemoryLock { tree: Arc::clone(&self.tree), path: path.to_path_buf() }))
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }

    fn free_bytes(&self, _path: &Path) -> Option<u64> {
        None
    }

    fn network_kind(&self, _path: &Path) -> Option<String> {
        None
    }
}
