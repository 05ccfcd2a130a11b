//! Local addresses: how they are written, and which of them are the same door.
//!
//! ```text
//! LISTEN = PORT            127.0.0.1 and ::1
//!        | v4:PORT | [v6]:PORT
//!        | unix:PATH       absolute, or ~/…
//! ```

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::Listen;
use super::grammar::{port, split_port};
use super::path::{self, Unusable};
use super::problem::{Refusal, quoted, shown};

/// What a local address may look like, for hints.
pub(super) const LISTEN_FORMS: &str = r#"listen = 15432, "127.0.0.1:15432", "[::1]:15432" or "unix:/PATH""#;

impl Listen {
    /// Reads a local address; `home` stands for a leading `~`.
    pub(super) fn parse(text: &str, home: Option<&Path>) -> Result<Self, Refusal> {
        if let Some(path) = text.strip_prefix("unix:") {
            return unix(path, home).map(Self::Unix);
        }
        if let Some(port) = port(text) {
            let loopback = [
                IpAddr::from(Ipv4Addr::LOCALHOST),
                IpAddr::from(Ipv6Addr::LOCALHOST),
            ];
            return Ok(Self::Tcp(loopback.map(|ip| SocketAddr::new(ip, port)).to_vec()));
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => Ok(Self::Tcp(vec![canonical(address)])),
            Ok(_) | Err(_) => Err(not_an_address(text)),
        }
    }

    /// Returns each address as text: `127.0.0.1:15432`, `[::1]:15432`, or `unix:/path`.
    pub fn addresses(&self) -> Vec<String> {
        match self {
            Self::Tcp(addresses) => addresses.iter().map(SocketAddr::to_string).collect(),
            Self::Unix(path) => vec![format!("unix:{}", path.display())],
        }
    }

    /// Returns the address, if there is one, at which other machines can connect.
    pub(super) fn remote(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(addresses) => addresses
                .iter()
                .copied()
                .find(|address| !address.ip().is_loopback()),
            Self::Unix(_) => None,
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.addresses().join(", "))
    }
}

/// Writes `::ffff:127.0.0.1` as what it is, so that it is known for loopback and for a taken address.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
        IpAddr::V6(_) => address,
    }
}

fn not_an_address(text: &str) -> Refusal {
    if text.chars().all(|letter| letter.is_ascii_digit()) && !text.is_empty() {
        return Refusal::new(format!("`{}` is not a port (1 to 65535)", shown(text)))
            .instead("listen = 15432");
    }
    let refusal = Refusal::new(format!(
        "{} is not an address with a port (1 to 65535)",
        quoted(text)
    ));
    match split_port(text) {
        Some(("localhost", port)) => refusal.instead(format!("listen = {port}")),
        Some((host, port)) if host.parse::<Ipv6Addr>().is_ok() => {
            refusal.instead(format!(r#"listen = "[{host}]:{port}""#))
        }
        Some(_) | None => refusal.instead(LISTEN_FORMS),
    }
}

/// The longest path of a Unix socket: `sun_path` of Linux has 108 bytes, the last of them 0.
const LONGEST_SOCKET_PATH: usize = 107;

fn unix(written: &str, home: Option<&Path>) -> Result<PathBuf, Refusal> {
    let refusal = |why: &str| Refusal::new(format!("{} {why}", quoted(&format!("unix:{written}"))));
    let path = path::full(written, home).map_err(|unusable| match unusable {
        Unusable::Homeless => {
            refusal("needs a home folder, and this user has none").instead(r#"listen = "unix:/PATH""#)
        }
        Unusable::NotFull => {
            refusal("is not the full path of a socket").instead(r#"listen = "unix:/PATH" or "unix:~/PATH""#)
        }
    })?;
    let length = path.as_os_str().len();
    if length > LONGEST_SOCKET_PATH {
        let why = format!("is {length} bytes long, and the path of a socket can have {LONGEST_SOCKET_PATH}");
        return Err(refusal(&why).instead("a shorter path"));
    }
    Ok(path)
}

/// The local addresses that tunnels of the file have taken so far, with the names as they can be shown.
#[derive(Debug, Default)]
pub(super) struct Claims {
    ports: HashMap<u16, Vec<(SocketAddr, String)>>,
    sockets: HashMap<PathBuf, String>,
}

impl Claims {
    /// Takes the addresses for a tunnel, or tells which tunnel of the file has one of them already.
    pub(super) fn claim(&mut self, name: &str, listen: &Listen) -> Result<(), Refusal> {
        if let Some((address, owner)) = self.taken(listen) {
            return Err(
                Refusal::new(format!("tunnels `{owner}` and `{name}` both listen on {address}"))
                    .instead("another `listen` for one of them"),
            );
        }
        match listen {
            Listen::Tcp(addresses) => {
                for address in addresses {
                    self.ports
                        .entry(address.port())
                        .or_default()
                        .push((*address, name.to_owned()));
                }
            }
            Listen::Unix(path) => {
                self.sockets.insert(path.clone(), name.to_owned());
            }
        }
        Ok(())
    }

    /// Returns where a local address meets one that a tunnel of the file has, and the name of that tunnel.
    pub(super) fn taken(&self, listen: &Listen) -> Option<(String, &str)> {
        match listen {
            Listen::Tcp(addresses) => addresses
                .iter()
                .find_map(|address| self.taken_port(*address))
                .map(|(at, owner)| (at.to_string(), owner)),
            Listen::Unix(path) => self
                .sockets
                .get(path)
                .map(|owner| (listen.to_string(), owner.as_str())),
        }
    }

    /// Returns who has an address already, and at which address the two meet.
    fn taken_port(&self, address: SocketAddr) -> Option<(SocketAddr, &str)> {
        self.ports
            .get(&address.port())?
            .iter()
            .find_map(|(other, owner)| {
                if *other == address || covers(*other, address) {
                    return Some((address, owner.as_str()));
                }
                covers(address, *other).then_some((*other, owner.as_str()))
            })
    }
}

/// Whether a socket bound to `wide` takes in the connections to `narrow` of the same port. `[::]` takes in IPv4 as
/// well, as Linux and macOS have it unless told otherwise.
fn covers(wide: SocketAddr, narrow: SocketAddr) -> bool {
    wide.ip().is_unspecified() && (wide.is_ipv6() || narrow.is_ipv4())
}
