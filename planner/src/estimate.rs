//! Statistics and equivalences of a fragment's output, as DataFusion's own operators derive them.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use aubade_proto::{Fragment, Reduction};
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{ColumnStatistics, Statistics, internal_datafusion_err};
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::execution_plan::{
    Boundedness, ChildrenPropertiesMode, EmissionType, ReplaceChildrenOptions,
};
use datafusion::physical_plan::filter::FilterExecBuilder;
use datafusion::physical_plan::projection::{ProjectionExec, ProjectionExpr};
use datafusion::physical_plan::statistics::{StatisticsArgs, StatisticsContext};
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};

use crate::scan_exec::ScanTarget;
use crate::selectivity::{Split, split};

/// What the optimiser is told of a scan's output.
#[derive(Debug)]
pub(crate) struct Estimate {
    pub(crate) statistics: Statistics,
    pub(crate) equivalence: EquivalenceProperties,
}

/// Of the columns that `schema` names, out of the statistics of the whole table.
pub(crate) fn scan_statistics(target: &ScanTarget, schema: &SchemaRef) -> Statistics {
    of_columns(&target.statistics, target, schema)
}

/// Of the columns that `schema` names, out of those of `table`.
fn of_columns(table: &Statistics, target: &ScanTarget, schema: &SchemaRef) -> Statistics {
    let column = |name: &String| {
        let index = target.table.schema.index_of(name).ok()?;
        table.column_statistics.get(index).cloned()
    };
    let columns =
        schema.fields().iter().map(|field| column(field.name()).unwrap_or_else(ColumnStatistics::new_unknown));
    let mut statistics = Statistics {
        num_rows: table.num_rows,
        total_byte_size: Precision::Absent,
        column_statistics: columns.collect(),
    };
    statistics.calculate_total_byte_size(schema);
    let sizes = statistics.column_statistics.iter().map(|column| column.byte_size);
    let sum = sizes.reduce(|sum, size| sum.add(&size)).unwrap_or(Precision::Absent);
    if sum != Precision::Absent {
        statistics.total_byte_size = sum;
    }
    statistics
}

/// Plans the fragment with DataFusion's own operators over a leaf that has nothing but statistics, and asks what they
/// know: so pushing a filter down changes no estimate. `whole` are the statistics of all columns of the table over the
/// segments of the scan, where the filter leaves none of their rows out.
pub(crate) fn estimate(
    target: &ScanTarget,
    fragment: &Fragment,
    selectivity: u8,
    rows_kept: u64,
    whole: Option<&Statistics>,
    partition_count: usize,
) -> Result<Estimate> {
    let scanned = of_columns(whole.unwrap_or(&target.statistics), target, fragment.scan_schema());
    let filter = fragment.filter().filter(|_| whole.is_none());
    let mut plan: Arc<dyn ExecutionPlan> = Arc::new(StatisticsLeaf::new(Arc::clone(fragment.scan_schema()), scanned));
    if let Some(filter) = filter {
        plan = filtered(filter, plan, selectivity)?;
    }
    let outputs = fragment
        .projection()
        .iter()
        .map(|column| ProjectionExpr { expr: Arc::clone(&column.expression), alias: column.name.clone() });
    plan = Arc::new(ProjectionExec::try_new(outputs.collect::<Vec<_>>(), plan)?);
    if let Some(reduction) = fragment.reduction() {
        plan = reduction.over(plan)?;
    }
    let statistics = StatisticsContext::new().compute(plan.as_ref(), &StatisticsArgs::new())?;
    let mut statistics = Arc::unwrap_or_clone(statistics);
    if filter.is_some() {
        statistics.num_rows = cap(statistics.num_rows, rows_kept);
    }
    if let Some(limit) = fragment.limit() {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX).saturating_mul(partition_count);
        statistics = statistics.with_fetch(Some(limit), 0, 1)?;
        if partition_count > 1 {
            // One partition may have fewer rows than its share of the limit.
            statistics = statistics.to_inexact();
        }
    }
    if fragment.reduction().is_some() {
        // Each segment is reduced by itself, or with others.
        statistics = statistics.to_inexact();
    }
    let mut equivalence = EquivalenceProperties::new(Arc::clone(fragment.output_schema()));
    if &plan.schema() == fragment.output_schema() && fragment.reduction().is_none_or(keeps_equalities) {
        equivalence = plan.properties().equivalence_properties().clone();
        if fragment.reduction().is_some() {
            // Reduced rows of several segments follow each other in no order. Which columns equal each other stays
            // true, and orders above may have been shortened by it.
            equivalence.clear_orderings();
        }
    }
    Ok(Estimate { statistics, equivalence })
}

/// `plan` with a filter above it: DataFusion's analysis where that understands it, and shares of our own elsewhere, of a
/// hundredth at least, as the operator counts in hundredths and products of many guesses would promise too much. Where the rest is nothing but
/// comparisons of two columns the operator analyses it after all, and our share is not asked for.
fn filtered(
    filter: &Arc<dyn PhysicalExpr>,
    plan: Arc<dyn ExecutionPlan>,
    selectivity: u8,
) -> Result<Arc<dyn ExecutionPlan>> {
    let rows = StatisticsContext::new().compute(plan.as_ref(), &StatisticsArgs::new())?;
    let Split { analysed, rest } = split(filter, &plan.schema(), &rows, f64::from(selectivity) / 100.0);
    let mut plan = plan;
    if let Some(analysed) = analysed {
        plan = Arc::new(FilterExecBuilder::new(analysed, plan).with_default_selectivity(selectivity).build()?);
    }
    if let Some((rest, share)) = rest {
        let hundredths = (share * 100.0).round().clamp(1.0, 100.0) as u8;
        plan = Arc::new(FilterExecBuilder::new(rest, plan).with_default_selectivity(hundredths).build()?);
    }
    Ok(plan)
}

/// Whether columns that equal each other before the reduction, or are constant, do so in the reduced rows of several
/// segments: not in the states of an aggregate of all rows, each of which is alone in its segment, nor where grouping
/// sets leave columns out.
fn keeps_equalities(reduction: &Reduction) -> bool {
    let aggregate = reduction.plan().downcast_ref::<AggregateExec>();
    aggregate.is_none_or(|aggregate| aggregate.group_expr().is_single() && !aggregate.group_expr().is_empty())
}

/// No more rows than the segments have that pruning kept; none at all is certain.
fn cap(rows: Precision<usize>, rows_kept: u64) -> Precision<usize> {
    let rows_kept = usize::try_from(rows_kept).unwrap_or(usize::MAX);
    match rows {
        _ if rows_kept == 0 => Precision::Exact(0),
        Precision::Exact(rows) if rows <= rows_kept => Precision::Exact(rows),
        Precision::Exact(_) | Precision::Absent => Precision::Inexact(rows_kept),
        Precision::Inexact(rows) => Precision::Inexact(rows.min(rows_kept)),
    }
}

/// A leaf with statistics and without rows.
#[derive(Debug)]
struct StatisticsLeaf {
    statistics: Arc<Statistics>,
    properties: Arc<PlanProperties>,
}

impl StatisticsLeaf {
    fn new(schema: SchemaRef, statistics: Statistics) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self { statistics: Arc::new(statistics), properties: Arc::new(properties) }
    }
}

impl DisplayAs for StatisticsLeaf {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StatisticsLeaf")
    }
}

impl ExecutionPlan for StatisticsLeaf {
    fn name(&self) -> &str {
        "StatisticsLeaf"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, _partition: usize, _context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        Err(internal_datafusion_err!("a leaf that has only statistics cannot run"))
    }

    fn statistics_from_inputs(&self, _inputs: &[Arc<Statistics>], _args: &StatisticsArgs) -> Result<Arc<Statistics>> {
        Ok(Arc::clone(&self.statistics))
    }
}
