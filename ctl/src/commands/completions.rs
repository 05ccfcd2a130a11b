//! `tunnelctl completions`, and the names that a shell completes.
//!
//! The printed script calls this program back with `COMPLETE` set, so that the completions fit the program and the
//! daemon as they are at that moment.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use clap_complete::CompletionCandidate;
use clap_complete::env::Shells;
use tokio::time::timeout;
use tunneld_proto::v1::Tunnel;

use crate::error::{Error, Exit};
use crate::output::Output;
use crate::{client, tunnel};

/// How long a person who pressed Tab is kept waiting for a daemon that does not answer.
const PATIENCE: Duration = Duration::from_millis(300);

/// Returns the shells that a script can be printed for.
pub(crate) fn shells() -> Vec<&'static str> {
    Shells::builtins().names().collect()
}

/// Prints the script to be sourced by `shell`.
pub(super) fn run(shell: &str, output: &Output) -> Result<Exit, Error> {
    let shells = Shells::builtins();
    let shell = shells
        .completer(shell)
        .ok_or_else(|| Error::new(Exit::Usage, format!("unknown shell `{shell}`")))?;
    let failed = |error: std::io::Error| Error::failed("cannot write the script").because(error.to_string());
    // Called by its bare name, the program is found in the PATH later too, also after an update.
    let own = PathBuf::from(std::env::args_os().next().unwrap_or_else(|| "tunnelctl".into()));
    let own = if own.components().count() > 1 {
        std::path::absolute(own).map_err(failed)?
    } else {
        own
    };
    let mut script = Vec::new();
    shell
        .write_registration(
            "COMPLETE",
            "tunnelctl",
            "tunnelctl",
            &own.to_string_lossy(),
            &mut script,
        )
        .map_err(failed)?;
    output.answer(String::from_utf8_lossy(&script).trim_end())?;
    Ok(Exit::Ok)
}

/// Returns the tunnels whose names begin with `current`; silently none without a daemon.
pub(crate) fn names(current: &OsStr) -> Vec<CompletionCandidate> {
    let candidate = |tunnel: Tunnel| {
        let state = tunnel::state_name(&tunnel);
        CompletionCandidate::new(tunnel.name).help(Some(state.into()))
    };
    beginning_with(current, tunnels().into_iter().map(candidate))
}

/// Returns the instances that tunnels go to or through, and whose names begin with `current`: AWS, which knows them all,
/// would not answer as fast as a person types.
pub(crate) fn instances(current: &OsStr) -> Vec<CompletionCandidate> {
    let tunnels = tunnels();
    let mentioned: BTreeSet<&str> = tunnels.iter().flat_map(instances_of).collect();
    beginning_with(current, mentioned.into_iter().map(CompletionCandidate::new))
}

/// Returns the instances that a tunnel's target and route name.
fn instances_of(tunnel: &Tunnel) -> impl Iterator<Item = &str> {
    let target = tunnel.target.strip_prefix("ec2:");
    let target = target.and_then(|rest| Some(rest.rsplit_once(':')?.0));
    let via = tunnel.route.rsplit_once("ssm via ").map(|(_, instance)| instance);
    let host = tunnel.route.strip_prefix("ssh ").and_then(|rest| {
        let (destination, _) = rest.split_once(" over ")?;
        Some(destination.split_once('@')?.1)
    });
    let instances = target.into_iter().chain(via).chain(host);
    instances.filter(|instance| !instance.starts_with("ecs:"))
}

fn beginning_with(
    current: &OsStr,
    candidates: impl Iterator<Item = CompletionCandidate>,
) -> Vec<CompletionCandidate> {
    let Some(current) = current.to_str() else {
        return Vec::new();
    };
    let begins =
        |candidate: &CompletionCandidate| candidate.get_value().to_string_lossy().starts_with(current);
    candidates.filter(begins).collect()
}

fn tunnels() -> Vec<Tunnel> {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Vec::new();
    };
    let socket = typed_socket(std::env::args_os());
    let known = runtime.block_on(async { timeout(PATIENCE, client::tunnels(socket.as_deref())).await });
    known.ok().flatten().unwrap_or_default()
}

/// Finds `--socket` in a command line that is still being typed, which no parser would accept.
fn typed_socket(words: impl IntoIterator<Item = std::ffi::OsString>) -> Option<PathBuf> {
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        if word == "--socket" {
            return words.next().map(PathBuf::from);
        }
        if let Some(path) = word.to_str().and_then(|word| word.strip_prefix("--socket=")) {
            return Some(path.into());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_on_an_unfinished_command_line_is_found_in_both_spellings() {
        let typed = |line: &str| typed_socket(line.split(' ').map(Into::into));
        assert_eq!(typed("tunnelctl --socket /a up"), Some("/a".into()));
        assert_eq!(typed("tunnelctl up --socket=/b x"), Some("/b".into()));
        assert_eq!(typed("tunnelctl up x"), None);
    }

    #[test]
    fn instances_are_those_that_targets_and_routes_name() {
        let named = |target: &str, route: &str| {
            let tunnel = Tunnel {
                target: target.to_owned(),
                route: route.to_owned(),
                ..Tunnel::default()
            };
            instances_of(&tunnel).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(named("ec2:tag:Role=web:22", "ssm"), ["tag:Role=web"]);
        assert_eq!(named("rds:db", "ssm via bastion"), ["bastion"]);
        assert_eq!(named("rds:db", "ssh ec2-user@hop over eice"), ["hop"]);
        assert_eq!(named("10.1.2.3:5432", "direct"), Vec::<String>::new());
        assert_eq!(named("rds:db", "ssm via ecs:prod/web"), Vec::<String>::new());
    }
}
