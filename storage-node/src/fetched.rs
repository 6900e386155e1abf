//! Scans over columns that were fetched from a node: what a coordinator does when the node is short of CPU.
//!
//! The same code runs as at the node, and so gives the same rows in the same order: a scan that a node began can be
//! ended here, and the other way round. All bytes that it may need are fetched before it begins, since it does not wait
//! for the network.

use std::collections::BTreeMap;
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

use crate::cpu::CpuPool;
use crate::limits::{BLOCK_BYTES, FETCHED_FOOTER_BYTES};
use crate::options::StorageNodeOptions;
use crate::scan::{self, Footer, FragmentPlan, ScanBounds, ScanContext, ScanResources, SegmentSource};
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
    /// Fetches the footer of a segment and the columns that `fragment` reads. `length_bytes` are those of the whole file;
    /// `reserve` is told how many bytes of columns will come, before any does.
    ///
    /// # Errors
    /// Those of `reader` and of `reserve`; `FileUnreadable` when the footer cannot be decoded.
    pub async fn fetch(
        id: SegmentId,
        length_bytes: u64,
        fragment: &Fragment,
        reader: &dyn RangeReader,
        reserve: impl FnOnce(u64) -> Result<()>,
    ) -> Result<Self> {
        let metadata = ParquetMetaDataReader::new()
            .with_page_index_policy(PageIndexPolicy::Optional)
            .with_prefetch_hint(Some(FETCHED_FOOTER_BYTES))
            .load_and_finish(FooterReader(reader), length_bytes)
            .await
            .map_err(|error| unreadable(id, error))?;
        let ranges = column_ranges(id, &metadata, fragment, length_bytes)?;
        reserve(ranges.iter().map(|range| range.end - range.start).sum())?;
        // No ranges would mean the whole segment; rows that are only counted need no column.
        let columns = if ranges.is_empty() { Vec::new() } else { reader.read(&ranges).await? };
        let blocks: Vec<Blocks> =
            ranges.iter().zip(columns).map(|(range, bytes)| Blocks { start: range.start, bytes }).collect();
        let bytes = blocks.iter().map(|blocks| blocks.bytes.len() as u64).sum();
        let file = FetchedFile { id, length_bytes, blocks };
        Ok(Self { id, footer: Footer::new(Arc::new(file), Arc::new(metadata))?, bytes })
    }

    /// Bytes of columns that it holds.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
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
    fragment: &Fragment,
    length_bytes: u64,
) -> Result<Vec<Range<u64>>> {
    let plan = FragmentPlan::new(fragment)?;
    let names: Vec<&str> = plan
        .all_columns
        .iter()
        .filter_map(|index| fragment.scan_schema().fields().get(*index))
        .map(|field| field.name().as_str())
        .collect();
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for column in metadata.row_groups().iter().flat_map(|group| group.columns()) {
        let root = column.column_path().parts().first();
        if !root.is_some_and(|root| names.contains(&root.as_str())) {
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

/// The fetched segments of one scan.
#[derive(Debug)]
struct FetchedSegments(BTreeMap<SegmentId, Arc<Footer>>);

impl SegmentSource for FetchedSegments {
    fn footer(&self, id: SegmentId) -> Result<(Arc<Footer>, u64)> {
        let footer = self.0.get(&id).map(Arc::clone);
        footer.map(|footer| (footer, 0)).ok_or_else(|| Error::internal(format!("segment {id} was not fetched")))
    }

    // The node has verified what it sent.
    fn quarantine(&self, _id: SegmentId, _reason: &Error) {}
}

/// Runs fragments over fetched segments. Dropping it ends its threads once their work is done.
#[derive(Debug)]
pub struct FragmentRunner {
    clock: Arc<dyn Clock>,
    cpu: Arc<CpuPool>,
    tasks: TaskGroup,
}

impl FragmentRunner {
    /// With so many threads; its scans are tasks of `tasks`.
    ///
    /// # Errors
    /// When the machine has no threads left.
    pub fn new(clock: Arc<dyn Clock>, threads: usize, tasks: TaskGroup) -> Result<Self> {
        let cpu = Arc::new(CpuPool::new(threads, Arc::clone(&clock))?);
        Ok(Self { clock, cpu, tasks })
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
        let defaults = StorageNodeOptions::new("", "");
        let resources = ScanResources {
            clock: Arc::clone(&self.clock),
            cpu: Arc::clone(&self.cpu),
            segments: Arc::new(FetchedSegments(BTreeMap::from([(segment.id, Arc::new(segment.footer))]))),
            memory_bytes: defaults.scan_memory_bytes,
            batch_rows: defaults.batch_rows,
            results: None,
        };
        let context = Arc::new(ScanContext::new(resources, &request.fragment, request.batch_rows)?);
        let bounds = ScanBounds {
            deadline: Deadline::after(self.clock.as_ref(), request.header.timeout),
            stopping: self.tasks.stopping(),
            segments_at_a_time: 1,
        };
        let scans = request.segments.into_iter().filter(|scan| scan.segment_id == segment.id).collect();
        Ok(scan::start(context, scans, bounds, &self.tasks, guard))
    }
}
