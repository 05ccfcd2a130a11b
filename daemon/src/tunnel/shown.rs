//! What a state of the machine is to others: what a new connection meets, what the board shows, what the log says.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::{debug, error, info};

use crate::status::{self, wall_clock};
use crate::tunnel::lifecycle::{Ends, Mends, Setback, State};
use crate::tunnel::period::Linked;
use crate::tunnel::slot::Slot;

/// Returns what a new connection meets in a state.
pub(crate) fn slot(state: &State, linked: Option<&Linked>) -> Slot {
    match state {
        State::Down => Slot::Refuse { cause: None },
        State::Idle { .. } | State::Connecting { .. } => Slot::Hold { cause: None },
        State::Up { .. } => match linked {
            Some(linked) => Slot::Linked(linked.lease()),
            None => Slot::Hold { cause: None },
        },
        State::Resuming { cause, .. }
        | State::Waiting(Setback { cause, .. })
        | State::Blocked {
            cause,
            ends: Ends::Login,
        } => Slot::Hold {
            cause: Some(Arc::clone(cause)),
        },
        State::Blocked {
            cause,
            ends: Ends::Bound(_) | Ends::Attempt(_),
        } => Slot::Refuse {
            cause: Some(Arc::clone(cause)),
        },
    }
}

/// Returns what the board shows of a state.
pub(crate) fn status(state: &State, now: Instant) -> status::State {
    match state {
        State::Down => status::State::Down,
        State::Idle { setback } => status::State::Idle {
            cause: setback.as_ref().map(|setback| Arc::clone(&setback.cause)),
        },
        State::Connecting { attempt } => status::State::Connecting { attempt: *attempt },
        State::Up { .. } => status::State::Up,
        State::Resuming {
            attempt,
            cause,
            mends: Mends::Transport,
            ..
        } => status::State::Waiting {
            attempt: *attempt,
            until: None,
            cause: Arc::clone(cause),
        },
        State::Waiting(Setback {
            attempt,
            until,
            cause,
        }) => status::State::Waiting {
            attempt: *attempt,
            until: Some(wall_clock() + until.saturating_duration_since(now)),
            cause: Arc::clone(cause),
        },
        State::Resuming {
            cause,
            mends: Mends::Login,
            ..
        }
        | State::Blocked { cause, .. } => status::State::Blocked {
            cause: Arc::clone(cause),
        },
    }
}

/// Says in the log that a state has begun, and why, as the board's history has it.
pub(crate) fn log(state: &State, reason: &str, now: Instant) {
    match state {
        State::Down => info!("down"),
        State::Idle { setback: None } => info!("idle: connects on first use"),
        State::Idle { setback: Some(_) } => info!("idle: connects on next use: {reason}"),
        State::Connecting { attempt } => debug!(attempt, "connecting"),
        State::Up { .. } if reason.is_empty() => info!("up"),
        State::Up { .. } => info!("up: {reason}"),
        State::Resuming {
            mends: Mends::Transport,
            ..
        } => info!("waiting for the link to be resumed: {reason}"),
        State::Resuming {
            mends: Mends::Login, ..
        } => error!("blocked, and the link kept to be resumed: {reason}"),
        State::Waiting(Setback { attempt, until, .. }) => {
            let wait = until.saturating_duration_since(now);
            info!(attempt, ?wait, "waiting: {reason}");
        }
        State::Blocked { .. } => error!("blocked: {reason}"),
    }
}
