//! The daemon: everything that runs.
//!
//! ```text
//!                       ┌──► visit ──┐
//!   main ─► rpc ─► daemon ─► tunnel ─► transport ─► aws
//!             │       │          │
//!             └───────┴─ status ◄┘   (written by tunnel, read by rpc)
//! ```
//!
//! Arrows point one way only; `config` and `failure` are for all. [`run`] is the whole program, callable from a test.

pub mod aws;
pub mod config;
pub mod connector;
mod daemon;
mod exchange;
pub mod failure;
pub mod limits;
pub mod logging;
mod meter;
mod near;
pub mod rpc;
pub mod signals;
mod socket_file;
mod status;
pub mod transport;
mod tunnel;
mod visit;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::aws::Aws;
use crate::config::Config;
use crate::daemon::Daemon;
use crate::rpc::{ControlSocket, ServeError};
use crate::transport::{Ledger, Orphan, Shared, SshFiles};

/// How long connections may take to end by themselves when the daemon stops: a query and its answer, and well within
/// the 90 s after which systemd kills.
const GRACE: Duration = Duration::from_secs(10);

/// How long sessions may take to end at AWS, once their tunnels have: a call or two.
const FAREWELL: Duration = Duration::from_secs(10);

/// How long clients of the control socket may take to hear the last news.
const LAST_NEWS: Duration = Duration::from_secs(1);

/// What the program runs with.
pub struct Options {
    /// The tunnels.
    pub config: Config,
    /// Where clients ask. Bound before any tunnel is, so that a second daemon disturbs nothing.
    pub socket: ControlSocket,
    /// The way to AWS.
    pub aws: Arc<Aws>,
    /// The sessions open at AWS, and those that an earlier daemon left open.
    pub ledger: (Ledger, Vec<Orphan>),
    /// What of a person's SSH is used, and the host keys that were learned.
    pub ssh: SshFiles,
    /// Cancelled by a signal, or by the program itself when a client asked it to stop.
    pub stop: CancellationToken,
    /// Each message has the configuration read again.
    pub reload: mpsc::Receiver<()>,
}

/// Runs the daemon until it is told to stop and everything has ended.
///
/// # Errors
///
/// The control socket could not be served; the tunnels have ended in order nevertheless.
pub async fn run(options: Options) -> Result<(), ServeError> {
    let Options {
        config,
        socket,
        aws,
        ledger: (ledger, orphans),
        ssh,
        stop,
        mut reload,
    } = options;
    let tasks = TaskTracker::new();
    let shared = Arc::new(Shared {
        aws,
        ledger: Arc::new(ledger),
        ssh,
        endpoints: transport::Slots::default(),
        budget: transport::Budget::new(transport::RECEIVE_BUDGET),
        tasks: tasks.clone(),
    });
    tasks.spawn(
        stop.clone()
            .run_until_cancelled_owned(transport::end_orphans(Arc::clone(&shared), orphans)),
    );
    let aws = Arc::clone(&shared.aws);
    let daemon = Daemon::start(config, aws, Arc::new(move |spec| transport::build(spec, &shared))).await;
    let ended = CancellationToken::new();
    let mut serving = JoinSet::new();
    serving.spawn(rpc::serve(
        socket,
        Arc::clone(&daemon),
        stop.clone(),
        ended.clone(),
    ));
    let outcome = loop {
        tokio::select! {
            () = stop.cancelled() => break Ok(()),
            Some(served) = serving.join_next() => break flatten(served),
            Some(()) = reload.recv() => match daemon.reload().await {
                Ok(_) => {}
                Err(error) => warn!("{error}"),
            },
        }
    };
    info!(grace = ?GRACE, "stopping");
    daemon.shutdown(GRACE).await;
    tasks.close();
    if timeout(FAREWELL, tasks.wait()).await.is_err() {
        warn!(
            open = tasks.len(),
            "sessions at AWS did not end in time; the next start ends them"
        );
    }
    ended.cancel();
    match timeout(LAST_NEWS, serving.join_next()).await {
        Ok(Some(served)) => outcome.and(flatten(served)),
        Ok(None) | Err(_) => outcome,
    }
}

fn flatten(served: Result<Result<(), ServeError>, tokio::task::JoinError>) -> Result<(), ServeError> {
    served.unwrap_or_else(|ended| Err(ServeError::from(ended)))
}
