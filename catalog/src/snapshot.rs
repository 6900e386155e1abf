//! One version of the whole cluster, immutable.

mod apply;
mod replay;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use aubade_proto::{ClusterId, Epoch, NodeId, RelationId, SegmentId, Version};

use crate::quorum::Quorum;
use crate::segment::SegmentEntry;
use crate::statistics::SegmentStatistics;

/// The schema that a cluster starts with.
pub const DEFAULT_SCHEMA: &str = "public";

/// A storage node, as registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeEntry {
    /// Which node.
    pub id: NodeId,
    /// Its availability zone.
    pub zone: String,
    /// `host:port` of its gRPC service.
    pub address: String,
}

/// Schema and name of a relation, as stored (lower case unless quoted when made).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelationName {
    /// The schema.
    pub schema: String,
    /// The name within it.
    pub name: String,
}

impl fmt::Display for RelationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// A table, view or external table.
#[derive(Clone, Debug)]
pub enum Relation {
    /// A table with segments.
    Table(Arc<Table>),
    /// A view: the text of its query.
    View {
        /// Which view.
        id: RelationId,
        /// The text of its query.
        sql: String,
    },
    /// An external table.
    External {
        /// Which external table.
        id: RelationId,
        /// The text of its CREATE EXTERNAL TABLE statement.
        sql: String,
    },
}

impl Relation {
    /// Its id.
    pub fn id(&self) -> RelationId {
        match self {
            Self::Table(table) => table.id,
            Self::View { id, .. } | Self::External { id, .. } => *id,
        }
    }

    /// What it is, for messages.
    pub fn noun(&self) -> &'static str {
        match self {
            Self::Table(_) => "table",
            Self::View { .. } => "view",
            Self::External { .. } => "external table",
        }
    }
}

/// A table at one version.
#[derive(Clone, Debug)]
pub struct Table {
    /// Which table.
    pub id: RelationId,
    /// Its name.
    pub name: RelationName,
    /// Its columns.
    pub schema: SchemaRef,
    /// Its segments, in the order in which they were committed.
    pub segments: Vec<Arc<SegmentEntry>>,
    /// Their statistics, at the same indices.
    pub statistics: Arc<SegmentStatistics>,
}

impl Table {
    /// Rows over all segments.
    pub fn row_count(&self) -> u64 {
        self.segments.iter().map(|segment| segment.rows).sum()
    }

    /// Stored bytes of one copy.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }
}

/// One version of the cluster. Making the next one shares all that did not change.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// Its quorum triple.
    pub quorum: Quorum,
    /// This version.
    pub version: Version,
    /// The epoch of the writer that owns the cluster.
    pub epoch: Epoch,
    /// Registered storage nodes.
    pub nodes: BTreeMap<NodeId, NodeEntry>,
    /// Schemas, empty ones too.
    pub schemas: BTreeSet<String>,
    /// Relations by name.
    pub relations: BTreeMap<RelationName, Relation>,
    /// Grows with every change that can alter a plan's shape: relations and schemas, not segments.
    pub schema_version: Version,
}

impl Snapshot {
    /// The relation of that name.
    pub fn relation(&self, schema: &str, name: &str) -> Option<&Relation> {
        self.relations.get(&RelationName { schema: schema.to_owned(), name: name.to_owned() })
    }

    /// Every table.
    pub fn tables(&self) -> impl Iterator<Item = &Arc<Table>> {
        self.relations.values().filter_map(|relation| match relation {
            Relation::Table(table) => Some(table),
            Relation::View { .. } | Relation::External { .. } => None,
        })
    }

    /// Every segment of every table.
    pub fn segments(&self) -> impl Iterator<Item = &Arc<SegmentEntry>> {
        self.tables().flat_map(|table| table.segments.iter())
    }

    /// Every segment's id.
    pub fn segment_ids(&self) -> BTreeSet<SegmentId> {
        self.segments().map(|segment| segment.id).collect()
    }

    /// Replicas of a segment on nodes that are registered. A node that was removed stays named only as the last holder.
    pub fn replica_count(&self, segment: &SegmentEntry) -> usize {
        segment.holders.iter().filter(|holder| self.nodes.contains_key(holder)).count()
    }

    /// The state before version 1: nothing.
    pub fn empty(cluster_id: ClusterId, quorum: Quorum) -> Self {
        Self {
            cluster_id,
            quorum,
            version: Version(0),
            epoch: Epoch(0),
            nodes: BTreeMap::new(),
            schemas: BTreeSet::from([DEFAULT_SCHEMA.to_owned()]),
            relations: BTreeMap::new(),
            schema_version: Version(0),
        }
    }
}
