//! A throw-away PostgreSQL, started by `scripts/postgres`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

pub(crate) struct Postgres {
    folder: TempDir,
    pub(crate) port: u16,
}

impl Postgres {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let output = script().arg("start").arg(folder.path()).output().unwrap();
        assert!(
            output.status.success(),
            "scripts/postgres start: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let port = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
        Self { folder, port }
    }

    /// Runs SQL straight in the database; returns what it printed.
    pub(crate) fn sql(&self, sql: &str) -> String {
        psql(self.port, sql)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // What it prints is of no interest any more.
        let _ = script()
            .arg("stop")
            .arg(self.folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

/// Runs SQL through a port; returns what it printed, without headers.
pub(crate) fn psql(port: u16, sql: &str) -> String {
    let output = client("psql", port).args(["-qAt", "-c", sql]).output().unwrap();
    assert!(
        output.status.success(),
        "{sql}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A PostgreSQL client pointed at a local port.
pub(crate) fn client(program: &str, port: u16) -> Command {
    let mut command = Command::new(program);
    command
        .args(["-h", "127.0.0.1", "-U", "postgres", "-p", &port.to_string()])
        .stdin(Stdio::null());
    command
}

fn script() -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/postgres"))
}
