//! How much of our direction may be un-acknowledged: what the path carries, and no queue on the way.
//!
//! A fixed window is either too small for a long path or a queue of seconds before a slow uplink, in which another
//! stream's few bytes stand last. So it grows while it is what holds sending back, and shrinks when even the quickest
//! round trip of a round shows a queue (as LEDBAT does, RFC 6817).
//!
//! ```text
//!   growing twofold ── a queue ──► as large as the path ── a minute without a round trip as quick as the quickest ──┐
//!                                     growing by an eighth   ▲                                                      │
//!                                                            └── its round trip is the quickest ◄── draining ◄──────┘
//! ```
//!
//! Draining tells a longer path from a queue that never empties: without it, the queue would pass for the path.

use std::time::{Duration, Instant};

/// How much longer than the quickest round trip one may take before it counts as a queue: several times the jitter of
/// a Wi-Fi, and what a person at a prompt does not feel.
const QUEUE: Duration = Duration::from_millis(30);
/// The most of it, however long the path.
const LONGEST_QUEUE: Duration = Duration::from_millis(150);
/// How long the quickest round trip is believed without another like it: the path may have become longer.
const BELIEVED: Duration = Duration::from_secs(60);

/// The window of one side.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    limit: usize,
    smallest: usize,
    largest: usize,
    /// The quickest round trip of all since the path was last drained.
    quickest: Option<Duration>,
    belief: Option<Belief>,
    /// What is sent from then on finds the path drained.
    drained: Option<Instant>,
    growth: Growth,
    round: Option<Round>,
}

/// A look at whether round trips are as quick as they were.
#[derive(Debug, Clone)]
struct Belief {
    ends: Instant,
    quickest: Duration,
}

/// How a window grows that holds sending back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Growth {
    /// Twofold: what the path carries is not known yet.
    Quick,
    /// By an eighth: it was too large before.
    Careful,
}

#[derive(Debug, Clone)]
struct Round {
    ends: Instant,
    quickest: Duration,
    /// Whether the window held sending back.
    limited: bool,
    /// Whether the window was another one in the round before, so that this one's round trips still tell of that.
    settling: bool,
}

impl Window {
    /// A window that always is this large.
    pub(crate) fn fixed(size: usize) -> Self {
        Self::between(size, size, size)
    }

    pub(crate) fn between(smallest: usize, first: usize, largest: usize) -> Self {
        Self {
            limit: first,
            smallest,
            largest,
            quickest: None,
            belief: None,
            drained: None,
            growth: Growth::Quick,
            round: None,
        }
    }

    /// Returns how many bytes may be un-acknowledged.
    pub(crate) fn limit(&self) -> usize {
        if self.drained.is_some() {
            // A message or two, so that the path is as good as empty.
            self.smallest / 4
        } else {
            self.limit
        }
    }

    /// The window holds sending back.
    pub(crate) fn limits(&mut self) {
        if let Some(round) = &mut self.round {
            round.limited = true;
        }
    }

    /// A message that was sent once took this long to be acknowledged.
    pub(crate) fn sample(&mut self, round_trip: Duration, now: Instant) {
        if self.smallest == self.largest {
            return;
        }
        if let Some(drained) = self.drained {
            if now.checked_sub(round_trip).is_some_and(|sent| sent >= drained) {
                self.drained = None;
                self.quickest = Some(round_trip);
                self.belief = None;
            }
            return;
        }
        let quickest = self
            .quickest
            .map_or(round_trip, |quickest| quickest.min(round_trip));
        self.quickest = Some(quickest);
        let belief = self.belief.get_or_insert(Belief {
            ends: now + BELIEVED,
            quickest: round_trip,
        });
        belief.quickest = belief.quickest.min(round_trip);
        if belief.ends <= now {
            if belief.quickest > quickest + QUEUE {
                self.drained = Some(now + round_trip);
                self.round = None;
            }
            self.belief = None;
            return;
        }
        let Some(round) = &mut self.round else {
            self.round = Some(Round::new(round_trip, now, false));
            return;
        };
        round.quickest = round.quickest.min(round_trip);
        if round.ends > now {
            return;
        }
        let before = self.limit;
        if !round.settling {
            let longest = quickest + quickest.clamp(QUEUE, LONGEST_QUEUE);
            if round.quickest > longest {
                self.growth = Growth::Careful;
                let share = longest.as_secs_f64() / round.quickest.as_secs_f64();
                self.limit = ((self.limit as f64 * share.min(0.75)) as usize).max(self.smallest);
            } else if round.limited {
                let more = match self.growth {
                    Growth::Quick => self.limit,
                    Growth::Careful => self.limit / 8,
                };
                self.limit = self.limit.saturating_add(more).min(self.largest);
            }
        }
        self.round = Some(Round::new(round_trip, now, self.limit != before));
    }

    /// The service paused or the websocket was lost.
    pub(crate) fn trouble(&mut self) {
        self.limit = (self.limit / 2).max(self.smallest);
        self.growth = Growth::Quick;
        self.round = None;
    }
}

impl Round {
    fn new(round_trip: Duration, now: Instant, settling: bool) -> Self {
        Self {
            ends: now + round_trip,
            quickest: round_trip,
            limited: false,
            settling,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    const PIECE: usize = 4_096;
    const SMALLEST: usize = 64 << 10;
    const LARGEST: usize = 4 << 20;

    #[expect(clippy::disallowed_methods, reason = "an origin for invented time")]
    fn origin() -> Instant {
        Instant::now()
    }

    /// Sends as much as the window lets through a path of that many bytes a second; returns the bytes of the last two
    /// seconds, and the longest that one waited in the queue then.
    fn carried(rate: usize, delay: Duration, time: Duration) -> (usize, Duration) {
        let start = origin();
        let mut window = Window::between(SMALLEST, 256 << 10, LARGEST);
        let mut now = start;
        // When each piece leaves the bottleneck, and when it was sent.
        let mut under_way: VecDeque<(Instant, Instant)> = VecDeque::new();
        let (mut free, mut late, mut longest) = (start, 0, Duration::ZERO);
        while now < start + time {
            while under_way.is_empty() || (under_way.len() + 1) * PIECE <= window.limit() {
                free = free.max(now) + Duration::from_secs_f64(PIECE as f64 / rate as f64);
                under_way.push_back((free, now));
            }
            window.limits();
            let (left, sent) = under_way.pop_front().unwrap();
            now = now.max(left + delay);
            window.sample(now - sent, now);
            if now + Duration::from_secs(2) > start + time {
                late += PIECE;
                longest = longest.max(now - sent - delay);
            }
        }
        (late, longest)
    }

    #[test]
    fn the_path_is_filled_and_no_queue_stands_on_it() {
        for (rate, delay) in [(1 << 20, 20), (10 << 20, 20), (10 << 20, 100), (1 << 20, 200)] {
            let delay = Duration::from_millis(delay);
            let (bytes, waited) = carried(rate, delay, Duration::from_secs(10));
            assert!(bytes > rate * 2 * 85 / 100, "{rate}, {delay:?}: {bytes}");
            let most = delay.max(QUEUE) * 2 + Duration::from_millis(40);
            assert!(waited < most, "{rate}, {delay:?}: waited {waited:?}");
        }
    }

    #[test]
    fn no_queue_grows_in_the_course_of_a_long_transfer() {
        for (rate, delay) in [(1 << 16, 20), (1 << 17, 100), (1 << 20, 20), (10 << 20, 100)] {
            let delay = Duration::from_millis(delay);
            for minutes in [1, 2, 30] {
                let (bytes, waited) = carried(rate, delay, Duration::from_secs(60) * minutes);
                assert!(bytes > rate * 2 * 85 / 100, "{rate}, {minutes} minutes: {bytes}");
                let smallest = Duration::from_secs_f64(SMALLEST as f64 / rate as f64);
                let most = smallest.max(LONGEST_QUEUE + Duration::from_millis(40));
                assert!(waited <= most, "{rate}, {minutes} minutes: waited {waited:?}");
            }
        }
    }

    #[test]
    fn a_path_that_has_become_longer_is_believed_within_two_minutes() {
        let mut now = origin();
        let mut window = Window::between(SMALLEST, SMALLEST, LARGEST);
        let mut sample = |round_trip: u64, times: usize| {
            for _ in 0..times {
                let round_trip = Duration::from_millis(round_trip);
                now += round_trip;
                window.limits();
                window.sample(round_trip, now);
            }
            window.limit()
        };
        assert_eq!(sample(20, 1_000), LARGEST);
        assert_eq!(sample(200, 200), SMALLEST, "it may be a queue");
        assert_eq!(sample(200, 400), LARGEST);
    }

    #[test]
    fn a_window_that_holds_nothing_back_does_not_grow() {
        let mut now = origin();
        let mut window = Window::between(64, 256, 4_096);
        for _ in 0..100 {
            now += Duration::from_millis(20);
            window.sample(Duration::from_millis(20), now);
        }
        assert_eq!(window.limit(), 256);
    }

    #[test]
    fn trouble_halves_it_and_the_smallest_stays() {
        let mut window = Window::between(64, 256, 4_096);
        for expected in [128, 64, 64] {
            window.trouble();
            assert_eq!(window.limit(), expected);
        }
        let mut fixed = Window::fixed(100);
        fixed.trouble();
        assert_eq!(fixed.limit(), 100);
    }
}
