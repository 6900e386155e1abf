//! Putting expressions over a fragment's output into the fragment: substitution, column pruning, widths.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::{DataType, Schema};
use aubade_proto::{Fragment, ProjectionColumn};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Statistics, internal_datafusion_err};
use datafusion::error::Result;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_plan::projection::ProjectionExec;

/// Bytes that a value of unknown length is taken for: the size of a string view.
const WIDTH_UNKNOWN: f64 = 16.0;

/// Replaces every column by what `replace` makes of its index.
fn map_columns(
    expression: &Arc<dyn PhysicalExpr>,
    replace: impl Fn(usize) -> Option<Arc<dyn PhysicalExpr>>,
) -> Result<Arc<dyn PhysicalExpr>> {
    let mapped = Arc::clone(expression).transform_down(|node| {
        let Some(column) = node.downcast_ref::<Column>() else { return Ok(Transformed::no(node)) };
        let replacement = replace(column.index())
            .ok_or_else(|| internal_datafusion_err!("column {column} is not part of the scan"))?;
        // What was put in has columns of its own, which must not be mapped again.
        Ok(Transformed::new(replacement, true, TreeNodeRecursion::Jump))
    });
    mapped.map(|mapped| mapped.data)
}

/// `expression` over the columns that `projection` puts out, as one over the columns that it reads.
pub(crate) fn substitute(
    expression: &Arc<dyn PhysicalExpr>,
    projection: &[ProjectionColumn],
) -> Result<Arc<dyn PhysicalExpr>> {
    map_columns(expression, |index| projection.get(index).map(|column| Arc::clone(&column.expression)))
}

/// The output columns of `projection` as ones over the columns that `below` reads.
pub(crate) fn substitute_outputs(
    projection: &ProjectionExec,
    below: &[ProjectionColumn],
) -> Result<Vec<ProjectionColumn>> {
    let outputs = projection.expr().iter().map(|output| {
        Ok(ProjectionColumn { expression: substitute(&output.expr, below)?, name: output.alias.clone() })
    });
    outputs.collect()
}

/// The indices of the columns that occur in an expression.
pub(crate) fn columns_used(expression: &Arc<dyn PhysicalExpr>) -> BTreeSet<usize> {
    let columns = datafusion::physical_expr::utils::collect_columns(expression);
    columns.into_iter().map(|column| column.index()).collect()
}

/// `expression` after its input has been cut down to the columns `kept`, in this order.
pub(crate) fn reindex(
    expression: &Arc<dyn PhysicalExpr>,
    schema: &Schema,
    kept: &[usize],
) -> Result<Arc<dyn PhysicalExpr>> {
    map_columns(expression, |index| {
        let position = kept.iter().position(|column| *column == index)?;
        let field = schema.fields().get(index)?;
        Some(Arc::new(Column::new(field.name(), position)) as Arc<dyn PhysicalExpr>)
    })
}

/// A fragment that reads exactly those columns of `scan_schema` that its expressions use.
pub(crate) fn compose(
    scan_schema: &Schema,
    filter: Option<&Arc<dyn PhysicalExpr>>,
    projection: &[ProjectionColumn],
    limit: Option<u64>,
) -> Result<Fragment> {
    let expressions = filter.into_iter().chain(projection.iter().map(|column| &column.expression));
    let kept: Vec<usize> = expressions.flat_map(columns_used).collect::<BTreeSet<_>>().into_iter().collect();
    let filter = filter.map(|filter| reindex(filter, scan_schema, &kept)).transpose()?;
    let projection = projection.iter().map(|column| {
        let expression = reindex(&column.expression, scan_schema, &kept)?;
        Ok(ProjectionColumn { expression, name: column.name.clone() })
    });
    let projection = projection.collect::<Result<Vec<_>>>()?;
    Ok(Fragment::try_new(Arc::new(scan_schema.project(&kept)?), filter, projection, limit)?)
}

/// Whether every output column is an input column under its own name, in the order of the input.
pub(crate) fn is_identity(fragment: &Fragment) -> bool {
    let columns = fragment.projection();
    columns.len() == fragment.scan_schema().fields().len()
        && columns.iter().enumerate().all(|(index, output)| {
            output
                .expression
                .downcast_ref::<Column>()
                .is_some_and(|column| column.index() == index && column.name() == output.name)
        })
}

/// Estimates how many bytes a row of some expressions takes on the wire.
#[derive(Debug)]
pub(crate) struct Widths<'a> {
    schema: &'a Schema,
    /// Of the columns of `schema`.
    statistics: &'a Statistics,
}

impl<'a> Widths<'a> {
    /// For expressions over `schema`, whose columns have `statistics`.
    pub(crate) fn new(schema: &'a Schema, statistics: &'a Statistics) -> Self {
        Self { schema, statistics }
    }

    fn fixed(data_type: &DataType) -> Option<f64> {
        match data_type {
            DataType::Null => Some(0.0),
            DataType::Boolean => Some(0.125),
            DataType::FixedSizeBinary(bytes) => Some(f64::from(*bytes)),
            other => other.primitive_width().map(|bytes| bytes as f64),
        }
    }

    /// Bytes of a value of one column.
    pub(crate) fn column(&self, index: usize) -> f64 {
        let Some(field) = self.schema.fields().get(index) else { return WIDTH_UNKNOWN };
        if let Some(width) = Self::fixed(field.data_type()) {
            return width;
        }
        let bytes = self.statistics.column_statistics.get(index).and_then(|column| column.byte_size.get_value());
        match (bytes, self.statistics.num_rows.get_value()) {
            (Some(bytes), Some(rows)) if *rows > 0 => *bytes as f64 / *rows as f64,
            _ => WIDTH_UNKNOWN,
        }
    }

    /// Bytes of a value of an expression. One of variable length is taken to be as long as the columns of variable
    /// length that it is made of.
    pub(crate) fn expression(&self, expression: &Arc<dyn PhysicalExpr>) -> f64 {
        if let Some(column) = expression.downcast_ref::<Column>() {
            return self.column(column.index());
        }
        let fixed = expression.data_type(self.schema).ok().and_then(|data_type| Self::fixed(&data_type));
        fixed.unwrap_or_else(|| {
            let variable = columns_used(expression).into_iter().filter(|index| {
                self.schema.fields().get(*index).is_some_and(|field| Self::fixed(field.data_type()).is_none())
            });
            variable.map(|index| self.column(index)).sum::<f64>().max(WIDTH_UNKNOWN / 2.0)
        })
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::Field;
    use datafusion::logical_expr::Operator;
    use datafusion::physical_expr::expressions::{binary, col, lit};

    use super::*;

    fn schema() -> Schema {
        Schema::new(vec![
            Field::new("a", DataType::Int64, false),
            Field::new("b", DataType::Int64, false),
            Field::new("c", DataType::Utf8View, true),
        ])
    }

    fn output(expression: Arc<dyn PhysicalExpr>, name: &str) -> ProjectionColumn {
        ProjectionColumn { expression, name: name.to_owned() }
    }

    #[test]
    fn only_used_columns_are_read() {
        let schema = schema();
        let filter = binary(col("c", &schema).unwrap(), Operator::Eq, lit("x"), &schema);
        let filter = filter.unwrap_or_else(|_| {
            Arc::new(datafusion::physical_expr::expressions::IsNullExpr::new(col("c", &schema).unwrap()))
        });
        let fragment = compose(&schema, Some(&filter), &[output(col("b", &schema).unwrap(), "z")], None).unwrap();
        let names: Vec<_> = fragment.scan_schema().fields().iter().map(|field| field.name().as_str()).collect();
        assert_eq!(names, ["b", "c"]);
        assert_eq!(fragment.projection()[0].expression.to_string(), "b@0");
        assert_eq!(columns_used(fragment.filter().unwrap()), BTreeSet::from([1]));
    }

    #[test]
    fn substituted_columns_are_not_substituted_again() {
        let schema = schema();
        let swapped = [output(col("b", &schema).unwrap(), "a"), output(col("a", &schema).unwrap(), "b")];
        let sum = binary(col("a", &schema).unwrap(), Operator::Minus, col("b", &schema).unwrap(), &schema).unwrap();
        assert_eq!(substitute(&sum, &swapped).unwrap().to_string(), "b@1 - a@0");
    }
}
