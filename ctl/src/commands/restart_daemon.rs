//! `tunnelctl restart-daemon`: has the installed version of the daemon take the place of the one that runs.
//!
//! ```text
//!   Restart ──► the old one drains ──► the new one answers ──► the tunnels are as they were
//!               └──────── their addresses are listened on all the time ────────┘
//! ```

use std::path::Path;

use tokio::time::{Instant, sleep, timeout_at};
use tunneld_proto::v1::VersionResponse;
use tunneld_proto::v1::tunnel::State;

use crate::cli::service::RestartDaemon;
use crate::client::{Client, LOOK, START_LIMIT};
use crate::commands::settle::Settling;
use crate::error::{Error, Exit};
use crate::json::{self, Versioned};
use crate::output::Output;

/// Restarts the daemon, and waits until the tunnels that were not down have settled.
pub(super) async fn run(told: &RestartDaemon, socket: Option<&Path>, output: &Output) -> Result<Exit, Error> {
    let deadline = Instant::now() + told.timeout;
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
    let mut new = successor(&before, socket, deadline).await?;
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
        .come_back(
            &wanted,
            &mut changes,
            deadline.saturating_duration_since(Instant::now()),
        )
        .await
}

/// Waits for the daemon that follows another.
async fn successor(
    before: &VersionResponse,
    socket: Option<&Path>,
    deadline: Instant,
) -> Result<Client, Error> {
    let mut patience = Patience::until(deadline);
    let not_ended = || Error::new(Exit::TimedOut, "the old tunneld has not ended");
    loop {
        let trouble = match timeout_at(deadline, Client::quietly(socket)).await {
            Ok(Ok(client)) => {
                let daemon = client.daemon();
                if (daemon.pid, &daemon.started) != (before.pid, &before.started) {
                    return Ok(client);
                }
                not_ended()
            }
            // Between the two, a connection may be cut, and without an inherited socket nobody listens.
            Ok(Err(error)) => error,
            Err(_elapsed) => not_ended(),
        };
        let gone = trouble.exit() == Exit::NoDaemon;
        match patience.ends(gone, Instant::now()) {
            None => sleep(LOOK).await,
            Some(Exit::TimedOut) if gone => {
                return Err(Error::new(
                    Exit::TimedOut,
                    "the old tunneld has ended, and no new one answers yet",
                )
                .hint("its log says what it is doing"));
            }
            Some(_) if gone => {
                return Err(trouble
                    .leads_to("the old tunneld has ended, and no new one has started")
                    .hint("its log says why"));
            }
            Some(_) => return Err(trouble.hint("its log says what it is doing")),
        }
    }
}

/// How long a daemon is waited for.
struct Patience {
    /// When the person who waits has had enough.
    deadline: Instant,
    /// Since when there is no daemon at all.
    gone: Option<Instant>,
}

impl Patience {
    fn until(deadline: Instant) -> Self {
        Self { deadline, gone: None }
    }

    /// Returns what to end with, if it is time to, where there is a daemon or it is `gone`.
    fn ends(&mut self, gone: bool, now: Instant) -> Option<Exit> {
        self.gone = gone.then(|| self.gone.unwrap_or(now));
        if self.gone.is_some_and(|since| now - since > START_LIMIT) {
            Some(Exit::NoDaemon)
        } else {
            (now >= self.deadline).then_some(Exit::TimedOut)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LONG: Duration = Duration::from_mins(5);
    const MOMENT: Duration = Duration::from_millis(1);

    #[test]
    fn a_daemon_that_is_gone_has_as_long_as_a_start_takes_however_long_the_old_one_took() {
        let began = Instant::now();
        let mut patience = Patience::until(began + LONG);
        let ended = began + START_LIMIT * 2;
        assert_eq!(patience.ends(false, ended - MOMENT), None);
        assert_eq!(patience.ends(true, ended), None);
        assert_eq!(patience.ends(true, ended + START_LIMIT), None);
        assert_eq!(
            patience.ends(true, ended + START_LIMIT + MOMENT),
            Some(Exit::NoDaemon)
        );
    }

    #[test]
    fn a_daemon_that_answers_again_is_gone_no_more() {
        let began = Instant::now();
        let mut patience = Patience::until(began + LONG);
        assert_eq!(patience.ends(true, began), None);
        assert_eq!(patience.ends(false, began + START_LIMIT * 2), None);
        assert_eq!(patience.ends(true, began + START_LIMIT * 2 + MOMENT), None);
    }

    #[test]
    fn the_person_has_the_last_word() {
        let began = Instant::now();
        let mut patience = Patience::until(began + MOMENT);
        for gone in [false, true] {
            assert_eq!(patience.ends(gone, began), None);
            assert_eq!(patience.ends(gone, began + MOMENT), Some(Exit::TimedOut));
        }
    }
}
