//! Applying actions: what they change, what they share, what they refuse.

use std::sync::Arc;

use arrow::array::Int64Array;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use aubade_proto::{ClusterId, Epoch, Error, ErrorCode, NodeId, RelationId, SegmentId, TransactionId, Version};
use uuid::Uuid;

use super::*;
use crate::action::{Action, AddSegments, RelationDefinition, RelationKind};
use crate::quorum::Quorum;
use crate::segment::SegmentEntry;
use crate::statistics::StatisticsBuilder;

const CLUSTER: ClusterId = ClusterId(Uuid::from_u128(1));

fn node_id(index: u128) -> NodeId {
    NodeId(Uuid::from_u128(index))
}

fn node(index: u128, address: &str) -> Action {
    Action::RegisterNode(NodeEntry { id: node_id(index), zone: "az1".to_owned(), address: address.to_owned() })
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("k", DataType::Int64, true)]))
}

fn relation(id: u128, name: &str, kind: RelationKind) -> Action {
    let name = RelationName { schema: DEFAULT_SCHEMA.to_owned(), name: name.to_owned() };
    Action::CreateRelation(RelationDefinition { id: RelationId(Uuid::from_u128(id)), name, kind })
}

fn table(id: u128, name: &str) -> Action {
    relation(id, name, RelationKind::Table(schema()))
}

fn entry(id: u128) -> SegmentEntry {
    SegmentEntry {
        id: SegmentId(Uuid::from_u128(id)),
        epoch: Epoch(1),
        transaction: TransactionId(Uuid::from_u128(99)),
        rows: 2,
        bytes: 100,
        sha256: [7; 32],
        intended: vec![node_id(1), node_id(2)],
        holders: vec![node_id(1)],
    }
}

fn add(table: u128, segments: &[u128]) -> Action {
    let mut statistics = SegmentStatistics::empty(schema());
    for id in segments {
        let low = i64::try_from(*id).unwrap() * 10;
        let batch = RecordBatch::try_new(schema(), vec![Arc::new(Int64Array::from(vec![low, low + 1]))]).unwrap();
        let mut builder = StatisticsBuilder::new(schema());
        builder.update(&batch).unwrap();
        statistics = statistics.concat(&builder.finish(&[8]).unwrap()).unwrap();
    }
    let segments = segments.iter().map(|id| entry(*id)).collect();
    Action::AddSegments(AddSegments { table: RelationId(Uuid::from_u128(table)), segments, statistics })
}

fn start() -> Snapshot {
    let quorum = Quorum::for_copies(6).unwrap();
    Snapshot::empty(ClusterId(Uuid::nil()), Quorum::for_copies(1).unwrap())
        .apply(Version(1), &[Action::CreateCluster { id: CLUSTER, quorum }])
        .unwrap()
}

fn apply(state: &Snapshot, actions: &[Action]) -> Result<Snapshot, Error> {
    state.apply(state.version.next(), actions)
}

#[track_caller]
fn check_refused(state: &Snapshot, actions: &[Action], code: ErrorCode, named: &str) {
    let error = apply(state, actions).unwrap_err();
    assert_eq!(error.code(), code, "{error}");
    assert!(error.message().contains(named), "{error}");
}

fn find<'a>(state: &'a Snapshot, name: &str) -> &'a Arc<Table> {
    match state.relation(DEFAULT_SCHEMA, name) {
        Some(Relation::Table(table)) => table,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_cluster_is_made_once() {
    let state = start();
    assert_eq!((state.cluster_id, state.quorum.copies(), state.version), (CLUSTER, 6, Version(1)));
    let again = Action::CreateCluster { id: CLUSTER, quorum: state.quorum };
    check_refused(&state, &[again], ErrorCode::ClusterExists, "over another");
}

#[test]
fn segments_and_their_statistics_stay_side_by_side() {
    let state = apply(&start(), &[table(1, "t"), add(1, &[10, 11])]).unwrap();
    let state = apply(&state, &[add(1, &[12])]).unwrap();
    let table = find(&state, "t");
    assert_eq!((table.segments.len(), table.row_count(), table.bytes()), (3, 6, 300));
    let expected: &dyn arrow::array::Array = &Int64Array::from(vec![100, 110, 120]);
    assert_eq!(table.statistics.columns()[0].min.as_ref(), expected);
    assert_eq!(state.segment_ids().len(), 3);
}

#[test]
fn a_table_that_does_not_change_is_shared() {
    let before = apply(&start(), &[table(1, "a"), table(2, "b"), add(2, &[10])]).unwrap();
    let after = apply(&before, &[add(1, &[11])]).unwrap();
    assert!(Arc::ptr_eq(find(&before, "b"), find(&after, "b")));
    assert!(!Arc::ptr_eq(find(&before, "a"), find(&after, "a")));
    assert!(find(&before, "a").segments.is_empty());
}

#[test]
fn only_relations_and_schemas_change_the_schema_version() {
    let made = apply(&start(), &[table(1, "t")]).unwrap();
    assert_eq!(made.schema_version, Version(2));
    let grown = apply(&made, &[add(1, &[10]), node(1, "a:1"), Action::TakeOver(Epoch(3))]).unwrap();
    assert_eq!((grown.version, grown.schema_version, grown.epoch), (Version(3), Version(2), Epoch(3)));
    let dropped = apply(&grown, &[Action::DropRelation(RelationId(Uuid::from_u128(1)))]).unwrap();
    assert_eq!(dropped.schema_version, Version(4));
    assert!(dropped.relations.is_empty());
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let state = apply(&start(), &[table(1, "t"), relation(2, "v", RelationKind::View("SELECT 1".to_owned()))]).unwrap();
    check_refused(&state, &[table(3, "t")], ErrorCode::AlreadyExists, "table public.t");
    check_refused(&state, &[table(3, "v")], ErrorCode::AlreadyExists, "view public.v");
    check_refused(&state, &[table(1, "other")], ErrorCode::Conflict, "public.t has it");
    check_refused(&state, &[add(9, &[10])], ErrorCode::TableNotFound, "id 00000000");
    check_refused(&state, &[Action::DropRelation(RelationId(Uuid::from_u128(9)))], ErrorCode::TableNotFound, "id 0000");
    check_refused(&state, &[add(1, &[10]), add(1, &[10])], ErrorCode::Conflict, "public.t already");
    check_refused(&state, &[add(1, &[10, 10])], ErrorCode::Conflict, "public.t already");
    check_refused(&state, &[Action::TakeOver(Epoch(0))], ErrorCode::StaleEpoch, "epoch 0");
    check_refused(&state, &[Action::CreateSchema("public".to_owned())], ErrorCode::AlreadyExists, "schema public");
    check_refused(&state, &[Action::DropSchema("nope".to_owned())], ErrorCode::SchemaNotFound, "schema nope");
    check_refused(&state, &[Action::DropSchema("public".to_owned())], ErrorCode::InUse, "table t, view v");
}

#[test]
fn an_empty_schema_can_be_dropped_even_the_first() {
    let state =
        apply(&start(), &[Action::CreateSchema("s".to_owned()), Action::DropSchema("public".to_owned())]).unwrap();
    assert_eq!(state.schemas.iter().collect::<Vec<_>>(), ["s"]);
    check_refused(&state, &[table(1, "t")], ErrorCode::SchemaNotFound, "schema public");
}

#[test]
fn a_node_moves_but_does_not_share_its_address() {
    let state = apply(&start(), &[node(1, "a:1"), node(2, "b:1")]).unwrap();
    check_refused(&state, &[node(3, "a:1")], ErrorCode::InUse, &node_id(1).to_string());
    check_refused(&state, &[node(3, "a:1")], ErrorCode::InUse, &node_id(3).to_string());
    let moved = apply(&state, &[node(1, "c:1"), node(3, "a:1")]).unwrap();
    assert_eq!(moved.nodes.len(), 3);
}

#[test]
fn replicas_come_and_go() {
    let state = apply(&start(), &[table(1, "t"), add(1, &[10])]).unwrap();
    let (segment, gone) = (SegmentId(Uuid::from_u128(10)), SegmentId(Uuid::from_u128(77)));
    let actions = [
        Action::AddReplica { segment, node: node_id(2) },
        Action::AddReplica { segment, node: node_id(5) },
        Action::RemoveReplica { segment, node: node_id(1) },
        Action::AddReplica { segment: gone, node: node_id(1) },
    ];
    let state = apply(&state, &actions).unwrap();
    let entry = &find(&state, "t").segments[0];
    assert_eq!(entry.holders, [node_id(2), node_id(5)]);
    assert_eq!(entry.intended, [node_id(1), node_id(2), node_id(5)]);
    assert_eq!(entry.missing().collect::<Vec<_>>(), [node_id(1)]);
}

#[test]
fn the_last_holder_stays_named_however_many_are_taken_out_at_once() {
    let state = apply(&start(), &[table(1, "t"), add(1, &[10])]).unwrap();
    let segment = SegmentId(Uuid::from_u128(10));
    let mut actions: Vec<Action> = (2..=3).map(|index| Action::AddReplica { segment, node: node_id(index) }).collect();
    actions.extend((1..=3).map(|index| Action::RemoveReplica { segment, node: node_id(index) }));
    let state = apply(&state, &actions).unwrap();
    assert_eq!(find(&state, "t").segments[0].holders, [node_id(3)]);
    let again = apply(&state, &[Action::RemoveReplica { segment, node: node_id(3) }]).unwrap();
    assert_eq!(find(&again, "t").segments[0].holders, [node_id(3)]);
}

#[test]
fn a_removed_node_leaves_groups_and_holders_but_where_it_is_the_last() {
    let nodes = [node(1, "a:1"), node(2, "b:1")];
    let state = apply(&start(), &nodes).unwrap();
    let state = apply(&state, &[table(1, "t"), add(1, &[10, 11]), table(2, "other")]).unwrap();
    let both = Action::AddReplica { segment: SegmentId(Uuid::from_u128(10)), node: node_id(2) };
    let state = apply(&state, &[both]).unwrap();
    let after = apply(&state, &[Action::RemoveNode(node_id(1))]).unwrap();
    assert_eq!(after.nodes.keys().copied().collect::<Vec<_>>(), [node_id(2)]);
    let segments = &find(&after, "t").segments;
    assert_eq!((&segments[0].holders[..], &segments[0].intended[..]), (&[node_id(2)][..], &[node_id(2)][..]));
    assert_eq!((&segments[1].holders[..], after.replica_count(&segments[1])), (&[node_id(1)][..], 0));
    assert!(Arc::ptr_eq(find(&state, "other"), find(&after, "other")), "what does not change is shared");
    // Its address is free, and it may come back with what it still has.
    let back = apply(&after, &[node(3, "a:1"), node(1, "c:1")]).unwrap();
    assert_eq!(back.replica_count(&segments[1]), 1);
    check_refused(&after, &[Action::RemoveNode(node_id(1))], ErrorCode::NodeNotFound, &node_id(1).to_string());
}

#[test]
fn an_address_that_is_taken_says_how_to_take_the_old_node_out() {
    let state = apply(&start(), &[node(1, "a:1")]).unwrap();
    let error = apply(&state, &[node(3, "a:1")]).unwrap_err();
    let hint = error.hint_text().unwrap();
    assert!(hint.contains(&format!("aubade cluster remove-node --cluster URL {}", node_id(1))), "{hint}");
}

#[test]
fn a_checkpoints_actions_make_the_same_state() {
    let actions = [
        node(1, "a:1"),
        node(2, "b:1"),
        Action::TakeOver(Epoch(4)),
        Action::CreateSchema("s".to_owned()),
        table(1, "t"),
        add(1, &[10, 11]),
        relation(2, "v", RelationKind::View("SELECT 1".to_owned())),
        relation(3, "e", RelationKind::External("CREATE EXTERNAL TABLE ...".to_owned())),
    ];
    let state = apply(&start(), &actions).unwrap();
    let empty = Snapshot::empty(ClusterId(Uuid::nil()), Quorum::for_copies(1).unwrap());
    let again = empty.apply(state.version, &state.to_actions()).unwrap();
    assert_eq!(format!("{state:?}"), format!("{again:?}"));
}
