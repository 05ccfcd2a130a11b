//! One websocket as a stream: its frames' bytes, its sign of life, and its end told as what it was.
//!
//! ```text
//!   reader ◄── present ◄── frames ◄──┐           a slow reader leaves frames unread, so that the far end waits
//!                                    websocket
//!   writer ──────────────► frames ──►┘           a full socket makes the writer wait
//! ```
//!
//! The protocol has no half-close: to say that no more bytes come is to close both directions. So a client's end is kept
//! from the far end until that has been silent for a while; SSH, which says goodbye itself, closes at once.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::{Sink, SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Handle;
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::task::TaskTracker;
use tracing::debug;
use tunneld_wire::eice::{End, LARGEST_FRAME, Meaning, meaning};
use tunneld_wire::text::in_one_line;

use super::directory::{Destination, Directory};
use super::pulse::{Beat, PONG_TIMEOUT, Pulse};
use super::slots::Slot;
use crate::connector::Socket;
use crate::failure::{Cause, Failure, Reason, Remedy};
use crate::transport::{Stream, io_error};

/// How long the goodbye may take; the place on the endpoint is kept meanwhile, because AWS may still count it.
const GOODBYE: Duration = Duration::from_secs(2);

/// The most characters of the endpoint's reason that are shown: RFC 6455 leaves no room for more.
const LONGEST_REASON: usize = 123;

/// How the writer's end is passed on.
#[derive(Debug, Clone, Copy)]
pub(super) enum Finish {
    /// Not; but the stream ends when the far end has been silent for this long.
    After(Duration),
    /// By closing both directions.
    AtOnce,
}

/// What holds for a stream.
pub(super) struct Terms {
    /// How long it may last.
    pub(super) duration: Duration,
    pub(super) finish: Finish,
    pub(super) destination: Arc<Destination>,
    /// To be told when what it found leads nowhere.
    pub(super) directory: Arc<Directory>,
    /// For the goodbye.
    pub(super) tasks: TaskTracker,
}

/// One connection through an endpoint.
pub(super) struct EiceStream {
    /// `None` once it is left to the goodbye.
    open: Option<(WebSocketStream<Socket>, Slot)>,
    terms: Terms,
    opened: Instant,
    present: Bytes,
    ended: Option<Result<(), Arc<Failure>>>,
    /// Whether the reader knows that the far end has ended well, and so has passed on all that came before.
    seen: bool,
    pulse: Pulse,
    writing: Writing,
    /// Who waits for bytes, to be told when there is something new to wait for.
    reader: Option<Waker>,
}

/// How far the writer is.
enum Writing {
    Open,
    /// The socket takes nothing more; how it ended is for the reader to find out.
    Broken,
    /// It has ended, which the far end is not told; the stream lasts until then.
    Silent(Pin<Box<Sleep>>),
    /// It has ended, and the websocket is closed.
    Closed,
}

impl EiceStream {
    pub(super) fn new(socket: WebSocketStream<Socket>, terms: Terms, slot: Slot) -> Self {
        Self {
            open: Some((socket, slot)),
            terms,
            opened: Instant::now(),
            present: Bytes::new(),
            ended: None,
            seen: false,
            pulse: Pulse::new(),
            writing: Writing::Open,
            reader: None,
        }
    }

    fn socket(&mut self) -> &mut WebSocketStream<Socket> {
        let (socket, _) = self
            .open
            .as_mut()
            .expect("it is taken when the stream is dropped");
        socket
    }

    /// Waits until there are bytes, or an end.
    fn poll_present(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while self.present.is_empty() && self.ended.is_none() {
            let Poll::Ready(message) = self.socket().poll_next_unpin(context) else {
                self.reader = Some(context.waker().clone());
                ready!(self.poll_timers(context));
                continue;
            };
            self.pulse.heard();
            match message {
                Some(Ok(Message::Binary(bytes))) => self.take(bytes),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Text(_))) => {
                    let doing = format!("{} broke", self.terms.destination);
                    self.fail(doing, "the endpoint sent text, which has no meaning");
                }
                Some(Ok(Message::Close(frame))) => self.closed(frame.as_ref()),
                Some(Err(error)) => self.cut(error.into()),
                None => self.cut(Error::ConnectionClosed.into()),
            }
        }
        Poll::Ready(())
    }

    fn take(&mut self, bytes: Bytes) {
        if let (Writing::Silent(until), Finish::After(grace)) = (&mut self.writing, self.terms.finish) {
            until.as_mut().reset(Instant::now() + grace);
        }
        // An empty frame has no meaning.
        self.present = bytes;
    }

    /// Nothing comes at the moment: whether it is time to ask why, or to give up.
    fn poll_timers(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Writing::Silent(until) = &mut self.writing
            && until.as_mut().poll(context).is_ready()
        {
            let doing = format!("{} was given up", self.terms.destination);
            self.fail(
                doing,
                "the client had ended, which an endpoint cannot pass on, and the target sent nothing more",
            );
            return Poll::Ready(());
        }
        match ready!(self.pulse.poll(context)) {
            Beat::Ask => {
                let sent = self.ping(context);
                self.pulse.asked(sent);
            }
            Beat::Dead => {
                let doing = format!("{} is dead", self.terms.destination);
                self.fail(doing, format!("no sign of life for {} s", PONG_TIMEOUT.as_secs()));
            }
        }
        Poll::Ready(())
    }

    /// Asks for a sign of life; returns whether the question is on its way. A writer that waits keeps it from leaving.
    fn ping(&mut self, context: &mut Context<'_>) -> bool {
        let mut socket = Pin::new(self.socket());
        let sent = socket
            .as_mut()
            .poll_ready(context)
            .map_ok(|()| socket.as_mut().start_send(Message::Ping(Bytes::new())));
        matches!(sent, Poll::Ready(Ok(Ok(())))) && socket.poll_flush(context).is_ready()
    }

    fn closed(&mut self, frame: Option<&CloseFrame>) {
        let end = End::Closed {
            code: frame.map(|frame| frame.code.into()),
            reason: frame.map_or("", |frame| frame.reason.as_str()),
        };
        let said = match frame {
            Some(frame) if frame.reason.is_empty() => format!("the endpoint closed it ({})", frame.code),
            Some(frame) => format!(
                "the endpoint closed it: {} ({})",
                in_one_line(&frame.reason, LONGEST_REASON),
                frame.code
            ),
            None => "the endpoint closed it".to_owned(),
        };
        self.end(&end, said.into());
    }

    fn cut(&mut self, error: Cause) {
        self.end(&End::Cut, error);
    }

    fn end(&mut self, end: &End<'_>, said: Cause) {
        // What comes after our own close is its answer.
        if matches!(self.writing, Writing::Closed) {
            self.ended = Some(Ok(()));
            return;
        }
        let Terms {
            destination,
            duration,
            ..
        } = &self.terms;
        let age = self.opened.elapsed();
        debug!(endpoint = destination.endpoint, ?end, ?age, "the websocket ended");
        let failure = match meaning(end, age, *duration) {
            Meaning::TargetEnded => {
                self.ended = Some(Ok(()));
                return;
            }
            Meaning::TargetUnreachable => {
                self.terms.directory.forget();
                unreachable(destination)
            }
            Meaning::Expired => {
                let lasted = humantime::format_duration(*duration);
                let doing = format!("{destination} was cut, as every one is after {lasted}");
                Failure::new(Reason::Expired, Remedy::Retry, doing)
            }
            Meaning::Lost => {
                let doing = format!("{destination} was lost");
                Failure::new(Reason::Unreachable, Remedy::Retry, doing)
            }
        };
        self.ended = Some(Err(Arc::new(failure.of_stream().because(said))));
    }

    fn fail(&mut self, doing: String, why: impl Into<Cause>) {
        let failure = Failure::new(Reason::Unreachable, Remedy::Retry, doing);
        self.ended = Some(Err(Arc::new(failure.of_stream().because(why))));
    }

    /// Takes what came of sending. A socket that fails has said why, or will, to the reader.
    fn sent(&mut self, sent: Result<(), Error>) {
        if sent.is_err() {
            self.writing = Writing::Broken;
        }
    }
}

fn unreachable(destination: &Destination) -> Failure {
    let Destination {
        endpoint,
        address,
        port,
        ..
    } = destination;
    let target = crate::connector::authority(address, *port);
    let doing = format!("the endpoint `{endpoint}` cannot connect to `{target}`");
    Failure::new(Reason::TargetRefused, Remedy::Retry, doing)
        .hint(format!("is the instance up, and does something listen on its port {port}?"))
        .hint(format!(
            "its security group must let in TCP {port} from that of the endpoint, and that of the endpoint let it out"
        ))
}

impl Stream for EiceStream {
    fn expires(&self) -> Option<Instant> {
        Some(self.opened + self.terms.duration)
    }
}

impl AsyncRead for EiceStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        // Frames that have come together leave together.
        while buffer.remaining() > 0 {
            let present = self.poll_present(context);
            if self.present.is_empty() {
                if buffer.filled().len() > before {
                    break;
                }
                ready!(present);
                if let Some(Err(failure)) = &self.ended {
                    return Poll::Ready(Err(io_error(failure)));
                }
                self.seen = true;
                return Poll::Ready(Ok(()));
            }
            let length = self.present.len().min(buffer.remaining());
            buffer.put_slice(&self.present.split_to(length));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for EiceStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        // Until the reader has seen the end, bytes for a stream that has ended go nowhere, as they do on a network:
        // failing earlier would hide how it ended, and what came before.
        match (&self.ended, &self.writing) {
            (Some(_), _) if !self.present.is_empty() => return Poll::Ready(Ok(bytes.len())),
            (Some(Err(failure)), _) => return Poll::Ready(Err(io_error(failure))),
            (Some(Ok(())), _) if !self.seen => return Poll::Ready(Ok(bytes.len())),
            (Some(Ok(())), _) | (None, Writing::Silent(_) | Writing::Closed) => {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            (None, Writing::Broken) => return Poll::Ready(Ok(bytes.len())),
            (None, Writing::Open) if bytes.is_empty() => return Poll::Ready(Ok(0)),
            (None, Writing::Open) => {}
        }
        let bytes = bytes
            .take(LARGEST_FRAME)
            .copy_to_bytes(bytes.len().min(LARGEST_FRAME));
        let length = bytes.len();
        let ready = ready!(self.socket().poll_ready_unpin(context));
        let sent = ready.and_then(|()| self.socket().start_send_unpin(Message::Binary(bytes)));
        self.sent(sent);
        Poll::Ready(Ok(length))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if matches!(self.writing, Writing::Open | Writing::Closed) && self.ended.is_none() {
            let flushed = ready!(self.socket().poll_flush_unpin(context));
            if matches!(self.writing, Writing::Open) {
                self.sent(flushed);
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Finish::AtOnce = self.terms.finish
            && matches!(self.writing, Writing::Open)
            && self.ended.is_none()
        {
            let ready = ready!(self.socket().poll_ready_unpin(context));
            let closing =
                ready.and_then(|()| self.socket().start_send_unpin(Message::Close(Some(goodbye()))));
            self.writing = match closing {
                Ok(()) => Writing::Closed,
                Err(_) => Writing::Broken,
            };
        }
        ready!(self.as_mut().poll_flush(context))?;
        if let (Finish::After(grace), Writing::Open) = (self.terms.finish, &self.writing) {
            self.writing = Writing::Silent(Box::pin(sleep(grace)));
            if let Some(reader) = self.reader.take() {
                reader.wake();
            }
        }
        Poll::Ready(Ok(()))
    }
}

fn goodbye() -> CloseFrame {
    CloseFrame {
        code: CloseCode::Normal,
        reason: "".into(),
    }
}

impl Drop for EiceStream {
    fn drop(&mut self) {
        if let Some((socket, slot)) = self.open.take()
            && let Ok(runtime) = Handle::try_current()
        {
            self.terms.tasks.spawn_on(farewell(socket, slot), &runtime);
        }
    }
}

/// Closes a websocket, and keeps its place on the endpoint until that has agreed.
async fn farewell(mut socket: WebSocketStream<Socket>, slot: Slot) {
    let closing = async {
        // One that has been closed already only has to send what waits.
        socket.send(Message::Close(Some(goodbye()))).await.ok();
        socket.flush().await.ok();
        while let Some(Ok(_)) = socket.next().await {}
    };
    timeout(GOODBYE, closing).await.ok();
    drop(slot);
}

#[cfg(test)]
mod tests;
