//! INSERT, parameters, prepared statements and bulk load.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::DataType;

use super::*;
use crate::query::one_batch;
use crate::session::{IngestMode, IngestTarget};

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true))).unwrap()
}

fn ints(values: &[i64]) -> ArrayRef {
    Arc::new(Int64Array::from(values.to_vec()))
}

async fn with_parameters(db: &Database, sql: &str, parameters: RecordBatch) -> Result<Vec<String>> {
    let prepared = db.session.prepare(sql).await?;
    lines(db.session.execute_prepared(&prepared, Some(parameters)).await?).await
}

#[tokio::test]
async fn insert_takes_columns_in_any_order_and_casts() {
    let db = Database::open().await;
    db.run(&["CREATE TABLE t (a INT, b DOUBLE, c VARCHAR)", "INSERT INTO t (c, a) VALUES (7, '3')"]).await;
    db.run(&["INSERT INTO t SELECT a + 1, 2, c FROM t"]).await;
    assert_eq!(db.rows("SELECT * FROM t ORDER BY a").await, ["3||7", "4|2.0|7"]);
    assert_eq!(db.code("INSERT INTO t (nothing) VALUES (1)").await, ErrorCode::ColumnNotFound);
    assert_eq!(db.code("INSERT INTO nothing VALUES (1)").await, ErrorCode::TableNotFound);
    assert_eq!(db.code("INSERT OVERWRITE t VALUES (1, 2, 'x')").await, ErrorCode::NotSupported);
}

#[tokio::test]
async fn prepare_tells_columns_and_parameters() {
    let db = Database::open().await;
    db.run(&["CREATE TABLE t (a INT, b VARCHAR)"]).await;
    let query = db.session.prepare("SELECT a, upper(b) AS u FROM t WHERE a > $2 AND b = $1").await.unwrap();
    assert!(query.is_query);
    let names: Vec<_> =
        query.parameters.fields().iter().map(|field| (field.name().as_str(), field.data_type())).collect();
    assert_eq!(names, [("$1", &DataType::Utf8View), ("$2", &DataType::Int32)]);
    assert_eq!(query.schema.fields().iter().map(|field| field.name().as_str()).collect::<Vec<_>>(), ["a", "u"]);
    let insert = db.session.prepare("INSERT INTO t VALUES (?, ?)").await.unwrap();
    assert!(!insert.is_query);
    assert_eq!(insert.parameters.field(1).data_type(), &DataType::Utf8View);
    assert!(!db.session.prepare("CREATE TABLE u (a INT)").await.unwrap().is_query);
    assert_eq!(db.session.prepare("SELECT x FROM t").await.unwrap_err().code(), ErrorCode::ColumnNotFound);
    assert_eq!(db.session.prepare("DELETE FROM t").await.unwrap_err().code(), ErrorCode::NotSupported);
    assert_eq!(db.engine.snapshot().await.unwrap().relations.len(), 1, "preparing changes nothing");
}

#[tokio::test]
async fn values_of_execute_are_not_cut() {
    let db = Database::open().await;
    db.run(&["CREATE TABLE t AS SELECT value AS a, CAST(value AS DECIMAL(10, 2)) AS c, \
         CAST(to_timestamp_seconds(1704067200 + value * 86400) AS DATE) AS d FROM generate_series(1, 10)"])
        .await;
    for (condition, value) in [
        ("a < $1", "3.5"),
        ("a = $1", "3.7"),
        ("a = $1", "4.0"),
        ("a = $1", "'4'"),
        ("c < $1", "3.005"),
        ("c = $1", "3"),
        ("d = $1", "timestamp '2024-01-04T12:00:00'"),
        ("d = $1", "timestamp '2024-01-04T00:00:00'"),
        ("d > $1", "'2024-01-04'"),
    ] {
        let sql = format!("SELECT count(*), min(a) FROM t WHERE {condition}");
        let expected = db.rows(&sql.replace("$1", value)).await;
        db.run(&[&format!("PREPARE p AS {sql}")]).await;
        for _ in 0..3 {
            assert_eq!(db.rows(&format!("EXECUTE p({value})")).await, expected, "{condition} {value}");
        }
        db.run(&["DEALLOCATE p"]).await;
    }
}

#[tokio::test]
async fn parameters_bind_in_order_whatever_their_type() {
    let db = Database::open().await;
    db.run(&["CREATE TABLE t AS SELECT value AS a FROM generate_series(1, 10)"]).await;
    let sql = "SELECT a FROM t WHERE a > ? AND a < ? ORDER BY a";
    assert_eq!(with_parameters(&db, sql, batch(vec![("x", ints(&[3])), ("y", ints(&[6]))])).await.unwrap(), ["4", "5"]);
    let fraction: ArrayRef = Arc::new(Float64Array::from(vec![8.5]));
    assert_eq!(
        with_parameters(&db, "SELECT a FROM t WHERE a > $1 ORDER BY a", batch(vec![("0", fraction)])).await.unwrap(),
        ["9", "10"]
    );
    assert_eq!(with_parameters(&db, "SELECT $1 + 1 AS b", batch(vec![("0", ints(&[1]))])).await.unwrap(), ["2"]);
    assert_eq!(
        with_parameters(&db, "SELECT a FROM t WHERE a = $n", batch(vec![("n", ints(&[7]))])).await.unwrap(),
        ["7"]
    );
    assert_eq!(
        with_parameters(&db, "SELECT a FROM t ORDER BY a LIMIT $1", batch(vec![("n", ints(&[2]))])).await.unwrap(),
        ["1", "2"]
    );
    assert_eq!(
        with_parameters(&db, sql, batch(vec![("x", ints(&[3]))])).await.unwrap_err().code(),
        ErrorCode::InvalidArgument
    );
    assert_eq!(db.code(sql).await, ErrorCode::InvalidArgument);
    assert_eq!(db.code("SELECT ? + $1").await, ErrorCode::SqlSyntax);
}

#[tokio::test]
async fn an_insert_takes_many_rows_of_parameters_in_one_commit() {
    let db = Database::open().await;
    db.run(&["CREATE TABLE t (a INT, b VARCHAR, c BIGINT NOT NULL)"]).await;
    let version = db.engine.snapshot().await.unwrap().version;
    let text: ArrayRef = Arc::new(StringArray::from(vec![Some("x"), None, Some("z")]));
    let rows = batch(vec![("0", ints(&[1, 2, 3])), ("1", text)]);
    let sql = "INSERT INTO t (c, b, a) VALUES ($1 * 10, $2, $1)";
    assert_eq!(with_parameters(&db, sql, rows.clone()).await.unwrap(), ["3"]);
    assert_eq!(db.engine.snapshot().await.unwrap().version.0, version.0 + 1);
    assert_eq!(db.rows("SELECT * FROM t ORDER BY a").await, ["1|x|10", "2||20", "3|z|30"]);
    let missing: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None]));
    let before = db.fingerprint().await;
    let sql = "INSERT INTO t (c) VALUES (?)";
    assert_eq!(
        with_parameters(&db, sql, batch(vec![("0", missing)])).await.unwrap_err().code(),
        ErrorCode::SqlExecution
    );
    assert_eq!(db.fingerprint().await, before);
    let sql = "SELECT a FROM t WHERE a = $1";
    assert_eq!(with_parameters(&db, sql, rows).await.unwrap_err().code(), ErrorCode::NotSupported);
}

#[tokio::test]
async fn named_statements_stay_in_the_session_and_read_new_rows() {
    let db = Database::open().await;
    db.run(&[
        "CREATE TABLE t AS SELECT 1 AS a",
        "PREPARE q(INT) AS SELECT a FROM t WHERE a >= $1 ORDER BY a",
        "PREPARE i AS INSERT INTO t VALUES ($1)",
        "EXECUTE i(2)",
        "EXECUTE i(1 + 2)",
    ])
    .await;
    assert_eq!(db.rows("EXECUTE q(2)").await, ["2", "3"]);
    assert!(db.session.prepare("EXECUTE q(2)").await.unwrap().is_query);
    assert_eq!(db.code("PREPARE q AS SELECT 1").await, ErrorCode::AlreadyExists);
    assert_eq!(db.code("EXECUTE q").await, ErrorCode::InvalidArgument);
    assert_eq!(db.code("EXECUTE q(1, 2)").await, ErrorCode::InvalidArgument);
    assert_eq!(db.code("PREPARE p AS SELECT nothing FROM t").await, ErrorCode::ColumnNotFound);
    assert_eq!(db.code("PREPARE p AS DROP TABLE t").await, ErrorCode::NotSupported);
    let other = Database { engine: db.engine.clone(), session: db.engine.session() };
    assert_eq!(other.code("EXECUTE q(2)").await, ErrorCode::HandleNotFound);
    db.run(&["DEALLOCATE q"]).await;
    assert_eq!(db.code("EXECUTE q(2)").await, ErrorCode::HandleNotFound);
    assert_eq!(db.code("DEALLOCATE q").await, ErrorCode::HandleNotFound);
    db.run(&["DROP TABLE t"]).await;
    assert_eq!(db.code("EXECUTE i(2)").await, ErrorCode::TableNotFound);
}

fn target(table: &str, mode: IngestMode) -> IngestTarget {
    IngestTarget { schema: None, table: table.to_owned(), mode }
}

async fn ingest(db: &Database, target: IngestTarget, rows: RecordBatch) -> Result<u64> {
    db.session.ingest(target, one_batch(rows.schema(), vec![rows])).await
}

#[tokio::test]
async fn ingest_makes_adds_and_replaces() {
    let db = Database::open().await;
    let rows = batch(vec![("a", ints(&[1, 2])), ("B", ints(&[3, 4]))]);
    assert_eq!(
        ingest(&db, target("t", IngestMode::Append), rows.clone()).await.unwrap_err().code(),
        ErrorCode::TableNotFound
    );
    assert_eq!(ingest(&db, target("t", IngestMode::Create), rows.clone()).await.unwrap(), 2);
    assert_eq!(
        ingest(&db, target("t", IngestMode::Create), rows.clone()).await.unwrap_err().code(),
        ErrorCode::AlreadyExists
    );
    let other_order: ArrayRef = Arc::new(Int32Array::from(vec![9]));
    assert_eq!(ingest(&db, target("t", IngestMode::CreateAppend), batch(vec![("b", other_order)])).await.unwrap(), 1);
    assert_eq!(db.rows("SELECT \"B\", a FROM t ORDER BY 1").await, ["3|1", "4|2", "9|"]);
    assert_eq!(ingest(&db, target("t", IngestMode::Replace), batch(vec![("c", ints(&[5]))])).await.unwrap(), 1);
    assert_eq!(db.rows("SELECT * FROM t").await, ["5"]);
    let empty = batch(vec![("x", ints(&[]))]);
    assert_eq!(ingest(&db, target("empty", IngestMode::CreateAppend), empty).await.unwrap(), 0);
    assert_eq!(db.rows("SELECT count(x) FROM empty").await, ["0"]);
    let records = db.engine.queries().recent();
    assert!(records.iter().any(|record| record.sql.contains("bulk load into t") && record.rows == 2));
}

#[tokio::test]
async fn ingest_that_does_not_fit_changes_nothing() {
    let db = Database::open().await;
    db.run(&[
        "CREATE TABLE t (amount INT NOT NULL, b INT)",
        "INSERT INTO t VALUES (1, 1)",
        "CREATE VIEW v AS SELECT 1 AS a",
    ])
    .await;
    let before = db.fingerprint().await;
    let text: ArrayRef = Arc::new(StringArray::from(vec!["1", "two"]));
    let large = ints(&[1 << 40]);
    let null: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None]));
    for (table, rows, code) in [
        ("t", batch(vec![("amuont", ints(&[1]))]), ErrorCode::ColumnNotFound),
        ("t", batch(vec![("b", ints(&[1]))]), ErrorCode::InvalidArgument),
        ("t", batch(vec![("amount", text)]), ErrorCode::SqlExecution),
        ("t", batch(vec![("amount", large)]), ErrorCode::SqlExecution),
        ("t", batch(vec![("amount", null)]), ErrorCode::SqlExecution),
        ("v", batch(vec![("a", ints(&[1]))]), ErrorCode::InvalidArgument),
    ] {
        let error = ingest(&db, target(table, IngestMode::Append), rows).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert_eq!(db.fingerprint().await, before);
    }
}

#[tokio::test]
async fn ingest_of_a_stream_that_breaks_commits_nothing() {
    use datafusion::physical_plan::stream::RecordBatchStreamAdapter;

    let db = Database::open().await;
    let good = batch(vec![("a", ints(&[1]))]);
    let broken = DataFusionError::from(Error::new(ErrorCode::FileUnreadable, "the file is cut short"));
    let stream = futures::stream::iter([Ok(good.clone()), Err(broken)]);
    let stream = Box::pin(RecordBatchStreamAdapter::new(good.schema(), stream));
    let error = db.session.ingest(target("t", IngestMode::CreateAppend), stream).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::FileUnreadable);
    assert!(db.engine.snapshot().await.unwrap().relations.is_empty());
    db.fingerprint().await;
}
