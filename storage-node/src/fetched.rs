//! Scans over columns that were fetched from a node: what a coordinator does when the node is short of CPU.
//!
//! The same code runs as at the node, and so gives the same rows in the same order: a scan that a node began can be
//! ended here, and the other way round. All bytes that it may need are fetched before it begins, since it does not wait
//! for the network.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use aubade_environment::{Clock, Deadline, TaskGroup};
use aubade_proto::{Error, ErrorCode, Fragment, Result, ScanEvent, ScanRequest, SegmentId};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use parquet::arrow::async_reader::MetadataFetch;
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};

use crate::cpu::{CpuPool, CpuUse};
use crate::decoded::{ColumnDecoder, DecodedSegment, DecodedSegments, missing};
use crate::limits::{BLOCK_BYTES, FETCHED_FOOTER_BYTES};
use crate::options::StorageNodeOptions;
use crate::scan::{
    self, Footer, OpenSegment, ResultCache, ScanBounds, ScanContext, ScanResources, SegmentSource, columns_of,
};
use crate::segment_store::{Blocks, SegmentBytes};

/// Reads ranges of one segment from wherever it is, verified.
#[async_trait]
pub trait RangeReader: Debug + Send + Sync {
    /// The bytes of each range, in the same order.
    ///
    /// # Errors
    /// When they cannot be had.
    async fn read(&self, ranges: &[Range<u64>]) -> Result<Vec<Bytes>>;
}

/// The columns of a segment that a fragment reads, in memory.
#[derive(Debug)]
pub struct FetchedSegment {
    id: SegmentId,
    footer: Footer,
    bytes: u64,
}

impl FetchedSegment {
    /// Fetches the footer of a segment and `columns` of it, as far as it has them; [`columns_read`] gives those of a
    /// fragment. `length_bytes` are those of the whole file; `reserve` is told how many bytes of columns will come, before
    /// any does.
    ///
    /// # Errors
    /// Those of `reader` and of `reserve`; `FileUnreadable` when the footer cannot be decoded.
    pub async fn fetch(
        id: SegmentId,
        length_bytes: u64,
        columns: &[Arc<str>],
        reader: &dyn RangeReader,
        reserve: impl FnOnce(u64) -> Result<()>,
    ) -> Result<Self> {
        let metadata = ParquetMetaDataReader::new()
            .with_page_index_policy(PageIndexPolicy::Optional)
            .with_prefetch_hint(Some(FETCHED_FOOTER_BYTES))
            .load_and_finish(FooterReader(reader), length_bytes)
            .await
            .map_err(|error| unreadable(id, error))?;
        let ranges = column_ranges(id, &metadata, columns, length_bytes)?;
        reserve(ranges.iter().map(|range| range.end - range.start).sum())?;
        // No ranges would mean the whole segment; rows that are only counted need no column.
        let read = if ranges.is_empty() { Vec::new() } else { reader.read(&ranges).await? };
        let blocks: Vec<Blocks> =
            ranges.iter().zip(read).map(|(range, bytes)| Blocks { start: range.start, bytes }).collect();
        let bytes = blocks.iter().map(|blocks| blocks.bytes.len() as u64).sum();
        let file = FetchedFile { id, length_bytes, blocks };
        Ok(Self { id, footer: Footer::new(Arc::new(file), Arc::new(metadata))?, bytes })
    }

    /// Bytes of columns that it holds.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// The columns that a fragment reads, by their names.
///
/// # Errors
/// When the fragment does not fit together.
pub fn columns_read(fragment: &Fragment) -> Result<Vec<Arc<str>>> {
    let projected = fragment.projection().iter().map(|column| &column.expression);
    let expressions: Vec<_> = projected.chain(fragment.filter()).cloned().collect();
    let schema = fragment.scan_schema();
    let columns = columns_of(&expressions, schema)?;
    let fields = columns.into_iter().filter_map(|index| schema.fields().get(index));
    Ok(fields.map(|field| Arc::from(field.name().as_str())).collect())
}

fn unreadable(id: SegmentId, error: ParquetError) -> Error {
    match error {
        ParquetError::External(error) => match error.downcast::<Error>() {
            Ok(error) => *error,
            Err(error) => {
                Error::new(ErrorCode::FileUnreadable, format!("the footer of segment {id} cannot be read: {error}"))
            }
        },
        error => {
            Error::new(ErrorCode::FileUnreadable, format!("the footer of segment {id} cannot be read")).source(error)
        }
    }
}

/// Whole blocks that cover the column chunks and Bloom filters which the fragment may read, in order and apart: readers
/// ask for what lies between two ranges of one block too.
fn column_ranges(
    id: SegmentId,
    metadata: &ParquetMetaData,
    names: &[Arc<str>],
    length_bytes: u64,
) -> Result<Vec<Range<u64>>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for column in metadata.row_groups().iter().flat_map(|group| group.columns()) {
        let root = column.column_path().parts().first();
        if !root.is_some_and(|root| names.iter().any(|name| **name == **root)) {
            continue;
        }
        let start = column.dictionary_page_offset().unwrap_or_else(|| column.data_page_offset());
        ranges.push(byte_range(id, start, column.compressed_size(), length_bytes)?);
        if let Some((start, length)) = column.bloom_filter_offset().zip(column.bloom_filter_length()) {
            ranges.push(byte_range(id, start, i64::from(length), length_bytes)?);
        }
    }
    ranges.sort_unstable_by_key(|range| range.start);
    let block = BLOCK_BYTES as u64;
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        let whole = range.start / block * block..range.end.div_ceil(block).saturating_mul(block).min(length_bytes);
        match merged.last_mut() {
            Some(last) if whole.start <= last.end => last.end = last.end.max(whole.end),
            _ => merged.push(whole),
        }
    }
    Ok(merged)
}

/// A range that a footer names.
fn byte_range(id: SegmentId, start: i64, length: i64, length_bytes: u64) -> Result<Range<u64>> {
    let range = u64::try_from(start).ok().zip(start.checked_add(length).and_then(|end| u64::try_from(end).ok()));
    match range {
        Some((start, end)) if start <= end && end <= length_bytes => Ok(start..end),
        _ => {
            let text = format!("the footer of segment {id} names {length} bytes from {start} on, of {length_bytes}");
            Err(Error::new(ErrorCode::FileUnreadable, text))
        }
    }
}

/// Reads a footer.
struct FooterReader<'a>(&'a dyn RangeReader);

impl MetadataFetch for FooterReader<'_> {
    fn fetch(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        async move {
            let read = self.0.read(std::slice::from_ref(&range)).await;
            let bytes = read.map_err(|error| ParquetError::External(Box::new(error)))?.pop();
            bytes.ok_or_else(|| ParquetError::EOF("no bytes came".to_owned()))
        }
        .boxed()
    }
}

/// The ranges of a segment that are in memory.
#[derive(Debug)]
struct FetchedFile {
    id: SegmentId,
    length_bytes: u64,
    blocks: Vec<Blocks>,
}

impl SegmentBytes for FetchedFile {
    fn segment_id(&self) -> SegmentId {
        self.id
    }

    fn length_bytes(&self) -> u64 {
        self.length_bytes
    }

    fn read_blocks(&self, range: &Range<u64>) -> Result<Blocks> {
        let found = self.blocks.iter().find_map(|blocks| blocks.slice(range));
        let bytes = found.ok_or_else(|| {
            Error::internal(format!("bytes {}..{} of segment {} were not fetched", range.start, range.end, self.id))
        })?;
        Ok(Blocks { start: range.start, bytes })
    }
}

/// The segment of a scan whose bytes are in memory.
#[derive(Debug)]
struct OneFetched(SegmentId, Arc<Footer>);

impl SegmentSource for OneFetched {
    fn open(&self, id: SegmentId) -> Result<OpenSegment> {
        if id != self.0 {
            return Err(missing(id));
        }
        Ok(OpenSegment { footer: Arc::clone(&self.1), footer_bytes_read: 0, decoded: None })
    }

    // The node has verified what it sent.
    fn quarantine(&self, _id: SegmentId, _reason: &Error) {}
}

/// Segments whose columns are in memory. They are asked for when their turn comes: one that waits holds nothing.
#[derive(Debug)]
struct Decoded(Arc<dyn DecodedSegments>);

impl SegmentSource for Decoded {
    fn open(&self, id: SegmentId) -> Result<OpenSegment> {
        let segment = self.0.find(id).ok_or_else(|| missing(id))?;
        Ok(OpenSegment { footer: Arc::clone(&segment.footer), footer_bytes_read: 0, decoded: Some(segment) })
    }

    fn quarantine(&self, _id: SegmentId, _reason: &Error) {}
}

/// Runs fragments over fetched segments. Dropping it ends its threads once their work is done.
#[derive(Debug)]
pub struct FragmentRunner {
    clock: Arc<dyn Clock>,
    cpu: Arc<CpuPool>,
    tasks: TaskGroup,
    /// Of fragments over decoded segments.
    results: ResultCache,
    /// What decoding has used so far: queries have their turns first.
    decoding: Arc<CpuUse>,
}

impl FragmentRunner {
    /// With so many threads; its scans are tasks of `tasks`. It keeps results of fragments over decoded segments, up to
    /// `results_bytes`.
    ///
    /// # Errors
    /// When the machine has no threads left.
    pub fn new(clock: Arc<dyn Clock>, threads: usize, tasks: TaskGroup, results_bytes: u64) -> Result<Self> {
        let cpu = Arc::new(CpuPool::new(threads, Arc::clone(&clock))?);
        Ok(Self { clock, cpu, tasks, results: ResultCache::new(results_bytes), decoding: Arc::default() })
    }

    /// Forgets all results.
    pub fn discard_results(&self) {
        self.results.clear();
    }

    /// Runs the fragment of `request` over one of its segments, as the node would. `guard` is dropped when the work has
    /// ended.
    ///
    /// # Errors
    /// When the fragment does not fit together.
    pub fn scan(
        &self,
        request: ScanRequest,
        segment: FetchedSegment,
        guard: impl Send + 'static,
    ) -> Result<BoxStream<'static, Result<ScanEvent>>> {
        let mut request = request;
        request.segments.retain(|scan| scan.segment_id == segment.id);
        self.start(request, Arc::new(OneFetched(segment.id, Arc::new(segment.footer))), None, guard)
    }

    /// Runs the fragment of `request` over segments whose columns have been decoded.
    ///
    /// # Errors
    /// When the fragment does not fit together. Segments that are not found fail with `SegmentNotFound`.
    pub fn scan_decoded(
        &self,
        request: ScanRequest,
        segments: Arc<dyn DecodedSegments>,
    ) -> Result<BoxStream<'static, Result<ScanEvent>>> {
        let results = request.may_keep_results.then(|| self.results.clone());
        self.start(request, Arc::new(Decoded(segments)), results, ())
    }

    /// Decodes columns of a segment, which have to be fetched with it. One that its file lacks is empty.
    ///
    /// # Errors
    /// `FileUnreadable` when a column cannot be decoded.
    pub async fn decode(&self, segment: FetchedSegment, columns: &[Arc<str>]) -> Result<DecodedSegment> {
        let fetched = Arc::new(segment.footer);
        // The bytes go when the columns have been decoded.
        let length_bytes = fetched.file.length_bytes();
        let footer = Footer {
            file: Arc::new(FetchedFile { id: segment.id, length_bytes, blocks: Vec::new() }),
            metadata: Arc::clone(&fetched.metadata),
            arrow: fetched.arrow.clone(),
        };
        let mut decoded = DecodedSegment::new(segment.id, Arc::new(footer));
        for name in columns {
            let mut decoder = ColumnDecoder::new();
            loop {
                let (footer, name) = (Arc::clone(&fetched), Arc::clone(name));
                let work = move || decoder.next(&footer, &name).map(|more| (decoder, more));
                let more;
                (decoder, more) = self.cpu.run(&self.decoding, work).await??;
                if !more {
                    break;
                }
            }
            let column = self.cpu.run(&self.decoding, move || decoder.finish()).await??;
            decoded.add(Arc::clone(name), Arc::new(column));
        }
        Ok(decoded)
    }

    fn start(
        &self,
        request: ScanRequest,
        segments: Arc<dyn SegmentSource>,
        results: Option<ResultCache>,
        guard: impl Send + 'static,
    ) -> Result<BoxStream<'static, Result<ScanEvent>>> {
        let defaults = StorageNodeOptions::new("", "");
        let resources = ScanResources {
            clock: Arc::clone(&self.clock),
            cpu: Arc::clone(&self.cpu),
            segments,
            memory_bytes: defaults.scan_memory_bytes,
            batch_rows: defaults.batch_rows,
            results,
        };
        let context = Arc::new(ScanContext::new(resources, &request.fragment, request.batch_rows)?);
        let bounds = ScanBounds {
            deadline: Deadline::after(self.clock.as_ref(), request.header.timeout),
            stopping: self.tasks.stopping(),
            segments_at_a_time: 1,
        };
        Ok(scan::start(context, request.segments, bounds, &self.tasks, guard))
    }
}
