//! The way to one destination: its link, and who uses it.
//!
//! ```text
//!   connecting ──► linked ──► forgotten: nobody joins any more ──► its last user leaves ──► closed
//!       │                        lost · unused for a minute · opens no streams · the daemon stops
//!       └──► failed, or given up by everybody who waited
//! ```

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{Visits, stopping};
use crate::config::Wanted;
use crate::failure::Failure;
use crate::transport::{Link, Transport};

/// How long a link without visits is kept: as long as sessions of the route `ssm` without connections are.
const LINGER: Duration = Duration::from_secs(60);

/// How long a link may take to say goodbye: one call to AWS and its retry. The far end notices by itself later.
pub(super) const GOODBYE: Duration = Duration::from_secs(5);

/// The way to one destination.
pub(super) struct Way {
    wanted: Wanted,
    state: watch::Sender<State>,
    users: watch::Sender<usize>,
    /// Cancelled when nobody is to join any more.
    retired: CancellationToken,
}

#[derive(Clone)]
enum State {
    Connecting,
    Linked(Arc<dyn Link>),
    Failed(Arc<Failure>),
}

impl Way {
    /// A way that nobody has gone yet. It retires with `retired` at the latest.
    pub(super) fn new(wanted: Wanted, retired: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            wanted,
            state: watch::Sender::new(State::Connecting),
            users: watch::Sender::new(0),
            retired,
        })
    }

    /// Returns whether it leads there.
    pub(super) fn leads_to(&self, wanted: &Wanted) -> bool {
        self.wanted == *wanted && !self.retired.is_cancelled()
    }

    /// Makes the link, keeps it while it is of use, and closes it.
    pub(super) async fn keep(self: Arc<Self>, transport: Arc<dyn Transport>, visits: Arc<Visits>) {
        let mut connecting = transport.connect();
        let connected = loop {
            tokio::select! {
                connected = &mut connecting => break connected,
                () = self.unused() => if visits.forget_unused(&self) {
                    return debug!("everybody who waited for the link has left");
                },
                () = self.retired.cancelled() => break Err(stopping()),
            }
        };
        let link = match connected {
            Ok(link) => link,
            Err(failure) => {
                visits.forget(&self);
                self.state.send_replace(State::Failed(Arc::new(failure)));
                return;
            }
        };
        self.state.send_replace(State::Linked(Arc::clone(&link)));
        tokio::select! {
            failure = link.closed() => debug!("the link ended: {}", failure.in_one_line()),
            () = self.lingered() => debug!("the link was not used any more"),
            () = self.retired.cancelled() => {}
        }
        visits.forget(&self);
        // Whoever joined until that moment still finds the link.
        self.unused().await;
        if timeout(GOODBYE, link.close()).await.is_err() {
            warn!("a link did not say goodbye in time");
        }
    }

    /// Returns its link, if it is made.
    pub(super) fn link(&self) -> Option<Arc<dyn Link>> {
        match &*self.state.borrow() {
            State::Linked(link) => Some(Arc::clone(link)),
            State::Connecting | State::Failed(_) => None,
        }
    }

    /// Returns what its link has to say, a sentence each.
    pub(super) fn notes(&self) -> Vec<String> {
        let notes = |link: Arc<dyn Link>| link.health().borrow().details.notes.clone();
        self.link().map(notes).unwrap_or_default()
    }

    /// Returns whether nobody uses it.
    pub(super) fn is_unused(&self) -> bool {
        *self.users.borrow() == 0
    }

    /// Waits until nobody uses it.
    async fn unused(&self) {
        // The way holds the sender.
        let _ = self.users.subscribe().wait_for(|users| *users == 0).await;
    }

    /// Waits until nobody has used it for a while.
    async fn lingered(&self) {
        let mut users = self.users.subscribe();
        loop {
            self.unused().await;
            users.mark_unchanged();
            tokio::select! {
                () = sleep(LINGER) => return,
                _ = users.changed() => {}
            }
        }
    }
}

/// A visit on its way: as long as it lives, the link does.
pub(super) struct User(Arc<Way>);

impl User {
    pub(super) fn of(way: &Arc<Way>) -> Self {
        way.users.send_modify(|users| *users += 1);
        Self(Arc::clone(way))
    }

    /// Waits for the link.
    pub(super) async fn link(&self) -> Result<Arc<dyn Link>, Arc<Failure>> {
        let mut state = self.0.state.subscribe();
        let settled = state
            .wait_for(|state| !matches!(state, State::Connecting))
            .await
            .map(|state| state.clone());
        match settled {
            Ok(State::Linked(link)) => Ok(link),
            Ok(State::Failed(failure)) => Err(failure),
            Ok(State::Connecting) | Err(_) => Err(Arc::new(stopping())),
        }
    }

    /// Has others make a new link: this one opens no streams.
    pub(super) fn retire(&self) {
        self.0.retired.cancel();
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.0.users.send_modify(|users| *users -= 1);
    }
}
