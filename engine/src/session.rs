//! Sessions: one per connection or shell. A session keeps settings and prepared statements; every
//! statement reads one snapshot from its start to its end.

mod ingest;
mod parameters;
mod split;
mod template;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use aubade_environment::clock::timeout;
use aubade_proto::{Error, Result};
use datafusion::execution::{SendableRecordBatchStream, SessionState};
use futures::FutureExt;
use parking_lot::{Mutex, RwLock};
use uuid::Uuid;

pub(crate) use parameters::{PARAMETERS_MAX, Parameters, describe as describe_parameters};
pub(crate) use split::LineOffsets;
pub(crate) use template::{Basis, Settings, Template};

pub use ingest::{IngestMode, IngestTarget};
pub use split::split_statements;

use crate::engine::Engine;
use crate::query::{QueryRun, deadline_exceeded, run_on};
use crate::statement::{self, NamedStatement, Statement, StatementContext};

/// A session. Cheap to clone: all clones are the same session.
#[derive(Clone)]
pub struct Session(Arc<Inner>);

struct Inner {
    id: Uuid,
    engine: Engine,
    /// Replaced as a whole when a setting changes.
    template: RwLock<Arc<Template>>,
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
    /// For which catalog and settings all this was found.
    pub(crate) basis: Basis,
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
        let (id, template) = (engine.environment().new_uuid(), engine.template());
        Self(Arc::new(Inner { id, engine, template: RwLock::new(template), named: Mutex::default() }))
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
            let mut context = session.bind(None).await?;
            describe(&mut context, text).boxed().await
        })
        .await
    }

    /// Whether a statement is still what it was when it was prepared. It is asked before each run, and so only
    /// compares.
    ///
    /// # Errors
    /// Those of [`Engine::snapshot`].
    pub(crate) async fn is_current(&self, prepared: &Prepared) -> Result<bool> {
        Ok(prepared.basis == self.template().basis(&*self.0.engine.snapshot().await?))
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
            run_text(context, &text, parameters).boxed().await
        })
        .await
    }

    /// Runs a prepared statement, and tells what its columns are in the very catalog that it runs on: those that it was
    /// prepared with, unless the catalog or the settings are others now. They are of no meaning where it is no query.
    ///
    /// # Errors
    /// As [`Session::execute_with`].
    pub(crate) async fn execute_told(
        &self,
        prepared: &Arc<Prepared>,
        parameters: Option<RecordBatch>,
        options: ExecuteOptions,
    ) -> Result<(QueryOutput, SchemaRef)> {
        let (session, then) = (self.clone(), Arc::clone(prepared));
        self.supervise(&prepared.sql, options, move |run| async move {
            let mut context = session.bind(Some(run)).boxed().await?;
            let mut columns = Arc::clone(&then.schema);
            if then.is_query && then.basis != context.basis() {
                columns = describe(&mut context, then.sql.clone()).boxed().await?.schema;
            }
            Ok((run_text(context, &then.sql, parameters).boxed().await?, columns))
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
        let snapshot = self.0.engine.snapshot().await?;
        Ok(StatementContext::new(self.clone(), snapshot, self.template(), run))
    }

    /// The schema of names that have none, as the session has set it.
    pub fn default_schema(&self) -> String {
        self.template().state.config().options().catalog.default_schema.clone()
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.0.engine
    }

    pub(crate) fn template(&self) -> Arc<Template> {
        Arc::clone(&self.0.template.read())
    }

    pub(crate) fn set_template(&self, state: SessionState) {
        *self.0.template.write() = Arc::new(Template::new(state));
    }

    pub(crate) fn named(&self) -> &Mutex<BTreeMap<String, NamedStatement>> {
        &self.0.named
    }
}

/// What a statement is.
async fn describe(context: &mut StatementContext, text: String) -> Result<Prepared> {
    context.look_up(&text, &Parameters::default());
    if let Some(described) = context.described(&text) {
        return Ok(described);
    }
    let statement = Statement::parse(&text, context.state())?;
    statement::describe(context, statement, text).boxed().await
}

/// Runs a statement up to its first row; a statement that writes, to its end.
async fn run_text(mut context: StatementContext, text: &str, parameters: Option<RecordBatch>) -> Result<QueryOutput> {
    let parameters = Parameters::from_batch(parameters)?;
    context.look_up(text, &parameters);
    if let Some(output) = statement::run_kept(&context).boxed().await? {
        return Ok(output);
    }
    let statement = Statement::parse(text, context.state())?;
    statement::run(context, statement, parameters).boxed().await
}

/// The error of an internal state that a session cannot be in.
pub(crate) fn no_run() -> Error {
    Error::internal("a statement is run without a query record")
}
