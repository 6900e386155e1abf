//! From SQL text to a physical plan with its fragments, for the queries of TPC-H.

use std::sync::Arc;

use aubade_benches::tpch_snapshot;
use aubade_planner::Planner;
use aubade_tpch::QUERIES;
use criterion::{Criterion, criterion_group, criterion_main};
use tokio::runtime::Runtime;

fn bench(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime can be made");
    let snapshot = runtime.block_on(tpch_snapshot(0.01)).expect("the catalog takes the tables");
    let planner = Planner::new(Arc::new(snapshot));
    let plan = |sql: &'static str| {
        let planner = &planner;
        async move { planner.plan(sql).await.expect("the query can be planned") }
    };
    let mut group = criterion.benchmark_group("planning");
    group.sample_size(20);
    // One scan; a join of three; the widest join; the deepest nesting.
    for query in QUERIES.iter().filter(|query| [6, 3, 8, 21].contains(&query.number)) {
        group.bench_function(query.name(), |bencher| bencher.to_async(&runtime).iter(|| plan(query.sql)));
    }
    group.bench_function("all 22", |bencher| {
        bencher.to_async(&runtime).iter(|| async {
            for query in &QUERIES {
                plan(query.sql).await;
            }
        });
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
