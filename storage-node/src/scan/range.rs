//! Whether a number or a date lies in a range: what `column >= a AND column < b` asks, in one pass over the column.
//!
//! DataFusion compares a column once for each side, and where few rows pass the first one it copies these before it asks
//! for the second.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, BooleanArray, RecordBatch};
use arrow::buffer::BooleanBuffer;
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Int32Type, Int64Type, Schema, TimeUnit, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType,
};
use aubade_proto::bits::bits_of;
use datafusion::error::Result;
use datafusion::logical_expr::{ColumnarValue, Operator};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{BinaryExpr, Column, Literal};
use datafusion::scalar::ScalarValue;

use super::replaced::{Evaluation, Replaced};

/// The first and the last value that pass; none where the first is beyond the last.
#[derive(Clone, Copy, Debug)]
enum Bounds {
    Int32(i32, i32),
    Int64(i64, i64),
    Int128(i128, i128),
}

impl Bounds {
    /// What passes a comparison with a value, which stands on its right side. `None` for values of other types, and null.
    fn of(operator: Operator, value: &ScalarValue) -> Option<Self> {
        macro_rules! bounds {
            ($kind:ident, $value:expr, $type:ty) => {{
                let value: $type = $value;
                let (first, last) = (<$type>::MIN, <$type>::MAX);
                // Nothing is less than the first number: a range that has none.
                let none = (last, first);
                let (first, last) = match operator {
                    Operator::Eq => (value, value),
                    Operator::GtEq => (value, last),
                    Operator::LtEq => (first, value),
                    Operator::Gt => value.checked_add(1).map_or(none, |value| (value, last)),
                    Operator::Lt => value.checked_sub(1).map_or(none, |value| (first, value)),
                    _ => return None,
                };
                Some(Self::$kind(first, last))
            }};
        }
        match value {
            ScalarValue::Int32(Some(value)) | ScalarValue::Date32(Some(value)) => bounds!(Int32, *value, i32),
            ScalarValue::Int64(Some(value))
            | ScalarValue::TimestampSecond(Some(value), _)
            | ScalarValue::TimestampMillisecond(Some(value), _)
            | ScalarValue::TimestampMicrosecond(Some(value), _)
            | ScalarValue::TimestampNanosecond(Some(value), _) => bounds!(Int64, *value, i64),
            ScalarValue::Decimal128(Some(value), _, _) => bounds!(Int128, *value, i128),
            _ => None,
        }
    }

    /// What passes both.
    fn and(self, other: Self) -> Option<Self> {
        Some(match (self, other) {
            (Self::Int32(first, last), Self::Int32(from, to)) => Self::Int32(first.max(from), last.min(to)),
            (Self::Int64(first, last), Self::Int64(from, to)) => Self::Int64(first.max(from), last.min(to)),
            (Self::Int128(first, last), Self::Int128(from, to)) => Self::Int128(first.max(from), last.min(to)),
            _ => return None,
        })
    }

    /// Which values of an array lie within; `None` for an array of another type.
    fn hold(self, array: &ArrayRef) -> Option<BooleanBuffer> {
        match self {
            Self::Int32(first, last) => match array.data_type() {
                DataType::Int32 => within::<Int32Type>(array, first, last),
                DataType::Date32 => within::<Date32Type>(array, first, last),
                _ => None,
            },
            Self::Int64(first, last) => match array.data_type() {
                DataType::Int64 => within::<Int64Type>(array, first, last),
                DataType::Timestamp(TimeUnit::Second, _) => within::<TimestampSecondType>(array, first, last),
                DataType::Timestamp(TimeUnit::Millisecond, _) => within::<TimestampMillisecondType>(array, first, last),
                DataType::Timestamp(TimeUnit::Microsecond, _) => within::<TimestampMicrosecondType>(array, first, last),
                DataType::Timestamp(TimeUnit::Nanosecond, _) => within::<TimestampNanosecondType>(array, first, last),
                _ => None,
            },
            Self::Int128(first, last) => within::<Decimal128Type>(array, first, last),
        }
    }
}

fn within<T: ArrowPrimitiveType>(array: &ArrayRef, first: T::Native, last: T::Native) -> Option<BooleanBuffer>
where
    T::Native: PartialOrd,
{
    let values = array.as_primitive_opt::<T>()?.values();
    // Not `&&`: a branch for each value would keep several from being compared at once.
    Some(bits_of(values, |value| (value >= first) & (value <= last)))
}

/// Comparisons of one column with values, all of which have to hold.
#[derive(Clone, Debug)]
struct InRange {
    column: Column,
    /// Of the column and of each value.
    data_type: DataType,
    bounds: Bounds,
}

impl InRange {
    /// `None` where `expression` is another one; its parts may be such ranges already.
    fn parse(expression: &Arc<dyn PhysicalExpr>) -> Option<Self> {
        if let Some(range) = expression.downcast_ref::<Replaced<Self>>() {
            return Some(range.by.clone());
        }
        let binary = expression.downcast_ref::<BinaryExpr>()?;
        let (left, right) = (binary.left(), binary.right());
        if *binary.op() == Operator::And {
            return Self::parse(left)?.and(Self::parse(right)?);
        }
        let (column, operator, value) = match (left.downcast_ref::<Column>(), right.downcast_ref::<Literal>()) {
            (Some(column), Some(value)) => (column, *binary.op(), value.value()),
            _ => (right.downcast_ref::<Column>()?, binary.op().swap()?, left.downcast_ref::<Literal>()?.value()),
        };
        let bounds = Bounds::of(operator, value)?;
        Some(Self { column: column.clone(), data_type: value.data_type(), bounds })
    }

    /// Both, where they are about the same column.
    fn and(self, other: Self) -> Option<Self> {
        if self.column != other.column || self.data_type != other.data_type {
            return None;
        }
        Some(Self { bounds: self.bounds.and(other.bounds)?, ..self })
    }
}

/// `expression`, of which the parts are replaced already, with the comparisons at its end in one range.
pub(super) fn in_range(expression: &Arc<dyn PhysicalExpr>, schema: &Schema) -> Option<Arc<dyn PhysicalExpr>> {
    if let Some(range) = InRange::parse(expression) {
        let declared = schema.fields().get(range.column.index())?.data_type();
        return (*declared == range.data_type).then(|| range.in_place_of(Arc::clone(expression)));
    }
    // Of `(rest AND column >= a) AND column < b` both comparisons.
    let and = |expression: &Arc<dyn PhysicalExpr>| {
        let binary = expression.downcast_ref::<BinaryExpr>().filter(|binary| *binary.op() == Operator::And)?;
        Some((Arc::clone(binary.left()), Arc::clone(binary.right())))
    };
    let (before, last) = and(expression)?;
    let (rest, first) = and(&before)?;
    let is_range = |part: &Arc<dyn PhysicalExpr>| part.is::<Replaced<InRange>>();
    if !is_range(&first) || !is_range(&last) {
        return None;
    }
    let both: Arc<dyn PhysicalExpr> = Arc::new(BinaryExpr::new(first, Operator::And, last));
    let range = InRange::parse(&both)?;
    Some(Arc::new(BinaryExpr::new(rest, Operator::And, range.in_place_of(both))))
}

impl Evaluation for InRange {
    fn evaluate(&self, _exact: &Arc<dyn PhysicalExpr>, batch: &RecordBatch) -> Result<Option<ColumnarValue>> {
        let array = batch.columns().get(self.column.index());
        let passed = array.and_then(|array| Some(BooleanArray::new(self.bounds.hold(array)?, array.nulls().cloned())));
        Ok(passed.map(|passed| ColumnarValue::Array(Arc::new(passed))))
    }

    fn of_other(&self, exact: &Arc<dyn PhysicalExpr>) -> Result<Option<Self>> {
        Ok(Self::parse(exact))
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Date32Array, Decimal128Array, Int32Array, Int64Array, TimestampMicrosecondArray};
    use arrow::datatypes::Field;
    use datafusion::physical_expr::expressions::lit;

    use super::super::faster::faster;
    use super::*;

    const OPERATORS: [Operator; 5] = [Operator::Eq, Operator::Lt, Operator::LtEq, Operator::Gt, Operator::GtEq];

    fn batch(columns: Vec<ArrayRef>) -> RecordBatch {
        let fields = columns.iter().enumerate();
        let fields = fields.map(|(index, array)| Field::new(format!("c{index}"), array.data_type().clone(), true));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        RecordBatch::try_new(schema, columns).unwrap()
    }

    fn column(index: usize) -> Arc<dyn PhysicalExpr> {
        Arc::new(Column::new(&format!("c{index}"), index))
    }

    fn binary(
        left: &Arc<dyn PhysicalExpr>,
        operator: Operator,
        right: &Arc<dyn PhysicalExpr>,
    ) -> Arc<dyn PhysicalExpr> {
        Arc::new(BinaryExpr::new(Arc::clone(left), operator, Arc::clone(right)))
    }

    /// Gives the same as before, for parts of the batch too; returns what it has become.
    #[track_caller]
    fn check(expression: &Arc<dyn PhysicalExpr>, batch: &RecordBatch) -> Arc<dyn PhysicalExpr> {
        let replaced = faster(Arc::clone(expression), &batch.schema()).unwrap();
        for part in [batch.clone(), batch.slice(1, batch.num_rows() - 2), batch.slice(0, 0)] {
            let [before, after] = [expression, &replaced]
                .map(|expression| expression.evaluate(&part).unwrap().into_array(part.num_rows()).unwrap());
            assert_eq!(&before, &after, "{expression}");
        }
        assert_eq!(replaced.to_string(), expression.to_string());
        replaced
    }

    /// Every comparison, and every two of them, with each of `values`.
    fn check_all(array: ArrayRef, values: &[ScalarValue]) {
        let (batch, of) = (batch(vec![array]), column(0));
        let comparisons = values.iter().flat_map(|value| {
            let value = lit(value.clone());
            OPERATORS.map(|operator| [binary(&of, operator, &value), binary(&value, operator, &of)])
        });
        let comparisons: Vec<_> = comparisons.flatten().collect();
        for one in &comparisons {
            assert!(check(one, &batch).is::<Replaced<InRange>>(), "{one}");
            for other in &comparisons {
                let both = binary(one, Operator::And, other);
                assert!(check(&both, &batch).is::<Replaced<InRange>>(), "{both}");
            }
        }
    }

    #[test]
    fn rows_are_those_that_datafusion_lets_pass() {
        let few = [i32::MIN, -1, 0, 7, i32::MAX];
        let cycle = || few.iter().copied().chain(-40..60);
        let with_nulls = |(row, value)| (row % 7 != 3).then_some(value);
        let narrow = || cycle().enumerate().map(with_nulls);
        let wide = || narrow().map(|value| value.map(|value| i64::from(value) << 31));
        let digits = || wide().map(|value| value.map(|value| i128::from(value) << 60)).collect::<Decimal128Array>();
        let decimals = digits().with_precision_and_scale(38, 2).unwrap();
        let times = wide().collect::<TimestampMicrosecondArray>().with_timezone("+01:00");
        let zone = Some(Arc::from("+01:00"));
        check_all(Arc::new(narrow().collect::<Int32Array>()), &few.map(|value| ScalarValue::Int32(Some(value))));
        check_all(Arc::new(narrow().collect::<Date32Array>()), &few.map(|value| ScalarValue::Date32(Some(value))));
        let few = [i64::MIN, -1, 0, 7 << 31, i64::MAX];
        check_all(Arc::new(wide().collect::<Int64Array>()), &few.map(|value| ScalarValue::Int64(Some(value))));
        let values = few.map(|value| ScalarValue::TimestampMicrosecond(Some(value), zone.clone()));
        check_all(Arc::new(times), &values);
        let few = [i128::MIN, -1, 0, 7 << 91, i128::MAX];
        check_all(Arc::new(decimals), &few.map(|value| ScalarValue::Decimal128(Some(value), 38, 2)));
        check_all(Arc::new(Int32Array::from_iter_values(cycle())), &[ScalarValue::Int32(Some(3))]);
    }

    #[test]
    fn ranges_are_found_among_other_conditions() {
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..200));
        let batch = batch(vec![Arc::clone(&numbers), numbers]);
        let compare = |index, operator, value: i64| binary(&column(index), operator, &lit(value));
        let and = |parts: &[Arc<dyn PhysicalExpr>]| {
            let all = parts.iter().skip(1).fold(Arc::clone(&parts[0]), |all, part| binary(&all, Operator::And, part));
            check(&all, &batch)
        };
        let a = [compare(0, Operator::GtEq, 10), compare(0, Operator::Lt, 90)];
        let b = [compare(1, Operator::Gt, 30), compare(1, Operator::LtEq, 70)];
        let all = and(&[Arc::clone(&a[0]), Arc::clone(&a[1]), Arc::clone(&b[0]), Arc::clone(&b[1])]);
        let all = all.downcast_ref::<BinaryExpr>().unwrap();
        assert!(all.left().is::<Replaced<InRange>>() && all.right().is::<Replaced<InRange>>(), "{all}");
        let mixed = and(&[Arc::clone(&a[0]), Arc::clone(&b[0]), Arc::clone(&a[1])]);
        assert!(mixed.is::<BinaryExpr>());
        let either = binary(&binary(&a[0], Operator::And, &a[1]), Operator::Or, &binary(&b[0], Operator::And, &b[1]));
        let either = check(&either, &batch);
        let either = either.downcast_ref::<BinaryExpr>().unwrap();
        assert!(either.left().is::<Replaced<InRange>>() && either.right().is::<Replaced<InRange>>(), "{either}");
        for other in [compare(0, Operator::NotEq, 5), binary(&column(0), Operator::Lt, &column(1))] {
            assert!(check(&other, &batch).is::<BinaryExpr>(), "{other}");
        }
        let null = binary(&column(0), Operator::Lt, &lit(ScalarValue::Int64(None)));
        assert!(check(&null, &batch).is::<BinaryExpr>());
    }

    #[test]
    fn a_range_may_read_its_column_from_another_place() {
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..20));
        let other: ArrayRef = Arc::new(Int64Array::from_iter_values(100..120));
        let batch = batch(vec![other, numbers]);
        let range = binary(&column(0), Operator::Lt, &lit(5_i64));
        let range = faster(range, &batch.schema()).unwrap();
        let moved = range.with_new_children(vec![binary(&column(1), Operator::Lt, &lit(5_i64))]).unwrap();
        assert!(moved.is::<Replaced<InRange>>());
        let passed = moved.evaluate(&batch).unwrap().into_array(20).unwrap();
        assert_eq!(passed.as_boolean().true_count(), 5);
    }
}
