//! The coordinator of Aubade, and the embedded engine.
//!
//! [`Engine`] owns a cluster's manifest, its connections to storage nodes, the memory of queries and
//! the background work. [`Session`] runs SQL on it. [`flight::serve_flight`] offers sessions to
//! Flight SQL clients; a program that embeds Aubade uses them directly.

mod buffer_pool;
mod cluster;
pub mod engine;
mod fanout;
pub mod file_policy;
pub mod flight;
mod fragment_results;
mod limits;
mod maintenance;
#[cfg(test)]
mod manual_clock;
mod memory_pool;
mod node_reader;
mod plan_cache;
pub mod query;
pub mod session;
mod statement;
pub mod status;
mod storage_client;
mod system;
mod write;

pub use buffer_pool::{BufferPoolDisk, BufferPoolPolicy};
pub use engine::{Engine, EngineOptions};
pub use file_policy::FileAccess;
pub use flight::{FlightOptions, serve_flight};
pub use query::{Metric, QueryLog, QueryRecord};
pub use session::{IngestMode, IngestTarget, Prepared, QueryOutput, Session, split_statements};
pub use status::{ClusterStatus, NodeStatus, ScrubStatus};
