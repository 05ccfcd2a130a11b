//! One session, either side: handshake, channel and smux as one machine.

mod carrier;
mod deliver;
mod event;
mod hole;
mod options;
mod silence;
mod stall;
mod streams;

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

use self::carrier::Carrier;
pub use self::event::{End, Event, Frame};
use self::hole::Hole;
pub use self::options::{AgentOptions, ClientOptions, Digests, Origin};
use self::stall::Stall;
use super::channel::{Channel, Duplicates, Role, Stamps};
use super::handshake::{self, Offer};
use super::message::{Draft, Flag, Kind, Malformed, Message, PayloadType};
use super::payload::{self, OpenDataChannel};
use super::policy::{Pace, Policy};
use super::probe::PayloadProbe;
use super::version::{CLIENT_VERSION, Version};
use crate::smux::Framing;

/// From the first websocket to HandshakeComplete. The agent gives each of its stages 15 s.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(60);

/// One session, either side.
pub struct Session {
    role: Role,
    origin: Origin,
    client_id: Uuid,
    channel: Channel,
    stage: Stage,
    framing: Framing,
    digests: Digests,
    /// The text frame that must be the first on a new websocket.
    opening: Option<Frame>,
    /// Messages that steer the session, before any data.
    steering: VecDeque<(PayloadType, Bytes)>,
    events: VecDeque<Event>,
    deadline: Option<Instant>,
    doubted: bool,
    /// Client: the service said that the agent is away, and nothing has been heard from it since.
    away: bool,
    hole: Hole,
    stall: Option<Stall>,
    keep_alive: Option<Duration>,
    /// Agent: what it says of itself.
    agent_version: String,
    /// Client: dials that failed and whose stream's FIN has not come; never more than there are streams that it can be.
    refusals: usize,
    can_terminate: bool,
    quiet: Duration,
    silent_until: Option<Instant>,
}

#[derive(Debug)]
enum Stage {
    /// Waiting for HandshakeRequest (client) or HandshakeResponse (agent).
    Greeting,
    /// Client: waiting for HandshakeComplete.
    Agreed(Offer),
    Running(Carrier),
    Ended,
}

impl Session {
    /// The client's side. It does nothing before [`Session::attach`].
    pub fn client(options: ClientOptions, origin: Origin) -> Self {
        let mut session = Self::new(
            Role::Client,
            options.policy,
            origin,
            Framing::Fitted,
            Duration::ZERO,
        );
        session.stall = Some(Stall::new(options.stall_timeout));
        session.keep_alive = options.keep_alive;
        session
    }

    /// The agent's side.
    pub fn agent(options: AgentOptions, origin: Origin) -> Self {
        let mut session = Self::new(
            Role::Agent,
            options.policy,
            origin,
            options.framing,
            options.quiet,
        );
        let request = handshake::request(&options.version, &options.properties);
        session
            .steering
            .push_back((PayloadType::HandshakeRequest, request));
        if Version::parse(&options.version)
            .is_some_and(|version| version < Version::AGENT_ACKNOWLEDGES_DUPLICATES)
        {
            session.channel.treat_duplicates(Duplicates::Ignored);
        }
        session.agent_version = options.version;
        session.digests = options.digests;
        session
    }

    fn new(role: Role, policy: Policy, origin: Origin, framing: Framing, quiet: Duration) -> Self {
        let mut stamps = Stamps::new(origin.seed, origin.began, origin.began_unix);
        let client_id = stamps.id();
        Self {
            role,
            origin,
            client_id,
            channel: Channel::new(role, policy, stamps),
            stage: Stage::Greeting,
            framing,
            digests: Digests::Checked,
            opening: None,
            steering: VecDeque::new(),
            events: VecDeque::new(),
            deadline: None,
            doubted: false,
            away: false,
            hole: Hole::default(),
            stall: None,
            keep_alive: None,
            agent_version: String::new(),
            refusals: 0,
            can_terminate: false,
            quiet,
            silent_until: None,
        }
    }

    /// Client: there is a websocket, the first or a later one, and a fresh token for it. The text frame with the token
    /// is what [`Session::poll_transmit`] gives first.
    pub fn attach(&mut self, token: &str, now: Instant) {
        let opening = OpenDataChannel {
            message_schema_version: "1.0".to_owned(),
            request_id: self.channel.stamps().id(),
            token_value: token.to_owned(),
            client_id: self.client_id,
            client_version: CLIENT_VERSION.to_owned(),
        };
        // An empty text would be the only sign of a failure, and writing strings and ids can't fail.
        self.opening = Some(Frame::Text(serde_json::to_string(&opening).unwrap_or_default()));
        self.attached(now);
    }

    /// Agent: the client's channel is there.
    pub fn attach_agent(&mut self, now: Instant) {
        self.attached(now);
    }

    /// The websocket is gone. Streams live on; what they write waits.
    pub fn detach(&mut self) {
        self.opening = None;
        self.channel.detach();
        self.notice_life();
    }

    /// Agent: the service says that the client is away.
    pub fn pause(&mut self, now: Instant) {
        self.channel.pause(now);
    }

    /// Agent: data messages leave at this pace from now on, whatever its policy says.
    pub fn set_pace(&mut self, pace: Pace) {
        self.channel.set_pace(pace);
    }

    /// Agent: sends a data message that belongs to no stream. Newer agents may have payload types and flags that clients
    /// don't know.
    pub fn say(&mut self, payload_type: PayloadType, payload: Bytes) {
        self.steering.push_back((payload_type, payload));
    }

    /// Takes one binary websocket message. An error means that this message was of no use, and nothing more: it was
    /// not acknowledged, so its sender will send it again.
    pub fn handle_frame(&mut self, frame: Bytes, now: Instant) -> Result<(), Malformed> {
        let message = Message::decode(frame)?;
        if self.digests == Digests::Checked {
            message.verify()?;
        }
        let (_, peer) = self.role.kinds();
        match message.kind {
            kind if kind == peer => {
                self.heard(now);
                self.channel.receive(message);
                self.look_at_hole(now);
                while let Some(message) = self.channel.poll_delivery() {
                    self.deliver(message, now);
                }
            }
            Kind::Acknowledge => {
                self.heard(now);
                if let Some(number) = payload::acknowledged_number(&message.payload) {
                    self.channel.handle_ack(number, now);
                    self.notice_life();
                }
            }
            Kind::ChannelClosed => {
                self.can_terminate = false;
                self.end(End::ChannelClosed(payload::closing_words(&message.payload)));
            }
            Kind::StartPublication => {
                self.heard(now);
                self.channel.peer_is_back(now);
            }
            Kind::PausePublication => {
                if self.channel.paused_since().is_none() && self.channel.is_attached() {
                    self.channel.pause(now);
                    self.notice_life();
                    self.away = true;
                    self.events.push_back(Event::Paused);
                }
            }
            Kind::InputStreamData | Kind::OutputStreamData | Kind::AgentSessionState => {}
        }
        Ok(())
    }

    /// A moment has come that [`Session::poll_timeout`] named.
    pub fn handle_timeout(&mut self, now: Instant) {
        if matches!(self.stage, Stage::Ended) {
            return;
        }
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.end(End::HandshakeTimeout);
        }
        if self.doubtful_at().is_some_and(|at| at <= now) {
            self.doubted = true;
            self.events.push_back(Event::Doubtful);
        }
        if self.silent_until.is_some_and(|until| until <= now) {
            self.silent_until = None;
        }
        let waiting = self.waiting_since();
        let stalled = self.stall.as_mut();
        let notice = stalled.and_then(|stall| stall.handle_timeout(waiting, now));
        self.notice_stall(notice);
        self.channel.handle_timeout(now);
        // While the far end can't be heard, its silence means nothing: no FIN becomes due.
        if self.channel.is_open()
            && let Stage::Running(carrier) = &mut self.stage
        {
            carrier.handle_timeout(now);
            if self.channel.needs_witness() {
                carrier.sign_of_life();
            }
            self.notice_streams();
        }
    }

    /// The websocket has answered a ping.
    pub fn handle_pong(&mut self, now: Instant) {
        let notice = self.stall.as_mut().and_then(|stall| stall.handle_pong(now));
        self.notice_stall(notice);
    }

    /// Client: asks the agent to end the session; `false` where it would not understand, has ended it, or was asked
    /// before (a second flag blocks the official agent's reader, ssm.md trap 38).
    pub fn terminate(&mut self) -> bool {
        if !std::mem::take(&mut self.can_terminate) {
            return false;
        }
        self.steering
            .push_back((PayloadType::Flag, Flag::TerminateSession.payload()));
        true
    }

    /// Returns the next websocket message to send.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Frame> {
        if let Some(opening) = self.opening.take() {
            return Some(opening);
        }
        if self.silent_until.is_some_and(|until| until > now) {
            return None;
        }
        if let Some(frame) = self.channel.poll_transmit(now) {
            return Some(Frame::Binary(frame));
        }
        if self.channel.is_attached()
            && let Some((payload_type, payload)) = self.steering.pop_front()
        {
            if payload_type == PayloadType::HandshakeComplete && !self.quiet.is_zero() {
                self.silent_until = Some(now + self.quiet);
            }
            let mut draft = Draft::with_room(payload.len());
            draft.payload().extend_from_slice(&payload);
            return Some(Frame::Binary(self.channel.send(payload_type, draft, now)));
        }
        let room = self.channel.room(now)?;
        let frame = self.poll_trial(now).or_else(|| self.poll_data(room, now));
        frame.map(Frame::Binary)
    }

    /// Returns the next thing that happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Returns when [`Session::handle_timeout`] wants to be called, or [`Session::poll_transmit`] has more to give.
    ///
    /// `now` is that of the last `poll_transmit`, with nothing done to the session in between: what pacing held back
    /// at that moment has its time here. A later `now` would find it due, and name no time for it.
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let carrier = match &self.stage {
            Stage::Running(carrier) => Some(carrier),
            Stage::Greeting | Stage::Agreed(_) => None,
            Stage::Ended => return None,
        };
        let pace = carrier
            .filter(|carrier| carrier.wants_to_send())
            .and_then(|_| self.channel.room_at(now));
        let times = [
            self.deadline,
            self.doubtful_at(),
            self.silent_until,
            self.channel.poll_timeout(),
            self.channel.again_at(now),
            carrier
                .filter(|_| self.channel.is_open())
                .and_then(Carrier::poll_timeout),
            self.stall
                .as_ref()
                .and_then(|stall| stall.poll_timeout(self.waiting_since())),
            pace,
        ];
        times.into_iter().flatten().min()
    }

    /// Returns whether the session has ended: what comes after says nothing more.
    pub fn has_ended(&self) -> bool {
        matches!(self.stage, Stage::Ended)
    }

    /// Returns whether all that was sent has been acknowledged and nothing waits to be sent.
    pub fn is_drained(&self) -> bool {
        let queued = matches!(&self.stage, Stage::Running(carrier) if carrier.wants_to_send());
        self.channel.is_drained() && self.steering.is_empty() && !queued
    }

    fn attached(&mut self, now: Instant) {
        if matches!(self.stage, Stage::Greeting) && self.deadline.is_none() {
            self.deadline = Some(now + HANDSHAKE_DEADLINE);
        }
        self.doubted = false;
        self.hole.restart();
        self.channel.attach(now);
        self.restart_grace(now);
        // Whether the agent is back shows only where it has something to answer.
        if self.away
            && let Some(carrier) = self.carrier()
        {
            carrier.sign_of_life();
        }
    }

    /// Returns whether the service said that the agent is away and nothing has been heard from it since.
    pub fn is_peer_away(&self) -> bool {
        self.away
    }

    /// Returns how large payloads may be, as far as this session has found out.
    pub fn payloads(&self) -> &PayloadProbe {
        self.channel.payloads()
    }

    fn restart_grace(&mut self, now: Instant) {
        if let Some(carrier) = self.carrier() {
            carrier.restart_grace(now);
        }
    }

    fn carrier(&mut self) -> Option<&mut Carrier> {
        match &mut self.stage {
            Stage::Running(carrier) => Some(carrier),
            Stage::Greeting | Stage::Agreed(_) | Stage::Ended => None,
        }
    }

    fn end(&mut self, end: End) {
        if !matches!(self.stage, Stage::Ended) {
            self.stage = Stage::Ended;
            self.deadline = None;
            self.events.push_back(Event::Ended(end));
        }
    }
}

impl fmt::Debug for Session {
    /// What it is and how far it is; frames, which hold the token and the user's bytes, are left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("role", &self.role)
            .field("client_id", &self.client_id)
            .field("stage", &self.stage)
            .finish_non_exhaustive()
    }
}
