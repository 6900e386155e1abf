//! Which expressions may run at a storage node.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef};
use aubade_proto::convert::{ScanEncoder, decode_fragment, encode_fragment};
use aubade_proto::{Error, Fragment, ProjectionColumn};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::execution::{SessionStateBuilder, TaskContext};
use datafusion::logical_expr::{AggregateUDF, ScalarUDF};
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::expressions::{
    BinaryExpr, CaseExpr, CastExpr, Column, DynamicFilterPhysicalExpr, InListExpr, IsNotNullExpr, IsNullExpr, LikeExpr,
    Literal, NegativeExpr, NotExpr, TryCastExpr,
};
use datafusion::physical_expr::scalar_subquery::ScalarSubqueryExpr;
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr};
use datafusion::prelude::SessionConfig;

use crate::refusal::{Reason, Refusal};
use crate::subquery_values::{fragment_with_stand_ins, with_stand_ins};

/// Tells which expressions a storage node evaluates to the same values as the coordinator.
///
/// Expressions are admitted by kind, not refused by kind: some have a wire form that means something else at the other
/// end (a hash join's lookup becomes `true`, a scalar subquery needs its surrounding plan).
pub struct Pushable {
    /// Functions as every storage node has them.
    functions: HashMap<String, Arc<ScalarUDF>>,
    aggregates: HashMap<String, Arc<AggregateUDF>>,
    decoder: Arc<TaskContext>,
}

impl fmt::Debug for Pushable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pushable").field("functions", &self.functions.len()).finish()
    }
}

impl Default for Pushable {
    fn default() -> Self {
        Self::new()
    }
}

impl Pushable {
    /// With the functions that DataFusion brings along, in its default settings.
    pub fn new() -> Self {
        let config = SessionConfig::new().with_create_default_catalog_and_schema(false);
        let state = SessionStateBuilder::new().with_config(config).with_default_features().build();
        let functions = state.scalar_functions().clone();
        let aggregates = state.aggregate_functions().clone();
        Self { functions, aggregates, decoder: state.task_ctx() }
    }

    /// Why `filter` over `schema` cannot run at a storage node, if so. It may need subqueries, whose values are put in
    /// before it is sent.
    ///
    /// # Errors
    /// The reason.
    pub fn check_filter(
        &self,
        filter: &Arc<dyn PhysicalExpr>,
        schema: &SchemaRef,
        config: &ConfigOptions,
    ) -> Result<(), Refusal> {
        let filter = self.check_resolvable(filter, config)?;
        let fragment = Fragment::try_new(Arc::clone(schema), Some(filter), Vec::new(), None);
        fragment.and_then(|fragment| encode_fragment(&fragment)).map(|_| ()).map_err(|error| no_wire_form(&error))
    }

    /// Why these output columns over `schema` cannot be computed at a storage node, if so. They may need subqueries.
    ///
    /// # Errors
    /// The reason.
    pub fn check_projection(
        &self,
        projection: &[ProjectionColumn],
        schema: &SchemaRef,
        config: &ConfigOptions,
    ) -> Result<(), Refusal> {
        if projection.iter().all(|column| column.expression.is::<Column>()) {
            return Ok(());
        }
        let looked_at = projection.iter().map(|column| {
            let expression = self.check_resolvable(&column.expression, config)?;
            Ok(ProjectionColumn { expression, name: column.name.clone() })
        });
        let looked_at = looked_at.collect::<Result<_, Refusal>>()?;
        let round_trip = Fragment::try_new(Arc::clone(schema), None, looked_at, None).and_then(|sent| {
            let received = decode_fragment(&encode_fragment(&sent)?, &self.decoder)?;
            Ok(arrives_as(received.output_schema(), sent.output_schema()))
        });
        match round_trip {
            Ok(true) => Ok(()),
            Ok(false) => Err(type_lost()),
            Err(error) => Err(no_wire_form(&error)),
        }
    }

    /// Why a fragment with a reduction cannot be sent, if so.
    ///
    /// # Errors
    /// The reason.
    pub(crate) fn check_reduction(&self, sent: &Fragment) -> Result<(), Refusal> {
        let types = |fragment: &Fragment| {
            fragment.output_schema().fields().iter().map(|field| field.data_type().clone()).collect::<Vec<_>>()
        };
        let looked_at = fragment_with_stand_ins(sent).map_err(|_| no_stand_in())?;
        let received = encode_fragment(&looked_at).and_then(|message| decode_fragment(&message, &self.decoder));
        match received.and_then(|received| ScanEncoder::new(received.output_schema()).map(|_| received)) {
            Ok(received) if types(&received) == types(sent) => Ok(()),
            Ok(_) => Err(type_lost()),
            Err(error) => Err(no_wire_form(&error)),
        }
    }

    /// Why an aggregate function cannot run at a storage node, if so. With `subqueries` its arguments may need some, unless
    /// they are in an order.
    pub(crate) fn refuse_aggregate(
        &self,
        function: &AggregateFunctionExpr,
        subqueries: bool,
        config: &ConfigOptions,
    ) -> Option<Refusal> {
        let name = function.fun().name();
        let subqueries = subqueries && function.order_bys().is_empty() && !function.is_reversed();
        let keys = function.order_bys().iter().map(|key| &key.expr);
        let mut parts = function.expressions().into_iter().chain(keys.cloned());
        if let Some(refusal) = parts.find_map(|part| self.refuse_part(&part, subqueries, config)) {
            return Some(refusal);
        }
        match self.aggregates.get(name) {
            Some(known) if known.as_ref() == function.fun() => None,
            known => Some(unusable(name, known.is_some())),
        }
    }

    /// Why a part of an aggregate stays on the coordinator, if so; `subqueries`: it may need some.
    pub(crate) fn refuse_part(
        &self,
        part: &Arc<dyn PhysicalExpr>,
        subqueries: bool,
        config: &ConfigOptions,
    ) -> Option<Refusal> {
        match subqueries {
            true => self.check_resolvable(part, config).err(),
            false => self.check_kinds(part, config).err(),
        }
    }

    /// An expression as it can be sent once its subqueries have run, with other values in their place.
    ///
    /// # Errors
    /// The reason why it stays on the coordinator.
    fn check_resolvable(
        &self,
        expression: &Arc<dyn PhysicalExpr>,
        config: &ConfigOptions,
    ) -> Result<Arc<dyn PhysicalExpr>, Refusal> {
        let looked_at = with_stand_ins(expression).map_err(|_| no_stand_in())?;
        self.check_kinds(&looked_at, config).map(|()| looked_at)
    }

    /// Why an expression is of a kind that stays on the coordinator, if so. One that needs a subquery does.
    ///
    /// # Errors
    /// The reason.
    pub(crate) fn check_kinds(
        &self,
        expression: &Arc<dyn PhysicalExpr>,
        config: &ConfigOptions,
    ) -> Result<(), Refusal> {
        let mut refused = None;
        // The closure never fails, so neither does the walk.
        let _ = expression.apply(|node| {
            refused = self.refuse(node, config);
            Ok(if refused.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        });
        refused.map_or(Ok(()), Err)
    }

    fn refuse(&self, node: &Arc<dyn PhysicalExpr>, config: &ConfigOptions) -> Option<Refusal> {
        if let Some(function) = node.downcast_ref::<ScalarFunctionExpr>() {
            return self.refuse_function(function, config);
        }
        // DataFusion sends it as a number of 32 bits, which cannot be compared with a column of 16.
        if node.downcast_ref::<Literal>().is_some_and(|literal| literal.value().data_type() == DataType::Float16) {
            return Some(type_lost());
        }
        let known = node.is::<Column>()
            || node.is::<Literal>()
            || node.is::<BinaryExpr>()
            || node.is::<CaseExpr>()
            || node.is::<CastExpr>()
            || node.is::<TryCastExpr>()
            || node.is::<InListExpr>()
            || node.is::<IsNullExpr>()
            || node.is::<IsNotNullExpr>()
            || node.is::<LikeExpr>()
            || node.is::<NegativeExpr>()
            || node.is::<NotExpr>();
        if known {
            return None;
        }
        if node.is::<DynamicFilterPhysicalExpr>() {
            return Some(Refusal::new(Reason::RunTime, "it is known only while the query runs"));
        }
        if node.is::<ScalarSubqueryExpr>() {
            return Some(Refusal::new(Reason::Subquery, "it needs the result of a subquery"));
        }
        Some(Refusal::new(Reason::ExpressionKind, "an expression of this kind runs on the coordinator only"))
    }

    fn refuse_function(&self, function: &ScalarFunctionExpr, config: &ConfigOptions) -> Option<Refusal> {
        let name = function.name();
        if function.is_volatile_node() {
            return Some(Refusal::new(Reason::Volatile, format!("{name} gives another value each time")));
        }
        if config.execution.time_zone.is_some() {
            return Some(Refusal::new(Reason::TimeZone, format!("{name} may depend on the time zone of the session")));
        }
        match self.functions.get(name) {
            Some(known) if known.as_ref() == function.fun() => None,
            known => Some(unusable(name, known.is_some())),
        }
    }
}

/// Whether columns are at the other end what they are here: what may be null here need not be there.
fn arrives_as(received: &Schema, sent: &Schema) -> bool {
    let is_same = |(received, sent): (&FieldRef, &FieldRef)| {
        let of = |field: &FieldRef| field.as_ref().clone().with_nullable(true);
        of(received) == of(sent) && (sent.is_nullable() || !received.is_nullable())
    };
    received.fields().len() == sent.fields().len()
        && received.metadata() == sent.metadata()
        && received.fields().iter().zip(sent.fields()).all(is_same)
}

fn no_wire_form(error: &Error) -> Refusal {
    Refusal::new(Reason::NoWireForm, error.message())
}

fn no_stand_in() -> Refusal {
    Refusal::new(Reason::Subquery, "it needs the result of a subquery, which has a type that is not sent")
}

fn type_lost() -> Refusal {
    Refusal::new(Reason::NoWireForm, "its type does not survive the wire")
}

/// Why a function that storage nodes do not have as the session has it cannot run there.
fn unusable(name: &str, known: bool) -> Refusal {
    match known {
        true => Refusal::new(Reason::SessionSettings, format!("{name} has settings of the session")),
        false => Refusal::new(Reason::UnknownFunction, format!("{name} is not known to storage nodes")),
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::Field;
    use datafusion::common::{ScalarValue, ToDFSchema};
    use datafusion::logical_expr::Operator;
    use datafusion::physical_expr::expressions::lit;
    use datafusion::prelude::SessionContext;

    use super::*;

    #[track_caller]
    fn check(sql: &str, reason: Option<&str>) {
        let schema =
            Schema::new(vec![Field::new("a", DataType::Int64, true), Field::new("s", DataType::Utf8View, true)]);
        let df_schema = schema.clone().to_dfschema().unwrap();
        let context = SessionContext::new();
        let expression = context.parse_sql_expr(sql, &df_schema).unwrap();
        let expression = context.create_physical_expr(expression, &df_schema).unwrap();
        let result = Pushable::new().check_filter(&expression, &Arc::new(schema), &ConfigOptions::default());
        match reason {
            None => assert_eq!(result, Ok(())),
            Some(reason) => {
                assert!(result.as_ref().is_err_and(|refusal| refusal.to_string().contains(reason)), "{result:?}")
            }
        }
    }

    #[test]
    fn ordinary_filters_are_pushed() {
        check("a > 5", None);
        check("a in (1, 2, 3) and s like 'x%' or s is null", None);
        check("case when a = 1 then s else 'y' end = 'z'", None);
        check("upper(s) = 'X' and not (a between 1 and 3)", None);
        check("cast(s as bigint) = -a", None);
    }

    #[test]
    fn numbers_of_16_bits_stay() {
        let schema: SchemaRef = Arc::new(Schema::new(vec![Field::new("h", DataType::Float16, true)]));
        let none = lit(ScalarValue::new_default(&DataType::Float16).unwrap());
        let column: Arc<dyn PhysicalExpr> = Arc::new(Column::new("h", 0));
        let equal: Arc<dyn PhysicalExpr> = Arc::new(BinaryExpr::new(column, Operator::Eq, none));
        let refusal = Pushable::new().check_filter(&equal, &schema, &ConfigOptions::default()).unwrap_err();
        assert!(refusal.to_string().contains("its type does not survive the wire"), "{refusal}");
    }

    #[test]
    fn volatile_functions_stay() {
        check("random() < 0.5", Some("random gives another value each time"));
    }
}
