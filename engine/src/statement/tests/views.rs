//! Views.

use super::*;

#[tokio::test]
async fn a_view_is_planned_when_it_is_read() {
    let db = Database::open().await;
    db.run(&["CREATE TABLE t AS SELECT 1 AS a, 'x' AS b", "CREATE VIEW v AS SELECT a + 1 AS c FROM t"]).await;
    assert_eq!(db.rows("SELECT c FROM v").await, ["2"]);
    db.run(&["INSERT INTO t VALUES (5, 'y')"]).await;
    assert_eq!(db.rows("SELECT c FROM v ORDER BY c").await, ["2", "6"]);
    db.run(&["CREATE OR REPLACE VIEW v (x, \"Y\") AS SELECT a, b FROM t", "CREATE VIEW IF NOT EXISTS v AS SELECT 1"])
        .await;
    assert_eq!(db.rows("SELECT \"Y\", x FROM v ORDER BY x").await, ["x|1", "y|5"]);
    assert_eq!(db.code("CREATE VIEW v AS SELECT 1 AS a").await, ErrorCode::AlreadyExists);
    assert_eq!(db.code("CREATE OR REPLACE VIEW t AS SELECT 1 AS a").await, ErrorCode::AlreadyExists);
    db.run(&["DROP VIEW v", "DROP VIEW IF EXISTS v"]).await;
    assert_eq!(db.code("SELECT * FROM v").await, ErrorCode::TableNotFound);
}

#[tokio::test]
async fn a_view_cannot_read_itself() {
    let db = Database::open().await;
    db.run(&["CREATE VIEW a AS SELECT 1 AS x", "CREATE VIEW b AS SELECT x FROM a", "CREATE VIEW c AS SELECT x FROM b"])
        .await;
    for sql in ["CREATE OR REPLACE VIEW a AS SELECT x FROM a", "CREATE OR REPLACE VIEW a AS SELECT x FROM c"] {
        assert_eq!(db.code(sql).await, ErrorCode::InvalidArgument, "{sql}");
    }
    db.run(&["CREATE OR REPLACE VIEW c AS SELECT x + 1 AS x FROM a"]).await;
    assert_eq!(db.rows("SELECT x FROM c").await, ["2"]);
}

#[tokio::test]
async fn a_view_means_the_same_in_every_schema() {
    let db = Database::open().await;
    db.run(&[
        "CREATE TABLE t AS SELECT 'public' AS a",
        "CREATE SCHEMA s",
        "CREATE TABLE s.t AS SELECT 's' AS a",
        "CREATE VIEW v AS SELECT a FROM t",
        "SET datafusion.catalog.default_schema = 's'",
        "CREATE VIEW w AS WITH c AS (SELECT a FROM t) SELECT a FROM c",
    ])
    .await;
    assert_eq!(db.rows("SELECT a FROM public.v").await, ["public"]);
    assert_eq!(db.rows("SELECT a FROM w").await, ["s"]);
    assert_eq!(db.rows("SELECT a FROM t").await, ["s"]);
    let other = Database { engine: db.engine.clone(), session: db.engine.session() };
    assert_eq!(other.rows("SELECT a FROM s.w").await, ["s"]);
    assert_eq!(other.rows("SELECT a FROM t").await, ["public"]);
}

#[tokio::test]
async fn dropping_with_cascade_takes_the_views_along() {
    let db = Database::open().await;
    db.run(&[
        "CREATE TABLE t (a INT)",
        "CREATE VIEW v AS SELECT a FROM t",
        "CREATE VIEW w AS SELECT a FROM v",
        "CREATE VIEW other AS SELECT 1 AS a",
        "DROP TABLE t CASCADE",
    ])
    .await;
    let snapshot = db.engine.snapshot().await.unwrap();
    let left: Vec<_> = snapshot.relations.keys().map(ToString::to_string).collect();
    assert_eq!(left, ["public.other"]);
}
