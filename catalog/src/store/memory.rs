//! A store that lives as long as its last handle: for databases that nobody keeps, and for tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use aubade_proto::Result;
use bytes::Bytes;
use parking_lot::Mutex;

use super::{ManifestStore, PutOutcome};

/// Objects in memory. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    objects: Arc<Mutex<BTreeMap<String, Bytes>>>,
}

impl MemoryStore {
    /// Replaces an object whatever is there: for tests of corruption.
    pub fn overwrite(&self, name: &str, bytes: Bytes) {
        self.objects.lock().insert(name.to_owned(), bytes);
    }
}

#[async_trait]
impl ManifestStore for MemoryStore {
    fn location(&self) -> String {
        "memory".to_owned()
    }

    async fn create(&self, name: &str, bytes: Bytes) -> PutOutcome {
        let mut objects = self.objects.lock();
        if objects.contains_key(name) {
            return PutOutcome::AlreadyExists;
        }
        objects.insert(name.to_owned(), bytes);
        PutOutcome::Created
    }

    async fn get(&self, name: &str) -> Result<Option<Bytes>> {
        Ok(self.objects.lock().get(name).cloned())
    }

    async fn list(&self, folder: &str) -> Result<Vec<String>> {
        let prefix = format!("{folder}/");
        Ok(self.objects.lock().keys().filter(|name| name.starts_with(&prefix)).cloned().collect())
    }

    async fn delete(&self, name: &str) -> Result<()> {
        self.objects.lock().remove(name);
        Ok(())
    }
}
