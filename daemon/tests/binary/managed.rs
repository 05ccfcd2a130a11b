//! Under a service manager, which the test plays: what it is told, what it keeps, what it hands over.

use std::fs;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::PathBuf;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::Signal;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;
use tonic::Code;
use tunneld_proto::v1::{DownRequest, ListRequest, ReloadRequest, UpRequest, VersionRequest};

use crate::place::{ENOUGH, Place, Running};

/// The service manager's ear.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

/// What it was told, and with which sockets.
struct Told {
    text: String,
    sockets: Vec<OwnedFd>,
}

impl Manager {
    fn new(place: &Place) -> Self {
        let path = place.folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(ENOUGH)).unwrap();
        Self { socket, path }
    }

    /// Has a daemon tell it.
    fn listens(&self, mut command: Command) -> Command {
        command.env("NOTIFY_SOCKET", &self.path);
        command
    }

    /// Waits until it is told something with these words.
    async fn told(&self, words: &'static str) -> Told {
        let socket = self.socket.try_clone().unwrap();
        let wait = move || {
            loop {
                let told = receive(&socket);
                if told.text.contains(words) {
                    return told;
                }
            }
        };
        tokio::task::spawn_blocking(wait).await.unwrap()
    }
}

fn receive(socket: &UnixDatagram) -> Told {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut text = [0; 4096];
    let mut buffers = [IoSliceMut::new(&mut text)];
    let received =
        recvmsg(socket, &mut buffers, &mut control, RecvFlags::empty()).expect("a message in time");
    let mut sockets = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            sockets.extend(received);
        }
    }
    Told {
        text: String::from_utf8(text[..received.bytes].to_vec()).unwrap(),
        sockets,
    }
}

fn db() -> Vec<String> {
    vec!["db".to_owned()]
}

#[tokio::test]
async fn it_is_told_that_the_daemon_is_ready_how_the_tunnels_are_and_that_it_ends() {
    let place = Place::new().await;
    let manager = Manager::new(&place);
    let daemon = Running::of(manager.listens(place.command()));
    let ready = manager.told("READY=1").await;
    assert!(ready.text.contains("STATUS=1 "), "{}", ready.text);
    place.through().await;
    if !ready.text.contains("STATUS=1 up") {
        manager.told("STATUS=1 up").await;
    }
    let version = place.client().await.version(VersionRequest {}).await.unwrap();
    assert_eq!(version.into_inner().manager, "systemd");
    place
        .client()
        .await
        .down(DownRequest { names: db() })
        .await
        .unwrap();
    manager.told("STATUS=1 down").await;
    daemon.signal(Signal::TERM);
    manager.told("STOPPING=1").await;
    assert_eq!(daemon.end().await.code(), Some(0));
}

#[tokio::test]
async fn it_gets_signs_of_life_as_often_as_it_wants() {
    let place = Place::new().await;
    let manager = Manager::new(&place);
    let mut command = manager.listens(place.command());
    command.env("WATCHDOG_USEC", "200000");
    let _daemon = Running::of(command);
    for _ in 0..5 {
        manager.told("WATCHDOG=1").await;
    }
}

#[tokio::test]
async fn a_client_that_comes_between_two_daemons_is_served_by_the_second() {
    let place = Place::new().await;
    let manager = Manager::new(&place);
    let first = Running::of(manager.listens(place.command()));
    let stored = manager.told("FDSTORE=1").await;
    assert!(
        stored
            .text
            .contains(&format!("FDNAME=127.0.0.1%3A{}", place.port)),
        "{}",
        stored.text
    );
    manager.told("READY=1").await;
    first.signal(Signal::TERM);
    assert_eq!(first.end().await.code(), Some(0));

    let mut early = TcpStream::connect(("127.0.0.1", place.port)).await.unwrap();
    let second = manager.listens(place.inheriting(stored.sockets));
    let _second = Running::of(second);
    manager.told("READY=1").await;
    let (mut far, _) = timeout(ENOUGH, place.server.accept()).await.unwrap().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut far, b"hello")
        .await
        .unwrap();
    early.read_exact(&mut [0; 5]).await.unwrap();
}

#[tokio::test]
async fn the_address_of_a_tunnel_that_is_down_is_kept_by_nobody() {
    let place = Place::new().await;
    let manager = Manager::new(&place);
    let _daemon = Running::of(manager.listens(place.command()));
    let stored = manager.told("FDSTORE=1").await;
    let name = stored
        .text
        .lines()
        .find(|line| line.starts_with("FDNAME="))
        .unwrap();
    place
        .client()
        .await
        .down(DownRequest { names: db() })
        .await
        .unwrap();
    let removed = manager.told("FDSTOREREMOVE=1").await;
    assert!(removed.text.contains(name), "{}", removed.text);
    drop(stored.sockets);
    StdListener::bind(("127.0.0.1", place.port)).expect("the port is free");
}

#[tokio::test]
async fn a_changed_tunnel_has_its_address_before_the_manager_has_let_go_of_it() {
    let place = Place::new().await;
    let manager = Manager::new(&place);
    let _daemon = Running::of(manager.listens(place.command()));
    let _stored = manager.told("FDSTORE=1").await;
    place.configure(&format!("{}hold = \"1s\"\n", place.tunnel("db")));
    let mut client = place.client().await;
    let reloaded = client.reload(ReloadRequest {}).await.unwrap().into_inner();
    assert_eq!(reloaded.changed, db());
    let status = client
        .up(UpRequest {
            names: db(),
            ..UpRequest::default()
        })
        .await
        .unwrap();
    assert!(!format!("{status:?}").contains("is held by"), "{status:?}");
    place.through().await;
}

#[tokio::test]
async fn a_manager_that_missed_what_it_is_to_close_is_told_again() {
    let place = Place::new().await;
    let manager = Manager::new(&place);
    let _daemon = Running::of(manager.listens(place.command()));
    let stored = manager.told("FDSTORE=1").await;
    let mut client = place.client().await;
    client.down(DownRequest { names: db() }).await.unwrap();
    manager.told("FDSTOREREMOVE=1").await;
    client
        .up(UpRequest {
            names: db(),
            ..UpRequest::default()
        })
        .await
        .unwrap();
    manager.told("FDSTOREREMOVE=1").await;
    drop(stored.sockets);
    manager.told("FDSTORE=1").await;
    place.through().await;
}

#[tokio::test]
async fn a_stored_socket_of_no_tunnel_is_closed_and_taken_out_of_the_store() {
    let place = Place::new().await;
    let manager = Manager::new(&place);
    let former = StdListener::bind("127.0.0.1:0").unwrap();
    let address: SocketAddr = former.local_addr().unwrap();
    let _daemon = Running::of(manager.listens(place.inheriting(vec![former.into()])));
    let removed = manager.told("FDSTOREREMOVE=1").await;
    assert!(
        removed.text.ends_with(&format!("%3A{}", address.port())),
        "{}",
        removed.text
    );
    manager.told("READY=1").await;
    StdListener::bind(address).expect("the address is free");
}

#[tokio::test]
async fn its_control_socket_is_served_and_left_where_it_is() {
    let place = Place::new().await;
    let path = place.socket();
    fs::DirBuilder::new()
        .mode(0o700)
        .create(path.parent().unwrap())
        .unwrap();
    let control = UnixListener::bind(&path).unwrap();
    // Whoever connects before the daemon runs is what starts it.
    let client = place.client();
    let daemon = async {
        let mut daemon = Running::of(place.inheriting(vec![control.into()]));
        daemon.says("configuration adopted").await;
        daemon
    };
    let (mut client, daemon) = tokio::join!(client, daemon);
    let version = client.version(VersionRequest {}).await.unwrap().into_inner();
    assert_eq!(Some(version.pid), daemon.child.id());
    drop(client);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end().await.code(), Some(0));
    assert!(path.exists(), "it belongs to whoever bound it");
}

#[tokio::test]
async fn with_a_missing_file_it_is_ready_says_so_and_goes_on_when_the_file_is_there() {
    let place = Place::new().await;
    let manager = Manager::new(&place);
    fs::remove_file(place.config()).unwrap();
    let mut daemon = Running::of(manager.listens(place.command()));
    let ready = manager.told("READY=1").await;
    assert!(ready.text.contains("tunnelctl check"), "{}", ready.text);
    let mut client = place.client().await;
    let up = UpRequest {
        names: db(),
        connect: false,
    };
    let refused = client.up(up).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("config.toml"), "{refused}");
    place.configure("[tunnels.db]\nlissen = 1\n");
    place.configure(&place.tunnel("db"));
    daemon.says("configuration adopted").await;
    let list = client.list(ListRequest::default()).await.unwrap().into_inner();
    assert_eq!(list.tunnels.len(), 1);
    place.through().await;
}

#[tokio::test]
async fn a_service_manager_that_is_gone_keeps_nothing_from_working() {
    let place = Place::new().await;
    let mut command = place.command();
    command.env("NOTIFY_SOCKET", place.folder.path().join("nobody"));
    let mut daemon = Running::of(command);
    daemon.says("configuration adopted").await;
    timeout(Duration::from_secs(30), place.through()).await.unwrap();
}
