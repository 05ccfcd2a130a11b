//! Files that a service manager reads: written whole, and known again as written here.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::error::{Error, Exit};

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

/// Refuses to write a file that was not written here: it may be all that a person has of it.
pub(super) fn refuse_anothers(path: &Path) -> Result<(), Error> {
    match whose(path)? {
        Whose::Nobodys | Whose::Ours => Ok(()),
        Whose::Anothers => {
            let path = path.display();
            Err(
                Error::new(Exit::MustAct, format!("`{path}` was not written by tunnelctl"))
                    .because("only what it has written does it replace")
                    .hint(format!("mv '{path}' '{path}.old'"))
                    .hint("tunnelctl service install"),
            )
        }
    }
}

/// Writes a file of ours, at once or not at all, and the folders that it lies in.
pub(super) fn write(path: &Path, text: &str) -> Result<Written, Error> {
    refuse_anothers(path)?;
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

/// Returns who has written a file. Links are written by others, whatever they lead to.
pub(super) fn whose(path: &Path) -> Result<Whose, Error> {
    if path.is_symlink() {
        return Ok(Whose::Anothers);
    }
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
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_file_is_written_with_its_folders_and_told_apart_from_one_that_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("systemd/user/tunneld.service");
        let [one, two] = ["one", "two"].map(|name| format!("# {MARK}\n[{name}]\n"));
        assert_eq!(write(&path, &one).unwrap(), Written::New);
        assert_eq!(write(&path, &one).unwrap(), Written::Same);
        assert_eq!(write(&path, &two).unwrap(), Written::Replaced);
        assert_eq!(fs::read_to_string(&path).unwrap(), two);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_was_written_here_is_known_by_its_mark() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tunneld.service");
        assert_eq!(whose(&path).unwrap(), Whose::Nobodys);
        write(&path, &format!("# {MARK}\n[Unit]\n")).unwrap();
        assert_eq!(whose(&path).unwrap(), Whose::Ours);
        remove(&path).unwrap();
        assert_eq!(whose(&path).unwrap(), Whose::Nobodys);
    }

    #[test]
    fn anothers_file_is_kept_and_so_is_a_link_wherever_it_leads() {
        let folder = tempfile::tempdir().unwrap();
        let ours = format!("# {MARK}\n[Unit]\n");
        let [foreign, marked, link, broken] =
            ["foreign", "marked", "link", "broken"].map(|name| folder.path().join(name));
        fs::write(&foreign, "[Unit]\n").unwrap();
        fs::write(&marked, &ours).unwrap();
        symlink(&marked, &link).unwrap();
        symlink(folder.path().join("nothing"), &broken).unwrap();
        for path in [&foreign, &link, &broken] {
            assert_eq!(whose(path).unwrap(), Whose::Anothers);
            assert_eq!(write(path, &ours).unwrap_err().exit(), Exit::MustAct);
        }
        assert_eq!(fs::read_to_string(&foreign).unwrap(), "[Unit]\n");
        assert!(link.is_symlink() && broken.is_symlink());
    }
}
