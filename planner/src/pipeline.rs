//! The order of physical optimiser rules; nothing else orders them.

use std::sync::Arc;

use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;

use crate::rewrite::{PushFragment, YieldingJoins};

type Rules = Vec<Arc<dyn PhysicalOptimizerRule + Send + Sync>>;

/// DataFusion's rules with ours among them.
///
/// [`PushFragment`] comes before any rule that looks at statistics or puts an operator in between: filters are in the
/// scans when join orders are chosen, and no repartitioning separates the two yet. What later rules push down still
/// arrives: `LimitPushdown` gives limits to the scan by `with_fetch`, `ProjectionPushdown` hands over columns.
///
/// [`YieldingJoins`] comes last, since other rules look for joins directly below an operator.
pub fn physical_optimizer_rules() -> Rules {
    let mut rules = PhysicalOptimizer::new().rules;
    let first_by_statistics = rules.iter().position(|rule| rule.name() == "aggregate_statistics").unwrap_or_default();
    rules.insert(first_by_statistics, Arc::new(PushFragment::new()));
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
        assert_eq!(names.last(), Some(&"YieldingJoins"));
    }
}
