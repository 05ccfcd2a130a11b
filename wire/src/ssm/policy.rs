//! How fast a side of the channel sends, in what sizes, and how it repairs loss.

use std::time::{Duration, Instant};

use super::rtt::Limits;

/// The sending rules of one side.
#[derive(Debug, Clone)]
pub struct Policy {
    pub(crate) resend: Resend,
    pub(crate) limits: Limits,
    /// The most payload bytes that may be sent and not acknowledged.
    pub(crate) window: usize,
    pub(crate) pace: Pace,
    pub(crate) chunk: Chunk,
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
            // 10 MB/s at 100 ms round trip, and a quarter of what the agent buffers for a target that stalls.
            window: 1 << 20,
            // One client author measured a hard ceiling of about 1,000 data messages a second.
            pace: Pace::new(Duration::from_micros(1_111), 90),
            chunk: Chunk::probing(1_024, 16_384),
        }
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
            window: usize::MAX,
            pace: Pace::stock_agent(),
            chunk: Chunk::fixed(1_024),
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
            window: 4 << 20,
            pace: Pace::unlimited(),
            chunk: Chunk::fixed(16_384),
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

/// How many bytes a data message carries.
///
/// The agent takes any size; what the service takes is unknown (ssm.md section 6.6). So sizes begin at the official
/// 1,024 and double after a run of acknowledged messages; after trouble they begin anew and must prove themselves
/// longer.
#[derive(Debug, Clone)]
pub(crate) struct Chunk {
    size: usize,
    largest: usize,
    smallest: usize,
    clean: u32,
    wanted: u32,
}

/// Clean acknowledgements before a first doubling: a tenth of a second at full rate.
const PROOF: u32 = 64;
/// The most that trouble can make of it.
const LONGEST_PROOF: u32 = 4_096;

impl Chunk {
    fn fixed(size: usize) -> Self {
        Self::probing(size, size)
    }

    fn probing(smallest: usize, largest: usize) -> Self {
        Self {
            size: smallest,
            largest,
            smallest,
            clean: 0,
            wanted: PROOF,
        }
    }

    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// A message of this many payload bytes was acknowledged.
    pub(crate) fn acknowledged(&mut self, length: usize) {
        if length < self.size || self.size == self.largest {
            return;
        }
        self.clean += 1;
        if self.clean >= self.wanted {
            self.size = (self.size * 2).min(self.largest);
            self.clean = 0;
        }
    }

    /// The service paused or the websocket was lost: larger messages may be why.
    pub(crate) fn trouble(&mut self) {
        if self.size > self.smallest {
            self.wanted = (self.wanted * 2).min(LONGEST_PROOF);
        }
        self.size = self.smallest;
        self.clean = 0;
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

    #[test]
    fn payloads_grow_while_clean_and_begin_anew_after_trouble() {
        let mut chunk = Chunk::probing(1_024, 4_096);
        for _ in 0..PROOF {
            chunk.acknowledged(1_024);
        }
        assert_eq!(chunk.size(), 2_048);
        chunk.acknowledged(64);
        chunk.trouble();
        assert_eq!(chunk.size(), 1_024);
        for _ in 0..PROOF {
            chunk.acknowledged(1_024);
        }
        assert_eq!(chunk.size(), 1_024, "after trouble the proof is longer");
        for _ in 0..PROOF {
            chunk.acknowledged(1_024);
        }
        assert_eq!(chunk.size(), 2_048);
    }
}
