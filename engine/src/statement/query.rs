//! Statements that give rows and change nothing.

use arrow::datatypes::SchemaRef;
use aubade_proto::{Error, Result};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use std::sync::Arc;

use super::StatementContext;
use crate::query::query_stream;
use crate::session::QueryOutput;

/// Plans and starts a query.
pub(super) async fn run(context: &StatementContext, plan: LogicalPlan) -> Result<QueryOutput> {
    start(context, context.physical_plan(&plan).await?)
}

/// Starts a planned query; its record ends with its stream.
pub(super) fn start(context: &StatementContext, plan: Arc<dyn ExecutionPlan>) -> Result<QueryOutput> {
    let run = context.run()?;
    let rows = execute_stream(plan, context.task_context()).map_err(Error::from_datafusion)?;
    let stream = query_stream(&context.engine().cpu_handle(), rows, Arc::clone(run));
    Ok(QueryOutput { query_id: run.id(), schema: stream.schema(), stream, affected_rows: None })
}

/// The columns of a query's result. What the optimizer makes of a plan can have decimals of other digits than the plan as it
/// was written: `round(x, 1)` has those of the constant 1, once that is known to be one.
pub(super) fn result_schema(context: &StatementContext, plan: &LogicalPlan, complete: bool) -> Result<SchemaRef> {
    match context.state().optimize(plan) {
        Ok(plan) => Ok(Arc::clone(plan.schema().inner())),
        // The types of parameters may be missing for it; a real error shows when it runs.
        Err(_) if !complete => Ok(analyzed_schema(context, plan)),
        Err(error) => Err(context.improve(error)),
    }
}

fn analyzed_schema(context: &StatementContext, plan: &LogicalPlan) -> SchemaRef {
    let state = context.state();
    let analyzed = state.analyzer().execute_and_check(plan.clone(), state.config_options(), |_, _| {});
    Arc::clone(analyzed.as_ref().unwrap_or(plan).schema().inner())
}
