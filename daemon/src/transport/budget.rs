//! How many bytes may wait in memory for local clients that do not read: for one stream, and for all of the daemon.
//!
//! ```text
//!   a stream's bytes ── beyond its own limit ──► it is reset
//!                    ── beyond that of all ────► the stream with the most is, whichever it is
//! ```
//!
//! What a stream has that is reset is free at once, so that the next byte resets no other.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::watch;
use tracing::warn;

use crate::failure::{Failure, Reason, Remedy};

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
    shares: Mutex<Shares>,
}

/// All shares there are, by the order in which they were made.
#[derive(Debug, Default)]
struct Shares {
    made: u64,
    all: BTreeMap<u64, Weak<Share>>,
}

/// What one stream has.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    number: u64,
    /// What to call the stream in messages.
    client: String,
    limit: usize,
    used: AtomicUsize,
    /// Says that the stream ends at once, whatever waits to be read.
    aborted: watch::Sender<Option<Arc<Failure>>>,
}

/// Why bytes can't wait any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Exceeded {
    /// The stream's own limit.
    #[error("the local client left more than {} MiB unread", .limit >> 20)]
    Stream { limit: usize },
    /// That of the daemon.
    #[error("local clients left more than {} MiB unread in all, and this one has the most", .limit >> 20)]
    Daemon { limit: usize },
}

impl Budget {
    /// A budget of that many bytes.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used: AtomicUsize::new(0),
            shares: Mutex::default(),
        })
    }

    /// Returns the share of a client's stream, which may have `limit` bytes.
    pub(super) fn share(self: &Arc<Self>, limit: usize, client: &str) -> Arc<Share> {
        let mut shares = self.shares();
        shares.made += 1;
        let share = Arc::new(Share {
            budget: Arc::clone(self),
            number: shares.made,
            client: client.to_owned(),
            limit,
            used: AtomicUsize::new(0),
            aborted: watch::Sender::new(None),
        });
        shares.all.insert(share.number, Arc::downgrade(&share));
        share
    }

    /// Returns how many bytes wait.
    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Resets the streams with the most until what waits is within the limit, or nobody has more than a little.
    fn make_room(&self) {
        while self.used.load(Ordering::Relaxed) > self.limit {
            // A share that is dropped here takes itself off the list, so that must be free again by then.
            let all: Vec<_> = self.shares().all.values().filter_map(Weak::upgrade).collect();
            let greediest = all.iter().max_by_key(|share| share.used());
            let Some(greediest) = greediest.filter(|share| share.used() > MODEST) else {
                return;
            };
            let limit = self.limit;
            greediest.reset(Exceeded::Daemon { limit });
        }
    }

    fn shares(&self) -> MutexGuard<'_, Shares> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// Takes note of bytes that wait from now on; fails where the stream is reset instead.
    pub(super) fn take(&self, bytes: usize) -> Result<(), Arc<Failure>> {
        self.check()?;
        let own = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let all = self.budget.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if own > self.limit {
            let limit = self.limit;
            self.reset(Exceeded::Stream { limit });
        } else if all > self.budget.limit {
            self.budget.make_room();
        }
        self.check()
    }

    /// Returns how many bytes wait.
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes note of bytes that wait no longer.
    pub(super) fn give_back(&self, bytes: usize) {
        // What a stream had that was reset has been given back.
        if self.check().is_ok() {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// Follows whether the stream ends at once.
    pub(super) fn aborted(&self) -> watch::Receiver<Option<Arc<Failure>>> {
        self.aborted.subscribe()
    }

    fn check(&self) -> Result<(), Arc<Failure>> {
        match &*self.aborted.borrow() {
            Some(failure) => Err(Arc::clone(failure)),
            None => Ok(()),
        }
    }

    /// Ends the stream at once, and without what its client has not read: it may never read it.
    fn reset(&self, exceeded: Exceeded) {
        let doing = format!("the connection of {} was reset", self.client);
        let hint = match exceeded {
            Exceeded::Stream { .. } => {
                "a larger `receive_buffer` in this tunnel's configuration lets more wait in memory"
            }
            Exceeded::Daemon { .. } => {
                "a smaller `receive_buffer` in `[defaults]` resets such clients earlier"
            }
        };
        let failure = Failure::new(Reason::Unreachable, Remedy::Retry, doing)
            .because(exceeded)
            .hint(hint)
            .of_stream();
        warn!("{}", failure.in_one_line());
        self.aborted.send_replace(Some(Arc::new(failure)));
        self.let_go();
    }

    fn let_go(&self) {
        let left = self.used.swap(0, Ordering::Relaxed);
        self.budget.used.fetch_sub(left, Ordering::Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.let_go();
        self.budget.shares().all.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(taken: Result<(), Arc<Failure>>) -> String {
        taken.unwrap_err().in_one_line()
    }

    #[test]
    fn a_stream_that_has_more_than_its_own_limit_is_told() {
        let budget = Budget::new(100 << 20);
        let share = budget.share(4 << 20, "127.0.0.1:5");
        share.take(4 << 20).unwrap();
        share.give_back(1);
        share.take(1).unwrap();
        let words = words(share.take(1));
        assert!(
            words.contains("127.0.0.1:5") && words.contains("4 MiB unread"),
            "{words}"
        );
        assert_eq!(budget.used(), 0, "what it had is free again");
        share.give_back(1);
        drop(share);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn beyond_the_budget_of_all_whoever_has_the_most_is_reset() {
        let budget = Budget::new(10 << 20);
        let greedy = budget.share(100 << 20, "127.0.0.1:5");
        let late = budget.share(100 << 20, "127.0.0.1:6");
        greedy.take(7 << 20).unwrap();
        late.take(3 << 20).unwrap();
        late.take(1).unwrap();
        assert_eq!(budget.used(), (3 << 20) + 1, "the other's is free at once");
        assert!(greedy.aborted().borrow().is_some());
        let words = words(greedy.take(1));
        assert!(
            words.contains("127.0.0.1:5") && words.contains("10 MiB unread in all"),
            "{words}"
        );
        greedy.give_back(7 << 20);
        late.take(7 << 20).unwrap_err();
        assert_eq!(budget.used(), 0, "now it has the most");
    }

    #[test]
    fn a_stream_that_has_little_is_not_reset_for_the_others() {
        let budget = Budget::new(2 << 20);
        let shares: Vec<_> = (0..3).map(|_| budget.share(100 << 20, "127.0.0.1:5")).collect();
        for share in &shares {
            share.take(MODEST).unwrap();
        }
        assert!(shares.iter().all(|share| share.aborted().borrow().is_none()));
        drop(shares);
        assert_eq!(budget.used(), 0);
        assert!(budget.shares().all.is_empty());
    }
}
