//! Writing: rows become segments, segments reach their write quorum, one manifest version makes all
//! segments of the statement visible.
//!
//! Until the commit nothing is visible. A statement that fails tells the nodes to delete what it
//! wrote; what it cannot delete is an orphan, which maintenance collects.

mod quorum_write;
mod segment_builder;
mod sink;

use std::pin::pin;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use aubade_catalog::{Action, AddSegments, Commit, SegmentEntry, SegmentStatistics, Snapshot};
use aubade_environment::tasks::run_blocking;
use aubade_proto::{Error, ErrorCode, RelationId, Result, SegmentId, TransactionId};
use datafusion::execution::SendableRecordBatchStream;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt, TryStreamExt};
pub(crate) use segment_builder::{BuiltSegment, SegmentBuilder};
pub(crate) use sink::SegmentSink;

use crate::engine::{Engine, dropped_by};
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

    async fn fill(&self, written: &mut Written, schema: SchemaRef, rows: SendableRecordBatchStream) -> Result<()> {
        self.check_writable()?;
        let builder = SegmentBuilder::new(schema, Arc::clone(self.encode_pool()));
        let Written { transaction, segments, statistics, rows: row_count, in_flight } = written;
        // Uploads go on while the next segment is read and encoded.
        let mut uploaded = pin!(
            encoded(builder, rows)
                .map_ok(|segment| {
                    let id = SegmentId(self.environment().new_uuid());
                    in_flight.add(id);
                    quorum_write::write(self, id, *transaction, segment).boxed()
                })
                .try_buffer_unordered(SEGMENTS_IN_FLIGHT_MAX)
        );
        while let Some((entry, entry_statistics)) = uploaded.try_next().await? {
            *row_count += entry.rows;
            *statistics = statistics.concat(&entry_statistics)?;
            segments.push(entry);
        }
        Ok(())
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
        let dropped = dropped_by(&actions);
        match self.manifest().commit(written.transaction, actions).boxed().await {
            Ok(Commit::Committed(snapshot)) => {
                self.committed(&snapshot, &dropped);
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
                tracing::debug!(error = %error.chain(), "segments of a failed statement stay until they are collected");
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

/// The rows as segments, encoded on blocking threads.
fn encoded(builder: SegmentBuilder, rows: SendableRecordBatchStream) -> BoxStream<'static, Result<BuiltSegment>> {
    let steps = stream::try_unfold(Some((builder, rows)), next_segments);
    steps.map_ok(|built| stream::iter(built.into_iter().map(Ok))).try_flatten().boxed()
}

/// What is left to encode; `None` at the end.
type Rest = Option<(SegmentBuilder, SendableRecordBatchStream)>;

/// Takes rows until they make a row group; gives the segments that this completes.
async fn next_segments(rest: Rest) -> Result<Option<(Vec<BuiltSegment>, Rest)>> {
    let Some((mut builder, mut rows)) = rest else { return Ok(None) };
    while let Some(batch) = rows.next().await {
        let batch = batch.map_err(Error::from_datafusion)?;
        // Most batches only add to a buffer: no need to change threads for those.
        if !builder.would_encode(&batch) {
            builder.push(batch)?;
            continue;
        }
        let (builder, built) = on_blocking_thread(builder, move |builder| builder.add(batch)).await?;
        return Ok(Some((built, Some((builder, rows)))));
    }
    let (_, built) = on_blocking_thread(builder, SegmentBuilder::finish).await?;
    Ok(Some((built, None)))
}

async fn on_blocking_thread<F>(mut builder: SegmentBuilder, encode: F) -> Result<(SegmentBuilder, Vec<BuiltSegment>)>
where
    F: FnOnce(&mut SegmentBuilder) -> Result<Vec<BuiltSegment>> + Send + 'static,
{
    let work = move || {
        let built = encode(&mut builder)?;
        Ok((builder, built))
    };
    run_blocking(work).await.unwrap_or_else(|| Err(Error::internal("encoding a segment panicked")))
}
