//! What makes two statements the same.

use std::sync::Arc;

use arrow::datatypes::DataType;
use aubade_proto::Version;
use datafusion::common::ScalarValue;
use datafusion::sql::sqlparser::dialect::{GenericDialect, dialect_from_str};
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, Tokenizer, Word};

use crate::limits::{
    PLAN_CACHE_ENTRY_PARAMETER_BYTES, PLAN_CACHE_ENTRY_WORDS, PLAN_KEY_BYTES_MAX, PLAN_KEY_TEXT_BYTES_MAX,
};
use crate::session::{Parameters, Settings, Template};

/// The words of a query, however they are spaced and commented, with the values of its parameters and all else that
/// its plan depends on, but for the segments of its tables.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PlanKey {
    pub(super) kind: Kind,
    pub(super) tokens: Arc<[Token]>,
    /// With their types: timestamps of different zones are equal as values.
    pub(super) parameters: Arc<[(String, DataType, ScalarValue)]>,
    pub(super) settings: Settings,
    pub(super) schema_version: Version,
}

/// How much of a statement a key has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// All of it.
    Exact,
    /// No constants that a plan may be run with others of, and no values of parameters.
    Shape,
    /// No constants at all.
    Pattern,
}

impl PlanKey {
    /// The key of a statement of these words; `None` where no plan is kept, since its parameters are very long.
    pub(super) fn new(
        tokens: Vec<Token>,
        parameters: &Parameters,
        template: &Template,
        schema_version: Version,
    ) -> Option<Self> {
        let parameters = parameters.single_row()?;
        if parameters.iter().map(|(_, _, value)| value.size()).sum::<usize>() > PLAN_KEY_BYTES_MAX {
            return None;
        }
        Some(Self {
            kind: Kind::Exact,
            tokens: tokens.into(),
            parameters: parameters.into(),
            settings: template.settings.clone(),
            schema_version,
        })
    }

    pub(super) fn parameter_count(&self) -> usize {
        self.parameters.len()
    }

    /// How many plans of statements of usual length this one counts for: what a plan takes grows with its statement.
    pub(super) fn weight(&self) -> u32 {
        let parameters = self.parameters.iter().map(|(_, _, value)| value.size()).sum::<usize>();
        let more = self.tokens.len() / PLAN_CACHE_ENTRY_WORDS + parameters / PLAN_CACHE_ENTRY_PARAMETER_BYTES;
        u32::try_from(more).unwrap_or(u32::MAX).saturating_add(1)
    }
}

/// The words of a query, and where they begin; `None` where no plan is kept: it is no query, or it is very long.
pub(super) fn tokens_of(sql: &str, template: &Template) -> Option<(Vec<Token>, Vec<Location>)> {
    if sql.len() > PLAN_KEY_TEXT_BYTES_MAX {
        return None;
    }
    let dialect = dialect_from_str(template.state.config().options().sql_parser.dialect);
    let dialect = dialect.unwrap_or_else(|| Box::new(GenericDialect {}));
    let tokens = Tokenizer::new(dialect.as_ref(), sql).tokenize_with_location().ok()?;
    let tokens = tokens.into_iter().filter(|token| !matches!(token.token, Token::Whitespace(_)));
    let (mut tokens, starts): (Vec<Token>, Vec<Location>) = tokens.map(|token| (token.token, token.span.start)).unzip();
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
    Some((tokens, starts))
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
    if is_reserved(word) {
        word.value.make_ascii_uppercase();
    }
}

/// Whether a word is a keyword that cannot be a name.
pub(super) fn is_reserved(word: &Word) -> bool {
    let reserved = matches!(
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
    reserved && word.quote_style.is_none()
}
