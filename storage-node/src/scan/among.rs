//! `text IN ('AIR', 'MAIL')` and `substr(text, 1, 2) IN ('13', '31')` over views: a view holds a text of up to 12 bytes, and
//! the first four of a longer one, so that these are compared as numbers, and nothing is hashed or cut off.

use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch, StringViewArray, make_view};
use arrow::buffer::BooleanBuffer;
use arrow::datatypes::{DataType, Schema};
use datafusion::error::Result;
use datafusion::functions::unicode::substr::SubstrFunc;
use datafusion::logical_expr::{ColumnarValue, Operator};
use datafusion::physical_expr::expressions::{BinaryExpr, InListExpr, Literal};
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr};
use datafusion::scalar::ScalarValue;

use super::replaced::Evaluation;
use crate::limits::INLINE_BYTES;

/// Texts at most: each row is compared with all of them. More are left to DataFusion, which hashes them.
const TEXTS_MAX: usize = 16;
/// Bytes of any text that are in its view.
const PREFIX_BYTES: usize = 4;

/// Whether a text, or what it begins with, is among some.
#[derive(Debug)]
pub(super) struct AmongTexts {
    text: Arc<dyn PhysicalExpr>,
    negated: bool,
    texts: Texts,
}

#[derive(Debug)]
enum Texts {
    /// The views of whole texts.
    Whole(Vec<u128>),
    /// The first `bytes` bytes, in the lowest bits.
    First { bytes: usize, prefixes: Vec<u32> },
}

impl AmongTexts {
    /// `None` where `expression` is another one, or arrow is as fast.
    pub(super) fn of(expression: &Arc<dyn PhysicalExpr>) -> Option<Self> {
        if let Some(list) = expression.downcast_ref::<InListExpr>() {
            let texts = list.list().iter().map(text_of).collect::<Option<Vec<_>>>()?;
            let first = substring(list.expr());
            let first = first.and_then(|(text, characters)| Self::first(text, characters, &texts, list.negated()));
            return first.or_else(|| Self::whole(list.expr(), &texts, list.negated()));
        }
        let comparison = expression.downcast_ref::<BinaryExpr>()?;
        let negated = match comparison.op() {
            Operator::Eq => false,
            Operator::NotEq => true,
            _ => return None,
        };
        let (text, characters) = substring(comparison.left())?;
        Self::first(text, characters, &[text_of(comparison.right())?], negated)
    }

    /// Whether its texts are views, as `schema` declares them; of others, arrow is asked.
    pub(super) fn is_over_views(&self, schema: &Schema) -> bool {
        self.text.data_type(schema).is_ok_and(|data_type| data_type == DataType::Utf8View)
    }

    fn whole(text: &Arc<dyn PhysicalExpr>, texts: &[&str], negated: bool) -> Option<Self> {
        let fit = texts.len() <= TEXTS_MAX && texts.iter().all(|text| text.len() <= INLINE_BYTES as usize);
        let views = || texts.iter().map(|text| make_view(text.as_bytes(), 0, 0)).collect();
        fit.then(|| Self { text: Arc::clone(text), negated, texts: Texts::Whole(views()) })
    }

    /// A text begins with as many characters that are ASCII just where it begins with these bytes, whatever follows.
    fn first(text: &Arc<dyn PhysicalExpr>, characters: usize, texts: &[&str], negated: bool) -> Option<Self> {
        let fits = |text: &&str| text.len() == characters && text.is_ascii();
        if !(1..=PREFIX_BYTES).contains(&characters) || texts.len() > TEXTS_MAX || !texts.iter().all(fits) {
            return None;
        }
        let prefix = |text: &&str| text.bytes().rev().fold(0, |prefix, byte| prefix << 8 | u32::from(byte));
        let texts = Texts::First { bytes: characters, prefixes: texts.iter().map(prefix).collect() };
        Some(Self { text: Arc::clone(text), negated, texts })
    }

    fn among(&self, texts: &StringViewArray) -> BooleanBuffer {
        match &self.texts {
            Texts::Whole(views) => of_views(texts, |view| is_among(view, views)),
            Texts::First { bytes, prefixes } => {
                let mask = u32::MAX >> (8 * (PREFIX_BYTES - bytes));
                // The length is in the lowest bits, and the text begins after it.
                let is_long_enough = |view: u128| view as u32 as usize >= *bytes;
                of_views(texts, |view| is_long_enough(view) & is_among((view >> 32) as u32 & mask, prefixes))
            }
        }
    }
}

fn of_views(texts: &StringViewArray, is_among: impl Fn(u128) -> bool) -> BooleanBuffer {
    let views = texts.views();
    BooleanBuffer::collect_bool(texts.len(), |row| views.get(row).is_some_and(|view| is_among(*view)))
}

/// Without a way out of the loop: where the one is found is as good as random.
fn is_among<T: Copy + PartialEq>(value: T, values: &[T]) -> bool {
    values.iter().fold(false, |found, other| found | (*other == value))
}

/// The text and the number of characters of `substr(text, 1, characters)`.
fn substring(expression: &Arc<dyn PhysicalExpr>) -> Option<(&Arc<dyn PhysicalExpr>, usize)> {
    let function = ScalarFunctionExpr::try_downcast_func::<SubstrFunc>(expression.as_ref())?;
    let [text, first, count] = function.args() else { return None };
    let integer = |argument: &Arc<dyn PhysicalExpr>| match argument.downcast_ref::<Literal>()?.value() {
        ScalarValue::Int64(value) => *value,
        _ => None,
    };
    (integer(first)? == 1).then_some((text, usize::try_from(integer(count)?).ok()?))
}

fn text_of(expression: &Arc<dyn PhysicalExpr>) -> Option<&str> {
    expression.downcast_ref::<Literal>()?.value().try_as_str()?
}

impl Evaluation for AmongTexts {
    fn evaluate(&self, _exact: &Arc<dyn PhysicalExpr>, batch: &RecordBatch) -> Result<Option<ColumnarValue>> {
        let texts = self.text.evaluate(batch)?.into_array(batch.num_rows())?;
        let Some(views) = texts.as_string_view_opt() else { return Ok(None) };
        let among = self.among(views);
        let among = BooleanArray::new(if self.negated { !&among } else { among }, texts.nulls().cloned());
        Ok(Some(ColumnarValue::Array(Arc::new(among))))
    }

    fn of_other(&self, exact: &Arc<dyn PhysicalExpr>) -> Result<Option<Self>> {
        Ok(Self::of(exact))
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, StringArray};
    use arrow::datatypes::Field;
    use datafusion::common::config::ConfigOptions;
    use datafusion::functions::unicode::substr;
    use datafusion::physical_expr::expressions::{binary, col, in_list, lit};

    use super::super::faster::faster;
    use super::super::replaced::Replaced;
    use super::*;

    const TEXTS: [Option<&str>; 16] = [
        Some("13-702-694-3495"),
        Some("13"),
        Some("1"),
        Some(""),
        None,
        Some("131"),
        Some("13\0"),
        Some("13\0\0"),
        Some("31-twelve by"),
        Some("31-thirteen b"),
        Some("ä3"),
        Some("1ä"),
        Some("äöüß and more of it"),
        Some("AIR"),
        Some("AIR REG"),
        Some("3113-and so on"),
    ];

    fn batch(texts: ArrayRef) -> RecordBatch {
        let schema = Schema::new(vec![Field::new("t", texts.data_type().clone(), true)]);
        RecordBatch::try_new(Arc::new(schema), vec![texts]).unwrap()
    }

    #[test]
    fn answers_are_those_of_arrow() {
        let many = || (0..9).flat_map(|_| TEXTS);
        let views = batch(Arc::new(StringViewArray::from_iter(many())));
        let utf8 = batch(Arc::new(StringArray::from_iter(many())));
        for (batch, fast) in [(views.clone(), true), (views.slice(5, 100), true), (utf8, false)] {
            let schema = batch.schema();
            let text = |text: Option<&str>| match schema.field(0).data_type() {
                DataType::Utf8View => lit(ScalarValue::Utf8View(text.map(str::to_owned))),
                _ => lit(ScalarValue::Utf8(text.map(str::to_owned))),
            };
            let part = |first: i64, characters: i64| -> Arc<dyn PhysicalExpr> {
                let arguments = vec![col("t", &schema).unwrap(), lit(first), lit(characters)];
                let options = Arc::new(ConfigOptions::default());
                Arc::new(ScalarFunctionExpr::try_new(substr(), arguments, &schema, options).unwrap())
            };
            let whole = || col("t", &schema).unwrap();
            let seventeen: Vec<String> = (0..17).map(|number| format!("1{number}")).collect();
            let seventeen: Vec<_> = seventeen.iter().map(|text| Some(text.as_str())).collect();
            for (of, among, as_list, as_equality) in [
                (whole(), vec![Some("AIR"), Some("13"), Some(""), Some("31-twelve by")], true, false),
                (whole(), vec![Some("AIR"), Some("31-thirteen b")], false, false),
                (whole(), vec![Some("ä3"), Some("1"), Some("13\0")], true, false),
                (whole(), vec![Some("AIR"), None], false, false),
                (whole(), seventeen.clone(), false, false),
                (part(1, 1), vec![Some("1"), Some("3")], true, true),
                (part(1, 2), vec![Some("13"), Some("31"), Some("AI")], true, true),
                (part(1, 3), vec![Some("13-"), Some("311"), Some("13\0")], true, true),
                (part(1, 4), vec![Some("13-7"), Some("AIR "), Some("3113"), Some("13\0\0")], true, true),
                (part(1, 5), vec![Some("13-70")], true, false),
                (part(1, 2), vec![Some("1"), Some("13")], true, false),
                (part(1, 2), vec![Some("13"), Some("ä")], true, true),
                (part(1, 2), vec![Some("1ä")], true, false),
                (part(1, 0), vec![Some("")], true, false),
                (part(2, 2), vec![Some("3-")], true, false),
                (part(1, 2), seventeen, false, true),
            ] {
                for negated in [false, true] {
                    let texts = among.iter().copied().map(text).collect();
                    let list = in_list(Arc::clone(&of), texts, &negated, &schema).unwrap();
                    let operator = if negated { Operator::NotEq } else { Operator::Eq };
                    let first = binary(Arc::clone(&of), operator, text(among[0]), &schema).unwrap();
                    for (exact, replaced) in [(list, as_list), (first, as_equality)] {
                        let asked = faster(Arc::clone(&exact), &schema).unwrap();
                        assert_eq!(AmongTexts::of(&exact).is_some(), replaced, "{exact}");
                        assert_eq!(asked.is::<Replaced<AmongTexts>>(), replaced && fast, "{exact}");
                        let rows = batch.num_rows();
                        let expected = exact.evaluate(&batch).unwrap().into_array(rows).unwrap();
                        assert_eq!(&asked.evaluate(&batch).unwrap().into_array(rows).unwrap(), &expected, "{exact}");
                        let is_evaluated = asked
                            .downcast_ref::<Replaced<AmongTexts>>()
                            .is_some_and(|asked| asked.by.evaluate(&exact, &batch).unwrap().is_some());
                        assert_eq!(is_evaluated, replaced && fast, "{exact}");
                    }
                }
            }
        }
    }
}
