//! How large payloads may be: found out by messages that say nothing.
//!
//! ```text
//!   1,024 ── a run of full ones acknowledged ─► trial of 2,048 ── acknowledged ─► 2,048 ─► … ─► the largest
//!     ▲                                             │ only its repeat was              │
//!     └──── trouble: a longer run before the next ◄─┴──────────────────────────────────┘
//! ```
//!
//! The agent takes any size; what the service takes is unknown (ssm.md section 6.6). A message that the service does
//! not let pass would have to be sent again for ever, since its number is given, and its bytes may have arrived all the
//! same. So bytes of streams travel only in sizes that have passed before: a trial is full of NOPs, and where it has to
//! be sent again it is a small one.

use crate::smux::HEADER_LENGTH;

/// How many bytes a data message carries. What was learned is worth remembering for the next session to the same target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PayloadProbe {
    size: usize,
    largest: usize,
    smallest: usize,
    /// What an earlier session found to pass, and is to be tried first.
    known: usize,
    /// The size of the trial that is under way.
    trial: Option<usize>,
    clean: u32,
    wanted: u32,
}

/// Clean acknowledgements before a first trial: a tenth of a second at full rate.
const PROOF: u32 = 64;
/// The most that trouble can make of it.
const LONGEST_PROOF: u32 = 4_096;

impl PayloadProbe {
    /// Always this size.
    pub(crate) fn fixed(size: usize) -> Self {
        Self::between(size, size)
    }

    /// Sizes from `smallest` up to `largest` bytes, as far as the path takes them.
    pub fn between(smallest: usize, largest: usize) -> Self {
        Self {
            size: smallest,
            largest,
            smallest,
            known: smallest,
            trial: None,
            clean: 0,
            wanted: PROOF,
        }
    }

    /// The same for another session: it tries what is known as soon as it has much to send.
    pub(crate) fn anew(self) -> Self {
        let known = self.size.max(self.known);
        Self {
            size: self.smallest,
            known,
            trial: None,
            clean: if known > self.smallest { self.wanted - 1 } else { 0 },
            ..self
        }
    }

    /// Returns whether another session would begin in the same way with what was learned by `other`.
    pub fn teaches_as(&self, other: &Self) -> bool {
        let lesson = |probe: &Self| (probe.size.max(probe.known), probe.wanted);
        lesson(self) == lesson(other)
    }

    /// Returns how many bytes a data message carries at present.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Returns the size to be tried next, if this is the time for it.
    pub(crate) fn next_trial(&self) -> Option<usize> {
        let next = self.known.max(self.size * 2).min(self.largest);
        // Whole frames that say nothing.
        let next = next - next % HEADER_LENGTH;
        (self.trial.is_none() && self.clean >= self.wanted && next > self.size).then_some(next)
    }

    /// A trial of this size is under way.
    pub(crate) fn try_size(&mut self, size: usize) {
        self.trial = Some(size);
        self.clean = 0;
    }

    /// The trial was acknowledged.
    pub(crate) fn trial_passed(&mut self) {
        if let Some(size) = self.trial.take() {
            self.size = size;
            self.clean = 0;
        }
    }

    /// The trial may not have passed: only its repeat was acknowledged.
    pub(crate) fn trial_failed(&mut self) {
        if self.trial.take().is_some() {
            self.forget();
        }
    }

    /// A message of this many payload bytes was acknowledged.
    pub(crate) fn acknowledged(&mut self, length: usize) {
        if length >= self.size && self.trial.is_none() {
            self.clean = self.clean.saturating_add(1);
        }
    }

    /// The service paused or the websocket was lost: larger messages may be why.
    pub(crate) fn trouble(&mut self) {
        if self.size > self.smallest || self.trial.is_some() {
            self.forget();
        }
        self.size = self.smallest;
        self.trial = None;
        self.clean = 0;
    }

    fn forget(&mut self) {
        self.known = self.smallest;
        self.wanted = (self.wanted * 2).min(LONGEST_PROOF);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Acknowledges full messages until a trial is due; returns how many those were and the trial's size.
    fn next_trial(probe: &mut PayloadProbe) -> (u32, usize) {
        for count in 0..=LONGEST_PROOF {
            if let Some(size) = probe.next_trial() {
                probe.try_size(size);
                return (count, size);
            }
            probe.acknowledged(probe.size());
        }
        panic!("no trial");
    }

    #[test]
    fn payloads_grow_by_trials_that_pass() {
        let mut probe = PayloadProbe::between(1_024, 5_001);
        for size in [2_048, 4_096, 5_000] {
            assert_eq!(next_trial(&mut probe), (PROOF, size));
            assert!(probe.size() < size, "not before it has passed");
            probe.trial_passed();
            assert_eq!(probe.size(), size);
        }
        for _ in 0..PROOF * 2 {
            probe.acknowledged(5_000);
        }
        assert_eq!(probe.next_trial(), None, "the largest");
    }

    #[test]
    fn small_messages_prove_nothing() {
        let mut probe = PayloadProbe::between(1_024, 4_096);
        for _ in 0..PROOF * 2 {
            probe.acknowledged(1_023);
        }
        assert_eq!(probe.next_trial(), None);
    }

    #[test]
    fn a_trial_that_fails_is_repeated_after_a_longer_proof() {
        let mut probe = PayloadProbe::between(1_024, 4_096);
        next_trial(&mut probe);
        probe.trial_passed();
        next_trial(&mut probe);
        probe.trial_failed();
        assert_eq!(probe.size(), 2_048, "what has passed stays");
        assert_eq!(next_trial(&mut probe), (PROOF * 2, 4_096));
    }

    #[test]
    fn payloads_begin_anew_after_trouble() {
        let mut probe = PayloadProbe::between(1_024, 4_096);
        next_trial(&mut probe);
        probe.trial_passed();
        probe.trouble();
        assert_eq!(probe.size(), 1_024);
        assert_eq!(next_trial(&mut probe), (PROOF * 2, 2_048));
        probe.trouble();
        assert_eq!(next_trial(&mut probe), (PROOF * 4, 2_048));
    }

    #[test]
    fn another_session_tries_at_once_what_the_one_before_has_found() {
        let mut probe = PayloadProbe::between(1_024, 16_384);
        for _ in 0..3 {
            next_trial(&mut probe);
            probe.trial_passed();
        }
        let mut probe = probe.anew().anew();
        assert_eq!(probe.size(), 1_024);
        assert_eq!(next_trial(&mut probe), (1, 8_192));
        probe.trouble();
        assert_eq!(next_trial(&mut probe.anew()), (PROOF * 2, 2_048));
    }
}
