//! The commands about the daemon itself: its service, and starting and stopping it.

use std::ffi::OsString;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::timeout;

/// What is to become of the service.
#[derive(Debug, Subcommand)]
pub(crate) enum Service {
    /// Have the daemon start at login from now on, and start it
    ///
    /// Writes units for systemd's user manager, or an agent for launchd on macOS, that start the `tunneld` beside this
    /// program. Doing so again brings them up to date. A daemon that was started by hand is left alone, and named.
    #[command(after_help = "Example:\n  tunnelctl service install")]
    Install(Install),

    /// Stop the daemon, and start it at login no more
    ///
    /// Removes what `install` wrote, and nothing else: the configuration and what the daemon remembers stay.
    #[command(after_help = "Example:\n  tunnelctl service uninstall")]
    Uninstall,

    /// Show whether the daemon is a service, and runs
    ///
    /// Starts nothing. The exit code is 0 if it runs, 3 if it does not, and 1 if it is no service.
    #[command(after_help = "Example:\n  tunnelctl service status --json")]
    Status,
}

/// What `service install` is told.
#[derive(Debug, Args)]
pub(crate) struct Install {
    /// Have root be the user whose tunnels these are
    #[arg(long)]
    pub(crate) allow_root: bool,
}

/// What is to become of the daemon.
#[derive(Debug, Subcommand)]
pub(crate) enum Daemon {
    /// Start the daemon, which goes on when the terminal is closed
    ///
    /// Where it is installed as a service, that is started. Else the `tunneld` beside this program runs in the
    /// background, with the arguments after --, and logs into a file that is named.
    #[command(after_help = "Examples:\n  tunnelctl daemon start\n  tunnelctl daemon start -- --log debug")]
    Start {
        /// Arguments of `tunneld`
        #[arg(value_name = "ARGUMENT", last = true)]
        arguments: Vec<OsString>,
    },

    /// Stop the daemon, and with it every tunnel
    ///
    /// Open connections have a few seconds to end. Where it is a service, it starts again at the next login.
    #[command(after_help = "Example:\n  tunnelctl daemon stop")]
    Stop,
}

/// What `restart-daemon` is told.
#[derive(Debug, Args)]
pub(crate) struct RestartDaemon {
    /// Give up waiting for the new daemon and the tunnels after this long, with exit code 5
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = timeout)]
    pub(crate) timeout: Duration,
}
