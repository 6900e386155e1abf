//! Whole-cluster tests: real nodes over loopback, child processes, and the embedded engine.

#![allow(clippy::print_stdout, reason = "what random queries and TPC-DS went through is for those who search by hand")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]
#![allow(unreachable_pub, reason = "a test binary has no outside")]

mod caches;
mod cli;
mod cluster;
mod embedded;
mod faults;
mod harness;
mod mixed;
mod oracle;
mod plain;
mod repair;
mod tpcds;
mod tpch;
