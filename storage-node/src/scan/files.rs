//! An open segment: readers for its row groups, with the pages that they need in memory.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchReader};
use arrow::error::ArrowError;
use aubade_proto::SegmentScan;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder, RowSelection,
    RowSelectionPolicy,
};
use parquet::file::metadata::RowGroupMetaData;

use super::columns::FileColumns;
use super::plan::FragmentPlan;
use super::prune::GroupAccess;
use super::reader::SegmentReader;
use super::request::{OpenSegment, ScanContext};
use super::selection::{Access, SelectedRows};
use super::step::{StepResult, segment};
use crate::decoded::{DecodedRows, DecodedSegment};

/// An open segment with what is needed to make readers for its row groups.
pub(super) struct SegmentFiles {
    pub(super) plan: Arc<FragmentPlan>,
    pub(super) columns: Arc<FileColumns>,
    pub(super) metadata: ArrowReaderMetadata,
    pub(super) reader: SegmentReader,
    /// Its columns, where all that the fragment reads are in memory already.
    decoded: Option<DecodedSegment>,
    footer_bytes_read: u64,
    pub(super) batch_rows: usize,
}

/// Rows of some columns of a row group.
pub(super) enum ColumnReader {
    Parquet(ParquetRecordBatchReader),
    /// Scattered rows.
    Scattered(SelectedRows<ParquetRecordBatchReader>),
    Decoded(DecodedRows),
}

impl Iterator for ColumnReader {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Parquet(reader) => reader.next(),
            Self::Scattered(rows) => rows.next(),
            Self::Decoded(rows) => rows.next(),
        }
    }
}

impl SegmentFiles {
    pub(super) fn open(context: &ScanContext, scan: SegmentScan) -> StepResult<Self> {
        let OpenSegment { footer, footer_bytes_read, decoded } = segment(context.segments.open(scan.segment_id))?;
        let reader = SegmentReader::new(Arc::clone(&footer.file));
        let columns = context.columns_of(&footer);
        let metadata = match columns.reader_schema == *footer.schema() {
            true => footer.arrow.clone(),
            false => {
                let options = ArrowReaderOptions::new().with_schema(Arc::clone(&columns.reader_schema));
                let metadata = ArrowReaderMetadata::try_new(Arc::clone(&footer.metadata), options);
                segment(metadata.map_err(|error| reader.explain(error)))?
            }
        };
        let plan = Arc::clone(&context.plan);
        let batch_rows = context.decode_batch_rows();
        Ok(Self { plan, columns, metadata, reader, decoded, footer_bytes_read, batch_rows })
    }

    pub(super) fn bytes_read(&self) -> u64 {
        self.footer_bytes_read + self.reader.bytes_read()
    }

    /// About what is held at a time: the compressed and the decoded columns of one row group.
    pub(super) fn memory_bytes(&self, groups: &[GroupAccess]) -> u64 {
        if self.decoded.is_some() {
            return 0;
        }
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

    /// The rows of a row group.
    pub(super) fn group_rows(&self, group: usize) -> usize {
        let rows = self.metadata.metadata().row_groups().get(group).map(RowGroupMetaData::num_rows);
        rows.and_then(|rows| usize::try_from(rows).ok()).unwrap_or(0)
    }

    /// A reader of `columns` for the selected rows of a row group, with their pages in memory.
    pub(super) fn reader(
        &self,
        group: usize,
        columns: &[usize],
        selection: Option<RowSelection>,
    ) -> StepResult<ColumnReader> {
        if let Some(decoded) = &self.decoded {
            let roots = self.columns.roots(columns);
            return segment(
                decoded.rows(group, &roots, selection.as_ref(), self.batch_rows).map(ColumnReader::Decoded),
            );
        }
        let (decoded, wanted) = match selection.map(|selection| Access::to(&selection, self.group_rows(group))) {
            Some(Access { decoded, wanted }) => (Some(decoded), wanted),
            None => (None, None),
        };
        let mask = self.columns.mask(self.metadata.metadata(), columns);
        let ranges = self.page_ranges(group, &mask, decoded.as_ref());
        let reader = segment(self.reader.load(ranges))?;
        let mut builder = ParquetRecordBatchReaderBuilder::new_with_metadata(reader, self.metadata.clone())
            .with_row_groups(vec![group])
            .with_projection(mask)
            .with_batch_size(self.batch_rows);
        if let Some(decoded) = decoded {
            builder = builder.with_row_selection(decoded).with_row_selection_policy(RowSelectionPolicy::Selectors);
        }
        let reader = segment(builder.build().map_err(|error| self.reader.explain(error)))?;
        Ok(match wanted {
            Some(wanted) => {
                ColumnReader::Scattered(SelectedRows::new(reader.schema(), reader, Some(wanted), self.batch_rows))
            }
            None => ColumnReader::Parquet(reader),
        })
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
}
