//! What a fragment means for decoding: which columns in which order, and where the filter goes.
//!
//! ```text
//! filter columns of stage 1 -> filter -> columns of stage 2 for the rows left -> filter -> ...
//!                                     -> the other output columns for the rows left
//! ```
//! The stages are those of [`super::stages`], and output columns are decoded only for rows that
//! pass. No column is decoded twice. Where a filter turns out to keep most rows, the row groups
//! that follow are decoded in one pass instead.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use aubade_proto::{Fragment, Result};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::utils::reassign_expr_columns;

use super::packed::over_packed;
use super::stages::{FilterStage, columns_of, stages_of};

/// The decoding plan of a fragment; the same for all segments.
#[derive(Debug)]
pub(crate) struct FragmentPlan {
    pub(crate) scan_schema: SchemaRef,
    /// The filter; empty where there is none.
    pub(crate) stages: Vec<FilterStage>,
    /// Whether the stages may be run one after the other: not where one pass is as good.
    pub(crate) staged: bool,
    /// Scan columns that the projection needs, ascending.
    pub(crate) output_columns: Vec<usize>,
    /// All scan columns that are needed, ascending.
    pub(crate) all_columns: Vec<usize>,
    /// The schema of `output_columns`.
    pub(crate) input_schema: SchemaRef,
    /// Over `input_schema`.
    pub(crate) projection: Vec<Arc<dyn PhysicalExpr>>,
    /// The same, over the scan schema.
    pub(crate) scan_projection: Vec<Arc<dyn PhysicalExpr>>,
    /// What the projection yields.
    pub(crate) projected_schema: SchemaRef,
}

impl FragmentPlan {
    pub(crate) fn new(fragment: &Fragment) -> Result<Self> {
        let scan_schema = fragment.scan_schema();
        let projected = fragment.projection().iter().map(|column| Arc::clone(&column.expression));
        let projected: Vec<_> = projected.collect();
        let output_columns = columns_of(&projected, scan_schema)?;
        let input_schema = Arc::new(scan_schema.project(&output_columns)?);
        let over_input = |column: &Arc<dyn PhysicalExpr>| {
            Ok(over_packed(reassign_expr_columns(Arc::clone(column), &input_schema)?, &input_schema)?)
        };
        let projection = projected.iter().map(over_input);
        let projection = projection.collect::<Result<Vec<_>>>()?;
        let stages = fragment.filter().map_or_else(|| Ok(Vec::new()), |filter| stages_of(filter, scan_schema))?;
        let filter_columns: BTreeSet<usize> = stages.iter().flat_map(|stage| &stage.columns).copied().collect();
        let all_columns: BTreeSet<usize> = filter_columns.iter().chain(&output_columns).copied().collect();
        let late = all_columns.len() > filter_columns.len();
        // A stage without columns has no rows to ask about.
        let staged = (late || stages.len() > 1) && stages.iter().all(|stage| !stage.columns.is_empty());
        Ok(Self {
            scan_schema: Arc::clone(scan_schema),
            staged: staged && !stages.is_empty(),
            stages,
            output_columns,
            all_columns: all_columns.into_iter().collect(),
            input_schema,
            projection,
            scan_projection: projected,
            projected_schema: Arc::clone(fragment.projected_schema()),
        })
    }
}
