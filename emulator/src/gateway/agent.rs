//! The agent of one session: the far end of the client's channel, with streams to the target behind it.
//!
//! While targets have not taken what is before them, up to 4 MiB for the whole session, the agent takes no frame of the
//! client, so nothing is acknowledged for any stream. The official agent stops in the same way. The service goes on
//! reading the client meanwhile: what it reads is held here, and beyond [`HELD`] it is lost.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;
use tracing::debug;
use tunneld_wire::smux::Framing;
use tunneld_wire::ssm::message::PayloadType;
use tunneld_wire::ssm::{AgentOptions, Digests, Event, Frame, Origin, Pace, Policy, Session};

use super::message::since_1970;
use super::sketch::{Sort, sort};
use super::streams::{AtTarget, News, Streams};
use super::vigil::Vigil;
use super::{AgentKind, SessionSpec};
use crate::conditions::{AgentConditions, AgentTimer, Conditions};

/// Frames of the client that are held while targets are full: a client's window some times over. What the service does
/// beyond is not known; here they are lost, and the client, which has no acknowledgement, sends them again.
const HELD: usize = 16 << 20;
/// How long the agent is silent after HandshakeComplete: the official client needs about a millisecond (ssm.md
/// section 6.7), and this much where it shares a busy machine.
const QUIET: Duration = Duration::from_millis(50);
/// How long the agent waits for its own messages to be acknowledged once it was asked to end.
pub(super) const DRAIN: Duration = Duration::from_secs(2);
/// A payload type and a flag that no agent has yet.
const UNKNOWN: u32 = 99;

/// How a session ended.
pub(super) struct End {
    /// What is remembered of it.
    pub(super) cause: String,
    /// What the client is told.
    pub(super) words: String,
}

/// One session's agent.
pub(super) struct Agent {
    kind: AgentKind,
    session: Session,
    streams: Streams,
    timer: AgentTimer,
    oddities: Oddities,
    vigil: Option<Vigil>,
    held: VecDeque<Bytes>,
    held_bytes: usize,
    /// Data may flow.
    is_ready: bool,
    /// The client asked for the end.
    ending: Option<Instant>,
    end: Option<End>,
}

/// Whether the agent says things that clients don't know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Oddities {
    None,
    /// As soon as data may flow.
    Wanted,
    Said,
}

impl Agent {
    pub(super) fn new(spec: SessionSpec, conditions: watch::Receiver<Arc<Conditions>>, now: Instant) -> Self {
        let (policy, framing) = match spec.agent {
            AgentKind::Stock | AgentKind::Unpaced => (Policy::stock_agent(), Framing::Spanning),
            AgentKind::Fast => (Policy::fast_agent(), Framing::Fitted),
        };
        // Whoever talks to the default agent learns of a mistake; the others are as quick as the official one.
        let digests = match spec.agent {
            AgentKind::Stock => Digests::Checked,
            AgentKind::Unpaced | AgentKind::Fast => Digests::Trusted,
        };
        let options = AgentOptions {
            version: spec.agent_version,
            properties: spec.properties,
            policy,
            framing,
            digests,
            quiet: QUIET,
        };
        let origin = Origin {
            seed: fastrand::u64(..),
            began: now,
            began_unix: since_1970(),
            half_close_grace: Duration::ZERO,
        };
        let mut session = Session::agent(options, origin);
        session.set_pace(spec.agent.pace());
        Self {
            kind: spec.agent,
            session,
            streams: Streams::new(spec.address, conditions),
            timer: AgentTimer::Fine,
            oddities: Oddities::None,
            vigil: None,
            held: VecDeque::new(),
            held_bytes: 0,
            is_ready: false,
            ending: None,
            end: None,
        }
    }

    /// Changes how the agent behaves; what targets do they read themselves.
    pub(super) fn set(&mut self, conditions: &AgentConditions) {
        if self.timer != conditions.timer {
            self.timer = conditions.timer;
            self.session.set_pace(match self.timer {
                AgentTimer::Fine => self.kind.pace(),
                AgentTimer::Coarse => Pace::coarse_timer(),
            });
        }
        self.oddities = match (self.oddities, conditions.oddities) {
            (Oddities::Said, _) => Oddities::Said,
            (Oddities::None | Oddities::Wanted, true) => Oddities::Wanted,
            (Oddities::None | Oddities::Wanted, false) => Oddities::None,
        };
        self.say_oddities();
    }

    pub(super) fn kind(&self) -> AgentKind {
        self.kind
    }

    /// The agent can be heard, or is heard again.
    pub(super) fn attach(&mut self, now: Instant) {
        self.session.attach_agent(now);
    }

    /// The agent is paused: it numbers and sends nothing.
    pub(super) fn detach(&mut self) {
        self.session.detach();
    }

    /// Takes a frame of the client, at once or when the targets have taken enough.
    pub(super) fn handle_frame(&mut self, frame: Bytes, now: Instant) {
        if self.held.is_empty() && !self.streams.are_full() {
            self.take(frame, now);
        } else if self.held_bytes + frame.len() <= HELD {
            self.held_bytes += frame.len();
            self.held.push_back(frame);
        }
    }

    /// Returns the next frame to send.
    pub(super) fn poll_transmit(&mut self, now: Instant) -> Option<Bytes> {
        match self.session.poll_transmit(now) {
            Some(Frame::Binary(frame)) => Some(frame),
            // Only clients send text.
            Some(Frame::Text(_)) | None => None,
        }
    }

    /// Lets targets be read on, after frames were sent.
    pub(super) fn return_permits(&mut self) {
        let session = &self.session;
        self.streams.return_permits(|id| session.pending_writes(id));
    }

    /// Returns how the session ended, once it has.
    pub(super) fn poll_end(&mut self, now: Instant) -> Option<End> {
        let is_drained = self
            .ending
            .is_some_and(|deadline| deadline <= now || self.session.is_drained());
        if is_drained && self.end.is_none() {
            return Some(End {
                cause: "ended by its client".to_owned(),
                words: String::new(),
            });
        }
        self.end.take()
    }

    /// Waits for something to happen at a target.
    pub(super) async fn at_target(&mut self) -> AtTarget {
        self.streams.at_target().await
    }

    pub(super) fn handle_target(&mut self, happened: AtTarget, now: Instant) {
        match self.streams.handle_target(happened) {
            News::None => {}
            News::Refused(id) => self.session.refuse(id),
            News::Said(id, bytes) => self.session.write(id, bytes),
            News::Closed(id) => self.session.close(id),
        }
        self.handle_events(now);
        while !self.streams.are_full()
            && let Some(frame) = self.held.pop_front()
        {
            self.held_bytes -= frame.len();
            self.take(frame, now);
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.session.handle_timeout(now);
        self.handle_events(now);
        if self.vigil.as_mut().is_some_and(|vigil| vigil.handle_timeout(now)) {
            self.end = Some(End {
                cause: "its agent heard nothing from its client".to_owned(),
                words: String::new(),
            });
        }
    }

    /// Returns when [`Agent::handle_timeout`] wants to be called, as `Session::poll_timeout`.
    pub(super) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let vigil = self.vigil.as_ref().map(Vigil::poll_timeout);
        let times = [self.session.poll_timeout(now), self.ending, vigil];
        times.into_iter().flatten().min()
    }

    fn take(&mut self, frame: Bytes, now: Instant) {
        if let Some(vigil) = &mut self.vigil
            && sort(&frame) == Sort::Input
        {
            vigil.hear();
        }
        if let Err(malformed) = self.session.handle_frame(frame, now) {
            debug!(%malformed, "ignored a frame of the client");
        }
        self.handle_events(now);
    }

    fn handle_events(&mut self, now: Instant) {
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Ready {
                    agent_version,
                    multiplexes,
                    ..
                } => {
                    self.is_ready = true;
                    self.vigil = Vigil::begin(&agent_version, now).filter(|_| multiplexes);
                    self.say_oddities();
                }
                Event::Opened(id) => self.streams.open(id),
                Event::Data(id, bytes) => self.streams.write(id, bytes),
                Event::Finished(id) | Event::Abandoned(id) => self.streams.finish(id),
                Event::Terminate => self.ending = Some(now + DRAIN),
                Event::Ended(end) => {
                    self.end = Some(End {
                        cause: end.to_string(),
                        words: end.to_string(),
                    });
                }
                Event::Refused(_)
                | Event::Paused
                | Event::Resumed
                | Event::Doubtful
                | Event::Unanswered
                | Event::Stalled(_)
                | Event::Flowing
                | Event::StallExpired(_) => {}
            }
        }
    }

    /// Says what clients don't know, once, if that is wanted and data may flow.
    fn say_oddities(&mut self) {
        if self.is_ready && self.oddities == Oddities::Wanted {
            self.oddities = Oddities::Said;
            let flag = Bytes::copy_from_slice(&UNKNOWN.to_be_bytes());
            self.session.say(PayloadType::Flag, flag);
            self.session
                .say(PayloadType::Other(UNKNOWN), Bytes::from_static(b"news"));
        }
    }
}

impl AgentKind {
    fn pace(self) -> Pace {
        match self {
            Self::Stock => Pace::stock_agent(),
            Self::Unpaced | Self::Fast => Pace::unlimited(),
        }
    }
}
