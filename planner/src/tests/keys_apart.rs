//! Keys of a join that come from several scans.

use super::{check, customers, planner_with, run, storage_scans};

const PAIRS: &str = "(select c.id as buyer, c.name, o.id, o.total from customer c join orders o on c.id = o.buyer) p";

#[tokio::test]
async fn each_scan_has_the_keys_of_its_columns() {
    let sql = format!(
        "select p.name, p.total, x.day from orders x join {PAIRS} on x.id = p.id and x.buyer = p.buyer where x.total < 9"
    );
    check(&sql).await;
    let (planner, access) = planner_with(&[]);
    let query = planner.plan(&sql).await.unwrap();
    let shown = query.explain();
    let has_keys = |table: &str, keys: &str| shown.lines().any(|line| line.contains(table) && line.contains(keys));
    assert!(has_keys("public.customer", "at run time=[join keys of id@0]"), "{shown}");
    assert!(has_keys("public.orders", "join keys of buyer@1, join keys of id@0"), "{shown}");
    run(&query).await.unwrap();
    let tasks = access.tasks.lock();
    let filter = |task: &crate::access::ScanTask| task.fragment.now().unwrap().filter().map(ToString::to_string);
    let customers = tasks.iter().find(|task| task.table.name.name == "customer").and_then(filter);
    assert!(customers.as_ref().is_some_and(|filter| filter.contains("id@0 IN")), "{customers:?}");
}

#[tokio::test]
async fn a_build_side_begins_once_its_scans_have_their_keys() {
    let sql = format!(
        "select p.name, p.total from orders x join {PAIRS} on x.id = p.id and x.buyer = p.buyer where x.total < 9"
    );
    let (planner, _) = planner_with(&[]);
    let query = planner.plan(&sql).await.unwrap();
    let shown = query.explain();
    let gathered = shown.lines().zip(shown.lines().skip(1));
    let mut gathered = gathered.filter(|(above, _)| above.trim_start() == "CoalescePartitionsExec");
    assert!(gathered.any(|(_, scan)| scan.contains("public.customer") && scan.contains("join keys")), "{shown}");
    run(&query).await.unwrap();
    let scans = storage_scans(query.physical_plan());
    let scan = scans.iter().find(|scan| scan.table().name.name == "customer").unwrap();
    let rows: usize = customers().segments.iter().map(|segment| segment.num_rows()).sum();
    assert!(scan.scan_metrics().output_rows.value() < rows, "{shown}");
}

#[tokio::test]
async fn rows_are_the_same_whatever_is_between_the_join_and_the_scans() {
    for pairs in [
        PAIRS,
        "(select c.id as buyer, c.name, o.id, o.total from customer c left join orders o on c.id = o.buyer) p",
        "(select c.id as buyer, c.name, o.id, o.total from customer c right join orders o on c.id = o.buyer) p",
        "(select c.id as buyer, c.name, o.id, o.total from customer c full join orders o on c.id = o.buyer) p",
        "(select c.id as buyer, c.name, o.id, o.total from customer c join orders o on c.id = o.buyer and o.total > c.id) p",
        "(select c.id as buyer, c.name, max(o.id) as id, sum(o.total) as total from customer c join orders o on c.id = \
         o.buyer group by c.id, c.name) p",
        "(select c.id as buyer, c.name, o.id, o.total from customer c join orders o on c.id = o.buyer limit 500) p",
        "(select c.id as buyer, c.name, o.id, o.total, count(*) over (partition by c.id) from customer c \
         join orders o on c.id = o.buyer) p",
    ] {
        for sql in [
            format!(
                "select p.name, p.total from orders x join {pairs} on x.id = p.id and x.buyer = p.buyer where x.total < 60"
            ),
            format!(
                "select p.name, p.total from {pairs} join orders x on x.id = p.id and x.buyer = p.buyer where x.id < 30"
            ),
            format!(
                "select count(*), count(x.id) from orders x right join {pairs} on x.id = p.id and x.buyer = p.buyer"
            ),
            format!(
                "select count(*), count(p.id) from orders x left join {pairs} on x.id = p.id and x.buyer = p.buyer"
            ),
            format!(
                "select p.name from {pairs} where exists (select 1 from orders x where x.id = p.id and x.buyer = p.buyer \
                 and x.total < 60)"
            ),
            format!(
                "select p.name from {pairs} where not exists (select 1 from orders x where x.id = p.id and x.buyer = \
                 p.buyer and x.total < 60)"
            ),
            format!(
                "select x.id from orders x where x.total < 90 and exists (select 1 from {pairs} where x.id = p.id and \
                 x.buyer = p.buyer)"
            ),
        ] {
            check(&sql).await;
        }
    }
    // Null is a key like any other.
    let distinct = format!(
        "select p.name from orders x join {PAIRS} on (x.id is not distinct from p.id) and (x.buyer is not distinct from p.buyer)"
    );
    check(&distinct).await;
}
