//! The schema `system`: what the coordinator tells of itself, as it is when a query is planned.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::json::ReaderBuilder;
use arrow::record_batch::RecordBatch;
use aubade_proto::{Error, Result};
use datafusion::catalog::{MemTable, TableProvider};
use datafusion::error::DataFusionError;
use serde::Serialize;

use crate::buffer_pool::{BufferPoolLine, DiskFigures};
use crate::engine::Engine;
use crate::query::Metric;

/// The tables, in the order of their names.
pub(crate) const TABLES: &[&str] = &["buffer_pool", "metrics", "plan_cache", "queries"];

/// A table of the schema, if there is one of that name.
pub(crate) fn table(engine: &Engine, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
    let rows = match name {
        "buffer_pool" => rows(buffer_pool_schema(), &buffer_pool(engine))?,
        "metrics" => rows(metrics_schema(), &metrics(engine))?,
        "plan_cache" => rows(plan_cache_schema(), &engine.plans().lines(&engine.template().settings))?,
        "queries" => rows(queries_schema(), &engine.queries().recent())?,
        _ => return Ok(None),
    };
    let table = MemTable::try_new(rows.schema(), vec![vec![rows]]).map_err(Error::from_datafusion)?;
    Ok(Some(Arc::new(table)))
}

/// All counters and gauges.
fn metrics(engine: &Engine) -> Vec<Metric> {
    let mut metrics = engine.queries().metrics();
    let pool = &engine.runtime().memory_pool;
    let limit = engine.options().memory_limit_bytes();
    let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    metrics.push(Metric::new("memory_limit_bytes", count(limit), "memory that queries may use together"));
    metrics.push(Metric::new("memory_reserved_bytes", count(pool.reserved()), "memory that queries use now"));
    metrics.push(Metric::new("plan_cache_misses", engine.plans().misses(), "queries whose plan was not kept yet"));
    if let Some(results) = engine.results() {
        let (bytes, count) = (results.bytes(), results.count());
        metrics.push(Metric::new("fragment_cache_bytes", bytes, "memory that kept results of fragments take"));
        metrics.push(Metric::new("fragment_cache_results", count, "results of fragments that are kept"));
    }
    if let Some(pool) = engine.cluster().buffer_pool() {
        let (bytes_max, bytes) = (count(pool.bytes_max()), count(pool.bytes()));
        let for_results = engine.options().buffer_pool_bytes.saturating_sub(bytes_max);
        metrics.push(Metric::new(
            "buffer_pool_limit_bytes",
            bytes_max,
            "memory that decoded columns may take: the buffer pool less what is for results",
        ));
        metrics.push(Metric::new(
            "buffer_pool_results_limit_bytes",
            for_results,
            "memory of the buffer pool that results of fragments over its columns may take, a sixteenth of it",
        ));
        metrics.push(Metric::new("buffer_pool_bytes", bytes, "memory that decoded columns take now"));
        let lent = count(pool.lent_bytes());
        metrics.push(Metric::new(
            "buffer_pool_lent_bytes",
            lent,
            "memory of the buffer pool that queries have borrowed",
        ));
        metrics.extend(pool.disk().into_iter().flat_map(|disk| disk_metrics(disk.bytes_max(), disk.figures())));
    }
    for member in engine.cluster().members() {
        let label = Some(member.entry.address.clone());
        let alive = u64::from(member.is_alive() && !member.is_stalled());
        let requests = count(member.active_requests());
        metrics.extend([
            Metric { name: "node_up", label: label.clone(), value: alive, description: "1: the storage node answers" },
            Metric {
                name: "node_scan_cpu_micros",
                label: label.clone(),
                value: member.info().map_or(0, |info| info.scan_cpu_micros),
                description: "time that scans have spent on the node's CPU pool, as it last said, microseconds",
            },
            Metric { name: "node_requests", label, value: requests, description: "requests that it is busy with" },
        ]);
    }
    metrics
}

/// Of the second tier of the buffer pool.
fn disk_metrics(bytes_max: u64, figures: DiskFigures) -> [Metric; 7] {
    [
        Metric::new("buffer_pool_disk_limit_bytes", bytes_max, "disk that blocks of segments may take"),
        Metric::new("buffer_pool_disk_bytes", figures.bytes, "disk that blocks of segments take now"),
        Metric::new("buffer_pool_disk_hits", figures.hits, "blocks that were read from the disk of the buffer pool"),
        Metric::new(
            "buffer_pool_disk_misses",
            figures.misses,
            "blocks that were not there, and fetched from storage nodes",
        ),
        Metric::new(
            "buffer_pool_disk_damaged",
            figures.damaged,
            "files of it that were not as they were written, and dropped",
        ),
        Metric::new("buffer_pool_disk_failed_writes", figures.failed_writes, "files of it that could not be written"),
        Metric::new(
            "buffer_pool_disk_too_large",
            figures.too_large,
            "loads that are not kept there, since they are larger than all that it may take",
        ),
    ]
}

fn metrics_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("name", DataType::Utf8View, false),
        Field::new("label", DataType::Utf8View, true),
        Field::new("value", DataType::UInt64, false),
        Field::new("description", DataType::Utf8View, false),
    ]))
}

/// What the buffer pool holds of the tables of the newest version.
fn buffer_pool(engine: &Engine) -> Vec<BufferPoolLine> {
    let snapshot = engine.manifest().snapshot();
    let names = snapshot.relations.iter().map(|(name, relation)| (relation.id(), name.clone())).collect();
    engine.cluster().buffer_pool().map(|pool| pool.lines(&names)).unwrap_or_default()
}

/// The fields of [`BufferPoolLine`].
fn buffer_pool_schema() -> SchemaRef {
    let text = |name: &str| Field::new(name, DataType::Utf8View, false);
    let number = |name: &str| Field::new(name, DataType::UInt64, false);
    Arc::new(Schema::new(vec![
        text("schema_name"),
        text("table_name"),
        text("column_name"),
        number("segments"),
        number("dictionaries"),
        number("bytes"),
        Field::new("pinned", DataType::Boolean, false),
        number("hits"),
        number("misses"),
        number("saved_micros"),
    ]))
}

/// The fields of [`crate::plan_cache::PlanCacheLine`].
fn plan_cache_schema() -> SchemaRef {
    let text = |name: &str| Field::new(name, DataType::Utf8View, false);
    let number = |name: &str| Field::new(name, DataType::UInt64, false);
    Arc::new(Schema::new(vec![
        text("sql"),
        text("key"),
        text("key_digest"),
        number("schema_version"),
        number("parameters"),
        text("parameter_values"),
        text("settings"),
        number("lifted"),
        number("hits"),
        number("template_hits"),
        number("planning_micros"),
        number("saved_micros"),
    ]))
}

/// The fields of [`crate::QueryRecord`].
fn queries_schema() -> SchemaRef {
    let text = |name: &str, nullable| Field::new(name, DataType::Utf8View, nullable);
    let number = |name: &&str| Field::new(*name, DataType::UInt64, false);
    let mut fields = vec![
        text("query_id", false),
        text("session_id", false),
        text("sql", false),
        text("state", false),
        text("error", true),
    ];
    let numbers = [
        "start_unix_millis",
        "planning_micros",
        "total_micros",
        "rows",
        "segments_total",
        "segments_pruned",
        "segments_scanned",
        "segments_kept",
        "segments_pooled",
        "row_groups",
        "row_groups_pruned",
        "rows_pruned_pages",
        "pages_pruned",
        "rows_in",
        "rows_out",
        "bytes_read",
        "bytes_wire",
        "requests",
        "retries",
        "pushbacks",
        "segments_fetched",
        "hedges",
        "storage_cpu_micros",
    ];
    fields.extend(numbers.iter().map(number));
    fields.push(Field::new("plan_cache_hit", DataType::Boolean, false));
    fields.push(Field::new("replicas", DataType::new_list(DataType::Utf8View, true), false));
    Arc::new(Schema::new(fields))
}

/// Rows from what serde makes of `records`; their fields have the names of the columns.
fn rows<T: Serialize>(schema: SchemaRef, records: &[T]) -> Result<RecordBatch> {
    let failed = |error: arrow::error::ArrowError| Error::from_datafusion(DataFusionError::from(error));
    let builder = ReaderBuilder::new(Arc::clone(&schema)).with_batch_size(records.len().max(1)).with_strict_mode(true);
    let mut decoder = builder.build_decoder().map_err(failed)?;
    decoder.serialize(records).map_err(failed)?;
    Ok(decoder.flush().map_err(failed)?.unwrap_or_else(|| RecordBatch::new_empty(schema)))
}
