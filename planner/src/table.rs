//! A table of a snapshot as DataFusion's table provider.

use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use aubade_catalog::Snapshot;
use aubade_catalog::snapshot::Table;
use aubade_proto::{Error, ErrorCode, ProjectionColumn};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{SchemaExt, Statistics, internal_datafusion_err};
use datafusion::datasource::sink::DataSinkExec;
use datafusion::error::Result;
use datafusion::logical_expr::dml::InsertOp;
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_plan::ExecutionPlan;

use crate::access::TableAccess;
use crate::rewrite::compose::compose;
use crate::scan_exec::{ScanTarget, StorageScanExec};

/// A table of one snapshot.
///
/// Filters are left to the physical rule [`crate::rewrite::PushFragment`], so that one mechanism decides what runs at
/// storage nodes; the logical optimiser prunes columns and puts filters directly above the scan.
#[derive(Debug, Clone)]
pub struct AubadeTable {
    snapshot: Arc<Snapshot>,
    table: Arc<Table>,
    access: Arc<dyn TableAccess>,
    /// Without metadata of its own: what a scan yields has none.
    schema: SchemaRef,
    statistics: Arc<Statistics>,
}

impl AubadeTable {
    /// The table of that snapshot.
    pub fn new(snapshot: Arc<Snapshot>, table: Arc<Table>, access: Arc<dyn TableAccess>) -> Self {
        let schema = Arc::new(Schema::new(table.schema.fields().clone()));
        let statistics = Arc::new(table.statistics.to_datafusion());
        Self { snapshot, table, access, schema, statistics }
    }

    /// What the catalog knows of it.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// The snapshot that it is of.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// Who runs its scans.
    pub fn access(&self) -> &Arc<dyn TableAccess> {
        &self.access
    }

    fn later(&self, what: &str) -> Error {
        Error::new(ErrorCode::NotSupported, format!("{what} on table {} is not supported yet", self.table.name))
            .hint("insert rows, or make a new table with CREATE TABLE ... AS SELECT and drop the old one")
    }
}

#[async_trait]
impl TableProvider for AubadeTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let all = (0..self.schema.fields().len()).collect::<Vec<_>>();
        let columns = projection.unwrap_or(&all).iter().map(|index| {
            let field = self.schema.fields().get(*index);
            let field =
                field.ok_or_else(|| internal_datafusion_err!("table {} has no column {index}", self.table.name))?;
            Ok(ProjectionColumn { expression: Arc::new(Column::new(field.name(), *index)), name: field.name().clone() })
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let limit = limit.map(|limit| u64::try_from(limit).unwrap_or(u64::MAX));
        let fragment = compose(&self.schema, None, &columns, limit)?;
        let target = ScanTarget {
            snapshot: Arc::clone(&self.snapshot),
            table: Arc::clone(&self.table),
            access: Arc::clone(&self.access),
            statistics: Arc::clone(&self.statistics),
            partitions_max: state.config().target_partitions(),
        };
        Ok(Arc::new(StorageScanExec::try_new(target, fragment)?))
    }

    fn statistics(&self) -> Option<Statistics> {
        Some(self.statistics.as_ref().clone())
    }

    async fn insert_into(
        &self,
        _state: &dyn Session,
        input: Arc<dyn ExecutionPlan>,
        insert_op: InsertOp,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match insert_op {
            InsertOp::Append => {}
            InsertOp::Overwrite => return Err(self.later("INSERT OVERWRITE").into()),
            InsertOp::Replace => return Err(self.later("REPLACE INTO").into()),
        }
        self.schema.logically_equivalent_names_and_types(&input.schema())?;
        let sink = self.access.sink(Arc::clone(&self.table))?;
        Ok(Arc::new(DataSinkExec::new(input, sink, None)))
    }

    async fn delete_from(&self, _state: &dyn Session, _filters: Vec<Expr>) -> Result<Arc<dyn ExecutionPlan>> {
        Err(self.later("DELETE").into())
    }

    async fn update(
        &self,
        _state: &dyn Session,
        _assignments: Vec<(String, Expr)>,
        _filters: Vec<Expr>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Err(self.later("UPDATE").into())
    }

    async fn truncate(&self, _state: &dyn Session) -> Result<Arc<dyn ExecutionPlan>> {
        Err(self.later("TRUNCATE").into())
    }
}
