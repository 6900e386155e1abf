//! The catalog of Aubade: the manifest and its versions, tables, segments, statistics, nodes,
//! placement and quorum arithmetic.
//!
//! A [`Snapshot`] is one version of the whole cluster, immutable and shared; a query reads exactly
//! one. [`Manifest`] makes the next version out of [`Action`]s by creating an object that must not
//! exist yet in a [`ManifestStore`].

pub mod action;
mod backoff;
#[cfg(test)]
mod fast_clock;
pub mod manifest;
pub mod placement;
pub mod quorum;
pub mod removal;
pub mod segment;
pub mod snapshot;
pub mod statistics;
pub mod store;
#[cfg(test)]
mod test_support;

pub use action::{Action, AddSegments, RelationDefinition, RelationKind};
pub use manifest::{Commit, Manifest};
pub use placement::place;
pub use quorum::Quorum;
pub use removal::{Removal, RemovalCost};
pub use segment::SegmentEntry;
pub use snapshot::{NodeEntry, Relation, RelationName, Snapshot};
pub use statistics::{ColumnStatistics, SegmentStatistics, StatisticsBuilder};
pub use store::{ClusterUrl, ManifestStore, PutOutcome};
