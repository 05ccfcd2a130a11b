//! `tunnelctl completions`, and the names that a shell completes.
//!
//! The printed script calls this program back with `COMPLETE` set, so that the completions fit the program and the
//! daemon as they are at that moment.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use clap_complete::CompletionCandidate;
use clap_complete::env::Shells;
use tokio::time::timeout;

use crate::client;
use crate::error::{Error, Exit};
use crate::output::Output;

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
    let Some(current) = current.to_str() else {
        return Vec::new();
    };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Vec::new();
    };
    let socket = typed_socket(std::env::args_os());
    let known = runtime.block_on(async { timeout(PATIENCE, client::names(socket.as_deref())).await });
    let known = known.ok().flatten().unwrap_or_default();
    known
        .into_iter()
        .filter(|(name, _)| name.starts_with(current))
        .map(|(name, state)| CompletionCandidate::new(name).help(Some(state.into())))
        .collect()
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
}
