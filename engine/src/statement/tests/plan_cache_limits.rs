//! How many plans are kept, and for how long.

use std::sync::Arc;

use aubade_environment::Clock;

use super::*;
use crate::manual_clock::ManualClock;

async fn open(plan_cache_entries: Option<u64>, plan_cache_age: Option<Duration>) -> Result<Database> {
    open_in(Environment::system(), plan_cache_entries, plan_cache_age).await
}

async fn open_in(
    environment: Environment,
    plan_cache_entries: Option<u64>,
    plan_cache_age: Option<Duration>,
) -> Result<Database> {
    let options =
        EngineOptions { plan_cache_entries, plan_cache_age, target_partitions: Some(2), ..Default::default() };
    let engine = Engine::open_in_memory(environment, options).await?;
    let db = Database { session: engine.session(), engine };
    db.run(&["CREATE TABLE t AS SELECT value AS a, value % 10 AS b FROM generate_series(1, 100)"]).await;
    Ok(db)
}

/// Runs a query of one row; whether its plan was kept.
async fn hits(db: &Database, sql: &str, expected: &str) -> bool {
    let output = db.session.execute(sql).await.unwrap();
    let id = output.query_id;
    assert_eq!(lines(output).await.unwrap(), [expected], "{sql}");
    db.engine.queries().get(id).unwrap().plan_cache_hit
}

#[tokio::test]
async fn a_full_cache_keeps_what_is_asked_for() {
    let db = open(Some(4), None).await.unwrap();
    let hot = "SELECT max(a) + min(b) FROM t";
    assert!(!hits(&db, hot, "100").await);
    for value in 0..30 {
        // Each has an entry of its own, and is asked for once.
        assert!(!hits(&db, &format!("SELECT max(a) + {value} FROM t"), &(100 + value).to_string()).await);
        assert!(hits(&db, hot, "100").await, "{value}");
        let kept: u64 = db.rows("SELECT count(*) FROM system.plan_cache").await[0].parse().unwrap();
        assert!((1..=4).contains(&kept), "{kept} after {value}");
    }
    // One that comes again and again takes the place of one that does not.
    let mut runs = 0;
    while !hits(&db, "SELECT min(a) FROM t", "1").await {
        runs += 1;
        assert!(runs < 50, "never kept: {:?}", db.rows("SELECT key FROM system.plan_cache").await);
    }
    assert_eq!(db.rows("SELECT count(*) <= 4 FROM system.plan_cache").await, ["true"]);
}

#[tokio::test]
async fn plans_of_an_older_schema_leave_room_for_those_of_the_newer() {
    let db = open(Some(8), None).await.unwrap();
    let all = |value: i64| format!("SELECT max(a) + {value} FROM t");
    for round in 0..6 {
        for value in 0..8 {
            assert_eq!(hits(&db, &all(value), &(100 + value).to_string()).await, round > 0, "{round} {value}");
        }
    }
    db.run(&["CREATE TABLE other AS SELECT 1 AS a"]).await;
    for round in 0..2 {
        for value in 0..8 {
            assert_eq!(hits(&db, &all(value), &(100 + value).to_string()).await, round > 0, "{round} {value}");
        }
    }
    let of_one_schema = "SELECT count(DISTINCT schema_version), count(*) <= 8 FROM system.plan_cache";
    assert_eq!(db.rows(of_one_schema).await, ["1|true"]);
}

#[tokio::test]
async fn plans_of_long_statements_count_as_several() {
    let db = open(Some(8), None).await.unwrap();
    // Each has 2,000 numbers with as many commas.
    let long = |first: i64| {
        let numbers: Vec<String> = (first..first + 2_000).map(|number| number.to_string()).collect();
        format!("SELECT count(*) FROM t WHERE a * 2 + b IN ({})", numbers.join(", "))
    };
    for first in 0..6 {
        db.rows(&long(first * 10_000)).await;
    }
    assert_eq!(db.rows("SELECT count(*) <= 1 FROM system.plan_cache").await, ["true"]);
    db.run(&["DISCARD PLANS"]).await;
    for first in 0..6 {
        db.rows(&format!("SELECT max(a) + {first} FROM t")).await;
    }
    assert_eq!(db.rows("SELECT count(*) FROM system.plan_cache").await, ["6"]);
}

#[tokio::test]
async fn how_much_tables_may_grow_is_set() {
    let db = open(None, None).await.unwrap();
    let sql = "SELECT count(b) FROM t";
    assert!(!hits(&db, sql, "100").await);
    db.run(&["INSERT INTO t SELECT value, 1 FROM generate_series(1, 300)"]).await;
    assert!(hits(&db, sql, "400").await, "four times as large");
    db.run(&["SET aubade.replan_factor = 2", "INSERT INTO t SELECT value, 1 FROM generate_series(1, 50)"]).await;
    assert!(!hits(&db, sql, "450").await, "settings are a part of the key");
    db.run(&["INSERT INTO t SELECT value, 1 FROM generate_series(1, 150)"]).await;
    assert!(hits(&db, sql, "600").await);
    db.run(&["INSERT INTO t SELECT value, 1 FROM generate_series(1, 600)"]).await;
    assert!(!hits(&db, sql, "1200").await, "more than twice as large as when it was planned");
}

#[tokio::test]
async fn without_entries_every_statement_is_planned() {
    let db = open(Some(0), None).await.unwrap();
    db.run(&["PREPARE q AS SELECT max(a) FROM t WHERE b = $1"]).await;
    for _ in 0..3 {
        assert!(!hits(&db, "SELECT max(a) FROM t WHERE b = 3", "93").await);
        assert!(!hits(&db, "EXECUTE q(4)", "94").await);
    }
    assert_eq!(db.session.prepare("SELECT max(a) FROM t WHERE b = 3").await.unwrap().schema.fields().len(), 1);
    assert_eq!(db.rows("SELECT count(*) FROM system.plan_cache").await, ["0"]);
    db.run(&["SET aubade.plan_cache = on", "DISCARD PLANS"]).await;
    assert!(!hits(&db, "SELECT max(a) FROM t WHERE b = 3", "93").await);
}

#[tokio::test]
async fn a_plan_that_nobody_asked_for_in_time_is_made_again() {
    // More than that passes between any two looks at the clock.
    let db = open(None, Some(Duration::from_nanos(1))).await.unwrap();
    for _ in 0..3 {
        assert!(!hits(&db, "SELECT max(a) FROM t WHERE b = 3", "93").await);
    }
    assert_eq!(db.rows("SELECT count(*) FROM system.plan_cache").await, ["0"]);
    let db = open(None, Some(Duration::from_secs(3_600))).await.unwrap();
    assert!(!hits(&db, "SELECT max(a) FROM t WHERE b = 3", "93").await);
    assert!(hits(&db, "SELECT max(a) FROM t WHERE b = 3", "93").await);
}

/// By a clock that stands still while statements run: a plan, one for all values, and what is known of constants.
#[tokio::test]
async fn a_plan_stays_until_nobody_asked_for_it_for_its_age() {
    const AGE: Duration = Duration::from_secs(600);
    const NANO: Duration = Duration::from_nanos(1);
    let clock = Arc::new(ManualClock::default());
    let environment = Environment { clock: Arc::clone(&clock) as Arc<dyn Clock>, ..Environment::system() };
    let db = open_in(environment, None, Some(AGE)).await.unwrap();
    let of = |value: i64| format!("SELECT max(a) FROM t WHERE b = {value}");
    let kept = "SELECT count(*) FROM system.plan_cache";
    assert!(!hits(&db, &of(3), "93").await);
    for _ in 0..3 {
        clock.advance(AGE - NANO);
        assert!(hits(&db, &of(3), "93").await, "asked for in time");
    }
    // Nobody has asked for the plan of other values.
    assert_eq!(db.rows(kept).await, ["1"]);
    assert!(!hits(&db, &of(4), "94").await);
    clock.advance(AGE - NANO);
    assert!(hits(&db, &of(5), "95").await, "the plan of all values");
    clock.advance(NANO);
    // Those of both values are too old.
    assert_eq!(db.rows(kept).await, ["1"]);
    clock.advance(AGE - NANO);
    assert_eq!(db.rows(kept).await, ["0"]);
    assert!(!hits(&db, &of(5), "95").await);
    assert!(!hits(&db, "SELECT max(a) FROM t WHERE b <> 3", "100").await);
    clock.advance(AGE);
    assert!(!hits(&db, &of(5), "95").await);
}

#[tokio::test]
async fn limits_that_will_not_do_are_refused() {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3_600);
    for (entries, age, option) in [
        (Some(16_385), None, "--plan-cache-entries"),
        (Some(u64::MAX), None, "--plan-cache-entries"),
        (None, Some(Duration::ZERO), "--plan-cache-age"),
        (None, Some(YEAR + Duration::from_secs(1)), "--plan-cache-age"),
        (Some(0), Some(Duration::MAX), "--plan-cache-age"),
    ] {
        let error = open(entries, age).await.map(|_| ()).unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidArgument, "{entries:?} {age:?}");
        assert!(error.hint_text().unwrap().contains(option), "{error:?}");
    }
    assert!(open(Some(16_384), Some(YEAR)).await.is_ok());
}
