//! One query's life: its record, the log of records, and the stream that fills a record in.

mod metrics;
mod stream;
mod task;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use aubade_environment::{Clock, Deadline, Environment};
use aubade_proto::{Error, NodeId};
use datafusion::physical_plan::ExecutionPlan;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub(crate) use stream::{deadline_exceeded, one_batch, query_stream};
pub(crate) use task::run_on;

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
    /// From its beginning to its end.
    pub total_micros: u64,
    /// Rows of the result; for a statement that writes, rows written.
    pub rows: u64,
    /// Segments of the tables that it scanned, once per scan.
    pub segments_total: u64,
    /// Of these, those that statistics ruled out, for filters of the query and for those found while it ran.
    pub segments_pruned: u64,
    /// Segments read.
    pub segments_scanned: u64,
    /// Row groups of the segments read.
    pub row_groups: u64,
    /// Of these, those that statistics or a Bloom filter ruled out.
    pub row_groups_pruned: u64,
    /// Rows that pages' statistics ruled out.
    pub rows_pruned_pages: u64,
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
}

impl Default for QueryLog {
    fn default() -> Self {
        Self::new(QUERY_LOG_RECORDS)
    }
}

impl QueryLog {
    /// A log of the newest `capacity` queries.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, records: Arc::default() }
    }

    /// The record of a query, unless it is too old.
    pub fn get(&self, id: Uuid) -> Option<QueryRecord> {
        self.records.lock().iter().rev().find(|record| record.query_id == id).cloned()
    }

    /// Every record, the newest first.
    pub fn recent(&self) -> Vec<QueryRecord> {
        self.records.lock().iter().rev().cloned().collect()
    }

    fn begin(&self, record: QueryRecord) {
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
            total_micros: 0,
            rows: 0,
            segments_total: 0,
            segments_pruned: 0,
            segments_scanned: 0,
            row_groups: 0,
            row_groups_pruned: 0,
            rows_pruned_pages: 0,
            rows_in: 0,
            rows_out: 0,
            bytes_read: 0,
            bytes_wire: 0,
            requests: 0,
            retries: 0,
            storage_cpu_micros: 0,
            replicas: Vec::new(),
        });
        Self {
            id,
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
        let mut progress = self.progress.lock();
        progress.planning_micros = self.elapsed_micros();
        progress.plan = Some(Arc::clone(plan));
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
        u64::try_from(self.clock.now().saturating_sub(self.started).as_micros()).unwrap_or(u64::MAX)
    }

    fn end(&self, state: QueryState, error: Option<String>) {
        let (plan, planning_micros, rows) = {
            let mut progress = self.progress.lock();
            if progress.ended {
                return;
            }
            progress.ended = true;
            (progress.plan.take(), progress.planning_micros, progress.rows)
        };
        let total_micros = self.elapsed_micros();
        let scans = plan.map(|plan| metrics::ScanTotals::of(&plan)).unwrap_or_default();
        self.log.end(self.id, |record| {
            record.state = state;
            record.error = error;
            record.total_micros = total_micros;
            record.planning_micros = if planning_micros == 0 { total_micros } else { planning_micros };
            record.rows = rows;
            scans.fill(record);
        });
    }
}

impl Drop for QueryRun {
    fn drop(&mut self) {
        self.end(QueryState::Cancelled, None);
    }
}

/// The beginning of `text`, at most `bytes` long.
fn cut(text: &str, bytes: usize) -> String {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
