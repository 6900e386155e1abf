//! Reductions against DataFusion's own run of the same query over the same rows.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringViewArray};
use arrow::compute::concat_batches;
use aubade_proto::{ErrorCode, ScanRequest};
use bytes::Bytes;
use datafusion::logical_expr::Operator;
use futures::stream::{self, StreamExt};

use super::{Expression, ROWS, comment_like, compare, node_with_rows, text};
use crate::node::StorageNode;
use crate::options::StorageNodeOptions;
use crate::testing::{
    CLUSTER, Query, Scanned, decoded, memory_environment, node, parquet, plain_result, put, rows, scan, scan_decoded,
    scan_request,
};

/// [`ROWS`] rows in all, by segments.
fn parts(count: i64) -> impl Iterator<Item = (u128, RecordBatch)> {
    let share = ROWS / count;
    let part = move |index| {
        let rows_left = if index == count - 1 { ROWS - index * share } else { share };
        rows(index * share, rows_left)
    };
    (1..).zip((0..count).map(part))
}

/// Segments 1 to `count` with [`ROWS`] rows in all.
async fn node_with_segments(count: i64) -> (StorageNode, Vec<(u128, u64)>) {
    let node = node(&memory_environment()).await;
    for (number, part) in parts(count) {
        put(&node, number, &parquet(&part)).await;
    }
    (node, (1..=count as u128).map(|number| (number, 0)).collect())
}

/// Runs `sql` over `segment_count` segments and compares.
async fn check(sql: &str, filter: Option<Expression>, segment_count: i64) -> Scanned {
    let (node, segments) = node_with_segments(segment_count).await;
    let query = Query::new(sql, filter).await;
    let request = || scan_request(Arc::clone(&query.fragment), &segments);
    let scanned = scan(&node, request()).await.unwrap();
    let mut ended = scanned.merged_segments();
    ended.extend(&scanned.done);
    ended.sort_unstable();
    assert_eq!(ended, (0..segments.len()).collect::<Vec<_>>(), "{sql}");
    let expected = plain_result(sql, &rows(0, ROWS)).await;
    assert_eq!(query.finish(scanned.rows()).await, expected, "{sql}");
    let segments =
        stream::iter(parts(segment_count)).then(|(number, part)| async move { decoded(number, &part).await });
    let in_memory = scan_decoded(segments.collect().await, request()).await.unwrap();
    assert_eq!(query.finish(in_memory.rows()).await, expected, "{sql} in memory");
    scanned
}

#[tokio::test(flavor = "multi_thread")]
async fn every_aggregate_equals_that_of_a_plain_run() {
    let queries = [
        "SELECT count(*), sum(key), avg(price), min(comment), max(kind), count(key) FROM t",
        "SELECT kind, count(*), sum(key), avg(key), min(price), max(comment) FROM t GROUP BY kind",
        "SELECT key, count(*), sum(price), min(comment) FROM t GROUP BY key",
        "SELECT kind, round(stddev(price), 3), round(var_pop(id), 3), round(corr(key, price), 6) FROM t GROUP BY kind",
        "SELECT kind, count(DISTINCT key) FROM t GROUP BY kind",
        "SELECT count(DISTINCT key), count(DISTINCT kind), sum(price) FROM t",
        "SELECT kind, array_sort(array_agg(key)) FROM t GROUP BY kind",
        "SELECT kind, count(*) FILTER (WHERE key > 500), sum(price) FILTER (WHERE key IS NULL) FROM t GROUP BY kind",
        "SELECT kind, key, count(price) FROM t GROUP BY GROUPING SETS ((kind), (kind, key), ())",
        "SELECT kind, count(price), grouping(kind) FROM t GROUP BY ROLLUP (kind)",
        "SELECT id % 10, upper(kind), sum(id) FROM t GROUP BY id % 10, upper(kind)",
        "SELECT bool_and(key < 10), median(key), approx_distinct(kind) FROM t",
        "SELECT kind, sum(CAST(id AS DECIMAL(15, 2)) * (1 - CAST(key AS DECIMAL(15, 2)))) FROM t GROUP BY kind",
        "SELECT DISTINCT kind FROM t",
        "SELECT id, count(price) FROM t GROUP BY id",
        "SELECT comment, max(price) FROM t GROUP BY comment",
    ];
    for sql in queries {
        for segment_count in [1, 4] {
            check(sql, None, segment_count).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn aggregates_of_rows_in_an_order_equal_those_of_a_plain_run() {
    for sql in [
        "SELECT nth_value(id, 3 ORDER BY price DESC, id DESC), nth_value(comment, -2 ORDER BY price, id) FROM t",
        "SELECT kind, nth_value(comment, 2 ORDER BY key NULLS FIRST, id), count(*) FROM t GROUP BY kind",
        "SELECT key, nth_value(id, 2 ORDER BY price DESC, id) FILTER (WHERE kind = 'mid') FROM t GROUP BY key",
        "SELECT kind, key, nth_value(id, -1 ORDER BY id) FROM t GROUP BY ROLLUP (kind, key)",
        "SELECT kind, array_agg(DISTINCT key ORDER BY key DESC) FROM t GROUP BY kind",
    ] {
        check(sql, None, 4).await;
    }
    let few = "SELECT kind, nth_value(id, 2 ORDER BY price DESC, id DESC) FROM t WHERE id < 7 GROUP BY kind";
    check(few, Some(compare("id", Operator::Lt, 7_i64)), 3).await;
    let none = "SELECT nth_value(id, 2 ORDER BY id), string_agg(kind, '+' ORDER BY id) FROM t WHERE id < 0";
    check(none, Some(compare("id", Operator::Lt, 0_i64)), 3).await;
}

#[tokio::test]
async fn filtered_rows_are_reduced_and_no_rows_give_what_no_rows_give() {
    for bound in [0_i64, 7, 100] {
        let filter = || Some(compare("id", Operator::Lt, bound));
        for select in [
            "SELECT count(id), sum(price), min(kind) FROM t",
            "SELECT kind, count(id) FROM t",
            "SELECT kind, sum(id) FROM t",
            "SELECT id, kind FROM t",
        ] {
            let tail = match select {
                "SELECT kind, count(id) FROM t" => "GROUP BY kind",
                "SELECT kind, sum(id) FROM t" => "GROUP BY ROLLUP (kind)",
                "SELECT id, kind FROM t" => "ORDER BY kind, id LIMIT 5",
                _ => "",
            };
            check(&format!("{select} WHERE id < {bound} {tail}"), filter(), 3).await;
        }
    }
    // Without any column.
    check("SELECT count(*) FROM t WHERE kind = 'mid'", Some(compare("kind", Operator::Eq, text("mid"))), 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn small_reductions_of_all_segments_become_one() {
    let scanned = check("SELECT kind, count(*), sum(key) FROM t GROUP BY kind", None, 5).await;
    assert_eq!((scanned.merged.len(), scanned.batches.len(), scanned.done.len()), (1, 0, 0));
    let (segments, batches) = &scanned.merged[0];
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 3);
    assert!(segments.iter().all(|(_, statistics)| statistics.rows_out == 3 && statistics.rows_in == 5_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn large_reductions_are_sent_as_they_are() {
    let scanned = check("SELECT id, count(price) FROM t GROUP BY id", None, 2).await;
    assert_eq!((scanned.merged.len(), scanned.done.len()), (0, 2));
    assert_eq!(scanned.statistics.rows_out, ROWS as u64);
}

#[tokio::test]
async fn a_segment_that_cannot_be_read_leaves_nothing_in_the_merged_rows() {
    let node = node_with_rows().await;
    put(&node, 2, &Bytes::from_static(b"this is no Parquet file at all")).await;
    let sql = "SELECT kind, count(*), sum(id) FROM t GROUP BY kind";
    let query = Query::new(sql, None).await;
    let scanned = scan(&node, scan_request(Arc::clone(&query.fragment), &[(2, 0), (1, 0), (3, 0)])).await.unwrap();
    assert_eq!(scanned.failed.len(), 2);
    assert_eq!(scanned.merged_segments(), [1]);
    assert_eq!(query.finish(scanned.rows()).await, plain_result(sql, &rows(0, ROWS)).await);
}

/// Scans segment 1 with every number in `skips` and compares with the rows of the first scan.
async fn check_skips(node: &StorageNode, sql: &str, skips: impl Iterator<Item = usize>) {
    let query = Query::new(sql, None).await;
    let request = |skip: usize| scan_request(Arc::clone(&query.fragment), &[(1, skip as u64)]);
    let schema = query.fragment.output_schema();
    let all = concat_batches(schema, &scan(node, request(0)).await.unwrap().rows()).unwrap();
    for skip in skips {
        let scanned = scan(node, request(skip)).await.unwrap();
        assert_eq!(scanned.done, [0]);
        let found = concat_batches(schema, &scanned.rows_of(0)).unwrap();
        let skip = skip.min(all.num_rows());
        assert_eq!(found, all.slice(skip, all.num_rows() - skip), "{sql} from row {skip} on");
        assert!(scanned.batches.last().is_none_or(|(_, _, through)| *through == all.num_rows() as u64));
    }
}

#[tokio::test]
async fn reduced_rows_that_the_caller_has_are_not_sent_again() {
    let few = node(&memory_environment()).await;
    put(&few, 1, &parquet(&rows(0, 300))).await;
    let many = node_with_rows().await;
    for sql in
        ["SELECT id, sum(price), min(comment) FROM t GROUP BY id", "SELECT id, kind FROM t ORDER BY kind, id LIMIT 70"]
    {
        check_skips(&few, sql, 1..=301).await;
        check_skips(&many, sql, [1, 69, 70, 8_191, 8_192, 8_193, 20_000, 24_999, 25_000, 25_001].into_iter()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_rows_of_an_order_are_those_of_a_plain_run() {
    let queries = [
        "SELECT id, price FROM t ORDER BY price DESC LIMIT 10",
        "SELECT id, price FROM t ORDER BY id LIMIT 10",
        "SELECT id, key, kind FROM t ORDER BY key NULLS FIRST, id DESC LIMIT 5",
        "SELECT id, key FROM t ORDER BY key DESC NULLS LAST, id LIMIT 4000",
        "SELECT comment, id FROM t ORDER BY kind, comment LIMIT 25",
        "SELECT id FROM t ORDER BY id DESC LIMIT 20000",
        "SELECT id, price FROM t ORDER BY price * 2 DESC LIMIT 3",
    ];
    for sql in queries {
        for segment_count in [1, 6] {
            check(sql, None, segment_count).await;
        }
    }
    let sql = "SELECT id, comment FROM t WHERE comment LIKE '%7%' ORDER BY id DESC LIMIT 9";
    check(sql, Some(comment_like("%7%")), 4).await;
}

#[tokio::test]
async fn row_groups_beyond_the_first_rows_are_not_read() {
    let all = check("SELECT id, comment FROM t ORDER BY id DESC LIMIT 10", None, 1).await.statistics;
    let first = check("SELECT id, comment FROM t ORDER BY id LIMIT 10", None, 1).await.statistics;
    assert_eq!((all.row_groups_pruned_statistics, all.rows_in), (0, 25_000));
    assert_eq!((first.row_groups_pruned_statistics, first.rows_in), (2, 10_000));
    assert!(first.bytes_read * 3 < all.bytes_read * 2, "{} of {}", first.bytes_read, all.bytes_read);
}

/// A node that holds `batches` as segments 1, 2 and so on and reads one after the other, so that what
/// the first ones have found is known to the others.
async fn node_that_reads_in_turn(batches: &[RecordBatch]) -> (StorageNode, Vec<(u128, u64)>) {
    let options = StorageNodeOptions { scan_memory_bytes: 1, ..StorageNodeOptions::new("/data", "az1") };
    let node = StorageNode::open(memory_environment(), CLUSTER, options).await.unwrap();
    let mut segments = Vec::new();
    for (number, batch) in (1..).zip(batches) {
        put(&node, number, &parquet(batch)).await;
        segments.push((number, 0));
    }
    (node, segments)
}

#[tokio::test]
async fn segments_learn_from_one_another_which_rows_cannot_be_first() {
    let batches: Vec<_> = (0..8).map(|index| rows(index * 1_000, 1_000)).collect();
    let (node, segments) = node_that_reads_in_turn(&batches).await;
    let sql = "SELECT id, comment FROM t ORDER BY id LIMIT 10";
    let query = Query::new(sql, None).await;
    let scanned = scan(&node, scan_request(Arc::clone(&query.fragment), &segments)).await.unwrap();
    assert_eq!(query.finish(scanned.rows()).await, plain_result(sql, &rows(0, 8_000)).await);
    assert_eq!(scanned.merged_segments(), (0..8).collect::<Vec<_>>());
    assert!(scanned.statistics.row_groups_pruned_statistics >= 4, "{:?}", scanned.statistics);
}

/// Three thousand rows with texts of two kilobytes.
fn wide(first: i64) -> RecordBatch {
    let batch = rows(first, 3_000);
    let text = |row: i64| format!("{}{row}", "wide ".repeat(400));
    let mut columns = batch.columns().to_vec();
    columns[4] = Arc::new(StringViewArray::from_iter_values((first..first + 3_000).map(text))) as ArrayRef;
    RecordBatch::try_new(batch.schema(), columns).unwrap()
}

#[tokio::test]
async fn first_rows_too_wide_to_be_merged_owe_nothing_to_other_segments() {
    let batches = [rows(10_000, 3_000), rows(20_000, 3_000), wide(9_500), wide(30_000)];
    let (node, segments) = node_that_reads_in_turn(&batches).await;
    let sql = "SELECT id, comment FROM t ORDER BY id LIMIT 1000";
    let query = Query::new(sql, None).await;
    let scanned = scan(&node, scan_request(Arc::clone(&query.fragment), &segments)).await.unwrap();
    assert_eq!((scanned.merged_segments(), &scanned.done[..]), (vec![0, 1, 3], &[2][..]));
    // The bound of the others would have left out the last five hundred of them.
    assert_eq!(scanned.rows_of(2).iter().map(RecordBatch::num_rows).sum::<usize>(), 1_000);
    let all = concat_batches(&batches[0].schema(), &batches).unwrap();
    assert_eq!(query.finish(scanned.rows()).await, plain_result(sql, &all).await);
}

#[tokio::test]
async fn a_reduction_that_fails_on_the_data_ends_the_stream_with_its_error() {
    let node = node_with_rows().await;
    let query = Query::new("SELECT kind, sum(100 / (id - 77)) FROM t GROUP BY kind", None).await;
    let error = scan(&node, scan_request(Arc::clone(&query.fragment), &[(1, 0)])).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::DivisionByZero);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_reduction_stops_the_work() {
    let node = node_with_rows().await;
    let many: Vec<_> = (0..500).map(|_| (1, 0)).collect();
    let query = Query::new("SELECT id, count(price) FROM t GROUP BY id", None).await;
    let mut events = node.scan(scan_request(Arc::clone(&query.fragment), &many)).await.unwrap();
    assert!(events.next().await.unwrap().is_ok());
    assert_eq!(node.info().active_scan_count, 1);
    drop(events);
    while node.info().active_scan_count > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_reduction_leaves_of_a_segment_is_kept() {
    let node = node_with_rows().await;
    for (sql, is_kept) in [
        ("SELECT count(*), sum(key) FROM t", true),
        ("SELECT kind, count(*), sum(key), min(price) FROM t GROUP BY kind", true),
        ("SELECT id, count(price) FROM t GROUP BY id", false),
        // Of one segment alone: no other had a say in it.
        ("SELECT id, kind FROM t ORDER BY kind, id LIMIT 5", true),
    ] {
        let query = Query::new(sql, None).await;
        let request = || ScanRequest { may_keep_results: true, ..scan_request(Arc::clone(&query.fragment), &[(1, 0)]) };
        let first = scan(&node, request()).await.unwrap();
        let again = scan(&node, request()).await.unwrap();
        let counted = |scanned: &Scanned| (scanned.statistics.kept_results, scanned.statistics.rows_in == 0);
        assert_eq!(counted(&first), (0, false), "{sql}");
        assert_eq!(counted(&again), (u64::from(is_kept), is_kept), "{sql}");
    }
}
