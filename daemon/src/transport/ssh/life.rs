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
        /// When, the latest time.
        since: Instant,
    },
    /// It should have answered.
    Doubtful {
        /// When it was asked, the latest time.
        since: Instant,
        /// How many bytes had come when the doubt began: what came before may have waited since before a sleep.
        heard: u64,
    },
    /// It gave no sign of life.
    Lost,
}

impl Life {
    /// The server was asked, or there is reason to ask again and the answer has not come.
    pub(super) fn asked(&mut self, now: Instant) {
        *self = Self::Asked { since: now };
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
            Self::Asked { since } => Self::Doubtful { since, heard: came },
            Self::Doubtful { heard, .. } if came == heard => Self::Lost,
            Self::Doubtful { .. } | Self::Known => Self::Known,
            Self::Lost => Self::Lost,
        };
    }

    /// Returns when [`Self::handle_timeout`] wants to be called.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::Asked { since } => Some(*since + PATIENCE),
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
}
