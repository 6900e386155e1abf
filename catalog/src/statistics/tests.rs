//! Collecting, storing, summarising and pruning.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, DictionaryArray, Float64Array, Int32Array, Int64Array, ListArray, NullArray, RecordBatch,
    StringArray, StringViewArray, TimestampMicrosecondArray, UInt64Array,
};
use arrow::datatypes::{DataType, Field, Int32Type, Schema, SchemaRef};
use datafusion::common::stats::Precision;
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::logical_expr::{Expr, col, lit};
use datafusion::physical_optimizer::pruning::PruningPredicateBuilder;
use datafusion::prelude::SessionContext;

use super::*;

fn schema_of(columns: &[(&str, ArrayRef)]) -> SchemaRef {
    let fields: Vec<Field> =
        columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true)).collect();
    Arc::new(Schema::new(fields))
}

/// Statistics of one segment that holds these columns.
fn collect(columns: Vec<(&str, ArrayRef)>) -> SegmentStatistics {
    let schema = schema_of(&columns);
    let batch =
        RecordBatch::try_new(Arc::clone(&schema), columns.into_iter().map(|(_, array)| array).collect()).unwrap();
    let mut builder = StatisticsBuilder::new(schema);
    builder.update(&batch.slice(0, batch.num_rows() / 2)).unwrap();
    builder.update(&batch.slice(batch.num_rows() / 2, batch.num_rows() - batch.num_rows() / 2)).unwrap();
    builder.finish(&[11]).unwrap()
}

fn ints(values: Vec<Option<i64>>) -> SegmentStatistics {
    collect(vec![("k", Arc::new(Int64Array::from(values)))])
}

fn texts(values: Vec<&str>) -> SegmentStatistics {
    collect(vec![("s", Arc::new(StringViewArray::from(values)))])
}

fn every_type() -> SegmentStatistics {
    let dictionary: DictionaryArray<Int32Type> = vec![Some("b"), None, Some("a")].into_iter().collect();
    let list = ListArray::from_iter_primitive::<Int32Type, _, _>(vec![Some(vec![Some(1)]), None, Some(vec![])]);
    collect(vec![
        ("int", Arc::new(Int32Array::from(vec![Some(3), None, Some(-1)]))),
        ("float", Arc::new(Float64Array::from(vec![1.5, f64::NAN, 2.5]))),
        ("text", Arc::new(StringViewArray::from(vec![Some("x"), None, Some(&*"y".repeat(100))]))),
        ("old_text", Arc::new(StringArray::from(vec!["b", "a", "c"]))),
        ("time", Arc::new(TimestampMicrosecondArray::from(vec![5, 6, 7]).with_timezone("UTC"))),
        ("dictionary", Arc::new(dictionary)),
        ("list", Arc::new(list)),
        ("null", Arc::new(NullArray::new(3))),
    ])
}

#[test]
fn bounds_nulls_and_distinct_values_are_collected() {
    let statistics = ints(vec![Some(5), None, Some(-2), Some(5), Some(9)]);
    let column = &statistics.columns()[0];
    let (min, max): (ArrayRef, ArrayRef) = (Arc::new(Int64Array::from(vec![-2])), Arc::new(Int64Array::from(vec![9])));
    assert_eq!((&column.min, &column.max), (&min, &max));
    assert_eq!(column.null_count, UInt64Array::from(vec![1]));
    assert_eq!(column.distinct, UInt64Array::from(vec![3]));
    assert_eq!(column.file_bytes, UInt64Array::from(vec![11]));
    assert_eq!(statistics.row_counts(), &UInt64Array::from(vec![5]));
    assert!(column.exact_bounds);
}

#[test]
fn what_has_no_order_or_a_nan_has_no_bounds() {
    let statistics = every_type();
    let known = |name: &str| statistics.columns()[statistics.schema().index_of(name).unwrap()].min.is_valid(0);
    let unknown: Vec<&str> =
        statistics.schema().fields().iter().map(|field| field.name().as_str()).filter(|name| !known(name)).collect();
    // The NullArray of unordered types counts as valid, since it has no null buffer: see its type.
    assert_eq!(unknown, ["float"]);
    let unordered = |name: &str| {
        statistics.columns()[statistics.schema().index_of(name).unwrap()].min.data_type() == &DataType::Null
    };
    assert!(unordered("list") && unordered("null") && !unordered("dictionary"));
    assert_eq!(statistics.columns()[7].null_count, UInt64Array::from(vec![3]));
}

#[test]
fn the_stored_form_comes_back() {
    let statistics = every_type().concat(&every_type()).unwrap();
    let bytes = statistics.encode().unwrap();
    let again = SegmentStatistics::decode(Arc::clone(statistics.schema()), &bytes).unwrap();
    assert_eq!(format!("{again:?}"), format!("{statistics:?}"));
    let empty = SegmentStatistics::empty(Arc::clone(statistics.schema()));
    let again = SegmentStatistics::decode(Arc::clone(empty.schema()), &empty.encode().unwrap()).unwrap();
    assert_eq!(again.row_counts().len(), 0);
}

#[test]
fn a_stored_form_that_does_not_fit_is_corrupt() {
    let bytes = ints(vec![Some(1)]).encode().unwrap();
    let other = Arc::new(Schema::new(vec![Field::new("k", DataType::Utf8, true)]));
    let error = SegmentStatistics::decode(other, &bytes).unwrap_err();
    assert_eq!(error.code(), ErrorCode::ManifestCorrupt);
    assert!(error.message().contains("column k has type Int64 instead of Utf8"), "{error}");
    for length in [0, 1, bytes.len() / 2] {
        let schema = Arc::new(Schema::new(vec![Field::new("k", DataType::Int64, true)]));
        let error = SegmentStatistics::decode(schema, &bytes.slice(..length)).unwrap_err();
        assert_eq!(error.code(), ErrorCode::ManifestCorrupt);
    }
}

#[test]
fn other_columns_are_refused() {
    let error = ints(vec![]).concat(&texts(vec![])).unwrap_err();
    assert!(error.message().contains("(s Utf8View) instead of (k Int64)"), "{error}");
    let batch = RecordBatch::try_from_iter([("x", Arc::new(Int64Array::from(vec![1])) as ArrayRef)]).unwrap();
    assert!(StatisticsBuilder::new(Arc::clone(ints(vec![]).schema())).update(&batch).is_err());
}

#[test]
fn the_planner_hears_exact_counts_and_bounds() {
    let all =
        ints(vec![Some(1), Some(4), None]).concat(&ints(vec![None])).unwrap().concat(&ints(vec![Some(9)])).unwrap();
    let summary = all.to_datafusion();
    assert_eq!(summary.num_rows, Precision::Exact(5));
    let column = &summary.column_statistics[0];
    assert_eq!(column.null_count, Precision::Exact(2));
    assert_eq!(column.min_value, Precision::Exact(ScalarValue::Int64(Some(1))));
    assert_eq!(column.max_value, Precision::Exact(ScalarValue::Int64(Some(9))));
    assert!(matches!(column.distinct_count, Precision::Inexact(2..=3)), "{:?}", column.distinct_count);
    assert!(matches!(column.byte_size, Precision::Inexact(bytes) if bytes >= 40), "{:?}", column.byte_size);
}

#[test]
fn cut_strings_make_inexact_bounds() {
    let long = "b".repeat(200);
    let summary = texts(vec!["a", &long]).concat(&texts(vec!["c"])).unwrap().to_datafusion();
    assert_eq!(summary.column_statistics[0].min_value, Precision::Inexact(ScalarValue::Utf8View(Some("a".to_owned()))));
    assert_eq!(summary.column_statistics[0].max_value, Precision::Inexact(ScalarValue::Utf8View(Some("c".to_owned()))));
    let bounds = texts(vec![&long]);
    let max = bounds.columns()[0].max.as_string_view().value(0).to_owned();
    assert!(max > long && max.len() <= 64, "{max}");
}

#[test]
fn unknown_bounds_in_one_segment_are_unknown_for_all() {
    let column = |values: Vec<f64>| collect(vec![("x", Arc::new(Float64Array::from(values)) as ArrayRef)]);
    let summary = column(vec![1.0]).concat(&column(vec![f64::NAN])).unwrap().to_datafusion();
    assert_eq!(summary.column_statistics[0].min_value, Precision::Absent);
    let summary = every_type().to_datafusion();
    let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    assert_eq!(summary.column_statistics[5].min_value.get_value().map(ScalarValue::data_type), Some(dictionary));
}

#[test]
fn views_of_many_appends_are_compacted() {
    let mut all = SegmentStatistics::empty(Arc::clone(texts(vec![]).schema()));
    for index in 0..100 {
        all = all.concat(&texts(vec![&format!("a value longer than inline {index:03}")])).unwrap();
    }
    let min = all.columns()[0].min.as_string_view();
    assert!(min.data_buffers().len() <= VIEW_BUFFERS_MAX + 1, "{}", min.data_buffers().len());
    assert_eq!(min.value(42), "a value longer than inline 042");
}

fn kept(statistics: &SegmentStatistics, predicate: Expr) -> Vec<bool> {
    let schema = Arc::clone(statistics.schema());
    let df_schema = DFSchema::try_from(Arc::clone(&schema)).unwrap();
    let predicate = SessionContext::new().create_physical_expr(predicate, &df_schema).unwrap();
    PruningPredicateBuilder::new().with_file_schema(schema).build(predicate).unwrap().prune(statistics).unwrap()
}

#[test]
fn segments_are_pruned_by_bounds_and_nulls() {
    let all =
        ints(vec![Some(1), Some(9)]).concat(&ints(vec![Some(10), None])).unwrap().concat(&ints(vec![None])).unwrap();
    assert_eq!(kept(&all, col("k").lt(lit(10_i64))), [true, false, false]);
    assert_eq!(kept(&all, col("k").eq(lit(10_i64))), [false, true, false]);
    assert_eq!(kept(&all, col("k").is_null()), [false, true, true]);
    let texts = texts(vec![&"m".repeat(100)]).concat(&texts(vec!["z"])).unwrap();
    assert_eq!(kept(&texts, col("s").eq(lit(ScalarValue::Utf8View(Some("m".repeat(100)))))), [true, false]);
}

#[test]
fn segments_with_nan_are_never_pruned() {
    let column = |values: Vec<f64>| collect(vec![("x", Arc::new(Float64Array::from(values)) as ArrayRef)]);
    let all = column(vec![1.0, 2.0]).concat(&column(vec![1.0, f64::NAN])).unwrap();
    assert_eq!(kept(&all, col("x").gt(lit(5.0))), [false, true]);
}

/// Goal: what planning costs must not grow with a constant per segment. The bound is far above what
/// a vectorised run takes and far below what one predicate per segment would.
#[test]
fn a_hundred_thousand_segments_are_pruned_in_one_pass() {
    let mut all = ints(vec![Some(7), Some(8)]);
    while all.row_counts().len() < 100_000 {
        all = all.concat(&all).unwrap();
    }
    let all = all.concat(&ints(vec![Some(1_000)])).unwrap();
    let clock = aubade_environment::SystemClock::default();
    let started = aubade_environment::Clock::now(&clock);
    let kept = kept(&all, col("k").gt(lit(100_i64)));
    let took = aubade_environment::Clock::now(&clock).saturating_sub(started);
    assert_eq!(kept.iter().filter(|kept| **kept).count(), 1);
    assert!(took < std::time::Duration::from_millis(500), "{took:?}");
}
