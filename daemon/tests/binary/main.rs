//! The real binary, as a process: arguments, exit codes, signals, the control socket's file, a second daemon, a service
//! manager, a restart.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod managed;
mod place;
mod restart;

use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tunneld_proto::v1::{ListRequest, ShutdownRequest, VersionRequest};

use crate::place::Place;

#[tokio::test]
async fn a_signal_lets_a_transfer_end_and_exits_in_order() {
    let place = Place::new().await;
    let mut daemon = place.start().await;
    let (mut near, mut far) = place.through().await;
    daemon.signal(Signal::TERM);
    daemon.says("stopping").await;
    while TcpStream::connect(("127.0.0.1", place.port)).await.is_ok() {
        tokio::task::yield_now().await;
    }
    far.write_all(b"the rest").await.unwrap();
    drop(far);
    let mut rest = Vec::new();
    near.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"the rest");
    drop(near);
    assert_eq!(daemon.end().await.code(), Some(0));
    assert!(!place.socket().exists());
}

#[tokio::test]
async fn a_second_signal_exits_at_once() {
    let place = Place::new().await;
    let mut daemon = place.start().await;
    let _open = place.through().await;
    daemon.signal(Signal::INT);
    daemon.says("stopping").await;
    daemon.signal(Signal::INT);
    assert_eq!(daemon.end().await.code(), Some(130));
}

#[tokio::test]
async fn a_client_can_stop_it() {
    let place = Place::new().await;
    let daemon = place.start().await;
    place.client().await.shutdown(ShutdownRequest {}).await.unwrap();
    assert_eq!(daemon.end().await.code(), Some(0));
}

#[tokio::test]
async fn what_a_killed_daemon_left_is_no_trouble() {
    let place = Place::new().await;
    let mut killed = place.start().await;
    killed.child.kill().await.unwrap();
    assert!(place.socket().exists(), "a killed process leaves its socket");
    let daemon = place.start().await;
    let version = place
        .client()
        .await
        .version(VersionRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(Some(version.pid), daemon.child.id());
    place.through().await;
}

#[tokio::test]
async fn a_second_daemon_is_refused_with_the_pid_of_the_first() {
    let place = Place::new().await;
    let first = place.start().await;
    let second = place.command().output().await.unwrap();
    assert_eq!(second.status.code(), Some(1));
    let words = String::from_utf8(second.stderr).unwrap();
    assert!(
        words.contains(&format!("(pid {})", first.child.id().unwrap())),
        "{words}"
    );
    place.through().await;
}

#[tokio::test]
async fn a_hangup_reads_the_configuration_again() {
    let place = Place::new().await;
    let mut daemon = place.start().await;
    let (mut near, mut far) = place.through().await;
    let more = "[tunnels.more]\nlisten = \"unix:~/more\"\ntarget = \"127.0.0.1:1\"\nroute = \"direct\"\n";
    place.configure(&format!("{}{more}", place.tunnel("db")));
    daemon.signal(Signal::HUP);
    daemon.says("configuration adopted").await;
    let list = place
        .client()
        .await
        .list(ListRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        list.tunnels
            .iter()
            .map(|tunnel| tunnel.name.as_str())
            .collect::<Vec<_>>(),
        ["db", "more"]
    );
    far.write_all(b"!").await.unwrap();
    assert_eq!(near.read_u8().await.unwrap(), b'!', "what did not change goes on");
}

#[tokio::test]
async fn a_bad_file_stops_the_start_with_all_its_problems() {
    let place = Place::new().await;
    place.configure("[tunnels.a]\nlissen = 1\n[tunnels.b]\nroute = \"fast\"\n");
    let output = place.command().output().await.unwrap();
    assert_eq!(output.status.code(), Some(2));
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(words.contains("lissen") && words.contains("fast"), "{words}");
    assert!(!place.socket().exists());
}

#[tokio::test]
async fn a_bad_file_on_a_hangup_changes_nothing() {
    let place = Place::new().await;
    let mut daemon = place.start().await;
    place.configure("[tunnels.a]\nlissen = 1\n");
    daemon.signal(Signal::HUP);
    daemon.says("the configuration has problems").await;
    place.through().await;
}

#[tokio::test]
async fn check_tells_every_problem_and_exits_with_2() {
    let place = Place::new().await;
    assert_eq!(place.check(&[]).await.status.code(), Some(0));
    place.configure("[tunnels.a]\nlissen = 1\n");
    let output = place.check(&[]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stdout).unwrap().contains("lissen"));
    let output = place.check(&["--json"]).await;
    assert_eq!(output.status.code(), Some(2));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(!report["problems"].as_array().unwrap().is_empty(), "{report}");
}

#[tokio::test]
async fn a_log_level_that_says_nothing_is_a_usage_error() {
    let place = Place::new().await;
    let output = place
        .command()
        .args(["--log", "tunneld=loud"])
        .output()
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[tokio::test]
async fn the_log_names_tunnel_and_connection_and_says_who_ended_it() {
    let place = Place::new().await;
    let mut daemon = place.start().await;
    let (near, far) = place.through().await;
    drop(far);
    drop(near);
    let line = daemon.says("connection ended").await;
    for part in [
        "tunnel{name=db}",
        "connection{number=1",
        "bytes_in=5",
        "bytes_out=0",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
    assert!(!line.contains('\u{1b}'), "no colours outside a terminal");
}

#[tokio::test]
async fn root_is_refused_unless_it_is_meant() {
    let place = Place::new().await;
    place.configure("[tunnels.a]\nlissen = 1\n");
    let output = place.run(&[]).await;
    assert_eq!(output.status.code(), Some(2));
    let words = String::from_utf8(output.stderr).unwrap();
    let is_root = rustix::process::geteuid().is_root();
    assert_eq!(words.contains("tunneld --allow-root"), is_root, "{words}");
    assert_eq!(words.contains("lissen"), !is_root, "{words}");
}

#[tokio::test]
async fn problems_are_counted_once() {
    let place = Place::new().await;
    place.configure("[tunnels.a]\nlissen = 1\n");
    let output = place.check(&[]).await;
    let words = String::from_utf8(output.stdout).unwrap();
    assert_eq!(words.matches(" problem").count(), 1, "{words}");
}
