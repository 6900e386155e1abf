//! Record batches to FlightData: compacted, split below the message size, and ended in time.
//!
//! Hot path: no copy besides the encoding, except for view arrays that hold much more than they show.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryViewArray, FixedSizeListArray, GenericListArray, MapArray, OffsetSizeTrait,
    RecordBatch, RecordBatchOptions, StringViewArray, StructArray,
};
use arrow::datatypes::{DataType, SchemaRef};
use arrow_flight::FlightData;
use arrow_flight::encode::{DictionaryHandling, FlightDataEncoderBuilder};
use arrow_flight::error::FlightError;
use aubade_proto::{Error, ErrorCode, Result};
use datafusion::execution::SendableRecordBatchStream;
use futures::future::{BoxFuture, Either};
use futures::stream::{self, BoxStream, Stream, StreamExt};
use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;

use super::MESSAGE_LIMIT_HEADER;

/// Arrow bytes per message that batches are split down to. Below gRPC's default limit of 4 MiB with
/// room for padding and estimates, and large enough that messages cost nothing.
const SPLIT_BYTES: usize = 1 << 20;
/// Bytes that a view array may hold without showing them before it is copied.
const VIEW_SLACK_BYTES: usize = 64 << 10;
/// Header of a message besides the data: schema nodes and buffer offsets.
const HEADER_BYTES: usize = 4 << 10;

/// What ends with the stream, and what ends it.
pub(super) struct Guard {
    /// Completes with the error when the stream has to end.
    pub(super) ended: BoxFuture<'static, Error>,
    /// The place among the running streams.
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").finish_non_exhaustive()
    }
}

/// The messages of a result. Dropping the stream drops `batches`, which cancels the query.
pub(super) fn encode(
    schema: SchemaRef,
    batches: SendableRecordBatchStream,
    message_bytes_max: usize,
    guard: Guard,
) -> BoxStream<'static, Result<FlightData, Status>> {
    let pieces =
        batches.map(move |batch| match batch.map_err(Error::from).and_then(|batch| split(batch, message_bytes_max)) {
            Ok(pieces) => Either::Left(stream::iter(pieces.into_iter().map(Ok))),
            Err(error) => Either::Right(stream::iter([Err(FlightError::from(error.to_status()))])),
        });
    let messages = FlightDataEncoderBuilder::new()
        .with_schema(schema)
        // The split above knows slices and views; the encoder's own would not.
        .with_max_flight_data_size(usize::MAX)
        .with_dictionary_handling(DictionaryHandling::Resend)
        .build(pieces.flatten())
        .map(move |message| {
            message.map_err(status_of_flight_error).and_then(|data| check_size(data, message_bytes_max))
        });
    Guarded { messages: Some(messages.boxed()), ended: guard.ended, _permit: guard.permit }.boxed()
}

/// The status that an error of the Flight layer carries, with a code of ours.
pub(super) fn status_of_flight_error(error: FlightError) -> Status {
    match error {
        FlightError::Tonic(status) => *status,
        FlightError::Arrow(error) => Error::from(error).to_status(),
        other => Error::new(ErrorCode::InvalidMessage, "a Flight message cannot be read or written")
            .source(other)
            .to_status(),
    }
}

fn check_size(data: FlightData, message_bytes_max: usize) -> Result<FlightData, Status> {
    let bytes = data.data_body.len().saturating_add(data.data_header.len());
    if bytes > message_bytes_max {
        return Err(too_large("a part of the result that cannot be split", bytes, message_bytes_max).to_status());
    }
    Ok(data)
}

fn too_large(what: &str, bytes: usize, message_bytes_max: usize) -> Error {
    Error::new(ErrorCode::LimitExceeded, format!("{what} needs a message of {bytes} bytes, the limit is {message_bytes_max}"))
        .hint(format!(
            "select fewer or narrower columns; a client that takes larger messages says so in the header {MESSAGE_LIMIT_HEADER}"
        ))
}

/// Cuts a batch into pieces of about [`SPLIT_BYTES`], of one row at least.
fn split(batch: RecordBatch, message_bytes_max: usize) -> Result<Vec<RecordBatch>> {
    let target = SPLIT_BYTES.min(message_bytes_max / 2);
    let mut pieces = Vec::new();
    // Depth first from the left keeps the order; the stack holds at most one piece per halving.
    let mut stack = vec![batch];
    while let Some(batch) = stack.pop() {
        let rows = batch.num_rows();
        let bytes = batch.columns().iter().map(|column| shown_bytes(column)).sum::<usize>();
        if bytes > target && rows > 1 {
            let parts = bytes.div_ceil(target).min(rows);
            let rows_per_part = rows.div_ceil(parts);
            let starts: Vec<usize> = (0..rows).step_by(rows_per_part).collect();
            stack.extend(starts.into_iter().rev().map(|start| batch.slice(start, rows_per_part.min(rows - start))));
            continue;
        }
        if bytes.saturating_add(HEADER_BYTES) > message_bytes_max {
            return Err(too_large("one row of the result", bytes, message_bytes_max));
        }
        pieces.push(compact_batch(&batch)?);
    }
    Ok(pieces)
}

/// Bytes of the values that an array shows: what its encoding needs once it is compact. Dictionaries
/// are sent apart, so only their keys count.
fn shown_bytes(array: &dyn Array) -> usize {
    let rows = array.len();
    let validity = if array.null_count() > 0 { rows / 8 } else { 0 };
    let values = match array.data_type() {
        DataType::Null => 0,
        DataType::Boolean => rows / 8,
        DataType::Utf8View => rows * 16 + long_view_bytes(array.as_string_view().views()),
        DataType::BinaryView => rows * 16 + long_view_bytes(array.as_binary_view().views()),
        DataType::Utf8 => rows * 4 + offset_span(array.as_string::<i32>().value_offsets()),
        DataType::LargeUtf8 => rows * 8 + offset_span(array.as_string::<i64>().value_offsets()),
        DataType::Binary => rows * 4 + offset_span(array.as_binary::<i32>().value_offsets()),
        DataType::LargeBinary => rows * 8 + offset_span(array.as_binary::<i64>().value_offsets()),
        DataType::List(_) => rows * 4 + shown_list_bytes(array.as_list::<i32>()),
        DataType::LargeList(_) => rows * 8 + shown_list_bytes(array.as_list::<i64>()),
        DataType::FixedSizeList(..) => shown_bytes(array.as_fixed_size_list().values()),
        DataType::Map(..) => {
            let map = array.as_map();
            let (start, length) = span_of(map.value_offsets());
            rows * 4 + shown_bytes(&map.entries().slice(start, length))
        }
        DataType::Struct(_) => array.as_struct().columns().iter().map(|column| shown_bytes(column)).sum(),
        DataType::Dictionary(key, _) => rows * key.primitive_width().unwrap_or(8),
        other => match other.primitive_width() {
            Some(width) => rows * width,
            None => array.to_data().get_slice_memory_size().unwrap_or_else(|_| array.get_buffer_memory_size()),
        },
    };
    validity + values
}

/// Bytes outside the views: the length is in the low 32 bits, and up to 12 bytes are kept inline.
fn long_view_bytes(views: &[u128]) -> usize {
    let length = |view: &u128| usize::try_from(view & u128::from(u32::MAX)).unwrap_or(0);
    views.iter().map(length).filter(|length| *length > 12).sum()
}

fn span_of<O: OffsetSizeTrait>(offsets: &[O]) -> (usize, usize) {
    let start = offsets.first().map_or(0, |offset| offset.as_usize());
    let end = offsets.last().map_or(0, |offset| offset.as_usize());
    (start, end.saturating_sub(start))
}

fn offset_span<O: OffsetSizeTrait>(offsets: &[O]) -> usize {
    span_of(offsets).1
}

fn shown_list_bytes<O: OffsetSizeTrait>(list: &GenericListArray<O>) -> usize {
    let (start, length) = span_of(list.value_offsets());
    shown_bytes(&list.values().slice(start, length))
}

/// The same rows, with view arrays that hold little besides what they show: their encoding writes
/// every buffer in full.
fn compact_batch(batch: &RecordBatch) -> Result<RecordBatch> {
    if !batch.columns().iter().any(|column| has_views(column.data_type())) {
        return Ok(batch.clone());
    }
    let columns = batch.columns().iter().map(compact).collect::<Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(batch.schema(), columns, &options)?)
}

fn has_views(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8View | DataType::BinaryView => true,
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::FixedSizeList(field, _)
        | DataType::Map(field, _) => has_views(field.data_type()),
        DataType::Struct(fields) => fields.iter().any(|field| has_views(field.data_type())),
        _ => false,
    }
}

fn compact(array: &ArrayRef) -> Result<ArrayRef> {
    if !has_views(array.data_type()) {
        return Ok(Arc::clone(array));
    }
    Ok(match array.data_type() {
        DataType::Utf8View => {
            let views: &StringViewArray = array.as_string_view();
            let held = views.data_buffers().iter().map(|buffer| buffer.len()).sum::<usize>();
            let wasteful = is_wasteful(held, long_view_bytes(views.views()));
            if wasteful { Arc::new(views.gc()) } else { Arc::clone(array) }
        }
        DataType::BinaryView => {
            let views: &BinaryViewArray = array.as_binary_view();
            let held = views.data_buffers().iter().map(|buffer| buffer.len()).sum::<usize>();
            let wasteful = is_wasteful(held, long_view_bytes(views.views()));
            if wasteful { Arc::new(views.gc()) } else { Arc::clone(array) }
        }
        DataType::List(_) => compact_list(array.as_list::<i32>())?,
        DataType::LargeList(_) => compact_list(array.as_list::<i64>())?,
        DataType::FixedSizeList(field, size) => {
            let list = array.as_fixed_size_list();
            let values = compact(list.values())?;
            Arc::new(FixedSizeListArray::try_new(Arc::clone(field), *size, values, list.nulls().cloned())?)
        }
        DataType::Map(field, ordered) => {
            let map = array.as_map();
            let entries: ArrayRef = Arc::new(map.entries().clone());
            let entries = compact(&entries)?.as_struct().clone();
            Arc::new(MapArray::try_new(
                Arc::clone(field),
                map.offsets().clone(),
                entries,
                map.nulls().cloned(),
                *ordered,
            )?)
        }
        DataType::Struct(fields) => {
            let parts = array.as_struct();
            let columns = parts.columns().iter().map(compact).collect::<Result<Vec<_>>>()?;
            Arc::new(StructArray::try_new_with_length(fields.clone(), columns, parts.nulls().cloned(), parts.len())?)
        }
        _ => Arc::clone(array),
    })
}

/// Whether a copy of what is shown is worth it.
fn is_wasteful(held: usize, shown: usize) -> bool {
    held > shown.saturating_add(shown / 2).saturating_add(VIEW_SLACK_BYTES)
}

/// Only the values between the first and the last offset are looked at, so that slices stay small.
fn compact_list<O: OffsetSizeTrait>(list: &GenericListArray<O>) -> Result<ArrayRef> {
    let (DataType::List(field) | DataType::LargeList(field)) = list.data_type() else {
        return Err(Error::internal("a list array of another type"));
    };
    let (start, length) = span_of(list.value_offsets());
    let values = compact(&list.values().slice(start, length))?;
    let lengths = list.offsets().lengths();
    let offsets = arrow::buffer::OffsetBuffer::from_lengths(lengths);
    Ok(Arc::new(GenericListArray::<O>::try_new(Arc::clone(field), offsets, values, list.nulls().cloned())?))
}

/// Ends a stream with an error when its guard says so, and frees everything as soon as it has ended.
struct Guarded {
    messages: Option<BoxStream<'static, Result<FlightData, Status>>>,
    ended: BoxFuture<'static, Error>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Stream for Guarded {
    type Item = Result<FlightData, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let Some(messages) = this.messages.as_mut() else { return Poll::Ready(None) };
        if let Poll::Ready(error) = this.ended.as_mut().poll(cx) {
            this.messages = None;
            return Poll::Ready(Some(Err(error.to_status())));
        }
        let next = messages.poll_next_unpin(cx);
        if !matches!(next, Poll::Pending | Poll::Ready(Some(Ok(_)))) {
            this.messages = None;
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, ListBuilder, StringViewBuilder};
    use arrow::datatypes::{Field, Schema};

    use super::*;

    fn batch_of(column: ArrayRef) -> RecordBatch {
        let field = Field::new("a", column.data_type().clone(), true);
        RecordBatch::try_new(Arc::new(Schema::new(vec![field])), vec![column]).unwrap()
    }

    fn held_bytes(batch: &RecordBatch) -> usize {
        batch.columns().iter().map(|column| column.get_buffer_memory_size()).sum()
    }

    #[test]
    fn a_wide_batch_is_split_and_keeps_rows_and_order() {
        let batch = batch_of(Arc::new(Int64Array::from_iter_values(0..1_000_000)));
        let pieces = split(batch, 16 << 20).unwrap();
        assert!(pieces.len() >= 8);
        let values: Vec<i64> = pieces
            .iter()
            .flat_map(|piece| piece.column(0).as_primitive::<arrow::datatypes::Int64Type>().values().to_vec())
            .collect();
        assert!(values.into_iter().eq(0..1_000_000));
    }

    #[test]
    fn pieces_of_a_view_array_do_not_carry_the_whole() {
        let text = "x".repeat(1000);
        let views: StringViewArray = (0..20_000).map(|_| Some(text.as_str())).collect();
        let pieces = split(batch_of(Arc::new(views)), 16 << 20).unwrap();
        assert_eq!(pieces.iter().map(RecordBatch::num_rows).sum::<usize>(), 20_000);
        assert!(pieces.iter().all(|piece| held_bytes(piece) < 3 << 20));
    }

    #[test]
    fn views_inside_lists_are_compacted_too() {
        let mut lists = ListBuilder::new(StringViewBuilder::new());
        for _ in 0..10_000 {
            lists.append_value([Some("y".repeat(500)), None, Some("short".to_owned())]);
        }
        let pieces = split(batch_of(Arc::new(lists.finish())), 16 << 20).unwrap();
        assert!(pieces.len() > 2 && pieces.iter().all(|piece| held_bytes(piece) < 3 << 20));
        let last = pieces.last().unwrap().column(0).as_list::<i32>();
        let values = last.value(last.len() - 1);
        assert_eq!(values.as_string_view().value(2), "short");
    }

    #[test]
    fn rows_of_uneven_size_still_fit() {
        let wide = "w".repeat(900_000);
        let texts = (0..2000).map(|row| if row == 700 { wide.as_str() } else { "a longer text than inline" });
        let column = arrow::array::StringArray::from_iter_values(texts);
        for piece in split(batch_of(Arc::new(column)), 16 << 20).unwrap() {
            assert!(shown_bytes(piece.column(0)) <= SPLIT_BYTES);
        }
    }

    #[test]
    fn one_row_above_the_limit_names_its_size_and_what_to_do() {
        let wide = "w".repeat(200_000);
        let column = arrow::array::StringArray::from_iter_values(["a", wide.as_str()]);
        let error = split(batch_of(Arc::new(column)), 100_000).unwrap_err();
        assert_eq!(error.code(), ErrorCode::LimitExceeded);
        assert!(error.to_string().contains("200"), "{error}");
        assert!(error.hint_text().unwrap().contains(MESSAGE_LIMIT_HEADER));
    }
}
