//! What becomes of a fragment's rows before they are sent: a partial aggregate, or the first rows of
//! an order.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::{ExecutionPlan, displayable};

use crate::code::ErrorCode;
use crate::error::{Error, Result};

/// Which kind of reduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReductionKind {
    /// Rows become the states of a partial aggregate.
    Aggregate,
    /// Of the rows only the first in an order are kept.
    TopK,
}

/// One of DataFusion's operators, over a placeholder for the rows of a segment. Reduced rows of
/// several segments can be merged into rows of the same schema.
#[derive(Clone, Debug)]
pub struct Reduction {
    kind: ReductionKind,
    /// Its only child is an [`EmptyExec`].
    plan: Arc<dyn ExecutionPlan>,
}

impl Reduction {
    /// The partial aggregation that `aggregate` stands for, whatever its input.
    ///
    /// # Errors
    /// When it is not the partial stage of an aggregation.
    pub fn aggregate(aggregate: &AggregateExec) -> Result<Self> {
        let input: Arc<dyn ExecutionPlan> = Arc::new(EmptyExec::new(aggregate.input().schema()));
        let plan = AggregateExec::try_new(
            *aggregate.mode(),
            aggregate.group_expr().clone(),
            aggregate.aggr_expr().to_vec(),
            aggregate.filter_expr().to_vec(),
            input,
            aggregate.input_schema(),
        )?;
        Self::try_from_plan(Arc::new(plan))
    }

    /// The first rows of an order that `sort` stands for, whatever its input.
    ///
    /// # Errors
    /// When it keeps all rows.
    pub fn top_k(sort: &SortExec) -> Result<Self> {
        let input: Arc<dyn ExecutionPlan> = Arc::new(EmptyExec::new(sort.input().schema()));
        let plan = SortExec::new(sort.expr().clone(), input).with_fetch(sort.fetch());
        Self::try_from_plan(Arc::new(plan))
    }

    /// The reduction that a plan over an [`EmptyExec`] stands for.
    ///
    /// # Errors
    /// [`ErrorCode::NotSupported`] for any other operator.
    pub fn try_from_plan(plan: Arc<dyn ExecutionPlan>) -> Result<Self> {
        let kind = if let Some(aggregate) = plan.downcast_ref::<AggregateExec>() {
            (*aggregate.mode() == AggregateMode::Partial && aggregate.limit_options().is_none())
                .then_some(ReductionKind::Aggregate)
        } else {
            plan.downcast_ref::<SortExec>().and_then(SortExec::fetch).map(|_| ReductionKind::TopK)
        };
        let children = plan.children();
        let over_placeholder = children.len() == 1 && children.iter().all(|child| child.is::<EmptyExec>());
        match kind {
            Some(kind) if over_placeholder => Ok(Self { kind, plan }),
            _ => {
                let text = format!("{} is no reduction that storage nodes know", plan.name());
                Err(Error::new(ErrorCode::NotSupported, text))
            }
        }
    }

    /// Which kind it is.
    pub fn kind(&self) -> ReductionKind {
        self.kind
    }

    /// The operator, over a placeholder.
    pub fn plan(&self) -> &Arc<dyn ExecutionPlan> {
        &self.plan
    }

    /// What it reads.
    pub fn input_schema(&self) -> SchemaRef {
        self.plan.children().first().map_or_else(|| self.plan.schema(), |input| input.schema())
    }

    /// What it yields.
    pub fn schema(&self) -> SchemaRef {
        self.plan.schema()
    }

    /// The operator over `input`, which has [`Reduction::input_schema`]. Each call makes an operator
    /// of its own: two runs share nothing.
    ///
    /// # Errors
    /// When `input` has another schema.
    pub fn over(&self, input: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(replace_children_if_necessary(Arc::clone(&self.plan), vec![input])?.reset_state()?)
    }

    /// An operator that merges reduced rows: both its input and its output have
    /// [`Reduction::schema`].
    ///
    /// # Errors
    /// When `reduced` has another schema.
    pub fn merge_over(&self, reduced: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(aggregate) = self.plan.downcast_ref::<AggregateExec>() else { return self.over(reduced) };
        let merge = AggregateExec::try_new(
            AggregateMode::PartialReduce,
            aggregate.group_expr().as_final(),
            aggregate.aggr_expr().to_vec(),
            // Rows that a FILTER clause leaves out are not in the states.
            vec![None; aggregate.aggr_expr().len()],
            reduced,
            aggregate.input_schema(),
        )?;
        Ok(Arc::new(merge))
    }

    /// One line for people.
    pub fn describe(&self) -> String {
        let text = displayable(self.plan.as_ref()).one_line().to_string();
        text.trim_end().to_owned()
    }
}
