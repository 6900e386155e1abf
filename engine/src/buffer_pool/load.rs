//! Filling the pool: in the background with what queries have missed, and at once for CACHE TABLE.

use std::sync::Arc;
use std::time::Duration;

use aubade_catalog::SegmentEntry;
use aubade_environment::{Deadline, clock};
use aubade_proto::{Error, ErrorCode, Result, Version};
use aubade_storage_node::{DecodedSegment, FetchedSegment};
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;

use super::worth::{Worth, estimated_bytes};
use super::{BufferPool, TableOfPool, Wanted};
use crate::cluster::Cluster;
use crate::limits::{
    BUFFER_POOL_IDLE_LOOK, BUFFER_POOL_LOAD_TIMEOUT, BUFFER_POOL_LOADS_AT_A_TIME, BUFFER_POOL_PAUSE_FACTOR,
};
use crate::node_reader::NodeReader;
use crate::query::QueryLog;

/// Loads what queries have missed, while no query runs, or else for a twentieth of the time: the queries that are under
/// way are not to feel it.
#[derive(Debug)]
pub(crate) struct Loader {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) pool: Arc<BufferPool>,
    pub(crate) queries: QueryLog,
    pub(crate) wanted: mpsc::Receiver<Wanted>,
}

impl Loader {
    /// Runs until the engine stops.
    pub(crate) async fn run(mut self) {
        let clock = Arc::clone(&self.cluster.environment().clock);
        let mut took = Duration::ZERO;
        while let Some(wanted) = self.wanted.recv().await {
            self.wait_for_idleness(took.saturating_mul(BUFFER_POOL_PAUSE_FACTOR)).await;
            let started = clock.now();
            // Much may have come in since it was asked for.
            if self.pool.admits(&wanted)
                && let Err(error) = load(&self.cluster, &self.pool, &wanted).await
            {
                tracing::debug!(segment = %wanted.segment.id, error = %error.chain(), "a segment was not loaded into the buffer pool");
            }
            self.pool.loaded(wanted.segment.id);
            took = clock.now().saturating_sub(started);
        }
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
    let wanted = |segment: &Arc<SegmentEntry>| Wanted {
        table: Arc::clone(table),
        segment: Arc::clone(segment),
        columns: columns
            .iter()
            .map(|name| (Arc::clone(name), Worth::unknown(estimated_bytes(&table.schema, name, segment.rows))))
            .collect(),
    };
    let wanted: Vec<Wanted> = segments.iter().map(wanted).collect();
    let loads = stream::iter(wanted).map(|wanted| async move { load(cluster, pool, &wanted).await }.boxed());
    let found_room: Vec<bool> = loads.buffer_unordered(BUFFER_POOL_LOADS_AT_A_TIME).try_collect().await?;
    if found_room.contains(&false) {
        let text = format!("not all of {} found room in the buffer pool of {} bytes", table.name, pool.bytes_max());
        return Err(Error::new(ErrorCode::LimitExceeded, text)
            .hint("name fewer columns, UNCACHE TABLE another table, or give the coordinator a larger --buffer-pool"));
    }
    Ok(())
}

/// Loads what is missing of a segment; `false` where it found no room.
async fn load(cluster: &Cluster, pool: &BufferPool, wanted: &Wanted) -> Result<bool> {
    let missing = pool.missing(wanted.segment.id, &wanted.names());
    if missing.is_empty() {
        return Ok(true);
    }
    let decoded = decode(cluster, pool, &wanted.segment, &missing).await?;
    Ok(pool.insert(wanted, &decoded))
}

/// Fetches and decodes columns of a segment from the first replica that gives them.
async fn decode(
    cluster: &Cluster,
    pool: &BufferPool,
    segment: &SegmentEntry,
    columns: &[Arc<str>],
) -> Result<DecodedSegment> {
    let clock = cluster.environment().clock.as_ref();
    let mut failure = None;
    for member in cluster.replicas(segment) {
        let reader = NodeReader {
            member,
            header: cluster.header(Version::default(), BUFFER_POOL_LOAD_TIMEOUT),
            id: segment.id,
            metrics: None,
        };
        let fetch = FetchedSegment::fetch(segment.id, segment.bytes, columns, &reader, |_| Ok(()));
        match clock::timeout(clock, BUFFER_POOL_LOAD_TIMEOUT, fetch).await {
            Some(Ok(fetched)) => return pool.runner().decode(fetched, columns).await,
            Some(Err(error)) => failure = Some(error),
            None => {}
        }
    }
    Err(failure.unwrap_or_else(|| {
        Error::new(
            ErrorCode::SegmentUnavailable,
            format!("no replica of segment {} gave its columns in time", segment.id),
        )
        .hint("look at `aubade cluster status`, and try again")
    }))
}
