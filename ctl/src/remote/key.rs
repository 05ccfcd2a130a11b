//! Key pairs for SSH, made by the system's ssh-keygen.

use std::fs::{self, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::error::Error;

/// Who may use the folders that keys lie in: their owner.
const OURS_ALONE: u32 = 0o700;

/// Where to get the programs of OpenSSH.
pub(crate) const PACKAGE: &str =
    "install the package openssh-client (Debian, Ubuntu) or openssh-clients (Fedora, RHEL, Amazon Linux)";

/// A key pair that is gone when it is dropped.
pub(crate) struct OneTimeKey {
    folder: TempDir,
}

impl OneTimeKey {
    /// Makes a key pair in a folder of its own inside this one.
    pub(crate) fn new(inside: &Path) -> Result<Self, Error> {
        let folder = tempfile::Builder::new()
            .prefix("ssh-")
            .permissions(Permissions::from_mode(OURS_ALONE))
            .tempdir_in(inside)
            .map_err(|error| unmade(inside, &error))?;
        let key = Self { folder };
        generate(&key.private())?;
        Ok(key)
    }

    /// Returns the file of the private key.
    pub(crate) fn private(&self) -> PathBuf {
        self.folder.path().join("id_ed25519")
    }
}

/// Returns the file of the public key that belongs to a private one.
pub(crate) fn public(private: &Path) -> PathBuf {
    let mut public = private.as_os_str().to_owned();
    public.push(".pub");
    public.into()
}

/// Returns the private key that printed configurations name; makes it if there is none.
pub(crate) fn lasting() -> Result<PathBuf, Error> {
    let folder = state_folder()
        .ok_or_else(|| Error::failed("there is no home folder to keep a key in").hint("set HOME"))?
        .join("ssh");
    let private = folder.join("id_ed25519");
    if private.exists() && public(&private).exists() {
        return Ok(private);
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(OURS_ALONE)
        .create(&folder)
        .map_err(|error| unmade(&folder, &error))?;
    // What is left of a pair is of no use, and ssh-keygen would ask whether it may be overwritten.
    for half in [private.clone(), public(&private)] {
        match fs::remove_file(&half) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(unmade(&half, &error)),
        }
    }
    generate(&private)?;
    Ok(private)
}

/// Whether EC2 Instance Connect can have it accept a key: it knows instances of EC2 alone, by their ids.
pub(crate) fn knows_pushed_keys(instance: &str) -> bool {
    instance.starts_with("i-")
}

/// The folder for what lasts, by the XDG base directory specification.
fn state_folder() -> Option<PathBuf> {
    let given = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    given
        .filter(|folder| folder.is_absolute())
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")))
        .map(|folder| folder.join("tunneld"))
}

/// Makes a key pair without a passphrase; ssh-keygen gives the private half the mode 0600.
fn generate(private: &Path) -> Result<(), Error> {
    let output = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "tunnelctl", "-f"])
        .arg(private)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| {
            let failed =
                Error::failed("cannot run `ssh-keygen`, which makes the key").because(error.to_string());
            if error.kind() == std::io::ErrorKind::NotFound {
                failed.hint(PACKAGE)
            } else {
                failed
            }
        })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::failed("`ssh-keygen` made no key").because(said.trim().replace(char::is_control, " ")))
}

fn unmade(path: &Path, error: &std::io::Error) -> Error {
    Error::failed(format!("cannot keep a key in `{}`", path.display())).because(error.to_string())
}
