//! Scans of one segment by a storage node in memory: pruning, decoding, filtering, projecting.

use std::sync::Arc;

use anyhow::{Context, Result};
use arrow::array::{ArrayRef, Int64Array};
use arrow::compute::SortOptions;
use aubade_benches::{Q6_FILTER, fragment, header, node_with, rows_of, segment_file, segment_id};
use aubade_proto::{Fragment, KeySet, Membership, Reduction, ScanEvent, ScanRequest, SegmentScan};
use aubade_storage_node::StorageNode;
use aubade_tpch::TpchTable;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use datafusion::functions_aggregate::count::count_udaf;
use datafusion::functions_aggregate::sum::sum_udaf;
use datafusion::physical_expr::aggregate::AggregateExprBuilder;
use datafusion::physical_expr::expressions::col;
use datafusion::physical_expr::{LexOrdering, PhysicalSortExpr};
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode, PhysicalGroupBy};
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use futures::TryStreamExt;
use tokio::runtime::Runtime;

/// About 600,000 rows: a little more than half a segment.
const SCALE: f64 = 0.1;

const DATES: &str = "l_shipdate >= DATE '1995-09-01' AND l_shipdate < DATE '1995-10-01'";
const TEXTS: &str = "l_shipmode IN ('MAIL', 'SHIP') AND l_comment LIKE '%special%' \
     AND l_receiptdate >= DATE '1994-01-01' AND l_receiptdate < DATE '1995-01-01'";

/// Rows that come out.
async fn scan(node: &StorageNode, fragment: &Arc<Fragment>) -> Result<usize> {
    let request = ScanRequest {
        may_push_back: false,
        may_keep_results: false,
        plain_columns: false,
        header: header(),
        segments: vec![SegmentScan { segment_id: segment_id(), skip_rows: 0 }],
        fragment: Arc::clone(fragment),
        batch_rows: 8192,
    };
    let mut events = node.scan(request).await?;
    let mut rows = 0;
    while let Some(event) = events.try_next().await? {
        match event {
            ScanEvent::Batch { batch, .. } | ScanEvent::Merged { batch, .. } => rows += batch.num_rows(),
            ScanEvent::SegmentDone { .. } | ScanEvent::MergedDone { .. } => {}
            ScanEvent::SegmentFailed { error, .. } => return Err(error.into()),
        }
    }
    Ok(rows)
}

/// Sums and a count of the last column by the others.
fn sums(fragment: &Fragment) -> Result<Fragment> {
    let schema = fragment.projected_schema();
    let (value, keys) = schema.fields().split_last().context("no columns")?;
    let argument = || Ok::<_, anyhow::Error>(vec![col(value.name(), schema)?]);
    let aggregate = |function, name: &str| {
        let builder = AggregateExprBuilder::new(function, argument()?).schema(Arc::clone(schema)).alias(name);
        Ok::<_, anyhow::Error>(Arc::new(builder.build()?))
    };
    let aggregates = vec![aggregate(sum_udaf(), "sum")?, aggregate(count_udaf(), "count")?];
    let keys = keys.iter().map(|key| Ok((col(key.name(), schema)?, key.name().clone()))).collect::<Result<Vec<_>>>()?;
    let input = Arc::new(EmptyExec::new(Arc::clone(schema)));
    let (group, filters) = (PhysicalGroupBy::new_single(keys), vec![None; aggregates.len()]);
    let plan = AggregateExec::try_new(AggregateMode::Partial, group, aggregates, filters, input, Arc::clone(schema))?;
    Ok(fragment.with_reduction(Reduction::aggregate(&plan)?)?)
}

/// The ten rows with the largest first column.
fn largest(fragment: &Fragment) -> Result<Fragment> {
    let schema = fragment.projected_schema();
    let first = schema.fields().first().context("no columns")?;
    let order = PhysicalSortExpr::new(col(first.name(), schema)?, SortOptions::new(true, false));
    let order = LexOrdering::new([order]).context("no order")?;
    let sort = SortExec::new(order, Arc::new(EmptyExec::new(Arc::clone(schema)))).with_fetch(Some(10));
    Ok(fragment.with_reduction(Reduction::top_k(&sort)?)?)
}

/// Rows whose key is one of every 50.
fn member(fragment: &Fragment, key: &str) -> Result<Fragment> {
    let keys: ArrayRef = Arc::new(Int64Array::from_iter_values((0..20_000).map(|key| key * 50)));
    let set = KeySet::build(&[keys])?.context("numbers make a set")?;
    let membership = Membership::new(col(key, fragment.scan_schema())?, set);
    Ok(fragment.with_more_filters(vec![Arc::new(membership)])?)
}

fn fragments() -> Result<[(&'static str, Arc<Fragment>); 10]> {
    let schema = TpchTable::LineItem.schema();
    let q6 = ["l_shipdate", "l_discount", "l_quantity", "l_extendedprice"];
    let all: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let few = ["l_returnflag", "l_linestatus", "l_quantity"];
    let per_order = ["l_orderkey", "l_quantity"];
    let mut by_price = all.clone();
    by_price.sort_by_key(|name| *name != "l_extendedprice");
    let parts = ["l_partkey", "l_shipdate", "l_extendedprice", "l_discount"];
    let texts = ["l_orderkey", "l_shipdate", "l_receiptdate", "l_shipmode", "l_comment"];
    let fragments = [
        ("q6", fragment(&schema, &q6, Some(Q6_FILTER), &["l_extendedprice * l_discount"])?),
        ("one key", fragment(&schema, &["l_orderkey", "l_comment"], Some("l_orderkey = 300000"), &["l_comment"])?),
        ("four columns", fragment(&schema, &q6, None, &q6)?),
        ("all columns", fragment(&schema, &all, None, &all)?),
        ("four groups", sums(&fragment(&schema, &few, None, &few)?)?),
        ("a group per order", sums(&fragment(&schema, &per_order, None, &per_order)?)?),
        ("ten rows of all columns", largest(&fragment(&schema, &by_price, None, &by_price)?)?),
        ("keys", member(&fragment(&schema, &parts, None, &parts)?, "l_partkey")?),
        ("keys and dates", member(&fragment(&schema, &parts, Some(DATES), &parts)?, "l_partkey")?),
        ("texts and dates", fragment(&schema, &texts, Some(TEXTS), &["l_orderkey", "l_comment"])?),
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
