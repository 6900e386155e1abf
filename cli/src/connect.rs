//! Addresses, connections and listeners: the command line's part of the network.

use std::sync::Arc;
use std::time::Duration;

use aubade_environment::{Environment, Listener};
use aubade_proto::{Error, ErrorCode, Result, ResultExt};
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::output;

/// Where `aubade serve` listens unless told otherwise.
pub(crate) const DEFAULT_PORT: u16 = 7000;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Pings find a peer that stopped answering without closing its connection.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Large enough that a stream of 1 MiB batches does not wait for window updates.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// With the default of 16 KiB, a large result is mostly the handling of frames.
const FRAME_BYTES: u32 = 1 << 20;

/// `host:port` of a Flight SQL URL such as `grpc://127.0.0.1:7000`.
///
/// # Errors
/// `InvalidArgument` when it is none, `NotSupported` for TLS.
pub(crate) fn flight_address(url: &str) -> Result<String> {
    let help = "write it like grpc://127.0.0.1:7000";
    let invalid =
        |why: &str| Error::new(ErrorCode::InvalidArgument, format!("{url:?} is no Flight SQL URL: {why}")).hint(help);
    let text = if url.contains("://") { url.to_owned() } else { format!("grpc://{url}") };
    let parsed = url::Url::parse(&text).map_err(|error| invalid(&error.to_string()))?;
    match parsed.scheme() {
        "grpc" | "grpc+tcp" | "http" => {}
        "grpc+tls" | "grpcs" | "https" => {
            return Err(Error::new(ErrorCode::NotSupported, format!("{url}: TLS is not supported yet")).hint(help));
        }
        other => return Err(invalid(&format!("the scheme {other} is not known"))),
    }
    let host = parsed.host_str().filter(|host| !host.is_empty()).ok_or_else(|| invalid("there is no host"))?;
    Ok(format!("{host}:{}", parsed.port().unwrap_or(DEFAULT_PORT)))
}

/// A channel to `address` (`host:port`), connected when it is first used.
///
/// # Errors
/// `InvalidArgument` when the address cannot be part of a URL.
pub(crate) fn channel(environment: &Environment, address: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .context(ErrorCode::InvalidArgument, || format!("{address:?} is no address"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES);
    let network = Arc::clone(&environment.network);
    let address = address.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let (network, address) = (Arc::clone(&network), address.clone());
        async move { network.connect(&address).await.map(TokioIo::new) }
    });
    Ok(endpoint.connect_with_connector_lazy(connector))
}

/// Listens at `address`, with a warning where others can reach it: there is no authentication yet.
///
/// # Errors
/// `InUse` for a port that is taken, `InvalidArgument` for an address that is none of this machine.
pub(crate) async fn listen(environment: &Environment, address: &str) -> Result<Box<dyn Listener>> {
    let listener = environment.network.listen(address).await.map_err(|error| {
        if error.kind() == std::io::ErrorKind::AddrInUse {
            Error::new(ErrorCode::InUse, format!("{address} is in use by another process"))
                .hint("stop that process, or choose another port with --listen (port 0 picks a free one)")
        } else {
            Error::new(ErrorCode::InvalidArgument, format!("cannot listen at {address}"))
                .source(error)
                .hint("give an address of this machine and a port, like 127.0.0.1:7000")
        }
    })?;
    let local = local_address(listener.as_ref())?;
    if !local.ip().is_loopback() {
        output::warning(&format!(
            "listening on {local}: everybody who can reach this address can read and change all data, since there is no \
             authentication yet"
        ));
    }
    Ok(listener)
}

/// Where a listener listens.
///
/// # Errors
/// When the operating system does not say.
pub(crate) fn local_address(listener: &dyn Listener) -> Result<std::net::SocketAddr> {
    listener.local_address().context(ErrorCode::Io, || "a listener has no address".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flight_urls_give_host_and_port() {
        for (url, address) in [
            ("grpc://127.0.0.1:7001", "127.0.0.1:7001"),
            ("grpc+tcp://db.example", "db.example:7000"),
            ("localhost:9", "localhost:9"),
            ("grpc://[::1]:7000", "[::1]:7000"),
        ] {
            assert_eq!(flight_address(url).unwrap(), address, "{url}");
        }
        assert_eq!(flight_address("grpc+tls://h:1").unwrap_err().code(), ErrorCode::NotSupported);
        for url in ["ftp://h:1", "grpc://", "grpc://h:99999"] {
            assert_eq!(flight_address(url).unwrap_err().code(), ErrorCode::InvalidArgument, "{url}");
        }
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let environment = Environment::system();
        let first = listen(&environment, "127.0.0.1:0").await.unwrap();
        let address = local_address(first.as_ref()).unwrap().to_string();
        let error = listen(&environment, &address).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::InUse);
        assert!(error.message().contains(&address));
    }
}
