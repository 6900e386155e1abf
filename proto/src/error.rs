//! The one error that crosses crate and process borders: a stable code, a message that names the
//! thing, a hint what to do, and the cause.

use std::any::Any;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use arrow::error::ArrowError;
use datafusion::common::SchemaError;
use datafusion::error::DataFusionError;
use prost::Message;

use crate::code::{ErrorCode, Retry};
use crate::wire::storage::ErrorDetail;

/// The result of everything that can fail with an [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Source = Arc<dyn StdError + Send + Sync + 'static>;

/// Names [`ErrorDetail`] among the details of a status.
const DETAIL_TYPE_URL: &str = "type.googleapis.com/aubade.storage.v1.ErrorDetail";

/// Bytes of one text in a header.
const HEADER_TEXT_BYTES_MAX: usize = 1800;

/// The text, cut where it is too long for a header.
fn shortened(mut text: String) -> String {
    if text.len() > HEADER_TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(HEADER_TEXT_BYTES_MAX));
        text.push_str(" ...");
    }
    text
}

/// `google.rpc.Status`, the form that gRPC gives to `grpc-status-details-bin`: Go's clients report an
/// internal error when the header holds anything else.
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<AnyMessage>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, prost::Message)]
struct AnyMessage {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// See the module's doc. Cheap to clone.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    code: ErrorCode,
    message: String,
    hint: Option<String>,
    retry_after_millis: u64,
    source: Option<Source>,
}

/// The text of a cause that happened in another process.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct RemoteCause {
    text: String,
    #[source]
    source: Option<Box<Self>>,
}

/// Causes copied from a foreign error at most: such chains may be of any length.
const CAUSES_COPIED_MAX: usize = 8;

impl RemoteCause {
    /// The texts of a chain of causes without its types, and without those that only repeat the text above them.
    fn copy_of(first: Option<&dyn StdError>, above: &str) -> Option<Self> {
        let mut texts: Vec<String> = Vec::new();
        let mut next = first;
        while let Some(cause) = next
            && texts.len() < CAUSES_COPIED_MAX
        {
            let text = cause.to_string();
            if texts.last().map_or(above, String::as_str) != text {
                texts.push(text);
            }
            next = cause.source();
        }
        texts.into_iter().rev().fold(None, |source, text| Some(Self { text, source: source.map(Box::new) }))
    }
}

impl Error {
    /// An error with a message in lower case and without a full stop that names the thing.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self(Arc::new(Inner { code, message: message.into(), hint: None, retry_after_millis: 0, source: None }))
    }

    /// A defect: a state that the code rules out.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Internal, message)
    }

    fn edit(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }

    /// Adds what the reader should do.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        self.edit(|inner| inner.hint = Some(hint.into()))
    }

    /// Adds the cause.
    #[must_use]
    pub fn source(self, source: impl Into<Box<dyn StdError + Send + Sync + 'static>>) -> Self {
        self.edit(|inner| inner.source = Some(Arc::from(source.into())))
    }

    /// Adds how long to wait before another try, for [`ErrorCode::Busy`].
    #[must_use]
    pub fn retry_after_millis(self, millis: u64) -> Self {
        self.edit(|inner| inner.retry_after_millis = millis)
    }

    /// The stable code.
    pub fn code(&self) -> ErrorCode {
        self.0.code
    }

    /// The message without code and hint.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What to do about it.
    pub fn hint_text(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// Whether to try again.
    pub fn retry(&self) -> Retry {
        self.0.code.retry()
    }

    /// Whether the caller asked for the end; never logged as an error.
    pub fn is_cancelled(&self) -> bool {
        self.0.code == ErrorCode::Cancelled
    }

    /// The texts of the causes, outermost first, each of them once: many libraries write the text of
    /// a cause into that of the error around it as well.
    pub fn causes(&self) -> Vec<String> {
        let mut causes: Vec<String> = Vec::new();
        let mut next: Option<&(dyn StdError + 'static)> = StdError::source(self);
        while let Some(cause) = next {
            let told = |text: &str| {
                let text = text.trim();
                self.0.message.contains(text) || causes.iter().any(|outer| outer.contains(text))
            };
            // Whoever repeats one of our messages has taken over its hint, or has a better one.
            let is_new =
                cause.downcast_ref::<Self>().is_none_or(|own| !told(own.message())) && !told(&cause.to_string());
            if is_new {
                causes.push(cause.to_string());
            }
            next = cause.source();
        }
        causes
    }

    /// Code, message, causes and hint, each on a line of its own: for people.
    pub fn report(&self) -> String {
        let mut text = format!("{} ({})", self.0.message, self.0.code.text());
        for cause in self.causes() {
            text.push_str("\n  caused by: ");
            text.push_str(&cause);
        }
        if let Some(hint) = &self.0.hint {
            text.push_str("\n  hint: ");
            text.push_str(hint);
        }
        text
    }

    /// Message, code, causes and hint on one line: for logs, where `Display` alone would drop the causes.
    pub fn chain(&self) -> impl fmt::Display + '_ {
        Chain(self)
    }

    /// The form for the wire.
    pub fn to_detail(&self) -> ErrorDetail {
        ErrorDetail {
            code: self.0.code.number(),
            message: self.0.message.clone(),
            hint: self.0.hint.clone().unwrap_or_default(),
            causes: self.causes(),
            retry_after_millis: self.0.retry_after_millis,
        }
    }

    /// The form for a header: a client refuses headers above 16 KiB, and with them the connection.
    fn to_short_detail(&self) -> ErrorDetail {
        let mut detail = self.to_detail();
        detail.message = shortened(detail.message);
        detail.hint = shortened(detail.hint);
        let mut bytes = 0;
        detail.causes.retain(|cause| {
            bytes += cause.len();
            bytes <= HEADER_TEXT_BYTES_MAX
        });
        detail
    }

    /// The error that another process sent.
    pub fn from_detail(detail: ErrorDetail) -> Self {
        let cause = detail
            .causes
            .into_iter()
            .rev()
            .fold(None, |source, text| Some(RemoteCause { text, source: source.map(Box::new) }));
        Self(Arc::new(Inner {
            code: ErrorCode::from_number(detail.code),
            message: detail.message,
            hint: Some(detail.hint).filter(|hint| !hint.is_empty()),
            retry_after_millis: detail.retry_after_millis,
            source: cause.map(|cause| Arc::new(cause) as Source),
        }))
    }

    /// The gRPC status that carries this error. Its message is readable by itself, for clients that
    /// know nothing of the details.
    pub fn to_status(&self) -> tonic::Status {
        let (code, message) = (self.0.code.grpc(), shortened(self.report()));
        let detail = AnyMessage { type_url: DETAIL_TYPE_URL.to_owned(), value: self.to_short_detail().encode_to_vec() };
        let details = RpcStatus { code: code as i32, message: message.clone(), details: vec![detail] };
        tonic::Status::with_details(code, message, details.encode_to_vec().into())
    }

    /// The error in a gRPC status, or one made from its gRPC code when `peer` is not ours or the
    /// connection failed.
    pub fn from_status(status: &tonic::Status, peer: &str) -> Self {
        if let Ok(rich) = RpcStatus::decode(status.details())
            && let Some(any) = rich.details.iter().find(|any| any.type_url == DETAIL_TYPE_URL)
            && let Ok(detail) = ErrorDetail::decode(any.value.as_slice())
        {
            return Self::from_detail(detail);
        }
        let code = match status.code() {
            // Not the caller, but the connection: it closed while the request was on its way.
            tonic::Code::Cancelled if StdError::source(status).is_some() => ErrorCode::NodeUnavailable,
            tonic::Code::Cancelled => ErrorCode::Cancelled,
            tonic::Code::DeadlineExceeded => ErrorCode::DeadlineExceeded,
            tonic::Code::Unavailable | tonic::Code::Unknown => ErrorCode::NodeUnavailable,
            tonic::Code::OutOfRange | tonic::Code::ResourceExhausted => ErrorCode::LimitExceeded,
            tonic::Code::Unimplemented => ErrorCode::UnsupportedVersion,
            _ => ErrorCode::Internal,
        };
        let mut error = Self::new(code, format!("{peer}: {}", status.message()));
        // What the transport knows beneath, like "connection refused".
        if let Some(cause) = RemoteCause::copy_of(StdError::source(status), status.message()) {
            error = error.source(cause);
        }
        match code {
            ErrorCode::LimitExceeded => {
                error.hint("raise the message limit of the client, or ask for fewer or narrower rows")
            }
            ErrorCode::NodeUnavailable => error.hint(format!("check that {peer} runs and can be reached from here")),
            _ => error,
        }
    }

    /// The error inside a DataFusion error, or one with the code that fits it.
    pub fn from_datafusion(error: DataFusionError) -> Self {
        if let Some(found) = find_error(&error) {
            return found;
        }
        let root = error.find_root();
        let (code, hint) = classify(root);
        let is_defect = matches!(root, DataFusionError::Internal(_));
        let stated = if is_defect { &error } else { without_rules(&error) };
        // What a rule makes of values that the statement has, as of a pattern that is none.
        let of_statement = code == ErrorCode::Internal && !is_defect && !std::ptr::eq(stated, &error);
        let code = if of_statement { ErrorCode::SqlPlan } else { code };
        let result = Self::new(code, stated.strip_backtrace());
        match hint {
            Some(hint) => result.hint(hint),
            None => result,
        }
    }
}

/// Looks for an [`Error`] that passed through DataFusion.
fn find_error(error: &DataFusionError) -> Option<Error> {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(cause) = next {
        if let Some(found) = cause.downcast_ref::<Error>() {
            return Some(found.clone());
        }
        // Arc and Box wrappers hide what they hold from `source`.
        if let Some(DataFusionError::Shared(inner)) = cause.downcast_ref::<DataFusionError>() {
            return find_error(inner);
        }
        if let Some(DataFusionError::External(inner)) = cause.downcast_ref::<DataFusionError>() {
            if let Some(inner) = inner.downcast_ref::<DataFusionError>() {
                return find_error(inner);
            }
            if let Some(found) = inner.downcast_ref::<Error>() {
                return Some(found.clone());
            }
        }
        if let Some(DataFusionError::ArrowError(inner, _)) = cause.downcast_ref::<DataFusionError>()
            && let ArrowError::ExternalError(inner) = inner.as_ref()
        {
            if let Some(inner) = inner.downcast_ref::<DataFusionError>() {
                return find_error(inner);
            }
            if let Some(found) = inner.downcast_ref::<Error>() {
                return Some(found.clone());
            }
        }
        if let Some(DataFusionError::Collection(all)) = cause.downcast_ref::<DataFusionError>() {
            return all.iter().find_map(find_error);
        }
        next = cause.source();
    }
    None
}

/// The error without the rules of the planner that it came through: who wrote the statement knows nothing of them.
fn without_rules(error: &DataFusionError) -> &DataFusionError {
    match error {
        DataFusionError::Context(rule, inner) if rule.starts_with("Optimizer rule '") || !rule.contains(' ') => {
            without_rules(inner)
        }
        _ => error,
    }
}

fn classify(root: &DataFusionError) -> (ErrorCode, Option<&'static str>) {
    match root {
        DataFusionError::SQL(..) => (ErrorCode::SqlSyntax, None),
        DataFusionError::SchemaError(schema, _) => match schema.as_ref() {
            SchemaError::FieldNotFound { .. } => (ErrorCode::ColumnNotFound, None),
            _ => (ErrorCode::SqlPlan, None),
        },
        DataFusionError::ResourcesExhausted(_) => (
            ErrorCode::OutOfMemory,
            Some("raise --memory-limit, or ask for fewer groups, narrower rows or less parallelism"),
        ),
        DataFusionError::NotImplemented(_) => (ErrorCode::NotSupported, None),
        DataFusionError::Plan(_) => (ErrorCode::SqlPlan, None),
        DataFusionError::Configuration(_) => (ErrorCode::InvalidArgument, None),
        DataFusionError::Execution(_) => (ErrorCode::SqlExecution, None),
        DataFusionError::ArrowError(arrow, _) => (classify_arrow(arrow), None),
        DataFusionError::ParquetError(_) => (ErrorCode::FileUnreadable, None),
        DataFusionError::IoError(io) if io.kind() == std::io::ErrorKind::StorageFull => (ErrorCode::DiskFull, None),
        DataFusionError::ObjectStore(_) | DataFusionError::IoError(_) => (ErrorCode::Io, None),
        DataFusionError::ExecutionJoin(join) if join.is_cancelled() => (ErrorCode::Cancelled, None),
        _ => (ErrorCode::Internal, None),
    }
}

fn classify_arrow(error: &ArrowError) -> ErrorCode {
    match error {
        ArrowError::DivideByZero => ErrorCode::DivisionByZero,
        ArrowError::CastError(_)
        | ArrowError::ParseError(_)
        | ArrowError::ArithmeticOverflow(_)
        | ArrowError::ComputeError(_)
        | ArrowError::InvalidArgumentError(_) => ErrorCode::SqlExecution,
        ArrowError::CsvError(_) | ArrowError::JsonError(_) | ArrowError::ParquetError(_) => ErrorCode::FileUnreadable,
        ArrowError::MemoryError(_) => ErrorCode::OutOfMemory,
        ArrowError::IoError(..) => ErrorCode::Io,
        _ => ErrorCode::Internal,
    }
}

/// An error with its causes on one line.
struct Chain<'a>(&'a Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &self.0.0;
        write!(f, "{} ({})", inner.message, inner.code.text())?;
        for cause in self.0.causes() {
            write!(f, "; caused by: {cause}")?;
        }
        match &inner.hint {
            Some(hint) => write!(f, "; hint: {hint}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        if let Some(hint) = &self.0.hint {
            write!(f, " (hint: {hint})")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.report())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|source| source.as_ref() as &(dyn StdError + 'static))
    }
}

impl From<DataFusionError> for Error {
    fn from(error: DataFusionError) -> Self {
        Self::from_datafusion(error)
    }
}

impl From<ArrowError> for Error {
    fn from(error: ArrowError) -> Self {
        Self::from_datafusion(error.into())
    }
}

impl From<Error> for DataFusionError {
    fn from(error: Error) -> Self {
        Self::External(Box::new(error))
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        error.to_status()
    }
}

/// What a panic said.
pub fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

/// Turns foreign errors into ours at the place that knows what was being done.
pub trait ResultExt<T> {
    /// Wraps the error as the cause of a new one. I/O errors that mean a full disk keep that code.
    fn context(self, code: ErrorCode, message: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Box<dyn StdError + Send + Sync + 'static>>> ResultExt<T> for std::result::Result<T, E> {
    fn context(self, code: ErrorCode, message: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| {
            let source = error.into();
            let full =
                source.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::StorageFull);
            if full {
                return Error::new(ErrorCode::DiskFull, message())
                    .source(source)
                    .hint("free room on the disk and try again");
            }
            Error::new(code, message()).source(source)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_in_a_rule_of_the_planner_is_about_the_statement() {
        let in_rules = |root: DataFusionError| {
            let error = root.context("type_coercion").context("Optimizer rule 'simplify_expressions' failed");
            Error::from_datafusion(error)
        };
        let pattern = in_rules(DataFusionError::External("Invalid regex".into()));
        assert_eq!((pattern.code(), pattern.message()), (ErrorCode::SqlPlan, "External error: Invalid regex"));
        assert_eq!(in_rules(DataFusionError::Plan("no".into())).message(), "Error during planning: no");
        let defect = in_rules(DataFusionError::Internal("oh".into()));
        assert_eq!(defect.code(), ErrorCode::Internal);
        assert!(defect.message().contains("simplify_expressions"));
    }

    #[test]
    fn an_error_survives_the_wire_with_code_hint_and_causes() {
        let sent = Error::new(ErrorCode::SegmentCorrupt, "segment 7 is corrupt")
            .hint("repair it")
            .source(std::io::Error::other("block 3"));
        let received = Error::from_status(&sent.to_status(), "node");
        assert_eq!(received.code(), ErrorCode::SegmentCorrupt);
        assert_eq!(received.hint_text(), Some("repair it"));
        assert_eq!(received.causes(), ["block 3"]);
    }

    /// As `object_store` and `reqwest` do it: every layer's text ends with that of its cause.
    #[derive(Debug, thiserror::Error)]
    #[error("request {request}: {source}")]
    struct Layer {
        request: u32,
        source: std::io::Error,
    }

    #[test]
    fn a_cause_that_was_told_already_is_not_told_again() {
        let layer = || Layer { request: 7, source: std::io::Error::other("connection refused") };
        let outer = Error::new(ErrorCode::StoreUnavailable, "cannot read m/1").source(layer());
        assert_eq!(outer.causes(), ["request 7: connection refused"]);
        assert_eq!(outer.report().matches("connection refused").count(), 1);
        let received = Error::from_status(&outer.to_status(), "node");
        assert_eq!(received.report(), outer.report());

        let inner = Error::new(ErrorCode::Io, "disk 3 is gone").hint("replace it").source(std::io::Error::other("EIO"));
        let repeats = Error::new(ErrorCode::Io, format!("cannot load: {}", inner.message())).source(inner.clone());
        assert_eq!(repeats.causes(), ["EIO"]);
        let wraps = Error::new(ErrorCode::Io, "cannot load").source(inner);
        assert_eq!(wraps.causes(), ["disk 3 is gone (hint: replace it)", "EIO"]);
    }

    #[test]
    fn the_details_of_a_status_are_those_that_grpc_defines() {
        let status = Error::new(ErrorCode::SqlSyntax, "the SQL does not parse").to_status();
        let rich = RpcStatus::decode(status.details()).unwrap();
        assert_eq!((rich.code, rich.message.as_str()), (status.code() as i32, status.message()));
    }

    #[test]
    fn a_long_error_fits_into_a_header() {
        let long = "x\u{e9}".repeat(50_000);
        let cause = std::io::Error::other(long.clone());
        let status = Error::new(ErrorCode::Internal, long.clone()).hint(long).source(cause).to_status();
        assert!(status.message().len() + status.details().len() * 4 / 3 < 12 << 10);
        assert_eq!(Error::from_status(&status, "node").code(), ErrorCode::Internal);
    }

    #[test]
    fn an_error_survives_datafusion() {
        let sent = Error::new(ErrorCode::SegmentUnavailable, "segment 7 has no replica");
        let wrapped = DataFusionError::from(sent).context("while scanning");
        let shared = DataFusionError::Shared(Arc::new(wrapped));
        assert_eq!(Error::from_datafusion(shared).code(), ErrorCode::SegmentUnavailable);
        let arrow = ArrowError::ExternalError(Box::new(Error::new(ErrorCode::Busy, "busy")));
        assert_eq!(Error::from_datafusion(DataFusionError::from(arrow)).code(), ErrorCode::Busy);
    }

    #[test]
    fn division_by_zero_has_its_own_code() {
        assert_eq!(Error::from(ArrowError::DivideByZero).code(), ErrorCode::DivisionByZero);
    }

    #[test]
    fn the_chain_has_all_causes_and_the_hint_on_one_line() {
        let inner = Error::new(ErrorCode::Io, "the file cannot be opened").source(std::io::Error::other("block 3"));
        let error = Error::new(ErrorCode::SegmentCorrupt, "segment 7 is corrupt").hint("repair it").source(inner);
        let text = error.chain().to_string();
        assert_eq!(
            text,
            "segment 7 is corrupt (SEGMENT_CORRUPT); caused by: the file cannot be opened; caused by: block 3; hint: \
             repair it"
        );
    }

    #[test]
    fn a_foreign_status_keeps_the_causes_that_its_transport_knows() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let connect = Error::new(ErrorCode::Io, "tcp connect error").source(refused);
        let error = Error::from_status(&tonic::Status::from_error(Box::new(connect)), "10.0.0.1:1");
        assert_eq!(error.causes(), ["connection refused"], "{error:?}");
    }

    #[test]
    fn a_foreign_status_keeps_its_text() {
        let error = Error::from_status(&tonic::Status::unavailable("tcp connect error"), "10.0.0.1:1");
        assert_eq!(error.code(), ErrorCode::NodeUnavailable);
        assert!(error.to_string().contains("10.0.0.1:1: tcp connect error"));
    }
}
