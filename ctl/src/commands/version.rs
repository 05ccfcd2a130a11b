//! `tunnelctl version`: which client, which daemon.

use crate::client::{Client, VERSION};
use crate::error::{Error, Exit};
use crate::json::{Versioned, Versions};
use crate::output::Output;
use crate::render::words::Clock;

/// Prints both versions; this program's own also without a daemon.
pub(super) fn run(client: Result<Client, Error>, output: &Output) -> Result<Exit, Error> {
    if output.json() {
        let versions = match &client {
            Ok(client) => Versions::with(client.daemon(), client.socket()),
            Err(_) => Versions::alone(),
        };
        output.answer_json(&Versioned::new(versions))?;
        return client.map(|_| Exit::Ok);
    }
    output.answer(&format!("tunnelctl {VERSION}"))?;
    let client = client?;
    output.answer(&format!(
        "tunneld {} ({})",
        client.daemon().version,
        client.words(&Clock::read())
    ))?;
    Ok(Exit::Ok)
}
