//! Aggregates that take their rows in an order.

use super::{check, explain, reference, rows, with_settings};

/// Checks the answer under a setting of what is pushed, and returns the plan.
async fn check_with(sql: &str, pushdown: &str) -> String {
    let expected = rows(&reference().sql(sql).await.unwrap().collect().await.unwrap(), sql);
    let (plan, got) = with_settings(sql, &[("aubade.pushdown", pushdown)]).await;
    assert_eq!(got, expected, "{sql} with pushdown {pushdown}\n{plan}");
    plan
}

const KEEPING: &[&str] = &[
    "select array_agg(id order by total desc, id) from orders",
    "select status, array_agg(id order by id desc nulls first) from orders group by status order by status",
    "select status, string_agg(comment, ', ' order by id) from orders group by status order by status",
    "select string_agg(comment, ';' order by id desc) from orders where id < 0",
    "select buyer, array_agg(id order by id), array_agg(total order by id desc), count(*) from orders group by buyer order by buyer",
    "select buyer, array_agg(id order by id), array_agg(id order by comment desc, id) from orders group by buyer order by buyer",
    "select array_agg(id order by id) filter (where total > 50), string_agg(status, '' order by id desc) from orders",
    "select array_agg(id order by id), nth_value(id, 3 order by id desc) from orders",
];

const REDUCING: &[&str] = &[
    "select nth_value(id, 2 order by id) from orders",
    "select nth_value(id, 3 order by id desc), nth_value(comment, -2 order by id) from orders",
    "select nth_value(id, 1 order by buyer, id), nth_value(id, 2 order by buyer desc, id desc) from orders",
    "select nth_value(id, 2 order by id), nth_value(id, 2 order by id desc, total) from orders",
    "select nth_value(id, 2 order by id desc, total), nth_value(id, 2 order by id) from orders",
    "select nth_value(id, 1 order by buyer nulls first, id) from orders where id % 3 = 0",
    "select nth_value(id, 2 order by id) from orders where id < 0",
    "select status, nth_value(id, 2 order by id) from orders where id < 0 group by status order by status",
    "select status, nth_value(id, 2 order by total, id) from orders group by status order by status",
    "select status, nth_value(id, -3 order by id), sum(total), first_value(id order by id desc) from orders group by status order by status",
    "select status, nth_value(id, 2 order by id) filter (where buyer > 3) from orders group by status order by status",
    "select buyer, status, nth_value(id, 2 order by id) from orders group by rollup (buyer, status) order by buyer, status",
    "select status, array_agg(distinct buyer order by buyer desc) from orders group by status order by status",
    "select status, nth_value(id * 2, 2 order by -id) from orders group by status order by status",
    "select upper(status), nth_value(id, 100 order by id) from orders group by upper(status) order by 1",
    "select status from orders group by status having nth_value(id, 2 order by id) > 2 order by status",
];

#[tokio::test]
async fn what_keeps_some_of_its_values_is_pushed() {
    for sql in REDUCING {
        for pushdown in ["auto", "on"] {
            let plan = check_with(sql, pushdown).await;
            assert!(plan.contains("aggregate=") && !plan.contains("not pushed: aggregate"), "{sql}\n{plan}");
        }
        check_with(sql, "off").await;
    }
    let plan = explain("select status, nth_value(id, 2 order by id) from orders group by status").await;
    insta::assert_snapshot!(plan, @r"
    AggregateExec: mode=FinalPartitioned, gby=[status@0 as status], aggr=[nth_value(orders.id,Int64(2)) ORDER BY [orders.id ASC NULLS LAST]]
      RepartitionExec: partitioning=Hash([status@0], 2), input_partitions=2
        StorageScanExec: table=public.orders, segments=4/4, columns=[id, status], aggregate=AggregateExec: mode=Partial, gby=[status@1 as status], aggr=[nth_value(orders.id,Int64(2)) ORDER BY [orders.id ASC NULLS LAST]], of rows in the order=[id@0 ASC NULLS LAST]
    ");
}

#[tokio::test]
async fn what_keeps_all_values_is_pushed_where_everything_is() {
    for sql in KEEPING {
        let plan = check_with(sql, "auto").await;
        let reason = "keeps all its values, and what they are ordered by";
        assert!(plan.contains(reason) && !plan.contains("aggregate="), "{sql}\n{plan}");
        let plan = check_with(sql, "on").await;
        assert!(plan.contains("aggregate=") && !plan.contains("not pushed: aggregate"), "{sql}\n{plan}");
        check_with(sql, "off").await;
    }
}

#[tokio::test]
async fn operators_above_may_rely_on_the_order_of_the_groups() {
    for sql in [
        "select date_trunc('month', day), nth_value(id, 2 order by day, id) from orders group by 1 order by 1",
        "select date_trunc('month', day) as m, status, nth_value(id, 2 order by day, id) from orders group by 1, 2 order by 1, 2",
    ] {
        for pushdown in ["auto", "on", "off"] {
            let plan = check_with(sql, pushdown).await;
            assert_eq!(plan.contains("aggregate="), pushdown != "off", "{sql}\n{plan}");
        }
    }
}

#[tokio::test]
async fn ordered_aggregates_over_unions_and_joins_have_the_right_answers() {
    for sql in [
        "select k, nth_value(v, 3 order by v) from (select status as k, id as v from orders union all select name, id + 1000 from customer where id < 6) t group by k order by k",
        "select \"Region\", nth_value(orders.id, 2 order by orders.id desc) from orders join customer on buyer = customer.id group by \"Region\" order by 1",
        "select nth_value(id, 2 order by day, id) from (select id, day from orders order by id limit 30) t",
        "select array_agg(id order by id desc) from (select id from orders order by total) t",
    ] {
        check(sql).await;
        for pushdown in ["on", "off"] {
            check_with(sql, pushdown).await;
        }
    }
}
