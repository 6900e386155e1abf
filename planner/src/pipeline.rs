//! The order of physical optimiser rules; nothing else orders them.

use std::sync::Arc;

use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;

use crate::rewrite::{CollectJoinKeys, PushFragment, PushReduction, Pushable, YieldingJoins};

type Rules = Vec<Arc<dyn PhysicalOptimizerRule + Send + Sync>>;

/// DataFusion's rules with ours among them.
///
/// [`PushFragment`] comes before any rule that looks at statistics or puts an operator in between: filters are in the
/// scans when join orders are chosen, and no repartitioning separates the two yet. What later rules push down still
/// arrives: `LimitPushdown` gives limits to the scan by `with_fetch`, `ProjectionPushdown` hands over columns.
///
/// [`PushReduction`] comes once partial and final stages of aggregations are on their partitions, and before
/// `CombinePartialFinalAggregate` makes one of them.
///
/// [`CollectJoinKeys`] comes after the last `FilterPushdown`, which links joins and scans.
///
/// [`YieldingJoins`] comes last, since other rules look for joins directly below an operator.
pub fn physical_optimizer_rules() -> Rules {
    let mut rules = PhysicalOptimizer::new().rules;
    let first_by_statistics = rules.iter().position(|rule| rule.name() == "aggregate_statistics").unwrap_or_default();
    let pushable = Arc::new(Pushable::new());
    rules.insert(first_by_statistics, Arc::new(PushFragment::new(Arc::clone(&pushable))));
    let combining = rules.iter().position(|rule| rule.name() == "CombinePartialFinalAggregate").unwrap_or(rules.len());
    rules.insert(combining, Arc::new(PushReduction::new(Arc::clone(&pushable))));
    rules.push(Arc::new(CollectJoinKeys::new(pushable)));
    rules.push(Arc::new(YieldingJoins));
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_are_pushed_before_statistics_are_used() {
        let rules = physical_optimizer_rules();
        let names: Vec<_> = rules.iter().map(|rule| rule.name()).collect();
        assert_eq!(names[..3], ["OutputRequirements", "PushFragment", "aggregate_statistics"]);
        let position = |wanted| names.iter().position(|name| *name == wanted).unwrap();
        assert_eq!(position("PushReduction") + 1, position("CombinePartialFinalAggregate"));
        assert_eq!(names[names.len() - 2..], ["CollectJoinKeys", "YieldingJoins"]);
    }
}
