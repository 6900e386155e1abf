//! Plans that statements share which differ in constants only.

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use aubade_tpch::{QUERIES, Scale, TpchTable};

use super::*;
use crate::session::{ExecuteOptions, IngestMode, IngestTarget};

async fn table() -> Database {
    let db = Database::open().await;
    db.run(&["CREATE TABLE t AS SELECT value AS a, value % 10 AS b, 'row ' || value AS c, value * 0.5 AS d, \
              arrow_cast(CAST(19723 + value AS INT), 'Date32') AS e, CAST(value AS INT) AS i, \
              arrow_cast(1704067200 + value, 'Timestamp(s)') AS f FROM generate_series(1, 100)"])
        .await;
    db
}

/// The columns and rows of a query, and whether its plan was in the cache.
pub(super) async fn run(db: &Database, sql: &str) -> (Vec<String>, bool) {
    let output = db.session.execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let id = output.query_id;
    let columns = output.schema.fields().iter();
    let columns = columns.map(|field| format!("{} {} {}", field.name(), field.data_type(), field.is_nullable()));
    let mut rows: Vec<String> = columns.collect();
    rows.extend(lines(output).await.unwrap());
    (rows, db.engine.queries().get(id).unwrap().plan_cache_hit)
}

/// The columns and rows of a query that is planned from its text.
pub(super) async fn planned(db: &Database, sql: &str) -> Vec<String> {
    db.run(&["SET aubade.plan_cache = off"]).await;
    let (rows, hit) = run(db, sql).await;
    assert!(!hit);
    db.run(&["SET aubade.plan_cache = on"]).await;
    rows
}

#[tokio::test]
async fn constants_of_conditions_may_change() {
    let db = table().await;
    for (first, others) in [
        ("SELECT a FROM t WHERE b = 3 AND a > 80 ORDER BY a", ["SELECT a FROM t WHERE b = 4 AND a > 90 ORDER BY a"]),
        ("SELECT a FROM t WHERE a = -1 OR -2 > a", ["SELECT a FROM t WHERE a = -7 OR -8 > a"]),
        ("SELECT a FROM t WHERE 7 = a", ["SELECT a FROM t WHERE 8 = a"]),
        ("SELECT a FROM t WHERE c = 'row 7'", ["SELECT a FROM t WHERE c = 'it''s'"]),
        ("SELECT a FROM t WHERE c LIKE 'row 7%' ORDER BY 1", ["SELECT a FROM t WHERE c LIKE '%8' ORDER BY 1"]),
        (
            "SELECT a FROM t WHERE d BETWEEN 3.5 AND 1e1 ORDER BY a",
            ["SELECT a FROM t WHERE d BETWEEN 0.5 AND 0.9 ORDER BY a"],
        ),
        (
            "SELECT a FROM t WHERE e > DATE '2024-03-01' + INTERVAL '20' DAY ORDER BY a",
            ["SELECT a FROM t WHERE e > DATE '2024-04-01' + INTERVAL '20' DAY ORDER BY a"],
        ),
        (
            "SELECT a FROM t WHERE i BETWEEN 5 AND 10 ORDER BY a",
            ["SELECT a FROM t WHERE i BETWEEN 15 AND 17 ORDER BY a"],
        ),
        ("SELECT a FROM t WHERE a > 5 AND b > 5 ORDER BY a", ["SELECT a FROM t WHERE a > 7 AND b > 7 ORDER BY a"]),
        (
            "SELECT a FROM t WHERE f > TIMESTAMP '2024-01-01 00:01:00' ORDER BY a",
            ["SELECT a FROM t WHERE f > TIMESTAMP '2024-01-01 00:01:20' ORDER BY a"],
        ),
        (
            "SELECT x.a FROM t x JOIN t y ON x.a = y.a WHERE 1 = 1 AND x.b = 7 ORDER BY 1",
            ["SELECT x.a FROM t x JOIN t y ON x.a = y.a WHERE 2 = 2 AND x.b = 8 ORDER BY 1"],
        ),
        ("SELECT a FROM t WHERE e = '2024-03-01'", ["SELECT a FROM t WHERE e = '2024-04-01'"]),
        (
            "SELECT b, count(*) FROM t GROUP BY b HAVING sum(a) > 500 ORDER BY b",
            ["SELECT b, count(*) FROM t GROUP BY b HAVING sum(a) > 520 ORDER BY b"],
        ),
        (
            "SELECT x.a FROM t x LEFT JOIN t y ON x.a = y.a AND y.b = 3 WHERE y.a IS NULL AND x.a < 5 ORDER BY 1",
            ["SELECT x.a FROM t x LEFT JOIN t y ON x.a = y.a AND y.b = 2 WHERE y.a IS NULL AND x.a < 5 ORDER BY 1"],
        ),
        (
            "SELECT count(*) FROM t WHERE a > (SELECT avg(a) FROM t WHERE b = 3)",
            ["SELECT count(*) FROM t WHERE a > (SELECT avg(a) FROM t WHERE b = 9)"],
        ),
        (
            "WITH w AS (SELECT a FROM t WHERE b < 3) SELECT count(*) FROM w WHERE EXISTS (SELECT 1 FROM t WHERE t.a = w.a AND c <> 'row 1')",
            [
                "WITH w AS (SELECT a FROM t WHERE b < 2) SELECT count(*) FROM w WHERE EXISTS (SELECT 1 FROM t WHERE t.a = w.a AND c <> 'row 11')",
            ],
        ),
    ] {
        let expected = planned(&db, first).await;
        assert_eq!(run(&db, first).await, (expected, false), "{first}");
        for other in others {
            let expected = planned(&db, other).await;
            // The first time with the plan of all values, then with one of its own, then with a copy of that.
            for _ in 0..3 {
                assert_eq!(run(&db, other).await, (expected.clone(), true), "{other}");
            }
        }
    }
}

#[tokio::test]
async fn constants_elsewhere_may_not() {
    let db = table().await;
    for (first, other) in [
        ("SELECT a FROM t ORDER BY a LIMIT 2", "SELECT a FROM t ORDER BY a LIMIT 3"),
        ("SELECT b, a FROM t WHERE a < 3 ORDER BY 1", "SELECT b, a FROM t WHERE a < 3 ORDER BY 2"),
        ("SELECT a + 1 FROM t WHERE a = 1", "SELECT a + 2 FROM t WHERE a = 1"),
        ("SELECT 'x' FROM t WHERE a = 1", "SELECT 'y' FROM t WHERE a = 1"),
        (
            "SELECT b + 1, count(*) FROM t GROUP BY b + 1 ORDER BY 1",
            "SELECT b + 2, count(*) FROM t GROUP BY b + 2 ORDER BY 1",
        ),
        ("SELECT a FROM t WHERE substr(c, 5) = '7'", "SELECT a FROM t WHERE substr(c, 6) = '7'"),
        (
            "SELECT count(*) FROM t WHERE e > DATE '2024-03-01' + INTERVAL '20' DAY",
            "SELECT count(*) FROM t WHERE e > DATE '2024-03-01' + INTERVAL '2' MONTH",
        ),
        (
            "SELECT a FROM t WHERE f = CAST(1704067201 AS TIMESTAMP)",
            "SELECT a FROM t WHERE f = CAST(1704067202 AS TIMESTAMP)",
        ),
        ("SELECT a FROM t WHERE a IN (1, 2) AND a NOT IN (1)", "SELECT a FROM t WHERE a IN (1, 2) AND a NOT IN (2)"),
        (
            "SELECT a, (SELECT count(*) FROM t y WHERE y.b = x.a HAVING count(*) < 5) FROM t x ORDER BY a",
            "SELECT a, (SELECT count(*) FROM t y WHERE y.b = x.a HAVING count(*) < 50) FROM t x ORDER BY a",
        ),
        // Of other types, or the same twice where they were two.
        ("SELECT a FROM t WHERE a = 5", "SELECT a FROM t WHERE a = 5.0"),
        ("SELECT a FROM t WHERE a = 6", "SELECT a FROM t WHERE a = '6'"),
        ("SELECT a FROM t WHERE a = 1 OR b = 1 ORDER BY a", "SELECT a FROM t WHERE a = 1 OR b = 2 ORDER BY a"),
        ("SELECT a FROM t WHERE a = 18446744073709551615", "SELECT a FROM t WHERE a = 18446744073709551614"),
        ("SELECT a FROM t WHERE a = 3 AND b IS NOT NULL", "SELECT a FROM t WHERE a = NULL AND b IS NOT NULL"),
    ] {
        run(&db, first).await;
        let expected = planned(&db, other).await;
        assert_eq!(run(&db, other).await, (expected, false), "{first}: {other}");
    }
}

#[tokio::test]
async fn values_that_do_not_do_are_told_as_if_planned() {
    let db = table().await;
    let wrong = "SELECT a FROM t WHERE e = DATE 'soon'";
    let first = db.error(wrong).await;
    db.run(&["SELECT a FROM t WHERE e = DATE '2024-03-01'"]).await;
    assert!(run(&db, "SELECT a FROM t WHERE e = DATE '2024-03-02'").await.1);
    let second = db.error(wrong).await;
    db.run(&["SET aubade.plan_cache = off"]).await;
    let plain = db.error(wrong).await;
    for error in [first, second] {
        assert_eq!((error.code(), error.message()), (plain.code(), plain.message()));
    }
}

#[tokio::test]
async fn parameters_may_be_equal_or_not() {
    let db = table().await;
    let sql = "SELECT count(*) FROM t WHERE a IN ($1, $2) AND a NOT IN ($3) OR a = $1 AND b <> $3";
    for (values, expected) in [([1, 2, 3], "2"), ([1, 2, 1], "1"), ([1, 1, 2], "1"), ([3, 4, 13], "2")] {
        let columns = values
            .iter()
            .enumerate()
            .map(|(index, value)| (format!("${}", index + 1), Arc::new(Int64Array::from(vec![*value])) as ArrayRef));
        let values = RecordBatch::try_from_iter(columns).unwrap();
        let output = db.session.execute_with(sql, Some(values), ExecuteOptions::default()).await.unwrap();
        assert_eq!(lines(output).await.unwrap(), [expected]);
    }
}

/// The optimised plan of a query, and the one that it shares with others.
async fn plans(db: &Database, sql: &str) -> Option<(String, String)> {
    let snapshot = db.engine.snapshot().await.unwrap();
    let mut context = StatementContext::new(db.session.clone(), snapshot, db.session.template(), None);
    context.look_up(sql, &Parameters::default());
    let Body::Sql(ast) = Statement::parse(sql, context.state()).unwrap().body else { panic!("{sql}") };
    let plan = context.plan(ast.clone()).await.unwrap();
    let plan = context.state().optimize(&plan).unwrap();
    let (lifted, _, _) = kept::lifted(&context, context.lookup.as_ref()?, ast).await?;
    // Subexpressions have numbers, which go on from one plan to the next.
    let text = |plan: &LogicalPlan| {
        let mut names = Vec::new();
        let words = plan.display_indent().to_string();
        let words = words.split_inclusive(|c: char| !c.is_alphanumeric() && c != '_').map(|word| {
            let name = word.trim_end_matches(|c: char| !c.is_alphanumeric() && c != '_').to_owned();
            if !name.starts_with("__") {
                return word.to_owned();
            }
            let number = names.iter().position(|known| *known == name).unwrap_or(names.len());
            if number == names.len() {
                names.push(name.clone());
            }
            word.replace(&name, &format!("__{number}"))
        });
        words.collect::<String>()
    };
    Some((text(&plan), text(&lifted)))
}

#[tokio::test]
async fn a_shared_plan_is_the_plan_of_the_text() {
    let db = Database::open().await;
    for table in TpchTable::ALL {
        let target = IngestTarget { schema: None, table: table.name().to_owned(), mode: IngestMode::Create };
        db.session.ingest(target, table.stream(Scale::try_new(0.001).unwrap(), 1)).await.unwrap();
    }
    let others = [
        "SELECT l_orderkey FROM lineitem WHERE l_linenumber BETWEEN 2 AND 3",
        "SELECT l_orderkey FROM lineitem WHERE l_orderkey > 5 AND l_linenumber > 5 AND l_quantity + 5 > 7",
        "SELECT l_orderkey FROM lineitem WHERE l_tax * l_discount > 0.01 AND l_tax * l_discount < 0.02 OR l_tax > 1",
        "SELECT l_orderkey FROM lineitem WHERE l_quantity > 5 AND l_linenumber BETWEEN 1 AND 0",
        "SELECT o_orderkey FROM orders JOIN customer ON o_custkey = c_custkey WHERE 1 = 0",
        "SELECT o_orderkey FROM orders LEFT JOIN customer ON o_custkey = c_custkey AND c_name = 'x' WHERE c_acctbal > 5",
        "SELECT count(*) FROM (SELECT o_custkey, count(*) AS n FROM orders GROUP BY o_custkey) WHERE n > 5",
    ];
    for sql in QUERIES.iter().map(|query| query.sql).chain(others) {
        let Some((plan, lifted)) = plans(&db, sql).await else { panic!("nothing is lifted of {sql}") };
        assert_eq!(plan, lifted, "{sql}");
    }
}
