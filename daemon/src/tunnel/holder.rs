//! What the system knows of the programs at the other side of local sockets: who holds a port, and whether a client
//! still has its socket. On Linux from `/proc`; elsewhere nobody knows.

use std::fmt;
use std::net::SocketAddr;

#[cfg(target_os = "linux")]
use procfs::{net::TcpNetEntry, process::FDTarget};

/// A program that listens on an address that we want.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    /// Its process.
    pub(crate) pid: i32,
    /// Its name, as `ps` shows it.
    pub(crate) program: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.program, self.pid)
    }
}

#[cfg(target_os = "linux")]
impl Holder {
    /// Finds the program that listens on this address. `None` if nobody does, or if it is another user's.
    pub(crate) fn of(address: SocketAddr) -> Option<Self> {
        let inodes = listening(address);
        if inodes.is_empty() {
            return None;
        }
        procfs::process::all_processes()
            .ok()?
            .filter_map(Result::ok)
            .find_map(|process| {
                let mut descriptors = process.fd().ok()?.filter_map(Result::ok);
                let holds = |target| matches!(target, FDTarget::Socket(inode) if inodes.contains(&inode));
                descriptors
                    .any(|descriptor| holds(descriptor.target))
                    .then(|| Self::by_pid(process.pid))?
            })
    }

    /// Describes a process. `None` if there is none.
    pub(crate) fn by_pid(pid: i32) -> Option<Self> {
        let program = procfs::process::Process::new(pid).ok()?.stat().ok()?.comm;
        Some(Self { pid, program })
    }

    /// Returns whether the process lives, under the same name.
    pub(crate) fn lives(&self) -> bool {
        Self::by_pid(self.pid).is_some_and(|now| now == *self)
    }
}

/// Returns whether the client of one of our connections has closed its socket completely.
///
/// TCP does not tell: who closed completely and who closed only the sending half have both sent a FIN. But on the
/// loopback the client's socket is in our own tables, and one that no process has any more has no inode.
#[cfg(target_os = "linux")]
pub(crate) fn has_left(client: SocketAddr, ours: SocketAddr) -> bool {
    let Some(table) = client.ip().to_canonical().is_loopback().then(table).flatten() else {
        return false;
    };
    let same = |left: SocketAddr, right: SocketAddr| {
        left.port() == right.port() && left.ip().to_canonical() == right.ip().to_canonical()
    };
    let is_its = |entry: &TcpNetEntry| same(entry.local_address, client) && same(entry.remote_address, ours);
    !table.iter().any(|entry| entry.inode != 0 && is_its(entry))
}

/// Returns whether the client of one of our connections has closed its socket completely.
#[cfg(not(target_os = "linux"))]
pub(crate) fn has_left(_client: SocketAddr, _ours: SocketAddr) -> bool {
    false
}

/// Returns the sockets that listen on an address, or on all addresses of its port.
#[cfg(target_os = "linux")]
fn listening(address: SocketAddr) -> Vec<u64> {
    let table = table().unwrap_or_default();
    let on_it = |entry: &&TcpNetEntry| {
        // A program that uses IPv6 for everything holds 127.0.0.1 as ::ffff:127.0.0.1.
        let (local, port) = (
            entry.local_address.ip().to_canonical(),
            entry.local_address.port(),
        );
        port == address.port() && (local.is_unspecified() || local == address.ip())
    };
    let listens = |entry: &&TcpNetEntry| entry.state == procfs::net::TcpState::Listen;
    table
        .iter()
        .filter(listens)
        .filter(on_it)
        .map(|entry| entry.inode)
        .collect()
}

/// Returns every TCP socket. `None` if the system does not tell; a system without IPv6 has no table for it.
#[cfg(target_os = "linux")]
fn table() -> Option<Vec<TcpNetEntry>> {
    let mut table = procfs::net::tcp().ok()?;
    table.extend(procfs::net::tcp6().unwrap_or_default());
    Some(table)
}

#[cfg(not(target_os = "linux"))]
impl Holder {
    /// Finds the program that listens on this address.
    pub(crate) fn of(_address: SocketAddr) -> Option<Self> {
        None
    }

    /// Describes a process.
    pub(crate) fn by_pid(_pid: i32) -> Option<Self> {
        None
    }

    /// Returns whether the process lives, under the same name.
    pub(crate) fn lives(&self) -> bool {
        true
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn names_the_process_that_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let holder = Holder::of(listener.local_addr().unwrap()).unwrap();
        assert_eq!(holder.pid, i32::try_from(std::process::id()).unwrap());
        assert!(!holder.program.is_empty());
        assert!(holder.lives());
    }

    #[test]
    fn names_the_process_that_listens_on_all_addresses() {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let wanted = SocketAddr::from(([127, 0, 0, 1], listener.local_addr().unwrap().port()));
        assert!(Holder::of(wanted).is_some());
    }

    #[test]
    fn nobody_holds_a_free_port() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        assert_eq!(Holder::of(address), None);
    }

    #[test]
    fn a_process_that_ended_does_not_live() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        child.wait().unwrap();
        assert!(
            !Holder {
                pid,
                program: "true".to_owned()
            }
            .lives()
        );
    }

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
}
