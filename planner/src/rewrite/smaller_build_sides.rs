//! The rule that lets hash joins hash the side that is smaller by our own estimate.

use std::sync::Arc;

use arrow::datatypes::Schema;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{JoinType, Statistics};
use datafusion::error::{DataFusionError, Result};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::joins::HashJoinExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::statistics::{StatisticsArgs, StatisticsContext};

use crate::scan_exec::StorageScanExec;

/// How many times larger the hashed side has to be: where both are about as large, a join stays as it is.
const FACTOR: f64 = 2.0;
/// How many times more a row of the result of a join counts beside one of a scan: with [`FACTOR`], the result stays the
/// hashed side where it seems twice as small, and becomes it where it seems eight times as small.
const DOUBT: f64 = 4.0;
/// Bytes that a row costs beside its values: its place in the hash table, and what it is to be put there.
const ROW_BYTES: f64 = 48.0;
/// Bytes that a value without a fixed width is taken for.
const TEXT_BYTES: f64 = 24.0;

/// Swaps the sides of hash joins of which the hashed one is much larger.
///
/// DataFusion compares bytes first. For the output of semi joins it knows them badly: of two of them in a row, as EXISTS
/// and NOT EXISTS make them, the second one would hash a whole table. And of several keys it takes one for all, so that
/// the join of a key of two columns seems to multiply rows. The side that is not hashed is cut down by the keys of the
/// other, and a scan there sends so much less.
///
/// Of the result of a join less is known than of a scan: errors of estimates multiply (Ioannidis, Christodoulakis: On the
/// Propagation of Errors in the Size of Join Results, SIGMOD 1991). So in a star join the small tables are hashed, whose
/// keys then reach the scan of the large one, unless what is left of that seems much smaller.
///
/// It comes directly after `join_selection`.
#[derive(Debug)]
pub struct SmallerBuildSides;

fn statistics(context: &StatisticsContext, plan: &Arc<dyn ExecutionPlan>) -> Result<Arc<Statistics>> {
    context.compute(plan.as_ref(), &StatisticsArgs::new())
}

fn known_rows(statistics: &Statistics) -> Option<f64> {
    statistics.num_rows.get_value().map(|rows| *rows as f64)
}

/// About how many rows a plan yields.
fn rows(context: &StatisticsContext, plan: &Arc<dyn ExecutionPlan>) -> Result<Option<f64>> {
    if hands_on(plan) {
        return plan.children().into_iter().next().map_or(Ok(None), |input| rows(context, input));
    }
    let known = known_rows(statistics(context, plan)?.as_ref());
    let join = plan.downcast_ref::<HashJoinExec>().filter(|join| *join.join_type() == JoinType::Inner);
    let Some(join) = join else { return Ok(known) };
    let (Some(left), Some(right)) = (rows(context, join.left())?, rows(context, join.right())?) else {
        return Ok(known);
    };
    let (left_statistics, right_statistics) = (statistics(context, join.left())?, statistics(context, join.right())?);
    if join.on().len() > 1 {
        let of_left = distinct(join.on().iter().map(|(key, _)| key), &left_statistics, left);
        let of_right = distinct(join.on().iter().map(|(_, key)| key), &right_statistics, right);
        if let (Some(of_left), Some(of_right)) = (of_left, of_right) {
            return Ok(Some(left * right / of_left.max(of_right).max(1.0)));
        }
    }
    // What is better known of the sides holds for what comes of them.
    let better = |rows: f64, side: &Statistics| known_rows(side).map_or(1.0, |known| rows / known.max(1.0));
    Ok(known.map(|known| known * better(left, &left_statistics) * better(right, &right_statistics)))
}

/// About how many different keys of several columns there are in so many rows.
fn distinct<'a>(
    keys: impl Iterator<Item = &'a Arc<dyn PhysicalExpr>>,
    statistics: &Statistics,
    rows: f64,
) -> Option<f64> {
    let counts = keys.map(|key| {
        let column = statistics.column_statistics.get(key.downcast_ref::<Column>()?.index())?;
        column.distinct_count.get_value().map(|count| *count as f64)
    });
    Some(counts.collect::<Option<Vec<_>>>()?.into_iter().product::<f64>().min(rows))
}

/// What it costs to hash a side.
fn cost(context: &StatisticsContext, plan: &Arc<dyn ExecutionPlan>) -> Result<Option<f64>> {
    Ok(rows(context, plan)?.map(|rows| rows * (ROW_BYTES + width(&plan.schema()))))
}

/// How much less the result of a join is to be believed than that of a scan of some rows of a table, if these are few
/// enough to be hashed in one piece. Of a table that is read whole the keys would leave out nothing.
fn doubt(context: &StatisticsContext, join: &HashJoinExec, rows_max: usize) -> Result<f64> {
    let few = |plan| {
        Ok::<_, DataFusionError>(selects(plan) && rows(context, plan)?.is_some_and(|rows| rows <= rows_max as f64))
    };
    Ok(if *join.join_type() != JoinType::Inner {
        1.0
    } else if joins(join.left()) && few(join.right())? {
        DOUBT
    } else if few(join.left())? && joins(join.right()) {
        1.0 / DOUBT
    } else {
        1.0
    })
}

fn joins(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.is::<HashJoinExec>() || plan.children().into_iter().any(joins)
}

/// Whether a plan yields some rows of a table.
fn selects(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let (mut node, mut filtered) = (plan, false);
    loop {
        if let Some(scan) = node.downcast_ref::<StorageScanExec>() {
            return filtered || scan.fragment().filter().is_some();
        }
        filtered |= node.is::<FilterExec>();
        match node.children().into_iter().next() {
            Some(input) if node.is::<FilterExec>() || hands_on(node) => node = input,
            _ => return false,
        }
    }
}

/// Whether an operator yields the rows of its input.
fn hands_on(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.is::<ProjectionExec>() || plan.is::<RepartitionExec>() || plan.is::<CoalescePartitionsExec>()
}

fn width(schema: &Schema) -> f64 {
    schema
        .fields()
        .iter()
        .map(|field| field.data_type().primitive_width().map_or(TEXT_BYTES, |bytes| bytes as f64))
        .sum()
}

impl PhysicalOptimizerRule for SmallerBuildSides {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        if !config.optimizer.join_reordering {
            return Ok(plan);
        }
        let plan = plan.transform_up(|node| {
            let Some(join) = node.downcast_ref::<HashJoinExec>() else { return Ok(Transformed::no(node)) };
            let may_swap = matches!(
                join.join_type(),
                JoinType::Inner | JoinType::LeftSemi | JoinType::LeftAnti | JoinType::RightSemi | JoinType::RightAnti
            );
            if !may_swap || join.null_aware {
                return Ok(Transformed::no(node));
            }
            // It remembers plans by where they are in memory, so that it must not outlive a change of them.
            let context = StatisticsContext::new();
            let doubt = doubt(&context, join, config.optimizer.hash_join_single_partition_threshold_rows)?;
            match (cost(&context, join.left())?, cost(&context, join.right())?) {
                (Some(hashed), Some(other)) if hashed * doubt > other * FACTOR => {
                    join.swap_inputs(*join.partition_mode()).map(Transformed::yes)
                }
                _ => Ok(Transformed::no(node)),
            }
        });
        plan.map(|plan| plan.data)
    }

    fn name(&self) -> &str {
        "SmallerBuildSides"
    }

    fn schema_check(&self) -> bool {
        true
    }
}
