//! The rule that lets scans know the keys of the joins above them.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::common::NullEquality;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::joins::HashJoinExec;
use datafusion::physical_plan::recursive_query::RecursiveQueryExec;

use super::pushable::Pushable;
use crate::join_keys::{JoinKeys, JoinKeysExec};
use crate::scan_exec::StorageScanExec;

/// Puts a [`JoinKeysExec`] on the build side of each hash join whose dynamic filter a scan holds, and
/// gives the scan its keys.
///
/// DataFusion's own filter says which scan column is which key of which join, and makes the join wait
/// for all of its build side before the probe side begins; this rule has to come after
/// `FilterPushdown` has put it there.
#[derive(Debug)]
pub struct CollectJoinKeys {
    pushable: Arc<Pushable>,
}

impl CollectJoinKeys {
    /// The rule with the functions that storage nodes know.
    pub fn new(pushable: Arc<Pushable>) -> Self {
        Self { pushable }
    }
}

/// The id of the dynamic filter of a join, if rows without a partner are of no use to the join.
fn filter_of(join: &HashJoinExec) -> Option<u64> {
    // Where null is a key like any other, or decides the answer, a set of keys says too little.
    if join.null_equality() == NullEquality::NullEqualsNull || join.null_aware {
        return None;
    }
    join.dynamic_expressions_produced().first().and_then(|filter| filter.expression_id())
}

impl PhysicalOptimizerRule for CollectJoinKeys {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let mut wanted = Vec::new();
        let mut runs_again = false;
        plan.apply(|node| {
            runs_again |= node.is::<RecursiveQueryExec>();
            if let Some(scan) = node.downcast_ref::<StorageScanExec>() {
                wanted.extend(scan.runtime_filter_ids());
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        // In a recursive query a join has other keys each time.
        if wanted.is_empty() || runs_again {
            return Ok(plan);
        }
        let mut keys_of: BTreeMap<u64, Arc<JoinKeys>> = BTreeMap::new();
        let plan = plan.transform_up(|node| {
            let Some(join) = node.downcast_ref::<HashJoinExec>() else { return Ok(Transformed::no(node)) };
            let Some(id) = filter_of(join).filter(|id| wanted.contains(id)) else { return Ok(Transformed::no(node)) };
            let expressions: Vec<Arc<dyn PhysicalExpr>> =
                join.on().iter().map(|(build, _)| Arc::clone(build)).collect();
            let keys = Arc::new(JoinKeys::try_new(expressions, join.left())?);
            let build = Arc::new(JoinKeysExec::new(Arc::clone(join.left()), Arc::clone(&keys)));
            keys_of.insert(id, keys);
            let children = vec![build as Arc<dyn ExecutionPlan>, Arc::clone(join.right())];
            replace_children_if_necessary(Arc::clone(&node), children).map(Transformed::yes)
        })?;
        let plan = plan.data.transform_up(|node| {
            Ok(match node.downcast_ref::<StorageScanExec>() {
                Some(scan) => {
                    Transformed::yes(Arc::new(scan.with_join_keys(&keys_of, &self.pushable)) as Arc<dyn ExecutionPlan>)
                }
                None => Transformed::no(node),
            })
        })?;
        Ok(plan.data)
    }

    fn name(&self) -> &str {
        "CollectJoinKeys"
    }

    fn schema_check(&self) -> bool {
        true
    }
}
