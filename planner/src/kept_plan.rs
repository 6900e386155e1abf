//! Logical plans that outlive the snapshot that they were made for.

use std::sync::Arc;

use aubade_catalog::snapshot::{Relation, RelationName, Table};
use aubade_catalog::{SegmentStatistics, Snapshot};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::datasource::{provider_as_source, source_as_provider};
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, LogicalPlan, TableScan, Volatility};

use crate::access::{NoAccess, TableAccess};
use crate::table::AubadeTable;

/// A query over tables of the cluster that means the same at any time. Its scans hold no snapshot and no segments: they
/// are bound to one for each run.
#[derive(Debug)]
pub struct KeptPlan(LogicalPlan);

impl KeptPlan {
    /// Whether a plan can be kept, before it is optimised: it only reads, it reads only tables of the cluster, and none
    /// of its functions has another value in another query, as `now()` has.
    ///
    /// # Errors
    /// When the plan cannot be walked.
    pub fn is_keepable(plan: &LogicalPlan) -> Result<bool> {
        let mut keepable = true;
        plan.apply_with_subqueries(|node| {
            keepable &= reads_only(node) && reads_only_tables(node);
            node.apply_expressions(|expression| {
                expression.apply(|part| {
                    keepable &= !changes_with_time(part);
                    Ok(go_on_while(keepable))
                })
            })?;
            Ok(go_on_while(keepable))
        })?;
        Ok(keepable)
    }

    /// The tables that a plan reads.
    ///
    /// # Errors
    /// When the plan cannot be walked.
    pub fn tables_of(plan: &LogicalPlan) -> Result<Vec<Arc<Table>>> {
        let mut tables = Vec::new();
        plan.apply_with_subqueries(|node| {
            if let LogicalPlan::TableScan(scan) = node {
                let provider = source_as_provider(&scan.source)?;
                tables.extend(provider.downcast_ref::<AubadeTable>().map(|table| Arc::clone(table.table())));
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(tables)
    }

    /// Keeps a plan of which [`KeptPlan::is_keepable`] held.
    ///
    /// # Errors
    /// When a scan cannot be made again.
    pub fn new(plan: LogicalPlan) -> Result<Self> {
        let detached = plan.transform_up_with_subqueries(|node| {
            let LogicalPlan::TableScan(scan) = node else { return Ok(Transformed::no(node)) };
            let provider = source_as_provider(&scan.source)?;
            let Some(table) = provider.downcast_ref::<AubadeTable>() else {
                return Ok(Transformed::no(LogicalPlan::TableScan(scan)));
            };
            let snapshot = Snapshot::empty(table.snapshot().cluster_id, table.snapshot().quorum);
            let table = table.table();
            let empty = Table {
                id: table.id,
                name: table.name.clone(),
                schema: Arc::clone(&table.schema),
                segments: Vec::new(),
                statistics: Arc::new(SegmentStatistics::empty(Arc::clone(&table.schema))),
            };
            let detached = AubadeTable::new(Arc::new(snapshot), Arc::new(empty), Arc::new(NoAccess));
            Ok(Transformed::yes(reading(scan, detached)))
        })?;
        Ok(Self(detached.data))
    }

    /// The plan over the tables of `snapshot`; `None` where one of them is not there.
    ///
    /// # Errors
    /// When a scan cannot be made again.
    pub fn over(&self, snapshot: &Arc<Snapshot>, access: &Arc<dyn TableAccess>) -> Result<Option<LogicalPlan>> {
        let mut all_there = true;
        let plan = self.0.clone().transform_up_with_subqueries(|node| {
            let LogicalPlan::TableScan(scan) = node else { return Ok(Transformed::no(node)) };
            let provider = source_as_provider(&scan.source)?;
            let name = provider.downcast_ref::<AubadeTable>().map(|table| &table.table().name);
            let relation = name.and_then(|name: &RelationName| snapshot.relations.get(name));
            let Some(Relation::Table(table)) = relation else {
                all_there = false;
                return Ok(Transformed::no(LogicalPlan::TableScan(scan)));
            };
            let table = AubadeTable::new(Arc::clone(snapshot), Arc::clone(table), Arc::clone(access));
            Ok(Transformed::yes(reading(scan, table)))
        })?;
        Ok(all_there.then_some(plan.data))
    }
}

fn go_on_while(keepable: bool) -> TreeNodeRecursion {
    if keepable { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop }
}

fn reading(scan: TableScan, table: AubadeTable) -> LogicalPlan {
    LogicalPlan::TableScan(TableScan { source: provider_as_source(Arc::new(table)), ..scan })
}

fn reads_only(node: &LogicalPlan) -> bool {
    !matches!(
        node,
        LogicalPlan::Statement(_)
            | LogicalPlan::Dml(_)
            | LogicalPlan::Ddl(_)
            | LogicalPlan::Copy(_)
            | LogicalPlan::Explain(_)
            | LogicalPlan::Analyze(_)
            | LogicalPlan::DescribeTable(_)
            | LogicalPlan::Extension(_)
            | LogicalPlan::RecursiveQuery(_)
    )
}

fn reads_only_tables(node: &LogicalPlan) -> bool {
    let LogicalPlan::TableScan(scan) = node else { return true };
    source_as_provider(&scan.source).is_ok_and(|provider| provider.is::<AubadeTable>())
}

fn changes_with_time(expression: &Expr) -> bool {
    match expression {
        Expr::ScalarFunction(function) => function.func.signature().volatility == Volatility::Stable,
        _ => false,
    }
}
