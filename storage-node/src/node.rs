//! The storage node: admission, deadlines and life cycle around segments and scans.

use std::collections::VecDeque;
use std::fmt::{self, Debug};
use std::future::Future;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrow::datatypes::DataType;
use aubade_environment::clock::timeout;
use aubade_environment::{Deadline, Environment, FileLock, TaskGroup};
use aubade_proto::{
    CallHeader, ClusterId, Epoch, Error, ErrorCode, NodeId, NodeInfo, PutReceipt, Result, ScanEvent, ScanRequest,
    SegmentDescription, SegmentId, SegmentScan,
};
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::blocking::blocking;
use crate::cpu::CpuPool;
use crate::limits::{
    CHUNK_BYTES, DELETE_IDS_MAX, LIST_PAGE_DEFAULT, LIST_PAGE_MAX, RETRY_AFTER_MAX, RETRY_AFTER_MIN, SCAN_SEGMENTS_MAX,
    SHORT_SCAN_BYTES, SOURCES_MAX,
};
use crate::options::StorageNodeOptions;
use crate::scan::{self, FooterCache, OpenSegment, ResultCache, ScanBounds, ScanContext, ScanResources, SegmentSource};
use crate::scrub::{Progress, Scrub};
use crate::segment_store::{SegmentStore, VerifiedFile};
use crate::{identity, replicate};

/// The segments of a node with the footers of those that were read of late.
#[derive(Debug)]
pub(crate) struct Segments {
    pub(crate) store: Arc<SegmentStore>,
    footers: FooterCache,
}

impl Segments {
    pub(crate) fn new(store: Arc<SegmentStore>, footers: FooterCache) -> Self {
        Self { store, footers }
    }

    /// Puts a corrupt segment aside. Blocks.
    pub(crate) fn quarantine(&self, id: SegmentId, reason: &Error) {
        self.store.quarantine(id, reason);
        self.footers.remove(id);
    }
}

impl SegmentSource for Segments {
    fn open(&self, id: SegmentId) -> Result<OpenSegment> {
        // The cache may still know a segment that was deleted.
        self.store.description(id)?;
        let (footer, footer_bytes_read) = self.footers.get(&self.store, id)?;
        Ok(OpenSegment { footer, footer_bytes_read, decoded: None })
    }

    fn quarantine(&self, id: SegmentId, reason: &Error) {
        Self::quarantine(self, id, reason);
    }
}

struct Inner {
    env: Environment,
    cluster: ClusterId,
    node_id: NodeId,
    /// Tells this process from those that had the folder before.
    instance: u64,
    options: StorageNodeOptions,
    segments: Arc<Segments>,
    /// `None`: segments are not scrubbed.
    scrub: Option<Arc<Progress>>,
    cpu: Arc<CpuPool>,
    results: ResultCache,
    scans: Arc<Semaphore>,
    activity: Arc<Activity>,
    /// Cancelled when new work is refused.
    closing: CancellationToken,
    /// Cancelled when running scans are ended.
    stopping: CancellationToken,
    tasks: TaskGroup,
    lock: Mutex<Option<Box<dyn FileLock>>>,
}

/// What is under way.
#[derive(Debug)]
struct Activity {
    calls: watch::Sender<usize>,
    scans: AtomicU64,
    /// A moving average, for telling refused callers how long to wait.
    scan_micros: AtomicU64,
}

/// One call under way.
struct CallGuard(Arc<Activity>);

impl CallGuard {
    fn new(activity: &Arc<Activity>) -> Self {
        activity.calls.send_modify(|calls| *calls += 1);
        Self(Arc::clone(activity))
    }
}

impl Drop for CallGuard {
    fn drop(&mut self) {
        self.0.calls.send_modify(|calls| *calls = calls.saturating_sub(1));
    }
}

/// One scan under way.
struct ScanGuard {
    env: Environment,
    call: CallGuard,
    started: Duration,
    _permit: OwnedSemaphorePermit,
}

impl ScanGuard {
    fn new(env: Environment, call: CallGuard, permit: OwnedSemaphorePermit) -> Self {
        // Ordering: counters that guard nothing, here and below.
        call.0.scans.fetch_add(1, Ordering::Relaxed);
        Self { started: env.clock.now(), env, call, _permit: permit }
    }
}

impl Drop for ScanGuard {
    fn drop(&mut self) {
        let activity = &self.call.0;
        let micros = self.env.clock.now().saturating_sub(self.started).as_micros();
        let micros = u64::try_from(micros).unwrap_or(u64::MAX);
        let average = activity.scan_micros.load(Ordering::Relaxed);
        activity.scan_micros.store(average - average / 8 + micros / 8, Ordering::Relaxed);
        activity.scans.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A storage node over its data folder. Cheap to clone.
#[derive(Clone)]
pub struct StorageNode {
    inner: Arc<Inner>,
}

impl Debug for StorageNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StorageNode").field("id", &self.inner.node_id).field("zone", &self.inner.options.zone).finish()
    }
}

impl StorageNode {
    /// Opens (or makes) the data folder, takes its lock and keeps the node id in it.
    ///
    /// # Errors
    /// [`ErrorCode::InUse`] when another node has the folder, [`ErrorCode::WrongCluster`] when it
    /// belongs to another cluster, [`ErrorCode::Io`].
    pub async fn open(env: Environment, cluster: ClusterId, options: StorageNodeOptions) -> Result<Self> {
        let cpu = Arc::new(CpuPool::new(options.cpu_threads, Arc::clone(&env.clock))?);
        let (opening, folder) = (env.clone(), options.data_dir.clone());
        let (lock, node_id, store) = blocking(move || {
            let lock = identity::lock_folder(&opening, &folder)?;
            let node_id = identity::load_or_create_id(&opening, &folder, cluster)?;
            Ok((lock, node_id, SegmentStore::open(opening, folder)?))
        })
        .await?;
        let segments = Segments::new(Arc::new(store), FooterCache::new(options.footer_cache_bytes));
        let scrub_rate = NonZeroU64::new(options.scrub_bytes_per_second);
        let activity =
            Activity { calls: watch::Sender::new(0), scans: AtomicU64::new(0), scan_micros: AtomicU64::new(0) };
        let inner = Inner {
            instance: env.random.next_u64(),
            env,
            cluster,
            node_id,
            scrub: scrub_rate.map(|_| Arc::default()),
            segments: Arc::new(segments),
            cpu,
            results: ResultCache::new(options.fragment_cache_bytes),
            scans: Arc::new(Semaphore::new(options.max_concurrent_scans.clamp(1, Semaphore::MAX_PERMITS))),
            activity: Arc::new(activity),
            closing: CancellationToken::new(),
            stopping: CancellationToken::new(),
            tasks: TaskGroup::new(),
            lock: Mutex::new(Some(lock)),
            options,
        };
        if let (Some(rate), Some(progress)) = (scrub_rate, &inner.scrub) {
            let (segments, progress) = (Arc::clone(&inner.segments), Arc::clone(progress));
            let scrub = Scrub::new(inner.env.clone(), segments, progress, &inner.options.data_dir, rate);
            inner.tasks.spawn(scrub.run());
        }
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The id that the node keeps in its folder.
    pub fn id(&self) -> NodeId {
        self.inner.node_id
    }

    /// The availability zone.
    pub fn zone(&self) -> &str {
        &self.inner.options.zone
    }

    pub(crate) fn environment(&self) -> &Environment {
        &self.inner.env
    }

    /// Refuses callers of other clusters.
    pub(crate) fn check_cluster(&self, header: &CallHeader) -> Result<()> {
        if header.cluster_id == self.inner.cluster {
            return Ok(());
        }
        let text = format!("this node belongs to cluster {}, not to {}", self.inner.cluster, header.cluster_id);
        Err(Error::new(ErrorCode::WrongCluster, text).hint("check the address of the node and the cluster's URL"))
    }

    fn admit(&self, header: &CallHeader) -> Result<CallGuard> {
        self.check_cluster(header)?;
        // Counted first, so that a shutdown either sees the call or is seen by it.
        let guard = CallGuard::new(&self.inner.activity);
        if self.inner.closing.is_cancelled() {
            return Err(Error::new(ErrorCode::ShuttingDown, "the storage node is shutting down"));
        }
        if header.timeout.is_zero() {
            return Err(Error::new(ErrorCode::DeadlineExceeded, "the request arrived with no time left"));
        }
        Ok(guard)
    }

    /// Runs a call that was let in, for as long as its caller waits.
    async fn call<T>(&self, header: &CallHeader, what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        let _guard = self.admit(header)?;
        timeout(self.inner.env.clock.as_ref(), header.timeout, work).await.unwrap_or_else(|| {
            Err(Error::new(ErrorCode::DeadlineExceeded, format!("the deadline passed while {what}")))
        })
    }

    /// Who the node is and how it does.
    pub fn info(&self) -> NodeInfo {
        let summary = self.inner.segments.store.summary();
        NodeInfo {
            node_id: self.inner.node_id,
            cluster_id: self.inner.cluster,
            zone: self.inner.options.zone.clone(),
            epoch: self.inner.segments.store.sealed_epoch(),
            segment_count: summary.segment_count,
            segment_bytes: summary.segment_bytes,
            quarantined: summary.quarantined,
            active_scan_count: self.inner.activity.scans.load(Ordering::Relaxed),
            scan_cpu_micros: self.inner.cpu.busy_micros(),
            instance: self.inner.instance,
            scrub: self.inner.scrub.as_ref().map(|progress| progress.read()),
        }
    }

    /// Runs a fragment over segments. The limit counts rows that are sent, not those that
    /// `skip_rows` leaves out. Dropping the stream stops the work.
    ///
    /// # Errors
    /// [`ErrorCode::Busy`] past the number of scans at a time, [`ErrorCode::WrongCluster`],
    /// [`ErrorCode::ShuttingDown`], [`ErrorCode::InvalidMessage`]. What happens later ends the
    /// stream with an error, or with `SegmentFailed` where it concerns one segment.
    pub async fn scan(&self, request: ScanRequest) -> Result<BoxStream<'static, Result<ScanEvent>>> {
        let guard = self.admit(&request.header)?;
        let inner = &self.inner;
        let deadline = Deadline::after(inner.env.clock.as_ref(), request.header.timeout);
        check_scan(&request)?;
        if request.may_push_back {
            self.check_cpu(&request)?;
        }
        let permit = Arc::clone(&inner.scans).try_acquire_owned().map_err(|_| self.busy())?;
        let resources = ScanResources {
            clock: Arc::clone(&inner.env.clock),
            cpu: Arc::clone(&inner.cpu),
            segments: Arc::clone(&inner.segments) as Arc<dyn SegmentSource>,
            memory_bytes: inner.options.scan_memory_bytes,
            batch_rows: inner.options.batch_rows,
            results: request.may_keep_results.then(|| inner.results.clone()),
        };
        let context = Arc::new(ScanContext::new(resources, &request.fragment, request.batch_rows)?);
        let bounds =
            ScanBounds { deadline, stopping: inner.stopping.clone(), segments_at_a_time: self.segments_at_a_time() };
        tracing::debug!(request = %request.header.request_id, segments = request.segments.len(), "scan");
        let guard = ScanGuard::new(inner.env.clone(), guard, permit);
        Ok(scan::start(context, request.segments, bounds, &inner.tasks, guard))
    }

    /// Segments that a scan which starts now works on at a time: two for each thread where it runs alone, and one where
    /// others run beside it.
    fn segments_at_a_time(&self) -> usize {
        let options = &self.inner.options;
        let running = options.max_concurrent_scans.saturating_sub(self.inner.scans.available_permits());
        options.cpu_threads.max(1).saturating_mul(if running > 1 { 1 } else { 2 })
    }

    /// Refuses a scan that somebody else can run, if it would have to wait for longer than the node's budget.
    fn check_cpu(&self, request: &ScanRequest) -> Result<()> {
        if self.inner.cpu.expected_wait(false) < self.inner.options.pushback_wait {
            return Ok(());
        }
        let store = &self.inner.segments.store;
        let bytes_of = |scan: &SegmentScan| store.description(scan.segment_id).map_or(0, |held| held.bytes);
        let bytes = request.segments.iter().map(bytes_of).fold(0, u64::saturating_add);
        let is_short = bytes <= SHORT_SCAN_BYTES;
        let (wait, budget) = (self.inner.cpu.expected_wait(is_short), self.inner.options.pushback_wait);
        if wait < budget {
            return Ok(());
        }
        let text = format!("each step of a scan would wait for {} ms here", wait.as_millis());
        let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        Err(Error::new(ErrorCode::PushedBack, text)
            .hint("read the columns and run the fragment yourself")
            .retry_after_millis(millis))
    }

    fn busy(&self) -> Error {
        let micros = self.inner.activity.scan_micros.load(Ordering::Relaxed);
        let wait = Duration::from_micros(micros).clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX);
        let text = format!("the node runs {} scans already", self.inner.options.max_concurrent_scans);
        Error::new(ErrorCode::Busy, text).retry_after_millis(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX))
    }

    /// Stores a segment: the receipt says that it is on stable storage and that its checksum is
    /// right. Once more with the same content is no error.
    ///
    /// # Errors
    /// [`ErrorCode::StaleEpoch`], [`ErrorCode::SegmentCorrupt`] when other bytes arrived than
    /// described, [`ErrorCode::DiskFull`], [`ErrorCode::AlreadyExists`] for another content.
    pub async fn put_segment(
        &self,
        header: &CallHeader,
        description: &SegmentDescription,
        data: BoxStream<'static, Result<Bytes>>,
    ) -> Result<PutReceipt> {
        self.call(header, "a segment was stored", self.store_segment(header.epoch, description, data)).await
    }

    async fn store_segment(
        &self,
        writer: Epoch,
        description: &SegmentDescription,
        data: BoxStream<'static, Result<Bytes>>,
    ) -> Result<PutReceipt> {
        let receipt = self.inner.segments.store.put(writer, description.clone(), data).await?;
        // What the cache knows of this id may be the file that was put aside.
        self.inner.segments.footers.remove(description.segment_id);
        Ok(receipt)
    }

    /// The stored bytes of a segment, or of `ranges` of it one after the other, verified block by block, in chunks of up
    /// to 1 MiB.
    ///
    /// # Errors
    /// [`ErrorCode::SegmentNotFound`], [`ErrorCode::SegmentCorrupt`], [`ErrorCode::InvalidMessage`] for ranges that the
    /// segment does not have, or that overlap or go back.
    pub async fn get_segment(
        &self,
        header: &CallHeader,
        id: SegmentId,
        ranges: &[Range<u64>],
    ) -> Result<(SegmentDescription, BoxStream<'static, Result<Bytes>>)> {
        let guard = self.admit(header)?;
        let deadline = Deadline::after(self.inner.env.clock.as_ref(), header.timeout);
        let segments = Arc::clone(&self.inner.segments);
        let (description, file) = blocking(move || {
            let description = segments.store.description(id)?;
            let file = segments.store.open_segment(id).inspect_err(|error| {
                if error.code() == ErrorCode::SegmentCorrupt {
                    segments.quarantine(id, error);
                }
            })?;
            Ok((description, Arc::new(file)))
        })
        .await?;
        let whole = 0..file.length_bytes();
        let ranges = if ranges.is_empty() { vec![whole.clone()] } else { ranges.to_vec() };
        // In order and apart, so that no byte is asked for twice.
        let mut from = 0;
        for range in &ranges {
            if range.start < from || range.start > range.end || range.end > whole.end {
                let text = format!(
                    "bytes {}..{} of segment {id}, which has {}, are not in order",
                    range.start, range.end, whole.end
                );
                return Err(Error::new(ErrorCode::InvalidMessage, text));
            }
            from = range.end;
        }
        Ok((description, self.chunks(file, ranges, deadline, guard)))
    }

    fn chunks(
        &self,
        file: Arc<VerifiedFile>,
        ranges: Vec<Range<u64>>,
        deadline: Deadline,
        guard: CallGuard,
    ) -> BoxStream<'static, Result<Bytes>> {
        let node = self.clone();
        let left: VecDeque<Range<u64>> = ranges.into_iter().filter(|range| !range.is_empty()).collect();
        stream::unfold(Some((left, guard)), move |state| {
            let (node, file) = (node.clone(), Arc::clone(&file));
            async move {
                let (mut left, guard) = state?;
                let range = left.pop_front()?;
                let end = range.start.saturating_add(CHUNK_BYTES).min(range.end);
                if end < range.end {
                    left.push_front(end..range.end);
                }
                let chunk = node.chunk(file, range.start..end, deadline).await;
                let next = chunk.is_ok().then_some((left, guard));
                Some((chunk, next))
            }
        })
        .boxed()
    }

    async fn chunk(&self, file: Arc<VerifiedFile>, range: Range<u64>, deadline: Deadline) -> Result<Bytes> {
        if deadline.is_past(self.inner.env.clock.as_ref()) {
            return Err(Error::new(ErrorCode::DeadlineExceeded, "the deadline passed while a segment was read"));
        }
        if self.inner.stopping.is_cancelled() {
            return Err(Error::new(ErrorCode::ShuttingDown, "the storage node stopped while a segment was read"));
        }
        let segments = Arc::clone(&self.inner.segments);
        blocking(move || match file.read_blocks(&range) {
            Ok(blocks) => {
                blocks.slice(&range).ok_or_else(|| Error::internal("verified blocks do not cover what was asked"))
            }
            Err(error) => {
                if error.code() == ErrorCode::SegmentCorrupt {
                    segments.quarantine(file.segment_id(), &error);
                }
                Err(error)
            }
        })
        .await
    }

    /// Copies a segment from the first of `sources` (addresses) that has it, unless it is here already.
    ///
    /// # Errors
    /// As [`StorageNode::put_segment`]; with several sources, the error of the last one, but
    /// [`ErrorCode::SegmentUnavailable`] where that one did not answer: that a source is away says nothing about this
    /// node.
    pub async fn replicate_segment(
        &self,
        header: &CallHeader,
        description: &SegmentDescription,
        sources: &[String],
    ) -> Result<PutReceipt> {
        if sources.is_empty() || sources.len() > SOURCES_MAX {
            let text = format!(
                "{} sources for segment {}; 1 to {SOURCES_MAX} are allowed",
                sources.len(),
                description.segment_id
            );
            return Err(Error::new(ErrorCode::InvalidMessage, text));
        }
        self.call(header, "a segment was copied", self.pull(header, description, sources)).await
    }

    async fn pull(
        &self,
        header: &CallHeader,
        description: &SegmentDescription,
        sources: &[String],
    ) -> Result<PutReceipt> {
        let (store, described, writer) = (Arc::clone(&self.inner.segments.store), description.clone(), header.epoch);
        if let Some(receipt) = blocking(move || store.acknowledge_held(writer, &described)).await? {
            return Ok(receipt);
        }
        let deadline = Deadline::after(self.inner.env.clock.as_ref(), header.timeout);
        let mut last = Error::internal("there was no source");
        for source in sources {
            let pulled = async {
                let data = replicate::open(&self.inner.env, header, deadline, description, source).await?;
                self.store_segment(header.epoch, description, data).await
            };
            match pulled.await {
                Ok(receipt) => return Ok(receipt),
                Err(error) if matches!(error.code(), ErrorCode::StaleEpoch | ErrorCode::DiskFull) => return Err(error),
                Err(error) => {
                    let segment = description.segment_id;
                    tracing::warn!(%segment, source, error = %error.chain(), "a segment could not be copied");
                    last = error;
                }
            }
        }
        let code = match last.code() {
            ErrorCode::NodeUnavailable
            | ErrorCode::ShuttingDown
            | ErrorCode::DeadlineExceeded
            | ErrorCode::Cancelled => ErrorCode::SegmentUnavailable,
            code => code,
        };
        let count = sources.len();
        let text = format!("segment {} cannot be copied from any of {count} nodes", description.segment_id);
        Err(Error::new(code, text).source(last))
    }

    /// The segments held, in the order of their ids, from the one after `after`; and whether there
    /// are more. `limit` 0 lets the node choose.
    ///
    /// # Errors
    /// [`ErrorCode::WrongCluster`], [`ErrorCode::ShuttingDown`].
    pub async fn list_segments(
        &self,
        header: &CallHeader,
        after: Option<SegmentId>,
        limit: usize,
    ) -> Result<(Vec<SegmentDescription>, bool)> {
        let _guard = self.admit(header)?;
        let limit = if limit == 0 { LIST_PAGE_DEFAULT } else { limit.min(LIST_PAGE_MAX) };
        Ok(self.inner.segments.store.page(after, limit))
    }

    /// Removes segments; unknown ids are no error. Returns how many were there.
    ///
    /// # Errors
    /// [`ErrorCode::StaleEpoch`], [`ErrorCode::Io`].
    pub async fn delete_segments(&self, header: &CallHeader, ids: &[SegmentId]) -> Result<u64> {
        if ids.len() > DELETE_IDS_MAX {
            let text = format!("{} segments to delete at once; at most {DELETE_IDS_MAX} are allowed", ids.len());
            return Err(Error::new(ErrorCode::LimitExceeded, text));
        }
        let (segments, writer, ids) = (Arc::clone(&self.inner.segments), header.epoch, ids.to_vec());
        let work = blocking(move || {
            let deleted = segments.store.delete(writer, &ids);
            ids.iter().for_each(|id| segments.footers.remove(*id));
            deleted
        });
        self.call(header, "segments were deleted", work).await
    }

    /// Refuses every writer with an epoch older than the caller's from now on, durably. Returns the
    /// sealed epoch.
    ///
    /// # Errors
    /// [`ErrorCode::StaleEpoch`] when a newer one is sealed already.
    pub async fn seal(&self, header: &CallHeader) -> Result<Epoch> {
        let (segments, epoch) = (Arc::clone(&self.inner.segments), header.epoch);
        self.call(header, "an epoch was sealed", blocking(move || segments.store.seal(epoch))).await
    }

    /// Refuses new work, lets running calls finish for up to `grace`, ends the rest and lets go of
    /// the data folder.
    pub async fn shutdown(&self, grace: Duration) {
        let inner = &self.inner;
        inner.closing.cancel();
        let mut calls = inner.activity.calls.subscribe();
        let idle = calls.wait_for(|calls| *calls == 0);
        if timeout(inner.env.clock.as_ref(), grace, idle).await.is_none() {
            tracing::warn!(node = %inner.node_id, "ending calls that did not finish in time");
        }
        inner.stopping.cancel();
        inner.tasks.shutdown().await;
        inner.lock.lock().take();
    }
}

fn check_scan(request: &ScanRequest) -> Result<()> {
    if request.segments.len() > SCAN_SEGMENTS_MAX {
        let text = format!("{} segments in one scan; at most {SCAN_SEGMENTS_MAX} are allowed", request.segments.len());
        return Err(Error::new(ErrorCode::LimitExceeded, text));
    }
    if let Some(filter) = request.fragment.filter()
        && filter.data_type(request.fragment.scan_schema())? != DataType::Boolean
    {
        return Err(Error::new(ErrorCode::InvalidMessage, format!("filter {filter} is not boolean")));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
