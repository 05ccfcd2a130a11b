//! The service half of a session's data channel, with its agent behind it: one `Gateway` a session.
//!
//! ```text
//!   client ══websocket══► socket task ──frames──► relay task ── wire::ssm::Session (agent)
//!                                     ◄──frames──     │
//!                                                     └── one task per stream ══TCP══► target
//! ```
//!
//! A websocket's first message, a text OpenDataChannelInput, must carry a token that has not been used. A newer
//! websocket replaces the older one. While no client is there the agent is paused at once, and nothing is stored for
//! the client, which is what the recordings of the official pair assume (observed.md).

mod client;
mod relay;
mod target;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::client::Arrival;
use self::relay::Relay;

/// Websockets and frames that wait for the relay: little, so that a relay that stops reading is felt by the client.
const WAITING: usize = 16;

/// How the far end behaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum AgentKind {
    /// As the official agent: paced, and slow to resend.
    #[default]
    Stock,
    /// Unpaced, resends at once.
    Fast,
}

/// What StartSession asked for, resolved.
pub(crate) struct SessionSpec {
    pub(crate) session_id: String,
    pub(crate) agent: AgentKind,
    pub(crate) agent_version: String,
    /// The document's properties, which the handshake carries.
    pub(crate) properties: BTreeMap<String, String>,
    /// Where the session's host and port really are; `None`: nowhere, every dial fails.
    pub(crate) address: Option<SocketAddr>,
}

/// One session's relay between its client and its agent.
pub(crate) struct Gateway {
    tasks: TaskTracker,
    over: CancellationToken,
    /// Cancels the websocket of the present client.
    client: Mutex<CancellationToken>,
    arrivals: mpsc::Sender<Arrival>,
}

impl Gateway {
    /// Starts the agent's end of a session; `ended` is called once, with the cause, when the session is over.
    pub(crate) fn start(
        spec: SessionSpec,
        tasks: &TaskTracker,
        ended: impl FnOnce(String) + Send + 'static,
    ) -> Arc<Self> {
        let over = CancellationToken::new();
        let (arrivals, arriving) = mpsc::channel(WAITING);
        let relay = Relay::new(spec, arriving, over.clone());
        tasks.spawn(async move { ended(relay.run().await) });
        Arc::new(Self {
            tasks: tasks.clone(),
            over,
            client: Mutex::default(),
            arrivals,
        })
    }

    /// Serves one more websocket of the session's client.
    pub(crate) fn attach<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        socket: WebSocketStream<S>,
        check_token: impl Fn(&str) -> bool + Send + 'static,
    ) {
        let replaced = CancellationToken::new();
        std::mem::replace(
            &mut *self.client.lock().unwrap_or_else(PoisonError::into_inner),
            replaced.clone(),
        )
        .cancel();
        self.tasks.spawn(client::serve(
            socket,
            check_token,
            self.arrivals.clone(),
            replaced,
        ));
    }

    /// Ends the session, as TerminateSession asks.
    pub(crate) fn terminate(&self) {
        self.over.cancel();
    }

    /// Drops the client's websocket without a word; the session lives on.
    pub(crate) fn cut(&self) {
        self.client
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .cancel();
    }
}
