//! Builders for the tests of this crate.

use std::sync::Arc;

use arrow::array::Int64Array;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use aubade_proto::{Epoch, NodeId, RelationId, SegmentId, TransactionId};
use uuid::Uuid;

use crate::action::{Action, AddSegments, RelationDefinition, RelationKind};
use crate::segment::SegmentEntry;
use crate::snapshot::{DEFAULT_SCHEMA, RelationName};
use crate::statistics::{SegmentStatistics, StatisticsBuilder};

/// A segment of one row.
pub(crate) fn segment(id: SegmentId, intended: &[NodeId], holders: &[NodeId]) -> SegmentEntry {
    SegmentEntry {
        id,
        epoch: Epoch(1),
        transaction: TransactionId(Uuid::from_u128(99)),
        rows: 1,
        bytes: 100,
        sha256: [7; 32],
        intended: intended.to_vec(),
        holders: holders.to_vec(),
    }
}

/// A table with one column, made and filled.
pub(crate) fn table_with(id: RelationId, name: &str, segments: Vec<SegmentEntry>) -> [Action; 2] {
    let schema: SchemaRef = Arc::new(Schema::new(vec![Field::new("k", DataType::Int64, true)]));
    let mut statistics = SegmentStatistics::empty(Arc::clone(&schema));
    for _ in &segments {
        let batch = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(Int64Array::from(vec![1]))]).unwrap();
        let mut builder = StatisticsBuilder::new(Arc::clone(&schema));
        builder.update(&batch).unwrap();
        statistics = statistics.concat(&builder.finish(&[8]).unwrap()).unwrap();
    }
    let name = RelationName { schema: DEFAULT_SCHEMA.to_owned(), name: name.to_owned() };
    [
        Action::CreateRelation(RelationDefinition { id, name, kind: RelationKind::Table(schema) }),
        Action::AddSegments(AddSegments { table: id, segments, statistics }),
    ]
}
