//! Physical plans that are copied for other values than their own.

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};

use super::lifted::{planned, run};
use super::*;
use crate::session::ExecuteOptions;

async fn table() -> Database {
    let db = Database::open().await;
    // Eight segments: which are read depends on values.
    let rows = "SELECT value AS a, value % 10 AS b, 'row ' || value AS c, value * 0.5 AS d, CAST(value AS INT) AS i, \
                CAST(value AS DECIMAL(9, 2)) AS m, arrow_cast(CAST(19723 + value AS INT), 'Date32') AS e";
    db.run(&[&format!("CREATE TABLE t AS {rows} FROM generate_series(1, 100)")]).await;
    for first in (101..800).step_by(100) {
        db.run(&[&format!("INSERT INTO t {rows} FROM generate_series({first}, {})", first + 99)]).await;
    }
    db
}

/// How often a copy was made of a plan for other values.
async fn copies(db: &Database, sql: &str) -> u64 {
    let sql = sql.replace('\'', "''");
    let counts = format!("SELECT template_hits FROM system.plan_cache WHERE lifted + parameters > 0 AND sql = '{sql}'");
    db.rows(&counts).await.iter().map(|count| count.parse::<u64>().unwrap()).sum()
}

#[tokio::test]
async fn copies_have_the_values_of_their_statement() {
    let db = table().await;
    for (sql, values) in [
        ("SELECT c FROM t WHERE a = {}", ["3", "455", "799", "100", "101"]),
        ("SELECT c FROM t WHERE i = {} AND a > 0", ["3", "455", "799", "100", "101"]),
        ("SELECT a FROM t WHERE c = '{}'", ["row 3", "row 455", "none", "it''s", ""]),
        ("SELECT count(*) FROM t WHERE c LIKE '{}'", ["row 3%", "%5_", "row 1__", "%7%", "r%8"]),
        ("SELECT b, sum(a) FROM t WHERE d > {} GROUP BY b ORDER BY b", ["3.5", "9.25", "2.0", "70.5", "1.125"]),
        ("SELECT a FROM t WHERE m >= {} ORDER BY a DESC LIMIT 3", ["7", "5", "80", "20", "3"]),
        (
            "SELECT min(a), max(a) FROM t WHERE e > '{}'",
            ["2024-02-01", "2024-03-01", "2024-01-09", "2024-03-31", "2024-05-01"],
        ),
        (
            "SELECT sum(a * (b + 1)), max(a * (b + 1)) FROM t WHERE e >= DATE '2024-02-01' AND \
             e < DATE '2024-02-01' + INTERVAL '1' MONTH AND c <> '{}'",
            ["x", "row 50", "y", "row 51", "z"],
        ),
        ("SELECT a FROM t WHERE a > {} AND b = 7 AND c <> 'x' ORDER BY a", ["100", "250", "300", "5", "444"]),
        // Lists that are written out, and longer ones. All read more than one segment, and so in two partitions.
        ("SELECT count(*), min(a) FROM t WHERE a IN ({}, {})", ["3|700", "4|455", "799|1", "100|101", "7|501"]),
        (
            "SELECT count(*), min(a) FROM t WHERE c NOT IN ('{}', '{}')",
            ["row 1|row 9", "row 3|row 40", "row 2|row 1", "row 7|row 8", "row 50|row 5"],
        ),
        (
            "SELECT a FROM t WHERE a IN ({}, {}, {}, {}, 700) ORDER BY a",
            ["3|4|5|6", "103|204|305|406", "1|2|900|901", "800|799|5|4", "7|900|901|902"],
        ),
        (
            "SELECT a FROM t WHERE i IN ({}, {}, {}, {}) AND b < 9 ORDER BY a",
            ["3|104|5|6", "103|204|305|406", "1|2|300|901", "800|799|5|4", "7|150|901|902"],
        ),
        (
            "SELECT count(*), min(a) FROM t WHERE c NOT IN ('{}', '{}', 'x', 'y')",
            ["row 1|row 9", "row 3|row 40", "row 2|row 1", "row 7|row 8", "row 50|row 5"],
        ),
        // In the filters of joins.
        ("SELECT count(*), sum(x.a) FROM t x JOIN t y ON x.a = y.i WHERE x.b + y.b > {}", ["7", "3", "11", "5", "17"]),
        (
            "SELECT count(*), sum(y.a) FROM t x LEFT JOIN t y ON x.a = y.i AND x.b + y.b IN ({}, {}, {}, {})",
            ["2|4|6|8", "10|12|1|3", "0|2|16|18", "21|23|25|27", "4|6|20|22"],
        ),
        (
            "SELECT x.a FROM t x JOIN t y ON x.a = y.i WHERE x.b < 5 AND y.d > {} OR x.b > 7 AND y.d < 20 ORDER BY 1",
            ["30", "50", "90", "8", "120"],
        ),
        (
            "SELECT count(*), min(a) FROM t WHERE a > (SELECT avg(a) FROM t WHERE b < 5) AND c <> '{}'",
            ["row 800", "row 799", "row 500", "x", "row 3"],
        ),
        (
            "SELECT b, sum(a) FROM t GROUP BY b HAVING sum(a) > (SELECT avg(a) * 80 FROM t WHERE a < {}) ORDER BY b",
            ["790", "650", "750", "550", "799"],
        ),
        (
            "SELECT a, (SELECT sum(a) FROM t WHERE a < {}) AS s FROM t WHERE a > 795 AND a <> (SELECT max(b) FROM t) ORDER BY a",
            ["790", "650", "750", "550", "799"],
        ),
        (
            "SELECT x.a, y.c FROM t x JOIN t y ON x.a = y.i WHERE x.b < 5 AND y.d > {} ORDER BY 1",
            ["30", "50", "90", "7", "120"],
        ),
    ] {
        // What the optimizer has counted on to does not matter.
        for round in 0..2 {
            db.run(&["DISCARD PLANS"]).await;
            for value in values {
                let sql = with(sql, value);
                let expected = planned(&db, &sql).await;
                assert_eq!(run(&db, &sql).await.0, expected, "{sql}");
            }
            assert_eq!(copies(&db, &with(sql, values[0])).await, 3, "{sql}: round {round}");
        }
    }
}

/// A statement with values, which are separated by bars; a single one is put in everywhere.
fn with(sql: &str, values: &str) -> String {
    let mut values: Vec<&str> = values.split('|').collect();
    let last = *values.last().unwrap();
    values.resize(sql.matches("{}").count(), last);
    values.iter().fold(sql.to_owned(), |sql, value| sql.replacen("{}", value, 1))
}

/// What is learnt of two statements, for a third: all of them in any order.
async fn triples(db: &Database, sql: &str, values: &[&str]) {
    let mut expected = Vec::new();
    for value in values {
        expected.push(planned(db, &with(sql, value)).await);
    }
    for first in 0..values.len() {
        for second in 0..values.len() {
            db.run(&["DISCARD PLANS"]).await;
            for index in [first, second].into_iter().chain(0..values.len()) {
                let (rows, _) = run(db, &with(sql, values[index])).await;
                let order = (values[first], values[second]);
                assert_eq!(rows, expected[index], "{sql}: {} after {order:?}", values[index]);
            }
        }
    }
}

#[tokio::test]
async fn values_that_decide_more_than_a_literal_are_planned_for() {
    let db = table().await;
    db.run(&[
        "CREATE TABLE u AS SELECT a + 700 AS a, b FROM t",
        "CREATE TABLE s AS SELECT value AS a, value % 10 AS b FROM generate_series(1, 100)",
        // Groups of one segment, and of two.
        "CREATE TABLE v AS SELECT 10 AS d, value % 100 AS k, 100 AS x FROM generate_series(0, 399)",
        "INSERT INTO v SELECT 20, 100 + value % 100, 50 FROM generate_series(0, 399)",
        "INSERT INTO v SELECT 30, 100 + value % 100, 50 FROM generate_series(0, 399)",
    ])
    .await;
    for (sql, values) in [
        // What is selected, how many rows there are, and whether a condition is there.
        ("SELECT a + {} AS n FROM t WHERE a = {}", &["3", "455", "799", "100"][..]),
        ("SELECT b, count(*) FROM t GROUP BY b HAVING count(*) < {} ORDER BY b", &["3", "81", "80", "100"]),
        ("SELECT count(*) FROM t WHERE a = {} OR {} = 0", &["3", "4", "0", "5"]),
        ("SELECT count(*) FROM t WHERE 5 < {} OR a = 7", &["3", "4", "5", "6"]),
        ("SELECT count(*) FROM t WHERE a = {} AND a <> 7", &["5", "6", "7", "8"]),
        ("SELECT count(*) FROM t WHERE a = {} AND a <> 07", &["5", "6", "7", "8"]),
        ("SELECT a FROM t WHERE a > {} AND a > 400 AND a < 405 ORDER BY a", &["3", "402", "500", "7"]),
        // The ends of months, and sums.
        (
            "SELECT count(*) FROM t WHERE e >= DATE '{}' AND e < DATE '{}' + INTERVAL '1' MONTH",
            &["2024-01-30", "2024-01-31", "2024-02-05", "2024-03-01"],
        ),
        ("SELECT count(*) FROM t WHERE a > 10 - {} AND b > {}", &["2", "3", "7", "4"]),
        // Other operators.
        ("SELECT count(*) FROM t WHERE c LIKE '{}'", &["row 455", "row 456", "row %", "%", "row_7"]),
        ("SELECT count(*) FROM t WHERE c NOT LIKE '{}'", &["row 455", "%5", "row %", "row 3"]),
        // One that the type of its column does not have, and texts that are dates.
        ("SELECT c FROM t WHERE i = {}", &["3", "455", "5000000000", "7"]),
        ("SELECT count(*) FROM t WHERE e > '{}'", &["2024-02-01", "2024-03-01", "2024-2-9", "2024-03-01T00:00:00"]),
        // Of very many rows and very few, and none at all.
        ("SELECT count(*), sum(a) FROM t WHERE a > {}", &["799", "3", "798", "1", "5000"]),
        (
            "SELECT count(*) FROM t WHERE a = {} UNION ALL SELECT count(*) FROM u WHERE a = {}",
            &["1200", "1300", "750", "5000", "3"],
        ),
        // Columns of one value, which need no sort.
        ("SELECT b, count(*) FROM t WHERE b > {} AND b < {} GROUP BY b", &["4|6", "6|8", "2|8", "3|4"]),
        ("SELECT b, a FROM t WHERE b > {} AND b < {} ORDER BY b, a LIMIT 90", &["4|6", "6|8", "2|6", "7|10"]),
        ("SELECT a FROM t WHERE b > {} AND b < {} ORDER BY b, a", &["4|6", "6|8", "2|8"]),
        ("SELECT a, b FROM t WHERE a + b = {} ORDER BY b", &["1", "809", "10", "20"]),
        (
            "SELECT b FROM t WHERE b > {} AND b < {} UNION ALL SELECT b FROM t WHERE b = {} ORDER BY b",
            &["4|6|5", "6|8|7", "6|8|5"],
        ),
        ("SELECT b FROM t WHERE b = {} ORDER BY b LIMIT 2", &["6", "8", "7", "10"]),
        // Lists that have values in common or not, and of one value.
        ("SELECT count(*) FROM t WHERE a IN ({}, {}) AND a NOT IN (5, {})", &["3|4|6", "5|6|3", "3|5|7", "7|8|9"]),
        (
            "SELECT count(*) FROM t WHERE a IN ({}, {}, {}, 4) AND a IN ({}, 4, 5, 6)",
            &["1|2|3|4", "1|2|6|7", "7|8|9|8", "5|6|7|8"],
        ),
        ("SELECT b, a FROM t WHERE b IN ({}) AND a < 50 ORDER BY b, a", &["6", "8", "7", "10"]),
        // Joins that have no rows, or all.
        (
            "SELECT count(*) FROM t x JOIN s y ON x.a = y.a WHERE x.b + y.b > {} AND {} > 3",
            &["2|4", "5|6", "2|3", "18|9"],
        ),
        ("SELECT count(*) FROM t x LEFT JOIN s y ON x.a = y.a AND x.b + y.b = {} + x.b", &["2", "5", "9", "10"]),
        // A limit of no rows.
        ("SELECT a, sum(a) OVER () FROM s WHERE b = {} ORDER BY a LIMIT 2", &["50", "60", "7", "8"]),
        ("SELECT a, sum(a) OVER () FROM s WHERE b = {} LIMIT 2", &["50", "60", "7", "51"]),
        // Groups of several segments.
        (
            "SELECT k, sum(x) FROM v WHERE d > {} AND d < {} GROUP BY k HAVING sum(x) > 300 ORDER BY k",
            &["5|25", "6|26", "15|35", "16|36"],
        ),
    ] {
        let mut sql = sql.to_owned();
        // Groups come in any order.
        if sql.ends_with("GROUP BY b") {
            sql.push_str(" ORDER BY count(*), b");
        }
        triples(&db, &sql, values).await;
    }
}

#[tokio::test]
async fn an_outlier_does_not_end_what_was_learnt() {
    let db = table().await;
    let first = "SELECT a FROM t WHERE a > 3 ORDER BY a";
    for value in [3, 4, 5, 799, 6, 7] {
        let sql = first.replace('3', &value.to_string());
        assert_eq!(run(&db, &sql).await.0, planned(&db, &sql).await, "{value}");
    }
    assert_eq!(copies(&db, first).await, 3);
}

#[tokio::test]
async fn parameters_have_copies_too() {
    let db = table().await;
    let sql = "SELECT c FROM t WHERE a = $1 AND c LIKE $2";
    for (value, text, expected) in [(3, "row%", 1), (455, "%5", 1), (455, "x", 0), (7, "%7", 1), (8, "%7", 0)] {
        let columns: [(&str, ArrayRef); 2] =
            [("$1", Arc::new(Int64Array::from(vec![value]))), ("$2", Arc::new(StringArray::from(vec![text])))];
        let parameters = RecordBatch::try_from_iter(columns).unwrap();
        let output = db.session.execute_with(sql, Some(parameters), ExecuteOptions::default()).await.unwrap();
        assert_eq!(lines(output).await.unwrap().len(), expected, "{value} {text}");
    }
    assert_eq!(copies(&db, sql).await, 3);
}

#[tokio::test]
async fn new_rows_are_seen_by_copies() {
    let db = table().await;
    let count = async |value: i64| db.rows(&format!("SELECT count(*) FROM t WHERE a = {value}")).await;
    for value in [3, 4, 5] {
        assert_eq!(count(value).await, ["1"]);
    }
    db.run(&["INSERT INTO t SELECT * FROM t WHERE a < 10"]).await;
    for value in [5, 6, 7, 8, 11] {
        assert_eq!(count(value).await, [if value < 10 { "2" } else { "1" }], "{value}");
    }
    assert_eq!(copies(&db, "SELECT count(*) FROM t WHERE a = 3").await, 4);
}
