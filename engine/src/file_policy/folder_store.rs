//! The local file system below one folder.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, RenameOptions, Result,
};

use super::check_inside;

/// Absolute local paths, each checked to lead to somewhere below the folder.
///
/// Between the check and the use somebody with write access to the folder could swap a part of the
/// path for a link; SQL itself cannot make links, so the folder must not be shared with people who
/// are trusted less than the server.
#[derive(Clone, Debug)]
pub(super) struct FolderStore {
    folder: PathBuf,
    files: Arc<LocalFileSystem>,
}

impl FolderStore {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, files: Arc::new(LocalFileSystem::new()) }
    }

    fn check(&self, location: &Path) -> Result<()> {
        let path = self.files.path_to_filesystem(location)?;
        check_inside(&self.folder, &path)
            .map_err(|error| object_store::Error::PermissionDenied { path: location.to_string(), source: error.into() })
    }

    fn check_prefix(&self, prefix: Option<&Path>) -> Result<()> {
        self.check(prefix.unwrap_or(&Path::default()))
    }

    /// What a listing found, without what links lead out of the folder.
    fn visible(&self, meta: &ObjectMeta) -> bool {
        self.check(&meta.location).is_ok()
    }
}

impl fmt::Display for FolderStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FolderStore({})", self.folder.display())
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ObjectStore for FolderStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.check(location)?;
        self.files.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.check(location)?;
        self.files.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.check(location)?;
        self.files.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.check(location)?;
        self.files.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let checked = self.clone();
        let locations = locations.and_then(move |location| {
            let result = checked.check(&location).map(|()| location);
            futures::future::ready(result)
        });
        self.files.delete_stream(locations.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        if let Err(error) = self.check_prefix(prefix) {
            return futures::stream::once(futures::future::ready(Err(error))).boxed();
        }
        let store = self.clone();
        self.files.list(prefix).try_filter(move |meta| futures::future::ready(store.visible(meta))).boxed()
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        if let Err(error) = self.check_prefix(prefix) {
            return futures::stream::once(futures::future::ready(Err(error))).boxed();
        }
        let store = self.clone();
        let found = self.files.list_with_offset(prefix, offset);
        found.try_filter(move |meta| futures::future::ready(store.visible(meta))).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.check_prefix(prefix)?;
        let mut found = self.files.list_with_delimiter(prefix).await?;
        found.objects.retain(|meta| self.visible(meta));
        found.common_prefixes.retain(|prefix| self.check(prefix).is_ok());
        Ok(found)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.check(from)?;
        self.check(to)?;
        self.files.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.check(from)?;
        self.check(to)?;
        self.files.rename_opts(from, to, options).await
    }
}
