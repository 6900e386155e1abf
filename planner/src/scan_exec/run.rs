//! How a scan runs: which segments are asked for, what is kept of them and what was, and the stream of a partition.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use aubade_proto::{Error, Fragment, Reduction};
use datafusion::common::config::ConfigOptions;
use datafusion::common::internal_datafusion_err;
use datafusion::error::Result;
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::coop::make_cooperative;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{EmptyRecordBatchStream, ExecutionPlan};
use futures::{Stream, StreamExt};

use super::StorageScanExec;
use crate::access::ScanTask;
use crate::kept_results::{Keeping, KeptResult, ResultStore};
use crate::options::fragment_cache_enabled;
use crate::prune::{in_order_of, prune_segments};
use crate::result_key::ResultKey;
use crate::runtime_filter::RuntimeFragment;
use crate::scan_metrics::ScanMetrics;
use crate::subquery_values::{Resolved, resolve};

impl StorageScanExec {
    /// One partition.
    pub(super) fn run(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let segments = self.segments.shares.get(partition).cloned();
        let segments = segments.ok_or_else(|| internal_datafusion_err!("the scan has no partition {partition}"))?;
        self.count_segments();
        if partition == 0
            && let Some(totals) = self.totals_of_nothing(&context)?
        {
            let rows = totals.chain(self.scan(segments, partition, context)?);
            return Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)));
        }
        let Some(shared) = &self.shared else { return self.scan(segments, partition, context) };
        // Without what is shared, which would keep itself alive.
        let scan = Self { shared: None, ..self.clone() };
        let (schema, task) = (self.schema(), Arc::clone(&context));
        Ok(shared.read(partition, schema, &task, move || scan.scan(segments.clone(), partition, Arc::clone(&context))))
    }

    fn count_segments(&self) {
        // Ordering: the counters carry no other data, so that nothing needs to be seen with the flag.
        if !self.counted.swap(true, Ordering::Relaxed) {
            let total = self.target.table.segments.len();
            self.metrics.segments_total.add(total);
            self.metrics.segments_pruned.add(total.saturating_sub(self.segments.kept.len()));
        }
    }

    /// `segments` in the order in which they may have the first rows, where these are all that is wanted.
    fn in_order_of_first_rows(&self, segments: Vec<usize>) -> Vec<usize> {
        let sort = self.fragment.reduction().and_then(|reduction| reduction.plan().downcast_ref::<SortExec>());
        let first = sort.map(|sort| sort.expr().first());
        match first.and_then(|key| Some((self.table_column(&key.expr)?, key.options))) {
            Some((column, order)) => in_order_of(&self.target.table.statistics, column, order, segments),
            None => segments,
        }
    }

    /// What `reduction` leaves of all segments, if that is known and the scan need not add to it.
    pub(crate) fn kept_result(&self, keeping: &Keeping, reduction: &Reduction) -> Option<Arc<KeptResult>> {
        let result = keeping.whole().filter(|_| !has_grand_total(reduction))?;
        self.count_segments();
        self.count_kept(keeping);
        Some(Arc::clone(result))
    }

    /// Counts all segments as those whose result was kept.
    pub(crate) fn count_all_kept(&self) {
        self.count_segments();
        self.metrics.segments_scanned.add(self.segments.kept.len());
        self.metrics.segments_kept.add(self.segments.kept.len());
    }

    /// Where results are kept, if they are, by the settings of the session.
    pub(crate) fn result_store(&self, config: &ConfigOptions) -> Option<Arc<dyn ResultStore>> {
        fragment_cache_enabled(config).then(|| self.target.access.kept_results()).flatten()
    }

    /// How what `reduction` leaves is kept under `key` in one run.
    pub(crate) fn keeping_by(
        &self,
        store: Arc<dyn ResultStore>,
        key: ResultKey,
        reduction: &Reduction,
        context: &TaskContext,
    ) -> Keeping {
        let partitions = self.segments.shares.len();
        Keeping::new(store, key, self.segment_ids(), reduction.clone(), partitions, context.memory_pool())
    }

    /// How results are kept in this run, if they are.
    fn keeping(&self, context: &TaskContext) -> Option<Arc<Keeping>> {
        let start = || {
            let reduction = self.fragment.reduction()?;
            // What filters of this run leave out, another run may want.
            if !self.runtime_filters.is_empty() && !self.has_own_bound {
                return None;
            }
            let store = self.result_store(context.session_config().options())?;
            let keeping = self.keeping_by(store, self.fragment.key()?, reduction, context);
            self.count_kept(&keeping);
            Some(Arc::new(keeping))
        };
        self.keeping.get_or_init(start).clone()
    }

    pub(super) fn count_kept(&self, keeping: &Keeping) {
        let Some(kept) = keeping.kept() else { return };
        self.metrics.segments_scanned.add(kept.segments.len());
        self.metrics.segments_kept.add(kept.segments.len());
        self.metrics.output_rows.add(kept.batches.iter().map(RecordBatch::num_rows).sum());
    }

    /// The fragment with the values of subqueries, which have run by now, and those of `segments` that may have rows for
    /// it.
    fn resolved(&self, mut segments: Vec<usize>) -> Result<(Arc<Fragment>, Vec<usize>)> {
        let (fragment, kept) = match resolve(&self.fragment)? {
            None => return Ok((Arc::clone(self.fragment()), segments)),
            Some(Resolved::Nothing) => (Arc::clone(self.fragment()), Vec::new()),
            Some(Resolved::Fragment(fragment)) => {
                let statistics = &self.target.table.statistics;
                let kept = prune_segments(statistics, fragment.scan_schema(), fragment.filter());
                (Arc::new(fragment), kept)
            }
        };
        let planned = segments.len();
        segments.retain(|segment| kept.binary_search(segment).is_ok());
        self.metrics.segments_pruned_runtime.add(planned.saturating_sub(segments.len()));
        Ok((fragment, segments))
    }

    /// Runs the fragment on `segments`, the share of `partition`, but for those of which the result is kept.
    fn scan(
        &self,
        mut segments: Vec<usize>,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let Some(keeping) = self.keeping(&context) else { return self.scan_all(segments, partition, context) };
        segments.retain(|index| {
            let segment = self.target.table.segments.get(*index);
            !segment.is_some_and(|segment| keeping.covers(&segment.id))
        });
        Ok(keeping.complete(partition, self.scan_all(segments, partition, Arc::clone(&context))?, context))
    }

    /// Runs the fragment on `segments`.
    fn scan_all(
        &self,
        segments: Vec<usize>,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let schema = self.schema();
        let is_nothing = |segments: &Vec<usize>| segments.is_empty() || self.fragment.limit() == Some(0);
        if is_nothing(&segments) {
            return Ok(Box::pin(EmptyRecordBatchStream::new(schema)));
        }
        let (fragment, segments) = self.resolved(segments)?;
        let has_values = !Arc::ptr_eq(&fragment, self.fragment());
        if is_nothing(&segments) {
            return Ok(Box::pin(EmptyRecordBatchStream::new(schema)));
        }
        let task = ScanTask {
            snapshot: Arc::clone(&self.target.snapshot),
            table: Arc::clone(&self.target.table),
            segments: self.in_order_of_first_rows(segments),
            fragment: RuntimeFragment::new(
                fragment,
                Arc::clone(&self.runtime_filters),
                self.pushable.clone(),
                Arc::clone(context.session_config().options()),
            ),
            metrics: self.metrics.clone(),
            partition,
        };
        let inner = self.target.access.scan(task, context)?;
        let rows_left = self.fragment.limit().map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
        Ok(make_cooperative(Box::pin(ScanStream {
            schema,
            inner: Some(inner),
            rows_left,
            has_values,
            metrics: self.metrics.clone(),
        })))
    }

    /// What an aggregate with a grand total among its grouping sets makes of no rows: one row of states that change
    /// nothing where they are merged. Nodes that are asked nothing, since no segment is left, could not send it.
    fn totals_of_nothing(&self, context: &Arc<TaskContext>) -> Result<Option<SendableRecordBatchStream>> {
        let reduction = self.fragment.reduction().filter(|reduction| has_grand_total(reduction));
        let Some(reduction) = reduction else { return Ok(None) };
        let nothing = Arc::new(EmptyExec::new(reduction.input_schema()));
        reduction.over(nothing)?.execute(0, Arc::clone(context)).map(Some)
    }
}

/// Whether an aggregate has a grand total among its grouping sets.
fn has_grand_total(reduction: &Reduction) -> bool {
    reduction.plan().downcast_ref::<AggregateExec>().is_some_and(|aggregate| {
        let group = aggregate.group_expr();
        group.has_grouping_set() && group.groups().iter().any(|nulls| nulls.iter().all(|null| *null))
    })
}

/// One partition's batches: counts them, and ends at the limit whatever the access sends.
struct ScanStream {
    schema: SchemaRef,
    /// `None` after the end, so that the scan stops at once.
    inner: Option<SendableRecordBatchStream>,
    rows_left: Option<usize>,
    /// Values of subqueries were put in, which are null or not; before, they could be either.
    has_values: bool,
    metrics: ScanMetrics,
}

impl ScanStream {
    fn accept(&mut self, batch: RecordBatch) -> Result<RecordBatch> {
        if batch.num_columns() != self.schema.fields().len() {
            let message =
                format!("a scan sent {} columns instead of {}", batch.num_columns(), self.schema.fields().len());
            return Err(Error::internal(message).into());
        }
        let batch = match self.has_values {
            true => {
                let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
                RecordBatch::try_new_with_options(Arc::clone(&self.schema), batch.columns().to_vec(), &options)?
            }
            false => batch,
        };
        let batch = match self.rows_left {
            Some(rows_left) if batch.num_rows() >= rows_left => {
                self.inner = None;
                batch.slice(0, rows_left)
            }
            _ => batch,
        };
        self.rows_left = self.rows_left.map(|rows_left| rows_left.saturating_sub(batch.num_rows()));
        self.metrics.output_rows.add(batch.num_rows());
        Ok(batch)
    }
}

impl Stream for ScanStream {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let elapsed = self.metrics.elapsed_compute.clone();
        let _timer = elapsed.timer();
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        let next = ready!(Pin::new(inner).poll_next(context));
        let item = next.map(|batch| batch.and_then(|batch| self.accept(batch)));
        if !matches!(item, Some(Ok(_))) {
            self.inner = None;
        }
        Poll::Ready(item)
    }
}

impl RecordBatchStream for ScanStream {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}
