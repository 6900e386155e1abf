//! Partial aggregation of the rows of a segment, where finding their groups is cheaper than in DataFusion's operator,
//! which hashes and compares columns in several passes: few groups by short keys, and any number of groups by one
//! integer, which is looked up only once integers descend, or one is null. The states are those of DataFusion's
//! accumulators. Compare the perfect hash aggregate of DuckDB, which knows the keys from statistics, and streaming
//! aggregation over sorted input; here what comes decides, and DataFusion's operator goes on where neither fits.

mod few;
mod packed;

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions};
use arrow::compute::{concat, take};
use arrow::datatypes::{BinaryViewType, DataType, FieldRef, SchemaRef, StringViewType};
use aubade_proto::integer_groups::{IntegerGroups, first_rows, is_integer};
use aubade_proto::{Error, Reduction, Result};
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_plan::aggregates::AggregateExec;

use self::few::Table;
use super::packed::unpacked;
use crate::limits::{PLACES_MAX, SKIP_AGGREGATION_RATIO, SKIP_AGGREGATION_ROWS};

/// What is grouped and how, for each segment anew.
pub(super) struct GroupingPlan {
    keys: Vec<Arc<dyn PhysicalExpr>>,
    by_integer: bool,
    /// Whether all rows of a group have to come to one state.
    thorough: bool,
    functions: Vec<Arc<AggregateFunctionExpr>>,
    /// The FILTER clause of each.
    filters: Vec<Option<Arc<dyn PhysicalExpr>>>,
    /// Which columns of the input may be packed: texts that are keys and nothing else.
    takes_packed: Vec<bool>,
    schema: SchemaRef,
}

impl GroupingPlan {
    /// `None` where only DataFusion's operator will do.
    pub(super) fn of(reduction: &Reduction) -> Option<Self> {
        let aggregate = reduction.plan().downcast_ref::<AggregateExec>()?;
        let groups = aggregate.group_expr();
        let over_rows = aggregate.input().children().is_empty();
        if !over_rows || !groups.is_single() || groups.expr().is_empty() {
            return None;
        }
        let input = aggregate.input().schema();
        let keys: Vec<_> = groups.expr().iter().map(|(key, _)| Arc::clone(key)).collect();
        let by_integer =
            keys.len() == 1 && keys.iter().all(|key| key.data_type(&input).is_ok_and(|key| is_integer(&key)));
        // A condition on groups needs all rows of each in one state.
        let thorough = reduction.having().is_some();
        if thorough && !by_integer {
            return None;
        }
        let fits = |key: &Arc<dyn PhysicalExpr>| key.data_type(&input).is_ok_and(|data_type| fits(&data_type));
        let plain = |function: &AggregateFunctionExpr| {
            function.groups_accumulator_supported() && function.order_bys().is_empty()
        };
        if !keys.iter().all(fits) || !aggregate.aggr_expr().iter().all(|function| plain(function)) {
            return None;
        }
        let (functions, filters) = (aggregate.aggr_expr().to_vec(), aggregate.filter_expr().to_vec());
        let computed = keys.iter().filter(|key| !key.is::<Column>()).cloned();
        let computed = computed.chain(functions.iter().flat_map(|function| function.expressions()));
        let computed = computed.chain(filters.iter().flatten().cloned());
        let read: HashSet<usize> =
            computed.flat_map(|part| collect_columns(&part)).map(|column| column.index()).collect();
        let of_column = |(index, field): (usize, &FieldRef)| {
            // What a table takes a view of.
            field.data_type() == &DataType::Utf8View && !read.contains(&index)
        };
        let takes_packed = input.fields().iter().enumerate().map(of_column).collect();
        Some(Self { keys, by_integer, thorough, functions, filters, takes_packed, schema: reduction.schema() })
    }

    /// Which columns of the input may be packed.
    pub(super) fn takes_packed(&self) -> &[bool] {
        &self.takes_packed
    }

    /// Groups without rows.
    pub(super) fn begin(&self) -> Result<Grouping> {
        let aggregates = self.functions.iter().zip(&self.filters).map(|(function, filter)| {
            let accumulator = function.create_groups_accumulator()?;
            Ok(Aggregate { arguments: function.expressions(), filter: filter.clone(), accumulator })
        });
        let finder = match self.by_integer {
            true => Finder::Integers(IntegerGroups::new(PLACES_MAX)),
            false => Finder::Few(self.keys.iter().map(|_| Table::new()).collect()),
        };
        Ok(Grouping {
            keys: self.keys.clone(),
            finder,
            values: vec![Vec::new(); self.keys.len()],
            aggregates: aggregates.collect::<Result<_>>()?,
            numbers: Vec::new(),
            rows: 0,
            count: 0,
            values_bytes: 0,
            memory_bytes: 0,
            thorough: self.thorough,
            schema: Arc::clone(&self.schema),
        })
    }
}

/// Whether a table for few groups takes keys of a type.
fn fits(data_type: &DataType) -> bool {
    is_integer(data_type) || matches!(data_type, DataType::Boolean | DataType::Utf8View | DataType::BinaryView)
}

struct Aggregate {
    arguments: Vec<Arc<dyn PhysicalExpr>>,
    filter: Option<Arc<dyn PhysicalExpr>>,
    accumulator: Box<dyn GroupsAccumulator>,
}

impl Aggregate {
    fn update(&mut self, batch: &RecordBatch, ids: &[usize], groups: usize) -> Result<()> {
        let arguments = self.arguments.iter().map(|argument| evaluated(argument, batch)).collect::<Result<Vec<_>>>()?;
        let filter = self.filter.as_ref().map(|filter| evaluated(filter, batch)).transpose()?;
        let filter = match &filter {
            Some(filter) => Some(filter.as_boolean_opt().ok_or_else(|| Error::internal("a FILTER is no predicate"))?),
            None => None,
        };
        Ok(self.accumulator.update_batch(&arguments, ids, filter, groups)?)
    }
}

fn evaluated(expression: &Arc<dyn PhysicalExpr>, batch: &RecordBatch) -> Result<ArrayRef> {
    Ok(expression.evaluate(batch)?.into_array(batch.num_rows())?)
}

/// How the groups of rows are found.
enum Finder {
    /// A table for each key, of what keys up to it are.
    Few(Vec<Table>),
    Integers(IntegerGroups),
}

impl Finder {
    /// Replaces `numbers`, all of them 0, with those of the groups of rows; false where it cannot. `values` has the keys
    /// of the groups that there are.
    fn number(&mut self, numbers: &mut [usize], keys: &[ArrayRef], values: &[Vec<ArrayRef>]) -> bool {
        match self {
            Self::Few(tables) => tables.iter_mut().zip(keys).all(|(table, key)| table.number(numbers, key)),
            Self::Integers(integers) => {
                keys.first().zip(values.first()).is_some_and(|(key, values)| integers.number(numbers, key, values))
            }
        }
    }

    fn count(&self) -> usize {
        match self {
            Self::Few(tables) => tables.last().map_or(0, |table| table.count),
            Self::Integers(integers) => integers.count(),
        }
    }

    fn memory_bytes(&self) -> usize {
        match self {
            Self::Few(tables) => tables.iter().map(Table::memory_bytes).sum(),
            Self::Integers(integers) => integers.memory_bytes(),
        }
    }
}

/// See the module's doc.
pub(super) struct Grouping {
    keys: Vec<Arc<dyn PhysicalExpr>>,
    finder: Finder,
    /// Of each key its values for all groups, in their order.
    values: Vec<Vec<ArrayRef>>,
    aggregates: Vec<Aggregate>,
    /// The group of each row of a batch.
    numbers: Vec<usize>,
    /// Rows and groups of the batches that were added; the finder may have seen more groups, in one that was not.
    rows: usize,
    count: usize,
    values_bytes: usize,
    memory_bytes: usize,
    thorough: bool,
    schema: SchemaRef,
}

impl Grouping {
    /// Adds the rows of a batch of the reduction's input; false where it does not, since there are more groups, longer
    /// keys or hardly fewer groups than rows. What was added before is still here then.
    pub(super) fn push(&mut self, batch: &RecordBatch) -> Result<bool> {
        let useless = self.count as f64 > SKIP_AGGREGATION_RATIO * self.rows as f64;
        if useless && self.rows >= SKIP_AGGREGATION_ROWS && !self.thorough {
            return Ok(false);
        }
        self.numbers.clear();
        self.numbers.resize(batch.num_rows(), 0);
        let keys = self.keys.iter().map(|key| evaluated(key, batch)).collect::<Result<Vec<_>>>()?;
        if !self.finder.number(&mut self.numbers, &keys, &self.values) {
            return Ok(false);
        }
        self.rows = self.rows.saturating_add(batch.num_rows());
        let before = std::mem::replace(&mut self.count, self.finder.count());
        if self.count > before {
            let first = first_rows(&self.numbers, before);
            for (values, key) in self.values.iter_mut().zip(&keys) {
                let fresh = without_pages(unpacked(&take(key, &first, None)?)?);
                self.values_bytes = self.values_bytes.saturating_add(fresh.get_array_memory_size());
                values.push(fresh);
            }
        }
        for aggregate in &mut self.aggregates {
            aggregate.update(batch, &self.numbers, self.count)?;
        }
        let states = self.aggregates.iter().map(|aggregate| aggregate.accumulator.size());
        let found = self.values_bytes.saturating_add(self.finder.memory_bytes());
        self.memory_bytes = states.fold(found, usize::saturating_add);
        Ok(true)
    }

    /// Bytes that it holds.
    pub(super) fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// The states of all groups; `None` where there are no groups.
    pub(super) fn finish(self) -> Result<Option<RecordBatch>> {
        if self.count == 0 {
            return Ok(None);
        }
        let mut columns = Vec::with_capacity(self.schema.fields().len());
        for values in &self.values {
            columns.push(concat(&values.iter().map(AsRef::as_ref).collect::<Vec<&dyn Array>>())?);
        }
        for mut aggregate in self.aggregates {
            columns.extend(aggregate.accumulator.state(EmitTo::All)?);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(self.count));
        Ok(Some(RecordBatch::try_new_with_options(self.schema, columns, &options)?))
    }
}

/// The same texts without what they were read from.
fn without_pages(array: ArrayRef) -> ArrayRef {
    match array.data_type() {
        DataType::Utf8View => Arc::new(array.as_byte_view::<StringViewType>().gc()),
        DataType::BinaryView => Arc::new(array.as_byte_view::<BinaryViewType>().gc()),
        _ => array,
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        BooleanArray, DictionaryArray, Int32Array, Int64Array, StringViewArray, TimestampNanosecondArray, UInt16Array,
    };
    use arrow::compute::concat_batches;
    use arrow::datatypes::{Field, Int32Type, Int64Type, Schema};
    use datafusion::functions_aggregate::count::count_udaf;
    use datafusion::functions_aggregate::sum::sum_udaf;
    use datafusion::physical_expr::aggregate::AggregateExprBuilder;
    use datafusion::physical_expr::expressions::{col, lit};
    use datafusion::physical_plan::aggregates::{AggregateMode, PhysicalGroupBy};
    use datafusion::physical_plan::empty::EmptyExec;

    use super::super::operator::{InputProperties, Operator, OperatorSettings, Polled};
    use super::super::packed::{batch_of, plain_batch};
    use super::*;
    use crate::limits::FEW_GROUPS_MAX;

    fn batch(rows: i64, distinct: i64) -> RecordBatch {
        let numbers = || (0..rows).map(|row| row * 7_919 % distinct);
        let texts = numbers().map(|number| (number % 5 != 0).then(|| format!("text {number}")));
        RecordBatch::try_from_iter_with_nullable([
            ("text", Arc::new(StringViewArray::from_iter(texts)) as ArrayRef, true),
            ("flag", Arc::new(BooleanArray::from_iter(numbers().map(|n| (n % 7 > 0).then_some(n % 2 > 0)))), true),
            ("int", Arc::new(Int32Array::from_iter(numbers().map(|n| (n % 3 > 0).then_some(-n as i32)))), true),
            ("time", Arc::new(TimestampNanosecondArray::from_iter_values(numbers().map(|n| -n))), false),
            ("value", Arc::new(Int64Array::from_iter_values(0..rows)), false),
        ])
        .unwrap()
    }

    fn reduction(schema: &SchemaRef, keys: &[&str]) -> Reduction {
        let column = |name: &str| col(name, schema).unwrap();
        let function = |function, argument| {
            let builder = AggregateExprBuilder::new(function, vec![argument]).schema(Arc::clone(schema));
            Arc::new(builder.alias("result").build().unwrap())
        };
        let functions = vec![function(sum_udaf(), column("value")), function(count_udaf(), column("int"))];
        let filter = Some(Arc::clone(&column("flag")));
        let groups = PhysicalGroupBy::new_single(keys.iter().map(|key| (column(key), (*key).to_owned())).collect());
        let input = Arc::new(EmptyExec::new(Arc::clone(schema)));
        let filters = vec![filter, None];
        let plan =
            AggregateExec::try_new(AggregateMode::Partial, groups, functions, filters, input, Arc::clone(schema));
        Reduction::try_from_plan(Arc::new(plan.unwrap())).unwrap()
    }

    /// What DataFusion's operator makes of the batches.
    fn expected(reduction: &Reduction, batches: &[RecordBatch]) -> Vec<RecordBatch> {
        let settings = OperatorSettings::new(1 << 20, true).unwrap();
        let make = |input| reduction.over(input);
        let mut operator = Operator::new(&settings, &InputProperties::new(reduction.input_schema()), make).unwrap();
        batches.iter().for_each(|batch| operator.push(batch.clone()).unwrap());
        operator.close();
        let mut states = Vec::new();
        while let Polled::Batch(batch) = operator.poll().unwrap() {
            states.push(batch);
        }
        states
    }

    #[test]
    fn states_are_those_of_the_operator() {
        for keys in [&["text"][..], &["flag"], &["int"], &["time"], &["text", "flag", "int"], &["int", "text", "time"]]
        {
            let batches = [batch(1_000, 11), batch(0, 1), batch(500, 90).slice(3, 400), batch(3_000, 300)];
            let reduction = reduction(&batches[0].schema(), keys);
            let mut groups = GroupingPlan::of(&reduction).unwrap().begin().unwrap();
            for batch in &batches {
                assert!(groups.push(batch).unwrap(), "{keys:?}");
            }
            assert!(groups.memory_bytes() > 0);
            let states = groups.finish().unwrap().unwrap();
            let expected = expected(&reduction, &batches);
            assert_eq!(states, concat_batches(&expected[0].schema(), &expected).unwrap(), "{keys:?}");
        }
    }

    #[test]
    fn packed_keys_make_the_same_states() {
        let dictionary: Vec<Option<String>> = (0..300).map(|number| Some(format!("a long text {number}"))).collect();
        let dictionary: ArrayRef = Arc::new(StringViewArray::from_iter(dictionary));
        let batches = [batch(1_000, 11), batch(0, 1), batch(500, 90).slice(3, 400), batch(3_000, 300)];
        let packed = |batch: &RecordBatch| {
            // The texts are those of the numbers, and null where these are.
            let keys: UInt16Array =
                batch.column(2).as_primitive::<Int32Type>().unary(|number| number.unsigned_abs() as u16);
            let mut columns = batch.columns().to_vec();
            columns[0] = Arc::new(DictionaryArray::new(keys, Arc::clone(&dictionary)));
            batch_of(&batch.schema(), columns, batch.num_rows()).unwrap()
        };
        let packed: Vec<RecordBatch> = batches.iter().map(packed).collect();
        let schema = batches[0].schema();
        let plain: Vec<RecordBatch> = packed.iter().map(|b| plain_batch(b.clone(), &schema).unwrap()).collect();
        for keys in [&["text"][..], &["text", "flag", "int"], &["int", "text", "time"]] {
            let reduction = reduction(&schema, keys);
            let plan = GroupingPlan::of(&reduction).unwrap();
            assert_eq!(plan.takes_packed(), [true, false, false, false, false]);
            let mut groups = plan.begin().unwrap();
            for batch in &packed {
                assert!(groups.push(batch).unwrap(), "{keys:?}");
            }
            let states = groups.finish().unwrap().unwrap();
            let expected = expected(&reduction, &plain);
            assert_eq!(states, concat_batches(&expected[0].schema(), &expected).unwrap(), "{keys:?}");
        }
        // Another dictionary, or none any more, is left to the operator.
        let other: ArrayRef = Arc::new(StringViewArray::from_iter_values(["x"]));
        let mut columns = batches[0].columns().to_vec();
        columns[0] = Arc::new(DictionaryArray::new(UInt16Array::from(vec![0; 1_000]), other));
        let plan = GroupingPlan::of(&reduction(&schema, &["text"])).unwrap();
        for next in [batch_of(&schema, columns, 1_000).unwrap(), plain[0].clone()] {
            let mut groups = plan.begin().unwrap();
            assert!(groups.push(&packed[0]).unwrap());
            assert!(!groups.push(&next).unwrap());
        }
    }

    #[test]
    fn too_many_groups_leave_those_before_them() {
        let most = FEW_GROUPS_MAX as i64;
        let few = batch(4 * most, most);
        let reduction = reduction(&few.schema(), &["time", "time"]);
        let mut groups = GroupingPlan::of(&reduction).unwrap().begin().unwrap();
        assert!(groups.push(&few).unwrap());
        assert!(!groups.push(&batch(4 * most, most + 1)).unwrap());
        let states = groups.finish().unwrap().unwrap();
        assert_eq!(states.num_rows(), FEW_GROUPS_MAX);
        assert_eq!(states, expected(&reduction, &[few])[0]);
        let sums = states.column(2).as_primitive::<Int64Type>();
        assert!(sums.iter().any(|sum| sum.is_some()));
    }

    /// Rows with so many equal integers after another.
    fn ascending(rows: i64, first: i64, equal: i64) -> RecordBatch {
        let integers = (0..rows).map(|row| (first + row / equal) as i32);
        let mut columns = batch(rows, 7).columns().to_vec();
        columns[2] = Arc::new(Int32Array::from_iter_values(integers));
        RecordBatch::try_new(batch(1, 1).schema(), columns).unwrap()
    }

    #[test]
    fn integers_are_looked_up_once_they_do_not_ascend() {
        let sorted = [ascending(5_000, -700, 3), ascending(0, 0, 1), ascending(100, 966, 4), ascending(9, 991, 1)];
        let back = ascending(3_000, 100, 2);
        for more in [vec![], vec![back.clone()], vec![batch(1_000, 400), back], vec![batch(50, 9)]] {
            let batches = [&sorted[..], &more[..]].concat();
            let reduction = reduction(&batches[0].schema(), &["int"]);
            let mut groups = GroupingPlan::of(&reduction).unwrap().begin().unwrap();
            for batch in &batches {
                assert!(groups.push(batch).unwrap());
            }
            assert_eq!(groups.finder.memory_bytes() > 0, !more.is_empty());
            let expected = expected(&reduction, &batches);
            let expected = concat_batches(&expected[0].schema(), &expected).unwrap();
            assert_eq!(groups.finish().unwrap().unwrap(), expected);
        }
    }

    #[test]
    fn groups_of_one_row_each_are_given_up_where_they_may_be() {
        let rows = ascending(SKIP_AGGREGATION_ROWS as i64, 0, 1);
        let reduction = reduction(&rows.schema(), &["int"]);
        for thorough in [false, true] {
            let plan = match thorough {
                true => GroupingPlan::of(&reduction.with_having(lit(true)).unwrap()).unwrap(),
                false => GroupingPlan::of(&reduction).unwrap(),
            };
            let mut groups = plan.begin().unwrap();
            assert!(groups.push(&rows).unwrap());
            assert_eq!(groups.push(&rows).unwrap(), thorough);
            assert_eq!(groups.finish().unwrap().unwrap().num_rows(), rows.num_rows());
        }
    }

    #[test]
    fn long_keys_are_left_to_the_operator() {
        let schema = batch(1, 1).schema();
        let reduction = reduction(&schema, &["text"]);
        let plan = GroupingPlan::of(&reduction).unwrap();
        for (text, fits) in [("of 12 bytes.", true), ("of 13 bytes..", false)] {
            let mut columns = batch(1, 1).columns().to_vec();
            columns[0] = Arc::new(StringViewArray::from_iter_values([text]));
            let batch = RecordBatch::try_new(Arc::clone(&schema), columns).unwrap();
            let mut groups = plan.begin().unwrap();
            assert_eq!(groups.push(&batch).unwrap(), fits);
            assert_eq!(groups.finish().unwrap().is_some(), fits);
        }
    }

    #[test]
    fn what_has_no_words_is_left_to_the_operator() {
        let schema: SchemaRef = Arc::new(Schema::new(vec![
            Field::new("value", DataType::Float64, false),
            Field::new("int", DataType::Int32, true),
            Field::new("flag", DataType::Boolean, true),
        ]));
        assert!(GroupingPlan::of(&reduction(&schema, &["value"])).is_none());
        assert!(GroupingPlan::of(&reduction(&schema, &["int", "value"])).is_none());
        assert!(GroupingPlan::of(&reduction(&schema, &[])).is_none());
        for (keys, with_having) in [(&["int"][..], true), (&["flag"], false), (&["int", "flag"], false)] {
            let reduction = reduction(&schema, keys);
            assert!(GroupingPlan::of(&reduction).is_some());
            let whole = reduction.with_having(lit(true)).unwrap();
            assert_eq!(GroupingPlan::of(&whole).is_some(), with_having, "{keys:?}");
        }
    }
}
