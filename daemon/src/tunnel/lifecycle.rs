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
//!
//!   A change of network:
//!     Up, Resuming     the link is asked for a sign of life, or to resume at once
//!     Waiting          the next attempt comes at once, unless the far end asked for time ─► Connecting
//!     Blocked, other   one attempt at once ───────────────────────────────────────────────► Connecting
//! ```
//!
//! `Resuming` is shown as `waiting`: its link is kept and its streams live, new connections are held. Where only a login
//! mends it, it is shown as `blocked`, and `up`, a reload or other credentials have its transport try again.
//!
//! An on-demand tunnel has a link only while somebody needs one: a local connection waits for it, or a person asked for
//! it and there has been none since. When nobody does, these lead to `Idle` and nowhere else:
//!
//! ```text
//!   Down ─────── up ─────────────────┐
//!   Up ───────── quiet, or lost ─────┤         demand
//!   Resuming ─── quiet, or lost ─────┼──► Idle ─────────────────────► Connecting
//!   Connecting ─ failed ─────────────┤     └── demand soon after ───► Waiting
//!   Waiting ──── timer ──────────────┤         a loss or failure
//!   Blocked ──── whatever ends it ───┘
//! ```
//!
//! A missing login blocks it all the same. *Quiet* is no connection at all for `idle_after`; a lost link's own connections do not wait, they end with it.
//!
//! The machine has the face of every machine here: `handle` and `handle_timeout` take facts and the time, `poll_action`
//! and `poll_timeout` give work. It never waits, reads a clock or touches a socket. An event that does not concern the
//! present state (it raced with another) changes nothing.

mod around;
mod event;
mod state;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub(crate) use self::event::{Action, Demand, Event, Parting};
pub(crate) use self::state::{Ends, Mends, Setback, State};
use crate::config::Mode;
use crate::failure::{Failure, Remedy, Scope};
use crate::tunnel::{Wish, backoff};

/// How long a link must have been up for attempts to count from zero again: a far end that accepts and drops within
/// seconds is backed off from, one that ends sessions by the hour is not. A setback is forgotten as long after the wait
/// that it asks for.
const LASTING: Duration = Duration::from_secs(10);

/// How often a taken port is tried again: soon enough to look immediate, and binding costs next to nothing.
const BIND_AGAIN: Duration = Duration::from_secs(1);

/// How often a tunnel that a person must mend is tried by itself: whoever mended it elsewhere (a permission, a stopped
/// database) finds it up again, and AWS is not asked often.
const ATTEMPT_AGAIN: Duration = Duration::from_secs(300);

/// The machine. See the module's documentation.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    mode: Mode,
    state: State,
    demand: Demand,
    /// Since when the demand is what it is.
    demand_since: Instant,
    /// Whether a person asked for a link and there has been none since.
    asked: bool,
    /// The time to which a change of network has brought an attempt forward, the latest one.
    hurried: Option<Instant>,
    /// Whether credentials have changed since the attempt began, which may have read them before.
    renewed: bool,
    actions: VecDeque<Action>,
    random: fastrand::Rng,
}

impl Lifecycle {
    /// A tunnel that is down. `random` jitters its waits.
    pub(crate) fn new(mode: Mode, random: fastrand::Rng, now: Instant) -> Self {
        Self {
            mode,
            state: State::Down,
            demand: Demand::Nothing,
            demand_since: now,
            asked: false,
            hurried: None,
            renewed: false,
            actions: VecDeque::new(),
            random,
        }
    }

    /// Takes a fact.
    pub(crate) fn handle(&mut self, event: Event, now: Instant) {
        match event {
            Event::Up(wish) => self.wanted(wish),
            Event::PortTaken(cause) => self.port_taken(cause, now),
            Event::Down => self.unwanted(),
            Event::Demand(demand) => self.demanded(demand, now),
            Event::Connected => {
                if let State::Connecting { attempt } = self.state {
                    self.asked = false;
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
                    let mends = match cause.remedy() {
                        Remedy::Login { .. } => Mends::Login,
                        Remedy::Retry | Remedy::RetryAfter(_) | Remedy::Fix => Mends::Transport,
                    };
                    self.enter(State::Resuming {
                        since,
                        attempt,
                        cause,
                        mends,
                    });
                }
                State::Down
                | State::Idle { .. }
                | State::Connecting { .. }
                | State::Waiting(_)
                | State::Blocked { .. } => {}
            },
            Event::Recovered => {
                if let State::Resuming { since, attempt, .. } = self.state {
                    self.enter(State::Up { since, attempt });
                }
            }
            Event::CredentialsChanged => self.credentials_changed(),
            Event::NetworkChanged => self.network_changed(now),
            Event::Reloaded => match self.state {
                State::Blocked {
                    ends: Ends::Bound(_), ..
                } => self.actions.push_back(Action::Bind),
                State::Blocked {
                    ends: Ends::Login | Ends::Attempt(_),
                    ..
                } => self.begin(),
                State::Resuming { .. } => self.retry(),
                State::Down
                | State::Idle { .. }
                | State::Connecting { .. }
                | State::Up { .. }
                | State::Waiting(_) => {}
            },
        }
    }

    /// Takes the time, at or after [`Self::poll_timeout`]; earlier it does nothing.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_none_or(|due| now < due) {
            return;
        }
        let needed = self.needs_link();
        match &mut self.state {
            State::Waiting(Setback { attempt, .. }) if needed => {
                let next = attempt.saturating_add(1);
                self.connect(next);
            }
            State::Waiting(setback) => {
                let setback = Some(setback.clone());
                self.enter(State::Idle { setback });
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
            } => self.begin(),
            State::Up { .. } | State::Resuming { .. } => {
                self.actions.push_back(Action::Release(Parting::Unused));
                self.enter(State::Idle { setback: None });
            }
            State::Blocked {
                ends: Ends::Login, ..
            }
            | State::Down
            | State::Idle { .. }
            | State::Connecting { .. } => {}
        }
    }

    /// Returns the next piece of work.
    pub(crate) fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Returns when [`Self::handle_timeout`] wants to be called.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Waiting(Setback { until, .. }) => Some(until),
            State::Blocked {
                ends: Ends::Bound(at) | Ends::Attempt(at),
                ..
            } => Some(at),
            State::Up { since, .. } | State::Resuming { since, .. } => self.quiet_from(since),
            State::Blocked {
                ends: Ends::Login, ..
            }
            | State::Down
            | State::Idle { .. }
            | State::Connecting { .. } => None,
        }
    }

    /// Returns where the tunnel is.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    fn wanted(&mut self, wish: Wish) {
        match (&self.state, wish) {
            (State::Down | State::Blocked { .. }, Wish::Listen) => self.begin(),
            (State::Down | State::Blocked { .. } | State::Idle { .. }, Wish::Connect) => {
                self.asked = true;
                self.connect(1);
            }
            (State::Connecting { .. } | State::Waiting(_), Wish::Connect) => self.asked = true,
            (State::Resuming { .. }, Wish::Listen | Wish::Connect) => self.retry(),
            (State::Idle { .. } | State::Connecting { .. } | State::Waiting(_), Wish::Listen)
            | (State::Up { .. }, Wish::Listen | Wish::Connect) => {}
        }
    }

    fn demanded(&mut self, demand: Demand, now: Instant) {
        if demand != self.demand {
            self.demand = demand;
            self.demand_since = now;
        }
        let (State::Idle { setback }, Demand::Wait) = (&self.state, demand) else {
            return;
        };
        match setback.clone() {
            Some(setback) if now < setback.until => self.enter(State::Waiting(setback)),
            Some(setback) if now < setback.until + LASTING => self.connect(setback.attempt.saturating_add(1)),
            Some(_) | None => self.connect(1),
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
            | State::Idle { .. }
            | State::Connecting { .. }
            | State::Up { .. }
            | State::Resuming { .. }
            | State::Waiting(_) => {}
        }
    }

    fn unwanted(&mut self) {
        match self.state {
            State::Down => {}
            State::Idle { .. }
            | State::Connecting { .. }
            | State::Up { .. }
            | State::Resuming { .. }
            | State::Waiting(_)
            | State::Blocked { .. } => {
                self.asked = false;
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
                self.actions.push_back(Action::Release(Parting::Lost));
                if now.duration_since(since) >= LASTING {
                    0
                } else {
                    attempt
                }
            }
            State::Down | State::Idle { .. } | State::Waiting(_) | State::Blocked { .. } => return,
        };
        let setback = Setback {
            attempt: failures,
            until: now + backoff::delay(failures, cause.remedy(), &mut self.random),
            cause: Arc::clone(&cause),
        };
        let is_outdated = self.renewed && matches!(self.state, State::Connecting { .. });
        // Also where nobody needs a link: whoever comes next would ask AWS in vain.
        if let Remedy::Login { .. } = cause.remedy()
            && !is_outdated
        {
            return self.enter(State::Blocked {
                cause,
                ends: Ends::Login,
            });
        }
        if !self.needs_link() {
            return self.enter(State::Idle {
                setback: Some(setback),
            });
        }
        let state = match cause.remedy() {
            Remedy::Login { .. } => return self.connect(failures.saturating_add(1)),
            Remedy::Retry | Remedy::RetryAfter(_) => State::Waiting(setback),
            Remedy::Fix => State::Blocked {
                cause,
                ends: Ends::Attempt(now + ATTEMPT_AGAIN),
            },
        };
        self.enter(state);
    }

    /// Does what a tunnel does that nothing hinders.
    fn begin(&mut self) {
        if self.needs_link() {
            self.connect(1);
        } else {
            self.enter(State::Idle { setback: None });
        }
    }

    fn needs_link(&self) -> bool {
        match self.mode {
            Mode::Always => true,
            Mode::OnDemand { .. } => self.asked || self.demand == Demand::Wait,
        }
    }

    /// Returns when a link that was made at `since` will have been of no use for too long.
    fn quiet_from(&self, since: Instant) -> Option<Instant> {
        let Mode::OnDemand { idle_after } = self.mode else {
            return None;
        };
        (self.demand == Demand::Nothing).then(|| since.max(self.demand_since) + idle_after)
    }

    fn connect(&mut self, attempt: u32) {
        self.renewed = false;
        self.actions.push_back(Action::Connect);
        self.enter(State::Connecting { attempt });
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.actions.push_back(Action::Publish);
    }
}
