//! INSERT and COPY: carried out to their end before the statement returns.

use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch, UInt64Array};
use arrow::datatypes::UInt64Type;
use aubade_proto::{Error, ErrorCode, Result};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::datasource::sink::DataSinkExec;
use datafusion::error::DataFusionError;
use datafusion::execution::TaskContext;
use datafusion::logical_expr::dml::InsertOp;
use datafusion::logical_expr::{LogicalPlan, WriteOp};
use datafusion::physical_plan::collect;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;
use tokio::sync::oneshot;

use super::{StatementContext, unsupported};
use crate::query::one_batch;
use crate::session::QueryOutput;

pub(super) async fn run(context: &StatementContext, plan: LogicalPlan) -> Result<QueryOutput> {
    check(context, &plan)?;
    let physical = context.physical_plan(&plan).await?;
    let schema = physical.schema();
    let task = context.state().task_ctx();
    let batches = match physical.downcast_ref::<DataSinkExec>() {
        Some(copy) if matches!(plan, LogicalPlan::Copy(_)) => {
            let rows = copy_all(copy, &task).await.map_err(|error| context.improve(error))?;
            vec![RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(UInt64Array::from(vec![rows]))])?]
        }
        _ => collect(physical, task).await.map_err(|error| context.improve(error))?,
    };
    let rows = batches.iter().filter_map(count).fold(0_u64, u64::saturating_add);
    let run = context.run()?;
    run.add_rows(rows);
    run.finish();
    let stream = one_batch(Arc::clone(&schema), batches);
    Ok(QueryOutput { query_id: run.id(), schema, stream, affected_rows: Some(rows) })
}

/// Writes all rows of a COPY, or no file.
///
/// DataFusion's sinks complete their files when the rows end, whether well or with an error. So an error is kept from
/// them: it ends the writing from outside, and a file that is not complete never appears.
async fn copy_all(copy: &DataSinkExec, task: &Arc<TaskContext>) -> Result<u64, DataFusionError> {
    let rows = copy.input().execute(0, Arc::clone(task))?;
    let (failed, failure) = oneshot::channel();
    let mut failed = Some(failed);
    let schema = rows.schema();
    let guarded = rows.then(move |batch| {
        let failed = if batch.is_err() { failed.take() } else { None };
        async move {
            match (batch, failed) {
                (Err(error), Some(failed)) => {
                    let _ = failed.send(error);
                    std::future::pending().await
                }
                (batch, _) => batch,
            }
        }
    });
    let guarded = Box::pin(RecordBatchStreamAdapter::new(schema, guarded));
    tokio::select! {
        biased;
        Ok(error) = failure => Err(error),
        written = copy.sink().write_all(guarded, task) => written,
    }
}

fn check(context: &StatementContext, plan: &LogicalPlan) -> Result<()> {
    match plan {
        LogicalPlan::Copy(copy) => context.engine().options().file_access.check(&copy.output_url),
        LogicalPlan::Dml(dml) => {
            match &dml.op {
                WriteOp::Insert(InsertOp::Append) => Ok(()),
                other => Err(unsupported::error(&other.name().to_uppercase())
                    .hint("use CREATE OR REPLACE TABLE t AS SELECT ...")),
            }
        }
        _ => Err(Error::new(ErrorCode::Internal, "a statement of another kind is run as a write")),
    }
}

/// Checks a COPY within EXPLAIN, which ANALYZE would carry out.
pub(super) fn check_explained(context: &StatementContext, plan: &LogicalPlan) -> Result<()> {
    let (LogicalPlan::Explain(_) | LogicalPlan::Analyze(_)) = plan else { return Ok(()) };
    let access = &context.engine().options().file_access;
    let mut checked = Ok(());
    let walked = plan.apply(|node| match node {
        LogicalPlan::Copy(copy) => {
            checked = access.check(&copy.output_url);
            Ok(TreeNodeRecursion::Stop)
        }
        _ => Ok(TreeNodeRecursion::Continue),
    });
    walked.map_err(Error::from_datafusion)?;
    checked
}

/// The number in a sink's only row.
fn count(batch: &RecordBatch) -> Option<u64> {
    let column = batch.columns().first()?.as_primitive_opt::<UInt64Type>()?;
    column.values().first().copied()
}
