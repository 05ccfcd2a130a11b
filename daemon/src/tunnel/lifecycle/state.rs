//! Where a tunnel is in its life, with what belongs to each place.

use std::sync::Arc;

use tokio::time::Instant;

use crate::failure::Failure;

/// Where a tunnel is in its life.
#[derive(Debug, Clone)]
pub(crate) enum State {
    /// Not wanted; nothing is bound.
    Down,
    /// Wanted and listening, without a link: one is made when somebody comes.
    Idle {
        /// What ended the last link or attempt, if it did not end for want of use.
        setback: Option<Setback>,
    },
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
    /// The link is kept but carries nothing.
    Resuming {
        /// When the link was made.
        since: Instant,
        /// The attempt that made it.
        attempt: u32,
        /// What happened to it.
        cause: Arc<Failure>,
        /// What mends it.
        mends: Mends,
    },
    /// The next attempt has its time.
    Waiting(Setback),
    /// A person has to do something.
    Blocked {
        /// What blocks it.
        cause: Arc<Failure>,
        /// What ends it besides `up` and `down`.
        ends: Ends,
    },
}

/// What mends a link that carries nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mends {
    /// Its transport, in its own time.
    Transport,
    /// A login; nothing is asked of AWS before.
    Login,
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

/// A lost link or a failed attempt, and how long it makes the next attempt wait. One that nobody waited for slows down
/// whoever comes next: also then a far end that accepts and drops is backed off from.
#[derive(Debug, Clone)]
pub(crate) struct Setback {
    /// Attempts that failed since the last link that lasted.
    pub(crate) attempt: u32,
    /// When the next one may start.
    pub(crate) until: Instant,
    /// Why the last one failed, or how the link was lost.
    pub(crate) cause: Arc<Failure>,
}
