//! Transports: code that follows a route. A `Transport` makes a `Link`, a `Link` opens `Stream`s.
//!
//! ```text
//!   supervisor ──connect()──► Transport ──► Arc<dyn Link>
//!   proxy      ──open()─────────────────────► Link ──► Box<dyn Stream>
//! ```
//!
//! Nothing here knows tunnels or status. How a link is shows in `Link::health`; that it ended, in `Link::closed`.
//! A stream that ends abnormally yields an `io::Error` that wraps a [`Failure`]: see [`failure_of`].

mod budget;
mod delays;
mod direct;
mod eice;
mod inbox;
mod keeper;
mod member;
mod pool;
mod pooled;
mod remembered;
mod ssh;
mod ssm;
mod websocket;

use std::future::pending;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::aws::Aws;
use crate::config::{Route, SSH_PORT, Target, TunnelSpec};
use crate::failure::{Failure, Reason, Remedy};

pub use self::budget::{Budget, RECEIVE_BUDGET};
pub(crate) use self::delays::Delays;
pub use self::eice::Slots;
pub use self::ssh::SshFiles;
pub use self::ssm::{Ledger, Orphan, end_orphans};

/// A route to one target. Holds nothing open.
#[async_trait]
pub trait Transport: Send + Sync {
    /// Establishes a link; called again after every loss. Dropping the future aborts the attempt.
    async fn connect(&self) -> Result<Arc<dyn Link>, Failure>;

    /// Returns what attempts and streams wait for at the moment, the oldest wait first.
    fn delays(&self) -> watch::Receiver<Vec<Arc<Failure>>> {
        // Closed: there will be none.
        watch::channel(Vec::new()).1
    }
}

/// A live path to the target, over which byte streams are opened.
#[async_trait]
pub trait Link: Send + Sync {
    /// Opens one stream: the far end of one accepted connection. `client` is what to call that in messages.
    async fn open(&self, client: &str) -> Result<Box<dyn Stream>, Failure>;
    /// Opens one stream that can be done without: where it would have to wait for the end of others, it fails.
    async fn open_at_once(&self, client: &str) -> Result<Box<dyn Stream>, Failure> {
        self.open(client).await
    }
    /// Resolves, with the reason, once no more streams can be opened.
    async fn closed(&self) -> Arc<Failure>;
    /// Tells the far side goodbye. Open streams end.
    async fn close(&self);
    /// How the link is, latest value.
    fn health(&self) -> watch::Receiver<Health>;
    /// Asks the far end for a sign of life now; the answer shows in `health` or `closed`.
    fn probe(&self);
}

/// One byte pipe on a link, serving one accepted connection.
///
/// `shutdown` tells the far end that no more bytes come, as far as the route can say so; dropping the stream ends both
/// directions at once.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {
    /// Resolves when the stream has ended abnormally and what waits to be read is of no use: whoever copies may be
    /// waiting for its other side.
    fn aborted(&self) -> BoxFuture<'static, Arc<Failure>> {
        Box::pin(pending())
    }

    /// Returns when the route itself will cut the stream, however well it is; `None` if it never does.
    fn expires(&self) -> Option<Instant> {
        None
    }
}

impl Stream for TcpStream {}

/// How a link is.
#[derive(Debug, Clone)]
pub struct Health {
    /// `None` while the link is well.
    pub impaired: Option<Impaired>,
    /// Why a part of the link has ended, the latest time: its streams ended with it, and the link goes on.
    pub ended: Option<Arc<Failure>>,
    /// What is known of the far end.
    pub details: LinkDetails,
}

/// Why, and since when, a link does not carry bytes although its streams live.
#[derive(Debug, Clone)]
pub struct Impaired {
    /// When it began.
    pub since: Instant,
    /// What happened.
    pub cause: Arc<Failure>,
}

/// What a link knows of its far end, for status.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkDetails {
    /// The instance that carries the link, by name and id; empty for direct.
    pub via: String,
    /// The host bytes finally reach.
    pub target_host: String,
    /// The port bytes finally reach.
    pub target_port: u16,
    /// AWS sessions that make up the link.
    pub sessions: u32,
    /// Version of the SSM agent, empty where there is none.
    pub agent_version: String,
    /// Engine of the database, empty where unknown.
    pub engine: String,
    /// What a person might want to know beside that, a sentence each.
    pub notes: Vec<String>,
}

/// Makes the transport that follows a tunnel's route.
pub(crate) type Transports = Arc<dyn Fn(&TunnelSpec) -> Arc<dyn Transport> + Send + Sync>;

/// Builds the transport that follows a tunnel's route to its target.
pub fn build(spec: &TunnelSpec, shared: &Arc<Shared>) -> Arc<dyn Transport> {
    follow(
        &spec.route,
        &spec.target,
        Carried::Clients,
        spec,
        shared,
        &Delays::default(),
    )
}

/// Whose bytes the streams of a transport carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carried {
    /// Those of local clients.
    Clients,
    /// Those of a connection to an SSH server.
    Ssh,
}

/// Builds the transport that follows a route to a target, with the account and the settings of a tunnel.
fn follow(
    route: &Route,
    target: &Target,
    carried: Carried,
    spec: &TunnelSpec,
    shared: &Arc<Shared>,
    delays: &Delays,
) -> Arc<dyn Transport> {
    match route {
        Route::Direct => Arc::new(direct::Direct::new(spec, target.clone(), Arc::clone(&shared.aws))),
        Route::Ssm { via } => Arc::new(ssm::Ssm::new(
            spec,
            target.clone(),
            via.clone(),
            Arc::clone(shared),
        )),
        Route::Eice { endpoint } => Arc::new(eice::Eice::new(
            spec,
            target.clone(),
            endpoint.clone(),
            carried,
            Arc::clone(shared),
            delays.clone(),
        )),
        Route::Ssh(route) => {
            let below = {
                let (over, spec) = (route.over.clone(), spec.clone());
                let (shared, delays) = (Arc::clone(shared), delays.clone());
                move |instance| {
                    let port = SSH_PORT;
                    let server = Target::Instance { instance, port };
                    follow(&over, &server, Carried::Ssh, &spec, &shared, &delays)
                }
            };
            Arc::new(ssh::Ssh::new(
                spec,
                target.clone(),
                route,
                Box::new(below),
                Arc::clone(shared),
                delays.clone(),
            ))
        }
    }
}

/// What all transports of a daemon share.
pub struct Shared {
    /// The way to AWS.
    pub aws: Arc<Aws>,
    /// The sessions open at AWS.
    pub ledger: Arc<Ledger>,
    /// What of a person's SSH is used, and the host keys that were learned.
    pub ssh: SshFiles,
    /// The places on Instance Connect Endpoints.
    pub endpoints: Slots,
    /// The memory for what local clients have not taken.
    pub budget: Arc<Budget>,
    /// The drivers of links; who ends the daemon waits for them, so that no session stays open.
    pub tasks: TaskTracker,
}

#[cfg(test)]
impl Shared {
    /// What transports share in a test: an emulator is AWS, and nothing is known yet.
    pub(crate) fn for_test(emulator: &tunneld_emulator::Emulator, state_folder: &std::path::Path) -> Self {
        let environment = crate::connector::Environment::from_iter(emulator.environment());
        let (ledger, _) = Ledger::open(state_folder).expect("a new folder");
        Self {
            aws: Arc::new(Aws::new(environment).expect("a sound environment")),
            ledger: Arc::new(ledger),
            ssh: SshFiles::new(state_folder, &crate::connector::Environment::default()),
            endpoints: Slots::default(),
            budget: Budget::new(RECEIVE_BUDGET),
            tasks: TaskTracker::new(),
        }
    }
}

/// Returns the failure that an error of a stream carries, if it carries one.
pub fn failure_of(error: &io::Error) -> Option<&Arc<Failure>> {
    error
        .get_ref()?
        .downcast_ref::<StreamFailure>()
        .map(|wrapped| &wrapped.0)
}

/// Returns why a stream broke: the failure that its error carries, or else one that the error caused.
pub(crate) fn broken(error: io::Error) -> Arc<Failure> {
    if let Some(failure) = failure_of(&error) {
        return Arc::clone(failure);
    }
    let doing = "the connection to the target broke";
    let failure = Failure::new(Reason::Unreachable, Remedy::Retry, doing);
    Arc::new(failure.of_stream().because(error))
}

/// Wraps a failure so that it can travel through `AsyncRead` and `AsyncWrite`.
pub(crate) fn io_error(failure: &Arc<Failure>) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, StreamFailure(Arc::clone(failure)))
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct StreamFailure(Arc<Failure>);
