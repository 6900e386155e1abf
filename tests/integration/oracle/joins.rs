//! Random joins and subqueries.

use super::aggregates::{aggregates, finish};
use super::data::World;
use super::draw::Draw;
use super::expressions::Maker;
use super::queries::{Query, filter, full_order, limit, outputs};

/// Conditions that join `x` and `y` by one key or two.
fn key_condition(draw: &mut Draw) -> &'static str {
    draw.word(&["x.k = y.k", "x.k = y.k", "x.s = y.s", "x.k = y.k AND x.s = y.s"])
}

/// Two tables in any order, so that either can be the smaller.
fn two_tables(draw: &mut Draw) -> (&'static str, &'static str) {
    *draw.pick(&[("a", "b"), ("b", "a"), ("a", "c"), ("c", "a"), ("b", "b"), ("b", "c")])
}

/// A join of two tables, sometimes with a third one.
pub fn join(draw: &mut Draw, world: &World) -> Query {
    let (left, right) = two_tables(draw);
    let kind = *draw.pick(&["JOIN", "JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"]);
    let condition = key_condition(draw);
    // A third one multiplies rows once more.
    let third = world.key_count >= 40 && draw.percent(25);
    let mut tables = vec![("x", world.table(left)), ("y", world.table(right))];
    if third {
        tables.push(("z", world.table("c")));
    }
    let mut make = Maker::over(draw, &tables);
    // Conditions that are no keys belong to the join, not to a filter above it.
    let more = if make.draw.percent(25) { format!(" AND {}", make_side_condition(&mut make)) } else { String::new() };
    let mut from = format!("{left} x {kind} {right} y ON {condition}{more}");
    if third {
        let kind = *make.draw.pick(&["JOIN", "LEFT JOIN"]);
        from = format!("{from} {kind} c z ON z.k = y.k");
    }
    let filter = filter(&mut make);
    if make.draw.percent(55) {
        return joined_groups(make, &from, &filter);
    }
    let count = make.draw.between(1, 4);
    let expressions: Vec<_> = (0..count).map(|_| make.expression(1)).collect();
    let order = full_order(draw, expressions.len()) + &limit(draw);
    let sql = format!("SELECT {} FROM {from}{filter}{order}", outputs(&expressions));
    Query { shape: "join", sql, ordered: true }
}

/// A condition over one of the two sides or both, without the third table.
fn make_side_condition(make: &mut Maker<'_>) -> String {
    let scope = make.scope.clone();
    make.scope.retain(|column| !column.sql.starts_with("z."));
    let condition = make.predicate(1);
    make.scope = scope;
    format!("({condition})")
}

fn joined_groups(mut make: Maker<'_>, from: &str, filter: &str) -> Query {
    let grouped = make.draw.percent(60);
    let mut columns = Vec::new();
    let mut group = String::new();
    if grouped {
        let key = make.expression(1).sql;
        columns.push(format!("{key} AS o0"));
        group = format!(" GROUP BY {key}");
    }
    let first = columns.len();
    columns.extend(aggregates(&mut make, first));
    let sql = format!("SELECT {} FROM {from}{filter}{group}", columns.join(", "));
    finish(make.draw, "join", sql, columns.len())
}

/// Parents with aggregates over their children, those without any included.
pub fn children(draw: &mut Draw, world: &World) -> Query {
    let (left, right) = two_tables(draw);
    let mut child = Maker::over(draw, &[("y", world.table(right))]);
    let more = if child.draw.percent(40) { format!(" AND ({})", child.predicate(1)) } else { String::new() };
    let count = child.draw.between(1, 3);
    let calls = (0..count).map(|_| match (child.draw.below(4), child.number(0)) {
        (0, Some(number)) => format!("sum({})", number.sql),
        (1, _) => format!("min({})", child.column().sql),
        (2, _) => format!("max({})", child.column().sql),
        _ => format!("count({})", child.column().sql),
    });
    let calls: Vec<_> = calls.collect();
    let mut parent = Maker::over(draw, &[("x", world.table(left))]);
    let keys = if parent.draw.percent(80) { vec![parent.column().sql] } else { Vec::new() };
    let group = if keys.is_empty() { String::new() } else { format!(" GROUP BY {}", keys[0]) };
    let filter = filter(&mut parent);
    let condition = key_condition(draw);
    let from = match draw.percent(70) {
        true => format!("{left} x LEFT JOIN {right} y ON {condition}{more}"),
        false => format!("{right} y RIGHT JOIN {left} x ON {condition}{more}"),
    };
    let columns = keys.iter().chain(&calls).enumerate().map(|(index, column)| format!("{column} AS o{index}"));
    let columns: Vec<_> = columns.collect();
    let sql = format!("SELECT {} FROM {from}{filter}{group}", columns.join(", "));
    finish(draw, "children", sql, columns.len())
}

/// Semi joins and anti joins.
pub fn exists(draw: &mut Draw, world: &World) -> Query {
    let (left, right) = two_tables(draw);
    let mut inner = Maker::over(draw, &[("y", world.table(right))]);
    let inner_filter = if inner.draw.percent(70) { inner.predicate(1) } else { "TRUE".to_owned() };
    let not = *draw.pick(&["", "NOT "]);
    let condition = match draw.below(4) {
        0 | 1 => format!("{not}EXISTS (SELECT 1 FROM {right} y WHERE {} AND {inner_filter})", key_condition(draw)),
        2 => format!("x.k {not}IN (SELECT y.k FROM {right} y WHERE {inner_filter})"),
        _ => format!("x.s {not}IN (SELECT y.s FROM {right} y WHERE {inner_filter})"),
    };
    let mut outer = Maker::over(draw, &[("x", world.table(left))]);
    let condition = match outer.draw.below(5) {
        0 => format!("{condition} OR {}", outer.predicate(0)),
        1 | 2 => format!("{condition} AND {}", outer.predicate(1)),
        _ => condition,
    };
    if outer.draw.percent(50) {
        let columns = aggregates(&mut outer, 0);
        let sql = format!("SELECT {} FROM {left} x WHERE {condition}", columns.join(", "));
        return Query { shape: "exists", sql, ordered: false };
    }
    let expressions = [outer.expression(1), outer.expression(0), outer.expression(0)];
    let order = full_order(draw, expressions.len()) + &limit(draw);
    let sql = format!("SELECT {} FROM {left} x WHERE {condition}{order}", outputs(&expressions));
    Query { shape: "exists", sql, ordered: true }
}

/// Subqueries that give one value, with and without a link to the row outside.
pub fn scalar_subquery(draw: &mut Draw, world: &World) -> Query {
    let (left, right) = two_tables(draw);
    let mut inner = Maker::over(draw, &[("y", world.table(right))]);
    let filter = filter(&mut inner);
    let mut outer = Maker::over(draw, &[("x", world.table(left))]);
    let (output, x) = (outer.expression(1).sql, outer.expression(0));
    let column = x.sql.trim_start_matches("x.");
    let average = format!("(SELECT avg(y.k) FROM {right} y{filter})");
    let (ordered, sql) = match outer.draw.below(8) {
        0 => {
            let own = format!("SELECT max(y.{column}) FROM {left} y");
            (false, format!("SELECT {output} AS o0, {} AS o1 FROM {left} x WHERE {} = ({own})", x.sql, x.sql))
        }
        1 => (false, format!("SELECT {output} AS o0 FROM {left} x WHERE x.k >= {average}")),
        2 => (false, format!("SELECT x.k AS o0, (SELECT count(*) FROM {right} y WHERE y.k = x.k) AS o1 FROM {left} x")),
        3 => {
            let range = format!("x.k BETWEEN (SELECT min(y.k) FROM {right} y{filter}) AND {average}");
            (
                false,
                format!("SELECT count(*) AS o0, count({}) AS o1, max(x.k) AS o2 FROM {left} x WHERE {range}", x.sql),
            )
        }
        4 => {
            let some = format!("(SELECT count(*) / 20 FROM {right} y{filter})");
            (false, format!("SELECT x.k AS o0, count(*) AS o1 FROM {left} x GROUP BY x.k HAVING count(*) >= {some}"))
        }
        5 => (true, format!("SELECT x.k AS o0 FROM {left} x WHERE x.k <> {average} ORDER BY 1 DESC LIMIT 7")),
        6 => {
            let from = format!("{left} x JOIN {right} z ON x.k = z.k");
            (false, format!("SELECT x.s AS o0, count(*) AS o1 FROM {from} WHERE x.k > {average} GROUP BY x.s"))
        }
        _ => (
            false,
            format!(
                "SELECT {output} AS o0, x.s AS o1 FROM {left} x WHERE x.k = (SELECT max(y.k) FROM {right} y WHERE y.s = x.s)"
            ),
        ),
    };
    Query { shape: "scalar subquery", sql, ordered }
}
