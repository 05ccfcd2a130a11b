//! How large payloads may be: found out by sending them.

/// How many bytes a data message carries.
///
/// The agent takes any size; what the service takes is unknown (ssm.md section 6.6). So sizes begin at the official
/// 1,024 and double after a run of acknowledged messages; after trouble that large ones may have made they begin anew
/// and must prove themselves longer. What was learned is worth remembering for the next session to the same target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PayloadProbe {
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
            clean: 0,
            wanted: PROOF,
        }
    }

    /// Returns how many bytes a data message carries at present.
    pub fn size(&self) -> usize {
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

    #[test]
    fn payloads_grow_while_clean_and_begin_anew_after_trouble() {
        let mut probe = PayloadProbe::between(1_024, 4_096);
        for _ in 0..PROOF {
            probe.acknowledged(1_024);
        }
        assert_eq!(probe.size(), 2_048);
        probe.acknowledged(64);
        probe.trouble();
        assert_eq!(probe.size(), 1_024);
        for _ in 0..PROOF {
            probe.acknowledged(1_024);
        }
        assert_eq!(probe.size(), 1_024, "after trouble the proof is longer");
        for _ in 0..PROOF {
            probe.acknowledged(1_024);
        }
        assert_eq!(probe.size(), 2_048);
    }
}
