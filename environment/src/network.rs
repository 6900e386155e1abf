//! Listeners and outgoing connections, in the shape that the gRPC server and client take.

use std::fmt::{self, Debug};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::clock::Clock;

/// How long a stopping server waits for its peer to close too. One that lives closes as soon as it has read the end.
const LINGER_TIME: Duration = Duration::from_secs(1);
/// Bytes that are thrown away meanwhile: more than the flow-control windows of our servers let a peer send.
const LINGER_BYTES_MAX: usize = 32 << 20;
/// Bytes of one read of these.
const LINGER_READ_BYTES: usize = 8 << 10;

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
    linger: Option<Linger>,
}

impl Connection {
    /// Wraps a transport's stream.
    pub fn new(stream: impl AsyncRead + AsyncWrite + Send + 'static, address: SocketAddr) -> Self {
        // Ordering: only uniqueness matters.
        static NEXT_CONNECTION: AtomicU64 = AtomicU64::new(1);
        let connection = NEXT_CONNECTION.fetch_add(1, Ordering::Relaxed);
        Self { stream: Box::pin(stream), peer: PeerInfo { address, connection }, linger: None }
    }

    /// The connection of a server. Once `stopping` is cancelled, its shutdown also reads and throws away what the peer
    /// still sends, until the peer has closed too, for a second at most.
    ///
    /// A socket that is closed while the peer still sends is reset, and what the peer has not received by then is lost:
    /// often the error that tells it why its call has ended.
    pub fn lingering(mut self, stopping: CancellationToken, clock: Arc<dyn Clock>) -> Self {
        self.linger = Some(Linger { stopping, clock, patience: None, bytes_left: LINGER_BYTES_MAX });
        self
    }
}

/// See [`Connection::lingering`].
struct Linger {
    stopping: CancellationToken,
    clock: Arc<dyn Clock>,
    /// Runs once the write side is shut.
    patience: Option<BoxFuture<'static, ()>>,
    bytes_left: usize,
}

impl Linger {
    /// Ready when the peer has closed, or has been waited for long enough.
    fn poll_drained(&mut self, mut stream: Pin<&mut (impl AsyncRead + ?Sized)>, cx: &mut Context<'_>) -> Poll<()> {
        let patience = self.patience.get_or_insert_with(|| self.clock.sleep(LINGER_TIME));
        if patience.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let mut bytes = [0_u8; LINGER_READ_BYTES];
        loop {
            let mut buffer = ReadBuf::new(&mut bytes);
            let read = ready!(stream.as_mut().poll_read(cx, &mut buffer));
            let count = buffer.filled().len();
            match self.bytes_left.checked_sub(count) {
                Some(left) if read.is_ok() && count > 0 => self.bytes_left = left,
                // The end. After an error there is nobody left to wait for.
                _ => return Poll::Ready(()),
            }
        }
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

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(linger) = this.linger.as_mut().filter(|linger| linger.stopping.is_cancelled()) else {
            return this.stream.as_mut().poll_shutdown(cx);
        };
        if linger.patience.is_none() {
            ready!(this.stream.as_mut().poll_shutdown(cx))?;
        }
        ready!(linger.poll_drained(this.stream.as_mut(), cx));
        this.linger = None;
        Poll::Ready(Ok(()))
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

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Time that is over at once, or never.
    #[derive(Debug)]
    enum Patience {
        None,
        Endless,
    }

    impl Clock for Patience {
        fn now(&self) -> Duration {
            Duration::ZERO
        }

        fn unix_millis(&self) -> u64 {
            0
        }

        fn sleep(&self, _duration: Duration) -> BoxFuture<'static, ()> {
            match self {
                Self::None => std::future::ready(()).boxed(),
                Self::Endless => std::future::pending().boxed(),
            }
        }
    }

    /// A client and its server's end, with the token that stops the server.
    async fn connect(patience: Patience) -> (Connection, Connection, CancellationToken) {
        let listener = TcpNetwork.listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_address().unwrap().to_string();
        let client = TcpNetwork.connect(&address).await.unwrap();
        let stopping = CancellationToken::new();
        let server = listener.accept().await.unwrap().lingering(stopping.clone(), Arc::new(patience));
        (client, server, stopping)
    }

    #[tokio::test]
    async fn what_a_stopping_server_wrote_arrives_although_the_client_still_sends() {
        let (mut client, mut server, stopping) = connect(Patience::Endless).await;
        let answer: Vec<u8> = (0..1 << 20).map(|index: u32| index.to_le_bytes()[0]).collect();
        let written = answer.clone();
        // The server never asks for these, so closing the socket would reset it, and lose most of the answer.
        client.write_all(&[1; 1000]).await.unwrap();
        stopping.cancel();
        let serve = async move {
            server.write_all(&written).await.unwrap();
            server.shutdown().await.unwrap();
        };
        let receive = async move {
            let mut received = vec![0; 1 << 20];
            client.read_exact(&mut received).await.unwrap();
            client.write_all(b"as the windows of HTTP/2").await.unwrap();
            assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "the end should follow");
            received
        };
        let ((), received) = tokio::join!(serve, receive);
        assert!(received == answer, "the answer should arrive as it was sent");
    }

    #[tokio::test]
    async fn a_client_that_stays_silent_is_not_waited_for_without_end() {
        let (_client, mut server, stopping) = connect(Patience::None).await;
        stopping.cancel();
        server.shutdown().await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_sends_without_end_is_reset() {
        let (mut client, mut server, stopping) = connect(Patience::Endless).await;
        stopping.cancel();
        let serve = async move { server.shutdown().await.unwrap() };
        let send = async move { while client.write_all(&[0; 1 << 16]).await.is_ok() {} };
        tokio::join!(serve, send);
    }

    #[tokio::test]
    async fn a_server_that_runs_on_closes_without_waiting() {
        let (_client, mut server, _stopping) = connect(Patience::Endless).await;
        server.shutdown().await.unwrap();
    }
}
