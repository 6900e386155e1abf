//! Lines from a terminal with history, or from a pipe.

use std::io::BufRead;
use std::path::PathBuf;

use aubade_environment::tasks::run_blocking;
use aubade_proto::{Error, ErrorCode, Result, ResultExt};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

/// The file in the home folder that keeps what was typed.
const HISTORY_FILE: &str = ".aubade_history";

/// What came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// A line, without its end.
    Text(String),
    /// Ctrl-C.
    Interrupted,
    /// The end of the input.
    End,
}

/// Where lines come from.
#[derive(Debug)]
pub(super) enum Lines {
    /// A terminal. The editor is away while a line is read.
    Terminal { editor: Option<Box<DefaultEditor>>, history: Option<PathBuf> },
    /// Standard input.
    Pipe,
}

impl Lines {
    /// The terminal, with the history of earlier sessions.
    pub(super) fn terminal() -> Result<Self> {
        let mut editor = DefaultEditor::new().context(ErrorCode::Io, || "the terminal cannot be used".to_owned())?;
        let history = std::env::home_dir().map(|home| home.join(HISTORY_FILE));
        if let Some(path) = history.as_ref().filter(|path| path.exists())
            && let Err(error) = editor.load_history(path)
        {
            tracing::warn!(%error, path = %path.display(), "the history cannot be read");
        }
        Ok(Self::Terminal { editor: Some(Box::new(editor)), history })
    }

    /// Standard input.
    pub(super) fn pipe() -> Self {
        Self::Pipe
    }

    /// The next line. It is waited for off the threads that serve the network.
    pub(super) async fn next(&mut self, prompt: &'static str) -> Result<Line> {
        let stopped = || Error::new(ErrorCode::Cancelled, "the shell was stopped");
        match self {
            Self::Terminal { editor, .. } => {
                let mut used = editor.take().ok_or_else(stopped)?;
                let (line, used) = run_blocking(move || (used.readline(prompt), used)).await.ok_or_else(stopped)?;
                *editor = Some(used);
                match line {
                    Ok(line) => Ok(Line::Text(line)),
                    Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
                    Err(ReadlineError::Eof) => Ok(Line::End),
                    Err(error) => Err(Error::new(ErrorCode::Io, "the terminal cannot be read").source(error)),
                }
            }
            Self::Pipe => run_blocking(next_of_pipe).await.ok_or_else(stopped)?,
        }
    }

    /// Adds to the history.
    pub(super) fn remember(&mut self, text: &str) {
        if let Self::Terminal { editor: Some(editor), .. } = self
            && let Err(error) = editor.add_history_entry(text)
        {
            tracing::warn!(%error, "the history does not take a line");
        }
    }

    /// Writes the history to its file.
    pub(super) fn save_history(&mut self) {
        if let Self::Terminal { editor: Some(editor), history: Some(path) } = self
            && let Err(error) = editor.save_history(path)
        {
            tracing::warn!(%error, path = %path.display(), "the history cannot be written");
        }
    }
}

fn next_of_pipe() -> Result<Line> {
    let mut line = String::new();
    let bytes = std::io::stdin()
        .lock()
        .read_line(&mut line)
        .context(ErrorCode::Io, || "standard input cannot be read".to_owned())?;
    if bytes == 0 {
        return Ok(Line::End);
    }
    let text = line.strip_suffix('\n').map_or(line.as_str(), |text| text.strip_suffix('\r').unwrap_or(text));
    Ok(Line::Text(text.to_owned()))
}
