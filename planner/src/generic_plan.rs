//! Physical plans for other values than those that they were made for: generic plans, as PostgreSQL calls them.
//!
//! Which literals of a plan are values is learnt from two plans of one statement that were made for different values.
//! They have to be the same but for literals that the filters of scans and of hash joins compare something with, and each
//! of these has to be a value of the one plan where it is the same value of the other plan. A value that differs has to be
//! there as often as in the logical plan, where it may be nothing but a literal ([`Binding`]): what follows from a value in
//! any other way, as the end of a month does from its first day, is not the same for others.
//!
//! A generic plan has the operators and the order of joins of the first of these plans, whatever the values. It is not
//! used where these change the estimate of a scan by more than a factor (`aubade.replan_factor`). Segments are pruned by
//! the values of each run.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;

use arrow::datatypes::{DataType, Schema};
use aubade_catalog::Snapshot;
use datafusion::common::ScalarValue;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{BinaryExpr, InListExpr, LikeExpr, Literal, in_list};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::joins::HashJoinExec;
use datafusion::physical_plan::joins::utils::JoinFilter;

use crate::access::TableAccess;
use crate::binding::{Binding, Values};
use crate::embedded::storage_scans;
use crate::explain::plan_text;
use crate::kept_plan::COMMON_SUBEXPRESSION;
use crate::options::replan_factor;
use crate::scan_exec::StorageScanExec;
use crate::subquery_results::Results;
use crate::template::PlanTemplate;

/// See the module's doc.
#[derive(Debug)]
pub struct GenericPlan {
    template: Arc<PlanTemplate>,
    /// What the template was made for.
    binding: Arc<Binding>,
    /// The names of those that may be others.
    varying: BTreeSet<String>,
    /// For each scan of the template, which literals of its filter are values.
    of_scans: Vec<Places>,
    /// For each filter of a hash join, from the top.
    of_joins: Vec<Places>,
}

/// The literals of a filter that are values, by their position among all of its literals.
type Places = BTreeMap<usize, Place>;

#[derive(Debug)]
struct Place {
    name: String,
    data_type: DataType,
    /// Whether rows have to be equal to it.
    is_equal: bool,
}

impl GenericPlan {
    /// Learns from the templates of two plans of one statement; `None` where nothing can be learnt from them, as where their
    /// scans are thought to give more than `factor` times as many rows in one as in the other.
    ///
    /// # Errors
    /// When an operator cannot be made again.
    pub fn learn(
        template: &Arc<PlanTemplate>,
        binding: &Arc<Binding>,
        other: &PlanTemplate,
        other_binding: &Binding,
        factor: u64,
    ) -> Result<Option<Self>> {
        let (values, other_values) = (&binding.values, &other_binding.values);
        if template.is_exclusive() || !template.is_over_same(other) || values.keys().ne(other_values.keys()) {
            return Ok(None);
        }
        let varying = values.iter().filter(|(name, value)| other_values.get(*name) != Some(value));
        let varying: BTreeSet<String> = varying.map(|(name, _)| name.clone()).collect();
        if varying.is_empty() {
            return Ok(None);
        }
        let differing = Differing { values, other_values, varying: &varying };
        let of_joins = differing.in_joins(template.plan(), other.plan());
        let (Some(of_scans), Some(of_joins)) = (differing.in_scans(template.plan(), other.plan())?, of_joins) else {
            return Ok(None);
        };
        let all = || of_scans.iter().chain(&of_joins).flat_map(Places::values);
        let count = |name: &String| all().filter(|place| place.name == *name).count();
        let is_complete = |name: &String| {
            let wanted = binding.literals.get(name);
            wanted == Some(&count(name)) && other_binding.literals.get(name) == wanted
        };
        if !varying.iter().all(is_complete) {
            return Ok(None);
        }
        let (template, binding) = (Arc::clone(template), Arc::clone(binding));
        let generic = Self { template, binding, varying, of_scans, of_joins };
        let Some(bound) = generic.bind(other_values, &StorageScanExec::clone, factor)? else { return Ok(None) };
        Ok(are_same(&bound, other.plan())?.then_some(generic))
    }

    /// Whether all values may be others here that may be in another plan.
    pub fn is_at_least(&self, other: &Self) -> bool {
        self.varying.is_superset(&other.varying)
    }

    /// A plan of its own for one run over `snapshot`, which it has to fit; `None` where these values want another plan.
    ///
    /// # Errors
    /// When an operator cannot be made again.
    pub fn instantiate(
        &self,
        values: &Values,
        snapshot: &Arc<Snapshot>,
        access: &Arc<dyn TableAccess>,
        config: &ConfigOptions,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let fixed = self.binding.values.iter().filter(|(name, _)| !self.varying.contains(*name));
        if !fixed.into_iter().all(|(name, value)| values.get(name) == Some(value)) {
            return Ok(None);
        }
        let bound = self.bind(values, &|scan| scan.attached(snapshot, access), replan_factor(config))?;
        bound.map(|plan| self.template.link(plan, snapshot, config)).transpose()
    }

    /// A copy for these values.
    fn bind(
        &self,
        values: &Values,
        attach: &dyn Fn(&StorageScanExec) -> StorageScanExec,
        factor: u64,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let (mut of_scans, mut of_joins, fits) = (self.of_scans.iter(), self.of_joins.iter(), Cell::new(true));
        let mut bind_scan = |scan: &StorageScanExec| {
            let attached = attach(scan);
            let (Some(places), Some(filter)) = (of_scans.next(), scan.fragment().filter()) else { return Ok(attached) };
            if places.is_empty() || !fits.get() {
                return Ok(attached);
            }
            // How many rows have a value is the same of all.
            let keeps_estimate = places.values().all(|place| place.is_equal);
            let bound = match bind_filter(filter, places, values, scan.fragment().scan_schema())? {
                Some(filter) => attached.with_other_filter(&filter, keeps_estimate)?,
                None => None,
            };
            let bound = bound.filter(|bound| is_near(scan, bound, factor));
            fits.set(bound.is_some());
            Ok(bound.unwrap_or(attached))
        };
        let mut bind_join = |filter: &JoinFilter| {
            let Some(places) = of_joins.next().filter(|places| !places.is_empty()) else { return Ok(filter.clone()) };
            let Some(bound) = bind_filter(filter.expression(), places, values, filter.schema())? else {
                fits.set(false);
                return Ok(filter.clone());
            };
            Ok(JoinFilter::new(bound, filter.column_indices().to_vec(), Arc::clone(filter.schema())))
        };
        let plan = self.template.copy(&mut bind_scan, &mut bind_join)?;
        Ok(fits.get().then_some(plan))
    }
}

/// The filters of the hash joins of a plan, each before those below it.
fn join_filters(plan: &Arc<dyn ExecutionPlan>) -> Vec<JoinFilter> {
    let mut filters = Vec::new();
    // The closure never fails, so neither does the walk.
    let _ = plan.apply(|node| {
        filters.extend(node.downcast_ref::<HashJoinExec>().and_then(HashJoinExec::filter).cloned());
        Ok(TreeNodeRecursion::Continue)
    });
    filters
}

/// Whether two plans are the same.
fn are_same(one: &Arc<dyn ExecutionPlan>, other: &Arc<dyn ExecutionPlan>) -> Result<bool> {
    // Each has places of its own for the results of subqueries, of which the text says nothing, and texts may be cut
    // short.
    let (results, other_results) = (Results::of(one)?, Results::of(other)?);
    let expressions = |scan: &StorageScanExec, results: &Results| {
        let (filter, outputs) = (scan.fragment().filter(), scan.fragment().projection().iter());
        let expressions = filter.into_iter().chain(outputs.map(|output| &output.expression));
        expressions.map(|expression| results.comparable(expression)).collect::<Result<Vec<_>>>()
    };
    for (one, other) in storage_scans(one).iter().zip(&storage_scans(other)) {
        if expressions(one, &results)? != expressions(other, &other_results)? {
            return Ok(false);
        }
    }
    for (one, other) in join_filters(one).iter().zip(&join_filters(other)) {
        let (expression, of_other) =
            (results.comparable(one.expression())?, other_results.comparable(other.expression())?);
        if expression != of_other || one.column_indices() != other.column_indices() {
            return Ok(false);
        }
    }
    Ok(results.named_in(one)? == other_results.named_in(other)?
        && comparable(&plan_text(one.as_ref())) == comparable(&plan_text(other.as_ref())))
}

/// Whether two scans are thought to give about as many rows.
fn is_near(one: &StorageScanExec, other: &StorageScanExec, factor: u64) -> bool {
    let rows = |scan: &StorageScanExec| scan.output_statistics().num_rows.get_value().map(|rows| *rows.max(&1) as u64);
    match (rows(one), rows(other)) {
        (Some(one), Some(other)) => one.max(other) / one.min(other).max(1) <= factor,
        (one, other) => one == other,
    }
}

/// The values of two plans.
#[derive(Clone, Copy)]
struct Differing<'a> {
    values: &'a Values,
    other_values: &'a Values,
    varying: &'a BTreeSet<String>,
}

impl Differing<'_> {
    /// The values in the filters of each scan; `None` where the scans differ in anything else, or a filter with values says
    /// more than which rows there are.
    fn in_scans(self, one: &Arc<dyn ExecutionPlan>, other: &Arc<dyn ExecutionPlan>) -> Result<Option<Vec<Places>>> {
        let (scans, others) = (storage_scans(one), storage_scans(other));
        if scans.len() != others.len() {
            return Ok(None);
        }
        let mut all = Vec::with_capacity(scans.len());
        for (one, other) in scans.iter().zip(&others) {
            let places = match (one.fragment().filter(), other.fragment().filter()) {
                (Some(one), Some(other)) => self.in_filter(one, other),
                (one, other) => (one.is_none() && other.is_none()).then(Places::new),
            };
            let Some(places) = places else { return Ok(None) };
            if !places.is_empty() && !one.promises_no_more_than_filter()? {
                return Ok(None);
            }
            all.push(places);
        }
        Ok(Some(all))
    }

    /// The values in the filter of each hash join; `None` where they differ in anything else.
    fn in_joins(self, one: &Arc<dyn ExecutionPlan>, other: &Arc<dyn ExecutionPlan>) -> Option<Vec<Places>> {
        let (filters, others) = (join_filters(one), join_filters(other));
        let pairs =
            filters.iter().zip(&others).map(|(one, other)| self.in_filter(one.expression(), other.expression()));
        (filters.len() == others.len()).then(|| pairs.collect())?
    }

    fn in_filter(self, one: &Arc<dyn PhysicalExpr>, other: &Arc<dyn PhysicalExpr>) -> Option<Places> {
        let mut comparison = Comparison { differing: self, literals: 0, places: Places::new() };
        comparison.are_alike(one, other, None).then_some(comparison.places)
    }
}

/// Two filters side by side.
struct Comparison<'a> {
    differing: Differing<'a>,
    /// That were seen so far.
    literals: usize,
    places: Places,
}

impl Comparison<'_> {
    /// Whether two expressions may be the same but for values. `operator`: what something is compared with them by.
    fn are_alike(
        &mut self,
        one: &Arc<dyn PhysicalExpr>,
        other: &Arc<dyn PhysicalExpr>,
        operator: Option<Operator>,
    ) -> bool {
        if let (Some(one), Some(other)) = (one.downcast_ref::<Literal>(), other.downcast_ref::<Literal>()) {
            let position = self.literals;
            self.literals += 1;
            let is_value = |operator| self.is_value(position, operator, one.value(), other.value());
            return one.value() == other.value() || operator.is_some_and(is_value);
        }
        let (children, others) = (one.children(), other.children());
        let operator = comparison(one);
        let mut pairs = children.iter().zip(&others);
        children.len() == others.len() && pairs.all(|(one, other)| self.are_alike(one, other, operator))
    }

    /// Takes note of the value that two literals are, if it is one.
    fn is_value(&mut self, position: usize, operator: Operator, one: &ScalarValue, other: &ScalarValue) -> bool {
        let data_type = one.data_type();
        let of = |values: &Values, name: &String| values.get(name).and_then(|value| in_type(value, &data_type));
        let Differing { values, other_values, varying } = self.differing;
        let mut names = varying
            .iter()
            .filter(|name| of(values, name).as_ref() == Some(one) && of(other_values, name).as_ref() == Some(other));
        // Of two values that are equal in both plans it cannot be told which is meant.
        let (Some(name), None) = (names.next(), names.next()) else { return false };
        let name = name.clone();
        let is_equal = operator == Operator::Eq;
        self.places.insert(position, Place { name, data_type, is_equal });
        true
    }
}

/// What an expression compares its children by, if it does.
fn comparison(expression: &Arc<dyn PhysicalExpr>) -> Option<Operator> {
    use Operator::{Eq, Gt, GtEq, LikeMatch, Lt, LtEq, NotEq};
    if expression.is::<LikeExpr>() {
        return Some(LikeMatch);
    }
    if expression.is::<InListExpr>() {
        return Some(Eq);
    }
    let operator = *expression.downcast_ref::<BinaryExpr>()?.op();
    matches!(operator, Eq | NotEq | Lt | LtEq | Gt | GtEq).then_some(operator)
}

/// A value in another type; `None` where it is not the same there.
fn in_type(value: &ScalarValue, data_type: &DataType) -> Option<ScalarValue> {
    let cast = value.cast_to(data_type).ok()?;
    let back = cast.cast_to(&value.data_type()).ok()?;
    (!cast.is_null() && back == *value).then_some(cast)
}

/// A filter of rows of `schema` with values in the place of its own; `None` where one of them is not the same in the type
/// of its place.
fn bind_filter(
    filter: &Arc<dyn PhysicalExpr>,
    places: &Places,
    values: &Values,
    schema: &Schema,
) -> Result<Option<Arc<dyn PhysicalExpr>>> {
    let (mut literals, mut fits) = (0_usize, true);
    let bound = Arc::clone(filter).transform_up(|node| {
        if let Some(list) = node.downcast_ref::<InListExpr>() {
            let first = literals.saturating_sub(list.list().len());
            if places.range(first..literals).next().is_none() {
                return Ok(Transformed::no(node));
            }
            // With other children it would still look for its values in the set that was made of those before.
            let list = in_list(Arc::clone(list.expr()), list.list().to_vec(), &list.negated(), schema)?;
            return Ok(Transformed::yes(list));
        }
        if !node.is::<Literal>() {
            return Ok(Transformed::no(node));
        }
        let place = places.get(&literals);
        literals += 1;
        let Some(place) = place else { return Ok(Transformed::no(node)) };
        match values.get(&place.name).and_then(|value| in_type(value, &place.data_type)) {
            Some(value) => Ok(Transformed::yes(Arc::new(Literal::new(value)) as Arc<dyn PhysicalExpr>)),
            None => {
                fits = false;
                Ok(Transformed::no(node))
            }
        }
    })?;
    Ok(fits.then_some(bound.data))
}

/// The text of a plan with common subexpressions numbered in the order of the text: the optimizer numbers them on and on.
fn comparable(text: &str) -> String {
    let (mut parts, mut numbers) = (text.split(COMMON_SUBEXPRESSION), Vec::new());
    let mut comparable = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (number, rest) = part.split_at(part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len()));
        let position = numbers.iter().position(|known| *known == number).unwrap_or(numbers.len());
        if position == numbers.len() {
            numbers.push(number);
        }
        // Writing into a string does not fail.
        let _ = write!(comparable, "{COMMON_SUBEXPRESSION}{position}{rest}");
    }
    comparable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_subexpressions_are_the_same_by_any_number() {
        let one = comparable("x=__common_expr_7 + __common_expr_12, __common_expr_7");
        assert_eq!(one, comparable("x=__common_expr_3 + __common_expr_4, __common_expr_3"));
        assert_ne!(one, comparable("x=__common_expr_3 + __common_expr_4, __common_expr_4"));
        assert_ne!(one, comparable("y=__common_expr_7 + __common_expr_12, __common_expr_7"));
    }
}
