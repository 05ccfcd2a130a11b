//! The service manager that starts this daemon and starts it again, and what it is told.
//!
//! ```text
//!   NOTIFY_SOCKET   ◄── READY=1, STATUS=3 up, 1 waiting, STOPPING=1, WATCHDOG=1
//!                   ◄── FDSTORE=1, FDSTOREREMOVE=1: sockets that it keeps for the next daemon (see `heritage`)
//!   WATCHDOG_USEC   ──► how often it wants a sign of life
//! ```
//!
//! The protocol is that of systemd's sd_notify. launchd, which has nothing like it, is told nothing.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};
use tracing::{debug, warn};

use crate::connector::Environment;
use crate::daemon::Daemon;
use crate::failure::Remedy;
use crate::status::{State, Status};

/// How long a message that must arrive waits while the service manager reads none.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often the status is told at most: people look at it, and a bad night changes it a hundred times a second.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// How much of a cause is told: a status is one line of a terminal.
const LONGEST_CAUSE: usize = 120;

/// What the label of our launchd agent begins with.
const LABEL: &str = "tunneld";

/// The service manager. See the module's documentation.
#[derive(Debug)]
pub struct ServiceManager {
    name: &'static str,
    notices: Option<UnixDatagram>,
    /// How often it wants a sign of life; `None`: never.
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// Finds the service manager that started this process; `None` if a person did.
    pub fn find(environment: &Environment) -> Option<Self> {
        let pid = std::process::id();
        let is_ours = |variable: &str| environment.variable(variable) == Some(pid.to_string().as_str());
        if environment
            .variable("XPC_SERVICE_NAME")
            .is_some_and(|label| label.starts_with(LABEL))
        {
            return Some(Self {
                name: "launchd",
                notices: None,
                watchdog: None,
            });
        }
        let notices = environment.variable("NOTIFY_SOCKET");
        if notices.is_none() && !is_ours("SYSTEMD_EXEC_PID") {
            return None;
        }
        let of_us = environment.variable("WATCHDOG_PID").is_none() || is_ours("WATCHDOG_PID");
        let period = environment.variable("WATCHDOG_USEC").filter(|_| of_us);
        Some(Self {
            name: "systemd",
            notices: notices.and_then(|path| {
                connect(path)
                    .inspect_err(|error| warn!(path, %error, "cannot tell the service manager anything"))
                    .ok()
            }),
            watchdog: period
                .and_then(|period| period.parse().ok())
                .filter(|period| *period > 0)
                .map(Duration::from_micros),
        })
    }

    /// Returns its name, for people.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Returns whether it keeps sockets for the next daemon, as far as can be known: older ones do not say.
    pub(crate) fn keeps_sockets(&self) -> bool {
        self.notices.is_some()
    }

    /// Has it keep a copy of a socket. One that it has already is not kept twice.
    pub(crate) fn store(&self, name: &str, socket: BorrowedFd<'_>) {
        self.tell(&format!("FDSTORE=1\nFDNAME={name}"), &[socket]);
    }

    /// Has it close its copies of a socket.
    pub(crate) fn remove(&self, name: &str) {
        self.tell(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[]);
    }

    /// Tells it that the daemon ends and does not begin anew by itself.
    pub(crate) fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=stopping", &[]);
    }

    /// Tells it something that must arrive.
    fn tell(&self, message: &str, sockets: &[BorrowedFd<'_>]) {
        let sent = self.send(message, sockets, SendFlags::empty());
        if let Err(error) = sent {
            warn!(message, %error, "cannot tell the service manager");
        }
    }

    /// Tells it something that it may miss, which must not make anybody wait.
    fn mention(&self, message: &str) {
        if let Err(error) = self.send(message, &[], SendFlags::DONTWAIT) {
            debug!(message, %error, "the service manager does not listen");
        }
    }

    fn send(&self, message: &str, sockets: &[BorrowedFd<'_>], flags: SendFlags) -> io::Result<()> {
        let Some(notices) = &self.notices else {
            return Ok(());
        };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !sockets.is_empty() && !control.push(SendAncillaryMessage::ScmRights(sockets)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // It is one datagram: all of it goes, or nothing.
        let text = [IoSlice::new(message.as_bytes())];
        rustix::io::retry_on_intr(|| sendmsg(notices, &text, &mut control, flags))?;
        Ok(())
    }
}

/// Connects to where notices go: a path, or an abstract name behind an `@`.
fn connect(path: &str) -> io::Result<UnixDatagram> {
    let address = match path.strip_prefix('@') {
        Some(name) => SockAddr::unix(Path::new(&format!("\0{name}")))?,
        None => SockAddr::unix(path)?,
    };
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    socket.connect(&address)?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket.into())
}

/// Keeps the service manager told: that the daemon is ready, how the tunnels are, and that it lives. Never ends.
///
/// The sign of life comes from the thread that carries everybody's bytes, so that it is missed when that thread hangs.
pub(crate) async fn keep_told(manager: Arc<ServiceManager>, daemon: Arc<Daemon>) {
    let mut changes = daemon.watch();
    let mut told = status(&daemon);
    manager.tell(&format!("READY=1\nSTATUS={told}"), &[]);
    let mut alive = manager.watchdog.map(|period| {
        let mut alive = interval(period / 2);
        alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        alive
    });
    let mut next = Instant::now() + STATUS_EVERY;
    let mut is_due = false;
    loop {
        tokio::select! {
            () = tick(alive.as_mut()) => manager.mention("WATCHDOG=1"),
            snapshot = changes.next(), if !is_due => {
                if snapshot.is_none() {
                    return;
                }
                is_due = true;
            }
            () = sleep_until(next), if is_due => {
                is_due = false;
                next = Instant::now() + STATUS_EVERY;
                let present = status(&daemon);
                if present != told {
                    manager.mention(&format!("STATUS={present}"));
                    told = present;
                }
            }
        }
    }
}

async fn tick(interval: Option<&mut Interval>) {
    match interval {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}

fn status(daemon: &Daemon) -> String {
    match daemon.ready() {
        Ok(()) => summary(&daemon.watch().latest()),
        Err(_) => "no tunnels: the configuration has problems (tunnelctl check)".to_owned(),
    }
}

/// Says how all tunnels are, in one line.
fn summary(tunnels: &[Arc<Status>]) -> String {
    let states = ["up", "idle", "connecting", "waiting", "blocked", "down"];
    let counts: Vec<String> = states
        .iter()
        .map(|state| {
            (
                state,
                tunnels
                    .iter()
                    .filter(|tunnel| tunnel.state.name() == *state)
                    .count(),
            )
        })
        .filter(|(_, count)| *count > 0)
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    if counts.is_empty() {
        return "no tunnels".to_owned();
    }
    match tunnels.iter().find_map(|tunnel| what_to_do(&tunnel.state)) {
        Some(what) => format!("{}: {what}", counts.join(", ")),
        None => counts.join(", "),
    }
}

/// Says what a person has to do about a tunnel, or what keeps it.
fn what_to_do(state: &State) -> Option<String> {
    let State::Blocked { cause } = state else {
        return None;
    };
    Some(match cause.remedy() {
        Remedy::Login {
            profile: Some(profile),
        } => format!("login needed (profile {profile})"),
        Remedy::Login { profile: None } => "login needed".to_owned(),
        Remedy::Retry | Remedy::RetryAfter(_) | Remedy::Fix => {
            let words = cause.to_string();
            words
                .chars()
                .filter(|letter| !letter.is_control())
                .take(LONGEST_CAUSE)
                .collect()
        }
    })
}

#[cfg(test)]
mod tests {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

    use super::*;
    use crate::failure::{Failure, Reason};
    use crate::status::Board;
    use crate::tunnel::fake;

    fn manager(variables: &[(&str, &str)]) -> Option<ServiceManager> {
        ServiceManager::find(&variables.iter().copied().collect())
    }

    #[test]
    fn who_started_the_daemon_is_told_by_its_environment() {
        let pid = std::process::id().to_string();
        assert!(manager(&[]).is_none());
        assert!(
            manager(&[("INVOCATION_ID", "0123")]).is_none(),
            "a terminal has it too"
        );
        assert!(manager(&[("SYSTEMD_EXEC_PID", "1")]).is_none());
        assert!(manager(&[("XPC_SERVICE_NAME", "0")]).is_none());
        assert_eq!(manager(&[("SYSTEMD_EXEC_PID", &pid)]).unwrap().name(), "systemd");
        assert_eq!(
            manager(&[("XPC_SERVICE_NAME", "tunneld")]).unwrap().name(),
            "launchd"
        );
    }

    #[test]
    fn a_watchdog_of_another_process_is_not_ours() {
        let pid = std::process::id().to_string();
        let watchdog = |watched: &str| {
            let variables = [
                ("SYSTEMD_EXEC_PID", pid.as_str()),
                ("WATCHDOG_USEC", "3000000"),
                ("WATCHDOG_PID", watched),
            ];
            manager(&variables).unwrap().watchdog
        };
        assert_eq!(watchdog(&pid), Some(Duration::from_secs(3)));
        assert_eq!(watchdog("1"), None);
        assert_eq!(watchdog(""), Some(Duration::from_secs(3)));
    }

    #[test]
    fn a_socket_is_handed_over_with_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let theirs = UnixDatagram::bind(&path).unwrap();
        let manager = manager(&[("NOTIFY_SOCKET", path.to_str().unwrap())]).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        manager.store("127.0.0.1%3A1", std::os::fd::AsFd::as_fd(&listener));

        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut text = [0; 256];
        let mut buffers = [io::IoSliceMut::new(&mut text)];
        let received = recvmsg(&theirs, &mut buffers, &mut control, RecvFlags::empty()).unwrap();
        let Some(RecvAncillaryMessage::ScmRights(mut sockets)) = control.drain().next() else {
            panic!("no descriptor came")
        };
        let socket = std::net::TcpListener::from(sockets.next().unwrap());
        assert_eq!(socket.local_addr().unwrap(), listener.local_addr().unwrap());
        assert_eq!(&text[..received.bytes], b"FDSTORE=1\nFDNAME=127.0.0.1%3A1");
    }

    #[test]
    fn a_service_manager_that_reads_nothing_keeps_nobody_waiting_for_a_status() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let _theirs = UnixDatagram::bind(&path).unwrap();
        let manager = manager(&[("NOTIFY_SOCKET", path.to_str().unwrap())]).unwrap();
        let full = (0..1 << 16).any(|_| manager.send("STATUS=up", &[], SendFlags::DONTWAIT).is_err());
        assert!(full, "the queue has an end");
        manager.mention("STATUS=up");
    }

    #[test]
    fn a_status_counts_the_tunnels_and_says_what_a_person_has_to_do() {
        let board = Arc::new(Board::new());
        assert_eq!(summary(&board.snapshot()), "no tunnels");
        let entries = ["a", "b", "c"].map(|name| board.enter(&fake::spec(name)));
        assert_eq!(summary(&board.snapshot()), "3 down");
        entries[0].publish(State::Up);
        entries[1].publish(State::Up);
        let profile = Some("dev".to_owned());
        let cause = Failure::new(Reason::Login, Remedy::Login { profile }, "the login has expired");
        entries[2].publish(State::Blocked {
            cause: Arc::new(cause),
        });
        assert_eq!(
            summary(&board.snapshot()),
            "2 up, 1 blocked: login needed (profile dev)"
        );
        let cause = Failure::new(Reason::PortInUse, Remedy::Fix, "the port is\nheld");
        entries[2].publish(State::Blocked {
            cause: Arc::new(cause),
        });
        assert_eq!(summary(&board.snapshot()), "2 up, 1 blocked: the port isheld");
    }
}
