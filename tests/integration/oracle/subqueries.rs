//! Scalar subqueries in what runs at storage nodes, each in all settings of pushdown.

use super::queries::Query;
use super::{Expected, Targets, failures};
use crate::plain::{Plain, run_in};

/// `bills` is in several segments; the amounts of `refunds` are all null.
const SETUP: &[&str] = &[
    "CREATE TABLE bills AS SELECT value AS id, value % 97 AS payer, CAST(value * 31 % 1009 AS DECIMAL(12, 2)) AS amount, \
     'bill ' || (value % 13) AS kind FROM generate_series(1, 300000)",
    "CREATE TABLE payers AS SELECT value AS id, 'payer ' || value AS name FROM generate_series(0, 90)",
    "CREATE TABLE refunds AS SELECT value AS id, CAST(NULL AS BIGINT) AS amount FROM generate_series(1, 5)",
];

/// Each orders by all that it gives where it orders at all.
const QUERIES: &[&str] = &[
    "SELECT count(*), sum(amount) FROM bills WHERE amount > (SELECT avg(amount) FROM bills)",
    "SELECT kind, count(*), max(id) FROM bills WHERE id >= (SELECT max(id) - 1000 FROM bills) GROUP BY kind",
    "SELECT count(*) FROM bills WHERE id > (SELECT max(amount) FROM refunds)",
    "SELECT count(*) FROM bills WHERE id > (SELECT max(amount) FROM refunds) OR id = 7",
    "SELECT count(*) FROM bills WHERE id > (SELECT id FROM payers WHERE name = 'nobody')",
    "SELECT count(*) FROM bills WHERE payer IS DISTINCT FROM (SELECT max(amount) FROM refunds)",
    "SELECT count(*), min(id) FROM bills WHERE amount < (SELECT avg(amount) FROM bills) / 7 \
     AND id > (SELECT 1000 * max(id) FROM payers) AND payer <> (SELECT min(id) FROM payers)",
    "SELECT payer, sum(amount) FROM bills GROUP BY payer HAVING sum(amount) > (SELECT sum(amount) / 97 FROM bills)",
    "SELECT id, max(amount) FROM bills WHERE id > 290000 GROUP BY id \
     HAVING max(amount) >= (SELECT max(amount) FROM bills)",
    "WITH s AS (SELECT payer, sum(amount) AS s FROM bills GROUP BY payer) SELECT payer FROM s WHERE s = (SELECT max(s) FROM s)",
    "SELECT count(*) FROM bills WHERE payer = (SELECT max(id) FROM payers WHERE id < (SELECT avg(payer) FROM bills))",
    "SELECT name, count(*), sum(amount) FROM bills JOIN payers ON payer = payers.id \
     WHERE amount > (SELECT 2 * avg(amount) - 5 FROM bills) GROUP BY name",
    "SELECT name FROM payers WHERE id > (SELECT avg(id) FROM payers) \
     AND NOT EXISTS (SELECT 1 FROM bills WHERE payer = payers.id AND amount > (SELECT max(amount) - 9 FROM bills))",
    "SELECT name, n FROM payers LEFT JOIN (SELECT payer, count(*) AS n FROM bills \
     WHERE id < (SELECT max(id) FROM payers) GROUP BY payer) b ON payer = payers.id",
    "SELECT id, amount FROM bills WHERE amount >= (SELECT max(amount) FROM bills) ORDER BY id DESC, amount LIMIT 5",
    "SELECT id FROM bills WHERE id < (SELECT max(id) FROM payers) ORDER BY id * (SELECT 2) DESC, id LIMIT 3",
    "SELECT payer, id - (SELECT min(id) FROM bills) FROM bills WHERE id > (SELECT max(id) - 9 FROM bills)",
    "SELECT sum(amount * (SELECT max(id) FROM payers)) FROM bills WHERE kind = (SELECT min(kind) FROM bills)",
    "SELECT CASE WHEN amount > (SELECT avg(amount) FROM bills) THEN 'high' ELSE kind END, count(*) FROM bills GROUP BY 1",
    "SELECT count(*) FROM bills WHERE id > (SELECT id FROM payers)",
];

#[tokio::test(flavor = "multi_thread")]
async fn scalar_subqueries_give_at_storage_what_they_give_elsewhere() {
    let (targets, plain) = (Targets::start().await, Plain::new(3));
    for statement in SETUP {
        plain.run(statement).await.unwrap();
        for (_, engine) in targets.engines() {
            run_in(&engine.session(), statement).await.unwrap();
        }
    }
    let mut failed = Vec::new();
    for sql in QUERIES {
        let expected = match plain.run(sql).await {
            Ok(rows) => Expected::Rows(rows),
            Err(error) => Expected::Failure(error.strip_backtrace()),
        };
        let query = Query { shape: "scalar subquery", sql: (*sql).to_owned(), ordered: sql.contains("ORDER BY") };
        for pushdown in ["SET aubade.pushdown = auto", "SET aubade.pushdown = on", "SET aubade.pushdown = off"] {
            let failures = failures(&targets, &expected, &query, &[pushdown]).await;
            failed.extend(failures.into_iter().map(|failure| format!("{pushdown}: {sql}: {failure}")));
        }
    }
    targets.stop().await;
    assert!(failed.is_empty(), "{failed:#?}");
}
