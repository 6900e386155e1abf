//! What a row has to pass to be among the first of an order, learned while the rows are read: later
//! row groups are skipped by it, or only the order's columns of them are decoded for most rows.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{Column, lit};
use datafusion::physical_expr::utils::conjunction;

use super::files::SegmentFiles;
use super::plan::FragmentPlan;
use super::prune::Pruner;
use super::stages::{FilterStage, can_fail};

/// A bound as it is at the start of a row group.
pub(super) struct Bound {
    pub(super) stage: FilterStage,
    pruner: Pruner,
}

impl Bound {
    /// The bound that all of `bounds` make, which are over the projected columns. `None` where it
    /// says nothing, or might fail on rows that the filter leaves out: it is never needed.
    pub(super) fn new(files: &SegmentFiles, bounds: impl IntoIterator<Item = Arc<dyn PhysicalExpr>>) -> Option<Self> {
        let plan = &files.plan;
        let bounds: Vec<_> = bounds.into_iter().filter(|bound| !bound.eq(&lit(true))).collect();
        if bounds.is_empty() {
            return None;
        }
        let bound = over_scan(conjunction(bounds), plan)?;
        if can_fail(&bound).unwrap_or(true) {
            return None;
        }
        let pruner = Pruner::new(Some(&bound), &plan.scan_schema, &files.columns.reader_schema);
        let stage = FilterStage::new(bound, &plan.scan_schema).ok()?;
        (!stage.columns.is_empty()).then_some(Self { stage, pruner })
    }

    /// Whether a row group may hold a row that passes.
    pub(super) fn admits(&self, files: &SegmentFiles, group: usize) -> bool {
        self.pruner.admits(files.metadata.metadata(), &files.columns.reader_schema, group)
    }
}

/// The bound over the scan's columns instead of the projected ones.
fn over_scan(bound: Arc<dyn PhysicalExpr>, plan: &FragmentPlan) -> Option<Arc<dyn PhysicalExpr>> {
    let replaced = bound.transform_up(|node| {
        let column = node.downcast_ref::<Column>().map(Column::index);
        let expression = column.and_then(|index| plan.scan_projection.get(index));
        Ok(match expression {
            Some(expression) => Transformed::yes(Arc::clone(expression)),
            None => Transformed::no(node),
        })
    });
    replaced.ok().map(|replaced| replaced.data)
}
