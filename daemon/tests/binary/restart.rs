//! The program begins anew in its own place, while clients come.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::task::JoinSet;
use tonic::Code;
use tunneld_proto::v1::tunnels_client::TunnelsClient;
use tunneld_proto::v1::{DownRequest, ListRequest, RestartRequest, UpRequest, VersionRequest, tunnel};

use crate::place::{Place, Running};

type Client = TunnelsClient<tonic::transport::Channel>;

async fn started(client: &mut Client) -> Option<(i64, i32)> {
    let version = client.version(VersionRequest {}).await.ok()?.into_inner();
    version.started.map(|started| (started.seconds, started.nanos))
}

/// Asks for a restart and waits until it is done.
async fn restart(place: &Place) -> Client {
    let mut client = place.client().await;
    let before = started(&mut client).await.unwrap();
    client.restart(RestartRequest {}).await.unwrap();
    loop {
        let mut client = place.client().await;
        if started(&mut client)
            .await
            .is_some_and(|present| present != before)
        {
            return client;
        }
    }
}

/// Connects and is greeted by the target.
async fn greeted(port: u16) -> io::Result<()> {
    let mut client = TcpStream::connect(("127.0.0.1", port)).await?;
    let mut greeting = Vec::new();
    client.read_to_end(&mut greeting).await?;
    assert_eq!(greeting, b"hello");
    Ok(())
}

#[tokio::test]
async fn clients_that_come_during_a_restart_wait_and_none_is_refused() {
    let place = Arc::new(Place::new().await);
    let mut daemon = place.start().await;
    let pid = daemon.child.id();
    let mut tasks = JoinSet::new();
    let target = Arc::clone(&place);
    tasks.spawn(async move {
        loop {
            let (mut socket, _) = target.server.accept().await.unwrap();
            socket.write_all(b"hello").await.unwrap();
        }
    });
    let greetings = Arc::new(AtomicUsize::new(0));
    for _ in 0..8 {
        let (port, greetings) = (place.port, Arc::clone(&greetings));
        tasks.spawn(async move {
            loop {
                greeted(port).await.expect("nobody is refused or reset");
                greetings.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let more = async || {
        let seen = greetings.load(Ordering::Relaxed);
        while greetings.load(Ordering::Relaxed) < seen + 100 {
            tokio::task::yield_now().await;
        }
    };
    let story = async {
        for _ in 0..3 {
            more().await;
            let mut client = restart(&place).await;
            let version = client.version(VersionRequest {}).await.unwrap().into_inner();
            assert_eq!(Some(version.pid), pid, "it is the same process");
        }
        more().await;
    };
    tokio::select! {
        () = story => {}
        Some(ended) = tasks.join_next() => ended.unwrap(),
        () = daemon.is_heard() => panic!("the daemon has ended"),
    }
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end().await.code(), Some(0));
    assert!(!place.socket().exists(), "the last one removes its socket");
}

#[tokio::test]
async fn what_was_typed_counts_after_a_restart_and_after_a_kill() {
    let place = Place::new().await;
    let other = "[tunnels.other]\nlisten = \"unix:~/other\"\ntarget = \"127.0.0.1:1\"\nroute = \"direct\"\n\
                 autostart = false\n";
    place.configure(&format!("{}{other}", place.tunnel("db")));
    let mut daemon = place.start().await;
    let mut client = place.client().await;
    let (names, connect) = (vec!["other".to_owned()], false);
    client.up(UpRequest { names, connect }).await.unwrap();
    let names = vec!["db".to_owned()];
    client.down(DownRequest { names }).await.unwrap();
    let mut client = restart(&place).await;
    for _ in 0..2 {
        let list = client.list(ListRequest::default()).await.unwrap().into_inner();
        let is_down = |at: usize| matches!(list.tunnels[at].state, Some(tunnel::State::Down(_)));
        assert!(is_down(0) && !is_down(1), "{list:?}");
        daemon.child.kill().await.unwrap();
        daemon = place.start().await;
        client = place.client().await;
    }
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end().await.code(), Some(0));
    assert!(!place.folder.path().join("other").exists());
}

#[tokio::test]
async fn the_program_that_the_file_is_by_then_is_run_with_the_same_arguments() {
    let place = Place::new().await;
    let (link, marker) = (
        place.folder.path().join("tunneld"),
        place.folder.path().join("marker"),
    );
    symlink(env!("CARGO_BIN_EXE_tunneld"), &link).unwrap();
    let command = place.command();
    let command = command.as_std();
    let mut through_link = Command::new(&link);
    through_link
        .env_clear()
        .kill_on_drop(true)
        .args(command.get_args());
    through_link.env("HOME", place.folder.path());
    let mut daemon = Running::of(through_link);
    daemon.says("configuration adopted").await;

    let newer = place.folder.path().join("newer");
    let script = format!(
        "#!/bin/sh\necho \"$1\" >'{}'\nexec '{}' \"$@\"\n",
        marker.display(),
        env!("CARGO_BIN_EXE_tunneld")
    );
    fs::write(&newer, script).unwrap();
    fs::set_permissions(&newer, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&newer, &link).unwrap();
    restart(&place).await;
    assert_eq!(fs::read_to_string(marker).unwrap(), "--allow-root\n");
    place.through().await;
}

#[tokio::test]
async fn a_restart_that_cannot_be_fails_with_the_reason() {
    let place = Place::new().await;
    let link = place.folder.path().join("tunneld");
    symlink(env!("CARGO_BIN_EXE_tunneld"), &link).unwrap();
    let mut command = Command::new(&link);
    command
        .env_clear()
        .kill_on_drop(true)
        .env("HOME", place.folder.path());
    command.args(place.command().as_std().get_args());
    let mut daemon = Running::of(command);
    daemon.says("configuration adopted").await;
    fs::remove_file(&link).unwrap();
    let mut client = place.client().await;
    let refused = client.restart(RestartRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(started(&mut client).await.is_some(), "it goes on");
    // What only the system finds out: there is nothing that could interpret it.
    fs::write(&link, "#!/nowhere/interpreter\n").unwrap();
    fs::set_permissions(&link, fs::Permissions::from_mode(0o755)).unwrap();
    client.restart(RestartRequest {}).await.unwrap();
    daemon.says("anew").await;
    assert_eq!(daemon.end().await.code(), Some(1));
}

#[tokio::test]
async fn a_signal_during_a_restart_ends_it() {
    let place = Place::new().await;
    let mut daemon = place.start().await;
    let (near, far) = place.through().await;
    place.client().await.restart(RestartRequest {}).await.unwrap();
    daemon.says("stopping").await;
    daemon.signal(Signal::TERM);
    daemon.says("SIGTERM").await;
    drop((near, far));
    assert_eq!(daemon.end().await.code(), Some(0));
    assert!(TcpStream::connect(("127.0.0.1", place.port)).await.is_err());
}
