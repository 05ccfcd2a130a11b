//! Connections that were lost with the way to their target, told apart by when.

use std::time::Duration;

use tokio::time::Instant;

/// How far apart losses of one cause are at the most. A link that ends tells its connections and its supervisor at the
/// same moment, and either may be first.
const TOGETHER: Duration = Duration::from_secs(1);

/// How many there have been, and how many of them just now.
#[derive(Debug, Default)]
pub(super) struct Losses {
    total: u64,
    latest: Option<Run>,
}

/// Losses in quick succession.
#[derive(Debug)]
struct Run {
    /// The last one.
    at: Instant,
    /// How many there had been before the first one.
    before: u64,
}

impl Losses {
    /// Counts one.
    pub(super) fn note(&mut self, now: Instant) {
        let before = self.before(now);
        self.latest = Some(Run { at: now, before });
        self.total += 1;
    }

    /// Returns how many there have been.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Returns how many there had been before those that belong to what happens now.
    pub(super) fn before(&self, now: Instant) -> u64 {
        match &self.latest {
            Some(run) if now.duration_since(run.at) <= TOGETHER => run.before,
            Some(_) | None => self.total,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_just_before_an_event_belong_to_it_and_older_ones_do_not() {
        let start = Instant::now();
        let mut losses = Losses::default();
        assert_eq!(losses.before(start), 0);
        losses.note(start);
        let much_later = start + TOGETHER * 10;
        assert_eq!(losses.before(much_later), 1);
        losses.note(much_later);
        losses.note(much_later + TOGETHER / 2);
        assert_eq!(losses.before(much_later + TOGETHER), 1);
        assert_eq!(losses.before(much_later + TOGETHER * 3), 3);
        assert_eq!(losses.total(), 3);
    }
}
