//! A copy of the program in a folder of its own, with scripts beside it that play other programs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tokio::process::Command;

use crate::fake::command;

/// The folder, which is the user's home as well, and the first of the PATH.
pub(crate) struct Installed(TempDir);

impl Installed {
    /// With a script named `tunneld`.
    pub(crate) fn with_daemon(script: &str) -> Self {
        let installed = Self::alone();
        installed.add("tunneld", script);
        installed
    }

    pub(crate) fn alone() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::hard_link(env!("CARGO_BIN_EXE_tunnelctl"), folder.path().join("tunnelctl"))
            .or_else(|_| {
                fs::copy(env!("CARGO_BIN_EXE_tunnelctl"), folder.path().join("tunnelctl")).map(|_| ())
            })
            .unwrap();
        Self(folder)
    }

    /// Adds a script.
    pub(crate) fn add(&self, name: &str, script: &str) {
        // Renamed into place, so that no other test's child still holds it open for writing when it is executed.
        let draft = self.path("draft");
        fs::write(&draft, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(draft, self.path(name)).unwrap();
    }

    /// The program, which finds the scripts.
    pub(crate) fn command(&self) -> Command {
        let mut command = command(&self.path("tunnelctl"), self.folder());
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{path}", self.folder().display()));
        command
    }

    pub(crate) fn folder(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}
