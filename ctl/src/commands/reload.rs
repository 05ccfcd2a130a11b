//! `tunnelctl reload`: has the daemon read its configuration file again.

use tunneld_proto::v1::{Problem, ReloadResponse};

use crate::client::Client;
use crate::error::{Error, Exit};
use crate::json::{self, Versioned};
use crate::output::Output;
use crate::render::words::count;

/// Reloads, and tells what changed, or every problem that prevented it.
pub(super) async fn run(client: &mut Client, output: &Output) -> Result<Exit, Error> {
    let response = client.reload().await?;
    if output.json() {
        output.answer_json(&Versioned::new(json::Reload::from(&response)))?;
    }
    if response.problems.is_empty() {
        if !output.json() {
            output.answer(&changes(&response))?;
        }
        return Ok(Exit::Ok);
    }
    for problem in &response.problems {
        output.talk(&describe(problem));
    }
    let number = response.problems.len() as u64;
    output.talk(&format!(
        "{}; the running configuration is unchanged",
        count(number, "problem")
    ));
    Ok(Exit::Failed)
}

fn changes(response: &ReloadResponse) -> String {
    let kinds = [
        ("added", &response.added),
        ("changed", &response.changed),
        ("removed", &response.removed),
    ];
    let told: Vec<_> = kinds
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(kind, names)| format!("{kind} {}", names.join(", ")))
        .collect();
    if told.is_empty() {
        return format!("{}: no tunnel changed", response.path);
    }
    format!("{}: {}", response.path, told.join("; "))
}

fn describe(problem: &Problem) -> String {
    let line = if problem.line == 0 {
        String::new()
    } else {
        format!(":{}", problem.line)
    };
    let hint = if problem.hint.is_empty() {
        String::new()
    } else {
        format!("\n  {}", problem.hint)
    };
    format!("{}{line}: {}{hint}", problem.path, problem.message)
}
