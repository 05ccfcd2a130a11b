//! How long an old agent listens to silence.
//!
//! Agents up to 3.1.1511 keep smux alive: they send a NOP every 10 s, and expect to hear something. At each tick of 30 s
//! without a byte since the tick before they close all streams (ssm.md section 6.2), which ends the session.

use std::time::{Duration, Instant};

use tunneld_wire::ssm::Version;

/// The official library's interval.
const TICK: Duration = Duration::from_secs(30);
/// The last agent that expects signs of life of every client.
const LAST: &str = "3.1.1511.0";

/// What an agent has heard since its last tick.
#[derive(Debug)]
pub(super) struct Vigil {
    has_heard: bool,
    next: Instant,
}

impl Vigil {
    /// Returns the vigil of an agent of this version, if it keeps one.
    pub(super) fn begin(agent_version: &str, now: Instant) -> Option<Self> {
        let is_old = Version::parse(agent_version)? <= Version::parse(LAST)?;
        is_old.then_some(Self {
            has_heard: true,
            next: now + TICK,
        })
    }

    /// The client said something.
    pub(super) fn hear(&mut self) {
        self.has_heard = true;
    }

    /// Returns when [`Vigil::handle_timeout`] wants to be called.
    pub(super) fn poll_timeout(&self) -> Instant {
        self.next
    }

    /// A moment may have come that [`Vigil::poll_timeout`] named; returns whether the agent gives up.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> bool {
        if now < self.next {
            return false;
        }
        self.next = now + TICK;
        !std::mem::take(&mut self.has_heard)
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
    fn an_old_agent_gives_up_at_the_second_tick_without_a_byte() {
        let start = origin();
        let mut vigil = Vigil::begin("3.1.1511.0", start).expect("an old agent");
        assert!(!vigil.handle_timeout(start + TICK));
        vigil.hear();
        assert!(!vigil.handle_timeout(start + TICK * 2));
        assert!(!vigil.handle_timeout(start + TICK * 2 + TICK / 2), "no tick");
        assert!(vigil.handle_timeout(start + TICK * 3));
    }

    #[test]
    fn a_newer_agent_does_not_mind_silence() {
        assert!(Vigil::begin("3.1.1512.0", origin()).is_none());
    }
}
