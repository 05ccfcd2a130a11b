//! Basic mode: the whole session is one stream of raw bytes, for agents that can't multiplex (up to 3.0.196).
//!
//! ```text
//!   client   (none) ── open ──► open ── close, reset, or finish and the grace time: flag DisconnectToPort ──► gone
//!   agent    dials at the start ──► open ── the target closed ──► (none) ── the next bytes: dials again ──► open
//!                                     └── flag DisconnectToPort ──► (none)
//! ```
//!
//! The agent says nothing when the target closes, and bytes that were under way for one connection reach the next one
//! (ssm.md sections 6.4 and 6.5; seen with agent 3.0.150). So a client opens one stream in the life of a session.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::message::{Flag, PayloadType};
use crate::queue::Queue;
use crate::smux::{Event, Side, StreamId};

/// The most that a target may say before the client opens its stream, which it does as soon as the session is ready: a
/// greeting, many times over.
const MOST_EARLY: usize = 1 << 20;

/// A flag that no agent knows, which all acknowledge and ignore (ssm.md section 4.3): basic mode has no NOP.
const NO_FLAG: [u8; 4] = [0; 4];

/// The target said more than a greeting before the client opened its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the target sent more than {} KiB before its stream was opened", MOST_EARLY >> 10)]
pub struct TooEarly;

/// The one stream of a session.
pub(crate) struct Basic {
    side: Side,
    grace: Duration,
    next_id: StreamId,
    stream: Option<Stream>,
    /// Client: what the target said before the stream was opened; `None` once it was.
    early: Option<BytesMut>,
    /// A flag without a meaning is to be sent as soon as there is room.
    sign_due: bool,
    events: VecDeque<Event>,
}

struct Stream {
    id: StreamId,
    outgoing: Queue,
    end: End,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    /// Everything was written; the end is told then, unless more is heard before.
    Finishing(Instant),
    /// The end is to be told as soon as what is queued has been sent.
    Closing,
}

impl Basic {
    /// A session's stream. `grace` is how long a client's end is held back after the target's last byte.
    pub(crate) fn new(side: Side, grace: Duration) -> Self {
        let mut basic = Self {
            side,
            grace,
            next_id: StreamId::FIRST,
            stream: None,
            early: None,
            sign_due: false,
            events: VecDeque::new(),
        };
        match side {
            Side::Client => basic.early = Some(BytesMut::new()),
            Side::Server => basic.begin(),
        }
        basic
    }

    /// Client: sends a flag without a meaning as soon as there is room, to be acknowledged by the layer below.
    pub(crate) fn sign_of_life(&mut self) {
        self.sign_due = self.side == Side::Client;
    }

    /// Client: opens the stream; `None` if it was opened before.
    pub(crate) fn open(&mut self) -> Option<StreamId> {
        let early = self.early.take()?;
        let id = self.next_id;
        self.stream = Some(Stream::new(id));
        if !early.is_empty() {
            self.events.push_back(Event::Data(id, early.freeze()));
        }
        Some(id)
    }

    pub(crate) fn write(&mut self, id: StreamId, bytes: Bytes) {
        if let Some(stream) = self.stream(id)
            && stream.end == End::Open
            && !bytes.is_empty()
        {
            stream.outgoing.push(bytes);
        }
    }

    pub(crate) fn pending_writes(&self, id: StreamId) -> usize {
        let stream = self.stream.as_ref().filter(|stream| stream.id == id);
        stream.map_or(0, |stream| stream.outgoing.pieces())
    }

    pub(crate) fn finish(&mut self, id: StreamId, now: Instant) {
        let at = now + self.grace;
        if let Some(stream) = self.stream(id)
            && stream.end == End::Open
        {
            stream.end = End::Finishing(at);
        }
    }

    pub(crate) fn close(&mut self, id: StreamId) {
        if let Some(stream) = self.stream(id) {
            stream.end = End::Closing;
        }
    }

    pub(crate) fn reset(&mut self, id: StreamId) {
        if let Some(stream) = self.stream(id) {
            stream.outgoing.truncate(0);
            stream.end = End::Closing;
        }
    }

    /// Takes bytes of the other side.
    pub(crate) fn receive(&mut self, bytes: Bytes, now: Instant) -> Result<(), TooEarly> {
        if let Some(early) = &mut self.early {
            if early.len() + bytes.len() > MOST_EARLY {
                return Err(TooEarly);
            }
            // Piece by piece, they would take more memory than is counted.
            early.extend_from_slice(&bytes);
            return Ok(());
        }
        if self.stream.is_none() && self.side == Side::Server {
            self.begin();
        }
        let grace = self.grace;
        if let Some(stream) = &mut self.stream {
            if let End::Finishing(at) = &mut stream.end {
                *at = now + grace;
            }
            if stream.end != End::Closing {
                self.events.push_back(Event::Data(stream.id, bytes));
            }
        }
        Ok(())
    }

    /// Agent: the client's connection has closed.
    pub(crate) fn disconnect(&mut self) {
        if let Some(stream) = self.stream.take() {
            let id = stream.id;
            self.events.push_back(Event::Finished { id, silent: false });
        }
    }

    pub(crate) fn restart_grace(&mut self, now: Instant) {
        let grace = self.grace;
        if let Some(stream) = &mut self.stream
            && let End::Finishing(at) = &mut stream.end
        {
            *at = now + grace;
        }
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        let grace = self.grace;
        let Some(stream) = &mut self.stream else { return };
        if let End::Finishing(at) = stream.end
            && at <= now
        {
            if stream.outgoing.len() > 0 {
                // The target hasn't got the whole question yet.
                stream.end = End::Finishing(now + grace);
            } else {
                stream.end = End::Closing;
                self.events.push_back(Event::Abandoned(stream.id));
            }
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        match self.stream.as_ref()?.end {
            End::Finishing(at) => Some(at),
            End::Open | End::Closing => None,
        }
    }

    pub(crate) fn wants_to_send(&self) -> bool {
        let stream = self.stream.as_ref();
        self.sign_due || stream.is_some_and(|stream| stream.outgoing.len() > 0 || stream.end == End::Closing)
    }

    /// Appends the next message's payload, of at most `limit` bytes; returns what it is, if there is one.
    pub(crate) fn poll_payload(&mut self, limit: usize, payload: &mut BytesMut) -> Option<PayloadType> {
        if std::mem::take(&mut self.sign_due) {
            payload.extend_from_slice(&NO_FLAG);
            return Some(PayloadType::Flag);
        }
        let stream = self.stream.as_mut()?;
        let length = stream.outgoing.len().min(limit);
        if length > 0 {
            stream.outgoing.move_into(payload, length);
            return Some(PayloadType::Output);
        }
        if stream.end != End::Closing {
            return None;
        }
        self.stream = None;
        // The agent has no word for it.
        (self.side == Side::Client).then(|| {
            payload.extend_from_slice(&Flag::DisconnectToPort.payload());
            PayloadType::Flag
        })
    }

    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    pub(crate) fn streams(&self) -> impl Iterator<Item = StreamId> + '_ {
        self.stream.iter().map(|stream| stream.id)
    }

    fn begin(&mut self) {
        let id = self.next_id;
        self.next_id = id.next().unwrap_or(id);
        self.stream = Some(Stream::new(id));
        self.events.push_back(Event::Opened(id));
    }

    fn stream(&mut self, id: StreamId) -> Option<&mut Stream> {
        self.stream.as_mut().filter(|stream| stream.id == id)
    }
}

impl Stream {
    fn new(id: StreamId) -> Self {
        Self {
            id,
            outgoing: Queue::default(),
            end: End::Open,
        }
    }
}

impl fmt::Debug for Basic {
    /// Everything but the bytes, which are the user's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Basic")
            .field("side", &self.side)
            .field("next_id", &self.next_id)
            .field("stream", &self.stream.as_ref().map(|stream| stream.id))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(30);

    #[expect(clippy::disallowed_methods, reason = "an origin for invented time")]
    fn origin() -> Instant {
        Instant::now()
    }

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    fn payloads(basic: &mut Basic) -> Vec<(PayloadType, Bytes)> {
        std::iter::from_fn(|| {
            let mut payload = BytesMut::new();
            let payload_type = basic.poll_payload(4, &mut payload)?;
            Some((payload_type, payload.freeze()))
        })
        .collect()
    }

    fn events(basic: &mut Basic) -> Vec<Event> {
        std::iter::from_fn(|| basic.poll_event()).collect()
    }

    #[test]
    fn a_client_opens_one_stream_and_finds_the_greeting_on_it() {
        let mut basic = Basic::new(Side::Client, GRACE);
        for piece in ["he", "l", "l", "o"] {
            basic.receive(bytes(piece), origin()).unwrap();
        }
        assert_eq!(events(&mut basic), []);
        let id = basic.open().unwrap();
        assert_eq!(events(&mut basic), [Event::Data(id, bytes("hello"))]);
        assert_eq!(basic.open(), None);
    }

    #[test]
    fn a_target_that_never_stops_greeting_is_an_error() {
        let mut basic = Basic::new(Side::Client, GRACE);
        let piece = Bytes::from(vec![0; MOST_EARLY]);
        basic.receive(piece, origin()).unwrap();
        assert_eq!(basic.receive(bytes("x"), origin()), Err(TooEarly));
    }

    #[test]
    fn the_end_is_told_by_a_flag_after_the_last_bytes() {
        let mut basic = Basic::new(Side::Client, GRACE);
        let id = basic.open().unwrap();
        basic.write(id, bytes("question"));
        basic.close(id);
        assert!(basic.wants_to_send());
        let flag = (PayloadType::Flag, Flag::DisconnectToPort.payload());
        let output = |text| (PayloadType::Output, bytes(text));
        assert_eq!(payloads(&mut basic), [output("ques"), output("tion"), flag]);
        assert!(!basic.wants_to_send());
        assert_eq!(basic.streams().count(), 0);
    }

    #[test]
    fn a_sign_of_life_needs_no_stream() {
        let mut basic = Basic::new(Side::Client, GRACE);
        basic.sign_of_life();
        assert!(basic.wants_to_send());
        assert_eq!(
            payloads(&mut basic),
            [(PayloadType::Flag, Bytes::from_static(&NO_FLAG))]
        );
        assert!(!basic.wants_to_send());
    }

    #[test]
    fn a_reset_tells_the_end_without_the_bytes() {
        let mut basic = Basic::new(Side::Client, GRACE);
        let id = basic.open().unwrap();
        basic.write(id, bytes("question"));
        basic.reset(id);
        assert_eq!(
            payloads(&mut basic),
            [(PayloadType::Flag, Flag::DisconnectToPort.payload())]
        );
    }

    #[test]
    fn a_finished_stream_is_abandoned_after_the_grace_time_without_a_byte() {
        let mut now = origin();
        let mut basic = Basic::new(Side::Client, GRACE);
        let id = basic.open().unwrap();
        basic.finish(id, now);
        now += GRACE / 2;
        basic.receive(bytes("part"), now).unwrap();
        assert_eq!(basic.poll_timeout(), Some(now + GRACE));
        basic.handle_timeout(now + GRACE);
        assert_eq!(
            events(&mut basic),
            [Event::Data(id, bytes("part")), Event::Abandoned(id)]
        );
        assert_eq!(payloads(&mut basic).len(), 1, "the flag");
    }

    #[test]
    fn an_agent_dials_at_the_start_and_again_at_the_next_bytes() {
        let mut basic = Basic::new(Side::Server, GRACE);
        let [Event::Opened(first)] = events(&mut basic)[..] else {
            panic!("not dialled")
        };
        basic.write(first, bytes("bye"));
        basic.close(first);
        assert_eq!(payloads(&mut basic), [(PayloadType::Output, bytes("bye"))]);
        basic.receive(bytes("anew"), origin()).unwrap();
        let [Event::Opened(second), Event::Data(id, _)] = events(&mut basic)[..] else {
            panic!("not dialled again")
        };
        assert_eq!(second, id);
        assert_ne!(first, second);
        basic.disconnect();
        assert_eq!(
            events(&mut basic),
            [Event::Finished {
                id: second,
                silent: false
            }]
        );
    }
}
