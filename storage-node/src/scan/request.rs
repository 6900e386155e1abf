//! What the segment scans of one request share.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use aubade_environment::Clock;
use aubade_proto::{Error, Fragment, Result, SegmentId};
use datafusion::physical_expr::PhysicalExpr;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::columns::FileColumns;
use super::footer::Footer;
use super::output::RowLimit;
use super::plan::FragmentPlan;
use super::reduce::Reductions;
use super::results::{FragmentKey, FragmentResults, ResultCache};
use crate::cpu::{CpuPool, CpuUse};
use crate::decoded::DecodedSegment;
use crate::limits::{BATCH_ROWS_MAX, REDUCTION_BATCH_ROWS};

/// Schemas of segments that are remembered per request; a table has few over its life.
const SCHEMAS_MAX: usize = 8;

/// Memory of a scan is counted in units of this many bytes, since a semaphore counts in 32 bits.
const MEMORY_UNIT_BYTES: u64 = 1024;

/// A segment that a scan starts to read.
#[derive(Debug)]
pub(crate) struct OpenSegment {
    pub(crate) footer: Arc<Footer>,
    /// Bytes that were read to get the footer.
    pub(crate) footer_bytes_read: u64,
    /// Its columns, where those that the fragment reads are in memory.
    pub(crate) decoded: Option<DecodedSegment>,
}

/// Where a scan finds its segments.
pub(crate) trait SegmentSource: std::fmt::Debug + Send + Sync {
    /// What is needed to start reading a segment. Blocks.
    fn open(&self, id: SegmentId) -> Result<OpenSegment>;
    /// Takes note that a segment is corrupt. Blocks.
    fn quarantine(&self, id: SegmentId, reason: &Error);
}

/// What a node puts into every scan.
#[derive(Clone, Debug)]
pub(crate) struct ScanResources {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) cpu: Arc<CpuPool>,
    pub(crate) segments: Arc<dyn SegmentSource>,
    pub(crate) memory_bytes: usize,
    pub(crate) batch_rows: usize,
    /// `None`: no results are kept.
    pub(crate) results: Option<ResultCache>,
}

/// See the module's doc.
pub(crate) struct ScanContext {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) cpu: Arc<CpuPool>,
    /// Of this request.
    pub(crate) cpu_use: Arc<CpuUse>,
    pub(crate) segments: Arc<dyn SegmentSource>,
    pub(crate) plan: Arc<FragmentPlan>,
    pub(crate) limit: RowLimit,
    pub(crate) reductions: Option<Arc<Reductions>>,
    /// Of the whole fragment over single segments.
    pub(crate) results: Option<FragmentResults>,
    /// What a row has to pass to be among the first of an order, as the segments merged so far tell;
    /// over the projected columns.
    bound: Mutex<Option<Arc<dyn PhysicalExpr>>>,
    filter: Option<Arc<dyn PhysicalExpr>>,
    batch_rows: usize,
    memory: Arc<Semaphore>,
    memory_units: u32,
    columns: Mutex<Vec<(SchemaRef, Arc<FileColumns>)>>,
}

impl ScanContext {
    pub(crate) fn new(resources: ScanResources, fragment: &Fragment, batch_rows: usize) -> Result<Self> {
        let batch_rows = match fragment.reduction() {
            _ if batch_rows > 0 => batch_rows,
            Some(_) => REDUCTION_BATCH_ROWS,
            None => resources.batch_rows,
        };
        let batch_rows = batch_rows.clamp(1, BATCH_ROWS_MAX);
        let results = resources
            .results
            .as_ref()
            .and_then(|cache| FragmentKey::of(fragment, batch_rows).map(|key| FragmentResults::new(cache, key)));
        let reductions = fragment.reduction().cloned().map(|reduction| Reductions::new(reduction, batch_rows));
        let memory_units = u32::try_from(resources.memory_bytes as u64 / MEMORY_UNIT_BYTES).unwrap_or(u32::MAX);
        let memory_units = memory_units.clamp(1, u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX));
        Ok(Self {
            clock: resources.clock,
            cpu: resources.cpu,
            cpu_use: Arc::default(),
            segments: resources.segments,
            plan: Arc::new(FragmentPlan::new(fragment)?),
            limit: RowLimit::new(fragment.limit()),
            reductions: reductions.transpose()?.map(Arc::new),
            results,
            bound: Mutex::default(),
            filter: fragment.filter().cloned(),
            batch_rows,
            memory: Arc::new(Semaphore::new(memory_units as usize)),
            memory_units,
            columns: Mutex::default(),
        })
    }

    /// Rows per batch of the output: no more than the limit wants, so that it is met at once.
    pub(crate) fn output_batch_rows(&self, skip_rows: u64) -> usize {
        let wanted = self.limit.remaining().map_or(u64::MAX, |rows| rows.saturating_add(skip_rows));
        self.batch_rows.min(usize::try_from(wanted).unwrap_or(usize::MAX)).max(1)
    }

    /// Rows per decoded batch: as many as are sent, unless a filter will drop most of them.
    pub(crate) fn decode_batch_rows(&self) -> usize {
        if self.filter.is_some() { self.batch_rows } else { self.output_batch_rows(0) }
    }

    /// Whether segments learn from one another which rows cannot be among the first of an order.
    pub(crate) fn shares_bound(&self) -> bool {
        self.reductions.as_ref().is_some_and(|reductions| reductions.shares_bound())
    }

    pub(crate) fn shared_bound(&self) -> Option<Arc<dyn PhysicalExpr>> {
        self.bound.lock().clone()
    }

    pub(crate) fn set_shared_bound(&self, bound: Option<Arc<dyn PhysicalExpr>>) {
        if bound.is_some() {
            *self.bound.lock() = bound;
        }
    }

    /// Waits until `bytes` fit beside the other segments of the scan. One that is larger than the
    /// whole allowance runs alone.
    pub(crate) async fn reserve(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.memory).acquire_many_owned(self.units_of(bytes)).await.ok()
    }

    /// The same without waiting; `None` where it has to be waited for.
    pub(crate) fn try_reserve(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.memory).try_acquire_many_owned(self.units_of(bytes)).ok()
    }

    fn units_of(&self, bytes: u64) -> u32 {
        u32::try_from(bytes / MEMORY_UNIT_BYTES).unwrap_or(u32::MAX).clamp(1, self.memory_units)
    }

    /// How segments with the schema of this one serve the fragment.
    pub(crate) fn columns_of(&self, footer: &Footer) -> Arc<FileColumns> {
        let mut known = self.columns.lock();
        if let Some((_, columns)) = known.iter().find(|(schema, _)| schema == footer.schema()) {
            return Arc::clone(columns);
        }
        let columns = FileColumns::new(&self.plan.scan_schema, self.filter.as_ref(), footer.schema(), &footer.metadata);
        let columns = Arc::new(columns);
        if known.len() >= SCHEMAS_MAX {
            known.remove(0);
        }
        known.push((Arc::clone(footer.schema()), Arc::clone(&columns)));
        columns
    }
}
