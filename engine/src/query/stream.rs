//! Result streams: made on the runtime of queries, read anywhere.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use aubade_environment::clock::timeout;
use aubade_proto::{Error, ErrorCode, Result};
use datafusion::error::DataFusionError;
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{Stream, StreamExt};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::QueryRun;
use super::task::{AbortOnDrop, stopped, without_panic};

/// Batches between the query and its reader. Enough that both work at the same time; a slow reader
/// slows the query instead of filling memory.
const BATCHES_IN_FLIGHT_MAX: usize = 3;

/// What the producing task says. A channel that closes without `Done` is a task that was stopped,
/// and must not look like the end of the result.
enum Message {
    Batch(RecordBatch),
    Failed(Error),
    Done,
}

/// Runs `source` on `runtime`. The record of `run` ends with the stream.
pub(crate) fn query_stream(
    runtime: &Handle,
    source: SendableRecordBatchStream,
    run: Arc<QueryRun>,
) -> SendableRecordBatchStream {
    let schema = source.schema();
    let (sender, receiver) = mpsc::channel(BATCHES_IN_FLIGHT_MAX);
    let producer = produce(source, sender, Arc::clone(&run));
    Box::pin(QueryStream { schema, receiver, ended: false, run, _task: AbortOnDrop::spawn(runtime, producer) })
}

async fn produce(source: SendableRecordBatchStream, sender: mpsc::Sender<Message>, run: Arc<QueryRun>) {
    let work = without_panic(forward(source, &sender));
    let result = match run.deadline() {
        None => work.await,
        Some(deadline) => {
            let clock = run.clock().as_ref();
            timeout(clock, deadline.remaining(clock), work).await.unwrap_or_else(|| Err(deadline_exceeded()))
        }
    };
    let last = match result {
        Ok(()) => Message::Done,
        Err(error) => Message::Failed(error),
    };
    // Fails only when nobody reads any more.
    let _ = sender.send(last).await;
}

async fn forward(mut source: SendableRecordBatchStream, sender: &mpsc::Sender<Message>) -> Result<()> {
    while let Some(batch) = source.next().await {
        let batch = batch.map_err(Error::from_datafusion)?;
        if sender.send(Message::Batch(batch)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// The error of a query that took too long.
pub(crate) fn deadline_exceeded() -> Error {
    Error::new(ErrorCode::DeadlineExceeded, "the statement did not end before its deadline")
        .hint("allow more time, or ask for less")
}

struct QueryStream {
    schema: SchemaRef,
    receiver: mpsc::Receiver<Message>,
    ended: bool,
    run: Arc<QueryRun>,
    _task: AbortOnDrop<()>,
}

impl Stream for QueryStream {
    type Item = Result<RecordBatch, DataFusionError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let Poll::Ready(message) = self.receiver.poll_recv(context) else {
            return Poll::Pending;
        };
        let error = match message {
            Some(Message::Batch(batch)) => {
                self.run.add_rows(batch.num_rows() as u64);
                return Poll::Ready(Some(Ok(batch)));
            }
            Some(Message::Done) => None,
            Some(Message::Failed(error)) => Some(error),
            None => Some(stopped()),
        };
        self.ended = true;
        match error {
            None => {
                self.run.finish();
                Poll::Ready(None)
            }
            Some(error) => {
                self.run.fail(&error);
                Poll::Ready(Some(Err(error.into())))
            }
        }
    }
}

impl RecordBatchStream for QueryStream {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}

/// A stream of batches that are there already.
pub(crate) fn one_batch(schema: SchemaRef, batches: Vec<RecordBatch>) -> SendableRecordBatchStream {
    Box::pin(RecordBatchStreamAdapter::new(schema, futures::stream::iter(batches.into_iter().map(Ok))))
}
