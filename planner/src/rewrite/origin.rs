//! Where a column of a plan comes from.

use std::sync::Arc;

use datafusion::common::{JoinSide, JoinType};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::joins::HashJoinExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::{ExecutionPlan, Partitioning};

use crate::join_keys::JoinKeysExec;
use crate::scan_exec::StorageScanExec;

/// What operators between a column and its scan may do with it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Between {
    /// Nothing but hand it on, once.
    HandOn,
    /// Look at it as well.
    LookAt,
}

impl Between {
    fn allows(self, looks_at_it: bool) -> bool {
        self == Self::LookAt || !looks_at_it
    }

    /// What is at `column` of a choice of columns.
    fn chosen(self, chosen: &[usize], column: usize) -> Option<usize> {
        let below = chosen.get(column)?;
        self.allows(chosen.iter().filter(|other| *other == below).count() > 1).then_some(*below)
    }
}

pub(super) fn column_of(expression: &Arc<dyn PhysicalExpr>) -> Option<usize> {
    expression.downcast_ref::<Column>().map(Column::index)
}

pub(super) fn reads(expression: &Arc<dyn PhysicalExpr>, column: usize) -> bool {
    collect_columns(expression).iter().any(|read| read.index() == column)
}

/// The scan that a column comes from, and its place there, with nothing on the way that would have other rows if the scan
/// left out those that nothing above wants.
#[recursive::recursive]
pub(super) fn origin(
    node: &Arc<dyn ExecutionPlan>,
    column: usize,
    between: Between,
) -> Option<(&Arc<dyn ExecutionPlan>, usize)> {
    if node.is::<StorageScanExec>() {
        return Some((node, column));
    }
    if node.fetch().is_some() {
        return None;
    }
    if let Some(projection) = node.downcast_ref::<ProjectionExec>() {
        let below = column_of(&projection.expr().get(column)?.expr)?;
        let readers = projection.expr().iter().filter(|projected| reads(&projected.expr, below)).count();
        return if between.allows(readers > 1) { origin(projection.input(), below, between) } else { None };
    }
    if let Some(join) = node.downcast_ref::<HashJoinExec>() {
        return origin_in_join(join, column, between);
    }
    if let Some(filter) = node.downcast_ref::<FilterExec>() {
        let below = match filter.projection() {
            Some(projection) => between.chosen(projection, column)?,
            None => column,
        };
        let is_read = reads(filter.predicate(), below);
        return if between.allows(is_read) { origin(filter.input(), below, between) } else { None };
    }
    let passes = match node.downcast_ref::<RepartitionExec>().map(RepartitionExec::partitioning) {
        Some(Partitioning::Hash(by, _)) => between.allows(by.iter().any(|key| reads(key, column))),
        Some(Partitioning::RoundRobinBatch(_)) => true,
        Some(_) => false,
        None => node.is::<CoalescePartitionsExec>() || node.is::<CooperativeExec>() || node.is::<JoinKeysExec>(),
    };
    match node.children().as_slice() {
        [input] if passes => origin(input, column, between),
        _ => None,
    }
}

/// The same below a join, of a side whose rows are never made up: for a row without partner the other side is null.
fn origin_in_join(join: &HashJoinExec, column: usize, between: Between) -> Option<(&Arc<dyn ExecutionPlan>, usize)> {
    let column = match &join.projection {
        Some(projection) => between.chosen(projection, column)?,
        None => column,
    };
    let left = join.left().schema().fields().len();
    let of_left = |column: usize| (column < left).then_some((JoinSide::Left, column));
    let of_right = |column: usize| column.checked_sub(left).map(|column| (JoinSide::Right, column));
    let (side, column) = match join.join_type() {
        JoinType::Inner => of_left(column).or_else(|| of_right(column)),
        JoinType::Left | JoinType::LeftSemi | JoinType::LeftAnti => of_left(column),
        JoinType::Right => of_right(column),
        JoinType::RightSemi | JoinType::RightAnti => Some((JoinSide::Right, column)),
        JoinType::Full | JoinType::LeftMark | JoinType::RightMark => None,
    }?;
    let is_left = side == JoinSide::Left;
    let mut keys = join.on().iter().map(|(left, right)| if is_left { left } else { right });
    let mut filtered = join.filter().into_iter().flat_map(|filter| filter.column_indices());
    let is_read = keys.any(|key| reads(key, column)) || filtered.any(|read| read.side == side && read.index == column);
    if !between.allows(is_read) {
        return None;
    }
    origin(if is_left { join.left() } else { join.right() }, column, between)
}
