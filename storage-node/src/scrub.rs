//! Scrubbing: reading every segment against its checksums in the background, at a bounded rate, so that damage is found
//! while other replicas are whole.
//!
//! A round goes over the segments in the order of their ids and begins where the last process left off. Ids grow with
//! time and a segment is verified when it arrives, so the next one in the round is the one whose last check is longest
//! ago; a segment that repair brings back may be checked before its turn. What does not match goes into quarantine,
//! where the coordinator finds it and replaces it from another replica.
//!
//! ```text
//!          ┌──────────── next id after the cursor ◀─────────────┐
//!          ▼                                                    │
//!  open ──▶ read a chunk ──▶ all blocks match ──▶ more chunks? ─┴─▶ end of the ids: round complete, pause
//!   │            │ └─ block differs, file cut or gone ─▶ quarantine
//!   │            └─ the device fails to read, twice ───▶ quarantine
//!   └─ deleted meanwhile, or out of file handles: left for the next round
//! ```
//!
//! Only this task changes the cursor and the progress. Dropping it loses the part of a segment that was under way.

use std::error::Error as StdError;
use std::io;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aubade_environment::files::{read_file, replace_durable};
use aubade_environment::{Clock, Environment};
use aubade_proto::{Error, ErrorCode, Result, ResultExt, ScrubProgress, SegmentId};
use serde::{Deserialize, Serialize};

use crate::blocking::blocking;
use crate::limits::{
    BLOCK_BYTES, CHUNK_BYTES, SCRUB_CURSOR_INTERVAL, SCRUB_READ_PAUSE, SCRUB_ROUND_INTERVAL, SCRUB_STEPS_PER_SECOND,
};
use crate::node::Segments;
use crate::segment_store::VerifiedFile;

/// What the operating system says when a device cannot read a sector: the same number on every Unix.
const DEVICE_ERROR: i32 = 5;

const FORMAT: u32 = 1;

/// Where the round has come to.
#[derive(Serialize, Deserialize)]
struct CursorFile {
    format: u32,
    after: Option<SegmentId>,
}

/// How far scrubbing has come, for whoever asks.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    rounds: AtomicU64,
    round_bytes: AtomicU64,
    damaged: AtomicU64,
}

impl Progress {
    pub(crate) fn read(&self) -> ScrubProgress {
        // Ordering: numbers to show, here and below.
        ScrubProgress {
            rounds: self.rounds.load(Ordering::Relaxed),
            round_bytes: self.round_bytes.load(Ordering::Relaxed),
            damaged: self.damaged.load(Ordering::Relaxed),
        }
    }
}

/// Spreads work evenly over time.
#[derive(Debug)]
struct Pace {
    clock: Arc<dyn Clock>,
    bytes_per_second: NonZeroU64,
    /// When the next bytes may be read.
    next: Duration,
}

impl Pace {
    /// Returns once `bytes` more may be read.
    async fn wait_for(&mut self, bytes: u64) {
        let now = self.clock.now();
        if self.next > now {
            self.clock.sleep(self.next - now).await;
        }
        let micros = u128::from(bytes) * 1_000_000 / u128::from(self.bytes_per_second.get());
        let cost = Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX));
        // What was not used while nothing was read is not caught up on.
        self.next = self.next.max(now).saturating_add(cost);
    }
}

/// See the module's doc.
#[derive(Debug)]
pub(crate) struct Scrub {
    env: Environment,
    segments: Arc<Segments>,
    progress: Arc<Progress>,
    pace: Pace,
    /// Read at a time: whole blocks, and so few that the rate holds over every part of a second.
    step_bytes: u64,
    cursor_path: PathBuf,
    cursor_saved: Duration,
}

impl Scrub {
    /// For the segments of the node that keeps its data in `folder`.
    pub(crate) fn new(
        env: Environment,
        segments: Arc<Segments>,
        progress: Arc<Progress>,
        folder: &Path,
        bytes_per_second: NonZeroU64,
    ) -> Self {
        let block = BLOCK_BYTES as u64;
        let step = (bytes_per_second.get() / SCRUB_STEPS_PER_SECOND).clamp(block, CHUNK_BYTES);
        let pace = Pace { clock: Arc::clone(&env.clock), bytes_per_second, next: Duration::ZERO };
        let cursor_saved = env.clock.now();
        Self {
            env,
            segments,
            progress,
            pace,
            step_bytes: step - step % block,
            cursor_path: folder.join("scrub.json"),
            cursor_saved,
        }
    }

    /// Runs until it is dropped.
    pub(crate) async fn run(mut self) {
        let mut cursor = self.load_cursor().await;
        loop {
            let started = self.env.clock.now();
            self.round(cursor).await;
            cursor = None;
            self.save_cursor(None).await;
            self.progress.round_bytes.store(0, Ordering::Relaxed);
            self.progress.rounds.fetch_add(1, Ordering::Relaxed);
            let took = self.env.clock.now().saturating_sub(started);
            self.env.clock.sleep(SCRUB_ROUND_INTERVAL.saturating_sub(took)).await;
        }
    }

    /// Verifies every segment after the cursor.
    async fn round(&mut self, mut cursor: Option<SegmentId>) {
        let done = cursor.map_or(0, |last| self.segments.store.bytes_through(last));
        self.progress.round_bytes.store(done, Ordering::Relaxed);
        while let Some(id) = self.segments.store.next_after(cursor) {
            self.scrub(id).await;
            cursor = Some(id);
            if self.env.clock.now().saturating_sub(self.cursor_saved) >= SCRUB_CURSOR_INTERVAL {
                self.save_cursor(cursor).await;
            }
        }
    }

    /// Verifies one segment and puts it aside if it is damaged.
    async fn scrub(&mut self, id: SegmentId) {
        let error = match self.verify(id).await {
            Ok(()) => return,
            Err(error) => error,
        };
        if error.code() == ErrorCode::SegmentCorrupt || is_device_error(&error) {
            self.progress.damaged.fetch_add(1, Ordering::Relaxed);
            let segments = Arc::clone(&self.segments);
            let quarantined = blocking(move || {
                segments.quarantine(id, &error);
                Ok(())
            });
            if let Err(error) = quarantined.await {
                tracing::error!(segment = %id, error = %error.chain(), "a damaged segment could not be put aside");
            }
        } else if error.code() != ErrorCode::SegmentNotFound {
            tracing::warn!(segment = %id, error = %error.chain(), "a segment could not be verified now; it is tried again in the next round");
        }
    }

    async fn verify(&mut self, id: SegmentId) -> Result<()> {
        let file = Arc::new(self.twice(move |segments| segments.store.open_segment(id)).await?);
        let mut offset = 0;
        while offset < file.length_bytes() {
            let end = offset.saturating_add(self.step_bytes).min(file.length_bytes());
            self.pace.wait_for(end - offset).await;
            let reading = Arc::clone(&file);
            self.twice(move |_| VerifiedFile::read_blocks(&reading, &(offset..end)).map(drop)).await?;
            self.progress.round_bytes.fetch_add(end - offset, Ordering::Relaxed);
            offset = end;
        }
        Ok(())
    }

    /// Reads; once more when the device failed, since some failures pass.
    async fn twice<T, F>(&self, read: F) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(&Segments) -> Result<T> + Clone + Send + 'static,
    {
        let once = || {
            let (segments, read) = (Arc::clone(&self.segments), read.clone());
            blocking(move || read(&segments))
        };
        match once().await {
            Err(error) if is_device_error(&error) => {
                self.env.clock.sleep(SCRUB_READ_PAUSE).await;
                once().await
            }
            result => result,
        }
    }

    /// Nothing depends on the cursor but the order, so that no failure to read or write it is more than a line in the log.
    async fn load_cursor(&self) -> Option<SegmentId> {
        let (env, path) = (self.env.clone(), self.cursor_path.clone());
        match blocking(move || read_cursor(&env, &path)).await {
            Ok(after) => after,
            Err(error) => {
                tracing::warn!(error = %error.chain(), "scrubbing begins with the first segment");
                None
            }
        }
    }

    async fn save_cursor(&mut self, after: Option<SegmentId>) {
        self.cursor_saved = self.env.clock.now();
        let (env, path) = (self.env.clone(), self.cursor_path.clone());
        let saved = blocking(move || {
            let context = || format!("{} cannot be written", path.display());
            let bytes =
                serde_json::to_vec(&CursorFile { format: FORMAT, after }).context(ErrorCode::Internal, context)?;
            replace_durable(env.files.as_ref(), &path, &bytes, env.random.next_u64()).context(ErrorCode::Io, context)
        });
        if let Err(error) = saved.await {
            tracing::warn!(error = %error.chain(), "after a restart scrubbing will begin too early");
        }
    }
}

fn read_cursor(env: &Environment, path: &Path) -> Result<Option<SegmentId>> {
    let bytes = match read_file(env.files.as_ref(), path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.context(ErrorCode::Io, || format!("{} cannot be read", path.display()))?,
    };
    let file: CursorFile =
        serde_json::from_slice(&bytes).context(ErrorCode::Io, || format!("{} is damaged", path.display()))?;
    Ok(file.after.filter(|_| file.format == FORMAT))
}

/// Whether the device failed to read, as far down as the error goes.
fn is_device_error(error: &Error) -> bool {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(cause) = next {
        if cause.downcast_ref::<io::Error>().is_some_and(|io| io.raw_os_error() == Some(DEVICE_ERROR)) {
            return true;
        }
        next = cause.source();
    }
    false
}

#[cfg(test)]
mod tests;
