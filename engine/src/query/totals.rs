//! Counters over all queries since the engine started, for `system.metrics`.

use std::collections::BTreeMap;
use std::sync::Arc;

use aubade_planner::{Reason, storage_scans};
use datafusion::physical_plan::ExecutionPlan;
use parking_lot::Mutex;
use serde::Serialize;

use super::metrics::ScanTotals;
use super::{QueryRecord, QueryState};

/// One line of `system.metrics`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Metric {
    /// What is counted.
    pub name: &'static str,
    /// Which of several of this name: a node, or a reason.
    pub label: Option<String>,
    /// How much.
    pub value: u64,
    /// What it means, with its unit.
    pub description: &'static str,
}

impl Metric {
    /// A metric that has its name for itself.
    pub(crate) fn new(name: &'static str, value: u64, description: &'static str) -> Self {
        Self { name, label: None, value, description }
    }
}

/// Sums over the queries that have ended; reasons are counted when a query is planned.
#[derive(Debug, Default)]
pub(super) struct Totals {
    sums: Mutex<Sums>,
}

#[derive(Clone, Debug, Default)]
struct Sums {
    started: u64,
    finished: u64,
    failed: u64,
    cancelled: u64,
    rows: u64,
    planning_micros: u64,
    total_micros: u64,
    scans: ScanTotals,
    not_pushed: BTreeMap<Reason, u64>,
}

impl Sums {
    fn running(&self) -> u64 {
        self.started.saturating_sub(self.finished + self.failed + self.cancelled)
    }
}

impl Totals {
    pub(super) fn running(&self) -> u64 {
        self.sums.lock().running()
    }

    pub(super) fn started(&self) {
        self.sums.lock().started += 1;
    }

    /// Counts why parts of a plan stay on the coordinator.
    pub(super) fn planned(&self, plan: &Arc<dyn ExecutionPlan>) {
        let scans = storage_scans(plan);
        let mut sums = self.sums.lock();
        for note in scans.iter().flat_map(|scan| scan.not_pushed()) {
            *sums.not_pushed.entry(note.refusal.reason).or_default() += 1;
        }
    }

    pub(super) fn ended(&self, record: &QueryRecord, scans: &ScanTotals) {
        let mut sums = self.sums.lock();
        match record.state {
            QueryState::Failed => sums.failed += 1,
            QueryState::Cancelled => sums.cancelled += 1,
            QueryState::Finished | QueryState::Running => sums.finished += 1,
        }
        sums.rows = sums.rows.saturating_add(record.rows);
        sums.planning_micros = sums.planning_micros.saturating_add(record.planning_micros);
        sums.total_micros = sums.total_micros.saturating_add(record.total_micros);
        sums.scans.add_all(scans);
    }

    pub(super) fn metrics(&self) -> Vec<Metric> {
        let sums = self.sums.lock().clone();
        let running = sums.running();
        let mut metrics = vec![
            Metric::new("queries_started", sums.started, "statements begun"),
            Metric::new("queries_running", running, "statements that are planned, or whose result is read"),
            Metric::new("queries_finished", sums.finished, "statements whose result was read to its end"),
            Metric::new("queries_failed", sums.failed, "statements that ended with an error"),
            Metric::new(
                "queries_cancelled",
                sums.cancelled,
                "statements whose reader went away, or that took too long",
            ),
            Metric::new("query_rows", sums.rows, "rows of results, and rows written"),
            Metric::new(
                "query_planning_micros",
                sums.planning_micros,
                "from beginnings to physical plans, microseconds",
            ),
            Metric::new("query_total_micros", sums.total_micros, "from beginnings to ends, microseconds"),
        ];
        metrics.extend(sums.scans.metrics());
        metrics.extend(Reason::ALL.iter().map(|reason| Metric {
            name: "not_pushed",
            label: Some(reason.name().to_owned()),
            value: sums.not_pushed.get(reason).copied().unwrap_or_default(),
            description: reason.description(),
        }));
        metrics
    }
}
