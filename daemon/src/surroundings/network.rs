//! Notices that interfaces, addresses or routes change, by what the system tells everybody who listens.
//!
//! ```text
//!   messages of the system ── noise left out ──► Burst ── 0.3 s of quiet, or 0.9 s in all ──► told once
//! ```
//!
//! A cable or a VPN sets off a dozen messages within a few tenths of a second.

#[cfg_attr(target_os = "linux", path = "network/netlink.rs")]
#[cfg_attr(not(target_os = "linux"), path = "network/routing_socket.rs")]
mod system;

use std::future::pending;
use std::io;
use std::time::Duration;

use rustix::io::Errno;
use tokio::net::UnixDatagram;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use self::system::is_change;

/// A burst of messages is over when there was none for so long: what brings up an interface takes less between two of
/// them.
const QUIET: Duration = Duration::from_millis(300);

/// A burst that does not end is told after this time: within the second that a change may take to be noticed.
const LONGEST_BURST: Duration = Duration::from_millis(900);

/// What is read at once. A message is a few hundred bytes, and its beginning is all that is looked at.
const BUFFER: usize = 8 << 10;

/// The ear. See the module's documentation.
pub(super) struct Network {
    /// `None` where the system does not tell, or tells no more.
    listener: Option<UnixDatagram>,
    burst: Option<Burst>,
}

/// Changes that were not told yet.
#[derive(Debug, Clone, Copy)]
struct Burst {
    began: Instant,
    latest: Instant,
}

impl Network {
    /// Begins to listen.
    pub(super) fn watch() -> Self {
        // What the runtime does with a socket of datagrams, to wait and to receive, is the same for all families.
        let listener = system::open().and_then(|socket| UnixDatagram::from_std(socket.into()));
        let listener =
            listener.inspect_err(|error| debug!("the system does not tell of network changes: {error}"));
        Self {
            listener: listener.ok(),
            burst: None,
        }
    }

    /// Waits until the network has changed, and then until the changes pause. Cancel-safe.
    pub(super) async fn changed(&mut self) {
        loop {
            let due = self.burst.map(Burst::due);
            let burst_ends = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = burst_ends => {
                    self.burst = None;
                    return;
                }
                heard = heard(self.listener.as_ref()) => match heard {
                    Ok(()) => self.burst = Some(Burst::with(self.burst, Instant::now())),
                    Err(error) => {
                        debug!("the system tells no more of network changes: {error}");
                        self.listener = None;
                    }
                },
            }
        }
    }
}

impl Burst {
    /// The same with one more change, or the first one.
    fn with(burst: Option<Self>, now: Instant) -> Self {
        Self {
            began: burst.map_or(now, |burst| burst.began),
            latest: now,
        }
    }

    /// When it is told.
    fn due(self) -> Instant {
        (self.latest + QUIET).min(self.began + LONGEST_BURST)
    }
}

/// Waits for a message that says that something changed. Cancel-safe: nothing is known of it before it returns.
async fn heard(listener: Option<&UnixDatagram>) -> io::Result<()> {
    let Some(listener) = listener else {
        return pending().await;
    };
    let mut buffer = [0; BUFFER];
    loop {
        match listener.recv(&mut buffer).await {
            Ok(length) if is_change(&buffer[..length]) => return Ok(()),
            Ok(_) => {}
            // There were more messages than the system keeps: something changed, whatever it was.
            Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_told_once_it_pauses() {
        let began = Instant::now();
        let first = Burst::with(None, began);
        assert_eq!(first.due(), began + QUIET);
        let second = Burst::with(Some(first), began + QUIET / 2);
        assert_eq!(second.due(), began + QUIET / 2 + QUIET);
    }

    #[test]
    fn a_burst_that_does_not_end_is_told_within_a_second() {
        let began = Instant::now();
        let (mut burst, mut now) = (Burst::with(None, began), began);
        while now < burst.due() {
            now += QUIET / 3;
            burst = Burst::with(Some(burst), now);
        }
        assert_eq!(burst.due(), began + LONGEST_BURST);
        assert!(LONGEST_BURST < Duration::from_secs(1));
    }
}
