//! Beginning anew: the program takes its own place in the same process, with the sockets that it leaves to itself.
//!
//! The program's path is found out at the start: once its file has been replaced, the system tells the old one. A
//! symbolic link is kept as such, so that what it leads to by then is run.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Access, access};

use crate::heritage::Legacy;

/// This program, as it was started.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
}

impl Program {
    /// Finds out what runs.
    ///
    /// # Errors
    ///
    /// The system does not tell.
    pub fn of_this_process() -> io::Result<Self> {
        let mut arguments = env::args_os();
        let written = arguments.next().map(PathBuf::from).unwrap_or_default();
        let path = env::var_os("PATH").unwrap_or_default();
        Ok(Self {
            path: named(&written, env::split_paths(&path), &env::current_exe()?)?,
            arguments: arguments.collect(),
        })
    }

    /// Checks that there is a program to take the place of this one.
    ///
    /// # Errors
    ///
    /// There is no file, or none that can be executed.
    pub(crate) fn check(&self) -> io::Result<()> {
        if !fs::metadata(&self.path)?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"));
        }
        Ok(access(&self.path, Access::EXEC_OK)?)
    }

    /// Takes the place of this process. Returns only if that failed.
    pub fn begin_anew(&self, legacy: Legacy) -> io::Error {
        let mut program = Command::new(&self.path);
        program.args(&self.arguments);
        let error = match legacy.pass_on(&mut program) {
            Ok(_passed) => program.exec(),
            Err(error) => error,
        };
        legacy.end();
        error
    }

    /// Returns the file of the program.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Returns the name under which the program was started, if that leads to what runs; else the file that runs.
fn named(written: &Path, folders: impl Iterator<Item = PathBuf>, running: &Path) -> io::Result<PathBuf> {
    let leads = |name: &Path| fs::canonicalize(name).is_ok_and(|file| file == running);
    let name = if written.components().count() > 1 {
        Some(std::path::absolute(written)?).filter(|name| leads(name))
    } else {
        folders
            .map(|folder| folder.join(written))
            .find(|name| leads(name))
    };
    Ok(name.unwrap_or_else(|| running.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn what_cannot_be_executed_is_found_out_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tunneld");
        let program = Program {
            path: path.clone(),
            arguments: Vec::new(),
        };
        assert_eq!(program.check().unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(
            program.check().unwrap_err().kind(),
            io::ErrorKind::PermissionDenied
        );
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        program.check().unwrap();
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(program.check().is_err());
    }

    #[test]
    fn a_link_in_the_path_is_kept_and_what_leads_elsewhere_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let folder = fs::canonicalize(folder.path()).unwrap();
        let (program, bin) = (folder.join("1.0/tunneld"), folder.join("bin"));
        for folder in [&folder.join("1.0"), &bin, &folder.join("other")] {
            fs::create_dir(folder).unwrap();
        }
        for file in [&program, &folder.join("other/tunneld")] {
            fs::write(file, "").unwrap();
        }
        let link = bin.join("tunneld");
        symlink(&program, &link).unwrap();
        let find = |written: &Path| {
            named(written, [folder.join("other"), bin.clone()].into_iter(), &program).unwrap()
        };
        assert_eq!(find(Path::new("tunneld")), link);
        assert_eq!(find(&link), link);
        assert_eq!(find(&folder.join("other/tunneld")), program);
        assert_eq!(find(Path::new("-tunneld")), program);
    }
}
