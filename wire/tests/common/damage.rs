//! What can become of a frame on its way: another encoding of the same, which is to be taken, or one that is not.

use bytes::Bytes;

const HEADER: usize = 120;

/// The same message as the service was seen to encode its own: the type padded with NUL, and no payload type where it
/// is 0 anyway (ssm.md section 3.2).
pub(crate) fn dressed(frame: &[u8], random: &mut fastrand::Rng) -> Bytes {
    let mut frame = frame.to_vec();
    let padding = frame[4..36].iter_mut().rev().take_while(|byte| **byte == b' ');
    padding.for_each(|byte| *byte = 0);
    if random.bool() && frame[112..116] == [0; 4] {
        frame.drain(112..116);
        frame[3] = 112;
    }
    frame.into()
}

/// A frame that has lost its meaning, in such a way that a receiver can tell.
pub(crate) fn damaged(frame: &[u8], random: &mut fastrand::Rng) -> Bytes {
    let mut damaged = frame.to_vec();
    match random.u8(0..7) {
        0 => {
            let at = random.usize(HEADER..damaged.len());
            damaged[at] ^= random.u8(1..);
        }
        1 => damaged[random.usize(80..112)] ^= random.u8(1..),
        2 => damaged.truncate(random.usize(0..frame.len())),
        3 => damaged.truncate(HEADER),
        4 => damaged.push(random.u8(..)),
        5 => damaged[4..36].copy_from_slice(b"interactive_shell               "),
        _ => {
            damaged.truncate(random.usize(0..300));
            random.fill(&mut damaged);
        }
    }
    damaged.into()
}
