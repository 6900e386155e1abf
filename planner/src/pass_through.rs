//! What all operators of ours have in common that pass their input's rows on.

use std::sync::Arc;

use datafusion::common::internal_datafusion_err;
use datafusion::error::Result;
use datafusion::physical_plan::ExecutionPlan;

/// The only one of an operator's new children.
pub(crate) fn only_child(name: &str, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
    children.into_iter().next().ok_or_else(|| internal_datafusion_err!("{name} has one child"))
}

/// The methods of an [`ExecutionPlan`] with one child, in the field that is named.
macro_rules! has_child {
    ($input:ident) => {
        fn benefits_from_input_partitioning(&self) -> Vec<bool> {
            vec![false]
        }

        fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
            vec![&self.$input]
        }

        fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
            use datafusion::physical_plan::execution_plan::ChildrenPropertiesMode;
            self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
        }

        fn child_stats_requests(&self, partition: Option<usize>) -> Vec<ChildStats> {
            vec![ChildStats::At(partition)]
        }
    };
}

/// The methods of an [`ExecutionPlan`] with one child, in the field that is named, whose rows it yields.
macro_rules! passes_through {
    ($input:ident) => {
        crate::pass_through::has_child!($input);

        fn statistics_from_inputs(
            &self,
            inputs: &[Arc<Statistics>],
            _args: &StatisticsArgs,
        ) -> Result<Arc<Statistics>> {
            Ok(inputs.first().cloned().unwrap_or_else(|| Arc::new(Statistics::new_unknown(&self.schema()))))
        }
    };
}

/// The methods of an [`ExecutionPlan`] that says of its rows what its only child says of them.
macro_rules! has_properties_of {
    ($input:ident) => {
        fn properties(&self) -> &Arc<PlanProperties> {
            self.$input.properties()
        }

        fn maintains_input_order(&self) -> Vec<bool> {
            vec![true]
        }
    };
}

/// The method of an [`ExecutionPlan`] that has no expressions.
macro_rules! has_no_expressions {
    () => {
        fn apply_expressions(
            &self,
            _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
        ) -> Result<TreeNodeRecursion> {
            Ok(TreeNodeRecursion::Continue)
        }
    };
}

pub(crate) use {has_child, has_no_expressions, has_properties_of, passes_through};
