//! What can be done to clients at a moment: each does what it says, and the far end is there again afterwards.

mod common;

use std::time::Duration;

use common::client::{Client, End, PATIENCE};
use common::far::{ECHO, Far, INSTANCE, SOURCE, source_bytes};
use common::{Answer, plain};
use futures_util::{FutureExt, StreamExt};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tunneld_emulator::{Conditions, Outage};
use tunneld_wire::ssm::message::Kind;
use tunneld_wire::ssm::{End as SessionEnd, Event};

/// The most that a cut may lose of what the stock agent has numbered.
const MOST_LOST: u64 = 32;

async fn assert_echoes(client: &mut Client) {
    let id = client.open().await;
    client.write(id, "once more");
    assert_eq!(client.read(id, 9).await, b"once more");
}

async fn admin(far: &Far, method: &str, path: &str, body: &str) -> Answer {
    plain(
        far.emulator.address(),
        method,
        &format!("/_emulator/{path}"),
        &[],
        body,
    )
    .await
}

/// How many messages are missing between what a client had and what it gets next.
fn hole(before: u64, after: &[u64]) -> u64 {
    let next = after.iter().find(|sequence| **sequence > before);
    next.map_or(0, |next| next - before - 1)
}

fn sequences(client: &Client) -> Vec<u64> {
    let data = client
        .messages()
        .filter(|message| message.kind == Kind::OutputStreamData);
    data.map(|message| message.sequence).collect()
}

/// Cuts a download, resumes it, and returns how many messages the cut has lost.
async fn lost_by_a_cut(far: &Far, client: &mut Client) -> u64 {
    far.emulator.cut();
    assert_eq!(client.end().await, End::Reset);
    let before = sequences(client).into_iter().max().expect("data came");
    client.frames.clear();
    client.resume(&far.caller).await;
    client
        .until(|client| {
            let after = sequences(client);
            after
                .iter()
                .any(|sequence| *sequence > before)
                .then(|| hole(before, &after))
        })
        .await
}

#[tokio::test]
async fn a_cut_of_a_stock_session_loses_few_messages_and_no_byte() {
    let far = Far::start("stock").await;
    let (mut client, id) = Client::with_stream(&far.caller, SOURCE).await;
    let mut read = 0;
    for _ in 0..5 {
        read += 50_000;
        client.read(id, read).await;
        let lost = lost_by_a_cut(&far, &mut client).await;
        assert!(lost <= MOST_LOST, "{lost}");
    }
    assert!(client.read(id, read).await == source_bytes(read));
}

/// A client that does not read for a while: what its own system has taken it still gets, and little waits beyond that.
#[tokio::test]
async fn a_cut_of_a_stock_session_loses_few_messages_of_a_client_that_does_not_read() {
    let far = Far::start("stock").await;
    let tcp = TcpSocket::new_v4().expect("a socket");
    tcp.set_recv_buffer_size(4_096).expect("a small buffer");
    let mut client = Client::start_over(&far.caller, SOURCE, tcp).await;
    let id = client.open().await;
    client.read(id, 10_000).await;
    // Some hundred milliseconds, in which the agent would number about one message each.
    for _ in 0..200 {
        let listed = far.caller.ssm("DescribeInstanceInformation", &json!({})).await;
        assert_eq!(listed.status, 200);
    }
    let lost = lost_by_a_cut(&far, &mut client).await;
    assert!((1..=MOST_LOST).contains(&lost), "{lost}");
    assert!(client.read(id, 100_000).await == source_bytes(100_000));
}

#[tokio::test]
async fn a_fast_agent_goes_on_after_a_cut_with_the_first_message_that_is_missing() {
    let far = Far::start("fast").await;
    let (mut client, id) = Client::with_stream(&far.caller, SOURCE).await;
    let mut read = 0;
    for _ in 0..5 {
        read += 3_000_000;
        client.read(id, read).await;
        assert_eq!(lost_by_a_cut(&far, &mut client).await, 0, "lost for good");
    }
    read += 3_000_000;
    assert!(client.read(id, read).await == source_bytes(read));
}

#[tokio::test]
async fn a_recycle_closes_with_1000_and_the_session_goes_on() {
    let far = Far::start("fast").await;
    let mut client = Client::start(&far.caller, ECHO).await;
    assert_echoes(&mut client).await;
    assert_eq!(far.emulator.recycle(), 1);
    assert_eq!(client.end().await, End::Closed(Some((1000, "Bye".to_owned()))));
    client.resume(&far.caller).await;
    assert_echoes(&mut client).await;
}

#[tokio::test]
async fn a_frozen_websocket_is_dead_for_ever_and_its_connection_stays() {
    let far = Far::start("fast").await;
    let mut client = Client::start(&far.caller, ECHO).await;
    client.ping("alive").await;
    assert_echoes(&mut client).await;
    assert_eq!(far.emulator.freeze(), 1);
    client.send_ping("dead?").await;
    let mut frozen = client.resume(&far.caller).await;
    assert_echoes(&mut client).await;
    client.ping("alive again").await;
    assert!(!client.pongs.iter().any(|pong| pong == "dead?"));
    assert!(
        frozen.next().now_or_never().is_none(),
        "it said something, or ended"
    );
}

#[tokio::test]
async fn in_an_outage_all_connections_are_reset_and_afterwards_all_is_well() {
    let far = Far::start("fast").await;
    let mut client = Client::start(&far.caller, ECHO).await;
    assert_echoes(&mut client).await;
    let mut idle = TcpStream::connect(far.emulator.address())
        .await
        .expect("the emulator listens");
    let answer = admin(&far, "POST", "outage", "").await;
    assert_eq!(
        (answer.status, answer.json()),
        (200, json!({ "outage": "reset" }))
    );
    assert_eq!(client.end().await, End::Reset);
    assert_is_reset(&mut idle).await;
    let mut late = TcpStream::connect(far.emulator.address())
        .await
        .expect("the emulator listens");
    tokio::io::AsyncWriteExt::write_all(&mut late, b"POST / HTTP/1.1\r\n")
        .await
        .expect("written");
    assert_is_reset(&mut late).await;
    assert_eq!(admin(&far, "DELETE", "outage", "").await.status, 200);
    client.resume(&far.caller).await;
    assert_echoes(&mut client).await;
}

async fn assert_is_reset(tcp: &mut TcpStream) {
    let read = timeout(PATIENCE, tcp.read(&mut [0])).await.expect("it ends");
    let error = read.expect_err("the connection is reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn in_a_frozen_outage_nothing_is_answered_and_later_connections_are_well() {
    let far = Far::start("fast").await;
    let mut client = Client::start(&far.caller, ECHO).await;
    assert_echoes(&mut client).await;
    far.emulator.begin_outage(Outage::Frozen);
    client.send_ping("dead?").await;
    let input = json!({ "SessionId": client.ticket["SessionId"] });
    let mut call = std::pin::pin!(far.caller.ssm("ResumeSession", &input));
    // Something that takes its time, over a connection that is spared.
    assert_eq!(admin(&far, "GET", "sessions", "").await.status, 200);
    assert!((&mut call).now_or_never().is_none());
    far.emulator.end_outage();
    let mut frozen = client.resume(&far.caller).await;
    assert_echoes(&mut client).await;
    assert!(call.now_or_never().is_none());
    assert!(frozen.next().now_or_never().is_none());
}

#[tokio::test]
async fn an_agent_outage_loses_what_is_numbered_and_pauses_who_sends() {
    let far = Far::start("stock").await;
    let (mut client, id) = Client::with_stream(&far.caller, SOURCE).await;
    client.read(id, 20_000).await;
    assert_eq!(far.emulator.agent_outage(Duration::from_millis(300)), 1);
    client
        .until(|client| {
            client.write(id, "does anybody hear?");
            (client.count(Kind::PausePublication) > 0).then_some(())
        })
        .await;
    let before = sequences(&client).into_iter().max().expect("data came");
    let lost = client
        .until(|client| {
            let after = sequences(client);
            let is_back = after.iter().any(|sequence| *sequence > before);
            is_back.then(|| hole(before, &after))
        })
        .await;
    assert!(lost > 50, "{lost}");
    let kinds = client.kinds();
    assert!(
        kinds[1..].contains(&Kind::StartPublication),
        "the return of the agent is told"
    );
}

#[tokio::test]
async fn an_outage_of_a_fast_agent_loses_nothing() {
    let far = Far::start("fast").await;
    let (mut client, id) = Client::with_stream(&far.caller, SOURCE).await;
    client.read(id, 1_000_000).await;
    far.emulator.agent_outage(Duration::from_millis(50));
    let length = 4_000_000;
    assert!(client.read(id, length).await == source_bytes(length));
}

#[tokio::test]
async fn restarted_agents_end_their_sessions_and_are_away_for_a_while() {
    let far = Far::start("fast").await;
    let mut client = Client::start(&far.caller, ECHO).await;
    assert_echoes(&mut client).await;
    let answer = admin(&far, "POST", "restart-agents?for=1h", "").await;
    assert_eq!((answer.status, answer.json()), (200, json!({ "ended": 1 })));
    client.end().await;
    assert!(
        client
            .events
            .contains(&Event::Ended(SessionEnd::ChannelClosed(String::new())))
    );
    let input = json!({
        "Target": INSTANCE,
        "DocumentName": "AWS-StartPortForwardingSession",
        "Parameters": { "portNumber": [ECHO.to_string()] },
    });
    let refused = far.caller.ssm("StartSession", &input).await;
    assert_eq!(refused.error(), (400, "TargetNotConnected".to_owned()));
    far.emulator.restart_agents(Duration::ZERO);
    let mut client = Client::start(&far.caller, ECHO).await;
    assert_echoes(&mut client).await;
}

#[tokio::test]
async fn rotated_credentials_are_valid_and_those_before_have_expired() {
    let far = Far::start("fast").await;
    let answer = admin(&far, "POST", "rotate-credentials", "").await.json();
    let refused = far.caller.ssm("DescribeInstanceInformation", &json!({})).await;
    assert_eq!(refused.error(), (400, "ExpiredTokenException".to_owned()));
    let mut rotated = common::Caller::of(&far.emulator);
    assert_eq!(answer["access_key_id"], rotated.access_key_id);
    assert_eq!(answer["secret_access_key"], rotated.secret);
    let listed = rotated.ssm("DescribeInstanceInformation", &json!({})).await;
    assert_eq!(listed.status, 200);
    let again = far.emulator.rotate_credentials();
    rotated.access_key_id = again.access_key_id;
    rotated.secret = again.secret_access_key;
    let listed = rotated.ssm("DescribeInstanceInformation", &json!({})).await;
    assert_eq!(listed.status, 200);
}

#[tokio::test]
async fn conditions_are_put_and_got_as_toml_and_bad_ones_are_refused_in_words() {
    let far = Far::start("fast").await;
    let text = "[line]\ndelay = \"5ms\"\n[service]\npongs = false\n";
    let answer = admin(&far, "PUT", "conditions", text).await;
    assert_eq!(answer.status, 200);
    let wanted = Conditions::parse(text).expect("good conditions");
    assert_eq!(far.emulator.conditions(), wanted);
    let got = admin(&far, "GET", "conditions", "").await;
    assert_eq!(Conditions::parse(&got.body).expect("good conditions"), wanted);
    for (bad, words) in [
        ("[line]\ndelays = \"5ms\"\n", "delays"),
        ("[line]\njunk = 7.0\n", "0.0 to 1.0"),
    ] {
        let refused = admin(&far, "PUT", "conditions", bad).await;
        assert_eq!(refused.status, 400);
        assert!(refused.body.contains(words), "{}", refused.body);
    }
    assert_eq!(far.emulator.conditions(), wanted);
}

#[tokio::test]
async fn actions_that_are_asked_for_wrongly_are_refused_in_words() {
    let far = Far::start("fast").await;
    let refused = admin(&far, "POST", "outage?kind=flood", "").await;
    assert_eq!(refused.status, 400);
    assert!(refused.body.contains("`reset` and `frozen`"), "{}", refused.body);
    let refused = admin(&far, "POST", "agent-outage?for=long", "").await;
    assert_eq!(refused.status, 400);
    assert!(refused.body.contains("500ms"), "{}", refused.body);
}
