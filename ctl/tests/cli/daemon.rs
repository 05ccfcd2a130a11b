//! `tunnelctl daemon`, with a `tunneld` beside it that tells how it was called.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::fake::{Fake, run};
use crate::installed::Installed;

const LOG: &str = ".local/state/tunneld/daemon.log";

#[tokio::test]
async fn a_daemon_that_runs_is_not_started_again() {
    let fake = Fake::serving(Vec::new());
    fake.run(&["daemon", "start"])
        .await
        .is(0, "tunneld runs already (pid 4711, running for 2 h)\n", "");
}

#[tokio::test]
async fn one_that_ends_at_once_is_told_with_what_it_said_and_its_code() {
    let installed = Installed::with_daemon("echo \"$@\"; echo problem >&2; exit 2");
    for _ in 0..2 {
        let mut command = installed.command();
        command.args(["daemon", "start", "--", "--log", "debug"]);
        // What an earlier start said is not repeated.
        run(command)
            .await
            .is(2, "", "tunneld did not start\n  --log debug\n  problem\n");
    }
    let log = installed.path(LOG);
    assert_eq!(fs::read_to_string(&log).unwrap().lines().count(), 4);
    assert_eq!(fs::metadata(log).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn the_socket_that_was_given_is_passed_on() {
    let installed = Installed::with_daemon("echo \"$@\"; exit 1");
    let mut command = installed.command();
    command.args(["--socket", "/nowhere/d.sock", "daemon", "start"]);
    run(command)
        .await
        .is(1, "", "tunneld did not start\n  --socket /nowhere/d.sock\n");
}

#[tokio::test]
async fn a_missing_daemon_is_named() {
    let installed = Installed::alone();
    let mut command = installed.command();
    command.env("PATH", installed.folder()).args(["daemon", "start"]);
    let talk = "cannot run `tunneld`\n  because No such file or directory (os error 2)\n  install `tunneld` beside \
                `tunnelctl`, or in the PATH\n";
    run(command).await.is(1, "", talk);
}

#[tokio::test]
async fn a_stop_is_asked_for_and_waited_for() {
    let fake = Fake::serving(Vec::new());
    fake.run(&["daemon", "stop"])
        .await
        .is(0, "tunneld has stopped\n", "");
    assert!(fake.script.calls().contains(&"shutdown".to_owned()));
    fake.run(&["daemon", "stop"])
        .await
        .is(0, "tunneld is not running\n", "");
}
