//! CREATE TABLE, also AS SELECT: one commit makes the table and its rows visible.

use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use aubade_catalog::{Action, RelationDefinition, RelationKind, RelationName};
use aubade_proto::{Error, ErrorCode, RelationId, Result};
use datafusion::logical_expr::{DdlStatement, LogicalPlan};
use datafusion::physical_plan::execute_stream;
use datafusion::sql::parser::Statement as Ast;
use datafusion::sql::sqlparser::ast::{ColumnOption, CreateTable, Statement as SqlAst, TableConstraint};

use super::StatementContext;
use super::conform::{Conform, check_storable, conform_stream};
use super::names::{IfTaken, Name};
use crate::session::{Parameters, QueryOutput};

pub(super) async fn create(
    context: &StatementContext,
    create: CreateTable,
    parameters: &Parameters,
) -> Result<QueryOutput> {
    check_constraints(&create)?;
    let declared = Declared::of(&create);
    let ast = Ast::Statement(Box::new(SqlAst::CreateTable(create)));
    let plan = parameters.bind(context.plan(ast).await?)?;
    let LogicalPlan::Ddl(DdlStatement::CreateMemoryTable(command)) = plan else {
        return Err(Error::internal("CREATE TABLE is planned as something else"));
    };
    let if_taken = IfTaken { or_replace: command.or_replace, if_not_exists: command.if_not_exists };
    let name = context.resolve(command.name)?;
    let mut actions = Vec::new();
    match if_taken.decide(context.snapshot(), &name, "table")? {
        Name::Keep => return context.done(0),
        Name::Free => {}
        Name::Replaces(relation) => actions.push(Action::DropRelation(relation.id())),
    }
    let schema = declared.schema(command.input.schema().as_arrow());
    check_storable(&schema)?;
    let id = RelationId(context.engine().environment().new_uuid());
    actions.push(create_action(id, name, Arc::clone(&schema)));
    let made = match declared.has_query {
        false => context.engine().commit(actions).await.map(|_| 0),
        true => fill(context, &command.input, actions, id, schema).await,
    };
    match made {
        Ok(rows) => context.done(rows),
        Err(error) if if_taken.content_with(&error) => context.done(0),
        Err(error) => Err(error),
    }
}

async fn fill(
    context: &StatementContext,
    input: &LogicalPlan,
    actions: Vec<Action>,
    table: RelationId,
    schema: SchemaRef,
) -> Result<u64> {
    let plan = context.physical_plan(input).await?;
    let rows = execute_stream(plan, context.state().task_ctx()).map_err(Error::from_datafusion)?;
    let conform = Conform::by_position(&rows.schema(), &schema)?;
    let written = context.engine().write_segments(schema, conform_stream(conform, rows)).await?;
    let rows = written.rows;
    context.engine().commit_written(actions, table, written).await?;
    Ok(rows)
}

/// The action that makes a table.
pub(crate) fn create_action(id: RelationId, name: RelationName, schema: SchemaRef) -> Action {
    Action::CreateRelation(RelationDefinition { id, name, kind: RelationKind::Table(schema) })
}

/// What DataFusion's plan does not say of a CREATE TABLE.
struct Declared {
    has_query: bool,
    /// Whether each declared column is NOT NULL; empty without declared columns.
    not_null: Vec<bool>,
}

impl Declared {
    fn of(create: &CreateTable) -> Self {
        let not_null = create
            .columns
            .iter()
            .map(|column| column.options.iter().any(|option| matches!(option.option, ColumnOption::NotNull)))
            .collect();
        Self { has_query: create.query.is_some(), not_null }
    }

    /// The table's schema. The columns of a query become nullable unless they are declared NOT NULL:
    /// that a query had no nulls today says nothing of the rows to come.
    fn schema(&self, planned: &Schema) -> SchemaRef {
        let fields = planned.fields().iter().enumerate().map(|(index, field)| {
            let not_null = self.not_null.get(index).copied().unwrap_or(false);
            Field::new(field.name(), field.data_type().clone(), !not_null)
        });
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }
}

/// Refuses what nothing would enforce or carry out.
fn check_constraints(create: &CreateTable) -> Result<()> {
    const NOT_ENFORCED: &str = "nothing would enforce it: leave it out; NOT NULL is enforced";
    let on_columns = create.columns.iter().flat_map(|column| &column.options).find_map(|option| match option.option {
        ColumnOption::PrimaryKey(_) => Some(("PRIMARY KEY", NOT_ENFORCED)),
        ColumnOption::Unique(_) => Some(("UNIQUE", NOT_ENFORCED)),
        ColumnOption::ForeignKey(_) => Some(("REFERENCES", NOT_ENFORCED)),
        ColumnOption::Check(_) => Some(("CHECK", NOT_ENFORCED)),
        ColumnOption::Default(_) => Some(("DEFAULT", "give the value in every INSERT")),
        _ => None,
    });
    let on_table = create.constraints.first().map(|constraint| match constraint {
        TableConstraint::PrimaryKey(_) => ("PRIMARY KEY", NOT_ENFORCED),
        TableConstraint::Unique(_) => ("UNIQUE", NOT_ENFORCED),
        TableConstraint::ForeignKey(_) => ("FOREIGN KEY", NOT_ENFORCED),
        TableConstraint::Check(_) => ("CHECK", NOT_ENFORCED),
        _ => ("a constraint of this kind", NOT_ENFORCED),
    });
    let temporary =
        create.temporary.then_some(("TEMPORARY", "make the table in a schema of its own and drop it afterwards"));
    match on_columns.or(on_table).or(temporary) {
        None => Ok(()),
        Some((what, hint)) => {
            Err(Error::new(ErrorCode::NotSupported, format!("{what} in CREATE TABLE is not supported yet")).hint(hint))
        }
    }
}
