//! Whole queries: their answers against plain DataFusion, their plans, and their errors.

mod group_keys;
mod join_notes;
mod kept_results;
mod keys_apart;
mod ordered_aggregates;
mod pushdown;
mod subqueries;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::{ArrayRef, Int64Array};
use arrow::record_batch::RecordBatch;
use arrow::util::pretty::pretty_format_batches;
use aubade_catalog::Snapshot;
use aubade_catalog::snapshot::NodeEntry;
use aubade_proto::{Error, ErrorCode, NodeId};
use datafusion::catalog::{MemTable, MemorySchemaProvider};
use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::physical_plan::{ExecutionPlan, displayable};
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::TryStreamExt;
use uuid::Uuid;

use crate::access::TableAccess;
use crate::embedded::{PlannedQuery, Planner, PlannerOptions};
use crate::storage_scans;
use crate::template::PlanTemplate;
use crate::test_support::{MemoryAccess, MemoryTable, customers, nothing, orders, snapshot};

fn tables() -> Vec<MemoryTable> {
    vec![orders(), customers(), nothing()]
}

fn planner_with(views: &[(&str, &str)]) -> (Planner, Arc<MemoryAccess>) {
    let tables = tables();
    let access = MemoryAccess::new(&tables);
    let options = PlannerOptions { target_partitions: Some(2), batch_rows: None };
    (Planner::with_access(snapshot(&tables, views), Arc::clone(&access) as _, &options), access)
}

async fn run(query: &PlannedQuery) -> Result<Vec<RecordBatch>, Error> {
    query.run()?.try_collect().await.map_err(Error::from)
}

/// Rows as text, sorted unless the query orders them.
fn rows(batches: &[RecordBatch], sql: &str) -> Vec<String> {
    let text = pretty_format_batches(batches).unwrap().to_string();
    let mut lines: Vec<String> = text.lines().filter(|line| !line.starts_with('+')).map(squeeze).collect();
    if !sql.to_lowercase().contains("order by") {
        lines.sort();
    }
    lines
}

fn squeeze(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The same tables in plain DataFusion.
fn reference() -> SessionContext {
    let config = SessionConfig::new().with_target_partitions(2);
    let context = SessionContext::new_with_config(config);
    let schema = Arc::new(MemorySchemaProvider::new());
    context.catalog("datafusion").unwrap().register_schema("sales", schema).unwrap();
    for table in tables() {
        let partitions = table.segments.iter().map(|batch| vec![batch.clone()]).collect();
        let memory = MemTable::try_new(Arc::clone(&table.schema), partitions).unwrap();
        context.register_table(format!("{}.{}", table.name.schema, table.name.name), Arc::new(memory)).unwrap();
    }
    context
}

async fn check(sql: &str) {
    let expected = reference().sql(sql).await.unwrap().collect().await.unwrap();
    let query = planner_with(&[]).0.plan(sql).await.unwrap();
    let got = run(&query).await.unwrap();
    assert_eq!(rows(&got, sql), rows(&expected, sql), "{sql}\n{}", query.explain());
}

async fn explain(sql: &str) -> String {
    planner_with(&[]).0.plan(sql).await.unwrap().explain()
}

async fn failure(sql: &str) -> Error {
    match planner_with(&[]).0.plan(sql).await {
        Err(error) => error,
        Ok(query) => run(&query).await.unwrap_err(),
    }
}

#[tokio::test]
async fn answers_are_those_of_datafusion() {
    for sql in [
        "select * from orders",
        "select * from orders where id < 30 and status = 'open'",
        "select comment from orders where id between 20 and 30",
        "select id, id as again, total from orders where buyer is null",
        "select total, id from orders where upper(status) = 'CLOSED' and day > date '1994-09-01'",
        "select length(comment), id + 1 from orders where id % 2 = 0",
        "select 1, 'x' from orders where id < 3",
        "select id * 2 as twice, id * 3 as thrice, id from orders where id in (1, 50, 99, 1000)",
        "select case when buyer > 5 then 'big' else status end from orders where comment like '%number 1%'",
        "select * from (select id as x, total as y from orders where id > 10) t where x < 20 and y > 16.5",
        "select a.id, b.id from orders a join orders b on a.id = b.buyer where a.id > 2 and b.status is not null",
        "select \"Region\", sum(total), count(*) from orders join customer on buyer = customer.id where day < date '1994-10-20' group by \"Region\"",
        "select status, avg(total) from orders group by status having count(*) > 3",
        "select id, row_number() over (partition by status order by id desc) from orders where id < 40",
        "select distinct status from orders where buyer not in (1, 2)",
        "select cast(total as double) / 3, id from orders where cast(id as varchar) like '1%' order by id desc",
        "select id from orders order by day desc, id limit 7 offset 3",
        "select id from orders where status = 'open' order by id limit 4",
        "select * from orders where 1 = 0",
        "select id from orders union all select id from customer where name <> 'customer 3'",
        "select name from customer where exists (select 1 from orders where buyer = customer.id and total > 100)",
        "select name from customer where id = (select max(buyer) from orders)",
        "select id, total from orders where total > (select avg(total) from orders where status = 'open') and id < 90",
        "select * from sales.nothing where a > 1",
        "select count(*), max(a) from sales.nothing",
        "select o.id from orders o left join sales.nothing n on o.id = n.a where n.a is null and o.id < 5",
        "select id from orders where (buyer is distinct from 3) and not (status = 'open' or id > 60)",
        "select substr(comment, 1, 5) || status, id from orders where comment is not null",
        "with recursive r(n) as (select 1 union all select n + 1 from r where n < 3) select id from orders join r on id = n",
    ] {
        check(sql).await;
    }
}

#[tokio::test]
async fn counts_are_right_with_and_without_columns() {
    for sql in [
        "select count(*) from orders",
        "select count(*) from orders where status = 'open'",
        "select count(comment), count(*), min(id), max(day) from orders",
        "select count(*) from (select id from orders limit 30) t",
        "select count(*) from (select id + 1 from orders where id > 70) t",
        "select count(distinct buyer) from orders where id < 60",
        "select sum(1) from orders where random() >= 0",
        "select count(*) from orders, customer where orders.id > 95",
    ] {
        check(sql).await;
    }
}

#[tokio::test]
async fn a_count_of_all_rows_scans_nothing() {
    let (planner, access) = planner_with(&[]);
    let query = planner.plan("select count(*), min(id), max(id) from orders").await.unwrap();
    assert!(query.fragments().is_empty(), "{}", query.explain());
    assert_eq!(rows(&run(&query).await.unwrap(), "order by")[1], "| 100 | 0 | 99 |");
    assert!(access.tasks.lock().is_empty());
}

#[tokio::test]
async fn limits_hold_although_each_partition_has_its_own() {
    for (sql, expected) in [
        ("select id from orders limit 7", 7),
        ("select id from orders limit 40", 40),
        ("select id from orders where status = 'open' limit 5 offset 3", 5),
        ("select id from orders limit 0", 0),
        ("select * from (select id from orders limit 30) t where id >= 0", 30),
        ("select id + 1 from (select id from orders where id > 20 limit 10) t limit 8", 8),
        ("select id from orders limit 1000", 100),
    ] {
        let query = planner_with(&[]).0.plan(sql).await.unwrap();
        let count: usize = run(&query).await.unwrap().iter().map(RecordBatch::num_rows).sum();
        assert_eq!(count, expected, "{sql}\n{}", query.explain());
    }
}

/// Checks that the plan of `sql` has each of `parts` and, if there is one, not `without`.
async fn check_plan(sql: &str, parts: &[&str], without: Option<&str>) {
    let plan = explain(sql).await;
    for part in parts {
        assert!(plan.contains(part), "{part} is missing in\n{plan}");
    }
    assert!(without.is_none_or(|without| !plan.contains(without)), "{without:?} is in\n{plan}");
}

#[tokio::test]
async fn filter_projection_and_limit_run_at_storage() {
    let sql = "select id, length(comment) from orders where day >= date '1994-10-01' and status = 'open' limit 3";
    let filter = "filter=day >= 1994-10-01 AND status = open";
    let parts =
        ["segments=3/4", "columns=[id, status, day, comment]", filter, "character_length(comment) as", "limit=3"];
    check_plan(sql, &parts, Some("ProjectionExec")).await;
}

#[tokio::test]
async fn what_is_not_pushed_says_why() {
    let volatile = explain("select id from orders where random() < 2 and id > 80").await;
    insta::assert_snapshot!(volatile, @r"
    FilterExec: random() < 2
      RepartitionExec: partitioning=RoundRobinBatch(2), input_partitions=1
        StorageScanExec: table=public.orders, segments=1/4, columns=[id], filter=id > 80, not pushed: filter random() < 2: random gives another value each time
    ");
    let wide = "select comment, upper(comment), id from orders where id < 3";
    let reason = "it would send more bytes than its columns have";
    check_plan(wide, &["ProjectionExec", "columns=[id, comment]", reason], None).await;
    let ordered = "select status, array_agg(id order by id) from orders group by status";
    let sorted = "SortExec: expr=[id@0 ASC NULLS LAST]";
    let reason = "not pushed: aggregate: array_agg keeps all its values, and what they are ordered by";
    check_plan(ordered, &["mode=Partial", sorted, "columns=[id, status]", reason], None).await;
    let unique = "select id, count(*) from orders group by id";
    check_plan(unique, &["not pushed: aggregate: it has about as many groups as rows"], None).await;
    let subquery = "select id from orders where id > 3 order by id - (select min(id) from customer) limit 3";
    check_plan(subquery, &["filter=id > 3", "not pushed: first rows: it needs the result of a subquery"], None).await;
    check_plan("select id from orders order by day", &["not pushed: sort: runs on the coordinator"], None).await;
}

#[tokio::test]
async fn both_sides_of_a_join_are_cut_down() {
    let sql = "select name, total from orders join customer on buyer = customer.id where status = 'open' and name <> 'customer 1'";
    insta::assert_snapshot!(explain(sql).await, @r"
    YieldingExec
      HashJoinExec: mode=CollectLeft, join_type=Inner, on=[(id@0, buyer@0)], projection=[name@1, total@3]
        JoinKeysExec: keys=[id@0]
          CoalescePartitionsExec
            StorageScanExec: table=public.customer, segments=2/2, columns=[id, name], filter=name != customer 1, not pushed: join: runs on the coordinator: no aggregate makes less of its rows
        StorageScanExec: table=public.orders, segments=4/4, columns=[buyer, status, total], filter=status = open, projection=[buyer, total], at run time=[join keys of buyer@0], not pushed: join: runs on the coordinator: no aggregate makes less of its rows
    ");
}

#[tokio::test]
async fn aggregates_and_first_rows_are_pushed() {
    let aggregate = "select status, sum(total * 2) from orders where id < 50 group by status";
    check_plan(aggregate, &["segments=2/4", "aggregate=AggregateExec: mode=Partial"], None).await;
    let first = "select id, total from orders where status = 'open' order by total desc limit 3";
    check_plan(first, &["first rows=SortExec: TopK(fetch=3)"], None).await;
    for sql in [
        aggregate,
        first,
        "select count(*), sum(total), avg(total), min(day), max(comment) from orders where status = 'open'",
        "select count(*) from orders where id < 0 and status = 'open'",
        "select buyer, count(distinct status), stddev(total) from orders group by buyer",
        "select status, count(*) filter (where total > 50), sum(id) from orders group by rollup (status)",
        "select extract(year from day), max(total * 2) from orders group by 1",
        "select distinct status, buyer from orders",
        "select status, count(*) from orders group by status order by 2 desc, 1 limit 2",
        "select upper(status), count(*) from orders where comment like '%1%' group by upper(status) having count(*) > 1",
        "select id from orders order by day desc, id limit 5 offset 2",
    ] {
        check(sql).await;
    }
}

#[tokio::test]
async fn orders_over_grouping_sets_keep_what_a_filter_makes_constant() {
    for (below, expected) in [
        ("orders where buyer = 3", ["3", "3", "", ""].as_slice()),
        ("orders join customer on customer.id = buyer where buyer = 3", &["3", "3", "", ""]),
        (
            "(select buyer, status from orders where id in (1, 21, 31) order by buyer limit 9)",
            &["1", "1", "", "", "", ""],
        ),
    ] {
        let sql = format!("select buyer from {below} group by cube (buyer, status) order by buyer limit 6");
        for pushdown in ["auto", "on", "off"] {
            let (plan, got) = with_settings(&sql, &[("aubade.pushdown", pushdown)]).await;
            let got: Vec<_> = got.iter().skip(1).map(|line| line.trim_matches([' ', '|'])).collect();
            assert_eq!(got, expected, "{sql}\n{plan}");
        }
    }
}

/// Three segments of a key that ascends over them, with a value in common to each two, and nulls in the last one.
fn visits() -> MemoryTable {
    let segment = |first: i64| {
        let keys = (0..55).map(|row| (row < 50 || first < 20).then_some(first + row / 5));
        let amounts = (0..55).map(|row| (row * 7 + first) % 11);
        RecordBatch::try_from_iter_with_nullable([
            ("k", Arc::new(keys.collect::<Int64Array>()) as ArrayRef, true),
            ("amount", Arc::new(amounts.collect::<Int64Array>()), false),
        ])
        .unwrap()
    };
    MemoryTable::new("visits", [0, 10, 20].into_iter().map(segment).collect())
}

#[tokio::test]
async fn groups_that_are_whole_in_a_segment_are_left_out_there() {
    let table = visits();
    let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(2));
    let partitions = table.segments.iter().map(|batch| vec![batch.clone()]).collect();
    let memory = MemTable::try_new(Arc::clone(&table.schema), partitions).unwrap();
    context.register_table("visits", Arc::new(memory)).unwrap();
    let options = PlannerOptions { target_partitions: Some(2), batch_rows: None };
    let tables = [table];
    let planner = Planner::with_access(snapshot(&tables, &[]), MemoryAccess::new(&tables) as _, &options);
    for (sql, shown) in [
        (
            "select k, sum(amount) from visits group by k having sum(amount) > 25",
            "having=sum(visits.amount)[sum] > 25 OR k = 10 OR k = 20 OR k IS NULL",
        ),
        ("select k from visits group by k having count(*) > 5", "having=count(Int64(1))[count] > 5 OR "),
        (
            "select k, amount % 2, max(amount) from visits group by 1, 2 having max(amount) < min(amount) + 4",
            "having=max(visits.amount)[value] < min(visits.amount)[value] + 4 OR k = 10",
        ),
        (
            "select s from (select k, sum(amount) + 1 as s from visits group by k) where s > 26 and k < 15",
            "having=sum(visits.amount)[sum] + 1 > 26",
        ),
        (
            "select k from visits group by k having avg(amount) > 4",
            "filter of groups: the result of an aggregate function is not its state",
        ),
        (
            "select k from visits group by k having avg(amount) > 4 and sum(amount) > 20",
            "having=sum(visits.amount)[sum] > 20 OR ",
        ),
        (
            "select amount from visits group by amount having count(*) > 14",
            "filter of groups: groups may have rows in several segments",
        ),
        (
            "select k from visits group by k having sum(amount) > 20 or random() > 2",
            "filter of groups: random gives another value each time",
        ),
        (
            "select k, count(*) from visits where k < 20 group by rollup (k) having count(*) > 60",
            "aggregate=AggregateExec",
        ),
        (
            "select k from visits where k <> 10 group by k having 100 / (sum(amount) - 20) > 3 or sum(amount) = 20",
            "having=",
        ),
    ] {
        let query = planner.plan(sql).await.unwrap();
        assert!(query.explain().contains(shown), "{sql}: {shown} is missing in\n{}", query.explain());
        match run(&query).await {
            Ok(batches) => {
                let expected = context.sql(sql).await.unwrap().collect().await.unwrap();
                assert_eq!(rows(&batches, sql), rows(&expected, sql), "{sql}");
            }
            // In plain DataFusion as well.
            Err(error) => assert!(context.sql(sql).await.unwrap().collect().await.is_err(), "{sql}: {error}"),
        }
    }
    let empty = planner.plan("select k, sum(amount) from visits where k > 1 group by k having k > 28").await.unwrap();
    assert!(!empty.explain().contains("having="), "a filter on keys is one on rows: {}", empty.explain());
}

#[tokio::test]
async fn scans_hear_of_the_keys_of_joins() {
    let sql = "select name, total from customer join orders on customer.id = buyer where name = 'customer 3'";
    check(sql).await;
    let (planner, access) = planner_with(&[]);
    let query = planner.plan(sql).await.unwrap();
    assert!(query.explain().contains("at run time=[join keys of buyer@0]"), "{}", query.explain());
    run(&query).await.unwrap();
    let filter = {
        let tasks = access.tasks.lock();
        let probe = tasks.iter().find(|task| task.table.name.name == "orders").unwrap();
        probe.fragment.now().unwrap().filter().unwrap().to_string()
    };
    assert!(filter.contains("buyer@0 IN"), "{filter}");
    for sql in [
        "select count(*) from orders a join orders b on a.id = b.buyer and a.status = b.status where a.id < 30",
        "select name from customer where id not in (select buyer from orders where total > 100 and buyer is not null)",
        "select count(*) from customer left join orders on customer.id = buyer",
        "select count(*) from orders where buyer in (select id from customer where name like '%2%')",
        "select a.id from orders a join orders b on a.buyer is not distinct from b.buyer where b.id < 9",
        "with recursive r(n) as (select 1 union all select o.id + 20 from r join orders o on o.id = r.n) select n from r",
    ] {
        check(sql).await;
    }
}

#[tokio::test]
async fn scans_hear_of_the_bound_of_an_order_without_any_join() {
    let (planner, access) = planner_with(&[]);
    for sql in ["select id from orders order by total desc limit 3", "select comment from orders order by id limit 2"] {
        check(sql).await;
        let query = planner.plan(sql).await.unwrap();
        assert!(query.explain().contains("at run time=[bound of "), "{}", query.explain());
        run(&query).await.unwrap();
        let tasks = std::mem::take(&mut *access.tasks.lock());
        let bounds = tasks.iter().filter(|task| task.fragment.now().unwrap().filter().is_some());
        assert!(bounds.count() > 0, "{sql}");
    }
}

/// Facts with keys of days, as numbers, and of buyers; and these two tables.
fn star() -> Vec<MemoryTable> {
    let table = |name: &str, columns: Vec<(&str, Vec<i64>)>| {
        let columns = columns.into_iter().map(|(name, values)| (name, Arc::new(Int64Array::from(values)) as ArrayRef));
        MemoryTable::new(name, vec![RecordBatch::try_from_iter(columns).unwrap()])
    };
    let days: Vec<i64> = (1992..1999)
        .flat_map(|year| (1..=12).flat_map(move |month| (1..=28).map(move |day| year * 10_000 + month * 100 + day)))
        .collect();
    let of_year: Vec<i64> = days.iter().copied().filter(|day| day / 10_000 == 1998).collect();
    let facts = 0..20_000_i64;
    vec![
        table(
            "facts",
            vec![
                ("f_day", facts.clone().map(|row| of_year[row as usize % of_year.len()]).collect()),
                ("f_buyer", facts.clone().map(|row| row * 7 % 20_000).collect()),
                ("f_sum", facts.collect()),
            ],
        ),
        table("days", vec![("d_month", days.iter().map(|day| day / 100).collect()), ("d_day", days)]),
        table(
            "buyers",
            ["b_key", "b_region", "b_1", "b_2", "b_3", "b_4"]
                .map(|name| (name, (0..20_000).map(|key| if name == "b_region" { key % 5 } else { key }).collect()))
                .into(),
        ),
    ]
}

#[tokio::test]
async fn keys_of_the_small_tables_reach_the_facts_of_a_star_join() {
    let tables = star();
    let access = MemoryAccess::new(&tables);
    let options = PlannerOptions { target_partitions: Some(2), batch_rows: None };
    let planner = Planner::with_access(snapshot(&tables, &[]), access as _, &options);
    let sql = "select d_month, sum(f_sum + b_1 + b_2 + b_3 + b_4) from days, buyers, facts where f_day = d_day and f_buyer = b_key \
               and d_day between 19980101 and 19981231 and b_region = 3 group by d_month";
    let query = planner.plan(sql).await.unwrap();
    let explain = query.explain();
    let facts = explain.lines().find(|line| line.contains("table=public.facts")).unwrap();
    assert!(facts.contains("join keys of f_day@0") && facts.contains("join keys of f_buyer@1"), "{explain}");
    assert_eq!(run(&query).await.unwrap().iter().map(RecordBatch::num_rows).sum::<usize>(), 12);
}

/// The plan and the result of a query over orders and customers, with some settings.
async fn with_settings(sql: &str, settings: &[(&str, &str)]) -> (String, Vec<String>) {
    let tables = tables();
    let mut config = crate::session_config(&PlannerOptions { target_partitions: Some(2), batch_rows: Some(16) });
    for (name, value) in settings {
        config.options_mut().set(name, value).unwrap();
    }
    let template = crate::session_state(config, Arc::default());
    let state = crate::bind_snapshot(&template, snapshot(&tables, &[]), MemoryAccess::new(&tables));
    let plan = state.create_logical_plan(sql).await.unwrap();
    let plan = state.create_physical_plan(&plan).await.unwrap();
    let batches = datafusion::physical_plan::collect(Arc::clone(&plan), state.task_ctx()).await.unwrap();
    (displayable(plan.as_ref()).indent(true).to_string(), rows(&batches, sql))
}

#[tokio::test]
async fn copies_of_a_kept_plan_are_linked_as_plans_are() {
    let mut tables = star();
    tables[0].segments = vec![tables[0].segments[0].clone(); 4];
    let access: Arc<dyn TableAccess> = MemoryAccess::new(&tables);
    let base = snapshot(&tables, &[]);
    let with_nodes = |count: u128| {
        let mut snapshot = Snapshot::clone(&base);
        for number in 1..=count {
            let id = NodeId(Uuid::from_u128(number));
            let node = NodeEntry { id, zone: "a".to_owned(), address: format!("127.0.0.1:{number}") };
            snapshot.nodes.insert(id, node);
        }
        Arc::new(snapshot)
    };
    let config = crate::session_config(&PlannerOptions { target_partitions: Some(2), batch_rows: None });
    let full = crate::session_state(config, Arc::default());
    let rules = crate::pipeline::first_rules();
    let first = SessionStateBuilder::new_from_existing(full.clone()).with_physical_optimizer_rules(rules).build();
    let sql = "select b_region, sum(f_sum) from buyers, facts where f_buyer = b_key group by b_region";
    let planned = async |template: &SessionState, nodes| {
        let state = crate::bind_snapshot(template, with_nodes(nodes), Arc::clone(&access));
        let plan = state.create_logical_plan(sql).await.unwrap();
        state.create_physical_plan(&plan).await.unwrap()
    };
    let text = |plan: &Arc<dyn ExecutionPlan>| displayable(plan.as_ref()).indent(true).to_string();
    let plan = planned(&first, 4).await;
    let kept = PlanTemplate::try_new(&plan, Vec::new()).unwrap().unwrap();
    // Which of the last rules change it is found out with four nodes, to all of which no build side goes.
    let finished = kept.finish(plan, &with_nodes(4), full.config_options()).unwrap();
    assert_eq!(text(&finished), text(&planned(&full, 4).await));
    for nodes in [4, 4, 1, 1, 4] {
        let expected = text(&planned(&full, nodes).await);
        assert_eq!(expected.contains("BroadcastExec"), nodes == 1, "{expected}");
        assert!(expected.contains("JoinKeysExec") && expected.contains("YieldingExec"), "{expected}");
        let copy = kept.instantiate(&with_nodes(nodes), &access, full.config_options()).unwrap();
        assert_eq!(text(&copy), expected);
    }
}

#[tokio::test]
async fn joins_with_small_tables_run_where_the_large_one_is() {
    for (sql, joins) in [
        ("select name, sum(total), count(*) from customer join orders on customer.id = buyer group by name", 1),
        (
            "select sum(total) from customer join orders on customer.id = buyer where name <> 'customer 3' and \"Region\" = 'north'",
            1,
        ),
        (
            "select c.\"Region\", d.name, avg(total) from customer c join orders on c.id = buyer join customer d on d.id = orders.id % 10 where c.name < d.name group by 1, 2",
            2,
        ),
        (
            "select status, max(total) from orders where buyer in (select id from customer where name like '%2%') group by status",
            1,
        ),
        (
            "select status, count(*) from orders where not exists (select 1 from customer where customer.id = buyer and name > 'customer 4') group by status",
            1,
        ),
        ("select count(*) from customer join orders on customer.id = buyer where name = 'nobody'", 1),
        (
            "select name, count(*) filter (where total > 50) from customer join orders on customer.id = buyer and length(comment) > orders.id group by name having count(*) > 1",
            1,
        ),
        (
            "select \"Region\", status, sum(total) from customer join orders on customer.id = buyer group by rollup (\"Region\", status)",
            1,
        ),
    ] {
        let expected = reference().sql(sql).await.unwrap().collect().await.unwrap();
        let expected = rows(&expected, sql);
        let (plan, got) = with_settings(sql, &[("aubade.pushdown", "on")]).await;
        assert_eq!(got, expected, "{sql}\n{plan}");
        assert!(plan.contains(&format!("BroadcastExec: joins={joins}")), "{sql}\n{plan}");
        let (plan, got) = with_settings(sql, &[("aubade.pushdown", "on"), ("aubade.broadcast_bytes", "40")]).await;
        assert_eq!(got, expected, "build sides are larger: {sql}\n{plan}");
        let (plan, got) = with_settings(sql, &[("aubade.pushdown", "on"), ("aubade.broadcast_bytes", "0")]).await;
        assert_eq!(got, expected, "{sql}\n{plan}");
        assert!(!plan.contains("BroadcastExec"), "{sql}\n{plan}");
        let (plan, got) = with_settings(sql, &[]).await;
        assert_eq!(got, expected, "{sql}\n{plan}");
        assert!(!plan.contains("BroadcastExec"), "so few rows are not worth it: {sql}\n{plan}");
    }
    for sql in [
        "select name, count(total) from customer full join orders on customer.id = buyer group by name",
        "select name, count(*) from customer join orders on customer.id = buyer and customer.id + orders.id > random() group by name",
        "select name, count(*) from customer join (select buyer from orders limit 90) o on customer.id = buyer group by name",
    ] {
        let (plan, _) = with_settings(sql, &[("aubade.pushdown", "on")]).await;
        assert!(!plan.contains("BroadcastExec"), "{sql}\n{plan}");
    }
}

#[tokio::test]
async fn the_inner_side_of_an_outer_join_is_aggregated_first() {
    let repeated = [
        "select name, count(total), sum(total), min(day), max(comment) from customer left join orders on customer.id = buyer group by name",
        "select c, count(*) from (select customer.id, count(orders.id) as c from customer left join orders on customer.id = buyer and day > date '1994-09-01' group by customer.id) t group by c",
        "select count(total) from customer left join orders on customer.id = buyer",
        "select \"Region\", count(o.id) + 1 from orders o right join customer c on c.id = o.buyer where name <> 'customer 2' group by \"Region\"",
        "select name, sum(n.a), count(n.a) from customer left join (select buyer as a, buyer from orders) n on n.buyer = customer.id group by name",
    ];
    for sql in repeated {
        check(sql).await;
    }
    for sql in &repeated[..4] {
        let plan = explain(sql).await;
        let aggregates = plan.matches("aggregate=AggregateExec").count();
        assert_eq!(aggregates, 1, "nodes send states: {sql}\n{plan}");
    }
    for sql in [
        "select name, count(*), count(total) from customer left join orders on customer.id = buyer group by name",
        "select random() < 2, count(total) from customer left join orders on customer.id = buyer group by 1",
        "select name, count(distinct total) from customer left join orders on customer.id = buyer group by name",
        "select name, sum(coalesce(total, 1)) from customer left join orders on customer.id = buyer group by name",
        "select name, status, count(total) from customer left join orders on customer.id = buyer group by name, status",
        "select name, count(total) filter (where day > date '1994-10-01') from customer left join orders on customer.id = buyer group by name",
        "select o.status, count(name) from orders o left join customer on customer.id = buyer group by o.status",
    ] {
        check(sql).await;
        let plan = explain(sql).await;
        assert_eq!(plan.matches("aggregate=AggregateExec").count(), 0, "{sql}\n{plan}");
    }
}

#[tokio::test]
async fn nothing_is_pushed_where_the_session_says_so() {
    let tables = tables();
    let access = MemoryAccess::new(&tables);
    let mut config = crate::session_config(&PlannerOptions { target_partitions: Some(2), batch_rows: None });
    config.options_mut().set("aubade.pushdown", "off").unwrap();
    let template = crate::session_state(config, Arc::default());
    let state = crate::bind_snapshot(&template, snapshot(&tables, &[]), access);
    let sql = "select name, sum(total) from customer join orders on customer.id = buyer where day > date '1994-01-01' group by name";
    let plan = state.create_logical_plan(sql).await.unwrap();
    let plan = state.create_physical_plan(&plan).await.unwrap();
    for scan in storage_scans(&plan) {
        assert!(scan.fragment().filter().is_none() && scan.fragment().reduction().is_none());
        assert!(scan.runtime_filter_ids().is_empty());
    }
}

#[tokio::test]
async fn all_that_can_be_pushed_is_where_the_session_says_so() {
    let tables = tables();
    for (setting, pushed) in [("auto", false), ("on", true)] {
        let mut config = crate::session_config(&PlannerOptions { target_partitions: Some(2), batch_rows: None });
        config.options_mut().set("aubade.pushdown", setting).unwrap();
        let template = crate::session_state(config, Arc::default());
        let state = crate::bind_snapshot(&template, snapshot(&tables, &[]), MemoryAccess::new(&tables));
        let logical = state.create_logical_plan("select comment, upper(comment), id from orders").await.unwrap();
        let text = crate::explain::plan_text(state.create_physical_plan(&logical).await.unwrap().as_ref());
        assert_eq!(!text.contains("ProjectionExec"), pushed, "{setting}: {text}");
        let logical = state.create_logical_plan("select id, count(*) from orders group by id").await.unwrap();
        let text = crate::explain::plan_text(state.create_physical_plan(&logical).await.unwrap().as_ref());
        assert_eq!(text.contains("aggregate=AggregateExec"), pushed, "{setting}: {text}");
    }
}

#[tokio::test]
async fn the_tree_format_shows_the_fragment() {
    let query = planner_with(&[]).0.plan("explain format tree select id from orders where id < 10").await.unwrap();
    let text = pretty_format_batches(&run(&query).await.unwrap()).unwrap().to_string();
    for part in ["StorageScanExec", "table", "public.orders", "segments", "1/4", "filter"] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
}

#[tokio::test]
async fn segments_are_pruned_by_their_statistics() {
    for (filter, kept) in [
        ("id = 30", 1),
        ("id < 0", 0),
        ("id in (1, 99)", 2),
        ("day >= date '1994-10-24'", 2),
        ("id > 20 and id < 30", 2),
        ("buyer is null", 4),
        ("id is null", 0),
        ("id + 1 > 80", 4),
    ] {
        let query = planner_with(&[]).0.plan(&format!("select comment from orders where {filter}")).await.unwrap();
        let fragments = query.fragments();
        if kept == 0 && fragments.is_empty() {
            continue;
        }
        assert_eq!((fragments[0].segments_kept, fragments[0].segments_total), (kept, 4), "{filter}");
    }
}

#[tokio::test]
async fn a_scan_counts_its_segments_and_rows() {
    let (planner, access) = planner_with(&[]);
    let query = planner.plan("select id from orders where id >= 50 and status = 'open'").await.unwrap();
    let rows: usize = run(&query).await.unwrap().iter().map(RecordBatch::num_rows).sum();
    let scans = storage_scans(query.physical_plan());
    let metrics = scans[0].scan_metrics();
    assert_eq!((metrics.segments_total.value(), metrics.segments_pruned.value()), (4, 2));
    assert_eq!(metrics.output_rows.value(), rows);
    let tasks = access.tasks.lock();
    let mut segments: Vec<_> = tasks.iter().flat_map(|task| task.segments.clone()).collect();
    segments.sort_unstable();
    assert_eq!((tasks.len(), segments), (2, vec![2, 3]));
}

#[tokio::test]
async fn views_are_planned_into_their_tables() {
    let views = [
        ("open_orders", "select id, total from orders where status = 'open'"),
        ("sales.few", "select * from open_orders where id < 10"),
    ];
    let (planner, _) = planner_with(&views);
    let query = planner.plan("select sum(total) from sales.few").await.unwrap();
    assert_eq!(query.fragments()[0].segments_kept, 1, "{}", query.explain());
    assert_eq!(rows(&run(&query).await.unwrap(), "order by")[1], "| 30.00 |");
}

#[tokio::test]
async fn a_view_of_itself_is_refused() {
    let views = [("a", "select * from b"), ("b", "select * from a")];
    let error = planner_with(&views).0.plan("select * from a").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::SqlPlan);
    assert!(error.message().contains("view public.a is defined by itself"), "{error}");
}

#[tokio::test]
async fn a_tower_of_views_is_refused() {
    let names: Vec<_> = (0..40).map(|level| (format!("v{level}"), format!("select * from v{}", level + 1))).collect();
    let views: Vec<_> = names.iter().map(|(name, sql)| (name.as_str(), sql.as_str())).collect();
    let error = planner_with(&views).0.plan("select * from v0").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::LimitExceeded);
}

#[tokio::test]
async fn a_view_of_a_lost_table_is_named() {
    let error = planner_with(&[("v", "select * from lost")]).0.plan("select * from v").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::TableNotFound);
    assert!(error.message().contains("view public.v cannot be read: table 'lost' not found"), "{error}");
}

#[tokio::test]
async fn information_schema_lists_relations() {
    let (planner, _) = planner_with(&[("v", "select id from orders")]);
    let sql = "select table_schema, table_name, table_type from information_schema.tables where table_schema <> 'information_schema' order by 1, 2";
    let query = planner.plan(sql).await.unwrap();
    let lines = rows(&run(&query).await.unwrap(), sql);
    assert_eq!(
        lines[1..],
        [
            "| public | customer | BASE TABLE |",
            "| public | orders | BASE TABLE |",
            "| public | v | VIEW |",
            "| sales | nothing | BASE TABLE |"
        ]
    );
    let columns = planner.plan("select count(*) from information_schema.columns where table_name = 'v'").await.unwrap();
    assert_eq!(rows(&run(&columns).await.unwrap(), "order by")[1], "| 1 |");
}

#[tokio::test]
async fn a_broken_view_hides_no_other_relation() {
    let (planner, _) = planner_with(&[
        ("broken", "select * from lost"),
        ("above", "select * from broken"),
        ("looks", "select table_name from information_schema.columns"),
        ("v", "select id from orders"),
    ]);
    let names = "select distinct table_name from information_schema.columns where table_schema = 'public' order by 1";
    let query = planner.plan(names).await.unwrap();
    assert_eq!(rows(&run(&query).await.unwrap(), names)[1..], ["| customer |", "| looks |", "| orders |", "| v |"]);
    let definitions = "select table_name, definition from information_schema.views where definition is not null and table_name in ('broken', 'v') order by 1";
    let query = planner.plan(definitions).await.unwrap();
    let lines = rows(&run(&query).await.unwrap(), definitions);
    assert_eq!(lines[1..], ["| broken | select * from lost |", "| v | select id from orders |"]);
    let shown = planner.plan("show tables").await.unwrap();
    assert_eq!(rows(&run(&shown).await.unwrap(), "").iter().filter(|line| line.contains("public")).count(), 6);
    let through = planner.plan("select count(*) from looks where table_name = 'v'").await.unwrap();
    assert_eq!(rows(&run(&through).await.unwrap(), "order by")[1], "| 1 |");
    for sql in ["select * from broken", "select * from above", "show columns from broken", "describe broken"] {
        let error = planner.plan(sql).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::TableNotFound, "{sql}: {error}");
        assert!(error.message().contains("view public.broken cannot be read: table 'lost' not found"), "{error}");
    }
    let functions = planner.plan("show functions like 'generate_series'").await.unwrap();
    assert!(rows(&run(&functions).await.unwrap(), "").len() > 1);
}

#[tokio::test]
async fn unknown_names_come_with_the_nearest_one() {
    for (sql, code, message, hint) in [
        ("select * from ordes", ErrorCode::TableNotFound, "table 'ordes' not found", "did you mean 'orders'?"),
        (
            "select * from nothing",
            ErrorCode::TableNotFound,
            "table 'nothing' not found",
            "did you mean 'sales.nothing'?",
        ),
        ("select * from sale.nothing", ErrorCode::SchemaNotFound, "schema 'sale' not found", "did you mean 'sales'?"),
        ("select * from zzz", ErrorCode::TableNotFound, "table 'zzz' not found", "SHOW TABLES"),
        ("select * from \"Orders\"", ErrorCode::TableNotFound, "table 'Orders' not found", "did you mean 'orders'?"),
        (
            "select * from other.public.orders",
            ErrorCode::TableNotFound,
            "table 'other.public.orders'",
            "only one catalog",
        ),
        ("select totl from orders", ErrorCode::ColumnNotFound, "column 'totl' not found", "did you mean 'total'?"),
        (
            "select region from customer",
            ErrorCode::ColumnNotFound,
            "column 'region' not found",
            "did you mean '\"Region\"'?",
        ),
        (
            "select o.xyzzy from orders o",
            ErrorCode::ColumnNotFound,
            "column 'o.xyzzy' not found",
            "there are id, buyer",
        ),
    ] {
        let error = failure(sql).await;
        assert_eq!(error.code(), code, "{error}");
        assert!(error.message().contains(message), "{error}");
        assert!(error.hint_text().is_some_and(|text| text.contains(hint)), "{error}");
    }
}

#[tokio::test]
async fn other_mistakes_have_codes_and_places() {
    let syntax = failure("select id frm orders where").await;
    assert_eq!(syntax.code(), ErrorCode::SqlSyntax);
    assert!(syntax.message().contains("Line: 1, Column:"), "{syntax}");
    assert_eq!(failure("select id + true from orders").await.code(), ErrorCode::SqlPlan);
    assert_eq!(failure("select id / 0 from orders").await.code(), ErrorCode::DivisionByZero);
    assert_eq!(failure("create table x (a int)").await.code(), ErrorCode::NotSupported);
    for sql in ["delete from orders", "update orders set id = 1", "insert overwrite orders select * from orders"] {
        let error = failure(sql).await;
        assert_eq!(error.code(), ErrorCode::NotSupported, "{sql}: {error}");
    }
}

#[tokio::test]
async fn inserts_go_to_the_sink() {
    let (planner, access) = planner_with(&[]);
    let query = planner.plan("insert into sales.nothing select id, status from orders where id < 12").await.unwrap();
    assert_eq!(rows(&run(&query).await.unwrap(), "order by")[1], "| 12 |");
    assert_eq!(access.rows_written.load(Ordering::Relaxed), 12);
}
