//! One connection and its stream: wait for a link, open, copy both ways, say who ended it.
//!
//! ```text
//!   client ──► held? ──► Slot ── Linked ──► link.open() ──► copy ──► FIN   the far end's real end
//!                │         └──── Refuse ─────────────────────────┐
//!                └── too long, too many ────────────────────────┴──► RST   everything else
//! ```
//!
//! A FIN is never sent for anything but the far end's own end, so that a truncated transfer cannot look complete. A
//! connection whose stream is lost before it carried a byte gets another one; its client need not know.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::exchange::exchange;
use crate::failure::{Failure, Reason, Scope};
use crate::meter::Meter;
use crate::status::Entry;
use crate::transport::{Stream, broken};
use crate::tunnel::client::Client;
use crate::tunnel::slot::{Lease, Slot};

/// How long opening a stream may take where connections are held for less: a session of its own takes a second.
const OPENING: Duration = Duration::from_secs(20);

/// One accepted connection, to be run.
#[derive(Debug)]
pub(crate) struct Proxy {
    /// The local side.
    pub(crate) client: Client,
    /// Where the link is.
    pub(crate) slot: watch::Receiver<Slot>,
    /// How long to wait for one.
    pub(crate) hold: Duration,
    /// What its transport waits for.
    pub(crate) delays: watch::Receiver<Vec<Arc<Failure>>>,
    /// Where failures are shown.
    pub(crate) entry: Entry,
    /// Tells the supervisor of links that cannot open streams.
    pub(crate) reports: mpsc::Sender<OpenFailed>,
    /// Ends the connection.
    pub(crate) stop: CancellationToken,
}

/// A link that could not open a stream, through its own fault.
#[derive(Debug)]
pub(crate) struct OpenFailed {
    /// Which link.
    pub(crate) number: u64,
    /// What happened.
    pub(crate) failure: Arc<Failure>,
}

/// How a connection ended.
#[derive(Debug)]
enum End {
    /// The client said goodbye first.
    ClientClosed,
    /// The target said goodbye first.
    TargetClosed,
    /// The client was reset, or left before there was a link.
    ClientGone(io::Error),
    /// The way to the target failed.
    Failed(Arc<Failure>),
    /// No link came in time.
    HeldTooLong(Duration, Option<Arc<Failure>>),
    /// Too many others wait already.
    TooManyHeld,
    /// A person has to act before there is a link; `None` if the tunnel goes down.
    Refused(Option<Arc<Failure>>),
    /// The tunnel went down.
    Stopped,
}

impl Proxy {
    /// Serves the connection to its end.
    pub(crate) async fn run(mut self) {
        let began = Instant::now();
        let meter = Arc::clone(self.entry.meter());
        let _open = meter.connection();
        let tally = Tally::default();
        let stop = self.stop.clone();
        let end = stop
            .run_until_cancelled(self.serve(&tally))
            .await
            .unwrap_or(End::Stopped);
        if end.is_error() {
            meter.connection_failed();
        }
        if let End::Failed(failure) = &end {
            if failure.reason() == Reason::Expired {
                meter.connection_expired();
            }
            self.entry.failed(failure);
        }
        if !end.is_clean() {
            self.client.reset();
        }
        info!(
            duration = ?began.elapsed(),
            bytes_in = tally.received(),
            bytes_out = tally.sent(),
            "connection ended: {end}"
        );
    }

    async fn serve(&mut self, tally: &Tally) -> End {
        let mut until = Instant::now() + self.hold;
        let mut failed = None;
        let client = self.client.peer().to_string();
        loop {
            let lease = match self.lease(until, failed).await {
                Ok(lease) => lease,
                Err(end) => return end,
            };
            let opening_until = Instant::now() + OPENING;
            let opened = tokio::select! {
                error = self.client.gone() => return End::ClientGone(error),
                opened = lease.link.open(&client) => opened,
                () = sleep_until(until.max(opening_until)) => return self.held_too_long(None),
                // What can't be had from this link at the moment is waited for like any link.
                () = superseded(&mut self.slot, lease.number) => continue,
            };
            let failure = match opened {
                Ok(stream) => match self.copy(stream, tally).await {
                    Copied::Ended(end) => return end,
                    Copied::Nothing => {
                        until = Instant::now() + self.hold;
                        continue;
                    }
                },
                Err(failure) => Arc::new(failure),
            };
            match failure.scope() {
                Scope::Stream => return End::Failed(failure),
                // The client need not know: it waits for the next link.
                Scope::Link => {
                    failed = Some(lease.number);
                    let report = OpenFailed {
                        number: lease.number,
                        failure,
                    };
                    // A supervisor that is gone has cancelled this connection.
                    self.reports.send(report).await.ok();
                }
            }
        }
    }

    /// Waits for a link other than the one that `failed`.
    async fn lease(&mut self, until: Instant, failed: Option<u64>) -> Result<Lease, End> {
        let mut held = None;
        loop {
            let slot = self.slot.borrow_and_update().clone();
            let cause = match slot {
                Slot::Linked(lease) if failed != Some(lease.number) => return Ok(lease),
                Slot::Linked(_) => None,
                Slot::Hold { cause } => cause,
                Slot::Refuse { cause } => return Err(End::Refused(cause)),
            };
            if held.is_none() {
                held = Some(self.entry.meter().hold().ok_or(End::TooManyHeld)?);
            }
            tokio::select! {
                error = self.client.gone() => return Err(End::ClientGone(error)),
                () = sleep_until(until) => return Err(self.held_too_long(cause)),
                changed = self.slot.changed() => if changed.is_err() { return Err(End::Stopped) },
            }
        }
    }

    /// Ends the connection for want of a link; without a cause, for what the transport waits for.
    fn held_too_long(&self, cause: Option<Arc<Failure>>) -> End {
        let delay = || self.delays.borrow().first().cloned();
        End::HeldTooLong(self.hold, cause.or_else(delay))
    }

    async fn copy(&mut self, stream: Box<dyn Stream>, tally: &Tally) -> Copied {
        let mut far = Far {
            left: self.client.left(),
            has_left: false,
            stream,
            meter: self.entry.meter(),
            tally,
            first: None,
            ended: false,
            broken: false,
            untouched: true,
        };
        let aborted = far.stream.aborted();
        let copied = tokio::select! {
            copied = exchange(&mut self.client, &mut far) => copied,
            failure = aborted => return Copied::Ended(End::Failed(failure)),
        };
        let end = match (copied, far.first) {
            (Ok(_), Some(Side::Client)) => End::ClientClosed,
            (Err(_), _) if far.has_left => End::ClientClosed,
            (Ok(_), Some(Side::Target) | None) => End::TargetClosed,
            // The target closed completely while the client was still sending. That is its right.
            (Err(_), _) if far.broken && far.ended => End::TargetClosed,
            (Err(error), _) if far.broken => {
                let failure = broken(error);
                let lost = failure.scope() == Scope::Link || failure.reason() == Reason::Expired;
                if far.untouched && lost {
                    return Copied::Nothing;
                }
                End::Failed(failure)
            }
            (Err(error), _) => End::ClientGone(error),
        };
        Copied::Ended(end)
    }
}

/// What came of copying.
enum Copied {
    /// The connection ended.
    Ended(End),
    /// The stream was lost with its link before a byte or an end had passed either way.
    Nothing,
}

/// Resolves when the slot holds another link than this one, or none.
async fn superseded(slot: &mut watch::Receiver<Slot>, number: u64) {
    let other = |slot: &Slot| !matches!(slot, Slot::Linked(lease) if lease.number == number);
    // A supervisor that is gone has cancelled this connection.
    slot.wait_for(other).await.ok();
}

impl End {
    /// Returns whether both sides came to their own end, so that the client may see one.
    fn is_clean(&self) -> bool {
        match self {
            Self::ClientClosed | Self::TargetClosed => true,
            Self::ClientGone(_)
            | Self::Failed(_)
            | Self::HeldTooLong(..)
            | Self::TooManyHeld
            | Self::Refused(_)
            | Self::Stopped => false,
        }
    }

    /// Returns whether the client did not get what it came for, through no act of its own or of its user.
    fn is_error(&self) -> bool {
        match self {
            Self::Failed(_) | Self::HeldTooLong(..) | Self::TooManyHeld | Self::Refused(Some(_)) => true,
            Self::ClientClosed
            | Self::TargetClosed
            | Self::ClientGone(_)
            | Self::Refused(None)
            | Self::Stopped => false,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClientClosed => f.write_str("client closed"),
            Self::TargetClosed => f.write_str("target closed"),
            Self::ClientGone(error) => write!(f, "client gone: {error}"),
            Self::Failed(failure) => f.write_str(&failure.in_one_line()),
            Self::HeldTooLong(held, cause) => {
                write!(f, "held {} without a link", humantime::format_duration(*held))?;
                cause
                    .as_ref()
                    .map_or(Ok(()), |cause| write!(f, ": {}", cause.in_one_line()))
            }
            Self::TooManyHeld => f.write_str("too many connections wait for a link"),
            Self::Refused(Some(cause)) => write!(f, "tunnel blocked: {}", cause.in_one_line()),
            Self::Refused(None) | Self::Stopped => f.write_str("tunnel going down"),
        }
    }
}

/// Bytes of one connection, for its last line in the log.
#[derive(Debug, Default)]
struct Tally {
    received: AtomicU64,
    sent: AtomicU64,
}

impl Tally {
    fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Clone, Copy)]
enum Side {
    Client,
    Target,
}

/// The far side while it is copied: counts its bytes, and notes who ended first and whose fault an error is.
struct Far<'a> {
    stream: Box<dyn Stream>,
    meter: &'a Meter,
    tally: &'a Tally,
    /// Who said first that no more bytes come.
    first: Option<Side>,
    /// Whether the target has said so.
    ended: bool,
    /// Whether the stream failed.
    broken: bool,
    /// Whether no byte and no end has passed or been offered in either direction.
    untouched: bool,
    /// Resolves when a client that said so has closed its socket completely. The stream, which on some routes cannot
    /// pass on half a goodbye, then need not wait for the target's.
    left: BoxFuture<'static, ()>,
    /// Whether it has.
    has_left: bool,
}

impl Far<'_> {
    fn noting<T>(&mut self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.broken |= matches!(polled, Poll::Ready(Err(_)));
        polled
    }
}

impl AsyncRead for Far<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if polled.is_pending()
            && matches!(self.first, Some(Side::Client))
            && self.left.poll_unpin(context).is_ready()
        {
            self.has_left = true;
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        ready!(self.noting(polled))?;
        let bytes = (buffer.filled().len() - before) as u64;
        if bytes == 0 {
            self.ended = true;
            self.first.get_or_insert(Side::Target);
        }
        self.untouched = false;
        self.meter.received(bytes);
        self.tally.received.fetch_add(bytes, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Far<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.untouched = false;
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        let written = ready!(self.noting(polled))?;
        self.meter.sent(written as u64);
        self.tally.sent.fetch_add(written as u64, Ordering::Relaxed);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        self.noting(polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.untouched = false;
        self.first.get_or_insert(Side::Client);
        let polled = Pin::new(&mut self.stream).poll_shutdown(context);
        self.noting(polled)
    }
}

#[cfg(test)]
mod tests;
