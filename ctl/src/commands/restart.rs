//! `tunnelctl restart`: down, then up, under one subscription.

use tunneld_proto::v1::UpRequest;
use tunneld_proto::v1::tunnel::State;

use crate::cli::Start;
use crate::client::Client;
use crate::commands::settle::Settling;
use crate::error::{Error, Exit};
use crate::output::Output;
use crate::select::Selection;

/// Takes tunnels down and brings them up again. Of all tunnels only those that are not down: a restart wants nothing
/// up that nobody wanted.
pub(super) async fn run(start: &Start, client: &mut Client, output: &Output) -> Result<Exit, Error> {
    let selection = Selection::of(&start.names.names)?;
    let mut changes = client.watch().await?;
    let names: Vec<_> = selection
        .pick(&changes.present)?
        .into_iter()
        .filter(|tunnel| !(start.names.all && matches!(tunnel.state, Some(State::Down(_)))))
        .map(|tunnel| tunnel.name.clone())
        .collect();
    if names.is_empty() {
        output.talk("every tunnel is down, and stays so");
        return Ok(Exit::Ok);
    }
    client.down(&names).await?;
    let settling = Settling::new(output);
    let request = UpRequest {
        names,
        connect: start.connect,
    };
    if start.no_wait {
        return settling.ask_only(request, client, &changes, start.timeout).await;
    }
    settling
        .bring_up(request, client, &mut changes, start.timeout)
        .await
}
