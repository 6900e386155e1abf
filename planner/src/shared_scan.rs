//! What a scan gives, for several places of a plan: it runs once, and what it gave is kept for the others.
//!
//! A view that a query names twice is planned twice, and so are its scans. What they give is kept in memory, which is
//! why only scans are shared of which little comes back.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use aubade_proto::{Error, Result};
use datafusion::common::utils::memory::get_record_batch_memory_size;
use datafusion::error::{DataFusionError, Result as PlanResult};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::future::{BoxFuture, FutureExt, Shared};
use futures::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;

/// Holds what is kept.
pub(crate) const CONSUMER: &str = "rows of a shared scan";
/// Bytes of one partition that are kept: what is larger is read once for each place.
const KEPT_BYTES_MAX: usize = 32 << 20;

type Reading = Shared<BoxFuture<'static, Result<Option<Arc<Kept>>>>>;

/// All that a partition gave.
struct Kept {
    batches: Vec<RecordBatch>,
    /// Given back with the batches.
    _reservation: MemoryReservation,
}

/// See the module's doc.
pub(crate) struct SharedScan {
    /// The first reader of a partition starts it; whoever waits for it drives it, so that none depends on another.
    partitions: Vec<Mutex<Option<Reading>>>,
    readers: usize,
}

impl fmt::Debug for SharedScan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedScan").field("readers", &self.readers).finish_non_exhaustive()
    }
}

impl SharedScan {
    /// For a scan of so many partitions that `readers` places of a plan read.
    pub(crate) fn new(partition_count: usize, readers: usize) -> Self {
        Self { partitions: (0..partition_count).map(|_| Mutex::default()).collect(), readers }
    }

    /// How many places of the plan read it.
    pub(crate) fn readers(&self) -> usize {
        self.readers
    }

    /// The rows of a partition, which `scan` reads for the first who asks, and again for each where they are too many
    /// to be kept.
    pub(crate) fn read<F>(
        &self,
        partition: usize,
        schema: SchemaRef,
        context: &TaskContext,
        scan: F,
    ) -> SendableRecordBatchStream
    where
        F: Fn() -> PlanResult<SendableRecordBatchStream> + Clone + Send + 'static,
    {
        let reservation = MemoryConsumer::new(CONSUMER).register(context.memory_pool());
        let first = scan.clone();
        let reading = self
            .partitions
            .get(partition)
            .map(|reading| reading.lock().get_or_insert_with(|| keep(first, reservation).boxed().shared()).clone());
        let rows = async move {
            let kept = match reading {
                Some(reading) => reading.await?,
                None => None,
            };
            match kept {
                Some(kept) => Ok(stream::iter(kept.batches.clone()).map(Ok).boxed()),
                None => Ok::<_, DataFusionError>(scan()?.boxed()),
            }
        };
        Box::pin(RecordBatchStreamAdapter::new(schema, stream::once(rows).try_flatten()))
    }
}

/// Reads all rows; `None` where they are too many.
async fn keep<F>(scan: F, reservation: MemoryReservation) -> Result<Option<Arc<Kept>>>
where
    F: Fn() -> PlanResult<SendableRecordBatchStream>,
{
    let mut rows = scan().map_err(Error::from_datafusion)?;
    let mut batches = Vec::new();
    while let Some(batch) = rows.try_next().await.map_err(Error::from_datafusion)? {
        let bytes = get_record_batch_memory_size(&batch);
        if reservation.size().saturating_add(bytes) > KEPT_BYTES_MAX || reservation.try_grow(bytes).is_err() {
            return Ok(None);
        }
        batches.push(batch);
    }
    Ok(Some(Arc::new(Kept { batches, _reservation: reservation })))
}
