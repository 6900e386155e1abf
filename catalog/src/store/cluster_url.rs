//! The text that says where a cluster is.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use aubade_environment::Environment;
use aubade_proto::{Error, ErrorCode, Result, ResultExt};
use object_store::path::Path;
use url::Url;

use super::{LocalStore, ManifestStore, ObjectManifestStore};

/// Where a cluster's manifest is: `file:///dir` or `s3://bucket/prefix` (with the environment
/// variables of the `object_store` crate), or a plain path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterUrl(Url);

impl ClusterUrl {
    /// Reads a URL or path.
    ///
    /// # Errors
    /// `InvalidArgument` for another scheme, naming those that work.
    pub fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Err(invalid("the URL of the cluster is empty"));
        }
        if !text.contains("://") {
            return from_path(text);
        }
        let url = Url::parse(text).context(ErrorCode::InvalidArgument, || format!("{text:?} is not a URL"))?;
        match url.scheme() {
            "file" => check_file(&url)?,
            "s3" => check_s3(&url)?,
            other => return Err(invalid(format!("clusters cannot be kept at {other}:// (in {text:?})"))),
        }
        Ok(Self(url))
    }

    /// Opens the store there (without looking for a cluster).
    ///
    /// # Errors
    /// `InvalidArgument`, `StoreUnavailable` or `StoreUnsafe`.
    pub async fn open(&self, environment: &Environment) -> Result<Arc<dyn ManifestStore>> {
        if self.0.scheme() == "s3" {
            let bucket = self.0.host_str().unwrap_or_default();
            let prefix = Path::from_url_path(self.0.path())
                .context(ErrorCode::InvalidArgument, || format!("the prefix in {self} cannot be used"))?;
            return Ok(Arc::new(ObjectManifestStore::s3(self.0.as_str(), bucket, prefix)?));
        }
        let folder = self.folder().ok_or_else(|| invalid(format!("{self} names no folder")))?;
        Ok(Arc::new(LocalStore::open(environment, &folder).await?))
    }

    /// The folder, when it is a local one.
    pub fn folder(&self) -> Option<PathBuf> {
        if self.0.scheme() == "file" { self.0.to_file_path().ok() } else { None }
    }
}

impl fmt::Display for ClusterUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for ClusterUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorCode::InvalidArgument, message).hint("use file:///folder, s3://bucket/prefix or a path")
}

fn from_path(text: &str) -> Result<ClusterUrl> {
    let path = std::path::absolute(text).context(ErrorCode::InvalidArgument, || format!("{text:?} is not a path"))?;
    Url::from_file_path(&path).map(ClusterUrl).map_err(|()| invalid(format!("{} cannot be a URL", path.display())))
}

fn check_file(url: &Url) -> Result<()> {
    match url.host_str() {
        Some(host) if !host.is_empty() => {
            Err(invalid(format!("{url} names the host {host}: only local folders work, with three slashes")))
        }
        _ if url.to_file_path().is_err() => Err(invalid(format!("{url} names no folder"))),
        _ => Ok(()),
    }
}

fn check_s3(url: &Url) -> Result<()> {
    if url.host_str().unwrap_or_default().is_empty() {
        return Err(invalid(format!("{url} names no bucket")));
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
        // The URL itself is not shown: it may hold a secret.
        let message = "an s3:// URL has a bucket and a prefix, and nothing else";
        return Err(Error::new(ErrorCode::InvalidArgument, message).hint(
            "give credentials and endpoint in AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_and_paths_are_read() {
        assert_eq!(ClusterUrl::parse("file:///tmp/a%20b").unwrap().folder(), Some(PathBuf::from("/tmp/a b")));
        assert_eq!(ClusterUrl::parse("/tmp/c").unwrap().to_string(), "file:///tmp/c");
        let relative = ClusterUrl::parse("some/dir").unwrap().folder().unwrap();
        assert!(relative.is_absolute() && relative.ends_with("some/dir"), "{relative:?}");
        assert_eq!(ClusterUrl::parse("s3://bucket/a/b").unwrap().to_string(), "s3://bucket/a/b");
    }

    #[test]
    fn what_does_not_work_is_refused_with_what_does() {
        for text in
            ["", "http://host/x", "gs://bucket/x", "file://host/dir", "s3:///prefix", "s3://key:secret@bucket/x"]
        {
            let error = ClusterUrl::parse(text).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidArgument, "{text}");
            assert!(error.hint_text().is_some() && !error.to_string().contains("secret@"), "{error}");
        }
        let error = ClusterUrl::parse("gs://bucket/x").unwrap_err().to_string();
        assert!(error.contains("gs://") && error.contains("s3://bucket") && error.contains("file://"), "{error}");
    }

    #[tokio::test]
    async fn a_file_is_no_folder_for_a_cluster() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let url = ClusterUrl::parse(file.path().to_str().unwrap()).unwrap();
        let error = url.open(&Environment::system()).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidArgument);
        assert!(error.message().contains("is a file"), "{error}");
    }
}
