//! The keys of a hash join's build side, collected while they pass by, for the scans of its probe
//! side.
//!
//! DataFusion gives a scan the bounds of these keys, and a list of them only where they are few:
//! what it has beyond that is its hash table, which cannot be sent to a storage node. So the keys
//! are looked at on their way into the join:
//! ```text
//! HashJoinExec
//!   JoinKeysExec           notes the keys of each batch ------+
//!     build side                                              |  JoinKeys
//!   ... probe side ...                                        v
//!     StorageScanExec      asks when it starts: bounds, list, bitmap or Bloom filter
//! ```

use std::collections::BTreeSet;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use arrow::array::{Array, ArrayRef};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::record_batch::RecordBatch;
use aubade_proto::{KeySet, Membership};
use datafusion::common::Statistics;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream, TaskContext};
use datafusion::functions_aggregate::min_max::{MaxAccumulator, MinAccumulator};
use datafusion::logical_expr::{Accumulator, Operator};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{BinaryExpr, in_list, lit};
use datafusion::physical_plan::execution_plan::{CardinalityEffect, ReplaceChildrenOptions, apply_expression_roots};
use datafusion::physical_plan::statistics::{ChildStats, StatisticsArgs};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties};
use datafusion::scalar::ScalarValue;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;

use crate::pass_through::{has_properties_of, only_child, passes_through};
use crate::scan_exec::StorageScanExec;

/// Keys that are sent as a list, which prunes by statistics and Bloom filters of segments as well.
const LIST_KEYS_MAX: usize = 64;
/// Keys, repeated ones included, above which no list is tried for.
const LIST_ROWS_MAX: usize = 4_096;
/// Bytes of all keys of a join, above which none are kept: they are held until a scan asks, and a set
/// of so many would be too large to send.
const KEYS_BYTES_MAX: usize = 128 << 20;
/// Bytes of all keys of a list, and of a bound: texts can be long, and a request has room for both.
const LIST_BYTES_MAX: usize = 64 << 10;

/// A conjunct, and the bytes of the set of keys in it.
pub(crate) type SizedFilter = (Arc<dyn PhysicalExpr>, usize);

/// What is known of one key column.
#[derive(Debug)]
struct Keys {
    data_type: DataType,
    /// The smallest and the largest; `None` where there are none, or they are long.
    bounds: Option<(ScalarValue, ScalarValue)>,
    /// All of them, if they are few.
    list: Option<Vec<ScalarValue>>,
    set: Option<(KeySet, usize)>,
}

impl Keys {
    fn of(data_type: DataType, arrays: &[ArrayRef]) -> Result<Self> {
        if !KeySet::supports(&data_type) {
            // Such as floats, of which not all equal values have the same bytes.
            return Ok(Self { data_type, bounds: None, list: None, set: None });
        }
        let bounds = bounds(&data_type, arrays)?;
        let list = list(arrays)?;
        let set = if list.is_some() { None } else { KeySet::build(arrays)? };
        let set = set.map(|set| {
            let bytes = set_bytes(&set, arrays);
            (set, bytes)
        });
        Ok(Self { data_type, bounds, list, set })
    }

    fn filters(&self, probe: &Arc<dyn PhysicalExpr>, schema: &SchemaRef) -> Result<Vec<SizedFilter>> {
        let mut filters: Vec<SizedFilter> = Vec::new();
        if probe.data_type(schema)? != self.data_type {
            return Ok(filters);
        }
        if let Some((min, max)) = &self.bounds {
            let compare = |operator, bound: &ScalarValue| {
                Arc::new(BinaryExpr::new(Arc::clone(probe), operator, lit(bound.clone()))) as Arc<dyn PhysicalExpr>
            };
            filters.push((compare(Operator::GtEq, min), 0));
            filters.push((compare(Operator::LtEq, max), 0));
        }
        if let Some(list) = &self.list {
            let values = list.iter().map(|value| lit(value.clone())).collect();
            filters.push((in_list(Arc::clone(probe), values, &false, schema)?, 0));
        }
        if let Some((set, bytes)) = &self.set {
            filters.push((Arc::new(Membership::new(Arc::clone(probe), set.clone())), *bytes));
        }
        Ok(filters)
    }
}

/// About what a set takes in a request.
fn set_bytes(set: &KeySet, arrays: &[ArrayRef]) -> usize {
    match set {
        KeySet::Bitmap { bits, .. } => bits.len().div_ceil(8),
        // Ten bits per key, rounded up.
        KeySet::Bloom(_) => {
            let keys: usize = arrays.iter().map(|array| array.len()).sum();
            (keys.saturating_mul(5) / 4).checked_next_power_of_two().unwrap_or(usize::MAX)
        }
    }
}

/// The smallest and the largest key.
fn bounds(data_type: &DataType, arrays: &[ArrayRef]) -> Result<Option<(ScalarValue, ScalarValue)>> {
    let mut min = MinAccumulator::try_new(data_type)?;
    let mut max = MaxAccumulator::try_new(data_type)?;
    for array in arrays {
        min.update_batch(std::slice::from_ref(array))?;
        max.update_batch(std::slice::from_ref(array))?;
    }
    let (min, max) = (min.evaluate()?, max.evaluate()?);
    let short = min.size().saturating_add(max.size()) <= LIST_BYTES_MAX;
    Ok((short && !min.is_null() && !max.is_null()).then_some((min, max)))
}

/// The distinct keys, if they are few.
fn list(arrays: &[ArrayRef]) -> Result<Option<Vec<ScalarValue>>> {
    if arrays.iter().map(|array| array.len()).sum::<usize>() > LIST_ROWS_MAX {
        return Ok(None);
    }
    let mut seen = std::collections::HashSet::new();
    let mut values = Vec::new();
    let mut bytes = 0_usize;
    for array in arrays {
        for index in (0..array.len()).filter(|index| array.is_valid(*index)) {
            let value = ScalarValue::try_from_array(array, index)?;
            if seen.insert(value.clone()) {
                bytes = bytes.saturating_add(value.size());
                values.push(value);
            }
            if values.len() > LIST_KEYS_MAX || bytes > LIST_BYTES_MAX {
                return Ok(None);
            }
        }
    }
    Ok(Some(values))
}

#[derive(Debug)]
struct Collected {
    /// Partitions whose build side has not ended.
    open: BTreeSet<usize>,
    /// For every key column the keys so far; `None` once they were too many.
    keys: Option<Vec<Vec<ArrayRef>>>,
    bytes: usize,
}

/// The keys of one join's build side. Known once every partition of it has ended.
#[derive(Debug)]
pub(crate) struct JoinKeys {
    expressions: Vec<Arc<dyn PhysicalExpr>>,
    collected: Mutex<Collected>,
    /// Made by the first scan that asks.
    known: OnceLock<Option<Vec<Keys>>>,
    types: Vec<DataType>,
}

impl JoinKeys {
    pub(crate) fn try_new(expressions: Vec<Arc<dyn PhysicalExpr>>, build: &Arc<dyn ExecutionPlan>) -> Result<Self> {
        let schema = build.schema();
        let types = expressions.iter().map(|key| key.data_type(&schema)).collect::<Result<Vec<_>>>()?;
        let collected = Collected {
            open: (0..build.output_partitioning().partition_count()).collect(),
            keys: Some(vec![Vec::new(); expressions.len()]),
            bytes: 0,
        };
        Ok(Self { expressions, collected: Mutex::new(collected), known: OnceLock::new(), types })
    }

    /// Whether all keys have been seen.
    pub(crate) fn are_known(&self) -> bool {
        self.known.get().is_some() || self.collected.lock().open.is_empty()
    }

    /// Conjuncts over `probe`, the other side of the join's keys, that all rows with a partner pass.
    /// None while keys are still to come.
    pub(crate) fn filters(&self, probe: &[Arc<dyn PhysicalExpr>], schema: &SchemaRef) -> Vec<SizedFilter> {
        if !self.are_known() || probe.len() != self.expressions.len() {
            return Vec::new();
        }
        let Some(known) = self.known.get_or_init(|| self.finish()) else { return Vec::new() };
        let filters = known.iter().zip(probe).map(|(keys, probe)| keys.filters(probe, schema));
        match filters.collect::<Result<Vec<_>>>() {
            Ok(filters) => filters.into_iter().flatten().collect(),
            Err(error) => {
                tracing::debug!(%error, "the keys of a join cannot be used as a filter");
                Vec::new()
            }
        }
    }

    fn finish(&self) -> Option<Vec<Keys>> {
        let collected = self.collected.lock().keys.take()?;
        let keys = self.types.iter().zip(collected).map(|(data_type, arrays)| Keys::of(data_type.clone(), &arrays));
        match keys.collect::<Result<Vec<_>>>() {
            Ok(keys) => Some(keys),
            Err(error) => {
                tracing::debug!(%error, "the keys of a join cannot be used as a filter");
                None
            }
        }
    }

    fn note(&self, batch: &RecordBatch) -> Result<()> {
        let keys = self.expressions.iter().map(|key| key.evaluate(batch)?.into_array(batch.num_rows()));
        let keys = keys.collect::<Result<Vec<_>>>()?;
        let bytes = keys.iter().map(|keys| keys.to_data().get_slice_memory_size().unwrap_or(usize::MAX));
        let bytes = bytes.fold(0, usize::saturating_add);
        let mut collected = self.collected.lock();
        collected.bytes = collected.bytes.saturating_add(bytes);
        if collected.bytes > KEYS_BYTES_MAX {
            collected.keys = None;
        }
        for (all, keys) in collected.keys.iter_mut().flatten().zip(keys) {
            all.push(keys);
        }
        Ok(())
    }

    fn end(&self, partition: usize) {
        self.collected.lock().open.remove(&partition);
    }
}

/// Passes batches on and notes their keys. See the module's doc.
#[derive(Debug)]
pub(crate) struct JoinKeysExec {
    input: Arc<dyn ExecutionPlan>,
    keys: Arc<JoinKeys>,
}

impl JoinKeysExec {
    pub(crate) fn new(input: Arc<dyn ExecutionPlan>, keys: Arc<JoinKeys>) -> Self {
        Self { input, keys }
    }

    /// What it notes.
    pub(crate) fn keys(&self) -> &Arc<JoinKeys> {
        &self.keys
    }
}

impl DisplayAs for JoinKeysExec {
    fn fmt_as(&self, format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<_> = self.keys.expressions.iter().map(ToString::to_string).collect();
        match format {
            DisplayFormatType::Default | DisplayFormatType::Verbose => {
                write!(f, "JoinKeysExec: keys=[{}]", keys.join(", "))
            }
            DisplayFormatType::TreeRender => writeln!(f, "keys={}", keys.join(", ")),
        }
    }
}

impl ExecutionPlan for JoinKeysExec {
    fn name(&self) -> &str {
        "JoinKeysExec"
    }

    has_properties_of!(input);

    passes_through!(input);

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        apply_expression_roots(self.keys.expressions.iter(), f)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input = only_child(self.name(), children)?;
        Ok(Arc::new(Self { input, keys: Arc::clone(&self.keys) }))
    }

    fn reset_state(self: Arc<Self>) -> Result<Arc<dyn ExecutionPlan>> {
        // The next run has other keys, and its scans have forgotten these: see `StorageScanExec`.
        Ok(Arc::clone(&self.input))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = match waits_for_keys(&self.input)? {
            true => when_polled(Arc::clone(&self.input), partition, context),
            false => self.input.execute(partition, context)?,
        };
        Ok(Box::pin(KeysStream { input, keys: Arc::clone(&self.keys), partition }))
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::Equal
    }
}

/// Whether scans of a build side have filters themselves that become known while the query runs.
fn waits_for_keys(build: &Arc<dyn ExecutionPlan>) -> Result<bool> {
    build.exists(|node| {
        Ok(node.downcast_ref::<StorageScanExec>().is_some_and(|scan| !scan.runtime_filters().is_empty()))
    })
}

/// A partition of a plan that is not begun before somebody asks for its rows. A join is begun with its build side, and
/// an operator that gathers partitions starts them at once: their scans would ask for rows before the joins above have
/// the keys that rule these out.
fn when_polled(plan: Arc<dyn ExecutionPlan>, partition: usize, context: Arc<TaskContext>) -> SendableRecordBatchStream {
    let schema = plan.schema();
    let batches = stream::once(async move { plan.execute(partition, context) }).try_flatten();
    Box::pin(RecordBatchStreamAdapter::new(schema, batches))
}

struct KeysStream {
    input: SendableRecordBatchStream,
    keys: Arc<JoinKeys>,
    partition: usize,
}

impl Stream for KeysStream {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(self.input.poll_next_unpin(context));
        Poll::Ready(match next {
            // An input that fails or is dropped never ends: then the keys stay unknown.
            Some(Ok(batch)) => Some(self.keys.note(&batch).map(|()| batch)),
            Some(Err(error)) => Some(Err(error)),
            None => {
                self.keys.end(self.partition);
                None
            }
        })
    }
}

impl RecordBatchStream for KeysStream {
    fn schema(&self) -> SchemaRef {
        self.input.schema()
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, Int64Array};
    use arrow::datatypes::{Field, Schema};
    use datafusion::physical_expr::expressions::col;
    use datafusion::physical_expr::utils::conjunction;
    use datafusion::physical_plan::empty::EmptyExec;

    use super::*;

    fn passes(build: Vec<Option<i64>>, probe: Vec<Option<i64>>) -> (Vec<bool>, usize) {
        let schema: SchemaRef = Arc::new(Schema::new(vec![Field::new("k", DataType::Int64, true)]));
        let key = col("k", &schema).unwrap();
        let plan: Arc<dyn ExecutionPlan> = Arc::new(EmptyExec::new(Arc::clone(&schema)));
        let keys = JoinKeys::try_new(vec![Arc::clone(&key)], &plan).unwrap();
        let batch = |keys| RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(Int64Array::from(keys))]).unwrap();
        keys.note(&batch(build)).unwrap();
        assert!(keys.filters(std::slice::from_ref(&key), &schema).is_empty(), "not known before the end");
        keys.end(0);
        let filters: Vec<_> = keys.filters(&[key], &schema).into_iter().map(|(filter, _)| filter).collect();
        let count = filters.len();
        let probe = batch(probe);
        let passed = conjunction(filters).evaluate(&probe).unwrap().into_array(probe.num_rows()).unwrap();
        (passed.as_boolean().iter().map(|passed| passed.unwrap_or(false)).collect(), count)
    }

    #[test]
    fn few_keys_are_a_list_and_many_a_set() {
        let few = passes(vec![Some(3), None, Some(900), Some(3)], vec![Some(3), Some(4), None, Some(900), Some(901)]);
        assert_eq!(few, (vec![true, false, false, true, false], 3));
        let even = (0..10_000).map(|key| Some(key * 2)).collect();
        let many = passes(even, vec![Some(7), Some(8), None, Some(19_998), Some(20_000)]);
        assert_eq!(many, (vec![false, true, false, true, false], 3));
    }

    #[test]
    fn too_many_keys_are_not_kept() {
        let schema: SchemaRef = Arc::new(Schema::new(vec![Field::new("k", DataType::Int64, true)]));
        let key = col("k", &schema).unwrap();
        let plan: Arc<dyn ExecutionPlan> = Arc::new(EmptyExec::new(Arc::clone(&schema)));
        let keys = JoinKeys::try_new(vec![Arc::clone(&key)], &plan).unwrap();
        // The same memory again and again counts each time, as other batches would.
        let array: ArrayRef = Arc::new(Int64Array::from_iter_values(0..1 << 20));
        let batch = RecordBatch::try_new(Arc::clone(&schema), vec![array]).unwrap();
        for _ in 0..=KEYS_BYTES_MAX / (8 << 20) {
            keys.note(&batch).unwrap();
        }
        assert!(keys.collected.lock().keys.is_none());
        keys.end(0);
        assert!(keys.filters(&[key], &schema).is_empty());
    }

    #[test]
    fn no_keys_let_nothing_pass() {
        assert_eq!(passes(vec![None], vec![Some(1), None]).0, [false, false]);
    }
}
