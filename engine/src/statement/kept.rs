//! Queries whose plans are kept: [`crate::plan_cache`].

use std::sync::Arc;
use std::time::Duration;

use aubade_planner::pipeline::finish_plan;
use aubade_planner::{KeptPlan, Opaque, PlanTemplate, plan_cache_enabled};
use aubade_proto::{Error, Result};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::ExecutionPlan;
use futures::FutureExt;

use super::{StatementContext, query};
use crate::plan_cache::{Entry, Lease, PlanKey};
use crate::session::{Parameters, Prepared, QueryOutput};

impl StatementContext {
    /// Finds out under which key the plan of a statement is kept, if it is.
    pub(crate) fn look_up(&mut self, sql: &str, parameters: &Parameters) {
        if plan_cache_enabled(self.template.state.config().options()) {
            self.key = PlanKey::new(sql, parameters, &self.template, self.snapshot.schema_version);
        }
    }

    /// What the statement is, if that was found out before.
    pub(crate) fn described(&self, sql: &str) -> Option<Prepared> {
        let prepared = self.engine().plans().description(self.key.as_ref()?)?;
        Some(Prepared { sql: sql.to_owned(), ..prepared })
    }

    fn now(&self) -> Duration {
        self.engine().environment().clock.now()
    }

    /// The physical plan before operators are linked, and the same as a template where that can be had.
    async fn first_stage(&self, plan: &LogicalPlan) -> Result<(Arc<dyn ExecutionPlan>, Option<PlanTemplate>)> {
        let tables = KeptPlan::tables_of(plan).map_err(|error| self.improve(error))?;
        let state = self.template.first_stage.as_ref();
        let plan = state.query_planner().create_physical_plan(plan, state).boxed().await;
        let plan = plan.map_err(|error| self.improve(error))?;
        let template = PlanTemplate::try_new(&plan, tables).map_err(|error| self.improve(error))?;
        Ok((plan, template))
    }
}

/// Runs a query whose plan is kept; `None` where it has to be planned from its text.
pub(crate) async fn run(context: &StatementContext) -> Result<Option<QueryOutput>> {
    let Some(key) = &context.key else { return Ok(None) };
    let Some(entry) = context.engine().plans().get(key) else { return Ok(None) };
    let started = context.now();
    let (snapshot, access) = (context.snapshot(), context.engine().access());
    let config = context.template.state.config().options();
    let failed = |error: DataFusionError| context.improve(error);
    let copied =
        entry.template(snapshot).and_then(|(template, lease)| match template.instantiate(snapshot, &access, config) {
            Ok(plan) => Some((plan, lease)),
            Err(error) => {
                tracing::warn!(%error, "a kept plan cannot be copied; planning it again");
                entry.forget_template(&template);
                None
            }
        });
    let (plan, lease, from_template) = match copied {
        Some((plan, lease)) => (plan, lease, true),
        None => {
            let Some(plan) = entry.plan().over(snapshot, &access).map_err(failed)? else {
                context.engine().plans().remove(key);
                return Ok(None);
            };
            let plan = Opaque::new(plan);
            let (plan, lease) = plan_physically(context, &entry, &plan).boxed().await?;
            (plan, lease, false)
        }
    };
    entry.count_hit(from_template, context.now().saturating_sub(started));
    let run = context.run()?;
    run.plan_cache_hit();
    run.hold(lease);
    run.planned(&plan);
    query::start(context, plan).map(Some)
}

/// Plans a query for the first time, keeps its plan, and runs it; `None` where its plan cannot be kept.
pub(super) async fn run_first(
    context: &StatementContext,
    plan: &LogicalPlan,
    parameters: &Parameters,
) -> Result<Option<QueryOutput>> {
    let failed = |error: DataFusionError| context.improve(error);
    let Some(key) = &context.key else { return Ok(None) };
    if !KeptPlan::is_keepable(plan).map_err(failed)? {
        return Ok(None);
    }
    let bound = parameters.bind(plan.clone())?;
    let optimized = Opaque::new(context.state().optimize(&bound).map_err(failed)?);
    let kept = Opaque::new(KeptPlan::new(optimized.as_ref().clone()).map_err(failed)?);
    let run = context.run()?;
    let entry = context.engine().plans().add(key.clone(), run.sql(), kept);
    let (plan, lease) = plan_physically(context, &entry, &optimized).boxed().await?;
    entry.planned_in(run.elapsed());
    run.hold(lease);
    run.planned(&plan);
    query::start(context, plan).map(Some)
}

/// The physical plan of an optimised logical one, ready to run; its template is kept.
async fn plan_physically(
    context: &StatementContext,
    entry: &Arc<Entry>,
    plan: &LogicalPlan,
) -> Result<(Arc<dyn ExecutionPlan>, Option<Lease>)> {
    let (plan, template) = context.first_stage(plan).await?;
    let config = context.template.state.config().options();
    let lease = template.and_then(|template| entry.set_template(template));
    let plan = finish_plan(plan, config).map_err(|error| context.improve(error))?;
    Ok((plan, lease))
}

/// DISCARD PLANS.
pub(super) fn discard(context: &StatementContext) -> Result<QueryOutput> {
    context.engine().plans().clear();
    context.done(0)
}

/// The error of a DISCARD of anything else.
pub(super) fn cannot_discard(what: &str) -> Error {
    super::unsupported::error(&format!("DISCARD {what}")).hint("DISCARD PLANS forgets the plans that are kept")
}
