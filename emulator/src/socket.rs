//! A client's TCP socket that can be made to end with a reset.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A TCP socket. Dropped, it says FIN, or RST once its switch is armed; layers above (TLS, the HTTP upgrade, the
/// websocket) hide it from whoever decides that.
pub(crate) struct ClientSocket {
    tcp: TcpStream,
    reset: Arc<AtomicBool>,
}

/// Arms a socket's reset from afar.
#[derive(Clone)]
pub(crate) struct ResetSwitch(Weak<AtomicBool>);

impl ClientSocket {
    pub(crate) fn new(tcp: TcpStream) -> Self {
        Self {
            tcp,
            reset: Arc::default(),
        }
    }

    pub(crate) fn reset_switch(&self) -> ResetSwitch {
        ResetSwitch(Arc::downgrade(&self.reset))
    }

    /// Returns the first byte that the client sends, which stays to be read.
    pub(crate) async fn first_byte(&self) -> io::Result<Option<u8>> {
        let mut byte = [0];
        let read = self.tcp.peek(&mut byte).await?;
        Ok((read == 1).then_some(byte[0]))
    }
}

impl ResetSwitch {
    /// Makes the socket end with a reset when it is dropped.
    pub(crate) fn arm(&self) {
        if let Some(reset) = self.0.upgrade() {
            reset.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.0.strong_count() > 0
    }
}

impl Drop for ClientSocket {
    fn drop(&mut self) {
        if self.reset.load(Ordering::Relaxed) {
            // Fails only for a socket that is gone already.
            let _ = self.tcp.set_zero_linger();
        }
    }
}

impl AsyncRead for ClientSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for ClientSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
