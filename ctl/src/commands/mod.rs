//! One module for each thing that can be asked.

mod check;
pub(crate) mod completions;
mod daemon;
mod down;
mod events;
mod leaving;
mod logs;
mod rdp;
mod reload;
mod restart;
mod restart_daemon;
mod service;
mod settle;
mod ssh;
mod ssh_config;
mod status;
mod stdio;
mod up;
mod version;
mod watch;

use std::process::ExitCode;

use crate::cli::{Cli, Command};
use crate::client::Client;
use crate::error::Error;
use crate::output::Output;

/// Does what the command line says.
pub(crate) async fn run(cli: &Cli, output: &Output) -> Result<ExitCode, Error> {
    let connect = Client::connect(cli.socket.as_deref(), output);
    let exit = match &cli.command {
        Command::Ssh(told) => return ssh::run(told, &mut connect.await?, output).await,
        Command::Rdp(told) => return rdp::run(told, &mut connect.await?, output).await,
        Command::Stdio(told) => stdio::run(told, Client::quietly(cli.socket.as_deref()).await).await,
        Command::SshConfig(told) => {
            let socket = cli.socket.as_deref();
            ssh_config::run(told, socket, connect, output).await
        }
        Command::Up(start) => up::run(start, &mut connect.await?, output).await,
        Command::Down { names } => down::run(names, &mut connect.await?, output).await,
        Command::Restart(start) => restart::run(start, &mut connect.await?, output).await,
        Command::Status { names } => status::run(names, &mut connect.await?, output).await,
        Command::Watch { names } => watch::run(names, &mut connect.await?, output).await,
        Command::Logs(told) => logs::run(told, &mut connect.await?, output).await,
        Command::Events(told) => events::run(told, &mut connect.await?, output).await,
        Command::Check { config } => check::run(config.as_deref(), connect.await, output).await,
        Command::Reload => reload::run(&mut connect.await?, output).await,
        Command::RestartDaemon(told) => restart_daemon::run(told, cli.socket.as_deref(), output).await,
        Command::Daemon(asked) => daemon::run(asked, cli.socket.as_deref(), output).await,
        Command::Service(asked) => service::run(asked, cli.socket.as_deref(), output).await,
        Command::Version => version::run(connect.await, output),
        Command::Completions { shell } => completions::run(shell, output),
    };
    exit.map(ExitCode::from)
}
