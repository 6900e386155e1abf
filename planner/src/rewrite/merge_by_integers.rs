//! The rule that has states merged without a hash table.

use std::sync::Arc;

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::error::Result;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::AggregateExec;

use crate::merge_states::MergeStatesExec;

/// Puts a [`MergeStatesExec`] in the place of the last stage of each aggregate by one integer or two. It comes after all
/// rules that look for aggregates.
#[derive(Debug)]
pub struct MergeByIntegers;

impl PhysicalOptimizerRule for MergeByIntegers {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|plan| {
            let merging = plan.downcast_ref::<AggregateExec>().and_then(MergeStatesExec::in_place_of);
            Ok(merging.map_or_else(|| Transformed::no(plan), |merging| Transformed::yes(Arc::new(merging) as _)))
        })
        .data()
    }

    fn name(&self) -> &str {
        "MergeByIntegers"
    }

    fn schema_check(&self) -> bool {
        true
    }
}
