//! Names of what reductions leave of segments: what they do, whatever the segments.
//!
//! A key is a digest of wire forms: a storage node makes the same of the same bytes. What joins at storage nodes leave
//! depends on their build sides too. These are named by the plans that yield them and by the segments that those read, so
//! that a result is found before any of them runs.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use aubade_proto::convert::encode_fragment;
use aubade_proto::{Fragment, Reduction, RelationId};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::utils::memory::get_record_batch_memory_size;
use datafusion::physical_expr_common::physical_expr::is_volatile;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::joins::HashJoinExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion_proto::physical_plan::{AsExecutionPlan, DefaultPhysicalExtensionCodec};
use datafusion_proto::protobuf::PhysicalPlanNode;
use prost::Message;
use ring::digest::{Context, SHA256};

use crate::broadcast::{BroadcastExec, GatherExec};
use crate::join_keys::JoinKeysExec;
use crate::kept_states::KeptStatesExec;
use crate::rewrite::unordered_grouping_sets::UnorderedExec;
use crate::scan_exec::StorageScanExec;
use crate::subquery_values::{Resolved, fragment_needs_subquery, needs_subquery, resolve};
use crate::template::make_anew;

/// Bytes that name a result: what has longer lists of values, or larger build sides, is hardly asked for twice.
const KEY_BYTES_MAX: usize = 2 << 20;

/// Names what a scan makes of any segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ResultKey([u8; 32]);

impl ResultKey {
    /// Of a fragment over a table, with the build sides of its joins; `None` where it is too long, or has no wire form.
    fn of_fragment(table: RelationId, fragment: &Fragment) -> Option<Self> {
        let mut digest = Digest::new();
        digest.add_fragment(table, fragment)?;
        digest.finish()
    }

    /// Of joins over a scan as `fragment` runs them, without their build sides, and these as `builds` yield them; `None`
    /// where that depends on anything else. `local`: the same on the coordinator.
    pub(crate) fn of_joins(
        table: RelationId,
        fragment: &Fragment,
        builds: &[&Arc<dyn ExecutionPlan>],
        local: &Arc<dyn ExecutionPlan>,
        config: &ConfigOptions,
    ) -> Option<Self> {
        if !cuts_itself_down(local) {
            return None;
        }
        let mut digest = Digest::new();
        digest.add_fragment(table, fragment)?;
        digest.add_config(config)?;
        builds.iter().try_for_each(|build| digest.add_plan(build))?;
        digest.finish()
    }

    /// Of all that a plan yields, over the segments that it reads; `None` where that depends on anything else.
    pub(crate) fn of_plan(plan: &Arc<dyn ExecutionPlan>, config: &ConfigOptions) -> Option<Self> {
        if !cuts_itself_down(plan) {
            return None;
        }
        let mut digest = Digest::new();
        digest.add_config(config)?;
        digest.add_plan(plan)?;
        digest.finish()
    }

    /// Of nothing.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        Self([0; 32])
    }
}

/// A fragment over a table with its name, which is made once for all copies of a plan that have the same fragment.
pub(crate) struct NamedFragment {
    table: RelationId,
    fragment: Arc<Fragment>,
    key: OnceLock<Option<ResultKey>>,
}

impl fmt::Debug for NamedFragment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fragment.fmt(f)
    }
}

impl Deref for NamedFragment {
    type Target = Fragment;

    fn deref(&self) -> &Fragment {
        &self.fragment
    }
}

impl NamedFragment {
    pub(crate) fn new(table: RelationId, fragment: Fragment) -> Arc<Self> {
        Arc::new(Self { table, fragment: Arc::new(fragment), key: OnceLock::new() })
    }

    pub(crate) fn fragment(&self) -> &Arc<Fragment> {
        &self.fragment
    }

    /// See [`ResultKey::of_fragment`]. Values of subqueries belong to the name, and each run has its own: there it is made
    /// anew.
    pub(crate) fn key(&self) -> Option<ResultKey> {
        let make = || ResultKey::of_fragment(self.table, &self.fragment);
        if fragment_needs_subquery(&self.fragment) { make() } else { *self.key.get_or_init(make) }
    }

    /// Whether it need not be made again.
    #[cfg(test)]
    pub(crate) fn has_key(&self) -> bool {
        self.key.get().is_some()
    }
}

/// Puts the parts of a key together, each with its length, so that no two lists of parts are the same bytes.
struct Digest {
    context: Context,
    bytes_left: usize,
}

impl Digest {
    fn new() -> Self {
        Self { context: Context::new(&SHA256), bytes_left: KEY_BYTES_MAX }
    }

    /// `None` once there are too many bytes.
    fn add(&mut self, part: &[u8]) -> Option<()> {
        self.bytes_left = self.bytes_left.checked_sub(part.len())?;
        self.context.update(&(part.len() as u64).to_le_bytes());
        self.context.update(part);
        Some(())
    }

    /// Adds the settings that functions on the coordinator may depend on.
    fn add_config(&mut self, config: &ConfigOptions) -> Option<()> {
        self.add(format!("{:?}", config.execution.time_zone).as_bytes())
    }

    fn add_fragment(&mut self, table: RelationId, fragment: &Fragment) -> Option<()> {
        let builds = fragment.reduction().map(Reduction::builds).unwrap_or_default();
        let build_bytes = builds.iter().map(get_record_batch_memory_size).fold(0, usize::saturating_add);
        // Encoding what will not be used would cost more than it is worth.
        self.bytes_left.checked_sub(build_bytes)?;
        self.add(table.0.as_bytes())?;
        match resolve(fragment).ok()? {
            None => self.add_resolved(fragment),
            Some(Resolved::Fragment(fragment)) => self.add_resolved(&fragment),
            Some(Resolved::Nothing) => None,
        }
    }

    fn add_resolved(&mut self, fragment: &Fragment) -> Option<()> {
        let operators = fragment.reduction().map(Reduction::plan);
        if !operators.is_none_or(operators_mean_the_same) {
            return None;
        }
        self.add(&encode_fragment(fragment).ok()?.encode_to_vec())
    }

    /// Adds what rows a plan yields, in whatever order and partitions.
    fn add_plan(&mut self, plan: &Arc<dyn ExecutionPlan>) -> Option<()> {
        if let Some(scan) = plan.downcast_ref::<StorageScanExec>() {
            return self.add_scan(scan);
        }
        let only_moves = plan.is::<JoinKeysExec>()
            || plan.is::<BroadcastExec>()
            || plan.is::<GatherExec>()
            || plan.is::<KeptStatesExec>()
            || plan.is::<CooperativeExec>()
            || plan.is::<UnorderedExec>()
            || (plan.is::<RepartitionExec>() || plan.is::<CoalescePartitionsExec>()) && plan.fetch().is_none();
        if !only_moves {
            let operator = without_run(plan)?;
            let codec = DefaultPhysicalExtensionCodec {};
            self.add(&PhysicalPlanNode::try_from_physical_plan(operator, &codec).ok()?.encode_to_vec())?;
        }
        plan.children().into_iter().try_for_each(|child| self.add_plan(child))
    }

    fn add_scan(&mut self, scan: &StorageScanExec) -> Option<()> {
        // Which rows a limit leaves is another matter each time.
        if scan.fragment().limit().is_some() {
            return None;
        }
        self.add(&scan.named_fragment().key()?.0)?;
        let segments = scan.segment_ids();
        self.add(&segments.iter().flat_map(|segment| *segment.0.as_bytes()).collect::<Vec<_>>())
    }

    fn finish(self) -> Option<ResultKey> {
        self.context.finish().as_ref().try_into().ok().map(ResultKey)
    }
}

/// An operator that makes the same rows of the same rows whenever it runs, over placeholders and without what belongs to
/// one run; `None` for any other.
fn without_run(plan: &Arc<dyn ExecutionPlan>) -> Option<Arc<dyn ExecutionPlan>> {
    let aggregate = plan.downcast_ref::<AggregateExec>();
    let known = aggregate.is_some_and(|aggregate| aggregate.limit_options().is_none())
        || plan.is::<HashJoinExec>()
        || plan.is::<ProjectionExec>()
        || plan.is::<FilterExec>();
    if !known || plan.fetch().is_some() {
        return None;
    }
    let placeholder = |child: &Arc<dyn ExecutionPlan>| Arc::new(EmptyExec::new(child.schema())) as _;
    let operator = make_anew(plan, plan.children().into_iter().map(placeholder).collect()).ok()?;
    operators_mean_the_same(&operator).then_some(operator)
}

/// Whether all expressions of operators say what their values depend on.
fn operators_mean_the_same(operators: &Arc<dyn ExecutionPlan>) -> bool {
    let mut same = true;
    let walked = operators.apply(|operator| {
        operator.apply_expressions(&mut |expression| {
            same &= !is_volatile(expression) && !needs_subquery(expression);
            Ok(TreeNodeRecursion::Continue)
        })
    });
    same && walked.is_ok()
}

/// Whether all filters that scans of `plan` get while it runs come from its own operators, so that what it yields depends
/// on nothing else.
fn cuts_itself_down(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let (mut keys, mut ids, mut filters) = (Vec::new(), Vec::new(), Vec::new());
    // The closure never fails, so neither does the walk.
    let _ = plan.apply(|node| {
        keys.extend(node.downcast_ref::<JoinKeysExec>().map(|node| Arc::clone(node.keys())));
        ids.extend(node.dynamic_expressions_produced().iter().filter_map(|filter| filter.expression_id()));
        filters.extend(
            node.downcast_ref::<StorageScanExec>().into_iter().flat_map(StorageScanExec::runtime_filters).cloned(),
        );
        Ok(TreeNodeRecursion::Continue)
    });
    filters.iter().all(|filter| filter.comes_from(&keys, &ids))
}
