//! Whose socket is at the other end of a loopback connection: asked of the system, which has both ends.
//!
//! ```text
//!   client's socket  127.0.0.1:53124 ──► 127.0.0.1:15432   ours, accepted
//!         └── its row in the system's table: state, user, inode
//! ```
//!
//! On Linux netlink tells of one socket by its exact addresses (`sock_diag`), without a walk through all of them. The
//! kernel answers while the question is sent: asking waits for nobody, and takes a few microseconds of the runtime's
//! thread, as accepting itself does.
//!
//! An answer counts only if it is about the connection that was asked for. The kernel answers a question about a socket
//! that has gone with whatever *listens* on the client's port, and a socket that its process has closed has inode 0 and
//! root for its user. A row in another state may belong to somebody who uses the port after the client.
//!
//! Elsewhere no call that is safe to make tells: every client passes for the owner's, and its making says so.

use std::io;

/// Why nobody knows whose a connection is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unknown {
    /// The client has closed its socket, or it is not on this machine.
    #[error("its client has no socket here any more")]
    Gone,
    /// The system did not answer.
    #[error("the system does not tell whose it is")]
    Unasked(#[from] io::Error),
}

#[cfg(target_os = "linux")]
pub(crate) use self::linux::Owners;
#[cfg(not(target_os = "linux"))]
pub(crate) use self::other::Owners;

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::net::{IpAddr, SocketAddr};
    use std::sync::{Mutex, PoisonError};

    use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
    use netlink_packet_sock_diag::SockDiagMessage;
    use netlink_packet_sock_diag::constants::{
        AF_INET, AF_INET6, IPPROTO_TCP, TCP_ESTABLISHED, TCP_FIN_WAIT1, TCP_FIN_WAIT2,
    };
    use netlink_packet_sock_diag::inet::{
        ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags,
    };
    use netlink_sys::Socket;
    use netlink_sys::protocols::NETLINK_SOCK_DIAG;
    use rustix::io::Errno;
    use tracing::debug;

    use super::Unknown;

    /// Room for an answer: a row without extensions has little more than 100 bytes.
    const LONGEST_ANSWER: usize = 4096;

    /// Any socket with these addresses, as the kernel's `INET_DIAG_NOCOOKIE` has it.
    const NO_COOKIE: [u8; 8] = [0xff; 8];

    /// The states of a client's socket that is connected, or has closed its sending half. One whose handshake is not
    /// over was not accepted, and one that we have ended is not asked for.
    const CONNECTED: [u8; 3] = [TCP_ESTABLISHED, TCP_FIN_WAIT1, TCP_FIN_WAIT2];

    /// The way to ask whose a socket is. One is enough for a daemon.
    #[derive(Debug)]
    pub(crate) struct Owners {
        kept: Mutex<Option<Questions>>,
    }

    impl Default for Owners {
        /// A way that is open from the start: a connection that comes when descriptors run out needs it too.
        fn default() -> Self {
            Self {
                kept: Mutex::new(Questions::open().ok()),
            }
        }
    }

    impl Owners {
        /// Returns the user whose socket is connected from `client` to `ours`.
        pub(crate) fn of(&self, client: SocketAddr, ours: SocketAddr) -> Result<u32, Unknown> {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(questions) = kept.as_mut() {
                match questions.ask(client, ours) {
                    Ok(row) => return uid(row, client, ours),
                    Err(error) => debug!(%error, "the netlink socket is broken; opening another"),
                }
            }
            *kept = None;
            let mut questions = Questions::open()?;
            let row = questions.ask(client, ours)?;
            *kept = Some(questions);
            uid(row, client, ours)
        }
    }

    /// Returns the user of a row, if it is the client's.
    fn uid(row: Option<InetResponseHeader>, client: SocketAddr, ours: SocketAddr) -> Result<u32, Unknown> {
        let row = row.ok_or(Unknown::Gone)?;
        let id = &row.socket_id;
        // A client that uses IPv6 for everything is connected to ::ffff:127.0.0.1.
        let is = |ip: IpAddr, port: u16, wanted: SocketAddr| {
            ip.to_canonical() == wanted.ip().to_canonical() && port == wanted.port()
        };
        let is_its = is(id.source_address, id.source_port, client)
            && is(id.destination_address, id.destination_port, ours)
            && CONNECTED.contains(&row.state)
            && row.inode != 0;
        is_its.then_some(row.uid).ok_or(Unknown::Gone)
    }

    /// A netlink socket on which one question is asked at a time.
    #[derive(Debug)]
    struct Questions {
        socket: Socket,
        asked: u32,
    }

    impl Questions {
        fn open() -> io::Result<Self> {
            let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
            socket.bind_auto()?;
            // From now on only the kernel's answers are received.
            socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
            socket.set_non_blocking(true)?;
            Ok(Self { socket, asked: 0 })
        }

        /// Asks for the socket with these addresses; `None`: there is none. After an error the answers may not be
        /// those to the questions any more.
        fn ask(&mut self, client: SocketAddr, ours: SocketAddr) -> io::Result<Option<InetResponseHeader>> {
            self.send(client, ours)?;
            self.receive()
        }

        fn send(&mut self, client: SocketAddr, ours: SocketAddr) -> io::Result<()> {
            self.asked = self.asked.wrapping_add(1);
            let mut header = NetlinkHeader::default();
            header.flags = NLM_F_REQUEST;
            header.sequence_number = self.asked;
            let question = SockDiagMessage::InetRequest(InetRequest {
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
                    cookie: NO_COOKIE,
                },
            });
            let mut question = NetlinkMessage::new(header, question.into());
            question.finalize();
            let mut bytes = vec![0; question.buffer_len()];
            question.serialize(&mut bytes);
            self.socket.send(&bytes, 0).map(drop)
        }

        fn receive(&self) -> io::Result<Option<InetResponseHeader>> {
            let mut bytes = Vec::with_capacity(LONGEST_ANSWER);
            self.socket.recv(&mut bytes, 0)?;
            let answer = NetlinkMessage::<SockDiagMessage>::deserialize(&bytes)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            let (header, payload) = answer.into_parts();
            if header.sequence_number != self.asked {
                return Err(unexpected("the answer is to another question"));
            }
            if let NetlinkPayload::Error(error) = &payload {
                let error = error.to_io();
                let is_absent = Errno::from_io_error(&error) == Some(Errno::NOENT);
                return if is_absent { Ok(None) } else { Err(error) };
            }
            if let NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(row)) = payload {
                return Ok(Some(row.header));
            }
            Err(unexpected("the answer is of another kind"))
        }
    }

    fn unexpected(what: &str) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, what)
    }

    #[cfg(test)]
    mod tests {
        use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};

        use netlink_sys::protocols::NETLINK_USERSOCK;
        use socket2::{Domain, Type};

        use super::*;

        fn us() -> u32 {
            rustix::process::getuid().as_raw()
        }

        /// A connected pair, and the addresses of client and listener.
        fn pair(listen: &str) -> Option<(TcpStream, TcpStream, SocketAddr, SocketAddr)> {
            // A machine may be without IPv6.
            let listener = TcpListener::bind(listen).ok()?;
            let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (far, client) = listener.accept().unwrap();
            let ours = far.local_addr().unwrap();
            Some((near, far, client, ours))
        }

        /// How many questions the socket that is kept was asked.
        fn asked(owners: &Owners) -> u32 {
            let kept = owners.kept.lock().unwrap();
            kept.as_ref().map_or(0, |questions| questions.asked)
        }

        #[test]
        fn a_connection_is_its_clients_on_every_address_of_the_loopback() {
            let owners = Owners::default();
            for listen in ["127.0.0.1:0", "127.0.0.2:0", "[::1]:0"] {
                let Some((_near, _far, client, ours)) = pair(listen) else {
                    continue;
                };
                assert_eq!(owners.of(client, ours).unwrap(), us(), "{listen}");
            }
        }

        #[test]
        fn a_client_that_uses_ipv6_for_everything_is_found() {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let ours = listener.local_addr().unwrap();
            let Ok(near) = socket2::Socket::new(Domain::IPV6, Type::STREAM, None) else {
                return; /* no IPv6 here */
            };
            let mapped = SocketAddr::from((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), ours.port()));
            near.connect(&mapped.into()).unwrap();
            let (_far, client) = listener.accept().unwrap();
            assert_eq!(Owners::default().of(client, ours).unwrap(), us());
        }

        #[test]
        fn a_client_that_has_closed_its_half_is_still_its_users() {
            let (near, _far, client, ours) = pair("127.0.0.1:0").unwrap();
            near.shutdown(Shutdown::Write).unwrap();
            assert_eq!(Owners::default().of(client, ours).unwrap(), us());
        }

        #[test]
        fn a_client_that_has_left_is_nobodys() {
            let (near, _far, client, ours) = pair("127.0.0.1:0").unwrap();
            drop(near);
            assert!(matches!(Owners::default().of(client, ours), Err(Unknown::Gone)));
        }

        #[test]
        fn whoever_listens_on_the_clients_port_is_not_taken_for_it() {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let listening = listener.local_addr().unwrap();
            let nowhere = SocketAddr::from(([127, 0, 0, 1], 9));
            let mut questions = Questions::open().unwrap();
            let row = questions.ask(listening, nowhere).unwrap();
            assert!(row.is_some(), "the kernel answers with the listener");
            assert!(matches!(
                Owners::default().of(listening, nowhere),
                Err(Unknown::Gone)
            ));
        }

        #[test]
        fn only_the_row_of_the_connection_itself_counts() {
            let (client, ours) = ("127.0.0.1:5".parse().unwrap(), "127.0.0.1:6".parse().unwrap());
            let row = |state: u8, inode: u32, source_port: u16| InetResponseHeader {
                family: AF_INET,
                state,
                timer: None,
                socket_id: SocketId {
                    source_port,
                    destination_port: 6,
                    source_address: Ipv4Addr::LOCALHOST.into(),
                    destination_address: Ipv4Addr::LOCALHOST.into(),
                    interface_id: 0,
                    cookie: NO_COOKIE,
                },
                recv_queue: 0,
                send_queue: 0,
                uid: 1000,
                inode,
            };
            let of = |row| uid(Some(row), client, ours).ok();
            assert_eq!(of(row(TCP_ESTABLISHED, 1, 5)), Some(1000));
            assert_eq!(of(row(TCP_FIN_WAIT2, 1, 5)), Some(1000));
            assert_eq!(of(row(TCP_FIN_WAIT2, 0, 5)), None, "closed by its process");
            assert_eq!(of(row(TCP_ESTABLISHED, 1, 7)), None, "another connection");
            for state in 0..=12 {
                let is_connected = CONNECTED.contains(&state);
                assert_eq!(of(row(state, 1, 5)).is_some(), is_connected, "{state}");
            }
        }

        #[test]
        fn a_broken_socket_is_replaced() {
            let (_near, _far, client, ours) = pair("127.0.0.1:0").unwrap();
            // Nobody answers there.
            let broken = Questions {
                socket: Socket::new(NETLINK_USERSOCK).unwrap(),
                asked: 0,
            };
            let owners = Owners {
                kept: Mutex::new(Some(broken)),
            };
            assert_eq!(owners.of(client, ours).unwrap(), us());
            assert_eq!(asked(&owners), 1);
        }

        #[test]
        fn a_socket_full_of_answers_that_nobody_took_is_replaced() {
            let (_near, _far, client, ours) = pair("127.0.0.1:0").unwrap();
            let mut full = Questions::open().unwrap();
            full.socket.set_rx_buf_sz(1_u32).unwrap();
            for _ in 0..64 {
                full.send(client, ours).unwrap();
            }
            let owners = Owners {
                kept: Mutex::new(Some(full)),
            };
            assert_eq!(owners.of(client, ours).unwrap(), us());
            assert_eq!(owners.of(client, ours).unwrap(), us());
            assert_eq!(asked(&owners), 2, "the new one is kept");
        }

        #[test]
        fn a_thousand_questions_take_a_fraction_of_a_second() {
            let (_near, _far, client, ours) = pair("127.0.0.1:0").unwrap();
            let owners = Owners::default();
            let began = tokio::time::Instant::now();
            for _ in 0..1000 {
                owners.of(client, ours).unwrap();
            }
            let taken = began.elapsed();
            println!("{} ns for a question", taken.as_nanos() / 1000);
            // A hundred times what it has been seen to take, optimised.
            assert!(taken.as_secs() < 1, "{taken:?}");
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    use std::net::SocketAddr;

    use tracing::warn;

    use super::Unknown;

    /// The way to ask whose a socket is, where there is none.
    #[derive(Debug)]
    pub(crate) struct Owners {
        us: u32,
    }

    impl Default for Owners {
        /// Warns that nobody tells.
        fn default() -> Self {
            warn!(
                "this system does not tell whose a connection is: every user of it can use the tunnels' TCP ports"
            );
            Self {
                us: rustix::process::getuid().as_raw(),
            }
        }
    }

    impl Owners {
        /// Returns our own user.
        pub(crate) fn of(&self, _client: SocketAddr, _ours: SocketAddr) -> Result<u32, Unknown> {
            Ok(self.us)
        }
    }
}
