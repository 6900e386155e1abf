//! Columns of texts that are in memory as dictionaries.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, LargeStringArray, RecordBatch, StringArray, StringViewArray};
use arrow::compute::concat_batches;
use aubade_proto::ErrorCode;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::prelude::SessionContext;

use super::{Expression, ROWS, plain};
use crate::testing::{Query, decoded, fragment, plain_result, scan_decoded, scan_request};

/// Three row groups.
fn texts() -> RecordBatch {
    let long = ["short", "a text that is too long for a view", "", "Short", "5"];
    let few = (0..ROWS).map(|row| (row % 11 != 5).then(|| long[row as usize % 5]));
    let of = |text: fn(i64) -> String| Arc::new(StringViewArray::from_iter_values((0..ROWS).map(text))) as ArrayRef;
    let first_are_few = |row| if row < 12_000 { "few".to_owned() } else { format!("one of many texts, number {row}") };
    RecordBatch::try_from_iter_with_nullable([
        ("id", Arc::new(Int64Array::from_iter_values(0..ROWS)) as ArrayRef, false),
        ("few", Arc::new(StringViewArray::from_iter(few.clone())), true),
        ("several", of(|row| format!("one of some {}", row % 300)), false),
        ("many", of(|row| format!("{}", row % 5_000)), false),
        ("later", of(first_are_few), false),
        ("utf8", Arc::new(StringArray::from_iter(few)), true),
        ("wide", Arc::new(StringArray::from_iter_values((0..ROWS).map(|row| format!("{}", row % 200)))), false),
        ("later_utf8", Arc::new(StringArray::from_iter_values((0..ROWS).map(first_are_few))), false),
        ("later_large", Arc::new(LargeStringArray::from_iter_values((0..ROWS).map(first_are_few))), false),
        // Null in a row group, and as many as there are keys of a byte.
        (
            "bytes",
            Arc::new(StringViewArray::from_iter((0..ROWS).map(|row| (row < 10_000).then(|| format!("{}", row % 256))))),
            true,
        ),
        ("more", of(|row| format!("{}", row % 257)), false),
        ("most", of(|row| format!("{}", row % 4_096)), false),
        ("nothing", Arc::new(StringViewArray::new_null(ROWS as usize)), true),
    ])
    .unwrap()
}

/// A condition as DataFusion plans it, where constants have the type of what they are compared with.
async fn condition(sql: &str) -> Expression {
    let context = SessionContext::new();
    context.register_batch("t", texts().slice(0, 1)).unwrap();
    let query = context.sql(&format!("SELECT * FROM t WHERE {sql}")).await.unwrap();
    let plan = query.create_physical_plan().await.unwrap();
    let filter = plan.downcast_ref::<FilterExec>().expect("a filter over a table in memory");
    Arc::clone(filter.predicate())
}

#[tokio::test]
async fn few_texts_take_a_byte_or_two_for_each_row() {
    let segment = decoded(1, &texts()).await;
    let bytes_per_row = |name: &str| segment.columns()[name].bytes() as i64 / ROWS;
    for (name, bytes) in
        [("few", 1), ("several", 2), ("utf8", 1), ("nothing", 1), ("bytes", 1), ("more", 2), ("wide", 1)]
    {
        assert_eq!(bytes_per_row(name), bytes, "{name}");
    }
    assert!(["few", "several", "most"].iter().all(|name| segment.columns()[*name].is_dictionary()));
    assert!(
        ["many", "later", "later_utf8", "later_large"].iter().all(|name| !segment.columns()[*name].is_dictionary())
    );
    // What their views take.
    assert!(bytes_per_row("many") >= 16 && bytes_per_row("later") >= 16);
}

#[tokio::test]
async fn packed_texts_are_filtered_and_sent_as_any_others() {
    let batch = texts();
    let segments = vec![decoded(1, &batch).await];
    for filter in [
        "few = 'short'",
        "few <> 'short'",
        "few IS NULL",
        "few IS NOT NULL AND several > 'one of some 2'",
        "few IN ('5', 'Short', 'nothing') OR few IS NULL",
        "few NOT IN ('5', 'Short')",
        "few LIKE '%e%'",
        "few LIKE '%a%text%' OR several LIKE '%1%1%'",
        "CASE WHEN few = 'short' THEN several ELSE few END > 'a'",
        "CASE WHEN few IS NULL THEN true ELSE few > 'a' END",
        "few = several OR many = '17'",
        "few = utf8 AND utf8 > 'a'",
        "upper(few) = 'SHORT' AND id < 20000",
        "utf8 = 'Short' OR nothing IS NOT NULL",
        "nothing IS NULL AND later = 'few'",
        "nothing = few",
        "later LIKE '%many%99%' OR few = ''",
        "later_utf8 LIKE '%many%99%' OR later_large = later_utf8",
        "wide <> '1' AND bytes IS NOT NULL AND more > most",
        "CASE WHEN id > 50 THEN few ELSE several END = 'short' OR wide = '199'",
        "(few = '5' AND wide = '7') OR (few = 'Short' AND wide LIKE '1%')",
        "id > 24990 AND several = 'one of some 299'",
    ] {
        for output in [
            &["few", "id"][..],
            &["several", "utf8", "later", "wide"],
            &["nothing", "later_utf8", "later_large"],
            &["bytes", "more", "most"],
            &[],
        ] {
            let fragment = fragment(&batch.schema(), Some(condition(filter).await), output, None);
            let request = scan_request(Arc::clone(&fragment), &[(1, 0)]);
            let scanned = scan_decoded(segments.clone(), request).await;
            let scanned = scanned.unwrap_or_else(|error| panic!("{filter}: {error}"));
            let expected = plain(&fragment, &batch);
            let found = concat_batches(fragment.output_schema(), &scanned.rows_of(0)).unwrap();
            assert_eq!(found, expected, "{filter}");
            assert_eq!(scanned.row_count(), expected.num_rows(), "{filter}");
        }
    }
}

#[tokio::test]
async fn what_can_fail_is_not_asked_about_texts_that_no_row_has() {
    let batch = texts();
    let segments = vec![decoded(1, &batch).await];
    let scanned = async |filter| {
        let fragment = fragment(&batch.schema(), Some(condition(filter).await), &["id"], None);
        scan_decoded(segments.clone(), scan_request(fragment, &[(1, 0)])).await
    };
    let fives = scanned("few = '5'").await.unwrap().row_count();
    assert!(fives > 0);
    assert_eq!(scanned("few = '5' AND CAST(few AS INT) > 1").await.unwrap().row_count(), fives);
    assert_eq!(scanned("CAST(few AS INT) > 1").await.unwrap_err().code(), ErrorCode::SqlExecution);
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_by_packed_texts_are_those_of_a_plain_run() {
    let batch = texts();
    let segments = vec![decoded(1, &batch).await];
    for sql in [
        "SELECT few, count(*), sum(id) FROM t GROUP BY few",
        "SELECT few, several, count(*) FROM t GROUP BY few, several",
        "SELECT several, few, utf8, max(id) FROM t GROUP BY several, few, utf8",
        "SELECT bytes, few, count(*) FROM t GROUP BY bytes, few",
        // Pairs for which there is no place.
        "SELECT more, most, count(*) FROM t WHERE id > 24100 GROUP BY more, most",
        "SELECT max(later), min(later_utf8), max(later_large), max(wide), min(most) FROM t",
        "SELECT id % 3, few, min(several), count(few) FROM t GROUP BY id % 3, few",
        "SELECT few, count(DISTINCT several), max(few) FROM t GROUP BY few",
        "SELECT few, count(*) FILTER (WHERE few LIKE '%o%') FROM t GROUP BY few",
        "SELECT upper(few), count(*) FROM t GROUP BY upper(few)",
        "SELECT nothing, few, count(*) FROM t GROUP BY nothing, few",
        "SELECT later, few, count(*) FROM t GROUP BY later, few",
        "SELECT many, several, count(*) FROM t GROUP BY many, several",
        "SELECT few, several, count(*) FROM t GROUP BY ROLLUP (few, several)",
        "SELECT few, id FROM t ORDER BY few DESC NULLS LAST, id LIMIT 7",
        "SELECT several, few, id FROM t ORDER BY several, few, id LIMIT 50",
    ] {
        let filter = match sql.contains("WHERE id > 24100") {
            true => Some(condition("id > 24100").await),
            false => None,
        };
        let query = Query::over(&batch, sql, filter).await;
        let request = scan_request(Arc::clone(&query.fragment), &[(1, 0)]);
        let scanned = scan_decoded(segments.clone(), request).await.unwrap();
        assert_eq!(query.finish(scanned.rows()).await, plain_result(sql, &batch).await, "{sql}");
    }
}
