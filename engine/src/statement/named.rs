//! PREPARE, EXECUTE and DEALLOCATE: statements that a session keeps by name.

use std::sync::Arc;

use arrow::datatypes::DataType;
use aubade_planner::Opaque;
use aubade_proto::{Error, ErrorCode, Result};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Expr, LogicalPlan, Prepare, Statement as PlanStatement};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::sql::parser::Statement as Ast;
use datafusion::sql::sqlparser::ast::{Ident, Statement as SqlAst};
use futures::FutureExt;

use super::{Body, Statement, StatementContext, kept, run_plan, unsupported};
use crate::session::{Basis, Parameters, QueryOutput};

/// Named statements of one session: bounds its memory.
const NAMED_STATEMENTS_MAX: usize = 1_000;

/// What PREPARE made. The statement and not its plan: a plan belongs to one snapshot.
#[derive(Clone, Debug)]
pub(crate) struct NamedStatement {
    /// The PREPARE.
    ast: Opaque<SqlAst>,
    /// The text of the statement that it names, if it reads back as the same: then its plan can be kept.
    sql: Option<Arc<str>>,
    known: Known,
}

/// What is known of the parameters of a named statement.
#[derive(Clone, Debug)]
struct Known {
    /// For which catalog and settings.
    basis: Basis,
    /// How many there are.
    wanted: usize,
    /// Their types, where all are known.
    types: Vec<DataType>,
}

impl Known {
    fn of(context: &StatementContext, prepared: &Prepare) -> Result<Self> {
        let wanted = prepared.input.get_parameter_names().map_err(Error::from_datafusion)?.len();
        let types = prepared.fields.iter().map(|field| field.data_type().clone()).collect();
        Ok(Self { basis: context.basis(), wanted, types })
    }
}

pub(super) async fn prepare(context: &StatementContext, ast: SqlAst) -> Result<QueryOutput> {
    let SqlAst::Prepare { name, data_types, statement } = &ast else {
        return Err(Error::internal("a statement is prepared that is no PREPARE"));
    };
    if !matches!(statement.as_ref(), SqlAst::Query(_) | SqlAst::Insert(_)) {
        return Err(unsupported::error("PREPARE of anything but a query or INSERT").hint("run the statement itself"));
    }
    let (name, typed, sql) = (key(name), data_types.len(), text_of(context, statement));
    let known = Known::of(context, &plan_prepared(context, &ast).await?)?;
    let used = known.wanted;
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
    named.insert(name, NamedStatement { ast: Opaque::new(ast), sql, known });
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

/// An EXECUTE: the named statement, and the values that it is given.
struct Call {
    name: String,
    named: NamedStatement,
    values: Vec<ScalarValue>,
}

impl Call {
    async fn new(context: &StatementContext, ast: SqlAst) -> Result<Self> {
        let plan = context.plan(Ast::Statement(Box::new(ast))).await?;
        let LogicalPlan::Statement(PlanStatement::Execute(execute)) = plan else {
            return Err(Error::internal("EXECUTE is planned as something else"));
        };
        let found = context.session().named().lock().get(&execute.name).cloned();
        let named = found.ok_or_else(|| unknown(context, &execute.name))?;
        let values = execute.parameters.into_iter().map(|value| literal(context, value)).collect::<Result<_>>()?;
        Ok(Self { name: execute.name, named, values })
    }

    /// The values in the types of the parameters, where they are known without planning.
    fn known_parameters(&self, context: &StatementContext) -> Result<Option<Parameters>> {
        let known = &self.named.known;
        if known.basis != context.basis() || known.wanted != self.values.len() {
            return Ok(None);
        }
        self.typed(&known.types).map(Some)
    }

    /// The named statement planned on this snapshot, and the values.
    async fn planned(&self, context: &StatementContext) -> Result<(LogicalPlan, Parameters)> {
        let prepared = plan_prepared(context, &self.named.ast).await?;
        let known = Known::of(context, &prepared)?;
        if self.values.len() != known.wanted {
            let text = format!(
                "prepared statement '{}' has {} parameters and {} values are given",
                self.name,
                known.wanted,
                self.values.len()
            );
            return Err(Error::new(ErrorCode::InvalidArgument, text));
        }
        let parameters = self.typed(&known.types)?;
        if let Some(named) = context.session().named().lock().get_mut(&self.name) {
            named.known = known;
        }
        Ok((Arc::unwrap_or_clone(prepared.input), parameters))
    }

    fn typed(&self, types: &[DataType]) -> Result<Parameters> {
        if types.len() != self.values.len() {
            return Parameters::from_values(&self.values);
        }
        let typed = self.values.iter().zip(types).map(|(value, data_type)| typed(value, data_type));
        Parameters::from_values(&typed.collect::<Result<Vec<_>>>()?)
    }
}

/// A value in the type of a parameter, or as it is where that would make another one of it: 3.5 is compared with whole
/// numbers as it would be if it stood in the statement.
fn typed(value: &ScalarValue, data_type: &DataType) -> Result<ScalarValue> {
    let cast = value.cast_to(data_type).map_err(Error::from_datafusion)?;
    let is_same = cast.cast_to(&value.data_type()).is_ok_and(|back| back == *value);
    Ok(if is_same { cast } else { value.clone() })
}

/// Runs an EXECUTE; its plan is kept like that of a statement which is sent with its parameters.
pub(super) async fn run(mut context: StatementContext, ast: SqlAst) -> Result<QueryOutput> {
    let call = Call::new(&context, ast).await?;
    if let Some((sql, parameters)) = call.named.sql.as_ref().zip(call.known_parameters(&context)?) {
        context.look_up(sql, &parameters);
        if let Some(output) = kept::run(&context).boxed().await? {
            return Ok(output);
        }
    }
    let (plan, parameters) = call.planned(&context).await?;
    if let Some(sql) = &call.named.sql {
        // By the types that were found just now.
        context.look_up(sql, &parameters);
    }
    let statement = call.named.sql.as_ref().and_then(|sql| Statement::parse(sql, context.state()).ok());
    if let Some(Body::Sql(ast)) = statement.map(|statement| statement.body)
        && let Some(output) = kept::run_first(&context, ast, &plan, &parameters).boxed().await?
    {
        return Ok(output);
    }
    run_plan(&context, parameters.bind(plan)?).await
}

/// The plan of an EXECUTE with its values.
pub(super) async fn plan(context: &StatementContext, ast: SqlAst) -> Result<LogicalPlan> {
    let (plan, parameters) = Call::new(context, ast).await?.planned(context).await?;
    parameters.bind(plan)
}

/// The text of a statement, if it reads back as the same: not all that has quotes in it does.
fn text_of(context: &StatementContext, statement: &SqlAst) -> Option<Arc<str>> {
    let text = statement.to_string();
    let read = Statement::parse(&text, context.state()).ok()?;
    let is_same = matches!(read.body, Body::Sql(Ast::Statement(read)) if *read == *statement);
    is_same.then(|| Arc::from(text))
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
