//! What the benches share: TPC-H rows, a segment file of them, a storage node in memory, fragments
//! from SQL text, and a catalog with the eight tables.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use arrow::datatypes::{Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use aubade_catalog::snapshot::DEFAULT_SCHEMA;
use aubade_catalog::{
    Action, AddSegments, Quorum, RelationDefinition, RelationKind, RelationName, SegmentEntry, SegmentStatistics,
    Snapshot, StatisticsBuilder,
};
use aubade_environment::{Environment, MemoryFiles};
use aubade_proto::{
    CallHeader, ClusterId, Epoch, Fragment, NodeId, ProjectionColumn, RelationId, RequestId, SegmentDescription,
    SegmentId, TransactionId, Version,
};
use aubade_storage_node::{StorageNode, StorageNodeOptions};
use aubade_tpch::{Scale, TpchTable};
use bytes::Bytes;
use datafusion::common::DFSchema;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::prelude::SessionContext;
use futures::{StreamExt, TryStreamExt, stream};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use uuid::Uuid;

/// The filter of TPC-H q6.
pub const Q6_FILTER: &str = "l_shipdate >= DATE '1994-01-01' AND l_shipdate < DATE '1995-01-01' \
     AND l_discount BETWEEN 0.05 AND 0.07 AND l_quantity < 24";

/// The rows of a table at a scale.
///
/// # Errors
/// When the scale is out of bounds or the generator fails.
pub async fn rows_of(table: TpchTable, scale: f64) -> Result<Vec<RecordBatch>> {
    let parallelism = std::thread::available_parallelism().map_or(2, usize::from);
    Ok(table.stream(Scale::try_new(scale)?, parallelism).try_collect().await?)
}

/// A segment file of the rows, with row groups and pages of the size that the engine writes.
///
/// # Errors
/// When the rows cannot be encoded.
pub fn segment_file(batches: &[RecordBatch]) -> Result<Bytes> {
    let schema = batches.first().context("no rows")?.schema();
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_max_row_group_row_count(Some(1 << 17))
        .set_data_page_row_count_limit(20_000)
        .build();
    let mut writer = ArrowWriter::try_new(Vec::new(), schema, Some(properties))?;
    for batch in batches {
        writer.write(batch)?;
    }
    Ok(writer.into_inner()?.into())
}

/// A header as a coordinator would send it.
pub fn header() -> CallHeader {
    CallHeader {
        request_id: RequestId(Uuid::from_u128(1)),
        cluster_id: cluster_id(),
        epoch: Epoch(1),
        snapshot_version: Version(1),
        timeout: Duration::from_secs(600),
    }
}

fn cluster_id() -> ClusterId {
    ClusterId(Uuid::from_u128(7))
}

/// The id of the only segment.
pub fn segment_id() -> SegmentId {
    SegmentId(Uuid::from_u128(11))
}

/// A storage node in memory that holds `file` as its only segment.
///
/// # Errors
/// When the node refuses it.
pub async fn node_with(file: Bytes) -> Result<StorageNode> {
    let environment = Environment::system().with_files(Arc::new(MemoryFiles::default()));
    let node = StorageNode::open(environment, cluster_id(), StorageNodeOptions::new("/node", "az1")).await?;
    let digest = ring::digest::digest(&ring::digest::SHA256, &file);
    let description = SegmentDescription {
        segment_id: segment_id(),
        epoch: Epoch(1),
        transaction_id: TransactionId(Uuid::from_u128(13)),
        bytes: file.len() as u64,
        sha256: digest.as_ref().try_into()?,
    };
    let chunks: Vec<_> =
        (0..file.len()).step_by(1 << 20).map(|at| Ok(file.slice(at..file.len().min(at + (1 << 20))))).collect();
    node.put_segment(&header(), &description, stream::iter(chunks).boxed()).await?;
    Ok(node)
}

/// The physical form of an SQL expression over `schema`.
///
/// # Errors
/// When it does not fit the schema.
pub fn expression(schema: &SchemaRef, sql: &str) -> Result<Arc<dyn PhysicalExpr>> {
    let context = SessionContext::new();
    let named = DFSchema::try_from(Schema::clone(schema))?;
    let expression = context.parse_sql_expr(sql, &named)?;
    Ok(context.create_physical_expr(expression, &named)?)
}

/// A fragment over some columns of `schema`, with SQL texts for its filter and outputs.
///
/// # Errors
/// When a text does not fit the schema.
pub fn fragment(schema: &Schema, columns: &[&str], filter: Option<&str>, outputs: &[&str]) -> Result<Fragment> {
    let indices = columns.iter().map(|column| schema.index_of(column)).collect::<Result<Vec<_>, _>>()?;
    let scan_schema = Arc::new(schema.project(&indices)?);
    let filter = filter.map(|sql| expression(&scan_schema, sql)).transpose()?;
    let projection = outputs
        .iter()
        .map(|sql| Ok(ProjectionColumn { expression: expression(&scan_schema, sql)?, name: (*sql).to_owned() }));
    let projection = projection.collect::<Result<Vec<_>>>()?;
    Ok(Fragment::try_new(scan_schema, filter, projection, None)?)
}

/// Statistics of one segment with these rows.
///
/// # Errors
/// When a type has no statistics.
pub fn statistics_of(batches: &[RecordBatch]) -> Result<SegmentStatistics> {
    let schema = batches.first().context("no rows")?.schema();
    let mut builder = StatisticsBuilder::new(Arc::clone(&schema));
    for batch in batches {
        builder.update(batch)?;
    }
    Ok(builder.finish(&vec![1000; schema.fields().len()])?)
}

/// A catalog with the eight tables of TPC-H, each one segment at a scale: enough to plan with.
///
/// # Errors
/// When the catalog refuses an action.
pub async fn tpch_snapshot(scale: f64) -> Result<Snapshot> {
    let mut actions = Vec::new();
    for (number, table) in TpchTable::ALL.into_iter().enumerate() {
        let batches = rows_of(table, scale).await?;
        let id = RelationId(Uuid::from_u128(100 + number as u128));
        let name = RelationName { schema: DEFAULT_SCHEMA.to_owned(), name: table.name().to_owned() };
        let kind = RelationKind::Table(table.schema());
        actions.push(Action::CreateRelation(RelationDefinition { id, name, kind }));
        let node = NodeId(Uuid::from_u128(1));
        let segment = SegmentEntry {
            id: SegmentId(Uuid::from_u128(200 + number as u128)),
            epoch: Epoch(0),
            transaction: TransactionId(Uuid::from_u128(13)),
            rows: batches.iter().map(|batch| batch.num_rows() as u64).sum(),
            bytes: 1000,
            sha256: [0; 32],
            intended: vec![node],
            holders: vec![node],
        };
        let statistics = statistics_of(&batches)?;
        actions.push(Action::AddSegments(AddSegments { table: id, segments: vec![segment], statistics }));
    }
    let empty = Snapshot::empty(cluster_id(), Quorum::for_copies(1)?);
    Ok(empty.apply(Version(1), &actions)?)
}
