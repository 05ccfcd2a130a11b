//! One time of being wanted, from `up` to `down`: what belongs to it, what happens in it, and how it ends as a whole.
//!
//! ```text
//!   Period ─┬─ listener
//!           ├─ attempt, then linked ── released links, each until its last stream has ended
//!           └─ connections
//! ```

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, error, warn};

use crate::failure::Failure;
use crate::transport::{Health, Link};
use crate::tunnel::client::Client;
use crate::tunnel::listener::Listener;
use crate::tunnel::proxy::OpenFailed;
use crate::tunnel::slot::Lease;

/// How long a link may take to say goodbye: one call to AWS and its retry. The far end notices by itself later.
const GOODBYE: Duration = Duration::from_secs(5);

/// How long connections may take to end once told to: they only have to be polled.
const STOPPING: Duration = Duration::from_secs(1);

/// Reports of links that cannot open streams: the first one ends the link, so that more only repeat it.
const REPORTS: usize = 8;

/// One time of being wanted, from `up` to `down`.
pub(crate) struct Period {
    /// The local address, while it is bound.
    pub(crate) listener: Option<Listener>,
    /// The link that is being made.
    pub(crate) attempt: Option<Attempt>,
    /// The link that there is.
    pub(crate) linked: Option<Linked>,
    /// Links that were let go and end with their last stream.
    released: JoinSet<()>,
    /// A task for each accepted connection.
    pub(crate) connections: TaskTracker,
    /// Ends the connections.
    pub(crate) stop: CancellationToken,
    /// Where connections tell of links that cannot open streams.
    pub(crate) reports: (mpsc::Sender<OpenFailed>, mpsc::Receiver<OpenFailed>),
    /// Connections accepted so far, to tell them apart in the log.
    pub(crate) accepted: u64,
}

/// A link in the making; dropping it gives it up.
pub(crate) type Attempt = BoxFuture<'static, Result<Arc<dyn Link>, Failure>>;

/// The present link.
pub(crate) struct Linked {
    link: Arc<dyn Link>,
    /// Which of the tunnel's links it is.
    pub(crate) number: u64,
    /// Connections that use it.
    users: TaskTracker,
    closed: BoxFuture<'static, Arc<Failure>>,
    /// How it is.
    pub(crate) health: watch::Receiver<Health>,
}

/// Something that happened in a period.
pub(crate) enum Happening {
    /// The attempt has ended.
    Attempted(Result<Arc<dyn Link>, Failure>),
    /// The link has ended.
    LinkEnded(Arc<Failure>),
    /// The link is well or not, or something else is known of it.
    HealthChanged(Health),
    /// A link could not open a stream.
    OpenFailed(OpenFailed),
    /// A local client has come.
    Accepted(Client),
}

impl Period {
    /// A period in which nothing has been bound.
    pub(crate) fn new() -> Self {
        Self {
            listener: None,
            attempt: None,
            linked: None,
            released: JoinSet::new(),
            connections: TaskTracker::new(),
            stop: CancellationToken::new(),
            reports: mpsc::channel(REPORTS),
            accepted: 0,
        }
    }

    /// Waits for something to happen. Cancel-safe.
    pub(crate) async fn event(&mut self) -> Happening {
        tokio::select! {
            biased;
            outcome = attempted(self.attempt.as_mut()) => {
                self.attempt = None;
                Happening::Attempted(outcome)
            }
            happening = linked(self.linked.as_mut()) => happening,
            Some(report) = self.reports.1.recv() => Happening::OpenFailed(report),
            client = accepted(self.listener.as_mut()) => Happening::Accepted(client),
        }
    }

    /// Lets go of the link: it says goodbye when its last stream has ended.
    pub(crate) fn release(&mut self) {
        let Some(linked) = self.linked.take() else { return };
        while self.released.try_join_next().is_some() {}
        let goodbye = async move {
            linked.users.wait().await;
            goodbye(linked.link).await;
        };
        self.released.spawn(goodbye.in_current_span());
    }

    /// Takes nobody new and makes no link, at once: when this returns, the local address is free.
    pub(crate) fn shut(&mut self) {
        self.listener = None;
        self.attempt = None;
        self.connections.close();
    }

    /// Ends the connections after [`Self::shut`]: by themselves within `grace`, else they are reset. Takes at most
    /// `grace` and [`STOPPING`].
    pub(crate) async fn drain(&mut self, grace: Duration) {
        if timeout(grace, self.connections.wait()).await.is_err() {
            let open = self.connections.len();
            if !grace.is_zero() {
                warn!(
                    open,
                    ?grace,
                    "connections outlasted the grace period and are reset"
                );
            }
            self.stop.cancel();
            if timeout(STOPPING, self.connections.wait()).await.is_err() {
                error!(open = self.connections.len(), "connections do not end");
            }
        }
    }

    /// Ends the links after [`Self::drain`], once nobody can use them any more. Takes at most [`GOODBYE`].
    pub(crate) async fn part(mut self) {
        self.release();
        // Each goodbye has its own deadline; this one is for streams that somebody else holds.
        let released = async { while self.released.join_next().await.is_some() {} };
        if timeout(GOODBYE, released).await.is_err() {
            warn!("a link did not say goodbye in time");
        }
    }
}

impl Linked {
    /// A link that was just made.
    pub(crate) fn new(link: Arc<dyn Link>, number: u64) -> Self {
        let users = TaskTracker::new();
        users.close();
        let watched = Arc::clone(&link);
        let closed = Box::pin(async move { watched.closed().await });
        let mut health = link.health();
        health.mark_unchanged();
        Self {
            link,
            number,
            users,
            closed,
            health,
        }
    }

    /// Has the link ask its far end for a sign of life.
    pub(crate) fn probe(&self) {
        self.link.probe();
    }

    /// Has the link try again what waits for a login.
    pub(crate) fn retry(&self) {
        self.link.retry();
    }

    /// Lends the link to a connection.
    pub(crate) fn lease(&self) -> Lease {
        Lease {
            link: Arc::clone(&self.link),
            number: self.number,
            _user: self.users.token(),
        }
    }
}

async fn goodbye(link: Arc<dyn Link>) {
    if timeout(GOODBYE, link.close()).await.is_err() {
        warn!("a link did not say goodbye in time");
    }
}

async fn attempted(future: Option<&mut Attempt>) -> <Attempt as Future>::Output {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

async fn linked(linked: Option<&mut Linked>) -> Happening {
    let Some(linked) = linked else {
        return pending().await;
    };
    let health = &mut linked.health;
    let changed = async {
        match health.changed().await {
            Ok(()) => health.borrow_and_update().clone(),
            // Nobody will say any more how the link is; that it ended shows in `closed`.
            Err(_) => pending().await,
        }
    };
    tokio::select! {
        biased;
        cause = &mut linked.closed => Happening::LinkEnded(cause),
        health = changed => Happening::HealthChanged(health),
    }
}

async fn accepted(listener: Option<&mut Listener>) -> Client {
    match listener {
        Some(listener) => listener.accept().await,
        None => pending().await,
    }
}
