//! A Unix socket's file: bound so that nobody else can connect, not even for a moment, and removed when dropped.
//!
//! The order is what protects it: bind, mode 0600, then listen. A socket that is bound and does not listen refuses
//! every connection, so the mode that the umask gave the file never matters. The umask itself belongs to the whole
//! process and is left alone.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};

/// Connections that wait to be accepted: as many as Linux lets wait unless told otherwise (`net.core.somaxconn`), so that a
/// crowd that comes at once is not kept for a second by SYNs that were dropped.
pub(crate) const BACKLOG: i32 = 4096;

/// The file of a listening socket. Dropping it removes the file, unless somebody replaced it.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

/// Why a socket could not be bound.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    /// A program answers there.
    #[error("a program answers on it")]
    Answered {
        /// The program's process, where the system tells.
        pid: Option<i32>,
    },
    /// There is a file, and it is no socket.
    #[error("there is a file that is no socket")]
    NoSocket,
    /// The system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Binds a socket that only its owner can connect to, and listens. A file that nobody answers on is replaced.
pub(crate) fn bind(path: &Path) -> Result<(UnixListener, SocketFile), BindError> {
    clear(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let metadata = fs::symlink_metadata(path)?;
    let file = SocketFile {
        path: path.to_owned(),
        device: metadata.dev(),
        inode: metadata.ino(),
    };
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok((socket.into(), file))
}

/// Makes room for a socket: removes one that a dead process left, and nothing else.
fn clear(path: &Path) -> Result<(), BindError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(BindError::NoSocket),
        Ok(_) => {}
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A listener whose queue is full would keep a blocking probe waiting.
    probe.set_nonblocking(true)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(fs::remove_file(path)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(BindError::Answered { pid: None }),
        Err(error) => Err(error.into()),
        Ok(()) => Err(BindError::Answered { pid: peer(&probe) }),
    }
}

#[cfg(target_os = "linux")]
fn peer(socket: &Socket) -> Option<i32> {
    let credentials = rustix::net::sockopt::socket_peercred(socket).ok()?;
    Some(credentials.pid.as_raw_nonzero().get())
}

#[cfg(not(target_os = "linux"))]
fn peer(_socket: &Socket) -> Option<i32> {
    None
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| metadata.dev() == self.device && metadata.ino() == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket's file");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn only_the_owner_can_connect() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let (_listener, _file) = bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn the_file_goes_with_its_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(bind(&path).unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_somebody_replaced_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let bound = bind(&path).unwrap();
        // Kept under another name, so that its inode cannot be given to the new file.
        fs::rename(&path, folder.path().join("old")).unwrap();
        fs::write(&path, "").unwrap();
        drop(bound);
        assert!(path.exists());
    }

    #[test]
    fn a_file_that_nobody_answers_on_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a killed process leaves its socket");
        bind(&path).unwrap();
    }

    #[test]
    fn a_socket_that_somebody_answers_on_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let _other = UnixListener::bind(&path).unwrap();
        let error = bind(&path).unwrap_err();
        let ours = i32::try_from(std::process::id()).unwrap();
        if cfg!(target_os = "linux") {
            assert!(
                matches!(error, BindError::Answered { pid: Some(pid) } if pid == ours),
                "{error:?}"
            );
        }
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&path).unwrap_err(), BindError::NoSocket));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
