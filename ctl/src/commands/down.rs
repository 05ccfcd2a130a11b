//! `tunnelctl down`: asks, and answers for each tunnel once its listener is closed and its link has ended.

use tunneld_proto::v1::tunnel::State;

use crate::cli::Names;
use crate::client::Client;
use crate::error::{Error, Exit};
use crate::json::{self, Versioned};
use crate::output::Output;
use crate::render::sentence;
use crate::select::Selection;

/// Takes tunnels down. One that is down already is left as it is.
pub(super) async fn run(names: &Names, client: &mut Client, output: &Output) -> Result<Exit, Error> {
    let selection = Selection::of(&names.names)?;
    let present = client.list().await?;
    let names: Vec<_> = selection
        .pick(&present)?
        .into_iter()
        .map(|tunnel| tunnel.name.clone())
        .collect();
    if names.is_empty() {
        output.talk("no tunnels are configured");
        return Ok(Exit::Ok);
    }
    let mut exit = Exit::Ok;
    for tunnel in client.down(&names).await? {
        if output.json() {
            output.answer_json(&Versioned::new(json::Tunnel::from(&tunnel)))?;
        } else {
            output.answer(&sentence(&tunnel))?;
        }
        if !matches!(tunnel.state, Some(State::Down(_))) {
            output.talk(&format!("{} was brought up meanwhile", tunnel.name));
            exit = exit.max(Exit::Failed);
        }
    }
    Ok(exit)
}
