//! The rule that keeps what is known of rows from being taken for known of their grouping sets.

use std::fmt;
use std::sync::Arc;

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Statistics, internal_datafusion_err};
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::execution_plan::{
    CardinalityEffect, ChildrenPropertiesMode, ReplaceChildrenOptions, replace_children_if_necessary,
};
use datafusion::physical_plan::statistics::{ChildStats, StatisticsArgs};
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};

/// Puts a [`ForgetExec`] below every aggregation with grouping sets.
///
/// A filter makes a column constant, or two of them equal, and a set that leaves a column out makes it null again.
/// DataFusion 55 carries such knowledge through the aggregation: it then leaves the column out of orders above, and
/// takes groups for complete that are not.
///
/// It comes after the rules that move aggregations to storage nodes, and before those that rely on orders.
#[derive(Debug)]
pub struct ForgetBelowGroupingSets;

impl PhysicalOptimizerRule for ForgetBelowGroupingSets {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let plan = plan.transform_up(|node| {
            let sets =
                node.downcast_ref::<AggregateExec>().filter(|aggregate| aggregate.group_expr().has_grouping_set());
            let Some(input) = sets.map(AggregateExec::input).filter(|input| !input.is::<ForgetExec>()) else {
                return Ok(Transformed::no(node));
            };
            let forgetting: Arc<dyn ExecutionPlan> = Arc::new(ForgetExec::new(Arc::clone(input)));
            replace_children_if_necessary(node, vec![forgetting]).map(Transformed::yes)
        });
        plan.map(|plan| plan.data)
    }

    fn name(&self) -> &str {
        "ForgetBelowGroupingSets"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// Yields what its input yields, of which nothing is known: neither orders, nor constants, nor which columns are equal.
#[derive(Debug)]
pub(crate) struct ForgetExec {
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl ForgetExec {
    fn new(input: Arc<dyn ExecutionPlan>) -> Self {
        let before = input.properties();
        let equivalence = EquivalenceProperties::new(input.schema());
        let properties =
            PlanProperties::new(equivalence, before.partitioning.clone(), before.emission_type, before.boundedness)
                .with_scheduling_type(before.scheduling_type);
        Self { properties: Arc::new(properties), input }
    }
}

impl DisplayAs for ForgetExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ForgetExec")
    }
}

impl ExecutionPlan for ForgetExec {
    fn name(&self) -> &str {
        "ForgetExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match children.into_iter().next() {
            Some(input) => Ok(Arc::new(Self::new(input))),
            None => Err(internal_datafusion_err!("ForgetExec has one child")),
        }
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        self.input.execute(partition, context)
    }

    fn child_stats_requests(&self, partition: Option<usize>) -> Vec<ChildStats> {
        vec![ChildStats::At(partition)]
    }

    fn statistics_from_inputs(&self, inputs: &[Arc<Statistics>], _args: &StatisticsArgs) -> Result<Arc<Statistics>> {
        Ok(inputs.first().cloned().unwrap_or_else(|| Arc::new(Statistics::new_unknown(&self.schema()))))
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::Equal
    }
}
