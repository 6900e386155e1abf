//! Filling the pool: in the background with what queries have missed, and at once for CACHE TABLE.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use aubade_catalog::{Relation, SegmentEntry, Snapshot};
use aubade_environment::{Deadline, clock};
use aubade_proto::{Error, ErrorCode, Result, Version};
use aubade_storage_node::FetchedSegment;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;

use super::flights::{Asked, Turn};
use super::tiered_reader::TieredReader;
use super::{BufferPool, ColumnSet, DiskTier, TableOfPool, Wanted};
use crate::cluster::Cluster;
use crate::limits::{
    BUFFER_POOL_IDLE_LOOK, BUFFER_POOL_LOAD_TIMEOUT, BUFFER_POOL_LOADS_AT_A_TIME, BUFFER_POOL_PAUSE_FACTOR,
    BUFFER_POOL_PAUSE_MIN,
};
use crate::node_reader::NodeReader;
use crate::query::QueryLog;

/// Where columns may be read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Only the second tier.
    Disk,
    Any,
}

/// Loads what queries have missed, while no query runs, or else for a twentieth of the time: the queries that are under
/// way, and of these the one that has caused a load, are not to feel it.
#[derive(Debug)]
pub(crate) struct Loader {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) pool: Arc<BufferPool>,
    pub(crate) queries: QueryLog,
    pub(crate) wanted: mpsc::Receiver<Wanted>,
}

impl Loader {
    /// Runs until the engine stops. First of all what the second tier has of `snapshot` is loaded, as far as there is
    /// room.
    pub(crate) async fn run(mut self, snapshot: Arc<Snapshot>) {
        let mut took = Duration::ZERO;
        let on_disk = self.on_disk(&snapshot);
        // It would keep what is dropped since.
        drop(snapshot);
        for wanted in on_disk {
            // What queries want goes first.
            while let Ok(wanted) = self.wanted.try_recv() {
                took = self.load_next(&wanted, Source::Any, took).await.0;
            }
            let found_room;
            (took, found_room) = self.load_next(&wanted, Source::Disk, took).await;
            if !found_room {
                break;
            }
        }
        while let Some(wanted) = self.wanted.recv().await {
            took = self.load_next(&wanted, Source::Any, took).await.0;
        }
    }

    /// Loads columns, after a pause that follows from how long the last load took (`last`); how long that is from now on,
    /// and whether they found room.
    async fn load_next(&self, wanted: &Wanted, source: Source, last: Duration) -> (Duration, bool) {
        let pause = last.saturating_mul(BUFFER_POOL_PAUSE_FACTOR).max(BUFFER_POOL_PAUSE_MIN);
        self.wait_for_idleness(pause).await;
        // Much may have come in since it was asked for.
        let mut found_room = self.pool.admits(wanted);
        // Where nothing is loaded, the next load owes the pause for the last one.
        let mut took = last;
        if found_room && !self.pool.missing(wanted.segment.id, &wanted.columns).is_empty() {
            let clock = &self.cluster.environment().clock;
            let started = clock.now();
            found_room = load(&self.cluster, &self.pool, wanted, source).await.unwrap_or_else(|error| {
                tracing::debug!(segment = %wanted.segment.id, error = %error.chain(), "a segment was not loaded into the buffer pool");
                true
            });
            took = clock.now().saturating_sub(started);
        }
        if source == Source::Any {
            self.pool.loaded(wanted);
        }
        (took, found_room)
    }

    /// The columns of segments that the second tier has read before, the newest first.
    fn on_disk(&self, snapshot: &Snapshot) -> Vec<Wanted> {
        let Some(disk) = self.pool.disk() else { return Vec::new() };
        let mut segments = HashMap::new();
        for relation in snapshot.relations.values() {
            let Relation::Table(table) = relation else { continue };
            let of_pool = Arc::new(TableOfPool::from(table.as_ref()));
            let entries = table.segments.iter().map(|segment| (segment.id, (Arc::clone(&of_pool), segment)));
            segments.extend(entries);
        }
        let wanted = disk.recent().into_iter().filter_map(|(id, columns)| {
            let (table, segment) = segments.get(&id)?;
            Some(Wanted { table: Arc::clone(table), segment: Arc::clone(segment), columns: columns.into() })
        });
        wanted.collect()
    }

    /// Waits until no query runs, or for some time.
    async fn wait_for_idleness(&self, longest: Duration) {
        let clock = &self.cluster.environment().clock;
        let latest = Deadline::after(clock.as_ref(), longest);
        while self.queries.running() > 0 && !latest.is_past(clock.as_ref()) {
            clock.sleep(BUFFER_POOL_IDLE_LOOK).await;
        }
    }
}

/// Loads columns of all segments of a table, and returns once they are here.
///
/// # Errors
/// `LimitExceeded` when not all of them found room; those of reading a segment.
pub(crate) async fn load_table(
    cluster: &Arc<Cluster>,
    pool: &Arc<BufferPool>,
    table: &Arc<TableOfPool>,
    segments: &[Arc<SegmentEntry>],
    columns: &[Arc<str>],
) -> Result<()> {
    let columns: ColumnSet = columns.into();
    let of = |segment| Wanted { table: Arc::clone(table), segment: Arc::clone(segment), columns: Arc::clone(&columns) };
    let wanted: Vec<Wanted> = segments.iter().map(of).collect();
    let load = |wanted| async move { load(cluster, pool, &wanted, Source::Any).await }.boxed();
    let loads = stream::iter(wanted).map(load);
    let found_room: Vec<bool> = loads.buffer_unordered(BUFFER_POOL_LOADS_AT_A_TIME).try_collect().await?;
    if found_room.contains(&false) {
        let (bytes_max, lent) = (pool.bytes_max(), pool.lent_bytes());
        let name = &table.name;
        let text = match lent {
            0 => format!("not all of {name} found room in the {bytes_max} bytes that the buffer pool has for columns"),
            _ => format!(
                "not all of {name} found room in the {bytes_max} bytes that the buffer pool has for columns, {lent} of \
                 which queries use now"
            ),
        };
        return Err(Error::new(ErrorCode::LimitExceeded, text)
            .hint("name fewer columns, UNCACHE TABLE another table, or give the coordinator a larger --buffer-pool"));
    }
    Ok(())
}

/// Loads what is missing of a segment, or waits for whoever does; `false` where it found no room.
async fn load(cluster: &Cluster, pool: &BufferPool, wanted: &Wanted, source: Source) -> Result<bool> {
    let (id, table) = (wanted.segment.id, wanted.table.id);
    loop {
        let columns = pool.missing(id, &wanted.columns);
        if columns.is_empty() {
            return Ok(true);
        }
        let is_pinned = pool.are_pinned(table, &columns);
        match pool.flights.join(id, &Asked { columns, source, is_pinned }) {
            Turn::Own(flight) => {
                let loaded = load_missing(cluster, pool, wanted, source).await;
                flight.end(&loaded);
                return loaded;
            }
            Turn::Waits(waiting) => {
                if let Some(loaded) = waiting.outcome().await {
                    return loaded;
                }
            }
        }
    }
}

async fn load_missing(cluster: &Cluster, pool: &BufferPool, wanted: &Wanted, source: Source) -> Result<bool> {
    // Anew: another load may have ended just before this one began.
    let (segment, missing) = (&wanted.segment, pool.missing(wanted.segment.id, &wanted.columns));
    if missing.is_empty() {
        return Ok(true);
    }
    if let Some(disk) = pool.disk() {
        match load_tiered(cluster, pool, disk, wanted, &missing, source).await {
            // Whatever is wrong with what is there, it can be had from nodes.
            Err(error) if error.code() == ErrorCode::FileUnreadable => {
                disk.forget(segment.id).await;
                if source == Source::Disk {
                    return Err(error);
                }
            }
            loaded => return loaded,
        }
    }
    let fetched = from_replicas(cluster, segment, |reader| {
        let missing = &missing;
        async move { FetchedSegment::fetch(segment.id, segment.bytes, missing, &reader, |_| Ok(())).await }.boxed()
    });
    let decoded = pool.runner().decode(fetched.await?, &missing).await?;
    Ok(pool.insert(wanted, &decoded))
}

/// Loads columns from the second tier; what is not there from the first replica that gives it, and then keeps it there.
async fn load_tiered(
    cluster: &Cluster,
    pool: &BufferPool,
    disk: &Arc<DiskTier>,
    wanted: &Wanted,
    columns: &[Arc<str>],
    source: Source,
) -> Result<bool> {
    let segment = &wanted.segment;
    let read = |node: Option<NodeReader>| {
        let reader = TieredReader::new(Arc::clone(disk), segment.id, segment.bytes, node);
        async move {
            let fetched = FetchedSegment::fetch(segment.id, segment.bytes, columns, &reader, |_| Ok(())).await?;
            Ok((fetched, reader))
        }
        .boxed()
    };
    let (fetched, reader) = match source {
        Source::Disk => in_time(cluster, segment, read(None)).await?,
        Source::Any => from_replicas(cluster, segment, |reader| read(Some(reader))).await?,
    };
    let decoded = pool.runner().decode(fetched, columns).await?;
    let found_room = pool.insert(wanted, &decoded);
    reader.keep(columns).await;
    Ok(found_room)
}

/// What `read` gives for the first replica of a segment with which it works.
async fn from_replicas<'a, T>(
    cluster: &Cluster,
    segment: &SegmentEntry,
    read: impl Fn(NodeReader) -> BoxFuture<'a, Result<T>>,
) -> Result<T> {
    let mut failure = None;
    for member in cluster.replicas(segment) {
        let reader = NodeReader {
            member,
            header: cluster.header(Version::default(), BUFFER_POOL_LOAD_TIMEOUT),
            id: segment.id,
            metrics: None,
        };
        match in_time(cluster, segment, read(reader)).await {
            Ok(read) => return Ok(read),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.unwrap_or_else(|| late(segment)))
}

async fn in_time<T>(cluster: &Cluster, segment: &SegmentEntry, read: BoxFuture<'_, Result<T>>) -> Result<T> {
    let clock = cluster.environment().clock.as_ref();
    clock::timeout(clock, BUFFER_POOL_LOAD_TIMEOUT, read).await.unwrap_or_else(|| Err(late(segment)))
}

fn late(segment: &SegmentEntry) -> Error {
    let text = format!("the columns of segment {} did not come in time", segment.id);
    Error::new(ErrorCode::SegmentUnavailable, text).hint("look at `aubade cluster status`, and try again")
}

#[cfg(test)]
mod tests;
