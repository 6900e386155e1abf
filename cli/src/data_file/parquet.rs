//! Parquet files.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use aubade_environment::ReadFile;
use indicatif::ProgressBar;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::errors::ParquetError;

use super::reader::FileReader;
use super::{BATCH_ROWS, Batches};

/// The columns, from the footer.
pub(super) fn schema(file: &Arc<dyn ReadFile>) -> Result<SchemaRef, ParquetError> {
    let reader = FileReader::new(Arc::clone(file), ProgressBar::hidden());
    Ok(Arc::clone(ParquetRecordBatchReaderBuilder::try_new(reader)?.schema()))
}

/// All rows, in the file's own types.
pub(super) fn batches(file: &Arc<dyn ReadFile>, progress: ProgressBar) -> Result<Batches, ArrowError> {
    let reader = FileReader::new(Arc::clone(file), progress);
    let builder = ParquetRecordBatchReaderBuilder::try_new(reader)?;
    Ok(Box::new(builder.with_batch_size(BATCH_ROWS).build()?))
}
