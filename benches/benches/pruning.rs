//! Pruning of a table with 100,000 segments by their statistics.

use std::sync::Arc;

use anyhow::Result;
use arrow::array::{Date32Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use aubade_benches::{expression, statistics_of};
use aubade_catalog::SegmentStatistics;
use aubade_planner::prune::prune_segments;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const SEGMENTS: i64 = 100_000;

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("day", DataType::Date32, false),
        Field::new("name", DataType::Utf8, true),
    ]))
}

/// The smallest and the largest row of segment `number`: ids ascend, days repeat every thousand.
fn segment(number: i64) -> Result<SegmentStatistics> {
    let first = number * 1_000_000;
    let day = i32::try_from(number % 1000)?;
    let columns: Vec<arrow::array::ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![first, first + 999_999])),
        Arc::new(Date32Array::from(vec![day, day + 1])),
        Arc::new(StringArray::from(vec![Some(format!("name {number:06}")), None])),
    ];
    statistics_of(&[RecordBatch::try_new(schema(), columns)?])
}

/// Statistics of many segments, put together pair by pair.
fn statistics() -> Result<SegmentStatistics> {
    let mut parts = (0..SEGMENTS).map(segment).collect::<Result<Vec<_>>>()?;
    while parts.len() > 1 {
        let pairs = parts.chunks(2).map(|pair| match pair {
            [left, right] => left.concat(right),
            rest => Ok(rest[0].clone()),
        });
        parts = pairs.collect::<aubade_proto::Result<Vec<_>>>()?;
    }
    Ok(parts.remove(0))
}

fn bench(criterion: &mut Criterion) {
    let statistics = statistics().expect("the statistics can be made");
    let schema = schema();
    let mut group = criterion.benchmark_group("pruning");
    group.throughput(Throughput::Elements(SEGMENTS as u64)).sample_size(20);
    let filters = [
        ("one id", "id = 42000000123", 1),
        ("a range of days", "day >= DATE '1970-01-11' AND day < DATE '1970-01-21'", 1100),
        ("a name or an id", "name = 'name 000777' OR id < 5000000", 6),
        ("nothing ruled out", "id >= 0", 100_000),
    ];
    for (name, sql, kept) in filters {
        let filter = expression(&schema, sql).expect("the filter fits");
        assert_eq!(prune_segments(&statistics, &schema, Some(&filter)).len(), kept, "{sql}");
        group.bench_function(name, |bencher| bencher.iter(|| prune_segments(&statistics, &schema, Some(&filter))));
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
