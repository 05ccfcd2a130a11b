//! Files that a service manager reads: written whole, and known again as written here.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::error::Error;

/// What tells a file that was written here from one that a package or a person put there.
pub(super) const MARK: &str =
    "Written by `tunnelctl service install`, removed by `tunnelctl service uninstall`.";

/// Who may do what with a unit: everybody may read it, as with a package's.
const MODE: u32 = 0o644;

/// What became of a file that was to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// There was none.
    New,
    /// It was there with that very content.
    Same,
    /// It had other content.
    Replaced,
}

/// Who has written a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// There is none.
    Nobodys,
    /// It was written here.
    Ours,
    /// It was not.
    Anothers,
}

/// Writes a file, at once or not at all, and the folders that it lies in.
pub(super) fn write(path: &Path, text: &str) -> Result<Written, Error> {
    let outcome = match fs::read(path) {
        Ok(present) if present == text.as_bytes() => return Ok(Written::Same),
        Ok(_) => Written::Replaced,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Written::New,
        Err(error) => return Err(failed("read", path, &error)),
    };
    replace(path, text).map_err(|error| failed("write", path, &error))?;
    Ok(outcome)
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let folder = path
        .parent()
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    fs::create_dir_all(folder)?;
    let mut draft = tempfile::NamedTempFile::new_in(folder)?;
    draft.write_all(text.as_bytes())?;
    draft.as_file().set_permissions(Permissions::from_mode(MODE))?;
    draft.as_file().sync_all()?;
    draft.persist(path)?;
    Ok(())
}

/// Returns who has written a file.
pub(super) fn whose(path: &Path) -> Result<Whose, Error> {
    match fs::read(path) {
        Ok(present) if String::from_utf8_lossy(&present).contains(MARK) => Ok(Whose::Ours),
        Ok(_) => Ok(Whose::Anothers),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Whose::Nobodys),
        Err(error) => Err(failed("read", path, &error)),
    }
}

/// Removes a file.
pub(super) fn remove(path: &Path) -> Result<(), Error> {
    fs::remove_file(path).map_err(|error| failed("remove", path, &error))
}

fn failed(doing: &str, path: &Path, error: &io::Error) -> Error {
    Error::failed(format!("cannot {doing} `{}`", path.display())).because(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_with_its_folders_and_told_apart_from_one_that_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("systemd/user/tunneld.service");
        assert_eq!(write(&path, "one").unwrap(), Written::New);
        assert_eq!(write(&path, "one").unwrap(), Written::Same);
        assert_eq!(write(&path, "two").unwrap(), Written::Replaced);
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_was_written_here_is_known_by_its_mark() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tunneld.service");
        assert_eq!(whose(&path).unwrap(), Whose::Nobodys);
        write(&path, "[Unit]\n").unwrap();
        assert_eq!(whose(&path).unwrap(), Whose::Anothers);
        write(&path, &format!("# {MARK}\n[Unit]\n")).unwrap();
        assert_eq!(whose(&path).unwrap(), Whose::Ours);
        remove(&path).unwrap();
        assert_eq!(whose(&path).unwrap(), Whose::Nobodys);
    }
}
