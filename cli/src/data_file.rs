//! Parquet and CSV files as streams of Arrow batches in the columns of a table.

mod csv;
mod parquet;
mod reader;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, new_null_array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use aubade_environment::tasks::run_blocking;
use aubade_environment::{Environment, ReadFile};
use aubade_proto::{Error, ErrorCode, Result, ResultExt};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use indicatif::ProgressBar;

/// Rows of a batch.
const BATCH_ROWS: usize = 8192;

/// What kind of file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum FileFormat {
    /// Apache Parquet.
    Parquet,
    /// Delimited text.
    Csv,
}

/// How CSV files are written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CsvOptions {
    /// Whether the first line names the columns.
    pub(crate) header: bool,
    /// What stands between two values.
    pub(crate) delimiter: u8,
}

/// A file that is open and whose columns are known.
#[derive(Clone, Debug)]
pub(crate) struct DataFile {
    path: PathBuf,
    file: Arc<dyn ReadFile>,
    format: FileFormat,
    csv: CsvOptions,
    schema: SchemaRef,
}

type Batches = Box<dyn Iterator<Item = std::result::Result<RecordBatch, ArrowError>> + Send>;

impl DataFile {
    /// Opens a file and reads its columns: a Parquet file's footer, or a CSV file's header and the
    /// types that all of its values fit.
    ///
    /// # Errors
    /// `FileUnreadable` with the file's name.
    pub(crate) async fn open(
        environment: &Environment,
        path: &Path,
        format: Option<FileFormat>,
        csv: CsvOptions,
    ) -> Result<Self> {
        let format = match format {
            Some(format) => format,
            None => format_of(path)?,
        };
        let (files, owned) = (Arc::clone(&environment.files), path.to_owned());
        run_blocking(move || {
            let path = owned;
            let file = files.open(&path).map_err(|error| unreadable(&path).source(error))?;
            let schema = match format {
                FileFormat::Parquet => parquet::schema(&file).map_err(|error| unreadable(&path).source(error))?,
                FileFormat::Csv => csv::schema(&file, csv).map_err(|error| unreadable(&path).source(error))?,
            };
            Ok(Self { path, file, format, csv, schema })
        })
        .await
        .unwrap_or_else(|| Err(unreadable(path).hint("its reader stopped: the file may be corrupt")))
    }

    /// Its length.
    pub(crate) fn length_bytes(&self) -> u64 {
        self.file.length_bytes()
    }

    /// Its rows, as columns of `table`; `progress` advances by the bytes that are read.
    pub(crate) fn read(self, table: SchemaRef, progress: ProgressBar) -> BoxStream<'static, Result<RecordBatch>> {
        let path = self.path.clone();
        let opened = async move {
            let mapping = self.mapping(&table)?;
            let path = self.path.clone();
            let batches = blocking(&path, move || self.batches(&table, progress)).await?;
            Ok::<_, Error>(stream::try_unfold((batches, mapping), move |(mut batches, mapping)| {
                let path = path.clone();
                async move {
                    let (next, batches) = blocking(&path, move || Ok((batches.next().transpose()?, batches))).await?;
                    let Some(batch) = next else {
                        return Ok(None);
                    };
                    let batch = mapping.apply(&batch).map_err(|error| unreadable(&path).source(error))?;
                    Ok(Some((batch, (batches, mapping))))
                }
            }))
        };
        stream::once(opened).try_flatten().map_err(move |error: Error| named(error, &path)).boxed()
    }

    fn batches(self, table: &SchemaRef, progress: ProgressBar) -> std::result::Result<Batches, ArrowError> {
        match self.format {
            FileFormat::Parquet => parquet::batches(&self.file, progress),
            FileFormat::Csv => csv::batches(self.file, &self.schema, table, self.csv, progress),
        }
    }

    /// Where each column of the table comes from.
    fn mapping(&self, table: &SchemaRef) -> Result<Mapping> {
        let in_file = |field: &Field| {
            let fields = self.schema.fields();
            let exact = fields.iter().position(|candidate| candidate.name() == field.name());
            exact.or_else(|| fields.iter().position(|candidate| candidate.name().eq_ignore_ascii_case(field.name())))
        };
        let by_position = self.format == FileFormat::Csv && !self.csv.header;
        if by_position && self.schema.fields().len() != table.fields().len() {
            let (found, wanted) = (self.schema.fields().len(), table.fields().len());
            return Err(unreadable(&self.path).hint(format!("it has {found} columns and the table has {wanted}")));
        }
        let sources: Vec<Option<usize>> = table
            .fields()
            .iter()
            .enumerate()
            .map(|(index, field)| if by_position { Some(index) } else { in_file(field) })
            .collect();
        if let Some(extra) = (0..self.schema.fields().len()).find(|index| !sources.contains(&Some(*index))) {
            let name = self.schema.field(extra).name();
            return Err(unreadable(&self.path).hint(format!("it has the column {name:?}, which the table lacks")));
        }
        for (field, source) in table.fields().iter().zip(&sources) {
            if source.is_none() && !field.is_nullable() {
                return Err(unreadable(&self.path).hint(format!("it lacks the column {:?}", field.name())));
            }
        }
        Ok(Mapping { table: Arc::clone(table), sources })
    }
}

/// Puts the columns of a file into those of a table.
#[derive(Clone, Debug)]
struct Mapping {
    table: SchemaRef,
    sources: Vec<Option<usize>>,
}

impl Mapping {
    fn apply(&self, batch: &RecordBatch) -> std::result::Result<RecordBatch, ArrowError> {
        let strict = CastOptions { safe: false, ..CastOptions::default() };
        let columns = self.table.fields().iter().zip(&self.sources).map(|(field, source)| match source {
            Some(index) if batch.column(*index).data_type() == field.data_type() => {
                Ok(Arc::clone(batch.column(*index)))
            }
            Some(index) => cast_with_options(batch.column(*index), field.data_type(), &strict),
            None => Ok(new_null_array(field.data_type(), batch.num_rows())),
        });
        let columns = columns.collect::<std::result::Result<Vec<ArrayRef>, ArrowError>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(Arc::clone(&self.table), columns, &options)
    }
}

/// The columns of a table made for these files: those of the first, with the types that all of them
/// fit. All columns may be null, so that later files may lack them.
///
/// # Errors
/// `FileUnreadable` when two files have types for a column that fit no common one.
pub(crate) fn common_schema(files: &[DataFile]) -> Result<SchemaRef> {
    let mut fields: Vec<Field> = Vec::new();
    for file in files {
        for field in file.schema.fields() {
            match fields.iter_mut().find(|known| known.name() == field.name()) {
                None => fields.push(field.as_ref().clone().with_nullable(true)),
                Some(known) => {
                    let common = csv::common_type(known.data_type(), field.data_type()).ok_or_else(|| {
                        unreadable(&file.path).hint(format!(
                            "its column {:?} is {} and that of an earlier file {}",
                            field.name(),
                            field.data_type(),
                            known.data_type()
                        ))
                    })?;
                    *known = known.clone().with_data_type(common);
                }
            }
        }
    }
    // What is empty in every file has no type of its own.
    for field in fields.iter_mut().filter(|field| field.data_type() == &DataType::Null) {
        *field = field.clone().with_data_type(DataType::Utf8);
    }
    if fields.is_empty() {
        return Err(Error::new(ErrorCode::FileUnreadable, "the files have no columns"));
    }
    Ok(Arc::new(Schema::new(fields)))
}

fn format_of(path: &Path) -> Result<FileFormat> {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    match extension.to_ascii_lowercase().as_str() {
        "parquet" | "parq" | "pq" => Ok(FileFormat::Parquet),
        "csv" | "tsv" => Ok(FileFormat::Csv),
        _ => Err(Error::new(
            ErrorCode::InvalidArgument,
            format!("{}: the name does not tell its format", path.display()),
        )
        .hint("say --format parquet or --format csv")),
    }
}

fn unreadable(path: &Path) -> Error {
    Error::new(ErrorCode::FileUnreadable, format!("the file {} cannot be loaded", path.display()))
}

/// The error with the file's name, unless it has it.
fn named(error: Error, path: &Path) -> Error {
    let path = path.display().to_string();
    if error.message().contains(&path) {
        return error;
    }
    Error::new(ErrorCode::FileUnreadable, format!("the file {path} cannot be loaded")).source(error)
}

/// Runs a step of reading off the threads that serve the network. A reader that panics on corrupt
/// bytes gives an error like any other.
async fn blocking<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> std::result::Result<T, ArrowError> + Send + 'static,
) -> Result<T> {
    match run_blocking(work).await {
        Some(result) => result.context(ErrorCode::FileUnreadable, || unreadable(path).message().to_owned()),
        None => Err(unreadable(path).hint("its reader stopped: the file may be corrupt")),
    }
}

#[cfg(test)]
mod tests;
