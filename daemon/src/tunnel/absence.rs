//! Whether a client still has its socket.
//!
//! TCP does not tell: who closed completely and who closed only the sending half have both sent a FIN. But on the
//! loopback the client's socket is in the system's own table, and one that no process has any more has no inode. On Linux
//! netlink finds it there by its addresses (`sock_diag`) in a few microseconds, however many there are; elsewhere nobody
//! knows.

use std::net::SocketAddr;

/// Returns whether the client of one of our connections has closed its socket completely.
#[cfg(target_os = "linux")]
pub(crate) fn has_left(client: SocketAddr, ours: SocketAddr) -> bool {
    // Of a client on another machine, or where the system does not answer, nobody knows.
    client.ip().to_canonical().is_loopback() && linux::is_absent(client, ours).unwrap_or(false)
}

/// Returns whether the client of one of our connections has closed its socket completely.
#[cfg(not(target_os = "linux"))]
pub(crate) fn has_left(_client: SocketAddr, _ours: SocketAddr) -> bool {
    false
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::net::SocketAddr;

    use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
    use netlink_packet_sock_diag::SockDiagMessage;
    use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
    use netlink_packet_sock_diag::inet::{
        ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags,
    };
    use netlink_sys::Socket;
    use netlink_sys::protocols::NETLINK_SOCK_DIAG;
    use rustix::io::Errno;

    /// Room for an answer: a row without extensions has little more than 100 bytes.
    const LONGEST_ANSWER: usize = 4096;

    /// Whatever socket has the addresses, as the kernel's `INET_DIAG_NOCOOKIE` has it.
    const ANY: [u8; 8] = [0xff; 8];

    /// Returns whether no process has the socket that is connected from `client` to `ours`.
    pub(super) fn is_absent(client: SocketAddr, ours: SocketAddr) -> io::Result<bool> {
        let socket = Socket::new(NETLINK_SOCK_DIAG)?;
        // The kernel answers while it is asked.
        socket.set_non_blocking(true)?;
        socket.send_to(&question(client, ours), &netlink_sys::SocketAddr::new(0, 0), 0)?;
        let mut answer = Vec::with_capacity(LONGEST_ANSWER);
        socket.recv(&mut answer, 0)?;
        let answer = NetlinkMessage::<SockDiagMessage>::deserialize(&answer)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        if let NetlinkPayload::Error(error) = &answer.payload {
            let error = error.to_io();
            let is_nowhere = Errno::from_io_error(&error) == Some(Errno::NOENT);
            return if is_nowhere { Ok(true) } else { Err(error) };
        }
        let NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(row)) = answer.payload else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        Ok(row.header.inode == 0 || !is_of(&row.header, client, ours))
    }

    fn question(client: SocketAddr, ours: SocketAddr) -> Vec<u8> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST;
        let request = SockDiagMessage::InetRequest(InetRequest {
            family: if client.is_ipv4() { AF_INET } else { AF_INET6 },
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::all(),
            socket_id: SocketId {
                source_port: client.port(),
                destination_port: ours.port(),
                source_address: client.ip(),
                destination_address: ours.ip(),
                interface_id: 0,
                cookie: ANY,
            },
        });
        let mut question = NetlinkMessage::new(header, request.into());
        question.finalize();
        let mut bytes = vec![0; question.buffer_len()];
        question.serialize(&mut bytes);
        bytes
    }

    /// Returns whether a row is about that connection: where the client's is gone, the kernel answers with whatever
    /// listens on its port.
    fn is_of(row: &InetResponseHeader, client: SocketAddr, ours: SocketAddr) -> bool {
        let id = &row.socket_id;
        // A client that uses IPv6 for everything is connected to ::ffff:127.0.0.1.
        let ends = [
            (id.source_address, id.source_port),
            (id.destination_address, id.destination_port),
        ];
        ends.map(|(ip, port)| (ip.to_canonical(), port))
            == [client, ours].map(|end| (end.ip().to_canonical(), end.port()))
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_client_that_closed_its_half_is_told_from_one_that_left() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else {
                continue;
            };
            let ours = listener.local_addr().unwrap();
            let near = TcpStream::connect(ours).unwrap();
            let (_far, client) = listener.accept().unwrap();
            near.shutdown(std::net::Shutdown::Write).unwrap();
            assert!(!has_left(client, ours));
            drop(near);
            assert!(has_left(client, ours));
        }
    }

    #[test]
    fn a_client_of_another_machine_is_not_taken_for_one_that_left() {
        let (client, ours) = ("192.0.2.1:1".parse().unwrap(), "192.0.2.2:1".parse().unwrap());
        assert!(!has_left(client, ours));
    }

    #[test]
    fn whoever_listens_on_its_port_is_not_taken_for_a_client() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let nowhere = "127.0.0.1:1".parse().unwrap();
        assert!(has_left(listener.local_addr().unwrap(), nowhere));
    }
}
