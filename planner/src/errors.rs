//! Errors that name what was probably meant.

use aubade_catalog::Snapshot;
use aubade_catalog::snapshot::DEFAULT_SCHEMA;
use aubade_proto::{Error, ErrorCode};
use datafusion::catalog::information_schema::INFORMATION_SCHEMA;
use datafusion::common::{Column, SchemaError, TableReference};
use datafusion::error::DataFusionError;
use strsim::normalized_damerau_levenshtein;

use crate::catalog::{CATALOG, SYSTEM_SCHEMA};

/// Names below this similarity (0 to 1) are not worth a mention.
const SIMILARITY_MIN: f64 = 0.5;

/// Valid names listed in an error, at most.
const NAMES_MAX: usize = 12;

/// The error for people: unknown tables, columns and schemas get the nearest name that exists.
pub fn improve_error(snapshot: &Snapshot, error: DataFusionError) -> Error {
    match unknown_name(snapshot, error.find_root()) {
        Some(better) => better,
        None => Error::from_datafusion(error),
    }
}

fn unknown_name(snapshot: &Snapshot, root: &DataFusionError) -> Option<Error> {
    match root {
        DataFusionError::SchemaError(schema, _) => match schema.as_ref() {
            SchemaError::FieldNotFound { field, valid_fields } => Some(unknown_column(field, valid_fields)),
            SchemaError::AmbiguousReference { .. }
            | SchemaError::DuplicateQualifiedField { .. }
            | SchemaError::DuplicateUnqualifiedField { .. } => None,
        },
        DataFusionError::Plan(message) => {
            let message = DataFusionError::strip_backtrace(&DataFusionError::Plan(message.clone()));
            let message = message.strip_prefix("Error during planning: ").unwrap_or(&message);
            if let Some(name) = between(message, "table '", "' not found") {
                return Some(unknown_table(snapshot, name));
            }
            message.strip_prefix("failed to resolve schema: ").map(|name| unknown_schema(snapshot, name.trim()))
        }
        DataFusionError::Collection(all) => all.iter().find_map(|error| unknown_name(snapshot, error.find_root())),
        _ => None,
    }
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    text.strip_prefix(start)?.split_once(end).map(|(name, _)| name)
}

/// The candidate that is most like `name`, if any is like it at all.
fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    let scored = candidates
        .into_iter()
        .map(|candidate| (normalized_damerau_levenshtein(&name, &candidate.to_lowercase()), candidate));
    scored
        .filter(|(score, _)| *score >= SIMILARITY_MIN)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, name)| name)
}

/// A name as SQL has to have it.
fn as_written(name: &str) -> String {
    if name.chars().any(char::is_uppercase) { format!("\"{name}\"") } else { name.to_owned() }
}

fn did_you_mean(error: Error, name: Option<String>, otherwise: &str) -> Error {
    match name {
        Some(name) => error.hint(format!("did you mean '{name}'?")),
        None => error.hint(otherwise),
    }
}

fn unknown_schema(snapshot: &Snapshot, name: &str) -> Error {
    let error = Error::new(ErrorCode::SchemaNotFound, format!("schema '{name}' not found"));
    let near = nearest(name, snapshot.schemas.iter().map(String::as_str));
    did_you_mean(
        error,
        near.map(str::to_owned),
        "SELECT schema_name FROM information_schema.schemata lists the schemas",
    )
}

fn unknown_table(snapshot: &Snapshot, name: &str) -> Error {
    // As it was asked for: in quotes, letters keep their case.
    let reference = TableReference::parse_str_normalized(name, true);
    let schema = reference.schema().unwrap_or(DEFAULT_SCHEMA).to_owned();
    let table = reference.table().to_owned();
    if reference.catalog().is_some_and(|catalog| catalog != CATALOG) {
        return Error::new(ErrorCode::TableNotFound, format!("table '{name}' not found"))
            .hint(format!("there is only one catalog, '{CATALOG}'"));
    }
    let is_built_in = matches!(schema.as_str(), INFORMATION_SCHEMA | SYSTEM_SCHEMA);
    if !is_built_in && !snapshot.schemas.contains(&schema) {
        return unknown_schema(snapshot, &schema);
    }
    let shown = |schema: &str, name: &str| match schema {
        DEFAULT_SCHEMA => name.to_owned(),
        _ => format!("{schema}.{name}"),
    };
    let error = Error::new(ErrorCode::TableNotFound, format!("table '{}' not found", shown(&schema, &table)));
    let same_schema = snapshot.relations.keys().filter(|relation| relation.schema == schema);
    let near = nearest(&table, same_schema.map(|relation| relation.name.as_str()));
    let near = near.map(|name| shown(&schema, &as_written(name)));
    let elsewhere = || {
        let others = snapshot.relations.keys().find(|relation| relation.schema != schema && relation.name == table);
        others.map(|relation| shown(&relation.schema, &as_written(&relation.name)))
    };
    did_you_mean(error, near.or_else(elsewhere), "SHOW TABLES lists the tables")
}

fn unknown_column(field: &Column, valid: &[Column]) -> Error {
    let error = Error::new(ErrorCode::ColumnNotFound, format!("column '{}' not found", field.flat_name()));
    let near = nearest(field.name(), valid.iter().map(Column::name)).map(as_written);
    let names: Vec<_> = valid.iter().take(NAMES_MAX).map(Column::name).collect();
    let more = if valid.len() > NAMES_MAX { ", ..." } else { "" };
    let otherwise = match names.is_empty() {
        true => "no table here has columns".to_owned(),
        false => format!("there are {}{more}", names.join(", ")),
    };
    did_you_mean(error, near, &otherwise)
}
