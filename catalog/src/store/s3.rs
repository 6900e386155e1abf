//! The client for S3 and what speaks its protocol: settings are checked before they can panic or only
//! fail at the first request, and what the server refuses is told apart from what it does not answer.
//!
//! `object_store` turns the status of a refused list into text, and that of 501 for any request. So the
//! connection itself looks at the answers to signed requests, and hands refusals up as [`Refusal`],
//! which [`refusal_in`] finds again. Requests that are not signed are those for credentials, whose
//! statuses `object_store` looks at by itself.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aubade_proto::{Error, ErrorCode, Result, ResultExt};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};
use object_store::{BackoffConfig, ClientConfigKey, ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use super::UNSAFE_HINT;

/// Time in which a read, list or delete that failed is tried again: longer than a store needs to
/// spread its load, short enough for a coordinator that looks every second.
const READ_PATIENCE: Duration = Duration::from_secs(3);
/// Longest pause between two of these tries.
const READ_PAUSE_MAX: Duration = Duration::from_secs(1);
/// Tries within the patience, at most: they begin 0.1 s apart and get slower.
const READ_RETRIES_MAX: usize = 20;
/// What to do about a request that is not allowed.
pub(super) const CREDENTIALS_HINT: &str = "check the credentials (AWS_... variables) and the policy of the bucket";
/// Bytes of a refusal's body that are kept for the message.
const REFUSAL_TEXT_BYTES_MAX: usize = 600;

/// The two clients of one store.
pub(super) struct Clients {
    /// Without retries: an own retry that finds its own object would be told AlreadyExists.
    pub(super) creating: Arc<dyn ObjectStore>,
    pub(super) reading: Arc<dyn ObjectStore>,
}

/// Makes the clients with `settings`.
///
/// # Errors
/// `InvalidArgument` that names the setting, when they make no client.
pub(super) fn clients(location: &str, bucket: &str, settings: AmazonS3Builder) -> Result<Clients> {
    clients_over(Arc::new(ReqwestConnector::default()), location, bucket, settings)
}

fn clients_over(
    connector: Arc<dyn HttpConnector>,
    location: &str,
    bucket: &str,
    settings: AmazonS3Builder,
) -> Result<Clients> {
    check_header_values(&settings)?;
    let settings = with_checked_endpoint(settings)?;
    let settings = settings.with_bucket_name(bucket).with_conditional_put(S3ConditionalPut::ETagMatch);
    let settings = settings.with_http_connector(Connector(connector));
    let client = |retry: RetryConfig| -> Result<Arc<dyn ObjectStore>> {
        let built = settings.clone().with_retry(retry).build();
        let built = built.context(ErrorCode::InvalidArgument, || {
            format!("the AWS_... environment variables make no client for {location}")
        })?;
        Ok(Arc::new(built))
    };
    let backoff = BackoffConfig { max_backoff: READ_PAUSE_MAX, ..BackoffConfig::default() };
    let reading = RetryConfig { max_retries: READ_RETRIES_MAX, retry_timeout: READ_PATIENCE, backoff };
    Ok(Clients {
        creating: client(RetryConfig { max_retries: 0, ..RetryConfig::default() })?,
        reading: client(reading)?,
    })
}

/// Refuses what `object_store` would unwrap into a header of every request.
fn check_header_values(settings: &AmazonS3Builder) -> Result<()> {
    for (key, variable) in [
        (AmazonS3ConfigKey::AccessKeyId, "AWS_ACCESS_KEY_ID"),
        (AmazonS3ConfigKey::Token, "AWS_SESSION_TOKEN"),
        (AmazonS3ConfigKey::Region, "AWS_REGION"),
    ] {
        let value = settings.get_config_value(&key).unwrap_or_default();
        if !value.bytes().all(|byte| byte.is_ascii_graphic()) {
            // The value is not shown: it may hold a secret.
            let message = format!("{variable} has a blank, a line break or another character that cannot be in it");
            return Err(Error::new(ErrorCode::InvalidArgument, message).hint("set it again, without what is around it"));
        }
    }
    let region = settings.get_config_value(&AmazonS3ConfigKey::Region).unwrap_or_default();
    if !region.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        let message = format!("AWS_REGION is {region:?}, which is no name of a region");
        return Err(Error::new(ErrorCode::InvalidArgument, message).hint("give it like eu-central-1"));
    }
    Ok(())
}

/// The endpoint as a URL that requests can be made of: `object_store` panics on another one.
fn with_checked_endpoint(settings: AmazonS3Builder) -> Result<AmazonS3Builder> {
    // The one for S3 wins.
    let keys = [(AmazonS3ConfigKey::S3Endpoint, "AWS_ENDPOINT_URL_S3"), (AmazonS3ConfigKey::Endpoint, "AWS_ENDPOINT")];
    let set = keys.into_iter().find_map(|(key, variable)| Some((settings.get_config_value(&key)?, key, variable)));
    let Some((text, key, variable)) = set else { return Ok(settings) };
    let invalid = |what: &str| {
        Error::new(ErrorCode::InvalidArgument, format!("{variable} {what}"))
            .hint(format!("give it like {variable}=https://host:port"))
    };
    if text.contains('@') {
        // Not shown: it may hold a secret.
        return Err(invalid("holds a user name: that belongs to AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"));
    }
    let url = match Url::parse(&text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.host_str().is_some() => url,
        _ => return Err(invalid(&format!("is {text:?}, which is no http:// or https:// URL"))),
    };
    if url.query().is_some() || url.fragment().is_some() {
        return Err(invalid(&format!("is {text:?}: a query or fragment cannot be part of an endpoint")));
    }
    if url.scheme() == "http" && !allows_http(&settings) {
        let message = format!("{variable} is {text}, and plain HTTP is not allowed");
        return Err(Error::new(ErrorCode::InvalidArgument, message)
            .hint("use https://, or set AWS_ALLOW_HTTP=true for a network that you trust"));
    }
    Ok(settings.with_config(key, url.as_str().trim_end_matches('/')))
}

fn allows_http(settings: &AmazonS3Builder) -> bool {
    let value = settings.get_config_value(&AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp)).unwrap_or_default();
    // As `object_store` reads it; what it cannot read, it tells when the client is made.
    !matches!(value.to_ascii_lowercase().as_str(), "0" | "false" | "off" | "no" | "n")
}

/// An answer that says that this request cannot work, now or later.
#[derive(Debug, thiserror::Error)]
#[error("the store answered {status} {code}: {text}")]
pub(super) struct Refusal {
    status: u16,
    /// The code of S3, like `InvalidAccessKeyId`; empty where the body has none.
    code: String,
    text: String,
}

impl Refusal {
    /// Which error it is, and what to do about it.
    pub(super) fn meaning(&self) -> (ErrorCode, &'static str) {
        match (self.status, self.code.as_str()) {
            (501, _) => (ErrorCode::StoreUnsafe, UNSAFE_HINT),
            (404, _) => (ErrorCode::InvalidArgument, "make the bucket first, or check its name and AWS_ENDPOINT"),
            (_, "AuthorizationHeaderMalformed") => {
                (ErrorCode::PermissionDenied, "set AWS_REGION to the region of the bucket")
            }
            _ => (ErrorCode::PermissionDenied, CREDENTIALS_HINT),
        }
    }

    /// The refusal in an answer; `None` for statuses that `object_store` tells apart, and for errors
    /// that may pass.
    fn new(status: u16, body: &[u8]) -> Option<Self> {
        let mut text = String::from_utf8_lossy(body).trim().to_owned();
        let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
        let code = code.map_or(String::new(), |(code, _)| code.to_owned());
        let refused = match status {
            401 | 403 | 501 => true,
            400 => matches!(code.as_str(), "AuthorizationHeaderMalformed" | "ExpiredToken" | "InvalidToken"),
            // That an object is absent is no refusal; that all of them are is one.
            404 => code == "NoSuchBucket",
            _ => false,
        };
        text.truncate(text.floor_char_boundary(REFUSAL_TEXT_BYTES_MAX));
        refused.then_some(Self { status, code, text })
    }
}

/// The refusal among the causes of `error`.
pub(super) fn refusal_in(error: &object_store::Error) -> Option<&Refusal> {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(cause) = next {
        if let Some(refusal) = cause.downcast_ref() {
            return Some(refusal);
        }
        next = cause.source();
    }
    None
}

/// Makes connections that look for refusals.
#[derive(Debug)]
struct Connector(Arc<dyn HttpConnector>);

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Service(self.0.connect(options)?)))
    }
}

#[derive(Debug)]
struct Service(HttpClient);

#[async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let signed = request.headers().get("authorization").is_some_and(|value| value.as_bytes().starts_with(b"AWS4-"));
        let response = self.0.execute(request).await?;
        let status = response.status().as_u16();
        if !signed || !matches!(status, 400 | 401 | 403 | 404 | 501) {
            return Ok(response);
        }
        let (parts, body) = response.into_parts();
        let body = body.bytes().await?;
        match Refusal::new(status, &body) {
            // This kind is never tried again.
            Some(refusal) => Err(HttpError::new(HttpErrorKind::Unknown, refusal)),
            None => Ok(HttpResponse::from_parts(parts, body.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;
    use object_store::{ObjectStoreExt, PutMode};

    use super::*;

    /// Answers every request with one status and body.
    #[derive(Clone, Debug)]
    struct Fixed(u16, &'static str);

    #[async_trait]
    impl HttpService for Fixed {
        async fn call(&self, _request: HttpRequest) -> Result<HttpResponse, HttpError> {
            let mut response = HttpResponse::new(self.1.to_owned().into());
            *response.status_mut() = self.0.try_into().unwrap();
            Ok(response)
        }
    }

    impl HttpConnector for Fixed {
        fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
            Ok(HttpClient::new(self.clone()))
        }
    }

    /// What a list and a conditional write are told by a server that answers so.
    async fn meanings(status: u16, body: &'static str) -> [Option<ErrorCode>; 2] {
        let connector = Arc::new(Fixed(status, body));
        let clients = clients_over(connector, "s3://b", "b", settings("https://host")).unwrap();
        let listed = clients.reading.list(None).try_collect::<Vec<_>>().await.unwrap_err();
        let made = clients.creating.put_opts(&"m/1".into(), "x".into(), PutMode::Create.into()).await.unwrap_err();
        [listed, made].map(|error| refusal_in(&error).map(|refusal| refusal.meaning().0))
    }

    #[tokio::test]
    async fn refusals_come_through_the_client() {
        let refused = meanings(403, "<Error><Code>InvalidAccessKeyId</Code></Error>").await;
        assert_eq!(refused, [Some(ErrorCode::PermissionDenied); 2]);
        assert_eq!(meanings(501, "").await, [Some(ErrorCode::StoreUnsafe); 2]);
        assert_eq!(meanings(412, "<Error><Code>PreconditionFailed</Code></Error>").await, [None; 2]);
    }

    #[tokio::test]
    async fn an_absent_object_is_no_refusal() {
        let connector = Arc::new(Fixed(404, "<Error><Code>NoSuchKey</Code></Error>"));
        let clients = clients_over(connector, "s3://b", "b", settings("https://host")).unwrap();
        let error = clients.reading.get(&"m/1".into()).await.unwrap_err();
        assert!(matches!(error, object_store::Error::NotFound { .. }), "{error}");
    }

    fn settings(endpoint: &str) -> AmazonS3Builder {
        AmazonS3Builder::new().with_endpoint(endpoint).with_access_key_id("key").with_secret_access_key("not shown")
    }

    fn refused(settings: AmazonS3Builder) -> Error {
        let Err(error) = clients("s3://bucket/x", "bucket", settings) else { panic!("not refused") };
        assert_eq!(error.code(), ErrorCode::InvalidArgument, "{error}");
        assert!(error.hint_text().is_some() && !format!("{error:?}").contains("not shown"), "{error}");
        error
    }

    #[test]
    fn endpoints_that_cannot_work_are_named() {
        for endpoint in ["127.0.0.1:9000", "localhost:9000", "", "ftp://host", "http:///", "https://ho st"] {
            let error = refused(settings(endpoint));
            assert!(error.message().contains(&format!("AWS_ENDPOINT is {endpoint:?}")), "{error}");
        }
        for endpoint in ["https://me:not shown@host", "me:not shown@host:9000"] {
            assert!(refused(settings(endpoint)).message().contains("user name"));
        }
        assert!(refused(settings("https://host/?a=b")).message().contains("query"));
        let of_s3 = settings("https://host").with_config(AmazonS3ConfigKey::S3Endpoint, "host:1");
        assert!(refused(of_s3).message().contains("AWS_ENDPOINT_URL_S3 is"));
    }

    #[test]
    fn plain_http_needs_to_be_allowed() {
        let error = refused(settings("http://host:9000"));
        assert!(error.hint_text().unwrap().contains("AWS_ALLOW_HTTP=true"), "{error}");
        assert!(clients("s3://b", "b", settings("http://host:9000").with_allow_http(true)).is_ok());
        assert!(clients("s3://b", "b", settings("https://host/base/")).is_ok());
        assert!(clients("s3://b", "b", AmazonS3Builder::new()).is_ok());
    }

    #[test]
    fn values_that_fit_in_no_header_are_named_and_not_shown() {
        let key = AmazonS3ConfigKey::AccessKeyId;
        assert!(
            refused(settings("https://host").with_config(key, "not shown\n")).message().contains("AWS_ACCESS_KEY_ID")
        );
        assert!(refused(settings("https://host").with_region("eu central")).message().contains("AWS_REGION"));
        assert!(refused(settings("https://host").with_region("eu/1")).message().contains("eu/1"));
    }

    #[test]
    fn refusals_are_told_apart_by_status_and_code() {
        let body = |code: &str| format!("<Error><Code>{code}</Code><Message>no</Message></Error>");
        let meaning = |status, code: &str| Some(Refusal::new(status, body(code).as_bytes())?.meaning());
        assert_eq!(meaning(403, "InvalidAccessKeyId").unwrap().0, ErrorCode::PermissionDenied);
        assert_eq!(meaning(501, "NotImplemented").unwrap().0, ErrorCode::StoreUnsafe);
        assert_eq!(meaning(404, "NoSuchBucket").unwrap().0, ErrorCode::InvalidArgument);
        assert!(meaning(400, "AuthorizationHeaderMalformed").unwrap().1.contains("AWS_REGION"));
        for (status, code) in [(400, "RequestTimeout"), (404, "NoSuchKey"), (409, "Conflict"), (503, "SlowDown")] {
            assert!(meaning(status, code).is_none(), "{status} {code}");
        }
        let long = Refusal::new(403, "\u{e9}".repeat(5_000).as_bytes()).unwrap();
        assert!(long.to_string().len() < 700 && long.code.is_empty());
    }
}
