//! `tunnelctl up`: subscribes, then asks, then follows each tunnel until it is up, or idle as an on-demand one is.

use tunneld_proto::v1::UpRequest;

use crate::cli::Start;
use crate::client::Client;
use crate::commands::settle::Settling;
use crate::error::{Error, Exit};
use crate::output::Output;
use crate::select::Selection;

/// Brings tunnels up.
pub(super) async fn run(start: &Start, client: &mut Client, output: &Output) -> Result<Exit, Error> {
    let selection = Selection::of(&start.names.names)?;
    let settling = Settling::new(output);
    let mut changes = client.watch().await?;
    let names: Vec<_> = selection
        .pick(&changes.present)?
        .into_iter()
        .map(|tunnel| tunnel.name.clone())
        .collect();
    if names.is_empty() {
        output.talk("no tunnels are configured");
        return Ok(Exit::Ok);
    }
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
