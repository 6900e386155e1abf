//! SQL in an engine inside this process.

use std::path::Path;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use aubade_engine::{ClusterStatus, Engine, EngineOptions, IngestMode, IngestTarget, QueryRecord, Session};
use aubade_environment::Environment;
use aubade_proto::{Error, Result};
use datafusion::error::DataFusionError;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use uuid::Uuid;

use super::{LoadMode, LoadTarget, RunningQuery};

/// An engine and one session on it.
#[derive(Debug)]
pub(crate) struct Embedded {
    engine: Engine,
    session: Session,
}

impl Embedded {
    /// Opens the folder, or a database in memory.
    pub(crate) async fn open(environment: &Environment, dir: Option<&Path>, options: EngineOptions) -> Result<Self> {
        let engine = match dir {
            Some(dir) => Engine::open_embedded(environment.clone(), dir, options).await?,
            None => Engine::open_in_memory(environment.clone(), options).await?,
        };
        let session = engine.session();
        Ok(Self { engine, session })
    }

    pub(crate) async fn run(&self, sql: &str) -> Result<RunningQuery> {
        let output = self.session.execute(sql).await?;
        Ok(RunningQuery {
            id: Some(output.query_id),
            schema: output.schema,
            stream: output.stream.map_err(Error::from_datafusion).boxed(),
        })
    }

    pub(crate) fn record(&self, id: Uuid) -> Option<QueryRecord> {
        self.engine.queries().get(id)
    }

    pub(crate) async fn load(
        &self,
        target: &LoadTarget,
        schema: SchemaRef,
        stream: BoxStream<'static, Result<RecordBatch>>,
    ) -> Result<u64> {
        let mode = match target.mode {
            LoadMode::Create => IngestMode::Create,
            LoadMode::CreateOrAppend => IngestMode::CreateAppend,
            LoadMode::Replace => IngestMode::Replace,
        };
        let target = IngestTarget { schema: target.schema.clone(), table: target.table.clone(), mode };
        let stream = RecordBatchStreamAdapter::new(schema, stream.map_err(DataFusionError::from));
        self.session.ingest(target, Box::pin(stream)).await
    }

    pub(crate) async fn status(&self) -> Result<ClusterStatus> {
        self.engine.status().await
    }

    pub(crate) async fn close(self) {
        self.engine.shutdown().await;
    }
}
