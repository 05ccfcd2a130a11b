//! Streams over one ordered byte pipe.
//!
//! ```text
//!             open / SYN                    finish, then the far end's FIN, or grace
//!   (none) ──────────────► open ──────────────────────────────────────────────────────► (gone)
//!                           │  far end's FIN: what is unsent is dropped, FIN goes back   ▲
//!                           └────────────────────────────────────────────────────────────┘
//! ```
//!
//! A stream that is reset before its SYN was sent is gone at once.
//!
//! smux has no half-close: the agent, on FIN, writes what it has to the target and then closes it, so an answer that
//! is still to come is lost (seen with the official agent, ssm.md section 6.4). So [`Mux::finish`] holds the FIN back
//! until the far end has ended, or has sent nothing for the grace time.
//!
//! Nothing is queued ahead: bytes leave a stream only when the layer below asks for the next piece, and streams take
//! turns, so a bulk transfer never stands before another stream's few bytes.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};

use super::event::Event;
use super::frame::{Decoder, HEADER_LENGTH, Header, Item, LONGEST_PAYLOAD, ProtocolError, StreamId};
use super::stream::{End, Stream, Syn};

/// The most of one stream that goes into a piece while other streams wait: a quarter of the largest piece.
const TURN: usize = 4_096;
/// How long a SYN waits for the first bytes, to share a message with them. Clients that speak first do so at once;
/// where the server does, one millisecond is lost in a new connection.
const SYN_GRACE: Duration = Duration::from_millis(1);
/// The most streams the far end may have open: the official library's accept backlog, four times over.
const MOST_ACCEPTED: usize = 4_096;
/// The most streams there may be with those whose refusal is still to be sent; beyond, a SYN is not heard.
const MOST_KNOWN: usize = 2 * MOST_ACCEPTED;
/// A piece that is a smaller part than this of what it came in is copied: who keeps it for a reader would keep all of
/// that, and count the piece alone.
const SMALL_PART: usize = 4;

/// Which end of the pipe a mux is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Opens streams, with the ids 3, 5, 7…
    Client,
    /// Accepts them.
    Server,
}

/// How frames and the pieces of the layer below relate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Every frame fits in its piece, so that streams can take turns piece by piece.
    Fitted,
    /// Frames of up to 32 KiB span pieces, as those of the official agent do.
    Spanning,
}

/// Many streams over one byte pipe.
#[derive(Debug)]
pub struct Mux {
    side: Side,
    framing: Framing,
    grace: Duration,
    next_id: Option<StreamId>,
    decoder: Decoder,
    streams: BTreeMap<StreamId, Stream>,
    /// Streams with something to send, each once, next first.
    ready: VecDeque<StreamId>,
    /// A spanning frame under way, and how much of it is still to send.
    current: Option<(StreamId, usize)>,
    keep_alive: Option<KeepAlive>,
    /// A NOP is to be sent as soon as there is room.
    nop_due: bool,
    events: VecDeque<Event>,
}

#[derive(Debug)]
struct KeepAlive {
    interval: Duration,
    next: Instant,
}

impl Mux {
    /// A mux without streams. `grace` is how long a FIN is held back after the far end's last byte.
    pub fn new(side: Side, framing: Framing, grace: Duration) -> Self {
        Self {
            side,
            framing,
            grace,
            next_id: Some(StreamId::FIRST),
            decoder: Decoder::default(),
            streams: BTreeMap::new(),
            ready: VecDeque::new(),
            current: None,
            keep_alive: None,
            nop_due: false,
            events: VecDeque::new(),
        }
    }

    /// Sends a NOP that often from now on.
    pub fn keep_alive(&mut self, interval: Duration, now: Instant) {
        let next = now + interval;
        self.keep_alive = Some(KeepAlive { interval, next });
    }

    /// Sends a NOP as soon as there is room, to be acknowledged by the layer below.
    pub fn sign_of_life(&mut self) {
        self.nop_due = true;
    }

    /// The far end could not be heard until now: held-back FINs wait for the whole grace time once more.
    pub fn restart_grace(&mut self, now: Instant) {
        for stream in self.streams.values_mut() {
            if let End::Finishing(at) = &mut stream.end {
                *at = now + self.grace;
            }
        }
    }

    /// Opens a stream; `None` once all ids are used up, which takes two thousand million streams.
    pub fn open(&mut self, now: Instant) -> Option<StreamId> {
        let id = self.next_id?;
        self.next_id = id.next();
        self.streams.insert(id, Stream::with_syn_due(now + SYN_GRACE));
        Some(id)
    }

    /// Queues bytes on a stream. Bytes for a stream that is gone or finished are dropped.
    pub fn write(&mut self, id: StreamId, bytes: Bytes) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if bytes.is_empty() || stream.end != End::Open {
            return;
        }
        stream.outgoing.push(bytes);
        self.make_ready(id);
    }

    /// Returns how many writes of a stream have not wholly left it.
    pub fn pending_writes(&self, id: StreamId) -> usize {
        self.streams.get(&id).map_or(0, |stream| stream.outgoing.pieces())
    }

    /// No more bytes will be written: the stream ends once the far end has, or after the grace time.
    pub fn finish(&mut self, id: StreamId, now: Instant) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if stream.end == End::Open {
            stream.end = End::Finishing(now + self.grace);
        }
    }

    /// Ends a stream in both directions, after what is queued.
    pub fn close(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        stream.end = End::Closing;
        self.make_ready(id);
    }

    /// Ends a stream in both directions; what is queued is dropped. A stream that was not announced never will be.
    pub fn reset(&mut self, id: StreamId) {
        if self
            .streams
            .get(&id)
            .is_some_and(|stream| stream.syn != Syn::Done)
        {
            self.streams.remove(&id);
            return;
        }
        self.drop_queued(id);
        self.close(id);
    }

    /// Takes the next bytes of the pipe.
    pub fn receive(&mut self, mut bytes: Bytes, now: Instant) -> Result<(), ProtocolError> {
        let whole = bytes.len();
        while let Some(item) = self.decoder.next(&mut bytes)? {
            match item {
                Item::Syn(id) => self.handle_syn(id),
                Item::Data(id, piece) if piece.len() < whole / SMALL_PART => {
                    self.handle_data(id, Bytes::copy_from_slice(&piece), now);
                }
                Item::Data(id, piece) => self.handle_data(id, piece, now),
                Item::Fin(id) => self.handle_fin(id),
            }
        }
        Ok(())
    }

    /// A moment has come that [`Mux::poll_timeout`] named.
    pub fn handle_timeout(&mut self, now: Instant) {
        let mut due = Vec::new();
        for (id, stream) in &mut self.streams {
            if let End::Finishing(at) = stream.end
                && at <= now
            {
                if stream.outgoing.len() > 0 {
                    // The far end hasn't got the whole question yet.
                    stream.end = End::Finishing(now + self.grace);
                } else {
                    stream.end = End::Closing;
                    due.push(*id);
                    self.events.push_back(Event::Abandoned(*id));
                }
            }
            if let Syn::Due(at) = stream.syn
                && at <= now
            {
                due.push(*id);
            }
        }
        for id in due {
            self.make_ready(id);
        }
        if let Some(keep_alive) = &mut self.keep_alive
            && keep_alive.next <= now
        {
            keep_alive.next = now + keep_alive.interval;
            self.nop_due = true;
        }
    }

    /// Returns when [`Mux::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let times = self.streams.values().flat_map(|stream| {
            let syn = match stream.syn {
                Syn::Due(at) if !stream.queued => Some(at),
                Syn::Due(_) | Syn::Done => None,
            };
            let fin = match stream.end {
                End::Finishing(at) => Some(at),
                End::Open | End::Closing => None,
            };
            [syn, fin]
        });
        let keep_alive = self.keep_alive.as_ref().map(|keep_alive| keep_alive.next);
        times.flatten().chain(keep_alive).min()
    }

    /// Returns whether [`Mux::poll_bytes`] has something to give.
    pub fn wants_to_send(&self) -> bool {
        self.current.is_some() || !self.ready.is_empty() || self.nop_due
    }

    /// Returns how long the next piece may get, up to `limit`: a message of a few bytes is kept until it is acknowledged,
    /// and must not hold the memory of a full one.
    pub(crate) fn next_length(&self, limit: usize) -> usize {
        let promised = self.current.map_or(0, |(_, missing)| missing);
        let mut length = promised + HEADER_LENGTH;
        for stream in self.ready.iter().filter_map(|id| self.streams.get(id)) {
            if length >= limit {
                break;
            }
            length += stream.outgoing.len() + 2 * HEADER_LENGTH;
        }
        length.min(limit)
    }

    /// Appends the next bytes of the pipe to `piece`, at most `length` of them: frames of all streams that have some, in
    /// turns. `length` must hold a header and a byte.
    pub fn poll_bytes(&mut self, length: usize, piece: &mut BytesMut) {
        let limit = piece.len() + length;
        while piece.len() < limit {
            if let Some((id, missing)) = self.current.take() {
                let room = limit - piece.len();
                let stream = self.streams.get_mut(&id);
                let sent = stream.map_or(0, |stream| stream.outgoing.move_into(piece, missing.min(room)));
                if sent < missing && sent > 0 {
                    self.current = Some((id, missing - sent));
                } else {
                    self.after_turn(id);
                }
                continue;
            }
            if piece.len() + HEADER_LENGTH >= limit {
                break;
            }
            if std::mem::take(&mut self.nop_due) {
                piece.put_slice(&Header::Nop.encode());
                continue;
            }
            let Some(id) = self.ready.pop_front() else { break };
            self.begin_turn(id, limit, piece);
        }
    }

    /// Returns a piece that says nothing, of at most that many bytes and at least one frame; `None` in the midst of a
    /// frame.
    pub fn filler(&self, length: usize) -> Option<Bytes> {
        let frames = Header::Nop.encode().repeat((length / HEADER_LENGTH).max(1));
        self.current.is_none().then(|| frames.into())
    }

    /// Returns the next thing that happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Returns how many streams the far end knows, and has neither said a byte on nor seen ended.
    pub(crate) fn unheard(&self) -> usize {
        let streams = self.streams.values();
        streams
            .filter(|stream| !stream.heard && stream.syn == Syn::Done && stream.end != End::Closing)
            .count()
    }

    /// Returns the streams there are.
    pub fn streams(&self) -> impl Iterator<Item = StreamId> + '_ {
        self.streams.keys().copied()
    }

    fn handle_syn(&mut self, id: StreamId) {
        if self.side == Side::Client || self.streams.contains_key(&id) || self.streams.len() >= MOST_KNOWN {
            return;
        }
        self.streams.insert(id, Stream::default());
        if self.streams.len() > MOST_ACCEPTED {
            self.close(id);
            return;
        }
        self.events.push_back(Event::Opened(id));
    }

    fn handle_data(&mut self, id: StreamId, piece: Bytes, now: Instant) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        stream.heard = true;
        if let End::Finishing(at) = &mut stream.end {
            *at = now + self.grace;
        }
        if stream.end != End::Closing {
            self.events.push_back(Event::Data(id, piece));
        }
    }

    fn handle_fin(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        // A stream whose FIN is queued already has nobody left to tell.
        if stream.end != End::Closing {
            self.events.push_back(Event::Finished {
                id,
                silent: !stream.heard,
            });
        }
        self.reset(id);
    }

    fn make_ready(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if !stream.queued {
            stream.queued = true;
            self.ready.push_back(id);
        }
    }

    /// Writes the SYN, data frame or FIN that a stream is due.
    fn begin_turn(&mut self, id: StreamId, limit: usize, piece: &mut BytesMut) {
        let alone = self.ready.is_empty();
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if stream.syn != Syn::Done {
            stream.syn = Syn::Done;
            piece.put_slice(&Header::Syn(id).encode());
            if piece.len() + HEADER_LENGTH >= limit {
                self.ready.push_front(id);
                return;
            }
        }
        let waiting = stream.outgoing.len();
        if waiting == 0 {
            stream.queued = false;
            if stream.end == End::Closing {
                piece.put_slice(&Header::Fin(id).encode());
                self.streams.remove(&id);
            }
            return;
        }
        let room = match self.framing {
            Framing::Fitted if alone => limit - piece.len() - HEADER_LENGTH,
            Framing::Fitted => TURN.min(limit - piece.len() - HEADER_LENGTH),
            Framing::Spanning => LONGEST_PAYLOAD,
        };
        let length = waiting.min(room).min(LONGEST_PAYLOAD);
        piece.put_slice(&Header::Psh(id, length as u16).encode());
        self.current = Some((id, length));
    }

    /// A frame is through: the stream gets in line again if it has more, or its end, to send.
    fn after_turn(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        stream.queued = false;
        if stream.outgoing.len() > 0 || stream.end == End::Closing {
            self.make_ready(id);
        }
    }

    /// Drops what a stream has not sent, except what the frame under way has promised.
    fn drop_queued(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let promised = self
            .current
            .filter(|(current, _)| *current == id)
            .map_or(0, |(_, length)| length);
        stream.outgoing.truncate(promised);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GRACE: Duration = Duration::from_secs(30);

    #[expect(clippy::disallowed_methods, reason = "an origin for invented time")]
    fn origin() -> Instant {
        Instant::now()
    }

    fn pair(framing: Framing) -> (Mux, Mux) {
        (
            Mux::new(Side::Client, framing, GRACE),
            Mux::new(Side::Server, Framing::Fitted, GRACE),
        )
    }

    fn events(mux: &mut Mux) -> Vec<Event> {
        std::iter::from_fn(|| mux.poll_event()).collect()
    }

    #[derive(Debug, Clone)]
    enum Order {
        Open,
        Write(usize, usize),
        Close(usize),
        Reset(usize),
        KeepAlive,
        Poll(usize),
    }

    fn order() -> impl Strategy<Value = Order> {
        prop_oneof![
            2 => Just(Order::Open),
            6 => (0..8_usize, 1..50_000_usize).prop_map(|(stream, length)| Order::Write(stream, length)),
            1 => (0..8_usize).prop_map(Order::Close),
            1 => (0..8_usize).prop_map(Order::Reset),
            1 => Just(Order::KeepAlive),
            8 => (9..20_000_usize).prop_map(Order::Poll),
        ]
    }

    proptest! {
        #[test]
        fn whatever_is_asked_the_far_end_can_read_it(
            orders in prop::collection::vec(order(), 1..100),
            fitted: bool,
        ) {
            let framing = if fitted { Framing::Fitted } else { Framing::Spanning };
            let (mut client, mut server) = pair(framing);
            let mut now = origin();
            let mut written: BTreeMap<StreamId, (usize, bool)> = BTreeMap::new();
            let mut came: BTreeMap<StreamId, usize> = BTreeMap::new();
            let mut finished = Vec::new();
            let all = orders.into_iter().chain(std::iter::repeat_n(Order::Poll(30_000), 200));
            for order in all {
                let nth = |n: usize| client.streams().nth(n);
                match order {
                    Order::Open => drop(client.open(now)),
                    Order::Write(n, length) => if let Some(id) = nth(n) {
                        let before = client.pending_writes(id);
                        client.write(id, vec![id.0 as u8; length].into());
                        let taken = client.pending_writes(id) > before;
                        written.entry(id).or_default().0 += if taken { length } else { 0 };
                    },
                    Order::Close(n) => if let Some(id) = nth(n) { client.close(id) },
                    Order::Reset(n) => if let Some(id) = nth(n) {
                        client.reset(id);
                        written.entry(id).or_default().1 = true;
                    },
                    Order::KeepAlive => client.keep_alive(Duration::from_secs(1), now),
                    Order::Poll(limit) => {
                        now += Duration::from_secs(2);
                        client.handle_timeout(now);
                        let Some(piece) = next_piece(&mut client, limit) else { continue };
                        prop_assert!((1..=limit).contains(&piece.len()));
                        if fitted {
                            prop_assert!(are_whole_frames(&piece));
                        }
                        prop_assert_eq!(server.receive(piece, now), Ok(()));
                    }
                }
                for event in events(&mut server) {
                    match event {
                        Event::Opened(id) => prop_assert_eq!(came.insert(id, 0), None),
                        Event::Data(id, bytes) => {
                            prop_assert!(bytes.iter().all(|byte| *byte == id.0 as u8));
                            *came.get_mut(&id).unwrap() += bytes.len();
                        }
                        Event::Finished { id, silent } => {
                            prop_assert_eq!(silent, came[&id] == 0);
                            finished.push(id);
                        }
                        Event::Abandoned(_) => prop_assert!(false, "nobody waits here"),
                    }
                }
            }
            prop_assert!(!client.wants_to_send());
            for (id, length) in came {
                let (sent, reset) = written.remove(&id).unwrap_or_default();
                prop_assert!(length == sent || reset && length < sent);
                prop_assert_eq!(client.streams().any(|open| open == id), !finished.contains(&id));
            }
            prop_assert!(written.values().all(|(_, reset)| *reset), "only a stream reset early is never heard of");
        }
    }

    fn next_piece(mux: &mut Mux, length: usize) -> Option<Bytes> {
        let mut piece = BytesMut::new();
        mux.poll_bytes(length, &mut piece);
        (!piece.is_empty()).then(|| piece.freeze())
    }

    /// Whether the bytes are whole frames: one more, put behind them, is read as what it is.
    fn are_whole_frames(piece: &Bytes) -> bool {
        let marker = StreamId(4);
        let mut bytes = Bytes::from([&piece[..], &Header::Syn(marker).encode()].concat());
        let mut decoder = Decoder::default();
        let items = std::iter::from_fn(|| decoder.next(&mut bytes).unwrap());
        items.last() == Some(Item::Syn(marker))
    }

    #[test]
    fn streams_take_turns_within_a_piece() {
        let (mut client, mut server) = pair(Framing::Fitted);
        let now = origin();
        let ids: Vec<_> = (0..3).map(|_| client.open(now).unwrap()).collect();
        for id in &ids {
            client.write(*id, vec![1; 100_000].into());
        }
        server
            .receive(next_piece(&mut client, 16_384).unwrap(), now)
            .unwrap();
        let turns = events(&mut server).into_iter().filter_map(|event| match event {
            Event::Data(id, bytes) => Some((id, bytes.len())),
            Event::Opened(_) | Event::Finished { .. } | Event::Abandoned(_) => None,
        });
        let turns: Vec<_> = turns.collect();
        assert_eq!(turns[..3], [(ids[0], TURN), (ids[1], TURN), (ids[2], TURN)]);
        assert_eq!(turns[3].0, ids[0]);
    }

    #[test]
    fn a_stream_alone_fills_its_piece() {
        let (mut client, _) = pair(Framing::Fitted);
        let id = client.open(origin()).unwrap();
        client.write(id, vec![1; 100_000].into());
        let piece = next_piece(&mut client, 16_384).unwrap();
        assert_eq!(piece.len(), 16_384);
        let second = next_piece(&mut client, 16_384).unwrap();
        assert_eq!(second[..4], [1, 2, 0xf8, 0x3f], "one frame of 16,376 bytes");
    }

    #[test]
    fn ids_are_odd_begin_at_three_and_end() {
        let (mut client, _) = pair(Framing::Fitted);
        assert_eq!(client.open(origin()), Some(StreamId(3)));
        assert_eq!(client.open(origin()), Some(StreamId(5)));
        client.next_id = Some(StreamId(u32::MAX));
        assert_eq!(client.open(origin()), Some(StreamId(u32::MAX)));
        assert_eq!(client.open(origin()), None);
    }

    #[test]
    fn frames_for_streams_that_are_unknown_or_known_already_change_nothing() {
        let (_, mut server) = pair(Framing::Fitted);
        let now = origin();
        let mut wire = BytesMut::new();
        wire.put_slice(&Header::Fin(StreamId(9)).encode());
        wire.put_slice(&Header::Psh(StreamId(9), 2).encode());
        wire.put_slice(b"xx");
        wire.put_slice(&Header::Syn(StreamId(3)).encode());
        wire.put_slice(&Header::Syn(StreamId(3)).encode());
        server.receive(wire.freeze(), now).unwrap();
        assert_eq!(events(&mut server), [Event::Opened(StreamId(3))]);
    }

    #[test]
    fn a_small_piece_does_not_keep_what_it_came_with() {
        let (mut client, mut server) = pair(Framing::Fitted);
        let now = origin();
        for length in [100, 20_000] {
            let id = client.open(now).unwrap();
            client.write(id, vec![1; length].into());
        }
        let all = next_piece(&mut client, 30_000).unwrap();
        server.receive(all.clone(), now).unwrap();
        let shares = events(&mut server).into_iter().filter_map(|event| match event {
            Event::Data(_, piece) => Some((piece.len(), all.as_ptr_range().contains(&piece.as_ptr()))),
            Event::Opened(_) | Event::Finished { .. } | Event::Abandoned(_) => None,
        });
        assert_eq!(shares.collect::<Vec<_>>(), [(100, false), (20_000, true)]);
    }

    #[test]
    fn a_client_does_not_accept_streams() {
        let (mut client, _) = pair(Framing::Fitted);
        client
            .receive(
                Bytes::copy_from_slice(&Header::Syn(StreamId(2)).encode()),
                origin(),
            )
            .unwrap();
        assert_eq!(events(&mut client), []);
        assert_eq!(client.streams().count(), 0);
    }
}
