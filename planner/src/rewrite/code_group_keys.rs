//! The rule that groups joined rows by codes of what a scan gives.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::config::ConfigOptions;
use datafusion::common::internal_datafusion_err;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::Result;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode, PhysicalGroupBy};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::limit::{GlobalLimitExec, LocalLimitExec};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::statistics::{StatisticsArgs, StatisticsContext};
use datafusion::physical_plan::{ExecutionPlan, InputOrderMode, Partitioning};

use super::origin::{Between, column_of, origin, reads};
use crate::key_codes::{CodeKeysExec, DecodeKeysExec, Decoded, KeyCodes};
use crate::options::{Pushdown, pushdown};
use crate::scan_exec::StorageScanExec;

/// Keys of one scan below which what is grouped once gets no codes: it costs a hit of the plan cache more than a query has
/// of it.
const KEYS_MIN: usize = 2;
/// Rows that are grouped, by the statistics and once for each aggregate, for each row of the scan: below this, giving
/// codes costs about what it saves.
const GROUPED_ROWS_MIN: usize = 2;
/// Rows of a scan, by the statistics, above which its keys get no codes: joins may leave far fewer of them than is thought,
/// for which all would have been coded.
const CODED_ROWS_MAX: usize = 1 << 16;
/// The same for what is grouped twice.
const CODED_TWICE_ROWS_MAX: usize = 1 << 20;
/// Rows of the segments of a scan above which its keys get no codes: an estimate can be wrong, and keys are kept in memory.
const SCANNED_ROWS_MAX: u64 = 1 << 21;

/// Groups by a code for all keys that come from one scan through joins, where there are several and rows are many more
/// above the joins than below them, or where rows are grouped twice as for `count(DISTINCT ...)`. See [`crate::key_codes`].
///
/// It comes after the rules that move aggregates and joins to the storage nodes, which do not look through codes.
#[derive(Debug)]
pub struct CodeGroupKeys;

impl PhysicalOptimizerRule for CodeGroupKeys {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        if pushdown(config) == Pushdown::Off {
            return Ok(plan);
        }
        Ok(visit(&plan, true, &StatisticsContext::new())?.unwrap_or(plan))
    }

    fn name(&self) -> &str {
        "CodeGroupKeys"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// The plan with codes; `None` where there are none. `regroups`: nothing above relies on the partition that a row is in,
/// but that rows of one group are together. A join with another side that is partitioned by the keys does.
#[recursive::recursive]
fn visit(
    node: &Arc<dyn ExecutionPlan>,
    regroups: bool,
    statistics: &StatisticsContext,
) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    if regroups && let Some(coded) = coded(node, statistics)? {
        return Ok(Some(coded));
    }
    let regroups = is_exchange(node) || (regroups && is_indifferent(node));
    let mut changed = false;
    let children = node.children().into_iter().map(|child| {
        let coded = visit(child, regroups, statistics)?;
        changed |= coded.is_some();
        Ok(coded.unwrap_or_else(|| Arc::clone(child)))
    });
    let children = children.collect::<Result<Vec<_>>>()?;
    changed.then(|| replace_children_if_necessary(Arc::clone(node), children)).transpose()
}

/// Whether what an operator yields is in partitions of its own making.
fn is_exchange(node: &Arc<dyn ExecutionPlan>) -> bool {
    node.is::<RepartitionExec>() || node.is::<CoalescePartitionsExec>() || node.is::<SortPreservingMergeExec>()
}

/// Whether an operator asks no more of partitions than that groups are whole.
fn is_indifferent(node: &Arc<dyn ExecutionPlan>) -> bool {
    node.is::<AggregateExec>()
        || node.is::<CooperativeExec>()
        || node.is::<FilterExec>()
        || node.is::<GlobalLimitExec>()
        || node.is::<LocalLimitExec>()
        || node.is::<ProjectionExec>()
        || node.is::<SortExec>()
}

/// A partial aggregate, what brings its groups together, and the final aggregate.
struct Stage<'a> {
    partial: &'a AggregateExec,
    exchange: &'a Arc<dyn ExecutionPlan>,
    last: &'a AggregateExec,
}

impl<'a> Stage<'a> {
    fn of(node: &'a Arc<dyn ExecutionPlan>) -> Option<Self> {
        let last = node.downcast_ref::<AggregateExec>()?;
        if !matches!(last.mode(), AggregateMode::Final | AggregateMode::FinalPartitioned) {
            return None;
        }
        let exchange = last.input();
        let children = exchange.children();
        let [input] = children.as_slice() else { return None };
        let partial = input.downcast_ref::<AggregateExec>()?;
        let is_plain = |aggregate: &AggregateExec| {
            aggregate.group_expr().is_single()
                && aggregate.limit_options().is_none()
                && aggregate.dynamic_expressions_produced().is_empty()
                && matches!(aggregate.input_order_mode(), InputOrderMode::Linear)
                && !aggregate.aggr_expr().iter().any(|function| has_order(function))
        };
        let keys = partial.group_expr().expr().len();
        let by_place = |(place, key): (usize, &Arc<dyn PhysicalExpr>)| column_of(key) == Some(place);
        let brings_together = match exchange.downcast_ref::<RepartitionExec>().map(RepartitionExec::partitioning) {
            Some(Partitioning::Hash(by, _)) => by.len() == keys && by.iter().enumerate().all(by_place),
            Some(_) => false,
            None => exchange.is::<CoalescePartitionsExec>(),
        };
        let same_keys = last.group_expr().expr().iter().enumerate();
        let same_keys = same_keys.filter(|(place, (key, _))| column_of(key) == Some(*place)).count() == keys;
        let is_partial = *partial.mode() == AggregateMode::Partial;
        (is_partial
            && brings_together
            && same_keys
            && last.group_expr().expr().len() == keys
            && is_plain(partial)
            && is_plain(last))
        .then_some(Self { partial, exchange, last })
    }

    fn keys(&self) -> &[(Arc<dyn PhysicalExpr>, String)] {
        self.partial.group_expr().expr()
    }

    /// The column of the input that a key is, where nothing else reads it.
    fn column_of_key(&self, place: usize) -> Option<usize> {
        let column = column_of(&self.keys().get(place)?.0)?;
        let others =
            self.keys().iter().enumerate().filter(|(other, _)| *other != place).map(|(_, (key, _))| key.clone());
        let arguments = self.partial.aggr_expr().iter().flat_map(|function| function.expressions());
        let filters = self.partial.filter_expr().iter().flatten().cloned();
        let mut read = others.chain(arguments).chain(filters);
        read.all(|expression| !reads(&expression, column)).then_some(column)
    }
}

/// Whether an aggregate is over an order: it cannot be given other arguments, and the partial one may be told of another
/// order than the final one.
fn has_order(function: &AggregateFunctionExpr) -> bool {
    !function.order_bys().is_empty() || function.is_reversed()
}

/// Keys of the lowest stage that come from one scan.
struct ScanKeys {
    scan: Arc<dyn ExecutionPlan>,
    /// Their places among the keys, and in what the scan gives.
    keys: Vec<(usize, usize)>,
}

impl ScanKeys {
    /// Whether there is a key that costs more than its code.
    fn has_text(&self) -> bool {
        let schema = self.scan.schema();
        let is_text = |column: &usize| schema.fields().get(*column).is_some_and(|field| field.data_type().is_string());
        self.keys.iter().any(|(_, column)| is_text(column))
    }

    /// Rows of the segments that are scanned.
    fn rows_at_most(&self) -> u64 {
        let Some(scan) = self.scan.downcast_ref::<StorageScanExec>() else { return u64::MAX };
        let segments = scan.kept_segments().iter().filter_map(|index| scan.table().segments.get(*index));
        segments.map(|segment| segment.rows).fold(0, u64::saturating_add)
    }
}

/// The stages up to `node` with codes for keys; `None` where that is not worth it.
fn coded(node: &Arc<dyn ExecutionPlan>, statistics: &StatisticsContext) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let Some(upper) = Stage::of(node) else { return Ok(None) };
    let lower = Stage::of(upper.partial.input());
    let (lowest, above) = match &lower {
        Some(lower) => (lower, Some(&upper)),
        None => (&upper, None),
    };
    let mut sets: Vec<ScanKeys> = Vec::new();
    for place in 0..lowest.keys().len() {
        let Some(column) = lowest.column_of_key(place) else { continue };
        let Some((scan, column)) = origin(lowest.partial.input(), column, Between::HandOn) else { continue };
        match sets.iter_mut().find(|set| Arc::ptr_eq(&set.scan, scan)) {
            Some(set) => set.keys.push((place, column)),
            None => sets.push(ScanKeys { scan: Arc::clone(scan), keys: vec![(place, column)] }),
        }
    }
    let keys_min = if above.is_some() { 1 } else { KEYS_MIN };
    sets.retain(|set| set.keys.len() >= keys_min && set.has_text() && set.rows_at_most() <= SCANNED_ROWS_MAX);
    if let Some(above) = above {
        let is_key = |place: usize| (0..above.keys().len()).any(|key| above.column_of_key(key) == Some(place));
        sets.retain(|set| set.keys.iter().all(|(place, _)| is_key(*place)));
    }
    if sets.is_empty() {
        return Ok(None);
    }
    let (times, coded_max) = if above.is_some() { (2, CODED_TWICE_ROWS_MAX) } else { (1, CODED_ROWS_MAX) };
    // Where an estimate cannot be made, it is not worth it.
    let rows = |plan: &Arc<dyn ExecutionPlan>| {
        let statistics = statistics.compute(plan.as_ref(), &StatisticsArgs::new()).ok()?;
        statistics.num_rows.get_value().copied()
    };
    let Some(joined) = rows(lowest.partial.input()) else { return Ok(None) };
    let rows_max = coded_max.min(joined.saturating_mul(times) / GROUPED_ROWS_MIN);
    sets.retain(|set| rows(&set.scan).is_some_and(|rows| rows <= rows_max));
    if sets.is_empty() { Ok(None) } else { with_codes(node, lowest, above, &sets).map(Some) }
}

/// What a stage yields with codes in it.
struct CodedStage {
    plan: Arc<dyn ExecutionPlan>,
    /// Where the columns are that it would yield without.
    columns: Vec<Decoded>,
}

fn with_codes(
    node: &Arc<dyn ExecutionPlan>,
    lowest: &Stage<'_>,
    above: Option<&Stage<'_>>,
    sets: &[ScanKeys],
) -> Result<Arc<dyn ExecutionPlan>> {
    let codes = sets.iter().map(|set| {
        let columns = set.keys.iter().map(|(_, column)| *column).collect();
        KeyCodes::try_new(columns, &set.scan).map(Arc::new)
    });
    let codes: Vec<Arc<KeyCodes>> = codes.collect::<Result<_>>()?;
    let input = with_coded_scans(lowest.partial.input(), sets, &codes)?;
    let key_at = |place: usize| {
        sets.iter()
            .enumerate()
            .find_map(|(set, keys)| Some((set, keys.keys.iter().position(|(key, _)| *key == place)?)))
    };
    let mut coded = lowest.coded(input, &key_at, Ok)?;
    if let Some(above) = above {
        let (below, schema) = (coded.columns, coded.plan.schema());
        let key_at = |place: usize| match below.get(above.column_of_key(place)?)? {
            Decoded::Key { codes, key, .. } => Some((*codes, *key)),
            Decoded::Column(_) => None,
        };
        let moved = |expression: Arc<dyn PhysicalExpr>| moved(expression, &below, &schema);
        coded = above.coded(coded.plan, &key_at, moved)?;
    }
    Ok(Arc::new(DecodeKeysExec::new(coded.plan, codes, coded.columns, Arc::clone(node.properties()))))
}

#[recursive::recursive]
fn with_coded_scans(
    node: &Arc<dyn ExecutionPlan>,
    sets: &[ScanKeys],
    codes: &[Arc<KeyCodes>],
) -> Result<Arc<dyn ExecutionPlan>> {
    if let Some((_, codes)) = sets.iter().zip(codes).find(|(set, _)| Arc::ptr_eq(&set.scan, node)) {
        return Ok(Arc::new(CodeKeysExec::new(Arc::clone(node), Arc::clone(codes))));
    }
    let children = node.children().into_iter().map(|child| with_coded_scans(child, sets, codes));
    let children = children.collect::<Result<Vec<_>>>()?;
    if let (Some(projection), [input]) = (node.downcast_ref::<ProjectionExec>(), children.as_slice())
        && !Arc::ptr_eq(input, projection.input())
    {
        // With other children it would keep the types that it has.
        return Ok(Arc::new(ProjectionExec::try_new(projection.expr().to_vec(), Arc::clone(input))?));
    }
    replace_children_if_necessary(Arc::clone(node), children)
}

/// An expression over what a stage would yield, over what it yields with codes.
fn moved(expression: Arc<dyn PhysicalExpr>, columns: &[Decoded], schema: &SchemaRef) -> Result<Arc<dyn PhysicalExpr>> {
    let moved = expression.transform_up(|part| {
        let Some(column) = part.downcast_ref::<Column>() else { return Ok(Transformed::no(part)) };
        let place =
            columns.get(column.index()).map(|(Decoded::Column(place) | Decoded::Key { column: place, .. })| *place);
        let field = place.and_then(|place| Some((place, schema.fields().get(place)?)));
        let (place, field) = field.ok_or_else(|| internal_datafusion_err!("{column} has no place among codes"))?;
        Ok(Transformed::yes(Arc::new(Column::new(field.name(), place)) as Arc<dyn PhysicalExpr>))
    });
    moved.map(|moved| moved.data)
}

impl Stage<'_> {
    /// The stage over `input`, with one key for all those that `key_at` says are of one set. `moved` gives its expressions
    /// over the input.
    fn coded(
        &self,
        input: Arc<dyn ExecutionPlan>,
        key_at: &dyn Fn(usize) -> Option<(usize, usize)>,
        moved: impl Fn(Arc<dyn PhysicalExpr>) -> Result<Arc<dyn PhysicalExpr>>,
    ) -> Result<CodedStage> {
        let mut keys = Vec::new();
        // Of each set that was met, where its code is.
        let mut places: Vec<(usize, usize)> = Vec::new();
        let mut columns = Vec::new();
        for (place, (key, name)) in self.keys().iter().enumerate() {
            let set = key_at(place);
            let known = set.and_then(|(set, _)| places.iter().find(|(other, _)| *other == set));
            let column = known.map_or(keys.len(), |(_, place)| *place);
            if known.is_none() {
                places.extend(set.map(|(set, _)| (set, column)));
                keys.push((moved(Arc::clone(key))?, name.clone()));
            }
            columns.push(match set {
                Some((codes, key)) => Decoded::Key { codes, key, column },
                None => Decoded::Column(column),
            });
        }
        let count = keys.len();
        let results = self.last.schema().fields().len().saturating_sub(self.keys().len());
        columns.extend((count..count + results).map(Decoded::Column));
        let functions = self.partial.aggr_expr().iter().map(|function| {
            let arguments = function.expressions().into_iter().map(&moved).collect::<Result<_>>()?;
            let moved = function.with_new_expressions(arguments, Vec::new());
            moved.map(Arc::new).ok_or_else(|| internal_datafusion_err!("{} has other arguments", function.name()))
        });
        let functions = functions.collect::<Result<Vec<_>>>()?;
        let filters = self.partial.filter_expr().iter();
        let filters = filters.map(|filter| filter.clone().map(&moved).transpose()).collect::<Result<Vec<_>>>()?;
        let schema = input.schema();
        let again: Vec<(usize, String)> = keys.iter().map(|(_, name)| name.clone()).enumerate().collect();
        let by_place = |(place, name): &(usize, String)| Arc::new(Column::new(name, *place)) as Arc<dyn PhysicalExpr>;
        let partial = AggregateExec::try_new(
            AggregateMode::Partial,
            PhysicalGroupBy::new_single(keys),
            functions.clone(),
            filters,
            input,
            Arc::clone(&schema),
        )?;
        let partial: Arc<dyn ExecutionPlan> = Arc::new(partial);
        let exchange = match self.exchange.properties().output_partitioning() {
            Partitioning::Hash(_, partitions) => {
                let by = again.iter().map(by_place).collect();
                Arc::new(RepartitionExec::try_new(partial, Partitioning::Hash(by, *partitions))?)
            }
            _ => replace_children_if_necessary(Arc::clone(self.exchange), vec![partial])?,
        };
        let keys = again.iter().map(|key| (by_place(key), key.1.clone())).collect();
        let last = AggregateExec::try_new(
            *self.last.mode(),
            PhysicalGroupBy::new_single(keys),
            functions,
            self.last.filter_expr().to_vec(),
            exchange,
            schema,
        )?;
        Ok(CodedStage { plan: Arc::new(last), columns })
    }
}
