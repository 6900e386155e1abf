//! What makes two statements the same.

use std::sync::Arc;

use arrow::datatypes::DataType;
use aubade_proto::Version;
use datafusion::common::ScalarValue;
use datafusion::sql::sqlparser::dialect::{GenericDialect, dialect_from_str};
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer, Word};

use crate::limits::{PLAN_KEY_BYTES_MAX, PLAN_KEY_TEXT_BYTES_MAX};
use crate::session::{Parameters, Template};

/// The words of a query, however they are spaced and commented, with the values of its parameters and all else that
/// its plan depends on, but for the segments of its tables.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PlanKey {
    tokens: Arc<[Token]>,
    /// With their types: timestamps of different zones are equal as values.
    parameters: Arc<[(String, DataType, ScalarValue)]>,
    settings: Arc<str>,
    schema_version: Version,
}

impl PlanKey {
    /// The key of a statement; `None` where no plan is kept: it is no query, or it is very long.
    pub(crate) fn new(
        sql: &str,
        parameters: &Parameters,
        template: &Template,
        schema_version: Version,
    ) -> Option<Self> {
        if sql.len() > PLAN_KEY_TEXT_BYTES_MAX {
            return None;
        }
        let parameters = parameters.single_row()?;
        if parameters.iter().map(|(_, _, value)| value.size()).sum::<usize>() > PLAN_KEY_BYTES_MAX {
            return None;
        }
        let dialect = dialect_from_str(template.state.config().options().sql_parser.dialect);
        let dialect = dialect.unwrap_or_else(|| Box::new(GenericDialect {}));
        let tokens = Tokenizer::new(dialect.as_ref(), sql).tokenize().ok()?;
        let mut tokens: Vec<Token> =
            tokens.into_iter().filter(|token| !matches!(token, Token::Whitespace(_))).collect();
        while tokens.last() == Some(&Token::SemiColon) {
            tokens.pop();
        }
        let first = tokens.iter().find(|token| **token != Token::LParen)?;
        let Token::Word(Word { keyword: Keyword::SELECT | Keyword::WITH, quote_style: None, .. }) = first else {
            return None;
        };
        let is_text = |token: &Token| matches!(token, Token::SingleQuotedString(_) | Token::DoubleQuotedString(_));
        // In some dialects it matters whether two texts are on one line.
        if tokens.windows(2).any(|pair| pair.iter().all(is_text)) {
            return None;
        }
        for index in 0..tokens.len() {
            let before = index.checked_sub(1).and_then(|before| tokens.get(before));
            if !is_name_after(before) && tokens.get(index + 1) != Some(&Token::Colon) {
                tokens.get_mut(index).into_iter().for_each(fold_case);
            }
        }
        Some(Self {
            tokens: tokens.into(),
            parameters: parameters.into(),
            settings: Arc::clone(&template.settings),
            schema_version,
        })
    }

    pub(super) fn parameter_count(&self) -> usize {
        self.parameters.len()
    }
}

/// Whether a word is a name after this token, even where it is a keyword elsewhere.
fn is_name_after(token: Option<&Token>) -> bool {
    match token {
        Some(Token::Period) => true,
        Some(Token::Word(word)) => word.keyword == Keyword::AS,
        _ => false,
    }
}

/// Gives keywords one case: those that cannot be names, since the case of names may show in a result.
fn fold_case(token: &mut Token) {
    let Token::Word(word) = token else { return };
    let folded = matches!(
        word.keyword,
        Keyword::ALL
            | Keyword::AND
            | Keyword::AS
            | Keyword::ASC
            | Keyword::BETWEEN
            | Keyword::BY
            | Keyword::CASE
            | Keyword::CROSS
            | Keyword::DESC
            | Keyword::DISTINCT
            | Keyword::ELSE
            | Keyword::END
            | Keyword::EXCEPT
            | Keyword::EXISTS
            | Keyword::FROM
            | Keyword::FULL
            | Keyword::GROUP
            | Keyword::HAVING
            | Keyword::IN
            | Keyword::INNER
            | Keyword::INTERSECT
            | Keyword::IS
            | Keyword::JOIN
            | Keyword::LEFT
            | Keyword::LIKE
            | Keyword::LIMIT
            | Keyword::NOT
            | Keyword::NULL
            | Keyword::OFFSET
            | Keyword::ON
            | Keyword::OR
            | Keyword::ORDER
            | Keyword::OUTER
            | Keyword::RIGHT
            | Keyword::SELECT
            | Keyword::THEN
            | Keyword::UNION
            | Keyword::USING
            | Keyword::WHEN
            | Keyword::WHERE
            | Keyword::WITH
    );
    if folded && word.quote_style.is_none() {
        word.value.make_ascii_uppercase();
    }
}
