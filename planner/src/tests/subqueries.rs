//! Filters that need scalar subqueries: they run at storage, with the values that the subqueries had.

use std::sync::Arc;

use aubade_proto::Reduction;
use datafusion::catalog::MemTable;
use datafusion::execution::SessionStateBuilder;
use datafusion::physical_plan::collect;

use super::{
    MemoryAccess, PlanTemplate, Planner, PlannerOptions, TableAccess, check, explain, failure, planner_with, reference,
    rows, run, snapshot, storage_scans, tables, visits, with_settings,
};

/// Filters on orders, and whether something of them stays above the scan.
const FILTERED: &[&str] = &[
    "select id from orders where total > (select avg(total) from orders)",
    "select count(*) from orders where total > (select avg(total) from orders where status = 'open') and id < 90",
    "select status, sum(total), min(id) from orders where id > (select max(id) from customer) group by status",
    "select id from orders where id between (select max(id) from customer) and (select 3 * max(id) from customer)",
    "select count(*) from orders where total * 2 < 0.4 * (select sum(total) from orders where id < 9)",
    "select id, total from orders where id < (select max(id) from customer) order by total desc limit 3",
    "select status from orders where status = (select min(status) from orders) limit 2",
    "select comment from orders where day = (select max(day) from orders)",
    "select id from orders where buyer = (select max(id) from customer where id > (select avg(id) from customer))",
    "select count(*) from orders where id > (select max(a) from sales.nothing)",
    "select count(*), max(id) from orders where id > (select max(a) from sales.nothing) or id = 5",
    "select count(*) from orders where buyer is distinct from (select max(a) from sales.nothing)",
    "select id from orders where coalesce((select max(a) from sales.nothing), 95) < id",
    "select id from orders where (select count(*) from customer) > 9 and id < 3",
    "select id from orders where (select count(*) from customer) > 10 and id < 3",
    "select id from orders where id in (50, (select min(id) from customer), 1 + (select max(id) from customer))",
    "select case when id > 50 then 'a' end from orders where case when id < 9 then 1 else 2 end = (select min(id) + 1 from customer)",
    "select count(*) from orders where comment like (select '%' || max(name) || '%' from customer)",
    "select count(*) from orders where status not like (select min(status) || '%' from orders)",
    "select id from (select id, id * 2 as twice from orders) t where twice > (select 15 * max(id) from customer)",
];

fn has_filter(plan: &str) -> bool {
    plan.lines().any(|line| line.trim_start().starts_with("FilterExec"))
}

#[tokio::test]
async fn filters_with_scalar_subqueries_run_at_storage() {
    for sql in FILTERED {
        check(sql).await;
        let plan = explain(sql).await;
        assert!(plan.contains("(scalar subquery)") && !has_filter(&plan), "{sql}\n{plan}");
        let expected = reference().sql(sql).await.unwrap().collect().await.unwrap();
        for pushdown in ["on", "off"] {
            let (plan, got) = with_settings(sql, &[("aubade.pushdown", pushdown)]).await;
            assert_eq!(got, rows(&expected, sql), "{sql}\n{plan}");
            assert_eq!(has_filter(&plan), pushdown == "off", "{sql}\n{plan}");
        }
    }
    let sql = "select count(*), sum(id) from orders where total > (select avg(total) from orders) and status = 'open'";
    insta::assert_snapshot!(explain(sql).await, @r"
    ScalarSubqueryExec: subqueries=1
      ProjectionExec: expr=[count(Int64(1))@0 as count(*), sum(orders.id)@1 as sum(orders.id)]
        AggregateExec: mode=Final, gby=[], aggr=[count(Int64(1)), sum(orders.id)]
          CoalescePartitionsExec
            StorageScanExec: table=public.orders, segments=4/4, columns=[id, status, total], filter=status = open AND CAST(total AS Decimal128(19, 6)) > (scalar subquery), projection=[id], aggregate=AggregateExec: mode=Partial, gby=[], aggr=[count(Int64(1)), sum(orders.id)]
      AggregateExec: mode=Final, gby=[], aggr=[avg(orders.total)]
        CoalescePartitionsExec
          StorageScanExec: table=public.orders, segments=4/4, columns=[total], aggregate=AggregateExec: mode=Partial, gby=[], aggr=[avg(orders.total)]
    ");
}

#[tokio::test]
async fn outputs_and_aggregates_need_scalar_subqueries() {
    for (sql, part) in [
        ("select sum(id * (select max(id) from customer)) from orders where id < 50", "aggregate="),
        ("select sum(id) filter (where total > (select avg(total) from orders)), count(*) from orders", "aggregate="),
        (
            "select case when total > (select avg(total) from orders) then 'high' else status end, count(*) from orders group by 1",
            "aggregate=",
        ),
        (
            "select id + (select max(id) from customer) as x, max(total) from orders group by x having max(total) > 70",
            "aggregate=",
        ),
        (
            "select status, count(*), max(id % (select max(id) from customer)) from orders group by rollup (status)",
            "aggregate=",
        ),
        ("select total - (select avg(total) from orders), id from orders where id < 9", "projection="),
        (
            "select id, total - (select avg(total) from orders) as d from orders order by d desc, id limit 4",
            "first rows=",
        ),
        ("select coalesce(status, (select max(name) from customer)) from orders", "projection="),
        ("select id * (select max(a) from sales.nothing), id from orders where id > 90", "projection="),
        (
            "select name, o.id from customer join (select id, id - (select max(id) from customer) as b from orders) o on o.b = customer.id",
            "join keys of",
        ),
    ] {
        check(sql).await;
        let expected = reference().sql(sql).await.unwrap().collect().await.unwrap();
        for pushdown in ["on", "off"] {
            let (plan, got) = with_settings(sql, &[("aubade.pushdown", pushdown)]).await;
            assert_eq!(got, rows(&expected, sql), "{sql}\n{plan}");
            assert_eq!(plan.contains(part), pushdown == "on", "{sql}\n{plan}");
        }
    }
}

#[tokio::test]
async fn joins_and_orders_have_filters_with_subqueries_below_them() {
    for sql in [
        "select name, total from orders join customer on buyer = customer.id where total > (select avg(total) from orders)",
        "select name from customer where id > (select min(buyer) from orders) and not exists (select 1 from orders where buyer = customer.id and id > (select max(id) from customer))",
        "select name, o.id from customer left join (select * from orders where id > (select max(id) from customer)) o on buyer = customer.id order by 1, 2 limit 20",
        "select a.id from orders a join orders b on a.id = b.buyer where a.id > (select min(id) + 1 from customer) and b.id < (select 9 * max(id) from customer)",
        "select id from orders where id > (select max(id) from customer) union all select id from customer where id > (select avg(buyer) from orders)",
        "with big as (select * from orders where total > (select avg(total) from orders)) select a.id from big a join big b on a.id = b.id + 1",
        "select id, total - (select avg(total) from orders) from orders where id < (select max(id) from customer)",
        "select id from orders where id > (select max(id) from customer) order by id + (select min(id) from customer), day limit 5",
        "select name, (select max(total) from orders where id < (select max(id) from customer)) from customer",
    ] {
        check(sql).await;
        for pushdown in ["on", "off"] {
            let expected = reference().sql(sql).await.unwrap().collect().await.unwrap();
            let (plan, got) = with_settings(sql, &[("aubade.pushdown", pushdown)]).await;
            assert_eq!(got, rows(&expected, sql), "{sql}\n{plan}");
        }
    }
    let sql = "select name, sum(total) from orders join customer on buyer = customer.id where total > (select avg(total) from orders) group by name";
    check(sql).await;
    let (plan, got) = with_settings(sql, &[("aubade.pushdown", "on")]).await;
    let expected = reference().sql(sql).await.unwrap().collect().await.unwrap();
    assert_eq!(got, rows(&expected, sql), "{plan}");
    assert!(plan.contains("BroadcastExec") && !has_filter(&plan), "{plan}");
}

#[tokio::test]
async fn values_of_subqueries_rule_out_segments() {
    for (condition, pruned, read) in [
        ("id > (select 8 * max(id) from customer)", 2, vec![2, 3]),
        ("id > (select 10 * max(id) from customer)", 3, vec![3]),
        ("day <= (select min(day) from orders)", 3, vec![0]),
        ("id < (select max(id) from customer) and id > 30", 4, vec![]),
        ("id > (select max(a) from sales.nothing)", 4, vec![]),
        ("comment > (select min(name) from customer)", 0, vec![0, 1, 2, 3]),
    ] {
        let (planner, access) = planner_with(&[]);
        let query = planner.plan(&format!("select count(*) from orders where {condition}")).await.unwrap();
        run(&query).await.unwrap();
        let scan = storage_scans(query.physical_plan()).swap_remove(0);
        let metrics = scan.scan_metrics();
        assert_eq!(metrics.segments_pruned_runtime.value(), pruned - metrics.segments_pruned.value(), "{condition}");
        let tasks = access.tasks.lock();
        let counts = |reduction: &Reduction| reduction.describe().contains("count(");
        let of_scan = tasks.iter().filter(|task| task.fragment.planned().reduction().is_some_and(counts));
        let mut segments: Vec<usize> = of_scan.flat_map(|task| task.segments.clone()).collect();
        segments.sort_unstable();
        assert_eq!(segments, read, "{condition}");
    }
}

#[tokio::test]
async fn a_subquery_with_several_rows_fails_as_ever() {
    for sql in [
        "select id from orders where id > (select id from customer)",
        "select count(*) from orders where id < 0 and id > (select id from customer)",
    ] {
        let error = failure(sql).await;
        assert!(error.to_string().contains("more than one row"), "{sql}: {error}");
    }
}

#[tokio::test]
async fn conditions_on_groups_may_need_subqueries() {
    let tables = [visits()];
    let options = PlannerOptions { target_partitions: Some(2), batch_rows: None };
    let planner = Planner::with_access(snapshot(&tables, &[]), MemoryAccess::new(&tables) as _, &options);
    let context = reference();
    let partitions = tables[0].segments.iter().map(|batch| vec![batch.clone()]).collect();
    let memory = MemTable::try_new(Arc::clone(&tables[0].schema), partitions).unwrap();
    context.register_table("visits", Arc::new(memory)).unwrap();
    for (sql, shown) in [
        (
            "select k, sum(amount) from visits group by k having sum(amount) > (select 5 * avg(amount) from visits)",
            "having=CAST(sum(visits.amount)[sum] AS Float64) > (scalar subquery) OR k = 10",
        ),
        (
            "select k, count(*) from visits group by k having count(*) > (select max(amount) from visits where k > 99)",
            "having=count(Int64(1))[count] > (scalar subquery) OR ",
        ),
        (
            "select k from visits where amount > (select avg(amount) from visits) group by k having count(*) > (select 2) and max(amount) = (select max(amount) from visits)",
            "having=",
        ),
        (
            "with s as (select k, sum(amount) as s from visits group by k) select k from s where s = (select max(s) from s)",
            "read by=2 places, not pushed: filter of groups: it needs the result of a subquery, for which",
        ),
    ] {
        let query = planner.plan(sql).await.unwrap();
        assert!(query.explain().contains(shown), "{sql}: {shown} is missing in\n{}", query.explain());
        let got = run(&query).await.unwrap();
        let expected = context.sql(sql).await.unwrap().collect().await.unwrap();
        assert_eq!(rows(&got, sql), rows(&expected, sql), "{sql}");
    }
}

/// Plans are copied while others run, and after one was given up.
#[tokio::test]
async fn copies_of_a_kept_plan_have_results_of_their_own() {
    let (tables, options) = (tables(), PlannerOptions { target_partitions: Some(2), batch_rows: None });
    let access: Arc<dyn TableAccess> = MemoryAccess::new(&tables);
    let snapshot = snapshot(&tables, &[]);
    let rules = crate::pipeline::first_rules();
    let full = crate::session_state(crate::session_config(&options), Arc::default());
    let first = SessionStateBuilder::new_from_existing(full.clone()).with_physical_optimizer_rules(rules).build();
    let state = crate::bind_snapshot(&first, Arc::clone(&snapshot), Arc::clone(&access));
    for (sql, is_exclusive) in [
        ("select count(*) from orders where total > (select avg(total) from orders) and id < 90", false),
        (
            "select id, id + (select max(id) from customer where id < (select avg(id) from customer)) from orders where id > 95",
            false,
        ),
        (
            "select status, count(*) from orders group by status having count(*) > (select count(*) / 4 from orders where id > 0)",
            false,
        ),
        (
            "select name from customer where id = (select max(buyer) from orders) and not exists (select 1 from orders where id = (select 5))",
            false,
        ),
        ("select max(id + (select max(id) from customer)) from orders", true),
        ("select id from orders order by id - (select max(id) from customer) desc limit 3", true),
        ("select id, max(total) filter (where total < (select avg(total) from orders)) over () from orders", true),
        ("select max(id) over (partition by status) from orders", false),
    ] {
        let expected = rows(&reference().sql(sql).await.unwrap().collect().await.unwrap(), sql);
        let plan = state.create_logical_plan(sql).await.unwrap();
        let plan = state.create_physical_plan(&plan).await.unwrap();
        let kept = PlanTemplate::try_new(&plan, Vec::new()).unwrap().unwrap();
        assert_eq!(kept.is_exclusive(), is_exclusive, "{sql}");
        let original = kept.finish(plan, &snapshot, full.config_options()).unwrap();
        let copy = || kept.instantiate(&snapshot, &access, full.config_options()).unwrap();
        let ran = async |plan| rows(&collect(plan, state.task_ctx()).await.unwrap(), sql);
        assert_eq!(ran(original).await, expected, "{sql}");
        if is_exclusive {
            assert_eq!([ran(copy()).await, ran(copy()).await], [expected.clone(), expected], "{sql}");
            continue;
        }
        let copies = [copy(), copy(), copy()];
        drop(copies[0].execute(0, state.task_ctx()).unwrap());
        let [_, one, other] = copies;
        let (one, other) = tokio::join!(ran(one), ran(other));
        assert_eq!([one, other, ran(copy()).await], [&expected; 3].map(Clone::clone), "{sql}");
    }
}
