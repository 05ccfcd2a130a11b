//! The handle of a link that is a pool: asks the keeper for a member, and that one for a stream.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::keeper::Request;
use super::member::Ask;
use super::{Health, Link, Stream};
use crate::failure::{Failure, Reason, Remedy};

/// How often a member that was chosen may have ended meanwhile, before the connection waits for another link.
const CHOICES: usize = 3;

/// A pool as a link. `C` is what its members are told.
pub(super) struct PooledLink<C> {
    /// What a member is called in messages.
    pub(super) name: &'static str,
    pub(super) requests: mpsc::UnboundedSender<Request<C>>,
    pub(super) health: watch::Receiver<Health>,
    pub(super) closed: watch::Receiver<Option<Arc<Failure>>>,
    pub(super) goodbye: CancellationToken,
    /// Cancelled when the keeper and its members have left nothing behind.
    pub(super) finished: CancellationToken,
    /// A link that is dropped without a word still ends its members.
    pub(super) _ends: DropGuard,
}

#[async_trait]
impl<C: From<Ask> + Send + 'static> Link for PooledLink<C> {
    async fn open(&self, client: &str) -> Result<Box<dyn Stream>, Failure> {
        for _ in 0..CHOICES {
            let (answer, chosen) = oneshot::channel();
            // A keeper that is gone drops the answer.
            let _ = self.requests.send(Request::Open(answer));
            let (seat, commands) = match chosen.await {
                Ok(Ok(chosen)) => chosen,
                Ok(Err(failure)) => return Err(failure),
                Err(_) => return Err(self.over()),
            };
            let (answer, opened) = oneshot::channel();
            let open = Ask::Open {
                seat,
                client: client.to_owned(),
                answer,
            };
            // A member that is gone drops the answer, and gives the seat back.
            let _ = commands.send(open.into());
            if let Ok(opened) = opened.await {
                return opened;
            }
        }
        Err(self.over())
    }

    async fn closed(&self) -> Arc<Failure> {
        let mut closed = self.closed.clone();
        match closed.wait_for(Option::is_some).await {
            Ok(failure) => failure.clone().unwrap_or_else(|| Arc::new(self.over())),
            Err(_) => Arc::new(self.over()),
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

    fn retry(&self) {
        // As above.
        let _ = self.requests.send(Request::Retry);
    }
}

impl<C> PooledLink<C> {
    fn over(&self) -> Failure {
        let doing = format!("{} has ended", self.name);
        Failure::new(Reason::Unreachable, Remedy::Retry, doing)
    }
}
