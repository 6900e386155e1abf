//! PREPARE, EXECUTE and DEALLOCATE: statements that a session keeps by name.

use std::sync::Arc;

use aubade_planner::Opaque;
use aubade_proto::{Error, ErrorCode, Result};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Expr, LogicalPlan, Prepare, Statement as PlanStatement};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::sql::parser::Statement as Ast;
use datafusion::sql::sqlparser::ast::{Ident, Statement as SqlAst};

use super::{StatementContext, unsupported};
use crate::session::{Parameters, QueryOutput};

/// Named statements of one session: bounds its memory.
const NAMED_STATEMENTS_MAX: usize = 1_000;

/// What PREPARE made. The statement and not its plan: a plan belongs to one snapshot.
#[derive(Clone, Debug)]
pub(crate) struct NamedStatement(Opaque<SqlAst>);

pub(super) async fn prepare(context: &StatementContext, ast: SqlAst) -> Result<QueryOutput> {
    let SqlAst::Prepare { name, data_types, statement } = &ast else {
        return Err(Error::internal("a statement is prepared that is no PREPARE"));
    };
    if !matches!(statement.as_ref(), SqlAst::Query(_) | SqlAst::Insert(_)) {
        return Err(unsupported::error("PREPARE of anything but a query or INSERT").hint("run the statement itself"));
    }
    let (name, typed) = (key(name), data_types.len());
    let plan = plan_prepared(context, &ast).await?;
    let used = plan.input.get_parameter_names().map_err(Error::from_datafusion)?.len();
    if typed > 0 && typed != used {
        let text = format!("PREPARE {name} gives {typed} types and the statement has {used} parameters");
        return Err(Error::new(ErrorCode::InvalidArgument, text).hint("give a type for each parameter, or none"));
    }
    let mut named = context.session().named().lock();
    if named.contains_key(&name) {
        return Err(Error::new(ErrorCode::AlreadyExists, format!("prepared statement '{name}' already exists"))
            .hint(format!("use DEALLOCATE {name} first, or another name")));
    }
    if named.len() >= NAMED_STATEMENTS_MAX {
        return Err(Error::new(
            ErrorCode::LimitExceeded,
            format!("the session has {NAMED_STATEMENTS_MAX} prepared statements"),
        )
        .hint("free some with DEALLOCATE"));
    }
    named.insert(name, NamedStatement(Opaque::new(ast)));
    drop(named);
    context.done(0)
}

pub(super) fn deallocate(context: &StatementContext, name: &Ident) -> Result<QueryOutput> {
    let name = key(name);
    if context.session().named().lock().remove(&name).is_none() {
        return Err(unknown(context, &name));
    }
    context.done(0)
}

/// The plan of an EXECUTE: the named statement planned on this snapshot, with the values.
pub(super) async fn execute(context: &StatementContext, ast: SqlAst) -> Result<LogicalPlan> {
    let plan = context.plan(Ast::Statement(Box::new(ast))).await?;
    let LogicalPlan::Statement(PlanStatement::Execute(execute)) = plan else {
        return Err(Error::internal("EXECUTE is planned as something else"));
    };
    let found = context.session().named().lock().get(&execute.name).cloned();
    let named = found.ok_or_else(|| unknown(context, &execute.name))?;
    let prepared = plan_prepared(context, &named.0).await?;
    let mut values = execute.parameters.into_iter().map(|value| literal(context, value)).collect::<Result<Vec<_>>>()?;
    let wanted = prepared.input.get_parameter_names().map_err(Error::from_datafusion)?.len();
    if values.len() != wanted {
        let text = format!(
            "prepared statement '{}' has {wanted} parameters and {} values are given",
            execute.name,
            values.len()
        );
        return Err(Error::new(ErrorCode::InvalidArgument, text));
    }
    if prepared.fields.len() == values.len() {
        let typed = values.iter().zip(&prepared.fields);
        let cast = typed.map(|(value, field)| value.cast_to(field.data_type()).map_err(Error::from_datafusion));
        values = cast.collect::<Result<_>>()?;
    }
    Parameters::from_values(&values)?.bind(Arc::unwrap_or_clone(prepared.input))
}

async fn plan_prepared(context: &StatementContext, ast: &SqlAst) -> Result<Prepare> {
    match context.plan(Ast::Statement(Box::new(ast.clone()))).await? {
        LogicalPlan::Statement(PlanStatement::Prepare(prepare)) => Ok(prepare),
        _ => Err(Error::internal("PREPARE is planned as something else")),
    }
}

/// The name as DataFusion gives it for EXECUTE.
fn key(name: &Ident) -> String {
    match name.quote_style {
        Some(_) => name.value.clone(),
        None => name.value.to_ascii_lowercase(),
    }
}

fn unknown(context: &StatementContext, name: &str) -> Error {
    let named = context.session().named().lock();
    let nearest = named.keys().map(|known| (strsim::damerau_levenshtein(known, name), known)).min();
    let error =
        Error::new(ErrorCode::HandleNotFound, format!("there is no prepared statement '{name}' in this session"));
    match nearest {
        Some((distance, known)) if distance <= 2 => error.hint(format!("did you mean '{known}'?")),
        _ => error.hint("make it with PREPARE; each session has its own"),
    }
}

/// The value of an argument that reads no table.
fn literal(context: &StatementContext, value: Expr) -> Result<ScalarValue> {
    let state = context.state();
    let simplify = SimplifyContext::builder()
        .with_config_options(Arc::clone(state.config_options()))
        .with_query_execution_start_time(state.execution_props().query_execution_start_time)
        .build();
    match ExprSimplifier::new(simplify).simplify(value).map_err(Error::from_datafusion)? {
        Expr::Literal(value, _) => Ok(value),
        other => Err(Error::new(ErrorCode::InvalidArgument, format!("the argument {other} of EXECUTE is no constant"))),
    }
}
