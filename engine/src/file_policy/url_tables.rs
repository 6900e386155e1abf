//! Tables that are named by a path: `SELECT * FROM 'file.parquet'`.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use aubade_planner::Opaque;
use aubade_planner::files::{check_parquet_footers, reading_files};
use aubade_proto::{Error, ErrorCode, Result};
use datafusion::catalog::{CatalogProvider, CatalogProviderList, SchemaProvider, TableProvider};
use datafusion::datasource::listing::{ListingTable, ListingTableConfig, ListingTableConfigExt, ListingTableUrl};
use datafusion::error::DataFusionError;
use datafusion::execution::SessionState;
use datafusion::logical_expr::TableType;

use super::FileAccess;

/// Endings that make a name in FROM a path.
const FILE_ENDINGS: [&str; 10] =
    [".parquet", ".csv", ".tsv", ".json", ".ndjson", ".arrow", ".gz", ".zst", ".bz2", ".xz"];

/// Lets the names of `state` that no table has be paths.
pub(crate) fn with_url_tables(state: &mut SessionState, template: Opaque<SessionState>, access: FileAccess) {
    let tables = Arc::new(UrlTables { template, access });
    state.register_catalog_list(Arc::new(UrlCatalogs { inner: Arc::clone(state.catalog_list()), tables }));
}

struct UrlTables {
    /// Settings and runtime. Not the state that holds these tables, which would never be freed.
    template: Opaque<SessionState>,
    access: FileAccess,
}

impl fmt::Debug for UrlTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UrlTables").field("access", &self.access).finish_non_exhaustive()
    }
}

/// Catalogs whose schemas know paths as well. DataFusion's `DynamicFileCatalog` does the same, but
/// plans every view to tell the type of a table.
#[derive(Debug)]
struct UrlCatalogs {
    inner: Arc<dyn CatalogProviderList>,
    tables: Arc<UrlTables>,
}

impl CatalogProviderList for UrlCatalogs {
    fn register_catalog(&self, name: String, catalog: Arc<dyn CatalogProvider>) -> Option<Arc<dyn CatalogProvider>> {
        self.inner.register_catalog(name, catalog)
    }

    fn catalog_names(&self) -> Vec<String> {
        self.inner.catalog_names()
    }

    fn catalog(&self, name: &str) -> Option<Arc<dyn CatalogProvider>> {
        let inner = self.inner.catalog(name)?;
        Some(Arc::new(UrlCatalog { inner, tables: Arc::clone(&self.tables) }))
    }
}

#[derive(Debug)]
struct UrlCatalog {
    inner: Arc<dyn CatalogProvider>,
    tables: Arc<UrlTables>,
}

impl CatalogProvider for UrlCatalog {
    fn schema_names(&self) -> Vec<String> {
        self.inner.schema_names()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        let inner = self.inner.schema(name)?;
        Some(Arc::new(UrlSchema { inner, tables: Arc::clone(&self.tables) }))
    }
}

#[derive(Debug)]
struct UrlSchema {
    inner: Arc<dyn SchemaProvider>,
    tables: Arc<UrlTables>,
}

#[async_trait]
impl SchemaProvider for UrlSchema {
    fn owner_name(&self) -> Option<&str> {
        self.inner.owner_name()
    }

    fn table_names(&self) -> Vec<String> {
        self.inner.table_names()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        match self.inner.table(name).await? {
            Some(table) => Ok(Some(table)),
            None if is_path(name) => self.tables.open(name).await.map(Some),
            None => Ok(None),
        }
    }

    async fn table_type(&self, name: &str) -> Result<Option<TableType>, DataFusionError> {
        self.inner.table_type(name).await
    }

    fn table_exist(&self, name: &str) -> bool {
        self.inner.table_exist(name)
    }
}

impl UrlTables {
    async fn open(&self, name: &str) -> Result<Arc<dyn TableProvider>, DataFusionError> {
        self.access.check(name)?;
        let table = reading_files(self.read(name)).await.map_err(|error| unreadable(name, error))?;
        Ok(Arc::new(table))
    }

    async fn read(&self, name: &str) -> Result<ListingTable, DataFusionError> {
        let state = self.template.as_ref();
        let url = ListingTableUrl::parse(name)?;
        let config = ListingTableConfig::new(url.clone()).infer_options(state).await?;
        let options = config.options.as_ref();
        if let Some(options) = options.filter(|options| options.format.get_ext() == "parquet") {
            check_parquet_footers(state, &url, &options.file_extension).await?;
        }
        let config = config.infer_partitions_from_path(state).await?.infer_schema(state).await?;
        ListingTable::try_new(config)
    }
}

/// Whether a name in FROM that no table has is taken for a path.
pub(crate) fn is_path(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    name.contains('/') || name.contains('\\') || FILE_ENDINGS.iter().any(|ending| lower.ends_with(ending))
}

fn unreadable(name: &str, cause: DataFusionError) -> Error {
    let text = cause.strip_backtrace();
    let found = Error::from_datafusion(cause);
    if matches!(found.code(), ErrorCode::PermissionDenied | ErrorCode::NotSupported | ErrorCode::InvalidArgument) {
        return found;
    }
    let hint =
        "check the path (relative ones start at the folder in which the process runs) and that the file is whole";
    if text.contains("No files for table") {
        // DataFusion calls this a bug of its own: nothing for a user to read.
        return Error::new(ErrorCode::FileUnreadable, format!("there is no file at '{name}'")).hint(hint);
    }
    Error::new(ErrorCode::FileUnreadable, format!("the file '{name}' cannot be read")).hint(hint).source(found)
}
