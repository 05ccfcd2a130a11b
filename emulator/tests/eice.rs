//! Tunnels through endpoints of EC2 Instance Connect: what they carry, how they end, and who may open one.

mod common;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::client::PATIENCE;
use common::{Caller, plain};
use futures_util::{SinkExt, StreamExt};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};
use tunneld_emulator::{
    Conditions, Config, ConnectConditions, Emulator, EndpointState, LineConditions, TunnelEnd, TunnelExpiry,
    TunnelMessages,
};

const ENDPOINT: &str = "eice-0123456789abcdef0";
const HOST: &str =
    "eice-0123456789abcdef0.b67b86ba.ec2-instance-connect-endpoint.ap-northeast-1.amazonaws.com";
/// An instance with a listener of the test's on port 22, and nothing on port 3389.
const ADDRESS: &str = "10.0.1.10";

struct Stage {
    emulator: Emulator,
    caller: Caller,
    target: TcpListener,
}

/// How a tunnel ended, as its client saw it.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Closed(u16, String),
    /// Without a close frame.
    Gone,
    Reset,
}

/// An HTTP answer that is no upgrade.
#[derive(Debug)]
struct Refused {
    status: u16,
    body: String,
}

impl Refused {
    fn code(&self) -> String {
        let body: Value = serde_json::from_str(&self.body).expect("JSON");
        body["ErrorCode"].as_str().expect("a code").to_owned()
    }
}

impl Stage {
    async fn start(endpoint: &str) -> Self {
        let target = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = target.local_addr().expect("an address");
        let account = format!(
            "[[endpoints]]\nid = \"{ENDPOINT}\"\n{endpoint}\n\
             [[instances]]\nid = \"i-0123456789abcdef0\"\nprivate_address = \"{ADDRESS}\"\n\
             ports = {{ 22 = \"{address}\" }}\n\
             [[instances]]\nid = \"i-0123456789abcdef1\"\nvpc = \"vpc-2\"\nprivate_address = \"10.2.0.1\"\n\
             ports = {{ 22 = \"{address}\" }}\n"
        );
        let config = Config::parse(&account).expect("a good configuration");
        let emulator = Emulator::start(config).await.expect("the emulator starts");
        let caller = Caller::of(&emulator);
        Self {
            emulator,
            caller,
            target,
        }
    }

    /// The query of a tunnel to a port.
    fn query(port: u16) -> String {
        format!("instanceConnectEndpointId={ENDPOINT}&remotePort={port}&privateIpAddress={ADDRESS}")
    }

    async fn open(&self, query: &str) -> Result<WebSocketStream<TcpStream>, Refused> {
        let tcp = TcpStream::connect(self.emulator.address())
            .await
            .expect("it listens");
        open_over(tcp, &self.caller, query).await
    }

    /// A tunnel to port 22, and its target's side.
    async fn tunnel(&self) -> (WebSocketStream<TcpStream>, TcpStream) {
        let socket = self.open(&Self::query(22)).await.expect("a good request");
        let (target, _) = self.target.accept().await.expect("it is dialled");
        (socket, target)
    }

    fn connect(&self, connect: ConnectConditions) {
        self.emulator.set_conditions(Conditions {
            connect,
            ..Conditions::default()
        });
    }

    /// Waits until no tunnel is open; returns what ended the last one.
    async fn ended(&self) -> String {
        timeout(PATIENCE, async {
            while !self.emulator.tunnels().is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("all tunnels end");
        let last = self.emulator.ended_tunnels().pop().expect("there was one");
        last.ended.expect("it has ended")
    }
}

async fn open_over<S: AsyncRead + AsyncWrite + Unpin>(
    io: S,
    caller: &Caller,
    query: &str,
) -> Result<WebSocketStream<S>, Refused> {
    let request = caller.opening(HOST, query);
    match tokio_tungstenite::client_async(request, io).await {
        Ok((socket, response)) => {
            assert!(response.headers().contains_key("x-amzn-requestid"));
            Ok(socket)
        }
        Err(Error::Http(response)) => {
            assert!(response.headers().contains_key("x-amzn-requestid"));
            let body = response.body().clone().unwrap_or_default();
            Err(Refused {
                status: response.status().as_u16(),
                body: String::from_utf8(body).expect("text"),
            })
        }
        Err(error) => panic!("neither an upgrade nor an answer: {error}"),
    }
}

/// Reads to the end; returns the bytes that came, in how many messages, and the end.
async fn drain(socket: &mut WebSocketStream<TcpStream>) -> (Vec<u8>, usize, End) {
    let (mut bytes, mut messages) = (Vec::new(), 0);
    let end = timeout(PATIENCE, async {
        loop {
            match socket.next().await {
                Some(Ok(Message::Binary(piece))) => {
                    bytes.extend_from_slice(&piece);
                    messages += 1;
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(frame))) => {
                    let CloseFrame { code, reason } = frame.expect("the service gives a code");
                    return End::Closed(code.into(), reason.as_str().to_owned());
                }
                Some(Ok(Message::Text(_) | Message::Frame(_))) => panic!("no binary message"),
                Some(Err(Error::Io(error))) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                    return End::Reset;
                }
                Some(Err(_)) | None => return End::Gone,
            }
        }
    })
    .await
    .expect("the tunnel ends");
    (bytes, messages, end)
}

#[tokio::test]
async fn bytes_go_both_ways_and_the_target_s_end_is_a_clean_close() {
    let stage = Stage::start("").await;
    let (mut socket, mut target) = stage.tunnel().await;
    for piece in ["", "SSH-", "", "2.0"] {
        socket.send(Message::binary(piece)).await.expect("it is taken");
    }
    let mut read = [0; 7];
    target.read_exact(&mut read).await.expect("it comes");
    assert_eq!(&read, b"SSH-2.0");
    assert_eq!(stage.emulator.tunnels()[0].endpoint, ENDPOINT);
    let sent: Vec<u8> = (0..3_000_000_u32).map(|number| number as u8).collect();
    let writing = async {
        target.write_all(&sent).await.expect("it is taken");
        drop(target);
    };
    let ((), (bytes, _, end)) = tokio::join!(writing, drain(&mut socket));
    assert!(bytes == sent);
    assert_eq!(end, End::Closed(1000, String::new()));
    assert_eq!(stage.ended().await, "the target closed it");
}

#[tokio::test]
async fn a_client_s_close_ends_both_ways_after_what_it_sent() {
    let stage = Stage::start("").await;
    let (mut socket, mut target) = stage.tunnel().await;
    let sent = vec![7; 1_000_000];
    let writing = async {
        for piece in sent.chunks(65_000) {
            let piece = Bytes::copy_from_slice(piece);
            socket.send(Message::Binary(piece)).await.expect("it is taken");
        }
        socket.close(None).await.expect("it closes");
    };
    let mut read = Vec::new();
    let ((), read_all) = tokio::join!(writing, target.read_to_end(&mut read));
    read_all.expect("a clean end");
    assert!(read == sent);
    assert_eq!(stage.ended().await, "the client closed it");
}

#[tokio::test]
async fn a_ping_is_answered_and_a_text_ends_the_tunnel() {
    let stage = Stage::start("").await;
    let (mut socket, _target) = stage.tunnel().await;
    socket
        .send(Message::Ping("there?".into()))
        .await
        .expect("it is taken");
    let answer = socket.next().await.expect("an answer").expect("a message");
    assert_eq!(answer, Message::Pong("there?".into()));
    socket.send(Message::text("no bytes")).await.expect("it is taken");
    let (_, _, end) = drain(&mut socket).await;
    assert!(matches!(end, End::Closed(1003, _)), "{end:?}");
}

#[tokio::test]
async fn a_target_that_cannot_be_reached_is_told_after_the_upgrade() {
    let stage = Stage::start("").await;
    let unreachable = End::Closed(1011, "Unable to connect to target".to_owned());
    let nowhere = [
        Stage::query(3389),
        Stage::query(22).replace(ADDRESS, "10.0.1.99"),
        // In another VPC, and over the other sort of addresses.
        Stage::query(22).replace(ADDRESS, "10.2.0.1"),
        Stage::query(22).replace(ADDRESS, "2001%3Adb8%3A%3A1"),
    ];
    for query in nowhere {
        let mut socket = stage.open(&query).await.expect("the upgrade says nothing of it");
        assert_eq!(drain(&mut socket).await.2, unreachable, "{query}");
    }
    let fault = format!("eice-unreachable={ADDRESS}*1");
    stage.emulator.faults().set(&fault).expect("a known fault");
    let mut socket = stage.open(&Stage::query(22)).await.expect("as before");
    assert_eq!(drain(&mut socket).await.2, unreachable);
    stage.tunnel().await;
}

#[tokio::test]
async fn a_request_that_can_not_be_meant_is_refused_in_the_service_s_words() {
    let stage = Stage::start("").await;
    let refused = stage.open(&Stage::query(5432)).await.expect_err("no such port");
    assert_eq!(refused.status, 400);
    assert_eq!(
        refused.body,
        "{\"ErrorCode\":\"InvalidParameter\",\"Message\":\"The specified RemotePort is not valid. Specify either \
         22 or 3389 as the RemotePort and retry your request.\"}"
    );
    for query in [
        Stage::query(22).replace(ENDPOINT, "eice-1"),
        Stage::query(22).replace(ADDRESS, "bastion"),
        Stage::query(22) + "&maxTunnelDuration=0",
        Stage::query(22) + "&maxTunnelDuration=3601",
        Stage::query(22) + "&remotePort=3389",
        Stage::query(22) + "&colour=red",
    ] {
        let refused = stage.open(&query).await.expect_err(&query);
        assert_eq!(
            (refused.status, refused.code().as_str()),
            (400, "InvalidParameter"),
            "{query}"
        );
    }
    let stranger = Caller {
        secret: "wrong".to_owned(),
        ..stage.caller.clone()
    };
    let tcp = TcpStream::connect(stage.emulator.address())
        .await
        .expect("it listens");
    let refused = open_over(tcp, &stranger, &Stage::query(22))
        .await
        .expect_err("a stranger");
    assert_eq!(refused.status, 403);
    assert!(stage.emulator.tunnels().is_empty() && stage.emulator.ended_tunnels().is_empty());
}

#[tokio::test]
async fn a_policy_that_limits_the_duration_wants_it_to_be_asked_for() {
    let stage = Stage::start("permitted_duration = \"30m\"").await;
    for duration in ["", "&maxTunnelDuration=1801"] {
        let query = Stage::query(22) + duration;
        let refused = stage.open(&query).await.expect_err("not permitted");
        assert_eq!(
            (refused.status, refused.code().as_str()),
            (403, "AccessDeniedException")
        );
    }
    let query = Stage::query(22) + "&maxTunnelDuration=1800";
    stage.open(&query).await.expect("permitted");
    assert_eq!(stage.emulator.tunnels()[0].duration, Some(1800));
}

#[tokio::test]
async fn an_endpoint_serves_in_the_usable_states_alone() {
    let stage = Stage::start("").await;
    for (state, is_usable) in [
        (EndpointState::CreateInProgress, false),
        (EndpointState::CreateFailed, false),
        (EndpointState::DeleteInProgress, false),
        (EndpointState::DeleteComplete, false),
        (EndpointState::DeleteFailed, false),
        (EndpointState::UpdateInProgress, true),
        (EndpointState::UpdateComplete, true),
        (EndpointState::UpdateFailed, true),
        (EndpointState::CreateComplete, true),
    ] {
        assert!(stage.emulator.set_endpoint_state(ENDPOINT, state));
        let opened = stage.open(&Stage::query(22)).await;
        assert_eq!(opened.is_ok(), is_usable, "{state:?}");
        let shown = stage
            .caller
            .ec2_call("DescribeInstanceConnectEndpoints", "")
            .await;
        assert_eq!(shown.texts("state").len(), 1, "{shown:?}");
    }
    assert!(
        !stage
            .emulator
            .set_endpoint_state("eice-1", EndpointState::CreateComplete)
    );
}

#[tokio::test]
async fn the_tunnels_of_an_endpoint_are_counted() {
    let stage = Stage::start("").await;
    let mut open = Vec::new();
    for _ in 0..20 {
        open.push(stage.tunnel().await);
    }
    let refused = stage.open(&Stage::query(22)).await.expect_err("one too many");
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (429, "ServiceQuotaExceededException")
    );
    open.pop();
    timeout(PATIENCE, async {
        while stage.emulator.tunnels().len() == 20 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("a place becomes free");
    stage.tunnel().await;
    assert_eq!(stage.emulator.calls()["ec2-instance-connect:OpenTunnel"], 22);
}

#[tokio::test]
async fn a_tunnel_whose_time_is_over_ends_as_the_conditions_say() {
    let stage = Stage::start("").await;
    for (expiry, end) in [
        (
            TunnelExpiry::Close,
            End::Closed(1001, "Maximum tunnel duration reached".to_owned()),
        ),
        (TunnelExpiry::Fin, End::Gone),
        (TunnelExpiry::Reset, End::Reset),
    ] {
        stage.connect(ConnectConditions {
            longest_tunnel: Duration::from_millis(50),
            expiry,
            ..ConnectConditions::default()
        });
        let (mut socket, mut target) = stage.tunnel().await;
        assert_eq!(drain(&mut socket).await.2, end);
        // The target sees an end too.
        let _ = timeout(PATIENCE, target.read(&mut [0])).await.expect("it ends");
        assert_eq!(stage.ended().await, "its time was over");
    }
    stage.connect(ConnectConditions::default());
    let query = Stage::query(22) + "&maxTunnelDuration=1";
    let began = Instant::now();
    let mut socket = stage.open(&query).await.expect("a good request");
    drain(&mut socket).await;
    assert!(began.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn open_tunnels_are_ended_from_afar() {
    let stage = Stage::start("").await;
    for (order, end) in [
        (TunnelEnd::Reset, End::Reset),
        (TunnelEnd::Fin, End::Gone),
        (
            TunnelEnd::Close(1011, "x".to_owned()),
            End::Closed(1011, "x".to_owned()),
        ),
    ] {
        let (mut socket, _target) = stage.tunnel().await;
        assert_eq!(stage.emulator.end_tunnels(&order), 1);
        assert_eq!(drain(&mut socket).await.2, end);
        stage.ended().await;
    }
    let address = stage.emulator.address();
    let (mut socket, _target) = stage.tunnel().await;
    let path = "/_emulator/tunnels/end?how=close&code=4000&reason=enough";
    let answer = plain(address, "POST", path, &[], "").await;
    assert_eq!(answer.json(), json!({ "ended": 1 }));
    assert_eq!(drain(&mut socket).await.2, End::Closed(4000, "enough".to_owned()));
    for wrong in ["how=gently", "how=close&code=99"] {
        let path = format!("/_emulator/tunnels/end?{wrong}");
        assert_eq!(plain(address, "POST", &path, &[], "").await.status, 400);
    }
    let told = plain(address, "GET", "/_emulator/tunnels", &[], "").await.json();
    assert_eq!(told[0]["address"], ADDRESS);
    let path = format!("/_emulator/endpoints/{ENDPOINT}?state=delete-in-progress");
    assert_eq!(plain(address, "PUT", &path, &[], "").await.status, 200);
    assert!(stage.open(&Stage::query(22)).await.is_err());
    let path = format!("/_emulator/endpoints/{ENDPOINT}?state=tired");
    assert_eq!(plain(address, "PUT", &path, &[], "").await.status, 400);
}

#[tokio::test]
async fn fragments_and_giants_are_the_same_bytes() {
    let stage = Stage::start("").await;
    let sent: Vec<u8> = (0..9_000_000_u32).map(|number| (number / 3) as u8).collect();
    for messages in [TunnelMessages::Fragmented, TunnelMessages::Giant] {
        stage.connect(ConnectConditions {
            messages,
            ..ConnectConditions::default()
        });
        let (mut socket, mut target) = stage.tunnel().await;
        let writing = async {
            target.write_all(&sent).await.expect("it is taken");
            drop(target);
        };
        let ((), (bytes, count, _)) = tokio::join!(writing, drain(&mut socket));
        assert!(bytes == sent);
        assert!(
            messages != TunnelMessages::Giant || count < 9_000_000 / 65_536,
            "{count}"
        );
    }
}

#[tokio::test]
async fn a_text_message_comes_before_the_target_s_bytes_where_that_is_asked_for() {
    let stage = Stage::start("").await;
    stage
        .emulator
        .faults()
        .set("eice-sends-text*1")
        .expect("a known fault");
    let (mut socket, mut target) = stage.tunnel().await;
    target.write_all(b"bytes").await.expect("it is taken");
    let first = socket.next().await.expect("a message").expect("a message");
    assert!(first.is_text());
}

#[tokio::test]
async fn the_line_s_delay_holds_both_ways_and_many_bytes_travel_at_once() {
    let stage = Stage::start("").await;
    let delay = Duration::from_millis(40);
    stage.emulator.set_conditions(Conditions {
        line: LineConditions {
            delay,
            ..LineConditions::default()
        },
        ..Conditions::default()
    });
    let (mut socket, mut target) = stage.tunnel().await;
    let began = Instant::now();
    socket.send(Message::binary("ping")).await.expect("it is taken");
    let mut read = [0; 4];
    target.read_exact(&mut read).await.expect("it comes");
    assert!(began.elapsed() >= delay);
    let sent = vec![1; 4 << 20];
    let writing = async {
        target.write_all(&sent).await.expect("it is taken");
        drop(target);
    };
    let ((), (bytes, _, end)) = tokio::join!(writing, drain(&mut socket));
    assert_eq!(bytes.len(), sent.len());
    assert_eq!(end, End::Closed(1000, String::new()));
    // One frame after the other would be 64 delays.
    assert!(
        (delay * 2..delay * 64).contains(&began.elapsed()),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn an_upgrade_fails_in_every_way_on_demand() {
    let stage = Stage::start("").await;
    for (fault, status, code) in [
        ("eice-denied", 403, "AccessDeniedException"),
        ("eice-throttled", 429, "ThrottlingException"),
        ("eice-fails", 503, "ServiceException"),
        ("expired-token", 403, "ExpiredTokenException"),
    ] {
        stage
            .emulator
            .faults()
            .set(&format!("{fault}*1"))
            .expect("a known fault");
        let refused = stage.open(&Stage::query(22)).await.expect_err(fault);
        assert_eq!((refused.status, refused.code().as_str()), (status, code));
    }
    let request = format!(
        "GET {} HTTP/1.1\r\nhost: {HOST}\r\n\r\n",
        stage.caller.presign(HOST, &Stage::query(22))
    );
    stage
        .emulator
        .faults()
        .set("eice-drops-upgrade*1")
        .expect("a known fault");
    let mut tcp = TcpStream::connect(stage.emulator.address())
        .await
        .expect("it listens");
    tcp.write_all(request.as_bytes()).await.expect("it is taken");
    let dropped = timeout(PATIENCE, tcp.read(&mut [0]))
        .await
        .expect("it is dropped");
    assert!(dropped.is_err(), "{dropped:?}");
    stage
        .emulator
        .faults()
        .set("eice-stalls-upgrade*1")
        .expect("a known fault");
    let mut stalled = TcpStream::connect(stage.emulator.address())
        .await
        .expect("it listens");
    stalled.write_all(request.as_bytes()).await.expect("it is taken");
    // Later ones are answered.
    stage.tunnel().await;
    assert!(
        stage.emulator.faults().active().is_empty(),
        "the first one has struck"
    );
    assert_eq!(
        stalled.try_read(&mut [0]).expect_err("no answer").kind(),
        std::io::ErrorKind::WouldBlock
    );
}

#[tokio::test]
async fn a_proxy_for_port_443_leads_to_tls_by_the_endpoint_s_name() {
    let stage = Stage::start("").await;
    let address = stage.emulator.address();
    let mut tcp = TcpStream::connect(address).await.expect("it listens");
    let request =
        format!("CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}:443\r\nProxy-Authorization: Basic Og==\r\n\r\n");
    tcp.write_all(request.as_bytes()).await.expect("it is taken");
    let mut answer = [0; 39];
    tcp.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 200 Connection established\r\n\r\n");
    let mut roots = RootCertStore::empty();
    let authority =
        CertificateDer::from_pem_slice(stage.emulator.ca_pem().as_bytes()).expect("a certificate");
    roots.add(authority).expect("an authority");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(HOST).expect("a name");
    let tls = TlsConnector::from(Arc::new(tls))
        .connect(name, tcp)
        .await
        .expect("the certificate has the name");
    let mut socket = open_over(tls, &stage.caller, &Stage::query(22))
        .await
        .expect("as without a proxy");
    let (mut target, _) = stage.target.accept().await.expect("it is dialled");
    target.write_all(b"SSH-2.0").await.expect("it is taken");
    let message = socket.next().await.expect("a message").expect("a message");
    assert_eq!(message, Message::binary("SSH-2.0"));

    let answer = plain(address, "CONNECT", "example.com:80", &[], "").await;
    assert_eq!(answer.status, 403);
}
