//! CREATE VIEW, and which views read which relations.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use aubade_catalog::snapshot::DEFAULT_SCHEMA;
use aubade_catalog::{Action, Relation, RelationDefinition, RelationKind, RelationName, Snapshot};
use aubade_proto::{Error, ErrorCode, RelationId, Result};
use datafusion::common::TableReference;
use datafusion::logical_expr::{DdlStatement, LogicalPlan};
use datafusion::sql::parser::{DFParser, Statement as Ast};
use datafusion::sql::resolve::resolve_table_references;
use datafusion::sql::sqlparser::ast::{
    CreateView, Ident, ObjectName, ObjectNamePart, Query, Statement as SqlAst, visit_relations_mut,
};

use super::conform::check_storable;
use super::names::{IfTaken, Name};
use super::{StatementContext, parse};
use crate::file_policy::is_path;
use crate::session::QueryOutput;

pub(super) async fn create(context: &StatementContext, mut view: CreateView) -> Result<QueryOutput> {
    let if_taken = IfTaken { or_replace: view.or_replace, if_not_exists: view.if_not_exists };
    // DataFusion refuses the clause, which we carry out ourselves.
    view.if_not_exists = false;
    let name = context.relation_name(view.name.clone())?;
    let mut actions = Vec::new();
    match if_taken.decide(context.snapshot(), &name, "view")? {
        Name::Keep => return context.done(0),
        Name::Free => {}
        Name::Replaces(relation) => actions.push(Action::DropRelation(relation.id())),
    }
    let sql = definition(context, &view)?;
    check(context, view, &sql, &name).await?;
    let id = RelationId(context.engine().environment().new_uuid());
    actions.push(Action::CreateRelation(RelationDefinition { id, name, kind: RelationKind::View(sql) }));
    match context.engine().commit(actions).await {
        Ok(_) => context.done(0),
        Err(error) if if_taken.content_with(&error) => context.done(0),
        Err(error) => Err(error),
    }
}

/// The text that is stored: it means the same whatever the session's default schema is.
fn definition(context: &StatementContext, view: &CreateView) -> Result<String> {
    let catalog = &context.state().config().options().catalog;
    let mut query = view.query.clone();
    if catalog.default_schema != DEFAULT_SCHEMA {
        qualify(context, &mut query, &catalog.default_schema)?;
    }
    if view.columns.is_empty() {
        return Ok(query.to_string());
    }
    let columns: Vec<String> = view.columns.iter().map(|column| column.name.to_string()).collect();
    Ok(format!("SELECT * FROM ({query}) AS renamed ({})", columns.join(", ")))
}

/// Puts `schema` in front of the names that have none and that no WITH clause defines.
fn qualify(context: &StatementContext, query: &mut Box<Query>, schema: &str) -> Result<()> {
    let normalize = context.state().config().options().sql_parser.enable_ident_normalization;
    let statement = Ast::Statement(Box::new(SqlAst::Query(query.clone())));
    let (tables, _) = resolve_table_references(&statement, normalize).map_err(Error::from_datafusion)?;
    let bare: BTreeSet<String> = tables
        .into_iter()
        .filter_map(|table| match table {
            TableReference::Bare { table } => Some(table.to_string()),
            TableReference::Partial { .. } | TableReference::Full { .. } => None,
        })
        .collect();
    let _: ControlFlow<()> = visit_relations_mut(query, |name: &mut ObjectName| {
        if let [ObjectNamePart::Identifier(ident)] = name.0.as_slice() {
            let stored = match ident.quote_style {
                None if normalize => ident.value.to_lowercase(),
                _ => ident.value.clone(),
            };
            if bare.contains(&stored) {
                name.0.insert(0, ObjectNamePart::Identifier(Ident::with_quote('"', schema)));
            }
        }
        ControlFlow::Continue(())
    });
    Ok(())
}

/// Plans the view as written and as stored, and refuses one that reads itself.
async fn check(context: &StatementContext, view: CreateView, sql: &str, name: &RelationName) -> Result<()> {
    let plan = context.plan(Ast::Statement(Box::new(SqlAst::CreateView(view)))).await?;
    let LogicalPlan::Ddl(DdlStatement::CreateView(command)) = plan else {
        return Err(Error::internal("CREATE VIEW is planned as something else"));
    };
    if command.temporary {
        return Err(Error::new(ErrorCode::NotSupported, "TEMPORARY in CREATE VIEW is not supported yet"));
    }
    if !command.input.get_parameter_names().map_err(Error::from_datafusion)?.is_empty() {
        return Err(Error::new(ErrorCode::InvalidArgument, "a view cannot have parameters"));
    }
    // Types do not matter to a view; names do.
    match check_storable(command.input.schema().as_arrow()) {
        Err(error) if error.code() == ErrorCode::InvalidArgument => return Err(error),
        Err(_) | Ok(()) => {}
    }
    let analyzed = |plan: LogicalPlan| {
        let options = context.state().config_options();
        context.state().analyzer().execute_and_check(plan, options, |_, _| {}).map_err(|error| context.improve(error))
    };
    let written = analyzed(command.input.as_ref().clone())?;
    let stored = parse::Statement::parse(sql, context.state())?;
    let parse::Body::Sql(ast) = stored.body else {
        return Err(Error::internal("a view is kept as a statement that is no query"));
    };
    let stored = analyzed(context.plan(ast).await?)?;
    if stored.schema().as_arrow().fields() != written.schema().as_arrow().fields() {
        let text = format!("the query of view '{name}' cannot be stored: its text reads back as another query");
        return Err(Error::new(ErrorCode::NotSupported, text).hint("write the query in a simpler way"));
    }
    check_reads(context.snapshot(), &reads(sql), name)
}

fn check_reads(snapshot: &Snapshot, read: &BTreeSet<RelationName>, view: &RelationName) -> Result<()> {
    if read.contains(view) || readers_of(snapshot, view).any(|(reader, _)| read.contains(&reader)) {
        return Err(Error::new(ErrorCode::InvalidArgument, format!("view '{view}' would read itself")));
    }
    let path = read.iter().find(|name| !snapshot.relations.contains_key(*name) && is_path(&name.name));
    match path {
        None => Ok(()),
        Some(path) => {
            let text = format!("view '{view}' reads the file '{}', which a view cannot do yet", path.name);
            Err(Error::new(ErrorCode::NotSupported, text)
                .hint("make a table of the file with CREATE EXTERNAL TABLE first"))
        }
    }
}

/// The relations that the stored text of a view names, without those behind other views.
fn reads(sql: &str) -> BTreeSet<RelationName> {
    let Ok(mut statements) = DFParser::parse_sql(sql) else { return BTreeSet::new() };
    let Some(statement) = statements.pop_front() else { return BTreeSet::new() };
    let Ok((tables, _)) = resolve_table_references(&statement, true) else { return BTreeSet::new() };
    let resolved = tables.into_iter().map(|table| {
        let resolved = table.resolve(aubade_planner::catalog::CATALOG, DEFAULT_SCHEMA);
        RelationName { schema: resolved.schema.to_string(), name: resolved.table.to_string() }
    });
    resolved.collect()
}

/// Every view that reads `name`, directly or through other views.
pub(super) fn readers_of(
    snapshot: &Snapshot,
    name: &RelationName,
) -> impl Iterator<Item = (RelationName, RelationId)> + use<> {
    let views: BTreeMap<&RelationName, (RelationId, BTreeSet<RelationName>)> = snapshot
        .relations
        .iter()
        .filter_map(|(name, relation)| match relation {
            Relation::View { id, sql } => Some((name, (*id, reads(sql)))),
            Relation::Table(_) | Relation::External { .. } => None,
        })
        .collect();
    let mut found = BTreeMap::new();
    let mut left = vec![name.clone()];
    while let Some(read) = left.pop() {
        for (view, (id, reads)) in &views {
            if reads.contains(&read) && found.insert((*view).clone(), *id).is_none() {
                left.push((*view).clone());
            }
        }
    }
    found.into_iter()
}
