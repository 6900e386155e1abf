//! Partial aggregation of rows that fall into few groups, by keys that fit in 16 bytes: a group is found by comparing
//! numbers in a table that stays in the first cache, where DataFusion hashes and compares columns in several passes.
//! The states are those of DataFusion's accumulators. Compare the perfect hash aggregate of DuckDB, which needs
//! statistics; here whoever has more groups goes on with DataFusion's operator.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::buffer::NullBuffer;
use arrow::compute::{concat, take};
use arrow::datatypes::{BinaryViewType, ByteViewType, DataType, SchemaRef, StringViewType};
use aubade_proto::{Error, Reduction, Result};
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_plan::aggregates::AggregateExec;

use crate::limits::FEW_GROUPS_MAX;

/// Places in a table at first.
const SLOTS: usize = 64;
/// The word of a key that is null: no view is that long, and other keys have at most 64 bits.
const NULL: u128 = u128::MAX;
/// Bytes of a text that a view holds itself.
const INLINE_BYTES: u32 = 12;

/// What is grouped and how, for each segment anew.
pub(super) struct FewGroupsPlan {
    keys: Vec<Arc<dyn PhysicalExpr>>,
    functions: Vec<Arc<AggregateFunctionExpr>>,
    /// The FILTER clause of each.
    filters: Vec<Option<Arc<dyn PhysicalExpr>>>,
    schema: SchemaRef,
}

impl FewGroupsPlan {
    /// `None` where only DataFusion's operator will do.
    pub(super) fn of(reduction: &Reduction) -> Option<Self> {
        let aggregate = reduction.plan().downcast_ref::<AggregateExec>()?;
        let groups = aggregate.group_expr();
        // A condition on groups needs all rows of each in one state.
        let over_rows = aggregate.input().children().is_empty();
        if !over_rows || reduction.having().is_some() || !groups.is_single() || groups.expr().is_empty() {
            return None;
        }
        let input = aggregate.input().schema();
        let keys: Vec<_> = groups.expr().iter().map(|(key, _)| Arc::clone(key)).collect();
        let fits = |key: &Arc<dyn PhysicalExpr>| key.data_type(&input).is_ok_and(|data_type| has_words(&data_type));
        let plain = |function: &AggregateFunctionExpr| {
            function.groups_accumulator_supported() && function.order_bys().is_empty()
        };
        if !keys.iter().all(fits) || !aggregate.aggr_expr().iter().all(|function| plain(function)) {
            return None;
        }
        let (functions, filters) = (aggregate.aggr_expr().to_vec(), aggregate.filter_expr().to_vec());
        Some(Self { keys, functions, filters, schema: reduction.schema() })
    }

    /// Groups without rows.
    pub(super) fn begin(&self) -> Result<FewGroups> {
        let aggregates = self.functions.iter().zip(&self.filters).map(|(function, filter)| {
            let accumulator = function.create_groups_accumulator()?;
            Ok(Aggregate { arguments: function.expressions(), filter: filter.clone(), accumulator })
        });
        Ok(FewGroups {
            keys: self
                .keys
                .iter()
                .map(|key| Key { expression: Arc::clone(key), table: Table::new(), values: Vec::new() })
                .collect(),
            aggregates: aggregates.collect::<Result<_>>()?,
            ids: Vec::new(),
            count: 0,
            schema: Arc::clone(&self.schema),
        })
    }
}

/// Whether values of a type are equal where their words are.
fn has_words(data_type: &DataType) -> bool {
    use DataType::{
        BinaryView, Boolean, Date32, Date64, Decimal32, Decimal64, Duration, Int8, Int16, Int32, Int64, Time32, Time64,
        Timestamp, UInt8, UInt16, UInt32, UInt64, Utf8View,
    };
    matches!(
        data_type,
        Boolean
            | Int8
            | Int16
            | Int32
            | Int64
            | UInt8
            | UInt16
            | UInt32
            | UInt64
            | Date32
            | Date64
            | Time32(_)
            | Time64(_)
            | Timestamp(_, _)
            | Duration(_)
            | Decimal32(_, _)
            | Decimal64(_, _)
            | Utf8View
            | BinaryView
    )
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

/// A key, and the groups of all keys up to it.
struct Key {
    expression: Arc<dyn PhysicalExpr>,
    table: Table,
    /// Its values for the groups of all keys, in their order.
    values: Vec<ArrayRef>,
}

/// See the module's doc.
pub(super) struct FewGroups {
    keys: Vec<Key>,
    aggregates: Vec<Aggregate>,
    /// The group of each row of a batch.
    ids: Vec<usize>,
    count: usize,
    schema: SchemaRef,
}

impl FewGroups {
    /// Adds the rows of a batch of the reduction's input; false where it does not, since there are more groups or
    /// longer keys than fit here. What was added before is still here then.
    pub(super) fn push(&mut self, batch: &RecordBatch) -> Result<bool> {
        self.ids.clear();
        self.ids.resize(batch.num_rows(), 0);
        let mut arrays = Vec::with_capacity(self.keys.len());
        for key in &mut self.keys {
            let array = evaluated(&key.expression, batch)?;
            if !key.table.number(&mut self.ids, &array) {
                return Ok(false);
            }
            arrays.push(array);
        }
        let before = self.count;
        self.count = self.keys.last().map_or(0, |key| key.table.count);
        if self.count > before {
            // Numbers are given in the order of the rows.
            let mut next = before;
            let first = self.ids.iter().zip(0_u32..).filter_map(|(id, row)| {
                let is_first = *id == next;
                next += usize::from(is_first);
                is_first.then_some(row)
            });
            let first = UInt32Array::from_iter_values(first);
            for (key, array) in self.keys.iter_mut().zip(&arrays) {
                key.values.push(without_pages(take(array, &first, None)?));
            }
        }
        for aggregate in &mut self.aggregates {
            aggregate.update(batch, &self.ids, self.count)?;
        }
        Ok(true)
    }

    /// Bytes that its states hold.
    pub(super) fn memory_bytes(&self) -> usize {
        self.aggregates.iter().map(|aggregate| aggregate.accumulator.size()).fold(0, usize::saturating_add)
    }

    /// The states of all groups; `None` where there are no groups.
    pub(super) fn finish(self) -> Result<Option<RecordBatch>> {
        if self.count == 0 {
            return Ok(None);
        }
        let mut columns = Vec::with_capacity(self.schema.fields().len());
        for key in &self.keys {
            columns.push(concat(&key.values.iter().map(AsRef::as_ref).collect::<Vec<&dyn Array>>())?);
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

#[derive(Clone, Copy)]
struct Slot {
    word: u128,
    /// The number by the keys before.
    before: u32,
    /// [`FREE`] where there is nothing.
    number: u32,
}

const FREE: u32 = u32::MAX;
const EMPTY: Slot = Slot { word: 0, before: 0, number: FREE };

/// Numbers for what keys up to one are, from 0 on in the order in which they come.
struct Table {
    /// A power of two of them, of which at most a quarter is taken.
    slots: Vec<Slot>,
    count: usize,
}

impl Table {
    fn new() -> Self {
        Self { slots: vec![EMPTY; SLOTS], count: 0 }
    }

    /// Replaces the numbers by the keys before with those by this one too; false where there are too many, or where the
    /// key has no words.
    fn number(&mut self, numbers: &mut [usize], array: &ArrayRef) -> bool {
        match array.data_type() {
            DataType::Utf8View => self.number_views::<StringViewType>(numbers, array),
            DataType::BinaryView => self.number_views::<BinaryViewType>(numbers, array),
            DataType::Boolean => {
                let values = array.as_boolean().values();
                self.number_words(numbers, array.nulls(), values.iter().map(u128::from))
            }
            data_type => {
                let data = array.to_data();
                let (Some(buffer), first, count) = (data.buffers().first(), data.offset(), data.len()) else {
                    return false;
                };
                let nulls = array.nulls();
                macro_rules! of_width {
                    ($native:ty) => {{
                        let values = buffer.typed_data::<$native>().iter().skip(first).take(count);
                        self.number_words(numbers, nulls, values.map(|value| u128::from(*value)))
                    }};
                }
                match data_type.primitive_width() {
                    Some(1) => of_width!(u8),
                    Some(2) => of_width!(u16),
                    Some(4) => of_width!(u32),
                    Some(8) => of_width!(u64),
                    _ => false,
                }
            }
        }
    }

    fn number_views<T: ByteViewType>(&mut self, numbers: &mut [usize], array: &ArrayRef) -> bool {
        let Some(array) = array.as_byte_view_opt::<T>() else { return false };
        // The length is in the lowest bits.
        let longest = array.views().iter().fold(0, |longest, view| (*view as u32).max(longest));
        longest <= INLINE_BYTES && self.number_words(numbers, array.nulls(), array.views().iter().copied())
    }

    fn number_words(
        &mut self,
        numbers: &mut [usize],
        nulls: Option<&NullBuffer>,
        words: impl Iterator<Item = u128>,
    ) -> bool {
        let mut number = |number: &mut usize, word| match self.find(*number as u32, word) {
            Some(found) => {
                *number = found as usize;
                true
            }
            None => false,
        };
        match nulls.filter(|nulls| nulls.null_count() > 0) {
            None => numbers.iter_mut().zip(words).all(|(before, word)| number(before, word)),
            Some(nulls) => {
                let words = words.zip(nulls.iter()).map(|(word, valid)| if valid { word } else { NULL });
                numbers.iter_mut().zip(words).all(|(before, word)| number(before, word))
            }
        }
    }

    /// The number of a word after those that have the number `before`; `None` where there are too many.
    fn find(&mut self, before: u32, word: u128) -> Option<u32> {
        let slot = Self::slot(&mut self.slots, before, word)?;
        if slot.number != FREE {
            return Some(slot.number);
        }
        if self.count == FEW_GROUPS_MAX {
            return None;
        }
        let number = self.count as u32;
        *slot = Slot { word, before, number };
        self.count += 1;
        if self.count * 4 > self.slots.len() {
            let mut slots = vec![EMPTY; self.slots.len() * 4];
            for taken in self.slots.iter().filter(|slot| slot.number != FREE) {
                *Self::slot(&mut slots, taken.before, taken.word)? = *taken;
            }
            self.slots = slots;
        }
        Some(number)
    }

    /// Where it is, or where it would be.
    fn slot(slots: &mut [Slot], before: u32, word: u128) -> Option<&mut Slot> {
        let mixed = (word as u64 ^ (word >> 64) as u64) ^ (u64::from(before) << 20);
        let last = slots.len() - 1;
        let mut place = (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize & last;
        while slots.get(place).is_some_and(|slot| slot.number != FREE && (slot.word != word || slot.before != before)) {
            place = (place + 1) & last;
        }
        slots.get_mut(place)
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{BooleanArray, Int32Array, Int64Array, StringViewArray, TimestampNanosecondArray};
    use arrow::compute::concat_batches;
    use arrow::datatypes::{Field, Int64Type, Schema};
    use datafusion::functions_aggregate::count::count_udaf;
    use datafusion::functions_aggregate::sum::sum_udaf;
    use datafusion::physical_expr::aggregate::AggregateExprBuilder;
    use datafusion::physical_expr::expressions::{col, lit};
    use datafusion::physical_plan::aggregates::{AggregateMode, PhysicalGroupBy};
    use datafusion::physical_plan::empty::EmptyExec;

    use super::super::operator::{Operator, OperatorSettings, Polled};
    use super::*;

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
        let mut operator = Operator::new(&settings, &reduction.input_schema(), make).unwrap();
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
            let mut groups = FewGroupsPlan::of(&reduction).unwrap().begin().unwrap();
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
    fn too_many_groups_leave_those_before_them() {
        let most = FEW_GROUPS_MAX as i64;
        let few = batch(4 * most, most);
        let reduction = reduction(&few.schema(), &["time"]);
        let mut groups = FewGroupsPlan::of(&reduction).unwrap().begin().unwrap();
        assert!(groups.push(&few).unwrap());
        assert!(!groups.push(&batch(4 * most, most + 1)).unwrap());
        let states = groups.finish().unwrap().unwrap();
        assert_eq!(states.num_rows(), FEW_GROUPS_MAX);
        assert_eq!(states, expected(&reduction, &[few])[0]);
        let sums = states.column(1).as_primitive::<Int64Type>();
        assert!(sums.iter().any(|sum| sum.is_some()));
    }

    #[test]
    fn long_keys_are_left_to_the_operator() {
        let schema = batch(1, 1).schema();
        let reduction = reduction(&schema, &["text"]);
        let plan = FewGroupsPlan::of(&reduction).unwrap();
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
        assert!(FewGroupsPlan::of(&reduction(&schema, &["value"])).is_none());
        assert!(FewGroupsPlan::of(&reduction(&schema, &["int", "value"])).is_none());
        assert!(FewGroupsPlan::of(&reduction(&schema, &[])).is_none());
        let having = lit(true);
        let whole = reduction(&schema, &["int"]).with_having(having).unwrap();
        assert!(FewGroupsPlan::of(&whole).is_none());
        assert!(FewGroupsPlan::of(&reduction(&schema, &["int"])).is_some());
    }
}
