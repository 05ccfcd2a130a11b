//! A connection to the control socket: one of so many, which must soon say that it speaks HTTP/2.
//!
//! What happens after its first words is watched by the HTTP/2 library; a connection that has not said them is nothing to
//! that yet, and would be waited for without end.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Sleep, sleep};
use tonic::transport::server::Connected;

/// The bytes of a client's first words, which never change: the preface of HTTP/2.
const PREFACE: usize = 24;

/// How long they may take: whoever connects sends them at once, and may be on a machine that has much to do.
const PREFACE_WITHIN: Duration = Duration::from_secs(5);

/// A connection to the control socket.
pub(crate) struct Guest {
    stream: UnixStream,
    /// `None` once the first words are said.
    silence: Option<Silence>,
    /// Its place among the connections.
    _place: OwnedSemaphorePermit,
}

/// What is still to be said.
struct Silence {
    missing: usize,
    ends: Pin<Box<Sleep>>,
}

impl Guest {
    /// A connection that has said nothing yet.
    pub(crate) fn new(stream: UnixStream, place: OwnedSemaphorePermit) -> Self {
        let silence = Silence {
            missing: PREFACE,
            ends: Box::pin(sleep(PREFACE_WITHIN)),
        };
        Self {
            stream,
            silence: Some(silence),
            _place: place,
        }
    }
}

impl Connected for Guest {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

impl AsyncRead for Guest {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        let Some(silence) = &mut self.silence else {
            return read;
        };
        if read.is_pending() && silence.ends.as_mut().poll(context).is_ready() {
            let words = "a client of the control socket does not say what it speaks";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, words)));
        }
        ready!(read)?;
        silence.missing = silence.missing.saturating_sub(buffer.filled().len() - before);
        if silence.missing == 0 {
            self.silence = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Guest {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::Semaphore;
    use tokio::time::{Instant, timeout};

    use super::*;

    fn pair() -> (UnixStream, Guest) {
        let (client, stream) = UnixStream::pair().unwrap();
        let place = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        (client, Guest::new(stream, place))
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_says_a_part_of_its_first_words_is_not_waited_for() {
        let (mut client, mut guest) = pair();
        client.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
        let began = Instant::now();
        let error = guest.read_to_end(&mut Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= PREFACE_WITHIN);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_has_said_them_may_be_silent() {
        let (mut client, mut guest) = pair();
        client
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .unwrap();
        let silent = timeout(Duration::from_secs(3_600), guest.read_to_end(&mut Vec::new())).await;
        assert!(silent.is_err(), "it is still there");
    }
}
