//! Counters of one tunnel, written by its connections and read whenever a status is asked for.
//!
//! How many connections there are can also be followed, because an on-demand tunnel lives by it.

mod losses;
mod resumes;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use self::losses::Losses;
pub(crate) use self::resumes::Resumes;

/// The most connections that wait for a link at a time, for one tunnel: more than any pool opens, and few enough that
/// what they sent ahead fits in a few MiB.
const MOST_HELD: u32 = 256;

/// The counters. They live as long as the daemon, through reloads of their tunnel.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    presence: watch::Sender<Presence>,
    connections_total: AtomicU64,
    connections_failed: AtomicU64,
    connections_expired: AtomicU64,
    connections_refused: AtomicU64,
    connections_unknown: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    links_lost: AtomicU64,
    losses: Mutex<Losses>,
    resumes: Mutex<Resumes>,
}

/// The connections that there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Presence {
    /// All that are open.
    pub(crate) connections: u32,
    /// Those of them that wait for a link.
    pub(crate) held: u32,
}

/// What the counters said at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// Local connections open.
    pub(crate) connections: u32,
    /// Local connections so far.
    pub(crate) connections_total: u64,
    /// Connections that ended with an error.
    pub(crate) connections_failed: u64,
    /// Those of them that were cut because their route's time was over.
    pub(crate) connections_expired: u64,
    /// Connections of users who may not use the tunnel, which are in no other count.
    pub(crate) connections_refused: u64,
    /// Connections of which nobody knew whose they were, which are in no other count.
    pub(crate) connections_unknown: u64,
    /// Bytes from the target to local clients.
    pub(crate) bytes_in: u64,
    /// Bytes from local clients to the target.
    pub(crate) bytes_out: u64,
    /// Connections waiting for a link.
    pub(crate) held: u32,
    /// Links lost so far.
    pub(crate) links_lost: u64,
}

impl Meter {
    /// Returns what the counters say.
    pub(crate) fn read(&self) -> Traffic {
        let Presence { connections, held } = *self.presence.borrow();
        Traffic {
            connections,
            connections_total: self.connections_total.load(Ordering::Relaxed),
            connections_failed: self.connections_failed.load(Ordering::Relaxed),
            connections_expired: self.connections_expired.load(Ordering::Relaxed),
            connections_refused: self.connections_refused.load(Ordering::Relaxed),
            connections_unknown: self.connections_unknown.load(Ordering::Relaxed),
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
            held,
            links_lost: self.links_lost.load(Ordering::Relaxed),
        }
    }

    /// Follows how many connections there are.
    pub(crate) fn presence(&self) -> watch::Receiver<Presence> {
        self.presence.subscribe()
    }

    /// Counts a connection, as open until the returned value is dropped.
    pub(crate) fn connection(self: &Arc<Self>) -> OpenConnection {
        self.connections_total.fetch_add(1, Ordering::Relaxed);
        self.presence.send_modify(|presence| presence.connections += 1);
        OpenConnection(Arc::clone(self))
    }

    /// Counts a connection as waiting for a link until the returned value is dropped; `None` if too many wait.
    pub(crate) fn hold(self: &Arc<Self>) -> Option<HeldConnection> {
        let has_room = self.presence.send_if_modified(|presence| {
            let has_room = presence.held < MOST_HELD;
            presence.held += u32::from(has_room);
            has_room
        });
        has_room.then(|| HeldConnection(Arc::clone(self)))
    }

    /// Counts a connection that ended with an error.
    pub(crate) fn connection_failed(&self) {
        self.connections_failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a connection that was cut because its route's time was over.
    pub(crate) fn connection_expired(&self) {
        self.connections_expired.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a connection of a user who may not use the tunnel.
    pub(crate) fn connection_refused(&self) {
        self.connections_refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a connection that was not served because nobody knew whose it was.
    pub(crate) fn connection_unknown(&self) {
        self.connections_unknown.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a connection that was lost with the way to its target.
    pub(crate) fn connection_lost(&self) {
        locked(&self.losses).note(Instant::now());
    }

    /// Returns how many connections were lost with the way to their target.
    pub(crate) fn lost(&self) -> u64 {
        locked(&self.losses).total()
    }

    /// Returns how many had been lost before those that belong to what happens now.
    pub(crate) fn lost_before(&self, now: Instant) -> u64 {
        locked(&self.losses).before(now)
    }

    /// Counts a link that was resumed.
    pub(crate) fn resumed(&self, took: Duration) {
        locked(&self.resumes).note(took);
    }

    /// Returns how long links took to be resumed.
    pub(crate) fn resumes(&self) -> Resumes {
        locked(&self.resumes).clone()
    }

    /// Counts bytes that the target sent.
    pub(crate) fn received(&self, bytes: u64) {
        self.bytes_in.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes sent to the target.
    pub(crate) fn sent(&self, bytes: u64) {
        self.bytes_out.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts a link that was lost.
    pub(crate) fn link_lost(&self) {
        self.links_lost.fetch_add(1, Ordering::Relaxed);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection, counted as open.
#[derive(Debug)]
pub(crate) struct OpenConnection(Arc<Meter>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.presence.send_modify(|presence| presence.connections -= 1);
    }
}

/// A connection, counted as waiting for a link.
#[derive(Debug)]
pub(crate) struct HeldConnection(Arc<Meter>);

impl Drop for HeldConnection {
    fn drop(&mut self) {
        self.0.presence.send_modify(|presence| presence.held -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_connection_counts_until_it_is_dropped() {
        let meter = Arc::new(Meter::default());
        let first = meter.connection();
        let second = meter.connection();
        assert_eq!((meter.read().connections, meter.read().connections_total), (2, 2));
        drop(first);
        drop(second);
        assert_eq!((meter.read().connections, meter.read().connections_total), (0, 2));
    }

    #[test]
    fn no_more_than_the_limit_wait() {
        let meter = Arc::new(Meter::default());
        let mut held: Vec<_> = (0..MOST_HELD).map_while(|_| meter.hold()).collect();
        assert_eq!(meter.read().held, MOST_HELD);
        assert!(meter.hold().is_none());
        held.pop();
        assert!(meter.hold().is_some(), "one that left makes room");
    }
}
