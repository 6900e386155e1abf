//! The embedded engine, with no server.

use std::path::Path;

use aubade_engine::{Engine, EngineOptions, FileAccess};
use aubade_environment::Environment;
use aubade_proto::ErrorCode;

use crate::harness::{load_numbers, number, run, run_with_record};

async fn open(dir: &Path) -> Engine {
    let options = EngineOptions { file_access: FileAccess::Any, ..EngineOptions::default() };
    Engine::open_embedded(Environment::system(), dir, options).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_in_a_folder_are_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path()).await;
    load_numbers(&engine, 10_000, 2).await;
    engine.shutdown().await;
    drop(engine);
    let engine = open(folder.path()).await;
    assert_eq!(number(&engine, "SELECT sum(n) FROM numbers").await, 9999 * 10_000 / 2);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_in_use_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path()).await;
    let error =
        Engine::open_embedded(Environment::system(), folder.path(), EngineOptions::default()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::InUse, "{error:?}");
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_encoded_in_process() {
    let engine = Engine::open_in_memory(Environment::system(), EngineOptions::default()).await.unwrap();
    load_numbers(&engine, 10_000, 1).await;
    let (_, record) = run_with_record(&engine, "SELECT n FROM numbers WHERE n > 5").await.unwrap();
    assert_eq!(record.bytes_wire, 0, "{record:?}");
    assert!(record.bytes_read > 0, "{record:?}");
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sort_above_the_memory_limit_spills_and_a_join_names_the_limit() {
    let options = EngineOptions { memory_limit_bytes: Some(24 << 20), ..EngineOptions::default() };
    let engine = Engine::open_in_memory(Environment::system(), options).await.unwrap();
    load_numbers(&engine, 1_000_000, 4).await;
    let sql = "SELECT count(*) FROM (SELECT text, row_number() OVER (ORDER BY text, n) AS r FROM numbers) WHERE r > 0";
    assert_eq!(number(&engine, sql).await, 1_000_000);
    let error =
        run(&engine, "SELECT a.text, array_agg(b.text) FROM numbers a JOIN numbers b ON a.n % 3 = b.n % 3 GROUP BY 1")
            .await
            .unwrap_err();
    assert_eq!(error.code(), ErrorCode::OutOfMemory, "{error:?}");
    assert!(error.hint_text().unwrap().contains("--memory-limit"), "{error:?}");
    engine.shutdown().await;
}
