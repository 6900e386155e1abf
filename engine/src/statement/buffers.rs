//! CACHE TABLE, UNCACHE TABLE and DISCARD BUFFERS.

use std::collections::BTreeSet;
use std::sync::Arc;

use aubade_catalog::Relation;
use aubade_catalog::snapshot::Table;
use aubade_proto::{Error, ErrorCode, Result};
use datafusion::sql::sqlparser::ast::{Ident, ObjectName};
use datafusion::sql::sqlparser::dialect::Dialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{IsOptional, Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use super::StatementContext;
use super::names::{check_not_built_in, kind};
use crate::buffer_pool::{BufferPool, TableOfPool, load_table};
use crate::session::QueryOutput;

/// A statement about the buffer pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BufferStatement {
    /// `CACHE TABLE t [(column, ...)]`: loads columns, all if none are named, and keeps them.
    Cache { table: ObjectName, columns: Vec<Ident> },
    /// `UNCACHE TABLE t`: forgets what is there of a table.
    Uncache { table: ObjectName },
    /// `DISCARD BUFFERS`: forgets all.
    Discard,
}

/// The statement about the buffer pool that `tokens` begin with; `None` where they are about something else.
pub(super) fn parse(tokens: &[TokenWithSpan], dialect: &dyn Dialect) -> Result<Option<BufferStatement>, ParserError> {
    let words = tokens.iter().filter_map(|token| match &token.token {
        Token::Whitespace(_) => None,
        Token::Word(word) if word.quote_style.is_none() => Some(word.value.to_uppercase()),
        _ => Some(String::new()),
    });
    let words: Vec<_> = words.take(2).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if !matches!(words.as_slice(), ["CACHE" | "UNCACHE", "TABLE"] | ["DISCARD", "BUFFERS"]) {
        return Ok(None);
    }
    let mut parser = Parser::new(dialect).with_tokens_with_locations(tokens.to_vec());
    parser.next_token();
    parser.next_token();
    let statement = match words.first() {
        Some(&"CACHE") => BufferStatement::Cache {
            table: parser.parse_object_name(false)?,
            columns: parser.parse_parenthesized_column_list(IsOptional::Optional, false)?,
        },
        Some(&"UNCACHE") => BufferStatement::Uncache { table: parser.parse_object_name(false)? },
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
    let cluster = context.engine().cluster();
    let pool = cluster.buffer_pool().ok_or_else(|| {
        Error::new(ErrorCode::NotSupported, "there is no buffer pool: an embedded engine keeps no columns")
            .hint("use a coordinator: `aubade serve --buffer-pool SIZE`, with a size above 0")
    })?;
    match statement {
        BufferStatement::Discard => pool.clear().await,
        BufferStatement::Uncache { table } => pool.unpin(find(context, table)?.id),
        BufferStatement::Cache { table, columns } => cache(context, pool, table, columns).await?,
    }
    context.done(0)
}

async fn cache(
    context: &StatementContext,
    pool: &Arc<BufferPool>,
    name: ObjectName,
    columns: Vec<Ident>,
) -> Result<()> {
    let table = find(context, name)?;
    let columns = match columns.is_empty() {
        true => table.schema.fields().iter().map(|field| Arc::from(field.name().as_str())).collect(),
        false => columns.into_iter().map(|column| column_name(context, table, column)).collect::<Result<Vec<_>>>()?,
    };
    let columns: Vec<Arc<str>> = columns.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
    let of_pool = TableOfPool::from(table.as_ref());
    let pinned = pool.pin(&of_pool, &columns, table.row_count())?;
    load_table(context.engine().cluster(), pool, &Arc::new(of_pool), &table.segments, &columns).await?;
    pinned.keep();
    Ok(())
}

fn find(context: &StatementContext, name: ObjectName) -> Result<&Arc<Table>> {
    let name = context.relation_name(name)?;
    match context.snapshot().relations.get(&name) {
        Some(Relation::Table(table)) => Ok(table),
        Some(relation) => {
            let text = format!("'{name}' is a {}, and only tables can be cached", kind(relation));
            Err(Error::new(ErrorCode::InvalidArgument, text).hint("cache the tables that it reads"))
        }
        None => {
            check_not_built_in(context.snapshot(), &name.schema)?;
            Err(context.not_found(&name))
        }
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
        assert!(matches!(parsed("UNCACHE TABLE t").unwrap(), Some(BufferStatement::Uncache { .. })));
        assert_eq!(parsed("discard buffers").unwrap(), Some(BufferStatement::Discard));
        for other in ["discard plans", "select cache from t", "", "cache", "\"cache\" table t"] {
            assert_eq!(parsed(other).unwrap(), None, "{other}");
        }
        for wrong in ["cache table", "cache table t (", "cache table t as select 1", "discard buffers now"] {
            parsed(wrong).unwrap_err();
        }
    }
}
