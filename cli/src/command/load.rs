//! `aubade load`: files into a table.

use std::path::PathBuf;

use arrow::datatypes::SchemaRef;
use aubade_environment::Environment;
use aubade_proto::{Error, ErrorCode, Result};
use clap::Args;
use datafusion::common::TableReference;
use futures::{StreamExt, TryStreamExt, stream};

use crate::benchmark::elapsed;
use crate::data_file::{CsvOptions, DataFile, FileFormat, common_schema};
use crate::interrupt;
use crate::output::{self, ProgressUnit};
use crate::size::{ByteSize, count};
use crate::target::{LoadMode, LoadTarget, Target, TargetArgs};

/// Load Parquet or CSV files into a table, all of them in one commit.
///
/// A table that does not exist is made with the columns of the files. Columns are found by name;
/// those that a file lacks are null. A file that is truncated or corrupt, or does not fit, ends the
/// load with an error that names it, and nothing is loaded.
#[derive(Debug, Args)]
pub(crate) struct Load {
    /// The table, as in SQL: name or schema.name
    table: String,

    /// The files; .parquet or .csv (or .tsv) tells the format
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    #[command(flatten)]
    target: TargetArgs,

    /// The format of the files, whatever their names say
    #[arg(long, value_enum)]
    format: Option<FileFormat>,

    /// Whether the first line of a CSV file names the columns; if not, they go by position
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    header: bool,

    /// What stands between the values of a CSV file, one ASCII character or \t [default: a comma, in .tsv files a tab]
    #[arg(long, value_name = "CHAR", value_parser = parse_delimiter)]
    delimiter: Option<u8>,
}

fn parse_delimiter(text: &str) -> std::result::Result<u8, String> {
    match text.as_bytes() {
        b"\\t" => Ok(b'\t'),
        [byte] if byte.is_ascii() && !matches!(byte, b'\n' | b'\r' | b'"') => Ok(*byte),
        _ => Err("give one ASCII character, or \\t for a tab".to_owned()),
    }
}

impl Load {
    pub(crate) async fn run(self, environment: Environment) -> Result<()> {
        let target = interrupt::until_shutdown(self.target.open_durable(&environment)).await?;
        let result = interrupt::until_shutdown(self.run_on(&environment, &target)).await;
        target.close().await;
        result
    }

    async fn run_on(&self, environment: &Environment, target: &Target) -> Result<()> {
        let start = environment.clock.now();
        let reference = TableReference::parse_str(&self.table);
        // All files are opened first: most that are torn show it here, before anything is sent.
        let mut files = Vec::with_capacity(self.files.len());
        for path in &self.files {
            let is_tsv = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("tsv"));
            let delimiter = self.delimiter.unwrap_or(if is_tsv { b'\t' } else { b',' });
            let csv = CsvOptions { header: self.header, delimiter };
            files.push(DataFile::open(environment, path, self.format, csv).await?);
        }
        let schema = match existing_schema(target, &reference).await? {
            Some(schema) => schema,
            None => common_schema(&files)?,
        };
        let bytes = files.iter().map(DataFile::length_bytes).sum();
        let bar = output::progress(reference.table(), bytes, ProgressUnit::Bytes);
        let (counter, columns) = (bar.clone(), SchemaRef::clone(&schema));
        let stream =
            stream::iter(files).map(move |file| Ok::<_, Error>(file.read(SchemaRef::clone(&columns), counter.clone())));
        let destination = LoadTarget {
            schema: reference.schema().map(str::to_owned),
            table: reference.table().to_owned(),
            mode: LoadMode::CreateOrAppend,
        };
        let loaded = target.load(&destination, schema, stream.try_flatten().boxed()).await;
        match &loaded {
            Ok(_) => bar.finish_and_clear(),
            Err(_) => bar.abandon(),
        }
        let rows = loaded?;
        let took = environment.clock.now().saturating_sub(start);
        output::line(&format!(
            "loaded {} from {} ({}) into {reference} in {}",
            count(rows, "row"),
            count(self.files.len() as u64, "file"),
            ByteSize(bytes),
            elapsed(took)
        ))
    }
}

/// The columns of the table, or `None` if there is no such table.
async fn existing_schema(target: &Target, reference: &TableReference) -> Result<Option<SchemaRef>> {
    match target.run(&format!("select * from {} limit 0", reference.to_quoted_string())).await {
        Ok(query) => Ok(Some(query.schema)),
        Err(error) if error.code() == ErrorCode::TableNotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delimiters_are_one_character() {
        assert_eq!(parse_delimiter("|"), Ok(b'|'));
        assert_eq!(parse_delimiter("\\t"), Ok(b'\t'));
        for text in ["", "ab", "ä", "\n"] {
            assert!(parse_delimiter(text).is_err(), "{text}");
        }
    }
}
