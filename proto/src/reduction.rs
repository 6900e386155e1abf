//! What becomes of a fragment's rows before they are sent: a partial aggregate, of the rows themselves, of these in an
//! order, or of what joins with small tables make of them, or the first rows of an order.

use std::sync::Arc;

use arrow::datatypes::{DataType, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::common::JoinType;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::{LexOrdering, PhysicalExpr};
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode, PhysicalGroupBy};
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::joins::{HashJoinExec, PartitionMode};
use datafusion::physical_plan::projection::ProjectionExec;
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

/// DataFusion's operators over a placeholder for the rows of a segment. Reduced rows of several segments can be merged
/// into rows of the same schema.
#[derive(Clone, Debug)]
pub struct Reduction {
    kind: ReductionKind,
    /// Its only child is an [`EmptyExec`], or operators of [`placeholder`] over one.
    plan: Arc<dyn ExecutionPlan>,
    /// The build sides of the joins, the lowest first.
    builds: Arc<[RecordBatch]>,
    /// Over [`Reduction::schema`].
    having: Option<Arc<dyn PhysicalExpr>>,
}

impl Reduction {
    /// The partial aggregation that `aggregate` stands for, whatever its input. Where one of its functions takes rows in
    /// an order only, the rows of a segment are sorted first.
    ///
    /// # Errors
    /// When it is not the partial stage of an aggregation, or its functions would take the order for another one than
    /// those of the stage that merges the states.
    pub fn aggregate(aggregate: &AggregateExec) -> Result<Self> {
        let mut input: Arc<dyn ExecutionPlan> = Arc::new(EmptyExec::new(aggregate.input().schema()));
        if let Some(order) = order_needed(aggregate) {
            input = Arc::new(SortExec::new(order, input));
        }
        let plan = AggregateExec::try_new(
            *aggregate.mode(),
            aggregate.group_expr().clone(),
            aggregate.aggr_expr().to_vec(),
            aggregate.filter_expr().to_vec(),
            input,
            aggregate.input_schema(),
        )?;
        // An operator that is made anew may reverse a function that orders its rows, by what it knows of its input.
        let is_same = |(made, planned): (&Arc<AggregateFunctionExpr>, &Arc<AggregateFunctionExpr>)| {
            made.is_reversed() == planned.is_reversed() && made.order_bys() == planned.order_bys()
        };
        if !plan.aggr_expr().iter().zip(aggregate.aggr_expr()).all(is_same) {
            let text = "an aggregate function would order its rows the other way round than the final stage";
            return Err(Error::new(ErrorCode::NotSupported, text));
        }
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

    /// The reduction that a plan over an [`EmptyExec`] stands for. Below an aggregate there may be a sort of all rows, or
    /// projections, filters and hash joins, whose build sides are [`EmptyExec`]s as well and come by
    /// [`Reduction::with_builds`].
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
        let input = plan.children().into_iter().next();
        let over_placeholder = input.is_some_and(|input| match kind {
            Some(ReductionKind::Aggregate) => placeholder(input).is_some(),
            _ => input.is::<EmptyExec>(),
        });
        match kind {
            Some(kind) if over_placeholder => Ok(Self { kind, plan, builds: Arc::from([]), having: None }),
            _ => {
                let text = format!("{} is no reduction that storage nodes know", plan.name());
                Err(Error::new(ErrorCode::NotSupported, text))
            }
        }
    }

    /// The same with the build sides of its joins, the lowest first.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidMessage`] when they do not fit the joins.
    pub fn with_builds(&self, builds: Vec<RecordBatch>) -> Result<Self> {
        let types = |schema: &Schema| schema.fields().iter().map(|field| field.data_type().clone()).collect::<Vec<_>>();
        let wanted: Vec<_> = self.build_schemas().iter().map(|schema| types(schema)).collect();
        let found: Vec<_> = builds.iter().map(|build| types(build.schema_ref())).collect();
        if wanted != found {
            let text = format!("joins with build sides of {wanted:?} came with {found:?}");
            return Err(Error::new(ErrorCode::InvalidMessage, text));
        }
        Ok(Self { builds: builds.into(), ..self.clone() })
    }

    /// The build sides of its joins, the lowest first.
    pub fn builds(&self) -> &[RecordBatch] {
        &self.builds
    }

    /// What the build sides of its joins yield, the lowest first.
    pub fn build_schemas(&self) -> Vec<SchemaRef> {
        let mut schemas = Vec::new();
        let mut node = &self.plan;
        while let Some(input) = spine(node) {
            schemas.extend(node.downcast_ref::<HashJoinExec>().map(|join| join.left().schema()));
            node = input;
        }
        schemas.reverse();
        schemas
    }

    /// The same partial aggregate, of whose groups those may be left out for which `having` (over
    /// [`Reduction::schema`]) is not true of the states over a whole segment. States that do not stand for all rows of
    /// their group in the segment are never left out.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidMessage`] when it is no predicate over the states, or this is no aggregate.
    pub fn with_having(&self, having: Arc<dyn PhysicalExpr>) -> Result<Self> {
        let data_type = having.data_type(&self.schema()).map_err(Error::from)?;
        if self.kind != ReductionKind::Aggregate || data_type != DataType::Boolean {
            let text = format!("{having} does not tell which groups of {} are left out", self.describe());
            return Err(Error::new(ErrorCode::InvalidMessage, text));
        }
        Ok(Self { having: Some(having), ..self.clone() })
    }

    /// The same, with what `replace` gives for the arguments of its aggregates, which mean the same over rows of their
    /// schema. An aggregate that depends on an order keeps its arguments.
    ///
    /// # Errors
    /// Those of `replace`, and of making the operator anew.
    pub fn with_arguments(
        &self,
        replace: impl Fn(Arc<dyn PhysicalExpr>, &Schema) -> Result<Arc<dyn PhysicalExpr>>,
    ) -> Result<Self> {
        let Some(aggregate) = self.plan.downcast_ref::<AggregateExec>() else { return Ok(self.clone()) };
        let schema = aggregate.input().schema();
        let functions = aggregate.aggr_expr().iter().map(|function| {
            if !function.order_bys().is_empty() || function.is_reversed() {
                return Ok(Arc::clone(function));
            }
            let arguments = function.expressions().into_iter().map(|argument| replace(argument, &schema));
            let replaced = function.with_new_expressions(arguments.collect::<Result<_>>()?, Vec::new());
            Ok(replaced.map_or_else(|| Arc::clone(function), Arc::new))
        });
        let functions: Vec<_> = functions.collect::<Result<_>>()?;
        let plan = AggregateExec::try_new(
            *aggregate.mode(),
            aggregate.group_expr().clone(),
            functions,
            aggregate.filter_expr().to_vec(),
            Arc::clone(aggregate.input()),
            aggregate.input_schema(),
        )?;
        Ok(Self { plan: Arc::new(plan), ..self.clone() })
    }

    /// The same, with what `replace` gives for the keys, the arguments and the filters of its aggregates, which has to be
    /// of the same type. An aggregate that depends on an order keeps its arguments.
    ///
    /// # Errors
    /// Those of `replace`, and of making the operator anew.
    pub fn with_expressions(
        &self,
        replace: impl Fn(&Arc<dyn PhysicalExpr>) -> Result<Arc<dyn PhysicalExpr>>,
    ) -> Result<Self> {
        let replaced = self.with_arguments(|argument, _| replace(&argument))?;
        let Some(aggregate) = replaced.plan.downcast_ref::<AggregateExec>() else { return Ok(replaced) };
        let group = aggregate.group_expr();
        let keys = group.expr().iter().map(|(key, name)| Ok((replace(key)?, name.clone())));
        let keys = keys.collect::<Result<Vec<_>>>()?;
        let filters = aggregate.filter_expr().iter().map(|filter| filter.as_ref().map(&replace).transpose());
        let plan = AggregateExec::try_new(
            *aggregate.mode(),
            PhysicalGroupBy::new(keys, group.null_expr().to_vec(), group.groups().to_vec(), group.has_grouping_set()),
            aggregate.aggr_expr().to_vec(),
            filters.collect::<Result<_>>()?,
            Arc::clone(aggregate.input()),
            aggregate.input_schema(),
        )?;
        Ok(Self { plan: Arc::new(plan), ..replaced })
    }

    /// What groups have to be like to be sent; see [`Reduction::with_having`].
    pub fn having(&self) -> Option<&Arc<dyn PhysicalExpr>> {
        self.having.as_ref()
    }

    /// Which kind it is.
    pub fn kind(&self) -> ReductionKind {
        self.kind
    }

    /// The operator, over a placeholder.
    pub fn plan(&self) -> &Arc<dyn ExecutionPlan> {
        &self.plan
    }

    /// The order in which an aggregate takes the rows of a segment, where it needs one; over
    /// [`Reduction::input_schema`].
    pub fn order(&self) -> Option<&LexOrdering> {
        let aggregate = self.plan.downcast_ref::<AggregateExec>()?;
        aggregate.input().downcast_ref::<SortExec>().map(SortExec::expr)
    }

    /// What it reads.
    pub fn input_schema(&self) -> SchemaRef {
        spine(&self.plan).and_then(placeholder).unwrap_or(&self.plan).schema()
    }

    /// What it yields.
    pub fn schema(&self) -> SchemaRef {
        self.plan.schema()
    }

    /// The operator over `input`, which has [`Reduction::input_schema`]. Each call makes an operator
    /// of its own: two runs share nothing.
    ///
    /// # Errors
    /// When `input` has another schema, or build sides are missing.
    pub fn over(&self, input: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
        over(&self.plan, input, &mut self.builds.iter())
    }

    /// The same over rows that are in [`Reduction::order`] already.
    ///
    /// # Errors
    /// Those of [`Reduction::over`].
    pub fn over_ordered(&self, input: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
        match self.order() {
            None => self.over(input),
            Some(_) => Ok(replace_children_if_necessary(Arc::clone(&self.plan), vec![input])?.reset_state()?),
        }
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

    /// One line for people, the joins not included.
    pub fn describe(&self) -> String {
        let text = displayable(self.plan.as_ref()).one_line().to_string();
        text.trim_end().to_owned()
    }
}

/// The input of an operator through which the rows of a segment go: the probe side of a join.
fn spine(node: &Arc<dyn ExecutionPlan>) -> Option<&Arc<dyn ExecutionPlan>> {
    match node.downcast_ref::<HashJoinExec>() {
        Some(join) => Some(join.right()),
        None => node.children().into_iter().next(),
    }
}

/// The order that the rows below a partial aggregate have to have, where one of its functions takes no other.
fn order_needed(aggregate: &AggregateExec) -> Option<LexOrdering> {
    if !aggregate.aggr_expr().iter().any(|function| takes_ordered_rows_only(function)) {
        return None;
    }
    // None where the order is certain: by what all rows of a group have in common.
    let required = aggregate.required_input_ordering().into_iter().next().flatten()?;
    Some(LexOrdering::from(required.into_single()))
}

/// Whether an aggregate function relies on the order of the rows that it is given; others keep what they order by in
/// their states, or only name what they aggregate by it.
pub fn takes_ordered_rows_only(function: &AggregateFunctionExpr) -> bool {
    let takes_any_order = function.order_sensitivity().is_beneficial() || function.fun().supports_within_group_clause();
    !function.order_bys().is_empty() && !takes_any_order
}

/// The placeholder for the rows of a segment at the bottom of a plan, if all above it are operators that a partial
/// aggregate may have below it: a sort of all rows alone, or some that keep no rows, and may run over each segment alone.
fn placeholder(plan: &Arc<dyn ExecutionPlan>) -> Option<&Arc<dyn ExecutionPlan>> {
    let sort = plan.downcast_ref::<SortExec>().filter(|sort| sort.fetch().is_none());
    if let Some(sort) = sort {
        return Some(sort.input()).filter(|input| input.is::<EmptyExec>());
    }
    let mut node = plan;
    while !node.is::<EmptyExec>() {
        let join = node.downcast_ref::<HashJoinExec>();
        let reads_all = join.is_some_and(|join| !join_is_local(join) || !join.left().is::<EmptyExec>());
        let known =
            join.is_some() || node.is::<ProjectionExec>() || (node.is::<FilterExec>() && node.fetch().is_none());
        if reads_all || !known {
            return None;
        }
        node = spine(node)?;
    }
    Some(node)
}

/// Whether what a join makes of a row of its probe side depends on its build side alone.
pub fn join_is_local(join: &HashJoinExec) -> bool {
    let by_row =
        matches!(join.join_type(), JoinType::Inner | JoinType::Right | JoinType::RightSemi | JoinType::RightAnti);
    by_row && !join.null_aware && join.fetch().is_none() && *join.partition_mode() == PartitionMode::CollectLeft
}

fn over<'a>(
    node: &Arc<dyn ExecutionPlan>,
    input: Arc<dyn ExecutionPlan>,
    builds: &mut impl Iterator<Item = &'a RecordBatch>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let Some(below) = spine(node) else { return Ok(input) };
    let mut children = vec![over(below, input, builds)?];
    if let Some(join) = node.downcast_ref::<HashJoinExec>() {
        let build = builds.next().ok_or_else(|| Error::internal("a join of a fragment has no build side"))?;
        let build = RecordBatch::try_new(join.left().schema(), build.columns().to_vec())?;
        let rows = if build.num_rows() > 0 { vec![build] } else { Vec::new() };
        let build = MemorySourceConfig::try_new_exec(&[rows], join.left().schema(), None)?;
        children.insert(0, build);
    }
    Ok(replace_children_if_necessary(Arc::clone(node), children)?.reset_state()?)
}
