//! The handle of an SSM link: asks the keeper for a session and its driver for a stream.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::driver::Command;
use super::keeper::Request;
use crate::failure::{Failure, Reason, Remedy};
use crate::transport::{Health, Link, Stream};

/// How often a session that was chosen may have ended meanwhile, before the connection waits for another link.
const CHOICES: usize = 3;

/// A pool of SSM sessions as a link.
pub(super) struct SsmLink {
    pub(super) requests: mpsc::UnboundedSender<Request>,
    pub(super) health: watch::Receiver<Health>,
    pub(super) closed: watch::Receiver<Option<Arc<Failure>>>,
    pub(super) goodbye: CancellationToken,
    /// Cancelled when the keeper and its sessions have left nothing behind.
    pub(super) finished: CancellationToken,
    /// A link that is dropped without a word still ends its sessions.
    pub(super) _ends: DropGuard,
}

#[async_trait]
impl Link for SsmLink {
    async fn open(&self, client: &str) -> Result<Box<dyn Stream>, Failure> {
        for _ in 0..CHOICES {
            let (answer, chosen) = oneshot::channel();
            // A keeper that is gone drops the answer.
            let _ = self.requests.send(Request::Open(answer));
            let seat = match chosen.await {
                Ok(Ok(seat)) => seat,
                Ok(Err(failure)) => return Err(failure),
                Err(_) => return Err(over()),
            };
            let (answer, opened) = oneshot::channel();
            let commands = seat.commands();
            let open = Command::Open {
                seat,
                client: client.to_owned(),
                answer,
            };
            // A driver that is gone drops the answer, and gives the seat back.
            let _ = commands.send(open);
            if let Ok(stream) = opened.await {
                return Ok(Box::new(stream));
            }
        }
        Err(over())
    }

    async fn closed(&self) -> Arc<Failure> {
        let mut closed = self.closed.clone();
        match closed.wait_for(Option::is_some).await {
            Ok(failure) => failure.clone().unwrap_or_else(|| Arc::new(over())),
            Err(_) => Arc::new(over()),
        }
    }

    async fn close(&self) {
        self.goodbye.cancel();
        self.finished.cancelled().await;
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    fn probe(&self) {
        // A keeper that is gone has said why in `closed`.
        let _ = self.requests.send(Request::Probe);
    }
}

fn over() -> Failure {
    Failure::new(Reason::Unreachable, Remedy::Retry, "the SSM session has ended")
}
