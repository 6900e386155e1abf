//! Actions and transaction marks on the wire, both ways.

use std::collections::HashMap;

use arrow::datatypes::SchemaRef;
use aubade_proto::convert::{decode_schema, encode_schema, required};
use aubade_proto::wire::manifest as wire;
use aubade_proto::wire::manifest::action::Action as WireAction;
use aubade_proto::wire::manifest::create_relation::Kind as WireKind;
use aubade_proto::{ClusterId, Epoch, Error, ErrorCode, NodeId, RelationId, Result, SegmentId, TransactionId, Version};
use bytes::Bytes;

use super::head::Mark;
use crate::action::{Action, AddSegments, RelationDefinition, RelationKind};
use crate::quorum::Quorum;
use crate::segment::SegmentEntry;
use crate::snapshot::{NodeEntry, RelationName, Snapshot};
use crate::statistics::SegmentStatistics;

/// The wire form of actions.
///
/// # Errors
/// When a schema or statistics have no wire form.
pub(super) fn encode_actions(actions: &[Action]) -> Result<Vec<wire::Action>> {
    actions.iter().map(|action| Ok(wire::Action { action: Some(encode_action(action)?) })).collect()
}

fn encode_action(action: &Action) -> Result<WireAction> {
    Ok(match action {
        Action::CreateCluster { id, quorum } => WireAction::CreateCluster(wire::CreateCluster {
            cluster_id: id.to_wire(),
            copies: width(quorum.copies()),
            write_quorum: width(quorum.write()),
            read_quorum: width(quorum.read()),
        }),
        Action::TakeOver(epoch) => WireAction::TakeOver(wire::TakeOver { epoch: epoch.0 }),
        Action::RegisterNode(node) => WireAction::RegisterNode(wire::RegisterNode {
            node_id: node.id.to_wire(),
            zone: node.zone.clone(),
            address: node.address.clone(),
        }),
        Action::CreateSchema(name) => WireAction::CreateSchema(wire::CreateSchema { name: name.clone() }),
        Action::DropSchema(name) => WireAction::DropSchema(wire::DropSchema { name: name.clone() }),
        Action::CreateRelation(definition) => WireAction::CreateRelation(encode_relation(definition)?),
        Action::DropRelation(id) => WireAction::DropRelation(wire::DropRelation { relation_id: id.to_wire() }),
        Action::AddSegments(added) => WireAction::AddSegments(wire::AddSegments {
            table_id: added.table.to_wire(),
            segments: added.segments.iter().map(encode_segment).collect(),
            statistics: added.statistics.encode()?,
        }),
        Action::AddReplica { segment, node } => {
            WireAction::AddReplica(wire::AddReplica { segment_id: segment.to_wire(), node_id: node.to_wire() })
        }
        Action::RemoveReplica { segment, node } => {
            WireAction::RemoveReplica(wire::RemoveReplica { segment_id: segment.to_wire(), node_id: node.to_wire() })
        }
        Action::RemoveNode(node) => WireAction::RemoveNode(wire::RemoveNode { node_id: node.to_wire() }),
    })
}

/// Copies and quorums are at most 64.
fn width(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn encode_relation(definition: &RelationDefinition) -> Result<wire::CreateRelation> {
    let kind = match &definition.kind {
        RelationKind::Table(schema) => WireKind::TableSchema(encode_schema(schema)?),
        RelationKind::View(sql) => WireKind::ViewSql(sql.clone()),
        RelationKind::External(sql) => WireKind::ExternalSql(sql.clone()),
    };
    Ok(wire::CreateRelation {
        relation_id: definition.id.to_wire(),
        schema: definition.name.schema.clone(),
        name: definition.name.name.clone(),
        kind: Some(kind),
    })
}

fn encode_segment(segment: &SegmentEntry) -> wire::Segment {
    wire::Segment {
        segment_id: segment.id.to_wire(),
        epoch: segment.epoch.0,
        transaction_id: segment.transaction.to_wire(),
        rows: segment.rows,
        bytes: segment.bytes,
        sha256: Bytes::copy_from_slice(&segment.sha256),
        intended_node_ids: segment.intended.iter().map(|node| node.to_wire()).collect(),
        holder_node_ids: segment.holders.iter().map(|node| node.to_wire()).collect(),
    }
}

/// The actions in messages that follow `state`: statistics are read with the schemas of its tables,
/// or of those that the messages make.
///
/// # Errors
/// `InvalidMessage` or `ManifestCorrupt` for what cannot be read, `UnsupportedVersion` for an action
/// of a newer build.
pub(super) fn decode_actions(state: &Snapshot, messages: &[wire::Action]) -> Result<Vec<Action>> {
    let mut made: HashMap<RelationId, SchemaRef> = HashMap::new();
    messages.iter().map(|message| decode_action(state, message, &mut made)).collect()
}

fn decode_action(
    state: &Snapshot,
    message: &wire::Action,
    made: &mut HashMap<RelationId, SchemaRef>,
) -> Result<Action> {
    let Some(action) = &message.action else {
        let message = "it has an action that this build does not know";
        return Err(
            Error::new(ErrorCode::UnsupportedVersion, message).hint("use the build that wrote it, or a newer one")
        );
    };
    Ok(match action {
        WireAction::CreateCluster(cluster) => Action::CreateCluster {
            id: ClusterId::from_wire(&cluster.cluster_id, "create_cluster.cluster_id")?,
            quorum: Quorum::try_new(cluster.copies, cluster.write_quorum, cluster.read_quorum)?,
        },
        WireAction::TakeOver(taken) => Action::TakeOver(Epoch(taken.epoch)),
        WireAction::RegisterNode(node) => Action::RegisterNode(NodeEntry {
            id: NodeId::from_wire(&node.node_id, "register_node.node_id")?,
            zone: node.zone.clone(),
            address: node.address.clone(),
        }),
        WireAction::CreateSchema(schema) => Action::CreateSchema(schema.name.clone()),
        WireAction::DropSchema(schema) => Action::DropSchema(schema.name.clone()),
        WireAction::CreateRelation(relation) => {
            let definition = decode_relation(relation)?;
            if let RelationKind::Table(schema) = &definition.kind {
                made.insert(definition.id, SchemaRef::clone(schema));
            }
            Action::CreateRelation(definition)
        }
        WireAction::DropRelation(relation) => {
            Action::DropRelation(RelationId::from_wire(&relation.relation_id, "drop_relation.relation_id")?)
        }
        WireAction::AddSegments(added) => Action::AddSegments(decode_added(state, added, made)?),
        WireAction::AddReplica(replica) => Action::AddReplica {
            segment: SegmentId::from_wire(&replica.segment_id, "add_replica.segment_id")?,
            node: NodeId::from_wire(&replica.node_id, "add_replica.node_id")?,
        },
        WireAction::RemoveReplica(replica) => Action::RemoveReplica {
            segment: SegmentId::from_wire(&replica.segment_id, "remove_replica.segment_id")?,
            node: NodeId::from_wire(&replica.node_id, "remove_replica.node_id")?,
        },
        WireAction::RemoveNode(node) => Action::RemoveNode(NodeId::from_wire(&node.node_id, "remove_node.node_id")?),
    })
}

fn decode_relation(message: &wire::CreateRelation) -> Result<RelationDefinition> {
    let kind = match required(message.kind.as_ref(), "create_relation.kind")? {
        WireKind::TableSchema(schema) => RelationKind::Table(decode_schema(schema, "create_relation.table_schema")?),
        WireKind::ViewSql(sql) => RelationKind::View(sql.clone()),
        WireKind::ExternalSql(sql) => RelationKind::External(sql.clone()),
    };
    Ok(RelationDefinition {
        id: RelationId::from_wire(&message.relation_id, "create_relation.relation_id")?,
        name: RelationName { schema: message.schema.clone(), name: message.name.clone() },
        kind,
    })
}

fn decode_added(
    state: &Snapshot,
    message: &wire::AddSegments,
    made: &HashMap<RelationId, SchemaRef>,
) -> Result<AddSegments> {
    let table = RelationId::from_wire(&message.table_id, "add_segments.table_id")?;
    let known = made.get(&table).or_else(|| state.tables().find(|known| known.id == table).map(|known| &known.schema));
    let schema = known.ok_or_else(|| {
        Error::new(ErrorCode::ManifestCorrupt, format!("it adds segments to table {table}, which does not exist"))
    })?;
    Ok(AddSegments {
        table,
        segments: message.segments.iter().map(decode_segment).collect::<Result<_>>()?,
        statistics: SegmentStatistics::decode(SchemaRef::clone(schema), &message.statistics)?,
    })
}

fn decode_segment(message: &wire::Segment) -> Result<SegmentEntry> {
    let nodes =
        |ids: &[Bytes], field: &str| ids.iter().map(|id| NodeId::from_wire(id, field)).collect::<Result<Vec<_>>>();
    Ok(SegmentEntry {
        id: SegmentId::from_wire(&message.segment_id, "segment.segment_id")?,
        epoch: Epoch(message.epoch),
        transaction: TransactionId::from_wire(&message.transaction_id, "segment.transaction_id")?,
        rows: message.rows,
        bytes: message.bytes,
        sha256: decode_sha256(&message.sha256, "segment.sha256")?,
        intended: nodes(&message.intended_node_ids, "segment.intended_node_ids")?,
        holders: nodes(&message.holder_node_ids, "segment.holder_node_ids")?,
    })
}

/// A checksum; `field` names it in the error.
pub(super) fn decode_sha256(bytes: &[u8], field: &str) -> Result<[u8; 32]> {
    bytes.try_into().map_err(|_| {
        Error::new(
            ErrorCode::InvalidMessage,
            format!("field {field} has {} bytes instead of the 32 of a SHA-256", bytes.len()),
        )
    })
}

/// The wire form of a mark.
pub(super) fn encode_mark(mark: &Mark) -> wire::TransactionMark {
    wire::TransactionMark { epoch: mark.epoch.0, transaction_id: mark.transaction.to_wire(), version: mark.version.0 }
}

/// The mark in a message.
///
/// # Errors
/// `InvalidMessage` when the id has another length.
pub(super) fn decode_mark(message: &wire::TransactionMark) -> Result<Mark> {
    Ok(Mark {
        epoch: Epoch(message.epoch),
        transaction: TransactionId::from_wire(&message.transaction_id, "history.transaction_id")?,
        version: Version(message.version),
    })
}
