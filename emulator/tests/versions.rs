//! What the version of an instance's agent changes.

mod common;

use bytes::Bytes;
use common::client::{Client, End};
use common::far::{ECHO, Far, SOURCE, source_bytes};
use futures_util::SinkExt;
use tokio_tungstenite::tungstenite::Message;
use tunneld_wire::ssm::Event;
use tunneld_wire::ssm::message::Kind;
use tunneld_wire::ssm::payload::acknowledged_number;

#[tokio::test]
async fn an_agent_that_cannot_multiplex_serves_one_stream_of_raw_bytes() {
    let far = Far::of_version("3.0.196.0").await;
    let (mut client, id) = Client::with_stream(&far.caller, ECHO).await;
    let is_basic = |event: &Event| matches!(event, Event::Ready { multiplexes, .. } if !multiplexes);
    assert!(client.events.iter().any(is_basic), "{:?}", client.events);
    client.write(id, "raw");
    assert_eq!(client.read(id, 3).await, b"raw");
    let last = client.messages().last().expect("frames");
    assert_eq!(last.payload, "raw", "there is no smux in it");
}

#[tokio::test]
async fn an_agent_in_basic_mode_survives_a_cut() {
    let far = Far::of_version("3.0.150.0").await;
    let (mut client, id) = Client::with_stream(&far.caller, SOURCE).await;
    client.read(id, 1_000_000).await;
    far.emulator.cut();
    assert_eq!(client.end().await, End::Reset);
    client.resume(&far.caller).await;
    let length = 4_000_000;
    assert!(client.read(id, length).await == source_bytes(length));
}

#[tokio::test]
async fn a_duplicate_is_acknowledged_again_by_newer_agents_alone() {
    for (version, is_silent) in [("3.2.1041.0", false), ("3.2.1040.0", true)] {
        let far = Far::of_version(version).await;
        let (mut client, id) = Client::with_stream(&far.caller, ECHO).await;
        client.write(id, "first");
        client.read(id, 5).await;
        let duplicate: Bytes = client.last_sent.clone();
        let number = *client.sent.keys().last().expect("it sent data");
        client
            .socket
            .send(Message::Binary(duplicate))
            .await
            .expect("the websocket is there");
        client.write(id, "second");
        // Whatever is said of the duplicate comes before the end of this.
        client.read(id, 11).await;
        client
            .until(|client| client.session.is_drained().then_some(()))
            .await;
        let acknowledgements = client
            .messages()
            .filter(|message| message.kind == Kind::Acknowledge)
            .filter(|message| acknowledged_number(&message.payload) == Some(number));
        // The client may have sent it again by itself.
        assert_eq!(acknowledgements.count() == 1, is_silent, "{version}");
    }
}
