//! CACHE TABLE, UNCACHE TABLE and DISCARD BUFFERS.

use std::collections::BTreeSet;
use std::sync::Arc;

use aubade_catalog::snapshot::Table;
use aubade_catalog::{Relation, RelationName};
use aubade_proto::{Error, ErrorCode, Result};
use datafusion::sql::sqlparser::ast::{Ident, ObjectName};
use datafusion::sql::sqlparser::dialect::Dialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{IsOptional, Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use super::StatementContext;
use super::names::{is_built_in, kind};
use crate::buffer_pool::{BufferPool, TableOfPool, load_table};
use crate::session::QueryOutput;

/// A statement about the buffer pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BufferStatement {
    /// `CACHE TABLE t [(column, ...)]`: loads columns, all if none are named, and keeps them.
    Cache { table: ObjectName, columns: Vec<Ident> },
    /// `UNCACHE TABLE [IF EXISTS] t`: forgets what is there of a table.
    Uncache { table: ObjectName, if_exists: bool },
    /// `DISCARD BUFFERS`: forgets all that the pool has, and the results of fragments; one of the two has to be there.
    Discard,
}

/// What SQL itself has words to discard.
const DISCARDED_BY_SQL: [&str; 5] = ["ALL", "PLANS", "SEQUENCES", "TEMP", "TEMPORARY"];

/// The statement about the buffer pool that `tokens` begin with; `None` where they are about something else.
pub(super) fn parse(tokens: &[TokenWithSpan], dialect: &dyn Dialect) -> Result<Option<BufferStatement>, ParserError> {
    let words = tokens.iter().filter_map(|token| match &token.token {
        Token::Whitespace(_) => None,
        Token::Word(word) if word.quote_style.is_none() => Some(word.value.to_uppercase()),
        _ => Some(String::new()),
    });
    let words: Vec<_> = words.take(2).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["CACHE" | "UNCACHE", "TABLE"] | ["DISCARD", "BUFFERS"] => {}
        ["DISCARD", what] if DISCARDED_BY_SQL.contains(what) => return Ok(None),
        // The parser of SQL would leave BUFFERS out of its message.
        ["DISCARD", ..] => {
            let text = "after DISCARD comes PLANS, BUFFERS, or ALL for both";
            return Err(ParserError::ParserError(text.to_owned()));
        }
        _ => return Ok(None),
    }
    let mut parser = Parser::new(dialect).with_tokens_with_locations(tokens.to_vec());
    parser.next_token();
    parser.next_token();
    let statement = match words.first() {
        Some(&"CACHE") => BufferStatement::Cache {
            table: parser.parse_object_name(false)?,
            columns: parser.parse_parenthesized_column_list(IsOptional::Optional, false)?,
        },
        Some(&"UNCACHE") => BufferStatement::Uncache {
            if_exists: parser.parse_keywords(&[Keyword::IF, Keyword::EXISTS]),
            table: parser.parse_object_name(false)?,
        },
        _ => BufferStatement::Discard,
    };
    while parser.consume_token(&Token::SemiColon) {}
    match parser.peek_token().token {
        Token::EOF => Ok(Some(statement)),
        Token::Word(word) if word.keyword == Keyword::AS => {
            Err(ParserError::ParserError("a table is cached as it is, and not AS a query".to_owned()))
        }
        other => Err(ParserError::ParserError(format!("expected the end of the statement, found: {other}"))),
    }
}

pub(super) async fn run(context: &StatementContext, statement: BufferStatement) -> Result<QueryOutput> {
    let engine = context.engine();
    let pool = engine.cluster().buffer_pool().ok_or_else(|| no_pool(engine.is_embedded()));
    match statement {
        BufferStatement::Discard if pool.is_err() && engine.results().is_none() => return Err(nothing_is_kept()),
        BufferStatement::Discard => discard_all(context).await,
        BufferStatement::Uncache { table, if_exists } => unpin(context, pool?, table, if_exists)?,
        BufferStatement::Cache { table, columns } => cache(context, pool?, table, columns).await?,
    }
    context.done(0)
}

fn unpin(context: &StatementContext, pool: &BufferPool, name: ObjectName, if_exists: bool) -> Result<()> {
    match find(context, &context.relation_name(name)?) {
        Ok(table) => pool.unpin(table.id),
        Err(error) if if_exists && is_not_found(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Forgets what the buffer pool has, if there is one, and the results of fragments, if they are kept.
pub(super) async fn discard_all(context: &StatementContext) {
    if let Some(results) = context.engine().results() {
        results.clear();
    }
    if let Some(pool) = context.engine().cluster().buffer_pool() {
        pool.clear().await;
    }
}

fn no_pool(is_embedded: bool) -> Error {
    let (text, hint) = match is_embedded {
        true => (
            "there is no buffer pool: an embedded engine keeps no columns",
            "use a coordinator: `aubade serve --buffer-pool SIZE`, with a size above 0",
        ),
        false => (
            "the buffer pool of this coordinator is off",
            "start it with `aubade serve --buffer-pool SIZE`, with a size above 0; without the option it is off where \
             --memory-limit leaves no memory for it",
        ),
    };
    Error::new(ErrorCode::NotSupported, text).hint(hint)
}

fn nothing_is_kept() -> Error {
    let text = "there is nothing to discard: no columns and no results of fragments are kept here";
    Error::new(ErrorCode::NotSupported, text).hint(
        "a coordinator keeps them: `aubade serve --buffer-pool SIZE --fragment-cache SIZE`, with one of the sizes above 0",
    )
}

async fn cache(
    context: &StatementContext,
    pool: &Arc<BufferPool>,
    name: ObjectName,
    columns: Vec<Ident>,
) -> Result<()> {
    let table = find(context, &context.relation_name(name)?)?;
    let columns = match columns.is_empty() {
        true => table.schema.fields().iter().map(|field| Arc::from(field.name().as_str())).collect(),
        false => columns.into_iter().map(|column| column_name(context, table, column)).collect::<Result<Vec<_>>>()?,
    };
    let columns: Vec<Arc<str>> = columns.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
    let of_pool = TableOfPool::from(table.as_ref());
    let pinned = pool.pin(&of_pool, &columns, table.row_count())?;
    // One that has been dropped since would stay pinned: whoever dropped it has looked at the pool already.
    let newest = context.engine().manifest().snapshot();
    if newest.relations.get(&table.name).map(Relation::id) != Some(table.id) {
        return Err(context.not_found(&table.name));
    }
    load_table(context.engine().cluster(), pool, &Arc::new(of_pool), &table.segments, &columns).await?;
    pinned.keep();
    Ok(())
}

fn is_not_found(error: &Error) -> bool {
    matches!(error.code(), ErrorCode::TableNotFound | ErrorCode::SchemaNotFound)
}

fn find<'a>(context: &'a StatementContext, name: &RelationName) -> Result<&'a Arc<Table>> {
    match context.snapshot().relations.get(name) {
        Some(Relation::Table(table)) => Ok(table),
        Some(relation) => {
            let text = format!("'{name}' is a {}, and only tables can be cached", kind(relation));
            Err(Error::new(ErrorCode::InvalidArgument, text).hint("cache the tables that it reads"))
        }
        None if is_built_in(&name.schema) && !context.snapshot().schemas.contains(&name.schema) => {
            let text = format!("'{name}' is a system table, and these are not kept in the buffer pool");
            Err(Error::new(ErrorCode::InvalidArgument, text).hint("cache a table that was made with CREATE TABLE"))
        }
        None => Err(context.not_found(name)),
    }
}

fn column_name(context: &StatementContext, table: &Table, column: Ident) -> Result<Arc<str>> {
    let normalize = context.state().config().options().sql_parser.enable_ident_normalization;
    let name = match column.quote_style {
        None if normalize => column.value.to_lowercase(),
        _ => column.value,
    };
    if table.schema.field_with_name(&name).is_ok() {
        return Ok(Arc::from(name));
    }
    let known: Vec<&str> = table.schema.fields().iter().map(|field| field.name().as_str()).collect();
    Err(Error::new(ErrorCode::ColumnNotFound, format!("table '{}' has no column '{name}'", table.name))
        .hint(format!("its columns are {}", known.join(", "))))
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::dialect::GenericDialect;
    use datafusion::sql::sqlparser::tokenizer::Tokenizer;

    use super::*;

    fn parsed(sql: &str) -> Result<Option<BufferStatement>, ParserError> {
        parse(&Tokenizer::new(&GenericDialect {}, sql).tokenize_with_location().unwrap(), &GenericDialect {})
    }

    #[test]
    fn statements_about_buffers_are_told_from_others() {
        let Some(BufferStatement::Cache { table, columns }) = parsed(" cache /* it */ table s.T (a, \"B\") ;").unwrap()
        else {
            panic!("not a CACHE")
        };
        assert_eq!((table.to_string().as_str(), columns.len()), ("s.T", 2));
        for (sql, exists) in
            [("UNCACHE TABLE t", false), ("UNCACHE TABLE IF EXISTS t", true), ("uncache table if", false)]
        {
            let Some(BufferStatement::Uncache { if_exists, .. }) = parsed(sql).unwrap() else {
                panic!("not an UNCACHE")
            };
            assert_eq!(if_exists, exists, "{sql}");
        }
        assert_eq!(parsed("discard buffers").unwrap(), Some(BufferStatement::Discard));
        for other in
            ["discard plans", "discard all", "discard temp", "select cache from t", "", "cache", "\"cache\" table t"]
        {
            assert_eq!(parsed(other).unwrap(), None, "{other}");
        }
        for wrong in ["discard", "discard;", "discard foo", "discard \"plans\""] {
            let text = parsed(wrong).unwrap_err().to_string();
            assert!(text.contains("PLANS") && text.contains("BUFFERS") && text.contains("ALL"), "{text}");
        }
        for wrong in [
            "cache table",
            "cache table t (",
            "cache table t as select 1",
            "discard buffers now",
            "uncache table if exists",
        ] {
            parsed(wrong).unwrap_err();
        }
    }
}
