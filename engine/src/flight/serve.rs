//! The listener of the Flight SQL service: its accept loop, its limits, its end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arrow_flight::flight_service_server::FlightServiceServer;
use aubade_environment::{Clock, Connection, Listener, PeerInfo, TaskGroup};
use aubade_proto::{ErrorCode, Result, ResultExt};
use futures::stream::{self, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use super::FlightOptions;
use super::front::Front;
use super::service::Service;
use super::sessions::Sessions;
use crate::engine::Engine;

/// Requests that are reset before they are looked at, per connection (CVE-2023-44487).
const PENDING_RESETS_MAX: usize = 20;
/// Bytes of the headers of one request.
const HEADER_LIST_BYTES_MAX: u32 = 16 << 10;
/// Silence after which a connection is asked whether it lives, and how long it may take to answer:
/// the streams of a machine that went away end by it.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Flow-control windows: results are large, and 64 KiB would wait for the client all the time.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// With the default of 16 KiB, a bulk load is mostly the handling of frames.
const FRAME_BYTES: u32 = 1 << 20;
/// Pause after a failed accept: usually there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time for clients to take what was sent before their calls ended, and the error that ended them. Connections without
/// calls close at once; this is for those that read slowly.
const CLOSE_GRACE: Duration = Duration::from_secs(10);

/// Serves Flight SQL until `tasks` stops. Then it accepts nothing more, lets running streams and
/// uploads end for [`FlightOptions::shutdown_grace`], and ends the rest with `SHUTTING_DOWN`.
///
/// # Errors
/// `Io` when the listener fails.
pub async fn serve_flight(
    engine: Engine,
    listener: Box<dyn Listener>,
    tasks: &TaskGroup,
    options: FlightOptions,
) -> Result<()> {
    let clock = Arc::clone(&engine.environment().clock);
    let closing = CancellationToken::new();
    let sessions = Arc::new(Sessions::new(engine.clone(), &options));
    let service = Arc::new(Service::new(engine, options.clone())?);
    let front = Front::new(service, Arc::clone(&sessions), Arc::clone(&clock), closing.clone(), options.clone());
    let flight = FlightServiceServer::new(front)
        .max_decoding_message_size(options.request_bytes_max)
        // The stream checks every message itself and says which row is too large.
        .max_encoding_message_size(usize::MAX);
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<FlightServiceServer<Front>>().await;

    let stopping = tasks.stopping();
    let stop = stopping.clone();
    let incoming = connections(listener, sessions, Arc::clone(&clock), stopping.clone(), options.connections_max);
    let server = server_builder(&options)
        .add_service(health_service)
        .add_service(flight)
        .serve_with_incoming_shutdown(incoming, async move { stop.cancelled().await });
    let ending = async {
        stopping.cancelled().await;
        health.set_not_serving::<FlightServiceServer<Front>>().await;
        clock.sleep(options.shutdown_grace).await;
        closing.cancel();
        // Clients that read no more do not hold the process up.
        clock.sleep(CLOSE_GRACE).await;
    };
    tokio::select! {
        served = server => served.context(ErrorCode::Io, || "the Flight SQL service failed".to_owned()),
        () = ending => Ok(()),
    }
}

/// Nothing here limits the time of a call: `Front` does, where nothing streams.
fn server_builder(options: &FlightOptions) -> Server {
    let calls = usize::try_from(options.streams_per_connection_max).unwrap_or(usize::MAX);
    Server::builder()
        .max_concurrent_streams(options.streams_per_connection_max)
        .concurrency_limit_per_connection(calls)
        .load_shed(true)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS_MAX))
        .http2_max_header_list_size(HEADER_LIST_BYTES_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
}

/// Accepted connections, at most `connections_max` open at a time. They linger once the service is `stopping`, since
/// their clients have to receive the error that ends their calls.
fn connections(
    listener: Box<dyn Listener>,
    sessions: Arc<Sessions>,
    clock: Arc<dyn Clock>,
    stopping: CancellationToken,
    connections_max: usize,
) -> impl Stream<Item = io::Result<OpenConnection>> {
    let places = Arc::new(Semaphore::new(connections_max.max(1)));
    let state = (listener, sessions, clock, stopping, places);
    stream::unfold(state, |(listener, sessions, clock, stopping, places)| async move {
        // The place is taken before the connection, so that further ones wait in the kernel's queue.
        let place = Arc::clone(&places).acquire_owned().await.ok()?;
        let accepted = listener.accept().await;
        let connection = match accepted {
            Ok(connection) => {
                let connection = connection.lingering(stopping.clone(), Arc::clone(&clock));
                Ok(OpenConnection { connection, sessions: Arc::clone(&sessions), _place: place })
            }
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                clock.sleep(ACCEPT_PAUSE).await;
                Err(error)
            }
        };
        Some((connection, (listener, sessions, clock, stopping, places)))
    })
}

/// A connection with its place; when it closes, its session goes.
#[derive(Debug)]
struct OpenConnection {
    connection: Connection,
    sessions: Arc<Sessions>,
    _place: OwnedSemaphorePermit,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.sessions.disconnected(self.connection.connect_info().connection);
    }
}

impl Connected for OpenConnection {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.connection.connect_info()
    }
}

impl AsyncRead for OpenConnection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_read(cx, buf)
    }
}

impl AsyncWrite for OpenConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }
}
