//! Why joins stay on the coordinator, in EXPLAIN.

use super::with_settings;

const JOIN: &str = "from orders join customer on buyer = customer.id";

/// Checks that all scans of a plan say this of their joins.
async fn check(sql: &str, settings: &[(&str, &str)], reason: &str) {
    let (plan, _) = with_settings(sql, settings).await;
    let notes: Vec<_> = plan.lines().filter(|line| line.contains("join: ")).collect();
    let said = format!("join: runs on the coordinator: {reason}");
    assert!(!notes.is_empty() && notes.iter().all(|note| note.contains(&said)), "{sql}: not {said} in\n{plan}");
}

#[tokio::test]
async fn scans_say_why_their_joins_stay() {
    let grouped = format!("select \"Region\", sum(total) {JOIN} group by \"Region\"");
    check(&format!("select name, total {JOIN}"), &[], "no aggregate makes less of its rows").await;
    check(&grouped, &[], "it would save too little: about 1 KiB of rows for 264 bytes of build sides and states").await;
    let (bytes, key) = (
        "what it hashes is thought to have 120 bytes, and aubade.broadcast_bytes is 7 bytes",
        "aubade.broadcast_bytes",
    );
    check(&grouped, &[(key, "7")], bytes).await;
    check(&grouped, &[(key, "0")], "aubade.broadcast_bytes is 0").await;
    let on = [("aubade.pushdown", "on")];
    let full = "select sum(total) from orders full join customer on buyer = customer.id";
    check(full, &on, "storage nodes cannot tell for a segment what a Full join yields").await;
    let by_range = "select sum(total) from orders join customer on buyer < customer.id";
    check(by_range, &on, "its rows go through NestedLoopJoinExec, which storage nodes do not run").await;
    check(
        &format!("select sum(total) {JOIN} where total + random() > length(name)"),
        &on,
        "random gives another value each time",
    )
    .await;
    let ordered = format!("select nth_value(total, 2 order by orders.id) {JOIN}");
    check(&ordered, &on, "the aggregate above it takes its rows in an order").await;
    let windows = format!(
        "select status, max(n) from (select status, row_number() over (order by orders.id) n {JOIN}) group by status"
    );
    check(&windows, &on, "its rows go through BoundedWindowAggExec, which storage nodes do not run").await;
}

#[tokio::test]
async fn scans_of_joins_that_may_run_at_storage_nodes_say_nothing() {
    let (plan, _) = with_settings(&format!("select sum(total) {JOIN}"), &[("aubade.pushdown", "on")]).await;
    assert!(plan.contains("BroadcastExec") && !plan.contains("join: "), "{plan}");
}
