//! Random aggregates.

use super::data::{Kind, World};
use super::draw::Draw;
use super::expressions::Maker;
use super::queries::{Query, any_table, filter, full_order, limit};

/// One aggregate whose value does not depend on the order of rows.
pub fn aggregate(make: &mut Maker<'_>) -> String {
    let call = aggregate_call(make);
    match make.draw.percent(20) {
        true => format!("{call} FILTER (WHERE {})", make.predicate(1)),
        false => call,
    }
}

fn aggregate_call(make: &mut Maker<'_>) -> String {
    let x = make.expression(1);
    let number = make.number(1);
    match (make.draw.below(12), number) {
        (0, _) => "count(*)".to_owned(),
        (1, _) => format!("count({})", x.sql),
        (2, _) => format!("count(DISTINCT {})", x.sql),
        (3, Some(number)) => format!("sum({})", number.sql),
        (4, Some(number)) => format!("avg({})", number.sql),
        (5, Some(number)) => {
            let function = *make.draw.pick(&["stddev", "stddev_pop", "var_pop", "var_samp"]);
            format!("{function}({})", number.sql)
        }
        (8, Some(number)) if number.kind == Kind::Int && make.draw.percent(40) => {
            let (part, direction) = (make.draw.below(5), *make.draw.pick(&["", " DESC"]));
            format!("percentile_cont(0.{part}) WITHIN GROUP (ORDER BY {}{direction})", number.sql)
        }
        (6, _) => {
            let function = *make.draw.pick(&["bool_and", "bool_or"]);
            format!("{function}({})", make.predicate(1))
        }
        (7, _) => listed(make),
        (8, Some(number)) if number.kind == Kind::Int => format!("sum(DISTINCT {})", number.sql),
        (9, Some(number)) if number.kind == Kind::Int => {
            let function = *make.draw.pick(&["bit_and", "bit_or", "bit_xor", "median"]);
            format!("{function}({})", number.sql)
        }
        (10, _) => format!("max({})", x.sql),
        _ => format!("min({})", x.sql),
    }
}

/// Lists in an order that decides them: equal values may change places.
fn listed(make: &mut Maker<'_>) -> String {
    let direction = *make.draw.pick(&["", " DESC", " NULLS FIRST", " DESC NULLS LAST"]);
    match (make.draw.below(4), make.text(1)) {
        (0, Some(x)) if x.kind == Kind::Text => {
            format!("string_agg({0}, ', ' ORDER BY {0}{direction})", x.sql)
        }
        (1, _) => {
            let (x, function) = (make.column().sql, *make.draw.pick(&["first_value", "last_value"]));
            format!("{function}({x} ORDER BY {x}{direction})")
        }
        (2, _) => {
            let (x, place) = (make.column().sql, make.draw.pick(&[1, 2, 7, -1, -3]));
            format!("nth_value({x}, {place} ORDER BY {x}{direction})")
        }
        _ => {
            let x = make.column().sql;
            format!("array_agg({x} ORDER BY {x}{direction})")
        }
    }
}

/// `o2, o3, ...`: aggregates as output columns from `first` on.
pub fn aggregates(make: &mut Maker<'_>, first: usize) -> Vec<String> {
    let count = make.draw.between(1, 4) as usize;
    (first..first + count).map(|index| format!("{} AS o{index}", aggregate(make))).collect()
}

fn having(make: &mut Maker<'_>) -> String {
    if !make.draw.percent(25) {
        return String::new();
    }
    let condition = match (make.draw.below(4), make.number(0)) {
        (0, Some(number)) => format!("sum({}) > {}", number.sql, number.literal(make.draw)),
        (1, _) => {
            let x = make.column();
            format!("min({}) <= {}", x.sql, x.literal(make.draw))
        }
        (2, _) => format!("count(*) < {}", make.draw.between(2, 60)),
        _ => format!("count(*) > {}", make.draw.between(0, 5)),
    };
    format!(" HAVING {condition}")
}

/// GROUP BY columns and expressions.
pub fn grouped(draw: &mut Draw, world: &World) -> Query {
    let table = any_table(draw);
    let mut make = Maker::over(draw, &[("t", world.table(table))]);
    let key_count = make.draw.between(1, 3) as usize;
    let keys: Vec<String> = (0..key_count).map(|_| make.expression(1).sql).collect();
    let mut columns: Vec<String> = keys.iter().enumerate().map(|(index, key)| format!("{key} AS o{index}")).collect();
    columns.extend(aggregates(&mut make, key_count));
    let (filter, having) = (filter(&mut make), having(&mut make));
    let sql = format!("SELECT {} FROM {table} t{filter} GROUP BY {}{having}", columns.join(", "), keys.join(", "));
    finish(draw, "grouped", sql, columns.len())
}

/// Aggregates that take their rows in one order, in a part of it, or in its reverse; it decides their values.
pub fn ordered(draw: &mut Draw, world: &World) -> Query {
    let table = any_table(draw);
    let mut make = Maker::over(draw, &[("t", world.table(table))]);
    let key_count = make.draw.below(3);
    let keys: Vec<String> = (0..key_count).map(|_| make.column().sql).collect();
    let (x, y) = (make.column(), make.column());
    let order = format!("{}, {}", x.sql, y.sql);
    let reverse = format!("{} DESC, {} DESC", x.sql, y.sql);
    let mut columns = keys.clone();
    for _ in 0..make.draw.between(1, 3) {
        let value = if make.draw.percent(50) { &x } else { &y };
        let both = if make.draw.percent(70) { &order } else { &reverse };
        let place = *make.draw.pick(&[1, 2, 5, 40, -1, -4]);
        let call = match make.draw.below(6) {
            0 => format!("array_agg({} ORDER BY {both})", value.sql),
            1 => format!("array_agg(DISTINCT {0} ORDER BY {0} DESC)", value.sql),
            2 if value.kind == Kind::Text => format!("string_agg({}, '+' ORDER BY {both})", value.sql),
            3 => format!("nth_value({}, {place} ORDER BY {both})", value.sql),
            4 => format!("nth_value({0}, {place} ORDER BY {0})", x.sql),
            _ => format!("nth_value({}, {place} ORDER BY {order})", value.sql),
        };
        let filter =
            if make.draw.percent(15) { format!(" FILTER (WHERE {})", make.predicate(1)) } else { String::new() };
        columns.push(format!("{call}{filter}"));
    }
    if make.draw.percent(30) {
        columns.push("count(*)".to_owned());
    }
    let count = columns.len();
    let columns = columns.iter().enumerate().map(|(index, column)| format!("{column} AS o{index}"));
    let columns = columns.collect::<Vec<_>>().join(", ");
    let filter = filter(&mut make);
    let group = if keys.is_empty() { String::new() } else { format!(" GROUP BY {}", keys.join(", ")) };
    let sql = format!("SELECT {columns} FROM {table} t{filter}{group}");
    finish(draw, "ordered aggregates", sql, count)
}

/// GROUP BY a column, whose groups often lie in one segment each, and HAVING.
pub fn large_groups(draw: &mut Draw, world: &World) -> Query {
    let table = any_table(draw);
    let mut make = Maker::over(draw, &[("t", world.table(table))]);
    let key = make.column().sql;
    let mut columns = vec![format!("{key} AS o0")];
    columns.extend(aggregates(&mut make, 1));
    let (more, limit) = (make.draw.between(0, 5), make.draw.between(0, 12));
    let condition = match (make.draw.below(5), make.number(0)) {
        (0, Some(number)) => format!("sum({}) >= {}", number.sql, number.literal(make.draw)),
        (1, _) => {
            let x = make.column();
            format!("min({0}) = max({0}) OR max({0}) > {1}", x.sql, x.literal(make.draw))
        }
        (2, _) => format!("100 / (count(*) - {more}) > {limit}"),
        (3, _) => format!("count(*) % 3 = {} AND avg(length('x')) = 1", more % 3),
        _ => format!("count(*) BETWEEN {more} AND {limit}"),
    };
    let filter = filter(&mut make);
    let sql = format!("SELECT {} FROM {table} t{filter} GROUP BY {key} HAVING {condition}", columns.join(", "));
    finish(draw, "large groups", sql, columns.len())
}

/// ROLLUP, CUBE and GROUPING SETS.
pub fn grouping_sets(draw: &mut Draw, world: &World) -> Query {
    let table = any_table(draw);
    let mut make = Maker::over(draw, &[("t", world.table(table))]);
    let mut keys: Vec<String> = (0..3).map(|_| make.expression(1).sql).collect();
    keys.sort();
    keys.dedup();
    let mut columns: Vec<String> = keys.iter().enumerate().map(|(index, key)| format!("{key} AS o{index}")).collect();
    if make.draw.percent(40) {
        columns.push(format!("grouping({}) AS o{}", keys[0], columns.len()));
    }
    let first = columns.len();
    columns.extend(aggregates(&mut make, first));
    let filter = filter(&mut make);
    let list = keys.join(", ");
    let sets = match make.draw.below(3) {
        0 => format!("ROLLUP ({list})"),
        1 => format!("CUBE ({list})"),
        _ => format!("GROUPING SETS (({list}), ({}), ())", keys[keys.len() - 1]),
    };
    let sql = format!("SELECT {} FROM {table} t{filter} GROUP BY {sets}", columns.join(", "));
    finish(draw, "grouping sets", sql, columns.len())
}

/// Aggregates without GROUP BY, which statistics can answer where there is no filter.
pub fn whole_table(draw: &mut Draw, world: &World) -> Query {
    let table = any_table(draw);
    let mut make = Maker::over(draw, &[("t", world.table(table))]);
    let plain = make.draw.percent(50);
    let columns: Vec<String> = match plain {
        true => {
            let (x, y) = (make.column().sql, make.column().sql);
            [format!("min({x})"), format!("max({x})"), format!("count({y})"), "count(*)".to_owned()]
                .iter()
                .enumerate()
                .map(|(index, call)| format!("{call} AS o{index}"))
                .collect()
        }
        false => aggregates(&mut make, 0),
    };
    let filter = if plain && make.draw.percent(60) { String::new() } else { filter(&mut make) };
    let sql = format!("SELECT {} FROM {table} t{filter}", columns.join(", "));
    Query { shape: "whole table", sql, ordered: false }
}

/// The query, now and then with an order and a limit.
pub fn finish(draw: &mut Draw, shape: &'static str, mut sql: String, columns: usize) -> Query {
    let ordered = draw.percent(35);
    if ordered {
        sql = sql + &full_order(draw, columns) + &limit(draw);
    }
    Query { shape, sql, ordered }
}
