//! The user's folders, by the XDG base directory specification.

use std::path::PathBuf;

/// Returns the folder that holds programs' configuration; `None` without a home.
pub(crate) fn configuration() -> Option<PathBuf> {
    given("XDG_CONFIG_HOME", ".config")
}

/// Returns our folder for what lasts; `None` without a home.
pub(crate) fn state() -> Option<PathBuf> {
    Some(given("XDG_STATE_HOME", ".local/state")?.join("tunneld"))
}

/// Returns the user's home.
pub(crate) fn home() -> Option<PathBuf> {
    absolute("HOME")
}

fn given(variable: &str, in_home: &str) -> Option<PathBuf> {
    absolute(variable).or_else(|| Some(home()?.join(in_home)))
}

/// The specification has relative paths ignored.
fn absolute(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable)
        .map(PathBuf::from)
        .filter(|folder| folder.is_absolute())
}
