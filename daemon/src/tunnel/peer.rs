//! Who may use a tunnel: asked of each connection before a byte of it flows.
//!
//! ```text
//!   accepted ──► Gate ── the daemon's own user, or one of `allow_users` ──► served
//!                 ├───── another user ──┐
//!                 └───── nobody knows ──┴──► reset, counted, a line in the log each minute at most
//! ```
//!
//! The loopback interface is open to every user of the machine, and what lies behind a tunnel often trusts whoever comes
//! through it. Whom a connection belongs to is told by the system: of a TCP connection by `Owners`, of a Unix socket's by
//! its credentials.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use crate::config::AllowedUsers;
use crate::meter::Meter;
use crate::tunnel::client::Client;
use crate::tunnel::owner::Unknown;

/// How far apart lines about refused connections are: whoever is refused may come back without end, and a person who
/// looks for the reason finds one.
const BETWEEN_LINES: Duration = Duration::from_secs(60);

/// Lets a tunnel's users in and nobody else.
#[derive(Debug)]
pub(crate) struct Gate {
    allowed: AllowedUsers,
    /// Our own user.
    us: u32,
    lines: Lines,
}

/// Why a connection is refused.
#[derive(Debug)]
enum Refused {
    /// It is this user's.
    Another(u32),
    /// Nobody knows whose it is.
    Unknown(Unknown),
}

impl Gate {
    /// The gate of a tunnel with these users.
    pub(crate) fn new(allowed: AllowedUsers) -> Self {
        Self {
            allowed,
            us: rustix::process::getuid().as_raw(),
            lines: Lines::default(),
        }
    }

    /// Returns a connection that may be served; resets and counts any other.
    pub(crate) fn admit(&mut self, client: Client, meter: &Meter) -> Option<Client> {
        let Err(refused) = self.examine(&client) else {
            return Some(client);
        };
        match refused {
            Refused::Another(_) => meter.connection_refused(),
            Refused::Unknown(_) => meter.connection_unknown(),
        }
        if let Some(connections) = self.lines.due(Instant::now()) {
            let peer = client.peer();
            warn!(%peer, connections, "refused before a byte flowed: {refused}; `allow_users` says who may connect");
        }
        client.reset();
        None
    }

    fn examine(&self, client: &Client) -> Result<(), Refused> {
        let others = match &self.allowed {
            AllowedUsers::Any => return Ok(()),
            AllowedUsers::OwnerAnd(others) => others,
        };
        let uid = client.owner().map_err(Refused::Unknown)?;
        let is_allowed = uid == self.us || others.contains(&uid);
        is_allowed.then_some(()).ok_or(Refused::Another(uid))
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Another(uid) => write!(f, "it is the user's with uid {uid}"),
            Self::Unknown(Unknown::Gone) => Unknown::Gone.fmt(f),
            Self::Unknown(unknown @ Unknown::Unasked(error)) => write!(f, "{unknown}: {error}"),
        }
    }
}

/// When there is a line about refused connections, and about how many.
#[derive(Debug, Default)]
struct Lines {
    last: Option<Instant>,
    /// Connections since.
    untold: u64,
}

impl Lines {
    /// Takes note of a connection. Returns how many a line is about, if there is to be one.
    fn due(&mut self, now: Instant) -> Option<u64> {
        self.untold += 1;
        if self.last.is_some_and(|last| now < last + BETWEEN_LINES) {
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream, UnixStream};

    use super::*;
    use crate::meter::Traffic;

    /// A gate of a daemon whose user is another one than that of the test.
    fn gate(allowed: AllowedUsers) -> Gate {
        let mut gate = Gate::new(allowed);
        gate.us += 1;
        gate
    }

    fn us_too() -> AllowedUsers {
        AllowedUsers::OwnerAnd([rustix::process::getuid().as_raw()].into())
    }

    async fn tcp() -> (TcpStream, Client) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(
            TcpStream::connect(listener.local_addr().unwrap()),
            listener.accept()
        );
        let (stream, peer) = far.unwrap();
        (near.unwrap(), Client::tcp(stream, peer, Arc::default()))
    }

    fn unix() -> (UnixStream, Client) {
        let (near, far) = UnixStream::pair().unwrap();
        (near, Client::unix(far))
    }

    fn refused(meter: &Meter) -> (u64, u64) {
        let Traffic {
            connections_refused,
            connections_unknown,
            ..
        } = meter.read();
        (connections_refused, connections_unknown)
    }

    #[tokio::test]
    async fn the_daemons_own_user_is_let_in() {
        let mut gate = gate(AllowedUsers::default());
        gate.us -= 1;
        let meter = Meter::default();
        let ((_near, client), (_other, unix)) = (tcp().await, unix());
        assert!(gate.admit(client, &meter).is_some());
        assert!(gate.admit(unix, &meter).is_some());
        assert_eq!(refused(&meter), (0, 0));
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn another_user_is_reset_and_counted() {
        let meter = Meter::default();
        let (mut near, client) = tcp().await;
        assert!(gate(AllowedUsers::default()).admit(client, &meter).is_none());
        let error = near.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(refused(&meter), (1, 0));
    }

    #[tokio::test]
    async fn another_user_of_a_unix_socket_is_closed_and_counted() {
        let meter = Meter::default();
        let (mut near, client) = unix();
        assert!(gate(AllowedUsers::default()).admit(client, &meter).is_none());
        assert_eq!(near.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(refused(&meter), (1, 0));
    }

    #[tokio::test]
    async fn whoever_is_listed_is_let_in() {
        let meter = Meter::default();
        let ((_near, client), (_other, unix)) = (tcp().await, unix());
        assert!(gate(us_too()).admit(client, &meter).is_some());
        assert!(gate(us_too()).admit(unix, &meter).is_some());
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_client_that_left_is_nobodys_and_counted() {
        let meter = Meter::default();
        let (near, client) = tcp().await;
        drop(near);
        assert!(gate(us_too()).admit(client, &meter).is_none());
        assert_eq!(refused(&meter), (0, 1));
    }

    /// What it had sent could still be read, and its port be somebody else's by now.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_client_that_was_reset_is_nobodys() {
        use tokio::io::AsyncWriteExt;
        let meter = Meter::default();
        let (mut near, client) = tcp().await;
        near.write_all(b"DROP TABLE").await.unwrap();
        near.set_zero_linger().unwrap();
        drop(near);
        assert!(gate(us_too()).admit(client, &meter).is_none());
        assert_eq!(refused(&meter), (0, 1));
    }

    #[tokio::test]
    async fn where_anybody_is_let_in_nobody_is_asked() {
        let meter = Meter::default();
        let (near, client) = tcp().await;
        drop(near);
        assert!(gate(AllowedUsers::Any).admit(client, &meter).is_some());
    }

    #[test]
    fn a_flood_of_refused_connections_is_a_line_a_minute() {
        let (mut lines, now) = (Lines::default(), Instant::now());
        assert_eq!(lines.due(now), Some(1));
        assert_eq!(lines.due(now + BETWEEN_LINES / 4), None);
        assert_eq!(lines.due(now + BETWEEN_LINES / 2), None);
        assert_eq!(lines.due(now + BETWEEN_LINES), Some(3));
        assert_eq!(lines.due(now + 3 * BETWEEN_LINES), Some(1));
    }
}
