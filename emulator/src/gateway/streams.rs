//! The streams of one agent, each with a TCP connection to the target.
//!
//! ```text
//!   opened ─► waiting to be dialled ─► dialling ─► open ─► gone
//!                (one at a time)          └─ refused
//! ```
//!
//! What targets have not taken is counted for all streams together: see [`Streams::are_full`].

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::task::JoinSet;
use tracing::debug;
use tunneld_wire::smux::StreamId;

use super::target::{self, Report};
use crate::conditions::Conditions;

/// The receive buffer of the official agent's smux: 4 MiB a session.
const BUCKET: usize = 4 << 20;
/// Reports of targets that wait for the relay.
const REPORTS: usize = 64;

type Dial = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>;

/// All streams of a session.
pub(super) struct Streams {
    address: Option<SocketAddr>,
    conditions: watch::Receiver<Arc<Conditions>>,
    streams: BTreeMap<StreamId, Stream>,
    undialled: VecDeque<StreamId>,
    dialling: Option<(StreamId, Dial)>,
    /// Bytes that targets have not taken.
    untaken: usize,
    reports: mpsc::Receiver<Report>,
    reporter: mpsc::Sender<Report>,
    targets: JoinSet<()>,
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

/// What the session has to know of it.
pub(super) enum News {
    /// Nothing.
    None,
    /// The target of a stream can't be reached.
    Refused(StreamId),
    /// The target of a stream said something.
    Said(StreamId, Bytes),
    /// The target of a stream is gone.
    Closed(StreamId),
}

impl Streams {
    pub(super) fn new(address: Option<SocketAddr>, conditions: watch::Receiver<Arc<Conditions>>) -> Self {
        let (reporter, reports) = mpsc::channel(REPORTS);
        Self {
            address,
            conditions,
            streams: BTreeMap::new(),
            undialled: VecDeque::new(),
            dialling: None,
            untaken: 0,
            reports,
            reporter,
            targets: JoinSet::new(),
        }
    }

    /// Whether targets have so much before them that nothing more may come, for any stream.
    pub(super) fn are_full(&self) -> bool {
        self.untaken >= BUCKET
    }

    /// The client opened a stream.
    pub(super) fn open(&mut self, id: StreamId) {
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

    /// The client sent bytes for a target.
    pub(super) fn write(&mut self, id: StreamId, bytes: Bytes) {
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
    pub(super) fn finish(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.to_target = None;
            stream.permits.clear();
        }
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

    pub(super) fn handle_target(&mut self, happened: AtTarget) -> News {
        match happened {
            AtTarget::Dialled(dialled) => self.handle_dialled(dialled),
            AtTarget::Report(report) => self.handle_report(report),
        }
    }

    /// Lets targets be read on as far as the session has sent what they said.
    pub(super) fn return_permits(&mut self, pending_writes: impl Fn(StreamId) -> usize) {
        for (id, stream) in &mut self.streams {
            let pending = pending_writes(*id);
            while stream.permits.len() > pending {
                stream.permits.pop_front();
            }
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

    fn handle_dialled(&mut self, dialled: io::Result<TcpStream>) -> News {
        let Some((id, _)) = self.dialling.take() else {
            return News::None;
        };
        self.dial_next();
        let waiting = self.streams.get_mut(&id).and_then(|stream| stream.waiting.take());
        match (dialled, waiting) {
            (Ok(socket), Some(outgoing)) => {
                let (reporter, conditions) = (self.reporter.clone(), self.conditions.clone());
                self.targets
                    .spawn(target::serve(id, socket, outgoing, reporter, conditions));
                News::None
            }
            (Ok(_), None) => {
                self.forget(id);
                News::None
            }
            (Err(error), _) => {
                debug!(%error, stream = %id, "the target refused");
                self.forget(id);
                News::Refused(id)
            }
        }
    }

    fn handle_report(&mut self, report: Report) -> News {
        // Targets that have ended leave nothing to look at.
        while self.targets.try_join_next().is_some() {}
        match report {
            Report::Read { id, bytes, permit } => {
                let stream = self.streams.get_mut(&id);
                match stream.filter(|stream| stream.to_target.is_some()) {
                    Some(stream) => {
                        stream.permits.push_back(permit);
                        News::Said(id, bytes)
                    }
                    None => News::None,
                }
            }
            Report::Wrote { id, length } => {
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.untaken -= length;
                    self.untaken -= length;
                }
                News::None
            }
            Report::Closed(id) => {
                self.forget(id);
                News::Closed(id)
            }
        }
    }

    fn forget(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.remove(&id) {
            self.untaken -= stream.untaken;
        }
    }
}
