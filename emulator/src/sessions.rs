//! Every session that was started: its token, its gateway, and how it ended.
//!
//! ```text
//! start ──► open ──► ended: TerminateSession, its agent, or nobody came back in time
//!             │ ▲
//!             └─┘ resume: a new token; the one before is worth nothing
//! ```
//!
//! A token opens one websocket. An ended session stays known, for DescribeSessions and for tests that ask why.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_tungstenite::WebSocketStream;
use tokio_util::task::TaskTracker;

use crate::clock::wall_clock;
use crate::conditions::Conditions;
use crate::config::Agent;
use crate::documents::Forward;
use crate::gateway::{Gateway, SessionSpec};
use crate::keys::random;
use crate::secrets::Secrets;
use crate::socket::SocketControl;

/// Ended sessions that stay known. Tests ask about a handful; a demo that runs for days must not grow.
const MOST_ENDED: usize = 1000;

/// A session, for whoever asks what is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SessionSummary {
    /// Its id.
    pub id: String,
    /// The instance, or the container of an ECS task.
    pub target: String,
    /// The document it runs.
    pub document: String,
    /// The remote host; `None`: the instance itself.
    pub host: Option<String>,
    /// The port there.
    pub port: u16,
    /// Who or what ended it; `None`: it is open.
    pub ended: Option<String>,
}

/// What StartSession and ResumeSession hand out. Holds a token: no `Debug`.
pub(crate) struct Ticket {
    pub(crate) token: String,
    /// The part of the StreamUrl after the host.
    pub(crate) path: String,
}

/// What a new session is made of.
pub(crate) struct Opening<'a> {
    pub(crate) target: String,
    pub(crate) document: String,
    pub(crate) region: String,
    pub(crate) owner: String,
    pub(crate) reason: Option<String>,
    pub(crate) agent: &'a Agent,
    pub(crate) forward: Forward,
    pub(crate) address: Option<SocketAddr>,
}

/// Every session there has been.
pub(crate) struct Sessions {
    tasks: TaskTracker,
    conditions: watch::Receiver<Arc<Conditions>>,
    secrets: Arc<Secrets>,
    started: AtomicU64,
    all: Mutex<Vec<Arc<Session>>>,
}

impl Sessions {
    pub(crate) fn new(
        tasks: TaskTracker,
        conditions: watch::Receiver<Arc<Conditions>>,
        secrets: Arc<Secrets>,
    ) -> Self {
        Self {
            tasks,
            conditions,
            secrets,
            started: AtomicU64::default(),
            all: Mutex::default(),
        }
    }

    /// Opens a session and returns it with the ticket for its first websocket.
    pub(crate) fn start(&self, opening: Opening<'_>) -> (Arc<Session>, Ticket) {
        let id = format!("emulator-{}", hexadecimal(17));
        let ending = Arc::new(Ending::default());
        let spec = SessionSpec {
            session_id: id.clone(),
            number: self.started.fetch_add(1, Ordering::Relaxed),
            agent: opening.agent.kind,
            agent_version: opening.agent.version.clone(),
            properties: opening.forward.properties,
            address: opening.address,
        };
        let gateway = Gateway::start(spec, self.conditions.clone(), &self.tasks, {
            let ending = Arc::clone(&ending);
            move |cause| ending.settle(cause)
        });
        let session = Arc::new(Session {
            id,
            target: opening.target,
            document: opening.document,
            region: opening.region,
            owner: opening.owner,
            reason: opening.reason,
            host: opening.forward.host,
            port: opening.forward.port,
            started: wall_clock(),
            gateway,
            ending,
            secrets: Arc::clone(&self.secrets),
            token: Mutex::default(),
            sockets: Mutex::default(),
        });
        let ticket = session.ticket();
        let mut all = self.lock();
        all.push(Arc::clone(&session));
        let ended = all.iter().filter(|session| session.ended().is_some()).count();
        if ended > MOST_ENDED
            && let Some(oldest) = all.iter().position(|session| session.ended().is_some())
        {
            all.remove(oldest);
        }
        drop(all);
        (session, ticket)
    }

    /// Returns a session, open or ended.
    pub(crate) fn find(&self, id: &str) -> Option<Arc<Session>> {
        self.lock().iter().find(|session| session.id == id).cloned()
    }

    /// Returns all sessions, oldest first.
    pub(crate) fn all(&self) -> Vec<Arc<Session>> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Session>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One session.
pub(crate) struct Session {
    pub(crate) id: String,
    pub(crate) target: String,
    pub(crate) document: String,
    pub(crate) region: String,
    pub(crate) owner: String,
    pub(crate) reason: Option<String>,
    pub(crate) started: SystemTime,
    host: Option<String>,
    port: u16,
    gateway: Arc<Gateway>,
    ending: Arc<Ending>,
    secrets: Arc<Secrets>,
    token: Mutex<Option<String>>,
    sockets: Mutex<Vec<SocketControl>>,
}

impl Session {
    /// Makes a new token, which replaces the one before, and a StreamUrl with a new cell number.
    pub(crate) fn ticket(&self) -> Ticket {
        let token = format!("{}==", random(126));
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token.clone());
        let cell_number = cell_number();
        self.secrets.note(&token);
        self.secrets.note(&cell_number);
        let path = format!(
            "/v1/data-channel/{}?role=publish_subscribe&cell-number={cell_number}",
            self.id
        );
        Ticket { token, path }
    }

    /// Makes the present token worth nothing.
    pub(crate) fn expire_ticket(&self) {
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Serves one more websocket of the session's client; `control` is that of the socket beneath.
    pub(crate) fn attach<S>(self: &Arc<Self>, socket: WebSocketStream<S>, control: SocketControl)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        if self.gateway.wants_small_buffers() {
            control.shrink();
        }
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.retain(SocketControl::is_connected);
        sockets.push(control);
        drop(sockets);
        let session = Arc::clone(self);
        self.gateway.attach(socket, move |token| session.redeem(token));
    }

    /// Ends the session; the first to end it is the one that is remembered.
    pub(crate) fn terminate(&self, cause: &str) {
        self.ending.settle(cause.to_owned());
        self.gateway.terminate();
    }

    /// Returns who or what ended the session, and when.
    pub(crate) fn ended(&self) -> Option<(String, SystemTime)> {
        self.ending
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn summary(&self) -> SessionSummary {
        SessionSummary {
            id: self.id.clone(),
            target: self.target.clone(),
            document: self.document.clone(),
            host: self.host.clone(),
            port: self.port,
            ended: self.ended().map(|(cause, _)| cause),
        }
    }

    /// Resets the client's websocket.
    pub(crate) fn cut(&self) {
        self.sockets().iter().for_each(SocketControl::reset);
        self.gateway.cut();
    }

    /// Makes the client's websocket half-open.
    pub(crate) fn freeze(&self) {
        self.sockets().iter().for_each(SocketControl::freeze);
    }

    /// Closes the client's websocket as the service does about hourly.
    pub(crate) fn recycle(&self) {
        self.gateway.recycle();
    }

    /// Takes the agent's own websocket away for that long.
    pub(crate) fn agent_outage(&self, duration: Duration) {
        self.gateway.agent_outage(duration);
    }

    fn sockets(&self) -> Vec<SocketControl> {
        self.sockets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Whether a token opens a websocket at this moment; it never does a second time.
    fn redeem(&self, token: &str) -> bool {
        let mut current = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        self.ended().is_none() && current.take_if(|current| current == token).is_some()
    }
}

/// How a session ended; settled once.
#[derive(Default)]
struct Ending(Mutex<Option<(String, SystemTime)>>);

impl Ending {
    fn settle(&self, cause: String) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert_with(|| (cause, wall_clock()));
    }
}

/// Returns raw base64 that holds each of `+`, `/` and `=`, as real cell numbers may: whoever parses and encodes the
/// StreamUrl again breaks it.
fn cell_number() -> String {
    let random: Vec<u8> = (0..24).map(|_| fastrand::u8(..)).collect();
    let end: Vec<u8> = (0..13).map(|_| fastrand::u8(..)).collect();
    format!(
        "AAEA{}+/{}",
        BASE64_STANDARD.encode(random),
        BASE64_STANDARD.encode(end)
    )
}

fn hexadecimal(digits: usize) -> String {
    (0..digits).map(|_| fastrand::digit(16)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::gateway::AgentKind;

    fn started() -> (Sessions, Arc<Session>, Ticket) {
        let conditions = watch::Sender::default();
        let sessions = Sessions::new(TaskTracker::new(), conditions.subscribe(), Arc::default());
        let agent = Agent {
            kind: AgentKind::Stock,
            version: "3.3.1142.0".to_owned(),
            online: true,
            last_ping: None,
        };
        let (session, ticket) = sessions.start(Opening {
            target: "i-1".to_owned(),
            document: "AWS-StartPortForwardingSession".to_owned(),
            region: "ap-northeast-1".to_owned(),
            owner: "arn".to_owned(),
            reason: None,
            agent: &agent,
            forward: Forward {
                host: None,
                port: 80,
                properties: BTreeMap::new(),
            },
            address: None,
        });
        (sessions, session, ticket)
    }

    #[tokio::test]
    async fn a_token_opens_one_websocket() {
        let (_sessions, session, ticket) = started();
        assert!(!session.redeem("forged"));
        assert!(session.redeem(&ticket.token));
        assert!(!session.redeem(&ticket.token));
    }

    #[tokio::test]
    async fn a_new_ticket_replaces_the_one_before() {
        let (_sessions, session, first) = started();
        let second = session.ticket();
        assert_ne!(first.path, second.path);
        assert!(!session.redeem(&first.token));
        assert!(session.redeem(&second.token));
    }

    #[tokio::test]
    async fn an_ended_session_takes_no_token_and_remembers_its_first_cause() {
        let (_sessions, session, ticket) = started();
        session.terminate("TerminateSession");
        session.terminate("something later");
        assert!(!session.redeem(&ticket.token));
        assert_eq!(session.summary().ended.as_deref(), Some("TerminateSession"));
    }

    #[tokio::test]
    async fn a_cell_number_is_hostile_to_whoever_encodes_it_again() {
        let number = cell_number();
        assert!(
            number.contains('+') && number.contains('/') && number.contains('='),
            "{number}"
        );
    }
}
