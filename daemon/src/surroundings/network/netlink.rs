//! Linux: messages of the routing part of the kernel, by a netlink socket (rtnetlink(7)).

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// The groups of messages that are subscribed to: links, addresses and routes. Neighbours, which come and go by
/// themselves, and rules are not among them.
const GROUPS: u32 = LINKS | IPV4_ADDRESSES | IPV4_ROUTES | IPV6_ADDRESSES | IPV6_ROUTES;
const LINKS: u32 = 0x1;
const IPV4_ADDRESSES: u32 = 0x10;
const IPV4_ROUTES: u32 = 0x40;
const IPV6_ADDRESSES: u32 = 0x100;
const IPV6_ROUTES: u32 = 0x400;

/// The kinds of messages that say that something is there, or gone.
const NEW_LINK: u16 = 16;
const DELETED_LINK: u16 = 17;
const NEW_ADDRESS: u16 = 20;
const DELETED_ADDRESS: u16 = 21;
const NEW_ROUTE: u16 = 24;
const DELETED_ROUTE: u16 = 25;

/// The length of the header before each message.
const HEADER: usize = 16;
/// Messages begin at multiples of this.
const ALIGNMENT: usize = 4;
/// The flag of a link that leads to this machine alone.
const IS_LOOPBACK: u32 = 0x8;
/// The length of what is told of every link, before its attributes.
const LINK: usize = 16;
/// The attribute of a message about what a wireless driver does: it scans, for the most part.
const WIRELESS: u16 = 11;
/// The scope of addresses that are reached from this machine alone.
const HOST_SCOPE: u8 = 254;
/// The flag of a route that is only remembered, from one use to the next.
const IS_CACHED: u32 = 0x200;

/// Opens a socket to which the kernel tells what changes; more than fits in what it is read into is cut off.
pub(super) fn open() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // Routing is what netlink speaks of where nothing else is named.
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
    Ok(socket)
}

/// Returns whether one of these messages says that the way to others may have changed.
pub(super) fn is_change(mut messages: &[u8]) -> bool {
    while let Some(length) = number(messages, 0).and_then(|length| usize::try_from(length).ok()) {
        let end = length.min(messages.len());
        let Some(body) = messages.get(HEADER..end) else {
            return false;
        };
        let kind = u16::from_ne_bytes([messages[4], messages[5]]);
        if concerns(kind, body) {
            return true;
        }
        messages = messages
            .get(end.next_multiple_of(ALIGNMENT)..)
            .unwrap_or_default();
    }
    false
}

fn concerns(kind: u16, body: &[u8]) -> bool {
    match kind {
        NEW_LINK | DELETED_LINK => {
            let leads_out = number(body, 8).is_some_and(|flags| flags & IS_LOOPBACK == 0);
            leads_out && !has_attribute(body.get(LINK..).unwrap_or_default(), WIRELESS)
        }
        NEW_ADDRESS | DELETED_ADDRESS => body.get(3).is_some_and(|scope| *scope != HOST_SCOPE),
        NEW_ROUTE | DELETED_ROUTE => number(body, 8).is_some_and(|flags| flags & IS_CACHED == 0),
        _ => false,
    }
}

fn has_attribute(mut attributes: &[u8], wanted: u16) -> bool {
    while let [low, high, kind_low, kind_high, ..] = *attributes {
        let length = usize::from(u16::from_ne_bytes([low, high]));
        if u16::from_ne_bytes([kind_low, kind_high]) == wanted {
            return true;
        }
        // One that is shorter than its own head has no end.
        let next = length.max(ALIGNMENT).next_multiple_of(ALIGNMENT);
        attributes = attributes.get(next..).unwrap_or_default();
    }
    false
}

/// Returns the number of four bytes at a place.
fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A message as the kernel sends it.
    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER + body.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(HEADER, 0);
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes
    }

    fn link(flags: u32, attribute: u16) -> Vec<u8> {
        let mut body = vec![0; 8];
        body.extend(flags.to_ne_bytes());
        body.resize(LINK, 0);
        body.extend(8_u16.to_ne_bytes());
        body.extend(attribute.to_ne_bytes());
        body.extend([0; 4]);
        body
    }

    fn address(scope: u8) -> Vec<u8> {
        vec![2, 24, 0, scope, 1, 0, 0, 0]
    }

    fn route(flags: u32) -> Vec<u8> {
        let mut body = vec![0; 8];
        body.extend(flags.to_ne_bytes());
        body
    }

    #[test]
    fn links_addresses_and_routes_that_lead_to_others_are_changes() {
        for (kind, body) in [
            (NEW_LINK, link(0x1003, 3)),
            (DELETED_LINK, link(0x1002, 3)),
            (NEW_ADDRESS, address(0)),
            (DELETED_ADDRESS, address(253)),
            (NEW_ROUTE, route(0)),
            (DELETED_ROUTE, route(0)),
        ] {
            assert!(is_change(&message(kind, &body)), "{kind}");
        }
    }

    #[test]
    fn what_leads_nowhere_else_and_what_is_only_remembered_is_noise() {
        const NEW_NEIGHBOUR: u16 = 28;
        for (kind, body) in [
            (NEW_LINK, link(IS_LOOPBACK, 3)),
            (NEW_LINK, link(0x1003, WIRELESS)),
            (NEW_ADDRESS, address(HOST_SCOPE)),
            (NEW_ROUTE, route(IS_CACHED)),
            (NEW_NEIGHBOUR, route(0)),
        ] {
            assert!(!is_change(&message(kind, &body)), "{kind}");
        }
    }

    #[test]
    fn a_change_among_noise_is_heard() {
        let noise = message(NEW_ADDRESS, &address(HOST_SCOPE));
        let mut messages = [noise.clone(), noise].concat();
        assert!(!is_change(&messages));
        messages.extend(message(NEW_ROUTE, &route(0)));
        assert!(is_change(&messages));
    }

    #[test]
    fn the_kernel_lets_everybody_listen() {
        let listener = std::os::unix::net::UnixDatagram::from(open().unwrap());
        let nothing = listener.recv(&mut [0; 16]).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_their_end(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            is_change(&bytes);
        }

        #[test]
        fn any_link_is_read_to_its_end(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            is_change(&message(NEW_LINK, &bytes));
        }
    }
}
