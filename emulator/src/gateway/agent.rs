//! The agent of one session: the client's streams on one side, TCP connections to the target on the other.
//!
//! ```text
//!   stream opened ─► waiting to be dialled ─► dialling ─► open ─► gone
//!                       (one at a time)          └─ refused: flag 3, FIN
//! ```
//!
//! What the target has not taken is bounded by [`BUCKET`] for the whole session: beyond it the agent takes no frame of
//! the client, so nothing is acknowledged for any stream. The official agent stops in the same way. The service goes on
//! reading the client meanwhile: what it reads is held here, and beyond [`HELD`] it is lost.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::task::JoinSet;
use tracing::debug;
use tunneld_wire::smux::{Framing, StreamId};
use tunneld_wire::ssm::{AgentOptions, Event, Frame, Origin, Pace, Policy, Session};

use super::message::since_1970;
use super::target::{self, Report};
use super::{AgentKind, SessionSpec};
use crate::conditions::{AgentConditions, AgentTimer, Conditions};

/// The receive buffer of the official agent's smux: 4 MiB a session.
const BUCKET: usize = 4 << 20;
/// Frames of the client that are held while the bucket is full: a client's window some times over. What the service
/// does beyond is not known; here they are lost, and the client, which has no acknowledgement, sends them again.
const HELD: usize = 16 << 20;
/// Reports of targets that wait for the relay.
const REPORTS: usize = 64;
/// How long the agent is silent after HandshakeComplete: the official client needs about a millisecond (ssm.md
/// section 6.7), and this much where it shares a busy machine.
const QUIET: Duration = Duration::from_millis(50);
/// How long the agent waits for its own messages to be acknowledged once it was asked to end.
pub(super) const DRAIN: Duration = Duration::from_secs(2);

type Dial = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>;

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
    address: Option<SocketAddr>,
    session: Session,
    conditions: watch::Receiver<Arc<Conditions>>,
    timer: AgentTimer,
    streams: BTreeMap<StreamId, Stream>,
    undialled: VecDeque<StreamId>,
    dialling: Option<(StreamId, Dial)>,
    /// Bytes that targets have not taken.
    untaken: usize,
    held: VecDeque<Bytes>,
    held_bytes: usize,
    reports: mpsc::Receiver<Report>,
    reporter: mpsc::Sender<Report>,
    targets: JoinSet<()>,
    /// The client asked for the end.
    ending: Option<Instant>,
    end: Option<End>,
}

struct Stream {
    /// Bytes for the target; `None` once the client has ended the stream.
    to_target: Option<mpsc::UnboundedSender<Bytes>>,
    /// The other end, until there is a target.
    waiting: Option<mpsc::UnboundedReceiver<Bytes>>,
    untaken: usize,
    permits: VecDeque<OwnedSemaphorePermit>,
}

/// Something happened at a target.
pub(super) enum AtTarget {
    Dialled(io::Result<TcpStream>),
    Report(Report),
}

impl Agent {
    pub(super) fn new(spec: SessionSpec, conditions: watch::Receiver<Arc<Conditions>>, now: Instant) -> Self {
        let (policy, framing) = match spec.agent {
            AgentKind::Stock | AgentKind::Unpaced => (Policy::stock_agent(), Framing::Spanning),
            AgentKind::Fast => (Policy::fast_agent(), Framing::Fitted),
        };
        let options = AgentOptions {
            version: spec.agent_version,
            properties: spec.properties,
            policy,
            framing,
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
        let (reporter, reports) = mpsc::channel(REPORTS);
        Self {
            kind: spec.agent,
            address: spec.address,
            session,
            conditions,
            timer: AgentTimer::Fine,
            streams: BTreeMap::new(),
            undialled: VecDeque::new(),
            dialling: None,
            untaken: 0,
            held: VecDeque::new(),
            held_bytes: 0,
            reports,
            reporter,
            targets: JoinSet::new(),
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
        if self.held.is_empty() && self.untaken < BUCKET {
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
        let dialled = async {
            match &mut self.dialling {
                Some((_, dial)) => dial.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            dialled = dialled => AtTarget::Dialled(dialled),
            Some(report) = self.reports.recv() => AtTarget::Report(report),
        }
    }

    pub(super) fn handle_target(&mut self, happened: AtTarget, now: Instant) {
        match happened {
            AtTarget::Dialled(dialled) => self.handle_dialled(dialled),
            AtTarget::Report(report) => self.handle_report(report),
        }
        while self.untaken < BUCKET
            && let Some(frame) = self.held.pop_front()
        {
            self.held_bytes -= frame.len();
            self.take(frame, now);
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.session.handle_timeout(now);
        self.handle_events(now);
    }

    /// Returns when [`Agent::handle_timeout`] wants to be called, as `Session::poll_timeout`.
    pub(super) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        self.session
            .poll_timeout(now)
            .into_iter()
            .chain(self.ending)
            .min()
    }

    fn take(&mut self, frame: Bytes, now: Instant) {
        if let Err(malformed) = self.session.handle_frame(frame, now) {
            debug!(%malformed, "ignored a frame of the client");
        }
        self.handle_events(now);
    }

    fn handle_events(&mut self, now: Instant) {
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Opened(id) => self.handle_opened(id),
                Event::Data(id, bytes) => self.handle_data(id, bytes),
                Event::Finished(id) | Event::Abandoned(id) => self.handle_finished(id),
                Event::Terminate => self.ending = Some(now + DRAIN),
                Event::Ended(end) => {
                    self.end = Some(End {
                        cause: end.to_string(),
                        words: end.to_string(),
                    });
                }
                Event::Ready { .. }
                | Event::Refused(_)
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

    fn handle_opened(&mut self, id: StreamId) {
        // Bounded by the bucket.
        let (sender, receiver) = mpsc::unbounded_channel();
        let stream = Stream {
            to_target: Some(sender),
            waiting: Some(receiver),
            untaken: 0,
            permits: VecDeque::new(),
        };
        self.streams.insert(id, stream);
        self.undialled.push_back(id);
        self.dial_next();
    }

    fn handle_data(&mut self, id: StreamId, bytes: Bytes) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let Some(to_target) = &stream.to_target else {
            return;
        };
        let length = bytes.len();
        if to_target.send(bytes).is_ok() {
            stream.untaken += length;
            self.untaken += length;
        }
    }

    /// The client ended a stream: the target gets what is on its way to it, and is then closed fully.
    fn handle_finished(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.to_target = None;
            stream.permits.clear();
        }
    }

    /// Dials are serial, as the official agent's.
    fn dial_next(&mut self) {
        if self.dialling.is_none()
            && let Some(id) = self.undialled.pop_front()
        {
            let dial = target::dial(self.address, self.conditions.clone());
            self.dialling = Some((id, Box::pin(dial)));
        }
    }

    fn handle_dialled(&mut self, dialled: io::Result<TcpStream>) {
        let Some((id, _)) = self.dialling.take() else {
            return;
        };
        let waiting = self.streams.get_mut(&id).and_then(|stream| stream.waiting.take());
        match (dialled, waiting) {
            (Ok(socket), Some(outgoing)) => {
                let (reporter, conditions) = (self.reporter.clone(), self.conditions.clone());
                self.targets
                    .spawn(target::serve(id, socket, outgoing, reporter, conditions));
            }
            (Ok(_), None) => self.forget(id),
            (Err(error), _) => {
                debug!(%error, stream = %id, "the target refused");
                self.session.refuse(id);
                self.forget(id);
            }
        }
        self.dial_next();
    }

    fn handle_report(&mut self, report: Report) {
        match report {
            Report::Read { id, bytes, permit } => {
                if let Some(stream) = self
                    .streams
                    .get_mut(&id)
                    .filter(|stream| stream.to_target.is_some())
                {
                    stream.permits.push_back(permit);
                    self.session.write(id, bytes);
                }
            }
            Report::Wrote { id, length } => {
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.untaken -= length;
                    self.untaken -= length;
                }
            }
            Report::Closed(id) => {
                self.session.close(id);
                self.forget(id);
            }
        }
        // Targets that have ended leave nothing to look at.
        while self.targets.try_join_next().is_some() {}
    }

    fn forget(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.remove(&id) {
            self.untaken -= stream.untaken;
        }
    }

    /// Lets targets be read on as far as the session has sent what they said.
    pub(super) fn return_permits(&mut self) {
        for (id, stream) in &mut self.streams {
            let pending = self.session.pending_writes(*id);
            while stream.permits.len() > pending {
                stream.permits.pop_front();
            }
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
