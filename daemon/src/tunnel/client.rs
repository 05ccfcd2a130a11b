//! One local connection: what a DB GUI opened to us.
//!
//! While it waits for a link, what it sends is read ahead, as far as a request or a greeting goes; that is how a client
//! that left is noticed. The first reads then give those bytes.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::sleep;
use tracing::debug;

use crate::limits::Portion;
use crate::tunnel::absence::has_left;

/// How much is read ahead: any protocol's first request, and at most 4 MiB for all held connections of a tunnel.
const MOST_AHEAD: usize = 16 * 1024;

/// How much of it at once: most first requests are smaller.
const PIECE: usize = 4 * 1024;

/// How often the system is asked whether a client that sends no more has left: soon enough that pools that retry do
/// not fill the places of those that wait, and seldom enough to cost nothing.
const LEFT_CHECK: Duration = Duration::from_secs(1);

/// An accepted connection.
#[derive(Debug)]
pub(crate) struct Client {
    socket: Local,
    peer: Peer,
    ahead: BytesMut,
    /// Whether the client has said that it sends no more.
    finished: bool,
    /// The descriptors that it needs, where they are counted.
    _portion: Option<Portion>,
}

#[derive(Debug)]
enum Local {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Where a client connected from, for the log.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Peer {
    /// An address.
    Tcp(SocketAddr),
    /// The client of a Unix socket has no address.
    Unix,
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

impl Client {
    /// A connection to a TCP port. Its small writes are sent at once.
    pub(crate) fn tcp(stream: TcpStream, peer: SocketAddr) -> Self {
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "cannot set TCP_NODELAY");
        }
        Self::new(Local::Tcp(stream), Peer::Tcp(peer))
    }

    /// A connection to a Unix socket.
    pub(crate) fn unix(stream: UnixStream) -> Self {
        Self::new(Local::Unix(stream), Peer::Unix)
    }

    fn new(socket: Local, peer: Peer) -> Self {
        Self {
            socket,
            peer,
            ahead: BytesMut::new(),
            finished: false,
            _portion: None,
        }
    }

    /// The same connection, which has these descriptors as long as it lasts.
    pub(crate) fn with(self, portion: Portion) -> Self {
        Self {
            _portion: Some(portion),
            ..self
        }
    }

    /// Returns where it connected from.
    pub(crate) fn peer(&self) -> Peer {
        self.peer
    }

    /// Resolves when the client is gone, reading ahead what it sends. Cancel-safe.
    ///
    /// Gone is a client that was reset, or closed without having sent anything. One that sent something and then
    /// no more may have closed only its half, and still wait for the answer: it is gone when the system says so.
    pub(crate) async fn gone(&mut self) -> io::Error {
        while !self.finished && self.ahead.len() < MOST_AHEAD {
            // Most clients say nothing before there is a link, and need no memory for it.
            let readable = match &self.socket {
                Local::Tcp(stream) => stream.readable().await,
                Local::Unix(stream) => stream.readable().await,
            };
            if let Err(error) = readable {
                return error;
            }
            let mut piece = [0; PIECE];
            let room = PIECE.min(MOST_AHEAD - self.ahead.len());
            let read = match &self.socket {
                Local::Tcp(stream) => stream.try_read(&mut piece[..room]),
                Local::Unix(stream) => stream.try_read(&mut piece[..room]),
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return error,
                Ok(0) if self.ahead.is_empty() => return io::ErrorKind::UnexpectedEof.into(),
                Ok(0) => self.finished = true,
                Ok(length) => self.ahead.extend_from_slice(&piece[..length]),
            }
        }
        if self.finished {
            self.left().await;
            return io::ErrorKind::UnexpectedEof.into();
        }
        pending().await
    }

    /// Resolves when a client that sends no more has closed its socket completely. Never, where the system does not
    /// tell it from one that closed only its half.
    pub(crate) fn left(&self) -> BoxFuture<'static, ()> {
        let addresses = match &self.socket {
            Local::Tcp(stream) => stream
                .peer_addr()
                .and_then(|peer| Ok((peer, stream.local_addr()?)))
                .ok(),
            Local::Unix(_) => None,
        };
        Box::pin(async move {
            let Some((client, ours)) = addresses else {
                return pending().await;
            };
            while !has_left(client, ours) {
                sleep(LEFT_CHECK).await;
            }
        })
    }

    /// Ends the connection so that the client sees a reset, never a clean end.
    ///
    /// A Unix socket has no reset: its client sees the end of the stream, or a reset where it had sent bytes that
    /// nobody read.
    pub(crate) fn reset(self) {
        match self.socket {
            Local::Tcp(stream) => {
                if let Err(error) = stream.set_zero_linger() {
                    debug!(%error, "cannot reset a connection");
                }
            }
            Local::Unix(_) => {}
        }
    }
}

impl AsyncRead for Client {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.has_remaining() {
            let length = self.ahead.len().min(buffer.remaining());
            buffer.put_slice(&self.ahead[..length]);
            self.ahead.advance(length);
            if self.ahead.is_empty() {
                self.ahead = BytesMut::new();
            }
            return Poll::Ready(Ok(()));
        }
        match &mut self.socket {
            Local::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Local::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Client {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.socket {
            Local::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Local::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Local::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Local::Unix(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = match &mut self.socket {
            Local::Tcp(stream) => ready!(Pin::new(stream).poll_shutdown(context)),
            Local::Unix(stream) => ready!(Pin::new(stream).poll_shutdown(context)),
        };
        // A client that closed completely meanwhile needs no FIN.
        Poll::Ready(match shut {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            shut => shut,
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;

    async fn pair() -> (TcpStream, Client) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(
            TcpStream::connect(listener.local_addr().unwrap()),
            listener.accept()
        );
        let (stream, peer) = far.unwrap();
        (near.unwrap(), Client::tcp(stream, peer))
    }

    #[tokio::test]
    async fn what_was_read_ahead_comes_first() {
        let (mut near, mut client) = pair().await;
        near.write_all(b"SELECT ").await.unwrap();
        while client.ahead.is_empty() {
            let waited = timeout(Duration::from_millis(5), client.gone()).await;
            assert!(waited.is_err(), "a client that sends is there");
        }
        near.write_all(b"1").await.unwrap();
        near.shutdown().await.unwrap();
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"SELECT 1");
    }

    #[tokio::test]
    async fn a_client_that_closed_without_a_word_is_gone() {
        let (near, mut client) = pair().await;
        drop(near);
        assert_eq!(client.gone().await.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn a_client_that_was_reset_is_gone() {
        let (mut near, mut client) = pair().await;
        near.write_all(b"x").await.unwrap();
        near.set_zero_linger().unwrap();
        drop(near);
        assert_eq!(client.gone().await.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_asked_and_closed_its_half_still_waits_for_the_answer() {
        let (mut near, mut client) = pair().await;
        near.write_all(b"PING").await.unwrap();
        near.shutdown().await.unwrap();
        assert!(timeout(Duration::from_secs(60), client.gone()).await.is_err());
    }

    #[cfg(target_os = "linux")]
    #[tokio::test(start_paused = true)]
    async fn a_client_that_asked_and_left_is_gone() {
        let (mut near, mut client) = pair().await;
        near.write_all(b"PING").await.unwrap();
        drop(near);
        assert_eq!(client.gone().await.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_a_bounded_amount_is_read_ahead() {
        let (mut near, mut client) = pair().await;
        let flood = vec![7_u8; 4 * MOST_AHEAD];
        let enough = Duration::from_secs(60);
        let (_, gone) = tokio::join!(
            timeout(enough, near.write_all(&flood)),
            timeout(enough, client.gone())
        );
        assert!(gone.is_err(), "a client that sends is there");
        assert_eq!(client.ahead.len(), MOST_AHEAD);
    }

    #[tokio::test]
    async fn a_reset_is_seen_as_one() {
        let (mut near, client) = pair().await;
        client.reset();
        assert_eq!(
            near.read_u8().await.unwrap_err().kind(),
            io::ErrorKind::ConnectionReset
        );
    }
}
