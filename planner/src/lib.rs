//! From SQL to physical plans whose scans run at storage nodes.
//!
//! A plan reads one [`aubade_catalog::Snapshot`]. Filters, projections and limits over a table become one leaf, the
//! [`StorageScanExec`], which says what of them runs at storage nodes, on how many segments, and what does not and why.
//! The crate never opens a socket: scans are run by a [`TableAccess`] that the caller brings, and without one plans can
//! still be made and looked at:
//!
//! ```
//! use std::sync::Arc;
//!
//! use arrow::datatypes::{DataType, Field, Schema};
//! use aubade_catalog::{Action, Quorum, RelationDefinition, RelationKind, RelationName, Snapshot};
//! use aubade_planner::Planner;
//! use aubade_proto::{ClusterId, RelationId, Version};
//! use uuid::Uuid;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> aubade_proto::Result<()> {
//! let schema = Schema::new(vec![
//!     Field::new("id", DataType::Int64, false),
//!     Field::new("name", DataType::Utf8View, true),
//! ]);
//! let songs = RelationDefinition {
//!     id: RelationId(Uuid::from_u128(2)),
//!     name: RelationName { schema: "public".to_owned(), name: "songs".to_owned() },
//!     kind: RelationKind::Table(Arc::new(schema)),
//! };
//! let snapshot = Snapshot::empty(ClusterId(Uuid::from_u128(1)), Quorum::for_copies(1)?)
//!     .apply(Version(1), &[Action::CreateRelation(songs)])?;
//!
//! let planner = Planner::new(Arc::new(snapshot));
//! let query = planner.plan("SELECT upper(name) FROM songs WHERE id > 5 LIMIT 3").await?;
//!
//! // All of it runs at storage nodes.
//! let fragments = query.fragments();
//! assert_eq!(fragments.len(), 1);
//! assert_eq!(fragments[0].table, "public.songs");
//! assert_eq!(fragments[0].fragment.limit(), Some(3));
//! assert!(query.explain().contains("filter=id > 5"));
//!
//! // Mistakes come with what was probably meant.
//! let error = planner.plan("SELECT * FROM song").await.unwrap_err();
//! assert_eq!(error.hint_text(), Some("did you mean 'songs'?"));
//! # Ok(())
//! # }
//! ```

pub mod access;
pub mod binding;
mod broadcast;
pub mod catalog;
pub mod embedded;
pub mod errors;
mod estimate;
pub mod explain;
pub mod files;
pub mod generic_plan;
mod group_ranges;
mod hidden_lists;
mod join_keys;
pub mod kept_plan;
pub mod kept_results;
mod kept_states;
mod key_codes;
mod merge_states;
pub mod opaque;
pub mod options;
mod pass_through;
pub mod pipeline;
pub mod prune;
pub mod refusal;
pub mod result_key;
pub mod rewrite;
pub mod runtime_filter;
pub mod scan_exec;
pub mod scan_metrics;
mod selectivity;
pub mod session;
mod shared_scan;
pub mod standard_sql;
mod subquery_results;
mod subquery_values;
pub mod table;
pub mod template;
mod temporal_operators;
mod window_shift;

/// Consumers of memory that do without when they are refused.
pub const OPTIONAL_CONSUMERS: [&str; 3] = [broadcast::CONSUMER, kept_results::CONSUMER, shared_scan::CONSUMER];

pub use access::{ScanTask, TableAccess};
pub use binding::{Binding, Values};
pub use catalog::SnapshotCatalog;
pub use embedded::{FragmentInfo, PlannedQuery, Planner, PlannerOptions, storage_scans};
pub use errors::improve_error;
pub use generic_plan::GenericPlan;
pub use kept_plan::KeptPlan;
pub use kept_results::{KeptResult, ResultStore};
pub use opaque::Opaque;
pub use options::{
    AubadeOptions, Pushdown, buffer_pool_enabled, fragment_cache_enabled, plan_cache_enabled, replan_factor,
    wire_encoding_enabled,
};
pub use refusal::{NotPushed, Reason, Refusal};
pub use result_key::ResultKey;
pub use runtime_filter::RuntimeFragment;
pub use scan_exec::StorageScanExec;
pub use scan_metrics::{NodeCounters, ScanMetrics};
pub use session::{bind_snapshot, session_config, session_state};
pub use table::AubadeTable;
pub use template::PlanTemplate;

#[cfg(test)]
mod test_support;
#[cfg(test)]
mod tests;
