//! Where the objects of a manifest are kept: any store that can create an object only if it is
//! absent.

mod cluster_url;
pub mod conformance;
mod local;
mod memory;
mod object;
mod probe;
mod s3;
mod scripted;

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use aubade_proto::{Error, Result};
use bytes::Bytes;

pub use cluster_url::ClusterUrl;
pub use local::{ALLOW_NETWORK_FOLDER, LocalStore, NetworkFolders};
pub use memory::MemoryStore;
pub use object::ObjectManifestStore;
pub use probe::probe;
pub use scripted::{PutScript, ScriptedStore};

/// Time for one answer of the store, where the object is small.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// What a store says to `create`.
#[derive(Debug)]
pub enum PutOutcome {
    /// The object is there, durably, with these bytes.
    Created,
    /// An object of that name was there before (or the store says so: the caller reads it to see
    /// whose it is).
    AlreadyExists,
    /// This call has made nothing and will not: no permission, no room, no such bucket.
    Refused(Error),
    /// No answer, or one that says nothing about the outcome: the object may or may not appear,
    /// even later.
    Unknown(Error),
}

/// A store of immutable objects. Names are relative, with `/` between folders.
#[async_trait]
pub trait ManifestStore: Debug + Send + Sync {
    /// Where it is, for messages.
    fn location(&self) -> String;

    /// Makes an object unless one of that name exists. Never retries by itself.
    async fn create(&self, name: &str, bytes: Bytes) -> PutOutcome;

    /// The object of that name, or `None`. What it returns is durable.
    async fn get(&self, name: &str) -> Result<Option<Bytes>>;

    /// All names below `folder`, sorted.
    async fn list(&self, folder: &str) -> Result<Vec<String>>;

    /// Removes an object; no error if there is none.
    async fn delete(&self, name: &str) -> Result<()>;

    /// Removes objects, in any order; after an error any of them may be gone.
    async fn delete_all(&self, names: &[String]) -> Result<()> {
        for name in names {
            self.delete(name).await?;
        }
        Ok(())
    }
}

/// What to do about a store that cannot keep a manifest.
const UNSAFE_HINT: &str = "use a local folder, or an object store with conditional writes (If-None-Match)";
