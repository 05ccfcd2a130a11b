//! The one task that owns a session: it moves frames between the websocket and `wire::ssm::Session`, bytes between the
//! session and its streams, and brings a lost websocket back. It does no thinking about the protocol.
//!
//! ```text
//!                 ┌──── lost, doubtful ────┐
//!                 ▼                        │
//!   Resuming ──ResumeSession, websocket──► Attached ──link closed──► goodbye ─► (end)
//!      │                                   │    ▲
//!      └── AWS: the session is gone        │    └ renewed: another websocket, in a quiet moment
//!                                          └── the session ended ─► (end)
//! ```
//!
//! Commands are answered in every phase. Reading the websocket never stops: what a local client does not take waits
//! in its stream up to a limit, beyond which that stream alone is reset.

use std::collections::HashMap;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, trace};
use tunneld_wire::smux::StreamId;
use tunneld_wire::ssm::{End, Session};

use super::channel::{Activity, Channel, Doubt, Lost};
use super::renewal::Renewal;
use super::resume::{Hopeless, Resumed, Upstream};
use super::spur::Spur;
use super::stream::{StreamEnd, pair};
use crate::failure::Failure;
use crate::transport::member::{Ask, Judgement, Report, Reporter, Station, Term};
use crate::transport::pool::Sharing;

/// What a link or stream asks of its driver.
pub(super) enum Command {
    Ask(Ask),
    Write {
        id: StreamId,
        bytes: Bytes,
        permit: OwnedSemaphorePermit,
    },
    Finish(StreamId),
    Drop(StreamId),
}

impl From<Ask> for Command {
    fn from(ask: Ask) -> Self {
        Self::Ask(ask)
    }
}

/// Owner of one session.
pub(super) struct Driver {
    pub(super) session: Session,
    pub(super) phase: Phase,
    pub(super) upstream: Upstream,
    /// Where AWS ends it after a time that is known.
    pub(super) term: Option<Term>,
    pub(super) reporter: Reporter,
    /// Bounded by its senders: a stream holds a permit for every write, and opens come one for each connection.
    pub(super) commands: mpsc::UnboundedReceiver<Command>,
    /// For new streams; commands of streams come from here.
    sender: mpsc::WeakUnboundedSender<Command>,
    pub(super) streams: HashMap<StreamId, StreamEnd>,
    /// Whether it carries many streams; `None` before it is ready.
    pub(super) sharing: Option<Sharing>,
    goodbye: CancellationToken,
    /// When the last frame came.
    pub(super) heard: Option<Instant>,
    /// How many frames the present websocket has carried.
    pub(super) frames: usize,
    /// AWS said that the agent is away, for long enough to doubt that it comes back.
    pub(super) doubted: bool,
    /// How long to wait before resuming: grows while websockets open and carry nothing.
    pub(super) calm: Duration,
    /// Hurries an attempt to resume.
    pub(super) spur: Spur,
}

pub(super) enum Phase {
    Attached {
        channel: Box<Channel>,
        plan: Renewal,
        /// Another websocket on its way, to replace this one.
        renewed: Option<Renewing>,
    },
    Resuming(Resuming),
    Over,
}

/// A websocket on its way, for a session that has none.
type Resuming = Pin<Box<dyn Future<Output = Result<Resumed, Hopeless>> + Send>>;
/// A websocket on its way, for a session that has one.
type Renewing = Pin<Box<dyn Future<Output = Result<Resumed, Failure>> + Send>>;

/// Why driving stops.
pub(super) enum Stop {
    /// Our side closes the link.
    Goodbye,
    /// The session has ended.
    Ended(End),
    /// The session can't be resumed.
    Hopeless(Hopeless),
}

enum Wake {
    Activity(Result<Activity, Lost>),
    Resumed(Result<Resumed, Hopeless>),
    Renewed(Result<Resumed, Failure>),
    Command(Command),
    Timeout,
    Goodbye,
}

impl Driver {
    pub(super) fn new(
        session: Session,
        first: Resumed,
        upstream: Upstream,
        term: Option<Term>,
        station: Station<Command>,
    ) -> Self {
        let Station {
            // AWS has no bound on sessions that a spare one could take from others.
            need: _,
            reporter,
            commands: (sender, commands),
            goodbye,
        } = station;
        let mut driver = Self {
            session,
            phase: Phase::Over,
            upstream,
            term,
            reporter,
            sender,
            commands,
            streams: HashMap::new(),
            sharing: None,
            goodbye,
            heard: None,
            frames: 0,
            doubted: false,
            calm: Duration::ZERO,
            spur: Spur::default(),
        };
        driver.attach(first);
        driver
    }

    /// Drives the session to its end, and makes sure that AWS knows of it.
    pub(super) async fn run(mut self) {
        let stop = self.drive().await;
        self.finish(stop).await;
    }

    async fn drive(&mut self) -> Stop {
        loop {
            if let Some(end) = self.handle_events() {
                return Stop::Ended(end);
            }
            // One reading for both, as `Session::poll_timeout` asks.
            let now = Instant::now().into_std();
            let full = self.transmit(now);
            self.upstream.remember(self.session.payloads());
            match self.wait(full, now).await {
                Wake::Activity(activity) => self.handle_activity(activity),
                Wake::Resumed(Ok(resumed)) => self.handle_resumed(resumed),
                Wake::Resumed(Err(hopeless)) => return Stop::Hopeless(hopeless),
                Wake::Renewed(renewed) => self.handle_renewed(renewed),
                Wake::Command(command) => self.handle_commands(command),
                Wake::Timeout => {
                    self.session.handle_timeout(Instant::now().into_std());
                    self.renew_if_due();
                }
                Wake::Goodbye => return Stop::Goodbye,
            }
        }
    }

    async fn wait(&mut self, full: bool, now: std::time::Instant) -> Wake {
        let due = self.session.poll_timeout(now).map(Instant::from_std);
        let (activity, resumed, renewed, look) = match &mut self.phase {
            Phase::Attached {
                channel,
                plan,
                renewed,
            } => (Some(channel), None, renewed.as_mut(), plan.poll_timeout()),
            Phase::Resuming(resumed) => (None, Some(resumed), None, None),
            Phase::Over => (None, None, None, None),
        };
        let due = due.into_iter().chain(look).min();
        tokio::select! {
            () = self.goodbye.cancelled() => Wake::Goodbye,
            Some(activity) = of(activity.map(|channel| channel.activity(full))) => Wake::Activity(activity),
            Some(resumed) = of(resumed) => Wake::Resumed(resumed),
            Some(renewed) = of(renewed) => Wake::Renewed(renewed),
            Some(command) = self.commands.recv() => Wake::Command(command),
            Some(()) = of(due.map(sleep_until)) => Wake::Timeout,
        }
    }

    /// Sends what the session has to send; returns whether the websocket's queue stopped it.
    pub(super) fn transmit(&mut self, now: std::time::Instant) -> bool {
        let Phase::Attached { channel, .. } = &mut self.phase else {
            return false;
        };
        let full = loop {
            if !channel.has_room() {
                break true;
            }
            let Some(frame) = self.session.poll_transmit(now) else {
                break false;
            };
            trace!(?frame, "send");
            channel.send(frame);
        };
        let writing = self.streams.iter_mut();
        for (id, stream) in writing.filter(|(_, stream)| !stream.held.is_empty()) {
            let pending = self.session.pending_writes(*id);
            while stream.held.len() > pending {
                stream.held.pop_front();
            }
        }
        full
    }

    /// Handles what came of the websocket, and what else is there already, so that one write answers all of it.
    fn handle_activity(&mut self, first: Result<Activity, Lost>) {
        self.handle_one(first);
        self.take_what_has_come();
    }

    pub(super) fn take_what_has_come(&mut self) {
        // AWS closes the websocket of a session that has ended. That is no loss.
        while !self.session.has_ended()
            && let Phase::Attached { channel, .. } = &mut self.phase
            && let Some(activity) = channel.next_at_once()
        {
            self.handle_one(activity);
        }
    }

    fn handle_one(&mut self, activity: Result<Activity, Lost>) {
        match activity {
            Ok(Activity::Frame(frame)) => self.handle_frame(frame),
            Ok(Activity::Pong) => self.session.handle_pong(Instant::now().into_std()),
            Ok(Activity::Nothing) => {}
            Err(lost) => self.handle_loss(lost),
        }
    }

    pub(super) fn handle_frame(&mut self, frame: Bytes) {
        trace!(length = frame.len(), "receive");
        let now = Instant::now();
        self.heard = Some(now);
        self.frames += 1;
        if let Err(malformed) = self.session.handle_frame(frame, now.into_std()) {
            debug!(%malformed, "ignored a frame");
        }
    }

    /// Handles a command and those that wait behind it, so that their bytes can share messages.
    fn handle_commands(&mut self, first: Command) {
        let mut next = Some(first);
        while let Some(command) = next {
            self.handle_command(command);
            next = self.commands.try_recv().ok();
        }
    }

    pub(super) fn handle_command(&mut self, command: Command) {
        let now = Instant::now().into_std();
        match command {
            Command::Ask(Ask::Open { seat, client, answer }) => {
                let opened = self.session.open(now).zip(self.sender.upgrade());
                // Without an answer the link looks for another session.
                let Some((id, sender)) = opened else { return };
                let ends_at = self.term.map(|term| term.ends_at);
                let share = self.upstream.share(&client);
                let (stream, end) = pair(id, sender, share, client, seat, ends_at);
                self.streams.insert(id, end);
                // A connection that left meanwhile drops the stream, which sends `Command::Drop`.
                let _ = answer.send(Ok(Box::new(stream)));
            }
            Command::Write { id, bytes, permit } => {
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.held.push_back(permit);
                    self.session.write(id, bytes);
                }
            }
            Command::Finish(id) => {
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.finished = true;
                    self.session.finish(id, now);
                }
            }
            Command::Drop(id) => match self.streams.remove(&id) {
                // A client that sent its last bytes and left: the target still gets them.
                Some(stream) if stream.finished => self.session.close(id),
                Some(_) => self.session.reset(id),
                None => {}
            },
            Command::Ask(Ask::Probe) => match &mut self.phase {
                Phase::Attached { channel, .. } => channel.probe(Doubt::Network),
                Phase::Resuming(_) => self.spur.network(),
                Phase::Over => {}
            },
            Command::Ask(Ask::Retry) => self.spur.login(),
        }
    }

    /// Tells the keeper whether the session takes new streams, once it is known to be ready.
    pub(super) fn judge(&self, judgement: Judgement) {
        if self.sharing.is_some() {
            self.reporter.tell(Report::Judged(judgement));
        }
    }
}

/// Waits for a future that may not be there: `None` at once where it is not, which disables its branch.
async fn of<F: Future>(future: Option<F>) -> Option<F::Output> {
    match future {
        Some(future) => Some(future.await),
        None => None,
    }
}
