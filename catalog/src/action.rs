//! What one version changes against its parent.

use arrow::datatypes::SchemaRef;
use aubade_proto::{ClusterId, Epoch, NodeId, RelationId, SegmentId};

use crate::quorum::Quorum;
use crate::segment::SegmentEntry;
use crate::snapshot::{NodeEntry, RelationName};
use crate::statistics::SegmentStatistics;

/// What a relation is.
#[derive(Clone, Debug)]
pub enum RelationKind {
    /// A table with segments, and the schema that it was made with.
    Table(SchemaRef),
    /// A view: the text of its query (not of the CREATE statement).
    View(String),
    /// An external table: the text of its CREATE EXTERNAL TABLE statement.
    External(String),
}

/// A relation to be made.
#[derive(Clone, Debug)]
pub struct RelationDefinition {
    /// New for every creation, so that a dropped and re-made table is another one.
    pub id: RelationId,
    /// Schema and name.
    pub name: RelationName,
    /// What it is.
    pub kind: RelationKind,
}

/// Segments to be added to one table.
#[derive(Clone, Debug)]
pub struct AddSegments {
    /// The table; the commit fails if it has been dropped.
    pub table: RelationId,
    /// The segments.
    pub segments: Vec<SegmentEntry>,
    /// Their statistics, at the same indices.
    pub statistics: SegmentStatistics,
}

/// One change. A version applies its actions in order; if one does not fit the state (the table is
/// gone, the name is taken), the whole commit fails and nothing changes.
#[derive(Clone, Debug)]
pub enum Action {
    /// The first action of version 1.
    CreateCluster {
        /// The cluster.
        id: ClusterId,
        /// Its quorum triple.
        quorum: Quorum,
    },
    /// A writer takes over with a higher epoch.
    TakeOver(Epoch),
    /// A storage node joins, or comes back with another address.
    RegisterNode(NodeEntry),
    /// A schema is made.
    CreateSchema(String),
    /// An empty schema is dropped.
    DropSchema(String),
    /// A relation is made.
    CreateRelation(RelationDefinition),
    /// A relation is dropped, with its segments.
    DropRelation(RelationId),
    /// Segments are added.
    AddSegments(AddSegments),
    /// A node holds a segment now.
    AddReplica {
        /// Which segment; no error if it has been dropped since.
        segment: SegmentId,
        /// Which node; it joins the protection group if it is not in it.
        node: NodeId,
    },
    /// A node holds a segment no more. The last holder stays named: an error that names it is better than a table
    /// without it.
    RemoveReplica {
        /// Which segment; no error if it has been dropped since.
        segment: SegmentId,
        /// Which node; it stays in the protection group, so that repair brings it back.
        node: NodeId,
    },
    /// A storage node is gone for good: it leaves the protection groups, and is no holder any more but where it is the
    /// last one. Whether enough replicas are left is for the caller to check; see [`crate::Removal`].
    RemoveNode(NodeId),
}
