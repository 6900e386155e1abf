//! The order of optimiser rules; nothing else orders them.

use std::sync::{Arc, LazyLock};

use datafusion::common::config::ConfigOptions;
use datafusion::error::Result;
use datafusion::optimizer::{Optimizer, OptimizerRule};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::physical_plan::ExecutionPlan;

use crate::rewrite::{
    AggregateBeforeJoin, BroadcastJoins, CodeGroupKeys, CollectJoinKeys, KeepStates, MergeByIntegers, OneRowSubqueries,
    OpaqueCasts, PushFragment, PushHaving, PushReduction, Pushable, ShareScans, SmallerBuildSides, SoundKeys,
    SoundSimplification, SubqueryPredicates, UnambiguousPushdown, UnorderedGroupingSets, YieldingJoins,
};

pub(crate) type Rule = Arc<dyn PhysicalOptimizerRule + Send + Sync>;
type Rules = Vec<Rule>;
pub(crate) type LogicalRule = Arc<dyn OptimizerRule + Send + Sync>;

/// What the names of DataFusion's two rules begin with that hand filters down.
const FILTER_PUSHDOWN: &str = "FilterPushdown";

/// The rules in their order, and how many of them are the first ones.
struct Pipeline {
    rules: Rules,
    first: usize,
    /// The others, without those that only look whether a plan is sound.
    linking: Rules,
}

/// The same for all sessions: rules have no state, and the table of functions takes a while to make.
static PIPELINE: LazyLock<Pipeline> = LazyLock::new(Pipeline::new);

impl Pipeline {
    fn new() -> Self {
        let mut rules = PhysicalOptimizer::new().rules;
        for rule in &mut rules {
            if rule.name().starts_with(FILTER_PUSHDOWN) {
                *rule = Arc::new(UnambiguousPushdown::new(Arc::clone(rule)));
            }
        }
        let position = |rules: &Rules, name: &str| rules.iter().position(|rule| rule.name() == name);
        let pushable = Arc::new(Pushable::new());
        rules.insert(0, Arc::new(UnorderedGroupingSets));
        let by_statistics = position(&rules, "aggregate_statistics").unwrap_or_default();
        rules.insert(by_statistics, Arc::new(PushFragment::new(Arc::clone(&pushable))));
        let selected = position(&rules, "join_selection").map_or(rules.len(), |selection| selection + 1);
        rules.insert(selected, Arc::new(SmallerBuildSides));
        let combining = position(&rules, "CombinePartialFinalAggregate").unwrap_or(rules.len());
        rules.insert(combining, Arc::new(PushReduction::new(Arc::clone(&pushable))));
        rules.insert(combining + 1, Arc::new(PushHaving::new(Arc::clone(&pushable))));
        let linking = rules.iter().rposition(|rule| rule.name().starts_with(FILTER_PUSHDOWN)).unwrap_or(rules.len());
        rules.push(Arc::new(OpaqueCasts));
        rules.push(Arc::new(ShareScans));
        rules.push(Arc::new(CollectJoinKeys::new(Arc::clone(&pushable))));
        rules.push(Arc::new(BroadcastJoins::new(pushable)));
        rules.push(Arc::new(CodeGroupKeys));
        rules.push(Arc::new(KeepStates));
        rules.push(Arc::new(MergeByIntegers));
        rules.push(Arc::new(YieldingJoins));
        let others = rules.iter().skip(linking).filter(|rule| !is_check(rule));
        Self { linking: others.cloned().collect(), first: linking, rules }
    }
}

/// [`OneRowSubqueries`] and [`SubqueryPredicates`], before anything makes joins of subqueries; DataFusion's logical rules,
/// [`SoundKeys`] and [`SoundSimplification`] around those that are wrong without them; and then [`AggregateBeforeJoin`],
/// which looks at tables and joins as the others leave them.
pub fn logical_optimizer_rules() -> Vec<LogicalRule> {
    let mut rules = Optimizer::new().rules;
    let ours: [LogicalRule; 2] = [Arc::new(OneRowSubqueries), Arc::new(SubqueryPredicates)];
    rules.splice(0..0, ours);
    for rule in &mut rules {
        if rule.name() == "simplify_expressions" {
            *rule = Arc::new(SoundSimplification::new(Arc::clone(rule)));
        } else if let Some(sound) = SoundKeys::around(rule) {
            *rule = Arc::new(sound);
        }
    }
    rules.push(Arc::new(AggregateBeforeJoin));
    rules
}

/// Whether a rule only looks at a plan.
pub(crate) fn is_check(rule: &Rule) -> bool {
    rule.name() == "SanityCheckPlan"
}

/// DataFusion's rules with ours among them.
///
/// [`UnorderedGroupingSets`] comes first: any rule may look at orders.
///
/// [`PushFragment`] comes before any rule that looks at statistics or puts an operator in between: filters are in the
/// scans when join orders are chosen, and no repartitioning separates the two yet. What later rules push down still
/// arrives: `LimitPushdown` gives limits to the scan by `with_fetch`, `ProjectionPushdown` hands over columns.
///
/// [`UnambiguousPushdown`] is around each `FilterPushdown`. [`OpaqueCasts`] comes after the last.
///
/// [`SmallerBuildSides`] comes directly after `join_selection`, which it corrects.
///
/// [`PushReduction`] comes once partial and final stages of aggregations are on their partitions, and before
/// `CombinePartialFinalAggregate` makes one of them. [`PushHaving`] follows it.
///
/// [`ShareScans`] and then [`CollectJoinKeys`] come after the last `FilterPushdown`, which links joins and scans, and
/// [`BroadcastJoins`] after them. [`CodeGroupKeys`] groups by codes what these have left to the coordinator, and
/// [`KeepStates`] keeps what is grouped there. [`MergeByIntegers`] follows it, which looks for aggregates.
///
/// [`YieldingJoins`] comes last, since other rules look for joins directly below an operator.
pub fn physical_optimizer_rules() -> Rules {
    PIPELINE.rules.clone()
}

/// The rules that decide what a plan is made of. What they make can be kept and copied.
pub fn first_rules() -> Rules {
    PIPELINE.rules.iter().take(PIPELINE.first).cloned().collect()
}

/// The rules after [`first_rules`]: they link operators of one run with each other.
pub(crate) fn last_rules() -> &'static [Rule] {
    PIPELINE.rules.get(PIPELINE.first..).unwrap_or_default()
}

/// Of [`last_rules`] those that a copy of a plan needs: the plan itself was looked at.
pub(crate) fn linking_rules() -> &'static [Rule] {
    &PIPELINE.linking
}

/// `plan` after some rules.
pub(crate) fn apply_rules(
    rules: &[Rule],
    plan: Arc<dyn ExecutionPlan>,
    config: &ConfigOptions,
) -> Result<Arc<dyn ExecutionPlan>> {
    rules.iter().try_fold(plan, |plan, rule| rule.optimize(plan, config))
}

/// A plan that [`first_rules`] have made, ready to run.
///
/// # Errors
/// When a rule fails.
pub fn finish_plan(plan: Arc<dyn ExecutionPlan>, config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
    apply_rules(last_rules(), plan, config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_are_pushed_before_statistics_are_used() {
        let rules = physical_optimizer_rules();
        let names: Vec<_> = rules.iter().map(|rule| rule.name()).collect();
        assert_eq!(names[..4], ["UnorderedGroupingSets", "OutputRequirements", "PushFragment", "aggregate_statistics"]);
        let position = |wanted| names.iter().position(|name| *name == wanted).unwrap();
        assert_eq!(position("join_selection") + 1, position("SmallerBuildSides"));
        assert_eq!(position("PushReduction") + 1, position("PushHaving"));
        assert_eq!(position("PushHaving") + 1, position("CombinePartialFinalAggregate"));
        let ours = [
            "ShareScans",
            "CollectJoinKeys",
            "BroadcastJoins",
            "CodeGroupKeys",
            "KeepStates",
            "MergeByIntegers",
            "YieldingJoins",
        ];
        assert_eq!(names[names.len() - 7..], ours);
        let last: Vec<_> = last_rules().iter().map(|rule| rule.name()).collect();
        assert_eq!(last[..4], ["FilterPushdown(Post)", "SanityCheckPlan", "OpaqueCasts", "ShareScans"]);
        assert_eq!(first_rules().len() + last.len(), rules.len());
        assert_eq!(linking_rules().len() + 1, last.len());
    }
}
