//! The folder of the second tier: whose it is, and that only one coordinator writes to it.

use std::io;
use std::path::{Path, PathBuf};

use aubade_environment::files::{read_file, replace_durable};
use aubade_environment::{Environment, FileLock};
use aubade_proto::{ClusterId, Error, ErrorCode, Result, ResultExt};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::limits::BUFFER_POOL_BLOCK_BYTES;

pub(super) const IDENTITY: &str = "buffer-pool.json";
/// Of [`IDENTITY`], and of the files under which it is written.
const IDENTITY_STEM: &str = "buffer-pool.";
const LOCK: &str = "LOCK";
const FORMAT: u32 = 1;
const HINT: &str = "choose a folder on a local disk that this process may write to";

#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    format: u32,
    cluster_id: ClusterId,
    block_bytes: u64,
}

impl Identity {
    fn of(cluster_id: ClusterId) -> Self {
        Self { format: FORMAT, cluster_id, block_bytes: BUFFER_POOL_BLOCK_BYTES }
    }
}

/// See the module's doc.
#[derive(Debug)]
pub(super) struct Folder {
    environment: Environment,
    dir: PathBuf,
    cluster: ClusterId,
    /// `None` where the folder was gone and could not be made again: then it may be another coordinator's.
    lock: Mutex<Option<Box<dyn FileLock>>>,
}

impl Folder {
    /// Takes the folder, which is made if it is absent; and whether it has files of `cluster` in the format of this
    /// release. Blocks.
    ///
    /// # Errors
    /// `InvalidArgument` when it has files of others, `InUse` when another coordinator has it, `WrongCluster` when it is
    /// of another cluster, `Io` or `DiskFull` when it cannot be made.
    pub(super) fn take(environment: &Environment, dir: &Path, cluster: ClusterId) -> Result<(Self, bool)> {
        let (files, name) = (environment.files.as_ref(), dir.display().to_string());
        files
            .create_dir_all(dir)
            .context(ErrorCode::Io, || format!("the folder {name} of the buffer pool cannot be made"))
            .map_err(|error| error.hint(HINT))?;
        refuse_files_of_others(environment, dir)?;
        let lock = match files.lock(&dir.join(LOCK)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let text = format!("the folder {name} of the buffer pool is in use by another coordinator");
                return Err(Error::new(ErrorCode::InUse, text).hint("stop that one, or choose another folder"));
            }
            locked => locked.context(ErrorCode::Io, || cannot_be_written(dir)).map_err(|error| error.hint(HINT))?,
        };
        let is_ours = is_of_cluster(environment, dir, cluster)?;
        let folder =
            Self { environment: environment.clone(), dir: dir.to_owned(), cluster, lock: Mutex::new(Some(lock)) };
        Ok((folder, is_ours))
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Says in the folder whose it is.
    ///
    /// # Errors
    /// `Io` or `DiskFull`.
    pub(super) fn sign(&self) -> Result<()> {
        let signed = self.write_identity();
        let signed = signed.context(ErrorCode::Io, || format!("{} cannot be written", self.path(IDENTITY).display()));
        signed.map_err(|error| error.hint(HINT))
    }

    /// Makes a file of this name, which must be free, and removes it again. A full disk is no failure: what is there can
    /// still be read, and there may be room later.
    ///
    /// # Errors
    /// `Io` where no file can be made.
    pub(super) fn try_write(&self, name: &str) -> Result<()> {
        let (files, path) = (self.environment.files.as_ref(), self.path(name));
        match files.create_new(&path).map(drop).and_then(|()| files.remove_file(&path)) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => Ok(()),
            tried => tried.context(ErrorCode::Io, || cannot_be_written(&self.dir)).map_err(|error| error.hint(HINT)),
        }
    }

    /// Whether it is still this coordinator's.
    pub(super) fn is_held(&self) -> bool {
        self.lock.lock().is_some()
    }

    /// Makes the folder again after somebody has removed it; calls `forget` first, while there are no files.
    ///
    /// # Errors
    /// Where that is not possible, or another coordinator has made it meanwhile.
    pub(super) fn make_again(&self, forget: impl FnOnce()) -> io::Result<()> {
        let files = self.environment.files.as_ref();
        let mut held = self.lock.lock();
        // Another write may have made it.
        if held.is_some() && files.list_files(&self.dir).is_ok() {
            return Ok(());
        }
        // Of a file that is gone: it keeps nobody away from the new one.
        *held = None;
        forget();
        files.create_dir_all(&self.dir)?;
        let lock = files.lock(&self.path(LOCK))?;
        match files.open(&self.path(IDENTITY)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
            Ok(_) => return Err(io::Error::other("another coordinator has used the folder since it was removed")),
        }
        self.write_identity()?;
        *held = Some(lock);
        tracing::warn!(dir = %self.dir.display(), "the folder of the buffer pool was gone, and was made again");
        Ok(())
    }

    fn write_identity(&self) -> io::Result<()> {
        let bytes = serde_json::to_vec_pretty(&Identity::of(self.cluster)).map_err(io::Error::other)?;
        let unique = self.environment.random.next_u64();
        replace_durable(self.environment.files.as_ref(), &self.path(IDENTITY), &bytes, unique)
    }
}

fn cannot_be_written(dir: &Path) -> String {
    format!("the folder {} of the buffer pool cannot be written", dir.display())
}

/// Makes sure that a folder is a buffer pool's: one in which no pool has left its name has to be empty. What is in the
/// folder of a pool may be removed, and whoever tells a user so must not be wrong.
fn refuse_files_of_others(environment: &Environment, dir: &Path) -> Result<()> {
    let files = environment.files.as_ref();
    let unreadable = || format!("the folder {} of the buffer pool cannot be read", dir.display());
    let names = files.list_files(dir).context(ErrorCode::Io, unreadable)?;
    if names.iter().any(|name| name == IDENTITY) {
        return Ok(());
    }
    let folders = files.list_folders(dir).context(ErrorCode::Io, unreadable)?;
    let of_others = |name: &&String| *name != LOCK && !name.starts_with(IDENTITY_STEM) && !name.contains(super::SUFFIX);
    // A file system has a folder of its own where it is mounted.
    let mut others = names.iter().filter(of_others).chain(folders.iter().filter(|name| *name != "lost+found"));
    let Some(other) = others.next() else { return Ok(()) };
    let text =
        format!("the folder {} is no buffer pool's: it has {other} in it, and others may need that", dir.display());
    Err(Error::new(ErrorCode::InvalidArgument, text).hint("choose a folder that is empty, or is not there yet"))
}

/// Whether a folder has the files of `cluster` in the format of this release; `false` where it has none, or others.
///
/// # Errors
/// `WrongCluster`, and `Io` where it cannot be told.
fn is_of_cluster(environment: &Environment, dir: &Path, cluster: ClusterId) -> Result<bool> {
    let path = dir.join(IDENTITY);
    let known = match read_file(environment.files.as_ref(), &path) {
        Ok(bytes) => serde_json::from_slice::<Identity>(&bytes).ok(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).context(ErrorCode::Io, || format!("{} cannot be read", path.display())),
    };
    match known {
        Some(known) if known.cluster_id != cluster => {
            let text = format!(
                "the folder {} of the buffer pool belongs to cluster {}, not to {cluster}",
                dir.display(),
                known.cluster_id
            );
            Err(Error::new(ErrorCode::WrongCluster, text).hint("choose another folder"))
        }
        known => Ok(known.is_some_and(|known| known == Identity::of(cluster))),
    }
}
