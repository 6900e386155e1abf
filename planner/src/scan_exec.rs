//! The leaf that stands for a fragment running at storage nodes.

mod run;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use aubade_catalog::Snapshot;
use aubade_catalog::snapshot::Table;
use aubade_proto::{Fragment, ProjectionColumn, Reduction, SegmentId};
use datafusion::common::config::ConfigOptions;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Statistics, internal_datafusion_err};
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::expressions::{BinaryExpr, Column, Literal};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr, conjunction, split_conjunction};
use datafusion::physical_plan::execution_plan::{
    Boundedness, CardinalityEffect, ChildrenPropertiesMode, EmissionType, ReplaceChildrenOptions, SchedulingType,
    apply_expression_roots,
};
use datafusion::physical_plan::filter_pushdown::{ChildPushdownResult, FilterPushdownPhase, FilterPushdownPropagation};
use datafusion::physical_plan::metrics::MetricsSet;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};

use crate::access::{NoAccess, TableAccess};
use crate::estimate::{Estimate, estimate};
use crate::explain;
use crate::join_keys::JoinKeys;
use crate::kept_results::Keeping;
use crate::options::{Pushdown, pushdown};
use crate::prune::{passes_whole, prune_segments, share_segments};
use crate::refusal::{NotPushed, Reason};
use crate::result_key::NamedFragment;
use crate::rewrite::Pushable;
use crate::rewrite::compose::{compose, substitute, substitute_outputs};
use crate::rewrite::push_reduction::before_reduction;
use crate::runtime_filter::RuntimeFilter;
use crate::scan_metrics::ScanMetrics;
use crate::shared_scan::SharedScan;
use crate::subquery_values::{fragment_needs_subquery, is_subquery, map_fragment};

/// What a scan is of, whatever its fragment.
#[derive(Clone, Debug)]
pub struct ScanTarget {
    /// What the query reads.
    pub snapshot: Arc<Snapshot>,
    /// The table.
    pub table: Arc<Table>,
    /// Who runs it.
    pub access: Arc<dyn TableAccess>,
    /// Of the whole table.
    pub statistics: Arc<Statistics>,
    /// Partitions at most.
    pub partitions_max: usize,
}

/// Which segments a scan reads.
#[derive(Debug)]
struct Segments {
    kept: Vec<usize>,
    /// `kept`, shared out over the partitions.
    shares: Vec<Vec<usize>>,
}

impl Segments {
    fn new(target: &ScanTarget, fragment: &Fragment) -> Self {
        let statistics = &target.table.statistics;
        let kept = prune_segments(statistics, fragment.scan_schema(), fragment.filter());
        let rows = |index: usize| target.table.segments.get(index).map_or(0, |segment| segment.rows);
        let shares = share_segments(&kept, rows, target.partitions_max);
        Self { kept, shares }
    }

    fn rows(&self, target: &ScanTarget, segments: &[usize]) -> u64 {
        segments.iter().filter_map(|index| target.table.segments.get(*index)).map(|segment| segment.rows).sum()
    }
}

/// A scan of one table's segments with all that was pushed into it.
///
/// Its output partitions are shares of the segments that statistics do not rule out. A limit of the fragment holds for
/// each partition, as DataFusion wants it of a leaf. Its expressions may need scalar subqueries, which run before the
/// scan begins: their values are put in then, and rule out segments once more.
#[derive(Clone)]
pub struct StorageScanExec {
    target: ScanTarget,
    fragment: Arc<NamedFragment>,
    /// Percent of rows that a filter is taken to pass when nothing better is known.
    selectivity: u8,
    segments: Arc<Segments>,
    statistics: Arc<Statistics>,
    not_pushed: Vec<NotPushed>,
    /// Over the fragment's scan schema.
    runtime_filters: Arc<[RuntimeFilter]>,
    /// What may be sent of them.
    pushable: Option<Arc<Pushable>>,
    /// What it gives to other places of the plan as well.
    shared: Option<Arc<SharedScan>>,
    /// Its runtime filters say no more than what it has sent itself.
    has_own_bound: bool,
    /// Of this run; made by the first partition, unless it is named by more than the fragment.
    keeping: Arc<OnceLock<Option<Arc<Keeping>>>>,
    metrics: ScanMetrics,
    /// Whether the segment counts are in `metrics` yet.
    counted: Arc<AtomicBool>,
    properties: Arc<PlanProperties>,
}

impl fmt::Debug for StorageScanExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StorageScanExec({})", explain::scan_line(self))
    }
}

impl StorageScanExec {
    /// A scan that runs `fragment` over `target`.
    ///
    /// # Errors
    /// When the expressions of the fragment do not fit its schema.
    pub fn try_new(target: ScanTarget, fragment: Fragment) -> Result<Self> {
        let segments = Arc::new(Segments::new(&target, &fragment));
        let selectivity = ConfigOptions::default().optimizer.default_filter_selectivity;
        Self::build(target, fragment, selectivity, segments, Vec::new())
    }

    fn build(
        target: ScanTarget,
        fragment: Fragment,
        selectivity: u8,
        segments: Arc<Segments>,
        not_pushed: Vec<NotPushed>,
    ) -> Result<Self> {
        let rows_kept = segments.rows(&target, &segments.kept);
        let partition_count = segments.shares.len();
        let Estimate { statistics, equivalence } =
            estimate(&target, &fragment, selectivity, rows_kept, None, partition_count)?;
        let partitioning = Partitioning::UnknownPartitioning(partition_count);
        let properties =
            PlanProperties::new(equivalence, partitioning, EmissionType::Incremental, Boundedness::Bounded)
                .with_scheduling_type(SchedulingType::Cooperative);
        Ok(Self {
            fragment: NamedFragment::new(target.table.id, fragment),
            target,
            selectivity,
            segments,
            statistics: Arc::new(statistics),
            not_pushed,
            runtime_filters: Arc::from([]),
            pushable: None,
            shared: None,
            has_own_bound: false,
            keeping: Arc::default(),
            metrics: ScanMetrics::new(),
            counted: Arc::default(),
            properties: Arc::new(properties),
        })
    }

    /// What the scan is of.
    pub fn target(&self) -> &ScanTarget {
        &self.target
    }

    /// What the query reads.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.target.snapshot
    }

    /// The table.
    pub fn table(&self) -> &Arc<Table> {
        &self.target.table
    }

    /// What runs at storage nodes.
    pub fn fragment(&self) -> &Arc<Fragment> {
        self.fragment.fragment()
    }

    /// The same with its name.
    pub(crate) fn named_fragment(&self) -> &NamedFragment {
        &self.fragment
    }

    /// Which column of the table an expression over the projected rows is, where it is nothing but one.
    pub(crate) fn table_column(&self, expression: &Arc<dyn PhysicalExpr>) -> Option<usize> {
        let read = &self.fragment.projection().get(expression.downcast_ref::<Column>()?.index())?.expression;
        let field = self.fragment.scan_schema().fields().get(read.downcast_ref::<Column>()?.index())?;
        self.target.table.schema.index_of(field.name()).ok()
    }

    /// Who runs it.
    pub fn access(&self) -> &Arc<dyn TableAccess> {
        &self.target.access
    }

    /// Its counters, also those of a run under way.
    pub fn scan_metrics(&self) -> &ScanMetrics {
        &self.metrics
    }

    /// Indices into the table's segments of those that statistics do not rule out.
    pub fn kept_segments(&self) -> &[usize] {
        &self.segments.kept
    }

    /// The segments that statistics do not rule out.
    pub(crate) fn segment_ids(&self) -> BTreeSet<SegmentId> {
        let segments = self.segments.kept.iter().filter_map(|index| self.target.table.segments.get(*index));
        segments.map(|segment| segment.id).collect()
    }

    /// What stays on the coordinator directly above this leaf, and why.
    pub fn not_pushed(&self) -> &[NotPushed] {
        &self.not_pushed
    }

    /// The filters that become known while the query runs.
    pub(crate) fn runtime_filters(&self) -> &[RuntimeFilter] {
        &self.runtime_filters
    }

    /// By which the operators are found that its runtime filters come from.
    pub(crate) fn runtime_filter_ids(&self) -> Vec<u64> {
        self.runtime_filters.iter().filter_map(RuntimeFilter::expression_id).collect()
    }

    /// The scan with the keys of the joins that its runtime filters come from.
    #[must_use]
    pub(crate) fn with_join_keys(&self, keys_of: &BTreeMap<u64, Arc<JoinKeys>>, pushable: &Arc<Pushable>) -> Self {
        let filters = self.runtime_filters.iter().map(|filter| {
            let keys = filter.expression_id().and_then(|id| keys_of.get(&id));
            keys.map_or_else(|| filter.clone(), |keys| filter.with_keys(Arc::clone(keys)))
        });
        Self { runtime_filters: filters.collect(), pushable: Some(Arc::clone(pushable)), ..self.clone() }
    }

    /// The scan for a join whose keys a column of its output has to be among; `None` where rows are not to be left out
    /// before something else has seen them.
    pub(crate) fn with_keys_for(
        &self,
        column: usize,
        keys: &Arc<JoinKeys>,
        pushable: &Arc<Pushable>,
    ) -> Result<Option<Self>> {
        let Some(field) = self.schema().fields().get(column).cloned() else { return Ok(None) };
        let column: Arc<dyn PhysicalExpr> = Arc::new(Column::new(field.name(), column));
        if self.fragment.limit().is_some() || self.fragment.reduction().is_some() || self.readers() > 1 {
            return Ok(None);
        }
        let column = substitute(&column, self.fragment.projection())?;
        let filters = self.runtime_filters.iter().cloned();
        let filters = filters.chain([RuntimeFilter::of_keys(vec![column], Arc::clone(keys))]);
        Ok(Some(Self { runtime_filters: filters.collect(), pushable: Some(Arc::clone(pushable)), ..self.clone() }))
    }

    /// The scan without a snapshot and without anyone who runs it, which would be kept alive.
    #[must_use]
    pub(crate) fn detached(&self) -> Self {
        let snapshot = Snapshot::empty(self.target.snapshot.cluster_id, self.target.snapshot.quorum);
        self.attached(&Arc::new(snapshot), &(Arc::new(NoAccess) as Arc<dyn TableAccess>))
    }

    /// A scan of its own for one run over `snapshot`, in which the table has the same segments.
    #[must_use]
    pub(crate) fn attached(&self, snapshot: &Arc<Snapshot>, access: &Arc<dyn TableAccess>) -> Self {
        let target = ScanTarget { snapshot: Arc::clone(snapshot), access: Arc::clone(access), ..self.target.clone() };
        let keeping = Arc::default();
        Self { target, keeping, metrics: ScanMetrics::new(), counted: Arc::default(), ..self.clone() }
    }

    /// The scan with what `map` makes of its expressions, which differ in nothing but the place where the results of their
    /// subqueries are.
    ///
    /// # Errors
    /// Those of `map`.
    pub(crate) fn with_other_subqueries(
        &self,
        map: impl Fn(&Arc<dyn PhysicalExpr>) -> Result<Arc<dyn PhysicalExpr>>,
    ) -> Result<Self> {
        if !fragment_needs_subquery(&self.fragment) {
            return Ok(self.clone());
        }
        let fragment = map_fragment(&self.fragment, |expression, _| map(expression))?;
        Ok(Self { fragment: NamedFragment::new(self.target.table.id, fragment), ..self.clone() })
    }

    /// The scan for one run with another filter over the same columns, in as many partitions, of which some may be
    /// empty; `None` where operators that were planned for this one need not do for that. `keeps_estimate`: as many rows
    /// are thought to pass it.
    ///
    /// # Errors
    /// When the filter does not fit.
    pub(crate) fn with_other_filter(
        &self,
        filter: &Arc<dyn PhysicalExpr>,
        keeps_estimate: bool,
    ) -> Result<Option<Self>> {
        let before = &self.fragment;
        let mut fragment = compose(before.scan_schema(), Some(filter), before.projection(), before.limit())?;
        if let Some(reduction) = before.reduction() {
            fragment = fragment.with_reduction(reduction.clone())?;
        }
        let mut segments = Segments::new(&self.target, &fragment);
        let partitions = self.segments.shares.len();
        if segments.shares.len() > partitions {
            return Ok(None);
        }
        // Which groups a condition on groups may leave out at storage depends on the segments that have rows of theirs.
        if before.reduction().is_some_and(|reduction| reduction.having().is_some())
            && segments.kept != self.segments.kept
        {
            return Ok(None);
        }
        segments.shares.resize_with(partitions, Vec::new);
        let segments = Arc::new(segments);
        if keeps_estimate {
            let fragment = NamedFragment::new(self.target.table.id, fragment);
            return Ok(Some(Self { fragment, segments, ..self.clone() }));
        }
        let scan = Self::build(self.target.clone(), fragment, self.selectivity, segments, self.not_pushed.clone())?;
        // Operators above see by these that they need not find out their own again.
        Ok(Some(Self { properties: Arc::clone(&self.properties), ..scan }))
    }

    /// Whether operators above can know no more of its rows than what its filter says for any value in the place of one
    /// that it compares a column with: neither that there are none, nor that a column has one value, unless the column
    /// has to be equal to one. A range may be of one value, and another one of more.
    ///
    /// # Errors
    /// When the filter does not fit.
    pub(crate) fn promises_no_more_than_filter(&self) -> Result<bool> {
        let (schema, filter) = (self.fragment.scan_schema(), self.fragment.filter());
        let Some(filter) = filter else { return Ok(true) };
        if self.statistics.num_rows.is_exact() == Some(true) {
            return Ok(false);
        }
        let columns = schema.fields().iter().enumerate().map(|(index, field)| ProjectionColumn {
            expression: Arc::new(Column::new(field.name(), index)),
            name: field.name().clone(),
        });
        let all = Fragment::try_new(Arc::clone(schema), Some(Arc::clone(filter)), columns.collect(), None)?;
        let rows_kept = self.segments.rows(&self.target, &self.segments.kept);
        let estimate = estimate(&self.target, &all, self.selectivity, rows_kept, None, self.segments.shares.len())?;
        let is_value = |expression: &Arc<dyn PhysicalExpr>| expression.is::<Literal>() || is_subquery(expression);
        let equal: Vec<_> = split_conjunction(filter)
            .into_iter()
            .filter_map(|conjunct| conjunct.downcast_ref::<BinaryExpr>())
            .filter(|binary| *binary.op() == Operator::Eq && (is_value(binary.left()) || is_value(binary.right())))
            .flat_map(|binary| [binary.left(), binary.right()])
            .collect();
        // The value itself is constant as well.
        let mut constants = estimate.equivalence.constants().into_iter().filter(|constant| !is_value(&constant.expr));
        Ok(constants.all(|constant| equal.contains(&&constant.expr)))
    }

    /// The scan with exact statistics, where its filter leaves out no row of the segments that it reads; `None` elsewhere.
    /// Only for an aggregate directly above that they may answer: any other plan has to do for other values of the filter.
    ///
    /// # Errors
    /// When the filter or the segments do not fit.
    pub(crate) fn with_exact_statistics(&self) -> Result<Option<Self>> {
        let (fragment, kept, statistics) = (&self.fragment, &self.segments.kept, &self.target.table.statistics);
        let Some(filter) = fragment.filter() else { return Ok(None) };
        let is_more = fragment.limit().is_some() || fragment.reduction().is_some();
        if is_more || kept.is_empty() || !passes_whole(statistics, fragment.scan_schema(), filter, kept) {
            return Ok(None);
        }
        let whole = statistics.of_segments(kept)?.to_datafusion();
        let rows_kept = self.segments.rows(&self.target, kept);
        let partitions = self.segments.shares.len();
        let exact = estimate(&self.target, fragment, self.selectivity, rows_kept, Some(&whole), partitions)?;
        Ok(Some(Self { statistics: Arc::new(exact.statistics), ..self.clone() }))
    }

    /// The scan as one that shares what it gives with others.
    #[must_use]
    pub(crate) fn with_shared(&self, shared: Arc<SharedScan>) -> Self {
        Self { shared: Some(shared), ..self.clone() }
    }

    /// How many places of the plan read what it gives.
    pub(crate) fn readers(&self) -> usize {
        self.shared.as_ref().map_or(1, |shared| shared.readers())
    }

    /// What the optimiser is told of its output.
    pub(crate) fn output_statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// The filter of an operator above as one over the columns that the fragment reads; `None` where
    /// it says nothing about single rows.
    fn runtime_filter(&self, filter: &Arc<dyn PhysicalExpr>) -> Result<Option<RuntimeFilter>> {
        if self.fragment.limit().is_some() {
            return Ok(None);
        }
        let Some(filter) = before_reduction(&self.fragment, filter)? else { return Ok(None) };
        Ok(RuntimeFilter::try_new(substitute(&filter, self.fragment.projection())?))
    }

    /// The same scan with a note on what stays above it.
    #[must_use]
    pub(crate) fn with_note(&self, note: NotPushed) -> Self {
        let mut scan = self.clone();
        if !scan.not_pushed.contains(&note) {
            scan.not_pushed.push(note);
        }
        scan
    }

    /// The same scan without its notes of one kind.
    #[must_use]
    pub(crate) fn without_notes(&self, reason: Reason) -> Self {
        let mut scan = self.clone();
        scan.not_pushed.retain(|note| note.refusal.reason != reason);
        scan
    }

    /// The scan for one run, whose rows are joined and aggregated at storage nodes. It counts into the same counters.
    /// `keeping`: how what is left of segments is kept, where that is known before the joins have run.
    ///
    /// # Errors
    /// When the reduction is over other columns.
    pub(crate) fn with_joins(&self, reduction: Reduction, keeping: Option<Keeping>) -> Result<Self> {
        let fragment = self.fragment.with_reduction(reduction)?;
        let (schema, before) = (Arc::clone(fragment.output_schema()), &self.properties);
        let equivalence = EquivalenceProperties::new(Arc::clone(&schema));
        let properties =
            PlanProperties::new(equivalence, before.partitioning.clone(), before.emission_type, before.boundedness)
                .with_scheduling_type(SchedulingType::Cooperative);
        let statistics = Arc::new(Statistics::new_unknown(&schema));
        let (fragment, properties) = (NamedFragment::new(self.target.table.id, fragment), Arc::new(properties));
        if let Some(keeping) = &keeping {
            self.count_kept(keeping);
        }
        let keeping = keeping.map(|keeping| OnceLock::from(Some(Arc::new(keeping)))).unwrap_or_default();
        Ok(Self { fragment, statistics, properties, keeping: Arc::new(keeping), ..self.clone() })
    }

    /// The scan of the first rows of an order, whose bound is of its own rows.
    #[must_use]
    pub(crate) fn with_own_bound(&self) -> Self {
        Self { has_own_bound: true, ..self.clone() }
    }

    /// The scan that is told nothing while it runs.
    #[must_use]
    pub(crate) fn without_runtime_filters(&self) -> Self {
        Self { runtime_filters: Arc::from([]), ..self.clone() }
    }

    /// The scan with `filters` (over the columns that the fragment reads) added to its filter. `selectivity` is a guess
    /// in percent.
    pub(crate) fn with_filters(&self, filters: Vec<Arc<dyn PhysicalExpr>>, selectivity: u8) -> Result<Self> {
        let all = self.fragment.filter().cloned().into_iter().chain(filters);
        let fragment = compose(
            self.fragment.scan_schema(),
            Some(&conjunction(all)),
            self.fragment.projection(),
            self.fragment.limit(),
        )?;
        let segments = Arc::new(Segments::new(&self.target, &fragment));
        Self::build(self.target.clone(), fragment, selectivity, segments, self.not_pushed.clone())
    }

    /// The scan with other output columns, over the columns that the fragment reads.
    pub(crate) fn with_projection(&self, projection: &[ProjectionColumn]) -> Result<Self> {
        let fragment = compose(self.fragment.scan_schema(), self.fragment.filter(), projection, self.fragment.limit())?;
        self.with_fragment(fragment)
    }

    /// The scan with only the output columns at `indices`, in this order.
    pub(crate) fn with_columns(&self, indices: &[usize]) -> Result<Self> {
        let projection = indices.iter().map(|index| {
            let column = self.fragment.projection().get(*index).cloned();
            column.ok_or_else(|| internal_datafusion_err!("the scan has no output column {index}"))
        });
        self.with_projection(&projection.collect::<Result<Vec<_>>>()?)
    }

    /// The scan of a fragment with the same filter.
    pub(crate) fn with_fragment(&self, fragment: Fragment) -> Result<Self> {
        let segments = Arc::clone(&self.segments);
        Self::build(self.target.clone(), fragment, self.selectivity, segments, self.not_pushed.clone())
    }

    /// The scan with `limit` rows at most from each partition, or fewer if it had a lower limit.
    pub(crate) fn with_limit(&self, limit: usize) -> Result<Self> {
        let limit = u64::try_from(limit).unwrap_or(u64::MAX);
        let limit = self.fragment.limit().map_or(limit, |before| before.min(limit));
        self.with_fragment(self.fragment.with_limit(Some(limit)))
    }

    fn partition_statistics_of(&self, partition: usize) -> Result<Statistics> {
        let share = self.segments.shares.get(partition);
        let share = share.ok_or_else(|| internal_datafusion_err!("the scan has no partition {partition}"))?;
        if self.segments.shares.len() == 1 {
            return Ok(self.statistics.as_ref().clone());
        }
        let rows = self.segments.rows(&self.target, share) as f64;
        let all = self.segments.rows(&self.target, &self.segments.kept).max(1) as f64;
        let mut statistics = self.statistics.as_ref().clone().to_inexact();
        statistics.num_rows = statistics.num_rows.with_estimated_selectivity(rows / all);
        statistics.total_byte_size = statistics.total_byte_size.with_estimated_selectivity(rows / all);
        if self.fragment.filter().is_none() && self.fragment.limit().is_none() {
            statistics.num_rows =
                Precision::Exact(usize::try_from(self.segments.rows(&self.target, share)).unwrap_or(usize::MAX));
        }
        Ok(statistics)
    }
}

impl DisplayAs for StorageScanExec {
    fn fmt_as(&self, format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match format {
            DisplayFormatType::Default => write!(f, "StorageScanExec: {}", explain::scan_line(self)),
            DisplayFormatType::Verbose => write!(f, "StorageScanExec: {}", explain::scan_line_verbose(self)),
            DisplayFormatType::TreeRender => explain::scan_tree(self, f),
        }
    }
}

impl ExecutionPlan for StorageScanExec {
    fn name(&self) -> &str {
        "StorageScanExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if children.is_empty() { Ok(self) } else { Err(internal_datafusion_err!("a scan has no children")) }
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        let projection = self.fragment.projection().iter().map(|column| &column.expression);
        // A join fills its filter only if it finds it below.
        let runtime = self.runtime_filters.iter().filter_map(RuntimeFilter::expression);
        apply_expression_roots(self.fragment.filter().into_iter().chain(projection).chain(runtime), f)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        self.run(partition, context)
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.metrics_set())
    }

    fn statistics_from_inputs(&self, _inputs: &[Arc<Statistics>], args: &StatisticsArgs) -> Result<Arc<Statistics>> {
        match args.partition() {
            None => Ok(Arc::clone(&self.statistics)),
            Some(partition) => self.partition_statistics_of(partition).map(Arc::new),
        }
    }

    fn reset_state(self: Arc<Self>) -> Result<Arc<dyn ExecutionPlan>> {
        // The operators above make filters of their own in the next run, which this scan does not hold.
        // Neither is what it has given that of the next run.
        let keeping = Arc::default();
        Ok(Arc::new(Self {
            runtime_filters: Arc::from([]),
            has_own_bound: false,
            shared: None,
            keeping,
            ..self.as_ref().clone()
        }))
    }

    fn handle_child_pushdown_result(
        &self,
        phase: FilterPushdownPhase,
        result: ChildPushdownResult,
        config: &ConfigOptions,
    ) -> Result<FilterPushdownPropagation<Arc<dyn ExecutionPlan>>> {
        // Filters that are known were pushed by `PushFragment`.
        if phase == FilterPushdownPhase::Pre || pushdown(config) == Pushdown::Off {
            return Ok(FilterPushdownPropagation::all_unsupported(result));
        }
        let mut filters = self.runtime_filters.to_vec();
        for parent in &result.parent_filters {
            filters.extend(self.runtime_filter(&parent.filter)?);
        }
        // They are best effort: the operators above look again.
        let propagation = FilterPushdownPropagation::all_unsupported(result);
        if filters.len() == self.runtime_filters.len() {
            return Ok(propagation);
        }
        let scan = Self { runtime_filters: filters.into(), ..self.clone() };
        Ok(propagation.with_updated_node(Arc::new(scan) as Arc<dyn ExecutionPlan>))
    }

    fn with_fetch(&self, limit: Option<usize>) -> Option<Arc<dyn ExecutionPlan>> {
        if self.fragment.reduction().is_some() {
            return None;
        }
        let limit = limit.map(|limit| u64::try_from(limit).unwrap_or(u64::MAX));
        let scan = self.with_fragment(self.fragment.with_limit(limit)).ok()?;
        Some(Arc::new(scan))
    }

    fn fetch(&self) -> Option<usize> {
        self.fragment.limit().map(|limit| usize::try_from(limit).unwrap_or(usize::MAX))
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::Unknown
    }

    fn try_swapping_with_projection(&self, projection: &ProjectionExec) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        // Later rules move projections down here. Those that compute something were weighed by `PushFragment` before.
        let mut seen = BTreeSet::new();
        let narrow = projection
            .expr()
            .iter()
            .all(|output| output.expr.downcast_ref::<Column>().is_some_and(|column| seen.insert(column.index())));
        if !narrow || self.fragment.reduction().is_some() {
            return Ok(None);
        }
        let scan = self.with_projection(&substitute_outputs(projection, self.fragment.projection())?)?;
        Ok((scan.schema() == projection.schema()).then(|| Arc::new(scan) as Arc<dyn ExecutionPlan>))
    }
}
