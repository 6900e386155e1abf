//! A whole version as actions: the content of a checkpoint.

use std::sync::Arc;

use aubade_proto::Epoch;

use super::{DEFAULT_SCHEMA, Relation, Snapshot};
use crate::action::{Action, AddSegments, RelationDefinition, RelationKind};

impl Snapshot {
    /// Actions that make this state from [`Snapshot::empty`]: the content of a checkpoint. Only
    /// `schema_version` may come out higher.
    pub fn to_actions(&self) -> Vec<Action> {
        let mut actions = vec![Action::CreateCluster { id: self.cluster_id, quorum: self.quorum }];
        if self.epoch > Epoch(0) {
            actions.push(Action::TakeOver(self.epoch));
        }
        actions.extend(self.nodes.values().cloned().map(Action::RegisterNode));
        if !self.schemas.contains(DEFAULT_SCHEMA) {
            actions.push(Action::DropSchema(DEFAULT_SCHEMA.to_owned()));
        }
        let others = self.schemas.iter().filter(|schema| *schema != DEFAULT_SCHEMA);
        actions.extend(others.cloned().map(Action::CreateSchema));
        for (name, relation) in &self.relations {
            let kind = match relation {
                Relation::Table(table) => RelationKind::Table(Arc::clone(&table.schema)),
                Relation::View { sql, .. } => RelationKind::View(sql.clone()),
                Relation::External { sql, .. } => RelationKind::External(sql.clone()),
            };
            actions.push(Action::CreateRelation(RelationDefinition { id: relation.id(), name: name.clone(), kind }));
            if let Relation::Table(table) = relation
                && !table.segments.is_empty()
            {
                let segments = table.segments.iter().map(|segment| segment.as_ref().clone()).collect();
                let statistics = table.statistics.as_ref().clone();
                actions.push(Action::AddSegments(AddSegments { table: table.id, segments, statistics }));
            }
        }
        actions
    }
}
