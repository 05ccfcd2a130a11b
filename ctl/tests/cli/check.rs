//! `tunnelctl check`, with a `tunneld` beside it that tells how it was called.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use tokio::process::Command;

use crate::fake::{Fake, Ran, command, run};

/// A copy of the program with a script named `tunneld` beside it.
struct Installed(tempfile::TempDir);

impl Installed {
    fn with_checker(script: &str) -> Self {
        let installed = Self::alone();
        let tunneld = installed.0.path().join("tunneld");
        // Renamed into place, so that no other test's child still holds it open for writing when it is executed.
        let draft = installed.0.path().join("draft");
        fs::write(&draft, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(draft, tunneld).unwrap();
        installed
    }

    fn alone() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::hard_link(env!("CARGO_BIN_EXE_tunnelctl"), folder.path().join("tunnelctl"))
            .or_else(|_| {
                fs::copy(env!("CARGO_BIN_EXE_tunnelctl"), folder.path().join("tunnelctl")).map(|_| ())
            })
            .unwrap();
        Self(folder)
    }

    fn command(&self) -> Command {
        command(&self.program(), self.0.path())
    }

    fn program(&self) -> PathBuf {
        self.0.path().join("tunnelctl")
    }

    async fn check(&self, fake: Option<&Fake>, arguments: &[&str]) -> Ran {
        let mut command = self.command();
        if let Some(fake) = fake {
            command.env("TUNNELD_SOCKET", fake.socket());
        }
        command.arg("check").args(arguments);
        run(command).await
    }
}

#[tokio::test]
async fn without_a_daemon_the_usual_file_is_checked() {
    let installed = Installed::with_checker("echo \"$@\"");
    installed.check(None, &[]).await.is(0, "check\n", "");
}

#[tokio::test]
async fn with_a_daemon_its_file_is_checked_unless_another_is_named() {
    let installed = Installed::with_checker("echo \"$@\"");
    let fake = Fake::serving(Vec::new());
    fake.script.uses_configuration("/own.toml");
    installed
        .check(Some(&fake), &[])
        .await
        .is(0, "check --config /own.toml\n", "");
    installed
        .check(Some(&fake), &["--config", "a b"])
        .await
        .is(0, "check --config a b\n", "");
    installed
        .check(Some(&fake), &["--json"])
        .await
        .is(0, "check --config /own.toml --json\n", "");
}

#[tokio::test]
async fn problems_and_their_code_are_passed_on() {
    let installed = Installed::with_checker("echo answer; echo problem >&2; exit 2");
    installed.check(None, &[]).await.is(2, "answer\n", "problem\n");
}

#[tokio::test]
async fn a_checker_that_dies_gives_code_1() {
    Installed::with_checker("exit 101")
        .check(None, &[])
        .await
        .is(1, "", "");
    Installed::with_checker("kill -9 $$")
        .check(None, &[])
        .await
        .is(1, "", "");
}

#[tokio::test]
async fn a_missing_checker_is_named() {
    let installed = Installed::alone();
    let mut command = installed.command();
    command.env("PATH", installed.0.path()).arg("check");
    let talk = "cannot run `tunneld check`\n  because No such file or directory (os error 2)\n  install `tunneld` \
                beside `tunnelctl`, or in the PATH\n";
    run(command).await.is(1, "", talk);
}
