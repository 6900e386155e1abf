//! DataFusion's `FilterPushdown`, kept from plans in which it takes one column for another.

use std::collections::HashSet;
use std::sync::Arc;

use datafusion::common::JoinType;
use datafusion::common::config::ConfigOptions;
use datafusion::error::Result;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::joins::HashJoinExec;

use crate::pipeline::Rule;

/// Runs a rule that hands filters down by the names of columns, where these are enough.
///
/// DataFusion 55 looks for the column of a filter in the input of an operator by its name alone (`FilterRemapper`), and
/// takes the first of that name. The result of a join can have two: then a filter on the one, also the keys of another
/// join, or the bound of an order, would leave out rows by the other. And through a semi join it hands a filter on the key
/// of one side to the other, where the column of that name may be another than the key. So the rule runs below each
/// operator that has such an input; what it would have handed through there, [`super::CollectJoinKeys`] finds by places.
#[derive(Debug)]
pub struct UnambiguousPushdown {
    rule: Rule,
}

impl UnambiguousPushdown {
    /// Around `rule`, whose name it has.
    pub fn new(rule: Rule) -> Self {
        Self { rule }
    }

    #[recursive::recursive]
    fn below(&self, plan: Arc<dyn ExecutionPlan>, config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        if !plan.children().into_iter().any(is_ambiguous) {
            return self.rule.optimize(plan, config);
        }
        let children = plan.children().into_iter().map(|child| self.below(Arc::clone(child), config));
        let children = children.collect::<Result<Vec<_>>>()?;
        replace_children_if_necessary(plan, children)
    }
}

/// Whether a filter on a plan, or on what is below it, may be taken for one on another column.
#[recursive::recursive]
fn is_ambiguous(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let schema = plan.schema();
    let mut names = HashSet::with_capacity(schema.fields().len());
    !schema.fields().iter().all(|field| names.insert(field.name()))
        || plan.downcast_ref::<HashJoinExec>().is_some_and(has_other_key)
        || plan.children().into_iter().any(is_ambiguous)
}

/// Whether a key of the side that a semi join yields has the name of a column of the other side that is not its partner.
fn has_other_key(join: &HashJoinExec) -> bool {
    let column = |key: &Arc<dyn PhysicalExpr>| key.downcast_ref::<Column>().cloned();
    join.on().iter().any(|(left, right)| {
        let (key, partner, other) = match join.join_type() {
            JoinType::LeftSemi => (left, right, join.right()),
            JoinType::RightSemi => (right, left, join.left()),
            _ => return false,
        };
        let of_that_name = column(key).and_then(|key| other.schema().index_of(key.name()).ok());
        of_that_name.is_some_and(|place| column(partner).is_none_or(|partner| partner.index() != place))
    })
}

impl PhysicalOptimizerRule for UnambiguousPushdown {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        self.below(plan, config)
    }

    fn name(&self) -> &str {
        self.rule.name()
    }

    fn schema_check(&self) -> bool {
        self.rule.schema_check()
    }
}
