//! The bytes that every transfer is made of, known at each offset, so that both ends can check them.

use std::sync::LazyLock;

/// The pattern repeats after a prime number of bytes: a lost, doubled or moved message shifts it.
const PERIOD: usize = 65_521;
/// The most that one look can be at.
pub(crate) const LONGEST: usize = PERIOD;

/// Two periods, so that a look that begins anywhere in the first lies in one piece.
static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut period = vec![0; PERIOD];
    fastrand::Rng::with_seed(1).fill(&mut period);
    period.repeat(2)
});

/// Returns the bytes of every transfer from `offset` on, at most [`LONGEST`] of them.
pub(crate) fn at(offset: u64, length: u64) -> &'static [u8] {
    let start = (offset % PERIOD as u64) as usize;
    let length = length.min(LONGEST as u64) as usize;
    &BYTES[start..start + length]
}

/// Whether these are the bytes at `offset`; at most [`LONGEST`] of them.
pub(crate) fn is_at(offset: u64, bytes: &[u8]) -> bool {
    bytes == at(offset, bytes.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_known_at_every_offset() {
        let far = 3 * PERIOD as u64 + 17;
        assert!(is_at(far, at(17, 1_000)));
        assert_eq!(at(far, u64::MAX).len(), LONGEST);
    }

    #[test]
    fn a_lost_message_is_noticed() {
        for lost in [1, 1_024, 16_384, 32_768] {
            assert!(!is_at(0, at(lost, 64)), "{lost}");
        }
    }
}
