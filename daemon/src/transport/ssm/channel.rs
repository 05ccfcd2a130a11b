//! The websocket under a session: reads frames, writes them from a task of its own, and knows when it is dead.
//!
//! Writing has its own task so that the driver never waits for the network while frames arrive. Whatever waits in it
//! when the websocket is lost is un-acknowledged, and so is sent again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, Message, Utf8Bytes};
use tunneld_wire::ssm::Frame;

use crate::connector::Socket;

/// Bytes that wait for the network: little, so that a bulk transfer doesn't stand before another stream's few; enough
/// that many frames share one write.
const QUEUE: usize = 128 << 10;
/// More than any frame has: the longest payload that can be configured, and its header.
const LONGEST_FRAME: usize = 36 << 10;
/// Frames written with one flush, whose deadline is for a stuck network, not for a busy one.
const BATCH: usize = 256;
/// A ping this often keeps NATs and proxies from forgetting the connection, which some do after a few minutes.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// Without any frame for this long after a ping the websocket is dead (ssm.md section 12).
const PONG_DEADLINE: Duration = Duration::from_secs(20);
/// The same for a ping that was asked for, when there is reason for doubt.
const PROBE_DEADLINE: Duration = Duration::from_secs(5);
/// A write that takes longer than this is stuck.
const WRITE_DEADLINE: Duration = Duration::from_secs(20);

/// One websocket of a session.
pub(super) struct Channel {
    frames: SplitStream<WebSocketStream<Socket>>,
    /// Unbounded in type, bounded by the room that each frame takes.
    writer: mpsc::UnboundedSender<Queued>,
    room: Arc<Semaphore>,
    writing: JoinSet<Result<(), Lost>>,
    next_ping: Instant,
    pong_due: Option<Instant>,
}

/// What came of waiting on a channel.
pub(super) enum Activity {
    Frame(Bytes),
    /// The far end of the websocket lives.
    Pong,
    /// A frame that is none of the session's, or room for another one.
    Nothing,
}

/// Why a websocket is gone.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    #[error("the websocket was closed by AWS ({0})")]
    Closed(String),
    #[error("the websocket was closed by AWS without a reason")]
    Ended,
    #[error("the websocket failed")]
    Failed(#[source] Box<tungstenite::Error>),
    #[error("nothing came on the websocket after a ping")]
    Silent,
    #[error("writing to the websocket took longer than {} seconds", WRITE_DEADLINE.as_secs())]
    Stuck,
    #[error("AWS said that the far side is away, and nothing more")]
    Paused,
}

impl Channel {
    pub(super) fn new(socket: WebSocketStream<Socket>) -> Self {
        let (sink, frames) = socket.split();
        let (writer, queue) = mpsc::unbounded_channel();
        let mut writing = JoinSet::new();
        writing.spawn(write(sink, queue));
        Self {
            frames,
            writer,
            room: Arc::new(Semaphore::new(QUEUE)),
            writing,
            next_ping: Instant::now() + PING_INTERVAL,
            pong_due: None,
        }
    }

    /// Returns a place for one frame of any length, if there is room now.
    pub(super) fn room(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.room)
            .try_acquire_many_owned(LONGEST_FRAME as u32)
            .ok()
    }

    /// Sends a session's frame, as one unfragmented websocket frame.
    pub(super) fn send(&self, frame: Frame, room: OwnedSemaphorePermit) {
        let message = match frame {
            Frame::Text(text) => Message::Text(Utf8Bytes::from(text)),
            Frame::Binary(bytes) => Message::Binary(bytes),
        };
        self.queue(message, room);
    }

    fn queue(&self, message: Message, mut room: OwnedSemaphorePermit) {
        let taken = room.split(message.len().min(LONGEST_FRAME));
        // A writer that is gone has said why, and what was for it is sent again.
        let _ = self.writer.send(Queued {
            message,
            _room: taken,
        });
    }

    /// Asks the far end for a sign of life now.
    pub(super) fn probe(&mut self) {
        let now = Instant::now();
        self.next_ping = now;
        self.pong_due = Some(
            self.pong_due
                .map_or(now + PROBE_DEADLINE, |due| due.min(now + PROBE_DEADLINE)),
        );
    }

    /// Returns a message that has come already.
    pub(super) fn next_at_once(&mut self) -> Option<Result<Activity, Lost>> {
        let message = self.frames.next().now_or_never()?;
        self.pong_due = None;
        Some(received(message))
    }

    /// Waits for something to happen; `full`: room for a frame is one of the things waited for. Cancel-safe.
    ///
    /// What has come is read before a deadline is looked at: after a sleep both are there, and only one is true.
    pub(super) async fn activity(&mut self, full: bool) -> Result<Activity, Lost> {
        let wake = tokio::select! {
            biased;
            message = self.frames.next() => Wake::Message(message),
            Some(written) = self.writing.join_next() => Wake::Written(written),
            _ = self.room.acquire_many(LONGEST_FRAME as u32), if full => Wake::Room,
            () = sleep_until(self.next_ping) => Wake::Ping,
            () = sleep_until(self.pong_due.unwrap_or(self.next_ping)), if self.pong_due.is_some() => Wake::Silence,
        };
        match wake {
            Wake::Message(message) => {
                self.pong_due = None;
                received(message)
            }
            Wake::Written(Ok(Err(lost))) => Err(lost),
            Wake::Written(Ok(Ok(())) | Err(_)) => Err(Lost::Ended),
            Wake::Room => Ok(Activity::Nothing),
            Wake::Ping => {
                self.ping();
                Ok(Activity::Nothing)
            }
            Wake::Silence => Err(Lost::Silent),
        }
    }

    fn ping(&mut self) {
        let now = Instant::now();
        self.next_ping = now + PING_INTERVAL;
        // Without room the writer is busy, and its own deadline says whether it is stuck.
        if let Some(room) = self.room() {
            self.queue(Message::Ping(Bytes::from_static(b"keepalive")), room);
            self.pong_due.get_or_insert(now + PONG_DEADLINE);
        }
    }
}

enum Wake {
    Message(Option<Result<Message, tungstenite::Error>>),
    Written(Result<Result<(), Lost>, JoinError>),
    Room,
    Ping,
    Silence,
}

fn received(message: Option<Result<Message, tungstenite::Error>>) -> Result<Activity, Lost> {
    match message {
        Some(Ok(Message::Binary(frame))) => Ok(Activity::Frame(frame)),
        Some(Ok(Message::Close(Some(close)))) => Err(Lost::Closed(format!(
            "{} {}",
            u16::from(close.code),
            close.reason
        ))),
        Some(Ok(Message::Close(None))) | None => Err(Lost::Ended),
        Some(Ok(Message::Pong(_))) => Ok(Activity::Pong),
        Some(Ok(Message::Text(_) | Message::Ping(_) | Message::Frame(_))) => Ok(Activity::Nothing),
        Some(Err(error)) => Err(Lost::Failed(Box::new(error))),
    }
}

/// A message on its way to the network.
struct Queued {
    message: Message,
    /// Free again once it is written.
    _room: Option<OwnedSemaphorePermit>,
}

/// Writes frames, as many as wait with one flush.
async fn write(
    mut sink: SplitSink<WebSocketStream<Socket>, Message>,
    mut queue: mpsc::UnboundedReceiver<Queued>,
) -> Result<(), Lost> {
    while let Some(first) = queue.recv().await {
        let batch = async {
            sink.feed(first.message).await?;
            for _ in 1..BATCH {
                let Ok(next) = queue.try_recv() else { break };
                sink.feed(next.message).await?;
            }
            sink.flush().await
        };
        finished(timeout(WRITE_DEADLINE, batch).await)?;
    }
    finished(timeout(WRITE_DEADLINE, sink.close()).await)
}

fn finished(
    outcome: Result<Result<(), tungstenite::Error>, tokio::time::error::Elapsed>,
) -> Result<(), Lost> {
    match outcome {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Lost::Failed(Box::new(error))),
        Err(_) => Err(Lost::Stuck),
    }
}
