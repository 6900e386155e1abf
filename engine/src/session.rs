//! Sessions: one per connection or shell. A session keeps settings and prepared statements; every
//! statement reads one snapshot from its start to its end.

mod ingest;
mod parameters;
mod split;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use aubade_environment::clock::timeout;
use aubade_planner::{Opaque, PlannerOptions, bind_snapshot, session_config, session_state};
use aubade_proto::{Error, Result};
use datafusion::execution::{SendableRecordBatchStream, SessionState};
use futures::FutureExt;
use parking_lot::{Mutex, RwLock};
use uuid::Uuid;

pub(crate) use parameters::{PARAMETERS_MAX, Parameters, describe as describe_parameters};
pub(crate) use split::LineOffsets;

pub use ingest::{IngestMode, IngestTarget};
pub use split::split_statements;

use crate::engine::Engine;
use crate::file_policy::with_url_tables;
use crate::query::{QueryDeadline, QueryRun, deadline_exceeded, run_on};
use crate::statement::{self, NamedStatement, Statement, StatementContext};

/// A session. Cheap to clone: all clones are the same session.
#[derive(Clone)]
pub struct Session(Arc<Inner>);

struct Inner {
    id: Uuid,
    engine: Engine,
    /// Functions, rules and settings, without tables. Replaced as a whole when a setting changes.
    template: RwLock<Opaque<SessionState>>,
    /// What PREPARE made, by name. Kept as statements, not plans: each run plans for its snapshot.
    named: Mutex<BTreeMap<String, NamedStatement>>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("id", &self.0.id).finish_non_exhaustive()
    }
}

/// A statement that parses and plans.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// Its text.
    pub sql: String,
    /// The columns of its result, as far as they do not depend on the types of parameters.
    pub schema: SchemaRef,
    /// Its parameters in order, named `$1`, `$2`, ...; of type Null where the statement leaves it open.
    pub parameters: SchemaRef,
    /// Whether it gives rows and changes nothing.
    pub is_query: bool,
}

/// What a statement gave.
pub struct QueryOutput {
    /// Names its [`crate::QueryRecord`].
    pub query_id: Uuid,
    /// The columns of the stream.
    pub schema: SchemaRef,
    /// The result. A statement that writes has been carried out by now; its stream is one row with
    /// the number of rows written, or empty.
    pub stream: SendableRecordBatchStream,
    /// `None` for a query; rows written otherwise, 0 where a statement writes no rows.
    pub affected_rows: Option<u64>,
}

impl fmt::Debug for QueryOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueryOutput")
            .field("query_id", &self.query_id)
            .field("schema", &self.schema)
            .field("affected_rows", &self.affected_rows)
            .finish_non_exhaustive()
    }
}

/// How to run one statement.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExecuteOptions {
    /// The statement, with the reading of its result, has to end within this time; `None`: no limit.
    pub timeout: Option<Duration>,
}

impl Session {
    pub(crate) fn new(engine: Engine) -> Self {
        let options = PlannerOptions { target_partitions: engine.options().target_partitions, ..Default::default() };
        let mut config = session_config(&options);
        // Every sort sets memory aside for merging its spilled runs: all of them together must fit.
        let sorts = 4 * config.target_partitions();
        let merge_bytes = engine.options().memory_limit_bytes() / sorts.max(1);
        let execution = &mut config.options_mut().execution;
        execution.sort_spill_reservation_bytes = execution.sort_spill_reservation_bytes.min(merge_bytes);
        let template = session_state(config, Arc::clone(engine.runtime()));
        let id = engine.environment().new_uuid();
        Self(Arc::new(Inner { id, engine, template: RwLock::new(Opaque::new(template)), named: Mutex::default() }))
    }

    /// Names the session in query records.
    pub fn id(&self) -> Uuid {
        self.0.id
    }

    /// Parses and plans one statement, with no effect.
    ///
    /// # Errors
    /// `SqlSyntax`, `TableNotFound`, `ColumnNotFound`, `SqlPlan`, `NotSupported`, ...
    pub async fn prepare(&self, sql: &str) -> Result<Prepared> {
        let (session, text) = (self.clone(), sql.to_owned());
        run_on(&self.0.engine.cpu_handle(), async move {
            let context = session.bind(None).await?;
            let statement = Statement::parse(&text, context.state())?;
            statement::describe(&context, statement, text).boxed().await
        })
        .await
    }

    /// Runs exactly one statement.
    ///
    /// # Errors
    /// As [`Session::prepare`], and whatever the statement runs into before its first row.
    pub async fn execute(&self, sql: &str) -> Result<QueryOutput> {
        self.execute_with(sql, None, ExecuteOptions::default()).await
    }

    /// Runs a prepared statement on the newest snapshot. The columns of `parameters` are the values
    /// of `$1`, `$2`, ... in this order, and it has one row; an INSERT may have many rows of
    /// parameters and then writes the rows of all of them, or none.
    ///
    /// # Errors
    /// As [`Session::execute`]; `InvalidArgument` when the parameters do not fit.
    pub async fn execute_prepared(&self, prepared: &Prepared, parameters: Option<RecordBatch>) -> Result<QueryOutput> {
        self.execute_with(&prepared.sql, parameters, ExecuteOptions::default()).await
    }

    /// Runs exactly one statement, with parameters and a time limit.
    ///
    /// # Errors
    /// As [`Session::execute_prepared`]; `DeadlineExceeded`.
    pub async fn execute_with(
        &self,
        sql: &str,
        parameters: Option<RecordBatch>,
        options: ExecuteOptions,
    ) -> Result<QueryOutput> {
        let (session, text) = (self.clone(), sql.to_owned());
        self.supervise(sql, options, move |run| async move {
            let context = session.bind(Some(run)).boxed().await?;
            let statement = Statement::parse(&text, context.state())?;
            let parameters = Parameters::from_batch(parameters)?;
            statement::run(context, statement, parameters).boxed().await
        })
        .await
    }

    /// Runs work on the runtime of queries, as a query with a record and a deadline.
    async fn supervise<T, F, Work>(&self, sql: &str, options: ExecuteOptions, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(Arc<QueryRun>) -> Work + Send + 'static,
        Work: Future<Output = Result<T>> + Send + 'static,
    {
        let engine = &self.0.engine;
        let run = Arc::new(QueryRun::begin(engine.environment(), engine.queries(), self.0.id, sql, options.timeout));
        let task_run = Arc::clone(&run);
        let result = run_on(&engine.cpu_handle(), async move {
            // Boxed, like other large futures of this crate: nested in one another they make types that
            // the compiler takes minutes to lay out.
            let work = work(Arc::clone(&task_run)).boxed();
            match task_run.deadline() {
                None => work.await,
                Some(deadline) => {
                    let clock = task_run.clock().as_ref();
                    timeout(clock, deadline.remaining(clock), work).await.unwrap_or_else(|| Err(deadline_exceeded()))
                }
            }
        })
        .await;
        result.inspect_err(|error| run.fail(error))
    }

    /// Pins the newest snapshot and binds the session's settings to it.
    async fn bind(&self, run: Option<Arc<QueryRun>>) -> Result<StatementContext> {
        let engine = &self.0.engine;
        let snapshot = engine.snapshot().await?;
        let template = self.template();
        let mut state = bind_snapshot(&template, Arc::clone(&snapshot), engine.access());
        with_url_tables(&mut state, template, engine.options().file_access.clone());
        if let Some(deadline) = run.as_ref().and_then(|run| run.deadline()) {
            state.config_mut().set_extension(Arc::new(QueryDeadline(deadline)));
        }
        state.mark_start_execution();
        Ok(StatementContext::new(self.clone(), snapshot, state, run))
    }

    /// The schema of names that have none, as the session has set it.
    pub fn default_schema(&self) -> String {
        self.template().config().options().catalog.default_schema.clone()
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.0.engine
    }

    pub(crate) fn template(&self) -> Opaque<SessionState> {
        self.0.template.read().clone()
    }

    pub(crate) fn set_template(&self, template: SessionState) {
        *self.0.template.write() = Opaque::new(template);
    }

    pub(crate) fn named(&self) -> &Mutex<BTreeMap<String, NamedStatement>> {
        &self.0.named
    }
}

/// The error of an internal state that a session cannot be in.
pub(crate) fn no_run() -> Error {
    Error::internal("a statement is run without a query record")
}
