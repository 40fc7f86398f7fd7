//! The network seam: dial and listen, giving byte streams.

use async_trait::async_trait;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// A connected two-way byte stream.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// Any byte stream.
pub type BoxStream = Box<dyn ByteStream>;

/// How a node reaches others and is reached.
#[async_trait]
pub trait Net: Send + Sync + 'static {
    /// Connects to `host:port` (a name or an address; names are resolved at every call).
    async fn dial(&self, addr: &str) -> io::Result<BoxStream>;
    /// Listens on `addr:port`; port 0 draws a free one.
    async fn listen(&self, addr: &str) -> io::Result<Box<dyn Listener>>;
}

/// A listening socket.
#[async_trait]
pub trait Listener: Send + Sync {
    /// The next connection and its peer's address, for logs.
    async fn accept(&self) -> io::Result<(BoxStream, String)>;
    /// The address listened on, with the real port.
    fn local_addr(&self) -> String;
}

/// TCP with `TCP_NODELAY`, and keep-alives that notice a dead line within some ten seconds.
pub struct RealNet;

struct TcpListen(tokio::net::TcpListener, String);

fn tune(stream: &tokio::net::TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(5))
        .with_interval(Duration::from_secs(2))
        .with_retries(3);
    socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

#[async_trait]
impl Net for RealNet {
    async fn dial(&self, addr: &str) -> io::Result<BoxStream> {
        let stream = tokio::net::TcpStream::connect(addr).await?;
        tune(&stream)?;
        Ok(Box::new(stream))
    }

    async fn listen(&self, addr: &str) -> io::Result<Box<dyn Listener>> {
        let listener = tokio::net::TcpListener::bind(addr).await?;
        let local = listener.local_addr()?.to_string();
        Ok(Box::new(TcpListen(listener, local)))
    }
}

#[async_trait]
impl Listener for TcpListen {
    async fn accept(&self) -> io::Result<(BoxStream, String)> {
        let (stream, peer) = self.0.accept().await?;
        tune(&stream)?;
        Ok((Box::new(stream), peer.to_string()))
    }

    fn local_addr(&self) -> String {
        self.1.clone()
    }
}
