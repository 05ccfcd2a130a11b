//! One stream of an SSM link, as the proxy sees it.
//!
//! Bytes to the target go to the driver as messages that each hold a permit; the permit comes back when the session
//! has sent them, so a stream has at most [`WRITES`] writes waiting. Bytes from the target come through an inbox that
//! is bounded by the stream's share of the budget, because the driver must never stop reading the websocket.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::PollSemaphore;
use tunneld_wire::smux::StreamId;
use tunneld_wire::ssm::LARGEST_PAYLOAD;

use super::driver::Command;
use crate::failure::Failure;
use crate::transport::Stream;
use crate::transport::budget::Share;
use crate::transport::inbox::{self, Feed, Inbox};
use crate::transport::member::Seat;

/// The most writes of a stream that wait in the driver: with [`LONGEST_WRITE`] a quarter MiB, enough to fill the
/// session's window together with three other streams.
const WRITES: usize = 16;
/// The most bytes of one write: what the largest payload of a data message holds beside the header of its one frame.
const LONGEST_WRITE: usize = LARGEST_PAYLOAD - 8;

/// One stream of an SSM link.
pub(super) struct SsmStream {
    id: StreamId,
    commands: mpsc::UnboundedSender<Command>,
    permits: PollSemaphore,
    inbox: Inbox,
    /// When AWS will end the session, where that is known.
    ends_at: Option<Instant>,
}

/// The driver's end of a stream.
pub(super) struct StreamEnd {
    feed: Feed,
    /// What to call it in messages.
    pub(super) client: String,
    /// Whether the target has sent a byte.
    pub(super) heard: bool,
    /// Its place on the session.
    _seat: Seat,
    /// One for each write that has not left the session.
    pub(super) held: VecDeque<OwnedSemaphorePermit>,
    /// The local side has said that it writes no more.
    pub(super) finished: bool,
}

/// Makes both ends of a stream.
pub(super) fn pair(
    id: StreamId,
    commands: mpsc::UnboundedSender<Command>,
    share: Arc<Share>,
    client: String,
    seat: Seat,
    ends_at: Option<Instant>,
) -> (SsmStream, StreamEnd) {
    let (feed, inbox) = inbox::pair(share);
    let stream = SsmStream {
        id,
        commands,
        permits: PollSemaphore::new(Arc::new(Semaphore::new(WRITES))),
        inbox,
        ends_at,
    };
    let end = StreamEnd {
        feed,
        client,
        heard: false,
        _seat: seat,
        held: VecDeque::new(),
        finished: false,
    };
    (stream, end)
}

impl StreamEnd {
    /// Hands bytes to the stream, unless more than may would wait: then it is aborted.
    pub(super) fn deliver(&mut self, bytes: Bytes) -> Result<(), Arc<Failure>> {
        self.heard = true;
        self.feed.deliver(bytes, None)
    }

    /// The far end ended the stream, after what was delivered.
    pub(super) fn end(self) {
        self.feed.end();
    }

    /// The stream ends abnormally, after what was delivered.
    pub(super) fn fail(self, failure: Arc<Failure>) {
        self.feed.fail(failure);
    }
}

impl Stream for SsmStream {
    fn aborted(&self) -> BoxFuture<'static, Arc<Failure>> {
        self.inbox.aborted()
    }

    fn expires(&self) -> Option<Instant> {
        self.ends_at
    }
}

impl AsyncRead for SsmStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.inbox.poll_read(context, buffer)
    }
}

impl AsyncWrite for SsmStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(written) = self.inbox.written_after_end(bytes.len()) {
            return Poll::Ready(written);
        }
        let Some(permit) = ready!(self.permits.poll_acquire(context)) else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        let bytes = bytes
            .take(LONGEST_WRITE)
            .copy_to_bytes(bytes.len().min(LONGEST_WRITE));
        let length = bytes.len();
        // A driver that is gone has told the reader why.
        let _ = self.commands.send(Command::Write {
            id: self.id,
            bytes,
            permit,
        });
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Where the driver is gone there is nobody left to tell.
        let _ = self.commands.send(Command::Finish(self.id));
        Poll::Ready(Ok(()))
    }
}

impl Drop for SsmStream {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Drop(self.id));
    }
}
