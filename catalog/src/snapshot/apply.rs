//! Making the next version: actions are applied in order to a copy that shares every table, and a
//! table is copied only when it changes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use aubade_proto::{Epoch, Error, ErrorCode, NodeId, RelationId, Result, SegmentId, Version};

use super::{NodeEntry, Relation, RelationName, Snapshot, Table};
use crate::action::{Action, AddSegments, RelationDefinition, RelationKind};
use crate::removal::node_not_found;
use crate::segment::SegmentEntry;
use crate::statistics::SegmentStatistics;

/// Names listed in a message before it says how many more there are.
const NAMES_SHOWN_MAX: usize = 5;

impl Snapshot {
    /// The state after `actions`, as `version`.
    ///
    /// # Errors
    /// `Conflict`, `AlreadyExists`, `TableNotFound`, `SchemaNotFound`, `InUse`, `ClusterExists` or
    /// `StaleEpoch` when an action does not fit; `self` is unchanged.
    pub fn apply(&self, version: Version, actions: &[Action]) -> Result<Self> {
        if version <= self.version {
            return Err(Error::internal(format!("version {version} cannot follow version {}", self.version)));
        }
        let mut draft =
            Draft { first: self.version == Version(0), next: Self { version, ..self.clone() }, places: None };
        for action in actions {
            draft.apply(action)?;
        }
        Ok(draft.next)
    }
}

/// The next version while it is made.
struct Draft {
    /// Whether there was no version before.
    first: bool,
    next: Snapshot,
    /// Where every segment is; made by the first action that asks, dropped by those that move
    /// segments. Without it, a thousand repaired replicas would search a million segments each.
    places: Option<HashMap<SegmentId, (RelationName, usize)>>,
}

impl Draft {
    fn apply(&mut self, action: &Action) -> Result<()> {
        match action {
            Action::CreateCluster { id, quorum } => {
                if !self.first {
                    return Err(Error::new(ErrorCode::ClusterExists, "a cluster cannot be made over another one"));
                }
                self.next.cluster_id = *id;
                self.next.quorum = *quorum;
                Ok(())
            }
            Action::TakeOver(epoch) => self.take_over(*epoch),
            Action::RegisterNode(node) => self.register_node(node),
            Action::CreateSchema(name) => self.create_schema(name),
            Action::DropSchema(name) => self.drop_schema(name),
            Action::CreateRelation(definition) => self.create_relation(definition),
            Action::DropRelation(id) => self.drop_relation(*id),
            Action::AddSegments(added) => self.add_segments(added),
            Action::AddReplica { segment, node } => self.edit_segment(*segment, |entry| add_replica(entry, *node)),
            Action::RemoveReplica { segment, node } => {
                self.edit_segment(*segment, |entry| remove_holder(&mut entry.holders, *node))
            }
            Action::RemoveNode(node) => self.remove_node(*node),
        }
    }

    fn take_over(&mut self, epoch: Epoch) -> Result<()> {
        if epoch <= self.next.epoch {
            let message = format!("epoch {epoch} cannot follow epoch {}: another writer was faster", self.next.epoch);
            return Err(Error::new(ErrorCode::StaleEpoch, message));
        }
        self.next.epoch = epoch;
        Ok(())
    }

    fn register_node(&mut self, node: &NodeEntry) -> Result<()> {
        let twin = self.next.nodes.values().find(|other| other.id != node.id && other.address == node.address);
        if let Some(other) = twin {
            let message =
                format!("node {} cannot use address {}: node {} is registered there", node.id, node.address, other.id);
            let hint = format!(
                "start node {} with its own --data folder; if it has moved, start it at its new address first; if its \
                 data is gone for good, take it out with `aubade cluster remove-node --cluster URL {}` and start this \
                 one again",
                other.id, other.id
            );
            return Err(Error::new(ErrorCode::InUse, message).hint(hint));
        }
        self.next.nodes.insert(node.id, node.clone());
        Ok(())
    }

    fn remove_node(&mut self, node: NodeId) -> Result<()> {
        if self.next.nodes.remove(&node).is_none() {
            return Err(node_not_found(node));
        }
        let named = |entry: &SegmentEntry| entry.intended.contains(&node) || entry.holders.contains(&node);
        for relation in self.next.relations.values_mut() {
            let Relation::Table(table) = relation else { continue };
            // Tables that the node has nothing of stay shared with older versions.
            if table.segments.iter().any(|segment| named(segment)) {
                for segment in Arc::make_mut(table).segments.iter_mut().filter(|segment| named(segment)) {
                    let entry = Arc::make_mut(segment);
                    entry.intended.retain(|intended| *intended != node);
                    remove_holder(&mut entry.holders, node);
                }
            }
        }
        Ok(())
    }

    fn create_schema(&mut self, name: &str) -> Result<()> {
        if !self.next.schemas.insert(name.to_owned()) {
            return Err(Error::new(ErrorCode::AlreadyExists, format!("schema {name} already exists")));
        }
        self.next.schema_version = self.next.version;
        Ok(())
    }

    fn drop_schema(&mut self, name: &str) -> Result<()> {
        if !self.next.schemas.contains(name) {
            return Err(schema_not_found(name));
        }
        let held: Vec<String> =
            self.relations_in(name).map(|(key, relation)| format!("{} {}", relation.noun(), key.name)).collect();
        if !held.is_empty() {
            let mut shown = held.iter().take(NAMES_SHOWN_MAX).cloned().collect::<Vec<_>>().join(", ");
            if held.len() > NAMES_SHOWN_MAX {
                shown.push_str(&format!(" and {} more", held.len() - NAMES_SHOWN_MAX));
            }
            let message = format!("schema {name} is not empty: it holds {shown}");
            return Err(Error::new(ErrorCode::InUse, message).hint("drop what is in it first"));
        }
        self.next.schemas.remove(name);
        self.next.schema_version = self.next.version;
        Ok(())
    }

    fn relations_in(&self, schema: &str) -> impl Iterator<Item = (&RelationName, &Relation)> {
        self.next.relations.iter().filter(move |(name, _)| name.schema == schema)
    }

    fn create_relation(&mut self, definition: &RelationDefinition) -> Result<()> {
        let name = &definition.name;
        if !self.next.schemas.contains(&name.schema) {
            return Err(schema_not_found(&name.schema));
        }
        if let Some(taken) = self.next.relations.get(name) {
            return Err(Error::new(ErrorCode::AlreadyExists, format!("{} {name} already exists", taken.noun())));
        }
        let id = definition.id;
        if let Some((other, _)) = self.next.relations.iter().find(|(_, relation)| relation.id() == id) {
            return Err(Error::new(ErrorCode::Conflict, format!("{name} cannot have id {id}: {other} has it")));
        }
        let relation = match &definition.kind {
            RelationKind::Table(schema) => Relation::Table(Arc::new(Table {
                id,
                name: name.clone(),
                schema: Arc::clone(schema),
                segments: Vec::new(),
                statistics: Arc::new(SegmentStatistics::empty(Arc::clone(schema))),
            })),
            RelationKind::View(sql) => Relation::View { id, sql: sql.clone() },
            RelationKind::External(sql) => Relation::External { id, sql: sql.clone() },
        };
        self.next.relations.insert(name.clone(), relation);
        self.next.schema_version = self.next.version;
        Ok(())
    }

    fn drop_relation(&mut self, id: RelationId) -> Result<()> {
        let name = self.next.relations.iter().find(|(_, relation)| relation.id() == id).map(|(name, _)| name.clone());
        let name = name.ok_or_else(|| gone(id))?;
        self.next.relations.remove(&name);
        self.next.schema_version = self.next.version;
        self.places = None;
        Ok(())
    }

    fn add_segments(&mut self, added: &AddSegments) -> Result<()> {
        let table = self.next.relations.values_mut().find_map(|relation| match relation {
            Relation::Table(table) if table.id == added.table => Some(table),
            _ => None,
        });
        let table = table.ok_or_else(|| gone(added.table))?;
        if added.statistics.row_counts().len() != added.segments.len() {
            let message = format!(
                "table {} gets {} segments with statistics of {}",
                table.name,
                added.segments.len(),
                added.statistics.row_counts().len()
            );
            return Err(Error::internal(message));
        }
        let mut fresh = HashSet::with_capacity(added.segments.len());
        let twice = added.segments.iter().find(|segment| !fresh.insert(segment.id)).map(|segment| segment.id);
        let there = table.segments.iter().map(|segment| segment.id).find(|id| fresh.contains(id));
        if let Some(id) = twice.or(there) {
            return Err(Error::new(ErrorCode::Conflict, format!("segment {id} is in table {} already", table.name)));
        }
        let statistics = Arc::new(table.statistics.concat(&added.statistics)?);
        let table = Arc::make_mut(table);
        table.segments.extend(added.segments.iter().cloned().map(Arc::new));
        table.statistics = statistics;
        self.places = None;
        Ok(())
    }

    /// Edits a segment if it is still there.
    fn edit_segment(&mut self, segment: SegmentId, edit: impl FnOnce(&mut SegmentEntry)) -> Result<()> {
        let next = &self.next;
        let places = self.places.get_or_insert_with(|| places(next));
        let Some((name, index)) = places.get(&segment) else { return Ok(()) };
        let found = match self.next.relations.get_mut(name) {
            Some(Relation::Table(table)) => Arc::make_mut(table).segments.get_mut(*index),
            _ => None,
        };
        let entry = found.ok_or_else(|| Error::internal(format!("segment {segment} is not where it should be")))?;
        edit(Arc::make_mut(entry));
        Ok(())
    }
}

fn places(snapshot: &Snapshot) -> HashMap<SegmentId, (RelationName, usize)> {
    let of_table = |table: &Arc<Table>| {
        let name = table.name.clone();
        let ids: Vec<SegmentId> = table.segments.iter().map(|segment| segment.id).collect();
        ids.into_iter().enumerate().map(move |(index, id)| (id, (name.clone(), index)))
    };
    snapshot.tables().flat_map(of_table).collect()
}

fn add_replica(entry: &mut SegmentEntry, node: NodeId) {
    if !entry.intended.contains(&node) {
        entry.intended.push(node);
    }
    if !entry.holders.contains(&node) {
        entry.holders.push(node);
    }
}

/// Takes a node out of the holders, unless it is the last.
fn remove_holder(holders: &mut Vec<NodeId>, node: NodeId) {
    if holders.iter().any(|holder| *holder != node) {
        holders.retain(|holder| *holder != node);
    }
}

fn schema_not_found(name: &str) -> Error {
    Error::new(ErrorCode::SchemaNotFound, format!("schema {name} does not exist"))
        .hint(format!("CREATE SCHEMA {name} makes it"))
}

fn gone(id: RelationId) -> Error {
    Error::new(ErrorCode::TableNotFound, format!("the table or view with id {id} does not exist any more"))
        .hint("somebody dropped it; look up the name again")
}
