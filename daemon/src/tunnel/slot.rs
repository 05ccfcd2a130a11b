//! Where a connection finds its link, or learns what to do without one.

use std::fmt;
use std::sync::Arc;

use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::failure::Failure;
use crate::transport::Link;

/// What a new connection meets. The supervisor writes it, connections follow it.
#[derive(Debug, Clone)]
pub(crate) enum Slot {
    /// A link that takes streams.
    Linked(Lease),
    /// No link, but one may come by itself: wait for it.
    Hold {
        /// Why there is none; `None` while the first is being made.
        cause: Option<Arc<Failure>>,
    },
    /// No link, and none will come before a person acts.
    Refuse {
        /// Why; `None` if the tunnel is going down.
        cause: Option<Arc<Failure>>,
    },
}

/// The use of a link. As long as one lives, a link that was let go is not closed.
#[derive(Clone)]
pub(crate) struct Lease {
    /// The link.
    pub(crate) link: Arc<dyn Link>,
    /// Which of the tunnel's links it is.
    pub(crate) number: u64,
    /// Counts the use.
    pub(crate) _user: TaskTrackerToken,
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}
