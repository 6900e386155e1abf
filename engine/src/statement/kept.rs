//! Queries whose plans are kept: [`crate::plan_cache`].

use std::sync::Arc;
use std::time::Duration;

use aubade_planner::kept_plan::{optimize_shared, with_values};
use aubade_planner::pipeline::finish_plan;
use aubade_planner::{Binding, KeptPlan, Opaque, PlanTemplate, plan_cache_enabled, replan_factor};
use aubade_proto::{Error, Result};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::sql::parser::Statement as Ast;
use futures::FutureExt;

use super::{StatementContext, query};
use crate::plan_cache::{Entry, Lease, Lookup, PlanKey, Shape};
use crate::session::{Parameters, Prepared, QueryOutput};

impl StatementContext {
    /// Finds out by what the plan of a statement is found, if it is kept.
    pub(crate) fn look_up(&mut self, sql: &str, parameters: &Parameters) {
        if self.engine().plans().is_on() && plan_cache_enabled(self.template.state.config().options()) {
            self.lookup = Lookup::new(sql, parameters, &self.template, self.snapshot.schema_version);
        }
    }

    /// What the statement is, if that was found out before of it or of one with other constants: those that may change
    /// are in conditions, which decide neither columns nor types.
    pub(crate) fn described(&self, sql: &str) -> Option<Prepared> {
        let (plans, lookup) = (self.engine().plans(), self.lookup.as_ref()?);
        let of_shape = || plans.description(&plans.shape(lookup)?.key);
        let prepared = plans.description(lookup.exact()).or_else(of_shape)?;
        Some(Prepared { sql: sql.to_owned(), ..prepared })
    }

    /// Takes note of what the statement is.
    pub(super) fn keep_description(&self, prepared: &Prepared) {
        let (plans, Some(lookup)) = (self.engine().plans(), &self.lookup) else { return };
        plans.add_description(lookup.exact().clone(), prepared.clone());
        if let Some(shape) = plans.shape(lookup) {
            plans.add_description(shape.key, prepared.clone());
        }
    }

    fn now(&self) -> Duration {
        self.engine().environment().clock.now()
    }

    /// The physical plan before operators are linked.
    async fn first_stage(&self, plan: &LogicalPlan) -> Result<Arc<dyn ExecutionPlan>> {
        let state = self.template.first_stage.as_ref();
        let plan = state.query_planner().create_physical_plan(plan, state).boxed().await;
        plan.map_err(|error| self.improve(error))
    }
}

/// Runs a query whose plan is kept; `None` where it has to be planned from its text.
pub(crate) async fn run(context: &StatementContext) -> Result<Option<QueryOutput>> {
    let Some(lookup) = &context.lookup else { return Ok(None) };
    let (plans, started) = (context.engine().plans(), context.now());
    let planned = match plans.get(lookup.exact()) {
        Some(entry) => again(context, lookup.exact(), &entry, started).boxed().await?,
        None => match plans.shape(lookup) {
            Some(shape) => of_shape(context, lookup, &shape, started).boxed().await?,
            None => None,
        },
    };
    let Some((plan, lease)) = planned else {
        plans.count_miss();
        return Ok(None);
    };
    let run = context.run()?;
    run.plan_cache_hit();
    run.hold(lease);
    run.planned(&plan);
    query::start(context, plan).map(Some)
}

type Planned = (Arc<dyn ExecutionPlan>, Option<Lease>);

/// The plan of a statement that was planned before with the same values.
async fn again(
    context: &StatementContext,
    key: &PlanKey,
    entry: &Arc<Entry>,
    started: Duration,
) -> Result<Option<Planned>> {
    let (snapshot, access) = (context.snapshot(), context.engine().access());
    let config = context.template.state.config().options();
    let copied =
        entry.template(snapshot).and_then(|(template, lease)| match template.instantiate(snapshot, &access, config) {
            Ok(plan) => Some((plan, lease)),
            Err(error) => {
                tracing::warn!(%error, "a kept plan cannot be copied; planning it again");
                entry.forget_template(&template);
                None
            }
        });
    if let Some(planned) = copied {
        entry.count_hit(true, context.now().saturating_sub(started));
        return Ok(Some(planned));
    }
    let over = entry.plan().over(snapshot, &access, replan_factor(config)).map_err(|error| context.improve(error))?;
    let Some(plan) = over.map(Opaque::new) else {
        context.engine().plans().remove(key);
        return Ok(None);
    };
    let planned = plan_physically(context, &plan, Some(entry), None).boxed().await?;
    entry.count_hit(false, context.now().saturating_sub(started));
    Ok(Some(planned))
}

/// The plan of a statement of a shape that was planned before, with its own values.
async fn of_shape(
    context: &StatementContext,
    lookup: &Lookup,
    shape: &Shape,
    started: Duration,
) -> Result<Option<Planned>> {
    let (plans, snapshot) = (context.engine().plans(), context.snapshot());
    let Some(entry) = plans.get(&shape.key) else { return Ok(None) };
    if let Some(plan) = generic_copy(context, &entry, shape) {
        entry.count_hit(true, context.now().saturating_sub(started));
        return Ok(Some((plan, None)));
    }
    let (access, factor) = (context.engine().access(), replan_factor(context.template.state.config().options()));
    let over = entry.plan().over(snapshot, &access, factor).map_err(|error| context.improve(error))?;
    let Some(plan) = over else {
        plans.remove(&shape.key);
        return Ok(None);
    };
    // Where these values do not do, planning from the text tells why.
    let bound = with_values(plan, &shape.values, context.template.state.as_ref());
    let Ok((plan, binding)) = bound.map(|(plan, binding)| (Opaque::new(plan), binding)) else {
        return Ok(None);
    };
    // One that comes again gets an entry of its own, unless a copy of another's plan does for it.
    let own = match plans.see(lookup.exact()) {
        true => {
            let own = keep(context, lookup.exact(), &plan)?;
            own.planned_in(entry.planning_time());
            Some(own)
        }
        false => None,
    };
    let of_shape = Some((&entry, binding));
    let planned = plan_physically(context, &plan, own.as_ref(), of_shape).boxed().await;
    if let Err(error) = &planned {
        // The text may say it in a way that can be planned, or tell better what is wrong.
        tracing::debug!(error = %error.chain(), "a plan for all values cannot be run with these");
        plans.remove(&shape.key);
        plans.remove(lookup.exact());
        return Ok(None);
    }
    entry.count_hit(false, context.now().saturating_sub(started));
    planned.map(Some)
}

/// A copy of the plan for other values with those of a statement, if there is such a plan and it does for them.
fn generic_copy(context: &StatementContext, entry: &Entry, shape: &Shape) -> Option<Arc<dyn ExecutionPlan>> {
    let (snapshot, access) = (context.snapshot(), context.engine().access());
    let (generic, config) = (entry.generic(snapshot)?, context.template.state.config().options());
    let copied = generic.instantiate(&shape.values, snapshot, &access, config);
    copied
        .inspect_err(|error| tracing::warn!(%error, "a generic plan cannot be copied; planning for the values"))
        .ok()?
}

/// Keeps the optimised plan of a statement with its values.
fn keep(context: &StatementContext, key: &PlanKey, plan: &LogicalPlan) -> Result<Arc<Entry>> {
    let kept = KeptPlan::new(plan.clone()).map_err(|error| context.improve(error))?;
    Ok(context.engine().plans().add(key.clone(), context.run()?.sql(), 0, Opaque::new(kept)))
}

/// Plans a query for the first time, keeps its plan, and runs it; `None` where its plan cannot be kept. `plan` is what
/// `ast` says.
pub(super) async fn run_first(
    context: &StatementContext,
    ast: Ast,
    plan: &LogicalPlan,
    parameters: &Parameters,
) -> Result<Option<QueryOutput>> {
    let failed = |error: DataFusionError| context.improve(error);
    let Some(lookup) = &context.lookup else { return Ok(None) };
    if !KeptPlan::is_keepable(plan).map_err(failed)? {
        return Ok(None);
    }
    // Wanted only where nothing is lifted, and done in any case: values that do not fit are told in the same words.
    let bound = parameters.bind(plan.clone())?;
    let (optimized, shared) = match lifted(context, lookup, ast).boxed().await {
        Some((plan, shared, binding)) => (plan, Some((shared, binding))),
        None => (Opaque::new(context.state().optimize(&bound).map_err(failed)?), None),
    };
    let entry = keep(context, lookup.exact(), &optimized)?;
    let of_shape = shared.as_ref().map(|(shared, binding)| (shared, binding.clone()));
    let (plan, lease) = plan_physically(context, &optimized, Some(&entry), of_shape).boxed().await?;
    let run = context.run()?;
    shared.iter().map(|(shared, _)| shared).chain([&entry]).for_each(|entry| entry.planned_in(run.elapsed()));
    run.hold(lease);
    run.planned(&plan);
    query::start(context, plan).map(Some)
}

/// Keeps the plan of all statements that differ from this one in constants only; gives the plan with the values of this
/// one. `None` where they have none in common.
pub(super) async fn lifted(
    context: &StatementContext,
    lookup: &Lookup,
    ast: Ast,
) -> Option<(Opaque<LogicalPlan>, Arc<Entry>, Binding)> {
    let Ast::Statement(statement) = ast else { return None };
    let plans = context.engine().plans();
    if plans.knows_lifts(lookup) && plans.shape(lookup).is_none() {
        return None;
    }
    let Some((lifts, statement)) = lookup.lift(*statement) else {
        plans.add_lifts(lookup, None);
        return None;
    };
    // With other values there may be one.
    let shape = lookup.shape(&lifts)?;
    let shared = plan_shared(context, Ast::Statement(Box::new(statement)), &shape).boxed().await;
    let shared = shared.inspect_err(|error| tracing::debug!(%error, "constants of a statement are not lifted"));
    let Some(plan) = shared.ok().flatten() else {
        plans.add_lifts(lookup, None);
        return None;
    };
    let kept = Opaque::new(KeptPlan::new(plan.as_ref().clone()).ok()?);
    let (bound, binding) = with_values(plan.as_ref().clone(), &shape.values, context.state()).ok()?;
    let bound = Opaque::new(bound);
    plans.add_lifts(lookup, Some(lifts));
    let sql = context.run.as_ref().map_or("", |run| run.sql());
    Some((bound, plans.add(shape.key, sql, shape.lifted, kept), binding))
}

/// The plan for all values; `None` where there is none.
async fn plan_shared(
    context: &StatementContext,
    ast: Ast,
    shape: &Shape,
) -> Result<Option<Opaque<LogicalPlan>>, DataFusionError> {
    let state = context.state();
    let plan = state.statement_to_plan(ast).await?;
    Ok(optimize_shared(plan, &shape.types(), state)?.map(Opaque::new))
}

/// The physical plan of an optimised logical one, ready to run. Its template is kept in its `own` entry, and that of its
/// shape learns from it.
async fn plan_physically(
    context: &StatementContext,
    plan: &LogicalPlan,
    own: Option<&Arc<Entry>>,
    of_shape: Option<(&Arc<Entry>, Binding)>,
) -> Result<Planned> {
    let failed = |error: DataFusionError| context.improve(error);
    let config = context.template.state.config().options();
    let tables = KeptPlan::tables_of(plan).map_err(failed)?;
    let plan = context.first_stage(plan).await?;
    let of_shape = of_shape.filter(|(shared, _)| shared.learns());
    let template = match own.is_some() || of_shape.is_some() {
        true => PlanTemplate::try_new(&plan, tables).map_err(failed)?.map(Arc::new),
        false => None,
    };
    let Some(template) = template else { return Ok((finish_plan(plan, config).map_err(failed)?, None)) };
    let plan = template.finish(plan, context.snapshot(), config).map_err(failed)?;
    if let Some((shared, binding)) = of_shape {
        shared.learn(&template, binding, replan_factor(config));
    }
    Ok((plan, own.and_then(|own| own.set_template(template))))
}

/// DISCARD PLANS.
pub(super) fn discard(context: &StatementContext) -> Result<QueryOutput> {
    context.engine().plans().clear();
    context.done(0)
}

/// The error of a DISCARD of anything else.
pub(super) fn cannot_discard(what: &str) -> Error {
    super::unsupported::error(&format!("DISCARD {what}")).hint(
        "DISCARD PLANS forgets the plans that are kept, DISCARD BUFFERS what the buffer pool has and the results of \
         fragments, and DISCARD ALL all of them",
    )
}
