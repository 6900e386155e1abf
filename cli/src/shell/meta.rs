//! The shell's own commands, which begin with a backslash.

use aubade_proto::{Error, ErrorCode, Result};
use datafusion::common::TableReference;

/// What the shell does by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Meta {
    /// `\q`
    Quit,
    /// `\?`
    Help,
    /// `\timing`
    Timing,
    /// `\d`, `\dt`, `.tables`
    Tables,
    /// `\d TABLE`
    Describe(String),
}

/// What `\?` prints.
pub(super) const HELP: &str = "\
  SQL;           run a statement; it may go over several lines
  \\d             list tables and views
  \\d TABLE       list the columns of a table or view
  \\dt            list tables and views (as .tables)
  \\timing        switch the line of figures after each result on or off
  \\?             this help
  \\q             leave (as Ctrl-D)
  Ctrl-C         cancel the statement that runs, or forget what is typed";

impl Meta {
    /// Whether a line is meant for the shell, not for SQL.
    pub(super) fn is_one(line: &str) -> bool {
        let line = line.trim_start();
        line.starts_with('\\') || line.starts_with(".tables")
    }

    /// Reads one.
    ///
    /// # Errors
    /// `InvalidArgument` when there is no such command.
    pub(super) fn parse(line: &str) -> Result<Self> {
        let line = line.trim().trim_end_matches(';').trim_end();
        let (command, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match (command, argument.trim()) {
            ("\\q" | "\\quit", "") => Ok(Self::Quit),
            ("\\?" | "\\h" | "\\help", "") => Ok(Self::Help),
            ("\\timing", _) => Ok(Self::Timing),
            ("\\d" | "\\dt" | ".tables", "") => Ok(Self::Tables),
            ("\\d", table) => Ok(Self::Describe(table.to_owned())),
            _ => Err(Error::new(ErrorCode::InvalidArgument, format!("unknown command {line}"))
                .hint("\\? lists the commands")),
        }
    }
}

/// The query behind `\d`.
pub(super) fn tables_sql() -> String {
    "select table_schema as schema, table_name as name, table_type as type from information_schema.tables \
     where table_schema not in ('information_schema', 'system') order by 1, 2"
        .to_owned()
}

/// The query behind `\d TABLE`: a table that does not exist gives the same error as in FROM.
pub(super) fn describe_sql(table: &str) -> String {
    format!("describe {}", TableReference::parse_str(table).to_quoted_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read() {
        for (line, expected) in [
            ("\\q", Meta::Quit),
            ("  \\d", Meta::Tables),
            ("\\dt;", Meta::Tables),
            (".tables", Meta::Tables),
            ("\\d  Public.T ;", Meta::Describe("Public.T".to_owned())),
            ("\\timing", Meta::Timing),
            ("\\?", Meta::Help),
        ] {
            assert!(Meta::is_one(line));
            assert_eq!(Meta::parse(line).unwrap(), expected, "{line}");
        }
        assert!(Meta::parse("\\x").is_err());
        assert!(!Meta::is_one("select 1"));
    }

    #[test]
    fn described_names_are_quoted_as_sql_reads_them() {
        assert_eq!(describe_sql("Lineitem"), "describe lineitem");
        assert_eq!(describe_sql("s.\"Mixed Case\""), "describe s.\"Mixed Case\"");
    }
}
