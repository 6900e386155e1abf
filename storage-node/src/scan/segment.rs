//! The scan of one segment, a step at a time: each step runs on the CPU pool and ends after a batch
//! or a row group, so that scans take turns and nothing runs on for a caller that is gone.
//!
//! ```text
//! New --open--> Reading --(row group by row group)--> Finished
//! ```

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, BooleanBufferBuilder, RecordBatch, RecordBatchOptions};
use arrow::buffer::BooleanBuffer;
use arrow::compute::{concat, filter};
use aubade_proto::{Error, ErrorCode, Result, ScanStatistics, SegmentScan};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder, RowSelection,
};
use parquet::file::metadata::RowGroupMetaData;

use super::columns::FileColumns;
use super::output::Output;
use super::plan::{FilterStage, FragmentPlan};
use super::prune::GroupAccess;
use super::reader::SegmentReader;
use super::request::ScanContext;

/// Batches that one step decodes at most, when none of them yields output.
const STEP_BATCHES_MAX: usize = 16;
/// Share of rows that pass the filter above which the next row group is decoded in one pass: then
/// late materialisation saves little, and keeping columns apart costs copies.
const DENSE: f64 = 0.6;

/// What a step came to.
pub(crate) enum Step {
    /// The segment is open; about so many bytes will be held while it is read.
    Opened { memory_bytes: u64 },
    /// Rows to send, and the output rows up to their end.
    Batch { batch: RecordBatch, rows_through: u64 },
    /// Nothing to send yet.
    Continue,
    /// All of the segment was read, or the limit is reached.
    Done(ScanStatistics),
}

/// Why a step failed.
pub(crate) enum StepError {
    /// The segment cannot be read here; another replica may serve it.
    Segment(Error),
    /// The fragment fails on the data, at every replica.
    Fragment(Error),
}

type StepResult<T> = Result<T, StepError>;

fn segment<T>(result: Result<T>) -> StepResult<T> {
    result.map_err(StepError::Segment)
}

fn fragment<T>(result: Result<T>) -> StepResult<T> {
    result.map_err(StepError::Fragment)
}

/// See the module's doc.
pub(crate) struct SegmentScanner {
    context: Arc<ScanContext>,
    scan: SegmentScan,
    statistics: ScanStatistics,
    output: Output,
    state: State,
}

enum State {
    New,
    Reading(Box<Reading>),
    Finished,
}

struct Reading {
    files: SegmentFiles,
    groups: VecDeque<GroupAccess>,
    current: Option<GroupReading>,
    /// Whether the last filter in stages kept most rows.
    dense: bool,
}

/// An open segment with what is needed to make readers for its row groups.
struct SegmentFiles {
    plan: Arc<FragmentPlan>,
    columns: Arc<FileColumns>,
    metadata: ArrowReaderMetadata,
    reader: SegmentReader,
    footer_bytes_read: u64,
    batch_rows: usize,
}

/// A row group in its last pass.
struct GroupReading {
    /// `None` where the stages of the filter have left no column to read.
    reader: Option<ParquetRecordBatchReader>,
    /// Scan columns that `reader` yields, ascending.
    columns: Vec<usize>,
    kept: Kept,
    /// Rows of `kept` that were handed on.
    offset: usize,
    /// Whether the stages of the filter have run; if not, the filter still has to be applied.
    filtered: bool,
}

/// Columns decoded by the stages of the filter, for the rows that passed so far.
#[derive(Default)]
struct Kept {
    rows: usize,
    columns: Vec<(usize, ArrayRef)>,
}

impl Kept {
    fn has(&self, column: usize) -> bool {
        self.columns.iter().any(|(index, _)| *index == column)
    }
}

impl SegmentScanner {
    pub(crate) fn new(context: Arc<ScanContext>, scan: SegmentScan) -> Self {
        let output = Output::new(Arc::clone(&context.plan), context.output_batch_rows(scan.skip_rows), scan.skip_rows);
        Self { context, scan, statistics: ScanStatistics::default(), output, state: State::New }
    }

    /// Does the next piece of work.
    pub(crate) fn step(&mut self) -> StepResult<Step> {
        let clock = Arc::clone(&self.context.clock);
        let started = clock.now();
        let mut result = self.advance();
        let micros = clock.now().saturating_sub(started).as_micros();
        self.statistics.cpu_micros += u64::try_from(micros).unwrap_or(u64::MAX);
        match &mut result {
            Ok(Step::Done(statistics)) => *statistics = self.statistics,
            Ok(_) => {}
            Err(error) => {
                self.state = State::Finished;
                self.put_aside_if_corrupt(error);
            }
        }
        result
    }

    fn put_aside_if_corrupt(&self, error: &StepError) {
        if let StepError::Segment(error) = error
            && error.code() == ErrorCode::SegmentCorrupt
        {
            self.context.segments.quarantine(self.scan.segment_id, error);
        }
    }

    fn advance(&mut self) -> StepResult<Step> {
        if self.context.limit.is_reached() {
            return Ok(self.finish());
        }
        match self.state {
            State::New => self.open(),
            State::Reading(_) => self.read(),
            State::Finished => Ok(Step::Done(self.statistics)),
        }
    }

    fn open(&mut self) -> StepResult<Step> {
        let files = SegmentFiles::open(&self.context, self.scan)?;
        let (metadata, schema) = (files.metadata.metadata(), &files.columns.reader_schema);
        let groups = files.columns.pruner.prune(&files.reader, metadata, schema, &mut self.statistics);
        let memory_bytes = files.memory_bytes(&groups);
        self.state = State::Reading(Box::new(Reading { files, groups: groups.into(), current: None, dense: false }));
        Ok(Step::Opened { memory_bytes })
    }

    fn read(&mut self) -> StepResult<Step> {
        for _ in 0..STEP_BATCHES_MAX {
            if let Some((batch, rows_through)) = fragment(self.output.pop(&self.context.limit, false))? {
                return Ok(Step::Batch { batch, rows_through });
            }
            let State::Reading(reading) = &mut self.state else { break };
            if let Some(group) = &mut reading.current {
                match group.next(&reading.files, &mut self.statistics)? {
                    Some((batch, mask)) => fragment(self.output.push(batch, mask.as_ref()))?,
                    None => {
                        reading.current = None;
                        return Ok(Step::Continue);
                    }
                }
            } else if let Some(access) = reading.groups.pop_front() {
                reading.current = reading.files.open_group(access, &mut reading.dense, &mut self.statistics)?;
            } else {
                return self.drain();
            }
        }
        Ok(Step::Continue)
    }

    /// Hands out what is left once all row groups were read.
    fn drain(&mut self) -> StepResult<Step> {
        fragment(self.output.flush())?;
        match fragment(self.output.pop(&self.context.limit, true))? {
            Some((batch, rows_through)) => Ok(Step::Batch { batch, rows_through }),
            None => Ok(self.finish()),
        }
    }

    fn finish(&mut self) -> Step {
        if let State::Reading(reading) = &self.state {
            self.statistics.bytes_read = reading.files.bytes_read();
        }
        self.statistics.rows_out = self.output.rows_through();
        self.state = State::Finished;
        Step::Done(self.statistics)
    }
}

impl SegmentFiles {
    fn open(context: &ScanContext, scan: SegmentScan) -> StepResult<Self> {
        let (footer, footer_bytes_read) = segment(context.segments.footer(scan.segment_id))?;
        let reader = SegmentReader::new(Arc::clone(&footer.file));
        let columns = context.columns_of(&footer);
        let options = match columns.reader_schema == footer.schema {
            true => ArrowReaderOptions::new(),
            false => ArrowReaderOptions::new().with_schema(Arc::clone(&columns.reader_schema)),
        };
        let metadata = ArrowReaderMetadata::try_new(Arc::clone(&footer.metadata), options);
        let metadata = segment(metadata.map_err(|error| reader.explain(error)))?;
        let plan = Arc::clone(&context.plan);
        Ok(Self { plan, columns, metadata, reader, footer_bytes_read, batch_rows: context.decode_batch_rows() })
    }

    fn bytes_read(&self) -> u64 {
        self.footer_bytes_read + self.reader.bytes_read()
    }

    /// About what is held at a time: the compressed and the decoded columns of one row group.
    fn memory_bytes(&self, groups: &[GroupAccess]) -> u64 {
        let metadata = self.metadata.metadata();
        let mask = self.columns.mask(metadata, &self.plan.all_columns);
        let of_group = |index: usize| {
            let chunks = metadata.row_groups().get(index)?.columns().iter().enumerate();
            let chunks = chunks.filter(|(leaf, _)| mask.leaf_included(*leaf));
            let bytes = chunks.map(|(_, chunk)| chunk.compressed_size().saturating_add(chunk.uncompressed_size()));
            Some(bytes.map(|bytes| u64::try_from(bytes).unwrap_or(0)).fold(0, u64::saturating_add))
        };
        groups.iter().filter_map(|(index, _)| of_group(*index)).max().unwrap_or(0)
    }

    /// A reader of `columns` for the selected rows of a row group, with their pages in memory.
    fn reader(
        &self,
        group: usize,
        columns: &[usize],
        selection: Option<RowSelection>,
    ) -> StepResult<ParquetRecordBatchReader> {
        let mask = self.columns.mask(self.metadata.metadata(), columns);
        let ranges = self.page_ranges(group, &mask, selection.as_ref());
        let reader = segment(self.reader.load(ranges))?;
        let mut builder = ParquetRecordBatchReaderBuilder::new_with_metadata(reader, self.metadata.clone())
            .with_row_groups(vec![group])
            .with_projection(mask)
            .with_batch_size(self.batch_rows);
        if let Some(selection) = selection {
            builder = builder.with_row_selection(selection);
        }
        segment(builder.build().map_err(|error| self.reader.explain(error)))
    }

    /// The bytes of the pages that hold selected rows.
    fn page_ranges(&self, group: usize, mask: &ProjectionMask, selection: Option<&RowSelection>) -> Vec<Range<u64>> {
        let metadata = self.metadata.metadata();
        let mut ranges = Vec::new();
        let Some(chunks) = metadata.row_groups().get(group).map(RowGroupMetaData::columns) else { return ranges };
        for (leaf, chunk) in chunks.iter().enumerate().filter(|(leaf, _)| mask.leaf_included(*leaf)) {
            let (start, length) = chunk.byte_range();
            let end = start.saturating_add(length);
            let pages = metadata.offset_index().and_then(|index| Some(index.get(group)?.get(leaf)?.page_locations()));
            match (selection, pages) {
                (Some(selection), Some(pages)) if !pages.is_empty() => {
                    let first = pages.first().and_then(|page| u64::try_from(page.offset).ok()).unwrap_or(start);
                    if start < first {
                        // The dictionary.
                        ranges.push(start..first);
                    }
                    ranges.extend(selection.scan_ranges(pages));
                }
                _ => ranges.push(start..end),
            }
        }
        ranges
    }

    /// Starts a row group; `None` when no row of it passes.
    fn open_group(
        &self,
        (group, selection): GroupAccess,
        dense: &mut bool,
        statistics: &mut ScanStatistics,
    ) -> StepResult<Option<GroupReading>> {
        let plan = &self.plan;
        if plan.stages.is_empty() || *dense {
            let columns = plan.all_columns.clone();
            let reader = Some(self.reader(group, &columns, selection)?);
            *dense = false;
            return Ok(Some(GroupReading { reader, columns, kept: Kept::default(), offset: 0, filtered: false }));
        }
        let mut kept = Kept::default();
        let mut selection = selection;
        let rows_before = statistics.rows_in;
        for (index, stage) in plan.stages.iter().enumerate() {
            let mask = self.run_stage(group, index, stage, selection.clone(), &mut kept, statistics)?;
            if kept.rows == 0 {
                return Ok(None);
            }
            let passed = RowSelection::from_boolean_buffer(mask);
            selection = Some(selection.map_or_else(|| passed.clone(), |before| before.and_then(&passed)));
        }
        *dense = kept.rows as f64 > DENSE * (statistics.rows_in - rows_before) as f64;
        let columns: Vec<usize> = plan.output_columns.iter().copied().filter(|column| !kept.has(*column)).collect();
        let reader = if columns.is_empty() { None } else { Some(self.reader(group, &columns, selection)?) };
        Ok(Some(GroupReading { reader, columns, kept, offset: 0, filtered: true }))
    }

    /// Runs one stage of the filter over the selected rows of a row group. Leaves in `kept` the
    /// columns that are still needed, for the rows that passed, and returns which those are.
    fn run_stage(
        &self,
        group: usize,
        index: usize,
        stage: &FilterStage,
        selection: Option<RowSelection>,
        kept: &mut Kept,
        statistics: &mut ScanStatistics,
    ) -> StepResult<BooleanBuffer> {
        let fresh: Vec<usize> = stage.columns.iter().copied().filter(|column| !kept.has(*column)).collect();
        let needed = |column: &usize| self.plan.is_needed_from(index + 1, *column);
        let carried: Vec<usize> = kept.columns.iter().map(|(column, _)| *column).chain(fresh.iter().copied()).collect();
        let carried: Vec<usize> = carried.into_iter().filter(needed).collect();
        let mut parts: Vec<Vec<ArrayRef>> = vec![Vec::new(); carried.len()];
        let mut passed = BooleanBufferBuilder::new(0);
        let mut source = GroupReading {
            reader: if fresh.is_empty() { None } else { Some(self.reader(group, &fresh, selection)?) },
            columns: fresh,
            kept: std::mem::take(kept),
            offset: 0,
            filtered: true,
        };
        while let Some(piece) = source.next_piece(self)? {
            if index == 0 {
                statistics.rows_in += piece.rows as u64;
            }
            let mask = fragment(stage.evaluate(fragment(piece.columns(&stage.columns))?, piece.rows))?;
            passed.append_buffer(mask.values());
            let survivors = mask.true_count();
            if survivors == 0 {
                continue;
            }
            kept.rows += survivors;
            for (part, array) in parts.iter_mut().zip(fragment(piece.columns(&carried))?) {
                let array = if survivors == mask.len() { array } else { fragment(filtered(&array, &mask))? };
                part.push(array);
            }
        }
        if kept.rows > 0 {
            for (column, part) in carried.into_iter().zip(parts) {
                kept.columns.push((column, fragment(joined(&part))?));
            }
        }
        Ok(passed.finish())
    }
}

fn filtered(array: &ArrayRef, mask: &BooleanArray) -> Result<ArrayRef> {
    Ok(filter(array.as_ref(), mask)?)
}

fn joined(parts: &[ArrayRef]) -> Result<ArrayRef> {
    match parts {
        [single] => Ok(Arc::clone(single)),
        many => Ok(concat(&many.iter().map(AsRef::as_ref).collect::<Vec<&dyn Array>>())?),
    }
}

/// Some rows of a row group, from the reader and from what was kept.
struct Piece {
    rows: usize,
    columns: Vec<(usize, ArrayRef)>,
}

impl Piece {
    fn columns(&self, wanted: &[usize]) -> Result<Vec<ArrayRef>> {
        let find =
            |column: &usize| self.columns.iter().find(|(index, _)| index == column).map(|(_, array)| Arc::clone(array));
        wanted
            .iter()
            .map(|column| find(column).ok_or_else(|| Error::internal(format!("scan column {column} was not decoded"))))
            .collect()
    }
}

impl GroupReading {
    fn next_piece(&mut self, files: &SegmentFiles) -> StepResult<Option<Piece>> {
        let (rows, mut columns) = match &mut self.reader {
            Some(reader) => {
                let Some(batch) = reader.next() else { return Ok(None) };
                let batch = segment(batch.map_err(|error| files.reader.explain(error)))?;
                let arrays = fragment(files.columns.extract(&batch, &self.columns))?;
                (batch.num_rows(), self.columns.iter().copied().zip(arrays).collect::<Vec<_>>())
            }
            None => (files.batch_rows.min(self.kept.rows.saturating_sub(self.offset)), Vec::new()),
        };
        if rows == 0 {
            return Ok(None);
        }
        if !self.kept.columns.is_empty() {
            if self.offset.saturating_add(rows) > self.kept.rows {
                return Err(StepError::Fragment(Error::internal("columns of a row group have different lengths")));
            }
            columns.extend(self.kept.columns.iter().map(|(index, array)| (*index, array.slice(self.offset, rows))));
        }
        self.offset += rows;
        Ok(Some(Piece { rows, columns }))
    }

    /// The next rows, as columns of the projection's input, and which of them pass.
    fn next(
        &mut self,
        files: &SegmentFiles,
        statistics: &mut ScanStatistics,
    ) -> StepResult<Option<(RecordBatch, Option<BooleanArray>)>> {
        let Some(piece) = self.next_piece(files)? else { return Ok(None) };
        let mut mask = None;
        if !self.filtered {
            statistics.rows_in += piece.rows as u64;
            if let Some(filter) = &files.plan.filter {
                let columns = fragment(piece.columns(&filter.columns))?;
                mask = Some(fragment(filter.evaluate(columns, piece.rows))?);
            }
        }
        let columns = fragment(piece.columns(&files.plan.output_columns))?;
        let options = RecordBatchOptions::new().with_row_count(Some(piece.rows));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&files.plan.input_schema), columns, &options);
        Ok(Some((fragment(batch.map_err(Error::from))?, mask)))
    }
}
