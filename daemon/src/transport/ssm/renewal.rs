//! When a websocket is replaced before AWS closes it, which it does after about an hour (ssm.md section 2).
//!
//! ```text
//!   opened ── 50 min ──► looks every 5 s for a quiet moment ── 58 min ──► leaves it to AWS
//!                                │              ▲                             ▲
//!                                └─► replacing ─┴ no quiet moment any more    │
//!                                        └────────────────────────────────────┘ failed
//! ```
//!
//! Frames that are under way when a websocket is lost have to be sent again, and the official agent takes 100 ms for
//! each of its own. In a quiet moment there are none.

use std::time::Duration;

use tokio::time::Instant;

/// When websockets are replaced.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schedule {
    /// The age from which a websocket is replaced.
    age: Duration,
    /// The age from which it is left to AWS: a session that is never quiet is resumed like any other.
    too_late: Duration,
    /// Between two looks for a quiet moment.
    look: Duration,
    /// Without a frame for this long it is quiet.
    quiet: Duration,
}

/// The schedule for AWS.
pub(super) const HOURLY: Schedule = Schedule {
    age: Duration::from_secs(50 * 60),
    too_late: Duration::from_secs(58 * 60),
    look: Duration::from_secs(5),
    quiet: Duration::from_secs(1),
};

/// The plan for one websocket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Renewal {
    schedule: Schedule,
    next: Option<Instant>,
    too_late: Instant,
}

impl Renewal {
    /// The plan for a websocket that was opened now.
    pub(super) fn new(schedule: Schedule, now: Instant) -> Self {
        Self {
            schedule,
            next: Some(now + schedule.age),
            too_late: now + schedule.too_late,
        }
    }

    /// Returns when [`Renewal::is_due`] wants to be asked.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }

    /// Another websocket was there, and the moment was quiet no more.
    pub(super) fn put_off(&mut self, now: Instant) {
        self.next = self.look_after(now);
    }

    /// The websocket is not replaced any more.
    pub(super) fn leave_to_aws(&mut self) {
        self.next = None;
    }

    /// Returns whether the websocket is to be replaced at this moment, and looks for no other while it is. `heard` is when
    /// its last frame came.
    pub(super) fn is_due(&mut self, is_drained: bool, heard: Instant, now: Instant) -> bool {
        if self.next.is_none_or(|next| next > now) {
            return false;
        }
        let is_due = now < self.too_late && is_drained && heard + self.schedule.quiet <= now;
        self.next = self.look_after(now).filter(|_| !is_due);
        is_due
    }

    fn look_after(&self, now: Instant) -> Option<Instant> {
        (now < self.too_late).then_some(now + self.schedule.look)
    }
}

impl Schedule {
    /// A schedule that a test can wait for.
    #[cfg(test)]
    pub(super) fn quick() -> Self {
        Self {
            age: Duration::from_millis(50),
            too_late: Duration::from_secs(60),
            look: Duration::from_millis(10),
            quiet: Duration::from_millis(20),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_websocket_is_replaced_in_the_first_quiet_moment_of_its_last_minutes() {
        let opened = Instant::now();
        let mut renewal = Renewal::new(HOURLY, opened);
        assert!(
            !renewal.is_due(true, opened, opened + HOURLY.age - HOURLY.look),
            "too young"
        );
        let due = renewal.poll_timeout().unwrap();
        assert_eq!(due, opened + HOURLY.age);
        assert!(!renewal.is_due(false, opened, due), "something is under way");
        let due = renewal.poll_timeout().unwrap();
        assert!(!renewal.is_due(true, due, due), "a frame just came");
        let due = renewal.poll_timeout().unwrap();
        assert!(renewal.is_due(true, due - HOURLY.quiet, due));
    }

    #[test]
    fn while_a_websocket_is_being_replaced_there_is_nothing_to_look_for() {
        let opened = Instant::now();
        let mut renewal = Renewal::new(HOURLY, opened);
        let due = opened + HOURLY.age;
        assert!(renewal.is_due(true, opened, due));
        assert_eq!(renewal.poll_timeout(), None);
        renewal.put_off(due + HOURLY.look * 3);
        assert_eq!(renewal.poll_timeout(), Some(due + HOURLY.look * 4));
    }

    #[test]
    fn a_websocket_that_is_never_quiet_is_left_to_aws() {
        let opened = Instant::now();
        let mut renewal = Renewal::new(HOURLY, opened);
        let mut looks = 0;
        while let Some(due) = renewal.poll_timeout() {
            assert!(!renewal.is_due(false, due, due));
            looks += 1;
        }
        assert_eq!(looks, 97, "every 5 s for 8 minutes");
    }
}
