//! Texts of which a batch has few: each different one once, and for each row which of them it is.
//!
//! They are told apart by their views, which costs no look at the texts: a reader gives rows with one value of a
//! dictionary the same view. Where equal texts have several views, some are sent more than once.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryViewArray, GenericByteViewArray, StringViewArray, UInt8Array, UInt16Array,
};
use arrow::buffer::ScalarBuffer;
use arrow::compute::{TakeOptions, take};
use arrow::datatypes::{BinaryViewType, ByteViewType, DataType, StringViewType};
use bytes::Bytes;
use datafusion::common::HashMap;

use crate::code::ErrorCode;
use crate::error::{Error, Result, ResultExt};
use crate::wire::storage::RepeatedColumn;

/// Rows below which texts are sent as they are.
const ROWS_MIN: usize = 64;
/// Rows of each different text, on average, from which on it pays.
const ROWS_PER_TEXT_MIN: usize = 4;
/// Rows after which it is looked whether texts are repeated at all: of others three in four are new.
const LOOK_ROWS: usize = 512;
/// Different texts for which a position is one byte.
const SHORT_POSITIONS: usize = 1 << 8;
/// Different texts of a batch at most.
const TEXTS_MAX: usize = 1 << 16;

/// The different texts of `column`, which is the one at `index`, and the positions in them. `None` where that would not
/// be much less.
pub(super) fn repeated(index: usize, column: &ArrayRef) -> Option<(RepeatedColumn, ArrayRef)> {
    let (values, positions) = match column.data_type() {
        DataType::Utf8View => distinct::<StringViewType>(column.as_string_view_opt()?, |text| text.as_bytes())?,
        DataType::BinaryView => distinct::<BinaryViewType>(column.as_binary_view_opt()?, |bytes| bytes)?,
        _ => return None,
    };
    let nulls = column.nulls().cloned();
    let positions: ArrayRef = match values.len() {
        ..=SHORT_POSITIONS => {
            let short = positions.into_iter().map(|position| position as u8).collect::<ScalarBuffer<u8>>();
            Arc::new(UInt8Array::try_new(short, nulls).ok()?)
        }
        _ => Arc::new(UInt16Array::try_new(positions.into(), nulls).ok()?),
    };
    Some((RepeatedColumn { index: u32::try_from(index).ok()?, values }, positions))
}

fn distinct<T: ByteViewType>(
    column: &GenericByteViewArray<T>,
    bytes: impl Fn(&T::Native) -> &[u8],
) -> Option<(Vec<Bytes>, Vec<u16>)> {
    let texts_max = (column.len() / ROWS_PER_TEXT_MIN).min(TEXTS_MAX);
    if column.len() < ROWS_MIN {
        return None;
    }
    let mut known: HashMap<u128, u16> = HashMap::new();
    let mut values = Vec::new();
    let mut positions = Vec::with_capacity(column.len());
    let mut last: Option<(u128, u16)> = None;
    for (row, view) in column.views().iter().enumerate() {
        if row == LOOK_ROWS && values.len() > LOOK_ROWS / 4 * 3 {
            return None;
        }
        if column.is_null(row) {
            positions.push(0);
            continue;
        }
        if let Some((_, position)) = last.filter(|(last, _)| last == view) {
            positions.push(position);
            continue;
        }
        let position = match known.get(view) {
            Some(position) => *position,
            None if values.len() < texts_max => {
                let position = u16::try_from(values.len()).ok()?;
                values.push(Bytes::copy_from_slice(bytes(column.value(row))));
                known.insert(*view, position);
                position
            }
            None => return None,
        };
        last = Some((*view, position));
        positions.push(position);
    }
    Some((values, positions))
}

/// The type in which the positions of a column of `data_type` travel.
///
/// # Errors
/// `InvalidMessage` for a column that is no view of texts or bytes, or too many texts.
pub(super) fn positions_type(repeated: &RepeatedColumn, data_type: &DataType) -> Result<DataType> {
    match (data_type, repeated.values.len()) {
        (DataType::Utf8View | DataType::BinaryView, ..=SHORT_POSITIONS) => Ok(DataType::UInt8),
        (DataType::Utf8View | DataType::BinaryView, ..=TEXTS_MAX) => Ok(DataType::UInt16),
        (data_type, count) => {
            let text = format!("column {} of type {data_type} came as one of {count} texts", repeated.index);
            Err(Error::new(ErrorCode::InvalidMessage, text))
        }
    }
}

/// The texts at `positions`, as a column of `data_type`.
///
/// # Errors
/// `InvalidMessage` for positions that are none, and for texts that are not UTF-8.
pub(super) fn spread(repeated: &RepeatedColumn, positions: &ArrayRef, data_type: &DataType) -> Result<ArrayRef> {
    let invalid = || format!("column {} came as positions in texts that it does not have", repeated.index);
    let values: ArrayRef = match data_type {
        DataType::Utf8View => {
            let texts = repeated.values.iter().map(|value| std::str::from_utf8(value));
            let texts = texts.collect::<Result<Vec<_>, _>>().context(ErrorCode::InvalidMessage, || {
                format!("column {} came with a text that is not UTF-8", repeated.index)
            })?;
            Arc::new(StringViewArray::from_iter_values(texts))
        }
        _ => Arc::new(BinaryViewArray::from_iter_values(&repeated.values)),
    };
    take(&values, positions, Some(TakeOptions { check_bounds: true })).context(ErrorCode::InvalidMessage, invalid)
}

#[cfg(test)]
mod tests {
    use arrow::array::Int64Array;
    use arrow::compute::filter;

    use super::*;

    fn texts(rows: usize, different: usize) -> StringViewArray {
        let pool: Vec<String> =
            (0..different).map(|text| format!("a text that is not inlined, number {text}")).collect();
        // As a reader makes them of a dictionary: equal texts have equal views.
        let pool = StringViewArray::from_iter_values(&pool);
        let rows: Int64Array = (0..rows).map(|row| (row % 7 != 3).then_some((row / 20 % different) as i64)).collect();
        take(&pool, &rows, None).unwrap().as_string_view().clone()
    }

    fn round_trip(column: &ArrayRef) -> Option<usize> {
        let (repeated, positions) = repeated(2, column)?;
        assert_eq!(&positions_type(&repeated, column.data_type()).unwrap(), positions.data_type());
        assert_eq!(&spread(&repeated, &positions, column.data_type()).unwrap(), column);
        Some(repeated.values.len())
    }

    #[test]
    fn texts_come_back_and_each_is_sent_once() {
        let few: ArrayRef = Arc::new(texts(1_000, 10));
        assert_eq!(round_trip(&few), Some(10));
        assert_eq!(round_trip(&few.slice(13, 100)), Some(6));
        let some: ArrayRef = Arc::new(texts(8_000, 400));
        assert_eq!(round_trip(&some), Some(400), "two bytes each");
        let kept = filter(&some, &(0..8_000).map(|row| Some(row % 20 == 0)).collect()).unwrap();
        assert_eq!(round_trip(&kept), None, "all different");
        let long = filter(&texts(20_000, 1_000), &(0..20_000).map(|row| Some(row % 20 < 2)).collect()).unwrap();
        assert_eq!(round_trip(&long), None, "too few rows of each");
        assert_eq!(round_trip(&few.slice(0, ROWS_MIN - 1)), None, "too few to pay");
        let short: ArrayRef =
            Arc::new((0..100).map(|row| (row > 9).then_some(["AIR", "MAIL"][row % 2])).collect::<StringViewArray>());
        assert_eq!(round_trip(&short), Some(2));
        let bytes: ArrayRef = Arc::new(BinaryViewArray::from_iter_values((0..100).map(|row| [row % 3, 255])));
        assert_eq!(round_trip(&bytes), Some(3));
        let nulls: ArrayRef = Arc::new(StringViewArray::from(vec![None::<&str>; 100]));
        let (repeated, positions) = repeated(0, &nulls).unwrap();
        assert_eq!(positions.null_count(), 100);
        assert_eq!(&spread(&repeated, &positions, &DataType::Utf8View).unwrap(), &nulls);
    }

    #[test]
    fn what_no_sender_of_ours_would_send_is_refused() {
        let column = |values: Vec<&'static [u8]>| RepeatedColumn {
            index: 0,
            values: values.into_iter().map(Bytes::from_static).collect(),
        };
        let positions: ArrayRef = Arc::new(UInt8Array::from(vec![0, 3]));
        for (column, data_type) in
            [(column(vec![b"a", b"b"]), DataType::Utf8View), (column(vec![b"\xff"; 9]), DataType::Utf8View)]
        {
            assert_eq!(spread(&column, &positions, &data_type).unwrap_err().code(), ErrorCode::InvalidMessage);
        }
        assert!(positions_type(&column(vec![b"a"]), &DataType::Int64).is_err());
        assert!(positions_type(&column(vec![b"a"; TEXTS_MAX + 1]), &DataType::Utf8View).is_err());
    }
}
