//! Casts that round, kept from being taken off where external files are read.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{FieldRef, Schema, SchemaRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::datasource::physical_plan::{FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::Result;
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{CastExpr, TryCastExpr};
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_expr_adapter::{
    DefaultPhysicalExprAdapterFactory, PhysicalExprAdapter, PhysicalExprAdapterFactory,
};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;

use super::sound_simplification::is_lossy_cast;

/// Hides casts that round from DataFusion's reader of Parquet files.
///
/// When it opens a file, the reader simplifies its predicate and what it computes once more
/// (`PhysicalExprSimplifier`), by which `CAST(d AS INT) = 1` becomes `d = 1.00`: [`super::SoundSimplification`] keeps
/// DataFusion from that in plans, and this rule does so in files. Directly before, the reader adapts expressions to what a
/// file has, where casts may come in: then they are hidden. Whole files it leaves out by the predicate of the plan, which
/// it simplifies as well. The rule comes after the last filter was handed to the reader.
#[derive(Debug)]
pub struct OpaqueCasts;

impl PhysicalOptimizerRule for OpaqueCasts {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        if !plan.exists(|node| Ok(node.is::<DataSourceExec>()))? {
            return Ok(plan);
        }
        plan.transform_up(|plan| {
            let Some(scan) = plan.downcast_ref::<DataSourceExec>() else { return Ok(Transformed::no(plan)) };
            Ok(hide_from(scan)?.map_or_else(|| Transformed::no(plan), |scan| Transformed::yes(Arc::new(scan) as _)))
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

/// `None` where that reads no Parquet files, or nothing can be seen any more.
fn hide_from(scan: &DataSourceExec) -> Result<Option<DataSourceExec>> {
    let Some((config, source)) = scan.downcast_to_file_source::<ParquetSource>() else { return Ok(None) };
    if config.expr_adapter_factory.is_some() {
        return Ok(None);
    }
    let mut builder = FileScanConfigBuilder::from(config.clone()).with_expr_adapter(Some(Arc::new(OpaqueAdapters)));
    if let Some(predicate) = config.file_source().filter() {
        let hidden = hide(&predicate, config.file_source().table_schema().table_schema())?;
        builder = builder.with_source(Arc::new(source.with_predicate(hidden.data)));
    }
    Ok(Some(scan.clone().with_data_source(Arc::new(builder.build()))))
}

/// Adapts expressions to files as DataFusion does by itself, and hides casts in what that has made of them.
#[derive(Debug)]
struct OpaqueAdapters;

impl PhysicalExprAdapterFactory for OpaqueAdapters {
    fn create(&self, table: SchemaRef, file: SchemaRef) -> Result<Arc<dyn PhysicalExprAdapter>> {
        let adapter = DefaultPhysicalExprAdapterFactory.create(table, Arc::clone(&file))?;
        Ok(Arc::new(OpaqueAdapter { adapter, file }))
    }
}

#[derive(Debug)]
struct OpaqueAdapter {
    adapter: Arc<dyn PhysicalExprAdapter>,
    file: SchemaRef,
}

impl PhysicalExprAdapter for OpaqueAdapter {
    fn rewrite(&self, expression: Arc<dyn PhysicalExpr>) -> Result<Arc<dyn PhysicalExpr>> {
        hide(&self.adapter.rewrite(expression)?, &self.file).data()
    }
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
