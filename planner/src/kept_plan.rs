//! Logical plans that outlive the snapshot that they were made for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field};
use aubade_catalog::snapshot::{Relation, RelationName, Table};
use aubade_catalog::{SegmentStatistics, Snapshot};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, internal_err};
use datafusion::datasource::{provider_as_source, source_as_provider};
use datafusion::error::Result;
use datafusion::execution::SessionState;
use datafusion::logical_expr::expr::{Exists, InSubquery, Placeholder};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{Expr, LogicalPlan, TableScan, Volatility};
use datafusion::optimizer::simplify_expressions::SimplifyExpressions;
use datafusion::optimizer::{Optimizer, OptimizerRule};

use crate::access::{NoAccess, TableAccess};
use crate::binding::{Binding, Occurrences, Values};
use crate::hidden_lists::HiddenLists;
use crate::rewrite::SoundSimplification;
use crate::table::AubadeTable;

/// A query over tables of the cluster that means the same at any time. Its scans hold no snapshot and no segments: they
/// are bound to one for each run, and so are its placeholders to values ([`with_values`]).
#[derive(Debug)]
pub struct KeptPlan {
    plan: LogicalPlan,
    /// Of its tables, as they were when it was optimised.
    rows: BTreeMap<RelationName, u64>,
}

impl KeptPlan {
    /// Whether a plan can be kept, before it is optimised: it only reads, it reads only tables of the cluster, and none
    /// of its functions has another value in another query, as `now()` has.
    ///
    /// # Errors
    /// When the plan cannot be walked.
    pub fn is_keepable(plan: &LogicalPlan) -> Result<bool> {
        let mut keepable = true;
        plan.apply_with_subqueries(|node| {
            keepable &= reads_only(node) && reads_only_tables(node);
            node.apply_expressions(|expression| {
                expression.apply(|part| {
                    keepable &= !changes_with_time(part);
                    Ok(go_on_while(keepable))
                })
            })?;
            Ok(go_on_while(keepable))
        })?;
        Ok(keepable)
    }

    /// The tables that a plan reads.
    ///
    /// # Errors
    /// When the plan cannot be walked.
    pub fn tables_of(plan: &LogicalPlan) -> Result<Vec<Arc<Table>>> {
        let mut tables = Vec::new();
        plan.apply_with_subqueries(|node| {
            if let LogicalPlan::TableScan(scan) = node {
                let provider = source_as_provider(&scan.source)?;
                tables.extend(provider.downcast_ref::<AubadeTable>().map(|table| Arc::clone(table.table())));
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(tables)
    }

    /// Keeps a plan of which [`KeptPlan::is_keepable`] held.
    ///
    /// # Errors
    /// When a scan cannot be made again.
    pub fn new(plan: LogicalPlan) -> Result<Self> {
        let rows = Self::tables_of(&plan)?.into_iter().map(|table| (table.name.clone(), rows_of(&table))).collect();
        let detached = plan.transform_up_with_subqueries(|node| {
            let LogicalPlan::TableScan(scan) = node else { return Ok(Transformed::no(node)) };
            let provider = source_as_provider(&scan.source)?;
            let Some(table) = provider.downcast_ref::<AubadeTable>() else {
                return Ok(Transformed::no(LogicalPlan::TableScan(scan)));
            };
            let snapshot = Snapshot::empty(table.snapshot().cluster_id, table.snapshot().quorum);
            let table = table.table();
            let empty = Table {
                id: table.id,
                name: table.name.clone(),
                schema: Arc::clone(&table.schema),
                segments: Vec::new(),
                statistics: Arc::new(SegmentStatistics::empty(Arc::clone(&table.schema))),
            };
            let detached = AubadeTable::new(Arc::new(snapshot), Arc::new(empty), Arc::new(NoAccess));
            Ok(Transformed::yes(reading(scan, detached)))
        })?;
        Ok(Self { plan: detached.data, rows })
    }

    /// The plan over the tables of `snapshot`; `None` where one of them is not there, or has become more than `factor`
    /// times as large or as small: rules that look at statistics have decided for what they were.
    ///
    /// # Errors
    /// When a scan cannot be made again.
    pub fn over(
        &self,
        snapshot: &Arc<Snapshot>,
        access: &Arc<dyn TableAccess>,
        factor: u64,
    ) -> Result<Option<LogicalPlan>> {
        let mut all_there = true;
        let plan = self.plan.clone().transform_up_with_subqueries(|node| {
            let LogicalPlan::TableScan(scan) = node else { return Ok(Transformed::no(node)) };
            let provider = source_as_provider(&scan.source)?;
            let name = provider.downcast_ref::<AubadeTable>().map(|table| &table.table().name);
            let relation = name.and_then(|name: &RelationName| snapshot.relations.get(name));
            let Some(Relation::Table(table)) = relation.filter(|relation| self.is_about_as_large(relation, factor))
            else {
                all_there = false;
                return Ok(Transformed::no(LogicalPlan::TableScan(scan)));
            };
            let table = AubadeTable::new(Arc::clone(snapshot), Arc::clone(table), Arc::clone(access));
            Ok(Transformed::yes(reading(scan, table)))
        })?;
        Ok(all_there.then_some(plan.data))
    }

    fn is_about_as_large(&self, relation: &Relation, factor: u64) -> bool {
        let Relation::Table(table) = relation else { return true };
        let (now, then) = (rows_of(table), self.rows.get(&table.name).copied().unwrap_or(0));
        now.max(then) <= now.min(then).max(1).saturating_mul(factor)
    }
}

fn rows_of(table: &Table) -> u64 {
    table.segments.iter().map(|segment| segment.rows).fold(0, u64::saturating_add)
}

/// Names that the optimizer gives to common subexpressions, without their numbers.
pub(crate) const COMMON_SUBEXPRESSION: &str = "__common_expr_";
/// Rules of the optimizer that have to see values, unless the plan [holds for all values](holds_for_all_values): they take
/// expressions apart by what these cost, and a constant costs nothing.
const RULES_FOR_VALUES: [&str; 3] =
    ["common_sub_expression_eliminate", "extract_leaf_expressions", "push_down_leaf_projections"];
/// Those that look at how many rows are asked for, which a placeholder does not say.
const RULES_FOR_LIMITS: [&str; 2] = ["eliminate_limit", "push_down_limit"];
/// Those that say once more what values make of a plan.
const RULES_ONCE_MORE: [&str; 3] = ["eliminate_filter", "propagate_empty_relation", "optimize_projections"];

/// Optimises a plan with placeholders of these types, so that it holds for all their values; [`with_values`] does the rest.
/// `None` where what the optimizer makes of it depends on the values.
///
/// # Errors
/// When the plan cannot be optimised.
pub fn optimize_shared(
    plan: LogicalPlan,
    types: &BTreeMap<String, DataType>,
    state: &SessionState,
) -> Result<Option<LogicalPlan>> {
    let plan = with_types(plan, types)?;
    if corrects_empty_groups(&plan)? {
        return Ok(None);
    }
    let plan = state.analyzer().execute_and_check(plan, state.config_options(), |_, _| {})?;
    let Some((plan, lists)) = HiddenLists::hide(plan)? else { return Ok(None) };
    let plan = optimize_by(plan, state, |rule| !RULES_FOR_VALUES.contains(&rule))?;
    let Some(plan) = lists.show(plan)? else { return Ok(None) };
    if holds_for_all_values(&plan)? { settle(plan, state, false).map(Some) } else { Ok(Some(plan)) }
}

fn optimize_by(plan: LogicalPlan, state: &SessionState, wanted: impl Fn(&str) -> bool) -> Result<LogicalPlan> {
    let rules = state.optimizers().iter().filter(|rule| wanted(rule.name()));
    Optimizer::with_rules(rules.cloned().collect()).optimize(plan, state, |_, _| {})
}

/// What the rules make of a plan that have to see values. They may have run before, in another session. `has_new_limits`:
/// how many rows are asked for was not known before.
fn settle(plan: LogicalPlan, state: &SessionState, has_new_limits: bool) -> Result<LogicalPlan> {
    // Of two columns with one name the projection for common subexpressions keeps one.
    plan.apply_with_subqueries(|node| {
        let names = node.schema().fields().iter().map(|field| field.name().as_str());
        let numbers = names.filter_map(|name| name.strip_prefix(COMMON_SUBEXPRESSION)?.parse().ok());
        if let Some(last) = numbers.max() {
            state.execution_props().alias_generator.update_min_id(last);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    optimize_by(plan, state, |rule| {
        RULES_FOR_VALUES.contains(&rule)
            || RULES_ONCE_MORE.contains(&rule)
            || has_new_limits && RULES_FOR_LIMITS.contains(&rule)
    })
}

/// Whether rules that have to see values make the same of placeholders, as long as values decide none of the conditions:
/// each is a part of one constant, which is compared with something.
fn holds_for_all_values(plan: &LogicalPlan) -> Result<bool> {
    let mut holds = true;
    plan.apply_with_subqueries(|node| {
        let (mut seen, mut casts) = (BTreeSet::new(), Vec::new());
        node.apply_expressions(|expression| {
            holds &= compares_each_once(expression, &mut seen, &mut casts)?;
            Ok(go_on_while(holds))
        })?;
        for cast in casts {
            holds &= uses(node, &cast)? < 2;
        }
        Ok(go_on_while(holds))
    })?;
    Ok(holds)
}

/// How often the expressions of a node have `expression` in them.
fn uses(node: &LogicalPlan, expression: &Expr) -> Result<usize> {
    let mut uses = 0;
    node.apply_expressions(|root| {
        root.apply(|part| {
            uses += usize::from(part == expression);
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    Ok(uses)
}

/// `casts`: of what is compared with a constant. They go once the constant is known, and may not be taken out before, as
/// common subexpressions are.
fn compares_each_once(expression: &Expr, seen: &mut BTreeSet<String>, casts: &mut Vec<Expr>) -> Result<bool> {
    let compares = match expression {
        Expr::BinaryExpr(binary) => binary.op.supports_propagation(),
        Expr::Between(_) | Expr::Like(_) | Expr::InList(_) => true,
        Expr::Placeholder(_) => return Ok(false),
        _ => false,
    };
    let (mut once, mut with_placeholder, mut of_columns) = (true, false, Vec::new());
    expression.apply_children(|child| {
        if compares && is_constant(child)? {
            once &= adds_new_ones(child, seen)?;
            with_placeholder |= has_placeholder(child)?;
        } else {
            once &= compares_each_once(child, seen, casts)?;
            of_columns.extend(matches!(child, Expr::Cast(_) | Expr::TryCast(_)).then(|| child.clone()));
        }
        Ok(go_on_while(once))
    })?;
    if with_placeholder {
        casts.extend(of_columns);
    }
    Ok(once)
}

/// Whether values make a constant of an expression.
pub(crate) fn is_constant(expression: &Expr) -> Result<bool> {
    let varies = expression.exists(|part| {
        Ok(!matches!(
            part,
            Expr::Placeholder(_) | Expr::Literal(..) | Expr::Cast(_) | Expr::BinaryExpr(_) | Expr::Negative(_)
        ))
    })?;
    Ok(!varies)
}

/// Whether none of the placeholders of an expression has been seen before.
fn adds_new_ones(expression: &Expr, seen: &mut BTreeSet<String>) -> Result<bool> {
    let mut new = true;
    expression.apply(|part| {
        if let Expr::Placeholder(placeholder) = part {
            new &= seen.insert(placeholder.id.clone());
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(new)
}

/// The columns that the expressions of a node name, and whether one of its conditions is decided.
fn columns_and_decided(node: &LogicalPlan) -> Result<(BTreeSet<Column>, bool)> {
    let (mut columns, mut decided) = (BTreeSet::new(), false);
    node.apply_expressions(|expression| {
        columns.extend(expression.column_refs().into_iter().cloned());
        decided |= split_conjunction(expression).into_iter().any(|part| matches!(part, Expr::Literal(..)));
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok((columns, decided))
}

/// Whether a subquery compares what it has aggregated with a placeholder, once for each row of the query around it. Where
/// there is nothing to aggregate, the optimizer asks whether the comparison holds.
fn corrects_empty_groups(plan: &LogicalPlan) -> Result<bool> {
    let mut found = false;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expression| {
            expression.apply(|part| {
                if let Expr::ScalarSubquery(subquery)
                | Expr::Exists(Exists { subquery, .. })
                | Expr::InSubquery(InSubquery { subquery, .. }) = part
                    && !subquery.outer_ref_columns.is_empty()
                {
                    found |= compares_aggregates(&subquery.subquery)?;
                }
                Ok(go_on_while(!found))
            })
        })?;
        Ok(go_on_while(!found))
    })?;
    Ok(found)
}

fn compares_aggregates(plan: &LogicalPlan) -> Result<bool> {
    let mut found = false;
    plan.apply(|node| {
        if let LogicalPlan::Filter(filter) = node
            && has_placeholder(&filter.predicate)?
        {
            found |= filter.input.exists(|node| Ok(matches!(node, LogicalPlan::Aggregate(_))))?;
        }
        Ok(go_on_while(!found))
    })?;
    Ok(found)
}

pub(crate) fn has_placeholder(expression: &Expr) -> Result<bool> {
    expression.exists(|part| Ok(matches!(part, Expr::Placeholder(_))))
}

/// Whether one of the expressions of a node has a placeholder.
fn node_has_placeholder(node: &LogicalPlan) -> Result<bool> {
    let mut found = false;
    node.apply_expressions(|expression| {
        found |= has_placeholder(expression)?;
        Ok(go_on_while(!found))
    })?;
    Ok(found)
}

fn with_types(plan: LogicalPlan, types: &BTreeMap<String, DataType>) -> Result<LogicalPlan> {
    // What is selected has the types of placeholders, and so have the nodes above.
    let mut has_other_columns = false;
    let typed = plan.transform_up_with_subqueries(|node| {
        has_other_columns |= matches!(node, LogicalPlan::Projection(_)) && node_has_placeholder(&node)?;
        let node = node.map_expressions(|expression| {
            expression.transform_up(|part| match part {
                Expr::Placeholder(Placeholder { id, field }) => Ok(match types.get(&id) {
                    Some(data_type) => {
                        // A statement with a null is planned by itself.
                        let field = Some(Arc::new(Field::new("", data_type.clone(), false)));
                        Transformed::yes(Expr::Placeholder(Placeholder { id, field }))
                    }
                    None => Transformed::no(Expr::Placeholder(Placeholder { id, field })),
                }),
                part => Ok(Transformed::no(part)),
            })
        })?;
        if has_other_columns { node.map_data(LogicalPlan::recompute_schema) } else { Ok(node) }
    })?;
    Ok(typed.data)
}

/// A plan of [`optimize_shared`] with values in the place of placeholders, and what follows from them; and what the values
/// are to it.
///
/// # Errors
/// When a placeholder has no value, or an expression over them none.
pub fn with_values(plan: LogicalPlan, values: &Values, state: &SessionState) -> Result<(LogicalPlan, Binding)> {
    let simplify = SoundSimplification::new(Arc::new(SimplifyExpressions::new()));
    let mut occurrences = Occurrences::default();
    let (mut holds, mut has_new_limits) = (holds_for_all_values(&plan)?, false);
    let bound = plan.transform_up_with_subqueries(|node| {
        if !node_has_placeholder(&node)? {
            return Ok(Transformed::no(node));
        }
        has_new_limits |= matches!(node, LogicalPlan::Limit(_));
        let names = NamePreserver::new(&node);
        let (columns_before, _) = columns_and_decided(&node)?;
        let before = node.clone();
        let node = node.map_expressions(|expression| {
            let name = names.save(&expression);
            let bound = expression.transform_up(|part| match part {
                Expr::Placeholder(Placeholder { id, .. }) => match values.get(&id) {
                    Some(value) => Ok(Transformed::yes(Expr::Literal(value.clone(), None))),
                    None => internal_err!("placeholder {id} has no value"),
                },
                part => Ok(Transformed::no(part)),
            })?;
            Ok(bound.update_data(|expression| name.restore(expression)))
        })?;
        let simplified = simplify.rewrite(node.data, state)?.data;
        let (columns, decided) = columns_and_decided(&simplified)?;
        holds &= !decided && columns == columns_before;
        occurrences.compare(&before, &simplified)?;
        Ok(Transformed::yes(simplified))
    })?;
    let plan = if holds { bound.data } else { settle(bound.data, state, has_new_limits)? };
    Ok((plan, occurrences.binding(values)))
}

fn go_on_while(going: bool) -> TreeNodeRecursion {
    if going { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop }
}

fn reading(scan: TableScan, table: AubadeTable) -> LogicalPlan {
    LogicalPlan::TableScan(TableScan { source: provider_as_source(Arc::new(table)), ..scan })
}

fn reads_only(node: &LogicalPlan) -> bool {
    !matches!(
        node,
        LogicalPlan::Statement(_)
            | LogicalPlan::Dml(_)
            | LogicalPlan::Ddl(_)
            | LogicalPlan::Copy(_)
            | LogicalPlan::Explain(_)
            | LogicalPlan::Analyze(_)
            | LogicalPlan::DescribeTable(_)
            | LogicalPlan::Extension(_)
            | LogicalPlan::RecursiveQuery(_)
    )
}

fn reads_only_tables(node: &LogicalPlan) -> bool {
    let LogicalPlan::TableScan(scan) = node else { return true };
    source_as_provider(&scan.source).is_ok_and(|provider| provider.is::<AubadeTable>())
}

fn changes_with_time(expression: &Expr) -> bool {
    match expression {
        Expr::ScalarFunction(function) => function.func.signature().volatility == Volatility::Stable,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::Schema;
    use datafusion::logical_expr::{LogicalPlanBuilder, cast, col, lit, placeholder, table_scan};

    use super::*;

    #[test]
    fn conditions_with_a_constant_each_need_no_second_look() {
        let fields = ["a", "b"].map(|name| Field::new(name, DataType::Int64, true));
        let schema = Schema::new(fields.to_vec());
        let holds = |condition: Expr| {
            let plan = table_scan(Some("t"), &schema, None).and_then(|scan| scan.filter(condition)?.build());
            holds_for_all_values(&plan.unwrap()).unwrap()
        };
        let one = || placeholder("$1");
        assert!(holds(col("a").gt(one()).and(col("b").eq(placeholder("$2")))));
        assert!(holds(col("a").between(one(), placeholder("$2") + lit(5)).or(col("b").not_eq(lit(3)))));
        assert!(holds((col("a") + col("b")).lt(cast(one(), DataType::Int64))));
        // The optimizer may take the same constant apart, and computes with others.
        assert!(!holds(col("a").gt(one()).and(col("b").eq(one()))));
        assert!(!holds((col("a") + one()).lt(lit(5))));
        assert!(!holds(one()));
        // What the cast of a column is compared with may be one of the type of the column.
        let wide = || cast(col("b"), DataType::Float64);
        assert!(holds(wide().gt(one())));
        assert!(!holds(wide().gt(one()).and(wide().lt(placeholder("$2")))));
        assert!(!holds(wide().between(one(), placeholder("$2")).and(wide().not_eq(col("a")))));
        let projected = LogicalPlanBuilder::empty(true).project([one()]).and_then(LogicalPlanBuilder::build);
        assert!(!holds_for_all_values(&projected.unwrap()).unwrap());
    }
}
