//! One stream of an SSM link, as the proxy sees it.
//!
//! Bytes to the target go to the driver as messages that each hold a permit; the permit comes back when the session
//! has sent them, so a stream has at most [`WRITES`] writes waiting. Bytes from the target come through a channel that
//! the driver bounds by the stream's share of the budget, because the driver must never stop reading the websocket.

use std::collections::VecDeque;
use std::future::pending;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::sync::PollSemaphore;
use tunneld_wire::smux::StreamId;

use super::driver::Command;
use super::keeper::Seat;
use crate::failure::Failure;
use crate::transport::budget::{Exceeded, Share};
use crate::transport::{Stream, io_error};

/// The most writes of a stream that wait in the driver: with [`LONGEST_WRITE`] a quarter MiB, enough to fill the
/// session's window together with three other streams.
const WRITES: usize = 16;
/// The most bytes of one write: the largest payload of a data message.
const LONGEST_WRITE: usize = 16_384;

/// What a piece that waits costs beside its bytes: the frame's header that it keeps alive, and its place in a queue.
const PIECE: usize = 256;
/// A piece up to this size is copied where others wait before it: it shares the memory of all that came with it.
const SMALL: usize = 4_096;

/// What the driver hands to a stream.
pub(super) enum Incoming {
    Data(Bytes),
    /// The far end ended the stream.
    End,
    /// The stream ended abnormally.
    Failed(Arc<Failure>),
}

/// One stream of an SSM link.
pub(super) struct SsmStream {
    id: StreamId,
    commands: mpsc::UnboundedSender<Command>,
    permits: PollSemaphore,
    incoming: mpsc::UnboundedReceiver<Incoming>,
    share: Arc<Share>,
    present: Bytes,
    ended: Option<Result<(), Arc<Failure>>>,
    /// Says that the stream ends at once, whatever waits to be read.
    aborted: watch::Receiver<Option<Arc<Failure>>>,
}

/// The driver's end of a stream.
pub(super) struct StreamEnd {
    incoming: mpsc::UnboundedSender<Incoming>,
    share: Arc<Share>,
    abort: watch::Sender<Option<Arc<Failure>>>,
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
) -> (SsmStream, StreamEnd) {
    // Unbounded in type, bounded by `StreamEnd::deliver`.
    let (sender, receiver) = mpsc::unbounded_channel();
    let (abort, aborted) = watch::channel(None);
    let stream = SsmStream {
        id,
        commands,
        permits: PollSemaphore::new(Arc::new(Semaphore::new(WRITES))),
        incoming: receiver,
        share: Arc::clone(&share),
        present: Bytes::new(),
        ended: None,
        aborted,
    };
    (
        stream,
        StreamEnd {
            incoming: sender,
            share,
            abort,
            client,
            heard: false,
            _seat: seat,
            held: VecDeque::new(),
            finished: false,
        },
    )
}

impl StreamEnd {
    /// Hands bytes to the stream, unless more than may would wait.
    pub(super) fn deliver(&mut self, bytes: Bytes) -> Result<(), Exceeded> {
        self.heard = true;
        // A small piece that waits must not keep all of what it was read with.
        let bytes = if bytes.len() <= SMALL && self.share.used() > SMALL {
            Bytes::copy_from_slice(&bytes)
        } else {
            bytes
        };
        self.share.take(bytes.len() + PIECE)?;
        // A stream that is being dropped takes no more: its `Command::Drop` is on the way.
        let _ = self.incoming.send(Incoming::Data(bytes));
        Ok(())
    }

    /// The far end ended the stream, after what was delivered.
    pub(super) fn end(self) {
        let _ = self.incoming.send(Incoming::End);
    }

    /// The stream ends abnormally, at once.
    pub(super) fn abort(self, failure: Arc<Failure>) {
        self.abort.send_replace(Some(Arc::clone(&failure)));
        self.fail(failure);
    }

    /// The stream ends abnormally, after what was delivered.
    pub(super) fn fail(self, failure: Arc<Failure>) {
        let _ = self.incoming.send(Incoming::Failed(failure));
    }
}

impl SsmStream {
    fn poll_incoming(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.present.is_empty() {
            match &self.ended {
                Some(Ok(())) => return Poll::Ready(Ok(())),
                Some(Err(failure)) => return Poll::Ready(Err(io_error(failure))),
                None => {}
            }
            match ready!(self.incoming.poll_recv(context)) {
                Some(incoming) => self.take(incoming),
                // The driver always says how a stream ended; if it is gone without a word, this is no clean end.
                None => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn take(&mut self, incoming: Incoming) {
        match incoming {
            Incoming::Data(bytes) => {
                self.share.give_back(bytes.len() + PIECE);
                self.present = bytes;
            }
            Incoming::End => self.ended = Some(Ok(())),
            Incoming::Failed(failure) => self.ended = Some(Err(failure)),
        }
    }
}

impl Stream for SsmStream {
    fn aborted(&self) -> BoxFuture<'static, Arc<Failure>> {
        let mut aborted = self.aborted.clone();
        Box::pin(async move {
            let seen = aborted.wait_for(Option::is_some).await;
            let failure = seen.ok().and_then(|failure| failure.clone());
            match failure {
                Some(failure) => failure,
                // It ended in another way, as its reader learns.
                None => pending().await,
            }
        })
    }
}

impl AsyncRead for SsmStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_incoming(context))?;
        // The agent sends a KiB at a time: what has come together leaves together.
        loop {
            let length = self.present.len().min(buffer.remaining());
            buffer.put_slice(&self.present.split_to(length));
            if buffer.remaining() == 0 || self.ended.is_some() {
                return Poll::Ready(Ok(()));
            }
            match self.incoming.try_recv() {
                Ok(incoming) => self.take(incoming),
                Err(_) => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl AsyncWrite for SsmStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        // Until the reader has seen the end, bytes for a stream that has ended go nowhere, as they do on a network:
        // failing earlier would hide how it ended, and what came before.
        match &self.ended {
            Some(Ok(())) if self.present.is_empty() => {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            Some(Err(failure)) if self.present.is_empty() => return Poll::Ready(Err(io_error(failure))),
            Some(_) => return Poll::Ready(Ok(bytes.len())),
            None => {}
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
