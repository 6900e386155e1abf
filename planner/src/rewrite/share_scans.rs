//! The rule that lets equal scans of a plan run once.

use std::sync::Arc;

use aubade_proto::Fragment;
use aubade_proto::convert::encode_fragment;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::recursive_query::RecursiveQueryExec;

use crate::embedded::storage_scans;
use crate::options::{Pushdown, pushdown};
use crate::scan_exec::StorageScanExec;
use crate::shared_scan::SharedScan;
use crate::subquery_values::{fragment_with_stand_ins, name_same_subqueries};

/// Bytes that a scan may give by the statistics: it is kept in memory.
const SHARED_BYTES_MAX: usize = 16 << 20;

/// Lets scans of the same table with the same fragment share what one of them reads, where little comes back.
///
/// A scan that will be cut down while the query runs, by the keys of a join or the bound of an order, runs by itself. So
/// the rule comes after `FilterPushdown` has put such filters there.
#[derive(Debug)]
pub struct ShareScans;

impl PhysicalOptimizerRule for ShareScans {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let scans = storage_scans(&plan);
        if scans.len() < 2 || pushdown(config) == Pushdown::Off || runs_again(&plan)? {
            return Ok(plan);
        }
        let shared = share(&scans);
        if shared.iter().all(Option::is_none) {
            return Ok(plan);
        }
        // Both walks meet the scans from left to right.
        let mut shared = shared.into_iter();
        let plan = plan.transform_up(|node| {
            let Some(scan) = node.downcast_ref::<StorageScanExec>() else { return Ok(Transformed::no(node)) };
            Ok(match shared.next().flatten() {
                Some(shared) => Transformed::yes(Arc::new(scan.with_shared(shared)) as Arc<dyn ExecutionPlan>),
                None => Transformed::no(node),
            })
        });
        plan.map(|plan| plan.data)
    }

    fn name(&self) -> &str {
        "ShareScans"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// Whether parts of the plan run several times, with other rows each time.
fn runs_again(plan: &Arc<dyn ExecutionPlan>) -> Result<bool> {
    let mut found = false;
    plan.apply(|node| {
        found |= node.is::<RecursiveQueryExec>();
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(found)
}

/// For each scan what it shares with others, if anything.
fn share(scans: &[StorageScanExec]) -> Vec<Option<Arc<SharedScan>>> {
    let mut shared: Vec<Option<Arc<SharedScan>>> = vec![None; scans.len()];
    for (index, scan) in scans.iter().enumerate() {
        if shared.get(index).is_none_or(Option::is_some) || !is_shareable(scan) {
            continue;
        }
        let others = scans.iter().enumerate().skip(index + 1);
        let equal: Vec<usize> = others.filter(|(_, other)| is_same(scan, other)).map(|(other, _)| other).collect();
        let group: Vec<usize> = std::iter::once(index).chain(equal).collect();
        if group.len() < 2 {
            continue;
        }
        let one = Arc::new(SharedScan::new(scan.properties().output_partitioning().partition_count(), group.len()));
        for index in group {
            if let Some(place) = shared.get_mut(index) {
                *place = Some(Arc::clone(&one));
            }
        }
    }
    shared
}

/// Whether what a scan gives will be read by another of `scans` as well, as far as can be told before filters are put
/// there that become known while the query runs.
pub(super) fn will_be_shared(scan: &StorageScanExec, scans: &[StorageScanExec]) -> bool {
    is_shareable(scan) && scans.iter().filter(|other| is_same(scan, other)).count() > 1
}

fn is_shareable(scan: &StorageScanExec) -> bool {
    let statistics = scan.output_statistics();
    let rows = statistics.num_rows.get_value();
    // Numbers and short texts.
    let row_bytes = 16_usize.saturating_mul(scan.schema().fields().len());
    scan.runtime_filters().is_empty() && rows.is_some_and(|rows| rows.saturating_mul(row_bytes) <= SHARED_BYTES_MAX)
}

fn is_same(one: &StorageScanExec, other: &StorageScanExec) -> bool {
    let (left, right) = (one.fragment(), other.fragment());
    if !other.runtime_filters().is_empty()
        || !Arc::ptr_eq(one.table(), other.table())
        || one.schema() != other.schema()
        || one.properties().output_partitioning().partition_count()
            != other.properties().output_partitioning().partition_count()
        || left.scan_schema() != right.scan_schema()
        || !name_same_subqueries(left, right)
    {
        return false;
    }
    let encoded = |fragment: &Fragment| encode_fragment(fragment_with_stand_ins(fragment).ok()?.as_ref()).ok();
    encoded(left).is_some_and(|left| encoded(right) == Some(left))
}
