//! When a websocket is replaced before AWS closes it, which it does after about an hour (ssm.md section 2).
//!
//! ```text
//!   opened ── 50 min ──► looks every 5 s for a quiet moment ── 58 min ──► leaves it to AWS
//! ```
//!
//! Frames that are under way when a websocket is lost have to be sent again, and the official agent takes 100 ms for
//! each of its own. In a quiet moment there are none.

use std::time::Duration;

use tokio::time::Instant;

/// The age from which a websocket is replaced.
const AGE: Duration = Duration::from_secs(50 * 60);
/// The age from which it is left to AWS: a session that is never quiet is resumed like any other.
const TOO_LATE: Duration = Duration::from_secs(58 * 60);
/// Between two looks for a quiet moment.
const LOOK: Duration = Duration::from_secs(5);
/// Without a frame for this long it is quiet.
const QUIET: Duration = Duration::from_secs(1);

/// The plan for one websocket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Renewal {
    next: Option<Instant>,
    too_late: Instant,
}

impl Renewal {
    /// The plan for a websocket that was opened now.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            next: Some(now + AGE),
            too_late: now + TOO_LATE,
        }
    }

    /// Returns when [`Renewal::is_due`] wants to be asked.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }

    /// Returns whether the websocket is to be replaced at this moment. `heard` is when its last frame came.
    pub(super) fn is_due(&mut self, is_drained: bool, heard: Instant, now: Instant) -> bool {
        if self.next.is_none_or(|next| next > now) {
            return false;
        }
        self.next = (now < self.too_late).then_some(now + LOOK);
        now < self.too_late && is_drained && heard + QUIET <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_websocket_is_replaced_in_the_first_quiet_moment_of_its_last_minutes() {
        let opened = Instant::now();
        let mut renewal = Renewal::new(opened);
        assert!(!renewal.is_due(true, opened, opened + AGE - LOOK), "too young");
        let due = renewal.poll_timeout().unwrap();
        assert_eq!(due, opened + AGE);
        assert!(!renewal.is_due(false, opened, due), "something is under way");
        let due = renewal.poll_timeout().unwrap();
        assert!(!renewal.is_due(true, due, due), "a frame just came");
        let due = renewal.poll_timeout().unwrap();
        assert!(renewal.is_due(true, due - QUIET, due));
    }

    #[test]
    fn a_websocket_that_is_never_quiet_is_left_to_aws() {
        let opened = Instant::now();
        let mut renewal = Renewal::new(opened);
        let mut looks = 0;
        while let Some(due) = renewal.poll_timeout() {
            assert!(!renewal.is_due(false, due, due));
            looks += 1;
        }
        assert_eq!(looks, 97, "every 5 s for 8 minutes");
    }
}
