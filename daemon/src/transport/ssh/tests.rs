//! Links in the process of the test, to a server of OpenSSH on loopback; AWS is the emulator.

use std::net::Ipv4Addr;
use std::time::Duration;

use futures_util::FutureExt;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tunneld_emulator::{Config as World, Emulator};

use super::fake::{Below, PATIENCE, Sshd, Welcoming, eventually, private_key, user, write_key};
use super::*;
use crate::aws::{FoundInstance, Place};
use crate::config::{Config, HostKeys, Identity, PoolSize, Route};
use crate::failure::Scope;
use crate::transport::pool::Need;
use crate::transport::{Budget, Stream, failure_of};

const INSTANCE: &str = "i-0123456789abcdef0";

/// A server, a target behind it, and the transport to that.
struct Rig {
    sshd: Sshd,
    target: TcpListener,
    budget: Arc<Budget>,
    tasks: TaskTracker,
    transport: Ssh,
    state: TempDir,
    _emulator: Emulator,
}

/// What a test has otherwise than usual.
struct Wish<'a> {
    sshd: &'a str,
    settings: SshSettings,
    receive_buffer: usize,
    life: Option<Duration>,
    known_hosts: Option<PathBuf>,
    agent: Option<PathBuf>,
}

impl Default for Wish<'_> {
    fn default() -> Self {
        Self {
            sshd: "",
            settings: SshSettings::default(),
            receive_buffer: 256 << 20,
            life: None,
            known_hosts: None,
            agent: None,
        }
    }
}

fn pool_of(max: usize) -> SshSettings {
    SshSettings {
        connections: PoolSize { min: 1, max },
        ..SshSettings::default()
    }
}

impl Rig {
    async fn new(wish: Wish<'_>) -> Self {
        let sshd = Sshd::start(wish.sshd).await;
        let target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = target.local_addr().unwrap().port();
        let world = format!("[[instances]]\nid = \"{INSTANCE}\"\nname = \"bastion\"\n");
        let emulator = Emulator::start(World::parse(&world).unwrap()).await.unwrap();
        let state = tempfile::tempdir().unwrap();
        let ssh = SshFiles {
            known_hosts: wish.known_hosts,
            agent: wish.agent,
            ..SshFiles::new(state.path(), &Environment::default())
        };
        let shared = Arc::new(Shared {
            ssh,
            ..Shared::for_test(&emulator, state.path())
        });
        let (budget, tasks) = (Arc::clone(&shared.budget), shared.tasks.clone());
        let text = format!(
            "[tunnels.db]\nlisten = 17007\ntarget = \"127.0.0.1:{port}\"\n\
             route = {{ ssh = \"{}@{INSTANCE}\", over = \"direct\" }}\n",
            user()
        );
        let config = Config::parse("config.toml".as_ref(), &text).unwrap();
        let mut spec = config.tunnels.into_iter().next().unwrap();
        let identity = match wish.settings.identity {
            // Nothing in these tests asks where pushed keys are: the key in the file stands for it.
            Identity::InstanceConnect => Identity::File(sshd.user_key()),
            other @ (Identity::File(_) | Identity::Agent) => other,
        };
        spec.ssh = SshSettings {
            identity,
            ..wish.settings
        };
        spec.receive_buffer = wish.receive_buffer;
        let Route::Ssh(route) = &spec.route else {
            panic!("not the route that was written")
        };
        let below = Below::to(sshd.port, wish.life);
        let transport = Ssh::new(
            &spec,
            spec.target.clone(),
            route,
            below.whoever(),
            shared,
            Delays::default(),
        );
        Self {
            sshd,
            target,
            budget,
            tasks,
            transport,
            state,
            _emulator: emulator,
        }
    }

    async fn connect(&self) -> Arc<dyn Link> {
        self.try_connect()
            .await
            .unwrap_or_else(|failure| panic!("{}", failure.in_one_line()))
    }

    async fn try_connect(&self) -> Result<Arc<dyn Link>, Failure> {
        timeout(PATIENCE, self.transport.connect()).await.unwrap()
    }

    async fn refused(&self) -> Failure {
        self.try_connect().await.err().expect("no link")
    }

    /// Opens a stream and returns both of its ends.
    async fn open(&self, link: &Arc<dyn Link>) -> (Box<dyn Stream>, TcpStream) {
        let near = async { link.open("127.0.0.1:9").await.unwrap() };
        let far = async { self.target.accept().await.unwrap().0 };
        timeout(PATIENCE, async { tokio::join!(near, far) })
            .await
            .unwrap()
    }
}

impl Rig {
    /// The transport to a port where nobody listens, with another route below.
    fn over(&self, below: RouteTo) -> Ssh {
        let context = &self.transport.0;
        let route = SshRoute {
            user: user(),
            host: Instance::Id(INSTANCE.to_owned()),
            over: Route::Direct,
        };
        let target = Target::Host {
            host: "127.0.0.1".to_owned(),
            port: 1,
        };
        Ssh(Arc::new(Context {
            directory: Directory::new(route, target),
            account: context.account.clone(),
            settings: context.settings.clone(),
            receive_buffer: context.receive_buffer,
            below,
            shared: Arc::clone(&context.shared),
            delays: Delays::default(),
        }))
    }
}

async fn read_to_end(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Vec<u8> {
    let mut bytes = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut bytes))
        .await
        .unwrap()
        .unwrap();
    bytes
}

async fn failure_in(stream: &mut Box<dyn Stream>) -> Arc<Failure> {
    let error = timeout(PATIENCE, async {
        let mut buffer = vec![0; 65_536];
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) => panic!("a clean end"),
                Ok(_) => {}
                Err(error) => return error,
            }
        }
    });
    let error = error.await.unwrap();
    Arc::clone(failure_of(&error).expect("it says why"))
}

/// Answers each piece with itself, until there is none.
async fn echo(mut stream: TcpStream) {
    let (mut reader, mut writer) = stream.split();
    // A test that is over has hung up.
    let _ = tokio::io::copy(&mut reader, &mut writer).await;
}

async fn ping(stream: &mut Box<dyn Stream>) {
    timeout(PATIENCE, async {
        stream.write_all(b"ping").await.unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"ping");
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn half_close_passes_exactly_both_ways() {
    let rig = Rig::new(Wish::default()).await;
    let link = rig.connect().await;
    let (mut near, mut far) = rig.open(&link).await;
    near.write_all(b"there and").await.unwrap();
    near.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut far).await, b"there and");
    far.write_all(b"back").await.unwrap();
    far.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut near).await, b"back");

    let (mut near, mut far) = rig.open(&link).await;
    far.write_all(b"first").await.unwrap();
    far.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut near).await, b"first");
    near.write_all(b"and then").await.unwrap();
    near.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut far).await, b"and then");
}

#[tokio::test]
async fn what_a_client_said_last_arrives_after_it_has_left() {
    let rig = Rig::new(Wish::default()).await;
    let link = rig.connect().await;
    let (mut near, mut far) = rig.open(&link).await;
    let last = vec![7; 1 << 20];
    near.write_all(&last).await.unwrap();
    near.shutdown().await.unwrap();
    drop(near);
    assert_eq!(read_to_end(&mut far).await, last);
}

#[tokio::test]
async fn a_client_that_leaves_in_the_midst_ends_its_stream_at_the_target() {
    let rig = Rig::new(Wish::default()).await;
    let link = rig.connect().await;
    let (near, mut far) = rig.open(&link).await;
    drop(near);
    assert_eq!(read_to_end(&mut far).await, b"");
}

#[tokio::test]
async fn large_transfers_arrive_whole_both_ways_at_once_on_shared_connections() {
    let rig = Rig::new(Wish {
        settings: pool_of(1),
        ..Wish::default()
    })
    .await;
    let link = rig.connect().await;
    let mut transfers = JoinSet::new();
    for number in 0..4_u8 {
        let (near, far) = rig.open(&link).await;
        transfers.spawn(async move {
            let bytes: Vec<u8> = (0..8 << 20)
                .map(|index: u32| (index >> 8) as u8 ^ number)
                .collect();
            let there = exchange(near, bytes.clone());
            let back = exchange(far, bytes.clone());
            let (there, back) = tokio::join!(there, back);
            assert!(there == bytes && back == bytes, "what arrived is what was sent");
        });
    }
    while let Some(done) = transfers.join_next().await {
        done.unwrap();
    }
}

async fn exchange(stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite, bytes: Vec<u8>) -> Vec<u8> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let send = async {
        writer.write_all(&bytes).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    tokio::join!(read_to_end(&mut reader), send).0
}

#[tokio::test]
async fn the_link_says_where_it_goes_and_by_whom() {
    let rig = Rig::new(Wish::default()).await;
    let link = rig.connect().await;
    let details = link.health().borrow().details.clone();
    assert_eq!(details.via, format!("`bastion` ({INSTANCE})"));
    assert_eq!(
        (details.target_host.as_str(), details.target_port),
        ("127.0.0.1", rig.target.local_addr().unwrap().port())
    );
    assert!(details.notes[0].contains("SHA256:"), "{:?}", details.notes);
    link.close().await;
    let failure = timeout(PATIENCE, link.closed()).await.unwrap();
    assert_eq!(failure.to_string(), "the link was closed");
    rig.tasks.close();
    timeout(PATIENCE, rig.tasks.wait())
        .await
        .expect("a closed link leaves nothing behind");
}

#[tokio::test]
async fn a_server_that_forwards_nothing_is_told_from_a_target_that_refuses() {
    for settings in [
        "AllowTcpForwarding no",
        "PermitOpen 127.0.0.1:1",
        "DisableForwarding yes",
    ] {
        let rig = Rig::new(Wish {
            sshd: settings,
            ..Wish::default()
        })
        .await;
        let link = rig.connect().await;
        let failure = link.open("127.0.0.1:9").await.err().unwrap();
        assert_eq!(
            (failure.reason(), failure.remedy(), failure.scope()),
            (Reason::TargetRefused, &Remedy::Fix, Scope::Stream),
            "{settings}: {}",
            failure.in_one_line()
        );
        assert!(failure.hints()[0].contains("AllowTcpForwarding"));
        assert!(failure.hints()[1].contains("PermitOpen 127.0.0.1:"));
    }
    let mut rig = Rig::new(Wish::default()).await;
    let link = rig.connect().await;
    let port = rig.target.local_addr().unwrap().port();
    rig.target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let failure = link.open("127.0.0.1:9").await.err().unwrap();
    assert_eq!(
        (failure.reason(), failure.remedy(), failure.scope()),
        (Reason::TargetRefused, &Remedy::Retry, Scope::Stream)
    );
    let text = failure.in_one_line();
    assert!(
        text.contains(&format!("cannot connect to the target `127.0.0.1:{port}`")) && text.contains("efused"),
        "the server's own text is shown: {text}"
    );
    let (mut near, far) = rig.open_elsewhere(&link).await;
    let mut echoing = JoinSet::new();
    echoing.spawn(echo(far));
    ping(&mut near).await;
}

impl Rig {
    /// The link goes on after a stream was refused: listens where the streams go, and opens one.
    async fn open_elsewhere(&mut self, link: &Arc<dyn Link>) -> (Box<dyn Stream>, TcpStream) {
        let port = link.health().borrow().details.target_port;
        self.target = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        self.open(link).await
    }
}

#[tokio::test]
async fn a_host_key_that_changed_is_for_a_person_to_judge() {
    let mut rig = Rig::new(Wish::default()).await;
    rig.connect().await.close().await;
    rig.sshd.stop();
    rig.sshd.change_host_key();
    rig.sshd.start_again().await;
    let failure = rig.refused().await;
    assert_eq!(
        (failure.reason(), failure.remedy()),
        (Reason::Denied, &Remedy::Fix),
        "{}",
        failure.in_one_line()
    );
    let file = rig.state.path().join("host_keys");
    assert!(failure.in_one_line().contains("line 1 of"));
    let command = format!("ssh-keygen -R {INSTANCE} -f {}", file.display());
    assert!(failure.hints()[1].ends_with(&command), "{:?}", failure.hints());
    // What the hint says works.
    let forgot = std::process::Command::new("ssh-keygen")
        .args(["-R", INSTANCE, "-f"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(forgot.status.success());
    rig.connect().await.close().await;
}

#[tokio::test]
async fn strict_takes_the_key_in_known_hosts_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let known_hosts = folder.path().join("known_hosts");
    let strict = || SshSettings {
        host_keys: HostKeys::Strict,
        ..SshSettings::default()
    };
    let rig = Rig::new(Wish {
        settings: strict(),
        known_hosts: Some(known_hosts.clone()),
        ..Wish::default()
    })
    .await;
    let failure = rig.refused().await;
    assert!(
        failure.to_string().contains("no host key of"),
        "{}",
        failure.in_one_line()
    );
    assert!(failure.hints()[0].contains(INSTANCE), "{:?}", failure.hints());
    let line = |key: &russh::keys::PublicKey| format!("{INSTANCE} {}\n", key.to_openssh().unwrap());
    std::fs::write(&known_hosts, line(&fake::public_key())).unwrap();
    let failure = rig.refused().await;
    assert!(
        failure.in_one_line().contains("is known from"),
        "{}",
        failure.in_one_line()
    );
    let revoked = format!(
        "{}@revoked * {}",
        line(&rig.sshd.host_key()),
        rig.sshd.host_key().to_openssh().unwrap()
    );
    std::fs::write(&known_hosts, revoked).unwrap();
    assert!(rig.refused().await.in_one_line().contains("revoked"));
    std::fs::write(&known_hosts, line(&rig.sshd.host_key())).unwrap();
    rig.connect().await;
}

#[tokio::test]
async fn a_key_that_the_server_does_not_know_is_for_a_person_to_mend() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other");
    write_key(&path, &private_key());
    let rig = Rig::new(Wish {
        settings: SshSettings {
            identity: Identity::File(path.clone()),
            ..SshSettings::default()
        },
        ..Wish::default()
    })
    .await;
    let failure = rig.refused().await;
    assert_eq!(
        (failure.reason(), failure.remedy()),
        (Reason::Denied, &Remedy::Fix)
    );
    assert!(failure.in_one_line().contains("does not accept the key"));
    assert!(failure.hints()[0].contains("authorized_keys"));

    std::fs::remove_file(&path).unwrap();
    let locked = private_key()
        .encrypt(&mut russh::keys::key::safe_rng(), "secret")
        .unwrap();
    write_key(&path, &locked);
    let failure = rig.refused().await;
    assert!(
        failure.in_one_line().contains("passphrase"),
        "{}",
        failure.in_one_line()
    );
    assert!(failure.hints()[1].contains("agent"), "{:?}", failure.hints());
}

#[tokio::test]
async fn the_ssh_agent_logs_in_with_the_keys_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent");
    let agent = || SshSettings {
        identity: Identity::Agent,
        ..SshSettings::default()
    };
    let rig = Rig::new(Wish {
        settings: agent(),
        agent: Some(socket.clone()),
        ..Wish::default()
    })
    .await;
    let failure = rig.refused().await;
    assert!(
        failure.to_string().contains("cannot ask the ssh-agent"),
        "{}",
        failure.in_one_line()
    );
    let mut process = std::process::Command::new("ssh-agent")
        .args(["-D", "-a"])
        .arg(&socket)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    eventually("the agent listens", || socket.exists()).await;
    let other = folder.path().join("other");
    write_key(&other, &private_key());
    for key in [other, rig.sshd.user_key()] {
        let added = std::process::Command::new("ssh-add")
            .arg(key)
            .env("SSH_AUTH_SOCK", &socket)
            .output()
            .unwrap();
        assert!(added.status.success(), "{added:?}");
    }
    let connected = rig.try_connect().await;
    process.kill().unwrap();
    process.wait().unwrap();
    connected.unwrap_or_else(|failure| panic!("{}", failure.in_one_line()));
}

#[tokio::test]
async fn a_server_that_is_too_busy_is_told_as_that_and_tried_again() {
    let rig = Rig::new(Wish {
        sshd: "MaxStartups 1:100:1",
        ..Wish::default()
    })
    .await;
    // Somebody who is slow to log in; at first the server may still count who looked whether it listens.
    let began = tokio::time::Instant::now();
    let busy = loop {
        let mut busy = TcpStream::connect((Ipv4Addr::LOCALHOST, rig.sshd.port))
            .await
            .unwrap();
        let mut banner = [0; 4];
        if busy.read_exact(&mut banner).await.is_ok() && &banner == b"SSH-" {
            break busy;
        }
        assert!(began.elapsed() < PATIENCE, "nobody gets in");
    };
    let failure = rig.refused().await;
    assert_eq!(
        (failure.reason(), failure.remedy()),
        (Reason::Unreachable, &Remedy::Retry)
    );
    let hints = failure.hints().join(" ");
    assert!(
        hints.contains("MaxStartups"),
        "{}: {hints}",
        failure.in_one_line()
    );
    drop(busy);
    let mut connected = rig.try_connect().await;
    let began = tokio::time::Instant::now();
    while connected.is_err() && began.elapsed() < PATIENCE {
        connected = rig.try_connect().await;
    }
    connected.unwrap_or_else(|failure| panic!("{}", failure.in_one_line()));
}

#[tokio::test]
async fn a_server_that_goes_away_is_a_lost_link_and_its_streams_fail_honestly() {
    let mut rig = Rig::new(Wish::default()).await;
    let link = rig.connect().await;
    let (mut near, mut far) = rig.open(&link).await;
    far.write_all(b"half of it").await.unwrap();
    near.read_exact(&mut [0; 10]).await.unwrap();
    rig.sshd.stop();
    let failure = failure_in(&mut near).await;
    assert_eq!(
        (failure.reason(), failure.scope()),
        (Reason::Unreachable, Scope::Link)
    );
    assert!(
        failure.to_string().contains("was lost"),
        "{}",
        failure.in_one_line()
    );
    timeout(PATIENCE, link.closed()).await.unwrap();
    let failure = rig.refused().await;
    assert_eq!(
        failure.reason(),
        Reason::TargetRefused,
        "{}",
        failure.in_one_line()
    );
    rig.sshd.start_again().await;
    let link = rig.connect().await;
    rig.open(&link).await;
}

#[tokio::test]
async fn a_stream_that_is_alone_waits_for_its_reader_however_long() {
    let rig = Rig::new(Wish {
        settings: pool_of(1),
        receive_buffer: 1 << 20,
        ..Wish::default()
    })
    .await;
    let link = rig.connect().await;
    let (mut near, mut far) = rig.open(&link).await;
    const ALL: usize = 64 << 20;
    let mut sending = JoinSet::new();
    sending.spawn(async move {
        for piece in 0..ALL >> 16 {
            far.write_all(&[piece as u8; 1 << 16]).await.unwrap();
        }
    });
    near.read_exact(&mut [0; 1]).await.unwrap();
    // Until what is under way fills every queue, and nothing moves any more.
    let mut before = 0;
    let budget = Arc::clone(&rig.budget);
    eventually("nothing moves any more", || {
        let used = budget.used();
        let still = used == before && used > 0;
        before = used;
        still
    })
    .await;
    assert!(budget.used() <= 1 << 20, "{}", budget.used());
    assert!(!sending.is_empty(), "the target waits too");
    let rest = read_to_end(&mut near).await;
    assert_eq!(rest.len() + 1, ALL);
    let expected = (0..ALL).skip(1).map(|index| (index >> 16) as u8);
    assert!(rest.iter().copied().eq(expected), "what arrived is what was sent");
}

#[tokio::test]
async fn a_link_is_closed_although_a_reader_has_stopped() {
    let rig = Rig::new(Wish {
        settings: pool_of(1),
        ..Wish::default()
    })
    .await;
    let link = rig.connect().await;
    let (mut near, mut far) = rig.open(&link).await;
    let mut sending = JoinSet::new();
    sending.spawn(async move { while far.write_all(&[0; 1 << 16]).await.is_ok() {} });
    near.read_exact(&mut [0; 1]).await.unwrap();
    let mut before = 0;
    let budget = Arc::clone(&rig.budget);
    eventually("nothing moves any more", || {
        let used = budget.used();
        let still = used == before && used > 0;
        before = used;
        still
    })
    .await;
    timeout(PATIENCE, link.close()).await.expect("it is closed");
    let failure = failure_in(&mut near).await;
    assert_eq!(failure.to_string(), "the link was closed");
}

#[tokio::test]
async fn a_client_that_leaves_a_connection_at_a_standstill_sets_it_free() {
    let rig = Rig::new(Wish {
        settings: pool_of(1),
        ..Wish::default()
    })
    .await;
    let link = rig.connect().await;
    let (mut near, mut far) = rig.open(&link).await;
    let mut working = JoinSet::new();
    working.spawn(async move { while far.write_all(&[0; 1 << 16]).await.is_ok() {} });
    near.read_exact(&mut [0; 1]).await.unwrap();
    // The connection waits for the reader, and so takes nothing from the writer either.
    eventually("nothing moves in either direction", || {
        near.write(&[0]).now_or_never().is_none()
    })
    .await;
    drop(near);
    timeout(PATIENCE, working.join_next())
        .await
        .expect("the target learns of it");
    let (mut near, far) = rig.open(&link).await;
    working.spawn(echo(far));
    ping(&mut near).await;
}

#[tokio::test]
async fn what_a_client_said_last_arrives_before_its_link_is_closed() {
    let rig = Rig::new(Wish::default()).await;
    let link = rig.connect().await;
    let (mut near, mut far) = rig.open(&link).await;
    let last = vec![7; 1 << 20];
    near.write_all(&last).await.unwrap();
    near.shutdown().await.unwrap();
    drop(near);
    let (said, ()) = tokio::join!(read_and_hang_up(&mut far), link.close());
    assert_eq!(said, last);
}

async fn read_and_hang_up(stream: &mut TcpStream) -> Vec<u8> {
    let said = read_to_end(stream).await;
    stream.shutdown().await.unwrap();
    said
}

#[tokio::test]
async fn a_reader_that_stops_disturbs_no_other_stream_of_its_connection() {
    let rig = Rig::new(Wish {
        settings: pool_of(1),
        ..Wish::default()
    })
    .await;
    let link = rig.connect().await;
    let (mut stopped, mut busy) = rig.open(&link).await;
    const ALL: usize = 64 << 20;
    let mut working = JoinSet::new();
    working.spawn(async move {
        for piece in 0..ALL >> 16 {
            busy.write_all(&[piece as u8; 1 << 16]).await.unwrap();
        }
    });
    stopped.read_exact(&mut [0; 1]).await.unwrap();
    let (mut near, far) = rig.open(&link).await;
    working.spawn(echo(far));
    let budget = Arc::clone(&rig.budget);
    eventually("all of it waits in memory", || budget.used() > ALL - (1 << 20)).await;
    for _ in 0..100 {
        ping(&mut near).await;
    }
    assert_eq!(read_to_end(&mut stopped).await.len() + 1, ALL);
}

#[tokio::test]
async fn a_stream_that_shares_and_leaves_too_much_unread_is_reset_and_the_setting_is_named() {
    let rig = Rig::new(Wish {
        settings: pool_of(1),
        receive_buffer: 4 << 20,
        ..Wish::default()
    })
    .await;
    let link = rig.connect().await;
    let (stopped, mut busy) = rig.open(&link).await;
    let (mut near, far) = rig.open(&link).await;
    let mut working = JoinSet::new();
    working.spawn(echo(far));
    working.spawn(async move {
        // Until the stream is reset.
        while busy.write_all(&[0; 1 << 16]).await.is_ok() {}
    });
    let failure = timeout(PATIENCE, stopped.aborted()).await.unwrap();
    assert_eq!(failure.scope(), Scope::Stream);
    let text = failure.in_one_line();
    assert!(
        text.contains("127.0.0.1:9") && text.contains("4 MiB unread"),
        "{text}"
    );
    assert!(failure.hints()[0].contains("receive_buffer"));
    ping(&mut near).await;
}

#[tokio::test]
async fn connections_are_spread_and_a_spare_is_kept() {
    let rig = Rig::new(Wish::default()).await;
    let link = rig.connect().await;
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(rig.open(&link).await);
    }
    let mut health = link.health();
    timeout(PATIENCE, health.wait_for(|health| health.details.sessions == 4))
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn what_is_cut_is_replaced_before_and_told_as_that() {
    let rig = Rig::new(Wish {
        life: Some(Duration::from_secs(4)),
        settings: pool_of(1),
        ..Wish::default()
    })
    .await;
    let link = rig.connect().await;
    let (mut long, far) = rig.open(&link).await;
    assert!(long.expires().is_some());
    let mut working = JoinSet::new();
    working.spawn(echo(far));
    let mut health = link.health();
    let drains = health.wait_for(|health| {
        let notes = &health.details.notes;
        notes.iter().any(|note| note.contains("will be cut at"))
    });
    timeout(PATIENCE, drains).await.unwrap().unwrap();
    // New ones go to the successor, and outlive the old connection.
    let (mut new, far) = rig.open(&link).await;
    working.spawn(echo(far));
    ping(&mut long).await;
    let failure = failure_in(&mut long).await;
    assert_eq!(
        (failure.reason(), failure.scope()),
        (Reason::Expired, Scope::Stream),
        "{}",
        failure.in_one_line()
    );
    ping(&mut new).await;
    assert!(link.closed().now_or_never().is_none(), "the link goes on");
}

#[tokio::test]
async fn a_connection_that_died_in_a_sleep_takes_nobody_new_and_its_streams_are_told() {
    let rig = Rig::new(Wish {
        settings: pool_of(1),
        ..Wish::default()
    })
    .await;
    let link = rig.connect().await;
    let (mut old, far) = rig.open(&link).await;
    let mut echoes = JoinSet::new();
    echoes.spawn(echo(far));
    ping(&mut old).await;
    link.probe();
    ping(&mut old).await;
    rig.sshd.freeze_logins();
    link.probe();
    let (mut new, far) = rig.open(&link).await;
    echoes.spawn(echo(far));
    ping(&mut new).await;
    let failure = failure_in(&mut old).await.in_one_line();
    assert!(failure.contains("did not answer a ping"), "{failure}");
    ping(&mut new).await;
}

#[tokio::test]
async fn a_link_is_as_impaired_as_the_one_below() {
    let rig = Rig::new(Wish::default()).await;
    let below = Below::to(rig.sshd.port, None);
    let transport = rig.over(below.whoever());
    let link = timeout(PATIENCE, transport.connect()).await.unwrap().unwrap();
    let mut health = link.health();
    let cause = Arc::new(Failure::new(Reason::Unreachable, Remedy::Retry, "resuming"));
    below.health.send_modify(|below| {
        below.impaired = Some(crate::transport::Impaired {
            since: tokio::time::Instant::now(),
            cause,
        });
        below.details.notes.push("3 connections wait".to_owned());
    });
    let seen = timeout(PATIENCE, health.wait_for(|health| health.impaired.is_some()))
        .await
        .unwrap()
        .unwrap()
        .clone();
    assert_eq!(seen.impaired.unwrap().cause.to_string(), "resuming");
    assert!(seen.details.notes.contains(&"3 connections wait".to_owned()));
    below.health.send_modify(|below| below.impaired = None);
    timeout(PATIENCE, health.wait_for(|health| health.impaired.is_none()))
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_connection_is_not_given_up_while_the_link_below_is_brought_back() {
    let rig = Rig::new(Wish::default()).await;
    let below = Below::to(rig.sshd.port, None);
    let transport = rig.over(below.whoever());
    let link = timeout(PATIENCE, transport.connect()).await.unwrap().unwrap();
    let cause = Arc::new(Failure::new(Reason::Unreachable, Remedy::Retry, "resuming"));
    below.health.send_modify(|below| {
        below.impaired = Some(crate::transport::Impaired {
            since: tokio::time::Instant::now(),
            cause,
        });
    });
    rig.sshd.freeze_logins();
    link.probe();
    let mut health = link.health();
    timeout(
        Duration::from_secs(7),
        health.wait_for(|health| health.ended.is_some()),
    )
    .await
    .expect_err("longer than a server may be silent");
    below.health.send_modify(|below| below.impaired = None);
    let ended = timeout(PATIENCE, health.wait_for(|health| health.ended.is_some())).await;
    let failure = ended.unwrap().unwrap().ended.clone().unwrap();
    assert!(
        failure.in_one_line().contains("did not answer a ping"),
        "{failure}"
    );
}

#[tokio::test]
async fn the_route_below_leads_to_the_server_that_was_found_and_to_no_other() {
    let rig = Rig::new(Wish::default()).await;
    let below = Below::to(rig.sshd.port, None);
    let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
    let connections = {
        let asked = Arc::clone(&asked);
        let below = Arc::clone(&below);
        let transport = rig.over(Box::new(move |instance| {
            asked.lock().unwrap().push(instance.to_string());
            Arc::clone(&below) as Arc<dyn Transport>
        }));
        Connections::new(transport.0)
    };
    let server = |id: &str| FoundInstance::Machine {
        id: id.to_owned(),
        name: Some("bastion".to_owned()),
        private_address: None,
        place: Place::default(),
    };
    let mut links = Vec::new();
    for id in ["i-0a", "i-0a", "i-0b"] {
        links.push(connections.open_below(&server(id), Need::Spare).await.unwrap().0);
    }
    assert_eq!(*asked.lock().unwrap(), ["i-0a", "i-0b"]);
    assert!(Arc::ptr_eq(&links[0], &links[1]), "they share a link");
    assert!(!Arc::ptr_eq(&links[1], &links[2]));
}

#[tokio::test]
async fn a_server_that_opens_channels_towards_us_is_declined() {
    let rig = Rig::new(Wish::default()).await;
    let server = Welcoming::start().await;
    let transport = rig.over(Below::to(server.port(), None).whoever());
    let (link, server) = timeout(PATIENCE, async {
        tokio::join!(transport.connect(), server.accept())
    })
    .await
    .unwrap();
    let _link = link.unwrap_or_else(|failure| panic!("{}", failure.in_one_line()));
    let opened = timeout(PATIENCE, async {
        [
            server.channel_open_session().await,
            server.channel_open_direct_tcpip("a", 1, "b", 2).await,
            server.channel_open_direct_streamlocal("a").await,
            server.channel_open_forwarded_tcpip("a", 1, "b", 2).await,
            server.channel_open_forwarded_streamlocal("a").await,
            server.channel_open_x11("a", 1).await,
            server.channel_open_agent().await,
        ]
    });
    for (number, opened) in opened.await.unwrap().into_iter().enumerate() {
        let declined = matches!(
            opened,
            Err(russh::Error::ChannelOpenFailure(
                russh::ChannelOpenFailure::AdministrativelyProhibited
            ))
        );
        assert!(declined, "{number}: {opened:?}");
    }
}

/// Serves a file once, in pieces: its reader gets to the end of it when the rest of the daemon goes on.
async fn served(path: &Path, text: Vec<u8>, rig: &Rig) -> Result<Arc<dyn Link>, Failure> {
    use std::io::Write;

    let (told, reading) = tokio::sync::oneshot::channel();
    let (go, gone_on) = std::sync::mpsc::channel();
    let path = path.to_owned();
    let serving = std::thread::spawn(move || {
        let mut pipe = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        told.send(()).unwrap();
        let goes_on = gone_on.recv_timeout(Duration::from_secs(5)).is_ok();
        pipe.write_all(&text).unwrap();
        goes_on
    });
    let others = async {
        reading.await.unwrap();
        // The one that waited for it may have lost its patience.
        let _ = go.send(());
    };
    let (connected, ()) = tokio::join!(rig.try_connect(), others);
    let goes_on = serving.join().unwrap();
    assert!(goes_on, "a file held everything up");
    connected
}

#[tokio::test]
async fn a_file_that_is_slow_holds_up_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = |name: &str| {
        let path = folder.path().join(name);
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        path
    };
    let known_hosts = pipe("known_hosts");
    let rig = Rig::new(Wish {
        known_hosts: Some(known_hosts.clone()),
        ..Wish::default()
    })
    .await;
    served(&known_hosts, Vec::new(), &rig).await.unwrap();

    let identity = pipe("identity");
    let rig = Rig::new(Wish {
        settings: SshSettings {
            identity: Identity::File(identity.clone()),
            ..SshSettings::default()
        },
        ..Wish::default()
    })
    .await;
    let key = std::fs::read(rig.sshd.user_key()).unwrap();
    served(&identity, key, &rig).await.unwrap();
}

#[tokio::test]
async fn a_server_is_told_goodbye_each_time() {
    const TIMES: usize = 8;
    // A spare connection would be told goodbye too.
    let rig = Rig::new(Wish {
        settings: pool_of(1),
        ..Wish::default()
    })
    .await;
    for _ in 0..TIMES {
        let link = rig.connect().await;
        // A server that is still about to begin may find the connection closed before it reads anything.
        let _streams = rig.open(&link).await;
        link.close().await;
    }
    let said = || rig.sshd.log().matches("Received disconnect from").count();
    eventually("each goodbye is heard", || said() == TIMES).await;
}
