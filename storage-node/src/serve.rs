//! The gRPC server of a storage node, with every limit set: tonic's defaults are not safe.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use aubade_environment::{Connection, Environment, Listener, PeerInfo, TaskGroup};
use aubade_proto::wire::storage::storage_node_server::StorageNodeServer;
use aubade_proto::{ErrorCode, Result, ResultExt};
use futures::stream::{self, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::limits;
use crate::node::StorageNode;
use crate::service::StorageService;

/// A connection that counts towards the cap for as long as it lives.
struct CappedConnection {
    connection: Connection,
    _permit: OwnedSemaphorePermit,
}

impl Connected for CappedConnection {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.connection.connect_info()
    }
}

impl AsyncRead for CappedConnection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_read(cx, buf)
    }
}

impl AsyncWrite for CappedConnection {
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

/// Accepted connections; past the cap, further ones wait in the listener's backlog. They linger once the node is
/// `stopping`, since callers have to receive the errors that end their scans.
fn connections(
    env: Environment,
    listener: Box<dyn Listener>,
    stopping: CancellationToken,
) -> impl Stream<Item = io::Result<CappedConnection>> {
    let slots = Arc::new(Semaphore::new(limits::CONNECTIONS_MAX));
    stream::unfold((env, listener, stopping, slots), |(env, listener, stopping, slots)| async move {
        let permit = Arc::clone(&slots).acquire_owned().await.ok()?;
        let connection = loop {
            match listener.accept().await {
                Ok(connection) => break connection.lingering(stopping.clone(), Arc::clone(&env.clock)),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    env.clock.sleep(limits::ACCEPT_PAUSE).await;
                }
            }
        };
        Some((Ok(CappedConnection { connection, _permit: permit }), (env, listener, stopping, slots)))
    })
}

fn server() -> Server {
    Server::builder()
        .max_concurrent_streams(limits::STREAMS_PER_CONNECTION_MAX)
        .concurrency_limit_per_connection(limits::STREAMS_PER_CONNECTION_MAX as usize)
        .load_shed(true)
        .timeout(limits::CALL_TIMEOUT)
        .max_connection_age(limits::CONNECTION_AGE_MAX)
        .max_connection_age_grace(limits::CONNECTION_AGE_GRACE)
        .http2_max_pending_accept_reset_streams(Some(limits::PENDING_RESETS_MAX))
        .http2_max_header_list_size(limits::HEADER_BYTES_MAX)
        .http2_keepalive_interval(Some(limits::KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(limits::KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
        .max_frame_size(limits::FRAME_BYTES)
}

/// Serves `node` on `listener` until `tasks` stop; then running scans finish, within limits, and the
/// node is shut down.
///
/// # Errors
/// When the server fails.
pub async fn serve(node: StorageNode, listener: Box<dyn Listener>, tasks: &TaskGroup) -> Result<()> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<StorageNodeServer<StorageService>>().await;
    let service = StorageNodeServer::new(StorageService::new(node.clone()))
        .max_decoding_message_size(limits::DECODE_BYTES_MAX)
        .max_encoding_message_size(limits::ENCODE_BYTES_MAX);
    let stopping = tasks.stopping();
    let incoming = connections(node.environment().clone(), listener, stopping.clone());
    let stop = async move {
        stopping.cancelled().await;
        health.set_not_serving::<StorageNodeServer<StorageService>>().await;
        node.shutdown(limits::SHUTDOWN_GRACE).await;
    };
    server()
        .add_service(health_service)
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, stop)
        .await
        .context(ErrorCode::Internal, || "the gRPC server of the storage node failed".to_owned())
}
