//! Scans of one segment by a storage node in memory: pruning, decoding, filtering, projecting.

use std::sync::Arc;

use anyhow::Result;
use aubade_benches::{Q6_FILTER, fragment, header, node_with, rows_of, segment_file, segment_id};
use aubade_proto::{Fragment, ScanEvent, ScanRequest, SegmentScan};
use aubade_storage_node::StorageNode;
use aubade_tpch::TpchTable;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures::TryStreamExt;
use tokio::runtime::Runtime;

/// About 600,000 rows: a little more than half a segment.
const SCALE: f64 = 0.1;

/// Rows that come out.
async fn scan(node: &StorageNode, fragment: &Arc<Fragment>) -> Result<usize> {
    let request = ScanRequest {
        header: header(),
        segments: vec![SegmentScan { segment_id: segment_id(), skip_rows: 0 }],
        fragment: Arc::clone(fragment),
        batch_rows: 8192,
    };
    let mut events = node.scan(request).await?;
    let mut rows = 0;
    while let Some(event) = events.try_next().await? {
        match event {
            ScanEvent::Batch { batch, .. } => rows += batch.num_rows(),
            ScanEvent::SegmentDone { .. } => {}
            ScanEvent::SegmentFailed { error, .. } => return Err(error.into()),
        }
    }
    Ok(rows)
}

fn fragments() -> Result<[(&'static str, Arc<Fragment>); 4]> {
    let schema = TpchTable::LineItem.schema();
    let q6 = ["l_shipdate", "l_discount", "l_quantity", "l_extendedprice"];
    let all: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let fragments = [
        ("q6", fragment(&schema, &q6, Some(Q6_FILTER), &["l_extendedprice * l_discount"])?),
        ("one key", fragment(&schema, &["l_orderkey", "l_comment"], Some("l_orderkey = 300000"), &["l_comment"])?),
        ("four columns", fragment(&schema, &q6, None, &q6)?),
        ("all columns", fragment(&schema, &all, None, &all)?),
    ];
    Ok(fragments.map(|(name, fragment)| (name, Arc::new(fragment))))
}

fn bench(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime can be made");
    let (node, row_count) = runtime
        .block_on(async {
            let batches = rows_of(TpchTable::LineItem, SCALE).await?;
            let row_count: usize = batches.iter().map(|batch| batch.num_rows()).sum();
            anyhow::Ok((node_with(segment_file(&batches)?).await?, row_count))
        })
        .expect("the segment can be stored");
    let mut group = criterion.benchmark_group("scan");
    group.throughput(Throughput::Elements(row_count as u64)).sample_size(20);
    for (name, fragment) in fragments().expect("the fragments fit lineitem") {
        group.bench_function(name, |bencher| {
            bencher.to_async(&runtime).iter(|| async { scan(&node, &fragment).await.expect("the scan succeeds") });
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
