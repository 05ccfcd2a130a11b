//! A client's TCP socket, which can be made to fail from afar.
//!
//! Layers above (TLS, the HTTP upgrade, the websocket) hide the socket from whoever decides that, so its reads and
//! writes look at its [`Fate`].

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};

use futures_util::task::AtomicWaker;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::network::Network;

/// What the kernel holds of bytes to a client that must not lose many: with what it counts beside, a dozen messages of
/// the official agent.
const SMALL_BUFFER: usize = 8 << 10;

/// A TCP socket of a client.
pub(crate) struct ClientSocket {
    /// `None` once it was dropped.
    tcp: Option<TcpStream>,
    control: Arc<Control>,
}

/// Decides on a socket from afar.
#[derive(Clone)]
pub(crate) struct SocketControl(Weak<Control>);

struct Control {
    network: Arc<Network>,
    fate: AtomicU8,
    /// Who reads: a fate is felt at once, also where nothing comes.
    reader: AtomicWaker,
    /// The buffer is to be made small before it is used again.
    shrink: AtomicBool,
    /// An outage spares the socket.
    spared: AtomicBool,
}

/// What becomes of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Fate {
    /// It works.
    Alive,
    /// It ends with a reset.
    Reset,
    /// Nothing is read or written any more, and it stays open.
    Frozen,
}

impl ClientSocket {
    pub(crate) fn new(tcp: TcpStream, network: Arc<Network>) -> Self {
        let control = Control {
            network,
            fate: AtomicU8::new(Fate::Alive as u8),
            reader: AtomicWaker::new(),
            shrink: AtomicBool::new(false),
            spared: AtomicBool::new(false),
        };
        Self {
            tcp: Some(tcp),
            control: Arc::new(control),
        }
    }

    pub(crate) fn control(&self) -> SocketControl {
        SocketControl(Arc::downgrade(&self.control))
    }

    /// Waits for the first bytes that the client sends, which stay to be read.
    pub(crate) async fn peek(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut bytes = ReadBuf::new(bytes);
        std::future::poll_fn(|cx| {
            self.control.reader.register(cx.waker());
            ready!(self.alive(cx))?.poll_peek(cx, &mut bytes)
        })
        .await
    }

    /// Returns the stream, if the socket works.
    fn alive(&mut self, cx: &Context<'_>) -> Poll<io::Result<Pin<&mut TcpStream>>> {
        match (self.control.fate(), &mut self.tcp) {
            (Fate::Alive, Some(tcp)) => {
                if self.control.shrink.swap(false, Ordering::Relaxed) {
                    // Fails only for a socket that is gone already.
                    let _ = SockRef::from(&*tcp).set_send_buffer_size(SMALL_BUFFER);
                }
                Poll::Ready(Ok(Pin::new(tcp)))
            }
            (Fate::Alive, None) | (Fate::Reset, _) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            (Fate::Frozen, _) => {
                self.control.reader.register(cx.waker());
                Poll::Pending
            }
        }
    }
}

impl SocketControl {
    /// Ends the socket with a reset.
    pub(crate) fn reset(&self) {
        self.decide(Fate::Reset);
    }

    /// Makes the socket half-open: the client's system still sees a connection, and nothing comes of it.
    pub(crate) fn freeze(&self) {
        self.decide(Fate::Frozen);
    }

    /// Makes little of what is written wait in the system.
    pub(crate) fn shrink(&self) {
        if let Some(control) = self.0.upgrade() {
            control.shrink.store(true, Ordering::Relaxed);
        }
    }

    /// Keeps outages away: whoever asks for one wants an answer.
    pub(crate) fn spare(&self) {
        if let Some(control) = self.0.upgrade() {
            control.spared.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn is_spared(&self) -> bool {
        self.0
            .upgrade()
            .is_some_and(|control| control.spared.load(Ordering::Relaxed))
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.0.strong_count() > 0
    }

    fn decide(&self, fate: Fate) {
        if let Some(control) = self.0.upgrade() {
            control.fate.store(fate as u8, Ordering::Relaxed);
            control.reader.wake();
        }
    }
}

impl Control {
    fn fate(&self) -> Fate {
        let fate = self.fate.load(Ordering::Relaxed);
        [Fate::Reset, Fate::Frozen]
            .into_iter()
            .find(|known| *known as u8 == fate)
            .unwrap_or(Fate::Alive)
    }
}

impl Drop for ClientSocket {
    fn drop(&mut self) {
        let Some(tcp) = self.tcp.take() else { return };
        match self.control.fate() {
            Fate::Alive => {}
            Fate::Reset => {
                // Fails only for a socket that is gone already.
                let _ = tcp.set_zero_linger();
            }
            Fate::Frozen => self.control.network.keep(tcp),
        }
    }
}

impl AsyncRead for ClientSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.control.reader.register(cx.waker());
        ready!(self.alive(cx))?.poll_read(cx, buf)
    }
}

impl AsyncWrite for ClientSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.alive(cx))?.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.alive(cx))?.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.alive(cx))?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.alive(cx))?.poll_shutdown(cx)
    }
}
