//! The websocket of a session, from the client's side of the upgrade.

mod common;

use std::time::Duration;

use common::{Caller, example};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};
use tokio_tungstenite::tungstenite::{Error, Message};
use tunneld_emulator::Emulator;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_signed_upgrade_with_the_raw_stream_url_is_accepted() {
    let (_emulator, caller, ticket) = started("unsigned_upgrades = \"refuse\"").await;
    let mut socket = connect(&caller, &ticket, Signature::Good)
        .await
        .expect("the upgrade is accepted");
    open(&mut socket, &ticket).await;
    assert!(answers_a_ping(&mut socket).await);
}

#[tokio::test]
async fn a_wrong_signature_is_refused_and_an_absent_one_as_configured() {
    let (_emulator, caller, ticket) = started("").await;
    assert_eq!(refusal(&caller, &ticket, Signature::WrongSecret).await, 403);
    assert_eq!(refusal(&caller, &ticket, Signature::WrongService).await, 403);
    connect(&caller, &ticket, Signature::None)
        .await
        .expect("official plugins before 1.2.764 do not sign");
    let (_emulator, caller, ticket) = started("unsigned_upgrades = \"refuse\"").await;
    assert_eq!(refusal(&caller, &ticket, Signature::None).await, 403);
}

#[tokio::test]
async fn sessions_that_are_unknown_or_ended_have_no_data_channel() {
    let (_emulator, caller, ticket) = started("").await;
    let mut unknown = ticket.clone();
    unknown["StreamUrl"] = json!(
        ticket["StreamUrl"]
            .as_str()
            .expect("a URL")
            .replace("channel/emulator-", "channel/emulator-x")
    );
    assert_eq!(refusal(&caller, &unknown, Signature::Good).await, 404);
    caller
        .ssm("TerminateSession", &json!({ "SessionId": ticket["SessionId"] }))
        .await;
    assert_eq!(refusal(&caller, &ticket, Signature::Good).await, 403);
}

#[tokio::test]
async fn a_token_opens_one_websocket_and_a_forged_one_none() {
    let (_emulator, caller, ticket) = started("").await;
    let mut forged = ticket.clone();
    forged["TokenValue"] = json!("forged");
    let mut socket = connect(&caller, &forged, Signature::Good)
        .await
        .expect("the upgrade knows no tokens");
    open(&mut socket, &forged).await;
    assert!(!answers_a_ping(&mut socket).await);

    let mut socket = connect(&caller, &ticket, Signature::Good)
        .await
        .expect("accepted");
    open(&mut socket, &ticket).await;
    assert!(answers_a_ping(&mut socket).await);
    let mut second = connect(&caller, &ticket, Signature::Good)
        .await
        .expect("the upgrade knows no tokens");
    open(&mut second, &ticket).await;
    assert!(!answers_a_ping(&mut second).await);
}

#[tokio::test]
async fn a_token_that_has_expired_opens_no_websocket_and_the_next_one_does() {
    let emulator = example("").await;
    emulator.faults().set("token-expires").expect("a known fault");
    let (emulator, caller, ticket) = start_session(emulator).await;
    let mut socket = connect(&caller, &ticket, Signature::Good)
        .await
        .expect("the upgrade knows no tokens");
    open(&mut socket, &ticket).await;
    assert!(!answers_a_ping(&mut socket).await);
    emulator.faults().clear_all();
    let resume = json!({ "SessionId": ticket["SessionId"] });
    let resumed = caller.ssm("ResumeSession", &resume).await.json();
    let mut socket = connect(&caller, &resumed, Signature::Good)
        .await
        .expect("accepted");
    open(&mut socket, &resumed).await;
    assert!(answers_a_ping(&mut socket).await);
}

#[tokio::test]
async fn a_websocket_that_opens_late_or_never_leaves_a_newer_or_older_one_alone() {
    let (_emulator, caller, ticket) = started("").await;
    let mut late = connect(&caller, &ticket, Signature::Good)
        .await
        .expect("accepted");
    let resume = json!({ "SessionId": ticket["SessionId"] });
    let resumed = caller.ssm("ResumeSession", &resume).await.json();
    let mut newer = connect(&caller, &resumed, Signature::Good)
        .await
        .expect("accepted");
    open(&mut newer, &resumed).await;
    assert!(answers_a_ping(&mut newer).await);
    // With a token that would be good.
    let again = caller.ssm("ResumeSession", &resume).await.json();
    open(&mut late, &again).await;
    assert!(!answers_a_ping(&mut late).await);
    assert!(answers_a_ping(&mut newer).await);
    let _silent = connect(&caller, &again, Signature::Good).await.expect("accepted");
    assert!(answers_a_ping(&mut newer).await);
}

#[tokio::test]
async fn a_cut_is_a_reset_and_the_session_can_be_resumed() {
    let (emulator, caller, ticket) = started("").await;
    let mut socket = connect(&caller, &ticket, Signature::Good)
        .await
        .expect("accepted");
    open(&mut socket, &ticket).await;
    assert!(answers_a_ping(&mut socket).await);
    assert_eq!(emulator.cut(), 1);
    let end = tokio::time::timeout(PATIENCE, until_end(&mut socket))
        .await
        .expect("the cut is felt");
    assert!(is_reset(&end), "{end:?}");
    assert_eq!(emulator.sessions().len(), 1);

    let resumed = caller
        .ssm("ResumeSession", &json!({ "SessionId": ticket["SessionId"] }))
        .await
        .json();
    let mut socket = connect(&caller, &resumed, Signature::Good)
        .await
        .expect("accepted");
    open(&mut socket, &resumed).await;
    assert!(answers_a_ping(&mut socket).await);
}

#[tokio::test]
async fn a_terminated_session_closes_its_websocket() {
    let (emulator, caller, ticket) = started("").await;
    let mut socket = connect(&caller, &ticket, Signature::Good)
        .await
        .expect("accepted");
    open(&mut socket, &ticket).await;
    assert!(answers_a_ping(&mut socket).await);
    caller
        .ssm("TerminateSession", &json!({ "SessionId": ticket["SessionId"] }))
        .await;
    tokio::time::timeout(PATIENCE, until_end(&mut socket))
        .await
        .expect("the websocket ends");
    assert_eq!(emulator.sessions(), []);
}

#[tokio::test]
async fn a_shutdown_ends_every_websocket() {
    let (emulator, caller, ticket) = started("").await;
    let mut socket = connect(&caller, &ticket, Signature::Good)
        .await
        .expect("accepted");
    open(&mut socket, &ticket).await;
    assert!(answers_a_ping(&mut socket).await);
    let (end, ()) = tokio::join!(
        tokio::time::timeout(PATIENCE, until_end(&mut socket)),
        emulator.shutdown()
    );
    end.expect("the websocket ends");
    assert!(
        TcpStream::connect(caller.address).await.is_err(),
        "nobody listens any more"
    );
}

#[tokio::test]
async fn what_is_no_websocket_upgrade_is_refused() {
    let (emulator, _caller, ticket) = started("").await;
    let path = path_of(&ticket);
    let answer = common::plain(emulator.address(), "GET", &path, &[], "").await;
    assert_eq!(answer.status, 400);
}

enum Signature {
    Good,
    WrongSecret,
    WrongService,
    None,
}

async fn started(top: &str) -> (Emulator, Caller, Value) {
    start_session(example(top).await).await
}

async fn start_session(emulator: Emulator) -> (Emulator, Caller, Value) {
    let caller = Caller::of(&emulator);
    let input = json!({
        "Target": "i-0123456789abcdef0",
        "DocumentName": "AWS-StartPortForwardingSession",
        "Parameters": { "portNumber": ["22"] },
    });
    let ticket = caller.ssm("StartSession", &input).await.json();
    (emulator, caller, ticket)
}

fn path_of(ticket: &Value) -> String {
    let url = ticket["StreamUrl"].as_str().expect("a URL");
    let (_, rest) = url.split_once("://").expect("a scheme");
    format!("/{}", rest.split_once('/').expect("a path").1)
}

async fn connect(
    caller: &Caller,
    ticket: &Value,
    signature: Signature,
) -> Result<WebSocketStream<TcpStream>, Error> {
    let mut request = ticket["StreamUrl"]
        .as_str()
        .expect("a URL")
        .into_client_request()
        .expect("a good URL");
    let path = path_of(ticket);
    assert_eq!(
        request.uri().path_and_query().map(|target| target.as_str()),
        Some(path.as_str())
    );
    let wrong = Caller {
        secret: "wrong".to_owned(),
        ..caller.clone()
    };
    let headers = match signature {
        Signature::Good => caller.sign("ssmmessages", "GET", &path, &[], ""),
        Signature::WrongSecret => wrong.sign("ssmmessages", "GET", &path, &[], ""),
        Signature::WrongService => caller.sign("ssm", "GET", &path, &[], ""),
        Signature::None => Vec::new(),
    };
    for (name, value) in headers {
        let name: HeaderName = name.parse().expect("a header name");
        request
            .headers_mut()
            .insert(name, HeaderValue::from_str(&value).expect("a header value"));
    }
    let tcp = TcpStream::connect(caller.address)
        .await
        .expect("the emulator listens");
    tokio_tungstenite::client_async(request, tcp)
        .await
        .map(|(socket, _)| socket)
}

async fn refusal(caller: &Caller, ticket: &Value, signature: Signature) -> u16 {
    match connect(caller, ticket, signature).await {
        Err(Error::Http(response)) => response.status().as_u16(),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

async fn open(socket: &mut WebSocketStream<TcpStream>, ticket: &Value) {
    let open = json!({
        "MessageSchemaVersion": "1.0",
        "RequestId": "8ad9c4a0-0000-4000-8000-000000000001",
        "TokenValue": ticket["TokenValue"],
        "ClientId": "8ad9c4a0-0000-4000-8000-000000000002",
        "ClientVersion": "1.2.677.0",
    });
    socket
        .send(Message::text(open.to_string()))
        .await
        .expect("the first message goes out");
}

/// Whether the far end is there: it answers pings for as long as it serves the websocket.
async fn answers_a_ping(socket: &mut WebSocketStream<TcpStream>) -> bool {
    let answered = async {
        socket.send(Message::Ping("here?".into())).await.ok()?;
        while let Some(Ok(message)) = socket.next().await {
            if matches!(message, Message::Pong(_)) {
                return Some(());
            }
        }
        None
    };
    tokio::time::timeout(PATIENCE, answered)
        .await
        .expect("an answer or an end")
        .is_some()
}

async fn until_end(socket: &mut WebSocketStream<TcpStream>) -> Option<Error> {
    loop {
        match socket.next().await {
            Some(Ok(_)) => (),
            Some(Err(error)) => return Some(error),
            None => return None,
        }
    }
}

fn is_reset(end: &Option<Error>) -> bool {
    matches!(end, Some(Error::Io(error)) if error.kind() == std::io::ErrorKind::ConnectionReset)
}
