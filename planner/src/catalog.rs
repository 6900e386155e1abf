//! A snapshot as DataFusion's catalog: one catalog, its schemas, tables, views and external tables.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use aubade_catalog::Snapshot;
use aubade_catalog::snapshot::{DEFAULT_SCHEMA, Relation, RelationName};
use aubade_proto::{Error, ErrorCode};
use datafusion::catalog::information_schema::{INFORMATION_SCHEMA, InformationSchemaProvider};
use datafusion::catalog::view::ViewTable;
use datafusion::catalog::{CatalogProvider, CatalogProviderList, SchemaProvider, TableProvider};
use datafusion::common::DFSchema;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SessionState;
use datafusion::logical_expr::{DdlStatement, EmptyRelation, LogicalPlan, TableType};

use crate::access::TableAccess;
use crate::errors::improve_error;
use crate::files::{check_files_present, open_external_table};
use crate::opaque::Opaque;
use crate::standard_sql;
use crate::table::AubadeTable;

/// The name of the one catalog.
pub const CATALOG: &str = "aubade";

/// The schema of the tables in which the engine tells of itself. A schema of that name that somebody made hides it.
pub const SYSTEM_SCHEMA: &str = "system";

/// Views within views, at most. Each level takes stack while it is planned.
pub const VIEW_DEPTH_MAX: usize = 16;

/// What a catalog is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// To plan a query: a relation that cannot be planned is an error.
    Planning,
    /// To fill `information_schema`: such a relation is listed without columns, so that the others can be listed too.
    Listing,
}

/// One snapshot as DataFusion's catalogs, schemas and tables. Nothing can be registered in it: changes go through the
/// manifest and make another snapshot.
#[derive(Clone)]
pub struct SnapshotCatalog {
    snapshot: Arc<Snapshot>,
    access: Arc<dyn TableAccess>,
    /// Plans views and external tables; has no tables of its own.
    template: Opaque<SessionState>,
    /// The views that are being planned, outermost first.
    views: Vec<RelationName>,
    purpose: Purpose,
}

impl fmt::Debug for SnapshotCatalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotCatalog").field("version", &self.snapshot.version).finish_non_exhaustive()
    }
}

impl SnapshotCatalog {
    /// The catalog of `snapshot`; views are planned with the functions and settings of `template`.
    pub fn new(snapshot: Arc<Snapshot>, access: Arc<dyn TableAccess>, template: SessionState) -> Self {
        Self { snapshot, access, template: Opaque::new(template), views: Vec::new(), purpose: Purpose::Planning }
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
        inner.purpose = Purpose::Planning;
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
        let plan = standard_sql::plan(&self.inner_state(name), sql).await;
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
        if self.purpose == Purpose::Planning {
            check_files_present(state, &command).await.map_err(failure)?;
        }
        open_external_table(state, &command).await.map_err(failure)
    }

    async fn provider(&self, name: &RelationName, relation: &Relation) -> Result<Arc<dyn TableProvider>> {
        match relation {
            Relation::Table(table) => {
                let (snapshot, access) = (Arc::clone(&self.snapshot), Arc::clone(&self.access));
                Ok(Arc::new(AubadeTable::new(snapshot, Arc::clone(table), access)))
            }
            Relation::View { sql, .. } => self.view(name, sql).await,
            Relation::External { sql, .. } => self.external(name, sql).await,
        }
    }

    fn has_system_schema(&self) -> bool {
        !self.access.system_tables().is_empty() && !self.snapshot.schemas.contains(SYSTEM_SCHEMA)
    }

    /// The tables that describe the others. DataFusion's own are made of the catalog that plans queries, and one
    /// relation that cannot be planned would hide all others there.
    fn information_schema(&self) -> InformationSchemaProvider {
        let listing = Self { purpose: Purpose::Listing, ..self.clone() };
        InformationSchemaProvider::new(Arc::new(listing)).with_table_functions(self.template.table_functions().clone())
    }

    /// The error of a relation that cannot be planned, with its name.
    fn explain_failure(&self, what: &str, name: &RelationName, error: DataFusionError) -> DataFusionError {
        let error = improve_error(&self.snapshot, error);
        let outer = Error::new(error.code(), format!("{what} {name} cannot be read: {}", error.message()));
        let hint = match (error.code(), error.hint_text()) {
            (ErrorCode::FileUnreadable, None) => {
                Some("bring the files back, or drop the table and create it again".to_owned())
            }
            (_, hint) => hint.map(str::to_owned),
        };
        let outer = outer.source(error);
        match hint {
            Some(hint) => outer.hint(hint),
            None => outer,
        }
        .into()
    }
}

/// What stands for a relation that cannot be planned, where it is only listed.
fn without_columns(relation: &Relation) -> Arc<dyn TableProvider> {
    let definition = match relation {
        Relation::View { sql, .. } | Relation::External { sql, .. } => Some(sql.clone()),
        Relation::Table(_) => None,
    };
    let nothing = EmptyRelation { produce_one_row: false, schema: Arc::new(DFSchema::empty()) };
    Arc::new(ViewTable::new(LogicalPlan::EmptyRelation(nothing), definition))
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
        let own = self.snapshot.schemas.iter().map(String::as_str);
        own.chain(self.has_system_schema().then_some(SYSTEM_SCHEMA)).map(str::to_owned).collect()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        if name == INFORMATION_SCHEMA && self.purpose == Purpose::Planning {
            return Some(Arc::new(self.information_schema()));
        }
        if name == SYSTEM_SCHEMA && self.has_system_schema() {
            return Some(Arc::new(SystemSchema(Arc::clone(&self.access))));
        }
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
        let Some(relation) = self.catalog.snapshot.relations.get(&relation_name) else { return Ok(None) };
        match self.catalog.provider(&relation_name, relation).await {
            Err(error) if self.catalog.purpose == Purpose::Listing => {
                tracing::debug!(relation = %relation_name, %error, "a relation is listed without its columns");
                Ok(Some(without_columns(relation)))
            }
            provider => provider.map(Some),
        }
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

/// The tables in which the engine tells of itself.
#[derive(Debug)]
struct SystemSchema(Arc<dyn TableAccess>);

#[async_trait]
impl SchemaProvider for SystemSchema {
    fn table_names(&self) -> Vec<String> {
        self.0.system_tables().iter().map(|name| (*name).to_owned()).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        Ok(self.0.system_table(name)?)
    }

    fn table_exist(&self, name: &str) -> bool {
        self.0.system_tables().contains(&name)
    }
}
