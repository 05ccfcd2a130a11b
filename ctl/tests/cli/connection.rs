//! Finding the daemon, and not finding it; daemons of other versions.

use std::fs;
use std::path::Path;

use tonic::Status;

use crate::fake::{Fake, command, run, tunnel, up};

fn anybody(home: &Path) -> tokio::process::Command {
    command(Path::new(env!("CARGO_BIN_EXE_tunnelctl")), home)
}

#[tokio::test]
async fn without_a_daemon_the_socket_is_named_and_how_to_start_one() {
    let home = tempfile::tempdir().unwrap();
    let socket = home.path().join("run/tunneld/tunneld.sock");
    for arguments in [
        &["status"][..],
        &["up", "x"],
        &["down", "x"],
        &["restart", "x"],
        &["watch"],
        &["reload"],
    ] {
        let mut command = anybody(home.path());
        command.args(arguments);
        let talk = format!(
            "tunneld is not running\n  because nobody listens on `{}`\n  tunnelctl daemon start\n",
            socket.display()
        );
        run(command).await.is(3, "", &talk);
    }
}

#[tokio::test]
async fn where_a_service_is_installed_it_is_the_hint() {
    let home = tempfile::tempdir().unwrap();
    let units = home.path().join(".config/systemd/user");
    fs::create_dir_all(&units).unwrap();
    fs::write(units.join("tunneld.service"), "").unwrap();
    let mut command = anybody(home.path());
    command.arg("status");
    let ran = run(command).await;
    assert!(
        ran.stderr.ends_with("\n  systemctl --user start tunneld\n"),
        "{}",
        ran.stderr
    );
}

#[tokio::test]
async fn a_socket_that_a_dead_daemon_left_is_no_daemon() {
    let mut fake = Fake::serving(Vec::new());
    fake.kill().await;
    assert!(fake.socket().exists());
    let ran = fake.run(&["status"]).await;
    assert_eq!(ran.code, Some(3));
    assert!(
        ran.stderr.starts_with("tunneld is not running\n"),
        "{}",
        ran.stderr
    );
}

#[tokio::test]
async fn the_socket_can_be_given_before_and_after_the_command() {
    let fake = Fake::serving(vec![tunnel("prod-db", 15432, up())]);
    let socket = fake.socket();
    let socket = socket.to_str().unwrap();
    for arguments in [
        ["--socket", socket, "down", "prod-db"],
        ["down", "prod-db", "--socket", socket],
    ] {
        let home = tempfile::tempdir().unwrap();
        let mut command = anybody(home.path());
        command.args(arguments);
        run(command).await.is(0, "prod-db is down\n", "");
    }
}

#[tokio::test]
async fn a_socket_path_that_is_too_long_is_refused_with_its_length() {
    let home = tempfile::tempdir().unwrap();
    let path = format!("/{}", "x".repeat(150));
    let mut command = anybody(home.path());
    command.args(["--socket", &path, "status"]);
    let talk = format!(
        "the socket path `{path}` is 151 bytes long and the system allows {}\n  give a shorter path with `--socket`, \
         or in TUNNELD_SOCKET for daemon and client alike\n",
        tunneld_proto::socket::LONGEST_PATH
    );
    run(command).await.is(1, "", &talk);
}

#[tokio::test]
async fn a_path_that_cannot_be_entered_is_told_apart_from_a_missing_daemon() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("file");
    fs::write(&file, "").unwrap();
    let socket = file.join("d.sock");
    let mut command = anybody(home.path());
    command.arg("--socket").arg(&socket).arg("status");
    let talk = format!(
        "cannot connect to `{}`\n  because Not a directory (os error 20)\n",
        socket.display()
    );
    run(command).await.is(1, "", &talk);
}

#[tokio::test]
async fn a_daemon_of_another_version_is_warned_about_and_served() {
    let fake = Fake::serving(vec![tunnel("prod-db", 15432, up())]);
    fake.script.is_version("0.0.9");
    let own = env!("CARGO_PKG_VERSION");
    let talk = format!(
        "warning: tunneld is version 0.0.9 and tunnelctl {own}; after an update: tunnelctl restart-daemon\n"
    );
    fake.run(&["down", "prod-db"])
        .await
        .is(0, "prod-db is down\n", &talk);
}

#[tokio::test]
async fn what_the_daemon_does_not_know_makes_it_older() {
    let fake = Fake::serving(Vec::new());
    fake.script
        .refuses("reload", Status::unimplemented("no such method"));
    let own = env!("CARGO_PKG_VERSION");
    let talk = format!(
        "the running tunneld is older than this tunnelctl {own}\n  because it does not know this command \
         (no such method)\n  tunnelctl restart-daemon\n"
    );
    fake.run(&["reload"]).await.is(1, "", &talk);
}
