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
    let output = db.session.execute(sql).await;
    finish(db, sql, output).await
}

async fn finish(db: &Database, sql: &str, output: Result<QueryOutput>) -> (Vec<String>, bool) {
    let output = output.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
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
        ("SELECT a FROM t WHERE a IN (1, 2) ORDER BY a", ["SELECT a FROM t WHERE a IN (3, 4) ORDER BY a"]),
        (
            "SELECT a FROM t WHERE i IN (-1, 2, 3, 4) AND a NOT IN (5, 6) ORDER BY a",
            ["SELECT a FROM t WHERE i IN (-7, 20, 30, 40) AND a NOT IN (50, 60) ORDER BY a"],
        ),
        (
            "SELECT a FROM t WHERE substr(c, 5) IN ('1', '2', '3') OR NOT c NOT IN ('row 4', 'row 5', 'x', 'y') ORDER BY a",
            [
                "SELECT a FROM t WHERE substr(c, 5) IN ('4', '7', 'z') OR NOT c NOT IN ('row 9', 'v', 'w', 'u') ORDER BY a",
            ],
        ),
        (
            "SELECT a FROM t WHERE e IN (DATE '2024-01-05', '2024-01-06', '2024-01-07', DATE '2024-01-08') ORDER BY a",
            [
                "SELECT a FROM t WHERE e IN (DATE '2024-02-05', '2024-02-06', '2024-02-07', DATE '2024-02-08') ORDER BY a",
            ],
        ),
        (
            "SELECT a FROM t WHERE a IN (1, 2, 3, 4) AND a IN (3, 4, 5, 6) AND a NOT IN (4, 7, 8, 9) ORDER BY a",
            [
                "SELECT a FROM t WHERE a IN (11, 12, 13, 14) AND a IN (13, 14, 15, 16) AND a NOT IN (14, 17, 18, 19) ORDER BY a",
            ],
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
        ("SELECT a FROM t WHERE a IN (1, 2)", "SELECT a FROM t WHERE a IN (1, 3, 2)"),
        ("SELECT a FROM t WHERE a IN (1, b)", "SELECT a FROM t WHERE a IN (2, b)"),
        ("SELECT a IN (1, 2) FROM t WHERE b IS NOT NULL", "SELECT a IN (1, 3) FROM t WHERE b IS NOT NULL"),
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

fn parameters(values: &[i64]) -> RecordBatch {
    let columns = values.iter().enumerate();
    let columns =
        columns.map(|(index, value)| (format!("${}", index + 1), Arc::new(Int64Array::from(vec![*value])) as ArrayRef));
    RecordBatch::try_from_iter(columns).unwrap()
}

/// The columns and rows of a query with parameters, and whether its plan was in the cache.
async fn run_with(db: &Database, sql: &str, values: &[i64]) -> (Vec<String>, bool) {
    let output = db.session.execute_with(sql, Some(parameters(values)), ExecuteOptions::default()).await;
    finish(db, sql, output).await
}

/// The text with values in the place of parameters.
fn with_constants(sql: &str, values: &[i64]) -> String {
    let values = values.iter().enumerate();
    values.fold(sql.to_owned(), |sql, (index, value)| sql.replace(&format!("${}", index + 1), &value.to_string()))
}

/// Every list of three values out of `domain`.
fn triples(domain: &[i64]) -> impl Iterator<Item = [i64; 3]> + '_ {
    let pairs = domain.iter().flat_map(move |one| domain.iter().map(move |two| (*one, *two)));
    pairs.flat_map(move |(one, two)| domain.iter().map(move |three| [one, two, *three]))
}

/// The optimizer intersects lists by what they say.
#[tokio::test]
async fn parameters_of_lists_may_be_equal_or_not() {
    let (db, plain) = (table().await, table().await);
    plain.run(&["SET aubade.plan_cache = off"]).await;
    let values = [[1, 2, 3], [1, 1, 1], [1, 1, 2], [1, 2, 1], [2, 1, 1], [3, 1, 2], [7, 4, 7], [9, 9, 4]];
    for condition in [
        "a IN ($1, $2) AND a NOT IN ($3) OR a = $1 AND b <> $3",
        "a IN ($1, $2) AND a IN ($2, $3)",
        "a IN ($1, $2, $3, 4) AND a IN ($3, $2, 5, 6)",
        "a IN ($1, $2, 7, 8) AND a IN (7, 9, 1, $3)",
        "a NOT IN ($1, $2, $3, 4) OR a NOT IN ($3, 5, 6, $2)",
        "a IN (1, 2, 4, 5, $1) AND a NOT IN ($2, $3, 7, 8)",
        "NOT (a IN ($1, $2, $3, 4)) AND a < 7",
        "a IN ($1, NULL, $2, 4) OR b NOT IN ($3, NULL, 4, 5)",
        "a + b IN ($1, $2, 7, 8) AND a + b IN ($2, $3, 9, 10)",
        "a IN (SELECT a FROM t WHERE a IN ($1, $2, 7, 8)) AND a NOT IN ($1, $3, 9, 10)",
        "c IN ('row 1', 'row 2', 'row 3', 'x') AND i NOT IN ($1, $2, $3, 3)",
        "a = $1 AND a IN ($2, $3, 8, 9)",
        "a IN ($1 + 1, $2 - 1, $3, 9) AND a NOT IN ($3 + 1, 5, 6, 7)",
    ] {
        for from in [
            "t",
            "(SELECT * FROM t WHERE a IN ($3, $2, 1, 4, 9)) u",
            "t JOIN (SELECT a AS k FROM t WHERE a NOT IN ($2, 10, 11, 12)) y ON a = k",
        ] {
            let sql = format!("SELECT count(*), min(a), max(a) FROM {from} WHERE {condition}");
            for (run, values) in values.into_iter().enumerate() {
                let expected = plain.rows(&with_constants(&sql, &values)).await;
                let (rows, hit) = run_with(&db, &sql, &values).await;
                assert_eq!((&rows[3..], hit), (expected.as_slice(), run > 0), "{sql}: {values:?}");
            }
        }
    }
}

/// Numbers of rows and computed columns, with the names and types that they have without the cache.
#[tokio::test]
async fn parameters_of_results_may_change() {
    let (db, plain) = (table().await, table().await);
    plain.run(&["SET aubade.plan_cache = off"]).await;
    for sql in [
        "SELECT a FROM t ORDER BY a LIMIT $1",
        "SELECT a FROM t ORDER BY a DESC LIMIT $1 OFFSET $2",
        "SELECT a FROM t WHERE b = $3 ORDER BY a LIMIT 5 OFFSET $1",
        "SELECT a, b FROM t ORDER BY b, a OFFSET $2",
        "SELECT b, count(*) FROM t GROUP BY b ORDER BY b LIMIT $1",
        "SELECT DISTINCT b FROM t ORDER BY b LIMIT $2",
        "SELECT a FROM t UNION ALL SELECT b FROM t ORDER BY a LIMIT $1 OFFSET $3",
        "SELECT x.a FROM t x LEFT JOIN t y ON x.a = y.b ORDER BY x.a, y.a LIMIT $1",
        "SELECT a FROM (SELECT a FROM t ORDER BY a LIMIT 5) u LIMIT $1 OFFSET $2",
        "SELECT a + $1, $2 AS two, d * ($3 - 1), i - $1 FROM t WHERE a < 5 ORDER BY a",
        "SELECT $1 FROM t WHERE a = $2",
        "SELECT sum(a) * $1, count(*) + $2 - $2 FROM t WHERE b < $3",
        "SELECT b, sum(a) * $1 AS s FROM t GROUP BY b HAVING sum(a) > $2 ORDER BY s LIMIT $3",
        "SELECT DISTINCT b * $1 AS x FROM t ORDER BY x",
        "SELECT a / $3, a FROM t WHERE a IN ($1, $2) ORDER BY $1 + a",
        "SELECT $1 + $1 AS s FROM t ORDER BY s LIMIT $2",
    ] {
        let of_order = sql.contains("ORDER BY $1");
        for (run, values) in triples(&[0, 3, 7]).filter(|values| values[2] != 0 || !sql.contains('/')).enumerate() {
            let expected = run_with(&plain, sql, &values).await.0;
            // A parameter of ORDER BY may mean a column of the result.
            assert_eq!(run_with(&db, sql, &values).await, (expected, run > 0 && !of_order), "{sql}: {values:?}");
        }
    }
    let unordered = "SELECT a FROM t WHERE b < $2 LIMIT $1";
    for (limit, least, expected) in [(5, 9, 5), (0, 9, 0), (30, 1, 10), (7, 5, 7)] {
        assert_eq!(run_with(&db, unordered, &[limit, least]).await.0.len(), expected + 1);
    }
}

#[tokio::test]
async fn parameters_that_decide_more_have_plans_of_their_own() {
    let db = table().await;
    for sql in [
        "SELECT count(*) FROM (SELECT a FROM t ORDER BY a LIMIT $1) u",
        "SELECT b + $1 AS x, count(*) FROM t GROUP BY x ORDER BY x",
        "SELECT b, $1, count(*) FROM t GROUP BY 1, 2 ORDER BY 1",
        "SELECT count(*) FROM (SELECT a + $1 AS x FROM t) u WHERE x < 50",
        "SELECT round(d, $1) FROM t ORDER BY a",
        "SELECT a FROM t WHERE a IN (b, $1) ORDER BY a",
        "SELECT a IN ($1, 5) FROM t ORDER BY a",
    ] {
        for value in [1, 2] {
            let (rows, hit) = run_with(&db, sql, &[value]).await;
            let text = with_constants(sql, &[value]);
            let expected = planned(&db, &text).await;
            // Columns have other names.
            let is_row = |line: &&String| !line.ends_with(" true") && !line.ends_with(" false");
            let same = rows.iter().filter(is_row).eq(expected.iter().filter(is_row));
            assert!(same && !hit, "{text}: {rows:?} {hit}");
        }
    }
    let sql = "SELECT a FROM t ORDER BY a LIMIT $1";
    for _ in 0..2 {
        run_with(&db, sql, &[3]).await;
        let failed =
            db.session.execute_with(sql, Some(parameters(&[-1])), ExecuteOptions::default()).await.unwrap_err();
        db.run(&["SET aubade.plan_cache = off"]).await;
        let plain = db.session.execute_with(sql, Some(parameters(&[-1])), ExecuteOptions::default()).await.unwrap_err();
        db.run(&["SET aubade.plan_cache = on"]).await;
        assert_eq!((failed.code(), failed.message()), (plain.code(), plain.message()));
    }
}

/// Runs of one plan with other values at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn runs_with_other_values_do_not_disturb_each_other() {
    let db = table().await;
    let statements = [
        "SELECT sum(a) FROM t WHERE a IN ($1, $2, $3, 50)",
        "SELECT sum(a) - $1 FROM t WHERE b IN ($2, $3) AND a NOT IN ($1, 97, 98, 99)",
        "SELECT a FROM t ORDER BY a LIMIT $1 OFFSET $2",
        "SELECT count(*) FROM t x JOIN t y ON x.a = y.i WHERE x.b + y.b > $1 AND x.a IN ($2, $3, 60, 61, 62)",
    ];
    let mut expected = Vec::new();
    db.run(&["SET aubade.plan_cache = off"]).await;
    for sql in statements {
        for values in triples(&[1, 4, 6]) {
            expected.push((sql, values, run_with(&db, sql, &values).await.0));
        }
    }
    let expected = &expected;
    let runs = (0..8).map(|task| {
        let db = Database { session: db.engine.session(), engine: db.engine.clone() };
        async move {
            for round in 0..expected.len() {
                let (sql, values, expected) = &expected[(task * 13 + round) % expected.len()];
                assert_eq!(run_with(&db, sql, values).await.0, *expected, "{sql}: {values:?}");
            }
        }
    });
    futures::future::join_all(runs).await;
}

/// The optimised plan of a query, and the one that it shares with others.
async fn plans(db: &Database, sql: &str, parameters: &Parameters) -> Option<(String, String)> {
    let snapshot = db.engine.snapshot().await.unwrap();
    let mut context = StatementContext::new(db.session.clone(), snapshot, db.session.template(), None);
    context.look_up(sql, parameters);
    let Body::Sql(ast) = Statement::parse(sql, context.state()).unwrap().body else { panic!("{sql}") };
    let plan = context.plan(ast.clone()).await.unwrap();
    let plan = context.state().optimize(&parameters.bind(plan).unwrap()).unwrap();
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
        "SELECT o_orderkey FROM orders WHERE o_custkey IN (1, 2, 3, 4, 5) AND o_custkey IN (4, 5, 6, 7) AND o_orderkey NOT IN (3, 4)",
        "SELECT o_orderkey FROM orders WHERE substr(o_clerk, 1, 3) NOT IN ('a', 'b') OR o_shippriority IN (1, 2, 3)",
    ];
    let none = Parameters::default();
    for sql in QUERIES.iter().map(|query| query.sql).chain(others) {
        let Some((plan, lifted)) = plans(&db, sql, &none).await else { panic!("nothing is lifted of {sql}") };
        assert_eq!(plan, lifted, "{sql}");
    }
    let values = Parameters::from_batch(Some(parameters(&[7, 2]))).unwrap();
    for sql in [
        "SELECT l_orderkey + $1, l_tax * $2, $1 AS seven FROM lineitem WHERE l_orderkey IN ($1, $2)",
        "SELECT o_orderkey FROM orders JOIN customer ON o_custkey = c_custkey ORDER BY o_orderdate LIMIT $1 OFFSET $2",
        "SELECT o_orderkey FROM orders LEFT JOIN customer ON o_custkey = c_custkey LIMIT $1",
        "SELECT o_custkey, count(*) * $1 FROM orders WHERE o_orderkey < 5 GROUP BY o_custkey ORDER BY 1 LIMIT $2",
        "SELECT l_orderkey FROM lineitem WHERE l_suppkey IN ($1, $2, 3, 4) LIMIT $1",
    ] {
        let Some((plan, lifted)) = plans(&db, sql, &values).await else { panic!("no plan is shared of {sql}") };
        assert_eq!(plan, lifted, "{sql}");
    }
}
