//! CREATE TABLE, DROP and schemas.

use super::*;

#[tokio::test]
async fn a_table_is_made_filled_read_and_dropped() {
    let db = Database::open().await;
    db.run(&["CREATE TABLE t (a BIGINT NOT NULL, b VARCHAR, c DECIMAL(10, 2), d DATE)"]).await;
    let insert = "INSERT INTO t VALUES (1, 'x', 1.25, '2024-02-29'), (2, NULL, 3, NULL)";
    let output = db.session.execute(insert).await.unwrap();
    assert_eq!(output.affected_rows, Some(2));
    assert_eq!(lines(output).await.unwrap(), ["2"]);
    assert_eq!(db.rows("SELECT * FROM t ORDER BY a").await, ["1|x|1.25|2024-02-29", "2||3.00|"]);
    assert_eq!(db.rows("SELECT count(*), max(c) FROM t WHERE a > 1").await, ["1|3.00"]);
    db.run(&["DROP TABLE t"]).await;
    assert_eq!(db.code("SELECT * FROM t").await, ErrorCode::TableNotFound);
}

#[tokio::test]
async fn create_table_as_keeps_types_and_makes_columns_nullable() {
    let db = Database::open().await;
    let output = db.session.execute("CREATE TABLE t AS SELECT 1 AS a, 'x' AS b").await.unwrap();
    assert_eq!(output.affected_rows, Some(1));
    db.run(&["INSERT INTO t VALUES (NULL, NULL)"]).await;
    assert_eq!(db.rows("SELECT * FROM t ORDER BY a").await, ["1|x", "|"]);
    let before = db.engine.snapshot().await.unwrap().version;
    db.run(&["CREATE TABLE u (x INT NOT NULL, y VARCHAR) AS SELECT a, b FROM t WHERE a IS NOT NULL"]).await;
    assert_eq!(db.engine.snapshot().await.unwrap().version.0, before.0 + 1, "one commit");
    assert_eq!(db.code("INSERT INTO u VALUES (NULL, 'x')").await, ErrorCode::SqlExecution);
    assert_eq!(db.rows("DESCRIBE u").await, ["x|Int32|NO", "y|Utf8View|YES"]);
}

#[tokio::test]
async fn if_not_exists_and_or_replace_do_as_they_say() {
    let db = Database::open().await;
    db.run(&["CREATE TABLE t AS SELECT 1 AS a", "CREATE TABLE IF NOT EXISTS t AS SELECT 2 AS b"]).await;
    assert_eq!(db.rows("SELECT a FROM t").await, ["1"]);
    let error = db.error("CREATE TABLE t (a INT)").await;
    assert_eq!((error.code(), error.message()), (ErrorCode::AlreadyExists, "table 'public.t' already exists"));
    db.run(&["CREATE OR REPLACE TABLE t AS SELECT a + 1 AS b FROM t"]).await;
    assert_eq!(db.rows("SELECT b FROM t").await, ["2"]);
    db.run(&["CREATE OR REPLACE TABLE n (a INT)", "CREATE OR REPLACE TABLE n (b INT)"]).await;
    assert_eq!(db.rows("DESCRIBE n").await, ["b|Int32|YES"]);
}

#[tokio::test]
async fn what_is_not_enforced_is_refused() {
    let db = Database::open().await;
    for clause in
        ["a INT PRIMARY KEY", "a INT UNIQUE", "a INT, PRIMARY KEY (a)", "a INT DEFAULT 3", "a INT CHECK (a > 1)"]
    {
        assert_eq!(db.code(&format!("CREATE TABLE t ({clause})")).await, ErrorCode::NotSupported, "{clause}");
    }
    assert_eq!(db.code("CREATE TEMPORARY TABLE t (a INT)").await, ErrorCode::NotSupported);
    assert_eq!(db.code("CREATE TABLE t AS SELECT NULL AS a").await, ErrorCode::NotSupported);
    assert_eq!(db.code("CREATE TABLE t AS SELECT interval '1 day' AS a").await, ErrorCode::NotSupported);
    assert_eq!(db.code("CREATE TABLE t AS SELECT 1 AS a, 2 AS a").await, ErrorCode::SqlPlan);
}

#[tokio::test]
async fn a_statement_that_fails_leaves_nothing_behind() {
    let db = Database::open().await;
    db.run(&["CREATE TABLE t AS SELECT value AS a FROM generate_series(0, 50000)"]).await;
    let before = db.fingerprint().await;
    for failing in [
        "CREATE TABLE u AS SELECT 1 / (a - 40000) AS b FROM t",
        "CREATE OR REPLACE TABLE t AS SELECT 1 / (a - 40000) AS b FROM t",
        "INSERT INTO t SELECT 1 / (a - 40000) FROM t",
        "CREATE TABLE u (a INT NOT NULL) AS SELECT CASE WHEN a = 40000 THEN NULL ELSE a END FROM t",
        "INSERT INTO t VALUES (1, 2)",
        "INSERT INTO t VALUES ('x')",
        "CREATE VIEW v AS SELECT nothing FROM t",
        "CREATE TABLE nowhere.t (a INT)",
        "DROP TABLE t, nothing",
    ] {
        db.error(failing).await;
        assert_eq!(db.fingerprint().await, before, "{failing}");
    }
    assert_eq!(db.code("INSERT INTO t SELECT 1 / (a - 40000) FROM t").await, ErrorCode::DivisionByZero);
}

#[tokio::test]
async fn drop_says_what_is_wrong() {
    let db = Database::open().await;
    db.run(&["CREATE TABLE lineitem (a INT)", "CREATE VIEW v AS SELECT a FROM lineitem"]).await;
    let error = db.error("DROP TABLE lineitm").await;
    assert_eq!(error.code(), ErrorCode::TableNotFound);
    assert_eq!(error.hint_text(), Some("did you mean 'lineitem'?"));
    assert_eq!(db.error("DROP TABLE v").await.hint_text(), Some("use DROP VIEW"));
    assert_eq!(db.error("DROP VIEW lineitem").await.hint_text(), Some("use DROP TABLE"));
    let error = db.error("DROP TABLE lineitem").await;
    assert_eq!(
        (error.code(), error.message()),
        (ErrorCode::InvalidArgument, "view 'public.v' reads 'public.lineitem'")
    );
    db.run(&["DROP TABLE IF EXISTS lineitm", "DROP TABLE lineitem CASCADE"]).await;
    assert_eq!(db.code("SELECT * FROM v").await, ErrorCode::TableNotFound);
    db.run(&["CREATE TABLE a (x INT)", "CREATE TABLE b (x INT)", "DROP TABLE a, b"]).await;
    assert!(db.engine.snapshot().await.unwrap().relations.is_empty());
}

#[tokio::test]
async fn schemas_hold_tables() {
    let db = Database::open().await;
    db.run(&["CREATE SCHEMA s", "CREATE SCHEMA IF NOT EXISTS s", "CREATE TABLE s.t AS SELECT 1 AS a"]).await;
    assert_eq!(db.code("CREATE SCHEMA s").await, ErrorCode::AlreadyExists);
    assert_eq!(db.rows("SELECT a FROM aubade.s.t").await, ["1"]);
    assert_eq!(db.code("SELECT a FROM t").await, ErrorCode::TableNotFound);
    assert_eq!(db.code("CREATE TABLE z.t (a INT)").await, ErrorCode::SchemaNotFound);
    assert_eq!(db.code("CREATE TABLE other.s.t (a INT)").await, ErrorCode::SchemaNotFound);
    assert_eq!(db.code("CREATE TABLE information_schema.t (a INT)").await, ErrorCode::InvalidArgument);
    assert_eq!(db.code("DROP SCHEMA s").await, ErrorCode::InvalidArgument);
    assert_eq!(db.code("DROP SCHEMA public").await, ErrorCode::InvalidArgument);
    assert_eq!(db.code("DROP SCHEMA z").await, ErrorCode::SchemaNotFound);
    db.run(&["DROP SCHEMA IF EXISTS z", "DROP SCHEMA s CASCADE"]).await;
    assert_eq!(db.code("SELECT a FROM s.t").await, ErrorCode::SchemaNotFound);
}

#[tokio::test]
async fn names_fold_to_lower_case_unless_quoted() {
    let db = Database::open().await;
    db.run(&["CREATE TABLE MixedCase (A INT)", "CREATE TABLE \"MixedCase\" (\"A\" INT)"]).await;
    db.run(&["INSERT INTO mixedCASE VALUES (1)", "INSERT INTO \"MixedCase\" VALUES (2)"]).await;
    assert_eq!(db.rows("SELECT a FROM MIXEDCASE").await, ["1"]);
    assert_eq!(db.rows("SELECT \"A\" FROM \"MixedCase\"").await, ["2"]);
}
