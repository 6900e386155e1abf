//! Which files SQL may read and write.
//!
//! The one gate is the registry of object stores of the engine's runtime: `CREATE EXTERNAL TABLE`,
//! `COPY`, paths in FROM and whatever else reads or writes files gets its store there, so nothing
//! has to be remembered statement by statement. Statements that name a location are checked before
//! they run as well, for an early and clear error.

mod folder_store;
mod url_tables;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aubade_proto::{Error, ErrorCode, Result, ResultExt};
use datafusion::datasource::listing::ListingTableUrl;
use datafusion::error::DataFusionError;
use datafusion::execution::object_store::ObjectStoreRegistry;
use object_store::ObjectStore;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use parking_lot::Mutex;
use url::Url;

use folder_store::FolderStore;
pub(crate) use url_tables::{is_path, with_url_tables};

/// Which files SQL may read and write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum FileAccess {
    /// None: the default, and right for SQL that arrives over the network.
    #[default]
    Deny,
    /// Local files below this folder. Symbolic links are followed before the check.
    Folder(PathBuf),
    /// Every local file, and S3: for embedded use, where SQL has the rights of the process anyway.
    Any,
}

impl FileAccess {
    /// Refuses a location that the policy rules out.
    ///
    /// # Errors
    /// `PermissionDenied`.
    pub(crate) fn check(&self, location: &str) -> Result<()> {
        match self {
            Self::Any => Ok(()),
            Self::Deny => Err(denied(location)),
            Self::Folder(folder) => {
                // What cannot be understood is refused too: `..` is an error to both parsers.
                let refused = |cause: DataFusionError| outside(location, folder).source(cause);
                let url = ListingTableUrl::parse(location).map_err(refused)?;
                if url.scheme() != "file" {
                    return Err(outside(location, folder));
                }
                let path = LocalFileSystem::new().path_to_filesystem(url.prefix());
                let path = path.map_err(|cause| refused(cause.into()))?;
                check_inside(folder, &path)
            }
        }
    }
}

fn denied(location: &str) -> Error {
    Error::new(ErrorCode::PermissionDenied, format!("SQL may not read or write files here, so not '{location}' either"))
        .hint(
            "start the server with `serve --allow-local-files DIR`, or load the file from a client with `aubade load`",
        )
}

fn outside(location: &str, folder: &Path) -> Error {
    Error::new(ErrorCode::PermissionDenied, format!("'{location}' is not below the folder {}", folder.display())).hint(
        "SQL may only use files below the folder that `serve --allow-local-files DIR` names; give an absolute path",
    )
}

/// Checks where `path` leads to once links are followed. Of a path that does not exist yet, the
/// part that does is resolved.
fn check_inside(folder: &Path, path: &Path) -> Result<()> {
    let root = std::fs::canonicalize(folder)
        .context(ErrorCode::PermissionDenied, || format!("the folder {} cannot be resolved", folder.display()))?;
    if path.components().any(|part| matches!(part, std::path::Component::ParentDir)) {
        return Err(outside(&path.display().to_string(), folder));
    }
    // A name that exists without leading anywhere is a dangling link: writing could follow it.
    let existing = path.ancestors().find(|part| std::fs::symlink_metadata(part).is_ok());
    match existing.map(std::fs::canonicalize) {
        Some(Ok(resolved)) if resolved.starts_with(&root) => Ok(()),
        _ => Err(outside(&path.display().to_string(), folder)),
    }
}

/// The object stores that queries may use.
#[derive(Debug)]
pub struct PolicyObjectStores {
    access: FileAccess,
    local: Arc<dyn ObjectStore>,
    /// Buckets that have been opened, by `scheme://host`; only with [`FileAccess::Any`].
    remote: Mutex<BTreeMap<String, Arc<dyn ObjectStore>>>,
}

impl PolicyObjectStores {
    /// The stores that `access` allows.
    pub fn new(access: FileAccess) -> Self {
        let local: Arc<dyn ObjectStore> = match &access {
            FileAccess::Folder(folder) => Arc::new(FolderStore::new(folder.clone())),
            FileAccess::Deny | FileAccess::Any => Arc::new(LocalFileSystem::new()),
        };
        Self { access, local, remote: Mutex::default() }
    }

    fn remote(&self, url: &Url) -> Result<Arc<dyn ObjectStore>> {
        let key = store_key(url);
        if let Some(store) = self.remote.lock().get(&key) {
            return Ok(Arc::clone(store));
        }
        if url.scheme() != "s3" {
            let text = format!("there is no store for URLs of the scheme '{}'", url.scheme());
            return Err(
                Error::new(ErrorCode::NotSupported, text).hint("use a local path, file:///PATH or s3://BUCKET/KEY")
            );
        }
        let store: Arc<dyn ObjectStore> = AmazonS3Builder::from_env()
            .with_url(url.as_str())
            .build()
            .map(Arc::new)
            .context(ErrorCode::InvalidArgument, || format!("the bucket of {url} cannot be opened"))?;
        self.remote.lock().insert(key, Arc::clone(&store));
        Ok(store)
    }
}

fn store_key(url: &Url) -> String {
    format!("{}://{}", url.scheme(), &url[url::Position::BeforeHost..url::Position::AfterPort])
}

impl ObjectStoreRegistry for PolicyObjectStores {
    /// Registered stores are reachable with [`FileAccess::Any`] only.
    fn register_store(&self, url: &Url, store: Arc<dyn ObjectStore>) -> Option<Arc<dyn ObjectStore>> {
        self.remote.lock().insert(store_key(url), store)
    }

    fn deregister_store(&self, url: &Url) -> Result<Arc<dyn ObjectStore>, DataFusionError> {
        let removed = self.remote.lock().remove(&store_key(url));
        removed.ok_or_else(|| Error::internal(format!("no object store is registered for {url}")).into())
    }

    fn get_store(&self, url: &Url) -> Result<Arc<dyn ObjectStore>, DataFusionError> {
        match &self.access {
            FileAccess::Deny => Err(denied(url.as_str()).into()),
            FileAccess::Folder(folder) if url.scheme() != "file" => Err(outside(url.as_str(), folder).into()),
            FileAccess::Any if url.scheme() != "file" => Ok(self.remote(url)?),
            FileAccess::Folder(_) | FileAccess::Any => Ok(Arc::clone(&self.local)),
        }
    }
}

#[cfg(test)]
mod tests;
