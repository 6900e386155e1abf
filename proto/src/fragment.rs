//! The part of a plan that touches one table's segments and nothing else, in a form that can be sent.

use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::utils::conjunction_opt;

use crate::code::ErrorCode;
use crate::error::{Error, Result};
use crate::reduction::Reduction;

/// One output column of a fragment.
#[derive(Clone, Debug)]
pub struct ProjectionColumn {
    /// Over the fragment's scan schema.
    pub expression: Arc<dyn PhysicalExpr>,
    /// The name of the output column.
    pub name: String,
}

/// Scan, filter, projection, and then a reduction or a limit, in this order.
#[derive(Clone, Debug)]
pub struct Fragment {
    scan_schema: SchemaRef,
    filter: Option<Arc<dyn PhysicalExpr>>,
    projection: Vec<ProjectionColumn>,
    projected_schema: SchemaRef,
    output_schema: SchemaRef,
    reduction: Option<Reduction>,
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
        let projected_schema = Arc::new(Schema::new(fields));
        let output_schema = Arc::clone(&projected_schema);
        Ok(Self { scan_schema, filter, projection, projected_schema, output_schema, reduction: None, limit })
    }

    /// The same fragment with its rows reduced before they are sent.
    ///
    /// # Errors
    /// When the reduction is over other columns, or the fragment has a limit: what it would cut off
    /// is open.
    pub fn with_reduction(&self, reduction: Reduction) -> Result<Self> {
        let types = |schema: &Schema| schema.fields().iter().map(|field| field.data_type().clone()).collect::<Vec<_>>();
        let (wanted, found) = (types(&reduction.input_schema()), types(&self.projected_schema));
        if wanted != found {
            let text = format!("a reduction of columns {wanted:?} does not fit a projection of {found:?}");
            return Err(Error::new(ErrorCode::InvalidMessage, text));
        }
        if self.limit.is_some() {
            return Err(Error::new(ErrorCode::NotSupported, "a fragment with a limit cannot be reduced as well"));
        }
        Ok(Self { output_schema: reduction.schema(), reduction: Some(reduction), ..self.clone() })
    }

    /// The same fragment, whose rows also have to pass `filters`, over the scan schema.
    ///
    /// # Errors
    /// When a filter does not fit the scan schema.
    pub fn with_more_filters(&self, filters: Vec<Arc<dyn PhysicalExpr>>) -> Result<Self> {
        for filter in &filters {
            filter.data_type(&self.scan_schema)?;
        }
        let filter = conjunction_opt(self.filter.iter().cloned().chain(filters));
        Ok(Self { filter, ..self.clone() })
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

    /// What the projection yields.
    pub fn projected_schema(&self) -> &SchemaRef {
        &self.projected_schema
    }

    /// What becomes of the projected rows before they are sent.
    pub fn reduction(&self) -> Option<&Reduction> {
        self.reduction.as_ref()
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
