//! Random expressions over the columns in scope, none of which fails for any row.

use datafusion::common::ScalarValue;

use super::data::{Column, Kind, Table};
use super::draw::Draw;
use super::values::{literal, quoted, short_literal};

/// An expression: its text and what may be done with it.
#[derive(Clone, Debug)]
pub struct Expression {
    pub sql: String,
    pub kind: Kind,
    /// As of [`Column`].
    pub tame: bool,
    /// Values that it may have, for comparisons that some rows pass.
    pub pool: Vec<ScalarValue>,
}

impl Expression {
    fn computed(sql: String, kind: Kind) -> Self {
        Self { sql, kind, tame: true, pool: Vec::new() }
    }

    /// A column by the name that it has in a query.
    pub fn column(name: String, column: &Column) -> Self {
        Self { sql: name, kind: column.kind, tame: column.tame, pool: column.pool.clone() }
    }

    /// A value of its own type, or one that coerces to it.
    pub fn literal(&self, draw: &mut Draw) -> String {
        if self.pool.is_empty() {
            return any_literal(draw, self.kind);
        }
        let value = draw.pick(&self.pool);
        // Next to extremes a coercion to a wider type could fail.
        let short = if self.tame && draw.percent(60) { short_literal(value) } else { None };
        short.unwrap_or_else(|| literal(value))
    }
}

/// A literal of a kind where no column tells which would do.
fn any_literal(draw: &mut Draw, kind: Kind) -> String {
    match kind {
        Kind::Int => draw.between(-50, 3000).to_string(),
        Kind::Decimal => format!("CAST('{}.25' AS DECIMAL(12, 2))", draw.between(-5000, 5000)),
        Kind::Float => format!("{}.5", draw.between(-100_000, 100_000)),
        Kind::Date => format!("DATE '{}-0{}-17'", draw.between(1990, 2029), draw.between(1, 9)),
        Kind::Timestamp => format!("TIMESTAMP '{}-0{}-17 03:00:00'", draw.between(1990, 2029), draw.between(1, 9)),
        Kind::Bool => draw.pick(&["TRUE", "FALSE"]).to_string(),
        Kind::Text => quoted(draw.word(&["", "a", "AB", "aubade", "key 3", "x", "1"])),
    }
}

/// Makes expressions over what is in scope.
#[derive(Debug)]
pub struct Maker<'a> {
    pub draw: &'a mut Draw,
    pub scope: Vec<Expression>,
}

impl<'a> Maker<'a> {
    /// The columns of tables under their aliases.
    pub fn over(draw: &'a mut Draw, tables: &[(&str, &Table)]) -> Self {
        let columns = tables.iter().flat_map(|(alias, table)| {
            table.columns.iter().map(move |column| Expression::column(format!("{alias}.{}", column.name), column))
        });
        Self { draw, scope: columns.collect() }
    }

    pub fn column(&mut self) -> Expression {
        self.draw.pick(&self.scope).clone()
    }

    fn column_where(&mut self, wanted: impl Fn(&Expression) -> bool) -> Option<Expression> {
        let fit: Vec<_> = self.scope.iter().filter(|column| wanted(column)).collect();
        if fit.is_empty() { None } else { Some((*self.draw.pick(&fit)).clone()) }
    }

    /// A number that can be summed up.
    pub fn number(&mut self, depth: usize) -> Option<Expression> {
        let column = self.column_where(|column| column.kind.is_number() && column.tame)?;
        Some(if depth > 0 && self.draw.percent(35) { self.number_from(column, depth - 1) } else { column })
    }

    pub fn text(&mut self, depth: usize) -> Option<Expression> {
        let column = self.column_where(|column| column.kind == Kind::Text)?;
        Some(if depth > 0 && self.draw.percent(30) { self.text_from(column) } else { column })
    }

    /// A column, or something made of columns.
    pub fn expression(&mut self, depth: usize) -> Expression {
        let column = self.column();
        if depth == 0 || self.draw.percent(55) {
            return column;
        }
        if self.draw.percent(25) {
            return self.choice(column, depth - 1);
        }
        match column.kind {
            Kind::Int | Kind::Decimal | Kind::Float if column.tame => self.number_from(column, depth - 1),
            Kind::Text => self.text_from(column),
            Kind::Date if column.tame => self.date_from(&column),
            Kind::Timestamp if column.tame => self.timestamp_from(&column),
            Kind::Bool => {
                let sql = self.predicate(depth - 1);
                Expression::computed(format!("({sql})"), Kind::Bool)
            }
            _ => column,
        }
    }

    /// CASE and its relatives, which keep the type.
    fn choice(&mut self, column: Expression, depth: usize) -> Expression {
        let (value, other) = (typed(&column, self.draw), typed(&column, self.draw));
        let x = &column.sql;
        let sql = match self.draw.below(5) {
            0 => format!("coalesce({x}, {value})"),
            1 => format!("nullif({x}, {value})"),
            2 => format!("CASE {x} WHEN {value} THEN {other} ELSE {x} END"),
            3 => format!("CASE WHEN {} THEN {x} END", self.predicate(depth)),
            _ => format!("CASE WHEN {} THEN {x} ELSE {value} END", self.predicate(depth)),
        };
        Expression { sql, ..column }
    }

    fn number_from(&mut self, column: Expression, depth: usize) -> Expression {
        let (x, kind) = (column.sql.clone(), column.kind);
        let by = self.draw.between(2, 9);
        let sql = match self.draw.below(8) {
            0 => format!("({x} + {by})"),
            1 => format!("({x} * {by})"),
            2 => format!("({x} - {})", self.number(0).map_or_else(|| "1".to_owned(), |other| other.sql)),
            3 => format!("({x} * {})", self.number(0).map_or_else(|| "2".to_owned(), |other| other.sql)),
            4 => format!("abs({x})"),
            5 => format!("({x} / 4)"),
            6 if kind == Kind::Int => format!("(CAST({x} AS BIGINT) % {by})"),
            6 => format!("round({x})"),
            _ => return self.choice(column, depth),
        };
        Expression::computed(sql, kind)
    }

    fn text_from(&mut self, column: Expression) -> Expression {
        let x = &column.sql;
        let function = *self.draw.pick(&["upper", "lower", "trim", "reverse", "length", "octet_length", "md5"]);
        let sql = match self.draw.below(6) {
            0 => format!("substr({x}, {}, {})", self.draw.between(1, 4), self.draw.between(0, 14)),
            1 => format!("({x} || {})", any_literal(self.draw, Kind::Text)),
            2 => format!("left({x}, {})", self.draw.between(0, 12)),
            3 => format!("replace({x}, 'a', 'éa')"),
            _ => format!("{function}({x})"),
        };
        let is_length = sql.starts_with("length") || sql.starts_with("octet");
        Expression::computed(sql, if is_length { Kind::Int } else { Kind::Text })
    }

    fn date_from(&mut self, column: &Expression) -> Expression {
        let x = &column.sql;
        let amount = self.draw.between(1, 40);
        let interval = format!("INTERVAL '{amount} {}'", self.draw.pick(&["days", "months", "years"]));
        match self.draw.below(5) {
            0 => Expression::computed(format!("({x} + {interval})"), Kind::Date),
            1 => Expression::computed(format!("({x} - {interval})"), Kind::Date),
            2 => Expression::computed(self.part("extract", &["year", "month", "day", "dow", "quarter"], x), Kind::Int),
            3 => Expression::computed(self.part("trunc", &["year", "month", "week"], x), Kind::Timestamp),
            _ => Expression::computed(format!("CAST({x} AS TIMESTAMP)"), Kind::Timestamp),
        }
    }

    fn timestamp_from(&mut self, column: &Expression) -> Expression {
        let x = &column.sql;
        match self.draw.below(4) {
            0 => {
                Expression::computed(format!("({x} + INTERVAL '{} hours')", self.draw.between(1, 99)), Kind::Timestamp)
            }
            1 => Expression::computed(self.part("extract", &["year", "hour", "minute"], x), Kind::Int),
            2 => Expression::computed(self.part("trunc", &["year", "month", "day", "hour"], x), Kind::Timestamp),
            _ => Expression::computed(format!("CAST({x} AS DATE)"), Kind::Date),
        }
    }

    fn part(&mut self, function: &str, parts: &[&str], x: &str) -> String {
        let part = *self.draw.pick(parts);
        if function == "trunc" { format!("date_trunc('{part}', {x})") } else { format!("extract({part} FROM {x})") }
    }

    /// A condition.
    pub fn predicate(&mut self, depth: usize) -> String {
        if depth == 0 || self.draw.percent(55) {
            return self.simple_predicate(depth.saturating_sub(1));
        }
        let below = depth - 1;
        match self.draw.below(7) {
            0 | 1 => format!("({} AND {})", self.predicate(below), self.predicate(below)),
            2 | 3 => format!("({} OR {})", self.predicate(below), self.predicate(below)),
            4 => format!("NOT ({})", self.predicate(below)),
            5 => {
                let state = *self.draw.pick(&["TRUE", "FALSE", "UNKNOWN", "NOT TRUE", "NOT UNKNOWN"]);
                format!("({}) IS {state}", self.predicate(below))
            }
            _ => {
                let (when, then) = (self.predicate(below), self.predicate(below));
                format!("CASE WHEN {when} THEN {then} ELSE {} END", self.predicate(below))
            }
        }
    }

    fn simple_predicate(&mut self, depth: usize) -> String {
        let x = self.expression(depth.min(1));
        match self.draw.below(10) {
            0 => {
                let not = *self.draw.pick(&["", "NOT "]);
                format!("{} IS {not}NULL", x.sql)
            }
            1 => {
                let not = *self.draw.pick(&["", "", "NOT "]);
                format!("{} {not}BETWEEN {} AND {}", x.sql, x.literal(self.draw), x.literal(self.draw))
            }
            2 => self.in_list(&x),
            3 => {
                let not = *self.draw.pick(&["", "NOT "]);
                format!("{} IS {not}DISTINCT FROM {}", x.sql, x.literal(self.draw))
            }
            4 if self.draw.percent(30) && self.scope.iter().any(|column| column.kind == Kind::Text) => self.regex(),
            4 | 5 if self.scope.iter().any(|column| column.kind == Kind::Text) => self.like(),
            6 => self.column_to_column(&x),
            _ if x.kind == Kind::Bool && self.draw.percent(60) => x.sql,
            _ => {
                let operator = *self.draw.pick(&["=", "=", "<>", "<", "<=", ">", ">="]);
                format!("{} {operator} {}", x.sql, x.literal(self.draw))
            }
        }
    }

    fn in_list(&mut self, x: &Expression) -> String {
        let many = matches!(x.kind, Kind::Int | Kind::Text | Kind::Date) && self.draw.percent(12);
        let count = if many { self.draw.between(1000, 3000) } else { self.draw.between(1, 6) };
        // Lists of literals of several types cannot be coerced to one.
        let mut values: Vec<String> = (0..count).map(|_| typed(x, self.draw)).collect();
        if self.draw.percent(10) {
            values.push("NULL".to_owned());
        }
        let not = *self.draw.pick(&["", "", "NOT "]);
        format!("{} {not}IN ({})", x.sql, values.join(", "))
    }

    /// Letters and digits of a text that is there, with what stands for others.
    fn regex(&mut self) -> String {
        let Some(x) = self.text(1) else { return "TRUE".to_owned() };
        let known = if x.pool.is_empty() { "aubade".to_owned() } else { text_of(self.draw.pick(&x.pool)) };
        let letters: String = known.chars().filter(char::is_ascii_alphanumeric).take(self.draw.below(5)).collect();
        let form = *self.draw.pick(&["^{}", "{}$", "{}.*", "[a-c]?{}", "({}|x)+"]);
        let operator = *self.draw.pick(&["~", "~", "~*", "!~"]);
        format!("{} {operator} '{}'", x.sql, form.replace("{}", &letters))
    }

    fn like(&mut self) -> String {
        let Some(x) = self.text(1) else { return "TRUE".to_owned() };
        let known = match x.pool.is_empty() {
            true => "aubade".to_owned(),
            false => text_of(self.draw.pick(&x.pool)),
        };
        let characters: Vec<char> = known.chars().collect();
        let kept = self.draw.below(characters.len() + 1);
        let (start, end): (String, String) = (characters[..kept].iter().collect(), characters[kept..].iter().collect());
        let pattern = match self.draw.below(6) {
            0 | 1 => format!("{start}%"),
            2 => format!("%{end}"),
            3 => format!("%{}%", characters.iter().skip(kept / 2).take(3).collect::<String>()),
            4 => format!("{start}_{}", end.chars().skip(1).collect::<String>()),
            _ => known,
        };
        let operator = *self.draw.pick(&["LIKE", "LIKE", "LIKE", "NOT LIKE", "ILIKE"]);
        // A backslash at the end of a pattern escapes nothing, which is an error.
        format!("{} {operator} {}", x.sql, quoted(&pattern.replace('\\', "")))
    }

    fn column_to_column(&mut self, x: &Expression) -> String {
        let operator = *self.draw.pick(&["=", "<>", "<", ">="]);
        let same = |column: &Expression| column.kind == x.kind && column.tame;
        match if x.tame { self.column_where(same) } else { None } {
            Some(other) => format!("{} {operator} {}", x.sql, other.sql),
            None => format!("{} {operator} {}", x.sql, x.literal(self.draw)),
        }
    }
}

/// A literal that has the type of the expression where that is known.
fn typed(x: &Expression, draw: &mut Draw) -> String {
    if x.pool.is_empty() { any_literal(draw, x.kind) } else { literal(draw.pick(&x.pool)) }
}

fn text_of(value: &ScalarValue) -> String {
    value.try_as_str().flatten().unwrap_or_default().to_owned()
}
