//! What has to be at storage, however DataFusion has written the plan.

use super::{check, explain, planner_with};

/// Whether one of some operators is in a plan, and not only in a fragment.
fn has_operator(plan: &str, operators: &[&str]) -> bool {
    plan.lines().any(|line| operators.iter().any(|operator| line.trim_start().starts_with(operator)))
}

/// Checks the answer, and that the plan has `part` in a fragment, and nothing that should be there as well.
async fn check_pushed(sql: &str, part: &str) -> String {
    check(sql).await;
    let plan = explain(sql).await;
    assert!(plan.contains(part) && !plan.contains("not pushed"), "{sql}\n{plan}");
    plan
}

#[tokio::test]
async fn what_a_filter_shares_with_itself_does_not_keep_it_above_the_scan() {
    for sql in [
        "select count(*) from orders where date_trunc('month', day) >= '1994-09-01' and date_trunc('month', day) < '1994-10-01'",
        "select sum(id) from orders where id between 2.5 and 40.5",
        "select id from orders where id * 2.5 > 30 and id * 2.5 < 99 and status = 'open'",
        "select status, count(*) from orders where to_char(day, '%Y-%m') = '1994-09' or to_char(day, '%Y-%m') = '1994-10' group by status",
        "select max(total) from (select * from orders where cast(id as varchar) || 'x' > '3' and cast(id as varchar) || 'x' < '5') t",
    ] {
        let plan = check_pushed(sql, "filter=").await;
        assert!(!has_operator(&plan, &["FilterExec", "AggregateExec: mode=Partial"]), "{sql}\n{plan}");
    }
}

#[tokio::test]
async fn a_filter_that_cannot_be_pushed_stays_above_a_wide_projection_and_the_others_go() {
    let sql = "select id from orders where id * 2.5 > 30 and id * 2.5 < 99 and random() < 2";
    check(sql).await;
    let plan = explain(sql).await;
    assert!(plan.contains("FilterExec: random") && plan.contains("filter=CAST"), "{plan}");
}

#[tokio::test]
async fn the_first_rows_by_a_wide_expression_are_found_at_storage() {
    for sql in [
        "select id, id * 1.5 as x from orders order by x desc, id limit 3",
        "select date_trunc('month', day) as month, id from orders order by month, id limit 4 offset 2",
    ] {
        let plan = check_pushed(sql, "first rows=").await;
        assert!(!has_operator(&plan, &["ProjectionExec"]), "{sql}\n{plan}");
    }
}

#[tokio::test]
async fn aggregates_that_know_what_they_order_by_are_pushed() {
    for sql in [
        "select first_value(id order by total desc, id), last_value(id order by total, id) from orders",
        "select status, first_value(comment order by id desc) from orders group by status",
        "select percentile_cont(0.25) within group (order by id) from orders",
        "select approx_percentile_cont(0.5) within group (order by id desc) from orders",
        "select distinct on (status) status, id from orders order by status, id desc",
    ] {
        check_pushed(sql, "aggregate=").await;
    }
}

#[tokio::test]
async fn what_an_aggregate_orders_by_has_to_be_pushable_too() {
    for (sql, reason) in [
        ("select first_value(id order by random()) from orders", "random gives another value each time"),
        ("select first_value(id order by (select max(id) from customer) - id) from orders", "a subquery"),
    ] {
        let plan = explain(sql).await;
        assert!(plan.contains(reason) && !plan.contains("aggregate="), "{sql}\n{plan}");
    }
}

#[tokio::test]
async fn guesses_of_few_rows_keep_no_aggregate_above_the_scan() {
    for sql in [
        "select count(*), sum(id) from orders where id = 5 and buyer = 3",
        "select id, count(*) from orders where id < 3 group by id",
    ] {
        check_pushed(sql, "aggregate=").await;
    }
}

#[tokio::test]
async fn counts_and_bounds_of_segments_that_a_filter_takes_whole_scan_nothing() {
    for sql in [
        "select count(*), min(id), max(id) from orders where id >= 0",
        "select count(*), max(id) from orders where id < 25",
        "select count(*) from orders where 49 < id and id is not null",
        "select count(buyer), count(*) from orders where id between 25 and 74",
        "select min(id), max(id), count(*) from orders where day is not null and id <> 1000",
    ] {
        check(sql).await;
        let query = planner_with(&[]).0.plan(sql).await.unwrap();
        assert!(query.fragments().is_empty(), "{sql}\n{}", query.explain());
    }
    for sql in [
        "select count(*), max(id) from orders where id < 26",
        "select count(*) from orders where buyer > -1",
        "select count(*) from orders where buyer is null",
        "select count(*) from orders where id >= 0 or buyer = 3",
        "select count(*) from orders where id > 24 and id % 2 = 0",
        "select sum(id) from orders where id >= 0",
    ] {
        check(sql).await;
        let query = planner_with(&[]).0.plan(sql).await.unwrap();
        assert_eq!(query.fragments().len(), 1, "{sql}\n{}", query.explain());
    }
}

#[tokio::test]
async fn aggregates_over_a_union_go_to_its_scans() {
    for (sql, pushed) in [
        (
            "select k, sum(v), count(*) from (select status as k, id as v from orders union all select name, id from customer where id < 6) t group by k",
            2,
        ),
        (
            "select count(*), max(v) from (select id as v from orders where id % 2 = 0 union all select id + 1 from customer where name <> 'customer 1') t",
            2,
        ),
        (
            "select sum(v) from (select id as v from orders union all select a.id from orders a join customer b on a.id = b.id) t",
            1,
        ),
        (
            "select v, count(*) from (select buyer as v from orders union all select id from customer) t group by v order by v",
            1,
        ),
    ] {
        check(sql).await;
        let plan = explain(sql).await;
        assert_eq!(plan.matches("aggregate=AggregateExec").count(), pushed, "{sql}\n{plan}");
    }
}

#[tokio::test]
async fn long_lists_are_cut_short() {
    let list = (0..5_000).map(|number| (number * 3).to_string()).collect::<Vec<_>>().join(", ");
    for (sql, shown) in [
        (
            format!("select id from orders where id in ({list})"),
            "filter=id IN (0, 3, 6, 9, 12, 15, 18, 21, 24, 27, ... and 4990 more)",
        ),
        (
            format!("select id from orders where status = 'open' and id not in ({list})"),
            "id NOT IN (0, 3, 6, 9, 12, 15, 18, 21, 24, 27, ... and 4990 more)",
        ),
        ("select id from orders where id in (1, 5, 9, 13)".to_owned(), "filter=id IN (1, 5, 9, 13)"),
    ] {
        let plan = explain(&sql).await;
        assert!(plan.contains(shown) && plan.len() < 1_000, "{plan}");
    }
}
