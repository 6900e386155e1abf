//! `aubade cluster remove-node`: a storage node that is gone for good leaves the cluster.
//!
//! It is a version of the manifest like any other, made without taking the epoch: as a node that registers, it does not
//! disturb the coordinator, which sees it within a second, forgets the node and has its replicas copied to others.

use std::time::Duration;

use aubade_catalog::removal::by_table;
use aubade_catalog::{Action, ClusterUrl, Commit, Manifest, NodeEntry, Removal, RemovalCost, Snapshot};
use aubade_environment::Environment;
use aubade_proto::{Error, ErrorCode, NodeId, Result, Retry, TransactionId};
use clap::Args;

use super::ask_nodes;
use crate::output;
use crate::size::count;

/// Tries to commit, and the pause between them.
const TRIES_MAX: u32 = 10;
const PAUSE: Duration = Duration::from_millis(300);

/// Take a storage node that is gone for good out of the cluster.
///
/// The coordinator may go on running: it copies what had a replica on the node to other nodes, from the replicas that
/// are left. Another node can use the address then. A node that was removed and is started again joins again.
///
/// Refused while the node answers, and where fewer replicas of a segment than the read quorum would be left on nodes that
/// answer.
#[derive(Debug, Args)]
pub(crate) struct RemoveNode {
    /// Where the cluster's manifest is kept: file:///dir, a path, or s3://bucket/prefix
    #[arg(long, value_name = "URL")]
    cluster: String,

    /// The id of the node, as `aubade cluster status` shows it
    #[arg(value_name = "NODE_ID")]
    node: NodeId,

    /// Remove it though it answers, or though too few replicas, or none, are left of some segments
    #[arg(long)]
    force: bool,
}

impl RemoveNode {
    pub(crate) async fn run(self, environment: Environment) -> Result<()> {
        let store = ClusterUrl::parse(&self.cluster)?.open(&environment).await?;
        let manifest = Manifest::open(environment.clone(), store).await?;
        let snapshot = manifest.snapshot();
        let infos = ask_nodes(&environment, &snapshot).await;
        let answering = infos.into_keys().collect();
        let removal = Removal { node: self.node, answering };
        let cost = removal.cost(&snapshot)?;
        let entry = snapshot.nodes.get(&self.node).cloned();
        let entry = entry.ok_or_else(|| Error::internal(format!("node {} has a cost and no entry", self.node)))?;
        if removal.answering.contains(&self.node) && !self.force {
            let text = format!("storage node {} still answers at {}", entry.id, entry.address);
            return Err(Error::new(ErrorCode::InUse, text).hint(
                "stop its process first, and check that it is the node you mean; --force removes it all the same, and it \
                 joins again when it is started again",
            ));
        }
        let after = self.commit(&environment, &manifest, &removal).await?;
        output::line(&report(&entry, &cost, &after))?;
        if !cost.unreadable.is_empty() {
            output::warning(&lost(&entry, &cost));
        }
        Ok(())
    }

    /// Removes the node from the newest state, if that still allows it.
    async fn commit(
        &self,
        environment: &Environment,
        manifest: &Manifest,
        removal: &Removal,
    ) -> Result<std::sync::Arc<Snapshot>> {
        let force = self.force;
        // One transaction for all tries: one whose answer was lost is found again.
        let transaction = TransactionId(environment.new_uuid());
        let mut last = None;
        for _ in 0..TRIES_MAX {
            let check = |state: &Snapshot| if force { Ok(()) } else { removal.check(state) };
            match manifest.commit_if(transaction, vec![Action::RemoveNode(self.node)], check).await {
                Ok(Commit::Committed(snapshot)) => return Ok(snapshot),
                Ok(Commit::Unknown(error)) => last = Some(error),
                Err(error) if error.retry() == Retry::Later => last = Some(error),
                Err(error) => return Err(error),
            }
            environment.clock.sleep(PAUSE).await;
        }
        let text = format!("it is not known whether storage node {} was removed", self.node);
        let error = Error::new(ErrorCode::CommitUnknown, text).hint(
            "`aubade cluster status` shows whether it is still there; try again once the manifest's store answers",
        );
        Err(match last {
            Some(cause) => error.source(cause),
            None => error,
        })
    }
}

fn report(entry: &NodeEntry, cost: &RemovalCost, after: &Snapshot) -> String {
    let mut text = format!("removed storage node {} in zone {} at {}", entry.id, entry.zone, entry.address);
    if cost.replicas == 0 {
        return text;
    }
    text.push_str(&format!("\nit had {}", count(cost.replicas as u64, "replica")));
    let (nodes, copies) = (after.nodes.len(), after.quorum.copies());
    if nodes < copies {
        let missing = count((copies - nodes) as u64, "more storage node");
        text.push_str(&format!("; start {missing}, and the coordinator copies them there"));
    } else {
        text.push_str("; the coordinator copies them to other nodes");
    }
    text
}

fn lost(entry: &NodeEntry, cost: &RemovalCost) -> String {
    format!(
        "no node that answers has another replica of {}: queries of them fail until node {} is started again with its \
         data, or another node that has one is",
        by_table(&cost.unreadable),
        entry.id
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use aubade_catalog::Quorum;
    use aubade_proto::ClusterId;
    use uuid::Uuid;

    fn entry() -> NodeEntry {
        NodeEntry { id: NodeId(Uuid::from_u128(7)), zone: "az2".to_owned(), address: "h:1".to_owned() }
    }

    #[test]
    fn the_report_says_whether_there_is_a_node_for_every_copy() {
        let mut after = Snapshot::empty(ClusterId(Uuid::nil()), Quorum::for_copies(2).unwrap());
        let cost = RemovalCost { replicas: 2, ..RemovalCost::default() };
        let text = report(&entry(), &cost, &after);
        assert!(text.contains("az2") && text.contains("2 replicas; start 2 more storage nodes"), "{text}");
        for number in 1..=2 {
            let id = NodeId(Uuid::from_u128(number));
            after.nodes.insert(id, NodeEntry { id, ..entry() });
        }
        assert!(report(&entry(), &cost, &after).contains("2 replicas; the coordinator copies them"));
        assert!(!report(&entry(), &RemovalCost::default(), &after).contains("replica"));
    }

    #[test]
    fn what_is_lost_is_named_by_table() {
        let cost = RemovalCost { unreadable: [("public.t".to_owned(), 3)].into(), ..RemovalCost::default() };
        assert!(lost(&entry(), &cost).contains("3 segments of public.t"));
    }
}
