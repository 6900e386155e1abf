//! Statements that read and write files, under each policy.

use std::fs;
use std::path::Path;

use super::*;

fn write_csv(folder: &Path, name: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, "a,b\n1,x\n2,y\n").unwrap();
    path.display().to_string()
}

/// Statements that touch files in all the ways that there are.
fn touching(path: &str, out: &str) -> Vec<String> {
    vec![
        format!("SELECT * FROM '{path}'"),
        format!("SELECT * FROM 'file://{path}'"),
        format!("SELECT * FROM \"{path}\""),
        format!("INSERT INTO t SELECT a, b FROM '{path}'"),
        format!("CREATE TABLE u AS SELECT * FROM '{path}'"),
        format!("CREATE VIEW u AS SELECT * FROM '{path}'"),
        format!("CREATE EXTERNAL TABLE u STORED AS CSV LOCATION '{path}'"),
        format!("CREATE EXTERNAL TABLE u (a INT, b VARCHAR) STORED AS CSV LOCATION '{path}'"),
        format!("CREATE EXTERNAL TABLE u STORED AS CSV LOCATION ('{path}', '{path}')"),
        format!("CREATE EXTERNAL TABLE u STORED AS CSV LOCATION 'file://{path}'"),
        format!("COPY t TO '{out}' STORED AS CSV"),
        format!("COPY (SELECT 1 AS a) TO 'file://{out}' STORED AS PARQUET"),
        format!("EXPLAIN ANALYZE COPY t TO '{out}' STORED AS CSV"),
        format!("SELECT (SELECT max(a) FROM '{path}') AS m"),
    ]
}

async fn refuses_all(db: &Database, path: &str, out: &str) {
    db.run(&["CREATE TABLE t (a INT, b VARCHAR)"]).await;
    let before = db.fingerprint().await;
    for sql in touching(path, out) {
        let error = db.error(&sql).await;
        assert_eq!(error.code(), ErrorCode::PermissionDenied, "{sql}: {error}");
        assert!(error.hint_text().is_some_and(|hint| hint.contains("--allow-local-files DIR")), "{sql}");
        assert!(
            db.session.prepare(&sql).await.is_err_and(|error| error.code() == ErrorCode::PermissionDenied)
                || !sql.starts_with("SELECT")
        );
    }
    assert_eq!(db.fingerprint().await, before);
    assert!(!Path::new(out).exists());
}

#[tokio::test]
async fn the_network_reads_and_writes_no_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = write_csv(folder.path(), "in.csv");
    let out = folder.path().join("out").display().to_string();
    let db = Database::open().await;
    refuses_all(&db, &path, &out).await;
    for url in ["s3://bucket/x.parquet", "http://host/x.csv", "/etc/passwd.csv", "relative.parquet"] {
        assert_eq!(db.code(&format!("SELECT * FROM '{url}'")).await, ErrorCode::PermissionDenied, "{url}");
    }
}

#[tokio::test]
async fn a_folder_is_open_and_what_is_beside_it_is_not() {
    let (folder, beside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = write_csv(folder.path(), "in.csv");
    let out = folder.path().join("out.csv").display().to_string();
    let db = Database::with_files(FileAccess::Folder(folder.path().to_owned())).await;
    let secret = write_csv(beside.path(), "secret.csv");
    refuses_all(&db, &secret, &beside.path().join("out").display().to_string()).await;
    let around = format!("{}/../{}/secret.csv", folder.path().display(), beside.path().file_name().unwrap().display());
    assert_eq!(db.code(&format!("SELECT * FROM '{around}'")).await, ErrorCode::PermissionDenied);
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(beside.path(), folder.path().join("link")).unwrap();
        let link = folder.path().join("link/secret.csv").display().to_string();
        assert_eq!(db.code(&format!("SELECT * FROM '{link}'")).await, ErrorCode::PermissionDenied);
    }
    assert_eq!(db.rows(&format!("SELECT b FROM '{path}' WHERE a = 2")).await, ["y"]);
    assert_eq!(db.rows(&format!("COPY (SELECT 7 AS z) TO '{out}'")).await, ["1"]);
    assert_eq!(fs::read_to_string(&out).unwrap(), "z\n7\n");
}

#[tokio::test]
async fn embedded_use_reads_and_writes_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = write_csv(folder.path(), "in.csv");
    let parquet = folder.path().join("out.parquet").display().to_string();
    let db = Database::with_files(FileAccess::Any).await;
    assert_eq!(db.rows(&format!("SELECT count(*) FROM '{path}'")).await, ["2"]);
    assert_eq!(db.rows(&format!("COPY (SELECT * FROM '{path}') TO '{parquet}'")).await, ["2"]);
    assert_eq!(db.rows(&format!("SELECT a, b FROM '{parquet}' ORDER BY a")).await, ["1|x", "2|y"]);
    let glob = format!("{}/*.csv", folder.path().display());
    write_csv(folder.path(), "more.csv");
    assert_eq!(db.rows(&format!("SELECT count(*) FROM '{glob}'")).await, ["4"]);
    write_csv(folder.path(), "even-more.csv");
    assert_eq!(db.rows(&format!("SELECT count(*) FROM '{glob}'")).await, ["6"], "listings are not stale");
    db.run(&[&format!("CREATE TABLE t AS SELECT * FROM '{parquet}'")]).await;
    assert_eq!(db.rows("SELECT sum(a) FROM t").await, ["3"]);
    assert_eq!(db.code(&format!("CREATE VIEW v AS SELECT a FROM '{parquet}'")).await, ErrorCode::NotSupported);
}

#[tokio::test]
async fn external_tables_stay_and_read_their_files_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = write_csv(folder.path(), "in.csv");
    let db = Database::with_files(FileAccess::Any).await;
    let create =
        format!("CREATE EXTERNAL TABLE e STORED AS CSV LOCATION '{path}' OPTIONS ('format.has_header' 'true')");
    db.run(&[&create]).await;
    let other = Database { engine: db.engine.clone(), session: db.engine.session() };
    assert_eq!(other.rows("SELECT sum(a) FROM e").await, ["3"]);
    fs::write(&path, "a,b\n10,x\n20,y\n30,z\n").unwrap();
    assert_eq!(other.rows("SELECT sum(a) FROM e").await, ["60"]);
    assert_eq!(db.code(&create).await, ErrorCode::AlreadyExists);
    db.run(&["DROP TABLE e"]).await;
    assert!(Path::new(&path).exists());
    let unbounded = format!("CREATE UNBOUNDED EXTERNAL TABLE e (a INT) STORED AS CSV LOCATION '{path}'");
    assert_eq!(db.code(&unbounded).await, ErrorCode::NotSupported);
}

#[tokio::test]
async fn an_external_table_without_its_files_is_named_and_hides_no_other_one() {
    let folder = tempfile::tempdir().unwrap();
    let db = Database::with_files(FileAccess::Any).await;
    let (inferred, declared) = (write_csv(folder.path(), "inferred.csv"), write_csv(folder.path(), "declared.csv"));
    let csv = "STORED AS CSV OPTIONS ('format.has_header' 'true')";
    db.run(&[
        "CREATE TABLE t (a INT)",
        &format!("CREATE EXTERNAL TABLE inferred {csv} LOCATION '{inferred}'"),
        &format!("CREATE EXTERNAL TABLE declared (a INT, b VARCHAR) {csv} LOCATION '{declared}'"),
        "CREATE VIEW through AS SELECT a FROM inferred",
    ])
    .await;
    let columns =
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2";
    assert_eq!(db.rows(columns).await, ["declared|a", "declared|b", "inferred|a", "inferred|b", "t|a", "through|a"]);
    fs::remove_file(&inferred).unwrap();
    fs::remove_file(&declared).unwrap();
    assert_eq!(db.rows(columns).await, ["declared|a", "declared|b", "t|a"]);
    let shown = db.rows("SHOW TABLES").await;
    assert_eq!(shown.iter().filter(|row| row.contains("|public|")).count(), 4, "{shown:?}");
    for (sql, path) in [
        ("SELECT * FROM inferred", &inferred),
        ("SELECT * FROM through", &inferred),
        ("SELECT * FROM declared", &declared),
        ("SELECT count(*) FROM declared", &declared),
    ] {
        let error = db.error(sql).await;
        assert_eq!(error.code(), ErrorCode::FileUnreadable, "{sql}: {error:?}");
        assert!(error.report().contains(path.trim_start_matches('/')), "{sql}: {error:?}");
    }
    fs::write(&inferred, "a,b\n1,x\n").unwrap();
    assert_eq!(db.rows("SELECT a FROM through").await, ["1"]);
}

#[tokio::test]
async fn files_that_are_missing_or_broken_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let db = Database::with_files(FileAccess::Any).await;
    let missing = folder.path().join("none.parquet").display().to_string();
    let broken = folder.path().join("broken.parquet").display().to_string();
    fs::write(&broken, "PAR1 this is no Parquet file PAR1").unwrap();
    for path in [&missing, &broken] {
        let error = db.error(&format!("SELECT * FROM '{path}'")).await;
        assert_eq!(error.code(), ErrorCode::FileUnreadable);
        assert!(error.message().contains(path.as_str()), "{error}");
        assert!(error.report().contains(if path == &broken { "its footer names" } else { "no file" }), "{error:?}");
        let sql = format!("CREATE EXTERNAL TABLE e STORED AS PARQUET LOCATION '{path}'");
        assert_eq!(db.code(&sql).await, ErrorCode::FileUnreadable);
    }
    let sql = format!("CREATE EXTERNAL TABLE e STORED AS NONSENSE LOCATION '{broken}'");
    assert_eq!(db.code(&sql).await, ErrorCode::NotSupported);
}

#[tokio::test]
async fn a_copy_that_fails_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let db = Database::with_files(FileAccess::Any).await;
    let out = folder.path().join("out.parquet").display().to_string();
    let sql = format!("COPY (SELECT 10 / (value - 90000) AS a FROM generate_series(1, 100000)) TO '{out}'");
    assert_eq!(db.code(&sql).await, ErrorCode::DivisionByZero);
    assert!(!Path::new(&out).exists());
}
