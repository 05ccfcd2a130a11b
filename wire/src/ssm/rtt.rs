//! Round-trip estimate → resend timeout, after RFC 6298.
//!
//! Callers feed it only samples of messages sent once (Karn's rule); the official client and agent do not, see ssm.md
//! section 4.7.

use std::time::Duration;

/// The estimate before the first sample: the official client's, and long enough for any continent.
const FIRST_ROUND_TRIP: Duration = Duration::from_millis(100);
/// The least that is added to the round trip, as in the official client and agent.
const MARGIN: Duration = Duration::from_millis(10);

/// The bounds of the resend timeout.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) floor: Duration,
    pub(crate) ceiling: Duration,
}

/// A running estimate of the round trip.
#[derive(Debug, Clone)]
pub(crate) struct RoundTrip {
    limits: Limits,
    smoothed: Duration,
    variation: Duration,
    backoff: u32,
}

impl RoundTrip {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            smoothed: FIRST_ROUND_TRIP,
            variation: FIRST_ROUND_TRIP / 2,
            backoff: 0,
        }
    }

    /// Takes the time between a message sent once and its acknowledgement.
    pub(crate) fn sample(&mut self, sample: Duration) {
        self.variation = (self.variation * 3 + self.smoothed.abs_diff(sample)) / 4;
        self.smoothed = (self.smoothed * 7 + sample) / 8;
        self.backoff = 0;
    }

    /// A timeout fired: the next one waits twice as long.
    pub(crate) fn back_off(&mut self) {
        self.backoff = (self.backoff + 1).min(8);
    }

    pub(crate) fn smoothed(&self) -> Duration {
        self.smoothed
    }

    /// Returns how long to wait for an acknowledgement before sending again.
    pub(crate) fn timeout(&self) -> Duration {
        let base = self.smoothed + (self.variation * 4).max(MARGIN);
        (base.max(self.limits.floor) * (1 << self.backoff)).min(self.limits.ceiling)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        floor: Duration::from_millis(200),
        ceiling: Duration::from_secs(2),
    };

    #[test]
    fn a_steady_path_settles_at_the_floor() {
        let mut round_trip = RoundTrip::new(LIMITS);
        for _ in 0..100 {
            round_trip.sample(Duration::from_millis(20));
        }
        assert_eq!(round_trip.timeout(), Duration::from_millis(200));
        assert!(round_trip.smoothed().abs_diff(Duration::from_millis(20)) < Duration::from_millis(1));
    }

    #[test]
    fn timeouts_double_up_to_the_ceiling_until_a_sample_comes() {
        let mut round_trip = RoundTrip::new(LIMITS);
        let first = round_trip.timeout();
        round_trip.back_off();
        assert_eq!(round_trip.timeout(), first * 2);
        for _ in 0..50 {
            round_trip.back_off();
        }
        assert_eq!(round_trip.timeout(), Duration::from_secs(2));
        round_trip.sample(Duration::from_millis(100));
        assert!(round_trip.timeout() <= first);
    }
}
