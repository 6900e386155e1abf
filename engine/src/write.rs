//! Writing: rows become segments, segments reach their write quorum, one manifest version makes all
//! segments of the statement visible.
//!
//! Until the commit nothing is visible. A statement that fails tells the nodes to delete what it
//! wrote; what it cannot delete is an orphan, which maintenance collects.

mod quorum_write;
mod segment_builder;
mod sink;

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use aubade_catalog::{Action, AddSegments, Commit, SegmentEntry, SegmentStatistics, Snapshot};
use aubade_environment::tasks::run_blocking;
use aubade_proto::{Error, ErrorCode, RelationId, Result, SegmentId, TransactionId};
use datafusion::execution::SendableRecordBatchStream;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
pub(crate) use segment_builder::{BuiltSegment, SegmentBuilder};
pub(crate) use sink::SegmentSink;

use crate::engine::Engine;
use crate::limits::{CONTROL_TIMEOUT, SEGMENTS_IN_FLIGHT_MAX};

/// Segments that reached their write quorum and are not committed yet.
#[derive(Debug)]
pub(crate) struct Written {
    /// The transaction that wrote them and has to commit them.
    pub(crate) transaction: TransactionId,
    /// The segments.
    pub(crate) segments: Vec<SegmentEntry>,
    /// Their statistics, at the same indices.
    pub(crate) statistics: SegmentStatistics,
    /// Rows over all of them.
    pub(crate) rows: u64,
    /// Keeps maintenance from collecting them; see [`InFlight`].
    in_flight: InFlight,
}

/// Names the segments of a statement that is under way, so that they are not taken for orphans.
#[derive(Debug)]
struct InFlight {
    engine: Engine,
    ids: Vec<SegmentId>,
    /// Set when it is not known whether the commit happened: then they stay named for good.
    keep: bool,
}

impl InFlight {
    fn add(&mut self, id: SegmentId) {
        self.engine.in_flight().lock().insert(id);
        self.ids.push(id);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if !self.keep {
            let mut in_flight = self.engine.in_flight().lock();
            for id in &self.ids {
                in_flight.remove(id);
            }
        }
    }
}

impl Engine {
    /// Writes the rows of `stream`, which has the columns of `schema`, as segments on their write
    /// quorums. On failure what was written is deleted again.
    ///
    /// # Errors
    /// `QuorumUnavailable`, `StaleEpoch`, or whatever `stream` yields.
    pub(crate) async fn write_segments(&self, schema: SchemaRef, stream: SendableRecordBatchStream) -> Result<Written> {
        let transaction = TransactionId(self.environment().new_uuid());
        let mut written = Written {
            transaction,
            segments: Vec::new(),
            statistics: SegmentStatistics::empty(Arc::clone(&schema)),
            rows: 0,
            in_flight: InFlight { engine: self.clone(), ids: Vec::new(), keep: false },
        };
        match self.fill(&mut written, schema, stream).boxed().await {
            Ok(()) => Ok(written),
            Err(error) => {
                self.discard(written).boxed().await;
                Err(error)
            }
        }
    }

    async fn fill(
        &self,
        written: &mut Written,
        schema: SchemaRef,
        mut stream: SendableRecordBatchStream,
    ) -> Result<()> {
        self.check_writable()?;
        let mut builder = SegmentBuilder::new(Arc::clone(&schema), Arc::clone(self.encode_pool()));
        let mut uploads = FuturesUnordered::new();
        loop {
            let next = stream.next().await.transpose().map_err(Error::from_datafusion)?;
            let ended = next.is_none();
            let (returned, built) = encode(builder, next).await?;
            builder = returned;
            for segment in built {
                let id = SegmentId(self.environment().new_uuid());
                written.in_flight.add(id);
                uploads.push(quorum_write::write(self, id, written.transaction, segment).boxed());
            }
            while uploads.len() > if ended { 0 } else { SEGMENTS_IN_FLIGHT_MAX } {
                if let Some(done) = uploads.next().await {
                    let (entry, statistics) = done?;
                    written.rows += entry.rows;
                    written.statistics = written.statistics.concat(&statistics)?;
                    written.segments.push(entry);
                }
            }
            if ended {
                return Ok(());
            }
        }
    }

    /// Commits `before` and then the written segments, as one version.
    ///
    /// # Errors
    /// Those of [`aubade_catalog::Manifest::commit`], after which the segments are deleted; or
    /// `CommitUnknown`, after which nothing is.
    pub(crate) async fn commit_written(
        &self,
        before: Vec<Action>,
        table: RelationId,
        mut written: Written,
    ) -> Result<Arc<Snapshot>> {
        let mut actions = before;
        if !written.segments.is_empty() {
            let segments = std::mem::take(&mut written.segments);
            let statistics = written.statistics.clone();
            actions.push(Action::AddSegments(AddSegments { table, segments, statistics }));
        }
        if actions.is_empty() {
            return self.snapshot().await;
        }
        match self.manifest().commit(written.transaction, actions).boxed().await {
            Ok(Commit::Committed(snapshot)) => {
                self.adopt(&snapshot);
                Ok(snapshot)
            }
            Ok(Commit::Unknown(cause)) => {
                written.in_flight.keep = true;
                Err(unknown_commit(written.transaction, cause))
            }
            Err(error) => {
                self.discard(written).boxed().await;
                Err(error)
            }
        }
    }

    /// Deletes segments that will not be committed, as far as nodes answer.
    pub(crate) async fn discard(&self, written: Written) {
        if written.in_flight.ids.is_empty() {
            return;
        }
        let header = self.cluster().header(self.manifest().snapshot().version, CONTROL_TIMEOUT);
        let members = self.cluster().members();
        let deletions = members.iter().map(|member| {
            let call = member.client.delete_segments(&header, &written.in_flight.ids);
            self.cluster().call(member, CONTROL_TIMEOUT, call)
        });
        for result in futures::future::join_all(deletions).await {
            if let Err(error) = result {
                tracing::debug!(%error, "segments of a failed statement stay until they are collected");
            }
        }
    }
}

/// What a client is told when the store did not say whether a commit happened.
pub(crate) fn unknown_commit(transaction: TransactionId, cause: Error) -> Error {
    Error::new(ErrorCode::CommitUnknown, format!("it is not known whether transaction {transaction} was committed"))
        .hint("look whether its effect is there before trying again; nothing was deleted")
        .source(cause)
}

/// One step of encoding on a blocking thread: adds a batch, or closes at the end of the stream.
async fn encode(
    mut builder: SegmentBuilder,
    batch: Option<RecordBatch>,
) -> Result<(SegmentBuilder, Vec<BuiltSegment>)> {
    // Most batches only add to a buffer: no need to change threads for those.
    if let Some(batch) = &batch
        && !builder.would_encode(batch)
    {
        builder.push(batch.clone())?;
        return Ok((builder, Vec::new()));
    }
    let work = move || {
        let built = match batch {
            Some(batch) => builder.add(batch)?,
            None => builder.finish()?,
        };
        Ok((builder, built))
    };
    run_blocking(work).await.unwrap_or_else(|| Err(Error::internal("encoding a segment panicked")))
}
