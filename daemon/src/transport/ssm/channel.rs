//! The websocket under a session: reads frames, writes them, and knows when it is dead.
//!
//! One task does both, and neither waits for the other: frames are read while earlier ones wait for the network. What
//! waits when the websocket is lost is un-acknowledged, and so is sent again.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, Sink, SinkExt, StreamExt};
use tokio::time::{Instant, sleep_until};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, Message, Utf8Bytes};
use tunneld_wire::ssm::Frame;
use tunneld_wire::text::in_one_line;

use crate::connector::Socket;

/// Bytes that wait for the network: little, so that a bulk transfer doesn't stand before another stream's few; enough
/// that many frames share one write.
const QUEUE: usize = 128 << 10;
/// A ping this often keeps NATs and proxies from forgetting the connection, which some do after a few minutes.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// Without any frame for this long after a ping the websocket is dead (ssm.md section 12).
const PONG_DEADLINE: Duration = Duration::from_secs(20);
/// The same for a ping of a transfer that stopped, where there is reason for doubt.
const LULL_DEADLINE: Duration = Duration::from_secs(5);
/// The same after a sleep or a change of network, where the websocket is more likely dead than not: several round trips,
/// and little enough for the tunnel to work again within two seconds. One that is given up in error costs nothing but
/// its replacement.
const PROBE_DEADLINE: Duration = Duration::from_secs(1);
/// Without a frame for this long after one came, the far end is asked too, once: a transfer that stops in its midst may
/// have lost its network, which the next ping would notice half a minute later.
const LULL: Duration = Duration::from_secs(3);
/// The most characters of the reason for a close: as many as a frame holds (RFC 6455, section 5.5).
const LONGEST_REASON: usize = 123;
/// A write that takes longer than this is stuck.
const WRITE_DEADLINE: Duration = Duration::from_secs(20);

/// One websocket of a session.
pub(super) struct Channel {
    socket: WebSocketStream<Socket>,
    /// Bytes of frames that have not all reached the network.
    queued: usize,
    /// When writing counts as stuck; `None` while nothing waits.
    stuck_at: Option<Instant>,
    next_ping: Instant,
    pong_due: Option<Instant>,
    /// When to ask after the last frame; `None` once that was done.
    lull: Option<Instant>,
}

/// Why a websocket may be dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doubt {
    /// What should have come has not.
    Lull,
    /// The machine slept, or its network is another one.
    Network,
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
        Self {
            socket,
            queued: 0,
            stuck_at: None,
            next_ping: Instant::now() + PING_INTERVAL,
            pong_due: None,
            lull: None,
        }
    }

    /// Returns whether there is room for a frame.
    pub(super) fn has_room(&self) -> bool {
        self.queued < QUEUE
    }

    /// Sends a session's frame, as one unfragmented websocket frame, with the next [`Channel::activity`].
    pub(super) fn send(&mut self, frame: Frame) {
        self.queue(match frame {
            Frame::Text(text) => Message::Text(Utf8Bytes::from(text)),
            Frame::Binary(bytes) => Message::Binary(bytes),
        });
    }

    /// Asks the far end for a sign of life now.
    pub(super) fn probe(&mut self, doubt: Doubt) {
        let now = Instant::now();
        let due = now
            + match doubt {
                Doubt::Lull => LULL_DEADLINE,
                Doubt::Network => PROBE_DEADLINE,
            };
        self.next_ping = now;
        self.pong_due = Some(self.pong_due.map_or(due, |known| known.min(due)));
    }

    /// Returns a message that has come already.
    pub(super) fn next_at_once(&mut self) -> Option<Result<Activity, Lost>> {
        let message = self.socket.next().now_or_never()?;
        Some(self.hear(message))
    }

    /// Writes what is queued and waits for something to happen; `full`: room for a frame is one of the things waited
    /// for. Cancel-safe.
    ///
    /// What has come is read before a deadline is looked at: after a sleep both are there, and only one is true.
    pub(super) async fn activity(&mut self, full: bool) -> Result<Activity, Lost> {
        let wake = {
            let deadlines = [self.pong_due, self.stuck_at, self.lull];
            let first = deadlines.into_iter().flatten().fold(self.next_ping, Instant::min);
            let mut timer = pin!(sleep_until(first));
            poll_fn(|context| {
                if let Poll::Ready(wake) = self.poll_socket(full, context) {
                    return Poll::Ready(wake);
                }
                timer.poll_unpin(context).map(|()| Wake::Time)
            })
            .await
        };
        match wake {
            Wake::Message(message) => self.hear(message),
            Wake::Lost(error) => Err(Lost::Failed(Box::new(error))),
            Wake::Room => Ok(Activity::Nothing),
            Wake::Time => self.handle_time(Instant::now()),
        }
    }

    fn poll_socket(&mut self, full: bool, context: &mut Context<'_>) -> Poll<Wake> {
        if self.queued > 0 {
            match self.socket.poll_flush_unpin(context) {
                Poll::Ready(Ok(())) => {
                    self.queued = 0;
                    self.stuck_at = None;
                    if full {
                        return Poll::Ready(Wake::Room);
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Wake::Lost(error)),
                Poll::Pending => {}
            }
        }
        self.socket.poll_next_unpin(context).map(Wake::Message)
    }

    fn handle_time(&mut self, now: Instant) -> Result<Activity, Lost> {
        if self.pong_due.is_some_and(|due| due <= now) {
            return Err(Lost::Silent);
        }
        if self.stuck_at.is_some_and(|at| at <= now) {
            return Err(Lost::Stuck);
        }
        if self.lull.take_if(|lull| *lull <= now).is_some() {
            self.probe(Doubt::Lull);
        }
        if self.next_ping <= now {
            self.next_ping = now + PING_INTERVAL;
            // Where no room is left the deadline of writing says whether it is stuck.
            if self.has_room() {
                self.queue(Message::Ping(Bytes::from_static(b"keepalive")));
                self.pong_due.get_or_insert(now + PONG_DEADLINE);
            }
        }
        Ok(Activity::Nothing)
    }

    fn hear(&mut self, message: Option<Result<Message, tungstenite::Error>>) -> Result<Activity, Lost> {
        self.pong_due = None;
        if let Some(Ok(Message::Binary(_))) = &message {
            self.lull = Some(Instant::now() + LULL);
        }
        received(message)
    }

    fn queue(&mut self, message: Message) {
        self.queued += message.len();
        self.stuck_at.get_or_insert(Instant::now() + WRITE_DEADLINE);
        // Without a flush nothing is refused but what is sent after a close, and then reading tells of that.
        let _ = Pin::new(&mut self.socket).start_send(message);
    }
}

enum Wake {
    Message(Option<Result<Message, tungstenite::Error>>),
    Lost(tungstenite::Error),
    Room,
    Time,
}

fn received(message: Option<Result<Message, tungstenite::Error>>) -> Result<Activity, Lost> {
    match message {
        Some(Ok(Message::Binary(frame))) => Ok(Activity::Frame(frame)),
        Some(Ok(Message::Close(Some(close)))) => Err(Lost::Closed(format!(
            "{} {}",
            u16::from(close.code),
            in_one_line(&close.reason, LONGEST_REASON)
        ))),
        Some(Ok(Message::Close(None))) | None => Err(Lost::Ended),
        Some(Ok(Message::Pong(_))) => Ok(Activity::Pong),
        Some(Ok(Message::Text(_) | Message::Ping(_) | Message::Frame(_))) => Ok(Activity::Nothing),
        Some(Err(error)) => Err(Lost::Failed(Box::new(error))),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::DuplexStream;
    use tokio::time::timeout;
    use tokio_tungstenite::tungstenite::protocol::Role;

    use super::*;

    /// A channel, and AWS's end of its websocket.
    async fn channel() -> (Channel, WebSocketStream<DuplexStream>) {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let near = WebSocketStream::from_raw_socket(Socket::new(near), Role::Client, None).await;
        let far = WebSocketStream::from_raw_socket(far, Role::Server, None).await;
        (Channel::new(near), far)
    }

    /// Drives a channel until its websocket is lost; returns why, and when.
    async fn lost(channel: &mut Channel) -> (Lost, Duration) {
        let began = Instant::now();
        loop {
            if let Err(lost) = channel.activity(false).await {
                return (lost, began.elapsed());
            }
        }
    }

    /// Drives a channel for that long while AWS answers; returns how many pings there were.
    async fn pings(channel: &mut Channel, far: &mut WebSocketStream<DuplexStream>, time: Duration) -> usize {
        let mut pings = 0;
        let drive = async {
            loop {
                tokio::select! {
                    activity = channel.activity(false) => drop(activity.expect("the websocket lives")),
                    message = far.next() => {
                        assert!(message.expect("a message").expect("a good one").is_ping());
                        pings += 1;
                        // What answers a ping is written with the next flush.
                        far.flush().await.expect("room");
                    },
                }
            }
        };
        timeout(time, drive).await.expect_err("it goes on for ever");
        pings
    }

    #[tokio::test(start_paused = true)]
    async fn a_websocket_that_was_quiet_and_dies_is_lost_after_its_next_ping() {
        let (mut channel, _far) = channel().await;
        let (lost, after) = lost(&mut channel).await;
        assert!(matches!(lost, Lost::Silent), "{lost}");
        assert_eq!(after, PING_INTERVAL + PONG_DEADLINE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_websocket_that_dies_in_the_midst_of_a_transfer_is_lost_soon() {
        let (mut channel, mut far) = channel().await;
        far.send(Message::binary(vec![1])).await.unwrap();
        let (lost, after) = lost(&mut channel).await;
        assert!(matches!(lost, Lost::Silent), "{lost}");
        assert_eq!(after, LULL + LULL_DEADLINE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_websocket_that_died_in_a_sleep_is_lost_at_once_although_a_ping_was_out() {
        let (mut channel, _far) = channel().await;
        let idle = timeout(PING_INTERVAL + PONG_DEADLINE / 2, lost(&mut channel)).await;
        assert!(idle.is_err(), "the ping has time");
        channel.probe(Doubt::Network);
        let (lost, after) = lost(&mut channel).await;
        assert!(matches!(lost, Lost::Silent), "{lost}");
        assert_eq!(after, PROBE_DEADLINE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_transfer_that_stops_is_asked_after_once_and_then_in_the_usual_turn() {
        let (mut channel, mut far) = channel().await;
        far.send(Message::binary(vec![1])).await.unwrap();
        let early = pings(&mut channel, &mut far, PING_INTERVAL).await;
        assert_eq!(early, 1);
        let later = pings(&mut channel, &mut far, PING_INTERVAL * 10).await;
        assert_eq!(later, 10);
    }

    #[tokio::test(start_paused = true)]
    async fn what_came_during_a_sleep_counts_although_its_deadline_passed() {
        let (mut channel, mut far) = channel().await;
        channel.probe(Doubt::Network);
        assert!(
            matches!(channel.activity(false).await, Ok(Activity::Nothing)),
            "the ping is due"
        );
        // It is written with the next look.
        assert!(channel.activity(false).now_or_never().is_none());
        let Some(Ok(Message::Ping(_))) = far.next().await else {
            panic!("no ping")
        };
        far.flush().await.unwrap();
        tokio::time::advance(PROBE_DEADLINE * 100).await;
        assert!(matches!(channel.activity(false).await, Ok(Activity::Pong)));
    }
}
