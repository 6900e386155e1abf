//! `LIKE '%a%b%'`: a pattern that only a regular expression answers, compiled once for a fragment.
//!
//! Arrow compiles it for every batch, and with it goes the automaton that is built while it reads.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, OnceLock};

use arrow::array::{Array, ArrayAccessor, AsArray, BooleanArray, RecordBatch};
use arrow::buffer::BooleanBuffer;
use arrow::datatypes::{DataType, Schema};
use datafusion::common::internal_datafusion_err;
use datafusion::error::Result;
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{LikeExpr, Literal};
use parking_lot::Mutex;
use regex_automata::Input;
use regex_automata::meta::{Cache, Regex};
use regex_automata::util::syntax;

/// A pattern, compiled when it is first asked.
#[derive(Debug)]
struct Pattern {
    /// As a regular expression.
    text: String,
    /// `None` where it cannot be compiled.
    regex: OnceLock<Option<Regex>>,
    /// What searches leave for the next ones: one for each thread that asks at a time.
    caches: Mutex<Vec<Cache>>,
}

impl Pattern {
    /// `None` where arrow needs no regular expression, or the pattern has more than texts and `%` in it.
    fn of(pattern: &str) -> Option<Self> {
        if pattern.contains(['_', '\\']) {
            return None;
        }
        let texts: Vec<&str> = pattern.split('%').collect();
        let (first, last) = (texts.first()?, texts.last()?);
        if texts.len() < 2 || texts.iter().filter(|text| !text.is_empty()).count() < 2 {
            return None;
        }
        let found: Vec<String> = texts.iter().filter(|text| !text.is_empty()).map(|text| escaped(text)).collect();
        let begins = if first.is_empty() { "" } else { r"\A" };
        let ends = if last.is_empty() { "" } else { r"\z" };
        let text = format!("{begins}{}{ends}", found.join(".*"));
        Some(Self { text, regex: OnceLock::new(), caches: Mutex::default() })
    }

    fn regex(&self) -> Option<&Regex> {
        let compiled = self.regex.get_or_init(|| {
            // Bytes: texts are UTF-8, and so are the parts that are looked for.
            let bytes = syntax::Config::new().unicode(false).utf8(false).dot_matches_new_line(true);
            let regex = Regex::builder().syntax(bytes).configure(Regex::config().utf8_empty(false)).build(&self.text);
            regex.inspect_err(|error| tracing::warn!(%error, "a LIKE was not compiled; asking it batch by batch")).ok()
        });
        compiled.as_ref()
    }
}

/// A text as a regular expression that matches it.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_ascii_punctuation() {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

/// A [`LikeExpr`] with its pattern compiled.
#[derive(Clone, Debug)]
pub(super) struct CompiledLike {
    like: Arc<dyn PhysicalExpr>,
    text: Arc<dyn PhysicalExpr>,
    negated: bool,
    pattern: Arc<Pattern>,
}

impl CompiledLike {
    /// `None` where `expression` is another one, or arrow is as fast.
    pub(super) fn of(expression: &Arc<dyn PhysicalExpr>) -> Option<Self> {
        let like = expression.downcast_ref::<LikeExpr>().filter(|like| !like.case_insensitive())?;
        let pattern = like.pattern().downcast_ref::<Literal>()?.value().try_as_str()??;
        let pattern = Arc::new(Pattern::of(pattern)?);
        let (like, text, negated) = (Arc::clone(expression), Arc::clone(like.expr()), like.negated());
        Some(Self { like, text, negated, pattern })
    }

    fn ask<'a>(&self, regex: &Regex, texts: impl ArrayAccessor<Item = &'a str>) -> BooleanArray {
        let caches = &self.pattern.caches;
        let cache = caches.lock().pop();
        let mut cache = cache.unwrap_or_else(|| regex.create_cache());
        let matches = BooleanBuffer::collect_bool(texts.len(), |row| {
            let matches = texts.is_valid(row) && regex.is_match_with(&mut cache, &Input::new(texts.value(row)));
            matches != self.negated
        });
        caches.lock().push(cache);
        BooleanArray::new(matches, texts.nulls().cloned())
    }
}

impl PartialEq for CompiledLike {
    fn eq(&self, other: &Self) -> bool {
        self.like.eq(&other.like)
    }
}

impl Eq for CompiledLike {}

impl Hash for CompiledLike {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.like.hash(state);
    }
}

impl fmt::Display for CompiledLike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.like.fmt(f)
    }
}

impl PhysicalExpr for CompiledLike {
    fn data_type(&self, input_schema: &Schema) -> Result<DataType> {
        self.like.data_type(input_schema)
    }

    fn nullable(&self, input_schema: &Schema) -> Result<bool> {
        self.like.nullable(input_schema)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        let Some(regex) = self.pattern.regex() else { return self.like.evaluate(batch) };
        let texts = self.text.evaluate(batch)?.into_array(batch.num_rows())?;
        let matches = match texts.data_type() {
            DataType::Utf8View => self.ask(regex, texts.as_string_view()),
            DataType::Utf8 => self.ask(regex, texts.as_string::<i32>()),
            DataType::LargeUtf8 => self.ask(regex, texts.as_string::<i64>()),
            _ => return self.like.evaluate(batch),
        };
        Ok(ColumnarValue::Array(Arc::new(matches)))
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.like]
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn PhysicalExpr>>) -> Result<Arc<dyn PhysicalExpr>> {
        let like = children.into_iter().next();
        let like = like.ok_or_else(|| internal_datafusion_err!("a compiled LIKE has one child"))?;
        Ok(match Self::of(&like) {
            Some(compiled) => Arc::new(compiled),
            None => like,
        })
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.like.fmt_sql(f)
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, LargeStringArray, StringArray, StringViewArray};
    use arrow::datatypes::Field;
    use datafusion::physical_expr::expressions::{Column, lit};
    use datafusion::scalar::ScalarValue;

    use super::super::faster::faster;
    use super::*;

    const TEXTS: [Option<&str>; 13] = [
        Some("special requests"),
        Some("requests that are special"),
        Some("a special\nrequests"),
        Some("specialrequests"),
        Some("special request"),
        Some(""),
        None,
        Some("abab"),
        Some("aba"),
        Some("ab"),
        Some("ä special ö requests ü"),
        Some("a%b"),
        Some("a.c (d) [e]* \u{e9}\nf"),
    ];

    #[test]
    fn answers_are_those_of_arrow() {
        for (pattern, compiled) in [
            ("%special%requests%", true),
            ("%special%%requests%", true),
            ("special%requests", true),
            ("ab%ab", true),
            ("ab%b%", true),
            ("a%b%a", true),
            ("%ö%ü", true),
            ("%a%a%a%", true),
            ("%.%(d)%[e]*%", true),
            ("a.c%\u{e9}%f", true),
            ("a.c%.%f", true),
            ("%special%", false),
            ("special%", false),
            ("special requests", false),
            ("%", false),
            ("", false),
            ("%spec_al%requests%", false),
            ("a\\%%b", false),
        ] {
            let arrays: [(ArrayRef, ScalarValue); 3] = [
                (Arc::new(StringViewArray::from_iter(TEXTS)), ScalarValue::Utf8View(Some(pattern.to_owned()))),
                (Arc::new(StringArray::from_iter(TEXTS)), ScalarValue::Utf8(Some(pattern.to_owned()))),
                (Arc::new(LargeStringArray::from_iter(TEXTS)), ScalarValue::LargeUtf8(Some(pattern.to_owned()))),
            ];
            for (negated, (array, literal)) in
                [true, false].into_iter().flat_map(|n| arrays.iter().map(move |a| (n, a)))
            {
                let schema = Arc::new(Schema::new(vec![Field::new("t", array.data_type().clone(), true)]));
                let batch = RecordBatch::try_new(schema, vec![Arc::clone(array)]).unwrap();
                let column = Arc::new(Column::new("t", 0));
                let like: Arc<dyn PhysicalExpr> = Arc::new(LikeExpr::new(negated, false, column, lit(literal.clone())));
                let asked = faster(Arc::clone(&like), &batch.schema()).unwrap();
                assert_eq!(asked.is::<CompiledLike>(), compiled, "{pattern}");
                assert!(asked.downcast_ref::<CompiledLike>().is_none_or(|like| like.pattern.regex().is_some()));
                let rows = batch.num_rows();
                let expected = like.evaluate(&batch).unwrap().into_array(rows).unwrap();
                assert_eq!(&asked.evaluate(&batch).unwrap().into_array(rows).unwrap(), &expected, "{like}");
            }
        }
    }
}
