//! What the coordinator says of its cluster.

use serde::{Deserialize, Serialize};

/// The cluster at one version, with the health of its nodes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// The cluster's id.
    pub cluster_id: String,
    /// The manifest version.
    pub version: u64,
    /// The epoch of the writer.
    pub epoch: u64,
    /// Replicas of each segment.
    pub copies: usize,
    /// Acknowledgements that make a write durable.
    pub write_quorum: usize,
    /// Copies that a read of the log tail asks.
    pub read_quorum: usize,
    /// The nodes, by id.
    pub nodes: Vec<NodeStatus>,
    /// The tables, by name.
    pub tables: Vec<TableStatus>,
    /// Segments over all tables.
    pub segments: usize,
    /// Segments with fewer replicas than copies are wanted.
    pub under_replicated: usize,
}

/// One node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its id.
    pub id: String,
    /// Its availability zone.
    pub zone: String,
    /// Where it listens.
    pub address: String,
    /// Whether it answers; absent when nobody asked (a status read from the manifest alone).
    pub alive: Option<bool>,
    /// Replicas that the manifest says it holds.
    pub replicas: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// One table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TableStatus {
    /// Schema and name.
    pub name: String,
    /// Its rows.
    pub rows: u64,
    /// Its segments.
    pub segments: usize,
    /// Stored bytes of one copy.
    pub bytes: u64,
}

impl ClusterStatus {
    /// What a snapshot alone says; nobody is asked whether the nodes live.
    pub fn from_snapshot(snapshot: &aubade_catalog::Snapshot) -> Self {
        let mut nodes: Vec<NodeStatus> = snapshot
            .nodes
            .values()
            .map(|node| {
                let held = snapshot.segments().filter(|segment| segment.holders.contains(&node.id));
                let (replicas, bytes) =
                    held.fold((0, 0), |(count, bytes): (usize, u64), segment| (count + 1, bytes + segment.bytes));
                NodeStatus {
                    id: node.id.to_string(),
                    zone: node.zone.clone(),
                    address: node.address.clone(),
                    alive: None,
                    replicas,
                    bytes,
                }
            })
            .collect();
        nodes.sort_by(|a, b| (&a.zone, &a.address).cmp(&(&b.zone, &b.address)));
        let tables = snapshot.tables().map(|table| TableStatus {
            name: table.name.to_string(),
            rows: table.row_count(),
            segments: table.segments.len(),
            bytes: table.bytes(),
        });
        let copies = snapshot.quorum.copies();
        Self {
            cluster_id: snapshot.cluster_id.to_string(),
            version: snapshot.version.0,
            epoch: snapshot.epoch.0,
            copies,
            write_quorum: snapshot.quorum.write(),
            read_quorum: snapshot.quorum.read(),
            nodes,
            tables: tables.collect(),
            segments: snapshot.segments().count(),
            under_replicated: snapshot.segments().filter(|segment| segment.holders.len() < copies).count(),
        }
    }
}
