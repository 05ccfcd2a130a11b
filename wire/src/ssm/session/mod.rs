//! One session, either side: handshake, channel and smux as one machine.

mod deliver;
mod event;
mod options;

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

pub use self::event::{End, Event, Frame};
pub use self::options::{AgentOptions, Origin};
use super::channel::{Channel, Role, Stamps};
use super::handshake::{self, Offer};
use super::message::{Flag, Kind, Malformed, Message, PayloadType};
use super::payload::{self, OpenDataChannel};
use super::policy::{Pace, Policy};
use super::version::CLIENT_VERSION;
use crate::smux::{Framing, Mux, StreamId};

/// From the first websocket to HandshakeComplete. The agent gives each of its stages 15 s.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(60);
/// A pause this long may mean that the session has ended unnoticed: ask AWS (ssm.md section 7.4).
const PAUSE_PATIENCE: Duration = Duration::from_secs(45);

/// One session, either side.
pub struct Session {
    role: Role,
    origin: Origin,
    client_id: Uuid,
    channel: Channel,
    stage: Stage,
    framing: Framing,
    /// The text frame that must be the first on a new websocket.
    opening: Option<Frame>,
    /// Messages that steer the session, before any data.
    steering: VecDeque<(PayloadType, Bytes)>,
    events: VecDeque<Event>,
    deadline: Option<Instant>,
    doubted: bool,
    /// Dials that failed and whose stream's FIN has not come.
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
    Running(Mux),
    Ended,
}

impl Session {
    /// The client's side. It does nothing before [`Session::attach`].
    pub fn client(policy: Policy, origin: Origin) -> Self {
        Self::new(Role::Client, policy, origin, Framing::Fitted, Duration::ZERO)
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
            opening: None,
            steering: VecDeque::new(),
            events: VecDeque::new(),
            deadline: None,
            doubted: false,
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
    }

    /// Agent: the service says that the client is away.
    pub fn pause(&mut self, now: Instant) {
        self.channel.pause(now);
    }

    /// Agent: data messages leave at this pace from now on, whatever its policy says.
    pub fn set_pace(&mut self, pace: Pace) {
        self.channel.set_pace(pace);
    }

    /// Takes one binary websocket message. An error means that this message was of no use, and nothing more: it was
    /// not acknowledged, so its sender will send it again.
    pub fn handle_frame(&mut self, frame: Bytes, now: Instant) -> Result<(), Malformed> {
        let message = Message::decode(frame)?;
        message.verify()?;
        let (_, peer) = self.role.kinds();
        match message.kind {
            kind if kind == peer => {
                self.heard(now);
                self.channel.receive(message);
                while let Some(message) = self.channel.poll_delivery() {
                    self.deliver(message, now);
                }
            }
            Kind::Acknowledge => {
                self.heard(now);
                if let Some(number) = payload::acknowledged_number(&message.payload) {
                    self.channel.handle_ack(number, now);
                }
            }
            Kind::ChannelClosed => self.end(End::ChannelClosed(payload::closing_words(&message.payload))),
            Kind::StartPublication => {
                self.heard(now);
                self.channel.peer_is_back(now);
            }
            Kind::PausePublication => {
                if self.channel.paused_since().is_none() && self.channel.is_attached() {
                    self.channel.pause(now);
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
        self.channel.handle_timeout(now);
        // While the far end can't be heard, its silence means nothing: no FIN becomes due.
        if self.channel.is_open()
            && let Stage::Running(mux) = &mut self.stage
        {
            mux.handle_timeout(now);
            self.notice_streams();
        }
    }

    /// Client: opens a stream; `None` before [`Event::Ready`] and after the end.
    pub fn open(&mut self, now: Instant) -> Option<StreamId> {
        self.mux()?.open(now)
    }

    /// Queues bytes on a stream. See [`Session::pending_writes`] for how to bound that.
    pub fn write(&mut self, id: StreamId, bytes: Bytes) {
        if let Some(mux) = self.mux() {
            mux.write(id, bytes);
        }
    }

    /// Returns how many writes of a stream have not wholly left the session's queue.
    pub fn pending_writes(&self, id: StreamId) -> usize {
        match &self.stage {
            Stage::Running(mux) => mux.pending_writes(id),
            Stage::Greeting | Stage::Agreed(_) | Stage::Ended => 0,
        }
    }

    /// Client: the local side will write no more. The far end is told when it has ended itself, or after the grace
    /// time without a byte from it.
    pub fn finish(&mut self, id: StreamId, now: Instant) {
        if let Some(mux) = self.mux() {
            mux.finish(id, now);
        }
    }

    /// Ends a stream in both directions, after what is queued.
    pub fn close(&mut self, id: StreamId) {
        if let Some(mux) = self.mux() {
            mux.close(id);
        }
    }

    /// Ends a stream in both directions; what is queued is dropped.
    pub fn reset(&mut self, id: StreamId) {
        if let Some(mux) = self.mux() {
            mux.reset(id);
        }
    }

    /// Agent: the target of a stream can't be reached.
    pub fn refuse(&mut self, id: StreamId) {
        self.steering
            .push_back((PayloadType::Flag, Flag::ConnectToPortError.payload()));
        self.reset(id);
    }

    /// Client: asks the agent to end the session; `false` where it would not understand, or was asked before (a second
    /// flag blocks the official agent's reader, ssm.md trap 38).
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
            return Some(Frame::Binary(self.channel.send(payload_type, payload, now)));
        }
        let room = self.channel.room(now)?;
        let payload = self.mux()?.poll_bytes(room)?;
        Some(Frame::Binary(self.channel.send(
            PayloadType::Output,
            payload,
            now,
        )))
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
        let mux = match &self.stage {
            Stage::Running(mux) => Some(mux),
            Stage::Greeting | Stage::Agreed(_) => None,
            Stage::Ended => return None,
        };
        let pace = mux
            .filter(|mux| mux.wants_to_send())
            .and_then(|_| self.channel.room_at(now));
        let times = [
            self.deadline,
            self.doubtful_at(),
            self.silent_until,
            self.channel.poll_timeout(),
            mux.filter(|_| self.channel.is_open()).and_then(Mux::poll_timeout),
            pace,
        ];
        times.into_iter().flatten().min()
    }

    /// Returns whether all that was sent has been acknowledged and nothing waits to be sent.
    pub fn is_drained(&self) -> bool {
        let queued = matches!(&self.stage, Stage::Running(mux) if mux.wants_to_send());
        self.channel.is_drained() && self.steering.is_empty() && !queued
    }

    /// Returns the streams there are.
    pub fn streams(&self) -> Vec<StreamId> {
        match &self.stage {
            Stage::Running(mux) => mux.streams().collect(),
            Stage::Greeting | Stage::Agreed(_) | Stage::Ended => Vec::new(),
        }
    }

    fn attached(&mut self, now: Instant) {
        if matches!(self.stage, Stage::Greeting) && self.deadline.is_none() {
            self.deadline = Some(now + HANDSHAKE_DEADLINE);
        }
        self.doubted = false;
        self.channel.attach();
        self.restart_grace(now);
    }

    fn restart_grace(&mut self, now: Instant) {
        if let Some(mux) = self.mux() {
            mux.restart_grace(now);
        }
    }

    fn mux(&mut self) -> Option<&mut Mux> {
        match &mut self.stage {
            Stage::Running(mux) => Some(mux),
            Stage::Greeting | Stage::Agreed(_) | Stage::Ended => None,
        }
    }

    fn doubtful_at(&self) -> Option<Instant> {
        let since = self.channel.paused_since()?;
        (self.role == Role::Client && !self.doubted).then_some(since + PAUSE_PATIENCE)
    }

    /// A frame of the other side came: it is there.
    fn heard(&mut self, now: Instant) {
        if self.channel.paused_since().is_some() {
            self.channel.resume();
            self.restart_grace(now);
            self.doubted = false;
            self.events.push_back(Event::Resumed);
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
