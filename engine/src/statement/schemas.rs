//! CREATE SCHEMA.

use aubade_catalog::Action;
use aubade_proto::{Error, ErrorCode, Result};
use datafusion::common::TableReference;
use datafusion::sql::planner::object_name_to_table_reference;
use datafusion::sql::sqlparser::ast::{ObjectName, SchemaName};

use super::StatementContext;
use super::names::{check_catalog, is_built_in};
use crate::session::QueryOutput;

pub(super) async fn create(context: &StatementContext, name: SchemaName, if_not_exists: bool) -> Result<QueryOutput> {
    let SchemaName::Simple(name) = name else {
        return Err(Error::new(ErrorCode::NotSupported, "AUTHORIZATION in CREATE SCHEMA is not supported yet"));
    };
    let name = schema_name(context, name)?;
    let taken = is_built_in(&name) || context.snapshot().schemas.contains(&name);
    let error = match taken {
        true => exists(&name),
        false => match context.engine().commit(vec![Action::CreateSchema(name)]).await {
            Ok(_) => return context.done(0),
            Err(error) => error,
        },
    };
    match if_not_exists && error.code() == ErrorCode::AlreadyExists {
        true => context.done(0),
        false => Err(error),
    }
}

/// `schema` or `catalog.schema`.
pub(super) fn schema_name(context: &StatementContext, name: ObjectName) -> Result<String> {
    let normalize = context.state().config().options().sql_parser.enable_ident_normalization;
    match object_name_to_table_reference(name, normalize).map_err(Error::from_datafusion)? {
        TableReference::Bare { table } => Ok(table.to_string()),
        TableReference::Partial { schema: catalog, table } => {
            check_catalog(&catalog)?;
            Ok(table.to_string())
        }
        TableReference::Full { .. } => {
            Err(Error::new(ErrorCode::SqlSyntax, "the name of a schema has at most two parts"))
        }
    }
}

fn exists(name: &str) -> Error {
    Error::new(ErrorCode::AlreadyExists, format!("schema '{name}' already exists")).hint("use IF NOT EXISTS")
}
