//! What the results are compared with: plain DataFusion over the same generated data in memory.

use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use datafusion::datasource::MemTable;
use datafusion::error::DataFusionError;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;

use crate::generate::{Scale, TpchTable};

/// DataFusion with the eight tables in memory (about 1.7 GB at scale 1).
pub struct Oracle {
    context: SessionContext,
}

impl std::fmt::Debug for Oracle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Oracle").finish_non_exhaustive()
    }
}

impl Oracle {
    /// Generates the tables.
    ///
    /// # Errors
    /// When memory runs out or the generation is stopped.
    pub async fn open(scale: Scale) -> Result<Self, DataFusionError> {
        let context = SessionContext::new();
        let partitions = context.state().config().target_partitions().max(1);
        for table in TpchTable::ALL {
            let batches: Vec<RecordBatch> = table.stream(scale, partitions).try_collect().await?;
            // Contiguous ranges keep rows of one key together.
            let chunk = batches.len().div_ceil(partitions).max(1);
            let parts = batches.chunks(chunk).map(<[RecordBatch]>::to_vec).collect();
            context.register_table(table.name(), Arc::new(MemTable::try_new(table.schema(), parts)?))?;
        }
        Ok(Self { context })
    }

    /// The result of a query.
    ///
    /// # Errors
    /// As DataFusion's.
    pub async fn run(&self, sql: &str) -> Result<Vec<RecordBatch>, DataFusionError> {
        self.context.sql(sql).await?.collect().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queries::QUERIES;
    use crate::verify::compare;

    #[tokio::test]
    async fn every_query_runs_and_equals_itself() {
        let oracle = Oracle::open(Scale::try_new(0.01).unwrap()).await.unwrap();
        for query in &QUERIES {
            let first = oracle.run(query.sql).await.unwrap();
            let second = oracle.run(query.sql).await.unwrap();
            assert!(!first.is_empty(), "{} has no columns", query.name());
            compare(query, &first, &second).unwrap_or_else(|difference| panic!("{}: {difference}", query.name()));
        }
    }
}
