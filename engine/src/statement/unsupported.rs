//! Statements that parse, and that Aubade does not carry out yet.

use aubade_proto::{Error, ErrorCode, Result};
use datafusion::sql::parser::Statement as Ast;
use datafusion::sql::sqlparser::ast::Statement as SqlAst;

const REWRITE: &str = "tables can be added to and replaced: use CREATE OR REPLACE TABLE t AS SELECT ... FROM t";
const AUTOCOMMIT: &str = "every statement is a transaction of its own and commits at its end";

/// Refuses what is not supported, also within EXPLAIN.
///
/// # Errors
/// `NotSupported`.
pub(super) fn check(ast: &Ast) -> Result<()> {
    match ast {
        Ast::Statement(ast) => check_sql(ast),
        Ast::Explain(explain) => check(&explain.statement),
        Ast::CreateExternalTable(_) | Ast::CopyTo(_) | Ast::Reset(_) => Ok(()),
    }
}

fn check_sql(ast: &SqlAst) -> Result<()> {
    let (name, hint) = match ast {
        SqlAst::Explain { statement, .. } => return check_sql(statement),
        SqlAst::Prepare { statement, .. } => return check_sql(statement),
        SqlAst::Update(_) => ("UPDATE", REWRITE),
        SqlAst::Delete(_) => ("DELETE", REWRITE),
        SqlAst::Merge(_) => ("MERGE", REWRITE),
        SqlAst::Truncate(_) => ("TRUNCATE", "use CREATE OR REPLACE TABLE t AS SELECT * FROM t LIMIT 0"),
        SqlAst::StartTransaction { .. } => ("BEGIN", AUTOCOMMIT),
        SqlAst::Commit { .. } => ("COMMIT", AUTOCOMMIT),
        SqlAst::Rollback { .. } => ("ROLLBACK", AUTOCOMMIT),
        SqlAst::Savepoint { .. } | SqlAst::ReleaseSavepoint { .. } => ("SAVEPOINT", AUTOCOMMIT),
        SqlAst::CreateIndex(_) => ("CREATE INDEX", "segments have statistics and Bloom filters by themselves"),
        SqlAst::CreateFunction(_) => ("CREATE FUNCTION", "write the expression out, or put it in a view"),
        SqlAst::DropFunction(_) => ("DROP FUNCTION", "functions cannot be made either"),
        SqlAst::CreateProcedure { .. } => ("CREATE PROCEDURE", "run the statements one after the other"),
        SqlAst::CreateTrigger(_) => ("CREATE TRIGGER", "run the statements one after the other"),
        SqlAst::CreateDatabase { .. } => ("CREATE DATABASE", "use CREATE SCHEMA"),
        SqlAst::CreateSequence { .. } => ("CREATE SEQUENCE", "number rows with row_number()"),
        SqlAst::AlterTable(_) => ("ALTER TABLE", "use CREATE OR REPLACE TABLE t AS SELECT ... FROM t"),
        SqlAst::AlterView { .. } => ("ALTER VIEW", "use CREATE OR REPLACE VIEW"),
        SqlAst::Grant(_) => ("GRANT", "there are no users and roles yet"),
        SqlAst::Revoke(_) => ("REVOKE", "there are no users and roles yet"),
        SqlAst::CreateRole(_) => ("CREATE ROLE", "there are no users and roles yet"),
        SqlAst::Analyze(_) => ("ANALYZE", "statistics are exact and kept with every write"),
        SqlAst::Vacuum(_) => ("VACUUM", "dropped segments are collected by themselves"),
        SqlAst::Copy { .. } => ("COPY FROM", "use `aubade load`, or INSERT INTO t SELECT * FROM 'file'"),
        SqlAst::Use(_) => ("USE", "use SET datafusion.catalog.default_schema = 'name'"),
        _ => return Ok(()),
    };
    Err(error(name).hint(hint))
}

/// The error for a statement of that name.
pub(super) fn error(name: &str) -> Error {
    Error::new(ErrorCode::NotSupported, format!("{name} is not supported yet"))
}
