//! A throw-away MariaDB, for clients that speak MySQL.

use std::fs::File;
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::Instant;

use crate::world::{PATIENCE, free_port};

/// Between two looks at whether it listens.
const LOOK: Duration = Duration::from_millis(10);

/// A server on a port of 127.0.0.1, whose `root` needs no password there.
pub(crate) struct MariaDb {
    _folder: TempDir,
    server: Child,
    pub(crate) port: u16,
}

impl MariaDb {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // It refuses to run as root without being told so.
        let user = rustix::process::getuid().is_root().then_some("--user=root");
        let data = format!("--datadir={}", folder.path().join("data").display());
        let made = Command::new("mariadb-install-db")
            .args([
                "--no-defaults",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                &data,
            ])
            .args(user)
            .output()
            .expect("mariadb-install-db is installed: apt-get install mariadb-server-core");
        assert!(made.status.success(), "{made:?}");
        let port = free_port();
        let server = Command::new("/usr/sbin/mariadbd")
            .args(["--no-defaults", &data, "--bind-address=127.0.0.1"])
            .args(user)
            .arg(format!("--port={port}"))
            .arg(format!("--socket={}", folder.path().join("own.sock").display()))
            .stdin(Stdio::null())
            .stderr(File::create(folder.path().join("log")).unwrap())
            .spawn()
            .expect("mariadbd is installed: apt-get install mariadb-server-core");
        let mut mariadb = Self {
            _folder: folder,
            server,
            port,
        };
        mariadb.wait();
        mariadb
    }

    fn wait(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(self.server.try_wait().unwrap().is_none(), "MariaDB has ended");
            assert!(Instant::now() < deadline, "MariaDB does not listen");
            sleep(LOOK);
        }
    }
}

impl Drop for MariaDb {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
