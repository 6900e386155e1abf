//! The log, the stream and the supervision of tasks.

use arrow::datatypes::{DataType, Field, Schema};
use arrow::record_batch::RecordBatch;
use aubade_proto::ErrorCode;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{StreamExt, TryStreamExt};
use tokio::runtime::Handle;

use super::*;

fn begin(log: &QueryLog, sql: &str) -> Arc<QueryRun> {
    let environment = Environment::system();
    Arc::new(QueryRun::begin(&environment, log, environment.new_uuid(), sql, None))
}

fn empty_batch() -> RecordBatch {
    RecordBatch::new_empty(Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, true)])))
}

#[test]
fn the_log_keeps_the_newest() {
    let log = QueryLog::new(2);
    let runs: Vec<_> = ["a", "b", "c"].map(|sql| begin(&log, sql)).into();
    let kept: Vec<_> = log.recent().into_iter().map(|record| record.sql).collect();
    assert_eq!(kept, ["c", "b"]);
    assert!(log.get(runs[0].id()).is_none());
    runs[0].finish();
    runs[2].finish();
    assert_eq!(log.get(runs[2].id()).unwrap().state, QueryState::Finished);
}

#[test]
fn a_run_ends_once_and_a_forgotten_one_is_cancelled() {
    let log = QueryLog::default();
    let (failed, forgotten) = (begin(&log, "a"), begin(&log, "b"));
    failed.fail(&Error::internal("x"));
    failed.finish();
    assert_eq!(log.get(failed.id()).unwrap().state, QueryState::Failed);
    let id = forgotten.id();
    drop(forgotten);
    assert_eq!(log.get(id).unwrap().state, QueryState::Cancelled);
}

#[test]
fn a_long_text_is_cut_between_characters() {
    let log = QueryLog::default();
    let run = begin(&log, &"€".repeat(RECORD_SQL_BYTES_MAX));
    let sql = log.get(run.id()).unwrap().sql;
    assert!(sql.len() <= RECORD_SQL_BYTES_MAX && sql.len() > RECORD_SQL_BYTES_MAX - 4);
}

#[test]
fn a_record_survives_json() {
    let log = QueryLog::default();
    let record = log.get(begin(&log, "select 1").id());
    drop(record);
    let record = log.recent().remove(0);
    let text = serde_json::to_string(&record).unwrap();
    assert!(text.contains("\"state\":\"cancelled\""), "{text}");
    assert_eq!(serde_json::from_str::<QueryRecord>(&text).unwrap(), record);
}

async fn broken() -> aubade_proto::Result<()> {
    panic!("broken rule {}", 7)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_becomes_an_error() {
    let error = run_on(&Handle::current(), broken()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Internal);
    assert!(error.message().contains("broken rule 7"));
    let log = QueryLog::default();
    let run = begin(&log, "x");
    let batch = empty_batch();
    let panicking = futures::stream::iter(0..2)
        .map(move |step| if step == 0 { Ok(empty_batch()) } else { panic!("in the stream") });
    let source = Box::pin(RecordBatchStreamAdapter::new(batch.schema(), panicking));
    let mut stream = query_stream(&Handle::current(), source, Arc::clone(&run));
    assert!(stream.try_next().await.unwrap().is_some());
    assert!(stream.try_next().await.unwrap_err().to_string().contains("in the stream"));
    assert!(stream.next().await.is_none());
    assert_eq!(log.get(run.id()).unwrap().state, QueryState::Failed);
}

#[test]
fn a_stream_whose_runtime_goes_away_does_not_look_complete() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let log = QueryLog::default();
    let batch = empty_batch();
    let endless = futures::stream::pending();
    let source = Box::pin(RecordBatchStreamAdapter::new(batch.schema(), endless));
    let mut stream = query_stream(runtime.handle(), source, begin(&log, "x"));
    runtime.shutdown_background();
    let reader = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let error = reader.block_on(stream.try_next()).unwrap_err();
    assert_eq!(Error::from_datafusion(error).code(), ErrorCode::ShuttingDown);
}
