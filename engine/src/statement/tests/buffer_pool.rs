//! Columns that are kept decoded, and the statements about them.

use std::collections::BTreeMap;

use aubade_catalog::store::MemoryStore;
use aubade_catalog::{Manifest, ManifestStore, Quorum};
use aubade_environment::clock;
use aubade_proto::ClusterId;

use super::*;
use crate::buffer_pool::BufferPoolDisk;
use crate::limits::BUFFER_POOL_IDLE_LOOK;
use crate::query::QueryRecord;
use crate::session::ExecuteOptions;

const POOL_BYTES: u64 = 16 << 20;

async fn open(buffer_pool_bytes: u64) -> Database {
    // What the coordinator has kept of a scan would be read before anything of the pool.
    let fragment_cache_bytes = Some(0);
    let options = EngineOptions {
        buffer_pool_bytes,
        fragment_cache_bytes,
        target_partitions: Some(2),
        ..EngineOptions::default()
    };
    let engine = Engine::open_in_memory(Environment::system(), options).await.unwrap();
    let db = Database { session: engine.session(), engine };
    // What nodes have kept is not scanned anywhere.
    db.run(&[
        "SET aubade.fragment_cache = off",
        "CREATE TABLE t AS SELECT value AS a, value % 10 AS b, 'row ' || value AS c FROM generate_series(1, 1000)",
    ])
    .await;
    db
}

/// Runs a query; its rows and its record.
async fn run(db: &Database, sql: &str) -> (Vec<String>, QueryRecord) {
    let output = db.session.execute_with(sql, None, ExecuteOptions::default()).await.unwrap();
    let id = output.query_id;
    let rows = lines(output).await.unwrap();
    (rows, db.engine.queries().get(id).unwrap())
}

/// So that loads need not wait until their time is up.
async fn a_while_without_queries(db: &Database) {
    db.engine.environment().clock.sleep(BUFFER_POOL_IDLE_LOOK * 2).await;
}

/// Runs a query until all segments that it scans are in the pool.
async fn until_pooled(db: &Database, sql: &str) -> Vec<String> {
    let pooled = async {
        loop {
            let (rows, record) = run(db, sql).await;
            if record.segments_pooled == record.segments_scanned {
                return rows;
            }
            a_while_without_queries(db).await;
        }
    };
    let clock = &db.engine.environment().clock;
    clock::timeout(clock.as_ref(), Duration::from_secs(30), pooled)
        .await
        .expect("the segments never came into the pool")
}

#[tokio::test(flavor = "multi_thread")]
async fn few_texts_are_kept_as_a_dictionary() {
    // By their views alone the texts would not fit.
    const ROWS: u64 = 200_000;
    let db = open(ROWS * 8 + (256 << 10)).await;
    let sql = format!(
        "CREATE TABLE kinds AS SELECT CASE WHEN value % 7 > 0 THEN 'a kind that is a long text ' || (value % 5) END AS kind, \
         'many ' || value AS text FROM generate_series(1, {ROWS})"
    );
    db.run(&[&sql, "CACHE TABLE kinds (kind)"]).await;
    let shown = "SELECT column_name, segments = dictionaries, bytes < 2 * 200000 FROM system.buffer_pool WHERE table_name = \
                 'kinds'";
    assert_eq!(db.rows(shown).await, ["kind|true|true"]);
    for sql in [
        "SELECT kind, count(*) FROM kinds GROUP BY kind ORDER BY kind",
        "SELECT count(*) FROM kinds WHERE kind LIKE '%3' OR kind IS NULL",
        "SELECT upper(kind) AS k, max(kind) FROM kinds WHERE kind > 'a kind that is a long text 2' GROUP BY k ORDER BY k",
        "SELECT DISTINCT kind FROM kinds ORDER BY kind DESC NULLS LAST LIMIT 3",
    ] {
        let (pooled, record) = run(&db, sql).await;
        assert!(record.segments_pooled > 0, "{sql}: {record:?}");
        db.run(&["SET aubade.buffer_pool = off"]).await;
        assert_eq!(run(&db, sql).await.0, pooled, "{sql}");
        db.run(&["SET aubade.buffer_pool = on"]).await;
    }
    assert_eq!(db.error("CACHE TABLE kinds (text)").await.code(), ErrorCode::LimitExceeded);
    db.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cached_table_is_scanned_where_it_is_cached() {
    let db = open(POOL_BYTES).await;
    db.run(&["CACHE TABLE t (a, b)"]).await;
    for (sql, pooled) in [
        ("SELECT sum(a) FROM t WHERE b = 3", true),
        ("SELECT b, count(*), max(a) FROM t GROUP BY b ORDER BY b", true),
        ("SELECT a FROM t WHERE a % 7 = 0 AND b > 4 ORDER BY a DESC LIMIT 5", true),
        ("SELECT a, b FROM t WHERE a BETWEEN 100 AND 103", true),
        ("SELECT c FROM t WHERE a = 17", false),
        ("SELECT count(*) FROM t WHERE a > 5000", true),
    ] {
        let (rows, record) = run(&db, sql).await;
        let scanned = if pooled { record.segments_scanned } else { 0 };
        assert_eq!(record.segments_pooled, scanned, "{sql}: {record:?}");
        db.run(&["SET aubade.buffer_pool = off"]).await;
        let (plain, record) = run(&db, sql).await;
        db.run(&["SET aubade.buffer_pool = on"]).await;
        assert_eq!((plain, record.segments_pooled), (rows, 0), "{sql}");
    }
    let lines = db.rows("SELECT table_name, column_name, segments, pinned, hits > 0 FROM system.buffer_pool").await;
    assert!(lines.contains(&"t|a|1|true|true".to_owned()), "{lines:?}");
    let bytes = db.engine.cluster().buffer_pool().unwrap().bytes();
    db.run(&["CACHE TABLE t (a, A, b)"]).await;
    assert_eq!(db.engine.cluster().buffer_pool().unwrap().bytes(), bytes);
    db.run(&["UNCACHE TABLE t"]).await;
    assert_eq!(db.engine.cluster().buffer_pool().unwrap().bytes(), 0);
    assert_eq!(db.rows("SELECT sum(bytes) FROM system.buffer_pool").await, ["0"]);
    db.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_queries_want_is_loaded_and_so_is_what_is_appended() {
    let db = open(POOL_BYTES).await;
    let sql = "SELECT count(*), sum(a) FROM t WHERE b < 5";
    assert_eq!(until_pooled(&db, sql).await, ["500|249500"]);
    db.run(&["INSERT INTO t VALUES (2000, 1, 'new')"]).await;
    assert_eq!(run(&db, sql).await.0, ["501|251500"]);
    assert_eq!(until_pooled(&db, sql).await, ["501|251500"]);
    db.run(&["DROP TABLE t", "CREATE TABLE t AS SELECT 5 AS a, 4 AS b"]).await;
    assert_eq!(until_pooled(&db, sql).await, ["1|5"]);
    db.run(&["DISCARD BUFFERS"]).await;
    assert_eq!(db.engine.cluster().buffer_pool().unwrap().bytes(), 0);
    assert_eq!(run(&db, sql).await.0, ["1|5"]);
    db.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn results_over_pooled_columns_are_kept_too() {
    let db = open(POOL_BYTES).await;
    db.run(&["CACHE TABLE t", "SET aubade.fragment_cache = on"]).await;
    let sql = "SELECT b, sum(a) FROM t GROUP BY b ORDER BY b LIMIT 1";
    let (first, record) = run(&db, sql).await;
    assert_eq!((record.segments_pooled, record.segments_kept), (1, 0), "{record:?}");
    let (second, record) = run(&db, sql).await;
    assert_eq!((second, record.segments_pooled, record.segments_kept), (first, 1, 1), "{record:?}");
    db.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_asked_for_is_shared_by_columns_and_results() {
    let db = open(POOL_BYTES).await;
    let (columns, results) = ("buffer_pool_limit_bytes", "buffer_pool_results_limit_bytes");
    assert_eq!((metric(&db, columns).await, metric(&db, results).await), (POOL_BYTES / 16 * 15, POOL_BYTES / 16));
    db.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn results_that_differ_each_time_are_not_kept() {
    let db = open(POOL_BYTES).await;
    db.run(&["CACHE TABLE t", "SET aubade.fragment_cache = on"]).await;
    for sql in [
        "SELECT sum(a) FROM t WHERE random() < 2",
        "SELECT count(*) FROM t WHERE b < 5 AND random() < 2",
        "SELECT b, count(*), min(random()) FROM t GROUP BY b",
        "SELECT count(*), max(c) FROM t WHERE b < 5 AND to_timestamp_nanos(a) < now()",
    ] {
        for time in 0..3 {
            let record = run(&db, sql).await.1;
            assert_eq!((record.segments_pooled, record.segments_kept), (1, 0), "{sql}, {time}: {record:?}");
        }
    }
    db.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_are_used_stay_and_others_make_room() {
    // Room for one of the two tables.
    let db = open(200 << 10).await;
    let rows = "SELECT value AS a FROM generate_series(1, 16000)";
    db.run(&[&format!("CREATE TABLE hot AS {rows}"), &format!("CREATE TABLE cold AS {rows}")]).await;
    for _ in 0..8 {
        until_pooled(&db, "SELECT sum(a) FROM hot WHERE a % 3 = 1").await;
        run(&db, "SELECT sum(a) FROM hot WHERE a % 3 = 1").await;
    }
    run(&db, "SELECT sum(a) FROM cold WHERE a % 3 = 1").await;
    until_pooled(&db, "SELECT sum(a) FROM hot WHERE a % 3 = 2").await;
    let pool = db.engine.cluster().buffer_pool().unwrap();
    assert!(pool.bytes() <= pool.bytes_max(), "{pool:?}");
    let tables: BTreeMap<String, String> = db
        .rows("SELECT table_name, segments FROM system.buffer_pool WHERE column_name = 'a'")
        .await
        .iter()
        .filter_map(|line| line.split_once('|').map(|(table, segments)| (table.to_owned(), segments.to_owned())))
        .collect();
    assert_eq!((tables["hot"].as_str(), tables["cold"].as_str()), ("1", "0"), "{tables:?}");
    db.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_named() {
    let db = open(256 << 10).await;
    db.run(&["CREATE VIEW v AS SELECT a FROM t"]).await;
    assert_eq!(db.code("CACHE TABLE nowhere").await, ErrorCode::TableNotFound);
    assert_eq!(db.code("UNCACHE TABLE nowhere").await, ErrorCode::TableNotFound);
    assert_eq!(db.code("CACHE TABLE v").await, ErrorCode::InvalidArgument);
    for sql in ["CACHE TABLE system.metrics", "UNCACHE TABLE IF EXISTS information_schema.tables"] {
        let error = db.error(sql).await;
        assert_eq!(error.code(), ErrorCode::InvalidArgument);
        assert!(error.message().contains("not kept in the buffer pool"), "{error:?}");
    }
    db.run(&["UNCACHE TABLE IF EXISTS nowhere", "UNCACHE TABLE IF EXISTS no_schema.nowhere"]).await;
    db.run(&["CACHE TABLE t", "UNCACHE TABLE IF EXISTS t"]).await;
    assert_eq!(db.engine.cluster().buffer_pool().unwrap().bytes(), 0);
    let error = db.error("CACHE TABLE t (a, x)").await;
    assert_eq!((error.code(), error.hint_text()), (ErrorCode::ColumnNotFound, Some("its columns are a, b, c")));
    assert_eq!(db.code("CACHE TABLE t AS SELECT 1").await, ErrorCode::SqlSyntax);
    db.run(&["CREATE TABLE large AS SELECT value AS a FROM generate_series(1, 100000)"]).await;
    let error = db.error("CACHE TABLE large").await;
    assert_eq!(error.code(), ErrorCode::LimitExceeded);
    assert!(error.hint_text().unwrap().contains("--buffer-pool"), "{error:?}");
    db.engine.shutdown().await;
    let db = Database::open().await;
    let error = db.error("CACHE TABLE t").await;
    assert_eq!(error.code(), ErrorCode::NotSupported);
    assert!(error.message().contains("embedded"), "{error:?}");
    assert!(error.hint_text().unwrap().contains("--buffer-pool"), "{error:?}");
    db.engine.shutdown().await;
}

/// A coordinator without storage nodes.
async fn coordinator(options: EngineOptions) -> Database {
    let (environment, store) = (Environment::system(), Arc::new(MemoryStore::default()));
    let id = ClusterId(environment.new_uuid());
    let quorum = Quorum::for_copies(1).unwrap();
    Manifest::create(environment.clone(), Arc::clone(&store) as Arc<dyn ManifestStore>, id, quorum).await.unwrap();
    let engine = Engine::open_with_store(environment, store, options).await.unwrap();
    Database { session: engine.session(), engine }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_without_a_pool_says_how_to_get_one() {
    let db = coordinator(EngineOptions::default()).await;
    for sql in ["CACHE TABLE t", "UNCACHE TABLE t"] {
        let error = db.error(sql).await;
        assert_eq!(error.code(), ErrorCode::NotSupported);
        assert!(error.message().ends_with("of this coordinator is off"), "{error:?}");
        assert!(error.hint_text().unwrap().contains("--buffer-pool"), "{error:?}");
    }
    db.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_gone_leaves_its_room_at_once() {
    let db = open(4 << 20).await;
    let made = "TABLE pn AS SELECT value AS a, value * 3 AS b FROM generate_series(1, 160000)";
    let (create, replace) = (format!("CREATE {made}"), format!("CREATE OR REPLACE {made}"));
    let pool = db.engine.cluster().buffer_pool().unwrap();
    for gone in ["DROP TABLE pn", "CREATE OR REPLACE TABLE pn (a BIGINT)", "DROP SCHEMA s CASCADE"] {
        let in_schema = gone.starts_with("DROP SCHEMA");
        let (create, cache) = match in_schema {
            true => (create.replace("pn", "s.pn"), "CACHE TABLE s.pn"),
            false => (create.clone(), "CACHE TABLE pn"),
        };
        let schema: &[&str] = if in_schema { &["CREATE SCHEMA s"] } else { &[] };
        db.run(schema).await;
        db.run(&["DROP TABLE IF EXISTS pn", &create, cache, gone]).await;
        assert_eq!(pool.bytes(), 0, "{gone}");
    }
    db.run(&[&create, "CACHE TABLE pn", &replace, "CACHE TABLE pn"]).await;
    let shown = "SELECT column_name, pinned FROM system.buffer_pool WHERE table_name = 'pn' ORDER BY 1";
    assert_eq!(db.rows(shown).await, ["a|true", "b|true"]);
    db.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn buffers_are_discarded_where_a_pool_or_results_are_kept() {
    let db = Database::open().await;
    db.run(&["CREATE TABLE t AS SELECT value AS a FROM generate_series(1, 100)", "SELECT sum(a) FROM t WHERE a > 5"])
        .await;
    assert_eq!(metric(&db, "fragment_cache_results").await, 1);
    db.run(&["DISCARD BUFFERS"]).await;
    assert_eq!(metric(&db, "fragment_cache_results").await, 0);
    db.engine.shutdown().await;
    let db = open(POOL_BYTES).await;
    assert!(db.engine.results().is_none());
    db.run(&["CACHE TABLE t", "DISCARD BUFFERS"]).await;
    assert_eq!(metric(&db, "buffer_pool_bytes").await, 0);
    db.engine.shutdown().await;
    let db = coordinator(EngineOptions { fragment_cache_bytes: Some(0), ..EngineOptions::default() }).await;
    let error = db.error("DISCARD BUFFERS").await;
    assert_eq!(error.code(), ErrorCode::NotSupported);
    let hint = error.hint_text().unwrap();
    assert!(hint.contains("--buffer-pool") && hint.contains("--fragment-cache"), "{error:?}");
    db.run(&["DISCARD ALL"]).await;
    db.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn discarding_all_is_about_buffers_too() {
    let db = open(POOL_BYTES).await;
    db.run(&["CACHE TABLE t", "DISCARD ALL"]).await;
    assert_eq!(db.engine.cluster().buffer_pool().unwrap().bytes(), 0);
    db.engine.shutdown().await;
}

async fn metric(db: &Database, name: &str) -> u64 {
    db.rows(&format!("SELECT value FROM system.metrics WHERE name = '{name}'")).await[0].parse().unwrap()
}

/// Waits until a condition holds of what the database says.
async fn until(db: &Database, sql: &str) {
    let holds = async {
        while db.rows(sql).await != ["true"] {
            a_while_without_queries(db).await;
        }
    };
    let clock = &db.engine.environment().clock;
    clock::timeout(clock.as_ref(), Duration::from_secs(30), holds).await.unwrap_or_else(|| panic!("never true: {sql}"));
}

/// A database in a folder, with a second tier of its pool.
struct Folders {
    data: tempfile::TempDir,
    disk: tempfile::TempDir,
}

impl Folders {
    fn new() -> Self {
        Self { data: tempfile::tempdir().unwrap(), disk: tempfile::tempdir().unwrap() }
    }

    fn options(&self) -> EngineOptions {
        EngineOptions {
            buffer_pool_bytes: POOL_BYTES,
            buffer_pool_disk: Some(BufferPoolDisk { dir: self.disk.path().to_owned(), bytes_max: POOL_BYTES }),
            target_partitions: Some(2),
            ..EngineOptions::default()
        }
    }

    async fn open(&self) -> Database {
        let engine = Engine::open_embedded(Environment::system(), self.data.path(), self.options()).await.unwrap();
        let db = Database { session: engine.session(), engine };
        db.run(&["SET aubade.fragment_cache = off"]).await;
        db
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_come_back_from_the_second_tier_as_they_were() {
    let folders = Folders::new();
    let db = folders.open().await;
    // Few texts and many, with nulls and empty ones among them.
    let text = |many: &str| {
        format!(
            "CASE value % 5 WHEN 0 THEN NULL WHEN 1 THEN '' WHEN 2 THEN 'short' ELSE 'a text that is long ' || {many} END"
        )
    };
    db.run(&[
        &format!(
            "CREATE TABLE texts AS SELECT value AS a, {} AS few, {} AS many, CAST(NULL AS VARCHAR) AS none, '' AS empty \
             FROM generate_series(1, 20000)",
            text("(value % 3)"),
            text("value")
        ),
        "CACHE TABLE texts",
    ])
    .await;
    let queries = [
        "SELECT few, count(*), count(few), min(many), max(many) FROM texts GROUP BY few ORDER BY few",
        "SELECT a, few, many, none, empty FROM texts WHERE a % 97 < 6 ORDER BY a",
        "SELECT count(*), min(a) FROM texts WHERE few = '' OR many IS NULL",
        "SELECT count(*), min(a) FROM texts WHERE few LIKE '%long 1' AND many > 'a text that is long 1'",
        "SELECT empty, none, count(*), count(none) FROM texts GROUP BY empty, none",
    ];
    let mut expected = Vec::new();
    for sql in queries {
        expected.push(run(&db, sql).await.0);
    }
    db.engine.shutdown().await;
    drop(db);
    let db = folders.open().await;
    until(&db, "SELECT count(*) = 5 FROM system.buffer_pool WHERE segments = 1").await;
    let shown = "SELECT column_name FROM system.buffer_pool WHERE dictionaries = 1 ORDER BY 1";
    let dictionaries = db.rows(shown).await;
    assert!(dictionaries.contains(&"few".to_owned()) && !dictionaries.contains(&"many".to_owned()), "{dictionaries:?}");
    for (sql, expected) in queries.iter().zip(expected) {
        let (pooled, record) = run(&db, sql).await;
        assert_eq!((&pooled, record.segments_pooled), (&expected, 1), "{sql}");
        db.run(&["SET aubade.buffer_pool = off"]).await;
        let (plain, record) = run(&db, sql).await;
        assert_eq!((plain, record.segments_pooled), (pooled, 0), "{sql}");
        db.run(&["SET aubade.buffer_pool = on"]).await;
    }
    assert_eq!((metric(&db, "buffer_pool_disk_misses").await, metric(&db, "buffer_pool_disk_damaged").await), (0, 0));
    db.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_tier_fills_the_pool_after_a_restart() {
    let folders = Folders::new();
    let db = folders.open().await;
    let sql = "SELECT sum(a) FROM t WHERE b < 5";
    db.run(&[
        "CREATE TABLE t AS SELECT value AS a, value % 10 AS b, 'row ' || value AS c FROM generate_series(1, 1000)",
    ])
    .await;
    assert_eq!(until_pooled(&db, sql).await, ["249500"]);
    // All of the table is in one block: nothing is fetched for one column more.
    let misses = metric(&db, "buffer_pool_disk_misses").await;
    db.run(&["CACHE TABLE t (a, c)"]).await;
    assert!(metric(&db, "buffer_pool_disk_hits").await > 0 && misses > 0);
    assert_eq!(metric(&db, "buffer_pool_disk_misses").await, misses);
    db.engine.shutdown().await;
    drop(db);
    let db = folders.open().await;
    until(&db, "SELECT count(*) = 2 FROM system.buffer_pool WHERE segments = 1").await;
    assert_eq!((metric(&db, "buffer_pool_disk_misses").await, metric(&db, "buffer_pool_disk_damaged").await), (0, 0));
    let (rows, record) = run(&db, "SELECT sum(a), max(b) FROM t WHERE b < 6").await;
    assert_eq!((rows, record.segments_pooled), (vec!["299500|5".to_owned()], 1));
    db.run(&["DISCARD BUFFERS"]).await;
    assert_eq!(metric(&db, "buffer_pool_disk_bytes").await, 0);
    db.engine.shutdown().await;
    drop(db);
    let options = EngineOptions { buffer_pool_bytes: 0, ..folders.options() };
    let error = Engine::open_embedded(Environment::system(), folders.data.path(), options).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::InvalidArgument, "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_tier_whose_folder_was_removed_goes_on_in_a_new_one() {
    let folders = Folders::new();
    let db = folders.open().await;
    let rows = "SELECT value AS a, value % 10 AS b FROM generate_series(1, 1000)";
    let tables = [format!("CREATE TABLE t AS {rows}"), format!("CREATE TABLE u AS {rows}")];
    db.run(&[&tables[0], &tables[1], "CACHE TABLE t"]).await;
    assert!(metric(&db, "buffer_pool_disk_bytes").await > 0);
    std::fs::remove_dir_all(folders.disk.path()).unwrap();
    db.run(&["CACHE TABLE u"]).await;
    assert!(metric(&db, "buffer_pool_disk_bytes").await > 0);
    assert_eq!(metric(&db, "buffer_pool_disk_failed_writes").await, 0);
    let error =
        Engine::open_embedded(Environment::system(), tempfile::tempdir().unwrap().path(), folders.options()).await;
    assert_eq!(error.unwrap_err().code(), ErrorCode::InUse);
    db.engine.shutdown().await;
    drop(db);
    let db = folders.open().await;
    until(&db, "SELECT count(*) = 2 FROM system.buffer_pool WHERE table_name = 'u' AND segments = 1").await;
    assert_eq!(db.rows("SELECT count(*) FROM system.buffer_pool WHERE table_name = 't' AND segments > 0").await, ["0"]);
    db.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pool_gives_way_before_queries_fail() {
    let open = |buffer_pool_bytes| async move {
        let memory = Some(4 << 20);
        let options = EngineOptions {
            buffer_pool_bytes,
            memory_limit_bytes: memory,
            target_partitions: Some(2),
            ..EngineOptions::default()
        };
        let engine = Engine::open_in_memory(Environment::system(), options).await.unwrap();
        let db = Database { session: engine.session(), engine };
        db.run(&["CREATE TABLE large AS SELECT value AS a, value * 3 AS b FROM generate_series(1, 400000)"]).await;
        db
    };
    // The rows of the build side are more than queries may use.
    let sql = "SELECT count(*) FROM large x JOIN large y ON x.a = y.b";
    let db = open(0).await;
    assert_eq!(db.code(sql).await, ErrorCode::OutOfMemory);
    db.engine.shutdown().await;
    let db = open(32 << 20).await;
    db.run(&["CACHE TABLE large"]).await;
    let held = metric(&db, "buffer_pool_bytes").await;
    for _ in 0..2 {
        assert_eq!(db.rows(sql).await, ["133333"]);
    }
    // Nobody needs it any more.
    until(&db, "SELECT value = 0 FROM system.metrics WHERE name = 'buffer_pool_lent_bytes'").await;
    assert!(held > 0 && metric(&db, "memory_reserved_bytes").await == 0);
    // There are limits to what can be lent.
    db.run(&["CREATE TABLE wide AS SELECT value AS a, repeat('x', 400) || value AS c FROM generate_series(1, 150000)"])
        .await;
    assert_eq!(
        db.code("SELECT count(*) FROM wide x JOIN wide y ON x.c = y.c AND x.a > y.a - 3").await,
        ErrorCode::OutOfMemory
    );
    assert_eq!(db.rows(sql).await, ["133333"]);
    db.engine.shutdown().await;
}
