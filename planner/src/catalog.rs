//! A snapshot as DataFusion's catalog: one catalog, its schemas, tables, views and external tables.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use aubade_catalog::Snapshot;
use aubade_catalog::snapshot::{DEFAULT_SCHEMA, Relation, RelationName};
use aubade_proto::{Error, ErrorCode};
use datafusion::catalog::view::ViewTable;
use datafusion::catalog::{CatalogProvider, CatalogProviderList, SchemaProvider, TableProvider};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SessionState;
use datafusion::logical_expr::{DdlStatement, LogicalPlan, TableType};

use crate::access::TableAccess;
use crate::errors::improve_error;
use crate::table::AubadeTable;

/// The name of the one catalog.
pub const CATALOG: &str = "aubade";

/// Views within views, at most. Each level takes stack while it is planned.
pub const VIEW_DEPTH_MAX: usize = 16;

/// One snapshot as DataFusion's catalogs, schemas and tables. Nothing can be registered in it: changes go through the
/// manifest and make another snapshot.
#[derive(Clone)]
pub struct SnapshotCatalog {
    snapshot: Arc<Snapshot>,
    access: Arc<dyn TableAccess>,
    /// Plans views and external tables; has no tables of its own.
    template: Arc<SessionState>,
    /// The views that are being planned, outermost first.
    views: Vec<RelationName>,
}

impl fmt::Debug for SnapshotCatalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotCatalog").field("version", &self.snapshot.version).finish_non_exhaustive()
    }
}

impl SnapshotCatalog {
    /// The catalog of `snapshot`; views are planned with the functions and settings of `template`.
    pub fn new(snapshot: Arc<Snapshot>, access: Arc<dyn TableAccess>, template: SessionState) -> Self {
        Self { snapshot, access, template: Arc::new(template), views: Vec::new() }
    }

    /// What the queries read.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// Who runs their scans.
    pub fn access(&self) -> &Arc<dyn TableAccess> {
        &self.access
    }

    /// The session that plans what is inside of a view: names without a schema mean the default schema, whatever the
    /// session of the query has set.
    fn inner_state(&self, view: &RelationName) -> SessionState {
        let mut inner = self.clone();
        inner.views.push(view.clone());
        let mut state = self.template.as_ref().clone();
        state.config_mut().options_mut().catalog.default_schema = DEFAULT_SCHEMA.to_owned();
        state.register_catalog_list(Arc::new(inner));
        state
    }

    async fn view(&self, name: &RelationName, sql: &str) -> Result<Arc<dyn TableProvider>> {
        if self.views.contains(name) {
            return Err(Error::new(ErrorCode::SqlPlan, format!("view {name} is defined by itself"))
                .hint("drop it and create it again with another query")
                .into());
        }
        if self.views.len() >= VIEW_DEPTH_MAX {
            return Err(Error::new(
                ErrorCode::LimitExceeded,
                format!("view {name} is more than {VIEW_DEPTH_MAX} views deep"),
            )
            .hint("define some of the views over tables")
            .into());
        }
        let plan = self.inner_state(name).create_logical_plan(sql).await;
        let plan = plan.map_err(|error| self.explain_failure("view", name, error))?;
        Ok(Arc::new(ViewTable::new(plan, Some(sql.to_owned()))))
    }

    async fn external(&self, name: &RelationName, sql: &str) -> Result<Arc<dyn TableProvider>> {
        // A session without tables: planning the statement looks up the name that it defines, which would come here again.
        let state = self.template.as_ref();
        let failure = |error| self.explain_failure("external table", name, error);
        let plan = state.create_logical_plan(sql).await.map_err(failure)?;
        let LogicalPlan::Ddl(DdlStatement::CreateExternalTable(command)) = plan else {
            return Err(
                Error::internal(format!("external table {name} is not defined by CREATE EXTERNAL TABLE")).into()
            );
        };
        let Some(factory) = state.table_factories().get(&command.file_type.to_uppercase()) else {
            let message = format!("external table {name} has the unknown format {}", command.file_type);
            return Err(Error::new(ErrorCode::NotSupported, message).hint("PARQUET, CSV, JSON and ARROW work").into());
        };
        factory.create(state, &command).await.map_err(failure)
    }

    /// The error of a relation that cannot be planned, with its name.
    fn explain_failure(&self, what: &str, name: &RelationName, error: DataFusionError) -> DataFusionError {
        let error = improve_error(&self.snapshot, error);
        let outer = Error::new(error.code(), format!("{what} {name} cannot be read: {}", error.message()));
        match error.hint_text() {
            Some(hint) => outer.hint(hint.to_owned()),
            None => outer,
        }
        .into()
    }
}

impl CatalogProviderList for SnapshotCatalog {
    fn register_catalog(&self, _name: String, _catalog: Arc<dyn CatalogProvider>) -> Option<Arc<dyn CatalogProvider>> {
        None
    }

    fn catalog_names(&self) -> Vec<String> {
        vec![CATALOG.to_owned()]
    }

    fn catalog(&self, name: &str) -> Option<Arc<dyn CatalogProvider>> {
        (name == CATALOG).then(|| Arc::new(self.clone()) as Arc<dyn CatalogProvider>)
    }
}

impl CatalogProvider for SnapshotCatalog {
    fn schema_names(&self) -> Vec<String> {
        self.snapshot.schemas.iter().cloned().collect()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        let known = self.snapshot.schemas.contains(name);
        known.then(|| {
            Arc::new(SnapshotSchema { catalog: self.clone(), name: name.to_owned() }) as Arc<dyn SchemaProvider>
        })
    }
}

/// One schema of a snapshot.
#[derive(Debug)]
struct SnapshotSchema {
    catalog: SnapshotCatalog,
    name: String,
}

#[async_trait]
impl SchemaProvider for SnapshotSchema {
    fn table_names(&self) -> Vec<String> {
        let relations = self.catalog.snapshot.relations.keys();
        relations.filter(|relation| relation.schema == self.name).map(|relation| relation.name.clone()).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let relation_name = RelationName { schema: self.name.clone(), name: name.to_owned() };
        let provider: Arc<dyn TableProvider> = match self.catalog.snapshot.relations.get(&relation_name) {
            None => return Ok(None),
            Some(Relation::Table(table)) => {
                let SnapshotCatalog { snapshot, access, .. } = &self.catalog;
                Arc::new(AubadeTable::new(Arc::clone(snapshot), Arc::clone(table), Arc::clone(access)))
            }
            Some(Relation::View { sql, .. }) => self.catalog.view(&relation_name, sql).await?,
            Some(Relation::External { sql, .. }) => self.catalog.external(&relation_name, sql).await?,
        };
        Ok(Some(provider))
    }

    async fn table_type(&self, name: &str) -> Result<Option<TableType>> {
        Ok(self.catalog.snapshot.relation(&self.name, name).map(|relation| match relation {
            Relation::Table(_) | Relation::External { .. } => TableType::Base,
            Relation::View { .. } => TableType::View,
        }))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.catalog.snapshot.relation(&self.name, name).is_some()
    }
}
