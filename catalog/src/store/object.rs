//! An object store as a store of manifests: S3, or anything else that the `object_store` crate can
//! create objects in only if they are absent.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aubade_proto::{Error, ErrorCode, Result, ResultExt};
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, RetryConfig};

use super::{ManifestStore, PutOutcome};

/// Attempts after the first to read, list or delete; creating is never tried again down here.
const READ_RETRIES: usize = 3;

/// Time for all attempts of one read.
const READ_TIMEOUT: Duration = Duration::from_secs(20);

/// Objects below one prefix of an object store.
#[derive(Clone, Debug)]
pub struct ObjectManifestStore {
    location: String,
    prefix: Path,
    /// Without retries: an own retry that finds its own object would be told AlreadyExists.
    creating: Arc<dyn ObjectStore>,
    reading: Arc<dyn ObjectStore>,
}

impl ObjectManifestStore {
    /// Over one client that does not retry by itself.
    pub fn new(location: impl Into<String>, store: Arc<dyn ObjectStore>, prefix: Path) -> Self {
        Self { location: location.into(), prefix, creating: Arc::clone(&store), reading: store }
    }

    /// Over a bucket of S3 or of something that speaks its protocol, with the credentials, region
    /// and endpoint of the environment variables that the `object_store` crate knows (`AWS_...`).
    ///
    /// # Errors
    /// `InvalidArgument` when the settings make no client.
    pub fn s3(location: &str, bucket: &str, prefix: Path) -> Result<Self> {
        let client = |retry: RetryConfig| -> Result<Arc<dyn ObjectStore>> {
            let builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry);
            let built = builder.with_conditional_put(S3ConditionalPut::ETagMatch).build();
            let built = built.context(ErrorCode::InvalidArgument, || format!("cannot make a client for {location}"))?;
            Ok(Arc::new(built))
        };
        let creating = client(RetryConfig { max_retries: 0, ..RetryConfig::default() })?;
        let reading =
            client(RetryConfig { max_retries: READ_RETRIES, retry_timeout: READ_TIMEOUT, ..RetryConfig::default() })?;
        Ok(Self { location: location.to_owned(), prefix, creating, reading })
    }

    fn path(&self, name: &str) -> Path {
        name.split('/').fold(self.prefix.clone(), |path, part| path.join(part))
    }

    fn failed(&self, verb: &str, name: &str, error: object_store::Error) -> Error {
        let code = code_of(&error);
        let failed = Error::new(code, format!("cannot {verb} {name} in {}", self.location)).source(error);
        match code {
            ErrorCode::PermissionDenied => {
                failed.hint("check the credentials (AWS_... variables) and the policy of the bucket")
            }
            _ => failed,
        }
    }
}

fn code_of(error: &object_store::Error) -> ErrorCode {
    match error {
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
            ErrorCode::PermissionDenied
        }
        object_store::Error::NotSupported { .. } | object_store::Error::NotImplemented { .. } => ErrorCode::StoreUnsafe,
        _ => ErrorCode::StoreUnavailable,
    }
}

#[async_trait]
impl ManifestStore for ObjectManifestStore {
    fn location(&self) -> String {
        self.location.clone()
    }

    async fn create(&self, name: &str, bytes: Bytes) -> PutOutcome {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let answer = self.creating.put_opts(&self.path(name), PutPayload::from_bytes(bytes), options).await;
        match answer {
            Ok(_) => PutOutcome::Created,
            // A 409 arrives here as AlreadyExists although nothing may exist: the caller looks.
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                PutOutcome::AlreadyExists
            }
            Err(
                error @ (object_store::Error::NotFound { .. }
                | object_store::Error::InvalidPath { .. }
                | object_store::Error::NotSupported { .. }
                | object_store::Error::NotImplemented { .. }
                | object_store::Error::PermissionDenied { .. }
                | object_store::Error::Unauthenticated { .. }
                | object_store::Error::UnknownConfigurationKey { .. }),
            ) => PutOutcome::Refused(self.failed("create", name, error)),
            Err(error) => PutOutcome::Unknown(self.failed("create", name, error)),
        }
    }

    async fn get(&self, name: &str) -> Result<Option<Bytes>> {
        let found = match self.reading.get(&self.path(name)).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(self.failed("read", name, error)),
        };
        let bytes = found.bytes().await.map_err(|error| self.failed("read", name, error))?;
        Ok(Some(bytes))
    }

    async fn list(&self, folder: &str) -> Result<Vec<String>> {
        let path = self.path(folder);
        let found: Vec<_> =
            self.reading.list(Some(&path)).try_collect().await.map_err(|error| self.failed("list", folder, error))?;
        let mut names: Vec<String> = found
            .iter()
            .filter_map(|object| {
                let below: Vec<_> = object.location.prefix_match(&path)?.collect();
                let below: Vec<&str> = below.iter().map(AsRef::as_ref).collect();
                Some(format!("{folder}/{}", below.join("/")))
            })
            .collect();
        names.sort_unstable();
        Ok(names)
    }

    async fn delete(&self, name: &str) -> Result<()> {
        match self.reading.delete(&self.path(name)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed("delete", name, error)),
        }
    }
}
