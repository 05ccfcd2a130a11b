//! The far side of a visit while it is copied: counts its bytes, and notes that it has ended.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::transport::Stream;

/// A stream, and what has passed over it.
pub(super) struct Far {
    stream: Box<dyn Stream>,
    received: u64,
    sent: u64,
    has_ended: bool,
}

impl Far {
    pub(super) fn new(stream: Box<dyn Stream>) -> Self {
        Self {
            stream,
            received: 0,
            sent: 0,
            has_ended: false,
        }
    }

    /// Returns how many bytes came from it.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Returns how many bytes it took.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// Returns whether it has said that no more bytes come.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }
}

impl AsyncRead for Far {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let read = buffer.filled().len() - before;
        self.has_ended |= read == 0;
        self.received += read as u64;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Far {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.sent += written as u64;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
