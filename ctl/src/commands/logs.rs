//! `tunnelctl logs`: the latest lines of the daemon's log, and those that come.

use tunneld_proto::v1::{LogsRequest, LogsResponse};

use super::leaving::until_left;
use crate::cli::Logs;
use crate::client::{Client, stopped};
use crate::error::{Error, Exit};
use crate::json::{LogLine, Missed, Versioned};
use crate::output::Output;
use crate::render::log_line;
use crate::render::words::{Clock, count};
use crate::select::Selection;

/// Prints the lines about the named tunnels, or all. Ends after the latest, unless told to follow.
pub(super) async fn run(told: &Logs, client: &mut Client, output: &Output) -> Result<Exit, Error> {
    let selection = Selection::of(&told.names)?;
    until_left(output, print(told, &selection, client, output)).await
}

async fn print(
    told: &Logs,
    selection: &Selection,
    client: &mut Client,
    output: &Output,
) -> Result<Exit, Error> {
    let names = if told.names.is_empty() {
        Vec::new()
    } else {
        let present = client.list().await?;
        let picked = selection.pick(&present)?;
        picked.into_iter().map(|tunnel| tunnel.name.clone()).collect()
    };
    let request = LogsRequest {
        names,
        follow: told.follow,
        lines: Some(told.lines),
    };
    let mut lines = client.logs(request).await?;
    while let Some(response) = lines.next().await? {
        show(&response, output)?;
    }
    if told.follow {
        return Err(stopped());
    }
    Ok(Exit::Ok)
}

fn show(response: &LogsResponse, output: &Output) -> Result<(), Error> {
    if output.json() {
        if response.missed > 0 {
            let missed = response.missed;
            output.answer_json(&Versioned::new(Missed { missed }))?;
        }
        return response
            .lines
            .iter()
            .try_for_each(|line| output.answer_json(&Versioned::new(LogLine::from(line))));
    }
    if response.missed > 0 {
        let missed = count(response.missed, "line");
        output.talk(&format!("{missed} missed: they came faster than they were read"));
    }
    // The date can change while lines are followed.
    let clock = Clock::read();
    response
        .lines
        .iter()
        .try_for_each(|line| output.answer(&log_line(line, &clock, output.colour())))
}
