//! The daemon: everything that runs.
//!
//! ```text
//!                       ┌──► visit ──┐
//!   main ─► rpc ─► daemon ─► tunnel ─► transport ─► aws
//!             │       │          │
//!             └───────┴─ status ◄┘   (written by tunnel, read by rpc and metrics)
//! ```
//!
//! Arrows point one way only; `config` and `failure` are for all. [`run`] is the whole program, callable from a test.

pub mod aws;
pub mod config;
pub mod connector;
mod daemon;
mod exchange;
pub mod failure;
pub mod heritage;
pub mod limits;
pub mod logging;
mod meter;
mod metrics;
mod near;
mod notifications;
mod private_file;
pub mod restart;
pub mod rpc;
pub mod service_manager;
pub mod signals;
mod socket_file;
mod status;
mod surroundings;
pub mod transport;
mod tunnel;
mod visit;
mod watched;
pub mod wishes;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, warn};

use crate::aws::Aws;
use crate::config::{Config, Problems};
use crate::daemon::{Daemon, Means};
use crate::heritage::{Heritage, Legacy};
use crate::logging::RecentLines;
use crate::restart::Program;
use crate::rpc::{Asks, ControlSocket, ServeError, Service};
use crate::service_manager::ServiceManager;
use crate::surroundings::Surroundings;
use crate::transport::{Ledger, Orphan, Shared, SshFiles};
use crate::tunnel::Afterwards;
use crate::watched::Watched;
use crate::wishes::Wishes;

/// How long connections may take to end by themselves when the daemon stops: a query and its answer, and well within
/// the 90 s after which systemd kills.
const GRACE: Duration = Duration::from_secs(10);

/// How long sessions may take to end at AWS, once their tunnels have: a call or two.
const FAREWELL: Duration = Duration::from_secs(10);

/// How long clients of the control socket may take to hear the last news.
const LAST_NEWS: Duration = Duration::from_secs(1);

/// What the program runs with.
pub struct Options {
    /// The configuration file.
    pub path: PathBuf,
    /// The tunnels; with problems there are none until the file has none.
    pub config: Result<Config, Problems>,
    /// What the program has logged.
    pub log: RecentLines,
    /// Where clients ask. Bound before any tunnel is, so that a second daemon disturbs nothing.
    pub socket: ControlSocket,
    /// Sockets that were there before.
    pub heritage: Arc<Heritage>,
    /// Who wants to know how the daemon is.
    pub manager: Option<Arc<ServiceManager>>,
    /// What is run when the daemon begins anew.
    pub program: Arc<Program>,
    /// What a person typed last about the tunnels.
    pub wishes: Wishes,
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

/// What comes after the daemon's end.
#[derive(Debug)]
pub enum Ending {
    /// Nothing.
    Stopped,
    /// The program begins anew, with these sockets.
    Restart(Legacy),
}

/// Runs the daemon until it is told to stop, or to begin anew, and everything has ended.
///
/// # Errors
///
/// The control socket could not be served; the tunnels have ended in order nevertheless.
pub async fn run(options: Options) -> Result<Ending, ServeError> {
    let Options {
        path,
        config,
        log,
        socket,
        heritage,
        manager,
        program,
        wishes,
        aws,
        ledger: (ledger, orphans),
        ssh,
        stop,
        reload,
    } = options;
    let (restart, closing) = (CancellationToken::new(), CancellationToken::new());
    let tasks = TaskTracker::new();
    let shared = Arc::new(Shared {
        aws: Arc::clone(&aws),
        ledger: Arc::new(ledger),
        ssh,
        endpoints: transport::Slots::default(),
        budget: transport::Budget::new(transport::RECEIVE_BUDGET),
        tasks: tasks.clone(),
    });
    beside(
        &tasks,
        &closing,
        transport::end_orphans(Arc::clone(&shared), orphans),
    );
    let calls = aws.calls().clone();
    let surroundings = Surroundings::watch(&aws.credential_files());
    let means = Means {
        aws,
        transports: Arc::new(move |spec| transport::build(spec, &shared)),
        heritage: Arc::clone(&heritage),
        wishes,
    };
    let daemon = match config {
        Ok(config) => Daemon::start(config, means).await,
        Err(problems) => {
            error!("no tunnel runs until the configuration is mended\n{problems}");
            let daemon = Daemon::without_tunnels(path, problems, means);
            beside(&tasks, &closing, mend(Arc::clone(&daemon)));
            daemon
        }
    };
    beside(&tasks, &closing, Arc::clone(&daemon).mind(surroundings));
    beside(&tasks, &closing, metrics::run(Arc::clone(&daemon), calls));
    let notifications = notifications::tell(daemon.watch(), daemon.settings());
    beside(&tasks, &closing, notifications);
    let ended = CancellationToken::new();
    let socket = Arc::new(socket);
    let service = Service::new(
        Arc::clone(&daemon),
        log,
        manager.as_ref().map_or("", |manager| manager.name()),
        program,
        Asks {
            stop: stop.clone(),
            restart: restart.clone(),
        },
        ended.clone(),
    );
    let mut serving = JoinSet::new();
    serving.spawn(rpc::serve(Arc::clone(&socket), service, ended.clone()));
    let mut telling = JoinSet::new();
    if let Some(manager) = &manager {
        telling.spawn(service_manager::keep_told(
            Arc::clone(manager),
            Arc::clone(&daemon),
        ));
    }
    // A reload that has begun is waited for by the end of the tunnels, which it must not keep from beginning.
    let mut reloading = JoinSet::new();
    reloading.spawn(reload_when_told(Arc::clone(&daemon), reload));
    let outcome = tokio::select! {
        () = stop.cancelled() => Ok(()),
        () = restart.cancelled() => Ok(()),
        Some(served) = serving.join_next() => flatten(served),
    };
    let afterwards = if restart.is_cancelled() || heritage.is_kept() {
        Afterwards::Leave
    } else {
        Afterwards::Free
    };
    info!(grace = ?GRACE, "stopping");
    if let Some(manager) = manager.filter(|_| !restart.is_cancelled()) {
        manager.stopping();
    }
    closing.cancel();
    daemon.shutdown(GRACE, afterwards).await;
    tasks.close();
    if timeout(FAREWELL, tasks.wait()).await.is_err() {
        warn!(
            open = tasks.len(),
            "sessions at AWS did not end in time; the next start ends them"
        );
    }
    ended.cancel();
    let outcome = match timeout(LAST_NEWS, serving.join_next()).await {
        Ok(Some(served)) => outcome.and(flatten(served)),
        Ok(None) | Err(_) => outcome,
    };
    serving.shutdown().await;
    // A signal that came while it drained counts.
    if restart.is_cancelled() && !stop.is_cancelled() && outcome.is_ok() {
        if let Some(socket) = Arc::into_inner(socket)
            && let Err(error) = socket.leave(&heritage)
        {
            warn!(%error, "cannot keep the control socket: clients are refused for a moment");
        }
        return Ok(Ending::Restart(heritage.close()));
    }
    heritage.close().end();
    outcome.map(|()| Ending::Stopped)
}

/// Lets a task run until the daemon closes.
fn beside(tasks: &TaskTracker, closing: &CancellationToken, task: impl Future<Output = ()> + Send + 'static) {
    tasks.spawn(closing.clone().run_until_cancelled_owned(task));
}

/// Reads the configuration again with each message.
async fn reload_when_told(daemon: Arc<Daemon>, mut reload: mpsc::Receiver<()>) {
    while reload.recv().await.is_some() {
        if let Err(error) = daemon.reload().await {
            warn!("{error}");
        }
    }
}

/// Reads the configuration again whenever its file changes, until it has no problems.
async fn mend(daemon: Arc<Daemon>) {
    let mut watched = match Watched::new(&[daemon.path().to_owned()]) {
        Ok(watched) => watched,
        Err(error) => {
            warn!(%error, "cannot watch the configuration file: type `tunnelctl reload` once it is mended");
            return;
        }
    };
    loop {
        // A client may have had it read meanwhile.
        if daemon.ready().is_ok() {
            return;
        }
        match daemon.reload().await {
            Ok(_) => return,
            Err(error) => debug!("{error}"),
        }
        watched.changed().await;
    }
}

fn flatten(served: Result<Result<(), ServeError>, tokio::task::JoinError>) -> Result<(), ServeError> {
    served.unwrap_or_else(|ended| Err(ServeError::from(ended)))
}
