//! Casts that round, kept from being taken off where external files are read.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{FieldRef, Schema};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::datasource::physical_plan::{FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::Result;
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{CastExpr, TryCastExpr};
use datafusion::physical_expr::projection::ProjectionExpr;
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::projection::ProjectionExec;

use super::sound_simplification::is_lossy_cast;

/// Hides casts that round from DataFusion's reader of Parquet files.
///
/// When it opens a file, the reader simplifies its predicate and what it computes once more
/// (`PhysicalExprSimplifier`), by which `CAST(d AS INT) = 1` becomes `d = 1.00`: [`super::SoundSimplification`] keeps
/// DataFusion from that in plans, and this rule does so in files. It comes before projections are merged into the reader,
/// and once more after the last filter was handed to it.
#[derive(Debug)]
pub struct OpaqueCasts;

impl PhysicalOptimizerRule for OpaqueCasts {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        if !reads_parquet(&plan) {
            return Ok(plan);
        }
        plan.transform_up(|plan| {
            if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
                return Ok(hide_in_projection(projection)?.map_or_else(|| Transformed::no(plan), Transformed::yes));
            }
            Ok(hide_in_predicate(&plan)?.map_or_else(|| Transformed::no(plan), Transformed::yes))
        })
        .data()
    }

    fn name(&self) -> &str {
        "OpaqueCasts"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

#[recursive::recursive]
fn reads_parquet(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let is_reader = |scan: &DataSourceExec| scan.downcast_to_file_source::<ParquetSource>().is_some();
    plan.downcast_ref::<DataSourceExec>().is_some_and(is_reader) || plan.children().into_iter().any(reads_parquet)
}

/// `None` where there is nothing to hide, or no file from which to hide it.
fn hide_in_projection(projection: &ProjectionExec) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let schema = projection.input().schema();
    let mut is_any = false;
    let columns = projection.expr().iter().map(|column| {
        let hidden = hide(&column.expr, &schema)?;
        is_any |= hidden.transformed;
        Ok(ProjectionExpr { expr: hidden.data, alias: column.alias.clone() })
    });
    let columns = columns.collect::<Result<Vec<_>>>()?;
    if !is_any || !reads_parquet(projection.input()) {
        return Ok(None);
    }
    Ok(Some(Arc::new(ProjectionExec::try_new(columns, Arc::clone(projection.input()))?)))
}

/// `None` where `plan` is no reader, or there is nothing to hide.
fn hide_in_predicate(plan: &Arc<dyn ExecutionPlan>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let Some(scan) = plan.downcast_ref::<DataSourceExec>() else { return Ok(None) };
    let Some((config, source)) = scan.downcast_to_file_source::<ParquetSource>() else { return Ok(None) };
    let Some(predicate) = config.file_source().filter() else { return Ok(None) };
    let hidden = hide(&predicate, config.file_source().table_schema().table_schema())?;
    if !hidden.transformed {
        return Ok(None);
    }
    let source = Arc::new(source.with_predicate(hidden.data));
    let config = FileScanConfigBuilder::from(config.clone()).with_source(source).build();
    Ok(Some(Arc::new(scan.clone().with_data_source(Arc::new(config)))))
}

fn hide(expression: &Arc<dyn PhysicalExpr>, schema: &Schema) -> Result<Transformed<Arc<dyn PhysicalExpr>>> {
    Arc::clone(expression).transform_up(|part| {
        if casts_rows_lossily(&part, schema) {
            return Ok(Transformed::yes(Arc::new(OpaqueCast { cast: part })));
        }
        Ok(Transformed::no(part))
    })
}

/// Whether `expression` is a cast of what rows have that no comparison of the same rows can do without.
pub(crate) fn casts_rows_lossily(expression: &Arc<dyn PhysicalExpr>, schema: &Schema) -> bool {
    let cast = expression.downcast_ref::<CastExpr>().map(|cast| (cast.expr(), cast.cast_type(), false));
    let tried = || expression.downcast_ref::<TryCastExpr>().map(|cast| (cast.expr(), cast.cast_type(), true));
    cast.or_else(tried).is_some_and(|(from, to, may_fail)| {
        let is_of_rows = !collect_columns(from).is_empty();
        is_of_rows && from.data_type(schema).is_ok_and(|from| is_lossy_cast(&from, to, may_fail))
    })
}

/// A cast that only the one who evaluates it knows for one.
#[derive(Debug)]
struct OpaqueCast {
    cast: Arc<dyn PhysicalExpr>,
}

impl PartialEq for OpaqueCast {
    fn eq(&self, other: &Self) -> bool {
        self.cast.eq(&other.cast)
    }
}

impl Eq for OpaqueCast {}

impl Hash for OpaqueCast {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.cast.hash(state);
    }
}

impl fmt::Display for OpaqueCast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cast.fmt(f)
    }
}

impl PhysicalExpr for OpaqueCast {
    fn return_field(&self, input_schema: &Schema) -> Result<FieldRef> {
        self.cast.return_field(input_schema)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        self.cast.evaluate(batch)
    }

    /// Those of the cast, so that nobody comes upon the cast itself.
    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        self.cast.children()
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn PhysicalExpr>>) -> Result<Arc<dyn PhysicalExpr>> {
        Ok(Arc::new(Self { cast: Arc::clone(&self.cast).with_new_children(children)? }))
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cast.fmt_sql(f)
    }
}
