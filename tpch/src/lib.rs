//! TPC-H for Aubade: the data, the 22 queries, and the comparison of their results with plain
//! DataFusion over the same data.
//!
//! The benchmark is defined in "TPC Benchmark H, Standard Specification, Revision 3.0.1".

pub mod generate;
pub mod oracle;
pub mod queries;
pub mod verify;

pub use generate::{Scale, TpchTable};
pub use oracle::Oracle;
pub use queries::{QUERIES, Query, query};
pub use verify::{Difference, RowOrder, compare, compare_rows_in};
