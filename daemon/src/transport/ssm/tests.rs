//! Links in the process of the test, against the emulator on loopback.

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tunneld_emulator::{Config as World, Emulator};

use super::*;
use crate::config::{Config, PoolSize};
use crate::failure::Reason;
use crate::transport::{Budget, Health, LinkDetails, Stream, failure_of};

/// How long anything may take that a test waits for.
const PATIENCE: Duration = Duration::from_secs(30);

/// An emulated instance whose port 7 echoes, and the transport to it.
struct Rig {
    emulator: Emulator,
    shared: Arc<Shared>,
    transport: Ssm,
    budget: Arc<Budget>,
    _state: TempDir,
    _target: JoinSet<()>,
}

impl Rig {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Context)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut target = JoinSet::new();
        target.spawn(echo(listener));
        let world = format!(
            "[[instances]]\nid = \"i-0123456789abcdef0\"\nssm = {{ agent = \"fast\" }}\n\
             [instances.ports]\n7 = \"127.0.0.1:{port}\"\n"
        );
        let emulator = Emulator::start(World::parse(&world).unwrap()).await.unwrap();
        let state = tempfile::tempdir().unwrap();
        let shared = Arc::new(Shared::for_test(&emulator, state.path()));
        let budget = Arc::clone(&shared.budget);
        let text =
            "[tunnels.echo]\nlisten = 17007\ntarget = \"ec2:i-0123456789abcdef0:7\"\nroute = \"ssm\"\n";
        let spec = Config::parse("config.toml".as_ref(), text)
            .unwrap()
            .tunnels
            .remove(0);
        let Ssm(context) = Ssm::new(&spec, spec.target.clone(), None, Arc::clone(&shared));
        let mut context = Arc::into_inner(context).unwrap();
        change(&mut context);
        Self {
            emulator,
            shared,
            transport: Ssm(Arc::new(context)),
            budget,
            _state: state,
            _target: target,
        }
    }

    async fn link(&self) -> Arc<dyn Link> {
        self.transport.connect().await.unwrap()
    }

    /// Waits until the emulator has that many open sessions.
    async fn sessions(&self, count: usize) {
        self.comes_about("sessions", || self.emulator.sessions().len() == count)
            .await;
    }

    async fn comes_about(&self, what: &str, holds: impl Fn() -> bool) {
        let look = async {
            while !holds() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, look).await.expect(what);
    }

    fn websockets(&self) -> u64 {
        self.emulator.calls()["ssmmessages:OpenDataChannel"]
    }
}

async fn echo(listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        let (mut socket, _) = listener.accept().await.unwrap();
        connections.spawn(async move {
            let (mut reader, mut writer) = socket.split();
            // Its end is of no interest.
            tokio::io::copy(&mut reader, &mut writer).await.ok();
        });
    }
}

async fn echoes(stream: &mut Box<dyn Stream>, words: &[u8]) {
    stream.write_all(words).await.unwrap();
    let mut back = vec![0; words.len()];
    timeout(PATIENCE, stream.read_exact(&mut back))
        .await
        .expect("an echo")
        .unwrap();
    assert_eq!(back, words);
}

async fn details(link: &Arc<dyn Link>, holds: impl Fn(&LinkDetails) -> bool) {
    let mut health = link.health();
    let seen = health.wait_for(|health: &Health| holds(&health.details));
    timeout(PATIENCE, seen).await.expect("the details").unwrap();
}

#[tokio::test]
async fn streams_opened_together_get_sessions_of_their_own_and_all_end_with_the_link() {
    let rig = Rig::new().await;
    let link = rig.link().await;
    assert_eq!(rig.emulator.sessions().len(), 1);
    let mut opened = JoinSet::new();
    for _ in 0..4 {
        let link = Arc::clone(&link);
        opened.spawn(async move { link.open("a").await.unwrap() });
    }
    let mut streams = opened.join_all().await;
    for stream in &mut streams {
        echoes(stream, b"hello").await;
    }
    rig.sessions(4).await;
    details(&link, |details| details.sessions == 4).await;
    let mut fifth = link.open("b").await.unwrap();
    echoes(&mut fifth, b"shared").await;
    link.close().await;
    assert_eq!(rig.emulator.sessions(), []);
    assert!(fifth.read_u8().await.is_err(), "no clean end");
    rig.shared.tasks.close();
    timeout(PATIENCE, rig.shared.tasks.wait())
        .await
        .expect("no task is left");
}

#[tokio::test]
async fn a_link_that_is_dropped_ends_its_sessions() {
    let rig = Rig::new().await;
    let link = rig.link().await;
    let stream = link.open("a").await.unwrap();
    rig.sessions(2).await;
    drop(link);
    drop(stream);
    rig.sessions(0).await;
}

#[tokio::test]
async fn an_attempt_that_is_given_up_leaves_no_session() {
    let rig = Rig::new().await;
    let attempt = timeout(Duration::from_millis(1), rig.transport.connect()).await;
    assert!(attempt.is_err(), "the attempt was quicker than its test");
    rig.shared.tasks.close();
    timeout(PATIENCE, rig.shared.tasks.wait())
        .await
        .expect("no task is left");
    assert_eq!(rig.emulator.sessions(), []);
}

#[tokio::test]
async fn a_stream_survives_a_lost_websocket_and_new_ones_are_held() {
    let rig = Rig::with(|context| context.settings.sessions = PoolSize { min: 1, max: 1 }).await;
    let link = rig.link().await;
    let mut stream = link.open("a").await.unwrap();
    echoes(&mut stream, b"before").await;
    rig.emulator.faults().set("resume-fails").unwrap();
    rig.emulator.cut();
    let mut health = link.health();
    let impaired = health.wait_for(|health| health.impaired.is_some());
    timeout(PATIENCE, impaired).await.expect("impaired").unwrap();
    let opening = timeout(Duration::from_millis(100), link.open("b")).await;
    assert!(opening.is_err(), "held while the link is brought back");
    rig.emulator.faults().clear_all();
    let well = health.wait_for(|health| health.impaired.is_none());
    timeout(PATIENCE, well).await.expect("recovered").unwrap();
    echoes(&mut stream, b"after").await;
}

#[tokio::test]
async fn a_session_whose_credentials_expired_is_kept_and_aws_is_not_asked_until_there_are_others() {
    let rig = Rig::with(|context| context.settings.sessions = PoolSize { min: 1, max: 1 }).await;
    let link = rig.link().await;
    let mut stream = link.open("a").await.unwrap();
    echoes(&mut stream, b"before").await;
    rig.emulator.faults().set("expired-token").unwrap();
    rig.emulator.cut();
    let asked = || rig.emulator.calls()["ssm:ResumeSession"];
    let mut health = link.health();
    let mut known = None;
    for attempts in 1..=2 {
        let is_news = |cause: &Arc<Failure>| {
            cause.reason() == Reason::Login && !known.as_ref().is_some_and(|known| Arc::ptr_eq(known, cause))
        };
        let waits = health.wait_for(|health| {
            let cause = health.impaired.as_ref().map(|impaired| &impaired.cause);
            cause.is_some_and(is_news)
        });
        let health = timeout(PATIENCE, waits)
            .await
            .expect("it waits for a login")
            .unwrap();
        known = health
            .impaired
            .as_ref()
            .map(|impaired| Arc::clone(&impaired.cause));
        assert_eq!(asked(), attempts);
        drop(health);
        // Another network is no reason: were it one, the next round would have one attempt too many.
        link.probe();
        if attempts == 1 {
            link.retry();
        }
    }
    rig.emulator.faults().clear_all();
    link.probe();
    link.retry();
    echoes(&mut stream, b"after").await;
    assert_eq!(asked(), 3);
}

#[tokio::test]
async fn a_websocket_that_died_in_a_sleep_is_replaced_within_two_seconds() {
    let rig = Rig::with(|context| context.settings.sessions = PoolSize { min: 1, max: 1 }).await;
    let link = rig.link().await;
    let mut stream = link.open("a").await.unwrap();
    echoes(&mut stream, b"before").await;
    rig.emulator.freeze();
    let began = Instant::now();
    link.probe();
    echoes(&mut stream, b"after").await;
    let took = began.elapsed();
    // The goal is checked where nothing else runs; here it has ten times as long.
    assert!(took < Duration::from_secs(20), "{took:?}");
    println!("an idle stream went on after {took:?}");
}

#[tokio::test]
async fn a_session_that_is_gone_takes_its_streams_and_the_link_goes_on_with_the_others() {
    let rig = Rig::with(|context| context.settings.sessions = PoolSize { min: 1, max: 2 }).await;
    let link = rig.link().await;
    let mut first = link.open("a").await.unwrap();
    rig.sessions(2).await;
    let mut second = link.open("b").await.unwrap();
    echoes(&mut first, b"x").await;
    echoes(&mut second, b"y").await;
    rig.emulator.faults().set("resume-says-gone*1").unwrap();
    rig.emulator.cut();
    let ended = async {
        tokio::select! {
            end = first.read_u8() => (end, second),
            end = second.read_u8() => (end, first),
        }
    };
    let (end, mut other) = timeout(PATIENCE, ended).await.expect("the end of one");
    assert!(end.is_err(), "no clean end");
    echoes(&mut other, b"not concerned").await;
    let mut third = link.open("c").await.unwrap();
    echoes(&mut third, b"z").await;
}

#[tokio::test]
async fn a_session_whose_duration_is_known_is_replaced_before_and_its_end_is_told_as_that() {
    const LASTS: Duration = Duration::from_secs(2);
    let rig = Rig::with(|context| {
        context.settings.sessions = PoolSize { min: 1, max: 1 };
        context.settings.max_session_duration = Some(LASTS);
    })
    .await;
    let link = rig.link().await;
    let began = Instant::now();
    let mut long = link.open("a").await.unwrap();
    details(&link, |details| {
        details.notes.iter().any(|note| note.contains("will be cut at"))
    })
    .await;
    let mut new = link.open("b").await.unwrap();
    echoes(&mut new, b"y").await;
    echoes(&mut long, b"x").await;
    rig.comes_about("the end of its time", || began.elapsed() >= LASTS)
        .await;
    rig.emulator.faults().set("resume-says-gone*1").unwrap();
    rig.emulator.cut();
    let ended = async {
        tokio::select! {
            end = long.read_u8() => end.unwrap_err(),
            // The newer one was told that it is gone instead. Then it is the older one's turn.
            _ = new.read_u8() => {
                rig.emulator.faults().set("resume-says-gone*1").unwrap();
                rig.emulator.cut();
                long.read_u8().await.unwrap_err()
            }
        }
    };
    let error = timeout(PATIENCE, ended).await.expect("the end of the older one");
    let failure = failure_of(&error).expect("it says why");
    assert_eq!(failure.reason(), Reason::Expired, "{}", failure.in_one_line());
}

#[tokio::test]
async fn the_link_ends_with_its_last_session_and_says_why() {
    let rig = Rig::with(|context| context.settings.sessions = PoolSize { min: 1, max: 1 }).await;
    let link = rig.link().await;
    let mut stream = link.open("a").await.unwrap();
    echoes(&mut stream, b"x").await;
    rig.emulator.faults().set("resume-says-gone").unwrap();
    rig.emulator.cut();
    let failure = timeout(PATIENCE, link.closed()).await.expect("the end");
    assert!(failure.in_one_line().contains("AWS has ended"), "{failure}");
    assert!(stream.read_u8().await.is_err());
    assert!(link.open("b").await.is_err());
}

#[tokio::test]
async fn a_websocket_is_replaced_in_a_quiet_moment_and_nobody_notices() {
    let rig = Rig::with(|context| {
        context.renewals = Schedule::quick();
        context.settings.sessions = PoolSize { min: 1, max: 1 };
    })
    .await;
    let link = rig.link().await;
    let mut health = link.health();
    let mut stream = link.open("a").await.unwrap();
    for _ in 0..3 {
        let before = rig.websockets();
        echoes(&mut stream, b"still here").await;
        rig.comes_about("another websocket", || rig.websockets() > before)
            .await;
    }
    echoes(&mut stream, b"and here").await;
    assert!(health.borrow_and_update().impaired.is_none());
    assert_eq!(rig.emulator.sessions().len(), 1);
}

#[tokio::test]
async fn what_a_reader_has_not_taken_counts_until_it_is_gone() {
    let rig = Rig::with(|context| context.receive_buffer = 2 << 20).await;
    let link = rig.link().await;
    let mut greedy = link.open("127.0.0.1:5").await.unwrap();
    let mut modest = link.open("127.0.0.1:6").await.unwrap();
    let flood = vec![7; 4 << 20];
    greedy.write_all(&flood).await.unwrap();
    // Told without being read, by whoever copies to a client that never will.
    let failure = timeout(PATIENCE, greedy.aborted())
        .await
        .expect("the end")
        .in_one_line();
    assert!(
        failure.contains("127.0.0.1:5") && failure.contains("more than 2 MiB unread"),
        "{failure}"
    );
    echoes(&mut modest, b"not concerned").await;
    let end = loop {
        match greedy.read(&mut vec![0; 65_536]).await {
            Ok(0) => panic!("a truncated download looks complete"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(failure_of(&end).is_some(), "its own words");
    drop(greedy);
    rig.comes_about("all of it free again", || rig.budget.used() == 0)
        .await;
}
