//! The comparison of two results, row by row: decimals exactly, floats within 1e-9 relative, in the
//! order that the query asks for and as multisets where it leaves the order open.

use std::cmp::Ordering;
use std::fmt;

use arrow::datatypes::{DataType, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::common::ScalarValue;

use crate::queries::Query;

/// Floats differ when they are further apart than this, relative to the larger.
const FLOAT_TOLERANCE: f64 = 1e-9;

/// The first difference between two results.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Difference {
    /// The columns do not fit.
    #[error("columns: expected {expected}, got {actual}")]
    Columns {
        /// What was expected.
        expected: String,
        /// What there is.
        actual: String,
    },
    /// The numbers of rows differ.
    #[error("row count: expected {expected}, got {actual}")]
    RowCount {
        /// What was expected.
        expected: usize,
        /// What there is.
        actual: usize,
    },
    /// A value differs.
    #[error("row {row}, column {column}: expected {expected}, got {actual}")]
    Value {
        /// The row, counted from 1, in the order of the expected result.
        row: usize,
        /// The column's name.
        column: String,
        /// What was expected.
        expected: String,
        /// What there is.
        actual: String,
    },
    /// A value of the result cannot be read.
    #[error("a value cannot be read: {0}")]
    Unreadable(String),
}

/// The order in which a query gives its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowOrder<'a> {
    /// The columns of the result that ORDER BY names, in its order; empty if there is none.
    pub columns: &'a [usize],
    /// Whether rows that agree in all of them are one and the same.
    pub total: bool,
    /// Its LIMIT.
    pub limit: Option<usize>,
}

impl RowOrder<'_> {
    /// Of a query that does not order: its rows are a multiset.
    pub const NONE: Self = Self { columns: &[], total: false, limit: None };
}

/// Compares the results of a query.
///
/// # Errors
/// The first difference.
pub fn compare(query: &Query, expected: &[RecordBatch], actual: &[RecordBatch]) -> Result<(), Difference> {
    let order = RowOrder { columns: query.order_columns, total: query.totally_ordered, limit: query.limit };
    compare_rows_in(order, expected, actual)
}

/// Compares two results in the order that they should have.
///
/// # Errors
/// The first difference.
pub fn compare_rows_in(
    order: RowOrder<'_>,
    expected: &[RecordBatch],
    actual: &[RecordBatch],
) -> Result<(), Difference> {
    let names = compare_columns(expected, actual)?;
    let mut expected = rows(expected)?;
    let mut actual = rows(actual)?;
    if expected.len() != actual.len() {
        return Err(Difference::RowCount { expected: expected.len(), actual: actual.len() });
    }
    let count = expected.len();
    for row in 0..count {
        compare_cells(&names, row, order.columns, &expected[row], &actual[row])?;
    }
    let all: Vec<usize> = (0..names.len()).collect();
    // Where LIMIT cuts a group of ties, either result may keep any of its rows.
    let cut = order.limit == Some(count) && !order.total;
    let mut start = 0;
    while start < count {
        let end = tie_end(&expected, start, order.columns);
        if !(cut && end == count) {
            expected[start..end].sort_by(|a, b| compare_rows(a, b));
            actual[start..end].sort_by(|a, b| compare_rows(a, b));
            for row in start..end {
                compare_cells(&names, row, &all, &expected[row], &actual[row])?;
            }
        }
        start = end;
    }
    Ok(())
}

/// The end of the group of rows that agree with row `start` in the order columns: all rows when
/// the query does not order.
fn tie_end(rows: &[Vec<Cell>], start: usize, order_columns: &[usize]) -> usize {
    let same = |row: &Vec<Cell>| order_columns.iter().all(|column| row[*column].fits(&rows[start][*column]));
    start + rows[start..].iter().take_while(|row| same(row)).count()
}

fn compare_cells(
    names: &[String],
    row: usize,
    columns: &[usize],
    expected: &[Cell],
    actual: &[Cell],
) -> Result<(), Difference> {
    for column in columns {
        let (expected, actual) = (&expected[*column], &actual[*column]);
        if !expected.fits(actual) {
            return Err(Difference::Value {
                row: row + 1,
                column: names[*column].clone(),
                expected: expected.to_string(),
                actual: actual.to_string(),
            });
        }
    }
    Ok(())
}

/// The names of the columns, which must have equal names and types. An empty result without
/// batches has no schema to compare.
fn compare_columns(expected: &[RecordBatch], actual: &[RecordBatch]) -> Result<Vec<String>, Difference> {
    let describe = |schema: &SchemaRef| {
        let columns: Vec<String> =
            schema.fields().iter().map(|field| format!("{} {}", field.name(), plain(field.data_type()))).collect();
        columns.join(", ")
    };
    let (Some(expected), Some(actual)) = (expected.first(), actual.first()) else {
        let schema = expected.first().or(actual.first()).map(RecordBatch::schema);
        return Ok(schema
            .map(|schema| schema.fields().iter().map(|field| field.name().clone()).collect())
            .unwrap_or_default());
    };
    let (expected, actual) = (expected.schema(), actual.schema());
    let (expected_text, actual_text) = (describe(&expected), describe(&actual));
    if expected_text != actual_text {
        return Err(Difference::Columns { expected: expected_text, actual: actual_text });
    }
    Ok(expected.fields().iter().map(|field| field.name().clone()).collect())
}

/// The type without what only tells how it is laid out in memory.
fn plain(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        DataType::BinaryView | DataType::LargeBinary => DataType::Binary,
        DataType::Dictionary(_, value) => plain(value),
        other => other.clone(),
    }
}

/// One value.
#[derive(Clone, Debug, PartialEq)]
enum Cell {
    Null,
    Int(i128),
    Decimal(i128, i8),
    Float(f64),
    Text(String),
}

impl Cell {
    fn read(batch: &RecordBatch, column: usize, row: usize) -> Result<Self, Difference> {
        let value = ScalarValue::try_from_array(batch.column(column), row)
            .map_err(|error| Difference::Unreadable(error.to_string()))?;
        Ok(Self::from_scalar(value))
    }

    fn from_scalar(value: ScalarValue) -> Self {
        if value.is_null() {
            return Self::Null;
        }
        match value {
            ScalarValue::Int8(Some(v)) => Self::Int(v.into()),
            ScalarValue::Int16(Some(v)) => Self::Int(v.into()),
            ScalarValue::Int32(Some(v)) => Self::Int(v.into()),
            ScalarValue::Int64(Some(v)) => Self::Int(v.into()),
            ScalarValue::UInt8(Some(v)) => Self::Int(v.into()),
            ScalarValue::UInt16(Some(v)) => Self::Int(v.into()),
            ScalarValue::UInt32(Some(v)) => Self::Int(v.into()),
            ScalarValue::UInt64(Some(v)) => Self::Int(v.into()),
            ScalarValue::Float32(Some(v)) => Self::Float(v.into()),
            ScalarValue::Float64(Some(v)) => Self::Float(v),
            ScalarValue::Decimal128(Some(v), _, scale) => Self::Decimal(v, scale),
            ScalarValue::Utf8(Some(v)) | ScalarValue::LargeUtf8(Some(v)) | ScalarValue::Utf8View(Some(v)) => {
                Self::Text(v)
            }
            ScalarValue::Dictionary(_, value) => Self::from_scalar(*value),
            other => Self::Text(other.to_string()),
        }
    }

    /// Equal, or floats that are close enough.
    fn fits(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Float(a), Self::Float(b)) => {
                a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= FLOAT_TOLERANCE * a.abs().max(b.abs())
            }
            _ => self == other,
        }
    }

    fn order(&self, other: &Self) -> Ordering {
        let rank = |cell: &Self| match cell {
            Self::Null => 0,
            Self::Int(_) => 1,
            Self::Decimal(..) => 2,
            Self::Float(_) => 3,
            Self::Text(_) => 4,
        };
        match (self, other) {
            (Self::Int(a), Self::Int(b)) => a.cmp(b),
            (Self::Decimal(a, _), Self::Decimal(b, _)) => a.cmp(b),
            (Self::Float(a), Self::Float(b)) => a.total_cmp(b),
            (Self::Text(a), Self::Text(b)) => a.cmp(b),
            _ => rank(self).cmp(&rank(other)),
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Int(value) => value.fmt(f),
            Self::Decimal(value, scale) => {
                match u32::try_from(*scale).ok().and_then(|scale| 10_i128.checked_pow(scale)) {
                    Some(unit) if *scale > 0 => {
                        let sign = if *value < 0 { "-" } else { "" };
                        let (whole, rest) = ((value / unit).unsigned_abs(), (value % unit).unsigned_abs());
                        write!(f, "{sign}{whole}.{rest:0width$}", width = usize::from(scale.unsigned_abs()))
                    }
                    _ => write!(f, "{value}e{}", -i32::from(*scale)),
                }
            }
            Self::Float(value) => write!(f, "{value:e}"),
            Self::Text(text) => write!(f, "{text:?}"),
        }
    }
}

/// Exact columns first, so that floats which differ by rounding do not change which rows are paired.
fn compare_rows(a: &[Cell], b: &[Cell]) -> Ordering {
    let is_float = |pair: &(&Cell, &Cell)| matches!(pair, (Cell::Float(_), Cell::Float(_)));
    let pairs = || a.iter().zip(b.iter());
    let exact = pairs().filter(|pair| !is_float(pair)).map(|(a, b)| a.order(b));
    let floats = pairs().filter(is_float).map(|(a, b)| a.order(b));
    exact.chain(floats).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
}

fn rows(batches: &[RecordBatch]) -> Result<Vec<Vec<Cell>>, Difference> {
    let mut rows = Vec::new();
    for batch in batches {
        for row in 0..batch.num_rows() {
            rows.push((0..batch.num_columns()).map(|column| Cell::read(batch, column, row)).collect::<Result<_, _>>()?);
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Decimal128Array, Float64Array, Int64Array, StringArray, StringViewArray};

    use super::*;

    const UNORDERED: Query = Query { number: 0, sql: "", order_columns: &[], totally_ordered: false, limit: None };
    const BY_FIRST: Query = Query { number: 0, sql: "", order_columns: &[0], totally_ordered: false, limit: None };

    fn batch(columns: Vec<(&str, ArrayRef)>) -> Vec<RecordBatch> {
        vec![RecordBatch::try_from_iter(columns).unwrap()]
    }

    fn ints(first: &[i64], second: &[i64]) -> Vec<RecordBatch> {
        let array = |values: &[i64]| Arc::new(Int64Array::from(values.to_vec())) as ArrayRef;
        batch(vec![("a", array(first)), ("b", array(second))])
    }

    fn floats(values: &[f64]) -> Vec<RecordBatch> {
        batch(vec![("f", Arc::new(Float64Array::from(values.to_vec())) as ArrayRef)])
    }

    fn decimals(values: &[i128]) -> Vec<RecordBatch> {
        let array = Decimal128Array::from(values.to_vec()).with_precision_and_scale(15, 2).unwrap();
        batch(vec![("d", Arc::new(array) as ArrayRef)])
    }

    #[test]
    fn without_an_order_results_are_multisets() {
        assert_eq!(compare(&UNORDERED, &ints(&[1, 2, 2], &[0, 0, 1]), &ints(&[2, 1, 2], &[1, 0, 0])), Ok(()));
        let difference = compare(&UNORDERED, &ints(&[1, 2, 2], &[0, 0, 0]), &ints(&[1, 1, 2], &[0, 0, 0])).unwrap_err();
        assert_eq!(difference.to_string(), "row 2, column a: expected 2, got 1");
    }

    #[test]
    fn with_an_order_only_ties_may_change_places() {
        assert_eq!(compare(&BY_FIRST, &ints(&[1, 1, 2], &[5, 6, 7]), &ints(&[1, 1, 2], &[6, 5, 7])), Ok(()));
        assert!(compare(&BY_FIRST, &ints(&[1, 2], &[5, 6]), &ints(&[2, 1], &[6, 5])).is_err());
    }

    #[test]
    fn a_limit_may_cut_ties_differently() {
        let limited = Query { limit: Some(3), ..BY_FIRST };
        assert_eq!(compare(&limited, &ints(&[1, 2, 2], &[5, 6, 7]), &ints(&[1, 2, 2], &[5, 8, 6])), Ok(()));
        assert!(compare(&limited, &ints(&[1, 2, 2], &[5, 6, 7]), &ints(&[1, 2, 2], &[4, 6, 7])).is_err());
        let total = Query { totally_ordered: true, ..limited };
        assert!(compare(&total, &ints(&[1, 2, 3], &[5, 6, 7]), &ints(&[1, 2, 3], &[5, 6, 8])).is_err());
    }

    #[test]
    fn floats_have_a_tolerance_and_decimals_have_none() {
        assert_eq!(compare(&UNORDERED, &floats(&[1.0, f64::NAN]), &floats(&[1.0 + 1e-12, f64::NAN])), Ok(()));
        assert!(compare(&UNORDERED, &floats(&[1.0]), &floats(&[1.0 + 1e-6])).is_err());
        let difference = compare(&UNORDERED, &decimals(&[-100]), &decimals(&[-101])).unwrap_err();
        assert_eq!(difference.to_string(), "row 1, column d: expected -1.00, got -1.01");
    }

    #[test]
    fn the_layout_of_strings_does_not_matter_but_types_do() {
        let utf8 = batch(vec![("s", Arc::new(StringArray::from(vec!["x"])) as ArrayRef)]);
        let view = batch(vec![("s", Arc::new(StringViewArray::from(vec!["x"])) as ArrayRef)]);
        assert_eq!(compare(&UNORDERED, &utf8, &view), Ok(()));
        assert!(matches!(compare(&UNORDERED, &utf8, &floats(&[1.0])), Err(Difference::Columns { .. })));
    }

    #[test]
    fn missing_rows_are_counted() {
        let difference = compare(&UNORDERED, &ints(&[1], &[1]), &[]).unwrap_err();
        assert_eq!(difference, Difference::RowCount { expected: 1, actual: 0 });
    }
}
