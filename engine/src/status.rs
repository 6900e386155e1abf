//! What the coordinator says of its cluster.

use aubade_proto::NodeInfo;
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
    /// Segments that it found damaged and put aside, and that no good copy has replaced yet; absent when it was not
    /// asked.
    #[serde(default)]
    pub quarantined: Option<usize>,
    /// How far it has come in verifying its segments; absent when it was not asked, or does not verify them.
    #[serde(default)]
    pub scrub: Option<ScrubStatus>,
}

/// How far a node has come in reading its segments against their checksums.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubStatus {
    /// Rounds over all segments that were completed since the node started.
    pub rounds: u64,
    /// Bytes verified in the round under way; 0 between rounds.
    pub round_bytes: u64,
    /// Bytes that a round is about: all that the node holds.
    pub held_bytes: u64,
    /// Segments that it found damaged since the node started.
    pub damaged: u64,
}

impl NodeStatus {
    /// Takes in what the node says of itself; `None`: it does not answer.
    pub fn told(&mut self, info: Option<&NodeInfo>) {
        self.alive = Some(info.is_some());
        self.quarantined = info.map(|info| info.quarantined.len());
        self.scrub = info.and_then(|info| {
            let held_bytes = info.segment_bytes;
            info.scrub.map(|scrub| ScrubStatus {
                rounds: scrub.rounds,
                round_bytes: scrub.round_bytes,
                held_bytes,
                damaged: scrub.damaged,
            })
        });
    }
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
                    quarantined: None,
                    scrub: None,
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
            under_replicated: snapshot.segments().filter(|segment| snapshot.replica_count(segment) < copies).count(),
        }
    }
}
