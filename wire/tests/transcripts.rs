//! Conversations recorded between the official client and the official agent, with one of them replaced by ours: the
//! other's frames are fed at the recorded times, and ours must be such as it would have accepted.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tunneld_wire::smux::{Framing, StreamId};
use tunneld_wire::ssm::{End, Event, Session};

use crate::common::agent::{AGENT_VERSION, Agent};
use crate::common::clock;
use crate::common::raw::{CONNECT_TO_PORT_ERROR, FIRST, Piece, Pipe, Raw, Streams, TERMINATE_SESSION};
use crate::common::recording::{self, Entry, What};
use crate::common::rig::CLIENT_WINDOW;
use crate::common::witness::Witness;

/// Every recording in which both sides multiplex.
const MULTIPLEXED: [&str; 15] = [
    "mux-echo",
    "mux-echo-both-sides",
    "mux-two-connections",
    "mux-server-close",
    "mux-half-close",
    "mux-port-refused",
    "mux-smux-keepalive",
    "remote-host",
    "remote-host-denied",
    "client-sigint",
    "api-terminate",
    "agent-killed",
    "resume-idle",
    "resume-bulk",
    "lossy",
];

/// Every recording with an agent that carries one connection at a time.
const BASIC: [&str; 3] = ["basic-echo", "basic-server-close", "basic-port-refused"];

/// Our side in a recording, and all that happened to it.
struct Replay {
    session: Session,
    witness: Witness,
    now: Instant,
    start: Instant,
    attached: usize,
    /// By the number that is on the wire.
    ids: BTreeMap<u32, StreamId>,
    received: Streams,
    events: Vec<Event>,
}

impl Replay {
    fn new(session: Session, witness: Witness, start: Instant) -> Self {
        Self {
            session,
            witness,
            now: start,
            start,
            attached: 0,
            ids: BTreeMap::new(),
            received: Streams::default(),
            events: Vec::new(),
        }
    }

    /// Lets time pass up to the moment of an entry.
    fn advance(&mut self, at: Duration) {
        let until = self.start + at;
        while let Some(due) = self.session.poll_timeout(self.now).filter(|due| *due <= until) {
            self.now = self.now.max(due);
            self.session.handle_timeout(self.now);
            self.poll();
        }
        self.now = until;
    }

    fn give(&mut self, frame: &[u8]) {
        if Raw::read(frame).kind.ends_with("stream_data") || Raw::read(frame).kind == "acknowledge" {
            self.witness.gave(frame);
        }
        self.session
            .handle_frame(Bytes::copy_from_slice(frame), self.now)
            .unwrap();
        self.poll();
        self.witness.settled();
    }

    fn poll(&mut self) {
        while let Some(frame) = self.session.poll_transmit(self.now) {
            self.witness.saw(&frame, self.now);
        }
        while let Some(event) = self.session.poll_event() {
            if let Event::Opened(id) = event {
                self.ids.insert(id.to_string().parse().unwrap(), id);
            }
            if let Event::Data(id, bytes) = &event {
                let id = id.to_string().parse().unwrap();
                self.received.0.entry(id).or_default().extend(bytes);
            }
            self.events.push(event);
        }
    }

    fn has(&self, wanted: &Event) -> bool {
        self.events.contains(wanted)
    }

    fn ended(&self) -> Option<&End> {
        self.events.iter().find_map(|event| {
            if let Event::Ended(end) = event {
                Some(end)
            } else {
                None
            }
        })
    }
}

/// What a session carries.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Many streams.
    Multiplexed,
    /// One connection at a time.
    Basic,
}

impl Mode {
    fn pipe(self) -> Pipe {
        match self {
            Self::Multiplexed => Pipe::default(),
            Self::Basic => Pipe::basic(),
        }
    }

    fn witness(self, witness: Witness) -> Witness {
        match self {
            Self::Multiplexed => witness,
            Self::Basic => witness.in_basic_mode(),
        }
    }

    /// Of the agent that was recorded.
    fn agent_version(self) -> &'static str {
        match self {
            Self::Multiplexed => AGENT_VERSION,
            Self::Basic => "3.0.150.0",
        }
    }
}

/// What one direction of a recording says, read without the crate.
#[derive(Default)]
struct Said {
    streams: Streams,
    /// Without a last frame that is not whole.
    whole: Streams,
    pieces: Vec<Piece>,
    flags: Vec<u32>,
    closing: Option<String>,
}

impl Said {
    fn by_agent(entries: &[Entry], pipe: Pipe) -> Self {
        Self::by(
            pipe,
            entries.iter().filter_map(|entry| match &entry.what {
                What::ToClient(frame) => Some(frame),
                What::FromClient(_) | What::Opened | What::Lost => None,
            }),
        )
    }

    fn by_client(entries: &[Entry], pipe: Pipe) -> Self {
        Self::by(
            pipe,
            entries.iter().filter_map(|entry| match &entry.what {
                What::FromClient(frame) => Some(frame),
                What::ToClient(_) | What::Opened | What::Lost => None,
            }),
        )
    }

    fn by<'a>(mut pipe: Pipe, frames: impl Iterator<Item = &'a Vec<u8>>) -> Self {
        let mut said = Self::default();
        for frame in frames {
            let raw = Raw::read(frame);
            if raw.kind == "channel_closed" {
                said.closing = Some(raw.json()["Output"].as_str().unwrap().to_owned());
            } else if raw.is_data() {
                let (pieces, flags) = pipe.take(raw);
                pieces.iter().for_each(|piece| said.streams.take(piece));
                pieces.iter().for_each(|piece| said.whole.take(piece));
                said.pieces.extend(pieces);
                said.flags.extend(flags);
            }
        }
        // A recording may end within a frame, and what has come of it is given out.
        said.streams.take_beginning(pipe.rest());
        said
    }

    fn has(&self, piece: &Piece) -> bool {
        self.pieces.contains(piece)
    }
}

/// Our client in the place of the official one: it opens, writes, closes and terminates when that did.
fn replay_client(entries: &[Entry], mode: Mode) -> Replay {
    let start = clock::origin();
    let session = Session::client(clock::client(), clock::options(7, start));
    let mut replay = Replay::new(session, mode.witness(Witness::of_client(CLIENT_WINDOW)), start);
    let mut pipe = mode.pipe();
    for entry in entries {
        replay.advance(entry.at);
        match &entry.what {
            What::Opened => {
                replay.attached += 1;
                let token = format!("token-{}", replay.attached);
                replay.session.attach(&token, replay.now);
                replay.witness.attach(&token);
            }
            What::Lost => {
                replay.session.detach();
                replay.witness.detach();
            }
            What::ToClient(frame) => replay.give(frame),
            What::FromClient(frame) => {
                let raw = Raw::read(frame);
                if raw.is_data() {
                    let (pieces, flags) = pipe.take(raw);
                    pieces
                        .into_iter()
                        .for_each(|piece| act_as_client(&mut replay, piece));
                    if flags.contains(&TERMINATE_SESSION) {
                        assert!(replay.session.terminate());
                        assert!(
                            !replay.session.terminate(),
                            "a second flag blocks the agent's reader"
                        );
                    }
                }
            }
        }
        replay.poll();
    }
    replay
}

fn act_as_client(replay: &mut Replay, piece: Piece) {
    match piece {
        Piece::Syn(number) => {
            let id = replay.session.open(replay.now).unwrap();
            assert_eq!(id.to_string(), number.to_string());
            replay.ids.insert(number, id);
        }
        Piece::Data(number, bytes) => {
            // In basic mode nothing says that a connection begins.
            let open = || replay.session.open(replay.now).unwrap();
            let id = *replay.ids.entry(number).or_insert_with(open);
            replay.session.write(id, bytes.into());
        }
        Piece::Fin(number) => replay.session.close(replay.ids[&number]),
        Piece::Nop => {}
    }
}

/// Our agent in the place of the official one: it writes, closes and refuses when that did.
fn replay_agent(entries: &[Entry], mode: Mode) -> Replay {
    let start = clock::origin();
    let agent = Agent::fast(Framing::Spanning).with_version(mode.agent_version());
    let session = Session::agent(agent.options, clock::options(8, start));
    let mut witness = mode.witness(Witness::of_agent(agent.window));
    witness.silent_on_duplicates = mode == Mode::Basic;
    let mut replay = Replay::new(session, witness, start);
    let mut pipe = mode.pipe();
    let mut refusing = false;
    for entry in entries {
        replay.advance(entry.at);
        match &entry.what {
            What::Opened => {
                replay.attached += 1;
                replay.session.attach_agent(replay.now);
            }
            What::Lost => {
                replay.session.detach();
                replay.witness.detach();
            }
            What::FromClient(frame) => replay.give(frame),
            What::ToClient(frame) => {
                let raw = Raw::read(frame);
                if raw.is_data() {
                    let (pieces, flags) = pipe.take(raw);
                    refusing |= flags.contains(&CONNECT_TO_PORT_ERROR);
                    for piece in pieces {
                        act_as_agent(&mut replay, mode, piece, &mut refusing);
                    }
                }
            }
        }
        replay.poll();
    }
    replay
}

fn act_as_agent(replay: &mut Replay, mode: Mode, piece: Piece, refusing: &mut bool) {
    match piece {
        Piece::Data(number, bytes) => {
            let id = match mode {
                Mode::Multiplexed => replay.ids[&number],
                // The agent names no connection: it speaks for the one that there is.
                Mode::Basic => *replay.ids.last_key_value().unwrap().1,
            };
            replay.session.write(id, bytes.into());
        }
        Piece::Fin(number) if std::mem::take(refusing) => replay.session.refuse(replay.ids[&number]),
        Piece::Fin(number) => replay.session.close(replay.ids[&number]),
        Piece::Syn(_) | Piece::Nop => {}
    }
}

#[test]
fn our_client_says_to_the_official_agent_what_the_official_client_said() {
    for name in MULTIPLEXED {
        let entries = recording::read(name);
        let official = Said::by_client(&entries, Pipe::default());
        let replay = replay_client(&entries, Mode::Multiplexed);
        assert_eq!(replay.witness.streams, official.streams, "{name}");
        assert_eq!(replay.witness.flags, official.flags, "{name}");
        assert!(replay.witness.is_whole(), "{name}");
        let opened = |pieces: &[Piece]| {
            pieces
                .iter()
                .filter(|piece| matches!(piece, Piece::Syn(_)))
                .count()
        };
        assert_eq!(opened(&replay.witness.pieces), opened(&official.pieces), "{name}");
        for piece in official
            .pieces
            .iter()
            .filter(|piece| matches!(piece, Piece::Fin(_)))
        {
            assert!(
                replay.witness.pieces.contains(piece),
                "{name}: {piece:?} was not sent"
            );
        }
    }
}

#[test]
fn our_client_hears_from_the_official_agent_every_byte_and_every_end() {
    for name in MULTIPLEXED {
        let entries = recording::read(name);
        let official = Said::by_agent(&entries, Pipe::default());
        let by_client = Said::by_client(&entries, Pipe::default());
        let replay = replay_client(&entries, Mode::Multiplexed);
        assert_eq!(replay.received, official.streams, "{name}");
        for (number, id) in &replay.ids {
            let refused = official.flags.contains(&CONNECT_TO_PORT_ERROR);
            let ended = official.has(&Piece::Fin(*number));
            // What we closed first ends without an event.
            let first = by_client
                .pieces
                .iter()
                .position(|piece| *piece == Piece::Fin(*number));
            let ours_first = first.is_some() && !name.contains("server-close") && !refused;
            let finished = replay.has(&Event::Finished(*id));
            assert_eq!(
                finished,
                ended && !ours_first && !refused,
                "{name}: stream {number} finished"
            );
            assert_eq!(
                replay.has(&Event::Refused(*id)),
                refused,
                "{name}: stream {number} refused"
            );
        }
        let ended = official.closing.map(End::ChannelClosed);
        assert_eq!(replay.ended(), ended.as_ref(), "{name}");
    }
}

#[test]
fn our_client_opens_every_websocket_anew_and_negotiates_once() {
    for (name, websockets) in [("mux-echo", 1), ("resume-idle", 2), ("resume-bulk", 2)] {
        let replay = replay_client(&recording::read(name), Mode::Multiplexed);
        assert_eq!(replay.attached, websockets, "{name}");
        let ready = replay
            .events
            .iter()
            .filter(|event| matches!(event, Event::Ready { .. }))
            .count();
        assert_eq!(ready, 1, "{name}");
    }
}

#[test]
fn our_client_reports_the_denied_host_in_the_agents_words() {
    let replay = replay_client(&recording::read("remote-host-denied"), Mode::Multiplexed);
    let words = "Forwarding to IP address 169.254.169.254 is forbidden.".to_owned();
    assert_eq!(replay.ended(), Some(&End::ChannelClosed(words)));
}

#[test]
fn our_client_keeps_an_old_agent_awake() {
    let entries = recording::read("mux-smux-keepalive");
    let replay = replay_client(&entries, Mode::Multiplexed);
    let nops = |pieces: &[Piece]| pieces.iter().filter(|piece| **piece == Piece::Nop).count();
    let official = nops(&Said::by_client(&entries, Pipe::default()).pieces);
    assert!(official > 1);
    assert_eq!(nops(&replay.witness.pieces), official);
}

#[test]
fn our_client_does_without_keep_alives_for_a_newer_agent() {
    let mut replay = replay_client(&recording::read("lossy"), Mode::Multiplexed);
    replay.advance(Duration::from_secs(120));
    assert!(!replay.witness.pieces.contains(&Piece::Nop));
}

#[test]
fn our_agent_hears_from_the_official_client_every_byte_and_every_end() {
    for name in MULTIPLEXED {
        let entries = recording::read(name);
        let official = Said::by_client(&entries, Pipe::default());
        let replay = replay_agent(&entries, Mode::Multiplexed);
        assert_eq!(replay.received, official.streams, "{name}");
        let opened: Vec<_> = replay
            .events
            .iter()
            .filter(|event| matches!(event, Event::Opened(_)))
            .collect();
        let syns = official
            .pieces
            .iter()
            .filter(|piece| matches!(piece, Piece::Syn(_)))
            .count();
        assert_eq!(opened.len(), syns, "{name}");
        assert_eq!(
            replay.has(&Event::Terminate),
            official.flags.contains(&TERMINATE_SESSION),
            "{name}"
        );
        assert_eq!(replay.ended(), None, "{name}");
    }
}

#[test]
fn our_agent_says_to_the_official_client_what_the_official_agent_said() {
    for name in MULTIPLEXED {
        let entries = recording::read(name);
        let official = Said::by_agent(&entries, Pipe::default());
        let replay = replay_agent(&entries, Mode::Multiplexed);
        assert_eq!(replay.witness.streams, official.whole, "{name}");
        assert_eq!(replay.witness.flags, official.flags, "{name}");
        for piece in official
            .pieces
            .iter()
            .filter(|piece| matches!(piece, Piece::Fin(_)))
        {
            assert!(
                replay.witness.pieces.contains(piece),
                "{name}: {piece:?} was not sent"
            );
        }
    }
}

/// What the first connection of a recording in basic mode sees: our client opens one a session.
fn first_connection(name: &str) -> Vec<Entry> {
    let mut pipe = Pipe::basic();
    let entries = recording::read(name).into_iter();
    let of_first = entries.take_while(|entry| match &entry.what {
        What::FromClient(frame) if Raw::read(frame).is_data() => {
            let (pieces, _) = pipe.take(Raw::read(frame));
            !pieces
                .iter()
                .any(|piece| matches!(piece, Piece::Data(number, _) if *number != FIRST))
        }
        What::FromClient(_) | What::ToClient(_) | What::Opened | What::Lost => true,
    });
    of_first.collect()
}

#[test]
fn our_client_says_to_an_old_agent_what_the_official_client_said_on_one_connection() {
    for name in BASIC {
        let entries = first_connection(name);
        let official = Said::by_client(&entries, Pipe::basic());
        let mut replay = replay_client(&entries, Mode::Basic);
        assert_eq!(replay.witness.streams, official.streams, "{name}");
        assert_eq!(replay.witness.flags, official.flags, "{name}");
        let ended = replay.ended().is_some();
        assert_eq!(replay.session.terminate(), !ended, "{name}");
        replay.poll();
        let terminated = replay.witness.flags.ends_with(&[TERMINATE_SESSION]);
        assert_eq!(terminated, !ended, "{name}");
    }
}

#[test]
fn our_client_hears_from_an_old_agent_every_byte_of_one_connection_and_the_end_of_the_session() {
    for name in BASIC {
        let entries = first_connection(name);
        let official = Said::by_agent(&entries, Pipe::basic());
        let mut replay = replay_client(&entries, Mode::Basic);
        let ready = Event::Ready {
            agent_version: "3.0.150.0".to_owned(),
            multiplexes: false,
            customer_message: String::new(),
        };
        assert_eq!(replay.events.first(), Some(&ready), "{name}");
        assert_eq!(replay.received, official.streams, "{name}");
        let told = |event: &&Event| matches!(event, Event::Finished(_) | Event::Refused(_));
        assert_eq!(
            replay.events.iter().find(told),
            None,
            "{name}: the agent says neither"
        );
        // A refused port ends the session, in the words of the service, which were none.
        let closing = (name == "basic-port-refused").then(|| End::ChannelClosed(String::new()));
        assert_eq!(replay.ended(), closing.as_ref(), "{name}");
        assert_eq!(
            replay.session.open(replay.now),
            None,
            "{name}: a second connection"
        );
    }
}

#[test]
fn our_old_agent_hears_from_the_official_client_every_byte_and_dials_again_after_every_end() {
    for name in BASIC {
        let entries = recording::read(name);
        let official = Said::by_client(&entries, Pipe::basic());
        let replay = replay_agent(&entries, Mode::Basic);
        assert_eq!(replay.received, official.streams, "{name}");
        let connections = official.streams.0.len().max(1);
        assert_eq!(replay.ids.len(), connections, "{name}: dialled");
        for (number, id) in &replay.ids {
            let ended = official.has(&Piece::Fin(*number));
            assert_eq!(
                replay.has(&Event::Finished(*id)),
                ended,
                "{name}: stream {number}"
            );
        }
        assert_eq!(
            replay.has(&Event::Terminate),
            official.flags.contains(&TERMINATE_SESSION),
            "{name}"
        );
        assert_eq!(replay.ended(), None, "{name}");
    }
}

#[test]
fn our_old_agent_says_to_the_official_client_what_the_official_agent_said() {
    for name in BASIC {
        let entries = recording::read(name);
        let official = Said::by_agent(&entries, Pipe::basic());
        let replay = replay_agent(&entries, Mode::Basic);
        assert_eq!(replay.witness.streams, official.streams, "{name}");
        assert!(
            replay.witness.flags.is_empty(),
            "{name}: it has no word for an end"
        );
    }
}

#[test]
fn our_old_agent_ends_the_session_when_the_target_refuses() {
    let mut replay = replay_agent(&recording::read("basic-port-refused"), Mode::Basic);
    let id = replay.ids[&FIRST];
    replay.session.refuse(id);
    replay.poll();
    let words = "Unable to connect to specified port".to_owned();
    assert_eq!(replay.ended(), Some(&End::ChannelClosed(words)));
    assert!(replay.witness.flags.is_empty());
}
