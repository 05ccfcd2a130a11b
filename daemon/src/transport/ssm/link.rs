//! The handle of an SSM link: asks the driver, shows its health, and ends the session when it is closed or dropped.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::driver::Command;
use crate::failure::{Failure, Reason, Remedy};
use crate::transport::{Health, Link, Stream};

/// One SSM session as a link.
pub(super) struct SsmLink {
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(super) health: watch::Receiver<Health>,
    pub(super) closed: watch::Receiver<Option<Arc<Failure>>>,
    pub(super) goodbye: CancellationToken,
    /// Cancelled when the driver has left nothing behind.
    pub(super) finished: CancellationToken,
    /// A link that is dropped without a word still ends its session.
    pub(super) _ends: DropGuard,
}

#[async_trait]
impl Link for SsmLink {
    async fn open(&self) -> Result<Box<dyn Stream>, Failure> {
        let (answer, opened) = oneshot::channel();
        let asked = self.commands.send(Command::Open(answer)).is_ok();
        match (asked, opened.await) {
            (true, Ok(Ok(stream))) => Ok(Box::new(stream)),
            (true, Ok(Err(failure))) => Err(over().because(failure)),
            (true, Err(_)) | (false, _) => Err(over()),
        }
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
        // A driver that is gone has said why in `closed`.
        let _ = self.commands.send(Command::Probe);
    }
}

fn over() -> Failure {
    Failure::new(Reason::Unreachable, Remedy::Retry, "the SSM session has ended")
}
