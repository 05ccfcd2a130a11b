//! The one task that owns a session: it moves frames between the websocket and `wire::ssm::Session`, bytes between the
//! session and its streams, and brings a lost websocket back. It does no thinking about the protocol.
//!
//! ```text
//!                 ┌──── lost, doubtful ────┐
//!                 ▼                        │
//!   Resuming ──ResumeSession, websocket──► Attached ──link closed──► goodbye ─► (end)
//!      │                                   │
//!      └── AWS: the session is gone        └── the session ended ─► (end)
//! ```
//!
//! Commands are answered in every phase. Reading the websocket never stops: what a local client does not take waits
//! in its stream up to a limit, beyond which that stream alone is reset.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, trace};
use tunneld_wire::smux::StreamId;
use tunneld_wire::ssm::{End, Event, Session};

use super::channel::{Activity, Channel, Lost, message};
use super::resume::{FIRST_DELAY, LONGEST_DELAY, Resumed, Upstream};
use super::stream::{RECEIVE_LIMIT, SsmStream, StreamEnd, pair};
use crate::failure::{Failure, Reason, Remedy};
use crate::transport::{Health, Impaired};

/// How long the agent may take to end a session that was asked to end, before AWS is asked (it waits up to 2 s for
/// its own un-acknowledged messages).
const GOODBYE: Duration = Duration::from_secs(2);

/// What a link or stream asks of its driver.
pub(super) enum Command {
    Open(oneshot::Sender<Result<SsmStream, Arc<Failure>>>),
    Write {
        id: StreamId,
        bytes: Bytes,
        permit: OwnedSemaphorePermit,
    },
    Finish(StreamId),
    Drop(StreamId),
    Probe,
}

/// What the rest of the link sees of its driver.
#[derive(Clone)]
pub(super) struct Outside {
    /// Health and details, latest value.
    pub(super) health: watch::Sender<Health>,
    /// The end, once there is one.
    pub(super) closed: watch::Sender<Option<Arc<Failure>>>,
}

/// Owner of one session.
pub(super) struct Driver {
    session: Session,
    phase: Phase,
    upstream: Upstream,
    outside: Outside,
    /// Told once data may flow.
    ready: Option<oneshot::Sender<Result<(), Failure>>>,
    /// Bounded by its senders: a stream holds a permit for every write, and opens come one for each connection.
    commands: mpsc::UnboundedReceiver<Command>,
    /// For new streams; commands of streams come from here.
    sender: mpsc::WeakUnboundedSender<Command>,
    streams: HashMap<StreamId, StreamEnd>,
    goodbye: CancellationToken,
    /// Whether the present websocket has carried a frame.
    heard: bool,
    /// How long to wait before resuming: grows while websockets open and carry nothing.
    calm: Duration,
}

enum Phase {
    Attached(Box<Channel>),
    Resuming(Pin<Box<dyn Future<Output = Result<Resumed, Failure>> + Send>>),
    Over,
}

/// Why driving stops.
enum Stop {
    /// Our side closes the link.
    Goodbye,
    /// The session has ended.
    Ended(End),
    /// The session can't be resumed.
    Gone(Failure),
}

enum Wake {
    Activity(Result<Activity, Lost>),
    Resumed(Result<Resumed, Failure>),
    Command(Command),
    Timeout,
    Goodbye,
}

impl Driver {
    pub(super) fn new(
        session: Session,
        first: Resumed,
        upstream: Upstream,
        outside: Outside,
        ready: oneshot::Sender<Result<(), Failure>>,
        commands: (
            mpsc::WeakUnboundedSender<Command>,
            mpsc::UnboundedReceiver<Command>,
        ),
        goodbye: CancellationToken,
    ) -> Self {
        let mut driver = Self {
            session,
            phase: Phase::Attached(Box::new(Channel::new(*first.socket))),
            upstream,
            outside,
            ready: Some(ready),
            sender: commands.0,
            commands: commands.1,
            streams: HashMap::new(),
            goodbye,
            heard: false,
            calm: Duration::ZERO,
        };
        driver
            .session
            .attach(first.token.reveal(), Instant::now().into_std());
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
            match self.wait(full, now).await {
                Wake::Activity(Ok(Activity::Frame(frame))) => self.handle_frame(frame),
                Wake::Activity(Ok(Activity::Nothing)) => {}
                Wake::Activity(Err(lost)) => self.handle_loss(lost),
                Wake::Resumed(Ok(resumed)) => self.handle_resumed(resumed),
                Wake::Resumed(Err(failure)) => return Stop::Gone(failure),
                Wake::Command(command) => self.handle_commands(command),
                Wake::Timeout => self.session.handle_timeout(Instant::now().into_std()),
                Wake::Goodbye => return Stop::Goodbye,
            }
        }
    }

    async fn wait(&mut self, full: bool, now: std::time::Instant) -> Wake {
        let timeout = self.session.poll_timeout(now).map(Instant::from_std);
        let (activity, resumed) = match &mut self.phase {
            Phase::Attached(channel) => (Some(channel), None),
            Phase::Resuming(resumed) => (None, Some(resumed)),
            Phase::Over => (None, None),
        };
        tokio::select! {
            () = self.goodbye.cancelled() => Wake::Goodbye,
            Some(activity) = of(activity.map(|channel| channel.activity(full))) => Wake::Activity(activity),
            Some(resumed) = of(resumed) => Wake::Resumed(resumed),
            Some(command) = self.commands.recv() => Wake::Command(command),
            Some(()) = of(timeout.map(sleep_until)) => Wake::Timeout,
        }
    }

    /// Sends what the session has to send; returns whether the websocket's queue stopped it.
    fn transmit(&mut self, now: std::time::Instant) -> bool {
        let Phase::Attached(channel) = &self.phase else {
            return false;
        };
        let full = loop {
            let Some(room) = channel.room() else { break true };
            let Some(frame) = self.session.poll_transmit(now) else {
                break false;
            };
            trace!(?frame, "send");
            room.send(message(frame));
        };
        for (id, stream) in &mut self.streams {
            let pending = self.session.pending_writes(*id);
            while stream.held.len() > pending {
                stream.held.pop_front();
            }
        }
        full
    }

    fn handle_frame(&mut self, frame: Bytes) {
        trace!(length = frame.len(), "receive");
        self.heard = true;
        if let Err(malformed) = self.session.handle_frame(frame, Instant::now().into_std()) {
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

    fn handle_command(&mut self, command: Command) {
        let now = Instant::now().into_std();
        match command {
            Command::Open(answer) => {
                let opened = self.open(now);
                // A connection that left meanwhile drops the stream, which sends `Command::Drop`.
                let _ = answer.send(opened);
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
            Command::Probe => {
                match &mut self.phase {
                    Phase::Attached(channel) => channel.probe(),
                    // The attempt under way may wait for a network that is gone.
                    Phase::Resuming(_) => self.resume(Duration::ZERO),
                    Phase::Over => {}
                }
            }
        }
    }

    fn open(&mut self, now: std::time::Instant) -> Result<SsmStream, Arc<Failure>> {
        let id = self.session.open(now).zip(self.sender.upgrade());
        let Some((id, sender)) = id else {
            let failure = Failure::new(
                Reason::Unreachable,
                Remedy::Retry,
                "the SSM session takes no more streams",
            );
            return Err(Arc::new(failure));
        };
        let (stream, end) = pair(id, sender);
        self.streams.insert(id, end);
        Ok(stream)
    }

    /// Acts on what happened in the session; returns its end, if that is what happened.
    fn handle_events(&mut self) -> Option<End> {
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Ready {
                    agent_version,
                    customer_message,
                    multiplexes: _,
                } => self.become_ready(agent_version, &customer_message),
                Event::Data(id, bytes) => self.deliver(id, bytes),
                Event::Finished(id) => {
                    if let Some(stream) = self.streams.remove(&id) {
                        stream.end();
                    }
                }
                Event::Abandoned(id) => {
                    if let Some(stream) = self.streams.remove(&id) {
                        let doing = "the target did not answer in time after the client had ended its half";
                        stream.fail(Arc::new(
                            Failure::new(Reason::Unreachable, Remedy::Retry, doing).of_stream(),
                        ));
                    }
                }
                Event::Refused(id) => {
                    if let Some(stream) = self.streams.remove(&id) {
                        stream.fail(Arc::new(self.upstream.refused()));
                    }
                }
                Event::Paused => self.impair("AWS says that the SSM agent is away"),
                Event::Resumed => self.recover(),
                Event::Doubtful => self.handle_loss(Lost::Paused),
                Event::Ended(end) => return Some(end),
                // Streams are opened and sessions terminated by our side alone.
                Event::Opened(_)
                | Event::Terminate
                | Event::Unanswered
                | Event::Stalled(_)
                | Event::Flowing
                | Event::StallExpired(_) => {}
            }
        }
        None
    }

    fn become_ready(&mut self, agent_version: String, customer_message: &str) {
        if !customer_message.is_empty() {
            info!(words = ?customer_message, "the session has a message");
        }
        debug!(%agent_version, "session ready");
        self.outside
            .health
            .send_modify(|health| health.details.agent_version = agent_version);
        if let Some(ready) = self.ready.take() {
            // Whoever waited is gone: then the link was dropped, and `goodbye` is on the way.
            let _ = ready.send(Ok(()));
        }
    }

    fn deliver(&mut self, id: StreamId, bytes: Bytes) {
        let Some(stream) = self.streams.get(&id) else {
            return;
        };
        if stream.deliver(bytes) {
            return;
        }
        self.session.reset(id);
        if let Some(stream) = self.streams.remove(&id) {
            let limit = RECEIVE_LIMIT >> 20;
            let doing =
                format!("the local client left more than {limit} MiB unread, its connection was reset");
            stream.fail(Arc::new(
                Failure::new(Reason::Unreachable, Remedy::Retry, doing).of_stream(),
            ));
        }
    }

    fn handle_loss(&mut self, lost: Lost) {
        self.session.detach();
        let cause = Failure::new(
            Reason::Unreachable,
            Remedy::Retry,
            "the SSM session lost its websocket",
        )
        .because(lost);
        info!(
            cause = cause.in_one_line(),
            session = self.upstream.session_id(),
            "resuming the session"
        );
        self.set_impaired(Arc::new(cause));
        self.calm = match std::mem::take(&mut self.heard) {
            true => Duration::ZERO,
            false => (self.calm * 2).clamp(FIRST_DELAY, LONGEST_DELAY),
        };
        self.resume(self.calm);
    }

    fn resume(&mut self, delay: Duration) {
        let resumed = self.upstream.clone().resume(self.outside.clone(), delay);
        self.phase = Phase::Resuming(Box::pin(resumed));
    }

    fn handle_resumed(&mut self, resumed: Resumed) {
        self.session
            .attach(resumed.token.reveal(), Instant::now().into_std());
        self.phase = Phase::Attached(Box::new(Channel::new(*resumed.socket)));
        info!(
            session = self.upstream.session_id(),
            streams = self.streams.len(),
            "session resumed"
        );
        self.recover();
    }

    fn impair(&self, doing: &str) {
        self.set_impaired(Arc::new(Failure::new(Reason::Unreachable, Remedy::Retry, doing)));
    }

    fn set_impaired(&self, cause: Arc<Failure>) {
        self.outside.health.send_modify(|health| {
            let since = health
                .impaired
                .as_ref()
                .map_or_else(Instant::now, |impaired| impaired.since);
            health.impaired = Some(Impaired { since, cause });
        });
    }

    fn recover(&self) {
        self.outside
            .health
            .send_if_modified(|health| health.impaired.take().is_some());
    }

    /// Ends everything in this order: the outside learns of it, streams end, the agent is asked to end the session,
    /// AWS is asked where that may not have worked.
    async fn finish(mut self, stop: Stop) {
        // An attempt under way holds what ending the session needs, and is of no use any more.
        if matches!(self.phase, Phase::Resuming(_)) {
            self.phase = Phase::Over;
        }
        // Whoever asks for a stream from here on learns at once that there is none.
        self.commands.close();
        while self.commands.try_recv().is_ok() {}
        let ended = matches!(stop, Stop::Ended(_));
        let closed_at_aws = matches!(stop, Stop::Ended(End::ChannelClosed(_)));
        let failure = match stop {
            Stop::Goodbye => Failure::new(Reason::Unreachable, Remedy::Retry, "the link was closed"),
            Stop::Ended(end) => self.upstream.ended(&end),
            Stop::Gone(failure) => failure,
        };
        let failure = match self.ready.take() {
            // Nobody has the link yet: whoever asked for it is the one to be told.
            Some(ready) => {
                let _ = ready.send(Err(failure));
                Failure::new(
                    Reason::Unreachable,
                    Remedy::Retry,
                    "the SSM session did not become ready",
                )
            }
            None => failure,
        };
        let failure = Arc::new(failure);
        for (_, stream) in self.streams.drain() {
            stream.fail(Arc::clone(&failure));
        }
        self.outside.closed.send_replace(Some(failure));
        let closed_at_aws = closed_at_aws || (!ended && self.say_goodbye().await);
        self.upstream.settle(closed_at_aws).await;
    }

    /// Asks the agent to end the session; returns whether AWS confirmed it.
    async fn say_goodbye(&mut self) -> bool {
        for id in self.session.streams() {
            self.session.reset(id);
        }
        if !matches!(self.phase, Phase::Attached(_)) || !self.session.terminate() {
            return false;
        }
        let deadline = Instant::now() + GOODBYE;
        loop {
            let full = self.transmit(Instant::now().into_std());
            while let Some(event) = self.session.poll_event() {
                if matches!(event, Event::Ended(End::ChannelClosed(_))) {
                    return true;
                }
            }
            let Phase::Attached(channel) = &mut self.phase else {
                return false;
            };
            match timeout_at(deadline, channel.activity(full)).await {
                Ok(Ok(Activity::Frame(frame))) => self.handle_frame(frame),
                Ok(Ok(Activity::Nothing)) => {}
                Ok(Err(_)) | Err(_) => return false,
            }
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
