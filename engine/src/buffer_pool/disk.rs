//! The second tier of the buffer pool: blocks of segments on a disk of the coordinator, as storage nodes sent them.
//!
//! What the pool has to let go, or had before a restart, is read from here instead of being fetched once more. Blocks are
//! kept encoded: a column takes a fraction of what it takes in memory. A file holds the blocks that one load has fetched
//! and is never changed; the files that were not used for longest make room for new ones. Nothing here is needed: what is
//! missing, damaged or cannot be written only costs a fetch.

mod folder;
mod format;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aubade_environment::Environment;
use aubade_environment::tasks::run_blocking;
use aubade_proto::{ClusterId, ErrorCode, Result, ResultExt, SegmentId};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::limits::{BUFFER_POOL_DISK_PAUSE, BUFFER_POOL_DISK_WORK};
use folder::Folder;
use format::{Contents, encode, read_contents};

/// Where the second tier of the buffer pool is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BufferPoolDisk {
    /// A folder of its own; made if it is absent.
    pub dir: PathBuf,
    /// Bytes that its files may take.
    pub bytes_max: u64,
}

/// Of the files that the tier writes; others in the folder are left alone.
const SUFFIX: &str = ".blocks";
const TEMPORARY: &str = ".blocks.tmp";

/// See the module's doc.
#[derive(Debug)]
pub(crate) struct DiskTier {
    environment: Environment,
    folder: Folder,
    bytes_max: u64,
    /// One permit for each piece of work on files: bounds how many threads a slow disk can take.
    work: Arc<Semaphore>,
    state: Mutex<State>,
}

/// Files by their numbers: a later file has a higher one.
#[derive(Debug, Default)]
struct State {
    files: BTreeMap<u64, Kept>,
    /// When files were used last, the longest ago first.
    order: BTreeSet<(u64, u64)>,
    /// In which file a block is.
    blocks: HashMap<(SegmentId, u32), u64>,
    next: u64,
    uses: u64,
    figures: DiskFigures,
    /// Bytes of files that are being written.
    writing: u64,
    /// After a write that failed there is none until then.
    writes_from: Duration,
}

#[derive(Debug)]
struct Kept {
    contents: Arc<Contents>,
    used: u64,
}

/// What the tier holds and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DiskFigures {
    /// Of all files.
    pub(crate) bytes: u64,
    /// Blocks that were found here, and that were not.
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    /// Files that were not as they were written.
    pub(crate) damaged: u64,
    /// Files that could not be written.
    pub(crate) failed_writes: u64,
    /// Loads that are larger than all files may be, beside what is being written.
    pub(crate) too_large: u64,
}

impl State {
    fn add(&mut self, number: u64, contents: Contents) {
        self.figures.bytes = self.figures.bytes.saturating_add(contents.bytes);
        for block in contents.places.keys() {
            self.blocks.insert((contents.segment, *block), number);
        }
        self.uses += 1;
        self.order.insert((self.uses, number));
        self.files.insert(number, Kept { contents: Arc::new(contents), used: self.uses });
    }

    fn remove(&mut self, number: u64) {
        let Some(kept) = self.files.remove(&number) else { return };
        self.order.remove(&(kept.used, number));
        self.figures.bytes = self.figures.bytes.saturating_sub(kept.contents.bytes);
        for block in kept.contents.places.keys() {
            let key = (kept.contents.segment, *block);
            // A later file may have the block too.
            if self.blocks.get(&key) == Some(&number) {
                self.blocks.remove(&key);
            }
        }
    }

    /// All files are gone.
    fn forget_files(&mut self) {
        let numbers: Vec<u64> = self.files.keys().copied().collect();
        numbers.into_iter().for_each(|number| self.remove(number));
    }

    /// What a file holds, which is used now or only looked at.
    fn contents(&mut self, number: u64, uses: bool) -> Option<Arc<Contents>> {
        let kept = self.files.get_mut(&number)?;
        if !uses {
            return Some(Arc::clone(&kept.contents));
        }
        self.order.remove(&(kept.used, number));
        self.uses += 1;
        kept.used = self.uses;
        self.order.insert((kept.used, number));
        Some(Arc::clone(&kept.contents))
    }

    /// Sets room aside for a file; gives its number, and the files that have gone for it. `None`, and nothing goes, where
    /// it would not fit beside what is being written.
    fn make_room(&mut self, bytes: u64, bytes_max: u64) -> Option<(u64, Vec<u64>)> {
        let writing = self.writing.saturating_add(bytes);
        let number = self.next.checked_add(1).filter(|_| writing <= bytes_max)?;
        (self.writing, self.next) = (writing, number);
        let gone = self.shrink_to(bytes_max.saturating_sub(writing));
        Some((number, gone))
    }

    /// Takes away the files that were not used for longest, until no more than so many bytes are left.
    fn shrink_to(&mut self, bytes_max: u64) -> Vec<u64> {
        let mut gone = Vec::new();
        while self.figures.bytes > bytes_max {
            let Some((_, number)) = self.order.first().copied() else { break };
            self.remove(number);
            gone.push(number);
        }
        gone
    }
}

impl DiskTier {
    /// Opens (or makes) the folder, and finds what is there of `cluster`. Blocks.
    ///
    /// # Errors
    /// `InUse` when another coordinator has it, `WrongCluster` when it is of another cluster, `Io` or `DiskFull` when it
    /// cannot be written.
    pub(crate) fn open(environment: &Environment, disk: &BufferPoolDisk, cluster: ClusterId) -> Result<Self> {
        let (folder, is_ours) = Folder::take(environment, &disk.dir, cluster)?;
        let tier = Self {
            environment: environment.clone(),
            folder,
            bytes_max: disk.bytes_max,
            work: Arc::new(Semaphore::new(BUFFER_POOL_DISK_WORK)),
            state: Mutex::default(),
        };
        tier.find_files(is_ours).context(ErrorCode::Io, || {
            format!("the folder {} of the buffer pool cannot be read", disk.dir.display())
        })?;
        match is_ours {
            true => tier.folder.try_write(&temporary(0))?,
            // Last: what another release has left is gone by now.
            false => tier.folder.sign()?,
        }
        Ok(tier)
    }

    fn find_files(&self, is_ours: bool) -> io::Result<()> {
        let files = self.environment.files.as_ref();
        let mut state = self.state.lock();
        let mut gone = Vec::new();
        for name in files.list_files(self.folder.dir())? {
            let Some(number) = number_of(&name) else { continue };
            let path = self.folder.path(&name);
            let mut contents = None;
            if is_ours && name.ends_with(SUFFIX) {
                state.next = state.next.max(number);
                // What cannot be read is of as little use as what is damaged.
                contents = files.open(&path).and_then(|file| read_contents(file.as_ref())).ok().flatten();
                state.figures.damaged += u64::from(contents.is_none());
            }
            match contents {
                Some(contents) => state.add(number, contents),
                None => gone.push(path),
            }
        }
        // It may have been larger before.
        gone.extend(state.shrink_to(self.bytes_max).into_iter().map(|number| self.path(number)));
        gone.iter().for_each(|path| self.remove_file(path));
        Ok(())
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.path(&format!("{number:016x}{SUFFIX}"))
    }

    pub(crate) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    pub(crate) fn figures(&self) -> DiskFigures {
        self.state.lock().figures
    }

    /// The segments of which blocks are here, with the columns that they were read for, those that came last first.
    pub(crate) fn recent(&self) -> Vec<(SegmentId, Vec<Arc<str>>)> {
        let state = self.state.lock();
        state.files.values().rev().map(|kept| (kept.contents.segment, kept.contents.columns.clone())).collect()
    }

    /// Does work on files where it may block. `None` where it was lost.
    async fn work<T: Send + 'static>(self: &Arc<Self>, work: impl FnOnce(&Self) -> T + Send + 'static) -> Option<T> {
        let permit = Arc::clone(&self.work).acquire_owned().await.ok()?;
        let tier = Arc::clone(self);
        run_blocking(move || {
            // Dropped after the work and the hold on the folder, even where nobody waits for them any more.
            let _permit = permit;
            let tier = tier;
            work(&tier)
        })
        .await
    }

    /// Waits until no work on files is under way, and lets none begin.
    pub(crate) async fn close(&self) {
        let all = u32::try_from(BUFFER_POOL_DISK_WORK).unwrap_or(u32::MAX);
        drop(self.work.acquire_many(all).await);
        self.work.close();
    }

    /// Those of `blocks` of a segment that are here. It is a use of them, unless `fills` is set: after a restart all are
    /// read.
    pub(crate) async fn read(
        self: &Arc<Self>,
        segment: SegmentId,
        blocks: BTreeSet<u32>,
        fills: bool,
    ) -> BTreeMap<u32, Bytes> {
        self.work(move |tier| tier.read_now(segment, &blocks, fills)).await.unwrap_or_default()
    }

    fn read_now(&self, segment: SegmentId, blocks: &BTreeSet<u32>, fills: bool) -> BTreeMap<u32, Bytes> {
        let by_file = {
            let mut state = self.state.lock();
            let mut by_file: BTreeMap<u64, (Arc<Contents>, Vec<u32>)> = BTreeMap::new();
            for block in blocks {
                let Some(number) = state.blocks.get(&(segment, *block)).copied() else { continue };
                match by_file.entry(number) {
                    Entry::Occupied(mut known) => known.get_mut().1.push(*block),
                    Entry::Vacant(unknown) => {
                        let Some(contents) = state.contents(number, !fills) else { continue };
                        unknown.insert((contents, vec![*block]));
                    }
                }
            }
            by_file
        };
        let mut found = BTreeMap::new();
        for (number, (contents, blocks)) in by_file {
            let path = self.path(number);
            match self.read_file(&path, &contents, &blocks) {
                Ok(Some(read)) => found.extend(read),
                // It has made room for another just now, or somebody has removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.state.lock().remove(number),
                Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                    tracing::warn!(path = %path.display(), %error, "a file of the buffer pool cannot be read");
                }
                _ => {
                    tracing::warn!(path = %path.display(), "a file of the buffer pool is damaged; it is dropped");
                    self.drop_files(&[number]);
                    self.state.lock().figures.damaged += 1;
                }
            }
        }
        let mut state = self.state.lock();
        state.figures.hits += found.len() as u64;
        state.figures.misses += blocks.len().saturating_sub(found.len()) as u64;
        found
    }

    fn read_file(&self, path: &Path, contents: &Contents, blocks: &[u32]) -> io::Result<Option<Vec<(u32, Bytes)>>> {
        let file = self.environment.files.open(path)?;
        let mut read = Vec::with_capacity(blocks.len());
        for block in blocks {
            let Some(place) = contents.places.get(block) else { return Ok(None) };
            let Some(bytes) = place.read(file.as_ref())? else { return Ok(None) };
            read.push((*block, bytes));
        }
        Ok(Some(read))
    }

    /// Keeps blocks of a segment that were read for `columns`.
    pub(crate) async fn write(
        self: &Arc<Self>,
        segment: SegmentId,
        columns: Vec<Arc<str>>,
        blocks: BTreeMap<u32, Bytes>,
    ) {
        // A write that was lost only means that the blocks are not here.
        let _ = self.work(move |tier| tier.write_now(segment, &columns, blocks)).await;
    }

    fn write_now(&self, segment: SegmentId, columns: &[Arc<str>], mut blocks: BTreeMap<u32, Bytes>) {
        let now = self.environment.clock.now();
        {
            let state = self.state.lock();
            if now < state.writes_from {
                return;
            }
            // Another load may have brought some of them.
            blocks.retain(|block, _| !state.blocks.contains_key(&(segment, *block)));
        }
        let Some((head, contents)) = encode(segment, columns, &blocks).filter(|_| !blocks.is_empty()) else { return };
        let room = {
            let mut state = self.state.lock();
            let room = state.make_room(contents.bytes, self.bytes_max);
            state.figures.too_large += u64::from(room.is_none());
            room
        };
        let Some((number, gone)) = room else { return };
        self.remove_files(&gone);
        let written = self.write_to_folder(number, &head, &blocks);
        let mut state = self.state.lock();
        state.writing = state.writing.saturating_sub(contents.bytes);
        match written {
            Ok(()) => state.add(number, contents),
            Err(error) => {
                state.figures.failed_writes += 1;
                state.writes_from = now.saturating_add(BUFFER_POOL_DISK_PAUSE);
                let dir = self.folder.dir().display().to_string();
                tracing::warn!(dir, %error, "the buffer pool cannot write to its disk; it goes on without for a minute");
            }
        }
    }

    /// Writes a file; where the folder is gone, into a new one.
    fn write_to_folder(&self, number: u64, head: &[u8], blocks: &BTreeMap<u32, Bytes>) -> io::Result<()> {
        if self.folder.is_held() {
            match self.write_file(number, head, blocks) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                written => return written,
            }
        }
        self.folder.make_again(|| self.state.lock().forget_files())?;
        self.write_file(number, head, blocks)
    }

    fn write_file(&self, number: u64, head: &[u8], blocks: &BTreeMap<u32, Bytes>) -> io::Result<()> {
        let files = self.environment.files.as_ref();
        let temporary = self.folder.path(&temporary(number));
        let written = (|| {
            let mut file = files.create_new(&temporary)?;
            file.write_all(head)?;
            blocks.values().try_for_each(|block| file.write_all(block))?;
            // Not synced: what a crash takes is told by its checksums.
            files.rename(&temporary, &self.path(number))
        })();
        if written.is_err() {
            let _ = files.remove_file(&temporary);
        }
        written
    }

    /// Drops what is here of segments that are not `named`.
    pub(crate) async fn retain(self: &Arc<Self>, named: &BTreeSet<SegmentId>) {
        self.drop_where(|contents| !named.contains(&contents.segment)).await;
    }

    /// Drops what is here of a segment.
    pub(crate) async fn forget(self: &Arc<Self>, segment: SegmentId) {
        self.drop_where(|contents| contents.segment == segment).await;
    }

    /// Drops all.
    pub(crate) async fn clear(self: &Arc<Self>) {
        self.drop_where(|_| true).await;
    }

    async fn drop_where(self: &Arc<Self>, goes: impl Fn(&Contents) -> bool) {
        let gone: Vec<u64> = {
            let state = self.state.lock();
            let gone = state.files.iter().filter(|(_, kept)| goes(&kept.contents));
            gone.map(|(number, _)| *number).collect()
        };
        if !gone.is_empty() {
            // What is left of them goes when the folder is opened again.
            let _ = self.work(move |tier| tier.drop_files(&gone)).await;
        }
    }

    fn drop_files(&self, gone: &[u64]) {
        {
            let mut state = self.state.lock();
            gone.iter().for_each(|number| state.remove(*number));
        }
        self.remove_files(gone);
    }

    fn remove_files(&self, gone: &[u64]) {
        gone.iter().for_each(|number| self.remove_file(&self.path(*number)));
    }

    fn remove_file(&self, path: &Path) {
        match self.environment.files.remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "a file of the buffer pool cannot be removed");
            }
            _ => {}
        }
    }
}

/// The name of a file that is being written.
fn temporary(number: u64) -> String {
    format!("{number:016x}{TEMPORARY}")
}

/// The number of a file that the tier has written, by its name.
fn number_of(name: &str) -> Option<u64> {
    let stem = name.strip_suffix(TEMPORARY).or_else(|| name.strip_suffix(SUFFIX))?;
    let number = u64::from_str_radix(stem, 16).ok()?;
    (format!("{number:016x}") == stem && number < u64::MAX / 2).then_some(number)
}

#[cfg(test)]
mod tests;
