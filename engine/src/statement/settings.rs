//! SET and RESET: settings of one session.

use aubade_planner::catalog::CATALOG;
use aubade_proto::{Error, ErrorCode, Result};
use datafusion::logical_expr::{LogicalPlan, SetVariable, Statement as PlanStatement};
use datafusion::prelude::SessionContext;

use super::StatementContext;
use crate::file_policy::FileAccess;
use crate::session::QueryOutput;

/// Settings that would reach past the session: memory and disk that all sessions share, and the
/// stack of the server's threads.
const SHARED: [&str; 2] = ["datafusion.runtime.", "datafusion.sql_parser.recursion_limit"];

/// Numbers that one session may not raise without bound, since each takes memory or tasks.
const BOUNDED: [(&str, u64); 6] = [
    ("datafusion.execution.target_partitions", 1_024),
    ("datafusion.execution.batch_size", 1 << 20),
    ("datafusion.execution.planning_concurrency", 1_024),
    ("datafusion.execution.meta_fetch_concurrency", 1_024),
    ("datafusion.execution.minimum_parallel_output_files", 1_024),
    ("datafusion.execution.max_buffered_batches_per_output_file", 1_024),
];

/// Settings that have to be as they are, with what happens otherwise in this release of DataFusion.
const FIXED: [(&str, &str); 2] = [
    ("datafusion.execution.max_spill_file_size_bytes", "exchanges that spill can wait for ever"),
    ("datafusion.optimizer.enable_topk_aggregation", "groups of NaN fail"),
];

/// Carries out a SET or RESET.
pub(super) async fn change(context: &StatementContext, plan: LogicalPlan) -> Result<QueryOutput> {
    let shared_server = context.engine().options().file_access != FileAccess::Any;
    match &plan {
        LogicalPlan::Statement(PlanStatement::SetVariable(set)) => {
            check(&set.variable, Some(&set.value), shared_server)?;
        }
        LogicalPlan::Statement(PlanStatement::ResetVariable(reset)) => check(&reset.variable, None, shared_server)?,
        _ => return Err(Error::internal("a setting is changed by a plan of another kind")),
    }
    let plan = match plan {
        // DataFusion has other defaults for some of its settings, and knows none of ours.
        LogicalPlan::Statement(PlanStatement::ResetVariable(reset)) => match default_of(context, &reset.variable) {
            Some(value) => {
                LogicalPlan::Statement(PlanStatement::SetVariable(SetVariable { variable: reset.variable, value }))
            }
            None => LogicalPlan::Statement(PlanStatement::ResetVariable(reset)),
        },
        plan => plan,
    };
    let template = context.session().template();
    // DataFusion's own code, on a copy: functions that depend on settings are made anew there too.
    let copy = SessionContext::new_with_state(template.state.as_ref().clone());
    copy.execute_logical_plan(plan).await.map_err(|error| context.improve(error))?;
    context.session().set_template(copy.state());
    context.done(0)
}

/// What sessions of this engine start with.
fn default_of(context: &StatementContext, variable: &str) -> Option<String> {
    let entries = context.engine().template().state.config().options().entries();
    let variable = variable.to_lowercase();
    entries.into_iter().find(|entry| entry.key == variable).and_then(|entry| entry.value)
}

fn check(variable: &str, value: Option<&str>, shared_server: bool) -> Result<()> {
    let variable = variable.to_lowercase();
    if shared_server && SHARED.iter().any(|shared| variable.starts_with(shared)) {
        let text = format!("'{variable}' concerns the whole server and a session may not change it");
        return Err(Error::new(ErrorCode::PermissionDenied, text)
            .hint("set it when the server starts, as with `serve --memory-limit`"));
    }
    let Some(value) = value else { return Ok(()) };
    if variable == "datafusion.catalog.default_catalog" && value != CATALOG {
        return Err(Error::new(ErrorCode::InvalidArgument, format!("there is no catalog '{value}'"))
            .hint(format!("the only catalog is '{CATALOG}'")));
    }
    if let Some((_, otherwise)) = FIXED.iter().find(|(name, _)| *name == variable) {
        let text = format!("'{variable}' may not be changed: {otherwise}");
        return Err(Error::new(ErrorCode::NotSupported, text).hint("leave it as it is"));
    }
    let bound = BOUNDED.iter().find(|(name, _)| *name == variable).map(|(_, bound)| *bound);
    if let Some(bound) = bound
        && value.parse::<u64>().is_ok_and(|number| number > bound)
    {
        let text = format!("'{variable}' is at most {bound} and not {value}");
        return Err(Error::new(ErrorCode::InvalidArgument, text));
    }
    Ok(())
}
