//! The control socket: where it is bound, who may connect, and that there is one daemon only.
//!
//! ```text
//!   folder    0700, ours, no symbolic link
//!   ├─ tunneld.sock        0600; replaced if nobody answers on it; removed at the end
//!   └─ tunneld.sock.lock   locked, with the daemon's pid in it, for as long as the daemon lives; never removed,
//!                          else two daemons could hold a lock on two files of the same name
//! ```
//!
//! A socket that was there before the daemon is taken instead of bound: a service manager's, whose file is its own
//! affair, or the one that this program left when it began anew.
//!
//! Each connection's user is asked of the system and must be ours: file modes alone do not bind a process that was
//! handed a descriptor.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags, flock};
use tokio::net::{UnixListener, UnixStream};
use tracing::warn;
use tunneld_proto::socket::{LONGEST_PATH, SocketPathError, check_folder};

use crate::heritage::{Address, Claim, Heritage, Left};
use crate::socket_file::{self, Audience, SocketFile};

/// What a socket is called, when it is left to the next daemon, whose file goes with that one.
const WITH_ITS_FILE: &str = "tunneld.control";

/// How long nothing is accepted after accepting failed: the cause, a want of file descriptors, passes by itself.
const PAUSE: Duration = Duration::from_millis(100);

/// The bound control socket. Dropping it removes the socket and lets the next daemon start.
#[derive(Debug)]
pub struct ControlSocket {
    // Dropped in this order: the lock last.
    listener: UnixListener,
    /// `None`: it belongs to whoever bound it.
    file: Option<SocketFile>,
    claim: Claim,
    _lock: File,
    uid: u32,
}

/// Why the control socket could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another daemon serves it.
    #[error("a daemon runs already on `{}`{}", .path.display(), .pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    Running {
        /// The socket.
        path: PathBuf,
        /// The other daemon, where it can be known.
        pid: Option<i32>,
    },
    /// An abstract socket has neither owner nor mode: any user could connect, or bind it first.
    #[error("`{}` would be an abstract socket, which anybody could bind first", .0.display())]
    Abstract(PathBuf),
    /// The path or its folder cannot be used.
    #[error(transparent)]
    Path(#[from] SocketPathError),
    /// A step failed.
    #[error("cannot {doing} `{}`", .path.display())]
    Io {
        /// The step.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl BindError {
    /// Returns what a person can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Running { pid, .. } => pid.map(|pid| format!("kill {pid}")),
            Self::Abstract(_) => Some("choose a path with `--socket`".to_owned()),
            Self::Path(error) => Some(error.hint()),
            Self::Io { .. } => None,
        }
    }
}

impl ControlSocket {
    /// Binds the control socket of this user's only daemon, or takes the one that was inherited. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// Another daemon runs, or the place is not safe, or the system refuses.
    pub fn bind(path: &Path, heritage: &Heritage) -> Result<Self, BindError> {
        let bytes = path.as_os_str().as_bytes();
        if matches!(bytes.first(), Some(b'@' | 0) | None) {
            return Err(BindError::Abstract(path.to_owned()));
        }
        if bytes.len() > LONGEST_PATH {
            return Err(SocketPathError::TooLong(path.to_owned()).into());
        }
        make_folder(path)?;
        let lock = lock(path)?;
        let failed = |doing, source: Box<dyn std::error::Error + Send + Sync>| BindError::Io {
            doing,
            path: path.to_owned(),
            source,
        };
        let address = Address::Unix(path.to_owned());
        let (listener, file, claim) = match heritage.take(&address) {
            Some(found) => {
                let file = (found.name == WITH_ITS_FILE).then(|| SocketFile::adopt(path));
                let file = file.transpose().map_err(|error| failed("find", error.into()))?;
                (found.socket.into(), file.flatten(), found.claim)
            }
            None => {
                let (listener, file) =
                    socket_file::bind(path, Audience::Owner).map_err(|error| match error {
                        socket_file::BindError::Answered { pid } => BindError::Running {
                            path: path.to_owned(),
                            pid,
                        },
                        socket_file::BindError::NoSocket => failed("bind", error.into()),
                        socket_file::BindError::Io(error) => failed("bind", error.into()),
                    })?;
                (listener, Some(file), heritage.claim(&address))
            }
        };
        let listener = UnixListener::from_std(listener).map_err(|error| failed("listen on", error.into()))?;
        let uid = rustix::process::getuid().as_raw();
        Ok(Self {
            listener,
            file,
            claim,
            _lock: lock,
            uid,
        })
    }

    /// Leaves the socket to the next daemon: clients wait for it.
    pub(crate) fn leave(self, heritage: &Heritage) -> io::Result<()> {
        let name = if self.file.is_some() { WITH_ITS_FILE } else { "" };
        heritage.leave(Left {
            socket: OwnedFd::from(self.listener.into_std()?),
            name: name.to_owned(),
            file: self.file,
            claim: self.claim,
        });
        Ok(())
    }

    /// Waits for the next connection of our own user. Cancel-safe.
    pub(crate) async fn accept(&self) -> UnixStream {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => match stream.peer_cred() {
                    Ok(peer) if peer.uid() == self.uid => return stream,
                    Ok(peer) => warn!(uid = peer.uid(), "another user's connection was refused"),
                    Err(error) => warn!(%error, "a connection of an unknown user was refused"),
                },
                Err(error) => {
                    warn!(%error, "cannot accept a connection to the control socket");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

fn make_folder(path: &Path) -> Result<(), BindError> {
    let folder = match path.parent() {
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
        None => Path::new("/"),
    };
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    match made {
        // What is there is examined next, which tells more than "exists".
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            let source = error.into();
            return Err(BindError::Io {
                doing: "create the folder",
                path: folder.to_owned(),
                source,
            });
        }
        Ok(()) | Err(_) => {}
    }
    Ok(check_folder(folder)?)
}

/// Takes the lock that says which process is the daemon, and writes our pid into it.
fn lock(path: &Path) -> Result<File, BindError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock_path = PathBuf::from(name);
    let failed = |doing, source: io::Error| BindError::Io {
        doing,
        path: lock_path.clone(),
        source: source.into(),
    };
    let nofollow = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(nofollow)
        .open(&lock_path)
        .map_err(|error| failed("open", error))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            // A few digits: what is longer was not written by us.
            let mut words = String::new();
            let read = file.take(16).read_to_string(&mut words);
            let pid = read.ok().and_then(|_| words.trim().parse().ok());
            return Err(BindError::Running {
                path: path.to_owned(),
                pid,
            });
        }
        Err(error) => return Err(failed("lock", error.into())),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(|error| failed("write", error))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use tokio::io::AsyncReadExt;

    use super::*;

    fn private_folder() -> tempfile::TempDir {
        let private = fs::Permissions::from_mode(0o700);
        tempfile::Builder::new().permissions(private).tempdir().unwrap()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn folder_and_socket_are_for_their_owner_alone() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("tunneld/tunneld.sock");
        let _socket = ControlSocket::bind(&path, &Heritage::default()).unwrap();
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(&path.with_extension("sock.lock")), 0o600);
    }

    #[tokio::test]
    async fn a_second_daemon_is_refused_with_the_pid_of_the_first() {
        let folder = private_folder();
        let path = folder.path().join("s");
        let first = ControlSocket::bind(&path, &Heritage::default()).unwrap();
        let error = ControlSocket::bind(&path, &Heritage::default()).unwrap_err();
        let ours = format!(
            "a daemon runs already on `{}` (pid {})",
            path.display(),
            std::process::id()
        );
        assert_eq!(error.to_string(), ours);
        assert!(path.exists(), "the first one's socket is left alone");
        drop(first);
        ControlSocket::bind(&path, &Heritage::default()).unwrap();
    }

    #[tokio::test]
    async fn what_a_killed_daemon_left_is_no_trouble() {
        let folder = private_folder();
        let path = folder.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        fs::write(folder.path().join("s.lock"), "999999999\nold").unwrap();
        let _socket = ControlSocket::bind(&path, &Heritage::default()).unwrap();
        let pid = fs::read_to_string(folder.path().join("s.lock")).unwrap();
        assert_eq!(pid.trim(), std::process::id().to_string());
    }

    #[tokio::test]
    async fn the_socket_is_removed_at_the_end() {
        let folder = private_folder();
        let path = folder.path().join("s");
        drop(ControlSocket::bind(&path, &Heritage::default()).unwrap());
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_folder_open_to_others_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("open");
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        let error = ControlSocket::bind(&folder.join("s"), &Heritage::default()).unwrap_err();
        assert!(
            matches!(error, BindError::Path(SocketPathError::Open { .. })),
            "{error:?}"
        );
        assert_eq!(error.hint().unwrap(), format!("chmod 700 {}", folder.display()));
    }

    #[tokio::test]
    async fn a_symbolic_link_is_no_folder() {
        let parent = tempfile::tempdir().unwrap();
        let (real, link) = (parent.path().join("real"), parent.path().join("link"));
        DirBuilder::new().mode(0o700).create(&real).unwrap();
        symlink(&real, &link).unwrap();
        let error = ControlSocket::bind(&link.join("s"), &Heritage::default()).unwrap_err();
        assert!(
            matches!(error, BindError::Path(SocketPathError::NotFolder(_))),
            "{error:?}"
        );
    }

    #[tokio::test]
    async fn a_symbolic_link_in_the_place_of_the_lock_is_not_followed() {
        let folder = private_folder();
        let precious = folder.path().join("precious");
        fs::write(&precious, "precious").unwrap();
        symlink(&precious, folder.path().join("s.lock")).unwrap();
        ControlSocket::bind(&folder.path().join("s"), &Heritage::default()).unwrap_err();
        assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    }

    #[tokio::test]
    async fn a_path_that_no_socket_can_have_is_refused_with_its_length() {
        let folder = private_folder();
        let path = folder.path().join("x".repeat(LONGEST_PATH));
        let error = ControlSocket::bind(&path, &Heritage::default()).unwrap_err();
        let length = path.as_os_str().len();
        assert!(
            error.to_string().contains(&format!("is {length} bytes long")),
            "{error}"
        );
    }

    #[tokio::test]
    async fn an_abstract_socket_is_refused() {
        for path in ["@tunneld", "\0tunneld"] {
            assert!(matches!(
                ControlSocket::bind(Path::new(path), &Heritage::default()),
                Err(BindError::Abstract(_))
            ));
        }
    }

    #[tokio::test]
    async fn a_connection_of_another_user_is_closed() {
        let folder = private_folder();
        let path = folder.path().join("s");
        let mut socket = ControlSocket::bind(&path, &Heritage::default()).unwrap();
        let mut ours = UnixStream::connect(&path).await.unwrap();
        socket.accept().await;
        // No test can become another user; the daemon can take itself for one.
        socket.uid += 1;
        let mut theirs = UnixStream::connect(&path).await.unwrap();
        let mut buffer = [0];
        tokio::select! {
            _ = socket.accept() => panic!("let in"),
            read = theirs.read(&mut buffer) => assert_eq!(read.unwrap(), 0),
        }
        assert_eq!(
            ours.read(&mut [0]).await.unwrap(),
            0,
            "the accepted one was dropped by the test itself"
        );
    }

    #[tokio::test]
    async fn a_socket_of_the_service_manager_is_taken_and_its_file_left_alone() {
        let folder = private_folder();
        let path = folder.path().join("s");
        let theirs = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let activation = Heritage::default();
        activation.leave(Left {
            claim: activation.claim(&Address::Unix(path.clone())),
            socket: theirs.into(),
            name: "tunneld.socket".to_owned(),
            file: None,
        });
        let _early = UnixStream::connect(&path).await.unwrap();
        let socket = ControlSocket::bind(&path, &activation.close().inherited()).unwrap();
        socket.accept().await;
        drop(socket);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_socket_that_is_left_to_the_next_daemon_has_clients_wait_and_goes_with_that_one() {
        let folder = private_folder();
        let path = folder.path().join("s");
        let heritage = Heritage::default();
        ControlSocket::bind(&path, &heritage)
            .unwrap()
            .leave(&heritage)
            .unwrap();
        let _early = UnixStream::connect(&path).await.unwrap();
        let socket = ControlSocket::bind(&path, &heritage.close().inherited()).unwrap();
        socket.accept().await;
        drop(socket);
        assert!(!path.exists());
    }
}
