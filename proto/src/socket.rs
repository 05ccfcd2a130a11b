//! Where the control socket is: the one rule that the daemon and its clients share.
//!
//! ```text
//!   --socket PATH
//!   $TUNNELD_SOCKET
//!   $XDG_RUNTIME_DIR/tunneld/tunneld.sock
//!   /run/user/UID/tunneld/tunneld.sock       if /run/user/UID exists and is ours
//!   /tmp/tunneld-UID/tunneld.sock            if nobody else made that folder
//! ```
//!
//! The first that applies wins. Anybody may write to `/tmp`, so a folder there is refused, by client and daemon
//! alike, unless it is ours alone: else a neighbour's program could answer in the daemon's name.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The longest path that a Unix socket can be bound to: `sun_path` has 108 bytes on Linux and 104 on macOS, the last
/// of them a zero.
pub const LONGEST_PATH: usize = if cfg!(target_os = "macos") { 103 } else { 107 };

/// The environment variable that names the socket.
pub const VARIABLE: &str = "TUNNELD_SOCKET";

/// Why there is no usable path for the control socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketPathError {
    /// The operating system cannot bind or connect to a path this long.
    #[error(
        "the socket path `{}` is {} bytes long and the system allows {LONGEST_PATH}",
        .0.display(),
        .0.as_os_str().len()
    )]
    TooLong(PathBuf),
    /// The folder is a symbolic link or a file.
    #[error("`{}` is not a folder", .0.display())]
    NotFolder(PathBuf),
    /// The folder belongs to another user.
    #[error("the folder `{}` belongs to the user with id {owner}, not to you", .folder.display())]
    NotOurs {
        /// The folder that holds the socket.
        folder: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// Other users may enter the folder.
    #[error("the folder `{}` is open to other users (mode {mode:04o})", .folder.display())]
    Open {
        /// The folder that holds the socket.
        folder: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The folder cannot be looked at.
    #[error("cannot examine the folder `{}`", .folder.display())]
    Unreadable {
        /// The folder that holds the socket.
        folder: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl SocketPathError {
    /// Returns what a person can do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::TooLong(_) => {
                format!("give a shorter path with `--socket`, or in {VARIABLE} for daemon and client alike")
            }
            Self::Open { folder, .. } => format!("chmod 700 {}", folder.display()),
            Self::NotFolder(_) | Self::NotOurs { .. } | Self::Unreadable { .. } => {
                format!("choose another path with `--socket`, or in {VARIABLE} for daemon and client alike")
            }
        }
    }
}

/// Returns the path of the control socket; `explicit` is what the command line said.
///
/// Creates nothing. The folder may not exist yet; whoever creates it makes it 0700.
pub fn default_path(explicit: Option<&Path>) -> Result<PathBuf, SocketPathError> {
    let surroundings = Surroundings {
        socket: std::env::var_os(VARIABLE),
        runtime_folder: std::env::var_os("XDG_RUNTIME_DIR"),
        uid: rustix::process::getuid().as_raw(),
        users_runtime: Path::new("/run/user"),
        temporary: Path::new("/tmp"),
    };
    surroundings.path(explicit)
}

/// Checks that `folder` is a real folder, ours, and closed to everybody else.
///
/// For the folder that holds the socket, after creating it and before using it.
pub fn check_folder(folder: &Path) -> Result<(), SocketPathError> {
    check_folder_of(folder, rustix::process::getuid().as_raw())
}

fn check_folder_of(folder: &Path, uid: u32) -> Result<(), SocketPathError> {
    let metadata = fs::symlink_metadata(folder).map_err(|source| SocketPathError::Unreadable {
        folder: folder.to_owned(),
        source,
    })?;
    if !metadata.is_dir() {
        return Err(SocketPathError::NotFolder(folder.to_owned()));
    }
    if metadata.uid() != uid {
        return Err(SocketPathError::NotOurs {
            folder: folder.to_owned(),
            owner: metadata.uid(),
        });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(SocketPathError::Open {
            folder: folder.to_owned(),
            mode,
        });
    }
    Ok(())
}

/// All that the rule depends on.
struct Surroundings<'a> {
    socket: Option<OsString>,
    runtime_folder: Option<OsString>,
    uid: u32,
    /// Holds a folder per logged-in user.
    users_runtime: &'a Path,
    /// Writable for everybody.
    temporary: &'a Path,
}

impl Surroundings<'_> {
    fn path(&self, explicit: Option<&Path>) -> Result<PathBuf, SocketPathError> {
        let path = self.candidate(explicit)?;
        if path.as_os_str().as_bytes().len() > LONGEST_PATH {
            return Err(SocketPathError::TooLong(path));
        }
        Ok(path)
    }

    fn candidate(&self, explicit: Option<&Path>) -> Result<PathBuf, SocketPathError> {
        if let Some(path) = explicit {
            return Ok(path.to_owned());
        }
        if let Some(path) = self.socket.as_ref().filter(|path| !path.is_empty()) {
            return Ok(path.into());
        }
        // The XDG specification has relative paths ignored.
        if let Some(folder) = self
            .runtime_folder
            .as_ref()
            .map(Path::new)
            .filter(|folder| folder.is_absolute())
        {
            return Ok(folder.join("tunneld/tunneld.sock"));
        }
        let runtime = self.users_runtime.join(self.uid.to_string());
        if fs::symlink_metadata(&runtime).is_ok_and(|found| found.is_dir() && found.uid() == self.uid) {
            return Ok(runtime.join("tunneld/tunneld.sock"));
        }
        let folder = self.temporary.join(format!("tunneld-{}", self.uid));
        match check_folder_of(&folder, self.uid) {
            Err(SocketPathError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            checked => checked?,
        }
        Ok(folder.join("tunneld.sock"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// A `/run/user` and a `/tmp` of the test's own.
    struct Root(tempfile::TempDir);

    impl Root {
        fn new() -> Self {
            let root = tempfile::Builder::new().prefix("s").tempdir().unwrap();
            fs::create_dir(root.path().join("run")).unwrap();
            fs::create_dir(root.path().join("tmp")).unwrap();
            Self(root)
        }

        fn run(&self) -> PathBuf {
            self.0.path().join("run")
        }

        fn tmp(&self) -> PathBuf {
            self.0.path().join("tmp")
        }

        fn path(
            &self,
            explicit: Option<&str>,
            socket: Option<&str>,
            runtime: Option<&str>,
        ) -> Result<PathBuf, SocketPathError> {
            let (run, tmp) = (self.run(), self.tmp());
            let surroundings = Surroundings {
                socket: socket.map(OsString::from),
                runtime_folder: runtime.map(OsString::from),
                uid: uid(),
                users_runtime: &run,
                temporary: &tmp,
            };
            surroundings.path(explicit.map(Path::new))
        }

        fn fallback(&self) -> PathBuf {
            self.tmp().join(format!("tunneld-{}", uid()))
        }
    }

    fn uid() -> u32 {
        rustix::process::getuid().as_raw()
    }

    fn make_folder(path: &Path, mode: u32) {
        fs::create_dir(path).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn each_source_yields_to_the_one_before_it() {
        let root = Root::new();
        let explicit = root.path(Some("/a.sock"), Some("/b.sock"), Some("/c")).unwrap();
        assert_eq!(explicit, Path::new("/a.sock"));
        assert_eq!(
            root.path(None, Some("/b.sock"), Some("/c")).unwrap(),
            Path::new("/b.sock")
        );
        assert_eq!(
            root.path(None, None, Some("/c")).unwrap(),
            Path::new("/c/tunneld/tunneld.sock")
        );
        assert_eq!(
            root.path(None, None, None).unwrap(),
            root.fallback().join("tunneld.sock")
        );

        let runtime = root.run().join(uid().to_string());
        make_folder(&runtime, 0o700);
        assert_eq!(
            root.path(None, None, None).unwrap(),
            runtime.join("tunneld/tunneld.sock")
        );
    }

    #[test]
    fn empty_and_relative_variables_are_ignored() {
        let root = Root::new();
        assert_eq!(
            root.path(None, Some(""), Some("run")).unwrap(),
            root.fallback().join("tunneld.sock")
        );
    }

    #[test]
    fn a_symlink_in_place_of_the_users_runtime_folder_is_passed_over() {
        let root = Root::new();
        symlink(root.tmp(), root.run().join(uid().to_string())).unwrap();
        assert_eq!(
            root.path(None, None, None).unwrap(),
            root.fallback().join("tunneld.sock")
        );
    }

    #[test]
    fn a_private_folder_of_ours_in_the_temporary_folder_is_used() {
        let root = Root::new();
        make_folder(&root.fallback(), 0o700);
        assert_eq!(
            root.path(None, None, None).unwrap(),
            root.fallback().join("tunneld.sock")
        );
    }

    #[test]
    fn a_symlink_in_the_temporary_folder_is_refused() {
        let root = Root::new();
        make_folder(&root.tmp().join("elsewhere"), 0o700);
        symlink(root.tmp().join("elsewhere"), root.fallback()).unwrap();
        assert!(matches!(
            root.path(None, None, None),
            Err(SocketPathError::NotFolder(_))
        ));
    }

    #[test]
    fn a_folder_that_others_may_enter_is_refused_with_the_command_that_closes_it() {
        let root = Root::new();
        make_folder(&root.fallback(), 0o755);
        let error = root.path(None, None, None).unwrap_err();
        assert!(
            error.to_string().ends_with("is open to other users (mode 0755)"),
            "{error}"
        );
        assert_eq!(error.hint(), format!("chmod 700 {}", root.fallback().display()));
    }

    #[test]
    fn a_folder_of_another_user_is_refused() {
        let root = Root::new();
        let folder = root.tmp().join("theirs");
        make_folder(&folder, 0o700);
        let stranger = uid() + 1;
        let error = check_folder_of(&folder, stranger).unwrap_err();
        assert!(
            matches!(error, SocketPathError::NotOurs { owner, .. } if owner == uid()),
            "{error}"
        );
    }

    #[test]
    fn the_longest_path_is_taken_and_one_byte_more_is_refused_with_both_lengths() {
        let root = Root::new();
        let longest = format!("/{}", "x".repeat(LONGEST_PATH - 1));
        assert_eq!(
            root.path(Some(&longest), None, None).unwrap(),
            Path::new(&longest)
        );

        let error = root.path(Some(&format!("{longest}y")), None, None).unwrap_err();
        let (length, text) = (LONGEST_PATH + 1, error.to_string());
        assert!(
            text.ends_with(&format!(
                "is {length} bytes long and the system allows {LONGEST_PATH}"
            )),
            "{text}"
        );
        assert!(error.hint().contains("shorter path"));
    }
}
