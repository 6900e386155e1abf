//! The SQL shell, and the running of statements from anywhere else.

mod lines;
mod meta;

use std::time::Duration;

use aubade_engine::QueryRecord;
use aubade_environment::Environment;
use aubade_proto::{Error, ErrorCode, Result};

use crate::benchmark::elapsed;
use crate::interrupt;
use crate::output::{self, Format};
use crate::size::{ByteSize, count};
use crate::statements::{Input, split};
use crate::target::Target;
use lines::{Line, Lines};
use meta::Meta;

const PROMPT: &str = "aubade> ";
const PROMPT_MORE: &str = "   ...> ";

/// Runs statements on a target and prints what they give.
#[derive(Debug)]
pub(crate) struct Shell<'a> {
    environment: &'a Environment,
    target: &'a Target,
    format: Format,
    /// Whether a line of figures follows each result.
    summary: bool,
}

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Continue,
    Quit,
}

impl<'a> Shell<'a> {
    pub(crate) fn new(environment: &'a Environment, target: &'a Target, format: Format, summary: bool) -> Self {
        Self { environment, target, format, summary }
    }

    /// Reads statements from the terminal until Ctrl-D or `\q`. Errors are printed and the shell
    /// goes on; Ctrl-C cancels the statement that runs.
    ///
    /// # Errors
    /// Only those of the terminal itself.
    pub(crate) async fn interact(&mut self) -> Result<()> {
        output::note("Type SQL that ends with ;  \\? for help, \\q or Ctrl-D to leave.");
        let mut lines = Lines::terminal()?;
        let mut typed = String::new();
        loop {
            let prompt = if typed.is_empty() { PROMPT } else { PROMPT_MORE };
            match lines.next(prompt).await? {
                Line::End => break,
                Line::Interrupted => typed.clear(),
                Line::Text(line) => {
                    if self.accept(&mut lines, &mut typed, &line).await == Next::Quit {
                        break;
                    }
                }
            }
        }
        lines.save_history();
        Ok(())
    }

    /// Takes a line that was typed.
    async fn accept(&mut self, lines: &mut Lines, typed: &mut String, line: &str) -> Next {
        if typed.is_empty() && Meta::is_one(line) {
            lines.remember(line);
            let result = self.meta(line).await;
            return result.unwrap_or_else(|error| {
                output::error(&error);
                Next::Continue
            });
        }
        typed.push_str(line);
        typed.push('\n');
        let Input { statements, rest } = split(typed);
        if !statements.is_empty() {
            let length = typed.len() - rest.len();
            lines.remember(typed.get(..length).unwrap_or_default().trim());
        }
        *typed = rest;
        for statement in statements {
            if let Err(error) = self.run_cancellable(&statement).await {
                output::error(&error);
                // What follows may depend on what failed.
                break;
            }
        }
        Next::Continue
    }

    async fn run_cancellable(&self, statement: &str) -> Result<()> {
        tokio::select! {
            result = self.statement(statement) => result,
            signal = interrupt::ctrl_c() => {
                signal?;
                Err(Error::new(ErrorCode::Cancelled, "the statement was cancelled"))
            }
        }
    }

    /// Reads statements from a pipe until its end.
    ///
    /// # Errors
    /// Of the first statement that fails; the rest is not run.
    pub(crate) async fn pipe(&mut self) -> Result<()> {
        let mut lines = Lines::pipe();
        let mut read = String::new();
        loop {
            let line = match lines.next("").await? {
                Line::Text(line) => line,
                Line::Interrupted | Line::End => break,
            };
            if read.is_empty() && Meta::is_one(&line) {
                if self.meta(&line).await? == Next::Quit {
                    return Ok(());
                }
                continue;
            }
            read.push_str(&line);
            read.push('\n');
            let Input { statements, rest } = split(&read);
            read = rest;
            for statement in statements {
                self.statement(&statement).await?;
            }
        }
        self.text(&read).await
    }

    /// Runs all statements of a text; the last one needs no semicolon.
    ///
    /// # Errors
    /// Of the first statement that fails; the rest is not run.
    pub(crate) async fn text(&mut self, text: &str) -> Result<()> {
        if Meta::is_one(text) {
            return self.meta(text).await.map(|_| ());
        }
        let Input { statements, rest } = split(text);
        for statement in statements.iter().chain((!rest.is_empty()).then_some(&rest)) {
            self.statement(statement).await?;
        }
        Ok(())
    }

    async fn meta(&mut self, line: &str) -> Result<Next> {
        match Meta::parse(line)? {
            Meta::Quit => return Ok(Next::Quit),
            Meta::Help => output::line(meta::HELP)?,
            Meta::Timing => {
                self.summary = !self.summary;
                output::note(if self.summary { "timing is on" } else { "timing is off" });
            }
            Meta::Tables => self.run_cancellable(&meta::tables_sql()).await?,
            Meta::Describe(table) => self.run_cancellable(&meta::describe_sql(&table)).await?,
        }
        Ok(Next::Continue)
    }

    /// Runs one statement and prints its result.
    ///
    /// # Errors
    /// The statement's.
    async fn statement(&self, sql: &str) -> Result<()> {
        let clock = &self.environment.clock;
        let start = clock.now();
        let query = self.target.run(sql).await?;
        let id = query.id;
        let rows = output::results(self.format, query.schema, query.stream).await?;
        let took = clock.now().saturating_sub(start);
        if self.summary {
            let record = match id {
                Some(id) => self.target.record(self.environment, id).await,
                None => None,
            };
            output::note(&summary(rows, took, record.as_ref()));
        }
        Ok(())
    }
}

/// The line after a result.
fn summary(rows: u64, took: Duration, record: Option<&QueryRecord>) -> String {
    let mut text = format!("{}, {}", count(rows, "row"), elapsed(took));
    if let Some(record) = record {
        let (read, wire) = (ByteSize(record.bytes_read), ByteSize(record.bytes_wire));
        text.push_str(&format!(", {read} read at storage, {wire} over the wire"));
        if record.retries > 0 {
            text.push_str(&format!(", {}", count(record.retries, "retried request")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_works_without_a_record() {
        assert_eq!(summary(1, Duration::from_millis(12), None), "1 row, 0.012 s");
    }
}
