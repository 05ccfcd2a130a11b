//! The sendings of our messages by their times: under way, overdue, lost.
//!
//! ```text
//!   launch ─► under way ── its timeout ──► overdue ── a later sending has arrived ──► lost: to be sent again
//!                                             └────── the oldest, once a timeout ───► asks: is sent again
//! ```
//!
//! What is overdue may be lost, or stand in a queue before a slow uplink. Were all of it sent again at once, it would
//! make the queue longer each time; so one message asks, and its acknowledgement tells that what was sent before it and
//! is still missing is lost.
//!
//! A sending that a later one of its message, or an acknowledgement, has made stale stays until it comes to the front.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// One sending of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Sending {
    pub(super) at: Instant,
    pub(super) sequence: u64,
}

/// The sendings of one side.
#[derive(Default)]
pub(super) struct Flight {
    /// Oldest first.
    under_way: VecDeque<Sending>,
    overdue: BTreeSet<Sending>,
    asked: Option<Instant>,
    latest_arrived: Option<Instant>,
}

impl Flight {
    /// A message is sent, later than all others.
    pub(super) fn launch(&mut self, sending: Sending) {
        self.under_way.push_back(sending);
    }

    /// Forgets all sendings.
    pub(super) fn clear(&mut self) {
        self.under_way.clear();
        self.overdue.clear();
    }

    /// Returns the oldest sending under way.
    pub(super) fn oldest(&self) -> Option<Sending> {
        self.under_way.front().copied()
    }

    /// The oldest sending is under way no more.
    pub(super) fn drop_oldest(&mut self) {
        self.under_way.pop_front();
    }

    /// Returns whether something that was sent later has arrived.
    pub(super) fn is_lost(&self, expired: Sending) -> bool {
        self.latest_arrived.is_some_and(|arrived| expired.at < arrived)
    }

    /// Keeps an expired sending of which nothing else is known.
    pub(super) fn keep_overdue(&mut self, expired: Sending) {
        self.overdue.insert(expired);
    }

    /// A sending of that time has arrived; returns the numbers of what is lost.
    pub(super) fn handle_arrival(&mut self, at: Instant) -> impl Iterator<Item = u64> {
        self.latest_arrived = self.latest_arrived.max(Some(at));
        let later = self.overdue.split_off(&Sending { at, sequence: 0 });
        let lost = std::mem::replace(&mut self.overdue, later);
        lost.into_iter().map(|sending| sending.sequence)
    }

    /// Takes the oldest overdue sending.
    pub(super) fn take_overdue(&mut self) -> Option<Sending> {
        self.overdue.pop_first()
    }

    /// Returns whether an overdue sending is to ask.
    pub(super) fn asks(&self, timeout: Duration, now: Instant) -> bool {
        self.ask_at(timeout).is_some_and(|due| due <= now)
    }

    /// An overdue message is sent again to ask.
    pub(super) fn asked(&mut self, now: Instant) {
        self.asked = Some(now);
    }

    /// Returns when a sending expires, or one is to ask.
    pub(super) fn poll_timeout(&self, timeout: Duration) -> Option<Instant> {
        let expires = self.under_way.front().map(|oldest| oldest.at + timeout);
        expires.into_iter().chain(self.ask_at(timeout)).min()
    }

    fn ask_at(&self, timeout: Duration) -> Option<Instant> {
        let oldest = self.overdue.first()?;
        Some(self.asked.map_or(oldest.at, |asked| asked + timeout))
    }
}
