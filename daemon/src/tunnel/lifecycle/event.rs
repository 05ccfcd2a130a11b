//! What the machine is told, and what it asks for.

use std::sync::Arc;

use crate::failure::Failure;
use crate::tunnel::Wish;

/// A fact that the machine is told.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// The tunnel is wanted, and its local address is bound.
    Up(Wish),
    /// The tunnel is wanted, and its local address cannot be bound.
    PortTaken(Arc<Failure>),
    /// The tunnel is not wanted.
    Down,
    /// What local clients need of the link, also when it is as before.
    Demand(Demand),
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
    /// Credentials may be others than before.
    CredentialsChanged,
    /// The machine woke, or its network is another than before.
    NetworkChanged,
    /// The configuration was read again, and this tunnel's is as before.
    Reloaded,
}

/// What local clients need of the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Demand {
    /// Nothing: there are none.
    Nothing,
    /// That it stays: there are some, and none of them waits.
    Use,
    /// That it comes: one at least waits for it.
    Wait,
}

/// Work for the supervisor, to be done in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Bind the local address again, and say [`Event::Up`] or [`Event::PortTaken`].
    Bind,
    /// Start an attempt, and say [`Event::Connected`] or [`Event::Lost`].
    Connect,
    /// Have the link ask its far end for a sign of life.
    Probe,
    /// Have the link try again whatever waits for a login.
    Retry,
    /// Let go of the link: it takes no new streams; those it has may end in their own time.
    Release(Parting),
    /// End attempt, listener, streams and link.
    Disconnect,
    /// Show the state.
    Publish,
}

/// Why a link is let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parting {
    /// It was lost.
    Lost,
    /// Nobody has used it for a while.
    Unused,
}
