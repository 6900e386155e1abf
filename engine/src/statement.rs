//! Statements: parsing, and what each kind does.

mod buffers;
pub(crate) mod conform;
mod drop;
mod external;
mod kept;
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

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use arrow::datatypes::{Schema, SchemaRef};
use aubade_catalog::Snapshot;
use aubade_environment::Deadline;
use aubade_planner::{KeptPlan, bind_snapshot, improve_error};
use aubade_proto::{Error, Result};
use datafusion::common::tree_node::TreeNode;
use datafusion::error::DataFusionError;
use datafusion::execution::{SessionState, TaskContext};
use datafusion::logical_expr::{LogicalPlan, Statement as PlanStatement};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::sql::parser::Statement as Ast;
use datafusion::sql::sqlparser::ast::{DiscardObject, Statement as SqlAst};

pub(crate) use kept::run as run_kept;
pub(crate) use named::NamedStatement;
use parse::Body;
pub(crate) use parse::Statement;

use crate::engine::Engine;
use crate::file_policy::with_url_tables;
use crate::plan_cache::Lookup;
use crate::query::{QueryDeadline, QueryRun, one_batch};
use crate::session::{Basis, Parameters, Prepared, QueryOutput, Session, Template, describe_parameters, no_run};

/// What a statement is planned and run with: one snapshot, and the session's settings.
pub(crate) struct StatementContext {
    session: Session,
    snapshot: Arc<Snapshot>,
    template: Arc<Template>,
    /// The template bound to the snapshot. Made when it is first asked for: a query whose plan is kept needs none.
    state: OnceLock<SessionState>,
    /// By what the plan of the statement is found, if it is kept.
    lookup: Option<Lookup>,
    /// `None` where a statement is only looked at.
    run: Option<Arc<QueryRun>>,
}

impl StatementContext {
    pub(crate) fn new(
        session: Session,
        snapshot: Arc<Snapshot>,
        template: Arc<Template>,
        run: Option<Arc<QueryRun>>,
    ) -> Self {
        Self { session, snapshot, template, state: OnceLock::new(), lookup: None, run }
    }

    pub(crate) fn state(&self) -> &SessionState {
        self.state.get_or_init(|| {
            let (engine, template) = (self.engine(), &self.template.state);
            let mut state = bind_snapshot(template, Arc::clone(&self.snapshot), engine.access());
            with_url_tables(&mut state, template.clone(), engine.options().file_access.clone());
            if let Some(deadline) = self.deadline() {
                state.config_mut().set_extension(Arc::new(QueryDeadline(deadline)));
            }
            state.mark_start_execution();
            state
        })
    }

    fn deadline(&self) -> Option<Deadline> {
        self.run.as_ref().and_then(|run| run.deadline())
    }

    /// What operators run with. They look up no function by its name.
    fn task_context(&self) -> Arc<TaskContext> {
        let state = &self.template.state;
        let mut config = state.config().clone();
        if let Some(deadline) = self.deadline() {
            config.set_extension(Arc::new(QueryDeadline(deadline)));
        }
        let (session, runtime) = (self.session.id().to_string(), Arc::clone(state.runtime_env()));
        let no_functions = (HashMap::new(), HashMap::new(), HashMap::new(), HashMap::new());
        let (scalar, higher_order, aggregate, window) = no_functions;
        Arc::new(TaskContext::new(None, session, config, scalar, higher_order, aggregate, window, runtime))
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

    /// What the columns of a statement depend on that is planned here.
    pub(crate) fn basis(&self) -> Basis {
        self.template.basis(&self.snapshot)
    }

    fn run(&self) -> Result<&Arc<QueryRun>> {
        self.run.as_ref().ok_or_else(no_run)
    }

    /// Words an error of DataFusion for people.
    fn improve(&self, error: DataFusionError) -> Error {
        improve_error(&self.snapshot, error)
    }

    async fn plan(&self, ast: Ast) -> Result<LogicalPlan> {
        self.state().statement_to_plan(ast).await.map_err(|error| self.improve(error))
    }

    async fn physical_plan(&self, plan: &LogicalPlan) -> Result<Arc<dyn ExecutionPlan>> {
        let plan = self.state().create_physical_plan(plan).await.map_err(|error| self.improve(error))?;
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
    let ast = match statement.body {
        Body::Sql(ast) => ast,
        Body::Buffers(statement) => return buffers::run(&context, statement).await,
    };
    unsupported::check(&ast)?;
    match ast {
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
            SqlAst::Discard { object_type: DiscardObject::PLANS } => kept::discard(&context),
            SqlAst::Discard { object_type: DiscardObject::ALL } => {
                buffers::discard_all(&context).await;
                kept::discard(&context)
            }
            SqlAst::Discard { object_type } => Err(kept::cannot_discard(&object_type.to_string())),
            ast @ SqlAst::Execute { .. } => named::run(context, ast).await,
            ast => run_ast(&context, Ast::Statement(Box::new(ast)), &parameters).await,
        },
        ast => run_ast(&context, ast, &parameters).await,
    }
}

async fn run_ast(context: &StatementContext, ast: Ast, parameters: &Parameters) -> Result<QueryOutput> {
    // Only what is short has a plan that is kept.
    let kept = context.lookup.is_some().then(|| ast.clone());
    let plan = context.plan(ast).await?;
    if let Some(ast) = kept
        && let Some(output) = kept::run_first(context, ast, &plan, parameters).await?
    {
        return Ok(output);
    }
    run_plan(context, parameters.bind(plan)?).await
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
    if let Body::Sql(ast) = &statement.body {
        unsupported::check(ast)?;
    }
    let plan = match statement.body {
        Body::Buffers(_) | Body::Sql(Ast::CreateExternalTable(_)) => None,
        Body::Sql(Ast::Statement(ast)) => match *ast {
            // Their names need not resolve before they run, or resolve to what they make.
            SqlAst::CreateView(_)
            | SqlAst::CreateSchema { .. }
            | SqlAst::Drop { .. }
            | SqlAst::Prepare { .. }
            | SqlAst::Deallocate { .. }
            | SqlAst::Discard { .. } => None,
            ast @ SqlAst::Execute { .. } => Some(named::plan(context, ast).await?),
            ast => Some(context.plan(Ast::Statement(Box::new(ast))).await?),
        },
        Body::Sql(ast) => Some(context.plan(ast).await?),
    };
    let (empty, basis): (SchemaRef, _) = (Arc::new(Schema::empty()), context.basis());
    let Some(plan) = plan else {
        return Ok(Prepared { sql, schema: Arc::clone(&empty), parameters: empty, is_query: false, basis });
    };
    let is_kept = KeptPlan::is_keepable(&plan).map_err(|error| context.improve(error))?;
    let parameters = describe_parameters(&plan)?;
    let (schema, is_query) = match &plan {
        LogicalPlan::Statement(_) | LogicalPlan::Ddl(_) => (empty, false),
        LogicalPlan::Dml(_) | LogicalPlan::Copy(_) => (Arc::clone(plan.schema().inner()), false),
        plan => {
            let is_query = !carries_out_a_change(plan).map_err(|error| context.improve(error))?;
            (query::result_schema(context, plan, parameters.fields().is_empty())?, is_query)
        }
    };
    let prepared = Prepared { sql, schema, parameters, is_query, basis };
    if is_kept {
        context.keep_description(&prepared);
    }
    Ok(prepared)
}

/// Whether a plan is an EXPLAIN ANALYZE of a statement that changes something.
fn carries_out_a_change(plan: &LogicalPlan) -> Result<bool, DataFusionError> {
    let LogicalPlan::Analyze(analyze) = plan else { return Ok(false) };
    analyze.input.exists(|node| {
        Ok(matches!(node, LogicalPlan::Dml(_) | LogicalPlan::Copy(_) | LogicalPlan::Ddl(_) | LogicalPlan::Statement(_)))
    })
}

#[cfg(test)]
pub(crate) mod tests;
