//! The life of a wanted tunnel: a pure machine that says when to bind, connect, let go and wait.
//!
//! ```text
//!            up                        connected
//!   Down ──────────► Connecting ─────────────────────► Up ◄───────────┐
//!    │ ▲              ▲  ▲   │                         │ │ impaired   │ recovered
//!    │ │ down         │  │   │ failed: retry           │ └──────► Resuming
//!    │ (from any)     │  │   ▼                         │              │
//!    │           timer│  └ Waiting ◄───────────────────┴──────────────┤ lost, or open failed
//!    │                │                        retry   │              │ with the scope of the link
//!    │ port taken     │                                ▼              │
//!    └───────────► Blocked ◄──────────────────────────────────────────┘ login, fix
//!
//!   Blocked ends, by what blocks it:
//!     port   up or timer: bind again each second ── bound ──► Connecting
//!     login  up, reload, credentials changed ───────────────► Connecting
//!     other  up, reload, timer: one attempt each 5 minutes ─► Connecting
//! ```
//!
//! `Resuming` is shown as `waiting`: its link is kept and its streams live, new connections are held. An on-demand
//! tunnel will have `Idle` between `Down` and `Connecting`, entered by *up* and *quiet* and left by *demand*.
//!
//! The machine has the face of every machine here: `handle` and `handle_timeout` take facts and the time, `poll_action`
//! and `poll_timeout` give work. It never waits, reads a clock or touches a socket. An event that does not concern the
//! present state (it raced with another) changes nothing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::failure::{Failure, Remedy, Scope};
use crate::tunnel::backoff;

/// How long a link must have been up for attempts to count from zero again: a far end that accepts and drops within
/// seconds is backed off from, one that ends sessions by the hour is not.
const LASTING: Duration = Duration::from_secs(10);

/// How often a taken port is tried again: soon enough to look immediate, and binding costs next to nothing.
const BIND_AGAIN: Duration = Duration::from_secs(1);

/// How often a tunnel that a person must mend is tried by itself: whoever mended it elsewhere (a permission, a stopped
/// database) finds it up again, and AWS is not asked often.
const ATTEMPT_AGAIN: Duration = Duration::from_secs(300);

/// Where a tunnel is in its life.
#[derive(Debug, Clone)]
pub(crate) enum State {
    /// Not wanted; nothing is bound.
    Down,
    /// A link is being made.
    Connecting {
        /// Counts from 1, again after each link that lasted.
        attempt: u32,
    },
    /// A link carries streams.
    Up {
        /// When the link was made.
        since: Instant,
        /// The attempt that made it.
        attempt: u32,
    },
    /// The link is kept but carries nothing; its transport mends it.
    Resuming {
        /// When the link was made.
        since: Instant,
        /// The attempt that made it.
        attempt: u32,
        /// What happened to it.
        cause: Arc<Failure>,
    },
    /// The next attempt has its time.
    Waiting {
        /// Attempts that failed since the last link that lasted.
        attempt: u32,
        /// When the next one starts.
        until: Instant,
        /// Why the last one failed, or how the link was lost.
        cause: Arc<Failure>,
    },
    /// A person has to do something.
    Blocked {
        /// What blocks it.
        cause: Arc<Failure>,
        /// What ends it besides `up` and `down`.
        ends: Ends,
    },
}

/// What ends `Blocked` by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ends {
    /// The local address can be bound; it is tried at this time.
    Bound(Instant),
    /// A login; nothing is asked of AWS before.
    Login,
    /// An attempt, at this time.
    Attempt(Instant),
}

/// A fact that the machine is told.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// The tunnel is wanted, and its local address is bound.
    Up,
    /// The tunnel is wanted, and its local address cannot be bound.
    PortTaken(Arc<Failure>),
    /// The tunnel is not wanted.
    Down,
    /// The attempt made a link.
    Connected,
    /// The attempt failed, or the link has ended.
    Lost(Arc<Failure>),
    /// A stream could not be opened on the link.
    OpenFailed(Arc<Failure>),
    /// The link is kept but carries nothing.
    Impaired(Arc<Failure>),
    /// The link carries bytes again.
    Recovered,
    /// Somebody logged in.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "raised once aws::credentials announces changes")
    )]
    CredentialsChanged,
    /// The configuration was read again, and this tunnel's is as before.
    Reloaded,
}

/// Work for the supervisor, to be done in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Bind the local address again, and say [`Event::Up`] or [`Event::PortTaken`].
    Bind,
    /// Start an attempt, and say [`Event::Connected`] or [`Event::Lost`].
    Connect,
    /// Let go of the link: it takes no new streams; those it has may end in their own time.
    Release,
    /// End attempt, listener, streams and link.
    Disconnect,
    /// Show the state.
    Publish,
}

/// The machine. See the module's documentation.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    state: State,
    actions: VecDeque<Action>,
    random: fastrand::Rng,
}

impl Lifecycle {
    /// A tunnel that is down. `random` jitters its waits.
    pub(crate) fn new(random: fastrand::Rng) -> Self {
        Self {
            state: State::Down,
            actions: VecDeque::new(),
            random,
        }
    }

    /// Takes a fact.
    pub(crate) fn handle(&mut self, event: Event, now: Instant) {
        match event {
            Event::Up => self.wanted(),
            Event::PortTaken(cause) => self.port_taken(cause, now),
            Event::Down => self.unwanted(),
            Event::Connected => {
                if let State::Connecting { attempt } = self.state {
                    self.enter(State::Up { since: now, attempt });
                }
            }
            Event::Lost(cause) => self.lost(cause, now),
            Event::OpenFailed(cause) => match cause.scope() {
                Scope::Stream => {}
                Scope::Link => {
                    if matches!(self.state, State::Up { .. } | State::Resuming { .. }) {
                        self.lost(cause, now);
                    }
                }
            },
            Event::Impaired(cause) => match &self.state {
                // Its details changed, not what is wrong with it.
                State::Resuming { cause: known, .. } if Arc::ptr_eq(known, &cause) => {}
                &State::Up { since, attempt } | &State::Resuming { since, attempt, .. } => {
                    self.enter(State::Resuming {
                        since,
                        attempt,
                        cause,
                    });
                }
                State::Down | State::Connecting { .. } | State::Waiting { .. } | State::Blocked { .. } => {}
            },
            Event::Recovered => {
                if let State::Resuming { since, attempt, .. } = self.state {
                    self.enter(State::Up { since, attempt });
                }
            }
            Event::CredentialsChanged => {
                if let State::Blocked {
                    ends: Ends::Login, ..
                } = self.state
                {
                    self.connect(1);
                }
            }
            Event::Reloaded => {
                if let State::Blocked { ends, .. } = self.state {
                    match ends {
                        Ends::Bound(_) => self.actions.push_back(Action::Bind),
                        Ends::Login | Ends::Attempt(_) => self.connect(1),
                    }
                }
            }
        }
    }

    /// Takes the time, at or after [`Self::poll_timeout`]; earlier it does nothing.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_none_or(|due| now < due) {
            return;
        }
        match &mut self.state {
            State::Waiting { attempt, .. } => {
                let next = attempt.saturating_add(1);
                self.connect(next);
            }
            State::Blocked {
                ends: Ends::Bound(at),
                ..
            } => {
                *at = now + BIND_AGAIN;
                self.actions.push_back(Action::Bind);
            }
            State::Blocked {
                ends: Ends::Attempt(_),
                ..
            } => self.connect(1),
            State::Blocked {
                ends: Ends::Login, ..
            }
            | State::Down
            | State::Connecting { .. }
            | State::Up { .. }
            | State::Resuming { .. } => {}
        }
    }

    /// Returns the next piece of work.
    pub(crate) fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Returns when [`Self::handle_timeout`] wants to be called.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { until, .. } => Some(until),
            State::Blocked {
                ends: Ends::Bound(at) | Ends::Attempt(at),
                ..
            } => Some(at),
            State::Blocked {
                ends: Ends::Login, ..
            }
            | State::Down
            | State::Connecting { .. }
            | State::Up { .. }
            | State::Resuming { .. } => None,
        }
    }

    /// Returns where the tunnel is.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    fn wanted(&mut self) {
        match self.state {
            State::Down | State::Blocked { .. } => self.connect(1),
            State::Connecting { .. } | State::Up { .. } | State::Resuming { .. } | State::Waiting { .. } => {}
        }
    }

    fn port_taken(&mut self, cause: Arc<Failure>, now: Instant) {
        match self.state {
            State::Down
            | State::Blocked {
                ends: Ends::Bound(_), ..
            } => {
                self.enter(State::Blocked {
                    cause,
                    ends: Ends::Bound(now + BIND_AGAIN),
                });
            }
            State::Blocked {
                ends: Ends::Login | Ends::Attempt(_),
                ..
            }
            | State::Connecting { .. }
            | State::Up { .. }
            | State::Resuming { .. }
            | State::Waiting { .. } => {}
        }
    }

    fn unwanted(&mut self) {
        match self.state {
            State::Down => {}
            State::Connecting { .. }
            | State::Up { .. }
            | State::Resuming { .. }
            | State::Waiting { .. }
            | State::Blocked { .. } => {
                // Work that was wanted a moment ago is void.
                self.actions.clear();
                self.actions.push_back(Action::Disconnect);
                self.enter(State::Down);
            }
        }
    }

    fn lost(&mut self, cause: Arc<Failure>, now: Instant) {
        let failures = match self.state {
            State::Connecting { attempt } => attempt,
            State::Up { since, attempt } | State::Resuming { since, attempt, .. } => {
                self.actions.push_back(Action::Release);
                if now.duration_since(since) >= LASTING {
                    0
                } else {
                    attempt
                }
            }
            State::Down | State::Waiting { .. } | State::Blocked { .. } => return,
        };
        let state = match cause.remedy() {
            remedy @ (Remedy::Retry | Remedy::RetryAfter(_)) => {
                let until = now + backoff::delay(failures, remedy, &mut self.random);
                State::Waiting {
                    attempt: failures,
                    until,
                    cause,
                }
            }
            Remedy::Login { .. } => State::Blocked {
                cause,
                ends: Ends::Login,
            },
            Remedy::Fix => State::Blocked {
                cause,
                ends: Ends::Attempt(now + ATTEMPT_AGAIN),
            },
        };
        self.enter(state);
    }

    fn connect(&mut self, attempt: u32) {
        self.actions.push_back(Action::Connect);
        self.enter(State::Connecting { attempt });
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.actions.push_back(Action::Publish);
    }
}

#[cfg(test)]
mod tests;
