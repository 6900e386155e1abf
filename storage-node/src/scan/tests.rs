//! Scans against plain evaluation of the same fragment in memory.

mod filters;
mod packed;
mod reduction;

use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch, RecordBatchOptions};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use aubade_proto::{ErrorCode, Fragment, ProjectionColumn, ScanRequest};
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{binary, col, like, lit};
use datafusion::scalar::ScalarValue;
use futures::stream::StreamExt;
use tokio::sync::OnceCell;

use crate::decoded::DecodedSegment;
use crate::node::StorageNode;
use crate::options::StorageNodeOptions;
use crate::testing::{
    CLUSTER, Scanned, decoded, fragment, memory_environment, node, parquet, put, rows, scan, scan_decoded, scan_request,
};

type Expression = Arc<dyn PhysicalExpr>;

/// Rows of the segment that most tests scan: three row groups, the last one short.
const ROWS: i64 = 25_000;
/// These rows in memory.
static DECODED: OnceCell<DecodedSegment> = OnceCell::const_new();

fn schema() -> SchemaRef {
    rows(0, 0).schema()
}

fn compare(column: &str, operator: Operator, value: impl Into<ScalarValue>) -> Expression {
    binary(col(column, &schema()).unwrap(), operator, lit(value.into()), &schema()).unwrap()
}

fn and(left: Expression, right: Expression) -> Expression {
    binary(left, Operator::And, right, &schema()).unwrap()
}

fn text(value: &str) -> ScalarValue {
    ScalarValue::Utf8View(Some(value.to_owned()))
}

fn comment_like(pattern: &str) -> Expression {
    like(false, false, col("comment", &schema()).unwrap(), lit(text(pattern)), &schema()).unwrap()
}

async fn node_with_rows() -> StorageNode {
    let node = node(&memory_environment()).await;
    put(&node, 1, &parquet(&rows(0, ROWS))).await;
    node
}

/// What `fragment` yields over `batch`, evaluated without any of this crate.
fn plain(fragment: &Fragment, batch: &RecordBatch) -> RecordBatch {
    let kept = match fragment.filter() {
        None => batch.clone(),
        Some(filter) => {
            let mask = filter.evaluate(batch).unwrap().into_array(batch.num_rows()).unwrap();
            filter_record_batch(batch, mask.as_boolean()).unwrap()
        }
    };
    let columns = fragment.projection().iter();
    let columns = columns.map(|column| column.expression.evaluate(&kept).unwrap().into_array(kept.num_rows()).unwrap());
    let options = RecordBatchOptions::new().with_row_count(Some(kept.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(fragment.output_schema()), columns.collect(), &options).unwrap()
}

async fn check(filter: Option<Expression>, output: &[&str]) -> Scanned {
    let node = node_with_rows().await;
    let fragment = fragment(&schema(), filter, output, None);
    let scanned = scan(&node, scan_request(Arc::clone(&fragment), &[(1, 0)])).await.unwrap();
    let expected = plain(&fragment, &rows(0, ROWS));
    let found = concat_batches(fragment.output_schema(), &scanned.rows_of(0)).unwrap();
    assert_eq!(found, expected);
    assert_eq!(scanned.row_count(), expected.num_rows());
    assert_eq!(scanned.statistics.rows_out, expected.num_rows() as u64);
    assert_eq!(scanned.done, [0]);
    let decoded = DECODED.get_or_init(|| async { decoded(1, &rows(0, ROWS)).await }).await.clone();
    let in_memory = scan_decoded(vec![decoded], scan_request(fragment, &[(1, 0)])).await.unwrap();
    assert_eq!(concat_batches(&expected.schema(), &in_memory.rows_of(0)).unwrap(), expected);
    scanned
}

#[tokio::test]
async fn all_rows_come_in_the_order_of_the_file() {
    let scanned = check(None, &["id", "key", "price", "kind", "comment"]).await;
    assert_eq!(scanned.statistics.rows_in, ROWS as u64);
    assert_eq!(scanned.batches.last().unwrap().2, ROWS as u64);
}

#[tokio::test]
async fn every_kind_of_filter_equals_plain_evaluation() {
    let narrow = || compare("key", Operator::Lt, 20_i64);
    let filters = [
        narrow(),
        compare("key", Operator::GtEq, 0_i64),
        compare("kind", Operator::Eq, text("mid")),
        and(narrow(), comment_like("%7%")),
        and(comment_like("%7%"), narrow()),
        and(compare("price", Operator::Gt, 100.0), compare("price", Operator::LtEq, 2_000.0)),
        and(compare("key", Operator::Eq, -1_i64), comment_like("%")),
        lit(true),
        lit(false),
    ];
    for filter in filters {
        for output in [&["id", "comment"][..], &["key"], &["kind", "id"], &["comment", "kind", "key"], &[]] {
            check(Some(Arc::clone(&filter)), output).await;
        }
    }
}

#[tokio::test]
async fn no_columns_still_count_rows() {
    let scanned = check(None, &[]).await;
    assert_eq!(scanned.row_count(), ROWS as usize);
}

#[tokio::test]
async fn expressions_are_computed_and_named() {
    let node = node_with_rows().await;
    let double =
        binary(col("id", &schema()).unwrap(), Operator::Plus, col("id", &schema()).unwrap(), &schema()).unwrap();
    let projection = vec![ProjectionColumn { expression: double, name: "twice".to_owned() }];
    let filter = compare("id", Operator::Lt, 10_i64);
    let fragment = Arc::new(Fragment::try_new(schema(), Some(filter), projection, None).unwrap());
    let scanned = scan(&node, scan_request(Arc::clone(&fragment), &[(1, 0)])).await.unwrap();
    assert_eq!(scanned.rows_of(0), [plain(&fragment, &rows(0, 10))]);
    assert_eq!(scanned.rows_of(0)[0].schema().field(0).name(), "twice");
}

#[tokio::test]
async fn row_groups_and_pages_are_pruned() {
    let scanned = check(Some(compare("id", Operator::Lt, 1_500_i64)), &["comment"]).await;
    let statistics = scanned.statistics;
    assert_eq!((statistics.row_groups, statistics.row_groups_pruned_statistics), (3, 2));
    assert_eq!((statistics.rows_pruned_pages, statistics.rows_in), (8_000, 2_000));
    // Of five columns.
    assert_eq!(statistics.pages_pruned, 40);
}

#[tokio::test]
async fn row_groups_are_pruned_by_bloom_filters() {
    let node = node(&memory_environment()).await;
    let odd = {
        let all = rows(0, 20_000);
        let ids = all.column(0).as_primitive::<Int64Type>().unary::<_, Int64Type>(|id| id * 2 + 1);
        let mut columns = all.columns().to_vec();
        columns[0] = Arc::new(ids);
        RecordBatch::try_new(all.schema(), columns).unwrap()
    };
    put(&node, 1, &parquet(&odd)).await;
    let request =
        scan_request(fragment(&schema(), Some(compare("id", Operator::Eq, 5_000_i64)), &["id"], None), &[(1, 0)]);
    let statistics = scan(&node, request).await.unwrap().statistics;
    assert_eq!((statistics.row_groups_pruned_statistics, statistics.row_groups_pruned_bloom), (1, 1));
    assert_eq!(statistics.rows_in, 0);
}

#[tokio::test]
async fn late_columns_are_read_only_where_rows_passed() {
    let all = check(None, &["id", "comment"]).await.statistics.bytes_read;
    // Statistics say nothing about a remainder, so only late materialisation can spare pages.
    let remainder = binary(col("id", &schema()).unwrap(), Operator::Modulo, lit(ROWS), &schema()).unwrap();
    let filter = binary(remainder, Operator::Lt, lit(500_i64), &schema()).unwrap();
    let few = check(Some(filter), &["comment"]).await.statistics;
    assert_eq!((few.row_groups_pruned_statistics, few.rows_pruned_pages, few.rows_in), (0, 0, ROWS as u64));
    assert!(few.bytes_read * 4 < all * 3, "{} of {all}", few.bytes_read);
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_larger_than_the_memory_of_a_scan_run_one_by_one() {
    let options = StorageNodeOptions { scan_memory_bytes: 1, ..StorageNodeOptions::new("/data", "az1") };
    let node = StorageNode::open(memory_environment(), CLUSTER, options).await.unwrap();
    put(&node, 1, &parquet(&rows(0, ROWS))).await;
    let request = scan_request(fragment(&schema(), None, &["id"], None), &[(1, 0), (1, 0), (1, 0), (1, 0)]);
    assert_eq!(scan(&node, request).await.unwrap().row_count() as i64, 4 * ROWS);
}

#[tokio::test]
async fn rows_that_the_caller_has_are_not_sent_again() {
    let node = node_with_rows().await;
    let filter = and(compare("key", Operator::Lt, 500_i64), comment_like("%7%"));
    let fragment = fragment(&schema(), Some(filter), &["id", "kind"], None);
    let expected = plain(&fragment, &rows(0, ROWS));
    for skip in [0, 1, 777, expected.num_rows() - 1, expected.num_rows(), expected.num_rows() + 5] {
        let scanned = scan(&node, scan_request(Arc::clone(&fragment), &[(1, skip as u64)])).await.unwrap();
        let skip = skip.min(expected.num_rows());
        let found = concat_batches(fragment.output_schema(), &scanned.rows_of(0)).unwrap();
        assert_eq!(found, expected.slice(skip, expected.num_rows() - skip));
        assert!(scanned.batches.last().is_none_or(|(_, _, through)| *through == expected.num_rows() as u64));
    }
}

#[tokio::test]
async fn every_batch_says_how_far_it_goes() {
    let node = node_with_rows().await;
    let request =
        ScanRequest { batch_rows: 1_000, ..scan_request(fragment(&schema(), None, &["id"], None), &[(1, 300)]) };
    let mut through = 300;
    for (_, batch, rows_through) in scan(&node, request).await.unwrap().batches {
        let last = batch.column(0).as_primitive::<Int64Type>().value(batch.num_rows() - 1);
        through += batch.num_rows() as u64;
        assert_eq!((rows_through, last as u64 + 1), (through, through));
    }
    assert_eq!(through, ROWS as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_holds_over_all_segments() {
    let node = node_with_rows().await;
    put(&node, 2, &parquet(&rows(ROWS, ROWS))).await;
    for (limit, filter) in
        [(10, None), (30_000, None), (60_000, None), (100, Some(compare("key", Operator::Lt, 20_i64)))]
    {
        let fragment = fragment(&schema(), filter.clone(), &["id"], Some(limit));
        let scanned = scan(&node, scan_request(fragment, &[(1, 0), (2, 0)])).await.unwrap();
        assert_eq!(scanned.row_count() as u64, limit.min(2 * ROWS as u64));
        assert_eq!(scanned.done.len(), 2);
        if limit == 10 {
            assert!(scanned.statistics.rows_in < 100, "{}", scanned.statistics.rows_in);
        }
    }
}

#[tokio::test]
async fn a_limit_of_nothing_reads_nothing() {
    let node = node_with_rows().await;
    let scanned = scan(&node, scan_request(fragment(&schema(), None, &["id"], Some(0)), &[(1, 0)])).await.unwrap();
    assert_eq!((scanned.row_count(), scanned.statistics.bytes_read, scanned.done.len()), (0, 0, 1));
}

#[tokio::test]
async fn columns_are_found_by_name_and_cast_and_missing_ones_are_null() {
    let node = node_with_rows().await;
    let wanted: SchemaRef = Arc::new(Schema::new(vec![
        Field::new("added_later", DataType::Int32, true),
        Field::new("comment", DataType::Utf8, true),
        Field::new("id", DataType::Int32, false),
    ]));
    let column = |name| col(name, &wanted).unwrap();
    let missing = datafusion::physical_expr::expressions::is_null(column("added_later")).unwrap();
    let few = binary(column("id"), Operator::Lt, lit(3_i32), &wanted).unwrap();
    let filter = binary(missing, Operator::And, few, &wanted).unwrap();
    let request = scan_request(fragment(&wanted, Some(filter), &["id", "comment", "added_later"], None), &[(1, 0)]);
    let found = &scan(&node, request).await.unwrap().rows_of(0)[0];
    assert_eq!((found.num_rows(), found.column(2).null_count()), (3, 3));
    assert_eq!(found.column(0).data_type(), &DataType::Int32);
    assert!(found.column(1).as_string::<i32>().value(2).ends_with("row 2"));
}

#[tokio::test]
async fn a_filter_that_fails_on_the_data_ends_the_stream_with_its_error() {
    let node = node_with_rows().await;
    let key = || col("key", &schema()).unwrap();
    let divided = binary(lit(100_i64), Operator::Divide, key(), &schema()).unwrap();
    let filter = binary(divided, Operator::Gt, lit(1_i64), &schema()).unwrap();
    let request = scan_request(fragment(&schema(), Some(filter), &["id"], None), &[(1, 0)]);
    assert_eq!(scan(&node, request).await.unwrap_err().code(), ErrorCode::DivisionByZero);
}

#[tokio::test]
async fn not_a_number_is_not_pruned_away() {
    let node = node(&memory_environment()).await;
    let all = rows(0, 100);
    let mut columns = all.columns().to_vec();
    columns[2] =
        Arc::new(arrow::array::Float64Array::from_iter_values((0..100).map(|id| if id == 7 { f64::NAN } else { 1.0 })));
    let batch = RecordBatch::try_new(all.schema(), columns).unwrap();
    put(&node, 1, &parquet(&batch)).await;
    let fragment = fragment(&schema(), Some(compare("price", Operator::Gt, 5.0)), &["id"], None);
    let scanned = scan(&node, scan_request(Arc::clone(&fragment), &[(1, 0)])).await.unwrap();
    assert_eq!(scanned.rows_of(0), [plain(&fragment, &batch)]);
    assert_eq!(scanned.row_count(), 1);
}

#[tokio::test]
async fn a_file_that_is_no_parquet_fails_alone() {
    let node = node_with_rows().await;
    put(&node, 2, &bytes::Bytes::from_static(b"this is no Parquet file at all")).await;
    let request = scan_request(fragment(&schema(), None, &["id"], None), &[(2, 0), (1, 0), (3, 0)]);
    let mut scanned = scan(&node, request).await.unwrap();
    scanned.failed.sort_by_key(|(index, _)| *index);
    let codes: Vec<_> = scanned.failed.iter().map(|(index, error)| (*index, error.code())).collect();
    assert_eq!(codes, [(0, ErrorCode::FileUnreadable), (2, ErrorCode::SegmentNotFound)]);
    assert_eq!((scanned.row_count(), scanned.done), (ROWS as usize, vec![1]));
    assert!(node.info().quarantined.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_stream_stops_the_work() {
    let node = node_with_rows().await;
    let many: Vec<_> = (0..500).map(|_| (1, 0)).collect();
    let mut events = node.scan(scan_request(fragment(&schema(), None, &["comment"], None), &many)).await.unwrap();
    assert!(events.next().await.unwrap().is_ok());
    assert_eq!(node.info().active_scan_count, 1);
    drop(events);
    while node.info().active_scan_count > 0 {
        tokio::task::yield_now().await;
    }
}
