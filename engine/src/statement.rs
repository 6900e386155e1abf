//! Statements: parsing, and what each kind does.

pub(crate) mod conform;
mod drop;
mod external;
mod named;
pub(crate) mod names;
mod parse;
mod query;
mod schemas;
mod settings;
pub(crate) mod tables;
mod unsupported;
mod views;
mod write;

use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use aubade_catalog::Snapshot;
use aubade_planner::improve_error;
use aubade_proto::{Error, Result};
use datafusion::error::DataFusionError;
use datafusion::execution::SessionState;
use datafusion::logical_expr::{LogicalPlan, Statement as PlanStatement};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::sql::parser::Statement as Ast;
use datafusion::sql::sqlparser::ast::Statement as SqlAst;

pub(crate) use named::NamedStatement;
pub(crate) use parse::Statement;

use crate::engine::Engine;
use crate::query::{QueryRun, one_batch};
use crate::session::{Parameters, Prepared, QueryOutput, Session, describe_parameters, no_run};

/// What a statement is planned and run with: one snapshot, and the session's settings.
pub(crate) struct StatementContext {
    session: Session,
    snapshot: Arc<Snapshot>,
    state: SessionState,
    /// `None` where a statement is only looked at.
    run: Option<Arc<QueryRun>>,
}

impl StatementContext {
    pub(crate) fn new(
        session: Session,
        snapshot: Arc<Snapshot>,
        state: SessionState,
        run: Option<Arc<QueryRun>>,
    ) -> Self {
        Self { session, snapshot, state, run }
    }

    pub(crate) fn state(&self) -> &SessionState {
        &self.state
    }

    fn session(&self) -> &Session {
        &self.session
    }

    fn engine(&self) -> &Engine {
        self.session.engine()
    }

    fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    fn run(&self) -> Result<&Arc<QueryRun>> {
        self.run.as_ref().ok_or_else(no_run)
    }

    /// Words an error of DataFusion for people.
    fn improve(&self, error: DataFusionError) -> Error {
        improve_error(&self.snapshot, error)
    }

    async fn plan(&self, ast: Ast) -> Result<LogicalPlan> {
        self.state.statement_to_plan(ast).await.map_err(|error| self.improve(error))
    }

    async fn physical_plan(&self, plan: &LogicalPlan) -> Result<Arc<dyn ExecutionPlan>> {
        let plan = self.state.create_physical_plan(plan).await.map_err(|error| self.improve(error))?;
        self.run()?.planned(&plan);
        Ok(plan)
    }

    /// The output of a statement that has been carried out and gives no rows.
    fn done(&self, affected_rows: u64) -> Result<QueryOutput> {
        let run = self.run()?;
        run.add_rows(affected_rows);
        run.finish();
        let schema: SchemaRef = Arc::new(Schema::empty());
        let stream = one_batch(Arc::clone(&schema), Vec::new());
        Ok(QueryOutput { query_id: run.id(), schema, stream, affected_rows: Some(affected_rows) })
    }
}

/// Runs a statement up to its first row; a statement that writes, to its end.
pub(crate) async fn run(
    context: StatementContext,
    statement: Statement,
    parameters: Parameters,
) -> Result<QueryOutput> {
    unsupported::check(&statement.ast)?;
    match statement.ast {
        Ast::CreateExternalTable(create) => external::create(&context, create, &statement.text).await,
        Ast::Statement(ast) => match *ast {
            SqlAst::CreateTable(create) => tables::create(&context, create, &parameters).await,
            SqlAst::CreateView(create) => views::create(&context, create).await,
            SqlAst::CreateSchema { schema_name, if_not_exists, .. } => {
                schemas::create(&context, schema_name, if_not_exists).await
            }
            SqlAst::Drop { object_type, if_exists, names, cascade, .. } => {
                let what = drop::What { object_type, if_exists, cascade };
                drop::run(&context, &what, names).await
            }
            SqlAst::Prepare { name, data_types, statement } => {
                named::prepare(&context, SqlAst::Prepare { name, data_types, statement }).await
            }
            SqlAst::Deallocate { name, .. } => named::deallocate(&context, &name),
            ast @ SqlAst::Execute { .. } => {
                let plan = named::execute(&context, ast).await?;
                run_plan(&context, plan).await
            }
            ast => run_ast(&context, Ast::Statement(Box::new(ast)), &parameters).await,
        },
        ast => run_ast(&context, ast, &parameters).await,
    }
}

async fn run_ast(context: &StatementContext, ast: Ast, parameters: &Parameters) -> Result<QueryOutput> {
    let plan = parameters.bind(context.plan(ast).await?)?;
    run_plan(context, plan).await
}

async fn run_plan(context: &StatementContext, plan: LogicalPlan) -> Result<QueryOutput> {
    match plan {
        LogicalPlan::Statement(PlanStatement::SetVariable(_) | PlanStatement::ResetVariable(_)) => {
            settings::change(context, plan).await
        }
        LogicalPlan::Dml(_) | LogicalPlan::Copy(_) => write::run(context, plan).await,
        LogicalPlan::Ddl(ddl) => Err(unsupported::error(ddl.name())),
        LogicalPlan::Statement(statement) => Err(unsupported::error(statement.name())),
        plan => {
            write::check_explained(context, &plan)?;
            query::run(context, plan).await
        }
    }
}

/// Plans a statement without running it.
pub(crate) async fn describe(context: &StatementContext, statement: Statement, sql: String) -> Result<Prepared> {
    unsupported::check(&statement.ast)?;
    let plan = match statement.ast {
        Ast::CreateExternalTable(_) => None,
        Ast::Statement(ast) => match *ast {
            // Their names need not resolve before they run, or resolve to what they make.
            SqlAst::CreateView(_)
            | SqlAst::CreateSchema { .. }
            | SqlAst::Drop { .. }
            | SqlAst::Prepare { .. }
            | SqlAst::Deallocate { .. } => None,
            ast @ SqlAst::Execute { .. } => Some(named::execute(context, ast).await?),
            ast => Some(context.plan(Ast::Statement(Box::new(ast))).await?),
        },
        ast => Some(context.plan(ast).await?),
    };
    let empty: SchemaRef = Arc::new(Schema::empty());
    let Some(plan) = plan else {
        return Ok(Prepared { sql, schema: Arc::clone(&empty), parameters: empty, is_query: false });
    };
    let parameters = describe_parameters(&plan)?;
    let (schema, is_query) = match &plan {
        LogicalPlan::Statement(_) | LogicalPlan::Ddl(_) => (empty, false),
        LogicalPlan::Dml(_) | LogicalPlan::Copy(_) => (Arc::clone(plan.schema().inner()), false),
        plan => (query::result_schema(context, plan, parameters.fields().is_empty())?, true),
    };
    Ok(Prepared { sql, schema, parameters, is_query })
}

#[cfg(test)]
pub(crate) mod tests;
