//! Bytes that go both ways between two sides, until both have said that no more come.
//!
//! ```text
//!   near ══► scratch ══► far        the scratch is on the stack: it is there for one turn of the task
//!              └──► rest            what the writer did not take; nothing more is read until it has
//! ```
//!
//! A connection that is idle has no buffer at all: thousands of them cost what their sockets do. Only a writer that is
//! slower than its reader has bytes waiting here, at most as many as are read at once.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How much is read at once: more gains nothing on loopback, and fits on every thread's stack many times.
const SCRATCH: usize = 64 * 1024;

/// Copies until both sides have ended, each end being passed on when all before it has been. The first error ends it.
///
/// Dropping the future drops what is waiting for a writer.
pub(crate) async fn exchange(
    near: &mut (impl AsyncRead + AsyncWrite + Unpin),
    far: &mut (impl AsyncRead + AsyncWrite + Unpin),
) -> io::Result<()> {
    let (mut up, mut down) = (Flow::new(), Flow::new());
    poll_fn(|context| {
        let up = up.poll(context, near, far)?;
        let down = down.poll(context, far, near)?;
        ready!(up);
        ready!(down);
        Poll::Ready(Ok(()))
    })
    .await
}

/// One direction.
struct Flow {
    stage: Stage,
    /// What was read and not written yet.
    rest: Bytes,
    /// Whether the writer holds bytes that it may not have sent.
    is_unflushed: bool,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    /// The reader may have more.
    Passing,
    /// The reader has ended, which the writer is being told.
    Ending,
    /// The writer knows.
    Ended,
}

impl Flow {
    fn new() -> Self {
        Self {
            stage: Stage::Passing,
            rest: Bytes::new(),
            is_unflushed: false,
        }
    }

    /// Passes on what there is; ready once the end has been.
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        reader: &mut (impl AsyncRead + Unpin),
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<()>> {
        loop {
            match self.stage {
                Stage::Passing => {
                    ready!(self.poll_rest(context, writer))?;
                    ready!(self.poll_pass(context, reader, writer))?;
                }
                Stage::Ending => {
                    ready!(Pin::new(&mut *writer).poll_shutdown(context))?;
                    self.stage = Stage::Ended;
                }
                Stage::Ended => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Writes what an earlier turn has left.
    fn poll_rest(
        &mut self,
        context: &mut Context<'_>,
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<()>> {
        while self.rest.has_remaining() {
            let written = ready!(poll_write(context, writer, &self.rest))?;
            self.rest.advance(written);
        }
        // An empty slice of what was read would keep all of it.
        self.rest = Bytes::new();
        Poll::Ready(Ok(()))
    }

    /// Reads once and writes as much of it as the writer takes.
    fn poll_pass(
        &mut self,
        context: &mut Context<'_>,
        reader: &mut (impl AsyncRead + Unpin),
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<()>> {
        let mut space = [const { MaybeUninit::uninit() }; SCRATCH];
        let mut scratch = ReadBuf::uninit(&mut space);
        if Pin::new(reader).poll_read(context, &mut scratch)?.is_pending() {
            // Who waits for an answer must have been sent the question.
            if self.is_unflushed {
                ready!(Pin::new(writer).poll_flush(context))?;
                self.is_unflushed = false;
            }
            return Poll::Pending;
        }
        let mut bytes = scratch.filled();
        if bytes.is_empty() {
            self.stage = Stage::Ending;
            return Poll::Ready(Ok(()));
        }
        self.is_unflushed = true;
        while !bytes.is_empty() {
            match poll_write(context, writer, bytes)? {
                Poll::Ready(written) => bytes = &bytes[written..],
                Poll::Pending => {
                    self.rest = Bytes::copy_from_slice(bytes);
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Writes some of these bytes, which are some: a writer that takes none will never take any.
fn poll_write(
    context: &mut Context<'_>,
    writer: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    match ready!(Pin::new(writer).poll_write(context, bytes))? {
        0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        written => Poll::Ready(Ok(written)),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// A side that keeps what is written until it is flushed, as a websocket may.
    struct Buffered {
        side: tokio::io::DuplexStream,
        kept: Vec<u8>,
    }

    impl AsyncRead for Buffered {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.side).poll_read(context, buffer)
        }
    }

    impl AsyncWrite for Buffered {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.kept.extend_from_slice(bytes);
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            let Self { side, kept } = &mut *self;
            while !kept.is_empty() {
                let written = ready!(Pin::new(&mut *side).poll_write(context, kept))?;
                kept.drain(..written);
            }
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            ready!(self.as_mut().poll_flush(context))?;
            Pin::new(&mut self.side).poll_shutdown(context)
        }
    }

    fn counted(length: usize) -> Vec<u8> {
        (0..length).map(|number| number.to_le_bytes()[0]).collect()
    }

    #[tokio::test]
    async fn a_writer_that_takes_little_at_a_time_gets_everything_in_order() {
        let (mut client, mut near) = duplex(1 << 20);
        let (mut far, mut target) = duplex(7);
        let sent = counted(3 * SCRATCH + 5);
        let client = async {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let target = async {
            let mut received = Vec::new();
            target.read_to_end(&mut received).await.unwrap();
            target.write_all(b"thanks").await.unwrap();
            target.shutdown().await.unwrap();
            received
        };
        let (exchanged, answer, received) = tokio::join!(exchange(&mut near, &mut far), client, target);
        exchanged.unwrap();
        assert!(received == sent);
        assert_eq!(
            answer, "thanks",
            "one side's end leaves the other's direction open"
        );
    }

    #[tokio::test]
    async fn what_a_writer_keeps_is_flushed_when_nothing_more_comes() {
        let (mut client, mut near) = duplex(64);
        let (side, mut target) = duplex(64);
        let mut far = Buffered {
            side,
            kept: Vec::new(),
        };
        client.write_all(b"question").await.unwrap();
        assert!(exchange(&mut near, &mut far).now_or_never().is_none());
        let mut question = [0; 8];
        target
            .read_exact(&mut question)
            .now_or_never()
            .expect("it is there already")
            .unwrap();
        assert_eq!(&question, b"question");
    }

    #[tokio::test]
    async fn an_error_of_one_side_ends_both_directions() {
        let (mut client, mut near) = duplex(64);
        let (side, target) = duplex(64);
        let mut far = Buffered {
            side,
            kept: Vec::new(),
        };
        drop(target);
        client.write_all(b"nobody there").await.unwrap();
        let error = exchange(&mut near, &mut far).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn nothing_waits_for_a_writer_that_has_taken_all() {
        let (mut client, mut near) = duplex(1 << 20);
        let (mut far, mut target) = duplex(1);
        let mut flow = Flow::new();
        client.write_all(&counted(100)).await.unwrap();
        let mut passing = poll_fn(|context| flow.poll(context, &mut near, &mut far));
        assert!((&mut passing).now_or_never().is_none());
        let mut received = [0; 100];
        let read = target.read_exact(&mut received);
        tokio::select! {
            read = read => { read.unwrap(); }
            _ = &mut passing => panic!("the reader has not ended"),
        }
        assert!((&mut passing).now_or_never().is_none());
        drop(passing);
        assert!(flow.rest.is_empty());
    }
}
