//! Notifications on the desktop: that a login is missing, once, where a person wants to be told. A reader of the board.
//!
//! ```text
//!   board ──► Told (pure): whose login is missing that nobody was told of ──► the system's own program
//! ```
//!
//! `notify-send`, or `osascript` on macOS, gets the words as arguments; no shell is between. Where there is no such
//! program nothing is said.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::debug;

use crate::config::{DaemonSettings, TunnelName};
use crate::failure::{Failure, Remedy};
use crate::status::{Changes, State, Status};

/// How long the program may take to hand over a notification: it asks a service of the desktop, which may be starting.
const PATIENCE: Duration = Duration::from_secs(10);

const TITLE: &str = "tunneld: a login is missing";

/// Tells for as long as there is a board, while the settings say so.
pub(crate) async fn tell(mut changes: Changes, mut settings: watch::Receiver<DaemonSettings>) {
    let mut told = Told::default();
    while settings
        .wait_for(|settings| settings.desktop_notifications)
        .await
        .is_ok()
    {
        let snapshot = tokio::select! {
            snapshot = changes.next() => snapshot,
            _ = settings.changed() => continue,
        };
        let Some(snapshot) = snapshot else { return };
        for words in told.news(&snapshot) {
            match timeout(PATIENCE, show(&words)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!("no notification: {error}"),
                Err(_) => debug!("no notification within {} s", PATIENCE.as_secs()),
            }
        }
    }
}

/// The logins that are missing and were told, each with the tunnels that wait for it. `None` is the login of who uses no
/// profile.
#[derive(Debug, Default)]
struct Told(BTreeMap<Option<String>, BTreeSet<TunnelName>>);

impl Told {
    /// Returns what is to be said of the tunnels as they are.
    fn news(&mut self, tunnels: &[Arc<Status>]) -> Vec<String> {
        for waiting in self.0.values_mut() {
            waiting.retain(|name| {
                let status = tunnels.iter().find(|status| status.name == *name);
                status.is_some_and(|status| may_still_wait(&status.state))
            });
        }
        self.0.retain(|_, waiting| !waiting.is_empty());
        let mut news = Vec::new();
        for status in tunnels {
            let Some((profile, cause)) = missing_login(&status.state) else {
                continue;
            };
            let waiting = self.0.entry(profile.clone()).or_default();
            if waiting.is_empty() {
                news.push(words(&status.name, profile.as_deref(), cause));
            }
            waiting.insert(status.name.clone());
        }
        news
    }
}

/// Returns whose login a tunnel waits for, and why.
fn missing_login(state: &State) -> Option<(&Option<String>, &Arc<Failure>)> {
    match state {
        State::Blocked { cause } => match cause.remedy() {
            Remedy::Login { profile } => Some((profile, cause)),
            Remedy::Retry | Remedy::RetryAfter(_) | Remedy::Fix => None,
        },
        State::Down | State::Idle { .. } | State::Connecting { .. } | State::Up | State::Waiting { .. } => {
            None
        }
    }
}

/// Returns whether a tunnel that waited for a login does so still, or tries whether it has to.
fn may_still_wait(state: &State) -> bool {
    match state {
        State::Connecting { .. } | State::Waiting { .. } => true,
        State::Blocked { .. } => missing_login(state).is_some(),
        State::Down | State::Idle { .. } | State::Up => false,
    }
}

fn words(tunnel: &TunnelName, profile: Option<&str>, cause: &Failure) -> String {
    let whose = profile.map_or(String::new(), |profile| format!(" of profile {profile}"));
    let how = cause
        .hints()
        .first()
        .map_or(String::new(), |hint| format!("\n{hint}"));
    format!("{tunnel} waits for a login{whose}.{how}")
}

#[cfg(not(target_os = "macos"))]
async fn show(words: &str) -> io::Result<()> {
    // What shows it may take the text for markup.
    let text = words.replace('&', "&amp;").replace('<', "&lt;");
    run("notify-send", &["--app-name=tunneld", "--", TITLE, &text]).await
}

#[cfg(target_os = "macos")]
async fn show(words: &str) -> io::Result<()> {
    let script = [
        "on run words",
        "display notification (item 2 of words) with title (item 1 of words)",
        "end run",
    ];
    let arguments = script.iter().flat_map(|line| ["-e", line]).chain([TITLE, words]);
    run("osascript", &arguments.collect::<Vec<_>>()).await
}

async fn run(program: &str, arguments: &[&str]) -> io::Result<()> {
    let status = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .status()
        .await?;
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::other(format!("`{program}` ended with {status}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Reason;
    use crate::status::{Board, Entry};
    use crate::tunnel::fake;

    /// A board with tunnels, and who tells of them.
    struct Rig {
        board: Arc<Board>,
        tunnels: Vec<Entry>,
        told: Told,
    }

    impl Rig {
        fn new() -> Self {
            let board = Arc::new(Board::new());
            let tunnels = ["a", "b"].map(|name| board.enter(&fake::spec(name)));
            Self {
                board,
                tunnels: tunnels.into(),
                told: Told::default(),
            }
        }

        fn becomes(&mut self, tunnel: usize, state: State) -> Vec<String> {
            self.tunnels[tunnel].publish(state);
            self.told.news(&self.board.snapshot())
        }
    }

    fn blocked(profile: &str) -> State {
        let remedy = Remedy::Login {
            profile: Some(profile.to_owned()),
        };
        let failure = Failure::new(Reason::Login, remedy, "the login expired")
            .hint(format!("aws sso login --profile {profile}"));
        State::Blocked {
            cause: Arc::new(failure),
        }
    }

    #[test]
    fn a_missing_login_is_told_once_with_what_to_do() {
        let mut rig = Rig::new();
        let dev = "a waits for a login of profile dev.\naws sso login --profile dev";
        assert_eq!(rig.becomes(0, blocked("dev")), [dev]);
        assert!(rig.becomes(1, blocked("dev")).is_empty(), "the same login");
        assert!(rig.becomes(0, State::Connecting { attempt: 1 }).is_empty());
        assert!(rig.becomes(0, blocked("dev")).is_empty(), "it was of no use");
    }

    #[test]
    fn another_login_is_told_and_the_same_once_it_was_good_in_between() {
        let mut rig = Rig::new();
        rig.becomes(0, blocked("dev"));
        assert_eq!(rig.becomes(1, blocked("prod")).len(), 1);
        rig.becomes(0, State::Up);
        assert_eq!(rig.becomes(0, blocked("dev")).len(), 1);
    }

    #[test]
    fn what_no_login_mends_is_not_told() {
        let mut rig = Rig::new();
        let cause = Arc::new(Failure::new(Reason::Denied, Remedy::Fix, "not allowed"));
        assert!(rig.becomes(0, State::Blocked { cause }).is_empty());
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_an_error_and_no_more() {
        assert!(run("/nowhere/notify-send", &["--", TITLE]).await.is_err());
    }
}
