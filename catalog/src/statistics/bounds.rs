//! Smallest and largest values: of which types, how they are found, and how long ones are cut.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, new_null_array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float16Type, Float32Type, Float64Type};
use aubade_proto::{Error, Result};
use datafusion::common::ScalarValue;
use datafusion::functions_aggregate::min_max::{MaxAccumulator, MinAccumulator};
use datafusion::logical_expr::Accumulator;

/// Longest string or binary that is kept whole, bytes.
pub(super) const BOUND_BYTES_MAX: usize = 64;

/// The type of the bounds of a column: that of its values, or `Null` where values have no order.
pub(super) fn bound_type(column: &DataType) -> DataType {
    match column {
        DataType::Dictionary(_, values) => bound_type(values),
        DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::UInt8
        | DataType::UInt16
        | DataType::UInt32
        | DataType::UInt64
        | DataType::Float16
        | DataType::Float32
        | DataType::Float64
        | DataType::Timestamp(..)
        | DataType::Date32
        | DataType::Date64
        | DataType::Time32(_)
        | DataType::Time64(_)
        | DataType::Duration(_)
        | DataType::Binary
        | DataType::FixedSizeBinary(_)
        | DataType::LargeBinary
        | DataType::BinaryView
        | DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Utf8View
        | DataType::Decimal32(..)
        | DataType::Decimal64(..)
        | DataType::Decimal128(..)
        | DataType::Decimal256(..) => column.clone(),
        DataType::Null
        | DataType::Interval(_)
        | DataType::List(_)
        | DataType::ListView(_)
        | DataType::FixedSizeList(..)
        | DataType::LargeList(_)
        | DataType::LargeListView(_)
        | DataType::Struct(_)
        | DataType::Union(..)
        | DataType::Map(..)
        | DataType::RunEndEncoded(..) => DataType::Null,
    }
}

/// Bounds of the values seen so far.
#[derive(Clone, Debug)]
pub(super) struct Bounds {
    data_type: DataType,
    range: Option<(ScalarValue, ScalarValue)>,
    /// A NaN was seen: engines order it in different ways, so nothing is claimed.
    unknown: bool,
}

/// Bounds as arrays of one row.
pub(super) struct FinishedBounds {
    pub(super) min: ArrayRef,
    pub(super) max: ArrayRef,
    pub(super) exact: bool,
}

impl Bounds {
    pub(super) fn new(column: &DataType) -> Self {
        Self { data_type: bound_type(column), range: None, unknown: false }
    }

    /// Takes in the values of `array`, which has the type of the column.
    pub(super) fn update(&mut self, array: &ArrayRef) -> Result<()> {
        if self.unknown || self.data_type == DataType::Null || array.is_empty() {
            return Ok(());
        }
        if has_nan(array) {
            self.unknown = true;
            return Ok(());
        }
        let values = match array.data_type() {
            DataType::Dictionary(..) => cast(array, &self.data_type)?,
            _ => Arc::clone(array),
        };
        let (min, max) = (smallest(&values)?, largest(&values)?);
        if min.is_null() || max.is_null() {
            return Ok(());
        }
        self.range = Some(match self.range.take() {
            None => (min, max),
            Some((low, high)) => (pick(low, min, Ordering::Less), pick(high, max, Ordering::Greater)),
        });
        Ok(())
    }

    pub(super) fn finish(self) -> Result<FinishedBounds> {
        let unknown = new_null_array(&self.data_type, 1);
        let range = if self.unknown { None } else { self.range };
        let Some((low, high)) = range else {
            return Ok(FinishedBounds { min: Arc::clone(&unknown), max: unknown, exact: true });
        };
        let (min, max) = (cut_down(&low), cut_up(&high));
        Ok(FinishedBounds {
            exact: min.is_none() && max.is_none(),
            min: to_array(&min.unwrap_or(low), &self.data_type)?,
            max: match max {
                Some(Cut::To(value)) => to_array(&value, &self.data_type)?,
                // Nothing of 64 bytes is larger.
                Some(Cut::Impossible) => unknown,
                None => to_array(&high, &self.data_type)?,
            },
        })
    }
}

/// The smallest value; null when there is none. Floats are in total order, as in all kernels of
/// Arrow.
pub(super) fn smallest(values: &ArrayRef) -> datafusion::error::Result<ScalarValue> {
    let mut accumulator = MinAccumulator::try_new(values.data_type())?;
    accumulator.update_batch(std::slice::from_ref(values))?;
    accumulator.evaluate()
}

/// The largest value; null when there is none.
pub(super) fn largest(values: &ArrayRef) -> datafusion::error::Result<ScalarValue> {
    let mut accumulator = MaxAccumulator::try_new(values.data_type())?;
    accumulator.update_batch(std::slice::from_ref(values))?;
    accumulator.evaluate()
}

/// `new` when it is on the `wanted` side of `old`.
fn pick(old: ScalarValue, new: ScalarValue, wanted: Ordering) -> ScalarValue {
    if new.partial_cmp(&old) == Some(wanted) { new } else { old }
}

fn to_array(value: &ScalarValue, data_type: &DataType) -> Result<ArrayRef> {
    let array = value.to_array_of_size(1)?;
    if array.data_type() == data_type {
        return Ok(array);
    }
    Err(Error::internal(format!("bounds of a {data_type} column came out as {}", array.data_type())))
}

fn has_nan(array: &ArrayRef) -> bool {
    match array.data_type() {
        DataType::Float16 => array.as_primitive::<Float16Type>().iter().flatten().any(|value| value.is_nan()),
        DataType::Float32 => array.as_primitive::<Float32Type>().iter().flatten().any(f32::is_nan),
        DataType::Float64 => array.as_primitive::<Float64Type>().iter().flatten().any(f64::is_nan),
        DataType::Dictionary(..) => has_nan(array.as_any_dictionary().values()),
        _ => false,
    }
}

/// What an upper bound becomes when it is too long.
enum Cut {
    To(ScalarValue),
    Impossible,
}

/// A value of at most 64 bytes that is not larger; `None` when `value` may stay as it is.
fn cut_down(value: &ScalarValue) -> Option<ScalarValue> {
    match value {
        ScalarValue::Utf8(Some(text)) => Some(ScalarValue::Utf8(Some(long_prefix(text)?.to_owned()))),
        ScalarValue::LargeUtf8(Some(text)) => Some(ScalarValue::LargeUtf8(Some(long_prefix(text)?.to_owned()))),
        ScalarValue::Utf8View(Some(text)) => Some(ScalarValue::Utf8View(Some(long_prefix(text)?.to_owned()))),
        ScalarValue::Binary(Some(bytes)) => Some(ScalarValue::Binary(Some(long_bytes(bytes)?.to_vec()))),
        ScalarValue::LargeBinary(Some(bytes)) => Some(ScalarValue::LargeBinary(Some(long_bytes(bytes)?.to_vec()))),
        ScalarValue::BinaryView(Some(bytes)) => Some(ScalarValue::BinaryView(Some(long_bytes(bytes)?.to_vec()))),
        _ => None,
    }
}

/// A value of at most 64 bytes that is not smaller; `None` when `value` may stay as it is.
fn cut_up(value: &ScalarValue) -> Option<Cut> {
    let text = |text: &str, make: fn(Option<String>) -> ScalarValue| {
        let prefix = long_prefix(text)?;
        Some(next_text(prefix).map_or(Cut::Impossible, |next| Cut::To(make(Some(next)))))
    };
    let binary = |bytes: &[u8], make: fn(Option<Vec<u8>>) -> ScalarValue| {
        let prefix = long_bytes(bytes)?;
        Some(next_bytes(prefix).map_or(Cut::Impossible, |next| Cut::To(make(Some(next)))))
    };
    match value {
        ScalarValue::Utf8(Some(value)) => text(value, ScalarValue::Utf8),
        ScalarValue::LargeUtf8(Some(value)) => text(value, ScalarValue::LargeUtf8),
        ScalarValue::Utf8View(Some(value)) => text(value, ScalarValue::Utf8View),
        ScalarValue::Binary(Some(value)) => binary(value, ScalarValue::Binary),
        ScalarValue::LargeBinary(Some(value)) => binary(value, ScalarValue::LargeBinary),
        ScalarValue::BinaryView(Some(value)) => binary(value, ScalarValue::BinaryView),
        _ => None,
    }
}

/// The first 64 bytes, or fewer so as not to cut a character; `None` when all of it fits.
fn long_prefix(text: &str) -> Option<&str> {
    if text.len() <= BOUND_BYTES_MAX {
        return None;
    }
    text.get(..text.floor_char_boundary(BOUND_BYTES_MAX))
}

fn long_bytes(bytes: &[u8]) -> Option<&[u8]> {
    if bytes.len() <= BOUND_BYTES_MAX { None } else { bytes.get(..BOUND_BYTES_MAX) }
}

/// The smallest text that is larger than every text with this prefix and not longer in characters.
/// UTF-8 orders like code points, so the last character that has a successor gets it.
fn next_text(prefix: &str) -> Option<String> {
    let mut characters: Vec<char> = prefix.chars().collect();
    while let Some(last) = characters.pop() {
        // Past U+D7FF come the surrogates, which are no characters.
        let next = if last == '\u{d7ff}' { Some('\u{e000}') } else { char::from_u32(u32::from(last) + 1) };
        if let Some(next) = next {
            characters.push(next);
            return Some(characters.into_iter().collect());
        }
    }
    None
}

fn next_bytes(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = prefix.to_vec();
    while let Some(last) = bytes.pop() {
        if let Some(next) = last.checked_add(1) {
            bytes.push(next);
            return Some(bytes);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_cut(text: &str) {
        let value = ScalarValue::Utf8(Some(text.to_owned()));
        let low = cut_down(&value).unwrap_or_else(|| value.clone());
        assert!(low <= value);
        match cut_up(&value) {
            Some(Cut::To(high)) => assert!(high > value, "{high} for {text}"),
            Some(Cut::Impossible) => assert!(text.chars().take(16).all(|c| c == char::MAX)),
            None => assert!(text.len() <= BOUND_BYTES_MAX),
        }
    }

    #[test]
    fn cut_bounds_stay_bounds() {
        check_cut(&"a".repeat(64));
        check_cut(&"a".repeat(65));
        check_cut(&"é".repeat(40));
        check_cut(&format!("{}\u{d7ff}zzz", "a".repeat(61)));
        check_cut(&format!("a{}", char::MAX.to_string().repeat(40)));
        check_cut(&char::MAX.to_string().repeat(40));
    }

    #[test]
    fn binaries_that_cannot_grow_have_no_upper_bound() {
        assert!(matches!(cut_up(&ScalarValue::Binary(Some(vec![255; 65]))), Some(Cut::Impossible)));
        let Some(Cut::To(next)) = cut_up(&ScalarValue::Binary(Some([vec![1; 63], vec![255; 9]].concat()))) else {
            panic!()
        };
        assert_eq!(next, ScalarValue::Binary(Some([vec![1; 62], vec![2]].concat())));
    }
}
