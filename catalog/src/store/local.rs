//! A folder of the local file system as a store: every object and its name are on stable storage
//! before anybody acts on them.
//!
//! One machine only: the hard link that decides who was first is atomic on a local file system, not
//! on every network one, so these are refused unless somebody vouches for them. A folder whose sync
//! failed is not touched again by this handle, since the kernel forgets what it could not write and a
//! second sync would wrongly succeed. Source: Rebello et al., "Can applications recover from fsync
//! failures?" (2020).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use aubade_environment::files::{create_durable, parent_of, read_file};
use aubade_environment::tasks::run_blocking;
use aubade_environment::{Environment, FileSystem};
use aubade_proto::{Error, ErrorCode, Result, ResultExt};
use bytes::Bytes;

use super::{ManifestStore, PutOutcome};

/// The environment variable that, set to `1`, lets a folder be on a network file system.
pub const ALLOW_NETWORK_FOLDER: &str = "AUBADE_ALLOW_NETWORK_FOLDER";

/// What to do with a folder on a network file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkFolders {
    /// Such a folder is an error.
    Refuse,
    /// Somebody knows that hard links are atomic there and that a sync is one.
    Allow,
}

impl NetworkFolders {
    /// As the environment variable [`ALLOW_NETWORK_FOLDER`] says.
    pub fn from_env() -> Self {
        let allowed = std::env::var(ALLOW_NETWORK_FOLDER).is_ok_and(|value| matches!(value.trim(), "1" | "true"));
        if allowed { Self::Allow } else { Self::Refuse }
    }
}

/// Objects as files below one folder.
#[derive(Clone, Debug)]
pub struct LocalStore {
    environment: Environment,
    root: PathBuf,
    /// Set once a folder could not be synced; never cleared.
    sync_failed: Arc<AtomicBool>,
}

impl LocalStore {
    /// The store at `root`. The folder may be missing; the first object makes it.
    ///
    /// # Errors
    /// `InvalidArgument` when `root` is no folder, `StoreUnavailable` when it cannot be read,
    /// `StoreUnsafe` when it is on a network file system and [`ALLOW_NETWORK_FOLDER`] is not set.
    pub async fn open(environment: &Environment, root: &Path) -> Result<Self> {
        Self::open_with(environment, root, NetworkFolders::from_env()).await
    }

    /// As [`LocalStore::open`], without a look at the environment variable.
    ///
    /// # Errors
    /// As [`LocalStore::open`].
    pub async fn open_with(environment: &Environment, root: &Path, network: NetworkFolders) -> Result<Self> {
        let store = Self {
            environment: environment.clone(),
            root: root.to_path_buf(),
            sync_failed: Arc::new(AtomicBool::new(false)),
        };
        let folder = store.root.clone();
        let look = move |files: &dyn FileSystem| (files.list_files(&folder), files.network_kind(&folder));
        let (listed, network_kind) = store.blocking(look).await?;
        match listed {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                let message = format!("{} is a file, not the folder of a cluster", root.display());
                return Err(
                    Error::new(ErrorCode::InvalidArgument, message).hint("name a folder; it is made if it is missing")
                );
            }
            Err(error) => return Err(store.unavailable("open", &error).source(error)),
        }
        match network_kind {
            Some(kind) if network == NetworkFolders::Refuse => Err(on_network(root, &kind)),
            _ => Ok(store),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        name.split('/').fold(self.root.clone(), |path, part| path.join(part))
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&dyn FileSystem) -> T + Send + 'static) -> Result<T> {
        if self.sync_failed.load(Ordering::SeqCst) {
            let message =
                format!("folder {} failed to sync and cannot be trusted by this process", self.root.display());
            return Err(
                Error::new(ErrorCode::StoreUnavailable, message).hint("check the disk, then restart the process")
            );
        }
        let files = Arc::clone(&self.environment.files);
        let done = run_blocking(move || work(files.as_ref())).await;
        done.ok_or_else(|| Error::internal(format!("file work in {} panicked or was stopped", self.root.display())))
    }

    fn unavailable(&self, verb: &str, error: &io::Error) -> Error {
        let code = match error.kind() {
            io::ErrorKind::StorageFull => ErrorCode::DiskFull,
            io::ErrorKind::PermissionDenied => ErrorCode::PermissionDenied,
            _ => ErrorCode::StoreUnavailable,
        };
        let error = Error::new(code, format!("cannot {verb} {}", self.root.display()));
        match code {
            ErrorCode::DiskFull => error.hint("free room on the disk and try again"),
            ErrorCode::PermissionDenied => error.hint("give this user the right to read and write the folder"),
            _ => error,
        }
    }
}

fn on_network(root: &Path, kind: &str) -> Error {
    let message = format!(
        "{} is on a network file system ({kind}), where two machines may both be told that they were first",
        root.display()
    );
    Error::new(ErrorCode::StoreUnsafe, message).hint(format!(
        "use a folder on a local disk, or s3://bucket/prefix; {ALLOW_NETWORK_FOLDER}=1 allows it for one whose hard links are atomic"
    ))
}

/// What became of the file that a failed creation was about.
enum Leftover {
    /// The name was never given: nothing was made.
    Nothing,
    /// The name is there, but may not survive a power cut.
    NotSynced,
}

fn create(files: &dyn FileSystem, path: &Path, bytes: &[u8], unique: u64) -> Result<(), (io::Error, Leftover)> {
    let folder = parent_of(path).map_err(|error| (error, Leftover::Nothing))?;
    files.create_dir_all(&folder).map_err(|error| (error, Leftover::Nothing))?;
    create_durable(files, path, bytes, unique).map_err(|error| {
        // Another process may have made the name meanwhile: only our own bytes tell of our own link.
        let linked =
            error.kind() != io::ErrorKind::AlreadyExists && read_file(files, path).is_ok_and(|found| found == bytes);
        (error, if linked { Leftover::NotSynced } else { Leftover::Nothing })
    })
}

/// Reads an object and syncs its folder: the process that made it may not have come that far.
fn read(files: &dyn FileSystem, path: &Path) -> io::Result<(Bytes, io::Result<()>)> {
    let bytes = read_file(files, path)?;
    Ok((bytes, files.sync_dir(&parent_of(path)?)))
}

fn list(files: &dyn FileSystem, path: &Path) -> io::Result<(Vec<String>, io::Result<()>)> {
    match files.list_files(path) {
        Ok(names) => Ok((names, files.sync_dir(path))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((Vec::new(), Ok(()))),
        Err(error) => Err(error),
    }
}

#[async_trait]
impl ManifestStore for LocalStore {
    fn location(&self) -> String {
        self.root.display().to_string()
    }

    async fn create(&self, name: &str, bytes: Bytes) -> PutOutcome {
        let path = self.path(name);
        let unique = self.environment.random.next_u64();
        let (error, leftover) = match self.blocking(move |files| create(files, &path, &bytes, unique)).await {
            Ok(Ok(())) => return PutOutcome::Created,
            Ok(Err((error, Leftover::Nothing))) if error.kind() == io::ErrorKind::AlreadyExists => {
                return PutOutcome::AlreadyExists;
            }
            Ok(Err(failed)) => failed,
            Err(error) => return PutOutcome::Unknown(error),
        };
        let told = self.unavailable(&format!("create {name} in"), &error).source(error);
        match leftover {
            Leftover::Nothing => PutOutcome::Refused(told),
            Leftover::NotSynced => {
                self.sync_failed.store(true, Ordering::SeqCst);
                PutOutcome::Unknown(told)
            }
        }
    }

    async fn get(&self, name: &str) -> Result<Option<Bytes>> {
        let path = self.path(name);
        match self.blocking(move |files| read(files, &path)).await? {
            Ok((bytes, Ok(()))) => Ok(Some(bytes)),
            Ok((_, Err(error))) => {
                self.sync_failed.store(true, Ordering::SeqCst);
                Err(self.unavailable("sync", &error).source(error))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.unavailable(&format!("read {name} in"), &error).source(error)),
        }
    }

    async fn list(&self, folder: &str) -> Result<Vec<String>> {
        let path = self.path(folder);
        let (names, synced) = self
            .blocking(move |files| list(files, &path))
            .await?
            .map_err(|error| self.unavailable(&format!("list {folder} in"), &error).source(error))?;
        if let Err(error) = synced {
            self.sync_failed.store(true, Ordering::SeqCst);
            return Err(self.unavailable("sync", &error).source(error));
        }
        // Names with a dot in front are files that are being written, or litter of a crash.
        let mut names: Vec<String> =
            names.iter().filter(|name| !name.starts_with('.')).map(|name| format!("{folder}/{name}")).collect();
        names.sort_unstable();
        Ok(names)
    }

    async fn delete(&self, name: &str) -> Result<()> {
        let path = self.path(name);
        match self.blocking(move |files| files.remove_file(&path)).await? {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error)
                .context(ErrorCode::StoreUnavailable, || format!("cannot delete {name} in {}", self.root.display())),
            _ => Ok(()),
        }
    }

    async fn delete_all(&self, names: &[String]) -> Result<()> {
        let paths: Vec<PathBuf> = names.iter().map(|name| self.path(name)).collect();
        // Not synced: a name that comes back after a power cut is one that was not deleted yet.
        let remove = move |files: &dyn FileSystem| {
            paths.iter().try_for_each(|path| match files.remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            })
        };
        self.blocking(remove).await?.context(ErrorCode::StoreUnavailable, || {
            format!("cannot delete {} objects in {}", names.len(), self.root.display())
        })
    }
}

#[cfg(test)]
mod tests {
    use aubade_environment::{FaultyFiles, MemoryFiles};

    use super::*;

    #[tokio::test]
    async fn a_network_file_system_is_refused_unless_somebody_allows_it() {
        let files = FaultyFiles::new(Arc::new(MemoryFiles::default())).on_network("nfs");
        let environment = Environment::system().with_files(Arc::new(files));
        let root = Path::new("/far/away/cluster");
        let error = LocalStore::open_with(&environment, root, NetworkFolders::Refuse).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::StoreUnsafe);
        assert!(error.message().contains("/far/away/cluster") && error.message().contains("nfs"), "{error}");
        assert!(error.hint_text().is_some_and(|hint| hint.contains(ALLOW_NETWORK_FOLDER)), "{error}");
        let store = LocalStore::open_with(&environment, root, NetworkFolders::Allow).await.unwrap();
        assert!(matches!(store.create("m/1", Bytes::from_static(b"x")).await, PutOutcome::Created));
    }
}
