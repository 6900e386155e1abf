//! A partial aggregate on the coordinator whose states are kept for the next time: most often over joins that are not sent
//! to the storage nodes.

use std::fmt;
use std::sync::{Arc, OnceLock};

use arrow::record_batch::RecordBatch;
use aubade_proto::Reduction;
use datafusion::common::Statistics;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::execution_plan::ReplaceChildrenOptions;
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, MetricBuilder, MetricsSet};
use datafusion::physical_plan::statistics::{ChildStats, StatisticsArgs};
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, EmptyRecordBatchStream, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
};

use crate::embedded::storage_scans;
use crate::kept_results::Keeping;
use crate::pass_through::{has_no_expressions, has_properties_of, only_child, passes_through};
use crate::result_key::ResultKey;
use crate::scan_exec::StorageScanExec;

/// See the module's doc. Where the states are known, its input does not run, and they come from the first partition.
pub(crate) struct KeptStatesExec {
    input: Arc<dyn ExecutionPlan>,
    /// The input before later rules have put operators into it, which change nothing of what it yields: the states are
    /// found by this.
    named_by: Arc<dyn ExecutionPlan>,
    /// Of this run; made by the first partition.
    keeping: Arc<OnceLock<Option<Arc<Keeping>>>>,
    metrics: ExecutionPlanMetricsSet,
}

impl fmt::Debug for KeptStatesExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeptStatesExec").field("input", &self.input).finish_non_exhaustive()
    }
}

impl KeptStatesExec {
    /// For a partial aggregate, directly above which is an exchange: it has the properties of its input, but for the
    /// partition that a row is in.
    pub(crate) fn new(input: Arc<dyn ExecutionPlan>) -> Self {
        Self::named_by(Arc::clone(&input), input)
    }

    fn named_by(named_by: Arc<dyn ExecutionPlan>, input: Arc<dyn ExecutionPlan>) -> Self {
        Self { input, named_by, keeping: Arc::default(), metrics: ExecutionPlanMetricsSet::new() }
    }

    /// How the states are kept in this run, if they are.
    fn start(&self, context: &TaskContext) -> Option<Arc<Keeping>> {
        let config = context.session_config().options();
        let scans = storage_scans(&self.named_by);
        let store = scans.first()?.result_store(config)?;
        let key = ResultKey::of_plan(&self.named_by, config)?;
        let partitions = self.input.output_partitioning().partition_count();
        // They are a part of the key, too: of a join, what an append adds is not for its segments alone to say.
        let segments = scans.iter().flat_map(|scan| scan.segment_ids()).collect();
        let reduction = Reduction::aggregate(self.named_by.downcast_ref::<AggregateExec>()?).ok()?;
        let keeping = Keeping::new(store, key, segments, reduction, partitions, context.memory_pool());
        if let Some(kept) = keeping.whole() {
            scans.iter().for_each(StorageScanExec::count_all_kept);
            let rows = kept.batches.iter().map(RecordBatch::num_rows).sum();
            MetricBuilder::new(&self.metrics).global_counter("kept_rows").add(rows);
        }
        Some(Arc::new(keeping))
    }
}

impl DisplayAs for KeptStatesExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeptStatesExec")
    }
}

impl ExecutionPlan for KeptStatesExec {
    fn name(&self) -> &str {
        "KeptStatesExec"
    }

    has_properties_of!(input);

    passes_through!(input);

    has_no_expressions!();

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input = only_child(self.name(), children)?;
        Ok(Arc::new(Self::named_by(Arc::clone(&self.named_by), input)))
    }

    fn reset_state(self: Arc<Self>) -> Result<Arc<dyn ExecutionPlan>> {
        // What names the states belongs to one run: its scans hold filters of that.
        Ok(Arc::clone(&self.input))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let Some(keeping) = self.keeping.get_or_init(|| self.start(&context)) else {
            return self.input.execute(partition, context);
        };
        let states = match keeping.whole() {
            Some(_) => Box::pin(EmptyRecordBatchStream::new(self.schema())),
            None => self.input.execute(partition, Arc::clone(&context))?,
        };
        Ok(keeping.complete(partition, states, context))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}
