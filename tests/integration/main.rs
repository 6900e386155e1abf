//! Whole-cluster tests: real nodes over loopback, child processes, and the embedded engine.

mod cli;
mod cluster;
mod embedded;
mod faults;
mod harness;
mod tpch;
