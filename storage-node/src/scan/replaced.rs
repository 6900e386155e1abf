//! An expression that is evaluated otherwise than DataFusion and arrow evaluate it, and means the same.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Schema};
use datafusion::common::internal_datafusion_err;
use datafusion::error::Result;
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;

/// The other way to evaluate an expression, which is handed to each method.
pub(super) trait Evaluation: fmt::Debug + Send + Sync + Sized + 'static {
    /// What `exact` gives for the rows of a batch; `None` where it is to be asked itself.
    fn evaluate(&self, exact: &Arc<dyn PhysicalExpr>, batch: &RecordBatch) -> Result<Option<ColumnarValue>>;

    /// The same for an expression that may read columns from other places; `None` where there is nothing to gain.
    fn of_other(&self, exact: &Arc<dyn PhysicalExpr>) -> Result<Option<Self>>;

    /// `exact`, evaluated this way.
    fn in_place_of(self, exact: Arc<dyn PhysicalExpr>) -> Arc<dyn PhysicalExpr> {
        Arc::new(Replaced { exact, by: self })
    }

    fn data_type(&self, exact: &Arc<dyn PhysicalExpr>, schema: &Schema) -> Result<DataType> {
        exact.data_type(schema)
    }

    fn nullable(&self, exact: &Arc<dyn PhysicalExpr>, schema: &Schema) -> Result<bool> {
        exact.nullable(schema)
    }
}

/// To all but the one who evaluates it, the expression `exact`, which is its only child.
#[derive(Debug)]
pub(super) struct Replaced<E> {
    exact: Arc<dyn PhysicalExpr>,
    pub(super) by: E,
}

impl<E> PartialEq for Replaced<E> {
    fn eq(&self, other: &Self) -> bool {
        self.exact.eq(&other.exact)
    }
}

impl<E> Eq for Replaced<E> {}

impl<E> Hash for Replaced<E> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.exact.hash(state);
    }
}

impl<E> fmt::Display for Replaced<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.exact.fmt(f)
    }
}

impl<E: Evaluation> PhysicalExpr for Replaced<E> {
    fn data_type(&self, input_schema: &Schema) -> Result<DataType> {
        self.by.data_type(&self.exact, input_schema)
    }

    fn nullable(&self, input_schema: &Schema) -> Result<bool> {
        self.by.nullable(&self.exact, input_schema)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        match self.by.evaluate(&self.exact, batch)? {
            Some(value) => Ok(value),
            None => self.exact.evaluate(batch),
        }
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.exact]
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn PhysicalExpr>>) -> Result<Arc<dyn PhysicalExpr>> {
        let exact = children.into_iter().next();
        let exact = exact.ok_or_else(|| internal_datafusion_err!("{self} was given no expression to stand for"))?;
        Ok(match self.by.of_other(&exact)? {
            Some(by) => by.in_place_of(exact),
            None => exact,
        })
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.exact.fmt_sql(f)
    }
}
