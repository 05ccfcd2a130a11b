//! How fast sessions may be started with one profile: AWS limits StartSession for the whole account, and a refusal is
//! for all tunnels that use it.
//!
//! ```text
//!   take ── the bucket has room ──► now
//!        ── it has none ──► a turn of its own, void if AWS refuses meanwhile ─┐
//!        ── AWS has refused ──► the end of the pause ─────────────────────────┴─► take
//! ```

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Starts in quick succession: a dozen tunnels at login, or the connections that a database client opens together.
const BURST: u32 = 10;
/// The pause between starts after that. AWS publishes no figure; two a second has not been seen to be refused.
const INTERVAL: Duration = Duration::from_millis(500);
/// The pause after a first refusal, doubled by each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest of these pauses.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The turns of all that start sessions with one profile.
#[derive(Debug, Default)]
pub(super) struct Throttle(Mutex<Turns>);

impl Throttle {
    /// Waits for a turn.
    pub(super) async fn turn(&self) {
        loop {
            let turn = self.turns().take(Instant::now());
            match turn {
                Turn::Now => return,
                Turn::At(at) => {
                    sleep_until(at).await;
                    if self.turns().held(Instant::now()).is_none() {
                        return;
                    }
                }
                Turn::Held(until) => sleep_until(until).await,
            }
        }
    }

    /// AWS refused a start for coming too fast.
    pub(super) fn refused(&self) {
        let jitter = 1.0 + fastrand::f64() / 2.0;
        self.turns().refuse(Instant::now(), jitter);
    }

    /// AWS started a session.
    pub(super) fn granted(&self) {
        self.turns().grant(Instant::now());
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The machine: who may start when.
#[derive(Debug, Default)]
struct Turns {
    /// When the next start would be due, were they evenly spaced.
    due: Option<Instant>,
    hold: Option<Instant>,
    refusals: u32,
}

/// When somebody may start.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    Now,
    At(Instant),
    /// Nobody may before then, and whoever waited has to ask again.
    Held(Instant),
}

impl Turns {
    /// Takes a turn.
    fn take(&mut self, now: Instant) -> Turn {
        if let Some(until) = self.held(now) {
            return Turn::Held(until);
        }
        let due = self.due.map_or(now, |due| due.max(now));
        self.due = Some(due + INTERVAL);
        let at = due.checked_sub(INTERVAL * (BURST - 1)).unwrap_or(now);
        if at > now { Turn::At(at) } else { Turn::Now }
    }

    /// Returns until when everybody waits.
    fn held(&self, now: Instant) -> Option<Instant> {
        self.hold.filter(|hold| *hold > now)
    }

    fn refuse(&mut self, now: Instant, jitter: f64) {
        // Starts that were under way together are refused together: that is one refusal.
        if self.held(now).is_some() {
            return;
        }
        let pause = FIRST_PAUSE * 2_u32.saturating_pow(self.refusals.min(16));
        self.refusals = self.refusals.saturating_add(1);
        let until = now + pause.min(LONGEST_PAUSE).mul_f64(jitter);
        self.hold = Some(until);
        // What waited does not leave in one burst, which would be refused again.
        self.due = self.due.max(Some(until + INTERVAL * (BURST - 1)));
    }

    fn grant(&mut self, now: Instant) {
        // A start that was under way when another was refused says nothing of the next.
        if self.held(now).is_none() {
            self.refusals = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;

    #[test]
    fn a_burst_goes_at_once_and_then_two_a_second() {
        let now = Instant::now();
        let mut turns = Turns::default();
        for _ in 0..BURST {
            assert_eq!(turns.take(now), Turn::Now);
        }
        assert_eq!(turns.take(now), Turn::At(now + INTERVAL));
        assert_eq!(turns.take(now), Turn::At(now + INTERVAL * 2));
        let later = now + Duration::from_secs(60);
        assert_eq!(turns.take(later), Turn::Now, "a pause fills the bucket again");
    }

    #[test]
    fn a_refusal_is_for_everybody_and_the_next_one_lasts_twice_as_long() {
        let now = Instant::now();
        let mut turns = Turns::default();
        turns.refuse(now, 1.0);
        turns.refuse(now, 1.0);
        assert_eq!(turns.take(now), Turn::Held(now + FIRST_PAUSE));
        let later = now + FIRST_PAUSE;
        assert_eq!(turns.held(later), None);
        turns.refuse(later, 1.0);
        assert_eq!(turns.held(later), Some(later + FIRST_PAUSE * 2));
    }

    #[test]
    fn refusals_pause_for_a_minute_at_the_most() {
        let mut now = Instant::now();
        let mut turns = Turns::default();
        for _ in 0..40 {
            turns.refuse(now, 1.0);
            let until = turns.held(now).expect("a pause");
            assert!(until - now <= LONGEST_PAUSE);
            now = until;
        }
    }

    #[test]
    fn a_start_that_was_under_way_when_another_was_refused_does_not_end_the_refusals() {
        let now = Instant::now();
        let mut turns = Turns::default();
        turns.refuse(now, 1.0);
        turns.grant(now);
        let later = now + FIRST_PAUSE;
        turns.refuse(later, 1.0);
        assert_eq!(turns.held(later), Some(later + FIRST_PAUSE * 2));
        let later = later + FIRST_PAUSE * 2;
        turns.grant(later);
        turns.refuse(later, 1.0);
        assert_eq!(turns.held(later), Some(later + FIRST_PAUSE));
    }

    #[tokio::test(start_paused = true)]
    async fn what_waited_for_the_end_of_a_refusal_leaves_one_by_one() {
        let throttle = Throttle::default();
        throttle.refused();
        let began = Instant::now();
        let mut left: Vec<Duration> = join_all((0..20).map(|_| async {
            throttle.turn().await;
            began.elapsed()
        }))
        .await;
        left.sort();
        assert!(left[0] >= FIRST_PAUSE);
        for pair in left.windows(2) {
            assert!(pair[1] - pair[0] >= INTERVAL, "{left:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_a_turn_waits_for_a_refusal_of_others_too() {
        let throttle = Throttle::default();
        for _ in 0..BURST {
            throttle.turn().await;
        }
        let began = Instant::now();
        let refusal = async {
            tokio::time::sleep(INTERVAL / 2).await;
            throttle.refused();
        };
        tokio::join!(throttle.turn(), refusal);
        assert!(began.elapsed() >= FIRST_PAUSE);
    }
}
