//! The service half of a session's data channel, with its agent behind it: one `Gateway` a session.
//!
//! A client's websocket is attached to it; its first message, a text OpenDataChannelInput, must carry a token that
//! has not been used. A newer websocket replaces the older one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::faults::Faults;

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
#[expect(dead_code, reason = "read by the agent half")]
pub(crate) struct SessionSpec {
    pub(crate) session_id: String,
    pub(crate) agent: AgentKind,
    pub(crate) agent_version: String,
    /// `None`: the instance itself.
    pub(crate) host: Option<String>,
    pub(crate) port: u16,
    /// The document's properties, which the handshake carries.
    pub(crate) properties: BTreeMap<String, String>,
    /// Where `host:port` really is; `None`: nowhere.
    pub(crate) address: Option<SocketAddr>,
}

/// One session's relay between its client and its agent.
pub(crate) struct Gateway {
    tasks: TaskTracker,
    over: CancellationToken,
    client: Mutex<CancellationToken>,
}

impl Gateway {
    /// Starts the agent's end of a session; `ended` is called once, with the cause, when the session is over.
    pub(crate) fn start(
        _spec: SessionSpec,
        _faults: Arc<Faults>,
        tasks: &TaskTracker,
        ended: impl FnOnce(String) + Send + 'static,
    ) -> Arc<Self> {
        let over = CancellationToken::new();
        let until = over.clone();
        tasks.spawn(async move {
            until.cancelled().await;
            ended("terminated".to_owned());
        });
        Arc::new(Self {
            tasks: tasks.clone(),
            over,
            client: Mutex::default(),
        })
    }

    /// Serves one more websocket of the session's client.
    pub(crate) fn attach<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        mut socket: WebSocketStream<S>,
        check_token: impl Fn(&str) -> bool + Send + 'static,
    ) {
        let over = self.over.clone();
        let replaced = over.child_token();
        std::mem::replace(
            &mut *self.client.lock().unwrap_or_else(PoisonError::into_inner),
            replaced.clone(),
        )
        .cancel();
        self.tasks.spawn(async move {
            let mut opened = false;
            loop {
                let message = tokio::select! {
                    () = replaced.cancelled() => break,
                    message = socket.next() => message,
                };
                let Some(Ok(message)) = message else { break };
                if let Message::Text(text) = &message
                    && !opened
                {
                    let open: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
                    opened = open["TokenValue"].as_str().is_some_and(&check_token);
                }
                if !opened {
                    break;
                }
            }
            if over.is_cancelled() || !opened {
                let _ = socket.close(None).await;
            }
            let _ = socket.flush().await;
        });
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
