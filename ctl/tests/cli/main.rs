//! The real `tunnelctl` against a daemon that plays a script: what is printed where, and which code comes back.

#![expect(
    clippy::unwrap_used,
    reason = "all of it is test code, the functions that tests share included"
)]

mod check;
mod completions;
mod connection;
mod daemon;
mod down;
mod events;
mod fake;
mod installed;
mod logs;
mod rdp;
mod reload;
mod restart_daemon;
mod running;
mod service;
mod ssh;
mod ssh_config;
mod status;
mod stdio;
mod up;
mod version;
mod watch;
