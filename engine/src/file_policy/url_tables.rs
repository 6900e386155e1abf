//! Tables that are named by a path: `SELECT * FROM 'file.parquet'`.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use aubade_proto::{Error, ErrorCode, Result};
use datafusion::catalog::{DynamicFileCatalog, TableProvider, UrlTableFactory};
use datafusion::datasource::listing::{ListingTable, ListingTableConfig, ListingTableConfigExt, ListingTableUrl};
use datafusion::error::DataFusionError;
use datafusion::execution::SessionState;

use super::FileAccess;

/// Endings that make a name in FROM a path.
const FILE_ENDINGS: [&str; 10] =
    [".parquet", ".csv", ".tsv", ".json", ".ndjson", ".arrow", ".gz", ".zst", ".bz2", ".xz"];

/// Lets the names of `state` that no table has be paths.
pub(crate) fn with_url_tables(state: &mut SessionState, template: Arc<SessionState>, access: FileAccess) {
    let tables = Arc::new(UrlTables { template, access });
    state.register_catalog_list(Arc::new(DynamicFileCatalog::new(Arc::clone(state.catalog_list()), tables)));
}

struct UrlTables {
    /// Settings and runtime. Not the state that holds this factory, which would never be freed.
    template: Arc<SessionState>,
    access: FileAccess,
}

impl fmt::Debug for UrlTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UrlTables").field("access", &self.access).finish_non_exhaustive()
    }
}

#[async_trait]
impl UrlTableFactory for UrlTables {
    async fn try_new(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        if !is_path(name) {
            return Ok(None);
        }
        self.access.check(name)?;
        let table = self.open(name).await.map_err(|error| unreadable(name, error))?;
        Ok(Some(Arc::new(table)))
    }
}

impl UrlTables {
    async fn open(&self, name: &str) -> Result<ListingTable, DataFusionError> {
        let state = self.template.as_ref();
        let config = ListingTableConfig::new(ListingTableUrl::parse(name)?).infer_options(state).await?;
        let config = config.infer_partitions_from_path(state).await?.infer_schema(state).await?;
        ListingTable::try_new(config)
    }
}

fn is_path(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    name.contains('/') || name.contains('\\') || FILE_ENDINGS.iter().any(|ending| lower.ends_with(ending))
}

fn unreadable(name: &str, cause: DataFusionError) -> Error {
    let text = cause.strip_backtrace();
    let found = Error::from_datafusion(cause);
    if matches!(found.code(), ErrorCode::PermissionDenied | ErrorCode::NotSupported | ErrorCode::InvalidArgument) {
        return found;
    }
    let message = if text.contains("No files for table") {
        format!("there is no file at '{name}'")
    } else {
        format!("the file '{name}' cannot be read")
    };
    Error::new(ErrorCode::FileUnreadable, message)
        .hint("check the path (relative ones start at the folder in which the process runs) and that the file is whole")
        .source(found)
}
