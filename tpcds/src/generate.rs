//! The 24 tables at any scale, as Arrow batches.

use std::collections::HashSet;

use arrow::array::{AsArray, BooleanArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Int32Type, SchemaRef};
use arrow::error::ArrowError;
use arrow::record_batch::{RecordBatch, RecordBatchReader};
use tpcdsgen::TpcdsError;
use tpcdsgen::config::{Session, SessionBuilder};
use tpcdsgen_arrow::{
    CallCenterArrow, CatalogPageArrow, CatalogReturnsArrow, CatalogSalesArrow, CustomerAddressArrow, CustomerArrow,
    CustomerDemographicsArrow, DateDimArrow, HouseholdDemographicsArrow, IncomeBandArrow, InventoryArrow, ItemArrow,
    PromotionArrow, ReasonArrow, ShipModeArrow, StoreArrow, StoreReturnsArrow, StoreSalesArrow, TimeDimArrow,
    WarehouseArrow, WebPageArrow, WebReturnsArrow, WebSalesArrow, WebSiteArrow,
};

/// Rows of a batch.
const BATCH_ROWS: usize = 8192;

/// A table with its rows.
#[derive(Clone, Debug)]
pub struct TpcdsTable {
    /// Its name in SQL.
    pub name: &'static str,
    /// Its columns.
    pub schema: SchemaRef,
    /// Its rows.
    pub batches: Vec<RecordBatch>,
}

/// Why there are no data.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// There is no such scale.
    #[error("TPC-DS cannot be generated at scale {scale}: choose a number above 0")]
    Scale {
        /// The scale asked for.
        scale: f64,
        /// What the generator says.
        source: TpcdsError,
    },
    /// A table does not come out.
    #[error("the TPC-DS table {table} cannot be generated")]
    Table {
        /// Which.
        table: &'static str,
        /// Why not.
        source: ArrowError,
    },
}

/// The rows of one table after another.
fn table(name: &'static str, reader: impl RecordBatchReader) -> Result<TpcdsTable, GenerateError> {
    let schema = reader.schema();
    let batches = reader.collect::<Result<_, _>>().map_err(|source| GenerateError::Table { table: name, source })?;
    Ok(TpcdsTable { name, schema, batches })
}

/// All tables at a scale, where 1 is about a gigabyte. Of `customer_demographics`, whose 1,920,800 rows are the same at
/// every scale, only those rows are kept that another table refers to: queries reach no others.
///
/// # Errors
/// When the scale is no positive number.
pub fn generate(scale: f64) -> Result<Vec<TpcdsTable>, GenerateError> {
    let session: Session = SessionBuilder::new()
        .with_scale_factor(scale)
        .build()
        .map_err(|source| GenerateError::Scale { scale, source })?;
    macro_rules! tables {
        ($($name:literal: $reader:ident),* $(,)?) => {
            vec![$(table($name, $reader::new(session.clone()).with_batch_size(BATCH_ROWS))?),*]
        };
    }
    let mut tables = tables![
        "call_center": CallCenterArrow,
        "catalog_page": CatalogPageArrow,
        "catalog_returns": CatalogReturnsArrow,
        "catalog_sales": CatalogSalesArrow,
        "customer": CustomerArrow,
        "customer_address": CustomerAddressArrow,
        "customer_demographics": CustomerDemographicsArrow,
        "date_dim": DateDimArrow,
        "household_demographics": HouseholdDemographicsArrow,
        "income_band": IncomeBandArrow,
        "inventory": InventoryArrow,
        "item": ItemArrow,
        "promotion": PromotionArrow,
        "reason": ReasonArrow,
        "ship_mode": ShipModeArrow,
        "store": StoreArrow,
        "store_returns": StoreReturnsArrow,
        "store_sales": StoreSalesArrow,
        "time_dim": TimeDimArrow,
        "warehouse": WarehouseArrow,
        "web_page": WebPageArrow,
        "web_returns": WebReturnsArrow,
        "web_sales": WebSalesArrow,
        "web_site": WebSiteArrow,
    ];
    let referred = demographics_referred_to(&tables);
    for table in tables.iter_mut().filter(|table| table.name == "customer_demographics") {
        keep_rows(table, &referred)?;
    }
    Ok(tables)
}

/// The keys of `customer_demographics` in columns of other tables.
fn demographics_referred_to(tables: &[TpcdsTable]) -> HashSet<i32> {
    let mut keys = HashSet::new();
    for batch in tables.iter().flat_map(|table| &table.batches) {
        let schema = batch.schema();
        let columns = schema.fields().iter().zip(batch.columns());
        for (_, column) in columns.filter(|(field, _)| field.name().ends_with("cdemo_sk")) {
            keys.extend(column.as_primitive_opt::<Int32Type>().into_iter().flat_map(|column| column.iter().flatten()));
        }
    }
    keys
}

/// Keeps the rows whose first column is one of `keys`.
fn keep_rows(table: &mut TpcdsTable, keys: &HashSet<i32>) -> Result<(), GenerateError> {
    let name = table.name;
    for batch in &mut table.batches {
        let Some(column) = batch.columns().first().and_then(|column| column.as_primitive_opt::<Int32Type>()) else {
            continue;
        };
        let keep: BooleanArray = (0..column.len()).map(|row| Some(keys.contains(&column.value(row)))).collect();
        *batch = filter_record_batch(batch, &keep).map_err(|source| GenerateError::Table { table: name, source })?;
    }
    // What is left of many batches fits into a few.
    let whole = arrow::compute::concat_batches(&table.schema, &table.batches)
        .map_err(|source| GenerateError::Table { table: name, source })?;
    table.batches = (0..whole.num_rows())
        .step_by(BATCH_ROWS)
        .map(|start| whole.slice(start, BATCH_ROWS.min(whole.num_rows() - start)))
        .collect();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_has_rows_and_a_scale_of_its_own() {
        let tables = generate(0.001).unwrap();
        assert_eq!(tables.len(), 24);
        let rows = |table: &TpcdsTable| table.batches.iter().map(RecordBatch::num_rows).sum::<usize>();
        assert!(tables.iter().all(|table| rows(table) > 0));
        let demographics = tables.iter().find(|table| table.name == "customer_demographics").unwrap();
        assert!(rows(demographics) < 100_000, "{}", rows(demographics));
        assert!(generate(f64::NAN).is_err());
    }
}
