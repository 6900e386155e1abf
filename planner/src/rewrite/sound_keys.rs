//! What DataFusion knows about the keys of rows, where that is wrong.
//!
//! A plan's schema says which columns determine others (`FunctionalDependencies`). DataFusion leaves out keys of GROUP BY and
//! ORDER BY, DISTINCT and joins by it, and chooses the frames of windows. DataFusion 55 derives it wrongly in two places: a
//! key of a join's input, which many rows of the join can have, is taken for the key of an aggregate that groups by it and
//! by other columns as well; and rows that UNNEST repeats are taken for as different as before. A plan with such a node is
//! planned and optimised as if nothing were known.

use std::cell::Cell;
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNodeRecursion};
use datafusion::common::{Dependency, FunctionalDependencies};
use datafusion::error::Result;
use datafusion::logical_expr::planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning};
use datafusion::logical_expr::{Aggregate, Distinct, LogicalPlan};
use datafusion::optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule};
use datafusion::sql::sqlparser::ast::TableFactor;

use crate::pipeline::LogicalRule;

/// Runs a rule on a plan whose keys are right, or that has none.
#[derive(Debug)]
pub struct SoundKeys {
    rule: LogicalRule,
    /// Whether plans need what it does; a rule that only makes them faster is left out.
    needed: bool,
}

impl SoundKeys {
    /// Around `rule`, whose name it has; `None` where it does not look at keys.
    pub fn around(rule: &LogicalRule) -> Option<Self> {
        let needed = match rule.name() {
            "replace_distinct_aggregate" | "optimize_projections" => true,
            "eliminate_join" | "eliminate_duplicated_expr" => false,
            _ => return None,
        };
        Some(Self { rule: Arc::clone(rule), needed })
    }
}

impl OptimizerRule for SoundKeys {
    fn name(&self) -> &str {
        self.rule.name()
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        self.rule.apply_order()
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        // Rules that are called for each node look at the keys of these only.
        let by_keys =
            self.rule.apply_order().is_none() || matches!(plan, LogicalPlan::Sort(_) | LogicalPlan::Distinct(_));
        if !by_keys || !has_wrong_keys(&plan)? {
            self.rule.rewrite(plan, config)
        } else if self.needed {
            self.rule.rewrite(without_keys(plan)?, config)
        } else {
            Ok(Transformed::no(plan))
        }
    }
}

/// Plans what FROM names without the keys that are wrong: the query around it is planned by them.
#[derive(Debug)]
pub struct SoundRelations;

thread_local! {
    /// Whether the next relation is the one that [`SoundRelations`] was asked for, which the others are to plan.
    static IS_ASKED_FOR: Cell<bool> = const { Cell::new(false) };
}

impl RelationPlanner for SoundRelations {
    fn plan_relation(
        &self,
        relation: TableFactor,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<RelationPlanning> {
        if IS_ASKED_FOR.replace(false) {
            return Ok(RelationPlanning::Original(Box::new(relation)));
        }
        IS_ASKED_FOR.set(true);
        let plan = context.plan(relation);
        IS_ASKED_FOR.set(false);
        let mut plan = plan?;
        if has_wrong_keys(&plan)? {
            plan = without_keys(plan)?;
        }
        Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, None))))
    }
}

fn has_wrong_keys(plan: &LogicalPlan) -> Result<bool> {
    let mut found = false;
    plan.apply_with_subqueries(|plan| {
        found = match plan {
            LogicalPlan::Aggregate(aggregate) => has_wrong_key(aggregate),
            // Rows of one key can be many here, and places of columns are those of the input.
            LogicalPlan::Unnest(_) | LogicalPlan::RecursiveQuery(_) => !keys(plan).is_empty(),
            _ => false,
        };
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(found)
}

/// Whether some of the expressions that an aggregate groups by are taken for its key, and do not determine the others.
fn has_wrong_key(aggregate: &Aggregate) -> bool {
    let mut groups = Vec::with_capacity(aggregate.group_expr.len());
    for expr in &aggregate.group_expr {
        let name = expr.schema_name().to_string();
        if !groups.contains(&name) {
            groups.push(name);
        }
    }
    let known = keys(&aggregate.input);
    let names = aggregate.input.schema().field_names();
    let are_among = |places: &[usize], some: &[&String]| {
        places.iter().all(|place| names.get(*place).is_some_and(|name| some.contains(&name)))
    };
    let all: Vec<_> = groups.iter().collect();
    aggregate.schema.functional_dependencies().iter().any(|dependency| {
        let key: Vec<_> = dependency.source_indices.iter().filter_map(|place| groups.get(*place)).collect();
        let determines_all = || {
            known.iter().any(|known| {
                let determined: Vec<_> = known.target_indices.iter().filter_map(|place| names.get(*place)).collect();
                are_among(&known.source_indices, &key)
                    && (known.mode == Dependency::Single || all.iter().all(|group| determined.contains(group)))
            })
        };
        key.len() < groups.len() && !determines_all()
    })
}

fn keys(plan: &LogicalPlan) -> &FunctionalDependencies {
    plan.schema().functional_dependencies()
}

/// The same plan, of which nobody knows keys.
fn without_keys(plan: LogicalPlan) -> Result<LogicalPlan> {
    let forgotten = plan.transform_up_with_subqueries(|mut plan| {
        let schema = match &mut plan {
            LogicalPlan::Projection(node) => &mut node.schema,
            LogicalPlan::Aggregate(node) => &mut node.schema,
            LogicalPlan::Window(node) => &mut node.schema,
            LogicalPlan::Join(node) => &mut node.schema,
            LogicalPlan::SubqueryAlias(node) => &mut node.schema,
            LogicalPlan::Union(node) => &mut node.schema,
            LogicalPlan::Unnest(node) => &mut node.schema,
            LogicalPlan::RecursiveQuery(node) => &mut node.schema,
            LogicalPlan::Distinct(Distinct::On(node)) => &mut node.schema,
            LogicalPlan::TableScan(node) => &mut node.projected_schema,
            // The others have the schema of their input, or no keys.
            _ => return Ok(Transformed::no(plan)),
        };
        if schema.functional_dependencies().is_empty() {
            return Ok(Transformed::no(plan));
        }
        let unknown = schema.as_ref().clone().with_functional_dependencies(FunctionalDependencies::empty())?;
        *schema = Arc::new(unknown);
        Ok(Transformed::yes(plan))
    })?;
    Ok(forgotten.data)
}
