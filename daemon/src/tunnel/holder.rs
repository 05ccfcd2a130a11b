//! Who holds a port that we want. On Linux `/proc` tells; elsewhere nobody knows.

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
    use std::net::TcpListener;

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
}
