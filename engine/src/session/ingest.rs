//! Bulk load: a stream of batches into a table, in one commit.

use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use aubade_catalog::snapshot::Table;
use aubade_catalog::{Action, Relation, RelationName, Snapshot};
use aubade_planner::improve_error;
use aubade_proto::{Error, ErrorCode, RelationId, Result};
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;

use super::{ExecuteOptions, Session};
use crate::statement::conform::{Conform, check_storable, conform_stream};
use crate::statement::names::{check_writable_schema, exists_error};
use crate::statement::tables::create_action;
use futures::FutureExt;

/// What to do when the table is there, or is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IngestMode {
    /// Make the table; fail if it is there.
    Create,
    /// Add to the table; fail if it is not there.
    Append,
    /// Add to the table, and make it first if it is not there.
    CreateAppend,
    /// Put a new table in its place if it is there.
    Replace,
}

/// Where a bulk load goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngestTarget {
    /// The schema; `None`: the session's default schema.
    pub schema: Option<String>,
    /// The table, as stored: case counts.
    pub table: String,
    /// What to do when it is there, or is not.
    pub mode: IngestMode,
}

impl Session {
    /// Loads `stream` into a table, in one commit: all rows become visible, or none. Columns go by
    /// name; types are cast where that loses nothing by itself, and nullable columns that the stream
    /// lacks are null. Returns the number of rows.
    ///
    /// # Errors
    /// `AlreadyExists`, `TableNotFound`, `SchemaNotFound`; `InvalidArgument` or `ColumnNotFound` when
    /// the columns do not fit; `SqlExecution` when a value does not; whatever the stream yields.
    pub async fn ingest(&self, target: IngestTarget, stream: SendableRecordBatchStream) -> Result<u64> {
        let session = self.clone();
        let label = format!("-- bulk load into {}", target.table);
        self.supervise(&label, ExecuteOptions::default(), move |run| async move {
            let rows = session.ingest_now(target, stream).boxed().await?;
            run.add_rows(rows);
            run.finish();
            Ok(rows)
        })
        .await
    }

    async fn ingest_now(&self, target: IngestTarget, stream: SendableRecordBatchStream) -> Result<u64> {
        let engine = self.engine();
        let snapshot = engine.snapshot().await?;
        let schema = target.schema.unwrap_or_else(|| self.default_schema());
        let name = RelationName { schema, name: target.table };
        check_writable_schema(&snapshot, &name.schema)?;
        let load = Load::decide(&snapshot, &name, target.mode)?;
        let (before, table, schema) = match load {
            Load::Into(table) => (Vec::new(), table.id, Arc::clone(&table.schema)),
            Load::New { replaced } => {
                let schema = stored_schema(&stream.schema())?;
                let id = RelationId(engine.environment().new_uuid());
                let dropped = replaced.map(Action::DropRelation);
                (dropped.into_iter().chain([create_action(id, name, Arc::clone(&schema))]).collect(), id, schema)
            }
        };
        let conform = Conform::by_name(&stream.schema(), &schema)?;
        let written = engine.write_segments(schema, conform_stream(conform, stream)).await?;
        let rows = written.rows;
        engine.commit_written(before, table, written).await?;
        Ok(rows)
    }
}

/// What a load does to the catalog.
enum Load {
    Into(Arc<Table>),
    New { replaced: Option<RelationId> },
}

impl Load {
    fn decide(snapshot: &Snapshot, name: &RelationName, mode: IngestMode) -> Result<Self> {
        match (snapshot.relations.get(name), mode) {
            (Some(_), IngestMode::Create) => Err(exists_error("table", name)),
            (Some(Relation::Table(table)), IngestMode::Append | IngestMode::CreateAppend) => {
                Ok(Self::Into(Arc::clone(table)))
            }
            (Some(Relation::Table(table)), IngestMode::Replace) => Ok(Self::New { replaced: Some(table.id) }),
            (Some(Relation::View { .. } | Relation::External { .. }), _) => {
                let text = format!("'{name}' is a view or an external table, which cannot be loaded into");
                Err(Error::new(ErrorCode::InvalidArgument, text).hint("choose another name for the table"))
            }
            (None, IngestMode::Append) => {
                let missing = DataFusionError::Plan(format!("table 'aubade.{name}' not found"));
                Err(improve_error(snapshot, missing))
            }
            (None, IngestMode::Create | IngestMode::CreateAppend | IngestMode::Replace) => {
                Ok(Self::New { replaced: None })
            }
        }
    }
}

/// The schema of a table made from a stream: its columns, without the stream's own metadata.
fn stored_schema(schema: &SchemaRef) -> Result<SchemaRef> {
    let schema = Arc::new(Schema::new(schema.fields().clone()));
    check_storable(&schema)?;
    Ok(schema)
}
