//! Where SQL runs: at a coordinator over Flight SQL, or in an engine inside this process. Commands
//! are written once, against [`Target`].

mod embedded;
mod remote;

use std::path::PathBuf;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use aubade_engine::query::QueryState;
use aubade_engine::{ClusterStatus, EngineOptions, FileAccess, QueryRecord};
use aubade_environment::Environment;
use aubade_proto::{Error, ErrorCode, Result};
use futures::stream::BoxStream;
use uuid::Uuid;

use crate::machine::{CacheArguments, memory_limit_bytes};
use crate::size::ByteSize;
use embedded::Embedded;
use remote::Remote;

/// Times that the record of a query is asked for: it is written when the server has let go of the
/// query's stream, which can be a moment after the last batch arrived here.
const RECORD_TRIES_MAX: u32 = 5;
const RECORD_PAUSE: Duration = Duration::from_millis(10);

/// Options that say where SQL runs.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct TargetArgs {
    /// The coordinator's Flight SQL address, like grpc://127.0.0.1:7000
    #[arg(long, conflicts_with_all = ["data_dir", "CacheArguments"])]
    pub(crate) url: Option<String>,

    /// Run embedded, with the tables of an embedded one-node cluster in this folder (made if absent)
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,

    /// Memory for queries when running embedded, like 8GiB; beyond it they spill to disk [default: 4GiB]
    #[arg(long, value_name = "SIZE", conflicts_with = "url")]
    pub(crate) memory_limit: Option<ByteSize>,

    #[command(flatten)]
    pub(crate) caches: CacheArguments,
}

impl TargetArgs {
    /// Opens the target; without `--url` and `--data-dir` an embedded engine in memory.
    pub(crate) async fn open(&self, environment: &Environment) -> Result<Target> {
        if let Some(url) = &self.url {
            return Target::remote(environment, url);
        }
        let options = EngineOptions {
            memory_limit_bytes: memory_limit_bytes(self.memory_limit)?,
            file_access: FileAccess::Any,
            ..self.caches.set_in(EngineOptions::default())?
        };
        Ok(Target::Embedded(Embedded::open(environment, self.data_dir.as_deref(), options).await?))
    }

    /// As [`TargetArgs::open`], for commands whose effect must outlive the process.
    pub(crate) async fn open_durable(&self, environment: &Environment) -> Result<Target> {
        if self.url.is_none() && self.data_dir.is_none() {
            return Err(Error::new(ErrorCode::InvalidArgument, "it is not said where to: give --url or --data-dir")
                .hint(
                    "--url grpc://127.0.0.1:7000 for a coordinator, --data-dir DIR for an embedded cluster in a folder",
                ));
        }
        self.open(environment).await
    }
}

/// A statement that has been started. Dropping it cancels it.
pub(crate) struct RunningQuery {
    /// Its id, for [`Target::record`].
    pub(crate) id: Option<Uuid>,
    /// The columns of its result; none for statements that have no result.
    pub(crate) schema: SchemaRef,
    /// Its result.
    pub(crate) stream: BoxStream<'static, Result<RecordBatch>>,
}

/// What to do where the table of a bulk load exists, or does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LoadMode {
    /// Make it; it must not exist.
    Create,
    /// Make it if it does not exist, add to it if it does.
    CreateOrAppend,
    /// Drop it if it exists, and make it.
    Replace,
}

/// Where a bulk load goes.
#[derive(Clone, Debug)]
pub(crate) struct LoadTarget {
    /// The schema; the session's when absent.
    pub(crate) schema: Option<String>,
    /// The table.
    pub(crate) table: String,
    /// Whether to make it.
    pub(crate) mode: LoadMode,
}

/// See the module's doc.
#[derive(Debug)]
pub(crate) enum Target {
    /// A coordinator.
    Remote(Box<Remote>),
    /// An engine in this process.
    Embedded(Embedded),
}

impl Target {
    /// The coordinator at a Flight SQL URL.
    pub(crate) fn remote(environment: &Environment, url: &str) -> Result<Self> {
        Ok(Self::Remote(Box::new(Remote::open(environment, url)?)))
    }

    /// Starts one statement.
    pub(crate) async fn run(&self, sql: &str) -> Result<RunningQuery> {
        match self {
            Self::Remote(remote) => remote.run(sql).await,
            Self::Embedded(embedded) => embedded.run(sql).await,
        }
    }

    /// Runs one statement to its end and returns its result.
    pub(crate) async fn collect(&self, sql: &str) -> Result<(Option<Uuid>, Vec<RecordBatch>)> {
        let query = self.run(sql).await?;
        Ok((query.id, futures::TryStreamExt::try_collect(query.stream).await?))
    }

    /// The record of a query whose stream has ended or was dropped; `None` when it is not kept.
    pub(crate) async fn record(&self, environment: &Environment, id: Uuid) -> Option<QueryRecord> {
        let mut last = None;
        for _ in 0..RECORD_TRIES_MAX {
            let found = match self {
                Self::Remote(remote) => remote.record(id).await,
                Self::Embedded(embedded) => embedded.record(id),
            };
            match found {
                Some(record) if record.state != QueryState::Running => return Some(record),
                found => last = found,
            }
            environment.clock.sleep(RECORD_PAUSE).await;
        }
        last
    }

    /// Loads a stream into a table as one commit; returns its rows. When the stream fails, nothing
    /// is committed.
    pub(crate) async fn load(
        &self,
        target: &LoadTarget,
        schema: SchemaRef,
        stream: BoxStream<'static, Result<RecordBatch>>,
    ) -> Result<u64> {
        match self {
            Self::Remote(remote) => remote.load(target, schema, stream).await,
            Self::Embedded(embedded) => embedded.load(target, schema, stream).await,
        }
    }

    /// The state of the cluster.
    pub(crate) async fn status(&self) -> Result<ClusterStatus> {
        match self {
            Self::Remote(remote) => remote.status().await,
            Self::Embedded(embedded) => embedded.status().await,
        }
    }

    /// Ends it; an embedded engine finishes what it has begun.
    pub(crate) async fn close(self) {
        match self {
            Self::Remote(_) => {}
            Self::Embedded(embedded) => embedded.close().await,
        }
    }
}
