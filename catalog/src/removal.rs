//! Taking a storage node out of the cluster for good: what it would cost.

use std::collections::{BTreeMap, BTreeSet};

use aubade_proto::{Error, ErrorCode, NodeId, Result};

use crate::snapshot::Snapshot;

/// A storage node that is to leave, and the nodes that answer: only their replicas count, since the others may be gone
/// as well.
#[derive(Clone, Debug)]
pub struct Removal {
    /// The node.
    pub node: NodeId,
    /// Nodes that answered when they were asked.
    pub answering: BTreeSet<NodeId>,
}

/// What a removal does at one version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemovalCost {
    /// Segments that have a replica on the node.
    pub replicas: usize,
    /// Of these, segments with fewer replicas left on nodes that answer than the read quorum, by table.
    pub thin: BTreeMap<String, usize>,
    /// Of these, segments with no other replica on a node that answers, by table.
    pub unreadable: BTreeMap<String, usize>,
}

impl Removal {
    /// What the removal costs at a version.
    ///
    /// # Errors
    /// `NodeNotFound`.
    pub fn cost(&self, snapshot: &Snapshot) -> Result<RemovalCost> {
        if !snapshot.nodes.contains_key(&self.node) {
            return Err(node_not_found(self.node));
        }
        let mut cost = RemovalCost::default();
        let read_quorum = snapshot.quorum.read();
        for table in snapshot.tables() {
            for segment in table.segments.iter().filter(|segment| segment.holders.contains(&self.node)) {
                cost.replicas += 1;
                let left = segment.holders.iter().filter(|holder| self.is_left(snapshot, **holder)).count();
                if left < read_quorum {
                    *cost.thin.entry(table.name.to_string()).or_default() += 1;
                }
                if left == 0 {
                    *cost.unreadable.entry(table.name.to_string()).or_default() += 1;
                }
            }
        }
        Ok(cost)
    }

    fn is_left(&self, snapshot: &Snapshot, holder: NodeId) -> bool {
        holder != self.node && snapshot.nodes.contains_key(&holder) && self.answering.contains(&holder)
    }

    /// Refuses a removal that leaves fewer replicas of a segment than the read quorum, on nodes that answer.
    ///
    /// # Errors
    /// `TooFewReplicas`, `NodeNotFound`.
    pub fn check(&self, snapshot: &Snapshot) -> Result<()> {
        let cost = self.cost(snapshot)?;
        if cost.thin.is_empty() {
            return Ok(());
        }
        let mut text = format!(
            "without storage node {}, fewer than {} replicas on nodes that answer would be left of {}",
            self.node,
            snapshot.quorum.read(),
            by_table(&cost.thin)
        );
        if !cost.unreadable.is_empty() {
            text.push_str(&format!(", and none of {}", by_table(&cost.unreadable)));
        }
        Err(Error::new(ErrorCode::TooFewReplicas, text).hint(
            "bring back the nodes that do not answer, or start another storage node and wait until `aubade cluster \
             status` shows that nothing is under-replicated; --force removes the node all the same",
        ))
    }
}

/// Tables listed in a message before it says how many more there are.
const TABLES_SHOWN_MAX: usize = 5;

/// Counts of segments by table, for people: `3 segments of public.t`.
pub fn by_table(counts: &BTreeMap<String, usize>) -> String {
    let one = |(table, count): (&String, &usize)| {
        let plural = if *count == 1 { "" } else { "s" };
        format!("{count} segment{plural} of {table}")
    };
    let mut text = counts.iter().take(TABLES_SHOWN_MAX).map(one).collect::<Vec<_>>().join(", ");
    if counts.len() > TABLES_SHOWN_MAX {
        text.push_str(&format!(" and of {} more tables", counts.len() - TABLES_SHOWN_MAX));
    }
    text
}

pub(crate) fn node_not_found(node: NodeId) -> Error {
    Error::new(ErrorCode::NodeNotFound, format!("storage node {node} is not registered"))
        .hint("`aubade cluster status` lists the nodes with their ids")
}

#[cfg(test)]
mod tests {
    use aubade_proto::{ClusterId, RelationId, SegmentId, Version};
    use uuid::Uuid;

    use super::*;
    use crate::action::Action;
    use crate::quorum::Quorum;
    use crate::snapshot::NodeEntry;
    use crate::test_support::{segment, table_with};

    fn node_id(number: u128) -> NodeId {
        NodeId(Uuid::from_u128(number))
    }

    /// Nodes 1 to 4 and three copies; table t with a segment on each of the sets of nodes.
    fn snapshot(holders: &[&[u128]]) -> Snapshot {
        let quorum = Quorum::for_copies(3).unwrap();
        let mut actions = vec![Action::CreateCluster { id: ClusterId(Uuid::nil()), quorum }];
        for number in 1..=4 {
            let address = format!("host{number}:7101");
            actions.push(Action::RegisterNode(NodeEntry { id: node_id(number), zone: "az1".to_owned(), address }));
        }
        let segments = holders.iter().enumerate().map(|(index, nodes)| {
            let nodes: Vec<NodeId> = nodes.iter().map(|number| node_id(*number)).collect();
            segment(SegmentId(Uuid::from_u128(100 + index as u128)), &nodes, &nodes)
        });
        actions.extend(table_with(RelationId(Uuid::from_u128(50)), "t", segments.collect()));
        Snapshot::empty(ClusterId(Uuid::nil()), quorum).apply(Version(1), &actions).unwrap()
    }

    fn removal(node: u128, answering: &[u128]) -> Removal {
        Removal { node: node_id(node), answering: answering.iter().map(|number| node_id(*number)).collect() }
    }

    #[test]
    fn enough_replicas_elsewhere_let_a_node_go() {
        let spread = snapshot(&[&[1, 2, 3], &[2, 3, 4]]);
        removal(1, &[2, 3]).check(&spread).unwrap();
        assert_eq!(removal(1, &[2, 3]).cost(&spread).unwrap().replicas, 1);
        // A node that holds nothing costs nothing, whoever answers.
        removal(4, &[]).check(&snapshot(&[&[1, 2, 3]])).unwrap();
    }

    #[test]
    fn replicas_on_nodes_that_do_not_answer_do_not_count() {
        let snapshot = snapshot(&[&[1, 2, 3], &[1, 2, 4]]);
        let error = removal(1, &[2, 4]).check(&snapshot).unwrap_err();
        assert_eq!(error.code(), ErrorCode::TooFewReplicas);
        assert!(error.message().contains("1 segment of public.t"), "{error}");
        assert!(!error.message().contains("none"), "{error}");
    }

    #[test]
    fn the_only_replica_is_named_as_lost() {
        let snapshot = snapshot(&[&[1], &[1], &[1, 2, 3]]);
        let error = removal(1, &[2, 3, 4]).check(&snapshot).unwrap_err();
        assert!(error.message().contains("none of 2 segments of public.t"), "{error}");
        assert!(error.hint_text().unwrap().contains("--force"), "{error}");
    }

    #[test]
    fn an_unknown_node_is_named() {
        let error = removal(9, &[1]).check(&snapshot(&[])).unwrap_err();
        assert_eq!(error.code(), ErrorCode::NodeNotFound);
        assert!(error.message().contains(&node_id(9).to_string()), "{error}");
    }
}
