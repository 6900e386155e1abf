//! Expressions that are evaluated faster than DataFusion and arrow evaluate them.

use std::sync::Arc;

use arrow::datatypes::Schema;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::Result;
use datafusion::physical_expr::PhysicalExpr;

use super::decimal::NarrowDecimal;
use super::like::CompiledLike;
use super::range::in_range;

/// `expression` over rows of `schema` with what can be evaluated faster replaced; it means the same.
pub(super) fn faster(expression: Arc<dyn PhysicalExpr>, schema: &Schema) -> Result<Arc<dyn PhysicalExpr>> {
    let replaced = expression.transform_up(|part| {
        if let Some(compiled) = CompiledLike::of(&part) {
            return Ok(Transformed::yes(Arc::new(compiled) as Arc<dyn PhysicalExpr>));
        }
        if let Some(range) = in_range(&part, schema) {
            return Ok(Transformed::yes(range));
        }
        Ok(match NarrowDecimal::of(&part, schema) {
            Some(narrow) => Transformed::yes(Arc::new(narrow) as Arc<dyn PhysicalExpr>),
            None => Transformed::no(part),
        })
    });
    replaced.map(|replaced| replaced.data)
}
