//! What the system allows this process, and how much of it tunnels may have.
//!
//! ```text
//!   descriptors   ├──────────── three quarters ────────────┼─── the last quarter ───┤
//!   are for        listeners, and two for each connection    everything else: control socket,
//!                                                            sessions, DNS, API calls, files
//! ```
//!
//! Connections beyond that wait in the kernel until others end. So a crowd of clients never keeps a person from asking
//! how the daemon is, nor the daemon from mending a link.

use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{debug, warn};

/// The descriptors of a connection: its client's, and at most one more for its way to the target.
const OF_A_CONNECTION: u32 = 2;

/// What counts as the limit where the system has none: more connections than ports.
const UNLIMITED: u64 = 1 << 20;

/// Raises the soft limit of open files to the hard one: each connection takes a file descriptor or two, and the
/// customary soft limit of 1024 is kept for programs that use `select`.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    match setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    ) {
        Ok(()) => debug!(
            from = limit.current,
            to = limit.maximum,
            "raised the limit of open files"
        ),
        Err(error) => warn!(%error, soft = limit.current, "cannot raise the limit of open files"),
    }
}

/// The descriptors that all tunnels of a daemon may have together.
#[derive(Debug, Clone)]
pub(crate) struct Allowance(Arc<Semaphore>);

/// A part of the allowance, given back when dropped.
#[derive(Debug)]
pub(crate) struct Portion {
    _descriptors: OwnedSemaphorePermit,
}

impl Allowance {
    /// What the process may give to its tunnels.
    pub(crate) fn of_process() -> Self {
        Self::of(getrlimit(Resource::Nofile).current.unwrap_or(UNLIMITED))
    }

    /// What a process with so many descriptors may give to its tunnels.
    pub(crate) fn of(descriptors: u64) -> Self {
        let descriptors = descriptors.min(UNLIMITED);
        let allowed = usize::try_from(descriptors - descriptors / 4).unwrap_or(Semaphore::MAX_PERMITS);
        Self(Arc::new(Semaphore::new(allowed)))
    }

    /// Takes note of a tunnel's listening sockets. They are few, and not refused: where connections have taken all, they
    /// are of the last quarter.
    pub(crate) fn listeners(&self, count: usize) -> Option<Portion> {
        self.take(u32::try_from(count).ok()?)
    }

    /// Returns what a connection needs; `None` while there is too little.
    pub(crate) fn connection(&self) -> Option<Portion> {
        self.take(OF_A_CONNECTION)
    }

    /// Waits until a connection's need can be met, without taking it. Cancel-safe.
    pub(crate) async fn has_room(&self) {
        // Nobody closes the semaphore.
        let _ = self.0.acquire_many(OF_A_CONNECTION).await;
    }

    fn take(&self, descriptors: u32) -> Option<Portion> {
        let taken = Arc::clone(&self.0).try_acquire_many_owned(descriptors).ok()?;
        Some(Portion { _descriptors: taken })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn as_many_files_as_the_system_allows_can_be_open() {
        raise_open_files();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }

    #[test]
    fn a_quarter_of_the_descriptors_is_not_for_tunnels() {
        let allowance = Allowance::of(16);
        let _listeners = allowance.listeners(2).unwrap();
        let mut connections: Vec<_> = std::iter::from_fn(|| allowance.connection()).collect();
        assert_eq!(connections.len(), (12 - 2) / 2);
        assert!(allowance.has_room().now_or_never().is_none());
        connections.pop();
        assert!(allowance.has_room().now_or_never().is_some());
        assert!(allowance.connection().is_some(), "waiting for room takes none");
    }

    #[test]
    fn a_system_without_a_limit_has_room_for_every_port() {
        assert!(
            Allowance::of(u64::MAX)
                .listeners(2 * usize::from(u16::MAX))
                .is_some()
        );
    }
}
