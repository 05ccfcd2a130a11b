//! Metrics for Prometheus, where the configuration wants them: a reader of the board and the meters.
//!
//! ```text
//!   settings ──► run ── binds, and binds anew on reload ──► server ── GET /metrics ──► exposition
//!                                                                                        │
//!                                                            board, meters, AWS calls ◄──┘
//! ```
//!
//! Where nobody wants them, nothing is bound and nothing is counted that would not be counted anyway. An address that
//! cannot be bound is a warning: the tunnels matter more, and each reload tries again.

mod exposition;
mod server;

use std::sync::Arc;
use std::time::SystemTime;

use tracing::{info, warn};

use self::exposition::Exposition;
use self::server::Server;
use crate::aws::Calls;
use crate::config::{DaemonSettings, Listen};
use crate::daemon::Daemon;
use crate::status::wall_clock;

/// Serves metrics where the settings say, from now on, as long as the daemon has settings.
pub(crate) async fn run(daemon: Arc<Daemon>, calls: Calls) {
    let mut settings = daemon.settings();
    let source = Source {
        daemon,
        calls,
        started: wall_clock(),
    };
    let mut serving: Option<(Listen, Server)> = None;
    loop {
        let DaemonSettings { metrics, .. } = settings.borrow_and_update().clone();
        if serving.as_ref().map(|(listen, _)| listen) != metrics.as_ref() {
            // The former address is free before the next one is bound.
            drop(serving.take());
            serving = metrics.and_then(bound);
        }
        let changed = match &mut serving {
            Some((_, server)) => tokio::select! {
                changed = settings.changed() => changed,
                never = server.serve(&source) => match never {},
            },
            None => settings.changed().await,
        };
        if changed.is_err() {
            return;
        }
    }
}

fn bound(listen: Listen) -> Option<(Listen, Server)> {
    match Server::bind(&listen) {
        Ok(server) => {
            info!("metrics are served on {listen}");
            Some((listen, server))
        }
        Err(error) => {
            warn!(%error, "cannot serve metrics on {listen}; the next reload tries again");
            None
        }
    }
}

/// Where the figures come from.
#[derive(Clone)]
struct Source {
    daemon: Arc<Daemon>,
    calls: Calls,
    started: SystemTime,
}

impl Source {
    /// Returns the figures of this moment.
    fn now(&self) -> Exposition {
        Exposition {
            tunnels: self.daemon.snapshot(),
            calls: self.calls.all(),
            started: self.started,
        }
    }
}
