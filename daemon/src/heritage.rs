//! Listening sockets that outlive a process: those that an earlier one left, and those left to the next.
//!
//! ```text
//!   the service manager's own sockets ─┐
//!   the service manager's store ───────┼─► LISTEN_FDS ─► found ─► a listener takes it, or it is closed
//!   this program, begun anew ──────────┘
//!
//!   a listener is bound ─► in the store ──────────────────────────► … is freed (`down`): taken out
//!                              ├─ … is offered (reload): stays, found by whichever tunnel has the address now
//!                              └─ … is left (stop, restart): stays, and goes to the program begun anew
//! ```
//!
//! While nobody accepts on such a socket, its clients wait in the system's queue instead of being refused. Which
//! tunnel a socket belongs to is told by the address that it is bound to, never by its name.

use std::env;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use listenfd::ListenFd;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use socket2::Socket;
use tracing::{info, warn};

use crate::config::Listen;
use crate::service_manager::ServiceManager;
use crate::socket_file::{self, BACKLOG, SocketFile};

/// The first inherited descriptor: those below are stdin, stdout and stderr.
const FIRST: i32 = 3;

/// More inherited descriptors than this are not believed: a thousand tunnels have two thousand.
const MOST: usize = 1 << 16;

/// The longest name that systemd accepts for a descriptor.
const LONGEST_NAME: usize = 255;

/// What a name must not have: systemd separates names by colons. The percent sign keeps names apart.
const NOT_IN_NAMES: &AsciiSet = &CONTROLS.add(b' ').add(b':').add(b'%');

/// A local address, as a socket knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// Of TCP.
    Tcp(SocketAddr),
    /// The file of a Unix socket.
    Unix(PathBuf),
}

impl Address {
    /// Returns the addresses of a tunnel.
    pub(crate) fn all_of(listen: &Listen) -> Vec<Self> {
        match listen {
            Listen::Tcp(addresses) => addresses.iter().copied().map(Self::Tcp).collect(),
            Listen::Unix(path) => vec![Self::Unix(path.clone())],
        }
    }

    fn of(socket: &Socket) -> Option<Self> {
        let address = socket.local_addr().ok()?;
        let path = || address.as_pathname().map(|path| Self::Unix(path.to_owned()));
        address.as_socket().map(Self::Tcp).or_else(path)
    }

    /// Returns whether a client that uses the other address meets the same socket: a file may have several names.
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Tcp(ours), Self::Tcp(theirs)) => ours == theirs,
            (Self::Unix(ours), Self::Unix(theirs)) => ours == theirs || same_file(ours, theirs),
            (Self::Tcp(_), Self::Unix(_)) | (Self::Unix(_), Self::Tcp(_)) => false,
        }
    }

    /// Returns what the service manager is to call the socket; `None` if that would be too long for it.
    fn name(&self) -> Option<String> {
        let text = self.to_string();
        let name = utf8_percent_encode(&text, NOT_IN_NAMES).to_string();
        (name.len() <= LONGEST_NAME).then_some(name)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

fn same_file(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| socket_file::identity(path).ok().flatten();
    identity(one).is_some_and(|ours| identity(other) == Some(ours))
}

/// The sockets. See the module's documentation.
#[derive(Debug, Default)]
pub struct Heritage {
    manager: Option<Arc<ServiceManager>>,
    /// Inherited or offered, and taken by nobody yet.
    found: Mutex<Vec<Found>>,
    left: Mutex<Vec<Left>>,
}

/// A socket that was inherited, or offered by a tunnel.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) address: Address,
    /// It listens, and does not block.
    pub(crate) socket: OwnedFd,
    /// What whoever left it called it.
    pub(crate) name: String,
    /// Where a tunnel of this daemon offered it; that of an inherited one stays until somebody takes it.
    pub(crate) file: Option<SocketFile>,
    /// Of a store that it may come from.
    pub(crate) claim: Claim,
}

/// What a process was started with, by nobody looked at yet.
#[derive(Debug, Default)]
pub struct Inherited(Vec<(OwnedFd, String)>);

impl Inherited {
    /// Takes the sockets that this process was started with. To be called first of all: whatever is opened before could
    /// be taken for one of them.
    pub fn of_this_process() -> Self {
        let count = env::var("LISTEN_FDS").ok().and_then(|count| count.parse().ok());
        // Without the id of the process they are meant for, they may be meant for a parent of ours.
        if env::var_os("LISTEN_PID").is_none() || count.is_none_or(|count: usize| count > MOST) {
            return Self::default();
        }
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut sockets = ListenFd::from_env();
        let mut inherited = Vec::new();
        for index in 0..sockets.len() {
            let name = names.next().unwrap_or_default();
            // What is neither was closed before it could be inherited, or is of no use to us.
            if let Ok(Some(socket)) = sockets.take_tcp_listener(index) {
                inherited.push((socket.into(), name.to_owned()));
            } else if let Ok(Some(socket)) = sockets.take_unix_listener(index) {
                inherited.push((socket.into(), name.to_owned()));
            }
        }
        Self(inherited)
    }

    /// Returns whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Heritage {
    /// The sockets that a process was started with. Those that are bound later are kept by `manager`.
    pub fn new(inherited: Inherited, manager: Option<Arc<ServiceManager>>) -> Self {
        let heritage = Self {
            manager,
            ..Self::default()
        };
        let found = inherited.0.into_iter();
        *lock(&heritage.found) = found
            .filter_map(|(socket, name)| heritage.find(socket, name))
            .collect();
        heritage
    }

    fn find(&self, socket: OwnedFd, name: String) -> Option<Found> {
        let socket = Socket::from(socket);
        let Some(address) = Address::of(&socket) else {
            warn!(name, "closed an inherited socket without an address");
            return None;
        };
        // One that listens already goes on listening.
        let listening = socket.listen(BACKLOG);
        if let Err(error) = listening.and_then(|()| socket.set_nonblocking(true)) {
            warn!(%address, name, %error, "closed an inherited socket that cannot listen");
            return None;
        }
        // It may come from the store.
        let mut claim = self.claim(&address);
        claim.is_kept = true;
        Some(Found {
            address,
            socket: socket.into(),
            name,
            file: None,
            claim,
        })
    }

    /// Returns whether somebody keeps the sockets that are left.
    pub(crate) fn is_kept(&self) -> bool {
        self.manager
            .as_ref()
            .is_some_and(|manager| manager.keeps_sockets())
    }

    /// Takes the inherited socket of an address, if there is one.
    pub(crate) fn take(&self, address: &Address) -> Option<Found> {
        let mut found = lock(&self.found);
        let place = found.iter().position(|found| found.address.is(address))?;
        Some(found.swap_remove(place))
    }

    /// Closes what has none of these addresses, so that it is in nobody's way: of two addresses that are not the same,
    /// one may still stand for the other.
    pub(crate) fn close_all_but(&self, wanted: &[Address]) {
        let mut found = lock(&self.found);
        let unwanted = found.extract_if(.., |found| {
            !wanted.iter().any(|address| found.address.is(address))
        });
        for found in unwanted {
            info!(address = %found.address, "closed a socket that no tunnel wants");
        }
    }

    /// Closes what nobody has taken.
    pub(crate) fn close_rest(&self) {
        for found in std::mem::take(&mut *lock(&self.found)) {
            info!(address = %found.address, "closed a socket that no tunnel wants");
        }
    }

    /// Returns what a socket of this address may be kept by.
    pub(crate) fn claim(&self, address: &Address) -> Claim {
        let manager = self.manager.as_ref().filter(|manager| manager.keeps_sockets());
        Claim {
            stored: manager.and_then(|manager| Some((Arc::clone(manager), address.name()?))),
            is_kept: false,
        }
    }

    /// Leaves a socket to the next process.
    pub(crate) fn leave(&self, left: Left) {
        lock(&self.left).push(left);
    }

    /// Has a socket ready for whoever takes its address.
    pub(crate) fn offer(&self, left: Left) {
        let socket = Socket::from(left.socket);
        // Without an address nobody could ask for it.
        let Some(address) = Address::of(&socket) else {
            return;
        };
        lock(&self.found).push(Found {
            address,
            socket: socket.into(),
            name: left.name,
            file: left.file,
            claim: left.claim,
        });
    }

    /// Returns all that is left, also what was found and not taken.
    pub(crate) fn close(&self) -> Legacy {
        let mut left = std::mem::take(&mut *lock(&self.left));
        let found = std::mem::take(&mut *lock(&self.found));
        left.extend(found.into_iter().map(|found| Left {
            socket: found.socket,
            name: found.name,
            file: found.file,
            claim: found.claim,
        }));
        Legacy {
            is_kept: self.is_kept(),
            left,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What keeps a bound socket alive beyond this process. Dropping it lets go of the address.
#[derive(Debug)]
pub(crate) struct Claim {
    /// In whose store, and under which name; `None`: nobody keeps it.
    stored: Option<(Arc<ServiceManager>, String)>,
    is_kept: bool,
}

impl Claim {
    /// Has the socket kept from now on.
    pub(crate) fn keep(&mut self, socket: impl AsFd) {
        if let Some((manager, name)) = &self.stored {
            manager.store(name, socket.as_fd());
            self.is_kept = true;
        }
    }

    /// Has what is kept of the address closed, also what was to be closed before: that message may be lost.
    pub(crate) fn renounce(mut self) {
        self.is_kept = true;
    }

    fn stay(mut self) {
        self.is_kept = false;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some((manager, name)) = &self.stored
            && self.is_kept
        {
            manager.remove(name);
        }
    }
}

/// A socket that is left to the next process. Dropping it frees the address.
#[derive(Debug)]
pub(crate) struct Left {
    pub(crate) socket: OwnedFd,
    /// What the next process is told that it is called.
    pub(crate) name: String,
    pub(crate) file: Option<SocketFile>,
    pub(crate) claim: Claim,
}

/// The sockets of a daemon that has ended.
#[derive(Debug)]
pub struct Legacy {
    is_kept: bool,
    left: Vec<Left>,
}

impl Legacy {
    /// What a process has to which they were passed on.
    #[cfg(test)]
    pub(crate) fn inherited(self) -> Heritage {
        let inherited = self.left.into_iter().map(|left| {
            if let Some(file) = left.file {
                file.stay();
            }
            (left.socket, left.name)
        });
        Heritage::new(Inherited(inherited.collect()), None)
    }

    /// Ends it where the service manager keeps the sockets, and frees the addresses where nobody does.
    pub fn end(self) {
        if !self.is_kept {
            return;
        }
        for left in self.left {
            if let Some(file) = left.file {
                file.stay();
            }
            left.claim.stay();
        }
    }

    /// Has a program inherit the sockets that takes the place of this one. What is returned has to live until then.
    pub(crate) fn pass_on(&self, program: &mut Command) -> io::Result<Vec<OwnedFd>> {
        let mut names = Vec::new();
        let mut passed = Vec::with_capacity(self.left.len());
        for left in &self.left {
            let copy = fcntl_dupfd_cloexec(&left.socket, FIRST)?;
            fcntl_setfd(&copy, FdFlags::empty())?;
            let place = usize::try_from(copy.as_raw_fd() - FIRST).map_err(io::Error::other)?;
            // The numbers between are of files that are closed by then: whoever inherits passes over them.
            names.resize(names.len().max(place + 1), "");
            names[place] = &left.name;
            passed.push(copy);
        }
        program
            .env("LISTEN_PID", std::process::id().to_string())
            .env("LISTEN_FDS", names.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"));
        Ok(passed)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn inherited(sockets: impl IntoIterator<Item = OwnedFd>) -> Heritage {
        let sockets = sockets.into_iter().map(|socket| (socket, String::new()));
        Heritage::new(Inherited(sockets.collect()), None)
    }

    #[test]
    fn a_socket_belongs_to_the_address_that_it_is_bound_to() {
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let addresses = listeners
            .each_ref()
            .map(|listener| Address::Tcp(listener.local_addr().unwrap()));
        let heritage = inherited(listeners.map(OwnedFd::from));
        for address in addresses.iter().rev() {
            let found = heritage.take(address).unwrap();
            assert_eq!(Address::of(&Socket::from(found.socket)).as_ref(), Some(address));
            assert!(heritage.take(address).is_none(), "it is taken once");
        }
    }

    #[test]
    fn a_socket_file_is_known_under_each_of_its_names() {
        let folder = tempfile::tempdir().unwrap();
        let (run, link) = (folder.path().join("run"), folder.path().join("link"));
        std::fs::create_dir(&run).unwrap();
        symlink(&run, &link).unwrap();
        let heritage = inherited([UnixListener::bind(run.join("s")).unwrap().into()]);
        let elsewhere = Address::Unix(run.join("other"));
        assert!(heritage.take(&elsewhere).is_none());
        assert!(heritage.take(&Address::Unix(link.join("s"))).is_some());
    }

    #[test]
    fn what_nobody_takes_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let heritage = inherited([listener.into()]);
        heritage.close_rest();
        TcpListener::bind(address).expect("the address is free");
    }

    #[test]
    fn what_nobody_keeps_is_free_after_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let heritage = Heritage::default();
        let (socket, file) = socket_file::bind(&path, socket_file::Audience::Owner).unwrap();
        heritage.leave(Left {
            socket: socket.into(),
            name: String::new(),
            file: Some(file),
            claim: heritage.claim(&Address::Unix(path.clone())),
        });
        assert!(path.exists(), "whoever connects meanwhile waits");
        heritage.close().end();
        assert!(!path.exists());
    }

    #[test]
    fn a_connected_socket_is_not_taken_for_a_listening_one() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connected = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let address = Address::Tcp(connected.local_addr().unwrap());
        assert!(inherited([connected.into()]).take(&address).is_none());
    }

    #[test]
    fn names_are_such_as_systemd_accepts_and_differ_as_their_addresses_do() {
        let tcp = |text: &str| Address::Tcp(text.parse().unwrap()).name().unwrap();
        let unix = |path: &str| Address::Unix(PathBuf::from(path)).name();
        assert_eq!(tcp("127.0.0.1:15432"), "127.0.0.1%3A15432");
        assert_eq!(tcp("[::1]:15432"), "[%3A%3A1]%3A15432");
        assert_ne!(unix("/run/a:b"), unix("/run/a%3Ab"));
        let accented = unix("/home/zoë/.s.PGSQL.5432").unwrap();
        assert!(
            accented
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && byte != b':')
        );
        assert_eq!(unix(&"é".repeat(LONGEST_NAME)), None);
    }

    #[test]
    fn a_program_that_takes_our_place_is_told_where_each_socket_is() {
        let heritage = Heritage::default();
        for name in ["control", ""] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            heritage.leave(Left {
                claim: heritage.claim(&Address::Tcp(listener.local_addr().unwrap())),
                socket: listener.into(),
                name: name.to_owned(),
                file: None,
            });
        }
        let mut program = Command::new("true");
        let passed = heritage.close().pass_on(&mut program).unwrap();
        let variable = |wanted: &str| {
            let mut set = program.get_envs();
            let value = set.find_map(|(name, value)| (name == wanted).then_some(value)?);
            value.unwrap().to_str().unwrap().to_owned()
        };
        let places: Vec<_> = passed.iter().map(|copy| copy.as_raw_fd() - FIRST).collect();
        let names = variable("LISTEN_FDNAMES");
        let names: Vec<_> = names.split(':').collect();
        assert_eq!(names[usize::try_from(places[0]).unwrap()], "control");
        assert_eq!(names.iter().filter(|name| !name.is_empty()).count(), 1);
        let last = places.iter().max().unwrap() + 1;
        assert_eq!(variable("LISTEN_FDS"), last.to_string());
        assert_eq!(variable("LISTEN_PID"), std::process::id().to_string());
        for copy in &passed {
            assert_eq!(rustix::io::fcntl_getfd(copy).unwrap(), FdFlags::empty());
        }
    }
}
