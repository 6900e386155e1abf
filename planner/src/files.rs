//! Files as tables: what `CREATE EXTERNAL TABLE` opens, now and whenever the table is read.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use aubade_proto::{Error, ErrorCode, panic_text};
use datafusion::catalog::TableProvider;
use datafusion::datasource::listing::ListingTableUrl;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SessionState;
use datafusion::logical_expr::CreateExternalTable;
use datafusion::object_store::{ObjectMeta, ObjectStore};
use futures::{FutureExt, StreamExt, TryStreamExt};

/// The end of a Parquet file: the length of its metadata and its magic number.
const FOOTER_BYTES: u64 = 8;
/// Requests for footers at a time.
const FOOTERS_IN_FLIGHT_MAX: usize = 32;

/// The files of an external table.
///
/// # Errors
/// `FileUnreadable` where files are missing or damaged, `NotSupported` for an unknown format, and what the file policy
/// refuses.
pub async fn open_external_table(
    state: &SessionState,
    command: &CreateExternalTable,
) -> Result<Arc<dyn TableProvider>> {
    let Some(factory) = state.table_factories().get(&command.file_type.to_uppercase()) else {
        let message = format!("there is no file format '{}'", command.file_type);
        return Err(Error::new(ErrorCode::NotSupported, message).hint("use PARQUET, CSV, JSON or ARROW").into());
    };
    if command.file_type.eq_ignore_ascii_case("parquet") {
        for location in &command.locations {
            check_parquet_footers(state, &ListingTableUrl::parse(location)?, "").await?;
        }
    }
    let table = reading_files(factory.create(state, command)).await.map_err(unreadable)?;
    if table.schema().fields().is_empty() {
        let message = format!("there are no files with columns at {}", command.locations.join(", "));
        return Err(Error::new(ErrorCode::FileUnreadable, message).into());
    }
    Ok(table)
}

/// Looks for the files that an external table names. Where columns are declared DataFusion does not, and a scan of no
/// files is empty. A folder or a pattern may have no files yet.
///
/// # Errors
/// `FileUnreadable` for a file that is not there.
pub async fn check_files_present(state: &SessionState, command: &CreateExternalTable) -> Result<()> {
    for location in &command.locations {
        check_present(state, location).await?;
    }
    Ok(())
}

async fn check_present(state: &SessionState, location: &str) -> Result<()> {
    let url = ListingTableUrl::parse(location)?;
    if url.is_collection() {
        return Ok(());
    }
    let store = state.runtime_env().object_store(&url)?;
    match url.list_all_files(state, store.as_ref(), "").await?.next().await {
        Some(found) => found.map(drop),
        None => Err(Error::new(ErrorCode::FileUnreadable, format!("there is no file at {location}")).into()),
    }
}

/// Looks at the ends of the Parquet files with that ending. parquet 59 panics where a footer names more bytes of metadata
/// than the file has, and a panic is printed, whoever catches it.
///
/// # Errors
/// `FileUnreadable` with the name of the file.
pub async fn check_parquet_footers(state: &SessionState, url: &ListingTableUrl, ending: &str) -> Result<()> {
    let store = state.runtime_env().object_store(url)?;
    let files = url.list_all_files(state, store.as_ref(), ending).await?;
    let checks = files.map(|file| {
        let store = &store;
        async move { check_parquet_footer(store.as_ref(), &file?).await }
    });
    checks.buffer_unordered(FOOTERS_IN_FLIGHT_MAX).try_collect().await
}

async fn check_parquet_footer(store: &dyn ObjectStore, file: &ObjectMeta) -> Result<()> {
    // DataFusion has an error of its own for files that are shorter.
    let Some(start) = file.size.checked_sub(FOOTER_BYTES) else { return Ok(()) };
    let footer = store.get_ranges(&file.location, std::slice::from_ref(&(start..file.size))).await?;
    let length = footer.first().and_then(|footer| footer.first_chunk::<4>()).map(|length| u32::from_le_bytes(*length));
    match length {
        Some(length) if u64::from(length) > start => {
            let message = format!("the file {} is damaged: its footer names {length} bytes of metadata", file.location);
            Err(Error::new(ErrorCode::FileUnreadable, format!("{message}, and it has {} in all", file.size)).into())
        }
        _ => Ok(()),
    }
}

/// Runs work that opens files; a damaged one that makes a library panic must not look like a defect of the engine.
///
/// # Errors
/// Those of `work`, and `FileUnreadable` in place of a panic.
pub async fn reading_files<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|panic| {
        let text = panic_text(panic.as_ref());
        tracing::debug!(%text, "opening files panicked");
        Err(Error::new(ErrorCode::FileUnreadable, format!("a file is damaged: {text}")).into())
    })
}

/// What DataFusion calls an error of planning is one of the files here.
fn unreadable(error: DataFusionError) -> DataFusionError {
    if !matches!(error.find_root(), DataFusionError::Plan(_)) {
        return error;
    }
    let text = error.strip_backtrace();
    let message = text.strip_prefix("Error during planning: ").unwrap_or(&text);
    Error::new(ErrorCode::FileUnreadable, message).into()
}
