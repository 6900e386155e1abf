//! Random queries over a world.

use super::data::World;
use super::draw::Draw;
use super::expressions::{Expression, Maker};
use super::{aggregates, joins};

/// A query, and how its result is to be compared.
#[derive(Clone, Debug)]
pub struct Query {
    /// What is drawn, for counting.
    pub shape: &'static str,
    pub sql: String,
    /// Whether it orders by every column of its result.
    pub ordered: bool,
}

/// The order by every column, in any order of columns and in any direction.
pub fn full_order(draw: &mut Draw, columns: usize) -> String {
    let keys = draw.shuffled(columns).into_iter().map(|column| {
        let direction = *draw.pick(&["", "", " ASC", " DESC"]);
        let nulls = *draw.pick(&["", "", " NULLS FIRST", " NULLS LAST"]);
        format!("{}{direction}{nulls}", column + 1)
    });
    format!(" ORDER BY {}", keys.collect::<Vec<_>>().join(", "))
}

/// LIMIT, often with OFFSET, for results of any size.
pub fn limit(draw: &mut Draw) -> String {
    let fetch = *draw.pick(&[0, 1, 3, 10, 100, 1000]);
    match draw.percent(30) {
        true => format!(" LIMIT {fetch} OFFSET {}", draw.pick(&[1, 5, 200])),
        false => format!(" LIMIT {fetch}"),
    }
}

/// `e1 AS o0, e2 AS o1, ...`.
pub fn outputs(expressions: &[Expression]) -> String {
    let columns = expressions.iter().enumerate().map(|(index, output)| format!("{} AS o{index}", output.sql));
    columns.collect::<Vec<_>>().join(", ")
}

/// ` WHERE ...`, mostly.
pub fn filter(make: &mut Maker<'_>) -> String {
    if make.draw.percent(75) { format!(" WHERE {}", make.predicate(2)) } else { String::new() }
}

fn some_expressions(make: &mut Maker<'_>) -> Vec<Expression> {
    let count = make.draw.between(1, 4);
    (0..count).map(|_| make.expression(2)).collect()
}

/// A query of any shape.
pub fn generate(draw: &mut Draw, world: &World) -> Query {
    let shape = draw.below(22);
    match shape {
        0 | 1 => scan(draw, world),
        2..=4 => top(draw, world),
        5 => distinct(draw, world),
        6 | 7 => aggregates::grouped(draw, world),
        8 => aggregates::ordered(draw, world),
        9 => aggregates::grouping_sets(draw, world),
        10 => aggregates::whole_table(draw, world),
        11..=13 => joins::join(draw, world),
        14 | 15 => joins::exists(draw, world),
        16 => joins::scalar_subquery(draw, world),
        17 => set_operation(draw, world),
        18 => nested(draw, world),
        19 => joins::children(draw, world),
        20 => aggregates::large_groups(draw, world),
        _ => match draw.below(3) {
            0 => window(draw, world),
            1 => limited_count(draw, world),
            _ => failing(draw, world),
        },
    }
}

/// The name of a table, the large one more often.
pub fn any_table(draw: &mut Draw) -> &'static str {
    draw.word(&["a", "a", "a", "b", "b", "c"])
}

fn scan(draw: &mut Draw, world: &World) -> Query {
    let table = any_table(draw);
    let mut make = Maker::over(draw, &[("t", world.table(table))]);
    let expressions = some_expressions(&mut make);
    let filter = filter(&mut make);
    Query { shape: "scan", sql: format!("SELECT {} FROM {table} t{filter}", outputs(&expressions)), ordered: false }
}

fn top(draw: &mut Draw, world: &World) -> Query {
    let table = any_table(draw);
    let mut make = Maker::over(draw, &[("t", world.table(table))]);
    let expressions = some_expressions(&mut make);
    let filter = filter(&mut make);
    let order = full_order(draw, expressions.len());
    let limit = if draw.percent(85) { limit(draw) } else { String::new() };
    let sql = format!("SELECT {} FROM {table} t{filter}{order}{limit}", outputs(&expressions));
    Query { shape: "top", sql, ordered: true }
}

fn distinct(draw: &mut Draw, world: &World) -> Query {
    let table = any_table(draw);
    let mut make = Maker::over(draw, &[("t", world.table(table))]);
    let expressions = some_expressions(&mut make);
    let filter = filter(&mut make);
    let mut sql = format!("SELECT DISTINCT {} FROM {table} t{filter}", outputs(&expressions));
    let ordered = draw.percent(40);
    if ordered {
        sql = sql + &full_order(draw, expressions.len()) + &limit(draw);
    }
    Query { shape: "distinct", sql, ordered }
}

fn set_operation(draw: &mut Draw, world: &World) -> Query {
    let operator = *draw.pick(&["UNION ALL", "UNION", "INTERSECT", "EXCEPT"]);
    let columns = *draw.pick(&["t.k", "t.s", "t.k, t.s"]);
    let mut side = |table: &str| {
        let mut make = Maker::over(draw, &[("t", world.table(table))]);
        let filter = filter(&mut make);
        format!("SELECT {columns} FROM {table} t{filter}")
    };
    let sql = format!("{} {operator} {}", side("a"), side("b"));
    Query { shape: "set operation", sql, ordered: false }
}

/// Filters and aggregates above a limit, which must not go below it.
fn nested(draw: &mut Draw, world: &World) -> Query {
    let table = any_table(draw);
    let mut make = Maker::over(draw, &[("t", world.table(table))]);
    let expressions = some_expressions(&mut make);
    let filter_below = filter(&mut make);
    let limited = draw.percent(70);
    let order = if limited { full_order(draw, expressions.len()) + &limit(draw) } else { String::new() };
    let scope = expressions.iter().enumerate();
    let scope = scope.map(|(index, output)| Expression { sql: format!("q.o{index}"), ..output.clone() }).collect();
    let inner = outputs(&expressions);
    let mut make = Maker { draw, scope };
    let above = some_expressions(&mut make);
    let filter_above = filter(&mut make);
    let with = draw.percent(40);
    let select = format!("SELECT {inner} FROM {table} t{filter_below}{order}");
    let sql = match with {
        true => format!("WITH q AS ({select}) SELECT {} FROM q{filter_above}", outputs(&above)),
        false => format!("SELECT {} FROM ({select}) q{filter_above}", outputs(&above)),
    };
    Query { shape: "nested", sql, ordered: false }
}

/// Window functions whose values do not depend on the order of equal rows.
fn window(draw: &mut Draw, world: &World) -> Query {
    let table = *draw.pick(&["b", "c"]);
    let mut make = Maker::over(draw, &[("t", world.table(table))]);
    let (partition, order) = (make.expression(1), make.expression(1));
    let number = make.number(1);
    let filter = filter(&mut make);
    let (partition, order) = (&partition.sql, &order.sql);
    let mut columns = vec![
        format!("{partition} AS o0"),
        format!("{order} AS o1"),
        format!("rank() OVER (PARTITION BY {partition} ORDER BY {order}) AS o2"),
        format!("count(*) OVER (PARTITION BY {partition}) AS o3"),
    ];
    if let Some(number) = number {
        columns.push(format!(
            "sum({}) OVER (PARTITION BY {partition} ORDER BY {order} RANGE UNBOUNDED PRECEDING) AS o4",
            number.sql
        ));
    }
    let sql = format!("SELECT {} FROM {table} t{filter}", columns.join(", "));
    Query { shape: "window", sql, ordered: false }
}

/// Which rows a limit without an order keeps is open, but not how many.
fn limited_count(draw: &mut Draw, world: &World) -> Query {
    let table = any_table(draw);
    let mut make = Maker::over(draw, &[("t", world.table(table))]);
    let expressions = some_expressions(&mut make);
    let filter = filter(&mut make);
    let limit = limit(draw);
    let inner = format!("SELECT {} FROM {table} t{filter}{limit}", outputs(&expressions));
    Query { shape: "limited count", sql: format!("SELECT count(*) AS o0 FROM ({inner}) q"), ordered: false }
}

/// What fails for some rows, if the table has such rows: evaluated for all of them, so that pruning cannot hide it.
fn failing(draw: &mut Draw, world: &World) -> Query {
    let table = any_table(draw);
    let mut make = Maker::over(draw, &[("t", world.table(table))]);
    let key = make.draw.between(0, 8);
    let text = make.text(0).map_or_else(|| "t.s".to_owned(), |text| text.sql);
    let output = match make.draw.below(5) {
        0 => format!("1000 / (t.k - {key})"),
        1 => format!("sum(7 % (t.k - {key}))"),
        2 => format!("CAST({text} AS INT)"),
        3 => format!("max(CAST({text} AS DATE))"),
        _ => "CAST(t.k * 100 AS TINYINT)".to_owned(),
    };
    Query { shape: "failing", sql: format!("SELECT {output} AS o0 FROM {table} t"), ordered: false }
}
