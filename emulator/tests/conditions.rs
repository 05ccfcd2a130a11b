//! Conditions: each does what it says, to sessions that are open.

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::client::{Client, End};
use common::far::{ECHO, Far, SINK, SOURCE, source_bytes};
use futures_util::SinkExt;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::protocol::frame::Frame as WebSocketFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tunneld_emulator::{
    AbsentClient, AgentConditions, AgentTimer, ChannelClosedForm, Conditions, Dials, Fragments,
    LineConditions, Noise, ServiceConditions, StartPublication,
};
use tunneld_wire::ssm::message::{Kind, Message, PayloadType};
use tunneld_wire::ssm::payload::acknowledged_number;
use tunneld_wire::ssm::{End as SessionEnd, Event};

const MILLISECOND: Duration = Duration::from_millis(1);

fn service(service: ServiceConditions) -> Conditions {
    Conditions {
        service,
        ..Conditions::default()
    }
}

fn agent(agent: AgentConditions) -> Conditions {
    Conditions {
        agent,
        ..Conditions::default()
    }
}

fn line(line: LineConditions) -> Conditions {
    Conditions {
        line,
        ..Conditions::default()
    }
}

/// The session carries data, both ways.
async fn assert_echoes(client: &mut Client) {
    let id = client.open().await;
    client.write(id, "once more");
    assert_eq!(client.read(id, 9).await, b"once more");
}

fn bye() -> End {
    End::Closed(Some((1000, "Bye".to_owned())))
}

#[tokio::test]
async fn a_recycled_websocket_is_closed_with_1000_and_its_session_can_be_resumed() {
    let far = Far::start("fast").await;
    let mut client = Client::start(&far.caller, ECHO).await;
    assert_echoes(&mut client).await;
    far.emulator.set_conditions(service(ServiceConditions {
        recycle: Some(MILLISECOND),
        ..ServiceConditions::default()
    }));
    assert_eq!(client.end().await, bye());
    far.emulator.set_conditions(Conditions::default());
    client.resume(&far.caller).await;
    assert_echoes(&mut client).await;
}

#[tokio::test]
async fn a_websocket_is_recycled_at_its_nth_byte_whatever_is_under_way() {
    for delay in [Duration::ZERO, MILLISECOND * 20] {
        let far = Far::start("fast").await;
        let limit = 200_000;
        far.emulator.set_conditions(Conditions {
            line: LineConditions {
                delay,
                ..LineConditions::default()
            },
            service: ServiceConditions {
                recycle_bytes: Some(limit),
                ..ServiceConditions::default()
            },
            ..Conditions::default()
        });
        let (mut client, _) = Client::with_stream(&far.caller, SOURCE).await;
        assert_eq!(client.end().await, bye());
        let received: usize = client.frames.iter().map(Bytes::len).sum();
        assert!(
            (100_000..=limit as usize + 20_000).contains(&received),
            "{received} after a delay of {delay:?}"
        );
    }
}

#[tokio::test]
async fn pings_are_not_answered_while_pongs_are_off_and_data_flows() {
    let far = Far::start("fast").await;
    let mut client = Client::start(&far.caller, ECHO).await;
    client.ping("first").await;
    far.emulator.set_conditions(service(ServiceConditions {
        pongs: false,
        ..ServiceConditions::default()
    }));
    client.send_ping("second").await;
    assert_echoes(&mut client).await;
    far.emulator.set_conditions(Conditions::default());
    client.ping("third").await;
    assert_eq!(client.pongs, ["first", "third"]);
}

/// Starts a session under a condition, and returns the message before the first start_publication.
async fn before_start_publication(start_publication: StartPublication) -> Option<Option<Message>> {
    let far = Far::start("fast").await;
    far.emulator.set_conditions(service(ServiceConditions {
        start_publication,
        ..ServiceConditions::default()
    }));
    let mut client = Client::start(&far.caller, ECHO).await;
    assert_echoes(&mut client).await;
    let place = client
        .kinds()
        .iter()
        .position(|kind| *kind == Kind::StartPublication)?;
    Some(client.messages().take(place).last())
}

#[tokio::test]
async fn start_publication_comes_first_after_the_handshake_or_never() {
    assert_eq!(
        before_start_publication(StartPublication::First).await,
        Some(None)
    );
    let before = before_start_publication(StartPublication::AfterHandshake).await;
    let before = before.flatten().expect("it comes, and not first");
    assert_eq!(before.payload_type, PayloadType::HandshakeComplete);
    assert_eq!(before_start_publication(StartPublication::Never).await, None);
}

#[tokio::test]
async fn a_pause_storm_pauses_and_starts_and_a_session_survives_it() {
    let far = Far::start("fast").await;
    let (mut client, id) = Client::with_stream(&far.caller, SOURCE).await;
    far.emulator.set_conditions(service(ServiceConditions {
        pause_storm: Some(MILLISECOND),
        ..ServiceConditions::default()
    }));
    client
        .until(|client| (client.count(Kind::PausePublication) >= 10).then_some(()))
        .await;
    assert_eq!(client.read(id, 1_000_000).await, source_bytes(1_000_000));
}

#[tokio::test]
async fn a_payload_that_is_too_large_is_answered_by_a_pause_and_a_disconnect() {
    let far = Far::start("fast").await;
    let (mut client, id) = Client::with_stream(&far.caller, ECHO).await;
    client.write(id, "short");
    client.read(id, 5).await;
    far.emulator.set_conditions(service(ServiceConditions {
        largest_payload: Some(100),
        ..ServiceConditions::default()
    }));
    client.write(id, vec![0; 200]);
    assert_eq!(client.end().await, End::Gone);
    assert_eq!(client.kinds().last(), Some(&Kind::PausePublication));
}

#[tokio::test]
async fn a_client_that_sends_too_many_messages_is_paused_and_disconnected() {
    let far = Far::start("fast").await;
    far.emulator.set_conditions(service(ServiceConditions {
        rate_limit: Some(5),
        ..ServiceConditions::default()
    }));
    let (mut client, id) = Client::with_stream(&far.caller, ECHO).await;
    let began = Instant::now();
    let mut sent = 0;
    let mut echoed = 0;
    let end = client
        .until(|client| {
            // The next message goes when the one before was acknowledged: some hundred a second.
            if client.count(Kind::Acknowledge) > echoed {
                echoed = client.count(Kind::Acknowledge);
                sent += 1;
                client.write(id, "x");
            }
            client.end.take()
        })
        .await;
    assert_eq!(end, End::Gone);
    assert!(began.elapsed() >= Duration::from_secs(2), "{sent} messages");
    assert_eq!(client.kinds().last(), Some(&Kind::PausePublication));
}

#[tokio::test]
async fn a_message_in_fragments_is_put_together_or_closes_the_websocket() {
    let far = Far::start("fast").await;
    let mut client = Client::start(&far.caller, ECHO).await;
    assert_echoes(&mut client).await;
    let fragments = || {
        let first = WebSocketFrame::message("unknown ", OpCode::Data(Data::Binary), false);
        let last = WebSocketFrame::message("message", OpCode::Data(Data::Continue), true);
        [first, last].map(tungstenite::Message::Frame)
    };
    for fragment in fragments() {
        client
            .socket
            .send(fragment)
            .await
            .expect("the websocket is there");
    }
    assert_echoes(&mut client).await;
    far.emulator.set_conditions(service(ServiceConditions {
        fragments: Fragments::Refuse,
        ..ServiceConditions::default()
    }));
    for fragment in fragments() {
        client
            .socket
            .send(fragment)
            .await
            .expect("the websocket is there");
    }
    let end = client.end().await;
    assert!(matches!(end, End::Gone | End::Reset), "{end:?}");
}

#[tokio::test]
async fn channel_closed_comes_in_either_form() {
    for (channel_closed, header) in [(ChannelClosedForm::Hl116, 116), (ChannelClosedForm::Hl112, 112)] {
        let far = Far::start("fast").await;
        far.emulator.set_conditions(service(ServiceConditions {
            channel_closed,
            ..ServiceConditions::default()
        }));
        let mut client = Client::start(&far.caller, ECHO).await;
        assert_echoes(&mut client).await;
        let end = serde_json::json!({ "SessionId": client.ticket["SessionId"] });
        far.caller.ssm("TerminateSession", &end).await;
        client.end().await;
        let last = client.frames.last().expect("a last frame");
        assert_eq!(last[..4], u32::to_be_bytes(header));
        assert!(
            client
                .events
                .contains(&Event::Ended(SessionEnd::ChannelClosed(String::new())))
        );
    }
}

/// Cuts a download of an agent that is not told of it, and returns by how many messages it has then gone on without the
/// client.
async fn missing_after_a_cut(absent_client: AbsentClient) -> u64 {
    let far = Far::start("unpaced").await;
    far.emulator.set_conditions(service(ServiceConditions {
        pause_on_cut: false,
        absent_client,
        ..ServiceConditions::default()
    }));
    let (mut client, id) = Client::with_stream(&far.caller, SOURCE).await;
    client.read(id, 20_000).await;
    far.emulator.cut();
    client.end().await;
    let highest = highest_sequence(&client);
    client.frames.clear();
    client.resume(&far.caller).await;
    let next = client
        .until(|client| {
            let mut data = client
                .messages()
                .filter(|message| message.kind == Kind::OutputStreamData);
            data.find(|message| message.sequence > highest)
        })
        .await;
    next.sequence - highest - 1
}

fn highest_sequence(client: &Client) -> u64 {
    let data = client
        .messages()
        .filter(|message| message.kind == Kind::OutputStreamData);
    data.map(|message| message.sequence).max().expect("data")
}

#[tokio::test]
async fn frames_for_an_absent_client_are_lost_or_kept() {
    let lost = missing_after_a_cut(AbsentClient::Lose).await;
    assert!(lost > 3_000, "{lost}");
    let lost = missing_after_a_cut(AbsentClient::Keep).await;
    assert!(lost < 3_000, "{lost}");
}

#[tokio::test]
async fn an_idle_session_ends_in_the_service_s_words() {
    let far = Far::start("fast").await;
    let mut client = Client::start(&far.caller, ECHO).await;
    assert_echoes(&mut client).await;
    far.emulator.set_conditions(service(ServiceConditions {
        idle_timeout: Some(MILLISECOND * 50),
        ..ServiceConditions::default()
    }));
    client.end().await;
    let told = client.events.iter().any(|event| {
        matches!(event, Event::Ended(SessionEnd::ChannelClosed(words)) if words.contains("due to inactivity"))
    });
    assert!(told, "{:?}", client.events);
    let ended = far.emulator.ended_sessions();
    assert_eq!(ended[0].ended.as_deref(), Some("it timed out due to inactivity"));
}

#[tokio::test]
async fn a_session_ends_at_its_maximum_duration_while_it_carries_data() {
    let far = Far::start("fast").await;
    let (mut client, id) = Client::with_stream(&far.caller, SOURCE).await;
    client.read(id, 1_000).await;
    far.emulator.set_conditions(service(ServiceConditions {
        max_duration: Some(MILLISECOND),
        ..ServiceConditions::default()
    }));
    client.end().await;
    let ended = far.emulator.ended_sessions();
    assert_eq!(ended[0].ended.as_deref(), Some("its maximum duration has passed"));
}

#[tokio::test]
async fn a_handshake_is_requested_several_times_and_acknowledged_late() {
    let far = Far::start("fast").await;
    far.emulator.set_conditions(agent(AgentConditions {
        handshake_requests: 3,
        late_handshake_ack: true,
        ..AgentConditions::default()
    }));
    let mut client = Client::start(&far.caller, ECHO).await;
    assert_echoes(&mut client).await;
    let messages: Vec<_> = client.messages().collect();
    let requests = messages
        .iter()
        .filter(|message| message.payload_type == PayloadType::HandshakeRequest);
    // A busy machine adds what an agent sends again of its own accord.
    assert!(requests.count() >= 3);
    let complete = messages
        .iter()
        .position(|message| message.payload_type == PayloadType::HandshakeComplete);
    let acknowledged = messages.iter().position(|message| {
        message.kind == Kind::Acknowledge && acknowledged_number(&message.payload) == Some(0)
    });
    assert!(complete < acknowledged, "{complete:?} {acknowledged:?}");
}

#[tokio::test]
async fn what_clients_do_not_know_is_numbered_and_does_no_harm() {
    let far = Far::start("fast").await;
    let mut client = Client::start(&far.caller, ECHO).await;
    assert_echoes(&mut client).await;
    far.emulator.set_conditions(agent(AgentConditions {
        oddities: true,
        ..AgentConditions::default()
    }));
    client
        .until(|client| {
            let mut messages = client.messages();
            messages.find(|message| message.payload_type == PayloadType::Other(99))
        })
        .await;
    assert_echoes(&mut client).await;
    let flags = client
        .messages()
        .filter(|message| message.payload_type == PayloadType::Flag);
    assert_eq!(flags.count(), 1);
}

#[tokio::test]
async fn dials_are_serial_and_each_takes_its_delay() {
    let far = Far::start("fast").await;
    far.emulator.set_conditions(agent(AgentConditions {
        dial_delay: MILLISECOND * 150,
        ..AgentConditions::default()
    }));
    let (mut client, first) = Client::with_stream(&far.caller, ECHO).await;
    let began = Instant::now();
    let second = client.open().await;
    client.write(first, "1");
    client.write(second, "2");
    client.read(second, 1).await;
    assert!(client.data.contains_key(&first));
    assert!(began.elapsed() >= MILLISECOND * 300, "{:?}", began.elapsed());
}

#[tokio::test]
async fn dials_are_refused() {
    let far = Far::start("fast").await;
    far.emulator.set_conditions(agent(AgentConditions {
        dials: Dials::Refuse,
        ..AgentConditions::default()
    }));
    let (mut client, id) = Client::with_stream(&far.caller, ECHO).await;
    client.write(id, "x");
    client
        .until(|client| client.events.contains(&Event::Refused(id)).then_some(()))
        .await;
}

#[tokio::test]
async fn a_dial_into_a_black_hole_blocks_later_ones_until_it_is_closed() {
    let far = Far::start("fast").await;
    far.emulator.set_conditions(agent(AgentConditions {
        dials: Dials::BlackHole,
        ..AgentConditions::default()
    }));
    let (mut client, first) = Client::with_stream(&far.caller, ECHO).await;
    client.write(first, "1");
    let second = client.open().await;
    client.write(second, "2");
    // Both have arrived, and neither is answered.
    client
        .until(|client| client.session.is_drained().then_some(()))
        .await;
    client.ping("still there").await;
    assert_eq!(client.data.len(), 0);
    far.emulator.set_conditions(Conditions::default());
    assert_eq!(client.read(first, 1).await, b"1");
    assert_eq!(client.read(second, 1).await, b"2");
}

#[tokio::test]
async fn an_agent_on_a_coarse_timer_sends_a_message_in_15_ms() {
    let far = Far::start("stock").await;
    let (mut client, id) = Client::with_stream(&far.caller, SOURCE).await;
    far.emulator.set_conditions(agent(AgentConditions {
        timer: AgentTimer::Coarse,
        ..AgentConditions::default()
    }));
    // What was on its way before the change comes faster, and a measure may begin in the middle of a tick.
    client.read(id, 10_000).await;
    let mut read = 10_000;
    let mut took = Vec::new();
    for _ in 0..3 {
        let began = Instant::now();
        read += 20 * 1_024;
        client.read(id, read).await;
        took.push(began.elapsed());
    }
    let slowest = took.iter().max().expect("three measures");
    assert!(*slowest >= Duration::from_micros(15_625) * 18, "{took:?}");
}

#[tokio::test]
async fn a_target_takes_no_more_than_its_rate() {
    let far = Far::start("fast").await;
    far.emulator.set_conditions(agent(AgentConditions {
        target_rate: Some(100_000),
        ..AgentConditions::default()
    }));
    let (mut client, id) = Client::with_stream(&far.caller, ECHO).await;
    let began = Instant::now();
    client.write(id, vec![7; 50_000]);
    client.read(id, 50_000).await;
    let took = began.elapsed();
    assert!(took >= MILLISECOND * 400, "{took:?}");
}

/// The service answers pings itself, whatever its agent does; the agent, whose bucket is full, takes nothing, for no
/// stream.
#[tokio::test]
async fn beyond_a_full_bucket_acknowledgements_stop_for_every_stream_and_pings_are_answered() {
    const BUCKET: usize = 4 << 20;
    let far = Far::start("fast").await;
    let (mut client, stalled) = Client::with_stream(&far.caller, SINK).await;
    client.write(stalled, "x");
    client
        .until(|client| client.session.is_drained().then_some(()))
        .await;
    let stall = AgentConditions {
        target_rate: Some(0),
        ..AgentConditions::default()
    };
    far.emulator.set_conditions(agent(stall));
    let sent = BUCKET + (BUCKET >> 1);
    client.write(stalled, vec![0; sent]);
    let mut acknowledgements = 0;
    let mut quiet_since = Instant::now();
    client
        .until(|client| {
            let count = client.count(Kind::Acknowledge);
            if count > acknowledgements {
                acknowledgements = count;
                quiet_since = Instant::now();
            }
            let is_full = acknowledged_bytes(client) > BUCKET - 100_000;
            (is_full && quiet_since.elapsed() > MILLISECOND * 500).then_some(())
        })
        .await;
    let acknowledged = acknowledged_bytes(&client);
    assert!(acknowledged < BUCKET + 100_000, "{acknowledged}");
    let other = client.open().await;
    client.write(other, "does anybody hear?");
    for words in ["one", "two", "three", "four", "five"] {
        client.ping(words).await;
    }
    assert_eq!(client.count(Kind::Acknowledge), acknowledgements);
    assert_eq!(client.end, None);

    far.emulator.set_conditions(Conditions::default());
    client
        .until(|client| client.session.is_drained().then_some(()))
        .await;
}

/// How many bytes of streams the agent has acknowledged: the client numbers its messages, and keeps what it sent.
fn acknowledged_bytes(client: &Client) -> usize {
    let numbers = client
        .messages()
        .filter(|message| message.kind == Kind::Acknowledge)
        .filter_map(|message| acknowledged_number(&message.payload));
    let numbers: std::collections::BTreeSet<u64> = numbers.collect();
    numbers.iter().filter_map(|number| client.sent.get(number)).sum()
}

#[tokio::test]
async fn a_delay_is_felt_each_way_and_by_many_frames_at_once() {
    let far = Far::start("fast").await;
    far.emulator.set_conditions(line(LineConditions {
        delay: MILLISECOND * 40,
        ..LineConditions::default()
    }));
    let (mut client, id) = Client::with_stream(&far.caller, ECHO).await;
    let began = Instant::now();
    client.write(id, "x");
    client.read(id, 1).await;
    assert!(began.elapsed() >= MILLISECOND * 80, "{:?}", began.elapsed());

    let (mut client, id) = Client::with_stream(&far.caller, SOURCE).await;
    let began = Instant::now();
    let length = 16 << 20;
    assert!(client.read(id, length).await == source_bytes(length));
    // One frame of 16 KiB at a time would take 80 s.
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[tokio::test]
async fn bytes_arrive_in_order_and_once_through_every_noise() {
    let noise = Noise {
        drop_data: 0.02,
        drop_acks: 0.02,
        duplicate: 0.05,
        reorder: 0.05,
        corrupt: 0.02,
    };
    let far = Far::start("fast").await;
    far.emulator.set_conditions(line(LineConditions {
        seed: Some(5),
        up: noise.clone(),
        down: noise,
        junk: 0.1,
        ..LineConditions::default()
    }));
    let (mut client, id) = Client::with_stream(&far.caller, ECHO).await;
    let bytes = source_bytes(500_000);
    client.write(id, bytes.clone());
    assert!(client.read(id, bytes.len()).await == bytes);
    let undecodable = client.frames.len() - client.messages().count();
    assert!(undecodable > 0, "there was no junk");
}
