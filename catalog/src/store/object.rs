//! An object store as a store of manifests: S3, or anything else that the `object_store` crate can
//! create objects in only if they are absent.

use std::sync::Arc;

use async_trait::async_trait;
use aubade_proto::{Error, ErrorCode, Result};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};

use super::s3::{self, CREDENTIALS_HINT, Clients, refusal_in};
use super::{ManifestStore, PutOutcome, UNSAFE_HINT};

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
    /// `InvalidArgument` that names the variable, when the settings make no client.
    pub fn s3(location: &str, bucket: &str, prefix: Path) -> Result<Self> {
        let Clients { creating, reading } = s3::clients(location, bucket, AmazonS3Builder::from_env())?;
        Ok(Self { location: location.to_owned(), prefix, creating, reading })
    }

    fn path(&self, name: &str) -> Path {
        name.split('/').fold(self.prefix.clone(), |path, part| path.join(part))
    }

    fn failed(&self, verb: &str, name: &str, error: object_store::Error) -> Error {
        let (code, hint) = match refusal_in(&error) {
            Some(refusal) => refusal.meaning(),
            None => meaning_of(&error),
        };
        let failed = Error::new(code, format!("cannot {verb} {name} in {}", self.location)).source(error);
        if hint.is_empty() { failed } else { failed.hint(hint) }
    }
}

/// Which error it is, and what to do about it.
fn meaning_of(error: &object_store::Error) -> (ErrorCode, &'static str) {
    match error {
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
            (ErrorCode::PermissionDenied, CREDENTIALS_HINT)
        }
        object_store::Error::NotSupported { .. } | object_store::Error::NotImplemented { .. } => {
            (ErrorCode::StoreUnsafe, UNSAFE_HINT)
        }
        _ => (ErrorCode::StoreUnavailable, ""),
    }
}

/// Whether nothing was made, and will not be.
fn is_refused(error: &object_store::Error) -> bool {
    match error {
        object_store::Error::NotFound { .. }
        | object_store::Error::InvalidPath { .. }
        | object_store::Error::NotSupported { .. }
        | object_store::Error::NotImplemented { .. }
        | object_store::Error::PermissionDenied { .. }
        | object_store::Error::Unauthenticated { .. }
        | object_store::Error::UnknownConfigurationKey { .. } => true,
        other => refusal_in(other).is_some(),
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
            Err(error) if is_refused(&error) => PutOutcome::Refused(self.failed("create", name, error)),
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

    async fn delete_all(&self, names: &[String]) -> Result<()> {
        let paths: Vec<_> = names.iter().map(|name| Ok(self.path(name))).collect();
        // The client sends a thousand names per request.
        let mut deleted = self.reading.delete_stream(stream::iter(paths).boxed());
        while let Some(result) = deleted.next().await {
            match result {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(self.failed("delete", "old objects", error)),
            }
        }
        Ok(())
    }
}
