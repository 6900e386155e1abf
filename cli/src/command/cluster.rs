//! `aubade cluster`: make a cluster, look at one, or take a storage node out of it.

mod remove_node;

use std::collections::BTreeMap;
use std::time::Duration;

use aubade_catalog::{ClusterUrl, Manifest, Quorum, Snapshot};
use aubade_engine::{ClusterStatus, ScrubStatus};
use aubade_environment::Environment;
use aubade_environment::clock::timeout;
use aubade_proto::convert::{decode_node_info, encode_header};
use aubade_proto::wire::storage::InfoRequest;
use aubade_proto::wire::storage::storage_node_client::StorageNodeClient;
use aubade_proto::{CallHeader, ClusterId, Error, ErrorCode, NodeId, NodeInfo, RequestId, Result, ResultExt};
use clap::{Args, Subcommand};
use futures::future::join_all;
use remove_node::RemoveNode;

use crate::output::{self, Align, Grid};
use crate::size::{ByteSize, count, grouped};
use crate::target::Target;
use crate::{connect, interrupt};

/// Time for a node to say that it lives.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, Subcommand)]
pub(crate) enum Cluster {
    /// Make a new, empty cluster and print its id
    Init(Init),
    /// Show nodes, zones, replicas, tables, segments and the version of the manifest
    Status(Status),
    // Without a text of its own, so that `--help` shows all of that of the command.
    RemoveNode(RemoveNode),
}

impl Cluster {
    pub(crate) async fn run(self, environment: Environment) -> Result<()> {
        match self {
            Self::Init(init) => interrupt::until_shutdown(init.run(environment)).await,
            Self::Status(status) => interrupt::until_shutdown(status.run(environment)).await,
            Self::RemoveNode(remove) => interrupt::until_shutdown(remove.run(environment)).await,
        }
    }
}

/// Make a new, empty cluster and print its id.
#[derive(Debug, Args)]
pub(crate) struct Init {
    /// Where the cluster's manifest is kept: file:///dir, a path, or s3://bucket/prefix (with the usual AWS_* variables)
    #[arg(long, value_name = "URL")]
    cluster: String,

    /// Replicas of each segment, each on another storage node
    #[arg(long, default_value_t = 6)]
    copies: u32,

    /// Acknowledgements that make a write durable [default: a majority of the copies]
    #[arg(long, value_name = "COPIES")]
    write_quorum: Option<u32>,

    /// Copies that a read of the log tail asks [default: copies + 1 - write quorum]
    #[arg(long, value_name = "COPIES")]
    read_quorum: Option<u32>,
}

impl Init {
    async fn run(self, environment: Environment) -> Result<()> {
        let quorum = quorum(self.copies, self.write_quorum, self.read_quorum)?;
        let store = ClusterUrl::parse(&self.cluster)?.open(&environment).await?;
        let id = ClusterId(environment.new_uuid());
        Manifest::create(environment, store, id, quorum).await?;
        output::line(&id.to_string())
    }
}

/// The triple, with what was not said filled in.
pub(crate) fn quorum(copies: u32, write: Option<u32>, read: Option<u32>) -> Result<Quorum> {
    let write = write.unwrap_or(copies / 2 + 1);
    let read = read.unwrap_or(copies.saturating_add(1).saturating_sub(write));
    Quorum::try_new(copies, write, read)
}

/// Show nodes, zones, replicas, tables, segments and the version of the manifest.
#[derive(Debug, Args)]
#[group(id = "where", required = true, multiple = false, args = ["cluster", "url"])]
pub(crate) struct Status {
    /// Read the manifest at this URL, and ask the nodes whether they live
    #[arg(long, value_name = "URL")]
    cluster: Option<String>,

    /// Ask the coordinator at this Flight SQL address, like grpc://127.0.0.1:7000
    #[arg(long)]
    url: Option<String>,

    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

impl Status {
    async fn run(self, environment: Environment) -> Result<()> {
        let status = match (&self.cluster, &self.url) {
            (Some(cluster), _) => status_of_manifest(&environment, cluster).await?,
            (None, Some(url)) => Target::remote(&environment, url)?.status().await?,
            (None, None) => return Err(Error::new(ErrorCode::InvalidArgument, "give --cluster or --url")),
        };
        if self.json {
            let json = serde_json::to_string_pretty(&status);
            return output::line(&json.context(ErrorCode::Internal, || "a status has no JSON form".to_owned())?);
        }
        output::line(&render(&status))
    }
}

async fn status_of_manifest(environment: &Environment, cluster: &str) -> Result<ClusterStatus> {
    let store = ClusterUrl::parse(cluster)?.open(environment).await?;
    let snapshot = Manifest::open(environment.clone(), store).await?.snapshot();
    let mut status = ClusterStatus::from_snapshot(&snapshot);
    let infos = ask_nodes(environment, &snapshot).await;
    for node in &mut status.nodes {
        node.told(node.id.parse().ok().and_then(|id| infos.get(&id)));
    }
    Ok(status)
}

/// What every node that answers says of itself.
async fn ask_nodes(environment: &Environment, snapshot: &Snapshot) -> BTreeMap<NodeId, NodeInfo> {
    let asked = snapshot.nodes.values().map(|node| async move {
        let info = ask(environment, snapshot, &node.address).await?;
        // Another node that answers at its address is not this one.
        (info.node_id == node.id).then_some((node.id, info))
    });
    join_all(asked).await.into_iter().flatten().collect()
}

async fn ask(environment: &Environment, snapshot: &Snapshot, address: &str) -> Option<NodeInfo> {
    let header = CallHeader {
        request_id: RequestId(environment.new_uuid()),
        cluster_id: snapshot.cluster_id,
        epoch: snapshot.epoch,
        snapshot_version: snapshot.version,
        timeout: PROBE_TIMEOUT,
    };
    let mut client = StorageNodeClient::new(connect::channel(environment, address).ok()?);
    let call = client.info(InfoRequest { header: Some(encode_header(&header)) });
    let reply = timeout(environment.clock.as_ref(), PROBE_TIMEOUT, call).await?.ok()?;
    decode_node_info(reply.get_ref()).ok()
}

fn render(status: &ClusterStatus) -> String {
    let mut nodes = Grid::new(&[
        ("node", Align::Left),
        ("zone", Align::Left),
        ("address", Align::Left),
        ("alive", Align::Left),
        ("replicas", Align::Right),
        ("bytes", Align::Right),
        ("damaged", Align::Right),
        ("verified", Align::Right),
    ]);
    for node in &status.nodes {
        let alive = match node.alive {
            Some(true) => "yes",
            Some(false) => "no",
            None => "unknown",
        };
        nodes.row([
            node.id.clone(),
            node.zone.clone(),
            node.address.clone(),
            alive.to_owned(),
            grouped(node.replicas as u64),
            ByteSize(node.bytes).to_string(),
            node.quarantined.map_or_else(|| "unknown".to_owned(), |count| grouped(count as u64)),
            match (node.quarantined, &node.scrub) {
                (None, _) => "unknown".to_owned(),
                (Some(_), None) => "off".to_owned(),
                (Some(_), Some(scrub)) => verified(scrub),
            },
        ]);
    }
    let mut tables = Grid::new(&[
        ("table", Align::Left),
        ("rows", Align::Right),
        ("segments", Align::Right),
        ("bytes", Align::Right),
    ]);
    for table in &status.tables {
        tables.row([
            table.name.clone(),
            grouped(table.rows),
            grouped(table.segments as u64),
            ByteSize(table.bytes).to_string(),
        ]);
    }
    let zones: std::collections::BTreeSet<&str> = status.nodes.iter().map(|node| node.zone.as_str()).collect();
    let alive = status.nodes.iter().filter(|node| node.alive == Some(true)).count();
    format!(
        "cluster           {}\nmanifest version  {}\nepoch             {}\nquorum            {} copies, {} to write, {} to \
         read\nnodes             {} ({alive} alive) in {} zones\nsegments          {}\nunder-replicated  \
         {}\n\n{}\n\n{}",
        status.cluster_id,
        status.version,
        status.epoch,
        status.copies,
        status.write_quorum,
        status.read_quorum,
        status.nodes.len(),
        zones.len(),
        grouped(status.segments as u64),
        grouped(status.under_replicated as u64),
        nodes.render(),
        tables.render(),
    )
}

/// How far a node has come: rounds over all its segments, and the part of the one under way.
fn verified(scrub: &ScrubStatus) -> String {
    let rounds = count(scrub.rounds, "round");
    if scrub.round_bytes == 0 {
        return rounds;
    }
    // Segments come and go while a round is under way.
    let percent = u128::from(scrub.round_bytes) * 100 / u128::from(scrub.held_bytes.max(1));
    let part = format!("{} %", percent.min(99));
    if scrub.rounds == 0 { part } else { format!("{rounds}, {part}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_progress_of_verification_is_short() {
        let status = |rounds, round_bytes| ScrubStatus { rounds, round_bytes, held_bytes: 200, damaged: 0 };
        for (rounds, round_bytes, text) in
            [(0, 0, "0 rounds"), (0, 50, "25 %"), (1, 0, "1 round"), (2, 199, "2 rounds, 99 %"), (0, 900, "99 %")]
        {
            assert_eq!(verified(&status(rounds, round_bytes)), text);
        }
    }

    #[test]
    fn quorums_are_filled_in_and_checked() {
        assert_eq!(quorum(6, None, None).unwrap(), Quorum::try_new(6, 4, 3).unwrap());
        assert_eq!(quorum(6, Some(6), None).unwrap(), Quorum::try_new(6, 6, 1).unwrap());
        assert_eq!(quorum(6, Some(3), Some(4)).unwrap_err().code(), ErrorCode::QuorumUnsafe);
        assert_eq!(quorum(0, None, None).unwrap_err().code(), ErrorCode::QuorumUnsafe);
    }
}
