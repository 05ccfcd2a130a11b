//! One side of a session against frames made by hand.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tunneld_wire::smux::{Framing, Header, StreamId};
use tunneld_wire::ssm::message::{Flag, Kind, Malformed, PayloadType};
use tunneld_wire::ssm::{End, Event, Frame, HandshakeError, Session};

use crate::common::agent::Agent;
use crate::common::clock::{self, GRACE};
use crate::common::frames::{data_message, service_message};
use crate::common::hex;
use crate::common::load::bytes;
use crate::common::network::Network;
use crate::common::raw::{FLAG, HANDSHAKE_COMPLETE, OUTPUT, Piece, Raw};
use crate::common::rig::{Act, Reach, Rig, Told};

const HANDSHAKE_RESPONSE: u32 = 6;

/// A side by itself; the test is the other side and the service.
struct Lone {
    session: Session,
    now: Instant,
    next: u64,
}

impl Lone {
    fn client() -> Self {
        let now = clock::origin();
        let mut session = Session::client(clock::client(), clock::options(1, now));
        session.attach("a secret", now);
        let Some(Frame::Text(_)) = session.poll_transmit(now) else {
            panic!("no opening")
        };
        Self {
            session,
            now,
            next: 0,
        }
    }

    /// A client after the handshake with an agent of that version.
    fn ready_client(agent_version: &str) -> Self {
        let mut lone = Self::client();
        lone.data(PayloadType::HandshakeRequest, request(agent_version).into());
        lone.data(PayloadType::HandshakeComplete, complete());
        lone.sent();
        lone.acknowledge(0);
        let Some(Event::Ready { .. }) = lone.session.poll_event() else {
            panic!("not ready")
        };
        lone
    }

    fn agent() -> Self {
        let now = clock::origin();
        let session = Session::agent(Agent::fast(Framing::Fitted).options, clock::options(2, now));
        let mut lone = Self {
            session,
            now,
            next: 0,
        };
        lone.session.attach_agent(now);
        lone
    }

    fn data(&mut self, payload_type: PayloadType, payload: Bytes) {
        self.data_at(self.next, payload_type, payload);
        self.next += 1;
    }

    fn data_at(&mut self, sequence: u64, payload_type: PayloadType, payload: Bytes) {
        let frame = data_message(Kind::OutputStreamData, sequence, payload_type, payload);
        self.session.handle_frame(frame, self.now).unwrap();
    }

    fn acknowledge(&mut self, number: u64) {
        let body = format!(r#"{{"AcknowledgedMessageSequenceNumber":{number}}}"#);
        let frame = data_message(Kind::Acknowledge, 0, PayloadType::Undefined, body.into());
        self.session.handle_frame(frame, self.now).unwrap();
    }

    fn sent(&mut self) -> Vec<Raw> {
        let frames = std::iter::from_fn(|| self.session.poll_transmit(self.now));
        let binary = frames.map(|frame| match frame {
            Frame::Binary(frame) => Raw::read(&frame),
            Frame::Text(_) => panic!("a second opening"),
        });
        binary.collect()
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.session.poll_event()).collect()
    }
}

fn request(agent_version: &str) -> String {
    let parameters = r#"{"SessionType":"Port","Properties":{"type":"LocalPortForwarding"}}"#;
    request_for(
        agent_version,
        &format!(r#"{{"ActionType":"SessionType","ActionParameters":{parameters}}}"#),
    )
}

fn request_for(agent_version: &str, actions: &str) -> String {
    format!(r#"{{"AgentVersion":"{agent_version}","RequestedClientActions":[{actions}]}}"#)
}

fn complete() -> Bytes {
    Bytes::from_static(br#"{"HandshakeTimeToComplete":1,"CustomerMessage":"welcome"}"#)
}

fn of_type(frames: &[Raw], payload_type: u32) -> usize {
    frames
        .iter()
        .filter(|raw| raw.is_data() && raw.payload_type == payload_type)
        .count()
}

fn acknowledged(frames: &[Raw]) -> Vec<u64> {
    frames.iter().filter_map(Raw::acknowledged).collect()
}

fn number(id: StreamId) -> u32 {
    id.to_string().parse().unwrap()
}

#[test]
fn the_handshake_is_answered_once_however_often_it_is_asked_for() {
    let mut lone = Lone::client();
    let mut sent = Vec::new();
    for _ in 0..3 {
        lone.data_at(0, PayloadType::HandshakeRequest, request("3.3.987.0").into());
        sent.extend(lone.sent());
    }
    // And with a number of its own.
    lone.data_at(1, PayloadType::HandshakeRequest, request("3.3.987.0").into());
    sent.extend(lone.sent());
    assert_eq!(acknowledged(&sent), [0, 0, 0, 1]);
    assert_eq!(of_type(&sent, HANDSHAKE_RESPONSE), 1);
}

#[test]
fn the_acknowledgement_of_the_response_may_come_after_the_handshake_is_complete() {
    let mut lone = Lone::client();
    lone.data(PayloadType::HandshakeRequest, request("3.3.987.0").into());
    lone.sent();
    lone.data(PayloadType::HandshakeComplete, complete());
    let ready = Event::Ready {
        agent_version: "3.3.987.0".into(),
        multiplexes: true,
        customer_message: "welcome".into(),
    };
    assert_eq!(lone.events(), [ready]);
    let id = lone.session.open(lone.now).unwrap();
    lone.session.write(id, Bytes::from_static(b"x"));
    assert_eq!(of_type(&lone.sent(), OUTPUT), 1);
    lone.acknowledge(0);
    assert!(!lone.session.is_drained());
    lone.acknowledge(1);
    assert!(lone.session.is_drained());
}

#[test]
fn a_hint_may_be_the_first_frame_of_all() {
    let mut lone = Lone::client();
    for kind in [Kind::StartPublication, Kind::PausePublication] {
        lone.session
            .handle_frame(service_message(kind, Bytes::new()), lone.now)
            .unwrap();
    }
    lone.data(PayloadType::HandshakeRequest, request("3.3.987.0").into());
    assert_eq!(of_type(&lone.sent(), HANDSHAKE_RESPONSE), 1);
    assert_eq!(lone.events(), [Event::Paused, Event::Resumed]);
}

#[test]
fn what_is_no_port_session_is_turned_down_with_the_reason() {
    let shell = r#"{"ActionType":"SessionType","ActionParameters":{"SessionType":"Standard_Stream"}}"#;
    let stdio = r#"{"ActionType":"SessionType","ActionParameters":{"SessionType":"Port","Properties":{}}}"#;
    let port = r#"{"ActionType":"SessionType","ActionParameters":{"SessionType":"Port","Properties":{"type":"LocalPortForwarding"}}}"#;
    let encrypted =
        format!(r#"{port},{{"ActionType":"KMSEncryption","ActionParameters":{{"KMSKeyId":"k"}}}}"#);
    let cases = [
        (shell, vec![2], HandshakeError::NotPort("Standard_Stream".into())),
        (
            stdio,
            vec![1],
            HandshakeError::NotPort("Port without LocalPortForwarding".into()),
        ),
        (
            encrypted.as_str(),
            vec![1, 3],
            HandshakeError::Unsupported("KMSEncryption".into()),
        ),
    ];
    for (actions, statuses, error) in cases {
        let mut lone = Lone::client();
        lone.data(
            PayloadType::HandshakeRequest,
            request_for("3.3.987.0", actions).into(),
        );
        let sent = lone.sent();
        let response = sent
            .iter()
            .find(|raw| raw.payload_type == HANDSHAKE_RESPONSE)
            .unwrap()
            .json();
        let processed = response["ProcessedClientActions"].as_array().unwrap();
        let told: Vec<_> = processed
            .iter()
            .map(|action| action["ActionStatus"].as_u64().unwrap())
            .collect();
        assert_eq!(told, statuses, "{actions}");
        assert_eq!(lone.events(), [Event::Ended(End::Handshake(error))]);
        assert_eq!(lone.session.open(lone.now), None);
    }
}

#[test]
fn output_without_a_handshake_is_a_shell() {
    let mut lone = Lone::client();
    lone.data(PayloadType::Output, Bytes::from_static(b"sh-5.2$ "));
    let shell = HandshakeError::NotPort("shell".into());
    assert_eq!(lone.events(), [Event::Ended(End::Handshake(shell))]);
}

#[test]
fn a_handshake_that_does_not_come_about_ends_after_a_minute() {
    let mut lone = Lone::client();
    let due = lone.session.poll_timeout(lone.now).unwrap();
    assert_eq!(due - lone.now, Duration::from_secs(60));
    lone.session.detach();
    lone.session.attach("another", due);
    lone.session.handle_timeout(due);
    assert_eq!(lone.events(), [Event::Ended(End::HandshakeTimeout)]);
    assert_eq!(lone.session.poll_timeout(due), None);
}

#[test]
fn the_agent_acknowledges_early_data_and_throws_it_away() {
    let mut lone = Lone::agent();
    let early = Header::Nop.encode().to_vec();
    let frame = |sequence, payload_type, payload: Vec<u8>| {
        data_message(Kind::InputStreamData, sequence, payload_type, payload.into())
    };
    lone.session
        .handle_frame(frame(0, PayloadType::Output, early), lone.now)
        .unwrap();
    assert_eq!(acknowledged(&lone.sent()), [0]);
    let response = r#"{"ClientVersion":"1.2.677.0","ProcessedClientActions":[{"ActionType":"SessionType","ActionStatus":1,"ActionResult":null,"Error":""}],"Errors":null}"#;
    lone.session
        .handle_frame(
            frame(1, PayloadType::HandshakeResponse, response.into()),
            lone.now,
        )
        .unwrap();
    let sent = lone.sent();
    assert_eq!(acknowledged(&sent), [1]);
    assert!(sent[0].acknowledged().is_some(), "the acknowledgement goes first");
    assert_eq!(of_type(&sent, HANDSHAKE_COMPLETE), 1);
}

#[test]
fn the_agent_is_silent_after_the_handshake_for_as_long_as_it_was_told() {
    let mut agent = Agent::fast(Framing::Fitted);
    agent.options.quiet = Duration::from_millis(50);
    let now = clock::origin();
    let mut session = Session::agent(agent.options, clock::options(2, now));
    session.attach_agent(now);
    let response = r#"{"ClientVersion":"1.2.677.0","ProcessedClientActions":[],"Errors":null}"#;
    let frame = data_message(
        Kind::InputStreamData,
        0,
        PayloadType::HandshakeResponse,
        response.into(),
    );
    session.handle_frame(frame.clone(), now).unwrap();
    while session.poll_transmit(now).is_some() {}
    session.handle_frame(frame, now).unwrap();
    assert_eq!(session.poll_transmit(now), None);
    let later = session.poll_timeout(now).unwrap();
    assert_eq!(later - now, Duration::from_millis(50));
    session.handle_timeout(later);
    assert!(
        session.poll_transmit(later).is_some(),
        "the second acknowledgement"
    );
}

#[test]
fn the_agent_ends_when_the_client_refuses_or_can_t_be_understood() {
    let refused = r#"{"ClientVersion":"1.2.677.0","ProcessedClientActions":[{"ActionType":"SessionType","ActionStatus":2,"ActionResult":null,"Error":"no"}],"Errors":null}"#;
    for response in [refused, "{}", "no json"] {
        let mut lone = Lone::agent();
        let response = Bytes::copy_from_slice(response.as_bytes());
        let frame = data_message(Kind::InputStreamData, 0, PayloadType::HandshakeResponse, response);
        lone.session.handle_frame(frame, lone.now).unwrap();
        assert!(matches!(lone.events()[..], [Event::Ended(End::Handshake(_))]));
    }
}

#[test]
fn the_session_is_terminated_by_one_flag() {
    let mut lone = Lone::client();
    assert!(
        !lone.session.terminate(),
        "nothing to terminate before the handshake"
    );
    let mut lone = Lone::ready_client("3.3.987.0");
    lone.session.detach();
    assert!(lone.session.terminate());
    assert!(!lone.session.terminate());
    assert!(lone.sent().is_empty());
    lone.session.attach("another", lone.now);
    assert!(matches!(
        lone.session.poll_transmit(lone.now),
        Some(Frame::Text(_))
    ));
    let sent = lone.sent();
    assert_eq!(of_type(&sent, FLAG), 1);
    assert_eq!(sent.last().unwrap().payload, [0, 0, 0, 2]);
}

#[test]
fn a_closing_ends_the_session_in_the_services_words_whatever_its_header() {
    let vectors: Vec<serde_json::Value> =
        serde_json::from_str(include_str!("golden/ssm-vectors.json")).unwrap();
    for name in ["channel_closed_hl116", "channel_closed_hl112_nul"] {
        let vector = vectors.iter().find(|vector| vector["name"] == name).unwrap();
        let text = vector["fields"]["payload_text"].as_str().unwrap();
        let body: serde_json::Value = serde_json::from_str(text).unwrap();
        let words = body["Output"].as_str().unwrap().trim().to_owned();
        let mut lone = Lone::ready_client("3.3.987.0");
        let id = lone.session.open(lone.now).unwrap();
        let frame = hex::bytes(vector["hex"].as_str().unwrap());
        lone.session.handle_frame(frame.into(), lone.now).unwrap();
        assert_eq!(lone.events(), [Event::Ended(End::ChannelClosed(words))]);
        // Whoever goes on is not harmed.
        lone.session.write(id, Bytes::from_static(b"x"));
        lone.session.finish(id, lone.now);
        lone.session.close(id);
        lone.session.reset(id);
        assert_eq!(lone.session.open(lone.now), None);
        assert!(lone.session.streams().is_empty());
        assert!(lone.sent().is_empty());
    }
}

#[test]
fn the_words_of_a_far_end_are_kept_to_one_line_of_a_bearable_length() {
    type Saying<'a> = &'a dyn Fn(&mut Lone);
    let long = format!("\u{1b}[31m{}\nend", "word ".repeat(1 << 12));
    let json = serde_json::to_string(&long).unwrap();
    let action =
        |kind: &str, parameters: &str| format!(r#"{{"ActionType":{kind},"ActionParameters":{parameters}}}"#);
    let closed = |lone: &mut Lone, body: String| {
        let frame = service_message(Kind::ChannelClosed, body.into());
        lone.session.handle_frame(frame, lone.now).unwrap();
    };
    let ask = |lone: &mut Lone, version: &str, action: String| {
        let version = serde_json::to_string(version).unwrap();
        let body = format!(r#"{{"AgentVersion":{version},"RequestedClientActions":[{action}]}}"#);
        lone.data(PayloadType::HandshakeRequest, body.into());
    };
    let port = r#"{"SessionType":"Port","Properties":{"type":"LocalPortForwarding"}}"#;
    let port = action(r#""SessionType""#, port);
    let wrong = action(r#""SessionType""#, &format!(r#"{{"SessionType":{json}}}"#));
    let said: [(&str, Saying<'_>); 6] = [
        ("closing", &|lone| closed(lone, format!(r#"{{"Output":{json}}}"#))),
        ("version", &|lone| ask(lone, &long, port.clone())),
        ("zeros", &|lone| {
            ask(lone, &format!("{}3.3.0.0", "0".repeat(1 << 12)), port.clone())
        }),
        ("action", &|lone| ask(lone, "3.3.0.0", action(&json, "{}"))),
        ("type", &|lone| ask(lone, "3.3.0.0", wrong.clone())),
        ("no request", &|lone| {
            lone.data(PayloadType::HandshakeRequest, json.clone().into())
        }),
    ];
    for (what, say) in said {
        let mut lone = Lone::client();
        say(&mut lone);
        let [Event::Ended(end)] = &lone.events()[..] else {
            panic!("{what}")
        };
        let words = end.to_string();
        assert!(words.chars().count() < 500, "{what}: {} characters", words.len());
        assert!(!words.contains(char::is_control), "{what}: {words:?}");
    }
    let mut lone = Lone::client();
    lone.data(PayloadType::HandshakeRequest, request("3.3.987.0").into());
    let body = format!(r#"{{"HandshakeTimeToComplete":1,"CustomerMessage":{json}}}"#);
    lone.data(PayloadType::HandshakeComplete, body.into());
    let [Event::Ready { customer_message, .. }] = &lone.events()[..] else {
        panic!("not ready")
    };
    assert!(customer_message.starts_with("[31mword word") && customer_message.chars().count() <= 401);
}

#[test]
fn a_damaged_message_is_neither_acknowledged_nor_delivered() {
    let mut lone = Lone::ready_client("3.3.987.0");
    let good = data_message(
        Kind::OutputStreamData,
        2,
        PayloadType::Output,
        Bytes::from_static(b"abc"),
    );
    let mut bad = good.to_vec();
    *bad.last_mut().unwrap() ^= 1;
    assert_eq!(
        lone.session.handle_frame(bad.into(), lone.now),
        Err(Malformed::Digest)
    );
    let cut_short = good.slice(..good.len() - 3);
    assert_eq!(
        lone.session.handle_frame(cut_short, lone.now),
        Err(Malformed::Digest)
    );
    assert!(lone.sent().is_empty());
    lone.session.handle_frame(good, lone.now).unwrap();
    assert_eq!(acknowledged(&lone.sent()), [2]);
}

#[test]
fn what_comes_early_is_kept_up_to_a_number_and_then_not_acknowledged() {
    let mut lone = Lone::ready_client("3.3.987.0");
    for sequence in 3..40_003 {
        lone.data_at(
            sequence,
            PayloadType::Output,
            Bytes::copy_from_slice(&Header::Nop.encode()),
        );
    }
    let acks = acknowledged(&lone.sent());
    assert_eq!(acks, (3..30_003).collect::<Vec<_>>());
    lone.data_at(
        2,
        PayloadType::Output,
        Bytes::copy_from_slice(&Header::Nop.encode()),
    );
    lone.data_at(
        30_003,
        PayloadType::Output,
        Bytes::copy_from_slice(&Header::Nop.encode()),
    );
    assert_eq!(
        acknowledged(&lone.sent()),
        [2, 30_003],
        "the hole is filled and the line goes on"
    );
}

#[test]
fn what_comes_while_the_largest_hole_that_is_waited_for_is_filled_has_room() {
    const MISSING: u64 = 300;
    let mut lone = Lone::ready_client("3.3.987.0");
    let nop = Bytes::copy_from_slice(&Header::Nop.encode());
    let mut early = 2 + MISSING..;
    // The official agent sends ten of what is missing a second, and 838 new messages.
    for missing in 2..2 + MISSING {
        for number in early.by_ref().take(84) {
            lone.data_at(number, PayloadType::Output, nop.clone());
        }
        lone.data_at(missing, PayloadType::Output, nop.clone());
        assert_eq!(acknowledged(&lone.sent()).len(), 85, "{missing}");
        assert_eq!(lone.events(), []);
        lone.now += Duration::from_millis(100);
    }
}

#[test]
fn what_comes_early_is_kept_up_to_a_size_and_then_not_acknowledged() {
    let mut lone = Lone::ready_client("3.3.987.0");
    for sequence in 3..43 {
        lone.data_at(sequence, PayloadType::Output, vec![0; 1 << 20].into());
    }
    assert_eq!(acknowledged(&lone.sent()), (3..35).collect::<Vec<_>>());
    lone.data_at(
        2,
        PayloadType::Output,
        Bytes::copy_from_slice(&Header::Nop.encode()),
    );
    assert!(
        matches!(lone.events()[..], [Event::Ended(End::Protocol(_))]),
        "zeros are no smux"
    );
    for sequence in 36..76 {
        lone.data_at(sequence, PayloadType::Output, vec![0; 1 << 20].into());
    }
    let acks: Vec<_> = std::iter::once(2).chain(36..68).collect();
    assert_eq!(acknowledged(&lone.sent()), acks, "there is room again");
}

#[test]
fn an_outage_is_no_time_in_which_a_hole_could_be_filled() {
    for cut in [true, false] {
        let mut lone = Lone::ready_client("3.3.987.0");
        for number in 400..405 {
            lone.now += Duration::from_millis(1_500);
            if cut {
                lone.session.detach();
                lone.session.attach("another", lone.now);
            }
            lone.data_at(
                number,
                PayloadType::Output,
                Bytes::copy_from_slice(&Header::Nop.encode()),
            );
        }
        let given_up = matches!(lone.events()[..], [Event::Ended(End::Hole { .. })]);
        assert_eq!(given_up, !cut);
    }
}

#[test]
fn a_header_that_claims_more_than_any_field_needs_is_malformed() {
    let mut frame = vec![0; 1 << 20];
    frame[..4].copy_from_slice(&((1_u32 << 20) - 5).to_be_bytes());
    let mut lone = Lone::client();
    let result = lone.session.handle_frame(frame.into(), lone.now);
    assert!(matches!(result, Err(Malformed::Header { .. })));
}

#[test]
fn acknowledgements_that_cannot_be_sent_do_not_pile_up() {
    let mut lone = Lone::ready_client("3.3.987.0");
    for _ in 0..50_000 {
        lone.data_at(0, PayloadType::HandshakeRequest, Bytes::from_static(b"{}"));
    }
    assert_eq!(lone.sent().len(), 30_000);
}

#[test]
fn streams_that_the_agent_has_no_room_for_are_ended_at_once_and_do_not_pile_up() {
    let mut rig = Rig::ready(Duration::ZERO);
    for _ in 0..10_000 {
        rig.client.session.open(rig.now).unwrap();
    }
    rig.run_for(Duration::from_secs(30));
    let opened = rig
        .agent
        .events
        .iter()
        .filter(|event| matches!(event, Event::Opened(_)))
        .count();
    assert_eq!(opened, 4_096);
    assert_eq!(rig.agent.session.streams().len(), 4_096);
}

#[test]
fn absurd_numbers_do_no_harm() {
    let mut lone = Lone::ready_client("3.3.987.0");
    let id = lone.session.open(lone.now).unwrap();
    lone.session.write(id, Bytes::from_static(b"x"));
    lone.sent();
    for number in [u64::MAX, u64::MAX - 1, i64::MAX as u64, 1 << 32, 3, 2] {
        lone.acknowledge(number);
        assert!(!lone.session.is_drained(), "{number} was never sent");
    }
    for sequence in [i64::MAX as u64, i64::MAX as u64 - 1, 1 << 32] {
        lone.data_at(sequence, PayloadType::Output, Bytes::from_static(b"x"));
        assert_eq!(acknowledged(&lone.sent()), [sequence]);
    }
    let negative = data_message(
        Kind::OutputStreamData,
        u64::MAX,
        PayloadType::Output,
        Bytes::from_static(b"x"),
    );
    assert_eq!(
        lone.session.handle_frame(negative, lone.now),
        Err(Malformed::Sequence(-1))
    );
    lone.acknowledge(1);
    assert!(lone.session.is_drained());
}

#[test]
fn nothing_secret_stands_in_what_is_printed_for_debugging() {
    let now = clock::origin();
    let mut session = Session::client(clock::client(), clock::options(1, now));
    session.attach("a secret", now);
    assert!(!format!("{session:?}").contains("secret"));
    assert!(!format!("{:?}", session.poll_transmit(now)).contains("secret"));
    let mut rig = Rig::ready(Duration::ZERO);
    let id = rig.open(b"a secret".to_vec(), Vec::new());
    rig.client.session.write(id, Bytes::from_static(b"a secret"));
    assert!(!format!("{:?}", rig.client.session).contains("secret"));
    assert!(!format!("{:?}", Event::Data(id, Bytes::from_static(b"a secret"))).contains("secret"));
}

#[test]
fn a_refused_stream_is_told_apart_and_the_others_go_on() {
    let mut rig = Rig::ready(Duration::from_millis(5));
    let good = rig.open(bytes(1, 50_000), bytes(2, 50_000));
    let refused = rig.client.session.open(rig.now).unwrap();
    rig.run_until(Duration::from_secs(1), "both streams", |rig| {
        rig.agent.has(&Event::Opened(refused))
    });
    rig.agent.session.refuse(refused);
    rig.run_until(Duration::from_secs(1), "the refusal", |rig| {
        rig.client.has(&Event::Refused(refused))
    });
    assert_eq!(rig.agent.witness.flags, [3]);
    rig.run_loads(Duration::from_secs(10));
    rig.agent.session.close(good);
    rig.run_until(Duration::from_secs(1), "the end", |rig| {
        rig.client.has(&Event::Finished(good))
    });
    let silent = rig.client.session.open(rig.now).unwrap();
    rig.run_until(Duration::from_secs(1), "a third stream", |rig| {
        rig.agent.has(&Event::Opened(silent))
    });
    rig.agent.session.close(silent);
    rig.run_until(Duration::from_secs(1), "its end", |rig| {
        rig.client.has(&Event::Finished(silent))
    });
}

#[test]
fn a_refusal_of_a_stream_that_is_gone_is_not_that_of_the_next_one() {
    const SECOND: Duration = Duration::from_secs(1);
    let mut rig = Rig::ready(Duration::from_millis(5));
    let open = |rig: &mut Rig| {
        let id = rig.client.session.open(rig.now).unwrap();
        rig.run_until(SECOND, "the stream", |rig| rig.agent.has(&Event::Opened(id)));
        id
    };
    // It is given up before its refusal comes; and refused twice.
    for delay in [0, 6] {
        let gone = open(&mut rig);
        rig.agent.session.refuse(gone);
        rig.agent
            .session
            .say(PayloadType::Flag, Flag::ConnectToPortError.payload());
        rig.run_for(Duration::from_millis(delay));
        rig.client.session.reset(gone);
        rig.run_for(SECOND);
        let silent = open(&mut rig);
        rig.agent.session.close(silent);
        rig.run_for(SECOND);
        assert!(rig.client.has(&Event::Finished(silent)), "{delay} ms");
    }
}

#[test]
fn bytes_written_before_a_close_arrive_before_the_end() {
    let mut rig = Rig::ready(Duration::from_millis(5));
    let id = rig.open(bytes(1, 10_000), Vec::new());
    rig.pump();
    rig.client.session.close(id);
    rig.run_until(Duration::from_secs(5), "the end", |rig| {
        rig.agent.has(&Event::Finished(id))
    });
    assert_eq!(rig.loads[&id].got_up.len(), 10_000);
}

#[test]
fn a_reset_drops_what_is_queued_and_keeps_the_pipe_whole() {
    // The paced one is always in the midst of a frame.
    for agent in [Agent::fast(Framing::Fitted), Agent::stock()] {
        let mut rig = Rig::ready_with(Network::perfect(Duration::from_millis(5)), agent);
        let id = rig.open(b"get".to_vec(), bytes(1, 8 << 20));
        let other = rig.open(b"get".to_vec(), bytes(2, 100_000));
        rig.run_until(Duration::from_secs(5), "some bytes", |rig| {
            rig.loads[&id].got_down.len() > 100_000
        });
        rig.agent.session.reset(id);
        rig.run_until(Duration::from_secs(5), "the end", |rig| {
            rig.client.has(&Event::Finished(id))
        });
        assert!(rig.loads[&id].got_down.len() < 8 << 20);
        rig.loads.remove(&id);
        rig.run_loads(Duration::from_secs(10));
        assert!(rig.loads.contains_key(&other));
    }
}

fn has_fin(rig: &Rig, id: StreamId) -> bool {
    rig.client.witness.pieces.contains(&Piece::Fin(number(id)))
}

#[test]
fn a_half_closed_stream_is_ended_when_the_far_end_has_answered_and_ended() {
    let mut rig = Rig::ready(Duration::from_millis(5));
    let id = rig.open(b"question".to_vec(), b"answer".to_vec());
    rig.pump();
    rig.client.session.finish(id, rig.now);
    rig.run_loads(Duration::from_secs(1));
    rig.run_for(Duration::from_secs(5));
    assert!(!has_fin(&rig, id));
    rig.agent.session.close(id);
    rig.run_until(Duration::from_secs(1), "the end", |rig| {
        rig.client.has(&Event::Finished(id))
    });
    assert!(has_fin(&rig, id));
    assert!(rig.client.session.streams().is_empty());
}

#[test]
fn a_half_closed_stream_is_ended_after_the_grace_time_without_a_byte() {
    let mut rig = Rig::ready(Duration::ZERO);
    let id = rig.open(b"question".to_vec(), Vec::new());
    rig.run_loads(Duration::from_secs(1));
    rig.client.session.finish(id, rig.now);
    rig.run_for(GRACE - Duration::from_secs(1));
    // A byte of the answer starts the time anew.
    rig.loads.get_mut(&id).unwrap().down.push(1);
    rig.run_loads(Duration::from_secs(1));
    rig.run_for(GRACE - Duration::from_millis(1));
    assert!(!has_fin(&rig, id));
    rig.run_for(Duration::from_millis(1));
    assert!(has_fin(&rig, id));
    assert!(rig.client.has(&Event::Abandoned(id)));
}

#[test]
fn grace_does_not_pass_while_the_far_end_cannot_be_heard() {
    let mut rig = Rig::ready(Duration::ZERO);
    let id = rig.open(b"question".to_vec(), Vec::new());
    rig.run_loads(Duration::from_secs(1));
    rig.client.session.finish(id, rig.now);
    rig.act(Act::Cut(Told::Pause));
    rig.run_for(GRACE * 3);
    rig.act(Act::Attach);
    rig.run_for(GRACE - Duration::from_millis(1));
    assert!(!has_fin(&rig, id));
    rig.announce(Kind::PausePublication);
    rig.run_for(GRACE);
    rig.announce(Kind::StartPublication);
    rig.run_for(GRACE - Duration::from_millis(1));
    assert!(!has_fin(&rig, id));
    rig.run_for(Duration::from_millis(1));
    assert!(has_fin(&rig, id));
}

#[test]
fn grace_does_not_pass_before_the_question_has_left() {
    let mut rig = Rig::ready(Duration::ZERO);
    let id = rig.open(bytes(1, 2 << 20), Vec::new());
    rig.queue_upwards(id);
    rig.client.session.finish(id, rig.now);
    rig.network.loss = 1.0;
    rig.run_for(GRACE * 2);
    rig.network.loss = 0.0;
    rig.run_loads(GRACE);
    assert!(!has_fin(&rig, id));
    rig.run_for(GRACE);
    assert!(has_fin(&rig, id));
}

#[test]
fn a_stream_reset_before_it_was_announced_is_never_heard_of() {
    let mut rig = Rig::ready(Duration::ZERO);
    let id = rig.client.session.open(rig.now).unwrap();
    rig.client.session.write(id, Bytes::from_static(b"never mind"));
    rig.client.session.reset(id);
    rig.run_for(Duration::from_secs(1));
    assert!(rig.client.witness.pieces.is_empty());
    assert!(rig.client.session.streams().is_empty());
}

#[test]
fn while_paused_one_message_a_second_asks_and_no_new_data_leaves() {
    let mut rig = Rig::ready(Duration::from_millis(5));
    let id = rig.open(bytes(1, 1 << 20), Vec::new());
    rig.run_for(Duration::from_millis(50));
    rig.reach = Reach::Service;
    rig.run_for(Duration::from_millis(50));
    rig.announce(Kind::PausePublication);
    assert!(rig.client.has(&Event::Paused));
    let (messages, repeats) = (rig.client.witness.messages(), rig.client.witness.repeats);
    rig.run_for(Duration::from_millis(10_100));
    assert_eq!(rig.client.witness.messages(), messages);
    assert_eq!(rig.client.witness.repeats, repeats + 10);
    assert!(!rig.client.has(&Event::Resumed));
    rig.reach = Reach::Agent;
    rig.run_until(Duration::from_secs(2), "the resumption", |rig| {
        rig.client.has(&Event::Resumed)
    });
    rig.run_loads(Duration::from_secs(30));
    assert!(rig.loads[&id].is_done());
}

#[test]
fn a_pause_stops_what_was_to_be_sent_again() {
    let mut lone = Lone::ready_client("3.3.987.0");
    let id = lone.session.open(lone.now).unwrap();
    lone.session.write(id, vec![7; 100_000].into());
    lone.sent();
    lone.session.detach();
    lone.session.attach("another", lone.now);
    assert!(matches!(
        lone.session.poll_transmit(lone.now),
        Some(Frame::Text(_))
    ));
    lone.session
        .handle_frame(service_message(Kind::PausePublication, Bytes::new()), lone.now)
        .unwrap();
    assert_eq!(lone.sent().iter().filter(|raw| raw.is_data()).count(), 0);
    lone.now += Duration::from_secs(1);
    lone.session
        .handle_frame(service_message(Kind::StartPublication, Bytes::new()), lone.now)
        .unwrap();
    assert!(lone.sent().iter().filter(|raw| raw.is_data()).count() > 50);
}

#[test]
fn a_long_pause_is_doubtful_once() {
    let mut rig = Rig::ready(Duration::from_millis(5));
    rig.open(bytes(1, 100_000), Vec::new());
    rig.run_for(Duration::from_millis(20));
    rig.reach = Reach::Service;
    rig.announce(Kind::PausePublication);
    rig.run_for(Duration::from_secs(44));
    assert!(!rig.client.has(&Event::Doubtful));
    rig.run_for(Duration::from_secs(60));
    let doubts = rig
        .client
        .events
        .iter()
        .filter(|event| **event == Event::Doubtful)
        .count();
    assert_eq!(doubts, 1);
}

#[test]
fn a_flag_that_nobody_knows_is_ignored() {
    let mut lone = Lone::ready_client("3.3.987.0");
    for payload in [&[0, 0, 0, 9][..], &[3], b""] {
        lone.data(PayloadType::Flag, Bytes::copy_from_slice(payload));
    }
    lone.data(PayloadType::Flag, Flag::DisconnectToPort.payload());
    lone.data(PayloadType::Other(11), Bytes::from_static(b"stderr"));
    assert_eq!(acknowledged(&lone.sent()).len(), 5);
    assert!(lone.events().is_empty());
}

#[test]
fn a_message_without_bytes_brings_a_stream_nothing() {
    let mut lone = Lone::ready_client("3.0.150.0");
    let id = lone.session.open(lone.now).unwrap();
    lone.data(PayloadType::Output, Bytes::new());
    lone.data(PayloadType::Output, Bytes::from_static(b"x"));
    assert_eq!(lone.events(), [Event::Data(id, Bytes::from_static(b"x"))]);
    assert_eq!(acknowledged(&lone.sent()), [2, 3]);
}

#[test]
fn bytes_that_are_not_smux_end_the_session() {
    let mut lone = Lone::ready_client("3.3.987.0");
    lone.data(
        PayloadType::Output,
        Bytes::from_static(b"HTTP/1.1 400 Bad Request"),
    );
    assert!(matches!(lone.events()[..], [Event::Ended(End::Protocol(_))]));
}

#[test]
fn one_lost_acknowledgement_of_an_agent_that_acknowledges_once_ends_nothing() {
    for version in ["3.2.1000.0", "3.1.1512.0", "3.0.196.0"] {
        let mut lone = Lone::ready_client(version);
        let id = lone.session.open(lone.now).unwrap();
        lone.session.write(id, Bytes::from_static(b"question"));
        // It arrives, and nobody will ever say so again.
        assert_eq!(of_type(&lone.sent(), OUTPUT), 1);
        let mut later = Vec::new();
        let mut events = Vec::new();
        let until = lone.now + clock::STALL_TIMEOUT * 2;
        while let Some(due) = lone.session.poll_timeout(lone.now).filter(|due| *due <= until) {
            lone.now = due;
            lone.session.handle_timeout(due);
            for raw in lone.sent().iter().filter(|raw| raw.is_data() && raw.sequence > 1) {
                lone.acknowledge(raw.sequence);
                later.push(raw.sequence);
            }
            lone.session.handle_pong(due);
            events.extend(lone.events());
        }
        assert_eq!(later, [2], "{version}: one message is enough of a witness");
        assert!(lone.session.is_drained(), "{version}");
        let passing = [Event::Unanswered, Event::Stalled(Some(id)), Event::Flowing];
        assert_eq!(events, passing, "{version}");
    }
}
