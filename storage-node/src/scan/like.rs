//! `LIKE '%a%b%'`: a regular expression, compiled once for a fragment, and asked only about texts that hold the first
//! part; of `'%a%'` that is all there is to be asked.
//!
//! Arrow compiles a regular expression for every batch, and with it goes the automaton that is built while it reads.

mod search;

use std::sync::{Arc, OnceLock};

use arrow::array::{
    Array, ArrayAccessor, ArrayRef, AsArray, BooleanArray, BooleanBufferBuilder, RecordBatch, StringViewArray,
};
use arrow::buffer::BooleanBuffer;
use arrow::datatypes::DataType;
use datafusion::error::Result;
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{LikeExpr, Literal};
use memchr::memmem::Finder;
use parking_lot::Mutex;
use regex_automata::Input;
use regex_automata::meta::{Cache, Regex};
use regex_automata::util::syntax;
use search::holding;

use super::replaced::Evaluation;

/// A pattern, compiled when it is first asked.
#[derive(Debug)]
struct Pattern {
    /// What comes first in it after a `%`, if anything does.
    first: Option<Finder<'static>>,
    /// Whether all texts that hold this match: then no regular expression is needed.
    is_whole: bool,
    /// As a regular expression.
    expression: String,
    /// `None` where it cannot be compiled.
    regex: OnceLock<Option<Regex>>,
    /// What searches leave for the next ones: one for each thread that asks at a time.
    caches: Mutex<Vec<Cache>>,
}

impl Pattern {
    /// `None` where arrow is as fast, or the pattern has more than texts and `%` in it.
    fn of(pattern: &str) -> Option<Self> {
        if pattern.contains(['_', '\\']) {
            return None;
        }
        let texts: Vec<&str> = pattern.split('%').collect();
        let (first, last) = (texts.first()?, texts.last()?);
        let parts = texts.iter().filter(|text| !text.is_empty()).count();
        let is_whole = parts == 1 && first.is_empty() && last.is_empty();
        if texts.len() < 2 || (parts < 2 && !is_whole) {
            return None;
        }
        let needle = texts.iter().find(|text| !text.is_empty()).filter(|_| first.is_empty());
        let needle = needle.map(|needle| Finder::new(needle.as_bytes()).into_owned());
        let found: Vec<String> = texts.iter().filter(|text| !text.is_empty()).map(|text| escaped(text)).collect();
        let begins = if first.is_empty() { "" } else { r"\A" };
        let ends = if last.is_empty() { "" } else { r"\z" };
        let expression = format!("{begins}{}{ends}", found.join(".*"));
        Some(Self { first: needle, is_whole, expression, regex: OnceLock::new(), caches: Mutex::default() })
    }

    fn regex(&self) -> Option<&Regex> {
        let compiled = self.regex.get_or_init(|| {
            // Bytes: texts are UTF-8, and so are the parts that are looked for.
            let bytes = syntax::Config::new().unicode(false).utf8(false).dot_matches_new_line(true);
            let regex =
                Regex::builder().syntax(bytes).configure(Regex::config().utf8_empty(false)).build(&self.expression);
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
#[derive(Debug)]
pub(super) struct CompiledLike {
    text: Arc<dyn PhysicalExpr>,
    negated: bool,
    pattern: Pattern,
}

impl CompiledLike {
    /// `None` where `expression` is another one, or arrow is as fast.
    pub(super) fn of(expression: &Arc<dyn PhysicalExpr>) -> Option<Self> {
        let like = expression.downcast_ref::<LikeExpr>().filter(|like| !like.case_insensitive())?;
        let pattern = like.pattern().downcast_ref::<Literal>()?.value().try_as_str()??;
        Some(Self { text: Arc::clone(like.expr()), negated: like.negated(), pattern: Pattern::of(pattern)? })
    }

    /// Which of the texts that hold the first part match.
    fn ask_held(&self, regex: &Regex, held: &BooleanBuffer, texts: &StringViewArray) -> BooleanBuffer {
        let mut matches = BooleanBufferBuilder::new(held.len());
        matches.append_n(held.len(), false);
        self.with_cache(regex, |cache| {
            for row in held.set_indices() {
                matches.set_bit(row, regex.is_match_with(cache, &Input::new(texts.value(row))));
            }
        });
        matches.finish()
    }

    fn with_cache<T>(&self, regex: &Regex, ask: impl FnOnce(&mut Cache) -> T) -> T {
        let cache = self.pattern.caches.lock().pop();
        let mut cache = cache.unwrap_or_else(|| regex.create_cache());
        let answer = ask(&mut cache);
        self.pattern.caches.lock().push(cache);
        answer
    }

    /// Which texts match; null matches nothing.
    fn ask<'a>(&self, regex: &Regex, texts: impl ArrayAccessor<Item = &'a str>) -> BooleanBuffer {
        self.with_cache(regex, |cache| {
            BooleanBuffer::collect_bool(texts.len(), |row| {
                texts.is_valid(row) && regex.is_match_with(cache, &Input::new(texts.value(row)))
            })
        })
    }

    /// Which texts match; `None` where arrow is to be asked.
    fn matches(&self, texts: &ArrayRef) -> Option<BooleanBuffer> {
        let pattern = &self.pattern;
        let views = texts.as_string_view_opt();
        let held = views.zip(pattern.first.as_ref()).and_then(|(views, first)| holding(first, views));
        if pattern.is_whole {
            return held;
        }
        let regex = pattern.regex()?;
        match (views, held, texts.data_type()) {
            (Some(views), Some(held), _) => Some(self.ask_held(regex, &held, views)),
            (Some(views), None, _) => Some(self.ask(regex, views)),
            (None, _, DataType::Utf8) => Some(self.ask(regex, texts.as_string::<i32>())),
            (None, _, DataType::LargeUtf8) => Some(self.ask(regex, texts.as_string::<i64>())),
            _ => None,
        }
    }
}

impl Evaluation for CompiledLike {
    fn evaluate(&self, _exact: &Arc<dyn PhysicalExpr>, batch: &RecordBatch) -> Result<Option<ColumnarValue>> {
        let texts = self.text.evaluate(batch)?.into_array(batch.num_rows())?;
        let Some(matches) = self.matches(&texts) else { return Ok(None) };
        let matches = BooleanArray::new(if self.negated { !&matches } else { matches }, texts.nulls().cloned());
        Ok(Some(ColumnarValue::Array(Arc::new(matches))))
    }

    fn of_other(&self, exact: &Arc<dyn PhysicalExpr>) -> Result<Option<Self>> {
        Ok(Self::of(exact))
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{LargeStringArray, StringArray};
    use arrow::datatypes::{Field, Schema};
    use datafusion::physical_expr::expressions::{Column, lit};
    use datafusion::scalar::ScalarValue;

    use super::super::faster::faster;
    use super::super::replaced::Replaced;
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
        // Texts one after the other, some of which views hold, and where a text goes on in the next one.
        let many =
            (0..4).flat_map(|_| TEXTS).chain([Some("a text that ends with speci"), Some("al requests at the end")]);
        let many: Vec<_> = many.collect();
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
            ("%special%", true),
            ("%e%", true),
            ("%", false),
            ("special%", false),
            ("special requests", false),
            ("%", false),
            ("", false),
            ("%spec_al%requests%", false),
            ("a\\%%b", false),
        ] {
            let arrays: [(ArrayRef, ScalarValue); 3] = [
                (
                    Arc::new(StringViewArray::from_iter(many.iter().copied())),
                    ScalarValue::Utf8View(Some(pattern.to_owned())),
                ),
                (Arc::new(StringArray::from_iter(many.iter().copied())), ScalarValue::Utf8(Some(pattern.to_owned()))),
                (
                    Arc::new(LargeStringArray::from_iter(many.iter().copied())),
                    ScalarValue::LargeUtf8(Some(pattern.to_owned())),
                ),
            ];
            for (negated, (array, literal)) in
                [true, false].into_iter().flat_map(|n| arrays.iter().map(move |a| (n, a)))
            {
                let schema = Arc::new(Schema::new(vec![Field::new("t", array.data_type().clone(), true)]));
                let batch = RecordBatch::try_new(schema, vec![Arc::clone(array)]).unwrap();
                let column = Arc::new(Column::new("t", 0));
                let like: Arc<dyn PhysicalExpr> = Arc::new(LikeExpr::new(negated, false, column, lit(literal.clone())));
                let asked = faster(Arc::clone(&like), &batch.schema()).unwrap();
                let replaced = asked.downcast_ref::<Replaced<CompiledLike>>();
                assert_eq!(replaced.is_some(), compiled, "{pattern}");
                assert!(replaced.is_none_or(|like| like.by.pattern.regex().is_some()));
                let rows = batch.num_rows();
                let expected = like.evaluate(&batch).unwrap().into_array(rows).unwrap();
                assert_eq!(&asked.evaluate(&batch).unwrap().into_array(rows).unwrap(), &expected, "{like}");
            }
        }
    }
}
