//! `tunnelctl check`: has the `tunneld` beside this program check a configuration file.
//!
//! The client has no parser of its own: there is one grammar and one parser, and it is the daemon's.

use std::path::Path;

use tokio::process::Command;

use crate::client::Client;
use crate::error::{Error, Exit};
use crate::output::Output;
use crate::program;

/// Checks `config`; without one, the file that the running daemon uses, or else would use.
pub(super) async fn run(
    config: Option<&Path>,
    client: Result<Client, Error>,
    output: &Output,
) -> Result<Exit, Error> {
    let mut command = Command::new(program::daemon());
    command.arg("check");
    if let Some(config) = config {
        command.arg("--config").arg(config);
    } else {
        match client {
            Ok(client) if !client.daemon().config_path.is_empty() => {
                command.arg("--config").arg(&client.daemon().config_path);
            }
            Ok(_) => {}
            // Without a daemon the usual place is checked; any other trouble with it hides which file it uses.
            Err(error) if error.exit() == Exit::NoDaemon => {}
            Err(error) => return Err(error),
        }
    }
    if output.json() {
        command.arg("--json");
    }
    let status = command
        .status()
        .await
        .map_err(|error| program::missing("cannot run `tunneld check`").because(error.to_string()))?;
    Ok(match status.code() {
        Some(0) => Exit::Ok,
        Some(2) => Exit::Usage,
        Some(_) | None => Exit::Failed,
    })
}
