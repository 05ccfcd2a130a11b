//! How many bytes may wait in memory for local clients that do not read: for one stream, and for all of the daemon.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The most for all streams of the daemon together.
pub const RECEIVE_BUDGET: usize = 1 << 30;
/// What a stream may always have, however much the others have: with less, a query's answer would be cut off because
/// of somebody else's dump.
const MODEST: usize = 1 << 20;

/// What all streams have together.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    used: AtomicUsize,
}

/// What one stream has.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    limit: usize,
    used: AtomicUsize,
}

/// Why bytes can't wait any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Exceeded {
    /// The stream's own limit.
    #[error("the local client left more than {} MiB unread", .limit >> 20)]
    Stream { limit: usize },
    /// That of the daemon.
    #[error("local clients left more than {} MiB unread in all, and this one is among those with the most", .limit >> 20)]
    Daemon { limit: usize },
}

impl Budget {
    /// A budget of that many bytes.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used: AtomicUsize::new(0),
        })
    }

    /// Returns the share of a stream, which may have `limit` bytes.
    pub(super) fn share(self: &Arc<Self>, limit: usize) -> Arc<Share> {
        Arc::new(Share {
            budget: Arc::clone(self),
            limit,
            used: AtomicUsize::new(0),
        })
    }

    /// Returns how many bytes wait.
    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

impl Share {
    /// Takes note of bytes that wait from now on.
    pub(super) fn take(&self, bytes: usize) -> Result<(), Exceeded> {
        let own = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let all = self.budget.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if own > self.limit {
            return Err(Exceeded::Stream { limit: self.limit });
        }
        if all > self.budget.limit && own > MODEST {
            let limit = self.budget.limit;
            return Err(Exceeded::Daemon { limit });
        }
        Ok(())
    }

    /// Returns how many bytes wait.
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes note of bytes that wait no longer.
    pub(super) fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let left = *self.used.get_mut();
        self.budget.used.fetch_sub(left, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_has_more_than_its_own_limit_is_told() {
        let budget = Budget::new(100 << 20);
        let share = budget.share(4 << 20);
        assert_eq!(share.take(4 << 20), Ok(()));
        share.give_back(1);
        assert_eq!(share.take(1), Ok(()));
        assert_eq!(share.take(1), Err(Exceeded::Stream { limit: 4 << 20 }));
        drop(share);
        assert_eq!(budget.used(), 0, "what it had is free again");
    }

    #[test]
    fn beyond_the_budget_of_all_only_those_with_much_are_told() {
        let budget = Budget::new(10 << 20);
        let (greedy, modest) = (budget.share(100 << 20), budget.share(100 << 20));
        assert_eq!(greedy.take(10 << 20), Ok(()));
        assert_eq!(modest.take(1 << 20), Ok(()));
        assert_eq!(greedy.take(1), Err(Exceeded::Daemon { limit: 10 << 20 }));
        drop(greedy);
        assert_eq!(modest.take(1), Ok(()));
    }
}
