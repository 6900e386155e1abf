//! The end of `INSERT INTO`: a DataFusion sink that writes segments and commits them.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use aubade_catalog::snapshot::Table;
use datafusion::datasource::sink::DataSink;
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::{DisplayAs, DisplayFormatType};

use crate::engine::Engine;

/// Writes the rows of one statement into one table, as one transaction.
#[derive(Debug)]
pub(crate) struct SegmentSink {
    engine: Engine,
    table: Arc<Table>,
}

impl SegmentSink {
    pub(crate) fn new(engine: Engine, table: Arc<Table>) -> Self {
        Self { engine, table }
    }
}

impl DisplayAs for SegmentSink {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SegmentSink: table={}", self.table.name)
    }
}

#[async_trait]
impl DataSink for SegmentSink {
    fn schema(&self) -> &SchemaRef {
        &self.table.schema
    }

    async fn write_all(&self, data: SendableRecordBatchStream, _context: &Arc<TaskContext>) -> Result<u64> {
        let written = self.engine.write_segments(Arc::clone(&self.table.schema), data).await?;
        let rows = written.rows;
        self.engine.commit_written(Vec::new(), self.table.id, written).await?;
        Ok(rows)
    }
}
