//! The embedded planner API: a snapshot and SQL in, a physical plan and its fragments out.

use std::sync::Arc;

use aubade_catalog::Snapshot;
use aubade_proto::{Error, ErrorCode, Fragment, Result};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::DataFusionError;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::{SendableRecordBatchStream, SessionState, TaskContext};
use datafusion::physical_plan::ExecutionPlan;

use crate::access::{NoAccess, TableAccess};
use crate::errors::improve_error;
use crate::explain::plan_text;
use crate::opaque::Opaque;
use crate::refusal::NotPushed;
use crate::scan_exec::StorageScanExec;
use crate::session::{bind_snapshot, session_config, session_state};
use crate::standard_sql;

/// Settings of a planner.
#[derive(Clone, Debug, Default)]
pub struct PlannerOptions {
    /// Partitions that plans aim at; `None` is the number of CPUs.
    pub target_partitions: Option<usize>,
    /// Rows per batch between operators; `None` is DataFusion's default.
    pub batch_rows: Option<usize>,
}

/// Plans SQL over one snapshot.
///
/// See the doc of the crate for an example.
#[derive(Debug)]
pub struct Planner {
    snapshot: Arc<Snapshot>,
    access: Arc<dyn TableAccess>,
    template: Opaque<SessionState>,
}

impl Planner {
    /// Plans over `snapshot` with the default settings; the plans can be looked at, not run.
    pub fn new(snapshot: Arc<Snapshot>) -> Self {
        Self::with_access(snapshot, Arc::new(NoAccess), &PlannerOptions::default())
    }

    /// Plans over `snapshot`; the plans run their scans with `access`.
    pub fn with_access(snapshot: Arc<Snapshot>, access: Arc<dyn TableAccess>, options: &PlannerOptions) -> Self {
        let template = session_state(session_config(options), Arc::new(RuntimeEnv::default()));
        Self { snapshot, access, template: Opaque::new(template) }
    }

    /// Plans one query.
    ///
    /// # Errors
    /// As [`improve_error`] words it; `NotSupported` for statements that change the catalog.
    pub async fn plan(&self, sql: &str) -> Result<PlannedQuery> {
        self.try_plan(sql).await.map_err(|error| improve_error(&self.snapshot, error))
    }

    async fn try_plan(&self, sql: &str) -> Result<PlannedQuery, DataFusionError> {
        let state = bind_snapshot(&self.template, Arc::clone(&self.snapshot), Arc::clone(&self.access));
        let logical = standard_sql::plan(&state, sql).await?;
        let queries = SQLOptions::new().with_allow_ddl(false).with_allow_statements(false);
        queries.verify_plan(&logical).map_err(|error| {
            let error = Error::new(ErrorCode::NotSupported, "only queries can be planned").source(error);
            error.hint("run statements that change something with a session of an engine")
        })?;
        let physical = state.create_physical_plan(&logical).await?;
        Ok(PlannedQuery { physical, task_context: state.task_ctx() })
    }
}

/// A planned query.
#[derive(Clone, Debug)]
pub struct PlannedQuery {
    physical: Arc<dyn ExecutionPlan>,
    task_context: Arc<TaskContext>,
}

/// A fragment of a plan.
#[derive(Clone, Debug)]
pub struct FragmentInfo {
    /// Which table, `schema.name`.
    pub table: String,
    /// Segments of the table.
    pub segments_total: usize,
    /// Segments that statistics do not rule out.
    pub segments_kept: usize,
    /// What runs at storage nodes.
    pub fragment: Arc<Fragment>,
    /// What stays on the coordinator directly above, and why.
    pub not_pushed: Vec<NotPushed>,
}

impl PlannedQuery {
    /// The physical plan.
    pub fn physical_plan(&self) -> &Arc<dyn ExecutionPlan> {
        &self.physical
    }

    /// What of it runs at storage nodes, from left to right.
    pub fn fragments(&self) -> Vec<FragmentInfo> {
        storage_scans(&self.physical).into_iter().map(|scan| FragmentInfo::of(&scan)).collect()
    }

    /// The plan as text, one operator per line.
    pub fn explain(&self) -> String {
        plan_text(self.physical.as_ref())
    }

    /// Runs it with the access that the planner was given.
    ///
    /// # Errors
    /// When an operator cannot start; later errors come in the stream.
    pub fn run(&self) -> Result<SendableRecordBatchStream> {
        let plan = Arc::clone(&self.physical);
        Ok(datafusion::physical_plan::execute_stream(plan, Arc::clone(&self.task_context))?)
    }
}

impl FragmentInfo {
    fn of(scan: &StorageScanExec) -> Self {
        Self {
            table: scan.table().name.to_string(),
            segments_total: scan.table().segments.len(),
            segments_kept: scan.kept_segments().len(),
            fragment: Arc::clone(scan.fragment()),
            not_pushed: scan.not_pushed().to_vec(),
        }
    }
}

/// The scans of a plan, from left to right. They share their counters with those in the plan.
pub fn storage_scans(plan: &Arc<dyn ExecutionPlan>) -> Vec<StorageScanExec> {
    let mut scans = Vec::new();
    // The closure never fails, so neither does the walk.
    let _ = plan.apply(|node| {
        scans.extend(node.downcast_ref::<StorageScanExec>().cloned());
        Ok(TreeNodeRecursion::Continue)
    });
    scans
}
