//! What SQL says and DataFusion 55 reads otherwise, or reads over, in words that it reads as they are meant.

mod precedence;

use std::ops::ControlFlow;

use aubade_proto::{Error, ErrorCode, Result};
use datafusion::error::Result as DataFusionResult;
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::parser::{CopyToSource, Statement as Ast};
use datafusion::sql::sqlparser::ast::{
    BinaryOperator, ExcludeSelectItem, Expr, Function, GroupByExpr, GroupByWithModifier, Ident, JoinConstraint,
    JoinOperator, NamedWindowExpr, ObjectName, OrderBy, OrderByKind, Query, Select, SelectItem,
    SelectItemQualifiedWildcardKind, SetExpr, TableAlias, TableFactor, UnaryOperator, VisitMut, VisitorMut,
    WildcardAdditionalOptions, WindowSpec, WindowType,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;

/// Rewrites a statement: operators that bind otherwise, windows over named windows, GROUP BY WITH ROLLUP and WITH CUBE,
/// BETWEEN intervals, and the columns that RIGHT and FULL joins share by USING.
///
/// # Errors
/// `NotSupported` for what would be read over: TABLESAMPLE, and shared columns of several joins; `SqlPlan` for windows that
/// nobody has defined.
pub fn rewrite(ast: &mut Ast) -> Result<()> {
    let broken = match ast {
        Ast::Statement(ast) => ast.visit(&mut Standard),
        Ast::Explain(explain) => return rewrite(&mut explain.statement),
        Ast::CopyTo(copy) => match &mut copy.source {
            CopyToSource::Query(query) => query.visit(&mut Standard),
            CopyToSource::Relation(_) => return Ok(()),
        },
        Ast::CreateExternalTable(_) | Ast::Reset(_) => return Ok(()),
    };
    match broken {
        ControlFlow::Break(error) => Err(error),
        ControlFlow::Continue(()) => Ok(()),
    }
}

/// The plan of a statement that is kept as text.
///
/// # Errors
/// When it cannot be parsed or planned, and those of [`rewrite`].
pub(crate) async fn plan(state: &SessionState, sql: &str) -> DataFusionResult<LogicalPlan> {
    let mut ast = state.sql_to_statement(sql, &state.config().options().sql_parser.dialect)?;
    rewrite(&mut ast)?;
    state.statement_to_plan(ast).await
}

struct Standard;

impl VisitorMut for Standard {
    type Break = Error;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<Error> {
        flow(rewrite_body(&mut query.body, &mut query.order_by))
    }

    fn post_visit_expr(&mut self, expression: &mut Expr) -> ControlFlow<Error> {
        precedence::rebind(expression);
        // Comparisons with intervals are planned one by one (`TemporalOperators`).
        if let Expr::Between { expr, negated, low, high } = expression
            && matches!((low.as_ref(), high.as_ref()), (Expr::Interval(_), _) | (_, Expr::Interval(_)))
        {
            let compare =
                |op, bound: &Expr| Box::new(Expr::BinaryOp { left: expr.clone(), op, right: Box::new(bound.clone()) });
            let (left, right) = (compare(BinaryOperator::GtEq, low), compare(BinaryOperator::LtEq, high));
            let both = Box::new(Expr::Nested(Box::new(Expr::BinaryOp { left, op: BinaryOperator::And, right })));
            *expression = if *negated { Expr::UnaryOp { op: UnaryOperator::Not, expr: both } } else { *both };
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<Error> {
        match factor {
            TableFactor::Table { sample: Some(_), .. } | TableFactor::Derived { sample: Some(_), .. } => {
                ControlFlow::Break(not_supported("TABLESAMPLE").hint("draw rows with WHERE random() < 0.1"))
            }
            _ => ControlFlow::Continue(()),
        }
    }
}

fn flow(done: Result<()>) -> ControlFlow<Error> {
    match done {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => ControlFlow::Break(error),
    }
}

fn not_supported(what: &str) -> Error {
    Error::new(ErrorCode::NotSupported, format!("{what} is not supported yet"))
}

/// `order_by` is of what `body` is, where that is one SELECT. Queries in it are visited by themselves.
fn rewrite_body(body: &mut SetExpr, order_by: &mut Option<OrderBy>) -> Result<()> {
    match body {
        SetExpr::Select(select) => {
            group_by_modifiers(&mut select.group_by)?;
            named_windows(select, order_by)?;
            shared_columns(select, order_by)
        }
        SetExpr::SetOperation { left, right, .. } => {
            rewrite_body(left, &mut None)?;
            rewrite_body(right, &mut None)
        }
        _ => Ok(()),
    }
}

fn group_by_modifiers(group_by: &mut GroupByExpr) -> Result<()> {
    let (GroupByExpr::All(modifiers) | GroupByExpr::Expressions(_, modifiers)) = &*group_by;
    let combine: fn(Vec<Vec<Expr>>) -> Expr = match (&*group_by, modifiers.as_slice()) {
        (_, []) => return Ok(()),
        (GroupByExpr::Expressions(..), [GroupByWithModifier::Rollup]) => Expr::Rollup,
        (GroupByExpr::Expressions(..), [GroupByWithModifier::Cube]) => Expr::Cube,
        (_, [modifier, ..]) => {
            return Err(not_supported(&format!("GROUP BY ... {modifier}"))
                .hint("write GROUP BY ROLLUP (...), CUBE (...) or GROUPING SETS (...)"));
        }
    };
    if let GroupByExpr::Expressions(expressions, modifiers) = group_by {
        modifiers.clear();
        let each = std::mem::take(expressions).into_iter().map(|expression| vec![expression]);
        *expressions = vec![combine(each.collect())];
    }
    Ok(())
}

/// Writes out the windows that other windows refer to.
fn named_windows(select: &mut Select, order_by: &mut Option<OrderBy>) -> Result<()> {
    let mut known: Vec<(Ident, WindowSpec)> = Vec::new();
    for definition in &mut select.named_window {
        let mut spec = match &definition.1 {
            NamedWindowExpr::NamedWindow(name) => find(&known, name)?.clone(),
            NamedWindowExpr::WindowSpec(spec) => spec.clone(),
        };
        write_out(&mut spec, &known)?;
        known.push((definition.0.clone(), spec.clone()));
        definition.1 = NamedWindowExpr::WindowSpec(spec);
    }
    let mut windows = Windows { known, depth: 0 };
    for part in
        [select.projection.visit(&mut windows), select.qualify.visit(&mut windows), order_by.visit(&mut windows)]
    {
        if let ControlFlow::Break(error) = part {
            return Err(error);
        }
    }
    Ok(())
}

/// The windows of a SELECT.
struct Windows {
    known: Vec<(Ident, WindowSpec)>,
    /// Of queries in the one that is rewritten, which have windows of their own.
    depth: usize,
}

impl VisitorMut for Windows {
    type Break = Error;

    fn pre_visit_query(&mut self, _query: &mut Query) -> ControlFlow<Error> {
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _query: &mut Query) -> ControlFlow<Error> {
        self.depth = self.depth.saturating_sub(1);
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expression: &mut Expr) -> ControlFlow<Error> {
        match expression {
            Expr::Function(Function { over: Some(WindowType::WindowSpec(spec)), .. }) if self.depth == 0 => {
                flow(write_out(spec, &self.known))
            }
            _ => ControlFlow::Continue(()),
        }
    }
}

fn find<'a>(known: &'a [(Ident, WindowSpec)], name: &Ident) -> Result<&'a WindowSpec> {
    let found = known.iter().find(|(known, _)| is_same(known, name)).map(|(_, spec)| spec);
    found.ok_or_else(|| {
        Error::new(ErrorCode::SqlPlan, format!("there is no window {name}"))
            .hint(format!("define it before it is used: WINDOW {name} AS (...)"))
    })
}

fn write_out(spec: &mut WindowSpec, known: &[(Ident, WindowSpec)]) -> Result<()> {
    let Some(name) = spec.window_name.take() else { return Ok(()) };
    let base = find(known, &name)?;
    if spec.partition_by.is_empty() {
        spec.partition_by.clone_from(&base.partition_by);
    }
    if spec.order_by.is_empty() {
        spec.order_by.clone_from(&base.order_by);
    }
    if spec.window_frame.is_none() {
        spec.window_frame.clone_from(&base.window_frame);
    }
    Ok(())
}

fn is_same(one: &Ident, other: &Ident) -> bool {
    folded(one) == folded(other)
}

fn folded(name: &Ident) -> String {
    if name.quote_style.is_some() { name.value.clone() } else { name.value.to_lowercase() }
}

/// Names the side of a RIGHT or FULL join that a column of USING is of. DataFusion takes that of the left side, which is NULL
/// for rows of the right side alone (<https://github.com/apache/datafusion/issues/22881>).
fn shared_columns(select: &mut Select, order_by: &mut Option<OrderBy>) -> Result<()> {
    let shares = |operator: &JoinOperator| {
        matches!(constraint(operator), Some((_, JoinConstraint::Using(_) | JoinConstraint::Natural)))
    };
    if !select.from.iter().any(|tables| tables.joins.iter().any(|join| shares(&join.join_operator))) {
        return Ok(());
    }
    let not_this = || {
        not_supported("USING and NATURAL in a RIGHT or FULL join of more than two tables with names, or without a list of columns")
            .hint("write ON a.k = b.k, and coalesce(a.k, b.k) for the column of both")
    };
    let [tables] = select.from.as_slice() else { return Err(not_this()) };
    let [join] = tables.joins.as_slice() else { return Err(not_this()) };
    let Some((is_full, JoinConstraint::Using(columns))) = constraint(&join.join_operator) else {
        return Err(not_this());
    };
    let (left, right) =
        (name_of(&tables.relation).ok_or_else(not_this)?, name_of(&join.relation).ok_or_else(not_this)?);
    let sides = [&tables.relation, &join.relation].map(whole_name);
    let [Some(left_side), Some(right_side)] = sides else { return Err(not_this()) };
    let sides = [left_side, right_side];
    let mut merged = Merged { sides, columns: Vec::with_capacity(columns.len()), depth: 0 };
    for column in columns {
        let name = last_name(column).ok_or_else(not_this)?;
        let text = if is_full { format!("coalesce({left}.{name}, {right}.{name})") } else { format!("{right}.{name}") };
        let parsed = Parser::new(&GenericDialect {}).try_with_sql(&text).and_then(|mut parser| parser.parse_expr());
        merged.columns.push((name.clone(), parsed.map_err(|_| not_this())?));
    }
    let is_output = |select: &Select, name: &Ident| {
        select.projection.iter().any(|item| match item {
            SelectItem::ExprWithAlias { alias, .. } => is_same(alias, name),
            SelectItem::UnnamedExpr(Expr::Identifier(column)) => is_same(column, name),
            SelectItem::Wildcard(_) => true,
            _ => false,
        })
    };
    // In ORDER BY a name is that of a column of the result, if there is one.
    let mut ordered = merged.clone();
    ordered.columns.retain(|(name, _)| !is_output(select, name));
    if let Some(OrderBy { kind: OrderByKind::Expressions(expressions), .. }) = order_by {
        let _ = expressions.visit(&mut ordered);
    }
    let projection = std::mem::take(&mut select.projection);
    select.projection = projection.into_iter().flat_map(|item| merged.item(item)).collect();
    // All else but FROM, where names are those of one side.
    let from = std::mem::take(&mut select.from);
    let _ = select.visit(&mut merged);
    select.from = from;
    Ok(())
}

/// What a join that keeps all rows of its right side has in common with its left side; whether it keeps those of that too.
fn constraint(operator: &JoinOperator) -> Option<(bool, &JoinConstraint)> {
    match operator {
        JoinOperator::Right(constraint) | JoinOperator::RightOuter(constraint) => Some((false, constraint)),
        JoinOperator::FullOuter(constraint) => Some((true, constraint)),
        _ => None,
    }
}

fn name_of(factor: &TableFactor) -> Option<&Ident> {
    match factor {
        TableFactor::Table { alias: Some(TableAlias { name, .. }), .. }
        | TableFactor::Derived { alias: Some(TableAlias { name, .. }), .. } => Some(name),
        TableFactor::Table { name, .. } => last_name(name),
        _ => None,
    }
}

/// As `*` of it is written.
fn whole_name(factor: &TableFactor) -> Option<ObjectName> {
    match factor {
        TableFactor::Table { name, alias: None, .. } => Some(name.clone()),
        factor => name_of(factor).map(|name| ObjectName::from(vec![name.clone()])),
    }
}

fn last_name(name: &ObjectName) -> Option<&Ident> {
    name.0.last()?.as_ident()
}

/// The columns of USING and what they are.
#[derive(Clone)]
struct Merged {
    /// The tables that have them.
    sides: [ObjectName; 2],
    columns: Vec<(Ident, Expr)>,
    /// Of queries in the one that is rewritten: names there are looked up there.
    depth: usize,
}

impl Merged {
    fn of(&self, expression: &Expr) -> Option<&Expr> {
        let Expr::Identifier(name) = expression else { return None };
        self.columns.iter().find(|(column, _)| is_same(column, name)).map(|(_, merged)| merged)
    }

    /// What stands for an item of a SELECT list.
    fn item(&mut self, item: SelectItem) -> Vec<SelectItem> {
        match item {
            SelectItem::UnnamedExpr(Expr::Identifier(name)) => {
                let merged = self.of(&Expr::Identifier(name.clone())).cloned();
                vec![match merged {
                    Some(expr) => SelectItem::ExprWithAlias { expr, alias: name },
                    None => SelectItem::UnnamedExpr(Expr::Identifier(name)),
                }]
            }
            SelectItem::Wildcard(options) if options == WildcardAdditionalOptions::default() => {
                let first = self.columns.iter().cloned().map(|(alias, expr)| SelectItem::ExprWithAlias { expr, alias });
                let names = self.columns.iter().map(|(name, _)| ObjectName::from(vec![name.clone()]));
                let others = WildcardAdditionalOptions {
                    opt_exclude: Some(ExcludeSelectItem::Multiple(names.collect())),
                    ..options
                };
                let of = |side: &ObjectName| {
                    let kind = SelectItemQualifiedWildcardKind::ObjectName(side.clone());
                    SelectItem::QualifiedWildcard(kind, others.clone())
                };
                first.chain(self.sides.iter().map(of)).collect()
            }
            mut item => {
                let _ = item.visit(self);
                vec![item]
            }
        }
    }
}

impl VisitorMut for Merged {
    type Break = ();

    fn pre_visit_query(&mut self, _query: &mut Query) -> ControlFlow<()> {
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _query: &mut Query) -> ControlFlow<()> {
        self.depth = self.depth.saturating_sub(1);
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expression: &mut Expr) -> ControlFlow<()> {
        if self.depth == 0
            && let Some(merged) = self.of(expression).cloned()
        {
            *expression = merged;
        }
        ControlFlow::Continue(())
    }
}
