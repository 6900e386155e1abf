//! The rule that lets scans know the keys of the joins above them.

use std::collections::BTreeMap;
use std::sync::Arc;

use aubade_proto::KeySet;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{JoinType, NullEquality};
use datafusion::error::Result;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::joins::HashJoinExec;
use datafusion::physical_plan::recursive_query::RecursiveQueryExec;

use super::origin::{Between, column_of, origin};
use super::pushable::Pushable;
use crate::join_keys::{JoinKeys, JoinKeysExec};
use crate::options::{Pushdown, pushdown};
use crate::scan_exec::StorageScanExec;

/// Puts a [`JoinKeysExec`] on the build side of each hash join whose dynamic filter a scan holds, and
/// gives the scan its keys.
///
/// DataFusion's own filter says which scan column is which key of which join, and makes the join wait
/// for all of its build side before the probe side begins; this rule has to come after
/// `FilterPushdown` has put it there.
///
/// That filter is about all keys of a join at once. Where these come from several scans no scan can have it: then each
/// scan has the keys of its own columns. In q5 of TPC-H the suppliers of a region cut down both customers, by their
/// nations, and lines, by their suppliers, though they join only what these two make. So it is with joins above two columns
/// of one name, which have no filter of DataFusion's ([`super::UnambiguousPushdown`]).
#[derive(Debug)]
pub struct CollectJoinKeys {
    pushable: Arc<Pushable>,
}

impl CollectJoinKeys {
    /// The rule with the functions that storage nodes know.
    pub fn new(pushable: Arc<Pushable>) -> Self {
        Self { pushable }
    }

    /// The keys of a join whose filter no scan has, where they come from more than one.
    fn keys_apart(&self, join: &HashJoinExec) -> Result<Vec<KeysApart>> {
        let drops_others = matches!(join.join_type(), JoinType::Inner | JoinType::LeftSemi | JoinType::RightSemi);
        let nulls_equal = join.null_equality() == NullEquality::NullEqualsNull || join.null_aware;
        let mut apart = Vec::new();
        // The filter of a single key has been where it could go, where there was one.
        let was_tried = join.on().len() < 2 && !join.dynamic_expressions_produced().is_empty();
        if !drops_others || nulls_equal || was_tried {
            return Ok(apart);
        }
        for (build, probe) in join.on() {
            let data_type = build.data_type(&join.left().schema())?;
            if !KeySet::supports(&data_type) || probe.data_type(&join.right().schema())? != data_type {
                continue;
            }
            let origin = column_of(probe).and_then(|column| origin(join.right(), column, Between::LookAt));
            let Some((scan, column)) = origin else { continue };
            let keys = Arc::new(JoinKeys::try_new(vec![Arc::clone(build)], join.left())?);
            let keys = KeysApart { scan: Arc::clone(scan), column, keys };
            // Keys that no scan takes would be held for nothing.
            if let Some(scan) = scan.downcast_ref::<StorageScanExec>()
                && keys.given_to(scan, &self.pushable)?.is_some()
            {
                apart.push(keys);
            }
        }
        Ok(apart)
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

/// One key of a join, and the scan below its probe side that the column comes from.
struct KeysApart {
    scan: Arc<dyn ExecutionPlan>,
    column: usize,
    keys: Arc<JoinKeys>,
}

impl KeysApart {
    fn given_to(&self, scan: &StorageScanExec, pushable: &Arc<Pushable>) -> Result<Option<StorageScanExec>> {
        scan.with_keys_for(self.column, &self.keys, pushable)
    }
}

impl PhysicalOptimizerRule for CollectJoinKeys {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
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
        if runs_again || pushdown(config) == Pushdown::Off {
            return Ok(plan);
        }
        let mut keys_of: BTreeMap<u64, Arc<JoinKeys>> = BTreeMap::new();
        let mut apart: Vec<KeysApart> = Vec::new();
        let plan = plan.transform_up(|node| {
            let Some(join) = node.downcast_ref::<HashJoinExec>() else { return Ok(Transformed::no(node)) };
            let mut collected = Vec::new();
            match filter_of(join).filter(|id| wanted.contains(id)) {
                Some(id) => {
                    let expressions = join.on().iter().map(|(build, _)| Arc::clone(build)).collect();
                    let keys = Arc::new(JoinKeys::try_new(expressions, join.left())?);
                    keys_of.insert(id, Arc::clone(&keys));
                    collected.push(keys);
                }
                None if config.optimizer.enable_join_dynamic_filter_pushdown => {
                    let found = self.keys_apart(join)?;
                    collected.extend(found.iter().map(|keys| Arc::clone(&keys.keys)));
                    apart.extend(found);
                }
                None => {}
            }
            if collected.is_empty() {
                return Ok(Transformed::no(node));
            }
            let build = collected.into_iter().fold(Arc::clone(join.left()), |build, keys| {
                Arc::new(JoinKeysExec::new(build, keys)) as Arc<dyn ExecutionPlan>
            });
            let children = vec![build, Arc::clone(join.right())];
            replace_children_if_necessary(Arc::clone(&node), children).map(Transformed::yes)
        })?;
        // Scans with a bound of an order are told what may be pushed as well.
        if wanted.is_empty() && apart.is_empty() {
            return Ok(plan.data);
        }
        let plan = plan.data.transform_up(|node| {
            let Some(scan) = node.downcast_ref::<StorageScanExec>() else { return Ok(Transformed::no(node)) };
            let mut scan = scan.with_join_keys(&keys_of, &self.pushable);
            for keys in apart.iter().filter(|keys| Arc::ptr_eq(&keys.scan, &node)) {
                scan = keys.given_to(&scan, &self.pushable)?.unwrap_or(scan);
            }
            Ok(Transformed::yes(Arc::new(scan) as Arc<dyn ExecutionPlan>))
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
