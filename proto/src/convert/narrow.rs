//! Whole numbers in as few bytes as the values of a batch need: a column as the distances of its values from the
//! smallest one (frame of reference: Goldstein, Ramakrishnan, Shaft, "Compressing Relations and Indexes", ICDE 1998).
//!
//! Keys, prices and dates lie close together, and their types are made for anything. A byte that is not sent is not
//! copied on its way either, which costs more than one pass over the values at both ends.

use std::sync::Arc;

use arrow::array::{Array, ArrayData, ArrayRef, NullArray, make_array};
use arrow::buffer::Buffer;
use arrow::datatypes::{ArrowNativeType, DataType};

use crate::code::ErrorCode;
use crate::error::{Error, Result};
use crate::wire::storage::NarrowColumn;

/// Rows below which the description of a column costs more than it saves.
const ROWS_MIN: usize = 64;

/// A value in memory that stands for a whole number.
trait Whole: ArrowNativeType + Ord {
    /// Its number, modulo 2^64.
    fn bits(self) -> i64;
    /// Whether [`Whole::from_bits`] gives it back.
    fn fits(self) -> bool {
        true
    }
    /// The value of a number.
    fn from_bits(bits: i64) -> Self;
}

macro_rules! whole {
    ($($native:ty),*) => {$(
        impl Whole for $native {
            fn bits(self) -> i64 {
                self as i64
            }

            fn from_bits(bits: i64) -> Self {
                bits as Self
            }
        }
    )*};
}

whole!(i16, i32, i64, u16, u32, u64);

impl Whole for i128 {
    fn bits(self) -> i64 {
        self as i64
    }

    fn fits(self) -> bool {
        i64::try_from(self).is_ok()
    }

    fn from_bits(bits: i64) -> Self {
        Self::from(bits)
    }
}

/// Calls `$function` for the native type of a data type; `None` for types that are not sent as distances.
macro_rules! for_native {
    ($data_type:expr, $function:ident ( $($argument:expr),* )) => {
        match $data_type {
            DataType::Int16 => Some($function::<i16>($($argument),*)),
            DataType::Int32 | DataType::Date32 | DataType::Time32(_) | DataType::Decimal32(..) => {
                Some($function::<i32>($($argument),*))
            }
            DataType::Int64
            | DataType::Date64
            | DataType::Time64(_)
            | DataType::Timestamp(..)
            | DataType::Duration(_)
            | DataType::Decimal64(..) => Some($function::<i64>($($argument),*)),
            DataType::UInt16 => Some($function::<u16>($($argument),*)),
            DataType::UInt32 => Some($function::<u32>($($argument),*)),
            DataType::UInt64 => Some($function::<u64>($($argument),*)),
            DataType::Decimal128(..) => Some($function::<i128>($($argument),*)),
            _ => None,
        }
    };
}

/// The type of distances of so many bytes; none at all where all values are the same.
fn distance_type(bytes: u32) -> Option<DataType> {
    Some(match bytes {
        0 => DataType::Null,
        1 => DataType::UInt8,
        2 => DataType::UInt16,
        4 => DataType::UInt32,
        8 => DataType::UInt64,
        _ => return None,
    })
}

/// The distances of the values of `column`, which is the one at `index`, and what they are counted from. `None` where
/// that would not be less.
pub(super) fn narrow(index: usize, column: &ArrayRef) -> Option<(NarrowColumn, ArrayRef)> {
    if column.len() < ROWS_MIN {
        return None;
    }
    let (bytes, base, distances) = for_native!(column.data_type(), distances(&column.to_data()))??;
    Some((NarrowColumn { index: u32::try_from(index).ok()?, bytes, base }, distances))
}

fn distances<T: Whole>(column: &ArrayData) -> Option<(u32, i64, ArrayRef)> {
    let values = column.buffers().first()?.typed_data::<T>();
    let values = values.get(column.offset()..column.offset().checked_add(column.len())?)?;
    let (first, rest) = values.split_first()?;
    // Values that are null count as well: what they are is lost by no one, and looking for them costs more.
    let (smallest, largest) =
        rest.iter().fold((*first, *first), |(smallest, largest), value| (smallest.min(*value), largest.max(*value)));
    if !smallest.fits() || !largest.fits() {
        return None;
    }
    let base = smallest.bits();
    let range = largest.bits().wrapping_sub(base) as u64;
    let distance = |value: &T| value.bits().wrapping_sub(base) as u64;
    let (bytes, buffer) = match range {
        0 if column.null_count() == 0 => return Some((0, base, Arc::new(NullArray::new(values.len())))),
        0..=0xff => (1, values.iter().map(|value| distance(value) as u8).collect::<Buffer>()),
        0x100..=0xffff => (2, values.iter().map(|value| distance(value) as u16).collect()),
        0x1_0000..=0xffff_ffff => (4, values.iter().map(|value| distance(value) as u32).collect()),
        _ => (8, values.iter().map(distance).collect()),
    };
    if bytes as usize >= size_of::<T>() {
        return None;
    }
    let data = ArrayData::builder(distance_type(bytes)?).len(values.len()).add_buffer(buffer);
    let data = data.nulls(column.nulls().cloned()).build().ok()?;
    Some((bytes, base, make_array(data)))
}

/// The type in which the distances of a column of `data_type` travel.
///
/// # Errors
/// `InvalidMessage` when there are none of such a column, or not of so many bytes.
pub(super) fn narrowed_type(narrow: &NarrowColumn, data_type: &DataType) -> Result<DataType> {
    let size = for_native!(data_type, size_of());
    match distance_type(narrow.bytes) {
        Some(distances) if size.is_some_and(|size| (narrow.bytes as usize) < size) => Ok(distances),
        _ => {
            let text = format!("column {} of type {data_type} came as {} bytes a value", narrow.index, narrow.bytes);
            Err(Error::new(ErrorCode::InvalidMessage, text))
        }
    }
}

/// The values of `data_type` whose distances are `column`.
///
/// # Errors
/// `InvalidMessage` when `column` does not have the type that [`narrowed_type`] tells.
pub(super) fn widen(narrow: &NarrowColumn, column: &ArrayRef, data_type: &DataType) -> Result<ArrayRef> {
    let distances = column.to_data();
    let values = for_native!(data_type, values(narrow.base, &distances)).flatten();
    let values = values.ok_or_else(|| {
        let text = format!("column {} of type {data_type} came as {}", narrow.index, column.data_type());
        Error::new(ErrorCode::InvalidMessage, text)
    })?;
    let data = ArrayData::builder(data_type.clone()).len(column.len()).add_buffer(values);
    Ok(make_array(data.nulls(distances.nulls().cloned()).build()?))
}

fn values<T: Whole>(base: i64, distances: &ArrayData) -> Option<Buffer> {
    fn from<D: ArrowNativeType, T: Whole>(
        base: i64,
        distances: &ArrayData,
        number: impl Fn(D) -> u64,
    ) -> Option<Buffer> {
        let stored = distances.buffers().first()?.typed_data::<D>();
        let stored = stored.get(distances.offset()..distances.offset().checked_add(distances.len())?)?;
        Some(stored.iter().map(|distance| T::from_bits(base.wrapping_add(number(*distance) as i64))).collect())
    }
    match distances.data_type() {
        DataType::Null => Some(std::iter::repeat_n(T::from_bits(base), distances.len()).collect()),
        DataType::UInt8 => from::<u8, T>(base, distances, u64::from),
        DataType::UInt16 => from::<u16, T>(base, distances, u64::from),
        DataType::UInt32 => from::<u32, T>(base, distances, u64::from),
        DataType::UInt64 => from::<u64, T>(base, distances, |distance| distance),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        Date32Array, Decimal128Array, Float64Array, Int16Array, Int32Array, Int64Array, TimestampMicrosecondArray,
        UInt16Array, UInt64Array,
    };

    use super::*;

    /// The bytes per value on the way, and what comes out again.
    fn round_trip(column: &ArrayRef) -> Option<u32> {
        let (narrowed, distances) = narrow(3, column)?;
        assert_eq!(&narrowed_type(&narrowed, column.data_type()).unwrap(), distances.data_type());
        assert_eq!(&widen(&narrowed, &distances, column.data_type()).unwrap(), column);
        Some(narrowed.bytes)
    }

    fn spread<T: Copy>(values: &[T]) -> Vec<T> {
        values.iter().copied().cycle().take(100).collect()
    }

    #[test]
    fn values_come_back_and_take_the_bytes_that_their_range_needs() {
        let cases: Vec<(ArrayRef, Option<u32>)> = vec![
            (Arc::new(Int64Array::from(spread(&[-5, 250, 7]))), Some(1)),
            (Arc::new(Int64Array::from(spread(&[-5, 251]))), Some(2)),
            (Arc::new(Int64Array::from(spread(&[0, 1 << 16]))), Some(4)),
            (Arc::new(Int64Array::from(spread(&[0, 1 << 32]))), None),
            (Arc::new(Int64Array::from(spread(&[i64::MIN, i64::MAX]))), None),
            (Arc::new(Int64Array::from(spread(&[i64::MIN, i64::MIN + 9]))), Some(1)),
            (Arc::new(Int64Array::from(spread(&[42]))), Some(0)),
            (Arc::new(UInt64Array::from(spread(&[u64::MAX, u64::MAX - 300]))), Some(2)),
            (Arc::new(UInt64Array::from(spread(&[0, u64::MAX]))), None),
            (Arc::new(Int32Array::from(spread(&[i32::MIN, i32::MAX]))), None),
            (Arc::new(Int32Array::from(spread(&[i32::MAX, i32::MAX - 255]))), Some(1)),
            (Arc::new(Int16Array::from(spread(&[i16::MIN, i16::MAX]))), None),
            (Arc::new(Int16Array::from(spread(&[i16::MIN, i16::MIN + 1]))), Some(1)),
            (Arc::new(UInt16Array::from(spread(&[0, u16::MAX]))), None),
            (Arc::new(Date32Array::from(spread(&[8_000, 11_000]))), Some(2)),
            (Arc::new(TimestampMicrosecondArray::from(spread(&[1, 2])).with_timezone("+00:00")), Some(1)),
            (Arc::new(Decimal128Array::from(spread(&[-1, 4_000_000_000]))), Some(4)),
            (Arc::new(Decimal128Array::from(spread(&[i128::from(i64::MIN), i128::from(i64::MAX)]))), Some(8)),
            (Arc::new(Decimal128Array::from(spread(&[0, i128::from(i64::MAX) + 1]))), None),
            (Arc::new(Float64Array::from(spread(&[1.0]))), None),
            (Arc::new(Int64Array::from(vec![1; ROWS_MIN - 1])), None),
        ];
        for (column, bytes) in cases {
            assert_eq!(round_trip(&column), bytes, "{column:?}");
        }
    }

    #[test]
    fn nulls_and_slices_come_back() {
        let column: Int64Array = (0..500).map(|row| (row % 3 != 0).then_some(1_000_000 + row)).collect();
        let column: ArrayRef = Arc::new(column);
        assert_eq!(round_trip(&column), Some(4), "a null is a zero in memory");
        assert_eq!(round_trip(&column.slice(77, 200)), Some(4));
        let same: ArrayRef = Arc::new((0..100).map(|row| (row > 0).then_some(0_i64)).collect::<Int64Array>());
        assert_eq!(round_trip(&same), Some(1), "nulls are kept");
        let all: ArrayRef = Arc::new(Int64Array::from(vec![None; 100]));
        assert_eq!(round_trip(&all), Some(1));
    }

    #[test]
    fn what_no_sender_of_ours_would_send_is_refused() {
        let distances: ArrayRef = Arc::new(UInt64Array::from(vec![1]));
        for (bytes, data_type) in
            [(3, DataType::Int64), (8, DataType::Int64), (1, DataType::Utf8), (4, DataType::Date32)]
        {
            let column = NarrowColumn { index: 0, bytes, base: 0 };
            let error = narrowed_type(&column, &data_type).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidMessage, "{bytes} {data_type}");
        }
        let column = NarrowColumn { index: 0, bytes: 8, base: 0 };
        let text: ArrayRef = Arc::new(arrow::array::StringArray::from(vec!["no"]));
        assert!(widen(&column, &text, &DataType::Decimal128(38, 0)).is_err());
        assert!(widen(&column, &distances, &DataType::Utf8).is_err());
        assert!(widen(&column, &distances, &DataType::Decimal128(38, 0)).is_ok());
    }
}
