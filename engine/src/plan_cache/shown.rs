//! Keys as people read them. The texts are cut where they are long, and tokens that differ may read alike: what tells
//! two keys apart in any case is [`digest`].

use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};

use datafusion::sql::sqlparser::tokenizer::Token;

use super::key::{Kind, PlanKey, is_reserved};
use crate::limits::{PLAN_CACHE_DETAIL_BYTES_MAX, PLAN_CACHE_TEXT_BYTES_MAX};
use crate::query::cut;

/// The words of a statement as they are compared: a space between them, reserved ones in capitals, and marks such as
/// `?integer0` for constants that the key does not have.
pub(super) fn words(key: &PlanKey) -> String {
    let (mut text, mut before) = (String::new(), None);
    for token in key.tokens.iter() {
        if text.len() > PLAN_CACHE_TEXT_BYTES_MAX {
            break;
        }
        if before.is_some_and(|before| has_space_between(before, token)) {
            text.push(' ');
        }
        // Writing into a string does not fail.
        let _ = match token {
            Token::SingleQuotedString(value) => write!(text, "'{}'", value.replace('\'', "''")),
            token => write!(text, "{token}"),
        };
        before = Some(token);
    }
    cut(&text, PLAN_CACHE_TEXT_BYTES_MAX)
}

fn has_space_between(before: &Token, token: &Token) -> bool {
    match (before, token) {
        (Token::LParen | Token::Period | Token::DoubleColon, _) => false,
        (_, Token::RParen | Token::Comma | Token::Period | Token::DoubleColon | Token::SemiColon) => false,
        // A function's.
        (Token::Word(word), Token::LParen) => is_reserved(word),
        _ => true,
    }
}

/// The names and types of the parameters, with their values where the plan is for these only.
pub(super) fn parameters(key: &PlanKey) -> String {
    let mut text = String::new();
    for (index, (name, data_type, value)) in key.parameters.iter().enumerate() {
        if text.len() > PLAN_CACHE_DETAIL_BYTES_MAX {
            break;
        }
        let separator = if index == 0 { "" } else { ", " };
        let _ = match key.kind {
            Kind::Exact => write!(text, "{separator}{name} {data_type} = {value}"),
            Kind::Shape | Kind::Pattern => write!(text, "{separator}{name} {data_type}"),
        };
    }
    cut(&text, PLAN_CACHE_DETAIL_BYTES_MAX)
}

/// Of all that the key consists of.
pub(super) fn digest(key: &PlanKey) -> String {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

#[cfg(test)]
mod tests {
    use aubade_proto::Version;

    use super::*;
    use crate::plan_cache::Lookup;
    use crate::session::{Parameters, Template};
    use crate::statement::tests::Database;

    fn key(sql: &str, template: &Template) -> PlanKey {
        Lookup::new(sql, &Parameters::default(), template, Version(1)).unwrap().exact().clone()
    }

    #[tokio::test]
    async fn words_read_as_they_are_written() {
        let template = Database::open().await.session.template();
        let shown = |sql| words(&key(sql, &template));
        assert_eq!(
            shown("select  count( * ),max(t.a)::int from t -- all\n where b in (1,2) and c='it''s';"),
            "SELECT count(*), max(t.a)::int FROM t WHERE b IN (1, 2) AND c = 'it''s'"
        );
        assert_eq!(shown("select \"A b\" from (select 1 as \"A b\")"), "SELECT \"A b\" FROM (SELECT 1 AS \"A b\")");
        let long = format!("SELECT '{}ü' AS s", "x".repeat(PLAN_CACHE_TEXT_BYTES_MAX));
        assert!(shown(&long).len() <= PLAN_CACHE_TEXT_BYTES_MAX && shown(&long).starts_with("SELECT 'xxx"));
    }

    #[tokio::test]
    async fn keys_that_read_alike_have_other_digests() {
        let template = Database::open().await.session.template();
        let long =
            |end: &str| key(&format!("SELECT '{}' AS s, {end}", "x".repeat(PLAN_CACHE_TEXT_BYTES_MAX)), &template);
        assert_eq!(words(&long("1")), words(&long("2")));
        assert_ne!(digest(&long("1")), digest(&long("2")));
        assert_eq!(digest(&long("1")), digest(&long("1")));
        assert_ne!(digest(&key("SELECT 1", &template)), digest(&key("SELECT 2", &template)));
    }
}
