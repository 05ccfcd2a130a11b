//! macOS and its kin: messages of the kernel's routing socket (route(4)).

use std::io;
use std::os::fd::OwnedFd;

use socket2::{Domain, Socket, Type};

/// The family of routing sockets.
const PF_ROUTE: i32 = 17;

/// The kinds of messages that say that something is there, gone, or another.
const ROUTES: std::ops::RangeInclusive<u8> = 1..=3;
const ADDRESSES_AND_LINKS: std::ops::RangeInclusive<u8> = 12..=14;
/// The flags of a route to a neighbour, or that is only remembered from one use to the next.
const IS_NEIGHBOUR: u32 = 0x400;
const IS_CLONED: u32 = 0x2_0000;

/// Opens a socket to which the kernel tells what changes; more than fits in what it is read into is cut off.
pub(super) fn open() -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::from(PF_ROUTE), Type::RAW, None)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Returns whether a message says that the way to others may have changed.
pub(super) fn is_change(message: &[u8]) -> bool {
    let [_, _, _, kind, _, _, _, _, flags @ ..] = message else {
        return false;
    };
    let flags = flags.first_chunk().map_or(0, |flags| u32::from_ne_bytes(*flags));
    ADDRESSES_AND_LINKS.contains(kind) || (ROUTES.contains(kind) && flags & (IS_NEIGHBOUR | IS_CLONED) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, flags: u32) -> Vec<u8> {
        let mut bytes = vec![0, 0, 5, kind, 0, 0, 0, 0];
        bytes.extend(flags.to_ne_bytes());
        bytes
    }

    #[test]
    fn neighbours_and_misses_are_noise() {
        for (kind, flags, expected) in [
            (1, 0, true),
            (2, IS_NEIGHBOUR, false),
            (1, IS_CLONED, false),
            (7, 0, false),
            (12, 0, true),
            (14, 0, true),
        ] {
            assert_eq!(is_change(&message(kind, flags)), expected, "{kind} {flags:x}");
        }
        assert!(!is_change(&[1, 2]));
    }
}
