//! TPC-DS for Aubade's tests: the data of its 24 tables at a small scale, and the 99 queries.
//!
//! The benchmark is defined in "TPC Benchmark DS, Standard Specification". Results of these queries over these data are
//! no results of that benchmark: they are compared between engines, and never published.

pub mod generate;
pub mod queries;

pub use generate::{GenerateError, TpcdsTable, generate};
pub use queries::{QUERIES, Query};
