//! What a fragment means for decoding: which columns in which order, and where the filter goes.
//!
//! ```text
//! filter columns of stage 1 -> filter -> columns of stage 2 for the rows left -> filter
//!                                     -> the other output columns for the rows left
//! ```
//! A filter on narrow columns goes before one on wide ones (strings), and output columns are
//! decoded only for rows that pass. No column is decoded twice. Where a filter turns out to keep
//! most rows, the row groups that follow are decoded in one pass instead.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions};
use arrow::compute::prep_null_mask_filter;
use arrow::datatypes::{DataType, SchemaRef};
use aubade_proto::{Error, ErrorCode, Fragment, Result};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::expressions::{BinaryExpr, CastExpr};
use datafusion::physical_expr::utils::{collect_columns, conjunction, reassign_expr_columns};
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr, split_conjunction};

/// A part of the filter with the scan columns that it needs.
#[derive(Debug)]
pub(crate) struct FilterStage {
    /// Over `schema`.
    expression: Arc<dyn PhysicalExpr>,
    schema: SchemaRef,
    /// Indices into the scan schema, ascending.
    pub(crate) columns: Vec<usize>,
}

/// The decoding plan of a fragment; the same for all segments.
#[derive(Debug)]
pub(crate) struct FragmentPlan {
    pub(crate) scan_schema: SchemaRef,
    /// The whole filter, for decoding in one pass.
    pub(crate) filter: Option<FilterStage>,
    /// The filter in stages; empty where one pass is as good.
    pub(crate) stages: Vec<FilterStage>,
    /// Scan columns that the projection needs, ascending.
    pub(crate) output_columns: Vec<usize>,
    /// All scan columns that are needed, ascending.
    pub(crate) all_columns: Vec<usize>,
    /// The schema of `output_columns`.
    pub(crate) input_schema: SchemaRef,
    /// Over `input_schema`.
    pub(crate) projection: Vec<Arc<dyn PhysicalExpr>>,
    pub(crate) output_schema: SchemaRef,
}

impl FragmentPlan {
    pub(crate) fn new(fragment: &Fragment) -> Result<Self> {
        let scan_schema = fragment.scan_schema();
        let projected = fragment.projection().iter().map(|column| Arc::clone(&column.expression));
        let projected: Vec<_> = projected.collect();
        let output_columns = columns_of(&projected, scan_schema)?;
        let input_schema = Arc::new(scan_schema.project(&output_columns)?);
        let projection = projected.into_iter().map(|expression| Ok(reassign_expr_columns(expression, &input_schema)?));
        let projection = projection.collect::<Result<Vec<_>>>()?;
        let filter = fragment.filter().map(|filter| FilterStage::new(Arc::clone(filter), scan_schema)).transpose()?;
        let filter_columns = filter.as_ref().map(|filter| filter.columns.as_slice()).unwrap_or_default();
        let all_columns: BTreeSet<usize> = output_columns.iter().chain(filter_columns).copied().collect();
        let late = all_columns.len() > filter_columns.len();
        let mut stages = match fragment.filter() {
            Some(filter) if !filter_columns.is_empty() => split_stages(filter, scan_schema)?,
            _ => Vec::new(),
        };
        if stages.len() == 1 && !late {
            stages.clear();
        }
        Ok(Self {
            scan_schema: Arc::clone(scan_schema),
            filter,
            stages,
            output_columns,
            all_columns: all_columns.into_iter().collect(),
            input_schema,
            projection,
            output_schema: Arc::clone(fragment.output_schema()),
        })
    }

    /// Whether a column is still needed after the stages before `next_stage` are done.
    pub(crate) fn is_needed_from(&self, next_stage: usize, column: usize) -> bool {
        self.output_columns.binary_search(&column).is_ok()
            || self.stages.iter().skip(next_stage).any(|stage| stage.columns.binary_search(&column).is_ok())
    }
}

impl FilterStage {
    fn new(expression: Arc<dyn PhysicalExpr>, scan_schema: &SchemaRef) -> Result<Self> {
        if expression.data_type(scan_schema)? != DataType::Boolean {
            return Err(Error::new(ErrorCode::InvalidMessage, format!("filter {expression} is not boolean")));
        }
        let columns = columns_of(std::slice::from_ref(&expression), scan_schema)?;
        let schema = Arc::new(scan_schema.project(&columns)?);
        let expression = reassign_expr_columns(expression, &schema)?;
        Ok(Self { expression, schema, columns })
    }

    /// Which of `rows` rows pass; `columns` are those of the stage, in their order. Never null.
    pub(crate) fn evaluate(&self, columns: Vec<ArrayRef>, rows: usize) -> Result<BooleanArray> {
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?;
        let mask = self.expression.evaluate(&batch)?.into_array(rows)?;
        let mask = mask.as_boolean_opt().ok_or_else(|| Error::internal("a filter did not yield booleans"))?;
        // A row for which the filter is null is left out.
        Ok(if mask.null_count() > 0 { prep_null_mask_filter(mask) } else { mask.clone() })
    }
}

fn columns_of(expressions: &[Arc<dyn PhysicalExpr>], schema: &SchemaRef) -> Result<Vec<usize>> {
    let mut indices = BTreeSet::new();
    for column in expressions.iter().flat_map(collect_columns) {
        let field = schema.fields().get(column.index());
        if field.is_none_or(|field| field.name() != column.name()) {
            let text = format!("expression column {} is not at index {} of scan_schema", column.name(), column.index());
            return Err(Error::new(ErrorCode::InvalidMessage, text));
        }
        indices.insert(column.index());
    }
    Ok(indices.into_iter().collect())
}

/// Narrow conjuncts first, then those that need a wide column. Conjuncts that could fail keep their
/// place: one before them may be what keeps them from failing.
fn split_stages(filter: &Arc<dyn PhysicalExpr>, schema: &SchemaRef) -> Result<Vec<FilterStage>> {
    let whole = || FilterStage::new(Arc::clone(filter), schema).map(|stage| vec![stage]);
    if can_fail(filter)? {
        return whole();
    }
    let is_wide = |conjunct: &Arc<dyn PhysicalExpr>| {
        collect_columns(conjunct)
            .iter()
            .any(|column| schema.field(column.index()).data_type().primitive_width().is_none())
    };
    let (wide, narrow): (Vec<_>, Vec<_>) =
        split_conjunction(filter).into_iter().partition(|conjunct| is_wide(conjunct));
    let has_columns =
        |part: &[&Arc<dyn PhysicalExpr>]| part.iter().any(|conjunct| !collect_columns(conjunct).is_empty());
    if !has_columns(&wide) || !has_columns(&narrow) {
        return whole();
    }
    let stage = |part: Vec<&Arc<dyn PhysicalExpr>>| FilterStage::new(conjunction(part.into_iter().cloned()), schema);
    Ok(vec![stage(narrow)?, stage(wide)?])
}

fn can_fail(filter: &Arc<dyn PhysicalExpr>) -> Result<bool> {
    let mut found = false;
    filter.apply(|node| {
        let arithmetic = node.downcast_ref::<BinaryExpr>().is_some_and(|binary| {
            use Operator::{Divide, Minus, Modulo, Multiply, Plus};
            matches!(binary.op(), Divide | Modulo | Plus | Minus | Multiply)
        });
        found |= arithmetic
            || node.downcast_ref::<CastExpr>().is_some()
            || node.downcast_ref::<ScalarFunctionExpr>().is_some();
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(found)
}
