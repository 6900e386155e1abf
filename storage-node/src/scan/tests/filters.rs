//! Filters in stages against plain evaluation, and sets of join keys.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, StringViewArray};
use arrow::compute::concat_batches;
use arrow::datatypes::Int64Type;
use aubade_proto::{ErrorCode, KeySet, Membership};
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::expressions::{binary, col, in_list, is_not_null, lit, not};

use super::{Expression, ROWS, and, check, comment_like, compare, node_with_rows, schema, text};
use crate::testing::{fragment, scan, scan_request};

fn member(column: &str, keys: ArrayRef) -> Expression {
    let set = KeySet::build(&[keys]).unwrap().unwrap();
    Arc::new(Membership::new(col(column, &schema()).unwrap(), set))
}

fn numbers(keys: impl IntoIterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(keys))
}

fn divided(column: &str, operator: Operator) -> Expression {
    let quotient = binary(lit(100_i64), Operator::Divide, col(column, &schema()).unwrap(), &schema()).unwrap();
    binary(quotient, operator, lit(1_i64), &schema()).unwrap()
}

#[tokio::test]
async fn conjuncts_over_many_columns_equal_plain_evaluation() {
    let parts = [
        compare("id", Operator::Lt, 21_000_i64),
        compare("key", Operator::NotEq, 5_i64),
        compare("price", Operator::Gt, 300.0),
        compare("kind", Operator::Eq, text("mid")),
        comment_like("%3%"),
        is_not_null(col("key", &schema()).unwrap()).unwrap(),
        not(comment_like("%99%")).unwrap(),
        member("key", numbers(0..700)),
        lit(true),
    ];
    for first in 0..parts.len() {
        for count in 2..=parts.len() {
            let chosen = parts.iter().cycle().skip(first).take(count).cloned();
            check(chosen.reduce(and), &["comment", "id"]).await;
        }
    }
}

#[tokio::test]
async fn a_conjunct_that_can_fail_sees_only_rows_that_the_others_pass() {
    let filters = [
        and(compare("key", Operator::Gt, 0_i64), divided("key", Operator::Gt)),
        and(divided("key", Operator::GtEq), compare("key", Operator::Gt, 0_i64)),
        and(and(comment_like("%7%"), divided("id", Operator::Lt)), compare("id", Operator::Gt, 10_i64)),
    ];
    let node = node_with_rows().await;
    let safe = |id: i64| {
        let key = (id % 7 != 3).then_some(id % 1000);
        let seven = format!("{id}").contains('7');
        [
            key.is_some_and(|key| key > 0 && 100 / key > 1),
            key.is_some_and(|key| key > 0 && 100 / key >= 1),
            seven && id > 10 && 100 / id < 1,
        ]
    };
    for (index, filter) in filters.into_iter().enumerate() {
        let request = scan_request(fragment(&schema(), Some(filter), &["id", "comment"], None), &[(1, 0)]);
        let expected = (0..ROWS).filter(|id| safe(*id)[index]).count();
        assert_eq!(scan(&node, request).await.unwrap().row_count(), expected);
    }
    // Alone it fails, as it does anywhere.
    let request = scan_request(fragment(&schema(), Some(divided("key", Operator::Gt)), &["id"], None), &[(1, 0)]);
    assert_eq!(scan(&node, request).await.unwrap_err().code(), ErrorCode::DivisionByZero);
}

#[tokio::test]
async fn sets_of_keys_equal_lists() {
    let texts = |texts: &[&str]| Arc::new(StringViewArray::from_iter_values(texts)) as ArrayRef;
    let list = |column: &str, values: Vec<Expression>| {
        in_list(col(column, &schema()).unwrap(), values, &false, &schema()).unwrap()
    };
    let numbers_of = |keys: &[i64]| list("key", keys.iter().map(|key| lit(*key)).collect());
    let pairs = [
        (member("key", numbers([3, 500, 999, 5_000])), numbers_of(&[3, 500, 999, 5_000])),
        (member("kind", texts(&["mid"])), list("kind", vec![lit(text("mid"))])),
        (member("id", numbers([0, 24_999])), list("id", vec![lit(0_i64), lit(24_999_i64)])),
    ];
    let node = node_with_rows().await;
    for (set, list) in pairs {
        for more in [lit(true), compare("id", Operator::GtEq, 12_000_i64), comment_like("%9%")] {
            let rows_of = |filter: Expression| {
                let fragment = fragment(&schema(), Some(and(filter, Arc::clone(&more))), &["id", "comment"], None);
                scan(&node, scan_request(fragment, &[(1, 0)]))
            };
            let (found, expected) =
                (rows_of(Arc::clone(&set)).await.unwrap(), rows_of(Arc::clone(&list)).await.unwrap());
            let schema = Arc::new(schema().project(&[0, 4]).unwrap());
            assert_eq!(
                concat_batches(&schema, &found.rows_of(0)).unwrap(),
                concat_batches(&schema, &expected.rows_of(0)).unwrap()
            );
        }
    }
}

#[tokio::test]
async fn a_set_that_leaves_out_nothing_is_given_up_where_every_node_gives_it_up() {
    let node = node_with_rows().await;
    let filter = and(member("id", numbers(0..10_000)), compare("key", Operator::Lt, 900_i64));
    let fragment = fragment(&schema(), Some(filter), &["id", "comment"], None);
    let expected: Vec<i64> = (0..ROWS).filter(|id| id % 7 != 3 && id % 1000 < 900).collect();
    for skip in [0, 1, 5_000, 9_000, expected.len()] {
        let scanned = scan(&node, scan_request(Arc::clone(&fragment), &[(1, skip as u64)])).await.unwrap();
        let batches = scanned.rows_of(0);
        let ids = batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values());
        let found: Vec<i64> = ids.copied().collect();
        assert_eq!(found, expected[skip..]);
    }
}
