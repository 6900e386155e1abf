//! The rule that lets joins be cancelled.

use std::fmt;
use std::sync::Arc;

use datafusion::common::Statistics;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::coop::make_cooperative;
use datafusion::physical_plan::execution_plan::{CardinalityEffect, ReplaceChildrenOptions};
use datafusion::physical_plan::statistics::{ChildStats, StatisticsArgs};
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};

use crate::pass_through::{has_no_expressions, has_properties_of, only_child, passes_through};

/// Puts a [`YieldingExec`] above every join.
///
/// DataFusion's leaves give way to other tasks after some batches, and its `EnsureCooperative` relies on that. A join
/// can make billions of rows of two small inputs without asking a leaf for a batch: such a query could not be
/// cancelled, and would hold its thread against all others.
#[derive(Debug, Default)]
pub struct YieldingJoins;

impl PhysicalOptimizerRule for YieldingJoins {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let plan = plan.transform_up(|node| {
            Ok(match node.name().ends_with("JoinExec") {
                true => Transformed::yes(Arc::new(YieldingExec { input: node }) as Arc<dyn ExecutionPlan>),
                false => Transformed::no(node),
            })
        });
        plan.map(|plan| plan.data)
    }

    fn name(&self) -> &str {
        "YieldingJoins"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// Yields what its input yields, and gives way to other tasks after some batches. Unlike DataFusion's `CooperativeExec` it
/// has the properties of its input, so that those of all operators above need not be computed anew for each run.
#[derive(Debug)]
pub(crate) struct YieldingExec {
    input: Arc<dyn ExecutionPlan>,
}

impl DisplayAs for YieldingExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("YieldingExec")
    }
}

impl ExecutionPlan for YieldingExec {
    fn name(&self) -> &str {
        "YieldingExec"
    }

    has_properties_of!(input);

    passes_through!(input);

    has_no_expressions!();

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input = only_child(self.name(), children)?;
        Ok(Arc::new(Self { input }))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        self.input.execute(partition, context).map(make_cooperative)
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::Equal
    }
}
