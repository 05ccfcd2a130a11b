//! The bytes under an SSH connection, with an ear on how they begin and a hand to cut them.
//!
//! A server that is too busy writes a line and hangs up before the protocol begins (`Exceeded MaxStartups`, OpenSSH
//! since 8.3), or just hangs up. The protocol's code throws such lines away.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tunneld_wire::text::in_one_line;

use crate::transport::Stream;

/// The most that is kept: a banner line is 255 bytes at most.
const MOST: usize = 512;

/// How a server began.
#[derive(Debug, Clone, Default)]
pub(super) struct Greeting(Arc<Mutex<Vec<u8>>>);

impl Greeting {
    /// Returns what it said before the protocol, in one line; empty where it said nothing.
    pub(super) fn words(&self) -> String {
        let heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        in_one_line(&String::from_utf8_lossy(&heard), MOST)
    }

    fn hear(&self, bytes: &[u8]) {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MOST - heard.len();
        heard.extend(bytes.iter().take(room));
    }

    fn is_full(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len() == MOST
    }
}

/// A stream of the route below, whose beginning is kept.
pub(super) struct Heard {
    stream: Box<dyn Stream>,
    greeting: Greeting,
    /// Whether the beginning is over.
    is_over: bool,
    is_cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Heard {
    /// Listens to a stream, which is cut when `cut` is cancelled.
    pub(super) fn new(stream: Box<dyn Stream>, cut: CancellationToken) -> (Self, Greeting) {
        let greeting = Greeting::default();
        let heard = Self {
            stream,
            greeting: greeting.clone(),
            is_over: false,
            is_cut: Box::pin(cut.cancelled_owned()),
        };
        (heard, greeting)
    }

    /// Fails what has to wait, once the stream is cut.
    fn unless_cut<T>(
        &mut self,
        polled: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if polled.is_pending() && self.is_cut.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        polled
    }
}

impl AsyncRead for Heard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        ready!(self.unless_cut(polled, context))?;
        if !self.is_over {
            self.greeting.hear(&buffer.filled()[before..]);
            self.is_over = self.greeting.is_full();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Heard {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.unless_cut(polled, context)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        self.unless_cut(polled, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(context);
        self.unless_cut(polled, context)
    }
}
