//! The eight tables at any scale, as streams of Arrow batches that are generated in parallel.

use std::fmt;
use std::str::FromStr;

use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use aubade_environment::tasks::run_blocking;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{StreamExt, TryStreamExt, stream};
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator, PartSuppGenerator,
    RegionGenerator, SupplierGenerator,
};
use tpchgen_arrow::{
    CustomerArrow, LineItemArrow, NationArrow, OrderArrow, PartArrow, PartSuppArrow, RegionArrow, SupplierArrow,
};

/// Rows of a part, about: below the 8000 of the generator's batches, so that a part is one batch, and
/// small enough that a batch of the widest table stays below 2 MiB.
const BATCH_ROWS: u64 = 7500;
/// Rows of orders at scale 1.
const ORDERS_AT_ONE: f64 = 1_500_000.0;

/// A scale within the bounds of the generator.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale(f64);

/// Why a number is no scale.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("the scale must be a number from 0.0001 to 100000, not {0}")]
pub struct InvalidScale(String);

impl Scale {
    /// The smallest scale: below it, tables come out empty.
    pub const MIN: f64 = 0.0001;
    /// The largest scale of the specification.
    pub const MAX: f64 = 100_000.0;

    /// Checks the bounds.
    ///
    /// # Errors
    /// Outside of them.
    pub fn try_new(scale: f64) -> Result<Self, InvalidScale> {
        if scale.is_finite() && (Self::MIN..=Self::MAX).contains(&scale) {
            Ok(Self(scale))
        } else {
            Err(InvalidScale(scale.to_string()))
        }
    }

    /// The scale at which the table `orders` has that many rows.
    ///
    /// # Errors
    /// When there is no such scale.
    pub fn from_orders(rows: u64) -> Result<Self, InvalidScale> {
        // Rows stay far below 2^53.
        Self::try_new(rows as f64 / ORDERS_AT_ONE)
    }

    /// The number.
    pub fn get(self) -> f64 {
        self.0
    }

    /// Rows of a table with `base` rows at scale 1, cut as the generator cuts.
    fn rows(self, base: u32) -> u64 {
        (f64::from(base) * self.0) as u64
    }
}

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Scale {
    type Err = InvalidScale;

    fn from_str(text: &str) -> Result<Self, InvalidScale> {
        text.parse().map_err(|_| InvalidScale(text.to_owned())).and_then(Self::try_new)
    }
}

/// A table of TPC-H.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TpchTable {
    /// 5 regions.
    Region,
    /// 25 nations.
    Nation,
    /// 10,000 suppliers at scale 1.
    Supplier,
    /// 150,000 customers at scale 1.
    Customer,
    /// 200,000 parts at scale 1.
    Part,
    /// Four suppliers for each part.
    PartSupp,
    /// 1,500,000 orders at scale 1.
    Orders,
    /// One to seven items for each order.
    LineItem,
}

impl TpchTable {
    /// All tables, small ones first.
    pub const ALL: [Self; 8] = [
        Self::Region,
        Self::Nation,
        Self::Supplier,
        Self::Customer,
        Self::Part,
        Self::PartSupp,
        Self::Orders,
        Self::LineItem,
    ];

    /// Its name in SQL.
    pub fn name(self) -> &'static str {
        match self {
            Self::Region => "region",
            Self::Nation => "nation",
            Self::Supplier => "supplier",
            Self::Customer => "customer",
            Self::Part => "part",
            Self::PartSupp => "partsupp",
            Self::Orders => "orders",
            Self::LineItem => "lineitem",
        }
    }

    /// Its columns.
    pub fn schema(self) -> SchemaRef {
        match self {
            Self::Region => RegionArrow::schema_ref(),
            Self::Nation => NationArrow::schema_ref(),
            Self::Supplier => SupplierArrow::schema_ref(),
            Self::Customer => CustomerArrow::schema_ref(),
            Self::Part => PartArrow::schema_ref(),
            Self::PartSupp => PartSuppArrow::schema_ref(),
            Self::Orders => OrderArrow::schema_ref(),
            Self::LineItem => LineItemArrow::schema_ref(),
        }
    }

    /// Its rows at a scale: exact, but for `lineitem`, where it is within a percent.
    pub fn expected_rows(self, scale: Scale) -> u64 {
        match self {
            Self::Region => 5,
            Self::Nation => 25,
            Self::Supplier => scale.rows(10_000),
            Self::Customer => scale.rows(150_000),
            Self::Part => scale.rows(200_000),
            Self::PartSupp => scale.rows(200_000).saturating_mul(4),
            Self::Orders => scale.rows(1_500_000),
            Self::LineItem => scale.rows(1_500_000).saturating_mul(4),
        }
    }

    /// Parts to cut its generation into, so that each gives about one batch.
    fn part_count(self, scale: Scale) -> i32 {
        match self {
            // The generator gives all rows of these for every part.
            Self::Region | Self::Nation => 1,
            _ => i32::try_from(self.expected_rows(scale).div_ceil(BATCH_ROWS)).unwrap_or(i32::MAX).max(1),
        }
    }

    /// All rows of one part, in the order of the key.
    fn generate(self, scale: Scale, part: i32, part_count: i32) -> Result<Vec<RecordBatch>, ArrowError> {
        let scale = scale.get();
        match self {
            Self::Region => RegionArrow::new(RegionGenerator::new(scale, part, part_count)).collect(),
            Self::Nation => NationArrow::new(NationGenerator::new(scale, part, part_count)).collect(),
            Self::Supplier => SupplierArrow::new(SupplierGenerator::new(scale, part, part_count)).collect(),
            Self::Customer => CustomerArrow::new(CustomerGenerator::new(scale, part, part_count)).collect(),
            Self::Part => PartArrow::new(PartGenerator::new(scale, part, part_count)).collect(),
            Self::PartSupp => PartSuppArrow::new(PartSuppGenerator::new(scale, part, part_count)).collect(),
            Self::Orders => OrderArrow::new(OrderGenerator::new(scale, part, part_count)).collect(),
            Self::LineItem => LineItemArrow::new(LineItemGenerator::new(scale, part, part_count)).collect(),
        }
    }

    /// The table as a stream, in the order of its key. At most `parallelism` batches are generated
    /// at a time, off the threads that serve the network, and no more than that wait to be taken.
    pub fn stream(self, scale: Scale, parallelism: usize) -> SendableRecordBatchStream {
        let part_count = self.part_count(scale);
        let batches = stream::iter(1..=part_count)
            .map(move |part| async move {
                let generated = run_blocking(move || self.generate(scale, part, part_count)).await;
                let generated = generated.ok_or_else(|| {
                    DataFusionError::Execution(format!("the generation of {} was stopped", self.name()))
                })?;
                Ok::<_, DataFusionError>(stream::iter(generated?.into_iter().map(Ok)))
            })
            .buffered(parallelism.max(1))
            .try_flatten();
        Box::pin(RecordBatchStreamAdapter::new(self.schema(), batches))
    }
}

#[cfg(test)]
mod tests {
    use arrow::compute::concat_batches;

    use super::*;

    #[tokio::test]
    async fn parts_together_are_the_whole_table() {
        let scale = Scale::try_new(0.01).unwrap();
        for table in TpchTable::ALL {
            let parts: Vec<RecordBatch> = table.stream(scale, 4).try_collect().await.unwrap();
            let whole = table.generate(scale, 1, 1).unwrap();
            let parts = concat_batches(&table.schema(), &parts).unwrap();
            let whole = concat_batches(&table.schema(), &whole).unwrap();
            assert_eq!(parts, whole, "{}", table.name());
        }
    }

    #[tokio::test]
    async fn row_counts_are_as_expected() {
        let scale = Scale::try_new(0.003).unwrap();
        for table in TpchTable::ALL {
            let batches: Vec<RecordBatch> = table.stream(scale, 2).try_collect().await.unwrap();
            let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
            let expected = table.expected_rows(scale);
            let slack = if table == TpchTable::LineItem { expected / 20 } else { 0 };
            assert!((rows as u64).abs_diff(expected) <= slack, "{}: {rows} rows, expected {expected}", table.name());
        }
    }

    #[test]
    fn scales_are_checked() {
        for text in ["0", "-1", "NaN", "inf", "x", "100001"] {
            assert!(text.parse::<Scale>().is_err(), "{text}");
        }
        assert_eq!("0.1".parse::<Scale>().unwrap().get(), 0.1);
        assert_eq!(Scale::from_orders(150_000).unwrap().get(), 0.1);
        assert!(Scale::from_orders(0).is_err());
    }
}
