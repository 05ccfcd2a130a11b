//! Links in the process of the test, against the emulator on loopback.

use std::net::Ipv4Addr;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tunneld_emulator::{
    Conditions, Config as World, ConnectConditions, Emulator, EndpointState, TunnelEnd, TunnelMessages,
};

use super::*;
use crate::config::Config;
use crate::failure::{Remedy, Scope};
use crate::transport::failure_of;

const PATIENCE: Duration = Duration::from_secs(30);

const ENDPOINT: &str = "eice-0123456789abcdef0";
const SPARE: &str = "eice-0123456789abcdef1";

/// An instance whose port 22 the test listens on, two endpoints of which the second is not there yet, and the transport.
struct Rig {
    emulator: Emulator,
    target: TcpListener,
    transport: Arc<dyn Transport>,
    _state: TempDir,
}

impl Rig {
    async fn new() -> Self {
        Self::with("", "route = \"eice\"").await
    }

    /// With more of the endpoint, and this route.
    async fn with(endpoint: &str, route: &str) -> Self {
        let target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = target.local_addr().unwrap();
        let world = format!(
            "[[instances]]\nid = \"i-0123456789abcdef0\"\nname = \"web\"\nprivate_address = \"10.0.1.10\"\n\
             ports = {{ 22 = \"{address}\" }}\n\
             [[endpoints]]\nid = \"{ENDPOINT}\"\n{endpoint}\n\
             [[endpoints]]\nid = \"{SPARE}\"\nstate = \"create-in-progress\"\n"
        );
        let emulator = Emulator::start(World::parse(&world).unwrap()).await.unwrap();
        let state = tempfile::tempdir().unwrap();
        let shared = Arc::new(Shared::for_test(&emulator, state.path()));
        let text = format!("[tunnels.web]\nlisten = 17022\ntarget = \"ec2:web:22\"\n{route}\n");
        let spec = Config::parse("config.toml".as_ref(), &text)
            .unwrap()
            .tunnels
            .remove(0);
        Self {
            emulator,
            target,
            transport: crate::transport::build(&spec, &shared),
            _state: state,
        }
    }

    async fn link(&self) -> Arc<dyn Link> {
        self.transport.connect().await.unwrap()
    }

    /// A stream, and the target's side of it.
    async fn stream(&self, link: &dyn Link) -> (Box<dyn Stream>, TcpStream) {
        let (stream, accepted) = tokio::join!(link.open("127.0.0.1:9"), self.target.accept());
        (stream.unwrap(), accepted.unwrap().0)
    }

    fn fault(&self, fault: &str) {
        self.emulator.faults().set(fault).unwrap();
    }
}

async fn failure_of_open(link: &dyn Link) -> Failure {
    link.open("127.0.0.1:9").await.err().expect("it is refused")
}

fn bulk() -> Vec<u8> {
    let mut number = 1_u32;
    let mut next = || {
        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        number.to_le_bytes()[3]
    };
    (0..(6 << 20)).map(|_| next()).collect()
}

#[tokio::test]
async fn bytes_pass_both_ways_in_whatever_messages_they_come() {
    let rig = Rig::new().await;
    let link = rig.link().await;
    let bulk = bulk();
    for messages in [
        TunnelMessages::Plain,
        TunnelMessages::Fragmented,
        TunnelMessages::Giant,
    ] {
        rig.emulator.set_conditions(Conditions {
            connect: ConnectConditions {
                messages,
                ..ConnectConditions::default()
            },
            ..Conditions::default()
        });
        let (mut stream, mut target) = rig.stream(&*link).await;
        let far = async {
            let mut came = vec![0; bulk.len()];
            target.read_exact(&mut came).await.unwrap();
            target.write_all(&came).await.unwrap();
            // The target's end is the stream's.
            target.shutdown().await.unwrap();
            came == bulk
        };
        let near = async {
            stream.write_all(&bulk).await.unwrap();
            stream.flush().await.unwrap();
            let mut back = Vec::new();
            stream.read_to_end(&mut back).await.unwrap();
            back == bulk
        };
        let both = timeout(PATIENCE, async { tokio::join!(far, near) }).await;
        assert_eq!(both.expect("it ends"), (true, true), "{messages:?}");
    }
    let details = link.health().borrow().details.clone();
    assert_eq!(
        (
            details.via.as_str(),
            details.target_host.as_str(),
            details.target_port
        ),
        (ENDPOINT, "10.0.1.10", 22)
    );
}

#[tokio::test]
async fn a_target_that_cannot_be_reached_concerns_one_stream() {
    let rig = Rig::new().await;
    rig.fault("eice-unreachable");
    let mut stream = rig.link().await.open("127.0.0.1:9").await.unwrap();
    let error = stream.read_u8().await.unwrap_err();
    let failure = failure_of(&error).unwrap();
    assert_eq!(
        (failure.reason(), failure.scope()),
        (Reason::TargetRefused, Scope::Stream)
    );
    assert_eq!(
        failure.to_string(),
        format!("the endpoint `{ENDPOINT}` cannot connect to `10.0.1.10:22`")
    );
}

#[tokio::test]
async fn a_refused_upgrade_is_told_with_what_can_be_done() {
    let rig = Rig::new().await;
    let link = rig.link().await;
    for (fault, reason, remedy, word) in [
        ("eice-denied", Reason::Denied, Remedy::Fix, "OpenTunnel"),
        (
            "eice-throttled",
            Reason::Throttled,
            Remedy::Retry,
            "Rate exceeded",
        ),
        (
            "eice-fails",
            Reason::Unreachable,
            Remedy::Retry,
            "The service is unavailable.",
        ),
        (
            "eice-drops-upgrade",
            Reason::Unreachable,
            Remedy::Retry,
            "websocket",
        ),
    ] {
        rig.fault(fault);
        let failure = failure_of_open(&*link).await;
        let line = failure.in_one_line();
        assert_eq!(
            (failure.reason(), failure.remedy(), failure.scope()),
            (reason, &remedy, Scope::Link),
            "{line}"
        );
        assert!(line.contains(word), "{line}");
        rig.emulator.faults().clear_all();
    }
    rig.fault("eice-denied");
    let failure = failure_of_open(&*link).await;
    let hints = failure.hints().join("\n");
    assert!(
        hints.contains("`ec2-instance-connect:OpenTunnel`") && hints.contains("max_tunnel_duration"),
        "{hints}"
    );
}

#[tokio::test]
async fn who_may_have_less_than_an_hour_has_to_ask_for_it() {
    let permitted = "permitted_duration = \"10m\"";
    let rig = Rig::with(permitted, "route = \"eice\"").await;
    let failure = failure_of_open(&*rig.link().await).await;
    assert_eq!(failure.reason(), Reason::Denied);

    let rig = Rig::with(permitted, "route = \"eice\"\nmax_tunnel_duration = \"10m\"").await;
    let link = rig.link().await;
    let (stream, _target) = rig.stream(&*link).await;
    let left = stream.expires().unwrap() - tokio::time::Instant::now();
    assert!(left <= Duration::from_secs(600), "{left:?}");
    assert_eq!(rig.emulator.tunnels()[0].duration, Some(600));
}

#[tokio::test]
async fn the_endpoint_is_looked_up_anew_when_it_leads_nowhere() {
    let rig = Rig::new().await;
    let link = rig.link().await;
    let deleted = EndpointState::DeleteInProgress;
    assert!(rig.emulator.set_endpoint_state(ENDPOINT, deleted));
    let failure = failure_of_open(&*link).await;
    assert_eq!(failure.reason(), Reason::NotFound);
    assert_eq!(
        failure.to_string(),
        format!("the endpoint `{ENDPOINT}` takes no connections: its state is delete-in-progress")
    );

    assert!(
        rig.emulator
            .set_endpoint_state(SPARE, EndpointState::CreateComplete)
    );
    let (_stream, _target) = rig.stream(&*link).await;
    assert_eq!(rig.emulator.tunnels()[0].endpoint, SPARE);
    assert_eq!(link.health().borrow().details.via, SPARE);
}

#[tokio::test]
async fn a_route_by_id_goes_by_no_other_endpoint() {
    let rig = Rig::with("", &format!("route = {{ eice = \"{SPARE}\" }}")).await;
    let failure = rig.transport.connect().await.err().expect("it is not there yet");
    assert_eq!(
        (failure.reason(), failure.remedy()),
        (Reason::Unreachable, &Remedy::Retry)
    );
    assert!(failure.to_string().contains("create-in-progress"), "{failure}");
}

#[tokio::test]
async fn expired_credentials_are_a_matter_of_login() {
    let rig = Rig::new().await;
    let link = rig.link().await;
    rig.fault("expired-token");
    let failure = failure_of_open(&*link).await;
    assert_eq!(failure.reason(), Reason::Login, "{}", failure.in_one_line());
}

#[tokio::test]
async fn credentials_that_are_refused_are_asked_for_anew_once() {
    let rig = Rig::new().await;
    let link = rig.link().await;
    rig.fault("expired-token*1");
    let (_stream, _target) = rig.stream(&*link).await;
    assert_eq!(rig.emulator.faults().active(), []);
}

#[tokio::test]
async fn a_connection_that_is_cut_is_no_clean_end() {
    let rig = Rig::new().await;
    let link = rig.link().await;
    for cut in [
        TunnelEnd::Reset,
        TunnelEnd::Fin,
        TunnelEnd::Close(1001, "going away".to_owned()),
    ] {
        let (mut stream, mut target) = rig.stream(&*link).await;
        target.write_all(b"x").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
        assert_eq!(rig.emulator.end_tunnels(&cut), 1);
        let error = stream.read_u8().await.unwrap_err();
        let failure = failure_of(&error).unwrap_or_else(|| panic!("{cut:?}: {error}"));
        assert_eq!(
            (failure.reason(), failure.scope()),
            (Reason::Unreachable, Scope::Stream),
            "{cut:?}"
        );
    }
}

#[tokio::test]
async fn the_twenty_first_connection_waits_visibly_for_a_place() {
    let rig = Rig::new().await;
    let link = rig.link().await;
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS {
        open.push(rig.stream(&*link).await);
    }
    let refused = link.open_at_once("c").await.err().expect("there is no place");
    let full = format!("all 20 connections of the endpoint `{ENDPOINT}` are in use");
    assert_eq!(
        (refused.to_string(), refused.reason(), refused.scope()),
        (full.clone(), Reason::Throttled, Scope::Stream)
    );
    let delays = rig.transport.delays();
    assert!(delays.borrow().is_empty(), "nobody waits");
    let mut health = link.health();
    let notes = |expected: &'static [&'static str]| move |health: &Health| health.details.notes == expected;
    let free = async {
        let two = &["2 connections wait for one of the 20 of eice-0123456789abcdef0"];
        health.wait_for(notes(two)).await.unwrap();
        assert_eq!(delays.borrow().len(), 2);
        assert_eq!(delays.borrow()[0].to_string(), full);
        drop(open.pop());
        let one = &["1 connection waits for one of the 20 of eice-0123456789abcdef0"];
        health.wait_for(notes(one)).await.unwrap();
        drop(open.pop());
        health.wait_for(notes(&[])).await.unwrap();
        assert!(delays.borrow().is_empty());
    };
    let accepted = async {
        (
            rig.target.accept().await.unwrap(),
            rig.target.accept().await.unwrap(),
        )
    };
    let (first, second, (), _held) = timeout(PATIENCE, async {
        tokio::join!(link.open("a"), link.open("b"), free, accepted)
    })
    .await
    .expect("both get a place");
    assert!(first.is_ok() && second.is_ok());
}
