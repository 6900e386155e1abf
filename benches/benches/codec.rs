//! Between memory and wire: scan replies (Arrow IPC) and fragments (protobuf), there and back.

use aubade_benches::{Q6_FILTER, fragment, rows_of};
use aubade_proto::convert::{ScanDecoder, ScanEncoder, decode_fragment, encode_fragment};
use aubade_proto::{ScanEvent, wire};
use aubade_tpch::TpchTable;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use datafusion::execution::TaskContext;
use tokio::runtime::Runtime;

fn replies(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime can be made");
    let batches = runtime.block_on(rows_of(TpchTable::LineItem, 0.01)).expect("lineitem can be generated");
    let batch = batches.into_iter().next().expect("lineitem has rows");
    let schema = batch.schema();
    let rows = batch.num_rows() as u64;
    let event = ScanEvent::Batch { segment_index: 0, batch, rows_through: rows, wire_bytes: 0 };
    let encode = || -> Vec<wire::storage::ScanReply> {
        let mut encoder = ScanEncoder::new(&schema).expect("the schema has a wire form");
        encoder.encode(&event).expect("the batch has a wire form")
    };
    let encoded = encode();
    let mut group = criterion.benchmark_group("scan reply");
    group.throughput(Throughput::Elements(rows));
    group.bench_function("encode", |bencher| bencher.iter(encode));
    group.bench_function("decode", |bencher| {
        bencher.iter(|| {
            let mut decoder = ScanDecoder::new(schema.clone()).expect("the schema has a wire form");
            let events = encoded.iter().cloned().filter_map(|reply| decoder.decode(reply).expect("it decodes"));
            events.count()
        });
    });
    group.finish();
}

fn fragments(criterion: &mut Criterion) {
    let schema = TpchTable::LineItem.schema();
    let columns = ["l_shipdate", "l_discount", "l_quantity", "l_extendedprice"];
    let q6 = fragment(&schema, &columns, Some(Q6_FILTER), &["l_extendedprice * l_discount"]).expect("q6 fits lineitem");
    let functions = TaskContext::default();
    let encoded = encode_fragment(&q6).expect("q6 has a wire form");
    let mut group = criterion.benchmark_group("fragment");
    group.bench_function("encode", |bencher| bencher.iter(|| encode_fragment(&q6).expect("q6 has a wire form")));
    group.bench_function("decode", |bencher| {
        bencher.iter(|| decode_fragment(&encoded, &functions).expect("it decodes"));
    });
    group.finish();
}

criterion_group!(benches, replies, fragments);
criterion_main!(benches);
