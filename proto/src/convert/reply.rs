//! Scan replies: Arrow IPC for batches, one message per batch of at most about a mebibyte.
//!
//! Strings travel in their dense form (`Utf8` for `Utf8View` and for dictionaries): views would
//! carry whole pages of which a selective filter kept a few rows. The receiver casts them back. What of
//! a column can be sent in fewer bytes is ([`super::narrow`], [`super::repeated`]).

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::ipc::reader::RecordBatchDecoder;
use arrow::ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
use arrow_flight::{FlightData, SchemaAsIpc};
use prost::Message;

use super::columns::{Encodings, arriving_schema, decode_columns, encode_columns};
use super::scan::{decode_statistics, encode_statistics};
use super::{guarded, required};
use crate::code::ErrorCode;
use crate::error::{Error, Result, ResultExt};
use crate::scan::{ScanEvent, ScanStatistics};
use crate::wire::storage as wire;
use crate::wire::storage::scan_reply::Event;

/// Bytes of one encoded batch that the encoder aims at: well below every message limit, large
/// enough that the costs of a message vanish.
const BATCH_BYTES_TARGET: usize = 1 << 20;

/// The type in which a column travels.
fn wire_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Utf8View => DataType::Utf8,
        DataType::BinaryView => DataType::Binary,
        DataType::Dictionary(_, values) => wire_type(values),
        other => other.clone(),
    }
}

fn holds_dictionary(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(..) => true,
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::FixedSizeList(field, _)
        | DataType::ListView(field)
        | DataType::LargeListView(field)
        | DataType::Map(field, _) => holds_dictionary(field.data_type()),
        DataType::Struct(fields) => fields.iter().any(|field| holds_dictionary(field.data_type())),
        DataType::Union(fields, _) => fields.iter().any(|(_, field)| holds_dictionary(field.data_type())),
        DataType::RunEndEncoded(_, values) => holds_dictionary(values.data_type()),
        _ => false,
    }
}

fn wire_schema(schema: &Schema) -> Result<SchemaRef> {
    let fields = schema.fields().iter().map(|field| {
        let data_type = wire_type(field.data_type());
        if holds_dictionary(&data_type) {
            let text = format!("column {} has a dictionary inside type {}", field.name(), field.data_type());
            return Err(Error::new(ErrorCode::NotSupported, text).hint("cast it to its value type"));
        }
        Ok(Field::new(field.name(), data_type, field.is_nullable()))
    });
    Ok(Arc::new(Schema::new(fields.collect::<Result<Vec<_>>>()?)))
}

/// About how many bytes a column takes once it is encoded.
fn encoded_bytes(column: &ArrayRef) -> usize {
    let values: usize = match column.data_type() {
        DataType::Utf8View => column.as_string_view().lengths().map(|length| length as usize).sum(),
        DataType::BinaryView => column.as_binary_view().lengths().map(|length| length as usize).sum(),
        // The values of a dictionary count once per row: that is how they travel.
        DataType::Dictionary(..) => column.len().saturating_mul(16),
        _ => return column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_buffer_memory_size()),
    };
    values.saturating_add(column.len().saturating_mul(4))
}

/// Turns the events of one scan into messages; the schema goes before the first batch.
pub struct ScanEncoder {
    schema: SchemaRef,
    plain: bool,
    schema_sent: bool,
    generator: IpcDataGenerator,
    dictionaries: DictionaryTracker,
    options: IpcWriteOptions,
    context: IpcWriteContext,
}

impl std::fmt::Debug for ScanEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScanEncoder").field("schema", &self.schema).finish_non_exhaustive()
    }
}

impl ScanEncoder {
    /// For batches of `schema`, which is the fragment's output schema.
    ///
    /// # Errors
    /// [`ErrorCode::NotSupported`] for a dictionary inside a nested type.
    pub fn new(schema: &SchemaRef) -> Result<Self> {
        Ok(Self {
            schema: wire_schema(schema)?,
            plain: false,
            schema_sent: false,
            generator: IpcDataGenerator::default(),
            dictionaries: DictionaryTracker::new(false),
            options: IpcWriteOptions::default(),
            context: IpcWriteContext::default(),
        })
    }

    /// The same, whose columns travel in their own types.
    #[must_use]
    pub fn plain(self, plain: bool) -> Self {
        Self { plain, ..self }
    }

    /// The messages for one event, in order.
    ///
    /// # Errors
    /// When a batch does not fit the schema.
    pub fn encode(&mut self, event: &ScanEvent) -> Result<Vec<wire::ScanReply>> {
        match event {
            ScanEvent::Batch { segment_index, batch, rows_through, .. } => {
                let segment_index = index_to_wire(*segment_index)?;
                self.encode_batch(batch, |rows_after| {
                    let rows_through = rows_through.saturating_sub(rows_after as u64);
                    Event::Batch(wire::BatchEvent { segment_index, rows_through })
                })
            }
            ScanEvent::Merged { batch, .. } => self.encode_batch(batch, |_| Event::Merged(wire::Merged {})),
            ScanEvent::MergedDone { segments } => {
                let segments = segments.iter().map(|(index, statistics)| segment_done(*index, statistics));
                let segments = segments.collect::<Result<_>>()?;
                Ok(vec![reply(Event::MergedDone(wire::MergedDone { segments }))])
            }
            ScanEvent::SegmentDone { segment_index, statistics } => {
                Ok(vec![reply(Event::SegmentDone(segment_done(*segment_index, statistics)?))])
            }
            ScanEvent::SegmentFailed { segment_index, error } => {
                let segment_index = index_to_wire(*segment_index)?;
                let error = Some(error.to_detail());
                Ok(vec![reply(Event::SegmentFailed(wire::SegmentFailed { segment_index, error }))])
            }
        }
    }

    /// A batch in pieces; `event` goes with each, and is told how many rows come after it.
    fn encode_batch(&mut self, batch: &RecordBatch, event: impl Fn(usize) -> Event) -> Result<Vec<wire::ScanReply>> {
        if batch.num_columns() != self.schema.fields().len() {
            return Err(Error::internal("a batch does not have the columns of the fragment's output"));
        }
        let mut replies = Vec::new();
        if !self.schema_sent {
            self.schema_sent = true;
            let data = FlightData::from(SchemaAsIpc::new(&self.schema, &self.options));
            replies.push(wire::ScanReply { data: Some(data), event: None, ..wire::ScanReply::default() });
        }
        let rows = batch.num_rows();
        let bytes: usize = batch.columns().iter().map(encoded_bytes).fold(0, usize::saturating_add);
        let pieces = bytes.div_ceil(BATCH_BYTES_TARGET).max(1);
        let rows_per_piece = rows.div_ceil(pieces).max(1);
        let mut offset = 0;
        while offset < rows {
            let length = rows_per_piece.min(rows - offset);
            let (piece, encodings) = encode_columns(&batch.slice(offset, length), &self.schema, self.plain)?;
            let encoded = self.generator.encode(&piece, &mut self.dictionaries, &self.options, &mut self.context)?.1;
            offset += length;
            let Encodings { narrowed, repeated } = encodings;
            let event = Some(event(rows - offset));
            replies.push(wire::ScanReply { data: Some(encoded.into()), event, narrowed, repeated });
        }
        Ok(replies)
    }
}

fn reply(event: Event) -> wire::ScanReply {
    wire::ScanReply { event: Some(event), ..wire::ScanReply::default() }
}

fn segment_done(index: usize, statistics: &ScanStatistics) -> Result<wire::SegmentDone> {
    Ok(wire::SegmentDone { segment_index: index_to_wire(index)?, statistics: Some(encode_statistics(statistics)) })
}

fn index_to_wire(index: usize) -> Result<u32> {
    u32::try_from(index).context(ErrorCode::LimitExceeded, || format!("segment index {index} is beyond 32 bits"))
}

fn index_from_wire(index: u32) -> Result<usize> {
    usize::try_from(index).context(ErrorCode::InvalidMessage, || format!("segment index {index} is too large"))
}

fn decode_segment_done(event: &wire::SegmentDone) -> Result<(usize, ScanStatistics)> {
    let statistics = decode_statistics(required(event.statistics.as_ref(), "segment_done.statistics")?);
    Ok((index_from_wire(event.segment_index)?, statistics))
}

/// Turns the messages of one scan back into events.
#[derive(Debug)]
pub struct ScanDecoder {
    expected: SchemaRef,
    wire: SchemaRef,
    schema_seen: bool,
    no_dictionaries: HashMap<i64, ArrayRef>,
}

impl ScanDecoder {
    /// For batches of `expected`, which is the fragment's output schema.
    ///
    /// # Errors
    /// As [`ScanEncoder::new`].
    pub fn new(expected: SchemaRef) -> Result<Self> {
        let wire = wire_schema(&expected)?;
        Ok(Self { expected, wire, schema_seen: false, no_dictionaries: HashMap::new() })
    }

    /// The event in a message; `None` for the schema message.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidMessage`] for a message that cannot be read or has another schema.
    pub fn decode(&mut self, reply: wire::ScanReply) -> Result<Option<ScanEvent>> {
        let wire_bytes = reply.encoded_len() as u64;
        let encodings = Encodings { narrowed: reply.narrowed, repeated: reply.repeated };
        match (reply.data, reply.event) {
            (Some(data), None) => self.check_schema(&data).map(|()| None),
            (Some(data), Some(Event::Batch(event))) => {
                let segment_index = index_from_wire(event.segment_index)?;
                let batch = self.decode_batch(data, &encodings)?;
                Ok(Some(ScanEvent::Batch { segment_index, batch, rows_through: event.rows_through, wire_bytes }))
            }
            (Some(data), Some(Event::Merged(_))) => {
                let batch = self.decode_batch(data, &encodings)?;
                Ok(Some(ScanEvent::Merged { batch, wire_bytes }))
            }
            (None, Some(Event::MergedDone(event))) => {
                let segments = event.segments.iter().map(decode_segment_done).collect::<Result<_>>()?;
                Ok(Some(ScanEvent::MergedDone { segments }))
            }
            (None, Some(Event::SegmentDone(event))) => {
                let (segment_index, statistics) = decode_segment_done(&event)?;
                Ok(Some(ScanEvent::SegmentDone { segment_index, statistics }))
            }
            (None, Some(Event::SegmentFailed(event))) => {
                let segment_index = index_from_wire(event.segment_index)?;
                let error = Error::from_detail(required(event.error, "segment_failed.error")?);
                Ok(Some(ScanEvent::SegmentFailed { segment_index, error }))
            }
            _ => Err(Error::new(ErrorCode::InvalidMessage, "a scan reply has neither data nor an event that is known")),
        }
    }

    fn check_schema(&mut self, data: &FlightData) -> Result<()> {
        let sent = Schema::try_from(data)
            .context(ErrorCode::InvalidMessage, || "the first scan reply has no Arrow schema".to_owned())?;
        let types = |schema: &Schema| schema.fields().iter().map(|field| field.data_type().clone()).collect::<Vec<_>>();
        if types(&sent) != types(&self.wire) {
            let text = format!("the node sent columns {:?} instead of {:?}", types(&sent), types(&self.wire));
            return Err(Error::new(ErrorCode::InvalidMessage, text));
        }
        self.schema_seen = true;
        Ok(())
    }

    fn decode_batch(&self, data: FlightData, encodings: &Encodings) -> Result<RecordBatch> {
        let invalid = |text: &str| Error::new(ErrorCode::InvalidMessage, text);
        if !self.schema_seen {
            return Err(invalid("a batch arrived before the schema"));
        }
        let message = arrow::ipc::root_as_message(&data.data_header)
            .map_err(|error| invalid("a scan reply is no Arrow IPC message").source(error.to_string()))?;
        let header = message.header_as_record_batch().ok_or_else(|| invalid("a scan reply has no record batch"))?;
        if !encodings.is_empty() {
            // What is encoded can have more rows than it has bytes: no more than fit into a batch that is not.
            let rows_fit = usize::try_from(header.length()).is_ok_and(|rows| rows <= BATCH_BYTES_TARGET);
            if !rows_fit || encodings.len() > self.wire.fields().len() {
                return Err(invalid("a scan reply encodes more rows or columns than a batch has"));
            }
        }
        let body = Buffer::from(data.data_body);
        let version = message.version();
        let schema = arriving_schema(&self.wire, &self.expected, encodings)?;
        let unreadable = || "a record batch in a scan reply cannot be read".to_owned();
        let read = || {
            RecordBatchDecoder::try_new(&body, header, schema, &self.no_dictionaries, &version)
                .and_then(RecordBatchDecoder::read_record_batch)
        };
        let batch = guarded(read, unreadable)?.context(ErrorCode::InvalidMessage, unreadable)?;
        decode_columns(batch, &self.wire, &self.expected, encodings)
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        BinaryViewArray, DictionaryArray, Int32Array, Int64Array, RecordBatchOptions, StringArray, StringViewArray,
    };
    use arrow::compute::concat_batches;
    use arrow::datatypes::Int32Type;

    use super::*;
    use crate::wire::storage::NarrowColumn;

    fn batch(rows: usize) -> RecordBatch {
        let texts: Vec<String> = (0..rows).map(|row| format!("text number {row} that is not inline")).collect();
        let words: DictionaryArray<Int32Type> = texts.iter().map(|text| &text[..4]).collect();
        RecordBatch::try_from_iter_with_nullable([
            ("a", Arc::new(Int64Array::from_iter_values(0..rows as i64)) as ArrayRef, false),
            ("b", Arc::new(StringViewArray::from_iter_values(&texts)) as ArrayRef, true),
            ("c", Arc::new(words) as ArrayRef, true),
            ("d", Arc::new(BinaryViewArray::from_iter_values(texts.iter().map(String::as_bytes))) as ArrayRef, true),
            ("e", Arc::new(StringArray::from_iter(texts.iter().map(|text| text.ends_with('7').then_some(text)))), true),
        ])
        .unwrap()
    }

    fn round_trip(batch: &RecordBatch) -> Vec<ScanEvent> {
        let event = ScanEvent::Batch { segment_index: 3, batch: batch.clone(), rows_through: 1_000_000, wire_bytes: 0 };
        let mut encoder = ScanEncoder::new(&batch.schema()).unwrap();
        let mut decoder = ScanDecoder::new(batch.schema()).unwrap();
        let replies = encoder.encode(&event).unwrap();
        replies.into_iter().filter_map(|reply| decoder.decode(reply).unwrap()).collect()
    }

    fn parts(events: Vec<ScanEvent>) -> Vec<(RecordBatch, u64, u64)> {
        let part = |event| match event {
            ScanEvent::Batch { batch, rows_through, wire_bytes, .. } => (batch, rows_through, wire_bytes),
            other => panic!("{other:?}"),
        };
        events.into_iter().map(part).collect()
    }

    #[test]
    fn a_batch_comes_back_with_its_types() {
        let sent = batch(100).slice(7, 20);
        let received = parts(round_trip(&sent));
        assert_eq!(received.len(), 1);
        assert_eq!((&received[0].0, received[0].1), (&sent, 1_000_000));
        assert!((2_000..6_000).contains(&received[0].2), "{}", received[0].2);
    }

    #[test]
    fn a_large_batch_travels_in_pieces_of_a_mebibyte() {
        let sent = batch(40_000);
        let received = parts(round_trip(&sent));
        assert!(received.len() > 3);
        assert!(received.iter().all(|(_, _, bytes)| *bytes < 3 << 19));
        assert_eq!(received.last().unwrap().1, 1_000_000);
        assert_eq!(received[0].1, 1_000_000 - 40_000 + received[0].0.num_rows() as u64);
        let batches: Vec<_> = received.into_iter().map(|(batch, _, _)| batch).collect();
        assert_eq!(concat_batches(&sent.schema(), &batches).unwrap(), sent);
    }

    #[test]
    fn a_few_rows_of_a_large_view_array_are_small_on_the_wire() {
        let received = parts(round_trip(&batch(40_000).slice(5, 2)));
        assert!(received[0].2 < 4_000, "{}", received[0].2);
    }

    #[test]
    fn rows_without_columns_are_counted() {
        let options = RecordBatchOptions::new().with_row_count(Some(42));
        let sent = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), vec![], &options).unwrap();
        assert_eq!(parts(round_trip(&sent))[0].0.num_rows(), 42);
    }

    #[test]
    fn merged_rows_come_back() {
        let sent = batch(3);
        let mut encoder = ScanEncoder::new(&sent.schema()).unwrap();
        let mut decoder = ScanDecoder::new(sent.schema()).unwrap();
        let replies = encoder.encode(&ScanEvent::Merged { batch: sent.clone(), wire_bytes: 0 }).unwrap();
        let events: Vec<_> = replies.into_iter().filter_map(|reply| decoder.decode(reply).unwrap()).collect();
        assert!(matches!(&events[..], [ScanEvent::Merged { batch, wire_bytes: 1.. }] if *batch == sent), "{events:?}");
    }

    #[test]
    fn columns_travel_in_the_bytes_that_they_need() {
        let sent = RecordBatch::try_from_iter([
            ("key", Arc::new(Int64Array::from_iter_values(7_000_000..7_001_000)) as ArrayRef),
            ("same", Arc::new(Int64Array::from(vec![5; 1_000]))),
            ("text", Arc::new(StringViewArray::from(vec!["one word"; 1_000]))),
            (
                "number",
                Arc::new(DictionaryArray::new(
                    Int32Array::from(vec![0; 1_000]),
                    Arc::new(Int64Array::from(vec![1 << 40])),
                )),
            ),
        ])
        .unwrap();
        let received = parts(round_trip(&sent));
        assert_eq!(received[0].0, sent);
        let event = ScanEvent::Merged { batch: sent.clone(), wire_bytes: 0 };
        let plain = ScanEncoder::new(&sent.schema()).unwrap().plain(true).encode(&event).unwrap();
        assert!(plain.iter().map(Message::encoded_len).sum::<usize>() > 30_000, "as they are");
        assert!(received[0].2 < 4_500, "{} bytes for 1000 rows of 2 + 0 + 1 + 0", received[0].2);
    }

    #[test]
    fn narrowed_columns_that_cannot_be_are_refused() {
        let sent = RecordBatch::try_from_iter([("key", Arc::new(Int64Array::from_iter_values(0..100)) as ArrayRef)]);
        let sent = sent.unwrap();
        for (index, bytes) in [(1, 1), (u32::MAX, 1), (0, 2), (0, 5), (0, 8)] {
            let event = ScanEvent::Merged { batch: sent.clone(), wire_bytes: 0 };
            let mut replies = ScanEncoder::new(&sent.schema()).unwrap().encode(&event).unwrap();
            let mut decoder = ScanDecoder::new(sent.schema()).unwrap();
            let mut last = replies.pop().unwrap();
            decoder.decode(replies.pop().unwrap()).unwrap();
            last.narrowed = vec![NarrowColumn { index, bytes, base: 0 }];
            assert_eq!(decoder.decode(last).unwrap_err().code(), ErrorCode::InvalidMessage, "{index} {bytes}");
        }
    }

    #[test]
    fn the_ends_of_segments_come_back() {
        let schema: SchemaRef = Arc::new(Schema::empty());
        let mut encoder = ScanEncoder::new(&schema).unwrap();
        let mut decoder = ScanDecoder::new(schema).unwrap();
        let statistics = ScanStatistics { rows_in: 7, bytes_read: 9, ..ScanStatistics::default() };
        let done = ScanEvent::SegmentDone { segment_index: 1, statistics };
        let failed =
            ScanEvent::SegmentFailed { segment_index: 2, error: Error::new(ErrorCode::SegmentCorrupt, "flipped") };
        let merged = ScanEvent::MergedDone { segments: vec![(4, statistics), (0, ScanStatistics::default())] };
        for sent in [done, failed, merged] {
            let replies = encoder.encode(&sent).unwrap();
            let received = decoder.decode(replies.into_iter().next().unwrap()).unwrap().unwrap();
            assert_eq!(format!("{received:?}"), format!("{sent:?}"));
        }
    }

    #[test]
    fn another_schema_is_refused() {
        let sent = batch(3);
        let mut encoder = ScanEncoder::new(&sent.schema()).unwrap();
        let event = ScanEvent::Batch { segment_index: 0, batch: sent, rows_through: 3, wire_bytes: 0 };
        let replies = encoder.encode(&event).unwrap();
        let mut decoder = ScanDecoder::new(Arc::new(Schema::empty())).unwrap();
        let error = decoder.decode(replies.into_iter().next().unwrap()).unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidMessage);
    }
}
