//! DROP TABLE, DROP VIEW and DROP SCHEMA.

use std::collections::BTreeSet;

use aubade_catalog::snapshot::DEFAULT_SCHEMA;
use aubade_catalog::{Action, Relation, RelationName};
use aubade_proto::{Error, ErrorCode, RelationId, Result};
use datafusion::sql::sqlparser::ast::{ObjectName, ObjectType};

use super::names::check_not_built_in;
use super::names::kind;
use super::schemas::schema_name;
use super::views::readers_of;
use super::{StatementContext, unsupported};
use crate::session::QueryOutput;

/// The clauses of a DROP.
pub(super) struct What {
    pub(super) object_type: ObjectType,
    pub(super) if_exists: bool,
    /// Drops the views that read what is dropped, too. Without it such views are in the way.
    pub(super) cascade: bool,
}

pub(super) async fn run(context: &StatementContext, what: &What, names: Vec<ObjectName>) -> Result<QueryOutput> {
    let mut dropped = Dropped::default();
    for name in names {
        match what.object_type {
            ObjectType::Table | ObjectType::View => relation(context, what, name, &mut dropped)?,
            ObjectType::Schema => schema(context, what, name, &mut dropped)?,
            ref other => return Err(unsupported::error(&format!("DROP {other}"))),
        }
    }
    dropped.check_readers(context)?;
    let actions = dropped.actions();
    if !actions.is_empty() {
        context.engine().commit(actions).await?;
    }
    context.done(0)
}

/// What goes, once each.
#[derive(Default)]
struct Dropped {
    names: BTreeSet<RelationName>,
    relations: BTreeSet<RelationId>,
    schemas: BTreeSet<String>,
}

impl Dropped {
    fn actions(self) -> Vec<Action> {
        let relations = self.relations.into_iter().map(Action::DropRelation);
        relations.chain(self.schemas.into_iter().map(Action::DropSchema)).collect()
    }

    /// Views would be left that cannot be read, and with them `information_schema.columns`.
    fn check_readers(&self, context: &StatementContext) -> Result<()> {
        for name in &self.names {
            let left = readers_of(context.snapshot(), name).find(|(_, id)| !self.relations.contains(id));
            if let Some((view, _)) = left {
                return Err(Error::new(ErrorCode::InvalidArgument, format!("view '{view}' reads '{name}'"))
                    .hint("drop the view first, or use CASCADE"));
            }
        }
        Ok(())
    }

    fn with_readers(&mut self, context: &StatementContext, name: &RelationName) {
        self.relations.extend(readers_of(context.snapshot(), name).map(|(_, id)| id));
    }
}

fn relation(context: &StatementContext, what: &What, name: ObjectName, dropped: &mut Dropped) -> Result<()> {
    let name = context.relation_name(name)?;
    let Some(relation) = context.snapshot().relations.get(&name) else {
        check_not_built_in(context.snapshot(), &name.schema)?;
        return if what.if_exists { Ok(()) } else { Err(context.not_found(&name)) };
    };
    let is_view = matches!(relation, Relation::View { .. });
    if is_view != (what.object_type == ObjectType::View) {
        let text =
            format!("'{name}' is a {} and not a {}", kind(relation), what.object_type.to_string().to_lowercase());
        let right = if is_view { "VIEW" } else { "TABLE" };
        return Err(Error::new(ErrorCode::InvalidArgument, text).hint(format!("use DROP {right}")));
    }
    dropped.relations.insert(relation.id());
    if what.cascade {
        dropped.with_readers(context, &name);
    }
    dropped.names.insert(name);
    Ok(())
}

fn schema(context: &StatementContext, what: &What, name: ObjectName, dropped: &mut Dropped) -> Result<()> {
    let name = schema_name(context, name)?;
    if !context.snapshot().schemas.contains(&name) {
        check_not_built_in(context.snapshot(), &name)?;
        let error = Error::new(ErrorCode::SchemaNotFound, format!("schema '{name}' not found"));
        return if what.if_exists { Ok(()) } else { Err(error) };
    }
    if name == DEFAULT_SCHEMA {
        return Err(Error::new(ErrorCode::InvalidArgument, format!("schema '{name}' is always there"))
            .hint("drop the tables and views in it"));
    }
    let inside = context.snapshot().relations.iter().filter(|(relation, _)| relation.schema == name);
    let inside: Vec<(&RelationName, RelationId)> = inside.map(|(name, relation)| (name, relation.id())).collect();
    if !inside.is_empty() && !what.cascade {
        let text = format!("schema '{name}' has {} tables and views in it", inside.len());
        return Err(
            Error::new(ErrorCode::InvalidArgument, text).hint("drop them first, or use DROP SCHEMA ... CASCADE")
        );
    }
    for (relation, id) in inside {
        dropped.relations.insert(id);
        dropped.with_readers(context, relation);
    }
    dropped.schemas.insert(name);
    Ok(())
}
