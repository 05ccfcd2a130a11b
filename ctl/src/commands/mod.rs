//! One module for each thing that can be asked.

mod check;
pub(crate) mod completions;
mod down;
mod reload;
mod restart;
mod settle;
mod status;
mod up;
mod version;
mod watch;

use crate::cli::{Cli, Command};
use crate::client::Client;
use crate::error::{Error, Exit};
use crate::output::Output;

/// Does what the command line says.
pub(crate) async fn run(cli: &Cli, output: &Output) -> Result<Exit, Error> {
    let connect = Client::connect(cli.socket.as_deref(), output);
    match &cli.command {
        Command::Up(start) => up::run(start, &mut connect.await?, output).await,
        Command::Down { names } => down::run(names, &mut connect.await?, output).await,
        Command::Restart(start) => restart::run(start, &mut connect.await?, output).await,
        Command::Status { names } => status::run(names, &mut connect.await?, output).await,
        Command::Watch { names } => watch::run(names, &mut connect.await?, output).await,
        Command::Check { config } => check::run(config.as_deref(), connect.await, output).await,
        Command::Reload => reload::run(&mut connect.await?, output).await,
        Command::Version => version::run(connect.await, output),
        Command::Completions { shell } => completions::run(shell, output),
    }
}
