//! What the far end has sent to one stream and its reader has not taken: a queue whose memory is counted.
//!
//! ```text
//!   driver ──► Feed ── deliver, end, fail, abort ──► Inbox ──► poll_read of the stream
//!                └─ Share of the budget: taken here ──┴─ given back here
//! ```
//!
//! How a stream ended comes after what was delivered before; only an abort comes at once.

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::io::ReadBuf;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};

use super::budget::Share;
use super::io_error;
use crate::failure::Failure;

/// What a piece that waits costs beside its bytes: the frame's header that it keeps alive, and its place in a queue.
const PIECE: usize = 256;
/// A piece up to this size is copied where others wait before it: it shares the memory of all that came with it.
const SMALL: usize = 4_096;

/// The driver's end.
pub(super) struct Feed {
    incoming: mpsc::UnboundedSender<Incoming>,
    share: Arc<Share>,
}

/// The reader's end.
pub(super) struct Inbox {
    incoming: mpsc::UnboundedReceiver<Incoming>,
    share: Arc<Share>,
    present: Bytes,
    ended: Option<Result<(), Arc<Failure>>>,
    /// Whether the reader knows that the far end has ended, and so has passed on all that came before.
    seen: bool,
    /// Says that the stream ends at once, whatever waits to be read.
    aborted: watch::Receiver<Option<Arc<Failure>>>,
}

enum Incoming {
    Data {
        bytes: Bytes,
        /// Held until they are taken.
        _place: Option<OwnedSemaphorePermit>,
    },
    /// The far end ended the stream.
    End,
    /// The stream ended abnormally.
    Failed(Arc<Failure>),
}

/// Makes both ends of a queue.
pub(super) fn pair(share: Arc<Share>) -> (Feed, Inbox) {
    // Unbounded in type, bounded by `Feed::deliver`.
    let (sender, incoming) = mpsc::unbounded_channel();
    let inbox = Inbox {
        incoming,
        aborted: share.aborted(),
        share: Arc::clone(&share),
        present: Bytes::new(),
        ended: None,
        seen: false,
    };
    let feed = Feed {
        incoming: sender,
        share,
    };
    (feed, inbox)
}

impl Feed {
    /// Hands bytes to the reader, unless more than may would wait: then the stream is aborted. `place` is given back when
    /// they are taken.
    pub(super) fn deliver(
        &self,
        bytes: Bytes,
        place: Option<OwnedSemaphorePermit>,
    ) -> Result<(), Arc<Failure>> {
        // A small piece that waits must not keep all of what it was read with.
        let bytes = if bytes.len() <= SMALL && self.share.used() > SMALL {
            Bytes::copy_from_slice(&bytes)
        } else {
            bytes
        };
        if let Err(failure) = self.share.take(bytes.len() + PIECE) {
            self.fail(Arc::clone(&failure));
            return Err(failure);
        }
        // A reader that is being dropped takes no more, and its driver learns of it.
        let _ = self.incoming.send(Incoming::Data { bytes, _place: place });
        Ok(())
    }

    /// Resolves when the reader is gone.
    pub(super) async fn unread(&self) {
        self.incoming.closed().await;
    }

    /// The far end ended the stream, after what was delivered.
    pub(super) fn end(&self) {
        let _ = self.incoming.send(Incoming::End);
    }

    /// The stream ends abnormally, after what was delivered.
    pub(super) fn fail(&self, failure: Arc<Failure>) {
        let _ = self.incoming.send(Incoming::Failed(failure));
    }
}

impl Inbox {
    /// Reads what has come, as much of it as there is room for.
    pub(super) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_incoming(context))?;
        self.seen = self.present.is_empty();
        // The far end sends a few KiB at a time: what has come together leaves together.
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

    /// Says what becomes of so many bytes that are written to a stream that has ended; `None` while it has not.
    ///
    /// Until the reader has seen the end they go nowhere, as they do on a network: failing earlier would hide how it
    /// ended, and what came before, which the reader may not have passed on yet.
    pub(super) fn written_after_end(&self, length: usize) -> Option<io::Result<usize>> {
        match self.ended.as_ref()? {
            Ok(()) if self.seen => Some(Err(io::ErrorKind::BrokenPipe.into())),
            Err(failure) if self.present.is_empty() => Some(Err(io_error(failure))),
            Ok(()) | Err(_) => Some(Ok(length)),
        }
    }

    /// Resolves when the stream was aborted.
    pub(super) fn aborted(&self) -> BoxFuture<'static, Arc<Failure>> {
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
            Incoming::Data { bytes, _place } => {
                self.share.give_back(bytes.len() + PIECE);
                self.present = bytes;
            }
            Incoming::End => self.ended = Some(Ok(())),
            Incoming::Failed(failure) => self.ended = Some(Err(failure)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex};

    use super::*;
    use crate::exchange::exchange;
    use crate::transport::budget::Budget;

    /// A stream whose target takes everything until it has ended.
    struct Far(Inbox);

    impl AsyncRead for Far {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.0.poll_read(context, buffer)
        }
    }

    impl AsyncWrite for Far {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(self.0.written_after_end(bytes.len()).unwrap_or(Ok(bytes.len())))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_client_that_speaks_after_the_targets_end_gets_all_that_came_before() {
        let (feed, inbox) = pair(Budget::new(1 << 20).share(1 << 20, "127.0.0.1:5"));
        let answer = vec![7; 100_000];
        feed.deliver(answer.clone().into(), None).unwrap();
        feed.end();
        let (mut client, mut near) = duplex(16);
        let talk = async {
            let mut got = vec![0; 1];
            client.read_exact(&mut got).await.unwrap();
            client.write_all(b"thanks").await.unwrap();
            client.read_to_end(&mut got).await.unwrap();
            // Everything is there: from here on it speaks to nobody.
            while client.write_all(b"anybody?").await.is_ok() {}
            got
        };
        let carry = async {
            let carried = exchange(&mut near, &mut Far(inbox)).await;
            drop(near);
            carried
        };
        let (got, carried) = tokio::join!(talk, carry);
        assert!(got == answer, "{} bytes", got.len());
        assert_eq!(carried.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
