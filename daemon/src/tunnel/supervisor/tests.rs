use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::*;
use crate::failure::{Reason, Remedy};
use crate::status::{Board, Status};
use crate::transport::Delays;
use crate::tunnel::Handle;
use crate::tunnel::fake::{self, Attempts};

/// A supervised tunnel with a transport that the test holds in its hand.
struct Rig {
    spec: Arc<TunnelSpec>,
    board: Arc<Board>,
    handle: Handle,
    attempts: Attempts,
    delays: Delays,
    tasks: TaskTracker,
}

impl Rig {
    fn new() -> Self {
        Self::of(fake::spec("db"))
    }

    fn of(spec: TunnelSpec) -> Self {
        let board = Arc::new(Board::new());
        let (transport, attempts) = fake::transport();
        let delays = transport.delays.clone();
        let entry = board.enter(&spec);
        let tasks = TaskTracker::new();
        let spec = Arc::new(spec);
        let allowance = Allowance::of_process();
        let handle = Handle::start(Arc::clone(&spec), transport, entry, allowance, &tasks);
        Self {
            spec,
            board,
            handle,
            attempts,
            delays,
            tasks,
        }
    }

    async fn up() -> (Self, fake::FakeFar) {
        let mut rig = Self::new();
        rig.handle.up(Wish::Listen).await.unwrap();
        let far = rig.attempts.next().await.succeed();
        rig.shows("up").await;
        (rig, far)
    }

    /// An on-demand tunnel that listens.
    async fn idle() -> Self {
        let rig = Self::of(fake::on_demand("db"));
        rig.handle.up(Wish::Listen).await.unwrap();
        assert_eq!(rig.state(), "idle");
        rig
    }

    /// An on-demand tunnel with a link that a connection uses: its client, and its target's end.
    async fn used() -> (Self, fake::FakeFar, TcpStream, DuplexStream) {
        let mut rig = Self::idle().await;
        let client = rig.client().await;
        let far = rig.attempts.next().await.succeed();
        let target = far.accept().await;
        (rig, far, client, target)
    }

    fn address(&self) -> SocketAddr {
        fake::address(&self.spec)
    }

    async fn client(&self) -> TcpStream {
        TcpStream::connect(self.address()).await.unwrap()
    }

    /// Waits until a status is as wanted.
    async fn becomes(&self, wanted: impl Fn(&Status) -> bool) -> Arc<Status> {
        let mut changes = self.board.subscribe();
        let seen = async {
            loop {
                let snapshot = changes.next().await.unwrap();
                if wanted(&snapshot[0]) {
                    return Arc::clone(&snapshot[0]);
                }
            }
        };
        timeout(Duration::from_secs(3600), seen)
            .await
            .unwrap_or_else(|_| {
                let last = &self.board.snapshot()[0];
                panic!("still {:?}, with {:?}", last.state, last.last_error)
            })
    }

    async fn shows(&self, state: &str) -> Arc<Status> {
        self.becomes(|status| status.state.name() == state).await
    }

    fn state(&self) -> &'static str {
        self.board.snapshot()[0].state.name()
    }

    fn traffic(&self) -> crate::meter::Traffic {
        self.board.snapshot()[0].meter.read()
    }

    /// Waits until as many connections are held.
    async fn holds(&self, count: u32) {
        while self.traffic().held != count {
            tokio::task::yield_now().await;
        }
    }
}

async fn is_reset(mut client: TcpStream) -> bool {
    matches!(client.read(&mut [0]).await, Err(error) if error.kind() == io::ErrorKind::ConnectionReset)
}

fn login() -> Failure {
    Failure::new(
        Reason::Login,
        Remedy::Login { profile: None },
        "the login expired",
    )
}

fn denied() -> Failure {
    Failure::new(Reason::Denied, Remedy::Fix, "not allowed to start a session")
}

#[tokio::test(start_paused = true)]
async fn bytes_flow_both_ways_and_are_counted_while_they_do() {
    let (rig, far) = Rig::up().await;
    let mut client = rig.client().await;
    let mut target = far.accept().await;
    client.write_all(b"question").await.unwrap();
    let mut question = [0; 8];
    target.read_exact(&mut question).await.unwrap();
    assert_eq!(&question, b"question");
    target.write_all(b"the answer").await.unwrap();
    let mut answer = [0; 10];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"the answer");
    let traffic = rig.traffic();
    assert_eq!(
        (traffic.bytes_out, traffic.bytes_in, traffic.connections),
        (8, 10, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn up_answers_once_the_port_is_bound_and_before_there_is_a_link() {
    let mut rig = Rig::new();
    rig.handle.up(Wish::Listen).await.unwrap();
    assert_eq!(rig.state(), "connecting");
    rig.client().await;
    let _hanging = rig.attempts.next().await;
    rig.handle.up(Wish::Listen).await.unwrap();
    assert!(rig.attempts.is_quiet(), "a tunnel on its way is left alone");
}

#[tokio::test(start_paused = true)]
async fn down_is_honoured_while_connecting() {
    let mut rig = Rig::new();
    rig.handle.up(Wish::Listen).await.unwrap();
    let attempt = rig.attempts.next().await;
    rig.handle.down().await.unwrap();
    attempt.given_up().await;
    assert_eq!(rig.state(), "down");
    TcpStream::connect(rig.address())
        .await
        .expect_err("nobody listens");
}

#[tokio::test(start_paused = true)]
async fn down_closes_the_link_and_resets_connections_before_it_answers() {
    let (rig, far) = Rig::up().await;
    let client = rig.client().await;
    let _target = far.accept().await;
    rig.handle.down().await.unwrap();
    assert!(far.has_goodbye());
    assert!(is_reset(client).await);
    assert_eq!(rig.traffic().connections, 0);
}

#[tokio::test(start_paused = true)]
async fn up_right_after_down_binds_the_same_port() {
    let (mut rig, _far) = Rig::up().await;
    let (down, up) = tokio::join!(rig.handle.down(), rig.handle.up(Wish::Listen));
    down.unwrap();
    up.unwrap();
    rig.attempts.next().await.succeed();
    rig.shows("up").await;
    rig.client().await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_made_while_connecting_waits_for_the_link() {
    let mut rig = Rig::new();
    rig.handle.up(Wish::Listen).await.unwrap();
    let attempt = rig.attempts.next().await;
    let mut client = rig.client().await;
    client.write_all(b"early").await.unwrap();
    rig.holds(1).await;
    let far = attempt.succeed();
    let mut target = far.accept().await;
    let mut early = [0; 5];
    target.read_exact(&mut early).await.unwrap();
    assert_eq!(&early, b"early", "what was sent before the link is there");
    rig.holds(0).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_held_as_long_as_configured_and_then_reset() {
    let mut rig = Rig::new();
    rig.handle.up(Wish::Listen).await.unwrap();
    let _hanging = rig.attempts.next().await;
    let began = Instant::now();
    assert!(is_reset(rig.client().await).await);
    assert!(began.elapsed() >= rig.spec.hold);
    assert_eq!(rig.traffic().connections_failed, 1);
}

#[tokio::test(start_paused = true)]
async fn a_held_client_that_left_is_dropped() {
    let mut rig = Rig::new();
    rig.handle.up(Wish::Listen).await.unwrap();
    let attempt = rig.attempts.next().await;
    let client = rig.client().await;
    rig.holds(1).await;
    drop(client);
    rig.holds(0).await;
    let far = attempt.succeed();
    rig.shows("up").await;
    let _client = rig.client().await;
    far.accept().await;
    assert_eq!(
        rig.traffic().connections,
        1,
        "the one that left asked for no stream"
    );
}

#[tokio::test(start_paused = true)]
async fn a_connection_waits_out_a_lost_link() {
    let (mut rig, far) = Rig::up().await;
    far.end(fake::lost());
    rig.shows("waiting").await;
    let mut client = rig.client().await;
    let far = rig.attempts.next().await.succeed();
    far.accept().await.write_all(b"!").await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'!');
    assert_eq!(rig.traffic().links_lost, 1);
}

#[tokio::test(start_paused = true)]
async fn a_missing_login_holds_connections_and_up_tries_again() {
    let mut rig = Rig::new();
    rig.handle.up(Wish::Listen).await.unwrap();
    rig.attempts.next().await.fail(login());
    rig.shows("blocked").await;
    let mut client = rig.client().await;
    rig.holds(1).await;
    assert!(rig.attempts.is_quiet());
    rig.handle.up(Wish::Listen).await.unwrap();
    let far = rig.attempts.next().await.succeed();
    far.accept().await.write_all(b"!").await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'!');
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_a_person_must_mend_closes_connections_at_once() {
    let mut rig = Rig::new();
    rig.handle.up(Wish::Listen).await.unwrap();
    let attempt = rig.attempts.next().await;
    let held = rig.client().await;
    rig.holds(1).await;
    attempt.fail(denied());
    rig.shows("blocked").await;
    let began = Instant::now();
    assert!(is_reset(held).await, "one that waited");
    assert!(is_reset(rig.client().await).await, "a new one");
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_a_person_must_mend_is_tried_again_on_reload() {
    let mut rig = Rig::new();
    rig.handle.up(Wish::Listen).await.unwrap();
    rig.attempts.next().await.fail(denied());
    rig.shows("blocked").await;
    rig.handle.reloaded().await.unwrap();
    rig.attempts.next().await.succeed();
    rig.shows("up").await;
}

#[tokio::test(start_paused = true)]
async fn an_impaired_link_keeps_its_streams_and_holds_new_connections() {
    let (mut rig, far) = Rig::up().await;
    let mut old = rig.client().await;
    let mut target = far.accept().await;
    far.impair();
    let status = rig.shows("waiting").await;
    assert!(
        matches!(status.state, status::State::Waiting { until: None, .. }),
        "{:?}",
        status.state
    );
    let mut new = rig.client().await;
    rig.holds(1).await;
    target.write_all(b"a").await.unwrap();
    assert_eq!(old.read_u8().await.unwrap(), b'a', "what was under way goes on");
    far.recover();
    rig.shows("up").await;
    far.accept().await.write_all(b"b").await.unwrap();
    assert_eq!(new.read_u8().await.unwrap(), b'b');
    assert!(rig.attempts.is_quiet(), "the link was kept");
    assert_eq!(rig.traffic().links_lost, 0);
}

#[tokio::test(start_paused = true)]
async fn a_part_of_a_link_that_ends_is_shown_and_changes_no_state() {
    let (rig, far) = Rig::up().await;
    let reason = |status: &Status| Some(status.last_error.as_ref()?.failure.reason());
    far.end_part(denied());
    rig.becomes(|status| reason(status) == Some(Reason::Denied)).await;
    assert_eq!(rig.state(), "up");
    far.impair();
    rig.shows("waiting").await;
    far.recover();
    let status = rig.shows("up").await;
    assert_eq!(reason(&status), Some(Reason::Unreachable), "told once");
}

#[tokio::test(start_paused = true)]
async fn a_refused_stream_ends_its_connection_alone() {
    let (rig, far) = Rig::up().await;
    let mut other = rig.client().await;
    let mut target = far.accept().await;
    let client = rig.client().await;
    let refused = Failure::new(Reason::TargetRefused, Remedy::Retry, "`db:5432` refused").of_stream();
    far.opening().await.refuse(refused);
    assert!(is_reset(client).await);
    let status = rig.becomes(|status| status.last_error.is_some()).await;
    assert_eq!(
        status.last_error.as_ref().unwrap().failure.to_string(),
        "`db:5432` refused"
    );
    assert_eq!(status.state.name(), "up");
    assert_eq!(rig.traffic().connections_failed, 1);
    target.write_all(b"!").await.unwrap();
    assert_eq!(other.read_u8().await.unwrap(), b'!');
}

#[tokio::test(start_paused = true)]
async fn a_link_that_cannot_open_streams_is_made_anew_for_the_same_connection() {
    let (mut rig, far) = Rig::up().await;
    let mut client = rig.client().await;
    far.opening().await.refuse(fake::lost());
    let far = rig.attempts.next().await.succeed();
    far.accept().await.write_all(b"!").await.unwrap();
    assert_eq!(
        client.read_u8().await.unwrap(),
        b'!',
        "the client noticed nothing"
    );
}

#[tokio::test(start_paused = true)]
async fn a_link_that_was_let_go_ends_with_its_last_stream() {
    let (rig, far) = Rig::up().await;
    let mut old = rig.client().await;
    let mut target = far.accept().await;
    let _new = rig.client().await;
    far.opening().await.refuse(login());
    rig.shows("blocked").await;
    assert!(!far.has_goodbye());
    target.write_all(b"!").await.unwrap();
    assert_eq!(
        old.read_u8().await.unwrap(),
        b'!',
        "blocked keeps existing streams"
    );
    drop((old, target));
    far.goodbye().await;
}

#[tokio::test(start_paused = true)]
async fn the_waits_between_attempts_grow() {
    let mut rig = Rig::new();
    rig.handle.up(Wish::Listen).await.unwrap();
    let mut attempt = rig.attempts.next().await;
    let mut waits = Vec::new();
    for _ in 0..10 {
        let began = Instant::now();
        attempt.fail(fake::lost());
        attempt = rig.attempts.next().await;
        waits.push(began.elapsed());
    }
    assert!(waits[0] <= Duration::from_millis(500), "{waits:?}");
    assert!(waits[9] >= Duration::from_secs(15), "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn a_taken_port_blocks_naming_its_holder_until_it_is_free() {
    let mut rig = Rig::new();
    let other = std::net::TcpListener::bind(rig.address()).unwrap();
    rig.handle.up(Wish::Listen).await.unwrap();
    let status = rig.board.snapshot()[0].clone();
    let status::State::Blocked { cause } = &status.state else {
        panic!("{:?}", status.state)
    };
    assert_eq!(cause.reason(), Reason::PortInUse);
    if cfg!(target_os = "linux") {
        let holder = format!("(pid {})", std::process::id());
        assert!(cause.to_string().ends_with(&holder), "{cause}");
    }
    assert!(
        rig.attempts.is_quiet(),
        "AWS is not asked for a port that cannot be used"
    );
    let generation = status.generation;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(
        rig.board.snapshot()[0].generation,
        generation,
        "trying again is no news"
    );
    drop(other);
    rig.attempts.next().await.succeed();
    rig.shows("up").await;
    rig.client().await;
}

#[tokio::test(start_paused = true)]
async fn finishing_frees_the_port_at_once_and_lets_streams_end_by_themselves() {
    let (rig, far) = Rig::up().await;
    let mut client = rig.client().await;
    let mut target = far.accept().await;
    assert!(
        rig.handle.finish(Duration::from_secs(10)).await.unwrap(),
        "it was wanted"
    );
    std::net::TcpListener::bind(rig.address()).expect("the port is free");
    target.write_all(b"the end").await.unwrap();
    drop(target);
    let mut all = Vec::new();
    client.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"the end");
    assert!(!far.has_goodbye());
    drop(client);
    far.goodbye().await;
    rig.tasks.close();
    rig.tasks.wait().await;
}

#[tokio::test(start_paused = true)]
async fn streams_that_outlast_the_grace_period_are_reset() {
    let (rig, far) = Rig::up().await;
    let client = rig.client().await;
    let _target = far.accept().await;
    let began = Instant::now();
    rig.handle.finish(Duration::from_secs(10)).await.unwrap();
    assert!(is_reset(client).await);
    assert!(began.elapsed() >= Duration::from_secs(10));
    far.goodbye().await;
}

#[tokio::test(start_paused = true)]
async fn a_held_connection_is_reset_when_the_tunnel_finishes() {
    let mut rig = Rig::new();
    rig.handle.up(Wish::Listen).await.unwrap();
    let attempt = rig.attempts.next().await;
    let client = rig.client().await;
    rig.holds(1).await;
    let began = Instant::now();
    assert!(rig.handle.finish(Duration::from_secs(10)).await.unwrap());
    attempt.given_up().await;
    assert!(is_reset(client).await);
    assert!(began.elapsed() < Duration::from_secs(1));
    rig.handle
        .up(Wish::Listen)
        .await
        .expect_err("nobody is there any more");
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_was_down_finishes_as_not_wanted() {
    let rig = Rig::new();
    assert!(!rig.handle.finish(Duration::ZERO).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn an_on_demand_tunnel_connects_for_its_first_connection_which_waits() {
    let mut rig = Rig::idle().await;
    assert!(rig.attempts.is_quiet());
    let mut client = rig.client().await;
    let attempt = rig.attempts.next().await;
    assert_eq!(rig.state(), "connecting");
    rig.holds(1).await;
    let far = attempt.succeed();
    far.accept().await.write_all(b"!").await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'!');
}

#[tokio::test(start_paused = true)]
async fn a_link_that_nobody_uses_any_more_is_closed_and_made_anew_for_the_next_connection() {
    let (mut rig, far, client, target) = Rig::used().await;
    drop((client, target));
    let began = Instant::now();
    let status = rig.shows("idle").await;
    assert!(began.elapsed() >= Duration::from_secs(900));
    far.goodbye().await;
    assert!(status.link.is_none());
    assert!(status.last_error.is_none(), "{:?}", status.last_error);
    assert_eq!(rig.traffic().links_lost, 0, "it was not lost");

    let mut client = rig.client().await;
    let far = rig.attempts.next().await.succeed();
    far.accept().await.write_all(b"!").await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'!');
}

#[tokio::test(start_paused = true)]
async fn a_link_is_kept_as_long_as_a_connection_is_open_though_nothing_is_said() {
    let (mut rig, far, mut client, mut target) = Rig::used().await;
    tokio::time::sleep(Duration::from_secs(86_400)).await;
    assert_eq!(rig.state(), "up");
    target.write_all(b"!").await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'!');
    assert!(!far.has_goodbye() && rig.attempts.is_quiet());
}

#[tokio::test(start_paused = true)]
async fn a_lost_link_that_nobody_waits_for_leaves_an_on_demand_tunnel_idle() {
    let (mut rig, far, _client, _target) = Rig::used().await;
    far.end(fake::lost());
    let status = rig.shows("idle").await;
    let last = status.last_error.as_ref().expect("the cause is shown");
    assert_eq!(last.failure.to_string(), fake::lost().to_string());
    assert_eq!(
        status.history.back().map(|last| last.reason.as_str()),
        Some("the websocket was closed")
    );
    assert_eq!(rig.traffic().links_lost, 1);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(rig.attempts.is_quiet());
}

#[tokio::test(start_paused = true)]
async fn a_connection_whose_stream_was_being_opened_on_a_lost_link_gets_the_next_one() {
    let mut rig = Rig::idle().await;
    let mut client = rig.client().await;
    let far = rig.attempts.next().await.succeed();
    let opening = far.opening().await;
    far.end(fake::lost());
    opening.given_up().await;
    let far = rig.attempts.next().await.succeed();
    far.accept().await.write_all(b"!").await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'!');
}

#[tokio::test(start_paused = true)]
async fn a_link_that_cannot_open_streams_is_made_anew_on_demand_too() {
    let mut rig = Rig::idle().await;
    let mut client = rig.client().await;
    let far = rig.attempts.next().await.succeed();
    far.opening().await.refuse(fake::lost());
    let status = rig.shows("waiting").await;
    let history: Vec<_> = status.history.iter().map(|past| past.state).collect();
    assert_eq!(
        history,
        ["idle", "connecting", "up", "waiting"],
        "the client waits all the time"
    );
    let far = rig.attempts.next().await.succeed();
    far.accept().await.write_all(b"!").await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'!');
}

#[tokio::test(start_paused = true)]
async fn a_failed_attempt_is_repeated_only_while_somebody_waits() {
    let mut rig = Rig::idle().await;
    let client = rig.client().await;
    let attempt = rig.attempts.next().await;
    rig.holds(1).await;
    attempt.fail(fake::lost());
    let attempt = rig.attempts.next().await;
    drop(client);
    rig.holds(0).await;
    attempt.fail(fake::lost());
    let status = rig.shows("idle").await;
    assert!(status.last_error.is_some(), "the cause is shown");
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(rig.attempts.is_quiet());
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_may_not_be_held_makes_the_link_for_those_after_it() {
    let mut rig = Rig::of(TunnelSpec {
        hold: Duration::ZERO,
        ..fake::on_demand("db")
    });
    rig.handle.up(Wish::Listen).await.unwrap();
    assert!(is_reset(rig.client().await).await);
    let far = rig.attempts.next().await.succeed();
    rig.shows("up").await;
    let mut client = rig.client().await;
    far.accept().await.write_all(b"!").await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'!');
}

#[tokio::test(start_paused = true)]
async fn an_on_demand_tunnel_that_a_person_wants_connected_does_not_wait_for_a_connection() {
    let mut rig = Rig::idle().await;
    rig.handle.up(Wish::Connect).await.unwrap();
    assert_eq!(rig.state(), "connecting");
    let far = rig.attempts.next().await.succeed();
    rig.shows("up").await;
    rig.shows("idle").await;
    far.goodbye().await;
}

#[tokio::test(start_paused = true)]
async fn down_and_finish_end_an_idle_tunnel() {
    let rig = Rig::idle().await;
    rig.handle.down().await.unwrap();
    assert_eq!(rig.state(), "down");
    std::net::TcpListener::bind(rig.address()).expect("the port is free");
    rig.handle.up(Wish::Listen).await.unwrap();
    assert!(
        rig.handle.finish(Duration::from_secs(10)).await.unwrap(),
        "it was wanted"
    );
    rig.shows("down").await;
}

#[tokio::test(start_paused = true)]
async fn what_an_attempt_waits_for_is_shown_as_long_as_it_does() {
    let mut rig = Rig::new();
    rig.handle.up(Wish::Listen).await.unwrap();
    let attempt = rig.attempts.next().await;
    let full = || Failure::new(Reason::Throttled, Remedy::Retry, "all 20 connections are in use");
    let notes = |status: &Status| status.link.as_ref().map(|link| link.notes.clone());
    let waits = |status: &Status| notes(status) == Some(vec!["all 20 connections are in use".to_owned()]);
    let delay = rig.delays.begin(full());
    assert_eq!(rig.becomes(waits).await.state.name(), "connecting");
    drop(delay);
    rig.becomes(|status| status.link.is_none()).await;
    let _delay = rig.delays.begin(full());
    rig.becomes(waits).await;
    attempt.fail(full());
    rig.becomes(|status| status.link.is_none() && status.state.name() == "waiting")
        .await;
}
