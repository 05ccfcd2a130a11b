//! The local address of a tunnel: bound from `up` to `down`, whatever happens to its links.
//!
//! Binding is all or nothing, so that a client that prefers the other address family never reaches another program.
//! Only `::1` on a machine without IPv6 may be missing. `SO_REUSEPORT` is never set: it would let a second program
//! take half of the connections. A socket that an earlier daemon left is taken instead of bound anew, with the clients
//! that wait on it.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, UnixListener};
use tokio::time::Sleep;
use tracing::{debug, warn};

use crate::config::{AllowedUsers, Listen};
use crate::failure::{Cause, Failure, Reason, Remedy};
use crate::heritage::{self, Claim, Heritage, Left};
use crate::limits::Portion;
use crate::socket_file::{self, Audience, BACKLOG, SocketFile};
use crate::tunnel::Common;
use crate::tunnel::client::Client;
use crate::tunnel::holder::Holder;

/// How long nothing is accepted after the process ran out of file descriptors: connections wait in the kernel
/// meanwhile, and a tenth of a second is enough for others to end without the loop spinning.
const STARVED_PAUSE: Duration = Duration::from_millis(100);

/// The bound sockets of one tunnel. Dropping them closes them.
#[derive(Debug)]
pub(crate) struct Listener {
    sockets: Vec<Bound>,
    /// The socket asked first, so that a busy one does not starve the other.
    first: usize,
    /// While out of file descriptors.
    pause: Option<Pin<Box<Sleep>>>,
    common: Common,
    /// Whether connections wait because the tunnels have all of it.
    is_crowded: bool,
    _portion: Option<Portion>,
}

/// A bound socket.
#[derive(Debug)]
struct Bound {
    socket: Accepting,
    claim: Claim,
}

#[derive(Debug)]
enum Accepting {
    Tcp(TcpListener),
    Unix { socket: UnixListener, file: SocketFile },
}

/// A local address that could not be bound.
#[derive(Debug)]
pub(crate) struct Taken {
    /// What to show.
    pub(crate) failure: Arc<Failure>,
    address: Address,
    holder: Option<Holder>,
}

impl Taken {
    /// Returns whether a later failure to bind says nothing new.
    pub(crate) fn still(&self, later: &Unbound) -> bool {
        self.address == later.address && self.holder.as_ref().is_none_or(Holder::lives)
    }
}

impl Listener {
    /// Binds the whole address, or nothing of it. These users can connect to a Unix socket; a TCP port is open to all.
    pub(crate) fn bind(listen: &Listen, allowed: &AllowedUsers, common: &Common) -> Result<Self, Unbound> {
        let mut sockets = match listen {
            Listen::Tcp(addresses) => bind_all(addresses, &common.heritage)?,
            Listen::Unix(path) => vec![bind_unix(path, allowed, &common.heritage)?],
        };
        // Only once nothing can fail any more: an address that is tried each second is no news to whoever keeps it.
        for Bound { socket, claim } in &mut sockets {
            match socket {
                Accepting::Tcp(socket) => claim.keep(&*socket),
                Accepting::Unix { socket, .. } => claim.keep(&*socket),
            }
        }
        Ok(Self {
            _portion: common.allowance.listeners(sockets.len()),
            sockets,
            first: 0,
            pause: None,
            common: common.clone(),
            is_crowded: false,
        })
    }

    /// Leaves the address to the next daemon: whoever connects from now on waits for it.
    pub(crate) fn leave(self, heritage: &Heritage) {
        self.into_left().for_each(|left| heritage.leave(left));
    }

    /// Offers the address to the tunnels of this daemon: whoever connects from now on waits for the one that takes it.
    pub(crate) fn offer(self, heritage: &Heritage) {
        self.into_left().for_each(|left| heritage.offer(left));
    }

    fn into_left(self) -> impl Iterator<Item = Left> {
        self.sockets.into_iter().filter_map(|Bound { socket, claim }| {
            let (socket, file) = match socket {
                Accepting::Tcp(socket) => (socket.into_std().map(OwnedFd::from), None),
                Accepting::Unix { socket, file } => (socket.into_std().map(OwnedFd::from), Some(file)),
            };
            let socket = socket
                .inspect_err(|error| warn!(%error, "cannot pass a local address on"))
                .ok()?;
            Some(Left {
                socket,
                name: String::new(),
                file,
                claim,
            })
        })
    }

    /// Waits for the next local client, and for the descriptors that it needs. Cancel-safe.
    pub(crate) async fn accept(&mut self) -> Client {
        loop {
            if let Some(pause) = &mut self.pause {
                pause.await;
            }
            let accepted = poll_fn(|context| {
                // Given back at once while nobody comes.
                let Some(portion) = self.common.allowance.connection() else {
                    return Poll::Ready(None);
                };
                let accepted = self.poll_accept(context);
                accepted.map(|accepted| Some(accepted.map(|client| client.with(portion))))
            });
            let Some(accepted) = accepted.await else {
                if !self.is_crowded {
                    warn!("tunnels have all the connections that the limit of open files allows; more wait");
                }
                self.is_crowded = true;
                self.common.allowance.has_room().await;
                continue;
            };
            self.is_crowded = false;
            match accepted {
                Ok(client) => {
                    self.pause = None;
                    return client;
                }
                Err(error) if starved(&error) => {
                    if self.pause.is_none() {
                        warn!(%error, "cannot accept connections for want of resources; they wait");
                    }
                    self.pause = Some(Box::pin(tokio::time::sleep(STARVED_PAUSE)));
                }
                // The client left between its SYN and our accept.
                Err(error) => debug!(%error, "a connection ended before it was accepted"),
            }
        }
    }

    fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Client>> {
        let count = self.sockets.len();
        for offset in 0..count {
            let index = (self.first + offset) % count;
            let accepted = match &self.sockets[index].socket {
                Accepting::Tcp(socket) => socket
                    .poll_accept(context)
                    .map_ok(|(stream, peer)| Client::tcp(stream, peer, Arc::clone(&self.common.owners))),
                Accepting::Unix { socket, .. } => socket
                    .poll_accept(context)
                    .map_ok(|(stream, _)| Client::unix(stream)),
            };
            if accepted.is_ready() {
                self.first = (index + 1) % count;
                return accepted;
            }
        }
        Poll::Pending
    }
}

/// An address that could not be bound, before anybody asked who holds it.
#[derive(Debug)]
pub(crate) struct Unbound {
    address: Address,
    error: Cause,
}

/// What to do about a limit of open files that a tunnel's listener does not fit under.
const MORE_FILES: &str =
    "let the daemon open more files: LimitNOFILE= of its service, or `ulimit -n` before it starts";

#[derive(Debug, Clone, PartialEq, Eq)]
enum Address {
    /// Held by a program, found by the address.
    TcpInUse(SocketAddr),
    /// Held by a program, which is this process where the system tells.
    UnixInUse(String, Option<i32>),
    /// Not to be had for want of something that will be there again.
    Starved(String),
    /// Not to be had for another reason.
    Refused(String),
}

impl Unbound {
    /// Finds out who holds the address. Reads much of `/proc`: not for the threads of the runtime.
    pub(crate) fn explain(self) -> Taken {
        let (text, holder) = match &self.address {
            Address::Refused(text) | Address::Starved(text) => {
                let hint = match self.address {
                    Address::Starved(_) => MORE_FILES,
                    Address::Refused(_) | Address::TcpInUse(_) | Address::UnixInUse(..) => {
                        "give the tunnel another `listen`"
                    }
                };
                let failure =
                    Failure::new(Reason::Invalid, Remedy::Fix, format!("cannot listen on `{text}`"))
                        .because(self.error)
                        .hint(hint);
                return Taken {
                    failure: Arc::new(failure),
                    address: self.address,
                    holder: None,
                };
            }
            Address::TcpInUse(address) => (address.to_string(), Holder::of(*address)),
            Address::UnixInUse(text, pid) => (text.clone(), pid.and_then(Holder::by_pid)),
        };
        let by = holder
            .as_ref()
            .map_or_else(|| "another program".to_owned(), ToString::to_string);
        let failure = Failure::new(Reason::PortInUse, Remedy::Fix, format!("{text} is held by {by}"))
            .because(self.error)
            .hint("it goes on when the port is free, or give the tunnel another `listen`");
        Taken {
            failure: Arc::new(failure),
            address: self.address,
            holder,
        }
    }
}

fn bind_all(addresses: &[SocketAddr], heritage: &Heritage) -> Result<Vec<Bound>, Unbound> {
    let mut sockets = Vec::with_capacity(addresses.len());
    for &address in addresses {
        match bind_tcp(address, heritage) {
            Ok(bound) => sockets.push(bound),
            Err(error) if no_ipv6(address, &error) && addresses.iter().any(SocketAddr::is_ipv4) => {
                debug!(%address, "this machine has no IPv6");
            }
            Err(error) => {
                let in_use = error.kind() == io::ErrorKind::AddrInUse;
                let address = if in_use {
                    Address::TcpInUse(address)
                } else if starved(&error) {
                    Address::Starved(address.to_string())
                } else {
                    Address::Refused(address.to_string())
                };
                return Err(Unbound {
                    address,
                    error: error.into(),
                });
            }
        }
    }
    Ok(sockets)
}

fn bind_tcp(address: SocketAddr, heritage: &Heritage) -> io::Result<Bound> {
    let known = heritage::Address::Tcp(address);
    let (socket, claim) = match heritage.take(&known) {
        Some(found) => {
            debug!(%address, "took over a socket that listens already");
            (found.socket, found.claim)
        }
        None => {
            let socket = new_tcp(address).inspect_err(|error| {
                if error.kind() == io::ErrorKind::AddrInUse {
                    heritage.claim(&known).renounce();
                }
            });
            (socket?, heritage.claim(&known))
        }
    };
    Ok(Bound {
        socket: Accepting::Tcp(TcpListener::from_std(socket.into())?),
        claim,
    })
}

fn new_tcp(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // A restart is not refused because of connections that linger in TIME_WAIT.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn bind_unix(path: &Path, allowed: &AllowedUsers, heritage: &Heritage) -> Result<Bound, Unbound> {
    let known = heritage::Address::Unix(path.to_owned());
    let shown = known.to_string();
    // A mode knows no users but the owner: with others allowed, it is left to the gate to keep the rest out.
    let audience = match allowed {
        AllowedUsers::OwnerAnd(others) if others.is_empty() => Audience::Owner,
        AllowedUsers::OwnerAnd(_) | AllowedUsers::Any => Audience::Everybody,
    };
    let found = heritage.take(&known).and_then(|found| {
        // Without its file nobody finds the way to it.
        let file = match found.file {
            Some(file) => file,
            None => SocketFile::adopt(path).ok().flatten()?,
        };
        audience.admit(path).ok()?;
        debug!(address = shown, "took over a socket that listens already");
        Some((found.socket.into(), file, found.claim))
    });
    let bound = match found {
        Some(found) => Ok(found),
        None => {
            socket_file::bind(path, audience).map(|(socket, file)| (socket, file, heritage.claim(&known)))
        }
    };
    let (socket, file, claim) = bound.map_err(|error| {
        let address = match &error {
            socket_file::BindError::Answered { pid } => Address::UnixInUse(shown.clone(), *pid),
            socket_file::BindError::Io(error) if starved(error) => Address::Starved(shown.clone()),
            socket_file::BindError::NoSocket | socket_file::BindError::Io(_) => {
                Address::Refused(shown.clone())
            }
        };
        Unbound {
            address,
            error: error.into(),
        }
    })?;
    let socket = UnixListener::from_std(socket).map_err(|error| Unbound {
        address: Address::Refused(shown),
        error: error.into(),
    })?;
    Ok(Bound {
        socket: Accepting::Unix { socket, file },
        claim,
    })
}

/// Returns whether the error says that the machine has no IPv6 at all, or none on its loopback.
fn no_ipv6(address: SocketAddr, error: &io::Error) -> bool {
    let missing = [rustix::io::Errno::ADDRNOTAVAIL, rustix::io::Errno::AFNOSUPPORT];
    address.is_ipv6()
        && address.ip().is_loopback()
        && rustix::io::Errno::from_io_error(error).is_some_and(|errno| missing.contains(&errno))
}

/// Returns whether accepting failed for want of something that will be there again.
fn starved(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let wants = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|errno| wants.contains(&errno))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tokio::net::{TcpStream, UnixStream};
    use tokio::time::timeout;

    use super::*;
    use crate::limits::Allowance;
    use crate::tunnel::fake;

    fn bind(listen: &Listen) -> Result<Listener, Unbound> {
        Listener::bind(listen, &AllowedUsers::default(), &Common::for_test())
    }

    #[tokio::test]
    async fn a_program_that_holds_one_of_two_addresses_blocks_both() {
        let other = std::net::TcpListener::bind("[::1]:0");
        let Ok(other) = other else {
            return; /* no IPv6 here: there is nothing to hold */
        };
        let port = other.local_addr().unwrap().port();
        let both = vec![
            SocketAddr::from(([127, 0, 0, 1], port)),
            other.local_addr().unwrap(),
        ];
        let taken = bind(&Listen::Tcp(both)).unwrap_err().explain();
        assert_eq!(taken.failure.reason(), Reason::PortInUse);
        std::net::TcpListener::bind(("127.0.0.1", port)).expect("the other address is let go");
    }

    #[tokio::test]
    async fn a_taken_port_names_its_holder() {
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = other.local_addr().unwrap();
        let taken = bind(&Listen::Tcp(vec![address])).unwrap_err().explain();
        let text = taken.failure.to_string();
        assert!(text.starts_with(&format!("{address} is held by ")), "{text}");
        if cfg!(target_os = "linux") {
            assert!(text.ends_with(&format!("(pid {})", std::process::id())), "{text}");
        }
    }

    #[tokio::test]
    async fn an_address_of_another_machine_is_not_a_taken_port() {
        let elsewhere = vec!["192.0.2.1:5432".parse().unwrap()];
        let taken = bind(&Listen::Tcp(elsewhere)).unwrap_err().explain();
        assert_eq!(taken.failure.reason(), Reason::Invalid);
    }

    #[test]
    fn a_machine_without_ipv6_is_recognised_by_its_loopback_alone() {
        let error = |errno: rustix::io::Errno| io::Error::from(errno);
        let (v4, v6) = ("127.0.0.1:1".parse().unwrap(), "[::1]:1".parse().unwrap());
        assert!(no_ipv6(v6, &error(rustix::io::Errno::ADDRNOTAVAIL)));
        assert!(no_ipv6(v6, &error(rustix::io::Errno::AFNOSUPPORT)));
        assert!(!no_ipv6(v6, &error(rustix::io::Errno::ADDRINUSE)));
        assert!(!no_ipv6(v4, &error(rustix::io::Errno::ADDRNOTAVAIL)));
    }

    #[tokio::test]
    async fn clients_of_both_addresses_are_accepted() {
        let port = fake::free_port();
        let addresses = vec![
            format!("127.0.0.1:{port}").parse().unwrap(),
            format!("[::1]:{port}").parse().unwrap(),
        ];
        let mut listener = bind(&Listen::Tcp(addresses)).unwrap();
        for bound in 0..listener.sockets.len() {
            let address = if bound == 0 { "127.0.0.1" } else { "::1" };
            let (connected, _client) = tokio::join!(TcpStream::connect((address, port)), listener.accept());
            connected.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn connections_beyond_the_allowance_wait_until_another_ends() {
        let address = SocketAddr::from(([127, 0, 0, 1], fake::free_port()));
        let common = Common {
            allowance: Allowance::of(8),
            ..Common::for_test()
        };
        // Six descriptors: one for the socket, two for each connection.
        let mut listener =
            Listener::bind(&Listen::Tcp(vec![address]), &AllowedUsers::default(), &common).unwrap();
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(TcpStream::connect(address).await.unwrap());
        }
        let first = listener.accept().await;
        let _second = listener.accept().await;
        let waited = timeout(Duration::from_secs(60), listener.accept()).await;
        assert!(waited.is_err(), "there is room for two");
        drop(first);
        listener.accept().await;
    }

    #[tokio::test]
    async fn a_unix_socket_lives_as_long_as_its_listener() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let mut listener = bind(&Listen::Unix(path.clone())).unwrap();
        let (connected, _client) = tokio::join!(UnixStream::connect(&path), listener.accept());
        connected.unwrap();
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_unix_socket_with_other_users_is_open_to_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let mode = |allowed: &AllowedUsers| {
            let _listener =
                Listener::bind(&Listen::Unix(path.clone()), allowed, &Common::for_test()).unwrap();
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777
        };
        assert_eq!(mode(&AllowedUsers::default()), 0o600);
        assert_eq!(mode(&AllowedUsers::OwnerAnd([1001].into())), 0o666);
        assert_eq!(mode(&AllowedUsers::Any), 0o666);
    }

    #[test]
    fn want_of_descriptors_is_told_from_a_client_that_left() {
        assert!(starved(&io::Error::from(rustix::io::Errno::MFILE)));
        assert!(!starved(&io::Error::from(rustix::io::Errno::CONNABORTED)));
    }

    #[tokio::test]
    async fn a_client_that_comes_between_two_daemons_waits_for_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let (path, port) = (folder.path().join("db"), fake::free_port());
        let tcp = Listen::Tcp(vec![SocketAddr::from(([127, 0, 0, 1], port))]);
        for listen in [tcp, Listen::Unix(path.clone())] {
            let common = Common::for_test();
            Listener::bind(&listen, &AllowedUsers::default(), &common)
                .unwrap()
                .leave(&common.heritage);
            let _early = match &listen {
                Listen::Tcp(addresses) => {
                    OwnedFd::from(std::net::TcpStream::connect(&addresses[..]).unwrap())
                }
                Listen::Unix(path) => std::os::unix::net::UnixStream::connect(path).unwrap().into(),
            };
            let mut listener =
                Listener::bind(&listen, &AllowedUsers::default(), &common.next_daemon()).unwrap();
            listener.accept().await;
        }
        assert!(!path.exists(), "the last one removes the file");
    }

    #[tokio::test]
    async fn a_left_socket_whose_file_is_gone_is_bound_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let listen = Listen::Unix(path.clone());
        let common = Common::for_test();
        Listener::bind(&listen, &AllowedUsers::default(), &common)
            .unwrap()
            .leave(&common.heritage);
        std::fs::remove_file(&path).unwrap();
        let mut listener = Listener::bind(&listen, &AllowedUsers::default(), &common.next_daemon()).unwrap();
        let (connected, _client) = tokio::join!(UnixStream::connect(&path), listener.accept());
        connected.unwrap();
    }
}
