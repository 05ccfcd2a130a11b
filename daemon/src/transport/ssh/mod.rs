//! The `ssh` route: a stream to an instance's SSH server by any other route, and streams inside it.
//!
//! ```text
//!   Ssh ──connect()──► link ──requests──► keeper ── Pool: which connection takes a stream, how many there are
//!                       │                    │ starts
//!                       └──── Ask ────► Connection ── russh ── a stream of the route below
//!                                         │   └─ host key, login
//!                    one SshStream, one Pump a stream
//! ```
//!
//! One connection would do for everything, but for one trait of the library: a stream that is not read stops all others
//! of its connection. So a link is a pool here too, and streams that share a connection are drained into memory.

mod connection;
mod greeting;
mod handler;
mod host;
mod host_keys;
mod login;
mod members;
mod sources;
mod store;
mod stream;
mod words;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use self::host::Directory;
use self::members::Connections;
use self::store::HostKeyStore;
use super::{Delays, Link, Shared, Transport, keeper};
use crate::config::{AccountSpec, Instance, SshRoute, SshSettings, Target, TunnelSpec};
use crate::connector::Environment;
use crate::failure::{Failure, Reason, Remedy};

/// Follows the route `ssh` to one target.
pub(super) struct Ssh(Arc<Context>);

/// What all connections of a tunnel have in common.
struct Context {
    directory: Directory,
    account: AccountSpec,
    settings: SshSettings,
    receive_buffer: usize,
    below: RouteTo,
    shared: Arc<Shared>,
    /// What the routes below wait for.
    delays: Delays,
}

/// Builds the route to the SSH server of an instance that was found.
pub(super) type RouteTo = Box<dyn Fn(Instance) -> Arc<dyn Transport> + Send + Sync>;

/// What of a person's SSH the daemon uses, and its own host keys.
#[derive(Debug)]
pub struct SshFiles {
    /// The host keys that the daemon has learned.
    host_keys: Arc<HostKeyStore>,
    /// The user's `known_hosts`, where there is a home.
    known_hosts: Option<PathBuf>,
    /// Where the ssh-agent listens.
    agent: Option<PathBuf>,
}

impl SshFiles {
    /// Those of this environment, and learned host keys in `state_folder`. Nothing is read yet.
    pub fn new(state_folder: &Path, environment: &Environment) -> Self {
        let home = environment.variable("HOME").map(Path::new);
        Self {
            host_keys: Arc::new(HostKeyStore::in_folder(state_folder)),
            known_hosts: home.map(|home| home.join(".ssh/known_hosts")),
            agent: environment.variable("SSH_AUTH_SOCK").map(PathBuf::from),
        }
    }
}

impl Ssh {
    /// The route to a target through an SSH server, which is found here and reached by what `below` builds.
    pub(super) fn new(
        spec: &TunnelSpec,
        target: Target,
        route: &SshRoute,
        below: RouteTo,
        shared: Arc<Shared>,
        delays: Delays,
    ) -> Self {
        Self(Arc::new(Context {
            directory: Directory::new(route.clone(), target),
            account: spec.account.clone(),
            settings: spec.ssh.clone(),
            receive_buffer: spec.receive_buffer,
            below,
            shared,
            delays,
        }))
    }
}

#[async_trait]
impl Transport for Ssh {
    async fn connect(&self) -> Result<Arc<dyn Link>, Failure> {
        keeper::connect(Arc::new(Connections::new(Arc::clone(&self.0)))).await
    }

    fn delays(&self) -> watch::Receiver<Vec<Arc<Failure>>> {
        self.0.delays.watch()
    }
}

/// Does what may have to wait for a file, or for who else locks it, beside the thread that everything else runs on.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    // It fails only when the runtime ends.
    spawn_blocking(work)
        .await
        .map_err(|_| Failure::new(Reason::Unreachable, Remedy::Retry, "the daemon is stopping"))
}

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod whole_way;
