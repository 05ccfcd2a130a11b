//! The daemon's program: the one installed with this one, or else the first in the PATH.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// The name of the daemon's program.
const NAME: &str = "tunneld";

/// Returns the daemon's program as it can be run now.
pub(crate) fn daemon() -> PathBuf {
    beside().unwrap_or_else(|| NAME.into())
}

/// Returns the daemon's program by a full path that is meant to last.
///
/// Some package managers install links, which every update points elsewhere: where the PATH has such a link to the
/// program, it is the link that lasts.
pub(crate) fn lasting_daemon() -> Result<PathBuf, Error> {
    let search = std::env::var_os("PATH").unwrap_or_default();
    lasting(beside().as_deref(), &search).ok_or_else(|| missing("cannot find `tunneld`"))
}

/// The error that the program is not there.
pub(crate) fn missing(failed: &str) -> Error {
    Error::failed(failed).hint("install `tunneld` beside `tunnelctl`, or in the PATH")
}

fn beside() -> Option<PathBuf> {
    std::env::current_exe()
        .map(|own| own.with_file_name(NAME))
        .ok()
        .filter(|beside| beside.is_file())
}

fn lasting(beside: Option<&Path>, search: &OsStr) -> Option<PathBuf> {
    let mut found = std::env::split_paths(search)
        .map(|folder| folder.join(NAME))
        .filter(|path| path.is_absolute() && path.is_file());
    let Some(beside) = beside else {
        return found.next();
    };
    let meant = beside.canonicalize().ok();
    let same = |path: &PathBuf| path.canonicalize().ok() == meant;
    Some(found.find(same).unwrap_or_else(|| beside.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_link_in_the_path_is_preferred_to_what_it_points_to() {
        let folder = tempfile::tempdir().unwrap();
        let [cellar, bin, other] = ["cellar", "bin", "other"].map(|name| folder.path().join(name));
        for folder in [&cellar, &bin, &other] {
            fs::create_dir(folder).unwrap();
        }
        fs::write(cellar.join(NAME), "").unwrap();
        fs::write(other.join(NAME), "").unwrap();
        symlink(cellar.join(NAME), bin.join(NAME)).unwrap();
        let beside = cellar.join(NAME);
        let search = std::env::join_paths([&other, &bin]).unwrap();
        assert_eq!(lasting(Some(&beside), &search), Some(bin.join(NAME)));
        assert_eq!(lasting(Some(&beside), other.as_os_str()), Some(beside));
        assert_eq!(lasting(None, &search), Some(other.join(NAME)));
        assert_eq!(lasting(None, cellar.parent().unwrap().as_os_str()), None);
        assert_eq!(lasting(None, OsStr::new("")), None);
    }
}
