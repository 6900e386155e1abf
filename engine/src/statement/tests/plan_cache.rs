//! Plans that are kept from one run of a query to the next.

use arrow::array::{Array, Int64Array, RecordBatch, StringArray, TimestampSecondArray};
use arrow::datatypes::{DataType, Field, Schema};
use std::sync::Arc;

use super::*;
use crate::plan_cache::Lookup;
use crate::query::QueryRecord;
use crate::session::{ExecuteOptions, Parameters};

async fn table() -> Database {
    let db = Database::open().await;
    db.run(&["CREATE TABLE t AS SELECT value AS a, value % 10 AS b FROM generate_series(1, 100)"]).await;
    db
}

/// Runs a query; its rows and its record.
async fn run(db: &Database, sql: &str, parameters: Option<RecordBatch>) -> (Vec<String>, QueryRecord) {
    let output = db.session.execute_with(sql, parameters, ExecuteOptions::default()).await.unwrap();
    let id = output.query_id;
    let rows = lines(output).await.unwrap();
    (rows, db.engine.queries().get(id).unwrap())
}

async fn hits(db: &Database, sql: &str) -> bool {
    run(db, sql, None).await.1.plan_cache_hit
}

fn number(value: i64) -> Option<RecordBatch> {
    nullable(Some(value))
}

fn nullable(value: Option<i64>) -> Option<RecordBatch> {
    let schema = Schema::new(vec![Field::new("$1", DataType::Int64, true)]);
    Some(RecordBatch::try_new(Arc::new(schema), vec![Arc::new(Int64Array::from(vec![value]))]).unwrap())
}

#[tokio::test]
async fn the_same_words_are_planned_once() {
    let db = table().await;
    assert!(!hits(&db, "SELECT a FROM t WHERE b = 3 AND a > 80").await);
    for same in [
        "SELECT a FROM t WHERE b = 3 AND a > 80",
        "select a\n  from t -- a comment\n where b = 3 /* and another */ and a > 80;",
    ] {
        let (rows, record) = run(&db, same, None).await;
        assert_eq!((rows, record.plan_cache_hit), (vec!["83".to_owned(), "93".to_owned()], true), "{same}");
        assert_eq!(record.rows_in, 100, "{record:?}");
    }
    for other in [
        "SELECT a FROM t WHERE b = 3 OR a > 80",
        "SELECT A FROM t WHERE b = 3 AND a > 80",
        "SELECT 'x, y' AS s FROM t",
        "SELECT 'x' , 'y' AS s FROM t",
        "SELECT 'x'', ''y' AS s FROM t",
        "SELECT 'X, y' AS s FROM t",
    ] {
        assert!(!hits(&db, other).await, "{other}");
    }
}

#[tokio::test]
async fn new_rows_are_seen_and_another_table_of_the_same_name_too() {
    let db = table().await;
    let sql = "SELECT count(*), min(a), max(b) FROM t WHERE a > 90";
    assert_eq!(db.rows(sql).await, ["10|91|9"]);
    assert_eq!(db.rows(sql).await, ["10|91|9"]);
    db.run(&["INSERT INTO t VALUES (1000, 50)"]).await;
    let (rows, record) = run(&db, sql, None).await;
    assert_eq!((rows, record.plan_cache_hit), (vec!["11|91|50".to_owned()], true));
    db.run(&["DROP TABLE t", "CREATE TABLE t AS SELECT 'x' AS b, 99 AS a"]).await;
    let (rows, record) = run(&db, sql, None).await;
    assert_eq!((rows, record.plan_cache_hit), (vec!["1|99|x".to_owned()], false));
    db.run(&["DROP TABLE t"]).await;
    assert_eq!(db.code(sql).await, ErrorCode::TableNotFound);
}

#[tokio::test]
async fn a_table_that_has_become_another_in_size_has_plans_of_its_own() {
    let db = table().await;
    let sql = |least: i64| format!("SELECT max(a) FROM t WHERE b = 3 AND a > {least}");
    run(&db, &sql(80), None).await;
    db.run(&["INSERT INTO t SELECT value AS a, value % 10 AS b FROM generate_series(101, 900)"]).await;
    for least in [80, 81] {
        assert!(hits(&db, &sql(least)).await, "nine times as many rows");
    }
    db.run(&["INSERT INTO t SELECT value AS a, value % 10 AS b FROM generate_series(901, 1900)"]).await;
    let (rows, record) = run(&db, &sql(80), None).await;
    assert_eq!((rows, record.plan_cache_hit), (vec!["1893".to_owned()], false));
    assert!(hits(&db, &sql(80)).await && hits(&db, &sql(82)).await);
}

#[tokio::test]
async fn what_statistics_answer_follows_the_table() {
    let db = table().await;
    for (rows, insert) in [("100", true), ("101", true), ("102", false)] {
        assert_eq!(db.rows("SELECT count(*) FROM t").await, [rows]);
        assert_eq!(db.rows("SELECT count(*) FROM t").await, [rows]);
        if insert {
            db.run(&["INSERT INTO t VALUES (1, 1)"]).await;
        }
    }
}

#[tokio::test]
async fn a_view_that_was_replaced_is_planned_again() {
    let db = table().await;
    db.run(&["CREATE VIEW v AS SELECT a FROM t WHERE a > 98"]).await;
    assert_eq!(db.rows("SELECT a FROM v ORDER BY a").await, ["99", "100"]);
    assert!(hits(&db, "SELECT a FROM v ORDER BY a").await);
    db.run(&["CREATE OR REPLACE VIEW v AS SELECT a FROM t WHERE a < 3"]).await;
    let (rows, record) = run(&db, "SELECT a FROM v ORDER BY a", None).await;
    assert_eq!((rows, record.plan_cache_hit), (vec!["1".to_owned(), "2".to_owned()], false));
}

#[tokio::test]
async fn parameters_share_a_plan_whatever_their_values() {
    let db = table().await;
    let sql = "SELECT sum(a) FROM t WHERE b = $1";
    for (index, (value, sum)) in [(1, "460"), (2, "470"), (1, "460"), (2, "470")].into_iter().enumerate() {
        let (rows, record) = run(&db, sql, number(value)).await;
        assert_eq!((rows, record.plan_cache_hit), (vec![sum.to_owned()], index > 0), "{value}");
    }
    // A null is planned by itself.
    let (rows, record) = run(&db, sql, nullable(None)).await;
    assert_eq!((rows, record.plan_cache_hit), (vec![String::new()], false));
    // A value in the select list is shared where only the operators around it decide its type.
    for (select, is_shared) in [("$1 + a", true), ("$1 + abs(a)", true), ("a + abs($1)", false)] {
        for value in [1, 2] {
            let (rows, record) = run(&db, &format!("SELECT {select} FROM t WHERE a = $1"), number(value)).await;
            let expected = (vec![(2 * value).to_string()], is_shared && value == 2);
            assert_eq!((rows, record.plan_cache_hit), expected, "{select}");
        }
    }
    // The same value of another type is planned by itself.
    let schema = Schema::new(vec![Field::new("$1", DataType::Utf8, true)]);
    let text = RecordBatch::try_new(Arc::new(schema), vec![Arc::new(StringArray::from(vec!["1"]))]).unwrap();
    let (rows, record) = run(&db, sql, Some(text)).await;
    assert_eq!((rows, record.plan_cache_hit), (vec!["460".to_owned()], false));
}

#[tokio::test]
async fn settings_have_plans_of_their_own() {
    let db = table().await;
    let sql = "SELECT count(a) FROM t WHERE b > 3";
    assert!(!hits(&db, sql).await && hits(&db, sql).await);
    db.run(&["SET aubade.pushdown = 'off'"]).await;
    assert!(!hits(&db, sql).await && hits(&db, sql).await);
    // Another session with the same settings shares them.
    let other = Database { engine: db.engine.clone(), session: db.engine.session() };
    assert!(hits(&other, sql).await);
    db.run(&["SET aubade.plan_cache = false"]).await;
    assert!(!hits(&db, sql).await && !hits(&db, sql).await);
}

#[tokio::test]
async fn what_another_run_may_answer_otherwise_is_never_kept() {
    let db = Database::with_files(FileAccess::Any).await;
    let file = tempfile::Builder::new().suffix(".csv").tempfile().unwrap();
    std::fs::write(file.path(), "x\n1\n").unwrap();
    let from_file = format!("SELECT * FROM '{}'", file.path().display());
    for sql in [
        "SELECT now() < TIMESTAMP '2000-01-01'",
        "SELECT count(*) FROM information_schema.tables",
        "SELECT count(*) > 0 FROM system.metrics",
        "SELECT count(*) FROM generate_series(1, 3)",
        "EXPLAIN SELECT 1",
        "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 3) SELECT i FROM n",
        &from_file,
    ] {
        assert!(!hits(&db, sql).await && !hits(&db, sql).await, "{sql}");
    }
    std::fs::write(file.path(), "x\n2\n").unwrap();
    assert_eq!(db.rows(&from_file).await, ["2"]);
}

#[tokio::test]
async fn discarded_plans_are_made_again() {
    let db = table().await;
    let sql = "SELECT max(a) FROM t WHERE b = 5";
    assert!(!hits(&db, sql).await && hits(&db, sql).await);
    db.run(&["SELECT max(a) FROM t WHERE b = 6"]).await;
    let shown =
        "SELECT lifted, hits, template_hits, planning_micros > 0 FROM system.plan_cache WHERE sql LIKE '%b = 5'";
    let mut lines = db.rows(shown).await;
    lines.sort();
    assert_eq!(lines, ["0|1|1|true", "1|1|0|true"]);
    assert_eq!(db.rows("SELECT max(saved_micros) > 0 FROM system.plan_cache").await, ["true"]);
    db.run(&["DISCARD PLANS"]).await;
    assert!(!hits(&db, sql).await);
    db.run(&[sql, "DISCARD ALL"]).await;
    assert!(!hits(&db, sql).await);
    let error = db.error("DISCARD TEMP").await;
    assert_eq!(error.code(), ErrorCode::NotSupported);
    assert!(error.hint_text().unwrap().contains("DISCARD BUFFERS"), "{error:?}");
    let error = db.error("DISCARD FOO").await;
    assert_eq!(error.code(), ErrorCode::SqlSyntax);
    assert!(error.message().contains("PLANS, BUFFERS, or ALL"), "{error:?}");
}

#[tokio::test]
async fn entries_show_what_they_are_found_by() {
    let db = table().await;
    let shown = async |what: &str, of: &str| {
        let mut rows = db.rows(&format!("SELECT {what} FROM system.plan_cache WHERE sql LIKE '%{of}%'")).await;
        rows.sort();
        rows
    };
    db.run(&["select max( a ) from t where b = 5 -- five", "SELECT a AS x FROM t LIMIT 1"]).await;
    let expected = ["SELECT max(a) FROM t WHERE b = 5||", "SELECT max(a) FROM t WHERE b = ?integer0||"];
    assert_eq!(shown("key, parameter_values, settings", "five").await, expected);
    // Parameters have their values where the plan is for these.
    run(&db, "SELECT min(a) FROM t WHERE b = $1", number(5)).await;
    let of_parameters = shown("key, parameters, parameter_values", "min(a)").await;
    let words = "SELECT min(a) FROM t WHERE b = $1|1|$1 Int64";
    assert_eq!(of_parameters, [words.to_owned(), format!("{words} = 5")]);
    // Other settings and another case of a name that shows make other entries of the same words, and another schema
    // leaves none of those before.
    db.run(&["CREATE TABLE another (a INT)", "SELECT a AS x FROM t LIMIT 1", "SET aubade.pushdown = 'off'"]).await;
    db.run(&[
        "SET datafusion.execution.batch_size = 100",
        "SELECT a AS x FROM t LIMIT 1",
        "SELECT a AS X FROM t LIMIT 1",
    ])
    .await;
    let of_names = shown("schema_version, key, settings", "LIMIT 1").await;
    let changed = "datafusion.execution.batch_size=100, aubade.pushdown=off";
    let after = db.engine.snapshot().await.unwrap().schema_version.0;
    let expected = [
        format!("{after}|SELECT a AS X FROM t LIMIT 1|{changed}"),
        format!("{after}|SELECT a AS x FROM t LIMIT 1|"),
        format!("{after}|SELECT a AS x FROM t LIMIT 1|{changed}"),
    ];
    assert_eq!(of_names, expected);
    let digests = "SELECT count(*) = count(DISTINCT key_digest), min(length(key_digest)) FROM system.plan_cache";
    assert_eq!(db.rows(digests).await, ["true|16"]);
}

/// Each run has its own bound of a minimum, its own rows of a join, and its own result of a subquery.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn runs_of_one_plan_share_no_state() {
    let db = table().await;
    db.run(&["CREATE TABLE u AS SELECT value AS a FROM generate_series(1, 100, 7)"]).await;
    let queries = [
        ("SELECT min(a) FROM t WHERE a + b > 20", "16"),
        ("SELECT count(*) FROM t JOIN u ON t.a = u.a WHERE b > 4", "8"),
        ("SELECT count(*) FROM t WHERE a > (SELECT avg(a) FROM u)", "50"),
        // Of this one run goes at a time.
        ("SELECT max(a + (SELECT max(a) FROM u)) FROM t", "199"),
        ("SELECT a FROM t ORDER BY b DESC, a LIMIT 1", "9"),
        ("SELECT sum(n) FROM (SELECT b, count(*) AS n FROM t GROUP BY b)", "100"),
        ("SELECT count(*) FROM t a, u b WHERE a.a < b.a", "735"),
        ("SELECT max(r) FROM (SELECT row_number() OVER (PARTITION BY b ORDER BY a) AS r FROM t)", "10"),
    ];
    let runs = (0..32).map(|task| {
        // Each runs on the engine's own threads.
        let session = db.engine.session();
        async move {
            for round in 0..6 {
                let (sql, expected) = queries[(task + round) % queries.len()];
                let rows = lines(session.execute(sql).await.unwrap()).await.unwrap();
                assert_eq!(rows, [expected], "{sql}");
                let sql = "SELECT sum(a) - $1 FROM t WHERE b = $1";
                let value = i64::try_from((task + round) % 10).unwrap();
                let output = session.execute_with(sql, number(value), ExecuteOptions::default()).await.unwrap();
                // Ten rows: value, 10 + value, ..., 90 + value; and 10 to 100 for 0.
                let sum = if value == 0 { 550 } else { 450 + 9 * value };
                assert_eq!(lines(output).await.unwrap(), [sum.to_string()], "{value}");
                // Each has a result of its own subquery: the largest of 1, 8, ..., 99 up to the value.
                let sql = "SELECT count(*) FROM t WHERE a > (SELECT max(a) FROM u WHERE a <= $1) AND b < 10";
                let most = 50 + 5 * value;
                let output = session.execute_with(sql, number(most), ExecuteOptions::default()).await.unwrap();
                let count = 100 - (1 + (most - 1) / 7 * 7);
                assert_eq!(lines(output).await.unwrap(), [count.to_string()], "{value}");
                // One plan for all values, as parameters and as constants.
                let sql = "SELECT sum(x.a) FROM t x, u y WHERE x.a >= y.a AND x.b = $1 AND y.a < 2";
                let sum = if value == 0 { 550 } else { sum + value };
                let output = session.execute_with(sql, number(value), ExecuteOptions::default()).await.unwrap();
                assert_eq!(lines(output).await.unwrap(), [sum.to_string()], "{value}");
                let output = session.execute(&sql.replace("$1", &value.to_string())).await.unwrap();
                assert_eq!(lines(output).await.unwrap(), [sum.to_string()], "{value}");
            }
        }
    });
    futures::future::join_all(runs).await;
    let hits =
        "SELECT sum(hits) > 100, min(template_hits) > 0 FROM system.plan_cache WHERE lifted = 0 AND parameters = 0";
    assert_eq!(db.rows(hits).await, ["true|true"]);
    let shared = "SELECT count(*) FROM system.plan_cache WHERE parameters = 1 AND lifted = 1 AND sql LIKE '%x.b = $1%'";
    assert_eq!(db.rows(shared).await, ["1"]);
}

#[tokio::test]
async fn a_cancelled_run_leaves_no_half_result_to_the_next() {
    let db = table().await;
    for sql in [
        "SELECT a FROM t WHERE a > (SELECT max(a) - 3 FROM t WHERE b < 100) ORDER BY a",
        // The results of its subquery are in a place that all copies of the plan share.
        "SELECT a FROM (SELECT a FROM t ORDER BY a * (SELECT max(a) FROM t WHERE b < 5) DESC LIMIT 3) x ORDER BY a",
    ] {
        for _ in 0..5 {
            // Dropped before its end.
            let output = db.session.execute(sql).await.unwrap();
            drop(output);
            assert_eq!(db.rows(sql).await, ["98", "99", "100"], "{sql}");
        }
    }
}

#[tokio::test]
async fn names_that_are_keywords_keep_their_case() {
    let db = table().await;
    db.run(&["SELECT struct(1 AS end) AS s", "SELECT {end: 1} AS s FROM t LIMIT 1"]).await;
    assert!(!hits(&db, "SELECT struct(1 AS END) AS s").await);
    assert!(!hits(&db, "SELECT {END: 1} AS s FROM t LIMIT 1").await);
}

#[tokio::test]
async fn timestamps_of_other_zones_are_other_parameters() {
    let db = table().await;
    let stamp = |zone: Option<&str>| {
        let column = TimestampSecondArray::from(vec![0]).with_timezone_opt(zone);
        let schema = Schema::new(vec![Field::new("$1", column.data_type().clone(), true)]);
        Some(RecordBatch::try_new(Arc::new(schema), vec![Arc::new(column)]).unwrap())
    };
    let sql = "SELECT arrow_typeof($1) FROM t LIMIT 1";
    let plain = run(&db, sql, stamp(None)).await.0;
    let zoned = run(&db, sql, stamp(Some("+02:00"))).await;
    assert!(!zoned.1.plan_cache_hit && zoned.0 != plain, "{plain:?} {zoned:?}");
}

/// What is kept of a join must not be the rows of its build side, nor what of a cancelled query the snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn kept_plans_hold_neither_rows_nor_snapshots() {
    let db = table().await;
    db.run(&["CREATE VIEW v AS SELECT b, sum(a) AS s FROM t GROUP BY b"]).await;
    let queries = [
        "SELECT count(*) FROM t x JOIN t y ON x.a = y.a WHERE y.b > 2",
        "SELECT a FROM t WHERE a NOT IN (SELECT b FROM t WHERE b > 3)",
        "SELECT s FROM v WHERE s = (SELECT max(s) FROM v)",
    ];
    for sql in queries {
        drop(db.session.execute(sql).await.unwrap());
        db.rows(sql).await;
        db.rows(sql).await;
    }
    let old = Arc::downgrade(&db.engine.snapshot().await.unwrap());
    db.run(&["INSERT INTO t VALUES (1, 1)"]).await;
    // Tasks of the cancelled queries end by themselves.
    for _ in 0..200 {
        if old.upgrade().is_none() && db.engine.runtime().memory_pool.reserved() == 0 {
            return;
        }
        db.engine.environment().clock.sleep(Duration::from_millis(50)).await;
    }
    panic!("{:?} holders, {} bytes reserved", old.strong_count(), db.engine.runtime().memory_pool.reserved());
}

#[tokio::test]
async fn named_statements_have_plans_that_are_kept() {
    let db = table().await;
    db.run(&[
        "PREPARE q(INT) AS SELECT a FROM t WHERE b = $1 AND a > 80",
        "PREPARE f AS SELECT a + $1 FROM t WHERE a = 1",
    ])
    .await;
    for (sql, expected, hit) in [
        ("EXECUTE q(3)", ["83", "93"].as_slice(), false),
        ("EXECUTE q(1 + 2)", &["83", "93"], true),
        ("EXECUTE q(4)", &["84", "94"], true),
        ("EXECUTE f(1)", &["2"], false),
        ("EXECUTE f(1)", &["2"], true),
        ("EXECUTE f(2)", &["3"], true),
        ("EXECUTE q(5)", &["85", "95"], true),
    ] {
        let (rows, record) = run(&db, sql, None).await;
        assert_eq!(
            (rows.as_slice(), record.plan_cache_hit),
            (expected.iter().map(|row| row.to_string()).collect::<Vec<_>>().as_slice(), hit),
            "{sql}"
        );
    }
    db.run(&["DROP TABLE t", "CREATE TABLE t AS SELECT 90 AS a, 3 AS b"]).await;
    for (sql, hit) in [("EXECUTE q(3)", false), ("EXECUTE q(3)", true)] {
        let (rows, record) = run(&db, sql, None).await;
        assert_eq!((rows, record.plan_cache_hit), (vec!["90".to_owned()], hit));
    }
}

#[tokio::test]
async fn named_statements_are_not_taken_for_others_that_print_alike() {
    let db = table().await;
    db.run(&["PREPARE p AS SELECT 'a''''b' AS s FROM t WHERE a = 1"]).await;
    assert_eq!(run(&db, "EXECUTE p", None).await.0, ["a''b"]);
    assert_eq!(run(&db, "SELECT 'a''b' AS s FROM t WHERE a = 1", None).await.0, ["a'b"]);
    assert_eq!(run(&db, "EXECUTE p", None).await.0, ["a''b"]);
}

#[tokio::test]
async fn what_a_statement_is_holds_for_other_constants() {
    let db = table().await;
    let off = Database::open().await;
    off.run(&[
        "CREATE TABLE t AS SELECT value AS a, value % 10 AS b FROM generate_series(1, 100)",
        "SET aubade.plan_cache = off",
    ])
    .await;
    for sql in [
        "SELECT a + 1, 'x' FROM t WHERE b = {} AND a > 80",
        "SELECT (SELECT max(a) FROM t WHERE b < {}), count(*) FROM t WHERE a <> 3",
        "SELECT a AS n, b FROM t WHERE EXISTS (SELECT 1 FROM t u WHERE u.a = t.b AND u.b <> {})",
        "SELECT l.a, r.b FROM t l LEFT JOIN t r ON l.a = r.b WHERE {} < 5 OR r.b = 5",
        "SELECT b, count(*) FROM t WHERE a < $1 GROUP BY b HAVING count(*) > {}",
    ] {
        let with = |value: i64| sql.replace("{}", &value.to_string());
        let parameters = if sql.contains('$') { number(50) } else { None };
        run(&db, &with(2), parameters).await;
        for value in [1, 7] {
            let sql = with(value);
            let (told, expected) = (db.session.prepare(&sql).await.unwrap(), off.session.prepare(&sql).await.unwrap());
            assert_eq!(told.sql, sql);
            assert_eq!((told.schema, told.parameters), (expected.schema, expected.parameters), "{sql}");
        }
        let version = db.engine.snapshot().await.unwrap().schema_version;
        let lookup = Lookup::new(&with(8), &Parameters::default(), &db.session.template(), version).unwrap();
        let shape = db.engine.plans().shape(&lookup);
        // Which constants may change is not known of a statement that never ran without parameters.
        let described = shape.is_some_and(|shape| db.engine.plans().description(&shape.key).is_some());
        assert_eq!(described, !sql.contains('$'), "{sql}");
    }
}
