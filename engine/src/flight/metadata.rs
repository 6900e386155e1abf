//! Answers to the metadata commands: catalogs, schemas, tables, keys.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow_flight::sql::{CommandGetCatalogs, CommandGetDbSchemas, CommandGetTableTypes, CommandGetTables};
use aubade_catalog::{Relation, Snapshot};
use aubade_proto::{Error, ErrorCode, Result};

use crate::session::Session;

/// The one catalog.
pub(super) const CATALOG: &str = "aubade";
/// Types of relations, as clients name them.
const TABLE: &str = "TABLE";
const VIEW: &str = "VIEW";
const EXTERNAL_TABLE: &str = "EXTERNAL TABLE";

/// The answer to GetCatalogs.
pub(super) fn catalogs(command: CommandGetCatalogs) -> Result<RecordBatch> {
    let mut builder = command.into_builder();
    builder.append(CATALOG);
    builder.build().map_err(failed)
}

/// The answer to GetDbSchemas.
pub(super) fn schemas(command: CommandGetDbSchemas, snapshot: &Snapshot) -> Result<RecordBatch> {
    let mut builder = command.into_builder();
    for schema in &snapshot.schemas {
        builder.append(CATALOG, schema);
    }
    builder.build().map_err(failed)
}

/// The answer to GetTableTypes.
pub(super) fn table_types(command: CommandGetTableTypes) -> Result<RecordBatch> {
    let mut builder = command.into_builder();
    for table_type in [TABLE, VIEW, EXTERNAL_TABLE] {
        builder.append(table_type);
    }
    builder.build().map_err(failed)
}

/// The answer to GetTables. The schema of a view is planned, only when it is asked for; a view that
/// cannot be planned any more has no columns.
pub(super) async fn tables(command: CommandGetTables, snapshot: &Snapshot, session: &Session) -> Result<RecordBatch> {
    let include_schema = command.include_schema;
    let mut builder = command.into_builder();
    for (name, relation) in &snapshot.relations {
        let table_type = match relation {
            Relation::Table(_) => TABLE,
            Relation::View { .. } => VIEW,
            Relation::External { .. } => EXTERNAL_TABLE,
        };
        let schema = match relation {
            Relation::Table(table) => Arc::clone(&table.schema),
            _ if include_schema => planned_schema(&name.schema, &name.name, session).await,
            _ => Arc::new(Schema::empty()),
        };
        builder.append(CATALOG, &name.schema, &name.name, table_type, &schema).map_err(failed)?;
    }
    builder.build().map_err(failed)
}

async fn planned_schema(schema: &str, name: &str, session: &Session) -> SchemaRef {
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let sql = format!("SELECT * FROM {}.{}", quoted(schema), quoted(name));
    match session.prepare(&sql).await {
        Ok(prepared) => prepared.schema,
        Err(error) => {
            tracing::debug!(%schema, %name, error = %error.chain(), "a relation without a schema is listed");
            Arc::new(Schema::empty())
        }
    }
}

/// The schema of GetPrimaryKeys; there are none yet.
pub(super) fn primary_keys_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("catalog_name", DataType::Utf8, true),
        Field::new("db_schema_name", DataType::Utf8, true),
        Field::new("table_name", DataType::Utf8, false),
        Field::new("column_name", DataType::Utf8, false),
        Field::new("key_name", DataType::Utf8, true),
        Field::new("key_sequence", DataType::Int32, false),
    ]))
}

/// The schema of GetExportedKeys, GetImportedKeys and GetCrossReference; there are none yet.
pub(super) fn foreign_keys_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("pk_catalog_name", DataType::Utf8, true),
        Field::new("pk_db_schema_name", DataType::Utf8, true),
        Field::new("pk_table_name", DataType::Utf8, false),
        Field::new("pk_column_name", DataType::Utf8, false),
        Field::new("fk_catalog_name", DataType::Utf8, true),
        Field::new("fk_db_schema_name", DataType::Utf8, true),
        Field::new("fk_table_name", DataType::Utf8, false),
        Field::new("fk_column_name", DataType::Utf8, false),
        Field::new("key_sequence", DataType::Int32, false),
        Field::new("fk_key_name", DataType::Utf8, true),
        Field::new("pk_key_name", DataType::Utf8, true),
        Field::new("update_rule", DataType::UInt8, false),
        Field::new("delete_rule", DataType::UInt8, false),
    ]))
}

pub(super) fn failed(error: arrow_flight::error::FlightError) -> Error {
    Error::new(ErrorCode::InvalidArgument, "the metadata that was asked for cannot be listed").source(error)
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use aubade_catalog::Quorum;
    use aubade_proto::ClusterId;

    use super::*;

    #[test]
    fn schemas_are_filtered_by_pattern_and_catalog() {
        let quorum = Quorum::try_new(1, 1, 1).unwrap();
        let mut snapshot = Snapshot::empty(ClusterId(uuid::Uuid::nil()), quorum);
        snapshot.schemas.insert("sales".to_owned());
        let list = |catalog: Option<&str>, pattern: Option<&str>| {
            let command = CommandGetDbSchemas {
                catalog: catalog.map(str::to_owned),
                db_schema_filter_pattern: pattern.map(str::to_owned),
            };
            let batch = schemas(command, &snapshot).unwrap();
            batch.column(1).as_string::<i32>().iter().flatten().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(list(None, None), ["public", "sales"]);
        assert_eq!(list(Some(CATALOG), Some("s%")), ["sales"]);
        assert!(list(Some("other"), None).is_empty());
    }
}
