//! Cuts a script into statements.

use aubade_proto::{Error, ErrorCode, Result};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, Tokenizer};

/// The statements of a script, without their semicolons; empty ones and lone comments are left out.
///
/// # Errors
/// `SqlSyntax` when a string, quoted name or comment is not closed.
pub fn split_statements(sql: &str) -> Result<Vec<String>> {
    let tokens = Tokenizer::new(&GenericDialect {}, sql)
        .tokenize_with_location()
        .map_err(|error| Error::new(ErrorCode::SqlSyntax, format!("the SQL does not parse: {error}")))?;
    let offsets = LineOffsets::new(sql);
    let mut statements = Vec::new();
    let mut start = None;
    for token in &tokens {
        match &token.token {
            Token::SemiColon => {
                if let Some(start) = start.take() {
                    push(&mut statements, sql.get(start..offsets.byte(token.span.start)));
                }
            }
            Token::Whitespace(_) | Token::EOF => {}
            _ => {
                start.get_or_insert_with(|| offsets.byte(token.span.start));
            }
        }
    }
    if let Some(start) = start {
        push(&mut statements, sql.get(start..));
    }
    Ok(statements)
}

fn push(statements: &mut Vec<String>, text: Option<&str>) {
    let text = text.unwrap_or_default().trim();
    if !text.is_empty() {
        statements.push(text.to_owned());
    }
}

/// From the tokenizer's lines and columns (both from 1, columns in characters) to bytes.
pub(crate) struct LineOffsets<'a> {
    sql: &'a str,
    lines: Vec<usize>,
}

impl<'a> LineOffsets<'a> {
    pub(crate) fn new(sql: &'a str) -> Self {
        let after_breaks = sql.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(index, _)| index + 1);
        Self { sql, lines: std::iter::once(0).chain(after_breaks).collect() }
    }

    /// The byte offset of a location; the end of the text when it is past it.
    pub(crate) fn byte(&self, location: Location) -> usize {
        let line = usize::try_from(location.line.saturating_sub(1)).unwrap_or(usize::MAX);
        let column = usize::try_from(location.column.saturating_sub(1)).unwrap_or(usize::MAX);
        let Some(start) = self.lines.get(line).copied() else { return self.sql.len() };
        let rest = self.sql.get(start..).unwrap_or_default();
        rest.char_indices().nth(column).map_or(self.sql.len(), |(index, _)| start + index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(sql: &str, expected: &[&str]) {
        assert_eq!(split_statements(sql).unwrap(), expected);
    }

    #[test]
    fn statements_are_cut_at_semicolons_and_nowhere_else() {
        check("", &[]);
        check(" ;; -- nothing\n", &[]);
        check("select 1", &["select 1"]);
        check("select 1; select 2;", &["select 1", "select 2"]);
        check("select ';'; select \"a;b\"", &["select ';'", "select \"a;b\""]);
        check("select 1 -- a; b\n; /* c; d */ select 2", &["select 1 -- a; b", "select 2"]);
        check("select 'it''s;';select 2", &["select 'it''s;'", "select 2"]);
        check("select $$a;b$$; select 2", &["select $$a;b$$", "select 2"]);
    }

    #[test]
    fn characters_of_many_bytes_do_not_shift_the_cut() {
        check("select 'äöü€';\nselect '日本;語' ;\r\nselect 3", &["select 'äöü€'", "select '日本;語'", "select 3"]);
    }

    #[test]
    fn an_open_string_is_an_error() {
        assert_eq!(split_statements("select 'a; select 2").unwrap_err().code(), ErrorCode::SqlSyntax);
    }
}
