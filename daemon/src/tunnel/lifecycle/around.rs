//! What follows from changes around a tunnel: of credentials, and of the network.

use std::time::Duration;

use tokio::time::Instant;

use super::Lifecycle;
use super::event::Action;
use super::state::{Ends, Mends, Setback, State};
use crate::failure::Remedy;
use crate::surroundings::HURRY_AGAIN;

/// The same where a person must mend what keeps the tunnel down: the network is seldom what it was.
const HURRY_BLOCKED_AGAIN: Duration = Duration::from_secs(30);

impl Lifecycle {
    /// Goes on where only a login was missing.
    pub(super) fn credentials_changed(&mut self) {
        match self.state {
            State::Blocked {
                ends: Ends::Login, ..
            } => self.begin(),
            // Also of a link that is up a part may wait for a login.
            State::Up { .. } | State::Resuming { .. } => self.retry(),
            State::Connecting { .. } => self.renewed = true,
            State::Blocked {
                ends: Ends::Bound(_) | Ends::Attempt(_),
                ..
            }
            | State::Down
            | State::Idle { .. }
            | State::Waiting(_) => {}
        }
    }

    /// Has the link try again what waits for a login.
    pub(super) fn retry(&mut self) {
        self.actions.push_back(Action::Retry);
        if let State::Resuming {
            mends: mends @ Mends::Login,
            ..
        } = &mut self.state
        {
            *mends = Mends::Transport;
            self.actions.push_back(Action::Publish);
        }
    }

    /// Does at once, after a change of network, what had its time.
    pub(super) fn network_changed(&mut self, now: Instant) {
        let hurried = self.hurried;
        let not_before = |pause| hurried.map_or(now, |hurried| now.max(hurried + pause));
        let (due, sooner) = match &mut self.state {
            State::Up { .. } | State::Resuming { .. } => return self.actions.push_back(Action::Probe),
            State::Waiting(Setback { until, cause, .. }) => match cause.remedy() {
                Remedy::Retry | Remedy::Fix => (until, not_before(HURRY_AGAIN)),
                // Whoever asked for time is not another one by another way.
                Remedy::RetryAfter(_) | Remedy::Login { .. } => return,
            },
            State::Blocked {
                ends: Ends::Attempt(at),
                ..
            } => (at, not_before(HURRY_BLOCKED_AGAIN)),
            State::Blocked {
                ends: Ends::Login | Ends::Bound(_),
                ..
            }
            | State::Down
            | State::Idle { .. }
            | State::Connecting { .. } => return,
        };
        if sooner >= *due {
            return;
        }
        *due = sooner;
        self.hurried = Some(sooner);
        if sooner > now {
            return self.actions.push_back(Action::Publish);
        }
        self.handle_timeout(now);
    }
}
