//! Plain DataFusion over tables in memory: what Aubade's answers are compared with.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use aubade_engine::{Engine, IngestMode, IngestTarget, Session};
use aubade_environment::{Clock, SystemClock};
use aubade_planner::rewrite::UnorderedGroupingSets;
use aubade_planner::session::sound;
use aubade_proto::{Error, panic_text};
use datafusion::datasource::MemTable;
use datafusion::error::DataFusionError;
use datafusion::execution::SessionStateBuilder;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::physical_plan::collect;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::{FutureExt, TryStreamExt, stream};

/// A query that takes longer hangs.
pub const QUERY_TIME_MAX: Duration = Duration::from_secs(120);

/// DataFusion with no storage node and no rule of ours but those that mend its mistakes.
pub struct Plain {
    pub context: SessionContext,
}

impl Plain {
    pub fn new(partitions: usize) -> Self {
        let mut config = SessionConfig::new().with_information_schema(true).with_target_partitions(partitions);
        // Panics where a group key is NaN.
        config.options_mut().optimizer.enable_topk_aggregation = false;
        let mut rules = PhysicalOptimizer::new().rules;
        // Without it, orders over grouping sets lose columns.
        rules.insert(0, Arc::new(UnorderedGroupingSets));
        let state = sound(SessionStateBuilder::new().with_config(config));
        Self { context: SessionContext::new_with_state(state.with_physical_optimizer_rules(rules).build()) }
    }

    /// A table of these partitions.
    pub fn register(&self, name: &str, schema: &SchemaRef, partitions: Vec<Vec<RecordBatch>>) {
        let table = MemTable::try_new(Arc::clone(schema), partitions).unwrap();
        self.context.register_table(name, Arc::new(table)).unwrap();
    }

    pub async fn run(&self, sql: &str) -> Result<Vec<RecordBatch>, DataFusionError> {
        let query = async {
            let frame = self.context.sql(sql).await?;
            // The schema of the rows: DataFusion's logical plans give some decimals another precision.
            let context = Arc::new(frame.task_ctx());
            let plan = frame.create_physical_plan().await?;
            with_schema(&plan.schema(), collect(plan, context).await?)
        };
        let panicked = |panic: Box<dyn Any + Send>| Err(DataFusionError::Internal(panic_text(panic.as_ref())));
        AssertUnwindSafe(query).catch_unwind().await.unwrap_or_else(panicked)
    }
}

/// An empty result has a schema too.
fn with_schema(schema: &SchemaRef, mut batches: Vec<RecordBatch>) -> Result<Vec<RecordBatch>, DataFusionError> {
    if batches.is_empty() {
        batches.push(RecordBatch::new_empty(Arc::clone(schema)));
    }
    Ok(batches)
}

/// Runs one statement in a session to its end; fails the test where it hangs.
pub async fn run_in(session: &Session, sql: &str) -> Result<Vec<RecordBatch>, Error> {
    let query = async {
        let output = session.execute(sql).await?;
        let batches: Vec<RecordBatch> = output.stream.try_collect().await.map_err(Error::from_datafusion)?;
        with_schema(&output.schema, batches).map_err(Error::from_datafusion)
    };
    let clock: &dyn Clock = &SystemClock::default();
    let done = aubade_environment::clock::timeout(clock, QUERY_TIME_MAX, query).await;
    done.unwrap_or_else(|| panic!("no end after {QUERY_TIME_MAX:?}: {sql}"))
}

/// Loads a table in place of the one that had its name: one segment for each batch.
pub async fn load(engine: &Engine, name: &str, schema: &SchemaRef, segments: &[RecordBatch]) {
    let first = segments.first().cloned().into_iter().collect();
    ingest(engine, name, schema, IngestMode::Replace, first).await;
    append(engine, name, schema, segments.get(1..).unwrap_or_default()).await;
}

/// Adds to a table: one segment for each batch.
pub async fn append(engine: &Engine, name: &str, schema: &SchemaRef, segments: &[RecordBatch]) {
    for segment in segments {
        ingest(engine, name, schema, IngestMode::Append, vec![segment.clone()]).await;
    }
}

async fn ingest(engine: &Engine, name: &str, schema: &SchemaRef, mode: IngestMode, batches: Vec<RecordBatch>) {
    let target = IngestTarget { schema: None, table: name.to_owned(), mode };
    let batches = stream::iter(batches.into_iter().map(Ok));
    let rows = RecordBatchStreamAdapter::new(Arc::clone(schema), batches);
    engine.session().ingest(target, Box::pin(rows)).await.unwrap();
}
