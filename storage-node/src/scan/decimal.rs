//! Sums, differences and products of decimals whose digits fit in 64 bits, as those in tables do nearly always.
//!
//! Arrow computes with 128-bit numbers, and checks each step for an overflow. Of numbers of 64 bits the product has 128 at
//! most, so that nothing has to be checked but that they are that small: once for a batch, at the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::{Array, ArrayRef, AsArray, Decimal128Array, RecordBatch};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Decimal128Type, Schema};
use datafusion::common::ScalarValue;
use datafusion::error::Result;
use datafusion::logical_expr::{ColumnarValue, Operator};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::BinaryExpr;

use super::replaced::Evaluation;

/// What is computed of the digits of two numbers.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Each side times what gives both the same scale.
    Add {
        left: i64,
        right: i64,
    },
    /// The same.
    Subtract {
        left: i64,
        right: i64,
    },
    Multiply,
}

impl Step {
    fn of(operator: Operator, types: &[DataType; 2]) -> Option<Self> {
        let [DataType::Decimal128(_, left), DataType::Decimal128(_, right)] = types else { return None };
        let scale = left.max(right);
        let factor = |side: &i8| u32::try_from(scale.checked_sub(*side)?).ok().and_then(|by| 10_i64.checked_pow(by));
        match operator {
            Operator::Plus => Some(Self::Add { left: factor(left)?, right: factor(right)? }),
            Operator::Minus => Some(Self::Subtract { left: factor(left)?, right: factor(right)? }),
            Operator::Multiply => Some(Self::Multiply),
            _ => None,
        }
    }

    /// `None` where a number does not fit in 64 bits, also one that is null.
    fn run(self, left: &Side, right: &Side) -> Option<Vec<i128>> {
        // None of these overflows: the product of two such numbers is 2^126 at most, and 10^18 is less than 2^60.
        match self {
            Self::Add { left: by, right: other } => {
                combine(left, right, |left, right| wide(left, by) + wide(right, other))
            }
            Self::Subtract { left: by, right: other } => {
                combine(left, right, |left, right| wide(left, by) - wide(right, other))
            }
            Self::Multiply => combine(left, right, wide),
        }
    }
}

fn wide(left: i64, right: i64) -> i128 {
    i128::from(left) * i128::from(right)
}

/// One side of an operator.
enum Side {
    Rows(Decimal128Array),
    One(i128),
}

impl Side {
    /// `None` for a constant that is null.
    fn of(value: &ColumnarValue) -> Option<Self> {
        match value {
            ColumnarValue::Array(array) => Some(Self::Rows(array.as_primitive_opt::<Decimal128Type>()?.clone())),
            ColumnarValue::Scalar(ScalarValue::Decimal128(value, _, _)) => value.map(Self::One),
            ColumnarValue::Scalar(_) => None,
        }
    }

    fn nulls(&self) -> Option<&NullBuffer> {
        match self {
            Self::Rows(rows) => rows.nulls(),
            Self::One(_) => None,
        }
    }
}

/// What `compute` makes of both sides row by row; `None` where a number does not fit in 64 bits.
fn combine(left: &Side, right: &Side, compute: impl Fn(i64, i64) -> i128) -> Option<Vec<i128>> {
    // Bits in which the upper half of a number is not the sign of the lower one.
    let mut excess = 0_i64;
    let mut narrow = |number: i128| {
        let low = number as i64;
        excess |= (number >> 64) as i64 ^ (low >> 63);
        low
    };
    let combined = match (left, right) {
        (Side::Rows(left), Side::Rows(right)) => {
            left.values().iter().zip(right.values()).map(|(l, r)| compute(narrow(*l), narrow(*r))).collect()
        }
        (Side::Rows(left), Side::One(right)) => {
            let right = narrow(*right);
            left.values().iter().map(|left| compute(narrow(*left), right)).collect()
        }
        (Side::One(left), Side::Rows(right)) => {
            let left = narrow(*left);
            right.values().iter().map(|right| compute(left, narrow(*right))).collect()
        }
        (Side::One(left), Side::One(right)) => vec![compute(narrow(*left), narrow(*right))],
    };
    (excess == 0).then_some(combined)
}

/// A sum, difference or product of decimals of 128 bits.
#[derive(Debug)]
pub(super) struct NarrowDecimal {
    left: Arc<dyn PhysicalExpr>,
    right: Arc<dyn PhysicalExpr>,
    step: Step,
    /// Of both sides, which the step is made for.
    types: [DataType; 2],
    data_type: DataType,
    /// Whether there was a number that did not fit, or none: where one is, there are more.
    has_wide: AtomicBool,
}

impl NarrowDecimal {
    /// `None` where `expression` is another one.
    pub(super) fn of(expression: &Arc<dyn PhysicalExpr>, schema: &Schema) -> Option<Self> {
        let binary = expression.downcast_ref::<BinaryExpr>()?;
        // Types are asked for last: those of long chains of other operators take a while.
        if !matches!(binary.op(), Operator::Plus | Operator::Minus | Operator::Multiply) {
            return None;
        }
        let (left, right) = (Arc::clone(binary.left()), Arc::clone(binary.right()));
        let types = [left.data_type(schema).ok()?, right.data_type(schema).ok()?];
        let step = Step::of(*binary.op(), &types)?;
        let data_type = expression.data_type(schema).ok()?;
        Some(Self { left, right, step, types, data_type, has_wide: AtomicBool::new(false) })
    }

    /// `None` where a number does not fit, or a constant is null.
    fn narrow(&self, batch: &RecordBatch) -> Result<Option<ColumnarValue>> {
        let (left, right) = (self.left.evaluate(batch)?, self.right.evaluate(batch)?);
        let as_declared = [left.data_type(), right.data_type()] == self.types;
        let sides = Side::of(&left).zip(Side::of(&right)).filter(|_| as_declared);
        let computed = sides.and_then(|(left, right)| Some((self.step.run(&left, &right)?, left, right)));
        let Some((digits, left, right)) = computed else {
            // Ordering: a hint, which guards nothing.
            self.has_wide.store(true, Ordering::Relaxed);
            return Ok(None);
        };
        if let (Side::One(_), Side::One(_)) = (&left, &right) {
            let array = Decimal128Array::from(digits).with_data_type(self.data_type.clone());
            return Ok(Some(ColumnarValue::Scalar(ScalarValue::try_from_array(&array, 0)?)));
        }
        let nulls = NullBuffer::union(left.nulls(), right.nulls());
        let array = Decimal128Array::try_new(digits.into(), nulls)?.with_data_type(self.data_type.clone());
        Ok(Some(ColumnarValue::Array(Arc::new(array) as ArrayRef)))
    }
}

impl Evaluation for NarrowDecimal {
    fn evaluate(&self, _exact: &Arc<dyn PhysicalExpr>, batch: &RecordBatch) -> Result<Option<ColumnarValue>> {
        if self.has_wide.load(Ordering::Relaxed) { Ok(None) } else { self.narrow(batch) }
    }

    fn of_other(&self, exact: &Arc<dyn PhysicalExpr>) -> Result<Option<Self>> {
        let Some(binary) = exact.downcast_ref::<BinaryExpr>() else { return Ok(None) };
        let (left, right) = (Arc::clone(binary.left()), Arc::clone(binary.right()));
        let (types, data_type) = (self.types.clone(), self.data_type.clone());
        Ok(Some(Self { left, right, step: self.step, types, data_type, has_wide: AtomicBool::new(false) }))
    }

    fn data_type(&self, _exact: &Arc<dyn PhysicalExpr>, _schema: &Schema) -> Result<DataType> {
        Ok(self.data_type.clone())
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::Field;
    use datafusion::physical_expr::expressions::{CaseExpr, Column, lit};

    use super::super::faster::faster;
    use super::super::replaced::Replaced;
    use super::*;

    const NARROW: [Option<i128>; 6] =
        [Some(0), Some(-7), Some(i64::MAX as i128), Some(i64::MIN as i128), None, Some(1_234_567_890)];
    const WIDE: [Option<i128>; 6] =
        [Some(1), Some(i64::MAX as i128 + 1), None, Some(i64::MIN as i128 - 1), Some(1 << 100), Some(-(1 << 90))];

    fn column(values: &[Option<i128>], scale: i8) -> ArrayRef {
        let array = Decimal128Array::from(values.to_vec());
        Arc::new(array.with_precision_and_scale(38 - scale.unsigned_abs(), scale).unwrap())
    }

    fn arithmetic(
        left: Arc<dyn PhysicalExpr>,
        operator: Operator,
        right: Arc<dyn PhysicalExpr>,
    ) -> Arc<dyn PhysicalExpr> {
        Arc::new(BinaryExpr::new(left, operator, right))
    }

    /// Both give the same value, or the same error.
    #[track_caller]
    fn check(expression: &Arc<dyn PhysicalExpr>, batch: &RecordBatch) {
        let rows = batch.num_rows();
        let evaluated = |expression: &Arc<dyn PhysicalExpr>| {
            let value = expression.evaluate(batch).map_err(|error| error.to_string())?;
            value.into_array(rows).map_err(|error| error.to_string())
        };
        let faster = faster(Arc::clone(expression), &batch.schema()).unwrap();
        assert!(faster.is::<Replaced<NarrowDecimal>>(), "{expression}");
        // Twice: once a number was too wide, it goes another way.
        for _ in 0..2 {
            assert_eq!(evaluated(&faster), evaluated(expression), "{expression}");
        }
        assert_eq!(faster.data_type(&batch.schema()).unwrap(), expression.data_type(&batch.schema()).unwrap());
    }

    #[test]
    fn values_are_those_of_arrow() {
        for (left_scale, right_scale) in [(0, 0), (2, 2), (2, 0), (0, 3), (-2, 1), (4, 2), (0, 18), (0, 19), (9, 9)] {
            for (left, right) in [(NARROW, NARROW), (NARROW, WIDE), (WIDE, NARROW), (WIDE, WIDE)] {
                let mut turned = right;
                turned.rotate_left(1);
                let columns = [column(&left, left_scale), column(&turned, right_scale)];
                let fields = columns
                    .iter()
                    .enumerate()
                    .map(|(index, array)| Field::new(format!("c{index}"), array.data_type().clone(), true));
                let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
                let batch = RecordBatch::try_new(schema, columns.to_vec()).unwrap();
                let of = |index: usize| Arc::new(Column::new(&format!("c{index}"), index)) as Arc<dyn PhysicalExpr>;
                let one = |value| lit(ScalarValue::Decimal128(value, 19, right_scale.min(2)));
                for operator in [Operator::Plus, Operator::Minus, Operator::Multiply] {
                    let factor =
                        |scale: i8, other: i8| 10_i64.checked_pow(u32::from((scale.max(other) - scale).unsigned_abs()));
                    if operator != Operator::Multiply
                        && (factor(left_scale, right_scale).is_none() || factor(right_scale, left_scale).is_none())
                    {
                        continue;
                    }
                    for part in [batch.clone(), batch.slice(2, 3), batch.slice(0, 0)] {
                        check(&arithmetic(of(0), operator, of(1)), &part);
                    }
                    for value in [Some(100), Some(-3), Some(i128::from(i64::MAX) + 1), None] {
                        check(&arithmetic(of(0), operator, one(value)), &batch);
                        check(&arithmetic(one(value), operator, of(0)), &batch);
                        check(&arithmetic(one(value), operator, one(Some(5))), &batch);
                    }
                }
            }
        }
    }

    #[test]
    fn a_price_less_its_discount_with_tax() {
        let schema = Arc::new(Schema::new(vec![
            Field::new("price", DataType::Decimal128(15, 2), false),
            Field::new("discount", DataType::Decimal128(15, 2), false),
        ]));
        let digits = |values: Vec<i128>| Decimal128Array::from(values).with_precision_and_scale(15, 2).unwrap();
        let columns: Vec<ArrayRef> = vec![Arc::new(digits(vec![2_116_823, 104_949])), Arc::new(digits(vec![4, 10]))];
        let batch = RecordBatch::try_new(Arc::clone(&schema), columns).unwrap();
        let one = || lit(ScalarValue::Decimal128(Some(1), 20, 0));
        let column = |name: &str, index| Arc::new(Column::new(name, index)) as Arc<dyn PhysicalExpr>;
        let rest = arithmetic(one(), Operator::Minus, column("discount", 1));
        let product = arithmetic(column("price", 0), Operator::Multiply, rest);
        check(
            &arithmetic(
                Arc::clone(&product),
                Operator::Multiply,
                arithmetic(one(), Operator::Plus, column("discount", 1)),
            ),
            &batch,
        );
        let dear = Arc::new(BinaryExpr::new(
            column("price", 0),
            Operator::Gt,
            lit(ScalarValue::Decimal128(Some(200_000), 15, 2)),
        ));
        let nothing = lit(ScalarValue::Decimal128(Some(0), 38, 4));
        let case: Arc<dyn PhysicalExpr> =
            Arc::new(CaseExpr::try_new(None, vec![(dear, Arc::clone(&product))], Some(nothing)).unwrap());
        let of_case = faster(Arc::clone(&case), &schema).unwrap();
        let values = [case, of_case].map(|case| case.evaluate(&batch).unwrap().into_array(2).unwrap());
        assert_eq!(values[0].as_primitive::<Decimal128Type>().values(), &[203_215_008, 0]);
        assert_eq!(&values[0], &values[1]);
        let value = faster(product, &schema).unwrap().evaluate(&batch).unwrap().into_array(2).unwrap();
        assert_eq!(value.as_primitive::<Decimal128Type>().values(), &[203_215_008, 9_445_410]);
    }

    #[test]
    fn other_arithmetic_is_left_alone() {
        let schema = Schema::new(vec![
            Field::new("n", DataType::Int64, false),
            Field::new("d", DataType::Decimal128(9, 2), false),
        ]);
        let column = |name: &str, index| Arc::new(Column::new(name, index)) as Arc<dyn PhysicalExpr>;
        for expression in [
            arithmetic(column("n", 0), Operator::Plus, column("n", 0)),
            arithmetic(column("d", 1), Operator::Divide, column("d", 1)),
            arithmetic(column("d", 1), Operator::Lt, column("d", 1)),
        ] {
            assert!(faster(Arc::clone(&expression), &schema).unwrap().is::<BinaryExpr>(), "{expression}");
        }
    }
}
