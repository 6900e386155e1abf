//! Groups by codes of what a scan gives.

use super::{check, explain};

const JOINED: &str = "orders join customer on buyer = customer.id";

async fn check_coded(sql: &str, keys: &[&str]) {
    check(sql).await;
    let explain = explain(sql).await;
    let coded: Vec<&str> =
        explain.lines().filter_map(|line| line.split_once("CodeKeysExec: keys=[")).map(|(_, keys)| keys).collect();
    let mut coded: Vec<&str> = coded.into_iter().filter_map(|keys| keys.split(']').next()).collect();
    coded.sort_unstable();
    assert_eq!(coded, keys, "{sql}\n{explain}");
}

#[tokio::test]
async fn joined_rows_are_grouped_by_codes_of_texts() {
    for (select, group, keys) in [
        ("name, \"Region\", sum(total), count(*)", "name, \"Region\"", &["name, Region"][..]),
        ("\"Region\", avg(total), round(stddev(total), 6), name", "\"Region\", name", &["Region, name"]),
        ("name, \"Region\", min(status)", "name, \"Region\"", &["name, Region"]),
        ("\"Region\", status, name, count(*)", "status, \"Region\", name", &["Region, name"]),
        ("name, customer.id, \"Region\", count(*)", "customer.id, name, \"Region\"", &["name, Region"]),
        ("name, \"Region\", sum(total) filter (where status = 'open')", "name, \"Region\"", &["name, Region"]),
        ("name, count(*)", "name, \"Region\" having count(*) > 8 and name <> 'customer 3'", &["name, Region"]),
        ("name || '!', count(*) as n", "name, \"Region\" order by n desc, name limit 3", &["name, Region"]),
        ("name, upper(name), count(*)", "name, upper(name), \"Region\"", &["name, Region"]),
        // One key by itself is not worth it.
        ("name, sum(total), count(*)", "name", &[]),
    ] {
        check_coded(&format!("select {select} from {JOINED} group by {group}"), keys).await;
    }
}

#[tokio::test]
async fn distinct_values_are_counted_by_codes() {
    for (select, group) in [
        ("name, \"Region\", count(distinct status)", "name, \"Region\""),
        ("\"Region\", count(distinct status), name", "\"Region\", name"),
        ("name, \"Region\", count(distinct day), day > date '1995-01-01'", "name, day > date '1995-01-01', \"Region\""),
        ("name, \"Region\", count(distinct buyer), max(buyer)", "name, \"Region\""),
        ("name, \"Region\", sum(distinct total), avg(total)", "name, \"Region\""),
        ("name, \"Region\", count(distinct status), count(distinct day)", "name, \"Region\""),
    ] {
        let sql = format!("select {select} from {JOINED} group by {group}");
        check(&sql).await;
        let explain = explain(&sql).await;
        assert!(explain.contains("CodeKeysExec: keys=["), "{sql}\n{explain}");
    }
    // The upper aggregate has the keys in another order.
    let turned = "select name, \"Region\", sum(buyer), count(*) from (select distinct \"Region\", name, buyer from orders \
                  join customer on buyer = customer.id) t group by name, \"Region\"";
    check_coded(turned, &["Region, name"]).await;
    // It groups by one of both.
    let one = "select name, count(*) from (select distinct name, \"Region\", status from orders join customer on \
               buyer = customer.id) t group by name";
    check(one).await;
}

#[tokio::test]
async fn keys_of_every_scan_have_codes_of_their_own() {
    let twice = "select a.name, b.name, a.\"Region\", count(*), sum(total) from customer a join orders on a.id = buyer \
                 join customer b on b.id = buyer group by a.name, b.name, a.\"Region\"";
    check_coded(twice, &["name, Region"]).await;
    for sql in [
        "select x.name, x.n, y.name from (select name, count(*) as n from orders join customer on buyer = customer.id \
         group by name) x join customer y on x.name = y.name",
        "select name, count(*) from orders join customer on buyer = customer.id group by name union all \
         select status, count(*) from orders group by status",
        "select name, n, sum(n) over (partition by name) from (select name, \"Region\", count(*) as n from orders join \
         customer on buyer = customer.id group by name, \"Region\") t",
        "select x.name, x.n, y.n from (select name, count(*) as n from orders join customer on buyer = customer.id group \
         by name) x join (select name, count(distinct status) as n from orders join customer on buyer = customer.id \
         group by name) y on x.name = y.name",
    ] {
        check(sql).await;
    }
}

#[tokio::test]
async fn kept_sides_of_outer_joins_have_codes() {
    let left = "select name, \"Region\", count(orders.id) from customer left join orders on customer.id = buyer and day < \
                date '1994-10-20' group by name, \"Region\"";
    check(left).await;
    let semi = "select name, \"Region\", count(*) from orders join customer on buyer = customer.id where exists (select \
                1 from orders o where o.buyer = customer.id and o.id < 40) group by name, \"Region\"";
    check(semi).await;
    // Null where there is no partner, which is no code.
    check_coded("select name, \"Region\", count(*) from orders left join customer on buyer = customer.id and name <> 'customer 2' group by name, \"Region\"", &[]).await;
    check_coded("select name, \"Region\", count(*) from orders full join customer on buyer = customer.id group by name, \"Region\"", &[]).await;
}

#[tokio::test]
async fn keys_that_are_looked_at_have_no_codes() {
    for (select, more) in [
        ("upper(name), count(*)", "group by upper(name)"),
        ("name, \"Region\", max(name)", "group by name, \"Region\""),
        ("name, \"Region\", count(*) filter (where name > 'customer 4')", "group by name, \"Region\""),
        ("name, \"Region\", count(*)", "and name > status group by name, \"Region\""),
        ("name, \"Region\", count(*)", "group by rollup (name, \"Region\")"),
        ("name, \"Region\", array_agg(total order by total desc)", "group by name, \"Region\" order by name"),
        ("buyer, count(*)", "group by buyer"),
        ("comment, count(*)", "group by comment"),
    ] {
        check_coded(&format!("select {select} from {JOINED} {more}"), &[]).await;
    }
}
