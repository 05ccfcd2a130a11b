//! `tunnelctl status`: how tunnels are at this moment.

use crate::client::Client;
use crate::error::{Error, Exit};
use crate::json::{self, Versioned};
use crate::output::Output;
use crate::render::words::Clock;
use crate::render::{detail, table};
use crate::select::Selection;

/// Shows the named tunnels, or all: a table; the details where one is meant by its name.
pub(super) async fn run(names: &[String], client: &mut Client, output: &Output) -> Result<Exit, Error> {
    let selection = Selection::of(names)?;
    let present = client.list().await?;
    let picked = selection.pick(&present)?;
    if output.json() {
        let tunnels = picked.into_iter().map(json::Tunnel::from).collect();
        output.answer_json(&Versioned::new(json::Tunnels { tunnels }))?;
        return Ok(Exit::Ok);
    }
    let clock = Clock::read();
    match picked.as_slice() {
        [] => output.talk(&format!(
            "no tunnels are configured in {}",
            client.daemon().config_path
        )),
        [tunnel] if selection.is_one_name() => output.answer(&detail(tunnel, &clock))?,
        tunnels => output.answer(&table(tunnels, &clock, output.colour()))?,
    }
    Ok(Exit::Ok)
}
