//! Session options of Flight: the messages of its three actions, and how they map to SQL settings.
//!
//! arrow-flight does not generate these messages; they follow `Flight.proto` of the Arrow project.

use std::collections::HashMap;

use arrow::array::{Array, AsArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use aubade_proto::{Error, Result};
use futures::TryStreamExt;

use super::run::drain;
use crate::session::Session;

/// Options per request.
const OPTIONS_MAX: usize = 256;
/// Names that Flight defines, and the settings that they stand for.
const ALIASES: &[(&str, &str)] =
    &[("catalog", "datafusion.catalog.default_catalog"), ("schema", "datafusion.catalog.default_schema")];

/// The value of an option. Without one it is to be reset.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SessionOptionValue {
    /// The value.
    #[prost(oneof = "OptionValue", tags = "1, 2, 3, 4, 5")]
    pub(super) option_value: Option<OptionValue>,
}

/// The types that a value can have.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum OptionValue {
    /// Text.
    #[prost(string, tag = "1")]
    Text(String),
    /// A truth value.
    #[prost(bool, tag = "2")]
    Bool(bool),
    /// A whole number.
    #[prost(sfixed64, tag = "3")]
    Whole(i64),
    /// A number.
    #[prost(double, tag = "4")]
    Number(f64),
    /// Several texts.
    #[prost(message, tag = "5")]
    List(StringList),
}

/// Several texts.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct StringList {
    /// The texts.
    #[prost(string, repeated, tag = "1")]
    pub(super) values: Vec<String>,
}

/// Body of the action SetSessionOptions.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SetSessionOptionsRequest {
    /// The options to set.
    #[prost(map = "string, message", tag = "1")]
    pub(super) session_options: HashMap<String, SessionOptionValue>,
}

/// Result of the action SetSessionOptions.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SetSessionOptionsResult {
    /// The options that were not set.
    #[prost(map = "string, message", tag = "1")]
    pub(super) errors: HashMap<String, SetOptionError>,
}

/// Why an option was not set.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SetOptionError {
    /// A [`SetOptionFailure`].
    #[prost(enumeration = "SetOptionFailure", tag = "1")]
    pub(super) value: i32,
}

/// Kinds of [`SetOptionError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(super) enum SetOptionFailure {
    /// Not given.
    Unspecified = 0,
    /// No option has that name.
    InvalidName = 1,
    /// The option cannot have that value.
    InvalidValue = 2,
    /// Anything else.
    Error = 3,
}

/// Result of the action GetSessionOptions.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct GetSessionOptionsResult {
    /// Every option.
    #[prost(map = "string, message", tag = "1")]
    pub(super) session_options: HashMap<String, SessionOptionValue>,
}

/// Result of the action CloseSession.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CloseSessionResult {
    /// A [`CloseStatus`].
    #[prost(enumeration = "CloseStatus", tag = "1")]
    pub(super) status: i32,
}

/// Kinds of [`CloseSessionResult`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(super) enum CloseStatus {
    /// Not given.
    Unspecified = 0,
    /// It is closed.
    Closed = 1,
    /// It will be closed soon.
    Closing = 2,
    /// It cannot be closed.
    NotCloseable = 3,
}

/// Sets options one by one; those that fail are in the result.
///
/// # Errors
/// `LimitExceeded` for too many options.
pub(super) async fn set_options(
    session: &Session,
    request: SetSessionOptionsRequest,
) -> Result<SetSessionOptionsResult> {
    if request.session_options.len() > OPTIONS_MAX {
        let message =
            format!("{} session options in one request, {OPTIONS_MAX} at most", request.session_options.len());
        return Err(Error::new(aubade_proto::ErrorCode::LimitExceeded, message));
    }
    // In the order of the names, so that a run repeats.
    let mut options: Vec<_> = request.session_options.into_iter().collect();
    options.sort_by(|a, b| a.0.cmp(&b.0));
    let mut errors = HashMap::new();
    for (name, value) in options {
        if let Err(failure) = set_option(session, &name, value).await {
            errors.insert(name, SetOptionError { value: failure.into() });
        }
    }
    Ok(SetSessionOptionsResult { errors })
}

async fn set_option(session: &Session, name: &str, value: SessionOptionValue) -> Result<(), SetOptionFailure> {
    let setting = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, setting)| setting);
    if setting.is_empty() || !setting.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.') {
        return Err(SetOptionFailure::InvalidName);
    }
    let sql = match value.option_value {
        Some(value) => {
            let text = text_of(value).ok_or(SetOptionFailure::InvalidValue)?;
            format!("SET {setting} = '{}'", text.replace('\'', "''"))
        }
        None => format!("RESET {setting}"),
    };
    let known = settings(session).await.map_err(|_| SetOptionFailure::Error)?;
    if !known.contains_key(setting) {
        return Err(SetOptionFailure::InvalidName);
    }
    let output = session.execute(&sql).await.map_err(|_| SetOptionFailure::InvalidValue)?;
    drain(output).await.map(|_| ()).map_err(|_| SetOptionFailure::InvalidValue)
}

fn text_of(value: OptionValue) -> Option<String> {
    match value {
        OptionValue::Text(text) => Some(text),
        OptionValue::Bool(value) => Some(value.to_string()),
        OptionValue::Whole(value) => Some(value.to_string()),
        OptionValue::Number(value) => Some(value.to_string()),
        OptionValue::List(_) => None,
    }
}

/// Every option of a session, as text, under Flight's names too.
///
/// # Errors
/// Those of reading the settings.
pub(super) async fn get_options(session: &Session) -> Result<GetSessionOptionsResult> {
    let mut options = settings(session).await?;
    for (alias, setting) in ALIASES {
        if let Some(value) = options.get(*setting).cloned() {
            options.insert((*alias).to_owned(), value);
        }
    }
    let session_options = options
        .into_iter()
        .map(|(name, value)| (name, SessionOptionValue { option_value: Some(OptionValue::Text(value)) }))
        .collect();
    Ok(GetSessionOptionsResult { session_options })
}

async fn settings(session: &Session) -> Result<HashMap<String, String>> {
    let output = session.execute("SELECT name, value FROM information_schema.df_settings").await?;
    let batches: Vec<_> = output.stream.try_collect().await?;
    let mut settings = HashMap::new();
    for batch in batches {
        let names = cast(batch.column(0), &DataType::Utf8)?;
        let values = cast(batch.column(1), &DataType::Utf8)?;
        let (names, values) = (names.as_string::<i32>(), values.as_string::<i32>());
        for row in 0..batch.num_rows() {
            let value = if values.is_null(row) { "" } else { values.value(row) };
            settings.insert(names.value(row).to_owned(), value.to_owned());
        }
    }
    Ok(settings)
}
