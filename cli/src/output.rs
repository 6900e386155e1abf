//! The only place that prints: results to standard output, all else to standard error.
#![expect(clippy::print_stderr, reason = "this module is where the command line prints")]

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;

use arrow::csv;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::json::writer::{JsonArray, LineDelimited, Writer as JsonWriter, WriterBuilder};
use arrow::record_batch::RecordBatch;
use arrow::util::display::FormatOptions;
use arrow::util::pretty::pretty_format_batches_with_options;
use aubade_proto::{Error, ErrorCode, Result, ResultExt};
use futures::{Stream, StreamExt};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// A table for people.
    #[default]
    Table,
    /// Comma-separated values with a header line.
    Csv,
    /// One JSON array of objects per result.
    Json,
    /// One JSON object per line.
    Ndjson,
}

/// Rows of one printed table: a longer result is printed as several tables, so that memory is
/// bounded and the first rows come at once.
const TABLE_ROWS_MAX: usize = 10_000;

/// What the reader of standard output did that ends a command like `aubade sql ... | head`.
const CLOSED: &str = "standard output was closed";

/// Prints an error for people; nothing when whoever reads the output has seen enough.
pub(crate) fn error(error: &Error) {
    if error.is_cancelled() && error.message() == CLOSED {
        return;
    }
    eprintln!("error: {}", error.report());
}

/// Prints a warning.
pub(crate) fn warning(text: &str) {
    eprintln!("warning: {text}");
}

/// Prints a line to standard error: what is not a result.
pub(crate) fn note(text: &str) {
    eprintln!("{text}");
}

/// Prints a line to standard output.
///
/// # Errors
/// When standard output is closed or full.
pub(crate) fn line(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    written(writeln!(out, "{text}").and_then(|()| out.flush()))
}

/// Whether standard error is a terminal, and nobody asked for no colours (<https://no-color.org>).
pub(crate) fn stderr_takes_colour() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Whether a person reads and types.
pub(crate) fn stdin_is_terminal() -> bool {
    io::stdin().is_terminal()
}

fn written(result: io::Result<()>) -> Result<()> {
    result.map_err(|error| {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Error::new(ErrorCode::Cancelled, CLOSED);
        }
        Error::new(ErrorCode::Io, "standard output cannot be written").source(error)
    })
}

/// Writes a result to standard output as it arrives; returns its rows.
///
/// # Errors
/// Those of the stream and of standard output. What came before an error has been printed.
pub(crate) async fn results<S>(format: Format, schema: SchemaRef, stream: S) -> Result<u64>
where
    S: Stream<Item = Result<RecordBatch>> + Unpin,
{
    write_results(io::stdout(), format, schema, stream).await
}

async fn write_results<W, S>(out: W, format: Format, schema: SchemaRef, mut stream: S) -> Result<u64>
where
    W: Write,
    S: Stream<Item = Result<RecordBatch>> + Unpin,
{
    let mut writer = ResultWriter::new(out, format, schema);
    let mut rows = 0_u64;
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        rows = rows.saturating_add(batch.num_rows() as u64);
        writer.write(batch)?;
    }
    writer.finish()?;
    Ok(rows)
}

/// Writes a result. Arrow's own writers fill a buffer that is emptied after every batch, so that an
/// error of theirs is one of the format, and one of standard output is told apart from it.
struct ResultWriter<W> {
    out: W,
    encoder: Encoder,
}

enum Encoder {
    /// A statement without a result.
    Nothing,
    Table(TableEncoder),
    Csv {
        schema: SchemaRef,
        has_header: bool,
    },
    Json(JsonWriter<Vec<u8>, JsonArray>),
    Ndjson(JsonWriter<Vec<u8>, LineDelimited>),
}

impl<W: Write> ResultWriter<W> {
    fn new(out: W, format: Format, schema: SchemaRef) -> Self {
        let json = WriterBuilder::new().with_explicit_nulls(true);
        let encoder = match format {
            _ if schema.fields().is_empty() => Encoder::Nothing,
            Format::Table => {
                Encoder::Table(TableEncoder { schema, waiting: Vec::new(), waiting_rows: 0, printed: false })
            }
            Format::Csv => Encoder::Csv { schema, has_header: false },
            Format::Json => Encoder::Json(json.build(Vec::new())),
            Format::Ndjson => Encoder::Ndjson(json.build(Vec::new())),
        };
        Self { out, encoder }
    }

    fn write(&mut self, batch: RecordBatch) -> Result<()> {
        let bytes = match &mut self.encoder {
            Encoder::Nothing => return Ok(()),
            Encoder::Table(table) => table.add(batch)?,
            Encoder::Csv { has_header, .. } => csv_lines(&batch, !std::mem::replace(has_header, true))?,
            Encoder::Json(writer) => {
                encoded(writer.write(&batch))?;
                std::mem::take(writer.get_mut())
            }
            Encoder::Ndjson(writer) => {
                encoded(writer.write(&batch))?;
                std::mem::take(writer.get_mut())
            }
        };
        written(self.out.write_all(&bytes))
    }

    fn finish(mut self) -> Result<()> {
        let bytes = match self.encoder {
            Encoder::Nothing | Encoder::Csv { has_header: true, .. } => Vec::new(),
            Encoder::Table(table) => table.finish()?,
            Encoder::Csv { schema, has_header: false } => csv_lines(&RecordBatch::new_empty(schema), true)?,
            Encoder::Json(mut writer) => {
                encoded(writer.finish())?;
                writer.get_mut().push(b'\n');
                writer.into_inner()
            }
            Encoder::Ndjson(mut writer) => {
                encoded(writer.finish())?;
                writer.into_inner()
            }
        };
        written(self.out.write_all(&bytes).and_then(|()| self.out.flush()))
    }
}

fn csv_lines(batch: &RecordBatch, header: bool) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    encoded(csv::WriterBuilder::new().with_header(header).build(&mut bytes).write(batch))?;
    Ok(bytes)
}

fn encoded(result: std::result::Result<(), ArrowError>) -> Result<()> {
    result.map_err(|error| {
        Error::new(ErrorCode::NotSupported, "the result cannot be written in this format")
            .source(error)
            .hint("cast columns of nested or binary types, or use --format json")
    })
}

/// Collects rows into tables of at most [`TABLE_ROWS_MAX`].
struct TableEncoder {
    schema: SchemaRef,
    waiting: Vec<RecordBatch>,
    waiting_rows: usize,
    printed: bool,
}

impl TableEncoder {
    /// The tables that are full now.
    fn add(&mut self, batch: RecordBatch) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut rest = batch;
        while rest.num_rows() > 0 {
            let take = rest.num_rows().min(TABLE_ROWS_MAX - self.waiting_rows);
            self.waiting.push(rest.slice(0, take));
            self.waiting_rows += take;
            rest = rest.slice(take, rest.num_rows() - take);
            if self.waiting_rows == TABLE_ROWS_MAX {
                bytes.extend(self.table()?);
            }
        }
        Ok(bytes)
    }

    fn table(&mut self) -> Result<Vec<u8>> {
        if self.waiting.is_empty() {
            self.waiting.push(RecordBatch::new_empty(Arc::clone(&self.schema)));
        }
        let options = FormatOptions::default().with_display_error(true).with_null("NULL");
        let table = pretty_format_batches_with_options(&self.waiting, &options)
            .map(|table| format!("{table}\n"))
            .context(ErrorCode::Internal, || "a result cannot be shown".to_owned())?;
        self.waiting.clear();
        self.waiting_rows = 0;
        self.printed = true;
        Ok(table.into_bytes())
    }

    /// The last table; an empty one when there was none.
    fn finish(mut self) -> Result<Vec<u8>> {
        if self.waiting.is_empty() && self.printed { Ok(Vec::new()) } else { self.table() }
    }
}

/// One column of a [`Grid`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// A small table of text.
#[derive(Debug)]
pub(crate) struct Grid {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Grid {
    /// Without rows yet.
    pub(crate) fn new(columns: &[(&'static str, Align)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row with a cell for each column.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table, without a line break at its end.
    pub(crate) fn render(&self) -> String {
        let width = |index: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(index)).map(|cell| cell.chars().count());
            cells.chain(self.columns.get(index).map(|(name, _)| name.chars().count())).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let join = |cells: &[String]| {
            let padded = cells.iter().zip(&self.columns).zip(&widths).map(|((cell, (_, align)), width)| match align {
                Align::Left => format!("{cell:<width$}"),
                Align::Right => format!("{cell:>width$}"),
            });
            padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        let names: Vec<String> = self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        let rules: Vec<String> = widths.iter().map(|width| "─".repeat(*width)).collect();
        let lines = [names, rules].into_iter().chain(self.rows.iter().cloned());
        lines.map(|cells| join(&cells)).collect::<Vec<_>>().join("\n")
    }
}

/// A progress bar over rows or bytes on standard error; hidden where that is no terminal.
pub(crate) fn progress(label: &str, total: u64, unit: ProgressUnit) -> ProgressBar {
    let bar = new_bar(label, total, unit);
    bar.tick();
    bar
}

/// The same, below others that are shown at the same time.
pub(crate) fn progress_among(bars: &MultiProgress, label: &str, total: u64, unit: ProgressUnit) -> ProgressBar {
    let bar = bars.add(new_bar(label, total, unit));
    bar.tick();
    bar
}

fn new_bar(label: &str, total: u64, unit: ProgressUnit) -> ProgressBar {
    let template = match unit {
        ProgressUnit::Queries => "{prefix:>12} [{bar:32}] {human_pos} of {human_len}",
        ProgressUnit::Rows => "{prefix:>12} [{bar:32}] {human_pos} of {human_len} rows, {per_sec}",
        ProgressUnit::Bytes => "{prefix:>12} [{bar:32}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}",
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total).with_style(style.progress_chars("=> ")).with_prefix(label.to_owned())
}

/// What a progress bar counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProgressUnit {
    /// Queries.
    Queries,
    /// Rows.
    Rows,
    /// Bytes.
    Bytes,
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array, StringArray};
    use futures::stream;

    use super::*;

    fn batch(ids: &[i64], names: &[Option<&str>]) -> RecordBatch {
        let ids = Arc::new(Int64Array::from(ids.to_vec())) as ArrayRef;
        let names = Arc::new(StringArray::from(names.to_vec())) as ArrayRef;
        RecordBatch::try_from_iter_with_nullable([("id", ids, false), ("name", names, true)]).unwrap()
    }

    async fn render(format: Format, batches: Vec<RecordBatch>) -> String {
        let schema = batch(&[], &[]).schema();
        let mut out = Vec::new();
        let rows = batches.iter().map(RecordBatch::num_rows).sum::<usize>() as u64;
        let stream = stream::iter(batches.into_iter().map(Ok));
        assert_eq!(write_results(&mut out, format, schema, stream).await.unwrap(), rows);
        String::from_utf8(out).unwrap()
    }

    #[tokio::test]
    async fn each_format_shows_rows_and_nulls() {
        let batches = || vec![batch(&[1], &[Some("a,b")]), batch(&[], &[]), batch(&[2], &[None])];
        assert_eq!(
            render(Format::Table, batches()).await,
            "+----+------+\n| id | name |\n+----+------+\n| 1  | a,b  |\n| 2  | NULL |\n+----+------+\n"
        );
        assert_eq!(render(Format::Csv, batches()).await, "id,name\n1,\"a,b\"\n2,\n");
        assert_eq!(render(Format::Json, batches()).await, "[{\"id\":1,\"name\":\"a,b\"},{\"id\":2,\"name\":null}]\n");
        assert_eq!(render(Format::Ndjson, batches()).await, "{\"id\":1,\"name\":\"a,b\"}\n{\"id\":2,\"name\":null}\n");
    }

    #[tokio::test]
    async fn an_empty_result_still_has_its_header() {
        assert!(render(Format::Table, vec![]).await.contains("| id | name |"));
        assert_eq!(render(Format::Csv, vec![]).await, "id,name\n");
        assert_eq!(render(Format::Json, vec![]).await, "[]\n");
        assert_eq!(render(Format::Ndjson, vec![]).await, "");
    }

    #[tokio::test]
    async fn long_results_are_cut_into_tables() {
        let ids: Vec<i64> = (0..25_000).collect();
        let names = vec![None; ids.len()];
        let text = render(Format::Table, vec![batch(&ids, &names)]).await;
        assert_eq!(text.matches("| id ").count(), 3);
        assert_eq!(text.lines().filter(|line| line.contains("NULL")).count(), 25_000);
    }

    #[test]
    fn grids_align_their_columns() {
        let mut grid = Grid::new(&[("query", Align::Left), ("rows", Align::Right)]);
        grid.row(["q1".to_owned(), "12345".to_owned()]);
        grid.row(["q10".to_owned(), "1".to_owned()]);
        assert_eq!(grid.render(), "query   rows\n─────  ─────\nq1     12345\nq10        1");
    }
}
