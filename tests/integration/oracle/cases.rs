//! Queries that once gave another answer than plain DataFusion, each with tables as small as they can be.

use super::queries::Query;
use super::{Expected, Targets, failures};
use crate::plain::{Plain, run_in};

/// A query that once went wrong.
struct Case {
    name: &'static str,
    /// Statements that plain DataFusion runs as well. Tables have names that no other case uses.
    setup: &'static [&'static str],
    /// SET statements.
    settings: &'static [&'static str],
    sql: &'static str,
    /// Whether it orders by every column of its result.
    ordered: bool,
}

const CASES: &[Case] = &[
    Case {
        name: "the first groups of keys that are NaN",
        setup: &["CREATE TABLE nan_keys AS SELECT v / 0.0 * 0.0 AS f, v FROM (VALUES (1.0), (2.0), (3.0)) AS t (v)"],
        settings: &[],
        sql: "SELECT f, max(v) AS m FROM nan_keys GROUP BY f ORDER BY m DESC LIMIT 1",
        ordered: true,
    },
    Case {
        name: "an order by two names of one column, above distinct rows",
        setup: &["CREATE TABLE two_names AS SELECT value AS v, value % 3 AS w FROM generate_series(1, 1000)"],
        settings: &[],
        sql: "SELECT DISTINCT w AS a, w AS b FROM two_names WHERE v > 5 ORDER BY 2, 1 DESC LIMIT 100",
        ordered: true,
    },
    Case {
        name: "an order by two names of one column, of which the first rows are wanted",
        setup: &["CREATE TABLE two_names_more AS SELECT value AS v, value % 3 AS w FROM generate_series(1, 1000)"],
        settings: &["SET aubade.pushdown = on"],
        sql: "SELECT v AS c, w AS a, w AS b FROM two_names_more WHERE v > 5 ORDER BY 2, 3, 1 LIMIT 3",
        ordered: true,
    },
    Case {
        name: "the grand total of no rows",
        setup: &["CREATE TABLE few_rows AS SELECT * FROM (VALUES (1, 'a'), (2, 'b')) AS t (k, s)"],
        settings: &[],
        sql: "SELECT k, s, count(*) AS n, sum(k) AS m FROM few_rows WHERE k > 5 GROUP BY ROLLUP (k, s)",
        ordered: false,
    },
];

async fn try_case(targets: &Targets, case: &Case) -> Vec<String> {
    let plain = Plain::new(3);
    for statement in case.setup {
        plain.run(statement).await.unwrap();
        for (_, engine) in targets.engines() {
            run_in(&engine.session(), statement).await.unwrap();
        }
    }
    let expected = match plain.run(case.sql).await {
        Ok(rows) => Expected::Rows(rows),
        Err(error) => Expected::Failure(error.strip_backtrace()),
    };
    let query = Query { shape: case.name, sql: case.sql.to_owned(), ordered: case.ordered };
    failures(targets, &expected, &query, case.settings).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_found_once_stays_mended() {
    let targets = Targets::start().await;
    let mut failed = Vec::new();
    for case in CASES {
        let failures = try_case(&targets, case).await;
        failed.extend(failures.into_iter().map(|failure| format!("{}: {failure}", case.name)));
    }
    targets.stop().await;
    assert!(failed.is_empty(), "{failed:#?}");
}
