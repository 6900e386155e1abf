//! Names of relations in statements that change the catalog.

use aubade_catalog::{Relation, RelationName, Snapshot};
use aubade_planner::catalog::{CATALOG, SYSTEM_SCHEMA};
use aubade_planner::improve_error;
use aubade_proto::{Error, ErrorCode, Result};
use datafusion::catalog::information_schema::INFORMATION_SCHEMA;
use datafusion::common::TableReference;
use datafusion::error::DataFusionError;
use datafusion::sql::planner::object_name_to_table_reference;
use datafusion::sql::sqlparser::ast::ObjectName;

use super::StatementContext;

/// Refuses to change a schema that is made up of what is known otherwise.
pub(super) fn check_not_built_in(snapshot: &Snapshot, schema: &str) -> Result<()> {
    if is_built_in(schema) && !snapshot.schemas.contains(schema) {
        return Err(Error::new(ErrorCode::InvalidArgument, format!("{schema} can only be read")));
    }
    Ok(())
}

/// Whether a schema is one of those in which nothing can be made.
pub(super) fn is_built_in(schema: &str) -> bool {
    matches!(schema, INFORMATION_SCHEMA | SYSTEM_SCHEMA)
}

impl StatementContext {
    /// The relation that a name means, with the session's default schema.
    pub(super) fn relation_name(&self, name: ObjectName) -> Result<RelationName> {
        let normalize = self.state().config().options().sql_parser.enable_ident_normalization;
        let reference = object_name_to_table_reference(name, normalize).map_err(Error::from_datafusion)?;
        self.resolve(reference)
    }

    /// As [`StatementContext::relation_name`], for a name that DataFusion has read.
    pub(super) fn resolve(&self, reference: TableReference) -> Result<RelationName> {
        let catalog = &self.state().config().options().catalog;
        let resolved = reference.resolve(&catalog.default_catalog, &catalog.default_schema);
        check_catalog(&resolved.catalog)?;
        Ok(RelationName { schema: resolved.schema.to_string(), name: resolved.table.to_string() })
    }

    /// The error for a relation that is not there, with the nearest name.
    pub(super) fn not_found(&self, name: &RelationName) -> Error {
        improve_error(self.snapshot(), DataFusionError::Plan(format!("table '{CATALOG}.{name}' not found")))
    }
}

/// There is one catalog.
pub(super) fn check_catalog(catalog: &str) -> Result<()> {
    if catalog == CATALOG {
        return Ok(());
    }
    Err(Error::new(ErrorCode::SchemaNotFound, format!("there is no catalog '{catalog}'"))
        .hint(format!("the only catalog is '{CATALOG}'")))
}

/// Refuses schemas in which nothing can be made.
pub(crate) fn check_writable_schema(snapshot: &Snapshot, schema: &str) -> Result<()> {
    if snapshot.schemas.contains(schema) {
        return Ok(());
    }
    check_not_built_in(snapshot, schema)?;
    let known = snapshot.schemas.iter().map(|known| (strsim::damerau_levenshtein(known, schema), known)).min();
    let error = Error::new(ErrorCode::SchemaNotFound, format!("schema '{schema}' not found"));
    Err(match known {
        Some((distance, known)) if distance <= 2 => error.hint(format!("did you mean '{known}'?")),
        _ => error.hint(format!("make it with CREATE SCHEMA {schema}")),
    })
}

/// The error for a name that is taken.
pub(crate) fn exists_error(kind: &str, name: &RelationName) -> Error {
    Error::new(ErrorCode::AlreadyExists, format!("{kind} '{name}' already exists"))
        .hint("use IF NOT EXISTS or OR REPLACE, or another name")
}

/// What a relation is, for messages.
pub(super) fn kind(relation: &Relation) -> &'static str {
    match relation {
        Relation::Table(_) => "table",
        Relation::View { .. } => "view",
        Relation::External { .. } => "external table",
    }
}

/// What the clauses of a CREATE statement say about a name that may be taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct IfTaken {
    pub(super) or_replace: bool,
    pub(super) if_not_exists: bool,
}

/// What to do about a name.
pub(super) enum Name<'a> {
    Free,
    Replaces(&'a Relation),
    /// It is there, which IF NOT EXISTS is content with.
    Keep,
}

impl IfTaken {
    /// Decides for the relation of that name, if there is one. `wanted` is the kind that is made.
    pub(super) fn decide<'a>(self, snapshot: &'a Snapshot, name: &RelationName, wanted: &str) -> Result<Name<'a>> {
        check_writable_schema(snapshot, &name.schema)?;
        if self.or_replace && self.if_not_exists {
            return Err(Error::new(ErrorCode::InvalidArgument, "OR REPLACE and IF NOT EXISTS exclude each other"));
        }
        match snapshot.relations.get(name) {
            None => Ok(Name::Free),
            Some(_) if self.if_not_exists => Ok(Name::Keep),
            Some(relation) if self.or_replace && (kind(relation) == "view") == (wanted == "view") => {
                Ok(Name::Replaces(relation))
            }
            Some(relation) if self.or_replace => {
                let text = format!("'{name}' is a {} and cannot be replaced by a {wanted}", kind(relation));
                Err(Error::new(ErrorCode::AlreadyExists, text).hint("drop it first, or use another name"))
            }
            Some(relation) => Err(exists_error(kind(relation), name)),
        }
    }

    /// Whether an error of the commit means that somebody else was first, and that this is fine.
    pub(super) fn content_with(self, error: &Error) -> bool {
        self.if_not_exists && error.code() == ErrorCode::AlreadyExists
    }
}
