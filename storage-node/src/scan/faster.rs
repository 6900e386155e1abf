//! Expressions that are evaluated faster than DataFusion and arrow evaluate them.

use std::sync::Arc;

use arrow::datatypes::Schema;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::Result;
use datafusion::physical_expr::PhysicalExpr;

use super::among::AmongTexts;
use super::decimal::NarrowDecimal;
use super::like::CompiledLike;
use super::range::in_range;
use super::replaced::Evaluation;

/// `expression` over rows of `schema` with what can be evaluated faster replaced; it means the same.
pub(super) fn faster(expression: Arc<dyn PhysicalExpr>, schema: &Schema) -> Result<Arc<dyn PhysicalExpr>> {
    let replaced = expression.transform_up(|part| {
        let replaced = if let Some(compiled) = CompiledLike::of(&part) {
            compiled.in_place_of(part)
        } else if let Some(among) = AmongTexts::of(&part).filter(|among| among.is_over_views(schema)) {
            among.in_place_of(part)
        } else if let Some(range) = in_range(&part, schema) {
            range
        } else if let Some(narrow) = NarrowDecimal::of(&part, schema) {
            narrow.in_place_of(part)
        } else {
            return Ok(Transformed::no(part));
        };
        Ok(Transformed::yes(replaced))
    });
    replaced.map(|replaced| replaced.data)
}
