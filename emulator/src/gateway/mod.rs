//! The service half of a session's data channel, with its agent behind it: one `Gateway` a session.
//!
//! ```text
//!   client ══websocket══► socket task ──frames──► relay task ── wire::ssm::Session (agent)
//!            inspected                ◄──frames──  line, service │
//!                                                                └── one task per stream ══TCP══► target
//! ```
//!
//! A websocket's first message, a text OpenDataChannelInput, must carry a token that has not been used. A newer
//! websocket replaces the older one, once its token was good. While no client is there the agent is paused at once, and
//! nothing is stored for the client, which is what the recordings of the official pair assume (observed.md); conditions
//! can have both otherwise.

mod agent;
mod client;
mod greeting;
mod inspected;
mod line;
mod message;
mod relay;
mod service;
mod sketch;
mod streams;
mod target;
mod vigil;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio_tungstenite::WebSocketStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::client::{Admission, Arrival, Buffers};
use self::relay::Relay;
use crate::conditions::Conditions;

pub(crate) use self::inspected::Inspected;

/// Websockets and commands that wait for the relay: more at once than any test makes.
const WAITING: usize = 16;

/// How the far end behaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum AgentKind {
    /// As the official agent: paced, sends only its oldest frame again, ten times a second. Buffers to the client are
    /// small, so that a cut loses at most 32 messages beside what the line's delay holds.
    #[default]
    Stock,
    /// As `stock`, without its pace and with large buffers.
    Unpaced,
    /// Unpaced, sends everything again at once, and numbers nothing while the client is away.
    Fast,
}

/// What StartSession asked for, resolved.
pub(crate) struct SessionSpec {
    pub(crate) session_id: String,
    /// How many sessions there were before.
    pub(crate) number: u64,
    pub(crate) agent: AgentKind,
    pub(crate) agent_version: String,
    /// The document's properties, which the handshake carries.
    pub(crate) properties: BTreeMap<String, String>,
    /// Where the session's host and port really are; `None`: nowhere, every dial fails.
    pub(crate) address: Option<SocketAddr>,
}

/// What can be asked of a session's service.
enum Command {
    /// Close the websocket with code 1000.
    Recycle,
    /// Take the agent's own websocket away for that long.
    AgentOutage(Duration),
}

/// One session's relay between its client and its agent.
pub(crate) struct Gateway {
    tasks: TaskTracker,
    over: CancellationToken,
    buffers: Buffers,
    websockets: Arc<Mutex<Websockets>>,
    arrivals: mpsc::Sender<Arrival>,
    commands: mpsc::Sender<Command>,
}

/// The websockets of one client, in the order in which they came.
#[derive(Default)]
struct Websockets {
    attached: u64,
    admitted: u64,
    /// Cancels the one that was admitted last.
    replaced: CancellationToken,
}

impl Gateway {
    /// Starts the agent's end of a session; `ended` is called once, with the cause, when the session is over.
    pub(crate) fn start(
        spec: SessionSpec,
        conditions: watch::Receiver<Arc<Conditions>>,
        tasks: &TaskTracker,
        ended: impl FnOnce(String) + Send + 'static,
    ) -> Arc<Self> {
        let over = CancellationToken::new();
        let buffers = match spec.agent {
            AgentKind::Stock => Buffers::Small,
            AgentKind::Unpaced | AgentKind::Fast => Buffers::Large,
        };
        let (arrivals, arriving) = mpsc::channel(WAITING);
        let (commands, commanded) = mpsc::channel(WAITING);
        let relay = Relay::new(spec, conditions, arriving, commanded, over.clone());
        tasks.spawn(async move { ended(relay.run().await) });
        Arc::new(Self {
            tasks: tasks.clone(),
            over,
            buffers,
            websockets: Arc::default(),
            arrivals,
            commands,
        })
    }

    /// Whether sockets to the client must hold little.
    pub(crate) fn wants_small_buffers(&self) -> bool {
        self.buffers == Buffers::Small
    }

    /// Serves one more websocket of the session's client. It replaces the one before once it has opened, unless a newer
    /// one has: a websocket that opens slowly is late.
    pub(crate) fn attach<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        socket: WebSocketStream<S>,
        check_token: impl Fn(&str) -> bool + Send + 'static,
    ) {
        let mut websockets = lock(&self.websockets);
        websockets.attached += 1;
        let generation = websockets.attached;
        drop(websockets);
        let websockets = Arc::clone(&self.websockets);
        let admit = move |token: &str| lock(&websockets).admit(generation, || check_token(token));
        let serve = client::serve(
            socket,
            admit,
            self.arrivals.clone(),
            self.over.clone(),
            self.buffers,
        );
        self.tasks.spawn(serve);
    }

    /// Ends the session, as TerminateSession asks.
    pub(crate) fn terminate(&self) {
        self.over.cancel();
    }

    /// Drops the client's websocket without a word; the session lives on.
    pub(crate) fn cut(&self) {
        lock(&self.websockets).replaced.cancel();
    }

    /// Closes the client's websocket as the service does about hourly.
    pub(crate) fn recycle(&self) {
        self.command(Command::Recycle);
    }

    /// Takes the agent's own websocket away for that long: what it sends is numbered and lost.
    pub(crate) fn agent_outage(&self, duration: Duration) {
        self.command(Command::AgentOutage(duration));
    }

    fn command(&self, command: Command) {
        if self.commands.try_send(command).is_err() {
            tracing::debug!("a session that has ended, or is overrun, was not told what to do");
        }
    }
}

impl Websockets {
    fn admit(&mut self, generation: u64, has_good_token: impl FnOnce() -> bool) -> Option<Admission> {
        if generation < self.admitted || !has_good_token() {
            return None;
        }
        self.admitted = generation;
        std::mem::take(&mut self.replaced).cancel();
        Some(Admission {
            generation,
            replaced: self.replaced.clone(),
        })
    }
}

fn lock(websockets: &Mutex<Websockets>) -> MutexGuard<'_, Websockets> {
    websockets.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_websocket_that_opens_late_does_not_replace_a_newer_one() {
        let mut websockets = Websockets::default();
        let newer = websockets.admit(2, || true).expect("a good token");
        assert!(websockets.admit(1, || true).is_none());
        assert!(!newer.replaced.is_cancelled());
    }

    #[test]
    fn a_websocket_replaces_the_one_before_only_with_a_good_token() {
        let mut websockets = Websockets::default();
        let first = websockets.admit(1, || true).expect("a good token");
        assert!(websockets.admit(2, || false).is_none());
        assert!(!first.replaced.is_cancelled());
        let third = websockets.admit(3, || true).expect("a good token");
        assert!(first.replaced.is_cancelled() && !third.replaced.is_cancelled());
    }
}
