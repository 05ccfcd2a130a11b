//! One stream of an SSH link, and the pump that feeds it.
//!
//! ```text
//!   connection ──► pump ──► Feed ═ Inbox ──► reader
//!                   │ alone: a few pieces, then the connection waits with it
//!                   └ shared: all of it, up to the stream's share of the budget
//! ```
//!
//! The library gives all streams of a connection one task, which waits for each stream's queue: a reader that stops would
//! stop its neighbours. So streams that share a connection are always drained into memory, and one that has too much
//! there is reset. A stream that is alone has nobody to disturb; it is slowed down, however slow its reader.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use russh::client::Msg;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::failure::{Failure, Reason, Remedy};
use crate::transport::Stream;
use crate::transport::budget::Share;
use crate::transport::inbox::{self, Feed, Inbox};
use crate::transport::member::Seat;

/// Pieces that wait for the reader of a stream that is alone on its connection: with at most 32 KiB each, enough to keep
/// a reader busy while the next ones come.
const PLACES: usize = 16;
/// How long a target may take to end its half after a client that had ended its own is gone: what the client said last
/// may still be on the way to it.
const LAST_BYTES: Duration = Duration::from_secs(10);

/// Channels of one connection that our side may close before it is replaced: a few KiB each, 8 MiB in all.
const MOST_CLOSED: usize = 2_000;

/// The streams of one connection.
#[derive(Debug)]
pub(super) struct Company {
    streams: watch::Sender<usize>,
    /// Those that wait for their reader, and the connection with them.
    waiting: AtomicUsize,
    /// Those whose client has left, and whose last bytes may still be on the way.
    leaving: watch::Sender<usize>,
    /// Channels that our side has closed so far.
    closed: AtomicUsize,
}

/// A stream's place in the company.
pub(super) struct Presence(Arc<Company>);

/// One stream of an SSH link.
pub(super) struct SshStream {
    inbox: Inbox,
    writer: Pin<Box<dyn AsyncWrite + Send>>,
    expires: Option<Instant>,
    /// Cancelled once the local side has said that it writes no more.
    finished: CancellationToken,
    /// Cancelled once nothing can be written any more.
    over: CancellationToken,
    is_over: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// What moves bytes from the connection to a stream, and ends it.
pub(super) struct Pump {
    feed: Feed,
    reader: ChannelReadHalf,
    closer: ChannelWriteHalf<Msg>,
    places: Arc<Semaphore>,
    finished: CancellationToken,
    over: CancellationToken,
    /// Why the connection has ended, once it has.
    ended: watch::Receiver<Option<Arc<Failure>>>,
    presence: Presence,
    _seat: Seat,
}

/// What a stream needs of its connection.
pub(super) struct Berth {
    pub(super) seat: Seat,
    pub(super) presence: Presence,
    pub(super) share: Arc<Share>,
    pub(super) ended: watch::Receiver<Option<Arc<Failure>>>,
    pub(super) client: String,
    /// When the route below will cut the connection.
    pub(super) expires: Option<Instant>,
}

/// Makes a stream of a channel, and its pump.
pub(super) fn pair(channel: Channel<Msg>, berth: Berth) -> (SshStream, Pump) {
    let (reader, closer) = channel.split();
    let (feed, inbox) = inbox::pair(berth.share);
    let (finished, over) = (CancellationToken::new(), CancellationToken::new());
    let stream = SshStream {
        inbox,
        writer: Box::pin(closer.make_writer()),
        expires: berth.expires,
        finished: finished.clone(),
        over: over.clone(),
        is_over: Box::pin(over.clone().cancelled_owned()),
    };
    let pump = Pump {
        feed,
        reader,
        closer,
        places: Arc::new(Semaphore::new(PLACES)),
        finished,
        over,
        ended: berth.ended,
        presence: berth.presence,
        _seat: berth.seat,
    };
    (stream, pump)
}

impl Company {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            streams: watch::Sender::new(0),
            waiting: AtomicUsize::new(0),
            leaving: watch::Sender::new(0),
            closed: AtomicUsize::new(0),
        })
    }

    /// Counts a stream until the returned value is dropped.
    pub(super) fn join(self: &Arc<Self>) -> Presence {
        self.streams.send_modify(|streams| *streams += 1);
        Presence(Arc::clone(self))
    }

    /// Returns whether the connection stands still because a reader does.
    pub(super) fn stands_still(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Resolves once no stream is left whose client said its last words and left.
    pub(super) async fn has_said_all(&self) {
        let mut leaving = self.leaving.subscribe();
        // The sender lives as long as this.
        let _ = leaving.wait_for(|leaving| *leaving == 0).await;
    }

    /// Returns whether the library remembers more channels of the connection than it should have to: each that our side
    /// closed stays in its memory with the queue that it had.
    pub(super) fn is_worn_out(&self) -> bool {
        self.closed.load(Ordering::Relaxed) >= MOST_CLOSED
    }
}

impl Presence {
    /// Resolves once the stream is not alone.
    async fn is_shared(&self) {
        // The sender lives as long as this.
        let mut streams = self.0.streams.subscribe();
        let _ = streams.wait_for(|streams| *streams > 1).await;
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.0.streams.send_modify(|streams| *streams -= 1);
    }
}

/// What came of waiting for a stream's next piece.
enum Next {
    Message(Option<ChannelMsg>, Option<OwnedSemaphorePermit>),
    /// The reader is gone.
    Unread,
}

impl Pump {
    /// Feeds the stream to its end.
    pub(super) async fn run(mut self) {
        let over = self.over.clone().drop_guard();
        let mut has_ended = false;
        loop {
            let (message, place) = match self.next().await {
                Next::Message(message, place) => (message, place),
                Next::Unread => return self.leave().await,
            };
            match message {
                Some(ChannelMsg::Data { data }) if !has_ended => {
                    if self.feed.deliver(data, place).is_err() {
                        return self.close().await;
                    }
                }
                Some(ChannelMsg::Eof) => {
                    has_ended = true;
                    self.feed.end();
                }
                Some(ChannelMsg::Close) => {
                    drop(over);
                    if !has_ended {
                        let doing = "the SSH server closed the stream without ending it";
                        let failure = Failure::new(Reason::Unreachable, Remedy::Retry, doing);
                        self.feed.fail(Arc::new(failure.of_stream()));
                    }
                    return;
                }
                Some(_) => {}
                None => {
                    drop(over);
                    if !has_ended {
                        let why = self.why().await;
                        self.feed.fail(why);
                    }
                    return;
                }
            }
        }
    }

    /// Waits for the next message, once there is room for it. Cancel-safe.
    async fn next(&mut self) -> Next {
        let place = tokio::select! {
            biased;
            () = self.feed.unread() => return Next::Unread,
            place = self.room() => place,
        };
        tokio::select! {
            () = self.feed.unread() => Next::Unread,
            message = self.reader.wait() => Next::Message(message, place),
        }
    }

    /// Waits for room, which a stream always has that is not alone, or whose connection has ended.
    async fn room(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            return Some(place);
        }
        let _waiting = Waiting::new(&self.presence.0);
        tokio::select! {
            // Nobody closes the semaphore.
            place = Arc::clone(&self.places).acquire_owned() => place.ok(),
            () = self.presence.is_shared() => None,
            () = self.has_ended() => None,
        }
    }

    async fn has_ended(&self) {
        let mut ended = self.ended.clone();
        // A connection that is gone without a word has ended too.
        let _ = ended.wait_for(Option::is_some).await;
    }

    async fn why(&mut self) -> Arc<Failure> {
        let ended = self.ended.wait_for(Option::is_some).await;
        ended.ok().and_then(|failure| failure.clone()).unwrap_or_else(|| {
            let doing = "the SSH connection has ended";
            Arc::new(Failure::new(Reason::Unreachable, Remedy::Retry, doing))
        })
    }

    /// Ends the stream at the server, after its reader has left.
    async fn leave(mut self) {
        // Of a client that said its last words and left, the target still gets them; then it ends its half, and with
        // both ended the server closes the channel. The library remembers each that our side closes.
        if self.finished.is_cancelled() {
            let closed = async {
                while let Some(message) = self.reader.wait().await {
                    if matches!(message, ChannelMsg::Close) {
                        return;
                    }
                }
            };
            let company = Arc::clone(&self.presence.0);
            company.leaving.send_modify(|leaving| *leaving += 1);
            let closed = timeout(LAST_BYTES, closed).await;
            company.leaving.send_modify(|leaving| *leaving -= 1);
            if closed.is_ok() {
                return;
            }
        }
        self.close().await;
    }

    async fn close(self) {
        self.presence.0.closed.fetch_add(1, Ordering::Relaxed);
        // What nobody reads any more may hold up the connection, which then does not close anything either.
        drop(self.reader);
        // A connection that is gone has closed it.
        let _ = self.closer.close().await;
    }
}

/// Shows that the connection waits for a reader.
struct Waiting<'a>(&'a Company);

impl<'a> Waiting<'a> {
    fn new(company: &'a Company) -> Self {
        company.waiting.fetch_add(1, Ordering::Relaxed);
        Self(company)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Stream for SshStream {
    fn aborted(&self) -> BoxFuture<'static, Arc<Failure>> {
        self.inbox.aborted()
    }

    fn expires(&self) -> Option<Instant> {
        self.expires
    }
}

impl AsyncRead for SshStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.inbox.poll_read(context, buffer)
    }
}

impl SshStream {
    /// What becomes of bytes that nobody takes any more: how that came is the reader's to learn.
    fn written_in_vain(&self, length: usize) -> Poll<io::Result<usize>> {
        Poll::Ready(self.inbox.written_after_end(length).unwrap_or(Ok(length)))
    }
}

impl AsyncWrite for SshStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if self.over.is_cancelled() {
            return self.written_in_vain(bytes.len());
        }
        match self.writer.as_mut().poll_write(context, bytes) {
            Poll::Ready(Ok(length)) => Poll::Ready(Ok(length)),
            Poll::Ready(Err(_)) => self.written_in_vain(bytes.len()),
            // The library does not wake a writer that waits for a window of a connection that ends.
            Poll::Pending if self.is_over.as_mut().poll(context).is_ready() => {
                self.written_in_vain(bytes.len())
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.over.is_cancelled() {
            // Where the connection is gone there is nobody left to tell.
            let _ = std::task::ready!(self.writer.as_mut().poll_shutdown(context));
        }
        self.finished.cancel();
        Poll::Ready(Ok(()))
    }
}
