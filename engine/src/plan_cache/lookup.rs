//! By what the plans of a statement are found: all that it says, or its shape without the constants that may change.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use arrow::datatypes::DataType;
use aubade_planner::Values;
use aubade_proto::Version;
use datafusion::common::ScalarValue;
use datafusion::sql::sqlparser::ast::Statement;
use datafusion::sql::sqlparser::tokenizer::{Location, Token};

use super::key::{Kind, PlanKey, tokens_of};
use super::lift::{Lift, Lifts, lift, placeholder, rename};
use crate::session::{Parameters, Template};

/// Constants and parameters of one plan: what binding them costs grows with their number.
const LIFTED_MAX: usize = 256;
/// Digits that any integer of eight bytes may have.
const INTEGER_DIGITS_MAX: usize = 18;
/// Words of a statement whose constants are lifted: it is kept in more than one form.
const TOKENS_MAX: usize = 1_024;

/// A statement as the plan cache sees it.
#[derive(Clone, Debug)]
pub(crate) struct Lookup {
    exact: PlanKey,
    literals: Vec<Literal>,
    /// Places in its text where a parameter stands.
    placeholders: usize,
    pattern: OnceLock<PlanKey>,
}

/// A constant of a type that does not depend on its value.
#[derive(Clone, Debug)]
struct Literal {
    /// Among the tokens of the key.
    token: usize,
    start: Location,
    mark: &'static str,
}

/// A statement without some of its constants.
#[derive(Debug)]
pub(crate) struct Shape {
    /// Names the plan for all values.
    pub(crate) key: PlanKey,
    /// Of constants and parameters, by their placeholders.
    pub(crate) values: Values,
    /// Different constants that are not in it.
    pub(crate) lifted: usize,
}

impl Shape {
    pub(crate) fn types(&self) -> BTreeMap<String, DataType> {
        self.values.iter().map(|(name, value)| (name.clone(), value.data_type())).collect()
    }
}

impl Lookup {
    /// `None` where no plan is kept of a statement: it is no query, or it is very long.
    pub(crate) fn new(
        sql: &str,
        parameters: &Parameters,
        template: &Template,
        schema_version: Version,
    ) -> Option<Self> {
        let (tokens, starts) = tokens_of(sql, template)?;
        let exact = PlanKey::new(tokens, parameters, template, schema_version)?;
        // The types of decimals depend on their digits.
        let has_decimals = template.state.config().options().sql_parser.parse_float_as_decimal;
        let mut lookup = Self { exact, literals: Vec::new(), placeholders: 0, pattern: OnceLock::new() };
        for (index, (token, start)) in lookup.exact.tokens.iter().zip(starts).enumerate() {
            lookup.placeholders += usize::from(matches!(token, Token::Placeholder(_)));
            if let Some(mark) = mark_of(token, has_decimals) {
                lookup.literals.push(Literal { token: index, start, mark });
            }
        }
        Some(lookup)
    }

    /// The key of the statement with all its constants and values.
    pub(crate) fn exact(&self) -> &PlanKey {
        &self.exact
    }

    /// The key of what it has in common with others that differ in constants only.
    pub(crate) fn pattern(&self) -> &PlanKey {
        self.pattern.get_or_init(|| self.new_pattern())
    }

    fn new_pattern(&self) -> PlanKey {
        let mut tokens = self.exact.tokens.to_vec();
        for literal in &self.literals {
            if let Some(token) = tokens.get_mut(literal.token) {
                *token = Token::Placeholder(literal.mark.to_owned());
            }
        }
        self.key(Kind::Pattern, tokens, self.exact.parameters.iter().map(typed).collect())
    }

    /// Lifts the constants of the parsed statement that may change; which these are, and the statement without them.
    pub(crate) fn lift(&self, mut statement: Statement) -> Option<(Lifts, Statement)> {
        if self.exact.tokens.len() > TOKENS_MAX {
            return None;
        }
        let starts: Vec<Location> = self.literals.iter().map(|literal| literal.start).collect();
        let lifts = lift(&mut statement, &starts, self.placeholders)?;
        let names = self.first_equal(&lifts).into_iter().map(|(one, first)| (placeholder(one), placeholder(first)));
        rename(&mut statement, &names.collect());
        Some((lifts, statement))
    }

    /// For each constant that is lifted the first one that is the same: some rules of planning ask whether two are.
    fn first_equal(&self, lifts: &[Lift]) -> Vec<(usize, usize)> {
        let mut first: HashMap<(&Token, Lift), usize> = HashMap::new();
        let lifted = lifts.iter().zip(&self.literals).enumerate().filter(|(_, (lift, _))| **lift != Lift::Fixed);
        let equal = lifted.filter_map(|(ordinal, (lift, literal))| {
            let token = self.exact.tokens.get(literal.token)?;
            Some((ordinal, *first.entry((token, *lift)).or_insert(ordinal)))
        });
        equal.collect()
    }

    /// The statement without what is lifted of it; `None` where it has to be planned with its values, since one is null,
    /// or there are very many.
    pub(crate) fn shape(&self, lifts: &[Lift]) -> Option<Shape> {
        let mut tokens = self.exact.tokens.to_vec();
        let mut values = self.parameter_values()?;
        let of_parameters = values.len();
        for (ordinal, first) in self.first_equal(lifts) {
            let (literal, lift) = (self.literals.get(ordinal)?, lifts.get(ordinal)?);
            let token = tokens.get_mut(literal.token)?;
            values.insert(placeholder(first), value_of(token, *lift)?);
            *token = Token::Placeholder(format!("{}{first}", literal.mark));
        }
        if values.len() > LIFTED_MAX {
            return None;
        }
        let parameters = self.exact.parameters.iter().map(typed).collect();
        let lifted = values.len() - of_parameters;
        Some(Shape { key: self.key(Kind::Shape, tokens, parameters), values, lifted })
    }

    /// The values of parameters by all that they may be called.
    fn parameter_values(&self) -> Option<BTreeMap<String, ScalarValue>> {
        let mut values = BTreeMap::new();
        for (index, (name, _, value)) in self.exact.parameters.iter().enumerate() {
            values.insert(format!("${}", index + 1), value.clone());
            // Of several that are called alike, the first is meant.
            if name.parse::<usize>().is_err() {
                values.entry(format!("${name}")).or_insert_with(|| value.clone());
            }
        }
        let is_typed = values.values().all(|value| !value.is_null());
        is_typed.then_some(values)
    }

    fn key(&self, kind: Kind, tokens: Vec<Token>, parameters: Arc<[(String, DataType, ScalarValue)]>) -> PlanKey {
        PlanKey {
            kind,
            tokens: tokens.into(),
            parameters,
            settings: self.exact.settings.clone(),
            schema_version: self.exact.schema_version,
        }
    }
}

/// A parameter without its value.
fn typed(parameter: &(String, DataType, ScalarValue)) -> (String, DataType, ScalarValue) {
    (parameter.0.clone(), parameter.1.clone(), ScalarValue::Null)
}

/// Stands for a constant whose type does not depend on its value.
fn mark_of(token: &Token, has_decimals: bool) -> Option<&'static str> {
    match token {
        Token::SingleQuotedString(_) => Some("?text"),
        // One that is longer may be of another type.
        Token::Number(digits, _) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            (digits.len() <= INTEGER_DIGITS_MAX).then_some("?integer")
        }
        Token::Number(digits, _) => (!has_decimals && !digits.contains('_')).then_some("?float"),
        _ => None,
    }
}

/// The value that DataFusion gives to a constant.
fn value_of(token: &Token, lift: Lift) -> Option<ScalarValue> {
    let negated = matches!(lift, Lift::Lifted { negated: true });
    match token {
        Token::SingleQuotedString(text) => Some(ScalarValue::Utf8(Some(text.clone()))),
        Token::Number(digits, _) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            let number: i64 = digits.parse().ok()?;
            Some(ScalarValue::Int64(Some(if negated { -number } else { number })))
        }
        Token::Number(digits, _) => {
            let number: f64 = digits.parse().ok()?;
            Some(ScalarValue::Float64(Some(if negated { -number } else { number })))
        }
        _ => None,
    }
}
