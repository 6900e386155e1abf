//! CREATE EXTERNAL TABLE: files as a table. The catalog keeps the text of the statement.

use std::path::Path;

use aubade_catalog::{Action, RelationDefinition, RelationKind};
use aubade_planner::files::{check_files_present, open_external_table};
use aubade_proto::{Error, ErrorCode, RelationId, Result, ResultExt};
use datafusion::logical_expr::{DdlStatement, LogicalPlan};
use datafusion::sql::parser::{CreateExternalTable, Statement as Ast};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

use super::StatementContext;
use super::names::{IfTaken, Name};
use crate::session::{LineOffsets, QueryOutput};

pub(super) async fn create(context: &StatementContext, create: CreateExternalTable, text: &str) -> Result<QueryOutput> {
    for location in &create.locations {
        context.engine().options().file_access.check(location)?;
    }
    if create.unbounded || create.temporary {
        let clause = if create.unbounded { "UNBOUNDED" } else { "TEMPORARY" };
        return Err(Error::new(
            ErrorCode::NotSupported,
            format!("{clause} in CREATE EXTERNAL TABLE is not supported yet"),
        ));
    }
    let if_taken = IfTaken { or_replace: create.or_replace, if_not_exists: create.if_not_exists };
    let name = context.relation_name(create.name.clone())?;
    let mut actions = Vec::new();
    match if_taken.decide(context.snapshot(), &name, "external table")? {
        Name::Keep => return context.done(0),
        Name::Free => {}
        Name::Replaces(relation) => actions.push(Action::DropRelation(relation.id())),
    }
    open(context, create).await?;
    let id = RelationId(context.engine().environment().new_uuid());
    let kind = RelationKind::External(with_absolute_locations(text)?);
    actions.push(Action::CreateRelation(RelationDefinition { id, name, kind }));
    match context.engine().commit(actions).await {
        Ok(_) => context.done(0),
        Err(error) if if_taken.content_with(&error) => context.done(0),
        Err(error) => Err(error),
    }
}

/// Reads the files' schema once, so that a statement that could never be read back fails now.
async fn open(context: &StatementContext, create: CreateExternalTable) -> Result<()> {
    let locations = create.locations.join(", ");
    let plan = context.plan(Ast::CreateExternalTable(create)).await?;
    let LogicalPlan::Ddl(DdlStatement::CreateExternalTable(command)) = plan else {
        return Err(Error::internal("CREATE EXTERNAL TABLE is planned as something else"));
    };
    let opened = async {
        check_files_present(context.state(), &command).await?;
        open_external_table(context.state(), &command).await
    };
    opened.await.map(drop).map_err(|error| {
        let cause = Error::from_datafusion(error);
        match cause.code() {
            ErrorCode::PermissionDenied | ErrorCode::InvalidArgument | ErrorCode::NotSupported => cause,
            _ => Error::new(ErrorCode::FileUnreadable, format!("the files at {locations} cannot be read"))
                .hint("check the path and that the files are whole")
                .source(cause),
        }
    })
}

/// The statement with its relative paths made absolute: it is read again by processes that run in
/// other folders.
fn with_absolute_locations(text: &str) -> Result<String> {
    let tokens = Tokenizer::new(&GenericDialect {}, text)
        .tokenize_with_location()
        .context(ErrorCode::SqlSyntax, || "the statement does not parse".to_owned())?;
    let offsets = LineOffsets::new(text);
    let mut output = String::with_capacity(text.len());
    let (mut copied, mut in_locations) = (0, false);
    for token in &tokens {
        match &token.token {
            Token::Word(word) => in_locations = word.keyword == Keyword::LOCATION,
            Token::SingleQuotedString(location) if in_locations && is_relative(location) => {
                let absolute = std::path::absolute(location)
                    .context(ErrorCode::InvalidArgument, || format!("'{location}' is no path"))?;
                let (start, end) = (offsets.byte(token.span.start), offsets.byte(token.span.end));
                output.push_str(text.get(copied..start).unwrap_or_default());
                let slash = if location.ends_with('/') { "/" } else { "" };
                let absolute = absolute.display().to_string();
                let path = format!("{}{slash}", absolute.trim_end_matches('/'));
                output.push_str(&format!("'{}'", path.replace('\'', "''")));
                copied = end;
            }
            _ => {}
        }
    }
    output.push_str(text.get(copied..).unwrap_or_default());
    Ok(output)
}

fn is_relative(location: &str) -> bool {
    Path::new(location).is_relative() && url::Url::parse(location).is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_locations_become_absolute_and_the_rest_stays() {
        let here = std::env::current_dir().unwrap().display().to_string();
        let text = "CREATE EXTERNAL TABLE \"é\" STORED AS CSV LOCATION ('a b.csv', '/x/y.csv', 's3://b/k') OPTIONS ('a' 'b.csv')";
        let expected = text.replace("'a b.csv'", &format!("'{here}/a b.csv'"));
        assert_eq!(with_absolute_locations(text).unwrap(), expected);
        assert_eq!(with_absolute_locations("LOCATION 'dir/'").unwrap(), format!("LOCATION '{here}/dir/'"));
    }
}
