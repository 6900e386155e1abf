//! The part of a plan that touches one table's segments and nothing else, in a form that can be sent.

use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::physical_expr::PhysicalExpr;

use crate::error::{Error, Result};

/// One output column of a fragment.
#[derive(Clone, Debug)]
pub struct ProjectionColumn {
    /// Over the fragment's scan schema.
    pub expression: Arc<dyn PhysicalExpr>,
    /// The name of the output column.
    pub name: String,
}

/// Scan, filter, projection and limit, in this order.
#[derive(Clone, Debug)]
pub struct Fragment {
    scan_schema: SchemaRef,
    filter: Option<Arc<dyn PhysicalExpr>>,
    projection: Vec<ProjectionColumn>,
    output_schema: SchemaRef,
    limit: Option<u64>,
}

impl Fragment {
    /// A fragment over the columns of `scan_schema`, which are found in segments by name.
    ///
    /// # Errors
    /// When an expression does not fit `scan_schema`.
    pub fn try_new(
        scan_schema: SchemaRef,
        filter: Option<Arc<dyn PhysicalExpr>>,
        projection: Vec<ProjectionColumn>,
        limit: Option<u64>,
    ) -> Result<Self> {
        let mut fields = Vec::with_capacity(projection.len());
        for column in &projection {
            let field = column.expression.return_field(&scan_schema).map_err(Error::from)?;
            let field = Field::new(&column.name, field.data_type().clone(), field.is_nullable())
                .with_metadata(field.metadata().clone());
            fields.push(field);
        }
        if let Some(filter) = &filter {
            filter.data_type(&scan_schema).map_err(Error::from)?;
        }
        let output_schema = Arc::new(Schema::new(fields));
        Ok(Self { scan_schema, filter, projection, output_schema, limit })
    }

    /// The columns that are read.
    pub fn scan_schema(&self) -> &SchemaRef {
        &self.scan_schema
    }

    /// Rows for which this is not true are left out.
    pub fn filter(&self) -> Option<&Arc<dyn PhysicalExpr>> {
        self.filter.as_ref()
    }

    /// The output columns.
    pub fn projection(&self) -> &[ProjectionColumn] {
        &self.projection
    }

    /// What a scan of it yields.
    pub fn output_schema(&self) -> &SchemaRef {
        &self.output_schema
    }

    /// Rows wanted over all segments of a request.
    pub fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// The same fragment with another limit.
    #[must_use]
    pub fn with_limit(&self, limit: Option<u64>) -> Self {
        Self { limit, ..self.clone() }
    }
}
