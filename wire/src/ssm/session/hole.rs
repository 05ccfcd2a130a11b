//! Decides whether a hole in the agent's messages is worth the wait.
//!
//! The official agent sends only its oldest message again, 10 a second (ssm.md section 4.7): what a cut swallowed of
//! a download it goes on to number while the websocket is away is minutes of silence for every stream. A new session
//! is there in a second. So it is where the agent does not send again what is missing, be it little.

use std::time::{Duration, Instant};

/// Missing messages that are waited for without a look at the rate: at the official agent's, that is half a minute.
const FEW: u64 = 300;
/// How long nothing may be filled of a hole of any size while the agent is heard: far longer than an agent takes that
/// will ever send what is missing.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the rate is watched at which the hole is filled; an agent that sends everything again fills it in this.
const LOOK: Duration = Duration::from_secs(3);
/// The longest that filling may take.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Silence of this long has another reason than the agent's rate: it sends again after a second at most.
const SILENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub(super) struct Hole {
    watched: Option<Watched>,
    stuck: Option<Watched>,
}

#[derive(Debug, Clone, Copy)]
struct Watched {
    /// Since when, and the number expected then.
    began: Instant,
    first: u64,
    last_look: Instant,
}

impl Hole {
    /// The agent could not be heard until now.
    pub(super) fn restart(&mut self) {
        self.watched = None;
        self.stuck = None;
    }

    /// Looks at how many messages are `missing` and which is `expected` next; returns whether to give up.
    pub(super) fn is_hopeless(&mut self, missing: u64, expected: u64, now: Instant) -> bool {
        if missing == 0 {
            self.restart();
            return false;
        }
        let stuck = Watched::look(&mut self.stuck, expected, now);
        if stuck.first < expected {
            self.stuck = None;
        } else if now.saturating_duration_since(stuck.began) >= PATIENCE {
            return true;
        }
        if missing <= FEW {
            self.watched = None;
            return false;
        }
        let watched = Watched::look(&mut self.watched, expected, now);
        let time = now.saturating_duration_since(watched.began);
        if time < LOOK {
            return false;
        }
        let filled = expected.saturating_sub(watched.first).max(1);
        // Where it is good enough so far, the next look has a rate of its own.
        self.watched = None;
        let wait = time.as_secs_f64() * missing as f64 / filled as f64;
        wait > LONGEST_WAIT.as_secs_f64()
    }
}

impl Watched {
    /// Goes on watching; begins anew where nothing was watched, and after a silence.
    fn look(watched: &mut Option<Self>, expected: u64, now: Instant) -> Self {
        let anew = Self {
            began: now,
            first: expected,
            last_look: now,
        };
        let goes_on = watched.filter(|watched| now.saturating_duration_since(watched.last_look) < SILENCE);
        let looked = Self {
            last_look: now,
            ..goes_on.unwrap_or(anew)
        };
        *watched.insert(looked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "an origin for invented time")]
    fn origin() -> Instant {
        Instant::now()
    }

    /// Returns whether a hole is given up that is filled at so many messages a second.
    fn given_up(missing: u64, a_second: u64) -> bool {
        let start = origin();
        let mut hole = Hole::default();
        (0..=3_000).any(|tenth| {
            let filled = a_second * tenth / 10;
            let now = start + Duration::from_millis(100 * tenth);
            hole.is_hopeless(missing.saturating_sub(filled), 10 + filled, now)
        })
    }

    #[test]
    fn a_hole_is_waited_for_that_is_filled_in_time() {
        assert!(!given_up(FEW, 1), "a few are waited for");
        assert!(!given_up(320, 10));
        assert!(!given_up(10_000, 1_000));
    }

    #[test]
    fn silence_says_nothing_of_the_rate() {
        let start = origin();
        let mut hole = Hole::default();
        for second in 0..100 {
            let now = start + SILENCE * second;
            assert!(!hole.is_hopeless(1_000, 10, now));
        }
        let mut hole = Hole::default();
        for tenth in 0..300 {
            if tenth % 20 == 0 {
                hole.restart();
            }
            assert!(!hole.is_hopeless(1_000, 10, start + Duration::from_millis(100 * tenth)));
        }
    }

    #[test]
    fn a_hole_is_given_up_that_is_filled_too_slowly_or_not_at_all() {
        assert!(given_up(1_000, 10));
        assert!(given_up(400, 0));
        assert!(given_up(1, 0), "a few are not waited for in vain");
    }
}
