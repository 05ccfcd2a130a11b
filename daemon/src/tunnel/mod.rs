//! Tunnels: what keeps a local address open and a way to its target behind it.
//!
//! ```text
//!   daemon ── Handle ──► supervisor ── feeds ──► lifecycle (pure) ── uses ──► backoff (pure)
//!                          │    │
//!                 accepts  │    │ connects, watches, closes
//!                          ▼    ▼
//!                    listener  Transport ──► Link ── through the slot ──► proxy, one per connection
//!                        │                                                  ▲
//!                        └──────────────── peer: whose is it? ──────────────┘
//! ```
//!
//! A supervisor is a task that lives as long as its tunnel is configured; `up` and `down` are events to it. It alone
//! owns listener, link and machine. Everybody else holds a [`Handle`] and sends messages, which are answered in every
//! state. This module knows `dyn Transport`, never SSM.

mod backoff;
mod client;
#[cfg(test)]
pub(crate) mod fake;
mod holder;
mod lifecycle;
mod listener;
mod owner;
mod peer;
mod period;
mod proxy;
mod shown;
mod slot;
mod supervisor;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;

use crate::config::TunnelSpec;
use crate::heritage::Heritage;
use crate::limits::Allowance;
use crate::status::Entry;
use crate::surroundings::Change;
use crate::transport::Transport;
use crate::tunnel::supervisor::{Command, Supervisor};

use crate::tunnel::owner::Owners;

/// Commands that wait for a supervisor: it takes them at once, so that more only wait when many are typed at a time.
const COMMANDS: usize = 8;

/// How far a person wants a tunnel brought up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// As far as its mode says: an on-demand tunnel listens, and connects on first use.
    Listen,
    /// To a link, also an on-demand tunnel.
    Connect,
}

/// What becomes of a local address when its supervisor finishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Afterwards {
    /// It is free for others.
    Free,
    /// Whoever connects waits for the next daemon.
    Leave,
    /// Whoever connects waits for a tunnel of this daemon that takes it, until what nobody has taken is closed.
    Offer,
}

/// What all tunnels of a daemon have in common.
#[derive(Debug, Clone)]
pub(crate) struct Common {
    /// Listening sockets that were there before, and those that stay.
    pub(crate) heritage: Arc<Heritage>,
    /// The descriptors that tunnels may have.
    pub(crate) allowance: Allowance,
    /// Tells whose a connection is.
    pub(crate) owners: Arc<Owners>,
}

#[cfg(test)]
impl Common {
    /// With nothing that was there before.
    pub(crate) fn for_test() -> Self {
        Self {
            heritage: Arc::default(),
            allowance: Allowance::of_process(),
            owners: Arc::default(),
        }
    }

    /// What the tunnels of the next daemon have, which finds what was left.
    pub(crate) fn next_daemon(&self) -> Self {
        Self {
            heritage: Arc::new(self.heritage.close().inherited()),
            ..self.clone()
        }
    }
}

/// The only door to a supervisor.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    spec: Arc<TunnelSpec>,
    commands: mpsc::Sender<Command>,
}

/// The supervisor has finished: its tunnel was removed or replaced, or the daemon stops.
#[derive(Debug, thiserror::Error)]
#[error("the tunnel has ended")]
pub(crate) struct Finished;

impl Handle {
    /// Starts the supervisor of a tunnel, as one of `tasks`. The tunnel is down; up, it shares the allowance with others.
    pub(crate) fn start(
        spec: Arc<TunnelSpec>,
        transport: Arc<dyn Transport>,
        entry: Entry,
        common: Common,
        tasks: &TaskTracker,
    ) -> Self {
        let (commands, received) = mpsc::channel(COMMANDS);
        let supervisor = Supervisor::new(Arc::clone(&spec), transport, entry, common, received);
        tasks.spawn(supervisor.run());
        Self { spec, commands }
    }

    /// Returns the configuration of the tunnel.
    pub(crate) fn spec(&self) -> &Arc<TunnelSpec> {
        &self.spec
    }

    /// Wants the tunnel up. Answers when its local address is bound, or known to be taken; the board says which.
    pub(crate) async fn up(&self, wish: Wish) -> Result<(), Finished> {
        self.ask(|bound| Command::Up { wish, bound }).await
    }

    /// Wants the tunnel down. Answers when its listener is closed, and its connections and link have ended.
    pub(crate) async fn down(&self) -> Result<(), Finished> {
        self.ask(Command::Down).await
    }

    /// Says that the configuration was read again and this tunnel's is as before: a blocked one tries again.
    pub(crate) async fn reloaded(&self) -> Result<(), Finished> {
        self.commands.send(Command::Reloaded).await.map_err(|_| Finished)
    }

    /// Says what has changed around the daemon.
    pub(crate) async fn around(&self, change: Change) -> Result<(), Finished> {
        self.commands
            .send(Command::Around(change))
            .await
            .map_err(|_| Finished)
    }

    /// Ends the supervisor. Answers, when its local address is free or left, whether the tunnel was wanted; its
    /// connections have `grace` to end by themselves after that.
    pub(crate) async fn finish(&self, grace: Duration, afterwards: Afterwards) -> Result<bool, Finished> {
        self.ask(|unbound| Command::Finish {
            grace,
            afterwards,
            unbound,
        })
        .await
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Finished> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(command(answer)).await.map_err(|_| Finished)?;
        answered.await.map_err(|_| Finished)
    }
}
