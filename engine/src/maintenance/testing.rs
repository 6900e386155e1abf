//! Builders for the tests of maintenance.

use std::sync::Arc;

use arrow::array::Int64Array;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use aubade_catalog::{
    Action, AddSegments, NodeEntry, Quorum, RelationDefinition, RelationKind, RelationName, SegmentEntry,
    SegmentStatistics, Snapshot, StatisticsBuilder,
};
use aubade_proto::{ClusterId, Epoch, NodeId, RelationId, SegmentId, TransactionId, Version};
use uuid::Uuid;

pub(super) fn node_id(number: u128) -> NodeId {
    NodeId(Uuid::from_u128(number))
}

pub(super) fn segment_id(number: u128) -> SegmentId {
    SegmentId(Uuid::from_u128(number))
}

/// A cluster with nodes 1 to `nodes` in three zones, and a table with segments 1, 2 and so on, each with its
/// protection group and its holders.
pub(super) fn snapshot(nodes: u128, copies: u32, segments: &[(&[u128], &[u128])]) -> Snapshot {
    let (cluster, quorum) = (ClusterId(Uuid::nil()), Quorum::for_copies(copies).unwrap());
    let mut actions = vec![Action::CreateCluster { id: cluster, quorum }];
    actions.extend((1..=nodes).map(register));
    actions.extend(table(segments));
    Snapshot::empty(cluster, quorum).apply(Version(1), &actions).unwrap()
}

fn register(number: u128) -> Action {
    let (zone, address) = (format!("az{}", number % 3), format!("host{number}:7101"));
    Action::RegisterNode(NodeEntry { id: node_id(number), zone, address })
}

fn table(segments: &[(&[u128], &[u128])]) -> [Action; 2] {
    let schema: SchemaRef = Arc::new(Schema::new(vec![Field::new("k", DataType::Int64, true)]));
    let table = RelationId(Uuid::from_u128(50));
    let mut statistics = SegmentStatistics::empty(Arc::clone(&schema));
    for _ in segments {
        let batch = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(Int64Array::from(vec![1]))]).unwrap();
        let mut builder = StatisticsBuilder::new(Arc::clone(&schema));
        builder.update(&batch).unwrap();
        statistics = statistics.concat(&builder.finish(&[8]).unwrap()).unwrap();
    }
    let nodes = |numbers: &[u128]| numbers.iter().map(|number| node_id(*number)).collect();
    let entry = |(index, (intended, holders)): (usize, &(&[u128], &[u128]))| SegmentEntry {
        id: segment_id(index as u128 + 1),
        epoch: Epoch(1),
        transaction: TransactionId(Uuid::from_u128(99)),
        rows: 1,
        bytes: 100,
        sha256: [7; 32],
        intended: nodes(intended),
        holders: nodes(holders),
    };
    let segments = segments.iter().enumerate().map(entry).collect();
    let name = RelationName { schema: "public".to_owned(), name: "t".to_owned() };
    [
        Action::CreateRelation(RelationDefinition { id: table, name, kind: RelationKind::Table(schema) }),
        Action::AddSegments(AddSegments { table, segments, statistics }),
    ]
}
