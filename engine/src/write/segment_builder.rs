//! Rows to segment files: Parquet with many row groups, a page index, Bloom filters where they can
//! help, and statistics for the catalog.
//!
//! The columns of a row group are encoded in parallel on a rayon pool; only one row group of Arrow
//! data is held at a time.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, UInt32Array};
use arrow::compute::kernels::cmp::lt_eq;
use arrow::compute::take;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::record_batch::RecordBatch;
use aubade_catalog::{SegmentStatistics, StatisticsBuilder};
use aubade_proto::{Error, ErrorCode, Result, ResultExt};
use bytes::Bytes;
use datafusion::common::hash_utils::{RandomState, create_hashes};
use datafusion::common::utils::memory::get_record_batch_memory_size;
use parquet::arrow::arrow_writer::{ArrowColumnChunk, ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves};
use parquet::arrow::{ArrowSchemaConverter, ArrowWriter};
use parquet::basic::{Compression, Encoding};
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::{ColumnPath, SchemaDescriptor};
use rayon::ThreadPool;
use rayon::prelude::*;

use crate::limits::{
    PAGE_ROWS_MAX, ROW_GROUP_MEMORY_BYTES_MAX, ROW_GROUP_ROWS_MAX, SEGMENT_BYTES_MAX, SEGMENT_ROWS_MAX,
    SEGMENTS_OF_ONE_SIZE,
};

/// False positives of Bloom filters: one in a hundred costs one needless row group in a hundred.
const BLOOM_FALSE_POSITIVES: f64 = 0.01;

/// Rows by which it is told how varied a column is.
const SAMPLE_ROWS: usize = 1_024;
/// Rows of a sample for each different value, from which on there are few values.
const FEW_IN_SAMPLE: usize = 16;
/// Times that a value comes in a row group, on the average, from which on hardly any row group is without it.
const TIMES_IN_ROW_GROUP: usize = 6;
/// Words of a text from which on it is no name.
const WORDS_OF_PROSE: usize = 4;

/// A finished segment file.
#[derive(Debug)]
pub(crate) struct BuiltSegment {
    /// The file.
    pub(crate) data: Bytes,
    /// Rows in it.
    pub(crate) rows: u64,
    /// Statistics of its columns, one row.
    pub(crate) statistics: SegmentStatistics,
}

/// Takes batches of one schema and gives segments when they are full.
pub(crate) struct SegmentBuilder {
    schema: SchemaRef,
    pool: Arc<ThreadPool>,
    pending: Vec<RecordBatch>,
    pending_rows: usize,
    pending_bytes: usize,
    open: Option<OpenSegment>,
    /// Segments that were given.
    closed: usize,
}

struct OpenSegment {
    writer: SerializedFileWriter<Vec<u8>>,
    row_groups: ArrowRowGroupWriterFactory,
    row_group_count: usize,
    /// Tells which leaf belongs to which top-level column.
    leaves: SchemaDescriptor,
    statistics: StatisticsBuilder,
    rows: usize,
    /// Compressed bytes per top-level column.
    column_bytes: Vec<u64>,
}

impl SegmentBuilder {
    pub(crate) fn new(schema: SchemaRef, pool: Arc<ThreadPool>) -> Self {
        Self { schema, pool, pending: Vec::new(), pending_rows: 0, pending_bytes: 0, open: None, closed: 0 }
    }

    /// Whether adding `batch` completes a row group, and so takes a while.
    pub(crate) fn would_encode(&self, batch: &RecordBatch) -> bool {
        self.pending_rows.saturating_add(batch.num_rows()) >= ROW_GROUP_ROWS_MAX
            || self.pending_bytes.saturating_add(get_record_batch_memory_size(batch)) >= ROW_GROUP_MEMORY_BYTES_MAX
    }

    /// Adds a batch without encoding.
    ///
    /// # Errors
    /// When its columns are not those of the schema.
    pub(crate) fn push(&mut self, batch: RecordBatch) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let columns = batch.columns().to_vec();
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns)
            .context(ErrorCode::SqlExecution, || "rows do not fit the columns of the table".to_owned())?;
        self.pending_rows += batch.num_rows();
        self.pending_bytes += get_record_batch_memory_size(&batch);
        self.pending.push(batch);
        Ok(())
    }

    /// Adds a batch; gives the segments that became full.
    ///
    /// # Errors
    /// As [`SegmentBuilder::push`], or when encoding fails.
    pub(crate) fn add(&mut self, batch: RecordBatch) -> Result<Vec<BuiltSegment>> {
        self.push(batch)?;
        let mut built = Vec::new();
        while self.pending_rows >= ROW_GROUP_ROWS_MAX || self.pending_bytes >= ROW_GROUP_MEMORY_BYTES_MAX {
            built.extend(self.encode_row_group()?);
        }
        Ok(built)
    }

    /// Ends the stream of rows; gives what was not given yet.
    ///
    /// # Errors
    /// When encoding fails.
    pub(crate) fn finish(&mut self) -> Result<Vec<BuiltSegment>> {
        let mut built = Vec::new();
        while self.pending_rows > 0 {
            built.extend(self.encode_row_group()?);
        }
        if let Some(open) = self.open.take() {
            built.push(open.close()?);
        }
        Ok(built)
    }

    /// Rows of the segment that is open.
    fn segment_rows_max(&self) -> usize {
        let doublings = u32::try_from(self.closed / SEGMENTS_OF_ONE_SIZE).unwrap_or(u32::MAX);
        let factor = 2_usize.checked_pow(doublings).unwrap_or(usize::MAX);
        ROW_GROUP_ROWS_MAX.saturating_mul(factor).min(SEGMENT_ROWS_MAX)
    }

    /// Takes the rows of one row group off the front of what is pending.
    fn take_row_group(&mut self, rows_max: usize) -> Vec<RecordBatch> {
        let mut taken = Vec::new();
        let mut rows = 0;
        let mut rest = Vec::new();
        for batch in std::mem::take(&mut self.pending) {
            let room = rows_max - rows;
            if room == 0 {
                rest.push(batch);
            } else if batch.num_rows() <= room {
                rows += batch.num_rows();
                taken.push(batch);
            } else {
                rest.push(batch.slice(room, batch.num_rows() - room));
                taken.push(batch.slice(0, room));
                rows = rows_max;
            }
        }
        self.pending_rows = rest.iter().map(RecordBatch::num_rows).sum();
        self.pending_bytes = rest.iter().map(get_record_batch_memory_size).sum();
        self.pending = rest;
        taken
    }

    fn encode_row_group(&mut self) -> Result<Option<BuiltSegment>> {
        let open = self.open.take();
        let (rows, rows_max) = (open.as_ref().map_or(0, |open| open.rows), self.segment_rows_max());
        let batches = self.take_row_group(ROW_GROUP_ROWS_MAX.min(rows_max.saturating_sub(rows)));
        let mut open = match open {
            Some(open) => open,
            None => OpenSegment::new(&self.schema, &batches)?,
        };
        open.write_row_group(&self.schema, &self.pool, &batches)?;
        if open.rows >= rows_max || open.writer.bytes_written() >= SEGMENT_BYTES_MAX {
            self.closed += 1;
            return open.close().map(Some);
        }
        self.open = Some(open);
        Ok(None)
    }
}

fn encoding_failed(error: ParquetError) -> Error {
    Error::new(ErrorCode::NotSupported, "rows cannot be encoded as a segment").source(error)
}

impl OpenSegment {
    /// A segment for rows like those of `first`, which will be its first row group.
    fn new(schema: &SchemaRef, first: &[RecordBatch]) -> Result<Self> {
        let properties = properties(schema, first)?;
        let writer = ArrowWriter::try_new(Vec::new(), Arc::clone(schema), Some(properties)).map_err(encoding_failed)?;
        let (writer, row_groups) = writer.into_serialized_writer().map_err(encoding_failed)?;
        Ok(Self {
            writer,
            row_groups,
            row_group_count: 0,
            leaves: ArrowSchemaConverter::new().convert(schema).map_err(encoding_failed)?,
            statistics: StatisticsBuilder::new(Arc::clone(schema)),
            rows: 0,
            column_bytes: vec![0; schema.fields().len()],
        })
    }

    fn write_row_group(&mut self, schema: &SchemaRef, pool: &ThreadPool, batches: &[RecordBatch]) -> Result<()> {
        let writers = self.row_groups.create_column_writers(self.row_group_count).map_err(encoding_failed)?;
        let mut per_field: Vec<Vec<ArrowColumnWriter>> = schema.fields().iter().map(|_| Vec::new()).collect();
        for (leaf, writer) in writers.into_iter().enumerate() {
            if let Some(field) = per_field.get_mut(self.leaves.get_column_root_idx(leaf)) {
                field.push(writer);
            }
        }
        let statistics = &mut self.statistics;
        let (counted, chunks) = pool.join(
            || batches.iter().try_for_each(|batch| statistics.update(batch)),
            || {
                let columns = per_field.into_par_iter().enumerate();
                columns
                    .map(|(field, writers)| encode_column(schema, batches, field, writers))
                    .collect::<Result<Vec<_>>>()
            },
        );
        counted?;
        let mut row_group = self.writer.next_row_group().map_err(encoding_failed)?;
        for (chunks, column_bytes) in chunks?.into_iter().zip(&mut self.column_bytes) {
            for chunk in chunks {
                let compressed = chunk.close().metadata.compressed_size();
                *column_bytes += u64::try_from(compressed).unwrap_or(0);
                chunk.append_to_row_group(&mut row_group).map_err(encoding_failed)?;
            }
        }
        row_group.close().map_err(encoding_failed)?;
        self.row_group_count += 1;
        self.rows += batches.iter().map(RecordBatch::num_rows).sum::<usize>();
        Ok(())
    }

    fn close(self) -> Result<BuiltSegment> {
        let statistics = self.statistics.finish(&self.column_bytes)?;
        let data = self.writer.into_inner().map_err(encoding_failed)?;
        Ok(BuiltSegment { data: data.into(), rows: self.rows as u64, statistics })
    }
}

/// Encodes one top-level column of a row group: one chunk per leaf.
fn encode_column(
    schema: &SchemaRef,
    batches: &[RecordBatch],
    field_index: usize,
    mut writers: Vec<ArrowColumnWriter>,
) -> Result<Vec<ArrowColumnChunk>> {
    let field = schema.field(field_index);
    for batch in batches {
        let array: &ArrayRef = batch.column(field_index);
        let leaves = compute_leaves(field, array).map_err(encoding_failed)?;
        for (writer, leaf) in writers.iter_mut().zip(&leaves) {
            writer.write(leaf).map_err(encoding_failed)?;
        }
    }
    writers.into_iter().map(|writer| writer.close().map_err(encoding_failed)).collect()
}

/// How a column is written, by a sample of its first row group.
fn properties(schema: &SchemaRef, first: &[RecordBatch]) -> Result<WriterProperties> {
    let mut properties = WriterProperties::builder()
        .set_writer_version(WriterVersion::PARQUET_2_0)
        .set_created_by(format!("aubade {}", env!("CARGO_PKG_VERSION")))
        .set_compression(Compression::SNAPPY)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_data_page_row_count_limit(PAGE_ROWS_MAX)
        .set_max_row_group_row_count(None)
        .set_column_index_truncate_length(Some(64))
        .set_statistics_truncate_length(Some(64));
    for (index, field) in schema.fields().iter().enumerate() {
        let path = ColumnPath::new(vec![field.name().clone()]);
        let sample = sample(first, index)?;
        let hashes = hashes(&sample);
        let variety = hashes.as_deref().map_or(Variety::Some, Variety::of);
        if can_profit_from_bloom_filter(field.data_type())
            && variety != Variety::Few
            && !hashes.as_deref().is_some_and(comes_again_everywhere)
            && !ascends(&sample)
            && !is_prose(&sample)
        {
            // Column by column: what is set of the filters of all columns makes one for each.
            properties = properties
                .set_column_bloom_filter_fpp(path.clone(), BLOOM_FALSE_POSITIVES)
                .set_column_bloom_filter_max_ndv(path.clone(), ROW_GROUP_ROWS_MAX as u64);
        }
        if let (Variety::Unique, Some(encoding)) = (variety, plain_encoding(field.data_type())) {
            properties =
                properties.set_column_dictionary_enabled(path.clone(), false).set_column_encoding(path, encoding);
        }
    }
    Ok(properties.build())
}

/// How often the values of a column are repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variety {
    /// There are so few that each of them is in nearly every row group: a Bloom filter would rule nothing out.
    Few,
    Some,
    /// Hardly any value comes twice: a dictionary would be as large as the column, and be read for every single row.
    Unique,
}

/// Of the values of a sample; `None` for a type that cannot be hashed.
fn hashes(sample: &[ArrayRef]) -> Option<Vec<u64>> {
    let mut all = Vec::new();
    for values in sample {
        let mut hashes = vec![0; values.len()];
        create_hashes([values], &RandomState::default(), &mut hashes).ok()?;
        all.extend(hashes);
    }
    Some(all)
}

impl Variety {
    fn of(hashes: &[u64]) -> Self {
        let sampled = hashes.len();
        match hashes.iter().collect::<HashSet<_>>().len() {
            _ if sampled < SAMPLE_ROWS / 2 => Self::Some,
            few if few * FEW_IN_SAMPLE <= sampled => Self::Few,
            many if many * 20 >= sampled * 19 => Self::Unique,
            _ => Self::Some,
        }
    }
}

/// Whether each value is likely to come several times in every row group, by how many of one half of a row group's sample
/// are the same as one of the other half. Values that come together, and nowhere else, are not taken for such.
fn comes_again_everywhere(hashes: &[u64]) -> bool {
    if hashes.len() < SAMPLE_ROWS / 2 {
        return false;
    }
    let (first, second) = hashes.split_at(hashes.len() / 2);
    let mut counts: HashMap<u64, usize> = HashMap::new();
    first.iter().for_each(|hash| *counts.entry(*hash).or_default() += 1);
    let same: usize = second.iter().filter_map(|hash| counts.get(hash)).sum();
    // Of so many pairs, one in as many as there are values is one of the same.
    let pairs = first.len().saturating_mul(second.len());
    same.saturating_mul(ROW_GROUP_ROWS_MAX) >= pairs.saturating_mul(TIMES_IN_ROW_GROUP)
}

/// Whether texts are written for people: nobody asks for one that is equal to another.
fn is_prose(sample: &[ArrayRef]) -> bool {
    let (mut texts, mut sentences) = (0_usize, 0_usize);
    for values in sample {
        let Some(values) = values.as_string_view_opt() else { return false };
        for text in values.iter().flatten() {
            texts += 1;
            sentences += usize::from(text.split_ascii_whitespace().count() >= WORDS_OF_PROSE);
        }
    }
    texts > 0 && sentences * 2 >= texts
}

/// Values of a column that are taken from all over `batches`, in their order.
fn sample(batches: &[RecordBatch], column: usize) -> Result<Vec<ArrayRef>> {
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let step = (rows / SAMPLE_ROWS).max(1);
    let mut skip = 0;
    let values = batches.iter().map(|batch| {
        let indices: UInt32Array =
            (skip..batch.num_rows()).step_by(step).filter_map(|row| u32::try_from(row).ok()).collect();
        skip = (skip + indices.len() * step).saturating_sub(batch.num_rows());
        Ok(take(batch.column(column), &indices, None)?)
    });
    values.collect()
}

/// Whether numbers seem only to grow, by the first row group: then the page index tells where one can be, and a Bloom
/// filter adds little.
fn ascends(sample: &[ArrayRef]) -> bool {
    let in_order = |left: &ArrayRef, right: &ArrayRef| {
        lt_eq(left, right).is_ok_and(|order| order.null_count() == 0 && order.true_count() == order.len())
    };
    let parts: Vec<&ArrayRef> = sample.iter().filter(|values| !values.is_empty()).collect();
    let within = parts.iter().all(|values| {
        let pairs = values.len() - 1;
        values.data_type().is_numeric() && in_order(&values.slice(0, pairs), &values.slice(1, pairs))
    });
    within
        && parts.windows(2).all(|pair| match pair {
            [left, right] => in_order(&left.slice(left.len() - 1, 1), &right.slice(0, 1)),
            _ => true,
        })
}

/// How a column without a dictionary is written: `None` leaves that to Parquet.
fn plain_encoding(data_type: &DataType) -> Option<Encoding> {
    match data_type {
        DataType::Int32 | DataType::Int64 | DataType::UInt32 | DataType::UInt64 | DataType::Timestamp(..) => {
            Some(Encoding::DELTA_BINARY_PACKED)
        }
        // Stored as 64-bit numbers.
        DataType::Decimal128(precision, _) if *precision <= 18 => Some(Encoding::DELTA_BINARY_PACKED),
        // Its default, which shares prefixes with the value before, takes longer to write and to read.
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Some(Encoding::DELTA_LENGTH_BYTE_ARRAY),
        _ => None,
    }
}

/// Types that queries compare for equality with single values.
fn can_profit_from_bloom_filter(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Int32
            | DataType::Int64
            | DataType::UInt32
            | DataType::UInt64
            | DataType::Utf8
            | DataType::LargeUtf8
            | DataType::Utf8View
            | DataType::Binary
            | DataType::LargeBinary
            | DataType::BinaryView
            | DataType::FixedSizeBinary(_)
    )
}

impl std::fmt::Debug for SegmentBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SegmentBuilder").field("pending_rows", &self.pending_rows).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, StringViewArray};
    use parquet::file::metadata::ParquetMetaDataReader;

    use super::*;

    /// Rows of the segments that so many rows become.
    fn segments(rows: usize) -> Vec<u64> {
        let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap());
        let batch = |rows: usize| {
            let values: Int64Array = (0..rows as i64).collect();
            RecordBatch::try_from_iter([("n", Arc::new(values) as ArrayRef)]).unwrap()
        };
        let mut builder = SegmentBuilder::new(batch(0).schema(), pool);
        let mut built = builder.add(batch(rows)).unwrap();
        built.extend(builder.finish().unwrap());
        built.into_iter().map(|segment| segment.rows).collect()
    }

    fn sampled(values: impl Iterator<Item = i64>) -> Vec<u64> {
        hashes(&[Arc::new(Int64Array::from_iter_values(values))]).unwrap()
    }

    #[test]
    fn columns_have_a_bloom_filter_where_it_rules_something_out() {
        let rows = SAMPLE_ROWS as i64;
        let scattered = |values: i64| sampled((0..rows).map(move |row| (row * 7919) % (values * 31) % values));
        assert_eq!(Variety::of(&scattered(20)), Variety::Few);
        // Some two hundred times in each row group.
        assert!(comes_again_everywhere(&scattered(600)) && Variety::of(&scattered(600)) == Variety::Some);
        // As many different ones, each of which comes in one place only.
        assert!(!comes_again_everywhere(&sampled((0..rows).map(|row| row / 2))));
        assert!(!comes_again_everywhere(&scattered(1_000_000)) && !comes_again_everywhere(&sampled(0..9)));
        assert_eq!(Variety::of(&sampled(0..rows)), Variety::Unique);
        let texts = |text: &str| -> Vec<ArrayRef> {
            vec![Arc::new(StringViewArray::from_iter_values((0..100).map(|row| format!("{text} {row}"))))]
        };
        assert!(is_prose(&texts("carefully final deposits")));
        assert!(!is_prose(&texts("Ada Lovelace")) && !is_prose(&[]));
    }

    #[test]
    fn other_columns_have_none() {
        let rows = SAMPLE_ROWS as i64;
        let numbers = |value: fn(i64) -> i64| Arc::new((0..rows).map(value).collect::<Int64Array>()) as ArrayRef;
        let comments = StringViewArray::from_iter_values((0..rows).map(|row| format!("this is the comment {row}")));
        let batch = RecordBatch::try_from_iter([
            ("id", numbers(|row| row * 7_919 % 1_000_003)),
            ("ascending", numbers(|row| row)),
            ("flag", numbers(|row| row % 3)),
            ("comment", Arc::new(comments) as ArrayRef),
        ]);
        let batch = batch.unwrap();
        let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap());
        let mut builder = SegmentBuilder::new(batch.schema(), pool);
        assert!(builder.add(batch).unwrap().is_empty());
        let [segment] = <[BuiltSegment; 1]>::try_from(builder.finish().unwrap()).unwrap();
        let metadata = ParquetMetaDataReader::new().parse_and_finish(&segment.data).unwrap();
        let columns = metadata.row_group(0).columns().iter();
        let filters: Vec<bool> = columns.map(|column| column.bloom_filter_offset().is_some()).collect();
        assert_eq!(filters, [true, false, false, false]);
    }

    #[test]
    fn the_first_segments_of_a_statement_are_small_and_later_ones_grow() {
        assert_eq!(segments(0), Vec::<u64>::new());
        assert_eq!(segments(1), [1]);
        let group = ROW_GROUP_ROWS_MAX as u64;
        assert_eq!(segments(ROW_GROUP_ROWS_MAX), [group]);
        assert_eq!(segments(3 * ROW_GROUP_ROWS_MAX / 2), [group, group / 2]);
        let many = segments(40 * ROW_GROUP_ROWS_MAX + 5);
        let sizes = [1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 4, 8];
        assert_eq!(many[..13], sizes.map(|groups| groups * group));
        assert_eq!(many[13..], [4 * group + 5]);
        assert_eq!(SEGMENT_ROWS_MAX, 8 * ROW_GROUP_ROWS_MAX);
    }
}
