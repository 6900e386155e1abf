//! One query's life: its record, the log of records, and the stream that fills a record in.

mod metrics;
mod stream;
mod task;
mod totals;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use aubade_environment::{Clock, Deadline, Environment};
use aubade_proto::{Error, NodeId};
use datafusion::physical_plan::ExecutionPlan;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::plan_cache::Lease;

pub(crate) use stream::{deadline_exceeded, one_batch, query_stream};
pub(crate) use task::{AbortOnDrop, run_on};
pub use totals::Metric;
use totals::Totals;

/// Records that a log keeps. A record is a few kilobytes, so the log stays below 10 MB.
pub const QUERY_LOG_RECORDS: usize = 1_000;
/// Bytes of SQL text that a record keeps: bounds the log where statements are long.
const RECORD_SQL_BYTES_MAX: usize = 8 << 10;

/// How far a query is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueryState {
    /// It is planned, or its result is read.
    Running,
    /// Its result was read to the end.
    Finished,
    /// It ended with an error.
    Failed,
    /// The reader went away before the end, or the deadline passed.
    Cancelled,
}

/// What became of one query. The counters are filled in when it ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueryRecord {
    /// Which query.
    pub query_id: Uuid,
    /// The session that ran it.
    pub session_id: Uuid,
    /// Its text, cut after 8 KiB.
    pub sql: String,
    /// How far it is.
    pub state: QueryState,
    /// Why it failed.
    pub error: Option<String>,
    /// When it began, milliseconds since 1970.
    pub start_unix_millis: u64,
    /// From its beginning to its physical plan.
    pub planning_micros: u64,
    /// Whether its plan was in the plan cache.
    pub plan_cache_hit: bool,
    /// From its beginning to its end.
    pub total_micros: u64,
    /// Rows of the result; for a statement that writes, rows written.
    pub rows: u64,
    /// Segments of the tables that it scanned, once per scan.
    pub segments_total: u64,
    /// Of these, those that statistics ruled out, for filters of the query and for those found while it ran.
    pub segments_pruned: u64,
    /// Segments answered for.
    pub segments_scanned: u64,
    /// Of these, those whose result a node or the coordinator had kept from an earlier time.
    pub segments_kept: u64,
    /// Of those answered for, those whose columns were in the buffer pool.
    pub segments_pooled: u64,
    /// Row groups of the segments read.
    pub row_groups: u64,
    /// Of these, those that statistics or a Bloom filter ruled out.
    pub row_groups_pruned: u64,
    /// Rows that pages' statistics ruled out.
    pub rows_pruned_pages: u64,
    /// Pages of the columns read that were skipped for that; older servers do not say.
    #[serde(default)]
    pub pages_pruned: u64,
    /// Rows that filters saw at storage.
    pub rows_in: u64,
    /// Rows that came back from storage.
    pub rows_out: u64,
    /// Bytes of segments read at storage.
    pub bytes_read: u64,
    /// Bytes over the wire from storage; 0 in process.
    pub bytes_wire: u64,
    /// Requests to storage nodes.
    pub requests: u64,
    /// Of these, repeated ones.
    pub retries: u64,
    /// Of the requests, those that a node handed back because it was short of CPU.
    pub pushbacks: u64,
    /// Segments whose columns were read and scanned on the coordinator instead.
    pub segments_fetched: u64,
    /// Of the requests, those sent to another replica because the first one was slow.
    pub hedges: u64,
    /// Time on the CPU pools of storage nodes.
    pub storage_cpu_micros: u64,
    /// The storage nodes that answered.
    pub replicas: Vec<NodeId>,
}

/// The newest queries, by id. A bounded ring: the oldest record makes room for a new one.
/// Clones share it.
#[derive(Clone, Debug)]
pub struct QueryLog {
    capacity: usize,
    records: Arc<Mutex<VecDeque<QueryRecord>>>,
    totals: Arc<Totals>,
}

impl Default for QueryLog {
    fn default() -> Self {
        Self::new(QUERY_LOG_RECORDS)
    }
}

impl QueryLog {
    /// A log of the newest `capacity` queries.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, records: Arc::default(), totals: Arc::default() }
    }

    /// The record of a query, unless it is too old.
    pub fn get(&self, id: Uuid) -> Option<QueryRecord> {
        self.records.lock().iter().rev().find(|record| record.query_id == id).cloned()
    }

    /// Every record, the newest first.
    pub fn recent(&self) -> Vec<QueryRecord> {
        self.records.lock().iter().rev().cloned().collect()
    }

    /// Counters over all queries, the forgotten ones too.
    pub fn metrics(&self) -> Vec<Metric> {
        self.totals.metrics()
    }

    /// Statements that are planned, or whose result is read.
    pub(crate) fn running(&self) -> u64 {
        self.totals.running()
    }

    fn begin(&self, record: QueryRecord) {
        self.totals.started();
        let mut records = self.records.lock();
        while records.len() >= self.capacity.max(1) {
            records.pop_front();
        }
        records.push_back(record);
    }

    fn end(&self, id: Uuid, change: impl FnOnce(&mut QueryRecord)) {
        if let Some(record) = self.records.lock().iter_mut().rev().find(|record| record.query_id == id) {
            change(record);
        }
    }
}

/// When the query must have ended; an extension of the session configuration, so that scans can
/// pass what remains of it on to storage nodes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueryDeadline(pub(crate) Deadline);

/// A query under way. Whoever holds the last handle ends it: dropping it unfinished is a
/// cancellation.
#[derive(Debug)]
pub(crate) struct QueryRun {
    id: Uuid,
    sql: String,
    log: QueryLog,
    clock: Arc<dyn Clock>,
    started: Duration,
    deadline: Option<Deadline>,
    progress: Mutex<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    plan: Option<Arc<dyn ExecutionPlan>>,
    planning_micros: u64,
    plan_cache_hit: bool,
    /// Where only one copy of its plan may run.
    lease: Option<Lease>,
    rows: u64,
    ended: bool,
}

impl QueryRun {
    /// Begins a query and its record.
    pub(crate) fn begin(
        environment: &Environment,
        log: &QueryLog,
        session_id: Uuid,
        sql: &str,
        timeout: Option<Duration>,
    ) -> Self {
        let id = environment.new_uuid();
        log.begin(QueryRecord {
            query_id: id,
            session_id,
            sql: cut(sql, RECORD_SQL_BYTES_MAX),
            state: QueryState::Running,
            error: None,
            start_unix_millis: environment.clock.unix_millis(),
            planning_micros: 0,
            plan_cache_hit: false,
            total_micros: 0,
            rows: 0,
            segments_total: 0,
            segments_pruned: 0,
            segments_scanned: 0,
            segments_kept: 0,
            segments_pooled: 0,
            row_groups: 0,
            row_groups_pruned: 0,
            rows_pruned_pages: 0,
            pages_pruned: 0,
            rows_in: 0,
            rows_out: 0,
            bytes_read: 0,
            bytes_wire: 0,
            requests: 0,
            retries: 0,
            pushbacks: 0,
            segments_fetched: 0,
            hedges: 0,
            storage_cpu_micros: 0,
            replicas: Vec::new(),
        });
        Self {
            id,
            sql: cut(sql, RECORD_SQL_BYTES_MAX),
            log: log.clone(),
            clock: Arc::clone(&environment.clock),
            started: environment.clock.now(),
            deadline: timeout.map(|timeout| Deadline::after(environment.clock.as_ref(), timeout)),
            progress: Mutex::default(),
        }
    }

    pub(crate) fn id(&self) -> Uuid {
        self.id
    }

    pub(crate) fn deadline(&self) -> Option<Deadline> {
        self.deadline
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// The physical plan is ready: planning ends here, and its metrics go into the record.
    pub(crate) fn planned(&self, plan: &Arc<dyn ExecutionPlan>) {
        self.log.totals.planned(plan);
        let mut progress = self.progress.lock();
        progress.planning_micros = self.elapsed_micros();
        progress.plan = Some(Arc::clone(plan));
    }

    /// The plan was in the cache.
    pub(crate) fn plan_cache_hit(&self) {
        self.progress.lock().plan_cache_hit = true;
    }

    /// Holds the lease of its plan until it ends.
    pub(crate) fn hold(&self, lease: Option<Lease>) {
        self.progress.lock().lease = lease;
    }

    /// The statement, cut after 8 KiB.
    pub(crate) fn sql(&self) -> &str {
        &self.sql
    }

    /// Time since its beginning.
    pub(crate) fn elapsed(&self) -> Duration {
        self.clock.now().saturating_sub(self.started)
    }

    /// Counts rows of the result, or rows written.
    pub(crate) fn add_rows(&self, rows: u64) {
        let mut progress = self.progress.lock();
        progress.rows = progress.rows.saturating_add(rows);
    }

    /// The result was read to its end.
    pub(crate) fn finish(&self) {
        self.end(QueryState::Finished, None);
    }

    /// It failed; a cancellation and a missed deadline are recorded as such.
    pub(crate) fn fail(&self, error: &Error) {
        let cancelled =
            matches!(error.code(), aubade_proto::ErrorCode::Cancelled | aubade_proto::ErrorCode::DeadlineExceeded);
        self.end(if cancelled { QueryState::Cancelled } else { QueryState::Failed }, Some(error.to_string()));
    }

    fn elapsed_micros(&self) -> u64 {
        u64::try_from(self.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn end(&self, state: QueryState, error: Option<String>) {
        let (plan, planning_micros, plan_cache_hit, lease, rows) = {
            let mut progress = self.progress.lock();
            if progress.ended {
                return;
            }
            progress.ended = true;
            let (plan, lease) = (progress.plan.take(), progress.lease.take());
            (plan, progress.planning_micros, progress.plan_cache_hit, lease, progress.rows)
        };
        let total_micros = self.elapsed_micros();
        let scans = plan.map(|plan| metrics::ScanTotals::of(&plan)).unwrap_or_default();
        if let Some(lease) = lease.filter(|_| state == QueryState::Finished) {
            lease.end();
        }
        let totals = &self.log.totals;
        self.log.end(self.id, |record| {
            record.state = state;
            record.error = error;
            record.total_micros = total_micros;
            record.planning_micros = if planning_micros == 0 { total_micros } else { planning_micros };
            record.plan_cache_hit = plan_cache_hit;
            record.rows = rows;
            scans.fill(record);
            totals.ended(record, &scans);
        });
    }
}

impl Drop for QueryRun {
    fn drop(&mut self) {
        self.end(QueryState::Cancelled, None);
    }
}

/// The beginning of `text`, at most `bytes` long.
pub(crate) fn cut(text: &str, bytes: usize) -> String {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
