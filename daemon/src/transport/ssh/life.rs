//! Whether the server behind a connection lives: a pure machine, asked when there is reason for doubt.
//!
//! ```text
//!   Known ── asked ──► Asked ── 1 s ──► Doubtful ── 5 s, and nothing came ──► Lost
//!     ▲                  │                 │  └── bytes came meanwhile ──┐
//!     └──── answered ────┴─────────────────┴──────────────────────────────┘
//! ```
//!
//! The streams of a connection that is lost are reset, so it is not given up lightly: behind a long download, the answer
//! to a ping comes after what is under way. But nobody new is put on it meanwhile.

use std::time::Duration;

use tokio::time::Instant;

/// How long nobody new is put on a connection that was asked, before another one is made for them: several round trips.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long a connection that was asked may be silent: TCP has sent the question again three times by then, and a tunnel
/// of SSM below has been resumed.
const DEADLINE: Duration = Duration::from_secs(5);

/// The machine. See the module's documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// It lives, as far as is known.
    Known,
    /// It was asked.
    Asked {
        /// When, the latest time that counts.
        since: Instant,
        /// When, the first time.
        first: Instant,
    },
    /// It should have answered.
    Doubtful {
        /// When it was asked, the latest time that counts.
        since: Instant,
        /// When it was asked, the first time.
        first: Instant,
        /// How many bytes had come when the doubt began: what came before may have waited since before a sleep.
        heard: u64,
    },
    /// It gave no sign of life.
    Lost,
}

impl Life {
    /// The server was asked, or there is reason to ask again and the answer has not come. That gives it its time anew
    /// once: a network that changes all the time must not keep a dead connection for ever.
    pub(super) fn asked(&mut self, now: Instant) {
        let first = match *self {
            Self::Asked { since, first } | Self::Doubtful { since, first, .. } if since > first => return,
            Self::Asked { first, .. } | Self::Doubtful { first, .. } => first,
            Self::Known | Self::Lost => now,
        };
        *self = Self::Asked { since: now, first };
    }

    /// Nothing can come from the server before the route below is back, which it is not: its time begins now.
    pub(super) fn excused(&mut self, now: Instant) {
        *self = Self::Asked {
            since: now,
            first: now,
        };
    }

    /// The server answered, or cannot be expected to.
    pub(super) fn answered(&mut self) {
        *self = Self::Known;
    }

    /// Takes the time, at or after [`Self::poll_timeout`], and how many bytes have come so far.
    pub(super) fn handle_timeout(&mut self, came: u64, now: Instant) {
        if self.poll_timeout().is_none_or(|due| now < due) {
            return;
        }
        *self = match *self {
            Self::Asked { since, first } => Self::Doubtful {
                since,
                first,
                heard: came,
            },
            Self::Doubtful { heard, .. } if came == heard => Self::Lost,
            Self::Doubtful { .. } | Self::Known => Self::Known,
            Self::Lost => Self::Lost,
        };
    }

    /// Returns when [`Self::handle_timeout`] wants to be called.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::Asked { since, .. } => Some(*since + PATIENCE),
            Self::Doubtful { since, .. } => Some(*since + DEADLINE),
            Self::Known | Self::Lost => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection that was asked, and when.
    fn asked() -> (Life, Instant) {
        let (mut life, now) = (Life::Known, Instant::now());
        assert_eq!(life.poll_timeout(), None);
        life.asked(now);
        (life, now)
    }

    /// Takes the next moment that the machine names.
    fn pass(life: &mut Life, came: u64) -> Instant {
        let due = life.poll_timeout().unwrap();
        life.handle_timeout(came, due - Duration::from_millis(1));
        life.handle_timeout(came, due);
        due
    }

    #[test]
    fn a_connection_that_answers_is_as_before() {
        let (mut life, _) = asked();
        life.answered();
        assert_eq!((life, life.poll_timeout()), (Life::Known, None));
    }

    #[test]
    fn a_silent_connection_is_doubtful_and_then_lost() {
        let (mut life, began) = asked();
        assert_eq!(pass(&mut life, 7), began + PATIENCE);
        assert!(matches!(life, Life::Doubtful { .. }));
        assert_eq!(pass(&mut life, 7), began + DEADLINE);
        assert_eq!((life, life.poll_timeout()), (Life::Lost, None));
    }

    #[test]
    fn a_connection_whose_answer_waits_behind_a_download_lives() {
        let (mut life, _) = asked();
        pass(&mut life, 7);
        pass(&mut life, 8);
        assert_eq!(life, Life::Known);
    }

    #[test]
    fn what_waited_since_before_the_sleep_is_no_sign_of_life() {
        let (mut life, _) = asked();
        pass(&mut life, 9_000);
        pass(&mut life, 9_000);
        assert_eq!(life, Life::Lost);
    }

    #[test]
    fn another_change_of_network_gives_it_its_time_anew() {
        let (mut life, began) = asked();
        pass(&mut life, 0);
        life.asked(began + DEADLINE / 2);
        assert_eq!(pass(&mut life, 0), began + DEADLINE / 2 + PATIENCE);
        assert_eq!(pass(&mut life, 0), began + DEADLINE / 2 + DEADLINE);
    }

    #[test]
    fn a_network_that_changes_all_the_time_keeps_no_dead_connection() {
        let (mut life, began) = asked();
        let mut now = began;
        while life != Life::Lost {
            now += PATIENCE / 2;
            assert!(now <= began + 2 * DEADLINE, "{life:?}");
            life.handle_timeout(0, now);
            if life != Life::Lost {
                life.asked(now);
            }
        }
    }

    #[test]
    fn a_connection_that_cannot_be_heard_has_its_time_once_it_can() {
        let (mut life, began) = asked();
        pass(&mut life, 0);
        let back = began + 10 * DEADLINE;
        life.excused(back);
        assert_eq!(pass(&mut life, 0), back + PATIENCE);
        assert_eq!(pass(&mut life, 0), back + DEADLINE);
        assert_eq!(life, Life::Lost);
    }
}
