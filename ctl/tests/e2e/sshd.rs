//! A real OpenSSH server: port 22 of an emulated instance, which asks the emulated AWS who may log in.
//!
//! It runs as whoever runs the test, who is also the only one that can log in to it.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::Instant;

use crate::world::{PATIENCE, World, free_port};

/// The server's program, which wants to be called by its path.
const PROGRAM: &str = "/usr/sbin/sshd";

/// Where it wants to find an empty folder when it runs as root: Debian makes it when it starts its own server.
const PRIVILEGE_SEPARATION: &str = "/run/sshd";

/// Between two looks at whether it listens.
const LOOK: Duration = Duration::from_millis(10);

/// A server that has a place and a host key, and runs between [`Sshd::start`] and [`Sshd::stop`].
pub(crate) struct Sshd {
    folder: TempDir,
    pub(crate) address: SocketAddr,
    running: Option<Child>,
}

impl Sshd {
    /// Chooses a free port and makes a host key.
    pub(crate) fn new() -> Self {
        Self::at(SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())))
    }

    /// The same, at an address of one's choice.
    pub(crate) fn at(address: SocketAddr) -> Self {
        let sshd = Self {
            folder: tempfile::tempdir().unwrap(),
            address,
            running: None,
        };
        sshd.make_host_key();
        sshd
    }

    /// Makes a host key, in the place of the one before; a server that runs has to be started again.
    pub(crate) fn make_host_key(&self) {
        let file = self.host_key_file();
        let _ = fs::remove_file(&file);
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "root@bastion", "-f"])
            .arg(&file)
            .status()
            .expect("ssh-keygen is installed: apt-get install openssh-client");
        assert!(made.success());
    }

    /// Returns the public host key, as a line.
    pub(crate) fn host_key(&self) -> String {
        let line = fs::read_to_string(self.host_key_file().with_extension("pub")).unwrap();
        line.trim().to_owned()
    }

    /// Returns what cloud-init writes to an instance's console about the host key.
    pub(crate) fn console(&self) -> String {
        format!(
            "-----BEGIN SSH HOST KEY KEYS-----\n{}\n-----END SSH HOST KEY KEYS-----\n",
            self.host_key()
        )
    }

    /// Starts it as port 22 of an instance, with more lines of `sshd_config` that are put first, where they count.
    pub(crate) fn start(&mut self, world: &World, instance: &str, more: &str) {
        let owner = user();
        let asker = if owner == "root" { "nobody" } else { &owner };
        if owner == "root" {
            fs::create_dir_all(PRIVILEGE_SEPARATION).unwrap();
        }
        let emulator = world.emulator.address();
        // A script must belong to root in a folder of root's: that of bash does.
        let ask = format!(
            "exec 3<>/dev/tcp/{}/{}; printf \"GET /_emulator/keys?instance={instance}&user=%u HTTP/1.0\\n\\n\" >&3; \
             cat <&3",
            emulator.ip(),
            emulator.port()
        );
        let configuration = format!(
            "{more}\nListenAddress {address}\nHostKey {host_key}\nPidFile none\nUsePAM no\nPermitRootLogin yes\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nAuthorizedKeysFile none\n\
             AuthorizedKeysCommand /bin/bash -c '{ask}'\nAuthorizedKeysCommandUser {asker}\n\
             Subsystem sftp internal-sftp\nMaxStartups 200\nLogLevel VERBOSE\n",
            address = self.address,
            host_key = self.host_key_file().display(),
        );
        let file = self.path("sshd_config");
        fs::write(&file, configuration).unwrap();
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path("sshd.log"))
            .unwrap();
        let running = Command::new(PROGRAM)
            .args(["-D", "-e", "-f"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("OpenSSH's server is installed: apt-get install openssh-server");
        self.running = Some(running);
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(self.address).is_err() {
            assert!(Instant::now() < deadline, "sshd does not listen: {}", self.log());
            sleep(LOOK);
        }
    }

    /// Stops it from accepting; connections that there are live on.
    pub(crate) fn stop(&mut self) {
        if let Some(mut running) = self.running.take() {
            // It may have ended by itself.
            let _ = running.kill();
            let _ = running.wait();
        }
    }

    /// Everything it has said.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("sshd.log")).unwrap_or_default()
    }

    fn host_key_file(&self) -> PathBuf {
        self.path("host_key")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Returns who can log in.
pub(crate) fn user() -> String {
    let output = Command::new("id").arg("-un").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
