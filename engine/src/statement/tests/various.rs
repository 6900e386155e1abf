//! Settings, EXPLAIN, SHOW, errors, limits and records.

use std::time::Duration;

use super::*;
use crate::query::QueryState;
use crate::session::ExecuteOptions;

#[tokio::test]
async fn settings_last_for_the_session_only() {
    let db = Database::open().await;
    db.run(&["SET datafusion.execution.batch_size = 100", "SET datafusion.execution.time_zone = '+02:00'"]).await;
    let setting = |name: &str| {
        format!("SELECT value FROM information_schema.df_settings WHERE name = 'datafusion.execution.{name}'")
    };
    assert_eq!(db.rows(&setting("batch_size")).await, ["100"]);
    assert_eq!(db.rows("SHOW datafusion.execution.batch_size").await, ["datafusion.execution.batch_size|100"]);
    let other = Database { engine: db.engine.clone(), session: db.engine.session() };
    assert_ne!(other.rows(&setting("batch_size")).await, ["100"]);
    db.run(&["RESET datafusion.execution.batch_size"]).await;
    assert_eq!(db.rows(&setting("batch_size")).await, other.rows(&setting("batch_size")).await);
    // What DataFusion would do otherwise: panic over a group of NaN, and wait for ever where an exchange spills.
    db.run(&["RESET datafusion.optimizer.enable_topk_aggregation", "RESET datafusion.execution.time_zone"]).await;
    assert_eq!(
        db.rows("SHOW datafusion.optimizer.enable_topk_aggregation").await,
        ["datafusion.optimizer.enable_topk_aggregation|false"]
    );
    let code = db.code("SET datafusion.execution.max_spill_file_size_bytes = 1000000").await;
    assert_eq!(code, ErrorCode::NotSupported);
    assert_eq!(db.code("SET datafusion.nothing.at_all = 1").await, ErrorCode::InvalidArgument);
    db.run(&["SET aubade.pushdown = 'off'", "SET aubade.fragment_cache = 'off'"]).await;
    assert_eq!(db.rows("SHOW aubade.pushdown").await, ["aubade.pushdown|off"]);
    assert_eq!(db.rows("SHOW aubade.fragment_cache").await, ["aubade.fragment_cache|false"]);
    assert_eq!(db.code("SET aubade.nothing = 1").await, ErrorCode::InvalidArgument);
    assert_eq!(db.code("SET aubade.plan_cache = 'sometimes'").await, ErrorCode::InvalidArgument);
    db.run(&["RESET aubade.pushdown"]).await;
    assert_eq!(db.rows("SHOW aubade.pushdown").await, ["aubade.pushdown|auto"]);
}

#[tokio::test]
async fn what_all_sessions_share_cannot_be_set_over_the_network() {
    let db = Database::open().await;
    for sql in [
        "SET datafusion.runtime.memory_limit = '1G'",
        "SET datafusion.runtime.temp_directory = '/etc'",
        "RESET datafusion.runtime.memory_limit",
        "SET datafusion.sql_parser.recursion_limit = 100000",
    ] {
        assert_eq!(db.code(sql).await, ErrorCode::PermissionDenied, "{sql}");
    }
    assert_eq!(db.code("SET datafusion.execution.target_partitions = 1000000").await, ErrorCode::InvalidArgument);
    assert_eq!(db.code("SET datafusion.catalog.default_catalog = 'x'").await, ErrorCode::InvalidArgument);
    let embedded = Database::with_files(FileAccess::Any).await;
    embedded.run(&["SET datafusion.runtime.memory_limit = '1G'", "SELECT 1"]).await;
}

#[tokio::test]
async fn show_describe_and_the_information_schema_work() {
    let db = Database::open().await;
    db.run(&["CREATE TABLE t (a INT NOT NULL, b VARCHAR)", "CREATE VIEW v AS SELECT a FROM t"]).await;
    let tables = "SELECT table_schema, table_name, table_type FROM information_schema.tables WHERE table_schema = 'public' ORDER BY 2";
    assert_eq!(db.rows(tables).await, ["public|t|BASE TABLE", "public|v|VIEW"]);
    assert!(db.rows("SHOW TABLES").await.iter().any(|line| line.contains("|t|")));
    assert_eq!(db.rows("SHOW COLUMNS FROM t").await.len(), 2);
    assert_eq!(db.rows("DESCRIBE t").await, ["a|Int32|NO", "b|Utf8View|YES"]);
    assert!(!db.rows("SHOW ALL").await.is_empty());
    assert!(!db.rows("SHOW FUNCTIONS").await.is_empty());
}

#[tokio::test]
async fn explain_shows_plans_and_runs_nothing_by_itself() {
    let db = Database::open().await;
    db.run(&["CREATE TABLE t AS SELECT 1 AS a"]).await;
    let before = db.fingerprint().await;
    assert!(db.rows("EXPLAIN SELECT a FROM t WHERE a > 1").await.concat().contains("StorageScan"));
    assert!(!db.rows("EXPLAIN INSERT INTO t VALUES (1)").await.is_empty());
    db.try_rows("EXPLAIN CREATE TABLE u AS SELECT 1 AS a").await.ok();
    db.try_rows("EXPLAIN ANALYZE CREATE TABLE u AS SELECT 1 AS a").await.ok();
    assert_eq!(db.fingerprint().await, before);
    let analyzed = db.rows("EXPLAIN ANALYZE SELECT a FROM t WHERE a >= 1").await.concat();
    assert!(analyzed.contains("segments_scanned=1"), "{analyzed}");
}

#[tokio::test]
async fn what_is_not_supported_yet_says_so() {
    let db = Database::open().await;
    db.run(&["CREATE TABLE t (a INT)"]).await;
    for sql in [
        "UPDATE t SET a = 1",
        "DELETE FROM t",
        "EXPLAIN ANALYZE DELETE FROM t",
        "MERGE INTO t USING t AS s ON t.a = s.a WHEN MATCHED THEN DELETE",
        "TRUNCATE TABLE t",
        "BEGIN",
        "START TRANSACTION",
        "COMMIT",
        "ROLLBACK",
        "SAVEPOINT s",
        "CREATE INDEX i ON t (a)",
        "CREATE FUNCTION f(INT) RETURNS INT RETURN $1 + 1",
        "DROP FUNCTION f",
        "CREATE DATABASE d",
        "ALTER TABLE t ADD COLUMN b INT",
        "GRANT SELECT ON t TO somebody",
        "VACUUM",
        "DROP INDEX i",
    ] {
        let error = db.error(sql).await;
        assert_eq!(error.code(), ErrorCode::NotSupported, "{sql}: {error}");
    }
    assert_eq!(db.error("UPDATE t SET a = 1").await.message(), "UPDATE is not supported yet");
}

#[tokio::test]
async fn errors_have_codes_and_name_the_nearest() {
    let db = Database::open().await;
    db.run(&["CREATE TABLE lineitem (l_orderkey INT, l_comment VARCHAR)"]).await;
    for (sql, code) in [
        ("SELEC 1", ErrorCode::SqlSyntax),
        ("SELECT 'open", ErrorCode::SqlSyntax),
        ("", ErrorCode::SqlSyntax),
        ("SELECT 1; SELECT 2", ErrorCode::SqlSyntax),
        ("SELECT * FROM lineitm", ErrorCode::TableNotFound),
        ("SELECT l_orderky FROM lineitem", ErrorCode::ColumnNotFound),
        ("SELECT * FROM nowhere.t", ErrorCode::SchemaNotFound),
        ("SELECT nofunction(1)", ErrorCode::SqlPlan),
        ("SELECT l_orderkey + DATE '2024-01-01' + true FROM lineitem", ErrorCode::SqlPlan),
        ("SELECT 1 / 0", ErrorCode::DivisionByZero),
        ("SELECT 1 / (value - 3) FROM generate_series(1, 5)", ErrorCode::DivisionByZero),
        ("SELECT CAST('x' AS INT)", ErrorCode::SqlExecution),
    ] {
        let error = db.error(sql).await;
        assert_eq!(error.code(), code, "{sql}: {error:?}");
    }
    assert_eq!(db.error("SELECT * FROM lineitm").await.hint_text(), Some("did you mean 'lineitem'?"));
    assert!(db.error("SELECT l_orderky FROM lineitem").await.hint_text().unwrap().contains("l_orderkey"));
}

#[tokio::test(flavor = "multi_thread")]
async fn long_and_deep_statements_cost_an_error_and_not_the_server() {
    let db = Database::open().await;
    let long = format!("SELECT '{}'", "x".repeat(parse::STATEMENT_BYTES_MAX));
    assert_eq!(db.code(&long).await, ErrorCode::LimitExceeded);
    let nested = format!("SELECT {}1{}", "(".repeat(5_000), ")".repeat(5_000));
    assert_eq!(db.code(&nested).await, ErrorCode::LimitExceeded);
    let chain = |operand: &str, length: usize| vec![operand; length].join(" + ");
    for length in [2_000, 200_000] {
        let sql = format!("SELECT {} FROM generate_series(1, 10)", chain("value", length));
        assert_eq!(db.code(&sql).await, ErrorCode::LimitExceeded);
    }
    let sql = format!("SELECT max({}) FROM generate_series(1, 10)", chain("value", 900));
    assert_eq!(db.rows(&sql).await, ["9000"]);
    let conditions: Vec<_> = (0..300).map(|number| format!("value % 1000 = {number}")).collect();
    let sql = format!("SELECT count(*) FROM generate_series(1, 10) WHERE {}", conditions.join(" OR "));
    assert_eq!(db.rows(&sql).await, ["10"]);
    let values: Vec<_> = (0..20_000).map(|number| format!("({number}, -{number} + 1)")).collect();
    db.run(&["CREATE TABLE t (a INT, b INT)", &format!("INSERT INTO t VALUES {}", values.join(", "))]).await;
    assert_eq!(db.rows("SELECT count(*), sum(b) FROM t").await, ["20000|-199970000"]);
    assert_eq!(db.rows("SELECT 1").await, ["1"]);
}

#[tokio::test]
async fn a_query_leaves_a_record() {
    let db = Database::open().await;
    db.run(&["CREATE TABLE t AS SELECT value AS a FROM generate_series(1, 1000)"]).await;
    let output = db.session.execute("SELECT a FROM t WHERE a <= 10").await.unwrap();
    let id = output.query_id;
    assert_eq!(db.engine.queries().get(id).unwrap().state, QueryState::Running);
    assert_eq!(lines(output).await.unwrap().len(), 10);
    let record = db.engine.queries().get(id).unwrap();
    assert_eq!((record.state, record.rows, record.session_id), (QueryState::Finished, 10, db.session.id()));
    assert_eq!((record.segments_total, record.segments_scanned, record.rows_in), (1, 1, 1000));
    assert!(record.bytes_read > 0 && record.requests >= 1 && record.total_micros >= record.planning_micros);
    assert_eq!(record.replicas.len(), 1);
    db.error("SELECT nothing").await;
    let failed = &db.engine.queries().recent()[0];
    assert_eq!((failed.state, failed.sql.as_str()), (QueryState::Failed, "SELECT nothing"));
    assert!(failed.error.as_ref().unwrap().contains("nothing"));
}

#[tokio::test]
async fn a_query_that_nobody_reads_on_is_cancelled() {
    let db = Database::open().await;
    let output = db.session.execute("SELECT * FROM generate_series(1, 1000000000000)").await.unwrap();
    let id = output.query_id;
    let mut stream = output.stream;
    assert!(stream.try_next().await.unwrap().is_some());
    drop(stream);
    let mut state = QueryState::Running;
    for _ in 0..200 {
        state = db.engine.queries().get(id).unwrap().state;
        if state != QueryState::Running {
            break;
        }
        db.engine.environment().clock.sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(state, QueryState::Cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_a_query_while_it_is_read() {
    let db = Database::open().await;
    let options = ExecuteOptions { timeout: Some(Duration::from_millis(200)) };
    for sql in [
        "SELECT sum(value % 7) FROM generate_series(1, 1000000000000)",
        // Joins that make a great many rows of few, without asking their inputs for more.
        "SELECT count(*) FROM generate_series(1, 1000000) a, generate_series(1, 1000000) b WHERE a.value + b.value > 0",
        "SELECT count(*) FROM generate_series(1, 1000000) a JOIN generate_series(1, 1000000) b ON a.value % 2 = b.value % 2",
        "SELECT count(*) FROM generate_series(1, 1000000) a CROSS JOIN (SELECT value FROM generate_series(1, 1000000)) b",
    ] {
        let output = db.session.execute_with(sql, None, options).await.unwrap();
        let id = output.query_id;
        assert_eq!(lines(output).await.unwrap_err().code(), ErrorCode::DeadlineExceeded, "{sql}");
        assert_eq!(db.engine.queries().get(id).unwrap().state, QueryState::Cancelled, "{sql}");
    }
}

#[tokio::test]
async fn a_query_reads_one_snapshot_from_start_to_end() {
    let db = Database::open().await;
    db.run(&["CREATE TABLE t AS SELECT value AS a FROM generate_series(1, 10)"]).await;
    let output = db.session.execute("SELECT a FROM t").await.unwrap();
    db.run(&["INSERT INTO t VALUES (11)", "DROP TABLE t"]).await;
    assert_eq!(lines(output).await.unwrap().len(), 10);
}

#[tokio::test]
async fn the_system_schema_tells_of_queries_and_counters() {
    let db = Database::open().await;
    db.run(&["CREATE TABLE t AS SELECT value AS a FROM generate_series(1, 100)"]).await;
    let counter = |name: &str, label: &str| {
        format!("SELECT value FROM system.metrics WHERE name = '{name}' AND coalesce(label, '') = '{label}'")
    };
    assert_eq!(db.rows(&counter("not_pushed", "volatile")).await, ["0"]);
    assert_eq!(db.rows("SELECT a FROM t WHERE random() < 2 AND a > 99").await, ["100"]);
    assert_eq!(db.rows(&counter("not_pushed", "volatile")).await, ["1"]);
    assert_eq!(db.rows(&counter("queries_failed", "")).await, ["0"]);
    assert_eq!(db.code("SELECT b FROM t").await, ErrorCode::ColumnNotFound);
    assert_eq!(db.rows(&counter("queries_failed", "")).await, ["1"]);
    assert_eq!(db.rows(&counter("node_up", "in-process")).await, ["1"]);
    assert_eq!(db.rows(&counter("scan_rows_in", "")).await, ["100"]);
    let queries = "SELECT state, rows, rows_in, error LIKE '%b%' FROM system.queries \
                   WHERE sql LIKE 'SELECT _ FROM t%' ORDER BY start_unix_millis, rows DESC";
    assert_eq!(db.rows(queries).await, ["finished|1|100|", "failed|0|0|true"]);
    // Each name and label is there once, and tells what it is.
    let twice =
        "SELECT name, label FROM system.metrics GROUP BY name, label HAVING count(*) > 1 OR min(description) = ''";
    assert_eq!(db.rows(twice).await, [""; 0]);
}

#[tokio::test]
async fn nothing_can_be_made_in_the_system_schema() {
    let db = Database::open().await;
    assert_eq!(db.code("CREATE TABLE system.t (a INT)").await, ErrorCode::InvalidArgument);
    assert_eq!(db.code("CREATE SCHEMA system").await, ErrorCode::AlreadyExists);
    assert_eq!(db.code("DROP TABLE system.metrics").await, ErrorCode::InvalidArgument);
    assert_eq!(db.code("SELECT * FROM system.nothing").await, ErrorCode::TableNotFound);
    let listed = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'system' ORDER BY 1";
    assert_eq!(db.rows(listed).await, ["buffer_pool", "metrics", "plan_cache", "queries"]);
}

#[tokio::test]
async fn explain_analyze_verbose_tells_what_each_node_did() {
    let db = Database::open().await;
    db.run(&["CREATE TABLE t AS SELECT value AS a FROM generate_series(1, 100)"]).await;
    let plan = db.rows("EXPLAIN ANALYZE VERBOSE SELECT a FROM t WHERE a > 90").await.concat();
    let node = "nodes=[in-process: requests=1, segments=1, rows_in=100, rows_out=10, bytes_read=";
    assert!(plan.contains(node), "{plan}");
    let brief = db.rows("EXPLAIN ANALYZE SELECT a FROM t WHERE a > 90").await.concat();
    assert!(!brief.contains("nodes=[") && brief.contains("hedges=0"), "{brief}");
}
