//! Notices that the machine slept, or that the daemon itself was stopped: on two clocks, looked at each second.
//!
//! ```text
//!   asleep    the clock that runs on in sleep is ahead of the one that does not
//!   stopped   a look comes far too late by the clock that does not
//! ```

use std::fmt;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Between two looks: a sleep is noticed within this time of its end, and a look costs a few microseconds.
const LOOK: Duration = Duration::from_secs(1);

/// How far the clocks may go apart between two looks without a sleep: one is read to the hundredth of a second, and a
/// step of the wall clock, which stands in for it on some systems, is often smaller.
const DRIFT: Duration = Duration::from_secs(1);

/// How late a look may come: later than any pause of a machine that is merely busy.
const LATE: Duration = Duration::from_secs(5);

/// What was noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Woke {
    /// The machine slept for so long.
    Slept(Duration),
    /// Nothing of the daemon ran for so long.
    StoodStill(Duration),
}

impl fmt::Display for Woke {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slept(time) => write!(f, "the machine slept for {} s", time.as_secs()),
            Self::StoodStill(time) => write!(f, "the daemon stood still for {} s", time.as_secs()),
        }
    }
}

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy)]
struct Reading {
    /// Stands still while the machine sleeps.
    waking: Instant,
    /// Runs on. `None` where the system does not tell.
    always: Option<Duration>,
}

/// The looks at the clocks.
#[derive(Debug)]
pub(super) struct Vigil {
    last: Reading,
}

impl Vigil {
    /// Begins to look.
    pub(super) fn begin() -> Self {
        Self { last: Reading::now() }
    }

    /// Waits until there was a sleep. Cancel-safe.
    pub(super) async fn woke(&mut self) -> Woke {
        loop {
            sleep_until(self.last.waking + LOOK).await;
            if let Some(woke) = self.look(Reading::now()) {
                return woke;
            }
        }
    }

    fn look(&mut self, now: Reading) -> Option<Woke> {
        let last = std::mem::replace(&mut self.last, now);
        let awake = now.waking.duration_since(last.waking);
        let passed = now.always.zip(last.always);
        let asleep = passed.map_or(Duration::ZERO, |(now, last)| {
            now.saturating_sub(last).saturating_sub(awake)
        });
        if asleep > DRIFT {
            return Some(Woke::Slept(asleep));
        }
        (awake > LOOK + LATE).then_some(Woke::StoodStill(awake))
    }
}

impl Reading {
    fn now() -> Self {
        Self {
            waking: Instant::now(),
            always: always(),
        }
    }
}

/// The time since the machine started, sleep included.
#[cfg(target_os = "linux")]
fn always() -> Option<Duration> {
    use procfs::Current;

    let uptime = procfs::Uptime::current().ok()?;
    Some(uptime.uptime_duration())
}

/// The wall clock, which runs on in sleep like no other here that can be read. A step forward by a person passes for a
/// sleep, and costs a probe.
#[cfg(not(target_os = "linux"))]
#[expect(
    clippy::disallowed_methods,
    reason = "it is compared with itself alone, a second later"
)]
fn always() -> Option<Duration> {
    use std::time::SystemTime;

    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The clocks of a machine, and a vigil that reads them.
    struct Machine {
        now: Reading,
        vigil: Vigil,
    }

    impl Machine {
        fn new(always: Option<Duration>) -> Self {
            let now = Reading {
                waking: Instant::now(),
                always,
            };
            Self {
                now,
                vigil: Vigil { last: now },
            }
        }

        fn up_for_an_hour() -> Self {
            Self::new(Some(Duration::from_secs(3600)))
        }

        /// Lets time pass, awake and asleep, before the next look.
        fn look_after(&mut self, awake: Duration, asleep: Duration) -> Option<Woke> {
            self.now.waking += awake;
            self.now.always = self.now.always.map(|always| always + awake + asleep);
            self.vigil.look(self.now)
        }
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_machine_that_is_awake_is_left_alone() {
        let mut machine = Machine::up_for_an_hour();
        for late in [0, 10, 500, 4_999] {
            let awake = LOOK + Duration::from_millis(late);
            assert_eq!(machine.look_after(awake, Duration::ZERO), None);
        }
        assert_eq!(
            machine.look_after(LOOK, DRIFT),
            None,
            "clocks are read one after the other"
        );
    }

    #[test]
    fn a_sleep_is_noticed_once_with_its_length() {
        let mut machine = Machine::up_for_an_hour();
        machine.look_after(LOOK, Duration::ZERO);
        let awake = Duration::from_millis(300);
        assert_eq!(machine.look_after(awake, 8 * HOUR), Some(Woke::Slept(8 * HOUR)));
        assert_eq!(machine.look_after(LOOK, Duration::ZERO), None);
    }

    #[test]
    fn a_daemon_that_was_stopped_notices_by_the_late_look() {
        for mut machine in [Machine::up_for_an_hour(), Machine::new(None)] {
            let stopped = LOOK + LATE + Duration::from_millis(1);
            assert_eq!(
                machine.look_after(stopped, Duration::ZERO),
                Some(Woke::StoodStill(stopped))
            );
            assert_eq!(machine.look_after(LOOK, Duration::ZERO), None);
        }
    }

    #[test]
    fn a_clock_that_was_set_back_is_no_sleep() {
        let mut machine = Machine::up_for_an_hour();
        machine.now.always = Some(Duration::ZERO);
        assert_eq!(machine.look_after(LOOK, Duration::ZERO), None);
        assert_eq!(machine.look_after(LOOK, HOUR), Some(Woke::Slept(HOUR)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_comes_each_second_and_finds_nothing_while_all_is_well() {
        let mut vigil = Vigil::begin();
        let watched = tokio::time::timeout(10 * LOOK, vigil.woke()).await;
        // Paused time runs ahead of the machine's own clock, which is no sleep either.
        assert!(watched.is_err());
        assert!(vigil.last.always.is_some(), "the system tells");
    }
}
