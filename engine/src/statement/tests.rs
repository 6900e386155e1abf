//! Every kind of statement, against an engine in memory.

mod buffer_pool;
mod dml;
mod files;
mod generic_plans;
mod lifted;
mod plan_cache;
mod plan_cache_limits;
mod sound_rules;
mod tables;
mod various;
mod views;

use std::collections::BTreeSet;
use std::time::Duration;

use arrow::util::display::array_value_to_string;
use aubade_environment::Environment;
use aubade_proto::{Error, ErrorCode};
use futures::TryStreamExt;

use super::*;
use crate::engine::EngineOptions;
use crate::file_policy::FileAccess;

/// An engine in memory with one session.
pub(crate) struct Database {
    pub(crate) engine: Engine,
    pub(crate) session: Session,
}

impl Database {
    pub(crate) async fn open() -> Self {
        Self::with_files(FileAccess::Deny).await
    }

    pub(crate) async fn with_files(file_access: FileAccess) -> Self {
        let options = EngineOptions { file_access, target_partitions: Some(2), ..EngineOptions::default() };
        let engine = Engine::open_in_memory(Environment::system(), options).await.unwrap();
        Self { session: engine.session(), engine }
    }

    /// Runs several statements, all of which work.
    #[track_caller]
    pub(crate) fn run<'a>(&'a self, statements: &'a [&'a str]) -> impl Future<Output = ()> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            for sql in statements {
                if let Err(error) = self.try_rows(sql).await {
                    panic!("{caller}: {sql}: {error:?}");
                }
            }
        }
    }

    /// The rows, as text with `|` between columns.
    pub(crate) async fn try_rows(&self, sql: &str) -> Result<Vec<String>> {
        let output = self.session.execute(sql).await?;
        lines(output).await
    }

    pub(crate) async fn rows(&self, sql: &str) -> Vec<String> {
        match self.try_rows(sql).await {
            Ok(rows) => rows,
            Err(error) => panic!("{sql}: {error:?}"),
        }
    }

    pub(crate) async fn error(&self, sql: &str) -> Error {
        match self.try_rows(sql).await {
            Ok(rows) => panic!("{sql} gives {rows:?} instead of an error"),
            Err(error) => error,
        }
    }

    pub(crate) async fn code(&self, sql: &str) -> ErrorCode {
        self.error(sql).await.code()
    }

    /// Relations and segments: what a failed statement must leave as they were.
    pub(crate) async fn fingerprint(&self) -> String {
        let snapshot = self.engine.snapshot().await.unwrap();
        let relations: Vec<_> =
            snapshot.relations.iter().map(|(name, relation)| (name.to_string(), relation.id())).collect();
        let header = self.engine.cluster().header(snapshot.version, Duration::from_secs(10));
        for member in self.engine.cluster().members() {
            let (stored, _) = member.client.list_segments(&header, None, 1_000).await.unwrap();
            let stored: BTreeSet<_> = stored.into_iter().map(|segment| segment.segment_id).collect();
            assert_eq!(stored, snapshot.segment_ids(), "nodes hold what the manifest names");
        }
        format!("{:?} {relations:?} {:?}", snapshot.schemas, snapshot.segment_ids())
    }
}

/// A result as text, one line per row.
pub(crate) async fn lines(output: QueryOutput) -> Result<Vec<String>> {
    let batches: Vec<_> = output.stream.try_collect().await.map_err(Error::from_datafusion)?;
    let mut lines = Vec::new();
    for batch in &batches {
        for row in 0..batch.num_rows() {
            let values = batch.columns().iter().map(|column| array_value_to_string(column, row).unwrap());
            lines.push(values.collect::<Vec<_>>().join("|"));
        }
    }
    Ok(lines)
}
