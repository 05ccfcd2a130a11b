//! Paths in the file: full ones, or such that begin at the user's home.

use std::path::{Path, PathBuf};

/// Why some text is no path.
#[derive(Debug, Clone, Copy)]
pub(super) enum Unusable {
    /// It begins at a home that there is not.
    Homeless,
    /// It is not the full path of a file.
    NotFull,
}

/// Reads the path of a file; `home` stands for a leading `~`.
pub(super) fn full(written: &str, home: Option<&Path>) -> Result<PathBuf, Unusable> {
    let path = match (written.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest),
        (Some(_), None) => return Err(Unusable::Homeless),
        (None, _) => PathBuf::from(written),
    };
    if !path.is_absolute() || written.ends_with('/') || written.contains(char::is_control) {
        return Err(Unusable::NotFull);
    }
    Ok(path)
}
