//! Listeners and outgoing connections, in the shape that the gRPC server and client take.

use std::fmt::{self, Debug};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::server::Connected;

/// Makes listeners and connections.
#[async_trait]
pub trait Network: Debug + Send + Sync {
    /// Listens at `address` (`host:port`; port 0 picks a free one).
    async fn listen(&self, address: &str) -> io::Result<Box<dyn Listener>>;

    /// Connects to `address` (`host:port`).
    async fn connect(&self, address: &str) -> io::Result<Connection>;
}

/// An open listener.
#[async_trait]
pub trait Listener: Debug + Send + Sync {
    /// Where it listens, with the port that was picked.
    fn local_address(&self) -> io::Result<SocketAddr>;

    /// The next connection.
    async fn accept(&self) -> io::Result<Connection>;
}

/// Who is at the other end of an accepted connection. gRPC handlers find it in the request's
/// extensions; `connection` is unique within the process, so it can name a session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PeerInfo {
    /// The peer's address.
    pub address: SocketAddr,
    /// A number that no other connection of this process has had.
    pub connection: u64,
}

trait Stream: AsyncRead + AsyncWrite + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + 'static> Stream for T {}

/// One connection, of any transport.
pub struct Connection {
    stream: Pin<Box<dyn Stream>>,
    peer: PeerInfo,
}

impl Connection {
    /// Wraps a transport's stream.
    pub fn new(stream: impl AsyncRead + AsyncWrite + Send + 'static, address: SocketAddr) -> Self {
        // Ordering: only uniqueness matters.
        static NEXT_CONNECTION: AtomicU64 = AtomicU64::new(1);
        let connection = NEXT_CONNECTION.fetch_add(1, Ordering::Relaxed);
        Self { stream: Box::pin(stream), peer: PeerInfo { address, connection } }
    }
}

impl Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Connected for Connection {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// TCP, through the operating system.
#[derive(Debug)]
pub struct TcpNetwork;

#[derive(Debug)]
struct TcpAcceptor(TcpListener);

#[async_trait]
impl Network for TcpNetwork {
    async fn listen(&self, address: &str) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(TcpAcceptor(TcpListener::bind(address).await?)))
    }

    async fn connect(&self, address: &str) -> io::Result<Connection> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let peer = stream.peer_addr()?;
        Ok(Connection::new(stream, peer))
    }
}

#[async_trait]
impl Listener for TcpAcceptor {
    fn local_address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    async fn accept(&self) -> io::Result<Connection> {
        let (stream, peer) = self.0.accept().await?;
        stream.set_nodelay(true)?;
        Ok(Connection::new(stream, peer))
    }
}
