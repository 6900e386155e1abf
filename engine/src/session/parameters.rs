//! Values for the parameters of a statement.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatchOptions};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use aubade_proto::{Error, ErrorCode, Result};
use datafusion::catalog::TableProvider;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, ParamValues, ScalarValue};
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::expr::Placeholder;
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, Values};

/// Parameters of one statement: a number above it would make a list of that length.
pub(crate) const PARAMETERS_MAX: usize = 65_535;

/// Names the rows of parameters in the plan of an INSERT.
const PARAMETER_TABLE: &str = "parameters";

/// One column per parameter, in the order of `$1`, `$2`, ...; the columns' names stand in for those
/// of `$name`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parameters {
    rows: Option<RecordBatch>,
}

impl Parameters {
    /// Rows that a client has bound; none without a batch.
    ///
    /// # Errors
    /// `InvalidArgument` when the batch has columns but no row.
    pub(crate) fn from_batch(batch: Option<RecordBatch>) -> Result<Self> {
        let rows = batch.filter(|batch| batch.num_columns() > 0);
        if rows.as_ref().is_some_and(|rows| rows.num_rows() == 0) {
            return Err(Error::new(ErrorCode::InvalidArgument, "the batch of parameters has no row"));
        }
        Ok(Self { rows })
    }

    /// One row of values, as EXECUTE has them.
    ///
    /// # Errors
    /// When a value has no array form.
    pub(crate) fn from_values(values: &[ScalarValue]) -> Result<Self> {
        let arrays = values.iter().map(|value| value.to_array().map_err(Error::from_datafusion));
        let arrays = arrays.collect::<Result<Vec<_>>>()?;
        let fields = arrays.iter().enumerate().map(|(index, array)| numbered_field(index, array));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let options = RecordBatchOptions::new().with_row_count(Some(1));
        let rows = RecordBatch::try_new_with_options(schema, arrays, &options)?;
        Ok(Self { rows: Some(rows) })
    }

    /// The names, types and values of the only row; empty without parameters, `None` where there are several rows or a value
    /// that has no scalar form.
    pub(crate) fn single_row(&self) -> Option<Vec<(String, DataType, ScalarValue)>> {
        let Some(rows) = &self.rows else { return Some(Vec::new()) };
        if rows.num_rows() != 1 {
            return None;
        }
        let columns = rows.schema_ref().fields().iter().zip(rows.columns());
        columns
            .map(|(field, column)| {
                let value = ScalarValue::try_from_array(column, 0).ok()?;
                Some((field.name().clone(), column.data_type().clone(), value))
            })
            .collect()
    }

    /// The plan with its parameters replaced by the values.
    ///
    /// # Errors
    /// `InvalidArgument` when a parameter has no value, or one that does not fit; `NotSupported`
    /// when there are several rows for anything but INSERT ... VALUES.
    pub(crate) fn bind(&self, plan: LogicalPlan) -> Result<LogicalPlan> {
        let wanted = plan.get_parameter_names().map_err(Error::from_datafusion)?;
        if wanted.is_empty() {
            return Ok(plan);
        }
        for name in wanted.iter().collect::<BTreeSet<_>>() {
            if self.index(name).is_none() {
                let given = match self.rows.as_ref().map_or(0, RecordBatch::num_columns) {
                    0 => "none was given".to_owned(),
                    count => format!("it is not among the {count} that were given"),
                };
                let text = format!("parameter {name} has no value: {given}");
                return Err(Error::new(ErrorCode::InvalidArgument, text).hint("bind a value to each parameter"));
            }
        }
        let plan = match plan {
            LogicalPlan::Dml(_) => self.bind_values(plan).map_err(Error::from_datafusion)?,
            plan => plan,
        };
        let left = plan.get_parameter_names().map_err(Error::from_datafusion)?;
        if left.is_empty() {
            return Ok(plan);
        }
        if self.rows.as_ref().is_some_and(|rows| rows.num_rows() > 1) {
            return Err(Error::new(
                ErrorCode::NotSupported,
                "several rows of parameters go with INSERT ... VALUES only",
            )
            .hint("run the statement once for each row"));
        }
        plan.with_param_values(self.first_row(&left)?).map_err(Error::from_datafusion)
    }

    fn index(&self, name: &str) -> Option<usize> {
        let rows = self.rows.as_ref()?;
        match position(name) {
            Some(position) => position.checked_sub(1).filter(|index| *index < rows.num_columns()),
            None => rows.schema().fields().iter().position(|field| Some(field.name().as_str()) == name.get(1..)),
        }
    }

    fn first_row<'a>(&self, names: impl IntoIterator<Item = &'a String>) -> Result<ParamValues> {
        let mut values = Vec::new();
        for name in names {
            let column = self.rows.as_ref().zip(self.index(name)).and_then(|(rows, index)| rows.columns().get(index));
            if let (Some(column), Some(name)) = (column, name.get(1..)) {
                let value = ScalarValue::try_from_array(column, 0).map_err(Error::from_datafusion)?;
                values.push((name.to_owned(), value));
            }
        }
        Ok(ParamValues::from(values))
    }

    /// Makes the rows of VALUES from rows of a table of parameters, however many there are. Types
    /// stay those of the target columns, which replacing parameters one by one would lose.
    fn bind_values(&self, plan: LogicalPlan) -> Result<LogicalPlan, DataFusionError> {
        let bound = plan.transform_up(|node| match node {
            LogicalPlan::Values(values) if values.values.iter().flatten().any(has_parameter) => {
                self.values_plan(&values).map(Transformed::yes)
            }
            // Whether a column can be null is told by what is below it, which may be new.
            node @ LogicalPlan::Projection(_) => node.recompute_schema().map(Transformed::yes),
            node => Ok(Transformed::no(node)),
        })?;
        Ok(bound.data)
    }

    fn values_plan(&self, values: &Values) -> Result<LogicalPlan, DataFusionError> {
        let mut all: Option<LogicalPlanBuilder> = None;
        for row in &values.values {
            let table = self.table()?;
            let source = LogicalPlanBuilder::scan(PARAMETER_TABLE, provider_as_source(table), None)?;
            let schema = Arc::clone(source.schema());
            let columns = row.iter().zip(values.schema.fields()).map(|(value, field)| {
                let bound = value.clone().transform_up(|expr| match expr {
                    Expr::Placeholder(Placeholder { id, .. }) => Ok(Transformed::yes(self.column(&id))),
                    expr => Ok(Transformed::no(expr)),
                })?;
                Ok(bound.data.cast_to(field.data_type(), &schema)?.alias(field.name()))
            });
            let projected = source.project(columns.collect::<Result<Vec<_>, DataFusionError>>()?)?;
            all = Some(match all {
                None => projected,
                Some(before) => before.union(projected.build()?)?,
            });
        }
        match all {
            Some(plan) => plan.build(),
            None => Ok(LogicalPlan::Values(values.clone())),
        }
    }

    fn column(&self, parameter: &str) -> Expr {
        let index = self.index(parameter).unwrap_or_default();
        Expr::Column(Column::new(Some(PARAMETER_TABLE), format!("${}", index + 1)))
    }

    fn table(&self) -> Result<Arc<dyn TableProvider>, DataFusionError> {
        let columns = self.rows.as_ref().map(|rows| rows.columns().to_vec()).unwrap_or_default();
        let fields = columns.iter().enumerate().map(|(index, array)| numbered_field(index, array));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let rows = RecordBatch::try_new(Arc::clone(&schema), columns)?;
        Ok(Arc::new(MemTable::try_new(schema, vec![vec![rows]])?))
    }
}

fn numbered_field(index: usize, array: &ArrayRef) -> Field {
    Field::new(format!("${}", index + 1), array.data_type().clone(), true)
}

fn has_parameter(expr: &Expr) -> bool {
    expr.exists(|expr| Ok(matches!(expr, Expr::Placeholder(_)))).unwrap_or(true)
}

/// The parameters of a plan in their order; of type Null where the plan leaves the type open.
pub(crate) fn describe(plan: &LogicalPlan) -> Result<SchemaRef> {
    let found = plan.get_parameter_fields().map_err(Error::from_datafusion)?;
    let last = found.keys().filter_map(|name| position(name)).max().unwrap_or(0);
    let mut fields = Vec::with_capacity(last);
    for number in 1..=last {
        let name = format!("${number}");
        let data_type = found.get(&name).and_then(|field| field.as_ref().map(|field| field.data_type().clone()));
        fields.push(Field::new(name, data_type.unwrap_or(DataType::Null), true));
    }
    // Names in a fixed order: clients bind by position.
    let named: BTreeMap<_, _> = found.iter().filter(|(name, _)| position(name).is_none()).collect();
    for (name, field) in named {
        let data_type = field.as_ref().map_or(DataType::Null, |field| field.data_type().clone());
        fields.push(Field::new(name, data_type, true));
    }
    Ok(Arc::new(Schema::new(fields)))
}

/// The number in `$3`.
fn position(name: &str) -> Option<usize> {
    name.get(1..)?.parse().ok().filter(|number| *number <= PARAMETERS_MAX)
}
