//! Both sides of a session with a bad network between them, on invented time.
//!
//! ```text
//!   streams ─► client Session ─► wire: delay, jitter, loss, copies ─► agent Session ─► streams
//!                    └ witness                                             └ witness
//! ```
//!
//! A cut loses what is under way in both directions. Everything random comes from the seed.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tunneld_wire::smux::{Framing, StreamId};
use tunneld_wire::ssm::message::{self, Kind, Message, PayloadType};
use tunneld_wire::ssm::{AgentOptions, Event, Frame, Policy, Session};

use crate::common::clock;
use crate::common::raw::Raw;
use crate::common::witness::Witness;

/// A version that has every capability.
pub(crate) const AGENT_VERSION: &str = "3.3.1142.0";
pub(crate) const CLIENT_WINDOW: usize = 4 << 20;
pub(crate) const FAST_WINDOW: usize = 4 << 20;

/// What the path does to frames.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Network {
    pub(crate) delay: Duration,
    /// Up to this is added to the delay of each frame, so that frames overtake each other.
    pub(crate) jitter: Duration,
    pub(crate) loss: f64,
    pub(crate) copies: f64,
}

impl Network {
    pub(crate) fn perfect(delay: Duration) -> Self {
        Self {
            delay,
            jitter: Duration::ZERO,
            loss: 0.0,
            copies: 0.0,
        }
    }
}

/// What the agent learns of a cut of the client's websocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// The service tells it to pause.
    Pause,
    /// Nothing: it sends into the void.
    Nothing,
    /// Its own websocket is cut as well.
    Detached,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Act {
    Cut(Told),
    Attach,
}

/// One side and what came to it.
pub(crate) struct End {
    pub(crate) session: Session,
    pub(crate) witness: Witness,
    pub(crate) events: Vec<Event>,
    /// What it sent and has not arrived, by the time it will.
    under_way: BTreeMap<(Instant, u64), Bytes>,
}

/// What is to cross on one stream, and what has.
#[derive(Default)]
pub(crate) struct Load {
    pub(crate) up: Vec<u8>,
    pub(crate) down: Vec<u8>,
    written_up: usize,
    written_down: usize,
    pub(crate) got_up: Vec<u8>,
    pub(crate) got_down: Vec<u8>,
    accepted: bool,
}

impl Load {
    fn up_comes(&mut self, id: StreamId, bytes: &[u8]) {
        let right = self
            .up
            .get(self.got_up.len()..)
            .is_some_and(|rest| rest.starts_with(bytes));
        assert!(right, "stream {id}: upwards something else came than was sent");
        self.got_up.extend_from_slice(bytes);
    }

    fn down_comes(&mut self, id: StreamId, bytes: &[u8]) {
        let right = self
            .down
            .get(self.got_down.len()..)
            .is_some_and(|rest| rest.starts_with(bytes));
        assert!(right, "stream {id}: downwards something else came than was sent");
        self.got_down.extend_from_slice(bytes);
    }

    pub(crate) fn is_done(&self) -> bool {
        self.got_up.len() == self.up.len() && self.got_down.len() == self.down.len()
    }
}

pub(crate) struct Rig {
    pub(crate) now: Instant,
    pub(crate) random: fastrand::Rng,
    pub(crate) network: Network,
    pub(crate) client: End,
    pub(crate) agent: End,
    pub(crate) loads: BTreeMap<StreamId, Load>,
    pub(crate) script: VecDeque<(Instant, Act)>,
    /// Whether the agent acknowledges each message once only, as those before 3.2.1041 do.
    pub(crate) silent_agent: bool,
    acknowledged_once: Vec<u64>,
    /// Whether what the agent acknowledges is lost.
    pub(crate) lose_acknowledgements: bool,
    pub(crate) attached: bool,
    agent_attached: bool,
    tokens: usize,
    frames: u64,
}

impl Rig {
    pub(crate) fn new(seed: u64, network: Network, agent: Agent) -> Self {
        let now = clock::origin();
        let Agent { options, window } = agent;
        let client = Session::client(clock::client(), clock::options(seed, now));
        let agent = Session::agent(options, clock::options(seed ^ 1, now));
        Self {
            now,
            random: fastrand::Rng::with_seed(seed),
            network,
            client: End::new(client, Witness::of_client(CLIENT_WINDOW)),
            agent: End::new(agent, Witness::of_agent(window)),
            loads: BTreeMap::new(),
            script: VecDeque::new(),
            silent_agent: false,
            acknowledged_once: Vec::new(),
            lose_acknowledgements: false,
            attached: false,
            agent_attached: false,
            tokens: 0,
            frames: 0,
        }
    }

    /// A client and a fast agent that have greeted each other.
    pub(crate) fn ready(delay: Duration) -> Self {
        let mut rig = Self::new(1, Network::perfect(delay), Agent::fast(Framing::Fitted));
        rig.begin();
        rig
    }

    /// Attaches both sides and runs to the end of the handshake.
    pub(crate) fn begin(&mut self) {
        self.act(Act::Attach);
        self.run_until(Duration::from_secs(60), "the handshake", |rig| {
            let ready = |event: &Event| matches!(event, Event::Ready { .. });
            rig.client.events.iter().any(ready) && rig.agent.events.iter().any(ready)
        });
    }

    /// Opens a stream with that to cross it.
    pub(crate) fn open(&mut self, up: Vec<u8>, down: Vec<u8>) -> StreamId {
        let id = self.client.session.open(self.now).unwrap();
        self.loads.insert(
            id,
            Load {
                up,
                down,
                ..Load::default()
            },
        );
        id
    }

    /// Hands all that is to cross upwards to the session at once.
    pub(crate) fn queue_upwards(&mut self, id: StreamId) {
        let load = self.loads.get_mut(&id).unwrap();
        let rest = Bytes::copy_from_slice(&load.up[load.written_up..]);
        load.written_up = load.up.len();
        self.client.session.write(id, rest);
    }

    pub(crate) fn act(&mut self, act: Act) {
        match act {
            Act::Cut(told) => {
                self.attached = false;
                self.client.session.detach();
                self.client.witness.detach();
                self.client.under_way.clear();
                self.agent.under_way.clear();
                match told {
                    Told::Pause => self.agent.session.pause(self.now),
                    Told::Nothing => {}
                    Told::Detached => {
                        self.agent_attached = false;
                        self.agent.session.detach();
                        self.agent.witness.detach();
                    }
                }
            }
            Act::Attach => {
                self.attached = true;
                self.tokens += 1;
                let token = format!("token-{}", self.tokens);
                self.client.session.attach(&token, self.now);
                self.client.witness.attach(&token);
                if !std::mem::replace(&mut self.agent_attached, true) {
                    self.agent.session.attach_agent(self.now);
                } else {
                    let start = service_message(Kind::StartPublication, Bytes::new());
                    self.agent.session.handle_frame(start, self.now).unwrap();
                }
            }
        }
    }

    /// The service sends a message of its own to the client.
    pub(crate) fn announce(&mut self, kind: Kind) {
        self.client
            .session
            .handle_frame(service_message(kind, Bytes::new()), self.now)
            .unwrap();
        self.pump();
    }

    /// Lets that much time pass.
    pub(crate) fn run_for(&mut self, time: Duration) {
        let until = self.now + time;
        self.run(until, |_| false);
        self.now = until;
        self.pump();
    }

    /// Lets time pass until something holds; fails when it doesn't in `limit`.
    pub(crate) fn run_until(&mut self, limit: Duration, what: &str, done: impl Fn(&Self) -> bool) {
        let until = self.now + limit;
        self.run(until, &done);
        assert!(done(self), "{what} did not come about in {limit:?}");
    }

    /// Runs until every stream has carried everything, and looks at all of it.
    pub(crate) fn run_loads(&mut self, limit: Duration) {
        self.run_until(limit, "all bytes", |rig| rig.loads.values().all(Load::is_done));
    }

    fn run(&mut self, until: Instant, done: impl Fn(&Self) -> bool) {
        let mut at_once = 0;
        self.pump();
        while !done(self) {
            let Some(next) = self.next_moment().filter(|next| *next <= until) else {
                return;
            };
            at_once = if next > self.now { 0 } else { at_once + 1 };
            assert!(at_once < 10_000, "time stands still");
            self.now = self.now.max(next);
            self.step();
        }
    }

    fn next_moment(&self) -> Option<Instant> {
        let moments = [
            self.client.session.poll_timeout(self.now),
            self.agent.session.poll_timeout(self.now),
            self.client.arrival(),
            self.agent.arrival(),
            self.script.front().map(|(at, _)| *at),
        ];
        moments.into_iter().flatten().min()
    }

    fn step(&mut self) {
        while let Some((_, act)) = self.script.pop_front_if(|(at, _)| *at <= self.now) {
            self.act(act);
        }
        while let Some(frame) = self.client.arrived(self.now) {
            self.agent.give(frame, self.now);
        }
        while let Some(frame) = self.agent.arrived(self.now) {
            self.client.give(frame, self.now);
        }
        for end in [&mut self.client, &mut self.agent] {
            if end
                .session
                .poll_timeout(self.now)
                .is_some_and(|due| due <= self.now)
            {
                end.session.handle_timeout(self.now);
            }
        }
        self.pump();
        for end in [&self.client, &self.agent] {
            let due = end.session.poll_timeout(self.now);
            assert!(due.is_none_or(|due| due > self.now), "a timeout stays due");
        }
    }

    /// Moves everything that can move at this moment.
    pub(crate) fn pump(&mut self) {
        loop {
            self.write();
            let moved = self.transmit();
            self.notice();
            if !moved {
                break;
            }
        }
        self.client.witness.settled();
        self.agent.witness.settled();
    }

    fn transmit(&mut self) -> bool {
        let mut moved = false;
        while let Some(frame) = self.client.session.poll_transmit(self.now) {
            moved = true;
            self.client.witness.saw(&frame, self.now);
            if let Frame::Binary(frame) = frame {
                self.launch(frame, true);
            }
        }
        while let Some(frame) = self.agent.session.poll_transmit(self.now) {
            moved = true;
            self.agent.witness.saw(&frame, self.now);
            if let Frame::Binary(frame) = frame {
                self.launch(frame, false);
            }
        }
        moved
    }

    fn launch(&mut self, frame: Bytes, by_client: bool) {
        if !by_client && self.silent_agent && self.is_second_acknowledgement(&frame) {
            return;
        }
        if !by_client && self.lose_acknowledgements && Raw::read(&frame).acknowledged().is_some() {
            return;
        }
        let lost = self.random.f64() < self.network.loss;
        if lost || !self.attached {
            return;
        }
        let copies = if self.random.f64() < self.network.copies {
            2
        } else {
            1
        };
        for _ in 0..copies {
            let jitter = self.network.jitter.mul_f64(self.random.f64());
            self.frames += 1;
            let key = (self.now + self.network.delay + jitter, self.frames);
            let end = if by_client {
                &mut self.client
            } else {
                &mut self.agent
            };
            end.under_way.insert(key, frame.clone());
        }
    }

    fn is_second_acknowledgement(&mut self, frame: &[u8]) -> bool {
        let Some(number) = Raw::read(frame).acknowledged() else {
            return false;
        };
        let known = self.acknowledged_once.contains(&number);
        self.acknowledged_once.push(number);
        known
    }

    /// The applications at both ends write what they have, a few pieces ahead.
    fn write(&mut self) {
        for (id, load) in &mut self.loads {
            let random = &mut self.random;
            write(
                &mut self.client.session,
                *id,
                &load.up,
                &mut load.written_up,
                random,
            );
            if load.accepted {
                write(
                    &mut self.agent.session,
                    *id,
                    &load.down,
                    &mut load.written_down,
                    random,
                );
            }
        }
    }

    fn notice(&mut self) {
        while let Some(event) = self.client.session.poll_event() {
            if let Event::Data(id, bytes) = &event
                && let Some(load) = self.loads.get_mut(id)
            {
                load.down_comes(*id, bytes);
                continue;
            }
            // As a driver does, who asks the websocket.
            if event == Event::Unanswered && self.attached {
                self.client.session.handle_pong(self.now);
            }
            self.client.events.push(event);
        }
        while let Some(event) = self.agent.session.poll_event() {
            match &event {
                Event::Data(id, bytes) if self.loads.contains_key(id) => {
                    let load = self.loads.get_mut(id).unwrap();
                    load.up_comes(*id, bytes);
                    continue;
                }
                Event::Opened(id) if self.loads.contains_key(id) => {
                    let load = self.loads.get_mut(id).unwrap();
                    assert!(!load.accepted, "stream {id} was opened twice");
                    load.accepted = true;
                }
                Event::Opened(_)
                | Event::Ready { .. }
                | Event::Data(..)
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
                | Event::Terminate
                | Event::Ended(_) => {}
            }
            self.agent.events.push(event);
        }
    }
}

impl End {
    fn new(session: Session, witness: Witness) -> Self {
        Self {
            session,
            witness,
            events: Vec::new(),
            under_way: BTreeMap::new(),
        }
    }

    pub(crate) fn has(&self, event: &Event) -> bool {
        self.events.contains(event)
    }

    fn arrival(&self) -> Option<Instant> {
        self.under_way.first_key_value().map(|((at, _), _)| *at)
    }

    fn arrived(&mut self, now: Instant) -> Option<Bytes> {
        self.arrival().filter(|at| *at <= now)?;
        self.under_way.pop_first().map(|(_, frame)| frame)
    }

    fn give(&mut self, frame: Bytes, now: Instant) {
        self.witness.gave(&frame);
        self.session.handle_frame(frame, now).unwrap();
    }
}

fn write(session: &mut Session, id: StreamId, all: &[u8], written: &mut usize, random: &mut fastrand::Rng) {
    while *written < all.len() && session.pending_writes(id) < 4 {
        let length = random.usize(1..=20_000).min(all.len() - *written);
        session.write(id, Bytes::copy_from_slice(&all[*written..*written + length]));
        *written += length;
    }
}

/// Bytes that differ from place to place and from seed to seed.
pub(crate) fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(length).collect()
}

/// A message of the service itself.
pub(crate) fn service_message(kind: Kind, payload: Bytes) -> Bytes {
    data_message(kind, 0, PayloadType::Undefined, payload)
}

/// A well-formed message of any kind.
pub(crate) fn data_message(kind: Kind, sequence: u64, payload_type: PayloadType, payload: Bytes) -> Bytes {
    let id = uuid::Uuid::from_u128(u128::from(sequence) | 1 << 100);
    let digest = message::digest(&payload);
    Message {
        kind,
        created: 1,
        sequence,
        flags: 0,
        id,
        digest,
        payload_type,
        payload,
    }
    .encode()
}

/// An agent, and the most that it may have un-acknowledged.
pub(crate) struct Agent {
    pub(crate) options: AgentOptions,
    pub(crate) window: Option<usize>,
}

impl Agent {
    pub(crate) fn fast(framing: Framing) -> Self {
        Self {
            options: options(Policy::fast_agent(), framing),
            window: Some(FAST_WINDOW),
        }
    }

    pub(crate) fn stock() -> Self {
        Self {
            options: options(Policy::stock_agent(), Framing::Spanning),
            window: None,
        }
    }

    pub(crate) fn with_version(mut self, version: &str) -> Self {
        self.options.version = version.to_owned();
        self
    }
}

fn options(policy: Policy, framing: Framing) -> AgentOptions {
    let properties = [("portNumber", "5432"), ("type", "LocalPortForwarding")];
    AgentOptions {
        version: AGENT_VERSION.to_owned(),
        properties: properties
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        policy,
        framing,
        quiet: Duration::ZERO,
    }
}
