//! The one task that owns a session's agent: frames of the client in and out, streams to the target and back.
//!
//! ```text
//!   stream opened ─► waiting to be dialled ─► dialling ─► open ─► gone
//!                       (one at a time)          └─ refused: flag 3, FIN
//! ```
//!
//! What the target has not taken is bounded by [`BUCKET`] for the whole session: beyond it no frame of the client is
//! read, so nothing is acknowledged for any stream. The official agent stops in the same way.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;
use tunneld_wire::smux::{Framing, StreamId};
use tunneld_wire::ssm::message::{Kind, Message, PayloadType};
use tunneld_wire::ssm::payload::{self, ChannelClosed};
use tunneld_wire::ssm::{AgentOptions, Event, Frame, Origin, Policy, Session};
use uuid::Uuid;

use super::client::Arrival;
use super::target::{self, Report};
use super::{AgentKind, SessionSpec};

/// The receive buffer of the official agent's smux: 4 MiB a session.
const BUCKET: usize = 4 << 20;
/// Reports of targets that wait for the relay.
const REPORTS: usize = 64;
/// How long the agent is silent after HandshakeComplete: the official client needs about a millisecond (ssm.md
/// section 6.7), and this much where it shares a busy machine.
const QUIET: Duration = Duration::from_millis(50);
/// How long the agent waits for its own messages to be acknowledged once it was asked to end.
const DRAIN: Duration = Duration::from_secs(2);

type Dial = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>;

/// One session's agent and service.
pub(super) struct Relay {
    session_id: String,
    address: Option<SocketAddr>,
    session: Session,
    arrivals: mpsc::Receiver<Arrival>,
    over: CancellationToken,
    client: Option<Arrival>,
    streams: BTreeMap<StreamId, Stream>,
    undialled: VecDeque<StreamId>,
    dialling: Option<(StreamId, Dial)>,
    /// Bytes that targets have not taken.
    untaken: usize,
    reports: mpsc::Receiver<Report>,
    reporter: mpsc::Sender<Report>,
    targets: JoinSet<()>,
    /// The client asked for the end.
    ending: Option<Instant>,
}

struct Stream {
    /// Bytes for the target; `None` once the client has ended the stream.
    to_target: Option<mpsc::UnboundedSender<Bytes>>,
    /// The other end, until there is a target.
    waiting: Option<mpsc::UnboundedReceiver<Bytes>>,
    untaken: usize,
    held: VecDeque<OwnedSemaphorePermit>,
}

enum Wake {
    Over,
    Arrival(Option<Arrival>),
    Frame(Option<Bytes>),
    Room,
    Dialled(io::Result<TcpStream>),
    Report(Report),
    Timeout,
}

impl Relay {
    pub(super) fn new(spec: SessionSpec, arrivals: mpsc::Receiver<Arrival>, over: CancellationToken) -> Self {
        let (policy, framing) = match spec.agent {
            AgentKind::Stock => (Policy::stock_agent(), Framing::Spanning),
            AgentKind::Fast => (Policy::fast_agent(), Framing::Fitted),
        };
        let options = AgentOptions {
            version: spec.agent_version,
            properties: spec.properties,
            policy,
            framing,
            quiet: QUIET,
        };
        let (reporter, reports) = mpsc::channel(REPORTS);
        Self {
            session_id: spec.session_id,
            address: spec.address,
            session: Session::agent(options, origin()),
            arrivals,
            over,
            client: None,
            streams: BTreeMap::new(),
            undialled: VecDeque::new(),
            dialling: None,
            untaken: 0,
            reports,
            reporter,
            targets: JoinSet::new(),
            ending: None,
        }
    }

    /// Runs the session to its end and returns the cause.
    pub(super) async fn run(mut self) -> String {
        let (cause, output) = self.relay().await;
        self.close(&output).await;
        cause
    }

    async fn relay(&mut self) -> (String, String) {
        loop {
            if let Some(end) = self.handle_events() {
                return end;
            }
            // One reading for both, as `Session::poll_timeout` asks.
            let now = clock();
            let full = self.transmit(now);
            if self.is_drained() {
                return ("ended by its client".to_owned(), String::new());
            }
            match self.wait(full, now).await {
                Wake::Over => return ("terminated".to_owned(), String::new()),
                Wake::Arrival(Some(arrival)) => {
                    // There is room: nothing else has written to this websocket.
                    let _ = arrival.writer.try_send(start_publication());
                    self.client = Some(arrival);
                    self.session.attach_agent(clock());
                }
                Wake::Arrival(None) => return ("the emulator stopped".to_owned(), String::new()),
                Wake::Frame(Some(frame)) => {
                    if let Err(malformed) = self.session.handle_frame(frame, clock()) {
                        debug!(%malformed, "ignored a frame of the client");
                    }
                }
                Wake::Frame(None) => {
                    self.client = None;
                    self.session.detach();
                }
                Wake::Room => {}
                Wake::Dialled(dialled) => self.handle_dialled(dialled),
                Wake::Report(report) => self.handle_report(report),
                Wake::Timeout => self.session.handle_timeout(clock()),
            }
        }
    }

    async fn wait(&mut self, full: bool, now: std::time::Instant) -> Wake {
        let due = self.session.poll_timeout(now).map(Instant::from_std);
        let due = due.into_iter().chain(self.ending).min();
        let reading = self.untaken < BUCKET;
        let (frames, writer) = match &mut self.client {
            Some(Arrival { frames, writer }) => (Some(frames), Some(writer)),
            None => (None, None),
        };
        tokio::select! {
            () = self.over.cancelled() => Wake::Over,
            arrival = self.arrivals.recv() => Wake::Arrival(arrival),
            Some(frame) = of(frames.map(mpsc::Receiver::recv)), if reading => Wake::Frame(frame),
            Some(_) = of(writer.map(|writer| writer.reserve())), if full => Wake::Room,
            Some(dialled) = of(self.dialling.as_mut().map(|(_, dial)| dial)) => Wake::Dialled(dialled),
            Some(report) = self.reports.recv() => Wake::Report(report),
            Some(()) = of(due.map(sleep_until)) => Wake::Timeout,
        }
    }

    /// Sends what the agent has to send; returns whether the websocket's queue stopped it.
    fn transmit(&mut self, now: std::time::Instant) -> bool {
        let Some(Arrival { writer, .. }) = &self.client else {
            return false;
        };
        let full = loop {
            let room = match writer.try_reserve() {
                Ok(room) => room,
                Err(TrySendError::Full(())) => break true,
                // The websocket is gone, as its frames will tell once they are read to the end.
                Err(TrySendError::Closed(())) => break false,
            };
            match self.session.poll_transmit(now) {
                Some(Frame::Binary(frame)) => room.send(frame),
                // Only clients send text.
                Some(Frame::Text(_)) | None => break false,
            }
        };
        for (id, stream) in &mut self.streams {
            let pending = self.session.pending_writes(*id);
            while stream.held.len() > pending {
                stream.held.pop_front();
            }
        }
        full
    }

    /// Acts on what happened in the session; returns its end, as cause and as words for the client.
    fn handle_events(&mut self) -> Option<(String, String)> {
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Opened(id) => self.handle_opened(id),
                Event::Data(id, bytes) => self.handle_data(id, bytes),
                Event::Finished(id) | Event::Abandoned(id) => self.handle_finished(id),
                Event::Terminate => self.ending = Some(Instant::now() + DRAIN),
                Event::Ended(end) => return Some((end.to_string(), end.to_string())),
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
        None
    }

    fn handle_opened(&mut self, id: StreamId) {
        // Bounded by the bucket.
        let (sender, receiver) = mpsc::unbounded_channel();
        let stream = Stream {
            to_target: Some(sender),
            waiting: Some(receiver),
            untaken: 0,
            held: VecDeque::new(),
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
            stream.held.clear();
        }
    }

    /// Dials are serial, as the official agent's.
    fn dial_next(&mut self) {
        if self.dialling.is_none()
            && let Some(id) = self.undialled.pop_front()
        {
            self.dialling = Some((id, Box::pin(target::dial(self.address))));
        }
    }

    fn handle_dialled(&mut self, dialled: io::Result<TcpStream>) {
        let Some((id, _)) = self.dialling.take() else {
            return;
        };
        let waiting = self.streams.get_mut(&id).and_then(|stream| stream.waiting.take());
        match (dialled, waiting) {
            (Ok(socket), Some(outgoing)) => {
                self.targets
                    .spawn(target::serve(id, socket, outgoing, self.reporter.clone()));
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
                    stream.held.push_back(permit);
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

    /// Whether the end that the client asked for may be confirmed.
    fn is_drained(&self) -> bool {
        self.ending
            .is_some_and(|deadline| deadline <= Instant::now() || self.session.is_drained())
    }

    /// Tells the client that the session is over; its websocket is closed by the drop of its writer.
    async fn close(mut self, output: &str) {
        let Some(client) = self.client.take() else { return };
        let last = client.writer.send(channel_closed(&self.session_id, output));
        // The client may be gone, or not read any more.
        let _ = timeout(DRAIN, last).await;
    }
}

/// The service's word that the agent is there.
fn start_publication() -> Bytes {
    service_message(Kind::StartPublication, random_id(), Bytes::new())
}

/// The service's last word of a session.
fn channel_closed(session_id: &str, output: &str) -> Bytes {
    let id = random_id();
    let payload = payload::json(&ChannelClosed {
        message_id: id,
        created_date: since_1970().as_secs().to_string(),
        destination_id: session_id.to_owned(),
        session_id: session_id.to_owned(),
        message_type: Kind::ChannelClosed.to_string(),
        schema_version: 1,
        output: output.to_owned(),
    });
    service_message(Kind::ChannelClosed, id, payload)
}

fn service_message(kind: Kind, id: Uuid, payload: Bytes) -> Bytes {
    let message = Message {
        kind,
        created: u64::try_from(since_1970().as_millis()).unwrap_or(u64::MAX),
        sequence: 0,
        flags: 3,
        id,
        digest: tunneld_wire::ssm::message::digest(&payload),
        payload_type: PayloadType::Undefined,
        payload,
    };
    message.encode()
}

fn random_id() -> Uuid {
    uuid::Builder::from_random_bytes(fastrand::u128(..).to_ne_bytes()).into_uuid()
}

fn origin() -> Origin {
    Origin {
        seed: fastrand::u64(..),
        began: clock(),
        began_unix: since_1970(),
        half_close_grace: Duration::ZERO,
    }
}

fn clock() -> std::time::Instant {
    Instant::now().into_std()
}

fn since_1970() -> Duration {
    crate::clock::wall_clock()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

/// Waits for a future that may not be there: `None` at once where it is not, which disables its branch.
async fn of<F: Future>(future: Option<F>) -> Option<F::Output> {
    match future {
        Some(future) => Some(future.await),
        None => None,
    }
}
