//! What happens around the daemon and concerns every tunnel: the machine wakes, its network changes, somebody logs in.
//!
//! ```text
//!   wake ─────── two clocks, each second ───┐
//!   network ──── messages of the system ────┼──► Surroundings::changed ──► Daemon ──► supervisors, visits, AWS
//!   watched ──── files of credentials ──────┘
//! ```
//!
//! A change is told within a second, and a burst of changes once. What follows from it is for others to know.

mod network;
mod wake;

use std::future::pending;
use std::path::PathBuf;
use std::time::Duration;

use tracing::warn;

use self::network::Network;
use self::wake::Vigil;
pub(crate) use self::wake::Woke;
use crate::watched::Watched;

/// How often changes of the network may hurry what waits: a VPN changes the network twice in a few seconds, and only the
/// second change is of use; a machine that starts containers does so for minutes, and AWS is to be spared.
pub(crate) const HURRY_AGAIN: Duration = Duration::from_secs(5);

/// Something that happened around the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// The machine slept, or the daemon was stopped, and goes on. Connections may have died meanwhile.
    Woke(Woke),
    /// Interfaces, addresses or routes are others than before.
    Network,
    /// Credentials may be others than before.
    Credentials,
}

/// What is watched. See the module's documentation.
pub(crate) struct Surroundings {
    vigil: Vigil,
    network: Network,
    /// `None` where the system watches no files.
    credentials: Option<Watched>,
}

impl Surroundings {
    /// Begins to watch, also the files and folders that credentials come from.
    pub(crate) fn watch(credentials: &[PathBuf]) -> Self {
        let watched = Watched::new(credentials).inspect_err(|error| {
            warn!("cannot watch the files of AWS credentials; after a login say `tunnelctl up`: {error}");
        });
        Self {
            vigil: Vigil::begin(),
            network: Network::watch(),
            credentials: watched.ok(),
        }
    }

    /// Waits for the next change. Cancel-safe.
    pub(crate) async fn changed(&mut self) -> Change {
        let Self {
            vigil,
            network,
            credentials,
        } = self;
        let credentials = async {
            match credentials {
                Some(watched) => watched.changed().await,
                None => pending().await,
            }
        };
        tokio::select! {
            woke = vigil.woke() => Change::Woke(woke),
            () = network.changed() => Change::Network,
            () = credentials => Change::Credentials,
        }
    }
}
