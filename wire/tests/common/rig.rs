//! Both sides of a session with a bad network between them, on invented time.
//!
//! ```text
//!   streams ─► client Session ─► path: delay, jitter, loss, copies, damage ─► agent Session ─► streams
//!                    └ witness                                                     └ witness
//! ```
//!
//! A cut loses what is under way in both directions. Everything random comes from the seed.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tunneld_wire::smux::{Framing, StreamId};
use tunneld_wire::ssm::message::Kind;
use tunneld_wire::ssm::{ClientOptions, Event, Frame, Session};

use crate::common::agent::Agent;
use crate::common::clock;
use crate::common::frames::service_message;
use crate::common::load::Load;
use crate::common::network::{Arrival, Network, Path};
use crate::common::witness::Witness;

pub(crate) const CLIENT_WINDOW: usize = 16 << 20;

/// What the agent learns of a cut of the client's websocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// The service tells it to pause, and of the client's return.
    Pause,
    /// Nothing: it sends into the void.
    Nothing,
    /// Its own websocket is cut as well, until the client's is back.
    Detached,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Act {
    Cut(Told),
    Attach,
}

/// How far the client's websocket reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Where it should.
    Agent,
    /// The service answers pings, and what is sent through it is lost.
    Service,
    /// It is half open: nothing is answered.
    Nobody,
}

/// How the agent stands with the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    Away,
    Here,
    Paused,
}

/// One side and what came to it.
pub(crate) struct End {
    pub(crate) session: Session,
    pub(crate) witness: Witness,
    pub(crate) events: Vec<Event>,
    /// What it has sent.
    path: Path,
}

pub(crate) struct Rig {
    pub(crate) now: Instant,
    pub(crate) random: fastrand::Rng,
    pub(crate) network: Network,
    pub(crate) client: End,
    pub(crate) agent: End,
    pub(crate) loads: BTreeMap<StreamId, Load>,
    pub(crate) script: VecDeque<(Instant, Act)>,
    pub(crate) reach: Reach,
    /// Whether the agent reads its websocket; the service answers pings in its place.
    pub(crate) agent_reads: bool,
    attached: bool,
    presence: Presence,
    tokens: usize,
}

impl Rig {
    pub(crate) fn new(seed: u64, network: Network, agent: Agent) -> Self {
        Self::with_client(seed, network, clock::client(), agent)
    }

    pub(crate) fn with_client(seed: u64, network: Network, client: ClientOptions, agent: Agent) -> Self {
        let now = clock::origin();
        let Agent { options, window } = agent;
        let client = Session::client(client, clock::options(seed, now));
        let agent = Session::agent(options, clock::options(seed ^ 1, now));
        Self {
            now,
            random: fastrand::Rng::with_seed(seed),
            network,
            client: End::new(client, Witness::of_client(CLIENT_WINDOW)),
            agent: End::new(agent, Witness::of_agent(window)),
            loads: BTreeMap::new(),
            script: VecDeque::new(),
            reach: Reach::Agent,
            agent_reads: true,
            attached: false,
            presence: Presence::Away,
            tokens: 0,
        }
    }

    /// A client and that agent, made old enough to carry one connection at a time.
    pub(crate) fn in_basic_mode(seed: u64, network: Network, agent: Agent) -> Self {
        let mut rig = Self::new(seed, network, agent.with_version("3.0.196.0"));
        let (client, agent) = (
            Witness::of_client(CLIENT_WINDOW),
            Witness::of_agent(rig.agent.witness.window),
        );
        rig.client.witness = client.in_basic_mode();
        rig.agent.witness = agent.in_basic_mode();
        rig.agent.witness.silent_on_duplicates = true;
        rig
    }

    /// A client and a fast agent that have greeted each other.
    pub(crate) fn ready(delay: Duration) -> Self {
        Self::ready_with(Network::perfect(delay), Agent::fast(Framing::Fitted))
    }

    /// A client and that agent, after their greeting.
    pub(crate) fn ready_with(network: Network, agent: Agent) -> Self {
        let mut rig = Self::new(1, network, agent);
        rig.begin();
        rig
    }

    /// Attaches both sides and runs to the end of the handshake.
    pub(crate) fn begin(&mut self) {
        self.act(Act::Attach);
        self.run_until(Duration::from_secs(60), "the handshake", Self::is_ready);
    }

    /// Whether both sides have greeted each other.
    pub(crate) fn is_ready(&self) -> bool {
        let ready = |event: &Event| matches!(event, Event::Ready { .. });
        [&self.client, &self.agent]
            .iter()
            .all(|end| end.events.iter().any(ready))
    }

    /// Opens a stream with that to cross it.
    pub(crate) fn open(&mut self, up: Vec<u8>, down: Vec<u8>) -> StreamId {
        let id = self.client.session.open(self.now).unwrap();
        let mut load = Load::new(up, down);
        // In basic mode the agent has dialled already.
        load.accepted = self.agent.has(&Event::Opened(id));
        self.loads.insert(id, load);
        id
    }

    /// Hands all that is to cross upwards to the session at once.
    pub(crate) fn queue_upwards(&mut self, id: StreamId) {
        let rest = self.loads.get_mut(&id).unwrap().take_up();
        self.client.session.write(id, rest);
    }

    /// Hands all that is to cross downwards to the session at once.
    pub(crate) fn queue_downwards(&mut self, id: StreamId) {
        let rest = self.loads.get_mut(&id).unwrap().take_down();
        self.agent.session.write(id, rest);
    }

    /// Whether the client has a websocket.
    pub(crate) fn is_attached(&self) -> bool {
        self.attached
    }

    pub(crate) fn act(&mut self, act: Act) {
        match act {
            Act::Cut(told) => {
                self.attached = false;
                self.reach = Reach::Agent;
                self.client.lose_websocket();
                self.agent.path.clear();
                match told {
                    Told::Pause => self.pause_agent(),
                    Told::Nothing => {}
                    Told::Detached => {
                        self.presence = Presence::Away;
                        self.agent.lose_websocket();
                    }
                }
            }
            Act::Attach => {
                self.attached = true;
                self.tokens += 1;
                let token = format!("token-{}", self.tokens);
                self.client.session.attach(&token, self.now);
                self.client.witness.attach(&token);
                self.rouse_agent();
            }
        }
    }

    /// The service tells the agent that the client is away.
    pub(crate) fn pause_agent(&mut self) {
        if self.presence == Presence::Here {
            self.presence = Presence::Paused;
            self.agent.session.pause(self.now);
        }
    }

    /// The agent comes back, or is told that the client has.
    pub(crate) fn rouse_agent(&mut self) {
        match std::mem::replace(&mut self.presence, Presence::Here) {
            Presence::Away => self.agent.session.attach_agent(self.now),
            Presence::Here => {}
            Presence::Paused => {
                let start = service_message(Kind::StartPublication, Bytes::new());
                self.agent.session.handle_frame(start, self.now).unwrap();
            }
        }
    }

    /// The agent's own websocket is lost, and the service says so.
    pub(crate) fn lose_agent(&mut self) {
        self.presence = Presence::Away;
        self.agent.lose_websocket();
        self.client.path.clear();
        self.announce(Kind::PausePublication);
    }

    /// The service sends a message of its own to the client, if that has a websocket.
    pub(crate) fn announce(&mut self, kind: Kind) {
        if self.attached && self.reach != Reach::Nobody {
            let message = service_message(kind, Bytes::new());
            self.client.session.handle_frame(message, self.now).unwrap();
        }
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
            self.client.path.next().filter(|_| self.agent_reads),
            self.agent.path.next(),
            self.script.front().map(|(at, _)| *at),
        ];
        moments.into_iter().flatten().min()
    }

    fn step(&mut self) {
        while let Some((_, act)) = self.script.pop_front_if(|(at, _)| *at <= self.now) {
            self.act(act);
        }
        while self.agent_reads
            && let Some(arrival) = self.client.path.take(self.now)
        {
            self.agent.give(arrival, self.now);
        }
        while let Some(arrival) = self.agent.path.take(self.now) {
            self.client.give(arrival, self.now);
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
        let passes = self.attached && self.presence != Presence::Away && self.reach == Reach::Agent;
        let mut moved = false;
        for (end, rate) in [(&mut self.client, self.network.uplink), (&mut self.agent, None)] {
            while let Some(frame) = end.session.poll_transmit(self.now) {
                moved = true;
                end.witness.saw(&frame, self.now);
                if let Frame::Binary(frame) = frame
                    && passes
                {
                    end.path
                        .launch(frame, &self.network, rate, &mut self.random, self.now);
                }
            }
        }
        moved
    }

    fn write(&mut self) {
        for (id, load) in &mut self.loads {
            load.write_up(*id, &mut self.client.session, &mut self.random);
            load.write_down(*id, &mut self.agent.session, &mut self.random);
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
            if event == Event::Unanswered && self.attached && self.reach != Reach::Nobody {
                self.client.session.handle_pong(self.now);
            }
            self.client.events.push(event);
        }
        while let Some(event) = self.agent.session.poll_event() {
            if let Event::Data(id, bytes) = &event
                && let Some(load) = self.loads.get_mut(id)
            {
                load.up_comes(*id, bytes);
                continue;
            }
            if let Event::Opened(id) = &event
                && let Some(load) = self.loads.get_mut(id)
            {
                assert!(!load.accepted, "stream {id} was opened twice");
                load.accepted = true;
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
            path: Path::default(),
        }
    }

    pub(crate) fn has(&self, event: &Event) -> bool {
        self.events.contains(event)
    }

    fn lose_websocket(&mut self) {
        self.session.detach();
        self.witness.detach();
        self.path.clear();
    }

    fn give(&mut self, arrival: Arrival, now: Instant) {
        match arrival {
            Arrival::Whole { sent, came } => {
                self.witness.gave(&sent);
                self.session.handle_frame(came, now).unwrap();
            }
            Arrival::Damaged(frame) => {
                assert!(self.session.handle_frame(frame, now).is_err(), "damage is taken");
            }
        }
    }
}
