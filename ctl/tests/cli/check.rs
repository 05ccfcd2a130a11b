//! `tunnelctl check`, with a `tunneld` beside it that tells how it was called.

use crate::fake::{Fake, Ran, run};
use crate::installed::Installed;

async fn check(installed: &Installed, fake: Option<&Fake>, arguments: &[&str]) -> Ran {
    let mut command = installed.command();
    if let Some(fake) = fake {
        command.env("TUNNELD_SOCKET", fake.socket());
    }
    command.arg("check").args(arguments);
    run(command).await
}

#[tokio::test]
async fn without_a_daemon_the_usual_file_is_checked() {
    let installed = Installed::with_daemon("echo \"$@\"");
    check(&installed, None, &[]).await.is(0, "check\n", "");
}

#[tokio::test]
async fn with_a_daemon_its_file_is_checked_unless_another_is_named() {
    let installed = Installed::with_daemon("echo \"$@\"");
    let fake = Fake::serving(Vec::new());
    fake.script.uses_configuration("/own.toml");
    check(&installed, Some(&fake), &[])
        .await
        .is(0, "check --config /own.toml\n", "");
    check(&installed, Some(&fake), &["--config", "a b"])
        .await
        .is(0, "check --config a b\n", "");
    check(&installed, Some(&fake), &["--json"])
        .await
        .is(0, "check --config /own.toml --json\n", "");
}

#[tokio::test]
async fn problems_and_their_code_are_passed_on() {
    let installed = Installed::with_daemon("echo answer; echo problem >&2; exit 2");
    check(&installed, None, &[]).await.is(2, "answer\n", "problem\n");
}

#[tokio::test]
async fn a_checker_that_dies_gives_code_1() {
    check(&Installed::with_daemon("exit 101"), None, &[])
        .await
        .is(1, "", "");
    check(&Installed::with_daemon("kill -9 $$"), None, &[])
        .await
        .is(1, "", "");
}

#[tokio::test]
async fn a_missing_checker_is_named() {
    let installed = Installed::alone();
    let mut command = installed.command();
    command.env("PATH", installed.folder()).arg("check");
    let talk = "cannot run `tunneld check`\n  because No such file or directory (os error 2)\n  install `tunneld` \
                beside `tunnelctl`, or in the PATH\n";
    run(command).await.is(1, "", talk);
}
