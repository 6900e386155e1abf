//! From text to one statement.

use aubade_planner::standard_sql;
use aubade_proto::{Error, ErrorCode, Result};
use datafusion::error::DataFusionError;
use datafusion::execution::SessionState;
use datafusion::sql::parser::{DFParserBuilder, Statement as Ast};
use datafusion::sql::sqlparser::dialect::{Dialect, GenericDialect, dialect_from_str};
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::ParserError;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};

use super::buffers::{self, BufferStatement};
use crate::session::PARAMETERS_MAX;

/// Bytes of one statement. Its parse tree takes some thirty times as much memory, which no limit
/// counts, so this is what bounds it. Rows in bulk go by Flight ingestion or `aubade load`.
pub(crate) const STATEMENT_BYTES_MAX: usize = 4 << 20;

/// Operators that may follow each other in one list item or clause. A chain of them becomes a tree
/// as deep as it is long, and not everything that walks or frees such a tree guards its stack: past
/// some thousands the process would die.
pub(crate) const OPERATOR_CHAIN_MAX: usize = 1_000;
/// What a JOIN counts for in such a chain: the operators of a deep plan take more stack.
const JOIN_WEIGHT: usize = 8;

/// One statement, parsed.
#[derive(Clone, Debug)]
pub(crate) struct Statement {
    pub(crate) body: Body,
    pub(crate) text: String,
}

/// What a statement says.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    Sql(Ast),
    /// About the buffer pool, for which SQL has no words.
    Buffers(BufferStatement),
}

impl Statement {
    /// Parses exactly one statement. Parameters written `?` are numbered from the left.
    ///
    /// # Errors
    /// `SqlSyntax`; `LimitExceeded` when it is too long or too deep; those of [`standard_sql::rewrite`].
    pub(crate) fn parse(sql: &str, state: &SessionState) -> Result<Self> {
        if sql.len() > STATEMENT_BYTES_MAX {
            let text = format!("the statement has {} bytes and at most {STATEMENT_BYTES_MAX} are allowed", sql.len());
            return Err(Error::new(ErrorCode::LimitExceeded, text).hint(
                "load rows in bulk with `aubade load` or a client's ingest call, or cut the statement in parts",
            ));
        }
        let options = &state.config().options().sql_parser;
        let dialect: Box<dyn Dialect> =
            dialect_from_str(options.dialect).unwrap_or_else(|| Box::new(GenericDialect {}));
        let mut tokens = Tokenizer::new(dialect.as_ref(), sql)
            .tokenize_with_location()
            .map_err(|error| syntax(&ParserError::from(error)))?;
        number_parameters(&mut tokens)?;
        check_chains(&tokens)?;
        if let Some(statement) = buffers::parse(&tokens, dialect.as_ref()).map_err(|error| syntax(&error))? {
            return Ok(Self { body: Body::Buffers(statement), text: sql.to_owned() });
        }
        let parser = DFParserBuilder::new(tokens)
            .with_dialect(dialect.as_ref())
            .with_recursion_limit(options.recursion_limit.get())
            .build();
        let statements = parser.and_then(|mut parser| parser.parse_statements());
        let mut statements = statements.map_err(|error| match error.find_root() {
            DataFusionError::SQL(error, _) => syntax(error),
            _ => Error::from_datafusion(error),
        })?;
        match (statements.pop_front(), statements.len()) {
            (Some(mut ast), 0) => {
                standard_sql::rewrite(&mut ast)?;
                Ok(Self { body: Body::Sql(ast), text: sql.to_owned() })
            }
            (None, _) => Err(Error::new(ErrorCode::SqlSyntax, "the text has no statement in it")),
            (Some(_), more) => {
                Err(Error::new(ErrorCode::SqlSyntax, format!("the text has {} statements instead of one", more + 1))
                    .hint("send one statement at a time"))
            }
        }
    }
}

/// Bounds the depth of the tree that the parser will make, as far as its own limit does not.
fn check_chains(tokens: &[TokenWithSpan]) -> Result<()> {
    // One count per open parenthesis; a comma begins a new chain.
    let mut counts = vec![0_usize];
    for token in tokens {
        let weight = match &token.token {
            Token::LParen | Token::LBrace => {
                counts.push(0);
                continue;
            }
            Token::RParen | Token::RBrace => {
                if counts.len() > 1 {
                    counts.pop();
                }
                continue;
            }
            Token::Comma => {
                if let Some(count) = counts.last_mut() {
                    *count = 0;
                }
                continue;
            }
            Token::Word(word) => keyword_weight(word.keyword),
            token => usize::from(is_operator(token)),
        };
        let Some(count) = counts.last_mut() else { continue };
        *count += weight;
        if *count > OPERATOR_CHAIN_MAX {
            let text = format!("the statement chains more than {OPERATOR_CHAIN_MAX} operators{}", token.span.start);
            return Err(Error::new(ErrorCode::LimitExceeded, text)
                .hint("use IN (...) for a list of values, or put the values in a table and join it"));
        }
    }
    Ok(())
}

fn keyword_weight(keyword: Keyword) -> usize {
    match keyword {
        Keyword::JOIN => JOIN_WEIGHT,
        Keyword::AND
        | Keyword::OR
        | Keyword::XOR
        | Keyword::NOT
        | Keyword::IS
        | Keyword::IN
        | Keyword::LIKE
        | Keyword::ILIKE
        | Keyword::SIMILAR
        | Keyword::BETWEEN
        | Keyword::AT
        | Keyword::COLLATE
        | Keyword::DIV
        | Keyword::UNION
        | Keyword::EXCEPT
        | Keyword::INTERSECT => 1,
        _ => 0,
    }
}

fn is_operator(token: &Token) -> bool {
    !matches!(
        token,
        Token::Word(_)
            | Token::Number(..)
            | Token::SingleQuotedString(_)
            | Token::DoubleQuotedString(_)
            | Token::NationalStringLiteral(_)
            | Token::EscapedStringLiteral(_)
            | Token::HexStringLiteral(_)
            | Token::DollarQuotedString(_)
            | Token::Placeholder(_)
            | Token::Whitespace(_)
            | Token::SemiColon
            | Token::Period
            | Token::RBracket
            | Token::EOF
    )
}

fn syntax(error: &ParserError) -> Error {
    match error {
        ParserError::RecursionLimitExceeded => {
            Error::new(ErrorCode::LimitExceeded, "the statement is nested too deeply to be parsed")
                .hint("use fewer levels of parentheses or subqueries")
        }
        ParserError::TokenizerError(text) | ParserError::ParserError(text) => {
            Error::new(ErrorCode::SqlSyntax, format!("the SQL does not parse: {text}"))
        }
    }
}

fn number_parameters(tokens: &mut [TokenWithSpan]) -> Result<()> {
    let (mut unnumbered, mut numbered) = (0_usize, false);
    for token in tokens {
        let Token::Placeholder(name) = &mut token.token else { continue };
        if name == "?" {
            unnumbered += 1;
            *name = format!("${unnumbered}");
        } else {
            numbered = true;
            if let Some(digits) = name.strip_prefix('?') {
                *name = format!("${digits}");
            }
            let number = name.get(1..).and_then(|digits| digits.parse::<u64>().ok());
            if number.is_some_and(|number| number > PARAMETERS_MAX as u64) {
                return Err(Error::new(
                    ErrorCode::LimitExceeded,
                    format!("parameter {name} is above ${PARAMETERS_MAX}"),
                ));
            }
        }
    }
    if numbered && unnumbered > 0 {
        return Err(Error::new(ErrorCode::SqlSyntax, "parameters are written both as ? and as $1")
            .hint("write all of them in one way"));
    }
    Ok(())
}
