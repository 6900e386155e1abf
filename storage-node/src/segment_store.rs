//! The segments of a node: durable files, an index of them in memory, and the fence against old
//! writers.
//!
//! A segment is held once its data file has its final name in a synced folder. Its checksum file
//! goes first under its name, so that data without checksums means damage. `sealed` is locked while
//! a segment gets its name and while an epoch is sealed: no segment of an older writer appears
//! after [`SegmentStore::seal`] returned. Lock order: `sealed`, then `state`.

mod incoming;
mod quarantine;
mod sidecar;
#[cfg(test)]
mod tests;
mod verified;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aubade_environment::Environment;
use aubade_environment::files::read_file;
use aubade_proto::{Epoch, Error, ErrorCode, PutReceipt, Result, ResultExt, SegmentDescription, SegmentId};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use incoming::Incoming;
use parking_lot::{Mutex, RwLock};
use sidecar::Sidecar;
pub use verified::Blocks;
pub(crate) use verified::{SegmentBytes, VerifiedFile};

use crate::blocking::blocking;
use crate::identity;
use crate::limits::{DISK_RESERVE_BYTES, SEGMENT_BYTES_MAX};

#[derive(Debug, Default)]
struct State {
    held: BTreeMap<SegmentId, SegmentDescription>,
    held_bytes: u64,
    quarantined: BTreeSet<SegmentId>,
}

/// How much the store holds.
#[derive(Clone, Debug)]
pub(crate) struct StoreSummary {
    pub(crate) segment_count: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) quarantined: Vec<SegmentId>,
}

/// See the module's doc.
#[derive(Debug)]
pub(crate) struct SegmentStore {
    env: Environment,
    root: PathBuf,
    sealed: Mutex<Epoch>,
    /// A copy of `sealed` that can be read while the lock is held over a sync.
    sealed_copy: AtomicU64,
    state: RwLock<State>,
}

impl SegmentStore {
    /// Opens the store in `root`, which the caller has locked. Blocks.
    pub(crate) fn open(env: Environment, root: PathBuf) -> Result<Self> {
        let sealed = identity::load_epoch(&env, &root)?;
        let store = Self {
            env,
            root,
            sealed: Mutex::new(sealed),
            sealed_copy: AtomicU64::new(sealed.0),
            state: RwLock::default(),
        };
        for folder in [store.segments(), store.incoming(), store.quarantine_folder()] {
            let made = store.env.files.create_dir_all(&folder);
            made.context(ErrorCode::Io, || format!("folder {} cannot be made", folder.display()))?;
        }
        for name in store.list(&store.incoming())? {
            store.remove(&store.incoming().join(name))?;
        }
        store.load_quarantine()?;
        store.load_held()?;
        Ok(store)
    }

    fn segments(&self) -> PathBuf {
        self.root.join("segments")
    }

    fn incoming(&self) -> PathBuf {
        self.root.join("incoming")
    }

    fn quarantine_folder(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    fn list(&self, folder: &Path) -> Result<Vec<String>> {
        self.env
            .files
            .list_files(folder)
            .context(ErrorCode::Io, || format!("folder {} cannot be read", folder.display()))
    }

    fn remove(&self, path: &Path) -> Result<()> {
        match self.env.files.remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.context(ErrorCode::Io, || format!("{} cannot be removed", path.display())),
        }
    }

    fn sync(&self, folder: &Path) -> Result<()> {
        self.env
            .files
            .sync_dir(folder)
            .context(ErrorCode::Io, || format!("folder {} cannot be synced", folder.display()))
    }

    fn load_held(&self) -> Result<()> {
        let names = self.list(&self.segments())?;
        let data: BTreeSet<SegmentId> = names.iter().filter_map(|name| id_of(name, ".parquet")).collect();
        for id in names.iter().filter_map(|name| id_of(name, ".sum")) {
            if !data.contains(&id) {
                // A crash between the two renames: the segment was never acknowledged.
                self.remove(&sidecar_path(&self.segments(), id))?;
            }
        }
        for id in data {
            match self.read_sidecar(id) {
                Ok(sidecar) => {
                    let mut state = self.state.write();
                    state.held_bytes = state.held_bytes.saturating_add(sidecar.description.bytes);
                    state.held.insert(id, sidecar.description);
                }
                Err(error) => self.quarantine(id, &error),
            }
        }
        Ok(())
    }

    fn read_sidecar(&self, id: SegmentId) -> Result<Sidecar> {
        let path = sidecar_path(&self.segments(), id);
        let bytes = match read_file(self.env.files.as_ref(), &path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::new(ErrorCode::SegmentCorrupt, format!("segment {id} has lost its checksums")));
            }
            result => result.context(ErrorCode::Io, || format!("{} cannot be read", path.display()))?,
        };
        let sidecar = Sidecar::decode(&bytes)
            .map_err(|error| Error::new(ErrorCode::SegmentCorrupt, format!("segment {id} is corrupt")).source(error))?;
        if sidecar.description.segment_id != id {
            return Err(Error::new(
                ErrorCode::SegmentCorrupt,
                format!("segment {id} has the checksums of another one"),
            ));
        }
        Ok(sidecar)
    }

    /// The description of a held segment.
    pub(crate) fn description(&self, id: SegmentId) -> Result<SegmentDescription> {
        self.state
            .read()
            .held
            .get(&id)
            .cloned()
            .ok_or_else(|| Error::new(ErrorCode::SegmentNotFound, format!("segment {id} is not on this node")))
    }

    /// Opens a held segment for reading. Blocks.
    pub(crate) fn open_segment(&self, id: SegmentId) -> Result<VerifiedFile> {
        let description = self.description(id)?;
        let sidecar = self.read_sidecar(id)?;
        if sidecar.description != description {
            return Err(Error::new(ErrorCode::SegmentCorrupt, format!("the checksums of segment {id} have changed")));
        }
        let file = match self.env.files.open(&data_path(&self.segments(), id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::new(ErrorCode::SegmentCorrupt, format!("the file of segment {id} is gone")));
            }
            result => result.context(ErrorCode::Io, || format!("segment {id} cannot be opened"))?,
        };
        VerifiedFile::new(file, sidecar)
    }

    /// Stores a segment durably; once more is no error if the content is the same.
    pub(crate) async fn put(
        self: &Arc<Self>,
        writer: Epoch,
        description: SegmentDescription,
        mut data: BoxStream<'static, Result<Bytes>>,
    ) -> Result<PutReceipt> {
        // Early, to spare the transfer; `commit` decides.
        check_epoch(writer, self.sealed_epoch())?;
        self.check_size(&description)?;
        let held = self.state.read().held.get(&description.segment_id).cloned();
        if let Some(held) = held {
            same_content(&held, &description)?;
            // The caller is let finish: some transports take an early answer for a failure.
            while let Some(chunk) = data.next().await {
                chunk?;
            }
            let store = Arc::clone(self);
            return blocking(move || store.acknowledge(writer, &description)).await;
        }
        let store = Arc::clone(self);
        let mut incoming = blocking(move || {
            let unique = store.env.random.next_u64();
            Incoming::create(Arc::clone(&store.env.files), &store.incoming(), description, unique)
        })
        .await?;
        while let Some(chunk) = data.next().await {
            let chunk = chunk?;
            incoming = blocking(move || incoming.append(&chunk).map(|()| incoming)).await?;
        }
        let store = Arc::clone(self);
        blocking(move || store.commit(writer, incoming)).await
    }

    fn check_size(&self, description: &SegmentDescription) -> Result<()> {
        let (id, bytes) = (description.segment_id, description.bytes);
        if bytes > SEGMENT_BYTES_MAX {
            let text = format!("segment {id} has {bytes} bytes; at most {SEGMENT_BYTES_MAX} are stored");
            return Err(Error::new(ErrorCode::LimitExceeded, text));
        }
        match self.env.files.free_bytes(&self.root) {
            Some(free) if free < bytes.saturating_add(DISK_RESERVE_BYTES) => {
                let text =
                    format!("segment {id} with {bytes} bytes does not fit into the {free} bytes left on the disk");
                Err(Error::new(ErrorCode::DiskFull, text)
                    .hint("free room on the disk of the storage node, or add a node"))
            }
            _ => Ok(()),
        }
    }

    fn commit(&self, writer: Epoch, mut incoming: Incoming) -> Result<PutReceipt> {
        let sidecar = incoming.seal()?;
        let description = sidecar.description;
        let id = description.segment_id;
        let sealed = self.sealed.lock();
        check_epoch(writer, *sealed)?;
        let held = self.state.read().held.get(&id).cloned();
        if let Some(held) = held {
            same_content(&held, incoming.description())?;
        } else {
            let segments = self.segments();
            let (data, sum) = (data_path(&segments, id), sidecar_path(&segments, id));
            let named = incoming.rename(&data, &sum).and_then(|()| self.env.files.sync_dir(&segments));
            if named.is_err() {
                let _ = self.env.files.remove_file(&data);
                let _ = self.env.files.remove_file(&sum);
            }
            named.context(ErrorCode::Io, || format!("segment {id} cannot be given its name"))?;
            let mut state = self.state.write();
            state.held_bytes = state.held_bytes.saturating_add(description.bytes);
            state.held.insert(id, description.clone());
        }
        self.forget_quarantined(id);
        Ok(PutReceipt { sha256: description.sha256, bytes: description.bytes, epoch: *sealed })
    }

    /// A receipt for a segment that was held already. Blocks.
    fn acknowledge(&self, writer: Epoch, description: &SegmentDescription) -> Result<PutReceipt> {
        let sealed = self.sealed.lock();
        check_epoch(writer, *sealed)?;
        let held = self.description(description.segment_id)?;
        same_content(&held, description)?;
        Ok(PutReceipt { sha256: held.sha256, bytes: held.bytes, epoch: *sealed })
    }

    /// A receipt for a segment that needs no copying, since it is here and can be opened; `None` if it is not. Blocks.
    pub(crate) fn acknowledge_held(
        &self,
        writer: Epoch,
        description: &SegmentDescription,
    ) -> Result<Option<PutReceipt>> {
        let id = description.segment_id;
        match self.open_segment(id) {
            Ok(_) => self.acknowledge(writer, description).map(Some),
            Err(error) => {
                if error.code() == ErrorCode::SegmentCorrupt {
                    self.quarantine(id, &error);
                }
                Ok(None)
            }
        }
    }

    /// A page of what is held, in the order of the ids, and whether there is more.
    pub(crate) fn page(&self, after: Option<SegmentId>, limit: usize) -> (Vec<SegmentDescription>, bool) {
        let state = self.state.read();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = state.held.range((from, Bound::Unbounded)).map(|(_, description)| description.clone());
        let page: Vec<_> = rest.by_ref().take(limit).collect();
        let more = rest.next().is_some();
        (page, more)
    }

    /// The first segment held whose id is after `after`.
    pub(crate) fn next_after(&self, after: Option<SegmentId>) -> Option<SegmentId> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.state.read().held.range((from, Bound::Unbounded)).next().map(|(id, _)| *id)
    }

    /// Bytes of the segments held whose ids are `last` or before it.
    pub(crate) fn bytes_through(&self, last: SegmentId) -> u64 {
        self.state.read().held.range(..=last).map(|(_, held)| held.bytes).fold(0, u64::saturating_add)
    }

    /// Removes segments, those in quarantine too; returns how many were there. Blocks.
    pub(crate) fn delete(&self, writer: Epoch, ids: &[SegmentId]) -> Result<u64> {
        let sealed = self.sealed.lock();
        check_epoch(writer, *sealed)?;
        let mut deleted = 0_u64;
        for id in ids {
            let known = {
                let mut state = self.state.write();
                let held = state.held.remove(id);
                state.held_bytes = state.held_bytes.saturating_sub(held.as_ref().map_or(0, |held| held.bytes));
                held.is_some()
            };
            if known {
                // Data first: checksums without data are removed at the next start.
                self.remove(&data_path(&self.segments(), *id))?;
                self.remove(&sidecar_path(&self.segments(), *id))?;
            }
            let quarantined = self.forget_quarantined(*id);
            deleted += u64::from(known || quarantined);
        }
        self.sync(&self.segments())?;
        Ok(deleted)
    }

    /// Refuses every writer with an older epoch from now on, durably. Blocks.
    pub(crate) fn seal(&self, epoch: Epoch) -> Result<Epoch> {
        let mut sealed = self.sealed.lock();
        check_epoch(epoch, *sealed)?;
        if epoch > *sealed {
            identity::store_epoch(&self.env, &self.root, epoch)?;
            *sealed = epoch;
            self.sealed_copy.store(epoch.0, Ordering::Release);
        }
        Ok(*sealed)
    }

    /// The highest epoch sealed.
    pub(crate) fn sealed_epoch(&self) -> Epoch {
        Epoch(self.sealed_copy.load(Ordering::Acquire))
    }

    pub(crate) fn summary(&self) -> StoreSummary {
        let state = self.state.read();
        StoreSummary {
            segment_count: state.held.len() as u64,
            segment_bytes: state.held_bytes,
            quarantined: state.quarantined.iter().copied().collect(),
        }
    }
}

fn data_path(folder: &Path, id: SegmentId) -> PathBuf {
    folder.join(format!("{id}.parquet"))
}

fn sidecar_path(folder: &Path, id: SegmentId) -> PathBuf {
    folder.join(format!("{id}.sum"))
}

fn id_of(name: &str, suffix: &str) -> Option<SegmentId> {
    name.strip_suffix(suffix)?.parse().ok()
}

fn check_epoch(writer: Epoch, sealed: Epoch) -> Result<()> {
    if writer >= sealed {
        return Ok(());
    }
    let text = format!("epoch {writer} of the caller is older than epoch {sealed} that is sealed here");
    Err(Error::new(ErrorCode::StaleEpoch, text).hint("another coordinator has taken over; stop this one"))
}

fn same_content(held: &SegmentDescription, offered: &SegmentDescription) -> Result<()> {
    if held.sha256 == offered.sha256 && held.bytes == offered.bytes {
        return Ok(());
    }
    let text = format!("segment {} is here already with another content", held.segment_id);
    Err(Error::new(ErrorCode::AlreadyExists, text).hint("segments never change: write it under a new id"))
}
