//! How many rows pass a filter, where DataFusion's interval analysis cannot say.
//!
//! The shares are those of System R (Selinger et al., Access Path Selection in a Relational Database Management System,
//! 1979): one in as many as there are distinct values for an equality, a third for an inequality of two columns, products
//! for AND, and the complement of products of complements for OR.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::{ScalarValue, Statistics};
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::expressions::{
    BinaryExpr, CastExpr, Column, InListExpr, IsNotNullExpr, IsNullExpr, LikeExpr, Literal, NotExpr,
};
use datafusion::physical_expr::intervals::utils::check_support;
use datafusion::physical_expr::{PhysicalExpr, conjunction_opt, split_conjunction};

/// The share of an inequality of two columns.
const INEQUALITY: f64 = 1.0 / 3.0;

/// Rows of each different text below which texts count as varied.
const VARIED: f64 = 4.0;
/// What each letter of a pattern leaves of varied texts: one letter is in half of them, a word in one of twenty.
const LETTER: f64 = 0.55;
/// The least that a pattern is taken to match.
const PATTERN_MIN: f64 = 0.02;

/// A filter in two: what interval analysis understands, and the share of rows that passes the rest.
#[derive(Debug)]
pub(crate) struct Split {
    pub(crate) analysed: Option<Arc<dyn PhysicalExpr>>,
    pub(crate) rest: Option<(Arc<dyn PhysicalExpr>, f64)>,
}

/// Splits `filter` over rows of `schema`. `default` is the share of what nothing is known about.
pub(crate) fn split(filter: &Arc<dyn PhysicalExpr>, schema: &SchemaRef, rows: &Statistics, default: f64) -> Split {
    let estimator = Estimator { schema, rows, default };
    let parts = split_conjunction(filter).into_iter().cloned();
    let (analysed, rest): (Vec<_>, Vec<_>) = parts.partition(|part| estimator.is_analysed(part));
    let share = rest.iter().map(|part| estimator.share(part)).product();
    Split { analysed: conjunction_opt(analysed), rest: conjunction_opt(rest).map(|rest| (rest, share)) }
}

struct Estimator<'a> {
    schema: &'a SchemaRef,
    rows: &'a Statistics,
    default: f64,
}

/// The column that an expression is, whatever its type is changed to.
fn column(expression: &Arc<dyn PhysicalExpr>) -> Option<usize> {
    if let Some(cast) = expression.downcast_ref::<CastExpr>() {
        return column(cast.expr());
    }
    expression.downcast_ref::<Column>().map(Column::index)
}

fn literal(expression: &Arc<dyn PhysicalExpr>) -> Option<&ScalarValue> {
    expression.downcast_ref::<Literal>().map(Literal::value)
}

/// A value of a type that has distances.
fn number(value: &ScalarValue) -> Option<f64> {
    match value {
        ScalarValue::Date32(value) => value.map(f64::from),
        ScalarValue::Decimal128(value, _, scale) => value.map(|value| value as f64 / 10_f64.powi(i32::from(*scale))),
        ScalarValue::Date64(value)
        | ScalarValue::TimestampSecond(value, _)
        | ScalarValue::TimestampMillisecond(value, _)
        | ScalarValue::TimestampMicrosecond(value, _)
        | ScalarValue::TimestampNanosecond(value, _) => value.map(|value| value as f64),
        value if value.data_type().is_numeric() => match value.cast_to(&arrow::datatypes::DataType::Float64).ok()? {
            ScalarValue::Float64(value) => value,
            _ => None,
        },
        _ => None,
    }
}

impl Estimator<'_> {
    /// Interval analysis knows ranges of one column; of two columns it knows only whether their ranges meet.
    fn is_analysed(&self, part: &Arc<dyn PhysicalExpr>) -> bool {
        let compares_columns = part
            .downcast_ref::<BinaryExpr>()
            .is_some_and(|binary| column(binary.left()).is_some() && column(binary.right()).is_some());
        !compares_columns && check_support(part, self.schema)
    }

    /// The share of rows for which `part` is true.
    fn share(&self, part: &Arc<dyn PhysicalExpr>) -> f64 {
        self.known_share(part).unwrap_or(self.default).clamp(0.0, 1.0)
    }

    fn known_share(&self, part: &Arc<dyn PhysicalExpr>) -> Option<f64> {
        if let Some(binary) = part.downcast_ref::<BinaryExpr>() {
            return self.binary(binary);
        }
        if let Some(not) = part.downcast_ref::<NotExpr>() {
            return self.known_share(not.arg()).map(|share| 1.0 - share);
        }
        if let Some(list) = part.downcast_ref::<InListExpr>() {
            let share = self.one_value(column(list.expr())?)? * list.list().len() as f64;
            return Some(if list.negated() { 1.0 - share.min(1.0) } else { share });
        }
        if let Some(like) = part.downcast_ref::<LikeExpr>() {
            let share = self.like(like);
            return Some(if like.negated() { 1.0 - share } else { share });
        }
        if let Some(null) = part.downcast_ref::<IsNullExpr>() {
            return self.nulls(column(null.arg())?);
        }
        if let Some(not_null) = part.downcast_ref::<IsNotNullExpr>() {
            return self.nulls(column(not_null.arg())?).map(|share| 1.0 - share);
        }
        None
    }

    fn binary(&self, binary: &BinaryExpr) -> Option<f64> {
        let (left, right) = (binary.left(), binary.right());
        match binary.op() {
            Operator::And => Some(self.share(left) * self.share(right)),
            Operator::Or => Some(1.0 - (1.0 - self.share(left)) * (1.0 - self.share(right))),
            Operator::Eq => self.equal(left, right),
            Operator::NotEq => self.equal(left, right).map(|share| 1.0 - share),
            Operator::Lt | Operator::LtEq => self.less(left, right),
            Operator::Gt | Operator::GtEq => self.less(right, left),
            _ => None,
        }
    }

    fn equal(&self, left: &Arc<dyn PhysicalExpr>, right: &Arc<dyn PhysicalExpr>) -> Option<f64> {
        match (column(left), column(right)) {
            (Some(left), Some(right)) => Some(self.one_value(left)?.min(self.one_value(right)?)),
            (Some(column), None) | (None, Some(column)) => self.one_value(column),
            (None, None) => None,
        }
    }

    /// The share of rows in which `left` is less than `right`: of a column and a value, as if values were spread evenly.
    fn less(&self, left: &Arc<dyn PhysicalExpr>, right: &Arc<dyn PhysicalExpr>) -> Option<f64> {
        match (column(left), column(right)) {
            (Some(_), Some(_)) => Some(INEQUALITY),
            (Some(column), None) => self.below(column, literal(right)?),
            (None, Some(column)) => self.below(column, literal(left)?).map(|share| 1.0 - share),
            (None, None) => None,
        }
    }

    fn below(&self, column: usize, value: &ScalarValue) -> Option<f64> {
        let column = self.rows.column_statistics.get(column)?;
        let (low, high) = (number(column.min_value.get_value()?)?, number(column.max_value.get_value()?)?);
        let share = (number(value)? - low) / (high - low);
        share.is_finite().then(|| share.clamp(0.0, 1.0))
    }

    /// The share of rows that have one value of a column, as if all values were as frequent as one another.
    fn one_value(&self, column: usize) -> Option<f64> {
        let count = *self.rows.column_statistics.get(column)?.distinct_count.get_value()?;
        Some(1.0 / count.max(1) as f64)
    }

    /// The share of rows that a pattern matches: in texts that are nearly all different, such as names and comments, the
    /// less the more letters the pattern has.
    fn like(&self, like: &LikeExpr) -> f64 {
        let different =
            column(like.expr()).and_then(|column| self.one_value(column)).zip(self.rows.num_rows.get_value());
        let pattern = literal(like.pattern()).and_then(|pattern| pattern.try_as_str().flatten());
        match (different, pattern) {
            (Some((one, rows)), Some(pattern)) if one * (*rows as f64) < VARIED => {
                let letters = pattern.chars().filter(|letter| !matches!(letter, '%' | '_')).count();
                LETTER.powi(i32::try_from(letters).unwrap_or(i32::MAX)).max(PATTERN_MIN)
            }
            _ => self.default,
        }
    }

    fn nulls(&self, column: usize) -> Option<f64> {
        let nulls = *self.rows.column_statistics.get(column)?.null_count.get_value()?;
        let rows = *self.rows.num_rows.get_value()?;
        (rows > 0).then(|| nulls as f64 / rows as f64)
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field, Schema};
    use datafusion::common::stats::Precision;
    use datafusion::common::{ColumnStatistics, DFSchema};
    use datafusion::logical_expr::simplify::SimplifyContext;
    use datafusion::optimizer::simplify_expressions::ExprSimplifier;
    use datafusion::prelude::SessionContext;

    use super::*;

    fn statistics(columns: &[(usize, ScalarValue, ScalarValue)]) -> Statistics {
        let column = |(distinct, low, high): &(usize, ScalarValue, ScalarValue)| ColumnStatistics {
            distinct_count: Precision::Exact(*distinct),
            min_value: Precision::Exact(low.clone()),
            max_value: Precision::Exact(high.clone()),
            null_count: Precision::Exact(250),
            ..ColumnStatistics::new_unknown()
        };
        Statistics {
            num_rows: Precision::Exact(1000),
            total_byte_size: Precision::Absent,
            column_statistics: columns.iter().map(column).collect(),
        }
    }

    /// What is analysed of a filter, and the share of the rest.
    fn split_of(sql: &str) -> (bool, Option<f64>) {
        let schema = Arc::new(Schema::new(vec![
            Field::new("d", DataType::Date32, false),
            Field::new("e", DataType::Date32, false),
            Field::new("s", DataType::Utf8, true),
            Field::new("p", DataType::Decimal128(15, 2), false),
            Field::new("t", DataType::Utf8View, false),
        ]));
        let day = |day| ScalarValue::Date32(Some(day));
        let price = |cents| ScalarValue::Decimal128(Some(cents), 15, 2);
        let rows = statistics(&[
            (1000, day(0), day(1000)),
            (1000, day(0), day(1000)),
            (7, ScalarValue::from("a"), ScalarValue::from("z")),
            (100, price(0), price(10_000)),
            (900, ScalarValue::from("a"), ScalarValue::from("z")),
        ]);
        let context = SessionContext::new();
        let frame = DFSchema::try_from(Arc::clone(&schema)).unwrap();
        let filter = context.state().create_logical_expr(sql, &frame).unwrap();
        let simplify = SimplifyContext::builder().with_schema(Arc::new(frame.clone())).build();
        let simplifier = ExprSimplifier::new(simplify);
        let filter = simplifier.simplify(simplifier.coerce(filter, &frame).unwrap()).unwrap();
        let filter = context.state().create_physical_expr(filter, &frame).unwrap();
        let split = split(&filter, &schema, &rows, 0.2);
        (split.analysed.is_some(), split.rest.map(|(_, share)| (share * 1000.0).round() / 1000.0))
    }

    #[test]
    fn shares_follow_from_statistics() {
        assert_eq!(split_of("d >= 4"), (true, None));
        assert_eq!(split_of("d < e"), (false, Some(0.333)));
        assert_eq!(split_of("s = 'MAIL'"), (false, Some(0.143)));
        assert_eq!(split_of("s <> 'MAIL'"), (false, Some(0.857)));
        assert_eq!(split_of("s in ('AIR', 'FOB', 'MAIL', 'SHIP')"), (false, Some(0.571)));
        assert_eq!(split_of("s = 'MAIL' or s = 'SHIP'"), (false, Some(0.265)));
        assert_eq!(split_of("not (s = 'MAIL')"), (false, Some(0.857)));
        assert_eq!(split_of("s like '%a%'"), (false, Some(0.2)));
        assert_eq!(split_of("s not like '%a%'"), (false, Some(0.8)));
        assert_eq!(split_of("t like '%green%'"), (false, Some(0.05)));
        assert_eq!(split_of("t like '_x%'"), (false, Some(0.55)));
        assert_eq!(split_of("t not like '%special%requests%'"), (false, Some(0.98)));
        assert_eq!(split_of("t like s"), (false, Some(0.2)));
        assert_eq!(split_of("s is null"), (false, Some(0.25)));
        assert_eq!(split_of("s is not null"), (false, Some(0.75)));
        assert_eq!(split_of("upper(s) = 'A'"), (false, Some(0.2)));
        assert_eq!(split_of("p < 25"), (false, Some(0.25)));
        assert_eq!(split_of("p >= 25"), (false, Some(0.75)));
        assert_eq!(split_of("(s = 'MAIL' or s = 'SHIP') and d < e and d >= 4"), (true, Some(0.088)));
    }
}
