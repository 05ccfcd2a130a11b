//! `tunnelctl restart-daemon`: has the installed version of the daemon take the place of the one that runs.
//!
//! ```text
//!   Restart ──► the old one drains ──► the new one answers ──► the tunnels are as they were
//!               └──────── their addresses are listened on all the time ────────┘
//! ```

use std::path::Path;

use tokio::time::{Instant, sleep};
use tunneld_proto::v1::VersionResponse;
use tunneld_proto::v1::tunnel::State;

use crate::cli::service::RestartDaemon;
use crate::client::{Client, END_LIMIT, LOOK};
use crate::commands::settle::Settling;
use crate::error::{Error, Exit};
use crate::json::{self, Versioned};
use crate::output::Output;

/// Restarts the daemon, and waits until the tunnels that were not down have settled.
pub(super) async fn run(told: &RestartDaemon, socket: Option<&Path>, output: &Output) -> Result<Exit, Error> {
    // Without the warning that versions differ: that is what the command is for.
    let mut old = Client::quietly(socket).await?;
    // A daemon whose configuration has problems has no tunnels; the next one says so again.
    let wanted: Vec<_> = old
        .list()
        .await
        .unwrap_or_default()
        .into_iter()
        .filter(|tunnel| !matches!(tunnel.state, Some(State::Down(_))))
        .map(|tunnel| tunnel.name)
        .collect();
    let before = old.restart().await?;
    let mut new = successor(&before, socket).await?;
    let after = new.daemon();
    if output.json() {
        output.answer_json(&Versioned::new(json::Restarted {
            before: json::Daemon::new(&before, new.socket()),
            after: json::Daemon::new(after, new.socket()),
        }))?;
    } else if before.version == after.version {
        output.answer(&format!(
            "tunneld {} was restarted (pid {})",
            after.version, after.pid
        ))?;
    } else {
        output.answer(&format!(
            "tunneld {} has taken the place of {} (pid {})",
            after.version, before.version, after.pid
        ))?;
    }
    let mut changes = new.watch().await?;
    Settling::new(output)
        .come_back(&wanted, &mut changes, told.timeout)
        .await
}

/// Waits for the daemon that follows another.
async fn successor(before: &VersionResponse, socket: Option<&Path>) -> Result<Client, Error> {
    let deadline = Instant::now() + END_LIMIT;
    loop {
        let trouble = match Client::quietly(socket).await {
            Ok(client) => {
                let daemon = client.daemon();
                if (daemon.pid, &daemon.started) != (before.pid, &before.started) {
                    return Ok(client);
                }
                Error::new(Exit::TimedOut, "the old tunneld has not ended")
            }
            // Between the two, a connection may be cut, and without an inherited socket nobody listens.
            Err(error) => error,
        };
        if Instant::now() > deadline {
            return Err(trouble.hint("its log says what it is doing"));
        }
        sleep(LOOK).await;
    }
}
