//! The seam between plans and whoever runs their scans and writes.

use std::fmt::Debug;
use std::sync::Arc;

use aubade_catalog::Snapshot;
use aubade_catalog::snapshot::Table;
use aubade_proto::{Error, ErrorCode, Result};
use datafusion::catalog::TableProvider;
use datafusion::datasource::sink::DataSink;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};

use crate::kept_results::ResultStore;
use crate::runtime_filter::RuntimeFragment;
use crate::scan_metrics::ScanMetrics;

/// What the planner needs from whoever runs its plans. The planner itself never opens a socket.
pub trait TableAccess: Debug + Send + Sync {
    /// Runs one partition of a scan: a stream of the fragment's output schema.
    ///
    /// # Errors
    /// Whatever keeps the scan from starting; later errors come in the stream.
    fn scan(&self, task: ScanTask, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream>;

    /// The tables of the schema `system`, in which the one who runs the plans tells of itself.
    fn system_tables(&self) -> &'static [&'static str] {
        &[]
    }

    /// A table of the schema `system` as it is now, if there is one of that name.
    ///
    /// # Errors
    /// When what it tells cannot be gathered.
    fn system_table(&self, _name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        Ok(None)
    }

    /// Where results of fragments are kept; `None` where they are not.
    fn kept_results(&self) -> Option<Arc<dyn ResultStore>> {
        None
    }

    /// Where the rows of `INSERT INTO table` go: one transaction, which commits at the end of `write_all`.
    ///
    /// # Errors
    /// When this access cannot write.
    fn sink(&self, table: Arc<Table>) -> Result<Arc<dyn DataSink>>;
}

/// One partition of a scan.
#[derive(Clone, Debug)]
pub struct ScanTask {
    /// What the query reads.
    pub snapshot: Arc<Snapshot>,
    /// The table.
    pub table: Arc<Table>,
    /// Indices into `table.segments`: this partition's share of those that survived pruning.
    pub segments: Vec<usize>,
    /// What to run over them, and the filters that become known while the query runs. A limit holds for this
    /// partition.
    pub fragment: RuntimeFragment,
    /// To be counted up. The node that owns the task counts segments in total, pruned segments and output rows; the
    /// access counts the rest.
    pub metrics: ScanMetrics,
    /// Which partition.
    pub partition: usize,
}

/// For plans that are only looked at.
#[derive(Debug)]
pub struct NoAccess;

impl NoAccess {
    fn refusal() -> Error {
        Error::new(ErrorCode::NotSupported, "this planner has no storage to run plans on")
            .hint("make it by Planner::with_access, or use an engine")
    }
}

impl TableAccess for NoAccess {
    fn scan(&self, _task: ScanTask, _context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        Err(Self::refusal())
    }

    fn sink(&self, _table: Arc<Table>) -> Result<Arc<dyn DataSink>> {
        Err(Self::refusal())
    }
}
