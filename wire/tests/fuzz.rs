//! Bodies for fuzzing, run here with seeded mutation of good input. What they look for is a panic, and growth without
//! a bound.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tunneld_wire::smux::{Decoder, Framing, Item, StreamId};
use tunneld_wire::ssm::message::{Kind, Message, PayloadType};
use tunneld_wire::ssm::payload::{self, HandshakeComplete, HandshakeRequest, HandshakeResponse};
use tunneld_wire::ssm::{ClientOptions, Event, Frame, Session};

use crate::common::agent::Agent;
use crate::common::frames::data_message;
use crate::common::{clock, hex};

/// Decodes a frame; one that decodes is as long as its parts, and is encoded and decoded alike.
fn message(data: &[u8]) {
    let Ok(message) = Message::decode(Bytes::copy_from_slice(data)) else {
        return;
    };
    assert!(message.payload.len() < data.len());
    assert_eq!(Message::decode(message.encode()), Ok(message));
}

/// Decodes a byte pipe, whole and in pieces: the same comes out, and no more bytes than went in.
fn smux(data: &[u8]) {
    let whole = items([data]);
    let halves = data.split_at(data.len() / 3);
    assert_eq!(items([halves.0, halves.1]), whole);
    let size = |item: &Item| match item {
        Item::Data(_, bytes) => bytes.len(),
        Item::Syn(_) | Item::Fin(_) => 0,
    };
    assert!(whole.iter().map(size).sum::<usize>() <= data.len());
}

/// What a decoder finds, with the data of neighbouring pieces joined.
fn items<const N: usize>(pieces: [&[u8]; N]) -> Vec<Item> {
    let mut decoder = Decoder::default();
    let mut items = Vec::new();
    for piece in pieces {
        let mut bytes = Bytes::copy_from_slice(piece);
        loop {
            match decoder.next(&mut bytes) {
                Ok(Some(Item::Data(id, more))) => match items.last_mut() {
                    Some(Item::Data(last, bytes)) if *last == id => {
                        *bytes = [&bytes[..], &more[..]].concat().into();
                    }
                    _ => items.push(Item::Data(id, more)),
                },
                Ok(Some(item)) => items.push(item),
                Ok(None) => break,
                Err(_) => return items,
            }
        }
    }
    items
}

/// Reads JSON bodies; what can be read can be written and read alike.
fn body(data: &[u8]) {
    payload::closing_words(data);
    payload::acknowledged_number(data);
    if let Ok(body) = serde_json::from_slice::<HandshakeRequest>(data) {
        assert_eq!(
            serde_json::from_slice::<HandshakeRequest>(&payload::json(&body)).unwrap(),
            body
        );
    }
    if let Ok(body) = serde_json::from_slice::<HandshakeResponse>(data) {
        assert_eq!(
            serde_json::from_slice::<HandshakeResponse>(&payload::json(&body)).unwrap(),
            body
        );
    }
    if let Ok(body) = serde_json::from_slice::<HandshakeComplete>(data) {
        assert_eq!(
            serde_json::from_slice::<HandshakeComplete>(&payload::json(&body)).unwrap(),
            body
        );
    }
}

/// Versions on both sides of every gate, and such as are none.
const AGENT_VERSIONS: [&str; 8] = [
    "3.3.1142.0",
    "3.2.1040.0",
    "3.1.1511.0",
    "3.1.1187.0",
    "3.0.196.0",
    "2.3.722.0",
    "latest",
    "",
];
const CLIENT_VERSIONS: [&str; 4] = ["1.2.764.0", "1.2.331.0", "1.1.69", "none"];

/// Reads the data as orders to a session of either role, which begin with what the two sides are.
fn session(data: &[u8]) {
    let mut orders = Orders { rest: data };
    let now = clock::origin();
    let (role, versions) = (orders.byte(), orders.byte());
    let agent_version = AGENT_VERSIONS[usize::from(versions % 8)];
    let origin = clock::options(1, now);
    let agent = |agent: Agent| Session::agent(agent.with_version(agent_version).options, origin);
    let session = match role % 4 {
        0 => agent(Agent::fast(Framing::Spanning)),
        1 => agent(Agent::stock()),
        2 => Session::client(clock::client(), origin),
        _ => Session::client(impatient_client(), origin),
    };
    let peer = if role % 4 < 2 {
        Kind::InputStreamData
    } else {
        Kind::OutputStreamData
    };
    let mut subject = Subject {
        session,
        peer,
        agent_version,
        client_version: CLIENT_VERSIONS[usize::from(versions / 8 % 4)],
        next: 0,
        now,
        streams: Vec::new(),
        heard: 0,
        given: 0,
        ended: false,
    };
    while !orders.rest.is_empty() {
        subject.follow(&mut orders);
    }
    subject.drain();
}

/// A client whose every timer runs.
fn impatient_client() -> ClientOptions {
    ClientOptions {
        keep_alive: Some(Duration::from_secs(1)),
        stall_timeout: Duration::from_secs(2),
        ..clock::client()
    }
}

struct Orders<'a> {
    rest: &'a [u8],
}

impl<'a> Orders<'a> {
    fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.rest.split_first() else {
            return 0;
        };
        self.rest = rest;
        *byte
    }

    fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (bytes, rest) = self.rest.split_at(length.min(self.rest.len()));
        self.rest = rest;
        bytes
    }
}

struct Subject {
    session: Session,
    peer: Kind,
    agent_version: &'static str,
    client_version: &'static str,
    /// The number of the next data message that is in order.
    next: u64,
    now: Instant,
    streams: Vec<StreamId>,
    heard: usize,
    given: usize,
    ended: bool,
}

impl Subject {
    fn follow(&mut self, orders: &mut Orders<'_>) {
        match orders.byte() % 20 {
            0 => self.session.attach("token", self.now),
            1 => self.session.attach_agent(self.now),
            2 => self.session.detach(),
            3 => self.session.pause(self.now),
            4 => self.streams.extend(self.session.open(self.now)),
            5 => self.on_stream(orders, |session, id, _, length| {
                session.write(id, vec![7; length * 40].into())
            }),
            6 => self.on_stream(orders, |session, id, now, _| session.finish(id, now)),
            7 => self.on_stream(orders, |session, id, _, _| session.close(id)),
            8 => self.on_stream(orders, |session, id, _, _| session.reset(id)),
            9 => self.on_stream(orders, |session, id, _, _| session.refuse(id)),
            10 => drop(self.session.terminate()),
            11 => self.pass(Duration::from_millis(u64::from(orders.byte()) * 20)),
            12 => self.drain(),
            13 => self.greet(),
            14 => {
                let number = numbers(orders.byte(), self.next);
                let body = format!(r#"{{"AcknowledgedMessageSequenceNumber":{number}}}"#);
                self.give(data_message(
                    Kind::Acknowledge,
                    0,
                    PayloadType::Undefined,
                    body.into(),
                ));
            }
            15 => {
                let number = numbers(orders.byte(), self.next);
                let length = usize::from(orders.byte());
                let payload = Bytes::copy_from_slice(orders.bytes(length));
                self.data(number, PayloadType::Output, payload);
            }
            16 => {
                let length = usize::from(orders.byte());
                let frame = Bytes::copy_from_slice(orders.bytes(length));
                let _ = self.session.handle_frame(frame, self.now);
            }
            17 => self.session.handle_pong(self.now),
            18 => {
                let flag = Bytes::copy_from_slice(&[0, 0, 0, orders.byte() % 5]);
                self.data(self.next, PayloadType::Flag, flag);
            }
            _ => {
                let kinds = [
                    Kind::StartPublication,
                    Kind::PausePublication,
                    Kind::ChannelClosed,
                ];
                // The end comes seldom.
                let kind = kinds[[0, 0, 0, 1, 1, 1, 1, 2][usize::from(orders.byte() % 8)]];
                self.give(data_message(kind, 0, PayloadType::Undefined, Bytes::new()));
            }
        }
    }

    fn on_stream(&mut self, orders: &mut Orders<'_>, order: impl Fn(&mut Session, StreamId, Instant, usize)) {
        let choice = usize::from(orders.byte());
        let length = usize::from(orders.byte());
        if let Some(id) = self.streams.get(choice % self.streams.len().max(1)) {
            order(&mut self.session, *id, self.now, length);
        }
    }

    /// Gives what the handshake needs, for either role.
    fn greet(&mut self) {
        let parameters = r#"{"SessionType":"Port","Properties":{"type":"LocalPortForwarding"}}"#;
        let actions = format!(r#"[{{"ActionType":"SessionType","ActionParameters":{parameters}}}]"#);
        let (agent, client) = (self.agent_version, self.client_version);
        let bodies = [
            (
                PayloadType::HandshakeRequest,
                format!(r#"{{"AgentVersion":"{agent}","RequestedClientActions":{actions}}}"#),
            ),
            (
                PayloadType::HandshakeComplete,
                r#"{"HandshakeTimeToComplete":1,"CustomerMessage":""}"#.to_owned(),
            ),
            (
                PayloadType::HandshakeResponse,
                format!(r#"{{"ClientVersion":"{client}","ProcessedClientActions":[],"Errors":null}}"#),
            ),
        ];
        for (payload_type, body) in bodies {
            self.data(self.next, payload_type, body.into());
        }
    }

    fn data(&mut self, number: u64, payload_type: PayloadType, payload: Bytes) {
        if number == self.next {
            self.next += 1;
        }
        self.given += payload.len();
        self.give(data_message(self.peer, number, payload_type, payload));
    }

    fn give(&mut self, frame: Bytes) {
        let _ = self.session.handle_frame(frame, self.now);
        self.notice();
    }

    fn notice(&mut self) {
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Opened(id) => self.streams.push(id),
                Event::Data(_, bytes) => self.heard += bytes.len(),
                Event::Ready { .. }
                | Event::Finished(_)
                | Event::Abandoned(_)
                | Event::Refused(_)
                | Event::Paused
                | Event::Resumed
                | Event::Doubtful
                | Event::Unanswered
                | Event::Stalled(_)
                | Event::Flowing
                | Event::StallExpired(_)
                | Event::Terminate => {}
                Event::Ended(_) => {
                    assert!(!self.ended, "it ended twice");
                    self.ended = true;
                }
            }
        }
        assert!(self.heard <= self.given, "more was heard than given");
    }

    /// Lets time pass; the timers that fire in it have an end.
    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        let mut fired = 0;
        while let Some(due) = self.session.poll_timeout(self.now).filter(|due| *due <= until) {
            fired += 1;
            assert!(fired < 20_000, "timers never rest");
            self.now = self.now.max(due);
            self.session.handle_timeout(self.now);
            self.drain();
        }
        self.now = until;
    }

    /// Takes all that the session has to say, which must have an end.
    fn drain(&mut self) {
        let mut frames = 0;
        while let Some(frame) = self.session.poll_transmit(self.now) {
            frames += 1;
            assert!(frames < 100_000, "frames without end");
            if let Frame::Binary(frame) = frame {
                let message = Message::decode(frame).unwrap();
                assert!(!message.payload.is_empty());
                assert_eq!(message.verify(), Ok(()));
            }
        }
        self.notice();
    }
}

/// Numbers as they come, and such as break arithmetic.
fn numbers(choice: u8, next: u64) -> u64 {
    match choice {
        0..=199 => next,
        200..=219 => next + u64::from(choice % 10),
        220..=239 => next.saturating_sub(u64::from(choice % 10)),
        240..=247 => i64::MAX as u64 - u64::from(choice % 8),
        248..=255 => u64::from(choice % 8) << 30,
    }
}

/// Changes good input in a few places.
fn mutate(random: &mut fastrand::Rng, data: &mut Vec<u8>) {
    for _ in 0..random.usize(1..=4) {
        let at = random.usize(0..=data.len());
        match random.u8(0..6) {
            0 => data.truncate(at),
            1 => data.insert(at, random.u8(..)),
            2 => data.extend_from_within(..at),
            3 => drop(data.drain(at..(at + random.usize(0..8)).min(data.len()))),
            _ => {
                let any = random.u8(..);
                let extreme = random.choice([0, 1, 0x7f, 0x80, 0xff, any]).unwrap();
                if let Some(byte) = data.get_mut(at) {
                    *byte = extreme;
                }
            }
        }
    }
}

/// Runs a body with mutations of `good`; a panic names what to give to the body alone.
fn run(iterations: u64, good: &[Vec<u8>], body: impl Fn(&[u8])) {
    for seed in 0..iterations {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut data = random.choice(good).cloned().unwrap();
        mutate(&mut random, &mut data);
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| body(&data)));
        assert!(caught.is_ok(), "seed {seed}, input {data:?}");
    }
}

fn golden() -> Vec<serde_json::Value> {
    serde_json::from_str(include_str!("golden/ssm-vectors.json")).unwrap()
}

#[test]
fn no_frame_upsets_the_codec() {
    let good: Vec<_> = golden()
        .iter()
        .map(|vector| hex::bytes(vector["hex"].as_str().unwrap()))
        .collect();
    run(200_000, &good, message);
}

#[test]
fn no_byte_pipe_upsets_smux() {
    let mut pipe = hex::bytes(golden().last().unwrap()["hex"].as_str().unwrap());
    pipe.extend_from_within(..);
    run(200_000, &[pipe], smux);
}

#[test]
fn no_body_upsets_the_payloads() {
    let texts = golden();
    let texts = texts
        .iter()
        .filter_map(|vector| vector["fields"]["payload_text"].as_str());
    run(
        200_000,
        &texts.map(|text| text.as_bytes().to_vec()).collect::<Vec<_>>(),
        body,
    );
}

#[test]
fn no_nesting_upsets_the_payloads() {
    body(&b"[".repeat(1 << 20));
    body(&br#"{"Output":"#.repeat(1 << 16));
}

#[test]
fn no_orders_upset_a_session() {
    let mut random = fastrand::Rng::with_seed(1);
    let mut good = Vec::new();
    for role in 0..4 {
        for versions in 0..32 {
            // Attached, greeted, and a stream opened from our side or theirs; then anything.
            let mut orders = vec![role, versions, if role < 2 { 1 } else { 0 }, 12, 13, 12, 4];
            orders.extend([
                15, 0, 8, 1, 0, 0, 0, 3, 0, 0, 0, 15, 0, 12, 1, 2, 4, 0, 3, 0, 0, 0, 1, 2, 3, 4,
            ]);
            let length = random.usize(20..200);
            orders.extend(std::iter::repeat_with(|| random.u8(..)).take(length));
            good.push(orders);
        }
    }
    run(50_000, &good, session);
}
