use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinSet;

use super::*;
use crate::config::{Defaults, Written};
use crate::tunnel::fake::{self, Attempts, FakeFar, lost};

/// Visits over a transport that the test holds in its hand.
struct Rig {
    visits: Arc<Visits>,
    attempts: Attempts,
    running: JoinSet<Result<(), Arc<Failure>>>,
}

impl Rig {
    fn new() -> Self {
        let (transport, attempts) = fake::transport();
        let transports: Transports = Arc::new(move |_| Arc::clone(&transport) as _);
        Self {
            visits: Visits::new(fake::aws(), transports),
            attempts,
            running: JoinSet::new(),
        }
    }

    /// Has a client visit a target; returns its end.
    fn visit(&mut self, target: &str) -> DuplexStream {
        let (near, mut far) = duplex(64 * 1024);
        let (visits, wanted) = (Arc::clone(&self.visits), wanted(target));
        self.running
            .spawn(async move { visits.open(wanted).await?.carry(&mut far).await });
        near
    }

    /// Waits for the end of a visit.
    async fn ended(&mut self) -> Result<(), Arc<Failure>> {
        self.running.join_next().await.unwrap().unwrap()
    }

    /// Has a client visit a target, over a link that is made for it.
    async fn linked(&mut self) -> (DuplexStream, FakeFar) {
        let client = self.visit("a:1");
        let far = self.attempts.next().await.succeed();
        (client, far)
    }
}

fn wanted(target: &str) -> Wanted {
    let written = Written {
        target: target.to_owned(),
        route: "direct".to_owned(),
        ..Written::default()
    };
    Wanted::read(written, Arc::new(Defaults::default())).unwrap()
}

#[tokio::test(start_paused = true)]
async fn bytes_and_both_ends_pass() {
    let mut rig = Rig::new();
    let (mut client, far) = rig.linked().await;
    let mut target = far.accept().await;
    client.write_all(b"there").await.unwrap();
    client.shutdown().await.unwrap();
    let mut received = String::new();
    target.read_to_string(&mut received).await.unwrap();
    assert_eq!(received, "there");
    target.write_all(b"and back").await.unwrap();
    drop(target);
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "and back");
    assert!(rig.ended().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn visits_to_one_destination_share_a_link_and_others_do_not() {
    let mut rig = Rig::new();
    let (_first, far) = rig.linked().await;
    let _target = far.accept().await;
    let _second = rig.visit("a:1");
    let _other_target = far.accept().await;
    assert!(rig.attempts.is_quiet());
    let _elsewhere = rig.visit("b:1");
    rig.attempts.next().await.succeed().accept().await;
}

#[tokio::test(start_paused = true)]
async fn a_link_is_closed_a_while_after_its_last_visit() {
    let mut rig = Rig::new();
    let (client, far) = rig.linked().await;
    let target = far.accept().await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(!far.has_goodbye(), "it is in use");
    drop((client, target));
    assert!(rig.ended().await.is_ok());
    let left = Instant::now();
    far.goodbye().await;
    assert_eq!(left.elapsed().as_secs(), 60);
    let _again = rig.visit("a:1");
    rig.attempts.next().await.succeed().accept().await;
}

#[tokio::test(start_paused = true)]
async fn a_link_that_was_lost_is_made_anew_for_the_next_visit() {
    let mut rig = Rig::new();
    let (_client, far) = rig.linked().await;
    let _target = far.accept().await;
    far.end(lost());
    tokio::task::yield_now().await;
    let _second = rig.visit("a:1");
    rig.attempts.next().await.succeed().accept().await;
}

#[tokio::test(start_paused = true)]
async fn a_link_that_opens_no_stream_is_replaced_once() {
    let mut rig = Rig::new();
    let (_client, far) = rig.linked().await;
    far.opening().await.refuse(lost());
    let another = rig.attempts.next().await.succeed();
    another.opening().await.refuse(lost());
    let failure = rig.ended().await.unwrap_err();
    assert_eq!(failure.to_string(), "the websocket was closed");
    assert!(rig.attempts.is_quiet());
}

#[tokio::test(start_paused = true)]
async fn a_target_that_refuses_costs_no_link() {
    let mut rig = Rig::new();
    let (_client, far) = rig.linked().await;
    let refused = Failure::new(Reason::TargetRefused, Remedy::Retry, "refused").of_stream();
    far.opening().await.refuse(refused);
    assert_eq!(rig.ended().await.unwrap_err().to_string(), "refused");
    let _second = rig.visit("a:1");
    let _target = far.accept().await;
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_fails_is_told_to_all_who_wait_and_not_remembered() {
    let mut rig = Rig::new();
    let _first = rig.visit("a:1");
    let attempt = rig.attempts.next().await;
    let _second = rig.visit("a:1");
    tokio::task::yield_now().await;
    attempt.fail(lost());
    for _ in 0..2 {
        assert_eq!(
            rig.ended().await.unwrap_err().to_string(),
            "the websocket was closed"
        );
    }
    let _third = rig.visit("a:1");
    rig.attempts.next().await.succeed().accept().await;
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_nobody_waits_for_is_given_up() {
    let mut rig = Rig::new();
    let _client = rig.visit("a:1");
    let attempt = rig.attempts.next().await;
    rig.running.shutdown().await;
    attempt.given_up().await;
}

#[tokio::test(start_paused = true)]
async fn what_hangs_ends_in_words() {
    let mut rig = Rig::new();
    let _client = rig.visit("a:1");
    let _hangs = rig.attempts.next().await;
    let failure = rig.ended().await.unwrap_err();
    assert_eq!(failure.to_string(), "`a:1` was not reached within 120 s");
}

#[tokio::test(start_paused = true)]
async fn who_waits_in_vain_for_a_place_on_a_link_is_told_so() {
    let mut rig = Rig::new();
    let (_client, far) = rig.linked().await;
    let _hangs = far.opening().await;
    far.note("1 connection waits for one of the 20 of eice-1");
    let failure = rig.ended().await.unwrap_err();
    assert_eq!(
        failure.hints(),
        ["1 connection waits for one of the 20 of eice-1"]
    );
}

#[tokio::test(start_paused = true)]
async fn when_the_daemon_stops_visits_have_the_grace_period_and_are_then_reset() {
    let mut rig = Rig::new();
    let (mut client, far) = rig.linked().await;
    let mut target = far.accept().await;
    target.write_all(b"!").await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'!');
    let (visits, began) = (Arc::clone(&rig.visits), Instant::now());
    let (ended, ()) = tokio::join!(rig.ended(), visits.shutdown(Duration::from_secs(10)));
    assert_eq!(ended.unwrap_err().to_string(), "the daemon is stopping");
    assert_eq!(began.elapsed().as_secs(), 10);
    assert!(far.has_goodbye());
    let _late = rig.visit("a:1");
    assert_eq!(
        rig.ended().await.unwrap_err().to_string(),
        "the daemon is stopping"
    );
    assert!(rig.attempts.is_quiet());
}
