//! The service manager of this machine, and what it is told of the daemon.
//!
//! ```text
//!                      ┌──► systemd ──► units of its own folder ── systemctl --user
//!   commands ──► Manager             \
//!                      └──► launchd ──► file ──► the texts in `systemd/` of the repository
//! ```
//!
//! Everything is done by the manager's own program, as a person would do it.

mod file;
mod launchd;
mod systemd;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::Error;
use crate::service::launchd::Launchd;
use crate::service::systemd::Systemd;

/// The service manager of this machine.
pub(crate) enum Manager {
    Systemd(Systemd),
    Launchd(Launchd),
}

/// How the service is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// The file that describes it; `None` where it is not installed.
    pub(crate) file: Option<PathBuf>,
    /// Whether it starts at login.
    pub(crate) enabled: bool,
    /// The daemon, where it runs.
    pub(crate) pid: Option<u32>,
    /// What the daemon told the manager of itself.
    pub(crate) words: Option<String>,
}

/// What an installation did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Installed {
    /// Files that had other content.
    pub(crate) replaced: Vec<PathBuf>,
    /// Whether a daemon that ran already had to start again, because its description has changed.
    pub(crate) restarted: bool,
}

/// What an uninstallation did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Uninstalled {
    /// Files that are gone.
    pub(crate) removed: Vec<PathBuf>,
    /// Files that describe the service and were not written here.
    pub(crate) left: Vec<PathBuf>,
}

/// Returns whether the service is installed, without asking the manager.
pub(crate) fn is_installed() -> bool {
    if cfg!(target_os = "macos") {
        launchd::agent().is_some_and(|agent| agent.exists())
    } else {
        systemd::is_installed()
    }
}

impl Manager {
    /// Finds the manager and has it answer.
    pub(crate) fn find() -> Result<Self, Error> {
        let found = if cfg!(target_os = "macos") {
            Launchd::find().map(Self::Launchd)
        } else {
            Systemd::find().map(Self::Systemd)
        };
        found.map_err(|error| error.hint("tunnelctl daemon start"))
    }

    /// Returns its name, for programs.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Systemd(_) => "systemd",
            Self::Launchd(_) => "launchd",
        }
    }

    /// Returns what a person calls the service.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Systemd(_) => "systemd user service",
            Self::Launchd(_) => "launchd agent",
        }
    }

    /// Returns the control socket that it holds for the daemon, if it does.
    pub(crate) fn socket(&self) -> Option<&Path> {
        match self {
            Self::Systemd(systemd) => Some(systemd.socket()),
            Self::Launchd(_) => None,
        }
    }

    /// Returns whether it listens for the daemon on that socket now.
    pub(crate) fn listens(&self) -> bool {
        match self {
            Self::Systemd(systemd) => systemd.listens(),
            Self::Launchd(_) => false,
        }
    }

    /// Returns how the service is. Starts nothing.
    pub(crate) fn state(&self) -> Result<State, Error> {
        match self {
            Self::Systemd(systemd) => systemd.state(),
            Self::Launchd(launchd) => Ok(launchd.state()),
        }
    }

    /// Describes the service to the manager, has it start at login, and starts it.
    pub(crate) fn install(&self, program: &Path, arguments: &[&str]) -> Result<Installed, Error> {
        match self {
            Self::Systemd(systemd) => systemd.install(program, arguments),
            Self::Launchd(launchd) => launchd.install(program, arguments),
        }
    }

    /// Stops the service, and removes what an installation wrote.
    pub(crate) fn uninstall(&self) -> Result<Uninstalled, Error> {
        match self {
            Self::Systemd(systemd) => systemd.uninstall(),
            Self::Launchd(launchd) => launchd.uninstall(),
        }
    }

    /// Starts the service.
    pub(crate) fn start(&self) -> Result<(), Error> {
        match self {
            Self::Systemd(systemd) => systemd.start(),
            Self::Launchd(launchd) => launchd.start(),
        }
    }

    /// Stops the service, and has nobody start it by connecting.
    pub(crate) fn stop(&self) -> Result<(), Error> {
        match self {
            Self::Systemd(systemd) => systemd.stop(),
            Self::Launchd(launchd) => launchd.stop(),
        }
    }

    /// Returns whether the service goes on while its user is logged out, where that can be known.
    pub(crate) fn lingers(&self) -> Option<bool> {
        match self {
            Self::Systemd(systemd) => systemd.lingers(),
            Self::Launchd(_) => None,
        }
    }

    /// Returns a variable of the environment that it starts services in; `None` where it is not set, or not known.
    pub(crate) fn variable(&self, name: &str) -> Option<&str> {
        match self {
            Self::Systemd(systemd) => systemd.variable(name),
            Self::Launchd(_) => None,
        }
    }
}

/// Runs a program of a manager; returns what it printed.
fn ask(program: &str, arguments: &[&str]) -> Result<String, Error> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Error::failed(format!("cannot run `{program}`")).because(error.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let failed = Error::failed(format!("`{program} {}` failed", arguments.join(" ")));
    let said = String::from_utf8_lossy(&output.stderr);
    Err(said
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .fold(failed, |failed, line| {
            failed.because(line.replace(char::is_control, " "))
        }))
}

/// Returns a path as text that can stand in a manager's file.
fn writable(path: &Path) -> Result<&str, Error> {
    path.to_str()
        .filter(|text| !text.contains(char::is_control))
        .ok_or_else(|| {
            Error::failed(format!(
                "`{}` cannot be written into a service's description",
                path.display()
            ))
            .because("it has bytes that are no printable text")
        })
}
