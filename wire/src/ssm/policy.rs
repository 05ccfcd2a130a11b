//! How fast a side of the channel sends, in what sizes, and how it repairs loss.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use super::channel::Window;
use super::probe::PayloadProbe;
use super::rtt::Limits;

/// Data messages a second that are safe: one client author measured a hard ceiling of about 1,000, with a pause and then
/// a closed websocket beyond it (ssm.md section 6.6).
pub const MESSAGE_RATE: u32 = 900;
/// The payload of the official client and agent, in bytes.
pub const SMALLEST_PAYLOAD: usize = 1_024;
/// The largest payload that is tried, in bytes: the largest that another client has been seen to use against the live
/// service for long is 32 KiB, and beyond this little is gained.
pub const LARGEST_PAYLOAD: usize = 16_384;

/// The most bytes that a client has un-acknowledged: what a path of 160 MB/s and 100 ms holds. It is also what a session may keep in memory
/// to send again; how much is under way is what the path carries ([`Window`]), which is rarely as much.
const LARGEST_WINDOW: usize = 16 << 20;

/// The sending rules of one side.
#[derive(Debug, Clone)]
pub struct Policy {
    pub(crate) resend: Resend,
    pub(crate) limits: Limits,
    pub(crate) window: Window,
    pub(crate) pace: Pace,
    pub(crate) probe: PayloadProbe,
}

/// Which un-acknowledged messages are sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resend {
    /// Each on its own timer; all at once when the websocket is back.
    All,
    /// Only the oldest, at most every 100 ms, as both official sides do.
    Oldest,
}

impl Policy {
    /// The client's: a bounded window instead of the official sleep of 1 ms, 900 messages a second, and payloads that
    /// grow while the path takes them (ssm.md sections 6.6 and 12).
    pub fn client() -> Self {
        Self {
            resend: Resend::All,
            limits: Limits {
                floor: Duration::from_millis(200),
                ceiling: Duration::from_secs(2),
            },
            // Four of the largest payloads at least.
            window: Window::between(64 << 10, 256 << 10, LARGEST_WINDOW),
            pace: Pace::a_second(MESSAGE_RATE),
            probe: PayloadProbe::between(SMALLEST_PAYLOAD, LARGEST_PAYLOAD),
        }
    }

    /// The same with payloads as an earlier session to the same target has found them to pass.
    pub fn with_payloads(mut self, probe: PayloadProbe) -> Self {
        self.probe = probe.anew();
        self
    }

    /// The same with that many data messages a second; `None` for as many as there are.
    pub fn with_message_rate(mut self, rate: Option<NonZeroU32>) -> Self {
        self.pace = rate.map_or_else(Pace::unlimited, |rate| Pace::a_second(rate.get()));
        self
    }

    /// The official agent's, as recorded: 1,024 bytes about 838 times a second, no window, only the oldest message
    /// sent again.
    pub fn stock_agent() -> Self {
        Self {
            resend: Resend::Oldest,
            limits: Limits {
                floor: Duration::ZERO,
                ceiling: Duration::from_secs(1),
            },
            window: Window::fixed(usize::MAX),
            pace: Pace::stock_agent(),
            probe: PayloadProbe::fixed(SMALLEST_PAYLOAD),
        }
    }

    /// An agent as fast as its window allows, which repairs loss as our client does: what an emulator serves when the
    /// test is about the client.
    pub fn fast_agent() -> Self {
        Self {
            resend: Resend::All,
            limits: Limits {
                floor: Duration::from_millis(200),
                ceiling: Duration::from_secs(2),
            },
            // It does not adapt: a larger one would only stand in a queue before a client.
            window: Window::fixed(4 << 20),
            pace: Pace::unlimited(),
            probe: PayloadProbe::fixed(LARGEST_PAYLOAD),
        }
    }
}

/// A limit of messages per second that forgives short bursts.
#[derive(Debug, Clone)]
pub struct Pace {
    interval: Duration,
    tolerance: Duration,
    /// When the next message would be due, were they evenly spaced.
    due: Option<Instant>,
}

impl Pace {
    /// The official agent's: it sleeps for 1 ms after each message, which comes to about 838 a second.
    pub fn stock_agent() -> Self {
        Self::new(Duration::from_micros(1_193), 4)
    }

    /// The official agent's where the system's timer ticks 64 times a second, as older Windows' does: no sleep is
    /// shorter than a tick.
    pub fn coarse_timer() -> Self {
        Self::new(Duration::from_micros(15_625), 0)
    }

    /// No limit.
    pub fn unlimited() -> Self {
        Self::new(Duration::ZERO, 0)
    }

    fn new(interval: Duration, burst: u32) -> Self {
        Self {
            interval,
            tolerance: interval * burst,
            due: None,
        }
    }

    /// That many messages a second, and a tenth of them at once.
    fn a_second(rate: u32) -> Self {
        let rate = rate.max(1);
        Self::new(Duration::from_secs(1) / rate, rate / 10)
    }

    /// Returns when the next message may leave; `None` for at once.
    pub(crate) fn wait_until(&self, now: Instant) -> Option<Instant> {
        let at = self.due?.checked_sub(self.tolerance)?;
        (at > now).then_some(at)
    }

    pub(crate) fn sent(&mut self, now: Instant) {
        if !self.interval.is_zero() {
            self.due = Some(self.due.map_or(now, |due| due.max(now)) + self.interval);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "an origin for invented time")]
    fn origin() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let start = origin();
        let mut pace = Pace::new(Duration::from_millis(1), 10);
        let mut now = start;
        for _ in 0..1_011 {
            now = pace.wait_until(now).unwrap_or(now);
            pace.sent(now);
        }
        assert_eq!(now - start, Duration::from_millis(1_000));
    }

    #[test]
    fn a_coarse_timer_lets_one_message_leave_a_tick() {
        let start = origin();
        let mut pace = Pace::coarse_timer();
        let mut now = start;
        for _ in 0..65 {
            now = pace.wait_until(now).unwrap_or(now);
            pace.sent(now);
        }
        assert_eq!(now - start, Duration::from_secs(1));
    }
}
